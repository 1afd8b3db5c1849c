//! Whom a request is for: its target says that, or the CONNECT around it. A Host field that says something else counts
//! for nothing, and does not go on.

use dataplane::rules::{FastFail, Rules};

use crate::recorder::Recorder;
use crate::reload::switch;
use crate::tunnel::SETTINGS;
use crate::way::in_every_way;

/// RFC 9112 section 3.2.2.
#[test]
fn a_host_field_unlike_the_target_is_replaced_where_it_stands() {
    in_every_way(|tunnel, way| {
        let recorder = Recorder::start(way);
        let site = recorder.site;
        let url = site.url("/a");
        let named = site.to_string();
        let (name, port) = named.rsplit_once(':').unwrap();
        for host in [
            "other.test",
            &format!("other.test:{port}"),
            name,
            &format!("{name}:1"),
            "[::1]:9",
        ] {
            let sent = format!("POST {url} HTTP/1.1\r\nA: 1\r\nhOST:\t{host} \r\nContent-Length: 2\r\nB: 2\r\n\r\nok");
            let want = format!("POST /a HTTP/1.1\r\nA: 1\r\nhOST: {site}\r\nContent-Length: 2\r\nB: 2\r\n\r\nok");
            assert_eq!(
                recorder.exchange(tunnel, sent.as_bytes()),
                (vec![200], want),
                "{way:?} {sent:?}"
            );
        }
        // HTTP/1.0 knows requests without it.
        let target = format!("Host: {site}\r\n");
        for (sent, want) in [
            ("A: 1\r\nHost: other.test\r\n", format!("A: 1\r\n{target}")),
            ("A: 1\r\n", format!("{target}A: 1\r\n")),
        ] {
            let sent = format!("GET {url} HTTP/1.0\r\n{sent}\r\n");
            let want = format!("GET /a HTTP/1.1\r\n{want}\r\n");
            assert_eq!(
                recorder.exchange(tunnel, sent.as_bytes()),
                (vec![200], want),
                "{way:?} {sent:?}"
            );
        }
    });
}

/// RFC 9112 section 3.2: no target makes up for it.
#[test]
fn a_host_field_that_is_none_is_refused_beside_any_target() {
    in_every_way(|tunnel, way| {
        let recorder = Recorder::start(way);
        let site = recorder.site;
        let url = site.url("/a");
        for fields in [
            "".to_owned(),
            "Host:\r\n".to_owned(),
            "Host: a b\r\n".to_owned(),
            "Host: other.test:\r\n".to_owned(),
            "Host: other.test:0\r\n".to_owned(),
            "Host: other.test/a\r\n".to_owned(),
            "Host: http://other.test\r\n".to_owned(),
            format!("Host: {site},other.test\r\n"),
            format!("Host: x@{site}\r\n"),
            format!("Host: {site}\r\nHost: {site}\r\n"),
        ] {
            let sent = format!("GET {url} HTTP/1.1\r\n{fields}\r\n");
            let want = (vec![400], String::new());
            assert_eq!(recorder.exchange(tunnel, sent.as_bytes()), want, "{way:?} {sent:?}");
        }
    });
}

/// `-F`: what is searched is the URL that goes on.
#[test]
fn what_is_dropped_is_told_by_the_target() {
    in_every_way(|tunnel, way| {
        let recorder = Recorder::start(way);
        let site = recorder.site;
        let secret = format!("^{}$", site.url("/secret").replace('.', r"\."));
        let rules = Rules {
            fast_fail: FastFail::compile(&[secret, r"decoy\.test".to_owned()]).unwrap(),
            ..Rules::default()
        };
        // Each way has sites of its own.
        switch(tunnel, SETTINGS + 2 + way as u32, rules);
        let ask = |path: &str, host: &str| {
            let mut browser = recorder.browser(tunnel);
            browser.send(format!("GET {} HTTP/1.1\r\nHost: {host}\r\n\r\n", site.url(path)).as_bytes());
            let answer = browser.answer("GET");
            (answer.status, answer.field("Culvert-Error").map(str::to_owned))
        };
        let blocked = (403, Some("blocked".to_owned()));
        for host in [&*site.to_string(), "other.test", "decoy.test"] {
            assert_eq!(ask("/secret", host), blocked, "{way:?} {host}");
            assert_eq!(recorder.reached(tunnel), "", "{way:?} {host}");
            assert_eq!(ask("/open", host), (200, None), "{way:?} {host}");
            let want = site.head_at_site("GET", "/open", "");
            assert_eq!(recorder.reached(tunnel), want, "{way:?} {host}");
        }
    });
}
