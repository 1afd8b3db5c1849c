//! The self-test of the whole path: the endpoint answers it itself, once `sc` has echoed it on every link.

use super::browser::{Browser, Next, PROBE_HOST, is_bodyless};
use crate::http::{Request, page};
use crate::shard::Visitor;

/// The broker's self-test, and nobody else's: `/NONCE` for all links, `/MEMBER/NONCE` for those of one member, which is
/// named by 32 hex digits.
pub(super) async fn serve(browser: &mut Browser, request: &Request<'_>) -> Next {
    let whole = is_bodyless(request);
    let nonce = std::str::from_utf8(request.path).ok().and_then(|p| p.strip_prefix('/'));
    let named = request
        .authority
        .is_some_and(|a| a.host.eq_ignore_ascii_case(PROBE_HOST));
    let (true, true, Some(nonce)) = (browser.visitor == Visitor::Probe, named, nonce) else {
        let detail = "the self-test is the cloud's own";
        return browser.answer(request, "denied", detail, whole).await;
    };
    let (member, nonce) = match nonce.split_once('/') {
        Some((member, nonce)) => (u128::from_str_radix(member, 16).ok(), nonce),
        None => (None, nonce),
    };
    match browser
        .shard
        .probe(member.map(u128::to_be_bytes), nonce.as_bytes())
        .await
    {
        Err((code, text)) => browser.answer(request, code.name(), &text, whole).await,
        Ok(()) => {
            let _ = browser.socket.write_all(&page::plain(200, nonce, true)).await;
            Next::Close
        }
    }
}
