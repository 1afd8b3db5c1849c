//! Streams of a session.

/// Names a stream of one session; never reused while anyone may hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StreamRef {
    pub(super) slot: u32,
    pub(super) generation: u32,
}
