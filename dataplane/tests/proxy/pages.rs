//! Pages of our own that answer HEAD: their heads alone (RFC 9110 section 9.3.2), also where the request was refused.

use std::io::Read;
use std::time::Duration;

use dataplane::client::Driver;
use dataplane::rules::Rules;
use dataplane::settings::{Settings, Times};

use crate::reload::{adopt, switch};
use crate::tls::{bumping, domains};
use crate::tunnel::{Browser, SETTINGS, is_asked, read_head};
use crate::way::{Way, in_every_way};

/// The head of a page, which says how long the page is.
fn page_head(browser: &mut Browser, status: u16, name: &str, what: &str) {
    let answer = browser.answer("HEAD");
    let told = (answer.status, answer.field("Culvert-Error"));
    assert_eq!(told, (status, Some(name)), "{what}");
    let length = answer.field("Content-Length").map(|length| length.parse::<usize>());
    assert!(length.is_some_and(|length| length.unwrap() > 100), "{what}");
}

fn last_page_head(browser: &mut Browser, status: u16, name: &str, what: &str) {
    page_head(browser, status, name, what);
    assert_eq!(browser.rest(), (Vec::new(), true), "{what}");
}

#[test]
fn no_page_that_answers_head_has_a_body() {
    in_every_way(|tunnel, way| {
        let silent = way.site(|mut connection| {
            let _ = connection.read_to_end(&mut Vec::new());
        });
        let target = silent.target("/");
        let line = format!("HEAD {target} HTTP/1.1");
        let elsewhere = match way {
            Way::Absolute => (400, "bad-request"),
            Way::Connect | Way::Tls => (421, "misdirected"),
        };
        for (sent, (status, name)) in [
            ("HEAD / HTTP/1.1\r\nHost: other.test\r\n\r\n".to_owned(), elsewhere),
            (format!("{line}\nHost: {silent}\n\n"), (400, "bad-request")),
            (format!("{line}\r\n\r\n"), (400, "bad-request")),
            (silent.head("HEAD", "/", "Content-Length: +1\r\n"), (400, "bad-request")),
            (
                silent.head("HEAD", "/", "Transfer-Encoding: chunked\r\n") + "x\r\n",
                (400, "bad-request"),
            ),
            (format!("HEAD {target}{}", "a".repeat(17_000)), (414, "bad-request")),
            (format!("{line}\r\nA: {}", "a".repeat(70_000)), (431, "bad-request")),
        ] {
            let mut browser = silent.browser(tunnel);
            browser.send(sent.as_bytes());
            let what = &sent[..sent.len().min(100)];
            last_page_head(&mut browser, status, name, &format!("{way:?} {what:?}"));
        }
        // Pages after which the connection is as good as before.
        let closing = way.site(|mut connection| drop(is_asked(&mut connection).then(|| read_head(&mut connection))));
        let mut browser = closing.browser(tunnel);
        for (fields, status, name) in [
            ("", 502, "site-reset"),
            ("Cache-Control: only-if-cached\r\n", 504, "only-if-cached"),
            ("Connection: close\r\n", 502, "site-reset"),
        ] {
            browser.send(closing.head("HEAD", "/", fields).as_bytes());
            page_head(&mut browser, status, name, &format!("{way:?} {fields}"));
        }
        assert_eq!(browser.rest(), (Vec::new(), true), "{way:?}");
    });
}

#[test]
fn no_page_for_a_late_or_outdated_head_has_a_body() {
    for driver in [Driver::Epoll, Driver::Auto] {
        let tunnel = bumping(driver);
        let [plain, secure] = [Way::Absolute, Way::Tls].map(|way| {
            way.site(|mut connection| {
                let _ = connection.read_to_end(&mut Vec::new());
            })
        });
        let mut late: Vec<_> = [plain, secure]
            .into_iter()
            .flat_map(|site| {
                let begun = site.target("/");
                let paused = site.head("HEAD", "/", "Content-Length: 2\r\n");
                [format!("HEAD {begun} HT"), paused + "x"].map(|sent| (site.browser(&tunnel), sent))
            })
            .collect();
        let times = Times {
            browser_head: Duration::from_millis(300),
            browser_body: Duration::from_millis(300),
            ..Times::default()
        };
        let settings = Settings {
            version: SETTINGS + 1,
            times,
            ..Settings::default()
        };
        adopt(&tunnel, settings);
        for (browser, sent) in &mut late {
            browser.send(sent.as_bytes());
        }
        for (browser, sent) in &mut late {
            last_page_head(browser, 408, "request-timeout", sent);
        }
        switch(&tunnel, SETTINGS + 2, Rules::default());
        let mut browser = secure.browser(&tunnel);
        let head = secure.head("HEAD", "/", "");
        let (begun, rest) = head.split_at(20);
        browser.send(begun.as_bytes());
        // By the answer it has been read.
        assert_eq!(tunnel.get("https://a.test/").status, 403);
        let left_alone = Rules {
            no_bump: domains("localhost"),
            ..Rules::default()
        };
        switch(&tunnel, SETTINGS + 3, left_alone);
        browser.send(rest.as_bytes());
        last_page_head(&mut browser, 421, "misdirected", "outdated");
        tunnel.stop();
    }
}
