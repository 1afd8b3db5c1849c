//! The cache under other rules than before.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;

use dataplane::client::Driver;
use dataplane::rules::{Rules, Sites};
use dataplane::settings::Settings;

use crate::tunnel::{Answer, PATIENCE, SETTINGS, Tunnel, gate, on_both_drivers, read_head, site};

/// A site that counts what it is asked; each answer may be kept.
fn counting() -> (SocketAddr, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let site = site(move |mut connection| {
        read_head(&mut connection);
        count.fetch_add(1, Ordering::SeqCst);
        connection.get_mut().write_all(ANSWER).unwrap();
    });
    (site, asked)
}

const ANSWER: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nCache-Control: max-age=600\r\nConnection: close\r\n\r\nx";

/// The same, but its first answer waits for a word.
fn holding() -> (SocketAddr, mpsc::Receiver<()>, mpsc::Sender<()>) {
    let (tell, told) = mpsc::channel();
    let (release, may_answer) = gate();
    let is_first = AtomicBool::new(true);
    let site = site(move |mut connection| {
        read_head(&mut connection);
        if is_first.swap(false, Ordering::SeqCst) {
            tell.send(()).unwrap();
            may_answer();
        }
        connection.get_mut().write_all(ANSWER).unwrap();
    });
    (site, told, release)
}

/// Has the endpoint go by other rules.
pub fn switch(tunnel: &Tunnel, version: u32, rules: Rules) {
    adopt(tunnel, settings(version, rules));
}

/// Has `sc` go by other rules, soon; the endpoint is not told.
pub fn reload(tunnel: &Tunnel, version: u32, rules: Rules) {
    tunnel.client().reload(Arc::new(settings(version, rules)));
}

fn settings(version: u32, rules: Rules) -> Settings {
    Settings {
        version,
        rules: Arc::new(rules),
        ..Settings::default()
    }
}

/// Has the endpoint do all by other settings.
pub fn adopt(tunnel: &Tunnel, settings: Settings) {
    let version = settings.version.to_string();
    tunnel.endpoint.switch(&Arc::new(settings), &Vec::new().into());
    // Error pages name the version.
    let is_in_force = |answer: Answer| answer.field("Culvert-Settings") == Some(&version);
    let polled = (0..100_000).any(|_| is_in_force(tunnel.get("https://a.test/")));
    assert!(polled, "the rules are not in force");
}

#[test]
fn caching_is_switched_off_and_on_and_nothing_stored_survives_it() {
    on_both_drivers(|tunnel| {
        let (site, asked) = counting();
        let url = format!("http://{site}/");
        let get = |wanted: usize| {
            let answer = tunnel.get(&url);
            assert_eq!((answer.status, asked.load(Ordering::SeqCst)), (200, wanted));
            answer.field("Cache-Status").map(str::to_owned)
        };
        assert!(get(1).is_some());
        assert!(get(1).is_some());
        let off = Rules {
            no_cache: true,
            ..Rules::default()
        };
        switch(tunnel, SETTINGS + 1, off);
        assert_eq!((get(2), get(3)), (None, None));
        switch(tunnel, SETTINGS + 2, Rules::default());
        assert!(get(4).is_some(), "what was stored before may have changed since");
        assert!(get(4).is_some());
    });
}

#[test]
fn what_a_site_shows_to_credentials_of_the_tunnel_is_not_shared() {
    let tunnel = Tunnel::start(Driver::Auto, Vec::new());
    let (site, asked) = counting();
    let auth = Sites::parse(&[site.to_string()]).unwrap();
    switch(
        &tunnel,
        SETTINGS + 1,
        Rules {
            auth,
            ..Rules::default()
        },
    );
    for wanted in 1..=2 {
        assert_eq!(tunnel.get(&format!("http://{site}/")).status, 200);
        assert_eq!(asked.load(Ordering::SeqCst), wanted);
    }
    tunnel.stop();
}

#[test]
fn who_waits_for_an_equal_request_goes_on_under_the_rules_that_are_in_force_then() {
    on_both_drivers(|tunnel| {
        let (site, told, release) = holding();
        let url = format!("http://{site}/");
        let (mut first, mut second) = (tunnel.browser(), tunnel.browser());
        first.get(&url);
        told.recv_timeout(PATIENCE).unwrap();
        second.get(&url);
        let auth = Sites::parse(&[site.to_string()]).unwrap();
        switch(
            tunnel,
            SETTINGS + 1,
            Rules {
                auth,
                ..Rules::default()
            },
        );
        release.send(()).unwrap();
        assert_eq!(first.answer("GET").status, 200);
        let answer = second.answer("GET");
        let status = answer.field("Cache-Status").unwrap();
        assert!(
            answer.status == 200 && !status.contains("stored"),
            "shown to credentials: {status}"
        );
    });
}

#[test]
fn what_began_while_nothing_was_cached_ends_what_was_stored_since() {
    on_both_drivers(|tunnel| {
        let off = Rules {
            no_cache: true,
            ..Rules::default()
        };
        switch(tunnel, SETTINGS + 1, off);
        let (site, told, release) = holding();
        let url = format!("http://{site}/");
        let is_hit = || {
            let answer = tunnel.get(&url);
            answer.field("Cache-Status").unwrap().contains("hit")
        };
        let mut poster = tunnel.browser();
        poster.send(format!("POST {url} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n").as_bytes());
        told.recv_timeout(PATIENCE).unwrap();
        switch(tunnel, SETTINGS + 2, Rules::default());
        assert_eq!((is_hit(), is_hit()), (false, true));
        release.send(()).unwrap();
        let posted = poster.answer("POST");
        assert_eq!((posted.status, posted.field("Cache-Status")), (200, None));
        assert_eq!((is_hit(), is_hit()), (false, true));
    });
}
