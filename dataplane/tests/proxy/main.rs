//! The proxy and its mirror at `sc`, with browsers and sites that are raw sockets.

mod connections;
mod exchanges;
mod failures;
mod leftovers;
mod recorder;
mod reload;
mod secure;
mod smuggling;
mod tunnel;
