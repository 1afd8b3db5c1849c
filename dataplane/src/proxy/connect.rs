//! CONNECT: an opaque stream to the site, unless what the browser says in it is plain HTTP, as all of `ws://` is.

use std::future::pending;
use std::pin::pin;
use std::sync::Arc;

use super::browser::{Browser, Inside, Next, PROBE_HOST, read_into, tell_cut, watch};
use super::bump::{self, Bumped};
use super::dial::Unreached;
use super::relay::DISMISSED;
use crate::bump::{Seen, Site};
use crate::http::{CONNECTED, Request, Scheme, Version};
use crate::limits::{DRAIN_SILENCE_MAX, EARLY_BYTES_MAX, METHOD_BYTES_MAX, MOVES_MAX, SNIFF_MAX};
use crate::mux::{Code, Kind};
use crate::shard::pair::{Either, select};
use crate::shard::{Stream, Visitor, runtime, timers};

/// Opens the stream at once, and answers when the site is connected. What the browser sends before the answer is held: it
/// is the site's only if there is a site. Requests in it are served like those for whole URLs; all else is relayed.
pub(super) async fn serve(browser: &mut Browser, request: &Request<'_>) -> Next {
    // A CONNECT without host and port was no valid head.
    let Some((host, port)) = request.authority.and_then(|a| Some((a.host, a.port?))) else {
        return browser.refuse("bad-request", "CONNECT names no site").await;
    };
    if browser.visitor == Visitor::Probe || host.eq_ignore_ascii_case(PROBE_HOST) {
        return browser
            .answer(request, "denied", "the self-test is the cloud's own", false)
            .await;
    }
    browser.member = browser.shard.bump().and_then(|_| browser.shard.next_member());
    let known = bump::known(browser, host, port);
    let stream = match known {
        // The site is dialled with the first request.
        Some(_) => None,
        None => match open(browser, request, host, port, false).await {
            Ok(stream) => Some(stream),
            Err(Unopened::Gone) => return Next::Abort,
            Err(Unopened::Refused(why)) => return refused(browser, request, host, port, why).await,
        },
    };
    if browser.socket.write_all(CONNECTED).await.is_err() {
        return Next::Abort;
    }
    match first_bytes(browser, stream.as_ref()).await {
        First::Http => {
            // The site's connection, of which nothing was used, serves the first request.
            drop(stream);
            browser.member = None;
            browser.inside = Some(Inside::of(request, host, port, Scheme::Http));
            Next::Again
        }
        First::Tls => tls(browser, request, stream, known, host, port).await,
        First::Opaque => opaque(browser, request, stream, host, port).await,
        First::Gone => Next::Abort,
        First::Dismissed => {
            if let Some(stream) = stream {
                stream.reset(Code::Shutdown, DISMISSED);
            }
            Next::Abort
        }
    }
}

/// The browser has begun TLS. `stream` and `known` are as [`bump::serve`] takes them.
async fn tls(
    browser: &mut Browser,
    request: &Request<'_>,
    mut stream: Option<Stream>,
    known: Option<Arc<Seen>>,
    host: &str,
    port: u16,
) -> Next {
    let mut moves = 0;
    loop {
        match bump::serve(browser, stream.as_ref(), known.clone(), host, port).await {
            Bumped::Opaque => return opaque(browser, request, stream, host, port).await,
            Bumped::Secured => {
                browser.inside = Some(Inside::of(request, host, port, Scheme::Https));
                return Next::Again;
            }
            // TLS with the site began on that stream: the browser needs a connection of its own.
            Bumped::Anew => {
                drop(stream);
                return opaque(browser, request, None, host, port).await;
            }
            Bumped::Gone => return Next::Abort,
            Bumped::Unseen(why) => {
                moves += 1;
                let lost = stream.take();
                if moves > MOVES_MAX || lost.is_none_or(|lost| !lost.is_orphaned(why.0)) {
                    return page_inside(browser, request, host, port, why).await;
                }
            }
        }
        // Another member may look as well.
        stream = match open(browser, request, host, port, true).await {
            Ok(opened) => Some(opened),
            Err(Unopened::Gone) => return Next::Abort,
            Err(Unopened::Refused(why)) => return page_inside(browser, request, host, port, why).await,
        };
    }
}

