//! What the protocol says of each cell. Written from the protocol's text, not from its implementation.

use dataplane::limits::FRAME_PAYLOAD_BYTES_MAX;
use dataplane::mux::Side;
use dataplane::mux::frame::kind;

use super::payload::layout;
use super::state::State;

/// Which stream a frame names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The one that the state speaks of.
    Stream,
    /// Of the peer's parity, above all that were opened.
    NextPeer,
    /// Of the victim's parity, above all that were opened.
    NextOwn,
    None,
}

#[derive(Clone, Copy, Debug)]
pub struct Cell {
    pub side: Side,
    pub state: State,
    pub kind: u8,
    /// Bytes of payload that the header names.
    pub length: usize,
    /// The header's fourth byte.
    pub reserved: u8,
    pub target: Target,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// There is no connection whose bytes these could be.
    Unheard,
    /// The connection ends; the session resumes as if the frame had never come.
    ConnectionError,
    /// The session ends as `protocol`, and nothing else does.
    SessionError,
    /// Does what it is for.
    Accepted,
    /// Counted, and nothing more.
    Dropped,
}

use Expected::{Accepted, ConnectionError, Dropped, SessionError, Unheard};

/// Frames of a stream, in the order of the columns of `row`.
const COLUMNS: [u8; 9] = [
    kind::DATA,
    kind::FIN,
    kind::RESET,
    kind::CREDIT,
    kind::OPENED,
    kind::START_TLS,
    kind::TLS_REPORT,
    kind::RECALL,
    kind::RETURN,
];

/// `a` accepted, `d` counted and dropped, `e` session error: DATA FIN RESET CREDIT, OPENED START_TLS TLS_REPORT, RECALL
/// RETURN. Order within a stream: OPENED, START_TLS and TLS_REPORT once each, on `tcp` only, from the side that has to,
/// each after the one before; then DATA, then FIN; RESET ends it. RETURN answers RECALL.
fn row(side: Side, state: State) -> &'static str {
    let client = side == Side::Client;
    match state {
        State::Down | State::Greeting | State::Idle => "",
        // The peer's `tcp` at `sc`: START_TLS once OPENED is out. Its `relay` at the endpoint: never.
        State::Peer | State::FinWritten | State::GoAwaySent | State::GoAwayRead | State::Replaying if client => {
            "aaaa eae ae"
        }
        State::Peer | State::FinWritten | State::GoAwaySent | State::GoAwayRead | State::Replaying => "aaaa eee ae",
        State::Opening | State::PeerData => "aaaa eee ae",
        State::Own if client => "aaaa eee ae",
        // Own `tcp`: before OPENED the site is not connected, so it has said nothing.
        State::Own => "eeaa aee ae",
        State::TlsAsked => "aaaa eea ae",
        State::FinRead | State::FinTaken => "eeaa eee ae",
        State::Recalled => "aaaa eee aa",
        // Over in both directions: frames that cross its end are nobody's fault.
        State::BothFins | State::OwnReset | State::OwnResetReleased | State::PeerReset | State::PeerResetReleased => {
            "dddd ddd dd"
        }
    }
}

/// A frame of a session, not of a stream.
fn of_session(kind: u8) -> bool {
    matches!(kind, kind::HELLO | kind::ACK..=kind::GOAWAY)
}

pub fn expected(cell: &Cell) -> Expected {
    let Cell {
        side,
        state,
        kind,
        length,
        target,
        ..
    } = *cell;
    let header = length <= FRAME_PAYLOAD_BYTES_MAX && cell.reserved == 0;
    let extension = kind >= 0x80;
    let named = extension || of_session(kind) == (target == Target::None);
    let fits = header && layout(kind).allows(length) && named;
    match state {
        State::Down => return Unheard,
        // `sc` waits for the endpoint's HELLO and nothing else; before its own the endpoint is owed nothing.
        State::Greeting if side == Side::Client && kind == kind::HELLO && fits => return Accepted,
        State::Greeting => return ConnectionError,
        _ if !fits => return SessionError,
        _ if extension => return Dropped,
        _ => {}
    }
    if of_session(kind) {
        return match kind {
            kind::HELLO => SessionError,
            // The rules are `sc`'s to send and the endpoint's to answer.
            kind::SETTINGS if side == Side::Client => SessionError,
            kind::SETTINGS_ACK if side == Side::Endpoint => SessionError,
            kind::GOAWAY if state == State::GoAwayRead => SessionError,
            _ => Accepted,
        };
    }
    match (target, kind) {
        // Above the last that GOAWAY served.
        (Target::NextPeer, kind::OPEN) if state == State::GoAwaySent => Dropped,
        // Who says GOAWAY opens no more.
        (Target::NextPeer, kind::OPEN) if state == State::GoAwayRead => SessionError,
        (Target::NextPeer, kind::OPEN) => Accepted,
        (Target::Stream, kind::OPEN) | (Target::NextPeer | Target::NextOwn | Target::None, _) => SessionError,
        (Target::Stream, _) => {
            let column = COLUMNS.iter().position(|k| *k == kind).expect("a frame of a stream");
            let letters: Vec<u8> = row(side, state).bytes().filter(u8::is_ascii_lowercase).collect();
            match letters[column] {
                b'a' => Accepted,
                b'd' => Dropped,
                _ => SessionError,
            }
        }
    }
}
