//! A request for a URL: one stream carries it and its answer.

use std::cell::Cell;
use std::future::pending;
use std::io;
use std::pin::pin;

use bytes::BytesMut;

use super::browser::{Browser, Next, PROBE_HOST, is_bodyless, tell_cut, watch};
use super::cached::{self, Caching, kept, now};
use super::flow::{End, Inlet, NoHead, Outlet, TURN_BYTES, cut_at_end};
use super::relay::full_read;
use super::{connect, probe};
use crate::cache::{Answer, Fill, Hit};
use crate::copies;
use crate::http::{Bad, BadBody, Body, Finder, Framing, Request, Response, Scheme, Version, rewrite};
use crate::limits::{EARLY_BYTES_MAX, FRAME_HEADER_BYTES, INTERIM_ANSWERS_MAX, MOVES_MAX, OUTLET_OWN_BYTES};
use crate::mux::{Code, Kind};
use crate::shard::pair::{Either, select};
use crate::shard::transport::Transport;
use crate::shard::{Stream, Visitor, buffers, runtime, timers};

/// By how much rewriting makes a head larger, if at all; more makes the buffer grow.
const HEAD_GROWTH_BYTES_USUAL: usize = 32;

const MEMBERS_LOST: &str = "one tunnel of the pool after the other was lost";

/// How far an exchange has come.
#[derive(Default)]
struct Progress {
    /// The whole request is in the stream.
    sent: Cell<bool>,
    /// The browser is told of the body's end by the end of its connection.
    by_close: Cell<bool>,
    /// Bytes of an answer are on their way to the browser: an error can only be shown as a cut.
    begun: Cell<bool>,
}

impl Progress {
    /// What follows a whole answer after which the connection ends.
    fn last(&self, request: &Request<'_>) -> Next {
        if self.sent.get() && !request.keep_alive && !self.by_close.get() {
            Next::Done
        } else {
            Next::Close
        }
    }
}

/// Why an exchange failed.
enum Fault {
    BrowserGone,
    MemberLost,
    RequestTimeout,
    BadRequest(BadBody),
    BadAnswer(&'static str),
    Stream(Code, String),
}

impl Fault {
    fn ended(end: &End) -> Self {
        match end {
            End::Fin => Self::BadAnswer("the answer ended before it was complete"),
            End::Cut(code, text) => Self::Stream(*code, text.clone()),
        }
    }

