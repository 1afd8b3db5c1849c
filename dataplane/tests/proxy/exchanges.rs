//! Requests and answers that go well.

use std::io::{BufReader, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::tls::Connection;
use crate::tunnel::{PATIENCE, field, is_asked, on_both_drivers, pattern, read_chunks, read_head, site};
use crate::way::in_every_way;

/// Answers each request with its target, on connections that stay open.
fn echo_targets(mut connection: BufReader<Connection>) {
    while is_asked(&mut connection) {
        let head = read_head(&mut connection);
        let Some(target) = head.split(' ').nth(1) else { return };
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{target}", target.len());
        connection.get_mut().write_all(answer.as_bytes()).unwrap();
    }
}

#[test]
fn requests_share_connections_on_both_sides() {
    in_every_way(|tunnel, way| {
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = connections.clone();
        let site = way.site(move |connection| {
            counted.fetch_add(1, Ordering::SeqCst);
            echo_targets(connection);
        });
        let before = tunnel.endpoint.report().requests;
        let mut browser = site.browser(tunnel);
        for n in 0..5 {
            browser.send(site.head("GET", &format!("/{n}?q"), "").as_bytes());
            assert_eq!(browser.answer("GET").body, format!("/{n}?q").as_bytes());
        }
        let pipelined: String = (0..20).map(|n| site.head("GET", &format!("/{n}"), "")).collect();
        browser.send(pipelined.as_bytes());
        for n in 0..20 {
            assert_eq!(browser.answer("GET").body, format!("/{n}").as_bytes());
        }
        assert_eq!(connections.load(Ordering::SeqCst), 1);
        assert_eq!(tunnel.endpoint.report().requests - before, 25);
    });
}

#[test]
fn the_site_sees_origin_form_and_no_hop_by_hop_fields() {
    in_every_way(|tunnel, way| {
        let site = way.site(|mut connection| {
            if !is_asked(&mut connection) {
                return;
            }
            let head = read_head(&mut connection);
            let answer = format!(
                "HTTP/1.1 200 OK\r\nKeep-Alive: timeout=5\r\nX-Own: 1\r\nContent-Length: {}\r\n\r\n{head}",
                head.len()
            );
            connection.get_mut().write_all(answer.as_bytes()).unwrap();
        });
        let mut browser = site.browser(tunnel);
        browser.send(
            format!(
                "GET {} HTTP/1.1\r\nHost: other\r\nProxy-Connection: keep-alive\r\n\
                 Connection: X-Secret\r\nX-Secret: 1\r\nX-Kept: 1\r\n\r\n",
                site.url("/a")
            )
            .as_bytes(),
        );
        let answer = browser.answer("GET");
        assert_eq!(
            String::from_utf8(answer.body.clone()).unwrap(),
            format!("GET /a HTTP/1.1\r\nHost: {site}\r\nX-Kept: 1\r\n\r\n")
        );
        assert_eq!((answer.field("Keep-Alive"), answer.field("X-Own")), (None, Some("1")));
    });
}

#[test]
fn chunks_and_trailers_pass_as_they_are() {
    const CHUNKS: &[u8] = b"5;a=b\r\nhello\r\n1\r\n!\r\n0\r\nX-Sum: 1\r\n\r\n";
    in_every_way(|tunnel, way| {
        let site = way.site(|mut connection| {
            while is_asked(&mut connection) {
                let head = read_head(&mut connection);
                assert_eq!(field(&head, "Transfer-Encoding"), Some("chunked"));
                let mut answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
                answer.extend(read_chunks(&mut connection));
                connection.get_mut().write_all(&answer).unwrap();
            }
        });
        let mut browser = site.browser(tunnel);
        for _ in 0..3 {
            let head = site.head("POST", "/", "Transfer-Encoding: chunked\r\n");
            browser.send(&[head.as_bytes(), CHUNKS].concat());
            assert_eq!(browser.answer("POST").body, CHUNKS);
        }
    });
}

#[test]
fn an_http_1_0_browser_gets_the_content_without_chunks() {
    in_every_way(|tunnel, way| {
        let site = way.site(|mut connection| {
            if !is_asked(&mut connection) {
                return;
            }
            assert!(read_head(&mut connection).starts_with("GET / HTTP/1.1\r\n"));
            let answer = b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
                           3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
            connection.get_mut().write_all(answer).unwrap();
        });
        let mut browser = site.browser(tunnel);
        browser.send(format!("GET {} HTTP/1.0\r\n\r\n", site.target("/")).as_bytes());
        let answer = browser.answer("GET");
        assert_eq!((answer.status, answer.body.as_slice()), (200, &b"abcde"[..]));
        assert_eq!(answer.field("Transfer-Encoding"), None);
    });
}

#[test]
fn answers_without_a_body_leave_the_connection_usable() {
    in_every_way(|tunnel, way| {
        let site = way.site(|mut connection| {
            while is_asked(&mut connection) {
                let head = read_head(&mut connection);
                let answer = match head.split(' ').nth(1) {
                    None => return,
                    Some("/204") => "HTTP/1.1 204 No Content\r\n\r\n",
                    Some("/304") => "HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n",
                    Some(_) => "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n",
                };
                connection.get_mut().write_all(answer.as_bytes()).unwrap();
            }
        });
        let mut browser = site.browser(tunnel);
        for (method, path, status) in [
            ("HEAD", "/", 200),
            ("GET", "/204", 204),
            ("GET", "/304", 304),
            ("HEAD", "/", 200),
        ] {
            browser.send(site.head(method, path, "").as_bytes());
            assert_eq!(browser.answer(method).status, status);
        }
    });
}

#[test]
fn the_browser_waits_for_the_sites_own_100_continue() {
    in_every_way(|tunnel, way| {
        let site = way.site(|mut connection| {
            if !is_asked(&mut connection) {
                return;
            }
            let head = read_head(&mut connection);
            assert_eq!(field(&head, "Expect"), Some("100-continue"));
            let socket = connection.get_mut();
            socket
                .write_all(b"HTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n")
                .unwrap();
            let mut body = [0; 4];
            connection.read_exact(&mut body).unwrap();
            let answer = [b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n", &body[..]].concat();
            connection.get_mut().write_all(&answer).unwrap();
        });
        let mut browser = site.browser(tunnel);
        let head = site.head("PUT", "/", "Content-Length: 4\r\nExpect: 100-continue\r\n");
        browser.send(head.as_bytes());
        let hints = browser.answer("PUT");
        assert_eq!((hints.status, hints.field("Link")), (103, Some("<a>")));
        assert_eq!(browser.answer("PUT").status, 100);
        browser.send(b"body");
        assert_eq!(browser.answer("PUT").body, b"body");
    });
}

#[test]
fn bodies_of_any_size_pass_both_ways_exactly() {
    const LENGTH: usize = 24_000_000;
    on_both_drivers(|tunnel| {
        let site = site(|mut connection| {
            read_head(&mut connection);
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n");
            connection.get_mut().write_all(head.as_bytes()).unwrap();
            // The answer goes out while the request comes in.
            let mut piece = vec![0; 100_000];
            for _ in 0..LENGTH / piece.len() {
                connection.read_exact(&mut piece).unwrap();
                connection.get_mut().write_all(&piece).unwrap();
            }
        });
        let mut browser = tunnel.browser();
        let body = pattern(LENGTH, 7);
        browser.send(format!("POST http://{site}/ HTTP/1.1\r\nHost: x\r\nContent-Length: {LENGTH}\r\n\r\n").as_bytes());
        let mut writer = browser.socket().try_clone().unwrap();
        let sent = body.clone();
        let sender = std::thread::spawn(move || writer.write_all(&sent).unwrap());
        assert!(browser.answer("POST").body == body, "the body differs");
        sender.join().unwrap();
    });
}

#[test]
fn a_slow_browser_gets_every_byte() {
    const LENGTH: usize = 12_000_000;
    on_both_drivers(|tunnel| {
        let body = Arc::new(pattern(LENGTH, 3));
        let served = body.clone();
        let site = site(move |mut connection| {
            read_head(&mut connection);
            connection
                .get_mut()
                .write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                .unwrap();
            for piece in served.chunks(70_001) {
                let socket = connection.get_mut();
                write!(socket, "{:x}\r\n", piece.len()).unwrap();
                socket.write_all(piece).unwrap();
                socket.write_all(b"\r\n").unwrap();
            }
            connection.get_mut().write_all(b"0\r\n\r\n").unwrap();
        });
        let mut browser = tunnel.browser();
        socket2::SockRef::from(browser.socket())
            .set_recv_buffer_size(200_000)
            .unwrap();
        browser.get(&format!("http://{site}/"));
        let answer = browser.answer("GET");
        let mut rest = &answer.body[..];
        for piece in body.chunks(70_001) {
            let line = format!("{:x}\r\n", piece.len());
            rest = rest.strip_prefix(line.as_bytes()).unwrap();
            rest = rest.strip_prefix(piece).expect("the body differs");
            rest = rest.strip_prefix(b"\r\n").unwrap();
        }
        assert_eq!(rest, b"0\r\n\r\n");
    });
}

#[test]
fn an_answer_before_the_request_is_complete_is_delivered_and_ends_the_connection() {
    in_every_way(|tunnel, way| {
        let site = way.site(|mut connection| {
            if !is_asked(&mut connection) {
                return;
            }
            read_head(&mut connection);
            connection
                .get_mut()
                .write_all(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nbig")
                .unwrap();
            // It waits for the end that its client makes.
            std::io::copy(&mut connection, &mut std::io::sink()).unwrap_or(0);
        });
        let mut browser = site.browser(tunnel);
        browser.send(site.head("POST", "/", "Content-Length: 9000000000\r\n").as_bytes());
        browser.send(&pattern(10_000, 1));
        let answer = browser.answer("POST");
        assert_eq!((answer.status, answer.body.as_slice()), (413, &b"big"[..]));
        assert_eq!(answer.field("Connection"), Some("close"));
        assert_eq!(browser.rest(), (Vec::new(), true));
    });
}

#[test]
fn the_self_test_is_for_the_broker_alone() {
    on_both_drivers(|tunnel| {
        let before = tunnel.endpoint.report().requests;
        let answer = tunnel.get("http://probe.culvert.invalid/nonce");
        assert_eq!((answer.status, answer.field("Culvert-Error")), (403, Some("denied")));
        assert_eq!(tunnel.probe("http://probe.culvert.invalid/other").body, b"other");
        assert_eq!(tunnel.probe("http://127.0.0.1:9/").status, 403);
        assert_eq!(tunnel.endpoint.report().requests, before);
    });
}

const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\n";

#[test]
fn what_is_sent_with_an_upgrade_waits_for_101() {
    in_every_way(|tunnel, way| {
        let site = way.site(|mut connection| {
            if !is_asked(&mut connection) {
                return;
            }
            let head = read_head(&mut connection);
            assert_eq!(
                (field(&head, "Upgrade"), field(&head, "Connection")),
                (Some("websocket"), Some("Upgrade"))
            );
            let soon = Some(Duration::from_millis(200));
            connection.get_ref().socket().set_read_timeout(soon).unwrap();
            assert!(connection.read(&mut [0; 1]).is_err(), "bytes before 101");
            connection.get_ref().socket().set_read_timeout(Some(PATIENCE)).unwrap();
            let answer = format!("HTTP/1.1 101 Switching Protocols\r\n{UPGRADE}\r\nhello");
            connection.get_mut().write_all(answer.as_bytes()).unwrap();
            let mut came = Vec::new();
            // In TLS the end is announced too.
            connection.read_to_end(&mut came).unwrap();
            connection.get_mut().write_all(&came).unwrap();
            connection.get_mut().finish();
        });
        let mut browser = site.browser(tunnel);
        browser.send((site.head("GET", "/ws", UPGRADE) + "early").as_bytes());
        assert_eq!(browser.answer("GET").status, 101);
        browser.send(b" late");
        browser.finish();
        assert_eq!(browser.rest(), (b"helloearly late".to_vec(), true));
    });
}

#[test]
fn a_refused_upgrade_leaves_an_ordinary_connection() {
    in_every_way(|tunnel, way| {
        let site = way.site(echo_targets);
        let mut browser = site.browser(tunnel);
        browser.send((site.head("GET", "/ws", UPGRADE) + &site.head("GET", "/next", "")).as_bytes());
        assert_eq!(browser.answer("GET").body, b"/ws");
        assert_eq!(browser.answer("GET").body, b"/next");
    });
}

#[test]
fn many_browsers_at_once_leave_nothing_behind() {
    const BROWSERS: usize = 40;
    const REQUESTS: usize = 50;
    on_both_drivers(|tunnel| {
        let site = site(|mut connection| {
            loop {
                let head = read_head(&mut connection);
                let Some(length) = head.split(['/', ' ']).nth(2).and_then(|n| n.parse().ok()) else {
                    return;
                };
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").into_bytes();
                let answer = [answer, pattern(length, length)].concat();
                connection.get_mut().write_all(&answer).unwrap();
            }
        });
        std::thread::scope(|threads| {
            for n in 0..BROWSERS {
                let mut browser = tunnel.browser();
                threads.spawn(move || {
                    for i in 0..REQUESTS {
                        let length = (n * 977 + i * 3_331) % 70_000;
                        browser.get(&format!("http://{site}/{length}"));
                        assert!(
                            browser.answer("GET").body == pattern(length, length),
                            "the body differs"
                        );
                    }
                });
            }
        });
        let report = tunnel.endpoint.report();
        assert_eq!(report.requests, (BROWSERS * REQUESTS) as u64);
        assert!(report.resets.iter().all(|(_, n)| *n == 0), "{:?}", report.resets);
        let since = std::time::Instant::now();
        while tunnel.endpoint.report().streams_open > 0 || tunnel.endpoint.report().connections > 0 {
            assert!(since.elapsed() < PATIENCE, "{:?}", tunnel.endpoint.report());
            std::thread::yield_now();
        }
    });
}