/// There is no connection to the site. A browser that expects TLS shows none of an answer to CONNECT: where TLS would end
/// here it gets the page inside of it.
async fn refused(browser: &mut Browser, request: &Request<'_>, host: &str, port: u16, why: Unreached) -> Next {
    if port != Scheme::Https.default_port() || !bump::may_end_here(&browser.shard, host, port) {
        return browser.answer(request, why.0.name(), &why.1, false).await;
    }
    if browser.socket.write_all(CONNECTED).await.is_err() {
        return Next::Abort;
    }
    match first_bytes(browser, None).await {
        First::Tls => page_inside(browser, request, host, port, why).await,
        First::Gone | First::Dismissed => Next::Abort,
        First::Http | First::Opaque => {
            tell_cut(&browser.shard, raw(request), why.0.name(), &why.1);
            Next::Abort
        }
    }
}

/// Host and port, as the CONNECT has them.
fn raw<'a>(request: &Request<'a>) -> &'a str {
    request.authority.map_or("", |authority| authority.raw)
}

/// Inside the TLS that the browser has begun.
async fn page_inside(browser: &mut Browser, request: &Request<'_>, host: &str, port: u16, why: Unreached) -> Next {
    if !bump::serve_page(browser, host).await {
        return Next::Abort;
    }
    browser.inside = Some(Inside::of(request, host, port, Scheme::Https));
    browser.unreached = Some(Box::new(why));
    Next::Again
}

/// Nobody looks into it, unless `-F` drops it now that this is certain.
async fn opaque(browser: &mut Browser, request: &Request<'_>, stream: Option<Stream>, host: &str, port: u16) -> Next {
    let stream = match stream {
        Some(stream) => stream,
        None => match open(browser, request, host, port, true).await {
            Ok(stream) => stream,
            Err(Unopened::Gone) => return Next::Abort,
            Err(Unopened::Refused((code, text))) => {
                tell_cut(&browser.shard, raw(request), code.name(), &text);
                return Next::Abort;
            }
        },
    };
    let fast_fail = &browser.shard.rules().fast_fail;
    if let Some(rule) = fast_fail.blocks_opaque(host, port) {
        stream.reset(Code::Denied, "the rules drop it (-F)");
        tell_cut(&browser.shard, raw(request), "blocked", &format!("the rule is {rule}"));
        return Next::Abort;
    }
    stream.count_request();
    Next::Relay(stream)
}

/// Why there is no stream.
enum Unopened {
    /// The browser left.
    Gone,
    Refused(Unreached),
}

/// Opens a stream to the site, and waits until that is connected. `answered`: the CONNECT has been, so that whatever the
/// browser reads from now on comes from the site, or is TLS.
async fn open(
    browser: &mut Browser,
    request: &Request<'_>,
    host: &str,
    port: u16,
    answered: bool,
) -> Result<Stream, Unopened> {
    let asks = !answered && request.version == Version::Http11;
    let mut moves = 0;
    loop {
        let rules = browser.version();
        let open = browser.open(Kind::Tcp, host, port);
        let stream = match browser.open_stream(request, open, asks).await {
            // Others came while it waited for a link.
            Some(_) if browser.version() != rules => continue,
            Some(Ok(stream)) => stream,
            Some(Err(why)) => return Err(Unopened::Refused(why)),
            None => return Err(Unopened::Gone),
        };
        let may_ask = || asks && stream.has_no_place();
        let (buffers, inbox, eof) = (browser.shard.buffers(), &mut browser.inbox, &mut browser.eof);
        let watched = watch(buffers, &browser.socket, inbox, eof, EARLY_BYTES_MAX, may_ask);
        let accepted = select(stream.accepted(), stream.forsaken());
        match select(accepted, watched).await {
            Either::Left(Either::Left(Ok(_))) => return Ok(stream),
            Either::Left(Either::Left(Err((code, text)))) if moves == MOVES_MAX || !stream.is_orphaned(code) => {
                return Err(Unopened::Refused((code, String::from_utf8_lossy(&text).into_owned())));
            }
            // Nothing of the browser's has been sent: another member may connect as well.
            Either::Left(_) => moves += 1,
            Either::Right(()) => return Err(Unopened::Gone),
        }
    }
}

/// Forgets what the browser's member of the pool has seen of the site's certificate.
pub(super) fn forget(browser: &Browser, request: &Request<'_>) {
    let (bump, member) = (browser.shard.bump(), browser.member);
    if let (Some(bump), Some(authority), Some(member)) = (bump, request.authority, member) {
        let port = authority.port_or(Scheme::Https.default_port());
        bump.reports.forget(Site {
            host: authority.host,
            port,
            member,
        });
    }
}

