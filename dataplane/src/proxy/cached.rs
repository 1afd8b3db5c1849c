//! The cache's part in a request: it answers, has it wait for an equal one, or takes what the site says.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::time::SystemTime;

use bytes::{Buf, BufMut, Bytes};

use super::browser::{Browser, Next, is_bodyless, watch};
use super::flow::{Inlet, SLICES_MAX, TURN_BYTES};
use super::refresh;
use crate::cache::{Answer, Asked, Fetch, Fill, Follow, Hit, Look, Now, Outcome, Site};
use crate::http::{BadBody, Body, Request, Response, Scheme, Version, rewrite};
use crate::limits::{CACHE_FOLLOW_MAX, WAITING_EARLY_BYTES_MAX};
use crate::shard::pair::{Either, select};
use crate::shard::transport::Transport;
use crate::shard::{Shard, Stream, runtime, timers};

/// What a head from the cache has usually.
const HEAD_BYTES_USUAL: usize = 512;

/// A request that the site is asked, with what the cache wants to know of it.
pub(super) struct Caching<'a> {
    asked: Asked<'a>,
    /// None once the site has answered.
    fetch: RefCell<Option<Fetch>>,
}

/// Now, on both clocks.
pub(super) fn now() -> Now {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    Now {
        time: runtime::now(),
        wall: since.map_or(0, |since| since.as_secs()),
    }
}

/// A request as the cache sees it; none where it has no part in it, as with hosts of `-B`, whatever their scheme.
/// `trusted`: nothing is wrong with the site's certificate.
pub(super) fn ask<'a>(shard: &Shard, request: &Request<'a>, trusted: bool) -> Option<Asked<'a>> {
    shard.cache()?;
    let authority = request.authority?;
    if shard.rules().no_bump.contains(authority.host) {
        return None;
    }
    let scheme = request.scheme.unwrap_or(Scheme::Http);
    let port = authority.port_or(scheme.default_port());
    let site = Site {
        scheme,
        trusted,
        authorized: shard.rules().auth.contains(authority.host, port),
    };
    Asked::read(request, site)
}

/// Answers a request if the cache can, and says then how it goes on; else what is to be done with the site's answer, if
/// the cache has a part in it.
pub(super) async fn look_up<'a>(
    browser: &mut Browser,
    request: &Request<'a>,
) -> Result<Option<Box<Caching<'a>>>, Next> {
    let trusted = browser.shown.is_none_or(|shown| shown.verdict == 0);
    let mut waited = None;
    loop {
        // Each time: the rules may have changed while it waited.
        let Some(asked) = ask(&browser.shard, request, trusted) else {
            return Ok(None);
        };
        let Some(cache) = browser.shard.cache() else {
            return Ok(None);
        };
        match cache.look_up(&asked, waited, now()) {
            Look::Ask(fetch) => {
                let fetch = RefCell::new(Some(fetch));
                return Ok(Some(Box::new(Caching { asked, fetch })));
            }
            Look::Hit(hit) => return Err(send(browser, request, &asked, hit, true).await),
            Look::Absent => {
                let detail = "neither this answer nor one like it is stored";
                let whole = is_bodyless(request);
                return Err(browser.answer(request, "only-if-cached", detail, whole).await);
            }
            Look::Follow(follow) => match landed(browser, request, follow).await {
                Some(outcome) => waited = Some(outcome),
                None => return Err(Next::Abort),
            },
        }
    }
}

/// Takes the head of the final answer to a request that began while nothing was cached: what it makes untrue may have
/// been stored since.
pub(super) fn late_answer(shard: &Shard, request: &Request<'_>, response: &Response<'_>) {
    let asked = ask(shard, request, true).filter(Asked::is_unsafe);
    if let (Some(asked), Some(cache)) = (asked, shard.cache())
        && let Look::Ask(fetch) = cache.look_up(&asked, None, now())
    {
        fetch.answer(&asked, response, now());
    }
}

/// Waits for an equal request, as long as the browser does: none if it has left.
async fn landed(browser: &mut Browser, request: &Request<'_>, follow: Follow) -> Option<Outcome> {
    let may_ask = || request.version == Version::Http11;
    let landed = timers::timeout(CACHE_FOLLOW_MAX, browser.shard.landed(follow));
    let (buffers, inbox, eof) = (browser.shard.buffers(), &mut browser.inbox, &mut browser.eof);
    let watched = watch(buffers, &browser.socket, inbox, eof, WAITING_EARLY_BYTES_MAX, may_ask);
    match select(landed, watched).await {
        Either::Left(outcome) => Some(outcome.unwrap_or(Outcome::Alone)),
        Either::Right(()) => None,
    }
}

