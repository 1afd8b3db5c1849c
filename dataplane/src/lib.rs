//! Culvert's data plane: moves bytes and decides nothing.
//!
//! ```text
//!  browser ─► proxy ─► stream ─► mux::Session ─► tls::record ─► link (TCP) ═══► the same, mirrored ─► site
//!             http              (sans-IO)        (sans-IO)      shard::link
//! ```
//!
//! `mux`, `http`, `cache`, `bump` and `rules` are sans-IO: bytes and `now` go in, bytes, events and deadlines come out. `shard` is the
//! io_uring shell around them; `client` and `endpoint` are the two roles that the control plane starts.

pub mod bump;
pub mod cache;
pub mod client;
pub mod copies;
pub mod credentials;
pub mod endpoint;
pub mod error;
pub mod http;
pub mod limits;
pub mod mux;
pub mod proxy;
mod queue;
pub mod rules;
pub mod settings;
pub mod shard;
pub mod stats;
pub mod time;
pub mod tls;
#[cfg(test)]
mod wakes;
