//! `-F` as `sc` asks it once more: the endpoint may be older than the rules of `sc`, or taken over.

use std::io::Write;
use std::sync::{Arc, mpsc};

use dataplane::client::{ClientConfig, Driver};
use dataplane::rules::{FastFail, Rules};
use dataplane::settings::Settings;

use crate::tunnel::{Tunnel, is_asked, read_head};
use crate::way::Way;

#[test]
fn the_client_drops_requests_and_upgrades_by_their_whole_url() {
    const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
    for driver in [Driver::Epoll, Driver::Auto] {
        // The endpoint has no rules.
        let (tunnel, sc) = Tunnel::without_client(driver);
        let rule = r"^http://127\.0\.0\.1:[0-9]+/secret\?x$".to_owned();
        let rules = Rules {
            fast_fail: FastFail::compile(&[rule]).unwrap(),
            ..Rules::default()
        };
        let settings = Settings {
            rules: Arc::new(rules),
            ..(*sc.settings).clone()
        };
        let tunnel = tunnel.joined_by(ClientConfig {
            settings: Arc::new(settings),
            ..sc
        });
        for way in [Way::Absolute, Way::Connect] {
            let (tell, told) = mpsc::channel();
            let site = way.site(move |mut connection| {
                while is_asked(&mut connection) {
                    tell.send(read_head(&mut connection)).unwrap();
                    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
                    connection.get_mut().write_all(answer).unwrap();
                }
            });
            for fields in ["", UPGRADE] {
                let ask = |path: &str| {
                    let mut browser = site.browser(&tunnel);
                    browser.send(site.head("GET", path, fields).as_bytes());
                    browser.answer("GET")
                };
                let dropped = ask("/secret?x");
                assert_eq!(
                    (dropped.status, dropped.field("Culvert-Error")),
                    (403, Some("denied")),
                    "{way:?}, {fields}"
                );
                let page = String::from_utf8_lossy(&dropped.body).into_owned();
                assert!(page.contains("(-F)"), "{way:?}, {fields}: {page}");
                assert_eq!(ask("/secret?xx").status, 200, "{way:?}, {fields}");
                let reached: Vec<String> = told.try_iter().collect();
                let [wanted] = &reached[..] else {
                    panic!("{way:?}, {fields}: {reached:?}");
                };
                assert!(wanted.starts_with("GET /secret?xx HTTP/1.1\r\n"), "{wanted}");
            }
        }
        tunnel.stop();
    }
}