    /// What the other side did wrong, with its text.
    fn of_site(&self) -> Option<(Code, &str)> {
        match self {
            Self::Stream(code, text) => Some((*code, text)),
            Self::MemberLost => Some((Code::TunnelDown, MEMBERS_LOST)),
            Self::BadAnswer(reason) => Some((Code::Protocol, reason)),
            _ => None,
        }
    }
}

impl From<NoHead> for Fault {
    fn from(no: NoHead) -> Self {
        match no {
            NoHead::Bad(bad) => Self::BadAnswer(bad.reason),
            NoHead::Ended(end) => Self::ended(&end),
        }
    }
}

/// What became of an answer.
enum Answered {
    /// Delivered whole; whether the browser was told that its connection stays open.
    Whole { keep_alive: bool },
    /// 101 was delivered; what the stream brought beyond it will come again.
    Upgraded,
    /// The site's answer is dropped: the browser gets this.
    Stored(Box<Hit>),
    /// The site's answer is dropped: it is asked once more, otherwise.
    Again,
}

/// Carries one exchange. None if the rules have changed while it waited, for an equal one or a link, or was sent in
/// vain: it is as unread as it was, and all that they say of it is to be asked anew. `counted`: it has been counted as a
/// request.
pub(super) async fn serve(browser: &mut Browser, request: &Request<'_>, counted: &mut bool) -> Option<Next> {
    let whole = is_bodyless(request);
    let Some(authority) = request.authority else {
        return Some(browser.refuse("bad-request", "the request names no site").await);
    };
    if browser.visitor == Visitor::Probe || authority.host.eq_ignore_ascii_case(PROBE_HOST) {
        return Some(probe::serve(browser, request).await);
    }
    let scheme = request.scheme.unwrap_or(Scheme::Http);
    let kind = match (scheme, browser.shown) {
        (Scheme::Http, _) => Kind::Http,
        (Scheme::Https, Some(_)) => Kind::Https,
        (Scheme::Https, None) => {
            let detail = "https through this proxy goes by CONNECT";
            return Some(browser.answer(request, "denied", detail, whole).await);
        }
    };
    // Those that have let it come so far.
    let rules = browser.version();
    // What comes from the cache, or from a request that it waits for, has no stream that a drain would see.
    let _held = browser.shard.hold();
    let caching = match cached::look_up(browser, request).await {
        Ok(caching) => caching,
        Err(next) => return Some(next),
    };
    let caching = caching.as_deref();
    let port = authority.port_or(scheme.default_port());
    let mut moves = if whole && request.is_idempotent() && !request.upgrade {
        0
    } else {
        MOVES_MAX
    };
    loop {
        if browser.version() != rules {
            return None;
        }
        let open = browser.open(kind, authority.host, port);
        let stream = match browser
            .open_stream(request, open, request.version == Version::Http11)
            .await
        {
            Some(_) if browser.version() != rules => return None,
            Some(Ok(stream)) => stream,
            Some(Err((code, text))) => {
                return Some(failed(browser, request, caching, Fault::Stream(code, text), whole).await);
            }
            None => return Some(Next::Abort),
        };
        if !std::mem::replace(counted, true) {
            stream.count_request();
        }
        let progress = Progress::default();
        let answered = {
            // Pinned where they are made: moved, each would be copied whole.
            let up = pin!(send_request(
                &browser.socket,
                &stream,
                request,
                caching,
                &mut browser.inbox,
                &mut browser.eof,
                &progress,
            ));
            let down = pin!(deliver(&browser.socket, &stream, request, caching, &progress));
            let forsaken = pin!(forsaken(&stream, &progress, moves < MOVES_MAX));
            match select(select(down, up), forsaken).await {
                Either::Left(Either::Left(answered)) => answered,
                Either::Left(Either::Right(fault)) => Err(fault),
                Either::Right(()) => Err(Fault::MemberLost),
            }
        };
        let fault = match answered {
            Ok(Answered::Whole { keep_alive }) if keep_alive && progress.sent.get() => return Some(Next::Again),
            Ok(Answered::Whole { .. }) => return Some(progress.last(request)),
            Ok(Answered::Upgraded) => return Some(Next::Relay(stream)),
            Ok(Answered::Stored(hit)) => {
                cached::leave(&stream).await;
                drop(stream);
                return Some(answer_with(browser, caching, *hit, progress.sent.get()).await);
            }
            Ok(Answered::Again) => {
                cached::leave(&stream).await;
                continue;
            }
            Err(fault) if progress.begun.get() => {
                if let Some((code, text)) = fault.of_site() {
                    tell_cut(&browser.shard, &request.url(Scheme::Http), code.name(), text);
                }
                return Some(Next::Abort);
            }
            Err(fault) => fault,
        };
        let orphaned = match &fault {
            Fault::MemberLost => true,
            Fault::Stream(code, _) => stream.is_orphaned(*code),
            _ => false,
        };
        drop(stream);
        if !orphaned || moves >= MOVES_MAX {
            return Some(failed(browser, request, caching, fault, progress.sent.get()).await);
        }
        moves += 1;
    }
}

/// Waits until the request is better asked of another member of the pool: its own is lost and has not answered.
async fn forsaken(stream: &Stream, progress: &Progress, may_move: bool) {
    if may_move {
        stream.forsaken().await;
    }
    if !may_move || progress.begun.get() {
        pending::<()>().await;
    }
}

/// What is stored instead of the site's answer.
async fn answer_with(browser: &mut Browser, caching: Option<&Caching<'_>>, hit: Hit, sent: bool) -> Next {
    match caching {
        Some(caching) => caching.send(browser, hit, sent).await,
        None => Next::Abort,
    }
}

/// The page for an exchange that failed before the browser saw anything, or what is stored and may stand in.
async fn failed(
    browser: &mut Browser,
    request: &Request<'_>,
    caching: Option<&Caching<'_>>,
    fault: Fault,
    sent: bool,
) -> Next {
    let unreachable = match &fault {
        Fault::MemberLost => true,
        Fault::Stream(code, _) => matches!(
            code,
            Code::Dns
                | Code::Refused
                | Code::ConnectTimeout
                | Code::Unreachable
                | Code::SiteReset
                | Code::FirstByteTimeout
                | Code::TunnelDown
                | Code::PeerRestarted
                | Code::UpstreamProxy
                | Code::Shutdown
        ),
        _ => false,
    };
    if let Some(hit) = caching.filter(|_| unreachable).and_then(Caching::stand_in) {
        return answer_with(browser, caching, hit, sent).await;
    }
    match fault {
        Fault::BrowserGone => Next::Abort,
        Fault::MemberLost => {
            browser
                .answer(request, Code::TunnelDown.name(), MEMBERS_LOST, sent)
                .await
        }
        Fault::RequestTimeout => browser.refuse("request-timeout", "the body paused for too long").await,
        Fault::BadRequest(BadBody(reason)) => browser.refuse_head(Bad { status: 400, reason }).await,
        Fault::BadAnswer(reason) => browser.answer(request, Code::Protocol.name(), reason, sent).await,
        // What the browser was shown is not true any more: it has to look again.
        Fault::Stream(code @ (Code::VerdictChanged | Code::Tls), text) => {
            connect::forget(browser, request);
            browser.answer(request, code.name(), &text, false).await
        }
        Fault::Stream(code, text) => browser.answer(request, code.name(), &text, sent).await,
    }
}

/// Browser to stream. Returns only what ends the exchange; once all is sent it watches the browser.
async fn send_request(
    socket: &Transport,
    stream: &Stream,
    request: &Request<'_>,
    caching: Option<&Caching<'_>>,
    inbox: &mut BytesMut,
    eof: &mut bool,
    progress: &Progress,
) -> Fault {
    let mut head = buffers::head_room(request.head_bytes() + HEAD_GROWTH_BYTES_USUAL);
    match caching {
        Some(caching) => caching.write_request(&mut head),
        None => rewrite::request(request, &[], &mut head),
    }
    let sent = match stream.send_frame(head).await {
        Ok(()) => send_body(socket, stream, request, inbox).await,
        Err(_) => Err(None),
    };
    match sent {
        Ok(()) => {}
        Err(Some(fault)) => return fault,
        // The peer wants no more: its answer, or its reset, says why.
        Err(None) => return pending().await,
    }
    progress.sent.set(true);
    if !request.upgrade {
        stream.finish(None);
    }
    let may_ask = || request.version == Version::Http11 && stream.has_no_place();
    watch(stream.shard().buffers(), socket, inbox, eof, EARLY_BYTES_MAX, may_ask).await;
    Fault::BrowserGone
}

/// The body as it came. What follows it goes back to the inbox: it belongs to the next request.
///
/// # Errors
/// The fault, or none if the peer stopped taking it.
async fn send_body(
    socket: &Transport,
    stream: &Stream,
    request: &Request<'_>,
    inbox: &mut BytesMut,
) -> Result<(), Option<Fault>> {
    let mut body = Body::new(request.framing);
    let came = body.advance(inbox).map_err(|bad| Some(Fault::BadRequest(bad)))?;
    if came.bytes > 0 {
        let early = inbox.split_to(came.bytes);
        stream.send(&early).await.map_err(|_| None)?;
    }
    let mut turn = 0;
    while !body.is_done() {
        let room = stream.room().await.map_err(|_| None)?;
        let limit = body.remaining().map_or(room, |left| room.min(clamp(left)));
        let mut bad = None;
        let take = |frame: BytesMut| {
            if bad.is_none() {
                bad = send_frame(stream, &mut body, frame, inbox).err();
            }
        };
        match stream.shard().buffers().read(socket, limit, take) {
            Ok(0) => return Err(Some(Fault::BrowserGone)),
            Ok(read) => {
                turn += read;
                if turn >= TURN_BYTES && read == full_read(limit) {
                    turn = 0;
                    runtime::yield_now().await;
                }
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                turn = 0;
                let pause = stream.shard().times().browser_body;
                match timers::timeout(pause, socket.readable()).await {
                    None => return Err(Some(Fault::RequestTimeout)),
                    Some(Err(_)) => return Err(Some(Fault::BrowserGone)),
                    Some(Ok(())) => {}
                }
            }
            Err(_) => return Err(Some(Fault::BrowserGone)),
        }
        if let Some(bad) = bad {
            return Err(Some(Fault::BadRequest(bad)));
        }
    }
    Ok(())
}

/// Sends what belongs to the body.
fn send_frame(stream: &Stream, body: &mut Body, mut frame: BytesMut, inbox: &mut BytesMut) -> Result<(), BadBody> {
    let end = FRAME_HEADER_BYTES + body.advance(&frame[FRAME_HEADER_BYTES..])?.bytes;
    inbox.extend_from_slice(&frame[end..]);
    frame.truncate(end);
    if end > FRAME_HEADER_BYTES {
        stream.write(frame);
    }
    Ok(())
}

/// A length that may be larger than what memory can address.
pub(super) fn clamp(length: u64) -> usize {
    usize::try_from(length).unwrap_or(usize::MAX)
}

/// Stream to browser: interim answers, then the final one.
async fn deliver(
    socket: &Transport,
    stream: &Stream,
    request: &Request<'_>,
    caching: Option<&Caching<'_>>,
    progress: &Progress,
) -> Result<Answered, Fault> {
    let mut inlet = Inlet::new(stream);
    let mut outlet = Outlet::default();
    let mut finder = Finder::response();
    for _ in 0..INTERIM_ANSWERS_MAX {
        let head = inlet.head(&mut finder).await?;
        let response =
            Response::parse(&head, request.method, request.upgrade).map_err(|bad| Fault::BadAnswer(bad.reason))?;
        if response.is_interim() && request.version == Version::Http10 {
            continue;
        }
        if response.is_upgrade() && !progress.sent.get() {
            return Err(Fault::BadAnswer("101 before the request was complete"));
        }
        let is_final = !response.is_interim() && !response.is_upgrade();
        if is_final && caching.is_none() {
            cached::late_answer(stream.shard(), request, &response);
        }
        let (status, mut fill) = match caching.filter(|_| is_final).and_then(|c| c.answer(&response)) {
            None => (None, None),
            Some(Answer::Relay(status)) => (Some(status), None),
            Some(Answer::Keep(status, fill)) => (Some(status), Some(fill)),
            Some(Answer::Stored(hit)) => return Ok(Answered::Stored(Box::new(hit))),
            Some(Answer::Again(fetch)) => {
                if let Some(caching) = caching {
                    caching.again(fetch);
                }
                return Ok(Answered::Again);
            }
        };
        let added = status.map(|status| ("Cache-Status", status.value()));
        let keep_alive = request.keep_alive && progress.sent.get() && !stream.shard().dismisses();
        let mut out = Vec::with_capacity(head.len() + HEAD_GROWTH_BYTES_USUAL);
        let delivery = rewrite::response(&response, request.version, keep_alive, added.as_slice(), &mut out);
        outlet.push_own(out);
        progress.begun.set(true);
        if response.is_interim() || response.is_upgrade() {
            outlet.flush(socket, &mut inlet).await.map_err(|_| Fault::BrowserGone)?;
        }
        if response.is_interim() {
            progress.begun.set(false);
            continue;
        }
        if response.is_upgrade() {
            inlet.let_go(0);
            return Ok(Answered::Upgraded);
        }
        if request.upgrade {
            stream.finish(None);
        }
        if delivery.dechunk || response.framing == Framing::UntilClose {
            // The connection's end is the body's: a process that dies must not bring it about.
            progress.by_close.set(true);
            cut_at_end(socket);
        }
        let body = Body::new(response.framing);
        // It may be a slice of a link's buffer, and the body may take hours.
        drop(head);
        deliver_body(socket, &mut inlet, &mut outlet, body, delivery.dechunk, &mut fill).await?;
        inlet.settle().await;
        // Bytes after the end: the other side cannot be trusted with this browser's next answer.
        let keep_alive = delivery.keep_alive && inlet.slice().is_empty();
        return Ok(Answered::Whole { keep_alive });
    }
    Err(Fault::BadAnswer("too many interim answers"))
}

async fn deliver_body(
    socket: &Transport,
    inlet: &mut Inlet<'_>,
    outlet: &mut Outlet<'_>,
    mut body: Body,
    dechunk: bool,
    fill: &mut Option<Box<Fill>>,
) -> Result<(), Fault> {
    loop {
        while !body.is_done() && !outlet.is_full() && inlet.fill_now() {
            let broken = |BadBody(reason)| Fault::BadAnswer(reason);
            if !dechunk {
                let bytes = match fill {
                    None => body.advance(inlet.slice()).map_err(broken)?.bytes,
                    Some(fill) => kept(&mut body, inlet.slice(), fill).map_err(broken)?,
                };
                outlet.push(inlet.take(bytes));
                continue;
            }
            // What is left out could not be told apart when the stream brings its bytes again, so the rest is copied.
            let run = body
                .run(&inlet.slice()[..inlet.slice().len().min(OUTLET_OWN_BYTES)])
                .map_err(broken)?;
            if run.data {
                if let Some(fill) = fill {
                    fill.append(&inlet.slice()[..run.bytes]);
                }
                copies::moved(run.bytes);
                outlet.push_own(inlet.slice()[..run.bytes].to_vec());
            }
            inlet.skip(run.bytes);
        }
        if body.is_done()
            && let Some(fill) = fill.take()
        {
            // Before a slow browser has it: others may wait for it.
            fill.commit(now());
        }
        outlet.flush(socket, inlet).await.map_err(|_| Fault::BrowserGone)?;
        if body.is_done() && !inlet.has_lost() {
            if !socket.has_unsent() {
                return Ok(());
            }
            // A cut behind all of it takes nothing away.
            let idle = inlet.stream().shard().times().idle;
            return match timers::timeout(idle, socket.flush()).await {
                Some(Ok(())) => Ok(()),
                _ => Err(Fault::BrowserGone),
            };
        }
        match inlet.end() {
            Some(End::Fin) if body.clean_end() => {
                fill.take().map(|fill| fill.commit(now()));
                return Ok(());
            }
            Some(end) => return Err(Fault::ended(end)),
            None => inlet.fill().await,
        }
    }
}
