//! Bodies, scanned so that they can be relayed as they are: says which bytes belong to the message, keeps none.
//!
//! ```text
//!            digits        CR LF      left = 0   CR LF
//!  ┌──────► Size ────► SizeLf ──► Data ──► DataCr ──► DataLf ─┐
//!  │          │ ;        │ (size 0)                           │
//!  │          ▼          ▼                                    │
//!  │       Extension    TrailerStart ──► Name ──► Value ──► ValueLf
//!  │                     │   ▲──────────────────────────────────┘
//!  └───── DataLf         ▼ CR
//!                      EndLf ──► Done
//! ```

use std::fmt;

use super::head::Framing;
use super::is_token_byte;
use crate::limits::{CHUNK_LINE_BYTES_MAX, HEAD_FIELDS_MAX, TRAILER_BYTES_MAX};

/// The sender broke the framing of its body; nothing after it can be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadBody(pub &'static str);

impl fmt::Display for BadBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for BadBody {}

/// What [`Body::advance`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Consumed {
    /// So many bytes at the start of the input belong to the message.
    pub bytes: usize,
    /// The message is complete; what follows `bytes` is another's.
    pub done: bool,
}

/// What [`Body::run`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// So many bytes at the start of the input are of one kind; 0 only if the input is empty or the body done.
    pub bytes: usize,
    /// Content, as against chunk sizes and trailers.
    pub data: bool,
    /// The message is complete.
    pub done: bool,
}

/// Follows one body through the input, in constant memory.
#[derive(Clone, Debug)]
pub struct Body {
    state: State,
    /// Bytes of the chunk-size line, or of the trailer section, so far.
    section: usize,
    trailers: usize,
    name: Name,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Length(u64),
    UntilClose,
    Size { value: u64, digits: u8 },
    Extension { value: u64, quote: Quote },
    SizeLf { value: u64 },
    Data(u64),
    DataCr,
    DataLf,
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerLf,
    EndLf,
    Done,
    Broken(BadBody),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Quote {
    Outside,
    Inside,
    Escaped,
}

const CHUNK: State = State::Size { value: 0, digits: 0 };

impl Body {
    /// At the first byte after the head.
    pub const fn new(framing: Framing) -> Self {
        let state = match framing {
            Framing::None | Framing::Length(0) => State::Done,
            Framing::Length(n) => State::Length(n),
            Framing::Chunked => CHUNK,
            Framing::UntilClose => State::UntilClose,
        };
        Self {
            state,
            section: 0,
            trailers: 0,
            name: Name::new(),
        }
    }

    /// Takes the next bytes of the connection; those not counted belong to the next message. Once it failed it fails
    /// for ever.
    pub fn advance(&mut self, input: &[u8]) -> Result<Consumed, BadBody> {
        let mut bytes = 0;
        loop {
            let run = self.run(&input[bytes..])?;
            bytes += run.bytes;
            if run.done || run.bytes == 0 {
                return Ok(Consumed { bytes, done: run.done });
            }
        }
    }

    /// As `advance`, but stops where content begins or ends: for receivers that cannot read chunks.
    pub fn run(&mut self, input: &[u8]) -> Result<Run, BadBody> {
        let (bytes, data) = match &mut self.state {
            State::Done => (0, false),
            State::Broken(bad) => return Err(*bad),
            State::UntilClose => (input.len(), true),
            State::Length(left) => {
                let taken = take(left, input.len());
                if *left == 0 {
                    self.state = State::Done;
                }
                (taken, true)
            }
            State::Data(left) => {
                let taken = take(left, input.len());
                if *left == 0 {
                    self.state = State::DataCr;
                }
                (taken, true)
            }
            _ => (self.framing(input)?, false),
        };
        Ok(Run {
            bytes,
            data,
            done: self.is_done(),
        })
    }

    /// The message is complete.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Whether the sender may end its connection here without having cut the message.
    pub fn clean_end(&self) -> bool {
        matches!(self.state, State::Done | State::UntilClose)
    }

