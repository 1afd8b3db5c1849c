//! Sites that keep what they are sent, and messages of which they must get all or nothing.

use std::io::{BufRead, Read, Write};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};

use crate::tunnel::{Browser, PATIENCE, Tunnel, field, is_asked, read_chunks, read_head};
use crate::way::{Site, Way};

/// What a site answers that keeps what it is sent.
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

/// A site that keeps every byte it is sent, and answers each request once it is whole.
pub struct Recorder {
    pub site: Site,
    bytes: Arc<Mutex<Vec<u8>>>,
}

impl Recorder {
    pub fn start(way: Way) -> Self {
        Self::answering(way, OK)
    }

    pub fn answering(way: Way, answer: &'static str) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let kept = bytes.clone();
        let site = way.site(move |mut connection| {
            while is_asked(&mut connection) {
                let head = read_head(&mut connection);
                keep(&kept, head.as_bytes());
                if !head.ends_with("\r\n\r\n") {
                    return;
                }
                if let Some(length) = field(&head, "Content-Length") {
                    let mut body = vec![0; length.parse().unwrap()];
                    connection.read_exact(&mut body).unwrap();
                    keep(&kept, &body);
                } else if field(&head, "Transfer-Encoding").is_some() {
                    keep(&kept, &read_chunks(&mut connection));
                }
                if connection.get_mut().write_all(answer.as_bytes()).is_err() {
                    return;
                }
            }
        });
        Self { site, bytes }
    }

    /// What was kept since.
    pub fn take(&self) -> String {
        String::from_utf8(std::mem::take(&mut self.bytes.lock().unwrap())).unwrap()
    }

    /// A browser whose next bytes are a request's, whatever they are.
    pub fn browser(&self, tunnel: &Tunnel) -> Browser {
        let mut browser = self.site.browser(tunnel);
        if self.site.way == Way::Connect {
            // What a CONNECT is about is told by its first bytes.
            let first = self.site.head("GET", "/first", "");
            browser.send(first.as_bytes());
            assert_eq!(browser.answer("GET").status, 200);
            assert_eq!(self.take(), first);
        }
        browser
    }

    /// Sends a browser's bytes and reads all answers, up to the end: their statuses, and what reached this site.
    pub fn exchange(&self, tunnel: &Tunnel, bytes: &[u8]) -> (Vec<u16>, String) {
        let mut browser = self.browser(tunnel);
        browser.send(bytes);
        browser.finish();
        (statuses(&mut browser), self.reached(tunnel))
    }

    /// What reached this site up to now.
    pub fn reached(&self, tunnel: &Tunnel) -> String {
        // Sent later, so that it arrives later: nothing is on its way any more.
        assert_eq!(self.site.get(tunnel, "/last").status, 200);
        let reached = self.take();
        let last = self.site.head_at_site("GET", "/last", "");
        reached
            .strip_suffix(&last)
            .expect("the last request arrives")
            .to_owned()
    }
}

fn keep(kept: &Mutex<Vec<u8>>, bytes: &[u8]) {
    kept.lock().unwrap().extend_from_slice(bytes);
}

/// A site that answers nothing.
pub struct Silent {
    pub site: Site,
    told: Receiver<String>,
}

impl Silent {
    /// It tells of each connection that is used once a head and so many bytes of a body have come, and again at its end.
    pub fn start(way: Way, length: usize) -> Self {
        let (tell, told) = mpsc::channel();
        let site = way.site(move |mut connection| {
            if !is_asked(&mut connection) {
                return;
            }
            let mut came = read_head(&mut connection).into_bytes();
            let head = came.len();
            came.resize(head + length, 0);
            connection.read_exact(&mut came[head..]).unwrap();
            let tell = |came: &[u8]| tell.send(String::from_utf8_lossy(came).into_owned());
            // Nobody listens where a test has failed.
            let _ = tell(&came);
            let _ = connection.read_to_end(&mut came);
            let _ = tell(&came);
        });
        Self { site, told }
    }

    /// The next that it tells.
    pub fn told(&self) -> String {
        self.told.recv_timeout(PATIENCE).expect("the site tells")
    }
}

/// Of all answers up to the end of the connection.
pub fn statuses(browser: &mut Browser) -> Vec<u16> {
    let mut statuses = Vec::new();
    while browser.0.fill_buf().is_ok_and(|bytes| !bytes.is_empty()) {
        statuses.push(browser.answer("GET").status);
    }
    statuses
}

/// A request that the message before it may not hide, and its form at the site.
pub fn hidden(site: Site) -> (String, String) {
    (site.head("GET", "/hidden", ""), site.head_at_site("GET", "/hidden", ""))
}

/// A POST with these fields and this body, followed by another request. Nothing of either may reach the site.
pub fn is_refused(tunnel: &Tunnel, recorder: &Recorder, status: u16, fields: &str, body: &str) {
    let (next, _) = hidden(recorder.site);
    let bytes = format!("{}{body}{next}", recorder.site.head("POST", "/a", fields));
    let (statuses, reached) = recorder.exchange(tunnel, bytes.as_bytes());
    assert_eq!(
        (statuses, reached.as_str()),
        (vec![status], ""),
        "{:?} {bytes:?}",
        recorder.site.way
    );
}

/// A POST with these fields and this body reaches the site just so; so does what follows, as a request of its own.
pub fn passes(tunnel: &Tunnel, recorder: &Recorder, fields: &str, body: &str) {
    passes_with(tunnel, recorder, fields, fields, body);
}

/// As [`passes`], with other fields at the site.
pub fn passes_with(tunnel: &Tunnel, recorder: &Recorder, fields: &str, at_site: &str, body: &str) {
    let site = recorder.site;
    let (next, next_at_site) = hidden(site);
    let sent = format!("{}{body}{next}", site.head("POST", "/a", fields));
    let (statuses, reached) = recorder.exchange(tunnel, sent.as_bytes());
    assert_eq!(statuses, [200, 200], "{:?} {fields:?}", site.way);
    let want = format!("{}{body}{next_at_site}", site.head_at_site("POST", "/a", at_site));
    assert_eq!(reached, want);
}
