//! CONNECT.

use std::io::{BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::mpsc;

use dataplane::client::Driver;

use crate::tunnel::{Browser, PATIENCE, Tunnel, on_both_drivers, pattern, site};

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
        let (mut writer, sent) = (browser.0.get_ref().try_clone().unwrap(), body.clone());
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
        browser.0.get_ref().shutdown(Shutdown::Write).unwrap();
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
        let socket = socket2::SockRef::from(browser.0.get_ref());
        socket.set_linger(Some(std::time::Duration::ZERO)).unwrap();
        drop(browser);
        assert!(told.recv_timeout(PATIENCE).unwrap(), "a cut looks like an end");
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
    let mut browser = Browser(BufReader::new(listener.accept().unwrap().0));
    browser.0.get_ref().set_read_timeout(Some(PATIENCE)).unwrap();
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
