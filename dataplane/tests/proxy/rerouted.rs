//! Connections that go on while the rules send their site past the tunnel (`-D`, `-t`), or leave it alone (`-B`): what
//! is asked in them never takes the way of before.

use std::io::{BufRead, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use dataplane::client::Driver;
use dataplane::endpoint::Event;
use dataplane::rules::{Routes, Rules};
use dataplane::settings::{Settings, Times};

use crate::reload::{adopt, reload, switch};
use crate::tls::{bumping, client_for, connect_to, domains, secure_site, shaken};
use crate::tunnel::{Browser, PATIENCE, SETTINGS, Tunnel, field, gate, is_asked, on_both_drivers, read_head, site};

/// Leads to this host, as `localhost` does, which never goes past the tunnel.
pub const HOST: &str = "0.0.0.0";

const FRESH: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nCache-Control: max-age=600\r\n\r\nx";

/// Each list that sends it past the tunnel, with a driver.
fn lists() -> [(Driver, Routes); 2] {
    let direct = Routes {
        direct: domains(HOST),
        ..Routes::default()
    };
    let tunnel = Routes {
        tunnel: domains("other.test"),
        ..Routes::default()
    };
    [(Driver::Epoll, direct), (Driver::Auto, tunnel)]
}

fn past_the_tunnel(routes: Routes) -> Rules {
    Rules {
        routes,
        ..Rules::default()
    }
}

/// A site that tells of each head; its answers may be kept.
fn telling() -> (SocketAddr, Receiver<String>) {
    let (tell, told) = mpsc::channel();
    let site = secure_site(move |mut connection| {
        while is_asked(&mut connection) {
            let head = read_head(&mut connection);
            let length = field(&head, "Content-Length").map_or(0, |length| length.parse().unwrap());
            tell.send(head).unwrap();
            connection.read_exact(&mut vec![0; length]).unwrap();
            connection.get_mut().write_all(FRESH).unwrap();
        }
    });
    (site, told)
}

/// A browser in whose TLS the site is asked.
pub fn within(tunnel: &Tunnel, site: SocketAddr) -> Browser {
    let mut browser = tunnel.browser();
    browser.send(connect_to(&authority(site)).as_bytes());
    assert_eq!(browser.answer("CONNECT").status, 200);
    Browser(shaken(client_for(tunnel, HOST), browser).unwrap())
}

pub fn authority(site: SocketAddr) -> String {
    format!("{HOST}:{}", site.port())
}

pub fn head(method: &str, path: &str, site: SocketAddr, fields: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n{fields}\r\n", authority(site))
}

/// By the answer all that was sent before has been read. It comes from `sc`, which dials nobody and looks no name up.
fn has_been_read(tunnel: &Tunnel) {
    assert_eq!(tunnel.get("http://169.254.169.254/").status, 403);
}

fn is_misdirected(mut browser: Browser) {
    let answer = browser.answer("GET");
    assert_eq!(
        (answer.status, answer.field("Culvert-Error"), answer.field("Connection")),
        (421, Some("misdirected"), Some("close"))
    );
    assert_eq!(browser.rest().0, b"");
}

/// The next dial for which the endpoint asks its broker: shard, number, host and port.
fn dial(events: impl Iterator<Item = Event>) -> Option<(usize, u64, String, u16)> {
    let mut events = events;
    events.find_map(|event| match event {
        Event::Dial { shard, id, host, port } => Some((shard, id, host, port)),
        _ => None,
    })
}

/// Does what the broker does, and leads to `to`.
pub fn dial_outside(tunnel: &Tunnel, site: SocketAddr, to: SocketAddr) {
    let events = std::iter::from_fn(|| tunnel.endpoint.events().recv_timeout(PATIENCE).ok());
    let (shard, id, host, port) = dial(events).expect("the endpoint asks for a connection");
    assert_eq!((host.as_str(), port), (HOST, site.port()));
    lead(tunnel, shard, id, to);
}

fn lead(tunnel: &Tunnel, shard: usize, id: u64, to: SocketAddr) {
    let socket = TcpStream::connect(to).unwrap();
    socket.set_nonblocking(true).unwrap();
    tunnel.endpoint.dialled(shard, id, Ok((socket.into(), to)));
}

pub fn asked_for_no_dial(tunnel: &Tunnel) {
    assert_eq!(dial(tunnel.endpoint.events().try_iter()), None);
}

/// HTTPS is opaque there, so that no connection whose TLS ends at the endpoint can go on with it.
#[test]
fn nothing_more_is_asked_in_tls_of_a_site_that_goes_past_the_tunnel() {
    for (driver, routes) in lists() {
        let tunnel = bumping(driver);
        let (site, told) = telling();
        let mut idle = within(&tunnel, site);
        let mut asking = within(&tunnel, site);
        asking.send(head("GET", "/kept", site, "").as_bytes());
        assert_eq!(asking.answer("GET").status, 200);
        assert!(told.recv().unwrap().starts_with("GET /kept "));
        let mut posting = within(&tunnel, site);
        posting.send((head("POST", "/begun", site, "Content-Length: 4\r\n") + "ab").as_bytes());
        assert!(told.recv_timeout(PATIENCE).unwrap().starts_with("POST /begun "));
        let next = head("GET", "/kept", site, "");
        let (begun, rest) = next.split_at(20);
        asking.send(begun.as_bytes());
        has_been_read(&tunnel);
        switch(&tunnel, SETTINGS + 1, past_the_tunnel(routes));

        assert_eq!(idle.0.fill_buf().unwrap(), b"", "a browser would ask over it");
        asking.send(rest.as_bytes());
        is_misdirected(asking);
        // What was begun ends on its way.
        posting.send(format!("cd{next}").as_bytes());
        assert_eq!(posting.answer("POST").status, 200);
        is_misdirected(posting);
        assert_eq!(told.try_recv().ok(), None);
        asked_for_no_dial(&tunnel);

        // A new connection is the browser's own with the site, and the cloud's broker leads there.
        let beyond = secure_site(|mut connection| drop(connection.fill_buf().map(<[u8]>::len)));
        let mut browser = tunnel.browser();
        browser.send(connect_to(&authority(site)).as_bytes());
        dial_outside(&tunnel, site, beyond);
        assert_eq!(browser.answer("CONNECT").status, 200);
        let own = shaken(client_for(&tunnel, HOST), browser).unwrap_err().to_string();
        assert!(own.contains("invalid peer certificate"), "not the site's own: {own}");
        tunnel.stop();
    }
}

/// It was taken under the rules of before, and has no answer yet.
#[test]
fn what_waits_for_an_equal_request_in_tls_is_not_asked_under_other_rules() {
    let left_alone = Rules {
        no_bump: domains(HOST),
        ..Rules::default()
    };
    let rerouted = lists().map(|(driver, routes)| (driver, past_the_tunnel(routes)));
    for (driver, rules) in rerouted.into_iter().chain([(Driver::Auto, left_alone)]) {
        let tunnel = bumping(driver);
        let (tell, told) = mpsc::channel();
        let (release, may_answer) = gate();
        let site = secure_site(move |mut connection| {
            while is_asked(&mut connection) {
                tell.send(read_head(&mut connection)).unwrap();
                may_answer();
                connection.get_mut().write_all(FRESH).unwrap();
            }
        });
        let mut first = within(&tunnel, site);
        let mut second = within(&tunnel, site);
        first.send(head("GET", "/", site, "").as_bytes());
        told.recv_timeout(PATIENCE).unwrap();
        second.send(head("GET", "/", site, "").as_bytes());
        has_been_read(&tunnel);
        switch(&tunnel, SETTINGS + 1, rules);
        release.send(()).unwrap();
        assert_eq!(first.answer("GET").status, 200);
        is_misdirected(second);
        assert_eq!(told.try_recv().ok(), None);
        asked_for_no_dial(&tunnel);
        tunnel.stop();
    }
}

/// The endpoint is older than the rules of `sc`, or taken over.
#[test]
fn the_client_asks_nothing_in_tls_of_what_its_own_rules_keep_out() {
    for (driver, routes) in lists() {
        let tunnel = bumping(driver);
        let (site, told) = telling();
        let mut browser = within(&tunnel, site);
        let mut ask = |path: &str| {
            browser.send(head("POST", path, site, "Content-Length: 0\r\n").as_bytes());
            let answer = browser.answer("POST");
            let page = String::from_utf8_lossy(&answer.body).into_owned();
            let denied = answer.field("Culvert-Error") == Some("denied");
            assert_eq!(denied, answer.status == 403 && page.contains("(-D, -t)"), "{page}");
            denied
        };
        assert!(!ask("/before"));
        reload(&tunnel, SETTINGS + 1, past_the_tunnel(routes));
        let mut asked = 1;
        while !ask("/between") {
            asked += 1;
            assert!(asked < 100_000, "the rules are not in force");
        }
        assert!(ask("/after"));
        let reached: Vec<String> = told.try_iter().collect();
        assert_eq!(reached.len(), asked, "{:?}", reached.last());
        assert!(!reached.iter().any(|head| head.contains("/after")));
        tunnel.stop();
    }
}

/// Plain HTTP goes on, each request on its way.
#[test]
fn what_is_asked_in_a_connect_goes_past_the_tunnel_from_then_on() {
    on_both_drivers(|tunnel| {
        let answering = |name: &'static str| {
            site(move |mut connection| {
                while is_asked(&mut connection) {
                    read_head(&mut connection);
                    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n{name}");
                    connection.get_mut().write_all(answer.as_bytes()).unwrap();
                }
            })
        };
        let (inside, outside) = (answering("inside"), answering("beyond"));
        let mut browser = tunnel.browser();
        browser.send(connect_to(&authority(inside)).as_bytes());
        assert_eq!(browser.answer("CONNECT").status, 200);
        let mut ask = |meanwhile: &dyn Fn()| {
            browser.send(head("GET", "/", inside, "").as_bytes());
            meanwhile();
            browser.answer("GET").body
        };
        assert_eq!(ask(&|| ()), b"inside");
        for (i, (_, routes)) in lists().into_iter().enumerate() {
            switch(tunnel, SETTINGS + 1 + 2 * i as u32, past_the_tunnel(routes));
            // What the first one leaves open serves the others.
            if i == 0 {
                assert_eq!(ask(&|| dial_outside(tunnel, inside, outside)), b"beyond");
            }
            assert_eq!(ask(&|| ()), b"beyond");
            asked_for_no_dial(tunnel);
            switch(tunnel, SETTINGS + 2 + 2 * i as u32, Rules::default());
            assert_eq!(ask(&|| ()), b"inside");
        }
    });
}

