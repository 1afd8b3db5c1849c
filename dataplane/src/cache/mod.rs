//! A shared response cache (RFC 9111) as the endpoint's proxy needs it: what may be stored, for how long, for whom, and
//! where. Sans-IO: heads, contents and `now` come in, decisions come out; nothing here waits, reads a clock or a socket.
//!
//! A **request** goes through it so (no cache, or `Asked::read` says `None`: none of this is paid):
//!
//! ```text
//! let asked = Asked::read(&request, Site { scheme, trusted, authorized });
//! let mut waited = None;
//! let fetch = loop {
//!     match cache.look_up(&asked, waited, now) {
//!         Look::Hit(hit) => {                          // body of `request`: there is none
//!             let reply = hit.write_head(&asked, keep_alive, now, &mut out);
//!             // send `out`, then hit.content(reply.content) ; keep the connection if reply.keep_alive
//!             // hit.refresh: Some(fetch): ask the site with it in the background, answer to nobody
//!             return;
//!         }
//!         Look::Absent => // page 504
//!         Look::Follow(follow) => {
//!             // poll_fn(|cx| follow.poll(cx.waker())), at most CACHE_FOLLOW_MAX; the browser is watched meanwhile
//!             waited = Some(outcome.unwrap_or(Outcome::Alone));
//!         }
//!         Look::Ask(fetch) => break fetch,
//!     }
//! };
//! fetch.write_request(&asked, &[], &mut out);          // in place of rewrite::request; body as ever
//! // 1xx are relayed as ever. Nothing came: fetch.failed(&asked, now) may have a hit that stands in, else the page.
//! match fetch.answer(&asked, &response, now) {
//!     Answer::Relay(status) =>                         // rewrite::response with ("Cache-Status", status.value())
//!     Answer::Keep(status, mut fill) =>                // the same; each run of content: fill.append(bytes)
//!         // whole (`Body::is_done`, or a clean end of one delimited by close): fill.commit(now). Else drop it.
//!     Answer::Stored(hit) =>                           // drop the answer with its body; as above
//!     Answer::Again(again) =>                          // drop the answer, send the request again with `again`
//! }
//! ```
//!
//! **Kept** are whole answers to GET, of any final status but 206 and 304. Ranges are served from them; what a site sends in
//! part is relayed. Trailers are not kept. **Set-Cookie** is relayed to the browser that asked and never stored, so that it
//! cannot reach another browser session; an answer that has it, or whose request had a Cookie, is only fresh if it says so
//! itself. A request with **Authorization** (or to a host with `-a` credentials) is answered from the cache, and its
//! answer stored, only if that says `public`, `s-maxage` or `must-revalidate`.
//!
//! **Invalidation** happens in [`Fetch::answer`] of the unsafe request, before anything of its answer leaves; an answer to a
//! request that was sent before that is not stored any more, whenever it ends.
//!
//! **Collapsing**: of plain GETs for one URL (and its Vary) one goes and the others follow. If its answer is nobody else's
//! they are let go at its head, and for two minutes nobody follows there.

mod asked;
mod budget;
mod conditional;
mod control;
mod date;
mod entry;
mod facts;
mod fetch;
mod fill;
mod flight;
mod hit;
mod key;
mod look;
mod policy;
mod range;
mod status;
mod store;
#[cfg(test)]
mod tests;
mod vary;

pub use asked::{Asked, Site};
pub use fetch::{Answer, Fetch};
pub use fill::Fill;
pub use flight::{Follow, Outcome};
pub use hit::{Hit, Reply};
pub use look::Look;
pub use status::Status;
pub use store::{Cache, Counts};

use crate::time::Time;

/// A moment, on both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Measures ages: it never goes backwards.
    pub time: Time,
    /// Seconds since 1970, for what sites and browsers call a date; asked only when an answer arrives.
    pub wall: u64,
}
