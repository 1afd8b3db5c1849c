//! Follows a site's answer through its bytes: which belong to it, when it is complete, and whether the connection can
//! serve again. Sans-IO.

use bytes::BytesMut;

use crate::http::{BadBody, Body, Finder, Response};
use crate::limits::INTERIM_ANSWERS_MAX;

/// What the site broke, for people.
pub type Broken = &'static str;

enum State {
    /// Of an interim answer, or of the final one; with what came of it before.
    Head(Finder, BytesMut),
    Body(Body),
    /// After 101: opaque.
    Upgraded,
    Done,
}

/// One answer with the interim ones before it.
pub struct Answer<'a> {
    method: &'a str,
    upgrade: bool,
    state: State,
    interim: usize,
    keep_alive: bool,
    status: Option<u16>,
}

impl<'a> Answer<'a> {
    /// The answer to a request with this method that asked for an upgrade or did not.
    pub fn new(method: &'a str, upgrade: bool) -> Self {
        Self {
            method,
            upgrade,
            state: State::Head(Finder::response(), BytesMut::new()),
            interim: 0,
            keep_alive: false,
            status: None,
        }
    }

    /// Takes the connection's next bytes; returns how many at their start belong to the answer. Fewer than all: it is
    /// done, and the site sent too much.
    pub fn feed(&mut self, input: &[u8]) -> Result<usize, Broken> {
        let mut at = 0;
        while at < input.len() {
            let rest = &input[at..];
            match &mut self.state {
                State::Head(..) => at += self.head(rest)?,
                State::Body(body) => {
                    let all = body.advance(rest).map_err(|BadBody(reason)| reason)?;
                    at += all.bytes;
                    if all.done {
                        self.state = State::Done;
                    }
                }
                State::Upgraded => return Ok(input.len()),
                State::Done => return Ok(at),
            }
        }
        Ok(at)
    }

    /// Looks for the end of a head; returns how many bytes belong to it.
    fn head(&mut self, rest: &[u8]) -> Result<usize, Broken> {
        let State::Head(finder, text) = &mut self.state else {
            return Ok(0);
        };
        let before = text.len();
        let found = if before == 0 {
            finder.find(rest)
        } else {
            text.extend_from_slice(rest);
            finder.find(text)
        };
        let Some(length) = found.map_err(|bad| bad.reason)? else {
            if before == 0 {
                text.extend_from_slice(rest);
            }
            return Ok(rest.len());
        };
        let text = std::mem::take(text);
        let head = if before == 0 { rest } else { &text[..] };
        let response = Response::parse(&head[..length], self.method, self.upgrade).map_err(|bad| bad.reason)?;
        if response.is_interim() {
            self.interim += 1;
            if self.interim == INTERIM_ANSWERS_MAX {
                return Err("too many interim answers");
            }
        } else if response.is_upgrade() {
            self.state = State::Upgraded;
        } else {
            self.keep_alive = response.keep_alive;
            self.status = Some(response.status);
            let body = Body::new(response.framing);
            self.state = if body.is_done() { State::Done } else { State::Body(body) };
        }
        Ok(length - before)
    }

    /// How many bytes may be read without reading past the end, as far as it is known.
    pub fn wanted(&self) -> usize {
        match &self.state {
            State::Body(body) => body
                .remaining()
                .map_or(usize::MAX, |left| usize::try_from(left).unwrap_or(usize::MAX)),
            _ => usize::MAX,
        }
    }

    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// 101 was read: what follows is opaque in both directions.
    pub fn is_upgraded(&self) -> bool {
        matches!(self.state, State::Upgraded)
    }

    /// Whether the answer is complete if the site ends its connection here.
    pub fn clean_end(&self) -> bool {
        match &self.state {
            State::Body(body) => body.clean_end(),
            State::Done => true,
            State::Head(..) | State::Upgraded => false,
        }
    }

    /// Of the final answer, once its head is there.
    pub fn status(&self) -> Option<u16> {
        self.status
    }

    /// The site lets its connection be used again.
    pub fn keep_alive(&self) -> bool {
        self.keep_alive
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTINUED: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

    #[test]
    fn any_split_gives_what_the_whole_gives() {
        for piece in 1..CONTINUED.len() {
            let mut answer = Answer::new("GET", false);
            for part in CONTINUED.chunks(piece) {
                assert!(!answer.is_done());
                assert_eq!(answer.feed(part), Ok(part.len()));
            }
            assert!(answer.is_done() && answer.keep_alive() && answer.clean_end());
        }
    }

    #[test]
    fn what_follows_the_answer_is_not_its_own() {
        let mut answer = Answer::new("GET", false);
        let mut bytes = CONTINUED.to_vec();
        bytes.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
        assert_eq!(answer.feed(&bytes), Ok(CONTINUED.len()));
        assert_eq!(answer.feed(b"more"), Ok(0));
    }

    #[test]
    fn only_a_complete_answer_ends_cleanly() {
        let cases: [(&str, &[u8], bool); 7] = [
            ("GET", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell", false),
            ("GET", b"HTTP/1.1 200 OK\r\nContent-Le", false),
            ("GET", b"HTTP/1.1 100 Continue\r\n\r\n", false),
            (
                "GET",
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n",
                false,
            ),
            ("GET", b"HTTP/1.1 200 OK\r\n\r\nanything", true),
            ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", true),
            ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", true),
        ];
        for (method, bytes, clean) in cases {
            let mut answer = Answer::new(method, false);
            assert_eq!(answer.feed(bytes), Ok(bytes.len()));
            assert_eq!(answer.clean_end(), clean, "{}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn what_follows_101_is_opaque_and_nobody_else_may_say_it() {
        let head = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n\x81\x00";
        let mut answer = Answer::new("GET", true);
        assert_eq!(answer.feed(head), Ok(head.len()));
        assert!(answer.is_upgraded());
        assert!(Answer::new("GET", false).feed(head).is_err());
    }

    #[test]
    fn interim_answers_without_end_are_refused() {
        let mut answer = Answer::new("GET", false);
        let flood = b"HTTP/1.1 102 Processing\r\n\r\n".repeat(INTERIM_ANSWERS_MAX);
        assert!(answer.feed(&flood).is_err());
    }
}
