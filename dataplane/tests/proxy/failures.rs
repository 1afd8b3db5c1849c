//! What is refused, what fails, and what is cut.

use std::io::{BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use dataplane::client::{ClientConfig, Driver};
use dataplane::rules::{Domains, FastFail, Routes, Rules};
use dataplane::settings::{Settings, Times};

use crate::tunnel::{PATIENCE, SETTINGS, Tunnel, is_asked, on_both_drivers, read_head, refusing, site, timed};
use crate::way::in_every_way;

#[test]
fn requests_with_two_readings_get_400_and_nothing_of_them_is_sent_on() {
    on_both_drivers(|tunnel| {
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = connections.clone();
        let site = site(move |_| {
            counted.fetch_add(1, Ordering::SeqCst);
        });
        let url = format!("http://{site}/");
        let bad = [
            format!("GET {url} HTTP/1.1\nHost: x\n\n"),
            format!("GET {url} HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n"),
            format!("GET {url} HTTP/1.1\r\n\r\n"),
            format!(
                "POST {url} HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            ),
            format!("POST {url} HTTP/1.1\r\nHost: x\r\nContent-Length: +1\r\n\r\nx"),
            format!("POST {url} HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx"),
            format!("POST {url} HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
            format!("GET {url} HTTP/1.1\r\nHost: x\r\n: y\r\n\r\n"),
            format!("GET {url} HTTP/1.1\r\nHost: x\r\nA : y\r\n\r\n"),
            format!("CONNECT {site} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"),
            "GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(),
            "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(),
        ];
        for text in bad {
            let mut browser = tunnel.browser();
            browser.send(text.as_bytes());
            let answer = browser.answer("GET");
            assert_eq!(answer.status, 400, "{text}");
            assert_eq!(answer.field("Culvert-Error"), Some("bad-request"));
            assert_eq!(answer.field("Culvert-Settings"), Some(SETTINGS.to_string().as_str()));
            assert_eq!(browser.rest(), (Vec::new(), true), "{text}");
        }
        assert_eq!(connections.load(Ordering::SeqCst), 0);
    });
}

#[test]
fn a_body_that_breaks_its_framing_gets_400_and_the_site_sees_a_cut() {
    on_both_drivers(|tunnel| {
        let (tell, told) = mpsc::channel();
        let site = site(move |mut connection| {
            let mut body = read_head(&mut connection).into_bytes();
            tell.send(body.clone()).unwrap();
            let _ = connection.read_to_end(&mut body);
            tell.send(body).unwrap();
        });
        for bad in [
            "0x5\r\nhello\r\n0\r\n\r\n",
            "5 \r\nhello\r\n",
            "5\nhello\r\n",
            "10000000000000000\r\n",
        ] {
            let mut browser = tunnel.browser();
            let head = format!("POST http://{site}/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
            browser.send(format!("{head}2\r\nok\r\n").as_bytes());
            told.recv_timeout(PATIENCE).expect("the request arrives");
            browser.send(bad.as_bytes());
            let answer = browser.answer("POST");
            assert_eq!(
                (answer.status, answer.field("Culvert-Error")),
                (400, Some("bad-request")),
                "{bad}"
            );
            let body = told.recv_timeout(PATIENCE).unwrap();
            assert!(!body.ends_with(b"0\r\n\r\n"), "{bad}");
        }
    });
}

#[test]
fn a_site_that_cannot_be_reached_is_named() {
    on_both_drivers(|tunnel| {
        let (_bound, closed) = refusing();
        for (site, status, name) in [
            (closed.to_string(), 502, "refused"),
            ("no-such-name.invalid".to_owned(), 502, "dns"),
            ("169.254.169.254".to_owned(), 403, "denied"),
            ("[::ffff:169.254.169.254]".to_owned(), 403, "denied"),
        ] {
            let answer = tunnel.get(&format!("http://{site}/"));
            assert_eq!(
                (answer.status, answer.field("Culvert-Error")),
                (status, Some(name)),
                "{site}"
            );
            assert_eq!(answer.field("Culvert-Settings"), Some(SETTINGS.to_string().as_str()));
        }
        let mut browser = tunnel.browser();
        for _ in 0..2 {
            browser.get(&format!("http://{closed}/"));
            assert_eq!(
                browser.answer("GET").status,
                502,
                "an error page leaves the connection usable"
            );
        }
        let answer = tunnel.get("https://127.0.0.1/");
        assert_eq!((answer.status, answer.field("Culvert-Error")), (403, Some("denied")));
    });
}

#[test]
fn the_tunnels_own_listeners_are_denied_under_every_name() {
    let own = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = own.local_addr().unwrap().port();
    let tunnel = Tunnel::start(Driver::Auto, vec![own.local_addr().unwrap()]);
    for host in [
        "127.0.0.1",
        "localhost",
        "0.0.0.0",
        "127.1",
        "[::ffff:127.0.0.1]",
        "[::]",
    ] {
        let authority = format!("{host}:{port}");
        for (method, target, rest) in [
            ("GET", format!("http://{authority}/"), "\r\n"),
            ("POST", format!("http://{authority}/"), "Content-Length: 4\r\n\r\nbody"),
            ("CONNECT", authority.clone(), "\r\n"),
        ] {
            let mut browser = tunnel.browser();
            browser.send(format!("{method} {target} HTTP/1.1\r\nHost: {authority}\r\n{rest}").as_bytes());
            let answer = browser.answer(method);
            assert_eq!(
                (answer.status, answer.field("Culvert-Error")),
                (403, Some("denied")),
                "{method} {host}"
            );
        }
    }
    own.set_nonblocking(true).unwrap();
    assert!(own.accept().is_err());
    tunnel.stop();
}

/// The endpoint asks the same rules first, but it may be older than they are, or taken over.
#[test]
fn the_client_refuses_by_its_own_rules_what_the_endpoint_lets_through() {
    let (tunnel, config) = Tunnel::without_client(Driver::Auto);
    let list = |text: &str| [text.to_owned()];
    let rules = Rules {
        fast_fail: FastFail::compile(&list("/secret|^https://127\\.0\\.0\\.2")).unwrap(),
        routes: Routes {
            direct: Domains::parse(&list("direct.test"), false).unwrap(),
            tunnel: Domains::default(),
        },
        ..Rules::default()
    };
    let settings = Arc::new(Settings {
        rules: Arc::new(rules),
        ..Settings::clone(&config.settings)
    });
    let tunnel = tunnel.joined_by(ClientConfig { settings, ..config });
    let (tell, told) = mpsc::channel();
    let site = site(move |mut connection| {
        tell.send(read_head(&mut connection)).unwrap();
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        connection.get_mut().write_all(answer).unwrap();
    });
    for (url, words) in [
        ("http://direct.test/", "(-D, -t)"),
        ("http://www.direct.test:81/", "(-D, -t)"),
        (&format!("http://{site}/secret/x"), "(-F)"),
    ] {
        let answer = tunnel.get(url);
        let body = String::from_utf8_lossy(&answer.body).into_owned();
        assert_eq!(
            (answer.status, answer.field("Culvert-Error")),
            (403, Some("denied")),
            "{url}"
        );
        assert!(body.contains(words), "{url}: {body}");
    }
    let connect = |authority: &str| {
        let mut browser = tunnel.browser();
        browser.send(format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n").as_bytes());
        (browser.answer("CONNECT").status, browser)
    };
    assert_eq!(connect("direct.test:443").0, 403);
    // What is opaque is known with its first bytes.
    let opaque = TcpListener::bind("127.0.0.2:0").unwrap();
    let (status, mut browser) = connect(&opaque.local_addr().unwrap().to_string());
    assert_eq!(status, 200);
    let (mut inside, _) = opaque.accept().unwrap();
    browser.send(b"no HTTP\r\n");
    assert!(browser.rest().0.is_empty());
    let mut reached = Vec::new();
    let _ = inside.read_to_end(&mut reached);
    assert!(reached.is_empty(), "{reached:?}");
    assert_eq!(tunnel.get(&format!("http://{site}/open")).status, 200);
    assert!(
        told.recv().unwrap().starts_with("GET /open"),
        "a refused request reached the site"
    );
    tunnel.stop();
}

#[test]
fn without_a_client_there_is_no_tunnel() {
    let (tunnel, _) = Tunnel::without_client(Driver::Auto);
    let answer = tunnel.get("http://127.0.0.1:9/");
    assert_eq!(
        (answer.status, answer.field("Culvert-Error")),
        (503, Some("tunnel-down"))
    );
    tunnel.stop();
}

#[test]
fn answers_that_are_not_http_are_named() {
    in_every_way(|tunnel, way| {
        for bad in [
            &b"SSH-2.0-OpenSSH_9.2\r\n"[..],
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
            // Codings that would have to be undone, also if they may be stored.
            b"HTTP/1.1 200 OK\r\nCache-Control: max-age=9\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nCache-Control: max-age=9\r\nTransfer-Encoding: x-own, chunked\r\n\r\n0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nCache-Control: max-age=9\r\nTransfer-Encoding: br\r\n\r\nx",
        ] {
            let site = way.site(move |mut connection| {
                if !is_asked(&mut connection) {
                    return;
                }
                read_head(&mut connection);
                connection.get_mut().write_all(bad).unwrap();
            });
            let answer = site.get(tunnel, "/");
            assert_eq!((answer.status, answer.field("Culvert-Error")), (502, Some("protocol")));
        }
    });
}

/// Answers the first request of a connection, and ends the connection at the second without an answer.
fn once(mut connection: BufReader<TcpStream>, requests: &AtomicUsize) {
    for n in 0..2 {
        if read_head(&mut connection).is_empty() {
            return;
        }
        requests.fetch_add(1, Ordering::SeqCst);
        if n == 0 {
            connection
                .get_mut()
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                .unwrap();
        }
    }
}

#[test]
fn a_post_reaches_the_site_at_most_once_and_a_get_is_repeated() {
    on_both_drivers(|tunnel| {
        let requests = Arc::new(AtomicUsize::new(0));
        let counted = requests.clone();
        let site = site(move |connection| once(connection, &counted));
        let mut browser = tunnel.browser();
        browser.get(&format!("http://{site}/first"));
        assert_eq!(browser.answer("GET").body, b"ok");
        let post = format!("POST http://{site}/ HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n");
        browser.send(post.as_bytes());
        let answer = browser.answer("POST");
        assert_eq!(
            (answer.status, answer.field("Culvert-Error")),
            (502, Some("site-reset"))
        );
        assert_eq!(requests.load(Ordering::SeqCst), 2, "the POST arrived once");
        browser.get(&format!("http://{site}/again"));
        assert_eq!(browser.answer("GET").body, b"ok");
        assert_eq!(requests.load(Ordering::SeqCst), 3);
        browser.get(&format!("http://{site}/repeated"));
        assert_eq!(browser.answer("GET").body, b"ok");
        assert_eq!(requests.load(Ordering::SeqCst), 5, "the GET arrived twice");
    });
}

#[test]
fn a_browser_that_is_gone_ends_the_request_at_the_site() {
    on_both_drivers(|tunnel| {
        let (tell, told) = mpsc::channel();
        let site = site(move |mut connection| {
            read_head(&mut connection);
            let piece = [b'x'; 10_000];
            let socket = connection.get_mut();
            socket.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
            while socket.write_all(&piece).is_ok() {}
            tell.send(()).unwrap();
        });
        let mut browser = tunnel.browser();
        browser.get(&format!("http://{site}/endless"));
        browser.0.read_exact(&mut [0; 100_000]).unwrap();
        drop(browser);
        told.recv_timeout(PATIENCE).expect("the site's connection ends");
    });
}

#[test]
fn a_browser_that_resets_while_it_waits_ends_the_request_at_the_site() {
    on_both_drivers(|tunnel| {
        let (tell, told) = mpsc::channel();
        let site = site(move |mut connection| {
            read_head(&mut connection);
            tell.send(()).unwrap();
            // Its client ends or resets the connection: either ends the wait.
            let _ = connection.read(&mut [0; 1]);
            tell.send(()).unwrap();
        });
        let mut browser = tunnel.browser();
        browser.get(&format!("http://{site}/wait"));
        told.recv_timeout(PATIENCE).expect("the request arrives");
        let socket = socket2::SockRef::from(browser.socket());
        socket.set_linger(Some(std::time::Duration::ZERO)).unwrap();
        drop(browser);
        told.recv_timeout(PATIENCE / 4).expect("the site's connection ends");
    });
}

/// A browser's end alone says nothing: it may still read. Once its system has forgotten the connection, it is gone.
#[test]
fn a_browser_that_closed_while_it_waits_ends_the_request_at_the_site() {
    on_both_drivers(|tunnel| {
        let (tell, told) = mpsc::channel();
        let (go, gone) = mpsc::channel::<()>();
        let gone = Mutex::new(gone);
        let site = site(move |mut connection| {
            let head = read_head(&mut connection);
            tell.send(()).unwrap();
            if head.starts_with("GET /late ") {
                gone.lock().unwrap().recv().unwrap();
                let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate";
                return connection.get_mut().write_all(answer).unwrap();
            }
            let _ = connection.read(&mut [0; 1]);
            tell.send(()).unwrap();
        });
        let [mut reads, closes] = ["late", "never"].map(|path| {
            let mut browser = tunnel.browser();
            browser.get(&format!("http://{site}/{path}"));
            told.recv_timeout(PATIENCE).expect("the request arrives");
            browser.socket().shutdown(Shutdown::Write).unwrap();
            browser
        });
        // The kernel remembers a closed connection for 60 s unless told otherwise.
        forget_soon(closes.socket());
        drop(closes);
        told.recv_timeout(PATIENCE).expect("the site's connection ends");
        go.send(()).unwrap();
        assert_eq!(reads.answer("GET").body, b"late");
    });
}

fn forget_soon(socket: &TcpStream) {
    let seconds: libc::c_int = 1;
    // SAFETY: the option's value is an int that outlives the call.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_LINGER2,
            (&raw const seconds).cast(),
            size_of_val(&seconds) as libc::socklen_t,
        )
    };
    assert_eq!(set, 0);
}

/// A rule keeps from the site what stays opaque: the rest is waited for as long as for a byte of any other CONNECT.
#[test]
fn a_silent_connect_under_fast_fail_is_given_up() {
    let site = site(|mut connection| {
        let _ = connection.read(&mut [0]);
    });
    for driver in [Driver::Epoll, Driver::Auto] {
        let (tunnel, sc) = Tunnel::without_client(driver);
        let rules = Rules {
            fast_fail: FastFail::compile(&["^https://127".to_owned()]).unwrap(),
            ..Rules::default()
        };
        let settings = Settings {
            rules: Arc::new(rules),
            times: Times {
                idle: Duration::from_millis(500),
                ..Times::default()
            },
            ..(*sc.settings).clone()
        };
        // The endpoint has no such rule, and lets the CONNECT through.
        let tunnel = tunnel.joined_by(ClientConfig {
            settings: Arc::new(settings),
            ..sc
        });
        let mut browser = tunnel.browser();
        browser.send(format!("CONNECT {site} HTTP/1.1\r\nHost: {site}\r\n\r\n").as_bytes());
        assert_eq!(browser.answer("CONNECT").status, 200);
        let cut = browser.0.read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(cut.kind(), std::io::ErrorKind::ConnectionReset);
        assert_eq!(tunnel.client_report().streams_open, 0);
        tunnel.stop();
    }
}

/// The time-out of the second request is not that of the first, whose task is over.
#[test]
fn a_site_that_falls_silent_on_a_kept_connection_is_given_up() {
    let site = site(|mut connection| {
        read_head(&mut connection);
        let _ = connection
            .get_mut()
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        // Asked again it says nothing, to the end.
        let _ = connection.read_to_end(&mut Vec::new());
    });
    for driver in [Driver::Epoll, Driver::Auto] {
        let (tunnel, sc) = Tunnel::without_client(driver);
        let times = Times {
            first_byte: Duration::from_secs(1),
            ..Times::default()
        };
        let tunnel = tunnel.joined_by(timed(sc, times));
        let url = format!("http://{site}/");
        let mut browser = tunnel.browser();
        browser.get(&url);
        assert_eq!(browser.answer("GET").status, 200);
        browser.get(&url);
        let answer = browser.answer("GET");
        assert_eq!(answer.status, 504);
        assert_eq!(answer.field("Culvert-Error"), Some("first-byte-timeout"));
        tunnel.stop();
    }
}
