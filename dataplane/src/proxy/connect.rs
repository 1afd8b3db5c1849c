//! CONNECT: an opaque stream to the site.

use super::browser::{Browser, Next, PROBE_HOST, watch};
use crate::http::{CONNECTED, Request, Version};
use crate::limits::{EARLY_BYTES_MAX, MOVES_MAX};
use crate::mux::Kind;
use crate::shard::runtime::{Either, select};

/// Opens the stream at once, answers when the site is connected, and relays. What the browser sends before the answer
/// is held: it is the site's only if there is a site.
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
        if moves == 0 {
            stream.count_request();
        }
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
    Next::Relay(stream)
}
