//! The proxy and its mirror at `sc`, with browsers and sites that are raw sockets.

mod connections;
mod exchanges;
mod failures;
mod reload;
mod secure;
mod smuggling;
mod tunnel;
