//! CONNECT.

use std::io::{BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::mpsc;

use dataplane::client::Driver;

use crate::tunnel::{Browser, PATIENCE, Tunnel, field, on_both_drivers, pattern, read_head, site};

fn echo(mut connection: BufReader<TcpStream>) {
    let mut writer = connection.get_ref().try_clone().unwrap();
    std::io::copy(&mut connection, &mut writer).unwrap();
    writer.write_all(b"bye").unwrap();
    writer.shutdown(Shutdown::Write).unwrap();
}

#[test]
fn bytes_pass_both_ways_and_each_direction_ends_by_itself() {
    const LENGTH: usize = 8_000_000;
    on_both_drivers(|tunnel| {
        let site = site(echo);
        let mut browser = tunnel.browser();
        browser.send(format!("CONNECT {site} HTTP/1.1\r\nHost: {site}\r\n\r\n").as_bytes());
        assert_eq!(browser.answer("CONNECT").status, 200);
        let body = pattern(LENGTH, 5);
        let (mut writer, sent) = (browser.socket().try_clone().unwrap(), body.clone());
        let sender = std::thread::spawn(move || {
            writer.write_all(&sent).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let (back, clean) = browser.rest();
        sender.join().unwrap();
        assert!(
            clean && back[..LENGTH] == body && &back[LENGTH..] == b"bye",
            "the bytes differ"
        );
    });
}

#[test]
fn what_is_sent_before_the_answer_reaches_only_a_site_that_was_reached() {
    on_both_drivers(|tunnel| {
        let site = site(echo);
        let mut browser = tunnel.browser();
        browser.send(format!("CONNECT {site} HTTP/1.1\r\nHost: {site}\r\n\r\nearly").as_bytes());
        assert_eq!(browser.answer("CONNECT").status, 200);
        browser.socket().shutdown(Shutdown::Write).unwrap();
        assert_eq!(browser.rest(), (b"earlybye".to_vec(), true));

        let closed = {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            listener.local_addr().unwrap()
        };
        let mut browser = tunnel.browser();
        let smuggled = format!("GET http://{site}/ HTTP/1.1\r\nHost: x\r\n\r\n");
        browser.send(format!("CONNECT {closed} HTTP/1.1\r\nHost: {closed}\r\n\r\n{smuggled}").as_bytes());
        let answer = browser.answer("GET");
        assert_eq!((answer.status, answer.field("Culvert-Error")), (502, Some("refused")));
        assert_eq!(browser.rest(), (Vec::new(), true));
    });
}

#[test]
fn a_site_that_resets_is_seen_as_cut() {
    on_both_drivers(|tunnel| {
        let site = site(|mut connection| {
            connection.read_exact(&mut [0; 5]).unwrap();
            let socket = socket2::SockRef::from(connection.get_ref());
            socket.set_linger(Some(std::time::Duration::ZERO)).unwrap();
        });
        let mut browser = tunnel.browser();
        browser.send(format!("CONNECT {site} HTTP/1.1\r\nHost: {site}\r\n\r\n").as_bytes());
        assert_eq!(browser.answer("CONNECT").status, 200);
        browser.send(b"hello");
        assert!(!browser.rest().1, "a cut looks like an end");
    });
}

#[test]
fn a_browser_that_resets_is_seen_as_cut_by_the_site() {
    on_both_drivers(|tunnel| {
        let (tell, told) = mpsc::channel();
        let site = site(move |mut connection| {
            connection.get_mut().write_all(b"x").unwrap();
            tell.send(connection.read(&mut [0; 1]).is_err()).unwrap();
        });
        let mut browser = tunnel.browser();
        browser.send(format!("CONNECT {site} HTTP/1.1\r\nHost: {site}\r\n\r\n").as_bytes());
        assert_eq!(browser.answer("CONNECT").status, 200);
        browser.0.read_exact(&mut [0; 1]).unwrap();
        let socket = socket2::SockRef::from(browser.socket());
        socket.set_linger(Some(std::time::Duration::ZERO)).unwrap();
        drop(browser);
        assert!(told.recv_timeout(PATIENCE).unwrap(), "a cut looks like an end");
    });
}

/// Plain HTTP in a CONNECT, which is how browsers send `ws://`: each request by itself, and none for another site.
#[test]
fn plain_http_in_a_connect_is_served_as_requests() {
    on_both_drivers(|tunnel| {
        let (tell, told) = mpsc::channel();
        let site = site(move |mut connection| {
            tell.send(String::from("connection")).unwrap();
            loop {
                let head = read_head(&mut connection);
                if head.is_empty() {
                    return;
                }
                let upgrade = field(&head, "Upgrade").is_some();
                tell.send(head).unwrap();
                let answer: &[u8] = match upgrade {
                    true => b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
                    false => b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
                };
                connection.get_mut().write_all(answer).unwrap();
                if upgrade {
                    return echo(connection);
                }
            }
        });
        let told = || told.recv_timeout(PATIENCE).unwrap();
        let connect = |early: &str| {
            let mut browser = tunnel.browser();
            browser.send(format!("CONNECT {site} HTTP/1.1\r\nHost: {site}\r\n\r\n{early}").as_bytes());
            assert_eq!(browser.answer("CONNECT").status, 200);
            browser
        };
        let mut browser = connect("GE");
        browser.send(format!("T /one HTTP/1.1\r\nHost: {site}\r\nProxy-Connection: keep-alive\r\n\r\n").as_bytes());
        assert_eq!(browser.answer("GET").body, b"ok");
        // The connection that the CONNECT was answered with serves the request.
        assert_eq!(told(), "connection");
        let head = told();
        assert!(
            head.starts_with("GET /one HTTP/1.1\r\n") && !head.contains("Proxy"),
            "{head}"
        );
        browser.send(format!("GET http://{site}/two HTTP/1.1\r\nHost: other\r\n\r\n").as_bytes());
        assert_eq!(browser.answer("GET").body, b"ok");
        assert!(told().starts_with(&format!("GET /two HTTP/1.1\r\nHost: {site}\r\n")));
        browser.send(b"OPTIONS * HTTP/1.0\r\n\r\n");
        assert_eq!(browser.answer("OPTIONS").body, b"ok");
        assert_eq!(told(), format!("OPTIONS * HTTP/1.1\r\nHost: {site}\r\n\r\n"));

        for (request, status) in [
            ("GET /x HTTP/1.1\r\nHost: other.test\r\n\r\n".to_owned(), 421),
            ("GET http://other.test/x HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), 421),
            (format!("GET https://{site}/x HTTP/1.1\r\nHost: x\r\n\r\n"), 421),
            (format!("CONNECT {site} HTTP/1.1\r\nHost: x\r\n\r\n"), 400),
            ("GET /x HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n".to_owned(), 400),
        ] {
            let mut browser = connect("");
            // Something else is no CONNECT inside, as far as its first bytes tell.
            browser.send(format!("GET /first HTTP/1.1\r\nHost: {site}\r\n\r\n{request}").as_bytes());
            assert_eq!(browser.answer("GET").body, b"ok");
            assert_eq!(browser.answer("GET").status, status, "{request}");
            assert_eq!(browser.rest(), (Vec::new(), true), "{request}");
            while !told().starts_with("GET /first") {}
        }

        let mut browser = connect("");
        let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
        browser.send(format!("GET /ws HTTP/1.1\r\nHost: {site}\r\n{upgrade}\r\n").as_bytes());
        assert_eq!(browser.answer("GET").status, 101);
        browser.send(b"frames");
        browser.socket().shutdown(Shutdown::Write).unwrap();
        assert_eq!(browser.rest(), (b"framesbye".to_vec(), true));
    });
}

/// A client may wait for an answer after bytes that could yet become a request.
#[test]
fn bytes_that_only_begin_like_a_request_are_not_held_for_ever() {
    on_both_drivers(|tunnel| {
        let site = site(|mut connection| {
            let mut asked = [0; 4];
            connection.read_exact(&mut asked).unwrap();
            assert_eq!(&asked, b"PING");
            connection.get_mut().write_all(b"PONG").unwrap();
        });
        let mut browser = tunnel.browser();
        browser.send(format!("CONNECT {site} HTTP/1.1\r\nHost: {site}\r\n\r\n").as_bytes());
        assert_eq!(browser.answer("CONNECT").status, 200);
        browser.send(b"PING");
        let mut answer = [0; 4];
        browser.0.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"PONG");
    });
}

#[test]
fn a_cut_is_not_held_up_by_a_browser_that_does_not_read() {
    // The streams of a member that is gone end after the resume window of 45 s.
    if std::env::var_os("CULVERT_LONG").is_none() {
        return;
    }
    on_both_drivers(|tunnel| {
        let (tell, full) = mpsc::channel();
        let site = site(move |connection| {
            let mut site = connection.get_ref();
            site.set_write_timeout(Some(std::time::Duration::from_millis(300)))
                .unwrap();
            // Until everything between here and the browser is full.
            while site.write(&[7; 65_536]).is_ok() {}
            tell.send(()).unwrap();
            // Stays open as long as the tunnel wants it.
            let _ = site.read(&mut [0; 1]);
        });
        let mut browser = tunnel.browser();
        browser.send(format!("CONNECT {site} HTTP/1.1\r\nHost: {site}\r\n\r\n").as_bytes());
        assert_eq!(browser.answer("CONNECT").status, 200);
        full.recv_timeout(PATIENCE).unwrap();
        tunnel.endpoint.detach(tunnel.member);
        let begun = std::time::Instant::now();
        while tunnel.endpoint.report().connections > 0 {
            assert!(
                begun.elapsed() < 4 * PATIENCE,
                "a browser that does not read keeps what was cut"
            );
            std::thread::yield_now();
        }
        drop(browser);
    });
}

/// Set in the child process: where it finds its browser.
const BROWSER: &str = "CULVERT_TEST_BROWSER";

#[test]
fn a_killed_process_ends_nothing_cleanly() {
    if let Ok(browser) = std::env::var(BROWSER) {
        let tunnel = Tunnel::start(Driver::Auto, Vec::new());
        tunnel.hand_over(&TcpStream::connect(browser).unwrap(), 0);
        // Until the parent has ended.
        std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
        return;
    }
    let (tell, told) = mpsc::channel();
    let site = site(move |mut connection| {
        connection.get_mut().write_all(b"x").unwrap();
        tell.send(connection.read(&mut [0; 1]).is_err()).unwrap();
    });
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut both_roles = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "connections::a_killed_process_ends_nothing_cleanly"])
        .env(BROWSER, listener.local_addr().unwrap().to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut browser = Browser::over(listener.accept().unwrap().0);
    browser.socket().set_read_timeout(Some(PATIENCE)).unwrap();
    browser.send(format!("CONNECT {site} HTTP/1.1\r\nHost: {site}\r\n\r\n").as_bytes());
    assert_eq!(browser.answer("CONNECT").status, 200);
    browser.0.read_exact(&mut [0; 1]).unwrap();
    both_roles.kill().unwrap();
    both_roles.wait().unwrap();
    assert!(
        told.recv_timeout(PATIENCE).unwrap(),
        "a cut looks like an end to the site"
    );
    assert!(!browser.rest().1, "a cut looks like an end to the browser");
}
