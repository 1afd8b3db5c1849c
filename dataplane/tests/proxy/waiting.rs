//! Rules that change while something waits: it goes on under those that are in force then.

use std::io::Write;
use std::sync::mpsc;

use dataplane::client::Driver;
use dataplane::rules::{FastFail, Routes, Rules};

use crate::reload::switch;
use crate::rerouted::{HOST, asked_for_no_dial, authority, dial_outside, head, within};
use crate::secure::until;
use crate::tls::{bumping, connect_to, domains, secure_site};
use crate::tunnel::{PATIENCE, SETTINGS, Tunnel, gate, is_asked, on_both_drivers, read_head, site};

/// Stale when it comes.
const STALE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nETag: \"a\"\r\nAge: 100\r\n\
    Cache-Control: max-age=10, stale-while-revalidate=600\r\n\r\ninside";

/// As stale, and never given so.
const OLD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nETag: \"a\"\r\nAge: 100\r\n\
    Cache-Control: max-age=10\r\n\r\ninside";

fn past_the_tunnel() -> Rules {
    Rules {
        fast_fail: FastFail::compile(&["/dropped".to_owned()]).unwrap(),
        routes: Routes {
            direct: domains(HOST),
            ..Routes::default()
        },
        ..Rules::default()
    }
}

/// By the answer what was sent before has been read, and what it has led to is under way.
fn has_been_read(tunnel: &Tunnel) {
    assert_eq!(tunnel.get("https://a.test/").status, 403);
}

fn answers_stale(tunnel: &Tunnel, url: &str) {
    let answer = tunnel.get(url);
    let status = answer.field("Cache-Status");
    assert!(status.is_some_and(|status| status.contains("hit; ttl=-")), "{status:?}");
}

#[test]
fn what_waits_for_a_link_goes_on_under_the_rules_that_are_in_force_then() {
    for driver in [Driver::Epoll, Driver::Auto] {
        let tunnel = bumping(driver);
        let (tell, told) = mpsc::channel();
        let tell_secure = tell.clone();
        let secure = secure_site(move |mut connection| {
            while is_asked(&mut connection) {
                tell_secure.send(read_head(&mut connection)).unwrap();
                connection.get_mut().write_all(STALE).unwrap();
            }
        });
        let inside = site(move |mut connection| {
            while is_asked(&mut connection) {
                let head = read_head(&mut connection);
                let answer = if head.starts_with("GET /old ") { OLD } else { STALE };
                tell.send(head).unwrap();
                connection.get_mut().write_all(answer).unwrap();
            }
        });
        let outside = site(|mut connection| {
            while is_asked(&mut connection) {
                // Another site's answer is none of its own, whatever their tags.
                let answer = match read_head(&mut connection).contains("If-None-Match") {
                    true => "HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\n\r\n",
                    false => "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nbeyond",
                };
                connection.get_mut().write_all(answer.as_bytes()).unwrap();
            }
        });
        let url = |path: &str| format!("http://{}/{path}", authority(inside));
        let mut secured = within(&tunnel, secure);
        assert_eq!(tunnel.get(&url("stale")).body, b"inside");
        assert!(told.recv_timeout(PATIENCE).unwrap().starts_with("GET /stale "));
        assert_eq!(tunnel.get(&url("old")).body, b"inside");
        assert!(told.recv_timeout(PATIENCE).unwrap().starts_with("GET /old "));

        let cut = tunnel.cut();
        answers_stale(&tunnel, &url("stale"));
        secured.send(head("GET", "/", secure, "").as_bytes());
        let mut plain = tunnel.browser();
        plain.get(&url("old"));
        let mut dropped = tunnel.browser();
        dropped.get(&url("dropped"));
        let mut connecting = tunnel.browser();
        connecting.send(connect_to(&authority(inside)).as_bytes());
        has_been_read(&tunnel);
        switch(&tunnel, SETTINGS + 1, past_the_tunnel());
        tunnel.mend(cut);

        let answer = secured.answer("GET");
        assert_eq!((answer.status, answer.field("Connection")), (421, Some("close")));
        let answer = dropped.answer("GET");
        assert_eq!((answer.status, answer.field("Culvert-Error")), (403, Some("blocked")));
        for _ in 0..2 {
            dial_outside(&tunnel, inside, outside);
        }
        assert_eq!(plain.answer("GET").body, b"beyond");
        assert_eq!(connecting.answer("CONNECT").status, 200);
        // Sent later, so that it arrives later than the renewal would.
        assert_eq!(tunnel.get(&format!("http://{inside}/last")).body, b"inside");
        assert!(told.recv_timeout(PATIENCE).unwrap().starts_with("GET /last "));
        asked_for_no_dial(&tunnel);
        tunnel.stop();
    }
}

/// A site that confirms something else than what is stored is asked once more, unless the rules have changed.
#[test]
fn a_renewal_ends_with_the_rules_under_which_it_began() {
    on_both_drivers(|tunnel| {
        let (tell, told) = mpsc::channel();
        let (release, may_answer) = gate();
        let site = site(move |mut connection| {
            while is_asked(&mut connection) {
                let head = read_head(&mut connection);
                let confirms = head.contains("If-None-Match");
                tell.send(confirms).unwrap();
                let answer = match confirms {
                    true => &b"HTTP/1.1 304 Not Modified\r\nETag: \"b\"\r\n\r\n"[..],
                    false => STALE,
                };
                if confirms {
                    may_answer();
                }
                connection.get_mut().write_all(answer).unwrap();
            }
        });
        let url = format!("http://{}/", authority(site));
        let told = || told.recv_timeout(PATIENCE).unwrap();
        assert_eq!(tunnel.get(&url).body, b"inside");
        assert!(!told());
        answers_stale(tunnel, &url);
        assert!(told());
        // Under the same rules.
        release.send(()).unwrap();
        assert!(!told());
        until("it is renewed", || tunnel.endpoint.report().streams_open == 0);
        answers_stale(tunnel, &url);
        assert!(told());
        switch(tunnel, SETTINGS + 1, past_the_tunnel());
        release.send(()).unwrap();
        until("the first answer has come", || {
            tunnel.endpoint.report().streams_open == 0
        });
        has_been_read(tunnel);
        asked_for_no_dial(tunnel);
    });
}
