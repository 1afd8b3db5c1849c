//! The two budgets of a shard.

use super::stream::StreamRef;

/// Sizes of a shard's budgets.
#[derive(Clone, Copy, Debug)]
pub struct BudgetConfig {
    /// Bytes of the receive pool.
    pub pool_bytes: usize,
    /// Bytes retained and queued for sending.
    pub tx_bytes: usize,
    /// Streams that the other side may have open.
    pub streams_peer_max: usize,
    /// Streams that this side may have open.
    pub streams_own_max: usize,
}

/// Shared by all sessions of a shard.
pub struct Budget {}

#[allow(unused_variables)]
impl Budget {
    pub fn new(config: BudgetConfig) -> Self {
        todo!()
    }
    /// A stream that was refused room and may ask again: (session key, stream). Drain after every call.
    pub fn next_unblocked(&mut self) -> Option<(u32, StreamRef)> {
        todo!()
    }
    /// Credit advertised and not yet consumed, over all streams.
    pub fn rx_outstanding(&self) -> usize {
        todo!()
    }
    /// Memory charged for received bytes, by capacity of buffers.
    pub fn rx_charged(&self) -> usize {
        todo!()
    }
    /// Bytes retained and queued, DATA with headers.
    pub fn tx_held(&self) -> usize {
        todo!()
    }
    /// (peer-opened, own) streams that hold a place.
    pub fn streams(&self) -> (usize, usize) {
        todo!()
    }
}
