//! Seeded runs of the fuzzers; a failure prints its seed, and `SEED=` replays that one alone.

use proptest::prelude::*;

use crate::http::body::fuzz_body;
use crate::http::head::{fuzz_head, fuzz_response};
use crate::http::{Body, Framing};

const REQUESTS: &[&str] = &[
    "GET http://a.test:80/x?y=z HTTP/1.1\r\nHost: a.test:80\r\nAccept: */*\r\n\r\n",
    "POST http://a/ HTTP/1.1\r\nHost: b\r\nTransfer-Encoding: chunked\r\nConnection: close, X\r\nX: y\r\n\r\n",
    "POST /a HTTP/1.0\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nhello",
    "CONNECT [::1]:443 HTTP/1.1\r\nHost: [::1]:443\r\nProxy-Connection: Keep-Alive\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nTE: trailers\r\n\r\n",
    "OPTIONS * HTTP/1.1\r\nHost: a\r\nKeep-Alive: 5\r\n\r\n",
];
const RESPONSES: &[&str] = &[
    "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close, X\r\nX: y\r\n\r\nhello",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nKeep-Alive: x\r\n\r\n",
    "HTTP/1.0 404 Not Found\r\nConnection: keep-alive\r\nServer: x\r\n\r\n",
    "HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No\r\n\r\n",
];
const BODIES: &[&str] = &[
    "5\r\nhello\r\n0\r\n\r\n",
    "1;a=\"b\\\"c\";d\r\nx\r\nA\r\n0123456789\r\n0\r\nX-Sum: 1\r\nY:\r\n\r\nGET",
    "7fffffffffffffff\r\nx",
];
/// What changes the meaning of a message when it lands in the wrong place.
const PIECES: &[&str] = &[
    "\r\n",
    "\n",
    "\r",
    " ",
    "\t",
    "\0",
    ":",
    ",",
    ";",
    "\"",
    "0",
    "5",
    "+5",
    "chunked",
    "HTTP/1.0",
    "HTTP/1.1",
    "Host: c\r\n",
    "Content-Length: 5\r\n",
    "Content-Length: 0\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Connection: upgrade, X\r\n",
    "Proxy-Connection: upgrade\r\n",
    "Upgrade: websocket\r\n",
    "Upgrade: h2c\r\n",
    "Expect: 100-continue\r\n",
    "http://",
    "https://b/",
    "@",
    "#",
    "?",
    "GET ",
    "HEAD ",
    "\u{e4}",
    "[::2]",
    ":81",
];

/// xorshift64*, so that a seed means the same run everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n
    }

    fn mutated(&mut self, corpus: &[&str]) -> Vec<u8> {
        let mut data = corpus[self.below(corpus.len())].as_bytes().to_vec();
        for _ in 0..=self.below(4) {
            let at = self.below(data.len() + 1);
            match self.below(5) {
                0 if at < data.len() => data[at] = self.below(256) as u8,
                1 => {
                    let end = (at + 1 + self.below(8)).min(data.len());
                    data.drain(at..end);
                }
                2 => {
                    let from = self.below(data.len() + 1).min(at);
                    let copy = data[from..at].to_vec();
                    data.splice(from..from, copy);
                }
                _ => {
                    let piece = PIECES[self.below(PIECES.len())].bytes();
                    data.splice(at..at, piece);
                }
            }
        }
        data
    }
}

struct Named(u64);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("replay with SEED={}", self.0);
        }
    }
}

fn run(rounds: u64, corpus: &[&str], fuzz: fn(&[u8]) -> bool) {
    let only = std::env::var("SEED").ok().and_then(|seed| seed.parse::<u64>().ok());
    let mut accepted = 0;
    for seed in only.map_or(1..=rounds, |seed| seed..=seed) {
        let named = Named(seed);
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        random.below(2);
        accepted += u64::from(fuzz(&random.mutated(corpus)));
        drop(named);
    }
    // A mutation that nothing survives would test the refusals only.
    assert!(only.is_some() || accepted > rounds / 20, "only {accepted} accepted");
}

#[test]
fn mutated_requests() {
    run(100_000, REQUESTS, fuzz_head);
}

#[test]
fn mutated_responses() {
    run(100_000, RESPONSES, fuzz_response);
}

#[test]
fn mutated_bodies() {
    run(100_000, BODIES, fuzz_body);
}

#[test]
fn corpus_itself_is_accepted() {
    let accepted = |data: &str| {
        crate::http::Finder::request()
            .find(data.as_bytes())
            .is_ok_and(|n| n.is_some())
    };
    assert!(REQUESTS.iter().all(|data| accepted(data)));
    assert!(BODIES.iter().filter(|data| fuzz_body(data.as_bytes())).count() >= 2);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes(data in proptest::collection::vec(any::<u8>(), 0..600)) {
        fuzz_head(&data);
        fuzz_response(&data);
        fuzz_body(&data);
    }

    /// Chunks made by the book come through whole, whatever the pieces they arrive in.
    #[test]
    fn well_formed_chunks(chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..50), 0..8), piece in 1usize..40) {
        let mut wire = Vec::new();
        for chunk in &chunks {
            wire.extend_from_slice(format!("{:x};n=\"v\"\r\n", chunk.len()).as_bytes());
            wire.extend_from_slice(chunk);
            wire.extend_from_slice(b"\r\n");
        }
        wire.extend_from_slice(b"0\r\n\r\n");
        let end = wire.len();
        wire.extend_from_slice(b"GET / HTTP/1.1");
        let mut body = Body::new(Framing::Chunked);
        let (mut at, mut content) = (0, Vec::new());
        while !body.is_done() {
            let slice = &wire[at..(at + piece).min(wire.len())];
            let run = body.run(slice).unwrap();
            if run.data {
                content.extend_from_slice(&slice[..run.bytes]);
            }
            at += run.bytes;
        }
        prop_assert_eq!(at, end);
        prop_assert_eq!(content, chunks.concat());
    }
}