    /// Bytes still to come where that is known.
    pub fn remaining(&self) -> Option<u64> {
        match self.state {
            State::Length(left) => Some(left),
            State::Done => Some(0),
            _ => None,
        }
    }

    /// Steps through sizes and trailers up to the next content or the end.
    fn framing(&mut self, input: &[u8]) -> Result<usize, BadBody> {
        for (at, byte) in input.iter().enumerate() {
            match self.step(*byte) {
                Ok(state) => self.state = state,
                Err(bad) => {
                    self.state = State::Broken(bad);
                    return Err(bad);
                }
            }
            if matches!(self.state, State::Data(_) | State::Done) {
                return Ok(at + 1);
            }
        }
        Ok(input.len())
    }

    fn step(&mut self, byte: u8) -> Result<State, BadBody> {
        match self.state {
            State::Size { value, digits } => {
                self.count(CHUNK_LINE_BYTES_MAX)?;
                size(value, digits, byte)
            }
            State::Extension { value, quote } => {
                self.count(CHUNK_LINE_BYTES_MAX)?;
                extension(value, quote, byte)
            }
            State::SizeLf { value } => {
                self.section = 0;
                let next = if value == 0 {
                    State::TrailerStart
                } else {
                    State::Data(value)
                };
                expect(byte, b'\n', next)
            }
            State::DataCr => expect(byte, b'\r', State::DataLf),
            State::DataLf => expect(byte, b'\n', CHUNK),
            State::EndLf => expect(byte, b'\n', State::Done),
            _ => {
                self.count(TRAILER_BYTES_MAX)?;
                self.trailer(byte)
            }
        }
    }

    fn trailer(&mut self, byte: u8) -> Result<State, BadBody> {
        match (self.state, byte) {
            (State::TrailerStart, b'\r') => Ok(State::EndLf),
            (State::TrailerStart, b) if is_token_byte(b) => {
                self.trailers += 1;
                if self.trailers > HEAD_FIELDS_MAX {
                    return Err(BadBody("too many trailers"));
                }
                self.name = Name::new();
                self.name.push(b);
                Ok(State::TrailerName)
            }
            (State::TrailerName, b) if is_token_byte(b) => {
                self.name.push(b);
                Ok(State::TrailerName)
            }
            (State::TrailerName, b':') if self.name.is_forbidden() => {
                Err(BadBody("a trailer that belongs into the head"))
            }
            (State::TrailerName, b':') => Ok(State::TrailerValue),
            (State::TrailerValue, b'\r') => Ok(State::TrailerLf),
            (State::TrailerValue, b) if b == b'\t' || (b >= b' ' && b != 0x7f) => Ok(State::TrailerValue),
            (State::TrailerLf, b'\n') => Ok(State::TrailerStart),
            _ => Err(BadBody("a malformed trailer")),
        }
    }

