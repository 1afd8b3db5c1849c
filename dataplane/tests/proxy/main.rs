//! The proxy and its mirror at `sc`, with browsers and sites that are raw sockets.

mod connections;
mod ends;
mod exchanges;
mod failures;
mod fast_fail;
mod hosts;
mod leftovers;
mod limits;
mod pages;
mod recorder;
mod reload;
mod rerouted;
mod secure;
mod smuggling;
mod tls;
mod tunnel;
mod waiting;
mod way;