/// What a connection turns out to be.
enum First {
    Http,
    /// The beginning of a ClientHello.
    Tls,
    /// Nothing that is understood here, or the site speaks first.
    Opaque,
    /// The browser broke off.
    Gone,
    /// A drain has waited long enough for somebody to say something.
    Dismissed,
}

/// Waits until the site says something; without a stream there is none.
pub(super) async fn speaks(stream: Option<&Stream>) {
    match stream {
        Some(stream) => stream.input().await,
        None => pending().await,
    }
}

/// Waits until somebody says something; without a stream, the browser.
async fn first_bytes(browser: &mut Browser, stream: Option<&Stream>) -> First {
    let Browser {
        shard,
        socket,
        inbox,
        eof,
        seat,
        ..
    } = browser;
    let dismissed = async {
        match (stream, seat.as_ref()) {
            (Some(stream), _) => {
                stream.draining().await;
                runtime::sleep(DRAIN_SILENCE_MAX).await;
            }
            (None, Some(seat)) => {
                select(seat.is_dismissed(|| false), runtime::sleep(shard.times().browser_idle)).await;
            }
            (None, None) => runtime::sleep(DRAIN_SILENCE_MAX).await,
        }
    };
    let mut site = pin!(select(speaks(stream), dismissed));
    loop {
        match sniffed(inbox) {
            Sniffed::Http => return First::Http,
            Sniffed::Tls => return First::Tls,
            Sniffed::Other => return First::Opaque,
            Sniffed::Unknown if *eof => return First::Opaque,
            Sniffed::Unknown => {}
        }
        let begun = !inbox.is_empty();
        let read = select(read_into(shard.buffers(), socket, inbox), site.as_mut());
        let read = match begun {
            // It may wait for an answer to the few bytes that are held here.
            true => timers::timeout(SNIFF_MAX, read).await,
            false => Some(read.await),
        };
        match read {
            None => return First::Opaque,
            Some(Either::Left(Ok(0))) => *eof = true,
            Some(Either::Left(Ok(_))) => {}
            Some(Either::Left(Err(_))) => return First::Gone,
            Some(Either::Right(Either::Left(()))) => return First::Opaque,
            Some(Either::Right(Either::Right(()))) => return First::Dismissed,
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Sniffed {
    Http,
    Tls,
    Other,
    /// It takes more bytes to tell.
    Unknown,
}

/// Whether bytes begin like a request of HTTP/1.x: a method as all that exist are written, and a target of a form that is
/// sent to a site. A preface of HTTP/2 is none.
fn sniffed(bytes: &[u8]) -> Sniffed {
    let is_method = |b: &u8| b.is_ascii_uppercase() || *b == b'-';
    let Some(end) = bytes.iter().position(|b| !is_method(b)) else {
        return match bytes.len() > METHOD_BYTES_MAX {
            true => Sniffed::Other,
            false => Sniffed::Unknown,
        };
    };
    match (&bytes[..end], &bytes[end..]) {
        // A record with a handshake message (RFC 8446 section 5.1).
        (b"", [0x16, ..]) => Sniffed::Tls,
        (b"" | b"PRI", _) => Sniffed::Other,
        (_, [b' ']) => Sniffed::Unknown,
        (_, [b' ', b'/' | b'*' | b'h', ..]) => Sniffed::Http,
        _ => Sniffed::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_told_from_everything_else() {
        for (bytes, sniffed_as) in [
            (&b"GET / HTTP/1.1\r\n"[..], Sniffed::Http),
            (b"OPTIONS * HTTP/1.1\r\n", Sniffed::Http),
            (b"M-SEARCH /x", Sniffed::Http),
            (b"GET http://a.test/", Sniffed::Http),
            (b"", Sniffed::Unknown),
            (b"GE", Sniffed::Unknown),
            (b"GET ", Sniffed::Unknown),
            (b"\x16", Sniffed::Tls),
            (b"\x15\x03\x01", Sniffed::Other),
            (b"PRI * HTTP/2.0\r\n", Sniffed::Other),
            (b"SSH-2.0-x", Sniffed::Other),
            (b"NICK ada\r\n", Sniffed::Other),
            (b"OPTIONS rtsp://a", Sniffed::Other),
            (b"get / HTTP/1.1", Sniffed::Other),
            (b" GET /", Sniffed::Other),
            (b"GET\t/", Sniffed::Other),
            (&[b'A'; METHOD_BYTES_MAX + 1], Sniffed::Other),
        ] {
            assert_eq!(sniffed(bytes), sniffed_as, "{}", String::from_utf8_lossy(bytes));
        }
    }
}