    fn count(&mut self, max: usize) -> Result<(), BadBody> {
        self.section += 1;
        if self.section > max {
            Err(BadBody("a chunk-size line or the trailers are too long"))
        } else {
            Ok(())
        }
    }
}

fn take(left: &mut u64, available: usize) -> usize {
    let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(available);
    *left -= taken as u64;
    taken
}

/// Hex digits, at least one, then CR or `;`. White space there (allowed before `;` only, and then bad) is refused.
fn size(value: u64, digits: u8, byte: u8) -> Result<State, BadBody> {
    let digit = match byte {
        b'0'..=b'9' => byte - b'0',
        b'a'..=b'f' => byte - b'a' + 10,
        b'A'..=b'F' => byte - b'A' + 10,
        b'\r' if digits > 0 => return Ok(State::SizeLf { value }),
        b';' if digits > 0 => {
            return Ok(State::Extension {
                value,
                quote: Quote::Outside,
            });
        }
        _ => return Err(BadBody("a chunk size is not a hexadecimal number")),
    };
    // Zeros in front count too: 16 digits are what every reader can hold.
    if digits == 16 || value > (i64::MAX as u64) >> 4 {
        return Err(BadBody("a chunk size is too large"));
    }
    Ok(State::Size {
        value: value << 4 | u64::from(digit),
        digits: digits + 1,
    })
}

/// Tokens, `;`, `=`, blanks and quoted strings (RFC 9112 section 7.1.1); a CR ends the line, and only outside quotes.
fn extension(value: u64, quote: Quote, byte: u8) -> Result<State, BadBody> {
    let quote = match (quote, byte) {
        (Quote::Outside, b'\r') => return Ok(State::SizeLf { value }),
        (Quote::Outside, b'"') => Quote::Inside,
        (Quote::Outside, b';' | b'=' | b' ' | b'\t') => Quote::Outside,
        (Quote::Outside, b) if is_token_byte(b) => Quote::Outside,
        (Quote::Inside, b'"') => Quote::Outside,
        (Quote::Inside, b'\\') => Quote::Escaped,
        (Quote::Inside | Quote::Escaped, b) if b == b'\t' || (b >= b' ' && b != 0x7f) => Quote::Inside,
        _ => return Err(BadBody("a chunk extension holds a forbidden character")),
    };
    Ok(State::Extension { value, quote })
}

fn expect(byte: u8, wanted: u8, next: State) -> Result<State, BadBody> {
    if byte == wanted {
        Ok(next)
    } else {
        Err(BadBody("a chunk or its size line does not end in CRLF"))
    }
}

/// The name of a trailer, as far as it is needed to know it again.
#[derive(Clone, Debug)]
struct Name {
    bytes: [u8; Name::MAX],
    len: usize,
}

impl Name {
    const MAX: usize = 20;
    /// RFC 9110 section 6.5.1: framing, routing and authentication; some receivers merge trailers into the head.
    const FORBIDDEN: [&str; 13] = [
        "content-length",
        "transfer-encoding",
        "host",
        "connection",
        "proxy-connection",
        "keep-alive",
        "te",
        "trailer",
        "upgrade",
        "expect",
        "authorization",
        "proxy-authorization",
        "set-cookie",
    ];

    const fn new() -> Self {
        Self {
            bytes: [0; Self::MAX],
            len: 0,
        }
    }

    fn push(&mut self, byte: u8) {
        if let Some(place) = self.bytes.get_mut(self.len) {
            *place = byte.to_ascii_lowercase();
        }
        self.len += 1;
    }

    fn is_forbidden(&self) -> bool {
        let name = self.bytes.get(..self.len).unwrap_or(&[]);
        Self::FORBIDDEN.iter().any(|f| f.as_bytes() == name)
    }
}

/// Any bytes: never panics, and any split of the input gives what the whole gives. Says
/// whether it was a whole chunked body.
#[cfg(any(test, fuzzing))]
pub fn fuzz_body(data: &[u8]) -> bool {
    let framings = [
        Framing::Chunked,
        Framing::Length(data.len() as u64 / 2 + 1),
        Framing::UntilClose,
        Framing::None,
    ];
    for framing in framings {
        let mut whole = Body::new(framing);
        let expected = whole.advance(data);
        let mut split = Body::new(framing);
        let (mut at, mut content, mut piece) = (0, 0, 1);
        let got = loop {
            let end = (at + piece).min(data.len());
            piece = piece % 7 + 1;
            match split.run(&data[at..end]) {
                Ok(run) => {
                    assert!(run.bytes <= end - at);
                    at += run.bytes;
                    content += if run.data { run.bytes } else { 0 };
                    if run.done || at == data.len() {
                        break Ok(Consumed {
                            bytes: at,
                            done: run.done,
                        });
                    }
                    assert!(run.bytes > 0, "a run makes progress");
                }
                Err(bad) => break Err(bad),
            }
        };
        assert_eq!(got, expected);
        assert!(content <= at);
        assert_eq!(split.clean_end(), whole.clean_end());
        if let Err(bad) = expected {
            assert_eq!(whole.advance(b"0\r\n\r\n"), Err(bad));
        }
    }
    Body::new(Framing::Chunked)
        .advance(data)
        .is_ok_and(|consumed| consumed.done)
}
