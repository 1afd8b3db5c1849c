//! CONNECT: an opaque stream to the site, unless what the browser says in it is plain HTTP, as all of `ws://` is.

use std::pin::pin;

use super::browser::{Browser, Inside, Next, PROBE_HOST, read_into, watch};
use super::relay::DISMISSED;
use crate::http::{CONNECTED, Request, Scheme, Version};
use crate::limits::{DRAIN_SILENCE_MAX, EARLY_BYTES_MAX, METHOD_BYTES_MAX, MOVES_MAX, SNIFF_MAX};
use crate::mux::{Code, Kind};
use crate::shard::Stream;
use crate::shard::runtime::{self, Either, select};

/// Opens the stream at once, and answers when the site is connected. What the browser sends before the answer is held: it
/// is the site's only if there is a site. Requests in it are served like those for whole URLs; all else is relayed.
pub(super) async fn serve(browser: &mut Browser, request: &Request<'_>) -> Next {
    // A CONNECT without host and port was no valid head.
    let Some((host, port)) = request.authority.and_then(|a| Some((a.host, a.port?))) else {
        return browser.refuse("bad-request", "CONNECT names no site").await;
    };
    if browser.is_probe || host.eq_ignore_ascii_case(PROBE_HOST) {
        return browser
            .answer(request, "denied", "the self-test is the cloud's own", false)
            .await;
    }
    let mut moves = 0;
    let stream = loop {
        let open = browser.open(Kind::Tcp, host, port);
        let stream = match browser.open_stream(request, open).await {
            Some(Ok(stream)) => stream,
            Some(Err((code, text))) => return browser.answer(request, code.name(), &text, false).await,
            None => return Next::Abort,
        };
        let may_ask = || request.version == Version::Http11 && stream.has_no_place();
        let (inbox, eof) = (&mut browser.inbox, &mut browser.eof);
        let watched = watch(&browser.socket, inbox, eof, EARLY_BYTES_MAX, may_ask);
        let accepted = select(stream.accepted(), stream.forsaken());
        match select(accepted, watched).await {
            Either::Left(Either::Left(Ok(_))) => break stream,
            Either::Left(Either::Left(Err((code, text)))) if moves == MOVES_MAX || !stream.is_orphaned(code) => {
                drop(stream);
                let text = String::from_utf8_lossy(&text);
                return browser.answer(request, code.name(), &text, false).await;
            }
            // Nothing of the browser's has been sent: another member may connect as well.
            Either::Left(_) => moves += 1,
            Either::Right(()) => return Next::Abort,
        }
    };
    if browser.socket.write_all(CONNECTED).await.is_err() {
        return Next::Abort;
    }
    match first_bytes(browser, &stream).await {
        First::Http => {
            // The site's connection, of which nothing was used, serves the first request.
            drop(stream);
            browser.inside = Some(Inside {
                scheme: Scheme::Http,
                host: host.into(),
                port,
                raw: request.authority.map_or("", |a| a.raw).into(),
            });
            Next::Again
        }
        First::Opaque => {
            stream.count_request();
            Next::Relay(stream)
        }
        First::Gone => Next::Abort,
        First::Dismissed => {
            stream.reset(Code::Shutdown, DISMISSED);
            Next::Abort
        }
    }
}

/// What a connection turns out to be.
enum First {
    Http,
    /// Nothing that is understood here, or the site speaks first.
    Opaque,
    /// The browser broke off.
    Gone,
    /// A drain has waited long enough for somebody to say something.
    Dismissed,
}

/// Waits until somebody says something.
async fn first_bytes(browser: &mut Browser, stream: &Stream) -> First {
    let dismissed = async {
        stream.draining().await;
        runtime::sleep(DRAIN_SILENCE_MAX).await;
    };
    let mut site = pin!(select(stream.input(), dismissed));
    loop {
        match sniffed(&browser.inbox) {
            Sniffed::Http => return First::Http,
            Sniffed::Other => return First::Opaque,
            Sniffed::Unknown if browser.eof => return First::Opaque,
            Sniffed::Unknown => {}
        }
        let begun = !browser.inbox.is_empty();
        let read = select(read_into(&browser.socket, &mut browser.inbox), site.as_mut());
        let read = match begun {
            // It may wait for an answer to the few bytes that are held here.
            true => runtime::timeout(SNIFF_MAX, read).await,
            false => Some(read.await),
        };
        match read {
            None => return First::Opaque,
            Some(Either::Left(Ok(0))) => browser.eof = true,
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
            (b"\x16\x03\x01", Sniffed::Other),
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
