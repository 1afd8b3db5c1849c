//! The endpoint's HTTP proxy, and its mirror at `sc`: browsers' connections become streams, streams become
//! connections to sites.

pub mod origin;
pub mod resolve;
