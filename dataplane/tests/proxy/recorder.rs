//! A site that keeps what it is sent, and messages of which it must get all or nothing.

use std::io::{BufRead, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::{Arc, Mutex};

use crate::tunnel::{Browser, Tunnel, field, read_chunks, read_head, site};

/// What a site answers that keeps what it is sent.
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

/// A site that keeps every byte it is sent, and answers each request once it is whole.
pub struct Recorder {
    pub address: SocketAddr,
    bytes: Arc<Mutex<Vec<u8>>>,
}

impl Recorder {
    pub fn start() -> Self {
        Self::answering(OK)
    }

    pub fn answering(answer: &'static str) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let kept = bytes.clone();
        let address = site(move |mut connection| {
            loop {
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
        Self { address, bytes }
    }

    /// What was kept since.
    pub fn take(&self) -> String {
        String::from_utf8(std::mem::take(&mut self.bytes.lock().unwrap())).unwrap()
    }

    /// Sends a browser's bytes and reads all answers, up to the end: their statuses, and what reached this site.
    pub fn exchange(&self, tunnel: &Tunnel, bytes: &[u8]) -> (Vec<u16>, String) {
        let mut browser = tunnel.browser();
        browser.send(bytes);
        browser.0.get_ref().shutdown(Shutdown::Write).unwrap();
        let statuses = statuses(&mut browser);
        // Sent later, so that it arrives later: nothing is on its way any more.
        let address = self.address;
        assert_eq!(tunnel.get(&format!("http://{address}/last")).status, 200);
        let reached = self.take();
        let last = format!("GET /last HTTP/1.1\r\nHost: {address}\r\n\r\n");
        let reached = reached.strip_suffix(&last).expect("the last request arrives");
        (statuses, reached.to_owned())
    }
}

fn keep(kept: &Mutex<Vec<u8>>, bytes: &[u8]) {
    kept.lock().unwrap().extend_from_slice(bytes);
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
pub fn hidden(address: SocketAddr) -> (String, String) {
    let fields = format!("HTTP/1.1\r\nHost: {address}\r\n\r\n");
    (
        format!("GET http://{address}/hidden {fields}"),
        format!("GET /hidden {fields}"),
    )
}

/// A POST with these fields and this body, followed by another request. Nothing of either may reach the site.
pub fn is_refused(tunnel: &Tunnel, recorder: &Recorder, status: u16, fields: &str, body: &str) {
    let address = recorder.address;
    let (next, _) = hidden(address);
    let bytes = format!("POST http://{address}/a HTTP/1.1\r\nHost: {address}\r\n{fields}\r\n{body}{next}");
    let (statuses, reached) = recorder.exchange(tunnel, bytes.as_bytes());
    assert_eq!((statuses, reached.as_str()), (vec![status], ""), "{bytes:?}");
}

/// A POST with these fields and this body reaches the site just so; so does what follows, as a request of its own.
pub fn passes(tunnel: &Tunnel, recorder: &Recorder, fields: &str, body: &str) {
    passes_with(tunnel, recorder, fields, fields, body);
}

/// As [`passes`], with other fields at the site.
pub fn passes_with(tunnel: &Tunnel, recorder: &Recorder, fields: &str, at_site: &str, body: &str) {
    let address = recorder.address;
    let (next, next_at_site) = hidden(address);
    let host = format!("HTTP/1.1\r\nHost: {address}\r\n");
    let sent = format!("POST http://{address}/a {host}{fields}\r\n{body}{next}");
    let (statuses, reached) = recorder.exchange(tunnel, sent.as_bytes());
    assert_eq!(statuses, [200, 200], "{fields:?}");
    assert_eq!(reached, format!("POST /a {host}{at_site}\r\n{body}{next_at_site}"));
}