/// `-B` is for HTTP too: the cache has no part any more in what is left alone, for whoever waits for an answer neither.
#[test]
fn what_is_left_alone_from_then_on_is_not_cached_over_http() {
    on_both_drivers(|tunnel| {
        let (tell, told) = mpsc::channel();
        let (release, may_answer) = gate();
        let site = site(move |mut connection| {
            while is_asked(&mut connection) {
                let head = read_head(&mut connection);
                let held = head.starts_with("GET /held ");
                tell.send(head).unwrap();
                if held {
                    may_answer();
                }
                connection.get_mut().write_all(FRESH).unwrap();
            }
        });
        let mut inside = tunnel.browser();
        inside.send(connect_to(&authority(site)).as_bytes());
        assert_eq!(inside.answer("CONNECT").status, 200);
        let mut whole = tunnel.browser();
        // Whether the cache has a part in either, and how often the site was asked.
        let mut ask = || {
            whole.get(&format!("http://{}/", authority(site)));
            inside.send(head("GET", "/", site, "").as_bytes());
            let answers = [&mut whole, &mut inside].map(|browser| browser.answer("GET"));
            let cached = answers.map(|answer| {
                assert_eq!(answer.status, 200);
                answer.field("Cache-Status").is_some()
            });
            (cached, told.try_iter().count())
        };
        let left_alone = |list| Rules {
            no_bump: domains(list),
            ..Rules::default()
        };
        assert_eq!(ask(), ([true, true], 1));
        switch(tunnel, SETTINGS + 1, left_alone(HOST));
        for _ in 0..2 {
            assert_eq!(ask(), ([false, false], 2));
        }
        switch(tunnel, SETTINGS + 2, left_alone("other.test"));
        assert_eq!(ask(), ([true, true], 1));

        let held = format!("http://{}/held", authority(site));
        let (mut first, mut second) = (tunnel.browser(), tunnel.browser());
        first.get(&held);
        assert!(told.recv_timeout(PATIENCE).unwrap().starts_with("GET /held "));
        second.get(&held);
        has_been_read(tunnel);
        switch(tunnel, SETTINGS + 3, left_alone(HOST));
        release.send(()).unwrap();
        assert_eq!(first.answer("GET").status, 200);
        release.send(()).unwrap();
        let answer = second.answer("GET");
        assert_eq!((answer.status, answer.field("Cache-Status")), (200, None));
        assert_eq!(told.try_iter().count(), 1, "it was asked for itself");
    });
}

