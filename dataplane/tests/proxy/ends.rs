//! Connections that end in the middle of something, which nobody may take for whole.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};

use crate::recorder::{Recorder, Silent};
use crate::tls::Connection;
use crate::tunnel::{PATIENCE, Tunnel, is_asked, read_head};
use crate::way::{Way, in_every_way, in_one_way};

#[derive(Clone, Copy, Debug)]
enum End {
    /// It says that it sends no more.
    Finished,
    /// Its connection ends, and TLS was not told.
    Truncated,
    Reset,
}

const ENDS: [End; 3] = [End::Finished, End::Truncated, End::Reset];

impl End {
    /// What a reset discards is seen when the connection is dropped.
    fn of(self, connection: &mut Connection) {
        match self {
            Self::Finished => connection.finish(),
            Self::Truncated => connection.socket().shutdown(Shutdown::Write).unwrap(),
            Self::Reset => {
                let socket = socket2::SockRef::from(connection.socket());
                socket.set_linger(Some(std::time::Duration::ZERO)).unwrap();
            }
        }
    }
}

#[test]
fn a_head_that_ends_in_the_middle_reaches_nobody() {
    in_every_way(|tunnel, way| {
        let recorder = Recorder::start(way);
        let site = recorder.site;
        let head = site.head("GET", "/half", "");
        for end in ENDS {
            for length in [1, head.len() / 2, head.len() - 1] {
                let mut browser = recorder.browser(tunnel);
                browser.send(&head.as_bytes()[..length]);
                end.of(browser.0.get_mut());
                if !matches!(end, End::Reset) {
                    assert_eq!(browser.rest(), (Vec::new(), true), "{way:?} {end:?} {length}");
                }
                drop(browser);
                assert_eq!(recorder.reached(tunnel), "", "{way:?} {end:?} {length}");
            }
        }
    });
}

#[test]
fn a_body_that_ends_in_the_middle_is_cut() {
    in_every_way(|tunnel, way| {
        for (fields, part) in [
            ("Content-Length: 6\r\n", ""),
            ("Content-Length: 6\r\n", "hello"),
            ("Transfer-Encoding: chunked\r\n", ""),
            ("Transfer-Encoding: chunked\r\n", "6\r\nhello"),
            ("Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n"),
            ("Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\n"),
            ("Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\nX: y\r\n\r"),
        ] {
            let silent = Silent::start(way, part.len());
            let site = silent.site;
            let want = site.head_at_site("POST", "/half", fields) + part;
            for end in ENDS {
                let mut browser = site.browser(tunnel);
                browser.send((site.head("POST", "/half", fields) + part).as_bytes());
                assert_eq!(silent.told(), want);
                end.of(browser.0.get_mut());
                if !matches!(end, End::Reset) {
                    let (bytes, clean) = browser.rest();
                    assert!(
                        bytes.is_empty() && !clean,
                        "{way:?} {end:?} {want:?}: as if it were answered"
                    );
                }
                drop(browser);
                assert_eq!(silent.told(), want, "{way:?} {end:?}");
            }
        }
    });
}

/// What ends behind a whole request takes nothing from it.
#[test]
fn a_browser_that_ends_behind_its_request_is_answered() {
    in_every_way(|tunnel, way| {
        let recorder = Recorder::start(way);
        let site = recorder.site;
        for end in [End::Finished, End::Truncated] {
            for (method, fields, body) in [("GET", "", ""), ("POST", "Content-Length: 2\r\n", "ok")] {
                let mut browser = site.browser(tunnel);
                browser.send((site.head(method, "/a", fields) + body).as_bytes());
                end.of(browser.0.get_mut());
                assert_eq!(browser.answer(method).status, 200);
                assert_eq!(browser.rest(), (Vec::new(), true), "{way:?} {end:?}");
                assert_eq!(recorder.take(), site.head_at_site(method, "/a", fields) + body);
            }
        }
    });
}

/// The last bytes of a body are in a record that does not arrive whole, or not as it was sealed.
#[test]
fn bodies_in_bad_records_are_cut() {
    in_one_way(Way::Tls, |tunnel| {
        let silent = Silent::start(Way::Tls, 5);
        let site = silent.site;
        let fields = "Content-Length: 10\r\n";
        let want = site.head_at_site("POST", "/a", fields) + "hello";
        let spoilt: [fn(&mut Vec<u8>); 3] = [
            |record| record.truncate(record.len() - 1),
            |record| *record.last_mut().unwrap() ^= 1,
            |record| record[6] ^= 1,
        ];
        for (n, spoil) in spoilt.into_iter().enumerate() {
            let mut browser = site.browser(tunnel);
            browser.send((site.head("POST", "/a", fields) + "hello").as_bytes());
            assert_eq!(silent.told(), want);
            let Connection::Browser(tls) = browser.0.get_mut() else {
                panic!("TLS is its way");
            };
            tls.conn.writer().write_all(b"world").unwrap();
            let mut record = Vec::new();
            tls.conn.write_tls(&mut record).unwrap();
            let whole = record.len();
            spoil(&mut record);
            tls.sock.write_all(&record).unwrap();
            // What is forged is refused without an end.
            if record.len() < whole {
                End::Truncated.of(browser.0.get_mut());
            }
            assert_eq!(silent.told(), want, "{n}");
            // An alert, or nothing: in no case an answer.
            assert!(browser.0.read_to_end(&mut Vec::new()).is_err(), "{n}");
        }
    });
}