impl Caching<'_> {
    /// Appends the request as the site is to get it.
    pub fn write_request(&self, out: &mut impl BufMut) {
        match &*self.fetch.borrow() {
            Some(fetch) => fetch.write_request(&self.asked, &[], out),
            None => rewrite::request(self.asked.request(), &[], out),
        }
    }

    /// Takes the head of the final answer; none if there was one before.
    pub fn answer(&self, response: &Response<'_>) -> Option<Answer> {
        let fetch = self.fetch.take()?;
        Some(fetch.answer(&self.asked, response, now()))
    }

    /// The request is to be sent once more.
    pub fn again(&self, fetch: Fetch) {
        self.fetch.replace(Some(fetch));
    }

    /// The site cannot be reached: what may stand in for its answer.
    pub fn stand_in(&self) -> Option<Hit> {
        self.fetch.take()?.failed(&self.asked, now())
    }

    /// Answers the browser. `whole`: all of its request was read.
    pub async fn send(&self, browser: &mut Browser, hit: Hit, whole: bool) -> Next {
        send(browser, self.asked.request(), &self.asked, hit, whole).await
    }
}

/// Takes the end of an answer that nobody gets, so that the site's connection can be used again.
pub(super) async fn leave(stream: &Stream) {
    Inlet::new(stream).settle().await;
}

async fn send(browser: &mut Browser, request: &Request<'_>, asked: &Asked<'_>, mut hit: Hit, whole: bool) -> Next {
    if let Some(fetch) = hit.refresh.take() {
        refresh::start(&browser.shard, request, browser.member, fetch);
    }
    let keep_alive = whole && request.keep_alive && !browser.shard.dismisses();
    let mut head = Vec::with_capacity(HEAD_BYTES_USUAL);
    let reply = hit.write_head(asked, keep_alive, now(), &mut head);
    let pieces = std::iter::once(Bytes::from(head)).chain(hit.content(reply.content));
    if write(&browser.shard, &browser.socket, pieces).await.is_err() {
        return Next::Abort;
    }
    if !browser.inbox.is_empty() {
        // Whoever pipelines such requests never waits, and would have the shard to itself.
        runtime::yield_now().await;
    }
    match reply.keep_alive {
        true => Next::Again,
        false if whole && !request.keep_alive => Next::Done,
        false => Next::Close,
    }
}

/// Writes all pieces. What is stored is counted as held until then, whether the cache still has it or not.
async fn write(shard: &Shard, socket: &Transport, mut pieces: impl Iterator<Item = Bytes>) -> io::Result<()> {
    let mut queue = VecDeque::with_capacity(SLICES_MAX);
    let mut turn = 0;
    loop {
        queue.extend(pieces.by_ref().take(SLICES_MAX - queue.len()));
        if queue.is_empty() && !socket.has_unsent() {
            return Ok(());
        }
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        for (slice, piece) in slices.iter_mut().zip(&queue) {
            *slice = IoSlice::new(piece);
        }
        match socket.try_write(&slices[..queue.len()]) {
            Ok(written) => {
                advance(&mut queue, written);
                turn += written;
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                turn = 0;
                let writable = timers::timeout(shard.times().idle, socket.writable());
                writable.await.ok_or(io::ErrorKind::TimedOut)??;
            }
            Err(e) => return Err(e),
        }
        if turn >= TURN_BYTES {
            turn = 0;
            runtime::yield_now().await;
        }
    }
}

fn advance(queue: &mut VecDeque<Bytes>, mut written: usize) {
    while let Some(piece) = queue.front_mut() {
        let part = written.min(piece.len());
        piece.advance(part);
        written -= part;
        if !piece.is_empty() {
            return;
        }
        queue.pop_front();
    }
}

/// As [`Body::advance`], and gives the content to the cache.
pub(super) fn kept(body: &mut Body, slice: &[u8], fill: &mut Fill) -> Result<usize, BadBody> {
    let mut taken = 0;
    loop {
        let run = body.run(&slice[taken..])?;
        if run.data {
            fill.append(&slice[taken..taken + run.bytes]);
        }
        taken += run.bytes;
        if run.done || run.bytes == 0 {
            return Ok(taken);
        }
    }
}