/// The endpoint keeps the time limits of what it serves without the tunnel.
#[test]
fn a_site_past_the_tunnel_that_is_silent_is_named() {
    // Half an answer is there in time also where the machine is busy.
    const FIRST_BYTE: Duration = Duration::from_millis(1_200);
    const IDLE: Duration = Duration::from_millis(300);
    on_both_drivers(|tunnel| {
        let site = site(|mut connection| {
            if read_head(&mut connection).starts_with("GET /begun ") {
                let half = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nx";
                connection.get_mut().write_all(half).unwrap();
            }
            // Until it is given up.
            is_asked(&mut connection);
        });
        let [(_, direct), _] = lists();
        let times = Times {
            first_byte: FIRST_BYTE,
            idle: IDLE,
            ..Times::default()
        };
        let settings = Settings {
            version: SETTINGS + 1,
            rules: Arc::new(past_the_tunnel(direct)),
            times,
            ..Settings::default()
        };
        adopt(tunnel, settings);
        let [mut late, mut begun] = ["late", "begun"].map(|path| {
            let mut browser = tunnel.browser();
            browser.get(&format!("http://{}/{path}", authority(site)));
            browser
        });
        let mut logged = Vec::new();
        while logged.len() < 2 {
            match tunnel.endpoint.events().recv_timeout(PATIENCE).expect("two lines") {
                Event::Dial { shard, id, .. } => lead(tunnel, shard, id, site),
                Event::Log { text, .. } if text.contains(&authority(site)) => logged.push(text),
                _ => {}
            }
        }
        let page = late.answer("GET");
        assert_eq!(
            (page.status, page.field("Culvert-Error")),
            (504, Some("first-byte-timeout"))
        );
        let text = String::from_utf8_lossy(&page.body);
        assert!(text.contains("<code>first-byte-timeout</code>"), "{text}");
        assert!(!begun.rest().1, "half an answer is cut");
        for name in ["first-byte-timeout", "idle-timeout"] {
            let line = format!("{name}: ");
            assert!(logged.iter().any(|text| text.starts_with(&line)), "{logged:?}");
            assert!(tunnel.endpoint.report().errors.contains(&(name, 1)), "{name}");
        }
    });
}
