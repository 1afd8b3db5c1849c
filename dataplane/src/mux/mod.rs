//! The multiplex: one [`Session`] per link, a pure state machine that outlives TCP connections.
//!
//! Bytes, commands and `now` go in; frames ([`Session::poll_transmit`]), events ([`Session::poll_event`]) and one
//! deadline ([`Session::poll_timeout`]) come out. All sessions of a shard share one [`Budget`], which every call
//! that may move memory takes as an argument. After each call the shell drains events, then transmits.
//!
//! A connection's life: `sc` gets [`Event::Dial`], dials, shakes hands and calls [`Session::connected`]; the
//! endpoint reads the peer's HELLO, asks [`Session::check_hello`], does the cut-over (shuts the old socket, feeds
//! what it still brought, calls [`Session::disconnected`]) and calls [`Session::connected_by`]. On
//! [`Event::Close`] the shell flushes (unless it aborts), shuts the socket down, waits until the read in flight has
//! completed, feeds what it brought, then calls [`Session::disconnected`].
//!
//! A stream's life: [`Session::open`] or [`Event::Opened`] gives a [`StreamRef`]. [`Session::room`] says how much
//! may be read from the local socket, [`Session::write`] takes it; [`Session::recv`] hands out slices, which
//! [`Session::consumed`] gives back once the local socket has them; while that socket is full nobody keeps slices,
//! [`Session::rewind`] makes `recv` give them again. The holder ends with [`Session::release`].

mod connection;
mod credit;
mod ending;
mod flood;
pub mod frame;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod holder;
mod liveness;
pub mod planted;
mod receive;
mod resume;
mod schedule;
mod session;
mod stream;

pub use credit::{Budget, BudgetConfig};
pub use frame::{Code, GoAwayReason, Hello, Kind, Open, Opened, Shown, Timings, TlsReport, Violation};
pub use session::{Cause, Config, Event, OpenError, Recv, Reject, Session, Side, WriteError};
pub(crate) use stream::IdHash;
pub use stream::StreamRef;
