//! HTTP/1.x as a proxy needs it: strict heads, bodies scanned and relayed as they are, heads rewritten, error pages.
//! Sans-IO: bytes come in, decisions come out. What a front and a back could read differently is refused.
//!
//! A **browser connection loop** (each `None` means: read more into `buf`, `Times::browser_head` for the whole head):
//!
//! ```text
//! let mut finder = Finder::request();
//! loop {
//!     let n = finder.find(&buf)?;                         // Err(bad): page with bad.status, close
//!     let head = buf.split_to(n).freeze();                // `buf` now begins with the body
//!     let request = Request::parse(&head)?;               // Err(bad): the same
//!     // CONNECT (Form::Authority): what follows in `buf` belongs to nobody until the browser was sent CONNECTED;
//!     // hold it, bounded, and drop it with the connection if the site cannot be reached.
//!     // `request.upgrade`: the same until 101; without it they are the next request.
//!     // Form::Origin and Form::Asterisk name no site: right inside bumped TLS (421 unless
//!     // `authority.matches(..)`), 400 on the proxy port. A request that is refused unread: page, then close.
//!     rewrite::request(&request, &[], &mut out);          // to the stream, then the body:
//!     let mut body = Body::new(request.framing);
//!     //   body.advance(&buf)? = { bytes, done }: relay exactly `bytes` bytes; the rest is the next request.
//!     //   `request.expect_continue`: the site decides; relay its 100, never send one of our own.
//!     //   The browser's end before `done` (`!body.clean_end()`): RESET(cancelled), never FIN.
//!     // Answer: see below. Keep the connection only if the answer's `Delivery::keep_alive` says so *and* this
//!     // body is done; a body that was not read to its end would be taken for the next request.
//! }
//! ```
//!
//! A **site connection loop** (`sc` towards the site; the endpoint reads the same bytes from the stream):
//!
//! ```text
//! // `sc` reads the forwarded head with Finder::forwarded() and parses it again: its authority must match OPEN.
//! let mut finder = Finder::response();
//! loop {
//!     let head = ..find(&buf)?..;                         // Err(bad): RESET(protocol)
//!     let response = Response::parse(&head, request.method, request.upgrade)?;
//!     let delivery = rewrite::response(&response, request.version, request.keep_alive, &[], &mut out);
//!     if response.is_interim() { continue }               // 1xx; not sent to an HTTP/1.0 browser; count them
//!     if response.is_upgrade() { .. }                     // 101: both directions are opaque from here on, not before
//!     let mut body = Body::new(response.framing);
//!     //   not `delivery.dechunk`: relay what `advance` counts; else only the runs of `run` that are data.
//!     //   End of input: complete only if `body.clean_end()`, else RESET(site-reset), and the browser's socket is
//!     //   reset, not closed. Bytes after `done`: the site broke the protocol; its connection is not kept.
//!     //   Keep the site's connection only if `response.keep_alive`, both bodies are done, and nothing is left over.
//! }
//! ```
//!
//! No `Via` is added, on purpose (RFC 9110 section 7.6.3 asks for one): a page under test sees the site as it is.
//! `Max-Forwards` is likewise passed on as it came.

pub mod body;
mod facts;
mod fields;
mod finder;
pub mod head;
pub mod page;
pub mod rewrite;
mod target;
#[cfg(test)]
mod tests;

pub use body::{BadBody, Body, Consumed, Run};
pub use fields::{Field, Fields};
pub use finder::Finder;
pub use head::{Bad, Framing, Request, Response, Version};
pub use rewrite::Delivery;
pub use target::{Authority, Form, Scheme};

/// Answer to a CONNECT whose site was reached.
pub const CONNECTED: &[u8] = b"HTTP/1.1 200 Connection established\r\n\r\n";

/// Says nothing but that somebody is here: allowed before any final answer to HTTP/1.1 (RFC 9110 section 15.2).
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// A character of a token (RFC 9110 section 5.6.2).
pub(crate) const fn is_token_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric()
        || matches!(
            b,
            b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
        )
}
