//! CONNECT: an opaque stream to the site.

use super::browser::{Browser, Next, PROBE_HOST, watch};
use crate::http::{CONNECTED, Request};
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
    let stream = match browser.shard.open(browser.open(Kind::Tcp, host, port)).await {
        Ok(stream) => stream,
        Err((code, text)) => return browser.answer(request, code.name(), &text, false).await,
    };
    browser.shard.count_request();
    let watched = watch(&browser.socket, &mut browser.inbox, &mut browser.eof);
    match select(stream.accepted(), watched).await {
        Either::Left(Ok(_)) => {}
        Either::Left(Err((code, text))) => {
            drop(stream);
            let text = String::from_utf8_lossy(&text);
            return browser.answer(request, code.name(), &text, false).await;
        }
        Either::Right(()) => return Next::Abort,
    }
    if browser.socket.write_all(CONNECTED).await.is_err() {
        return Next::Abort;
    }
    Next::Relay(stream)
}
