//! The endpoint's HTTP proxy, and its mirror at `sc`: browsers' connections become streams, streams become
//! connections to sites.
//!
//! ```text
//!  browser ──► browser ─┬► fetch ───► stream (http) ──► site ─► exchange ─► origin (pool) or dial ─► site
//!                       └► connect ─► stream (tcp) ───► site ─► dial ─► relay, or handshake
//!                           └► bump: the browser's TLS ends here, and its requests are fetched (https)
//! ```
//!
//! Each exchange is one task in which two futures run side by side, one for each direction; the first that fails
//! ends both. Everything that they wait for may be dropped.

mod answer;
pub mod browser;
mod bump;
mod cached;
mod connect;
mod dial;
mod exchange;
mod fetch;
mod flow;
mod handshake;
mod lookups;
pub mod origin;
mod probe;
mod refresh;
mod relay;
pub mod resolve;
pub mod site;

pub use dial::{code_of, told};