const LENGTH: &str = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf";
const CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n";
const TO_THE_END: &str = "HTTP/1.1 200 OK\r\n\r\nhalf";

#[test]
fn a_cut_answer_never_looks_complete() {
    in_every_way(|tunnel, way| {
        for (bytes, ends) in [
            (LENGTH, &ENDS[..]),
            (CHUNKED, &ENDS),
            // Any other end is that of the answer.
            (TO_THE_END, &[End::Reset]),
        ] {
            for end in ends {
                assert!(
                    !is_clean(tunnel, way, bytes, *end),
                    "{way:?} {bytes:?} {end:?}: a cut looks like an end"
                );
            }
        }
    });
}

/// Browsers take the end of a connection for that of such an answer also if TLS did not announce it: many sites never do.
#[test]
fn an_answer_without_length_ends_with_its_connection() {
    in_every_way(|tunnel, way| {
        for end in [End::Finished, End::Truncated] {
            assert!(is_clean(tunnel, way, TO_THE_END, end), "{way:?} {end:?}");
        }
    });
}

/// The same is doubtful, and nobody else gets it.
#[test]
fn an_answer_without_length_is_not_stored_if_it_came_in_tls() {
    in_every_way(|tunnel, way| {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        let site = way.site(move |mut connection| {
            if is_asked(&mut connection) {
                read_head(&mut connection);
                count.fetch_add(1, Ordering::SeqCst);
                let answer = b"HTTP/1.1 200 OK\r\nCache-Control: max-age=600\r\n\r\nhalf";
                connection.get_mut().write_all(answer).unwrap();
                End::Truncated.of(connection.get_mut());
            }
        });
        for _ in 0..2 {
            assert_eq!(site.get(tunnel, "/").body, b"half");
        }
        let wanted = if way == Way::Tls { 2 } else { 1 };
        assert_eq!(asked.load(Ordering::SeqCst), wanted, "{way:?}");
    });
}

/// What was switched to ends at one side as it ended at the other.
#[test]
fn an_upgraded_connection_that_is_cut_never_looks_complete() {
    const UPGRADED: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    in_every_way(|tunnel, way| {
        for end in [End::Finished, End::Reset] {
            let (tell, told) = mpsc::channel();
            let site = way.site(move |mut connection| {
                if !is_asked(&mut connection) {
                    return;
                }
                let head = read_head(&mut connection);
                connection.get_mut().write_all(UPGRADED.as_bytes()).unwrap();
                connection.read_exact(&mut [0; 4]).unwrap();
                if head.starts_with("GET /site ") {
                    return end.of(connection.get_mut());
                }
                connection.get_mut().write_all(b"x").unwrap();
                // Nobody listens where a test has failed.
                let _ = tell.send(connection.read_to_end(&mut Vec::new()).is_ok());
            });
            let switched = |path: &str| {
                let mut browser = site.browser(tunnel);
                let fields = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
                browser.send(site.head("GET", path, fields).as_bytes());
                assert_eq!(browser.answer("GET").status, 101);
                browser.send(b"half");
                browser
            };
            let is_clean = matches!(end, End::Finished);
            let mut browser = switched("/site");
            assert_eq!(browser.rest(), (Vec::new(), is_clean), "{way:?}: the site {end:?}");
            let mut browser = switched("/browser");
            browser.0.read_exact(&mut [0; 1]).unwrap();
            end.of(browser.0.get_mut());
            if !is_clean {
                drop(browser);
            }
            assert_eq!(
                told.recv_timeout(PATIENCE),
                Ok(is_clean),
                "{way:?}: the browser {end:?}"
            );
        }
    });
}

/// Whether a browser sees a clean end of this answer, the end of whose connection comes once the browser has read it.
fn is_clean(tunnel: &Tunnel, way: Way, bytes: &'static str, end: End) -> bool {
    let site = way.site(move |mut connection| {
        if is_asked(&mut connection) {
            read_head(&mut connection);
            connection.get_mut().write_all(bytes.as_bytes()).unwrap();
            connection.read_exact(&mut [0; 1]).unwrap();
            end.of(connection.get_mut());
        }
    });
    let mut browser = site.browser(tunnel);
    browser.send(site.head("POST", "/", "Content-Length: 2\r\n").as_bytes());
    let head = read_head(&mut browser.0);
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    browser.0.read_exact(&mut [0; 4]).unwrap();
    browser.send(b"x");
    browser.rest().1
}

#[test]
fn a_short_answer_is_cut_even_if_the_site_closes_cleanly() {
    in_every_way(|tunnel, way| {
        let site = way.site(|mut connection| {
            if is_asked(&mut connection) {
                read_head(&mut connection);
                connection.get_mut().write_all(LENGTH.as_bytes()).unwrap();
                connection.get_mut().finish();
            }
        });
        let mut browser = site.browser(tunnel);
        browser.send(site.head("GET", "/", "Connection: close\r\n").as_bytes());
        let (bytes, clean) = browser.rest();
        let text = String::from_utf8_lossy(&bytes);
        // The end of the stream may overtake what came before it: then there is a page instead.
        let named = text.starts_with("HTTP/1.1 502 ") && text.contains("\r\nCulvert-Error: site-reset\r\n");
        assert!(!clean || named, "{text}");
    });
}
