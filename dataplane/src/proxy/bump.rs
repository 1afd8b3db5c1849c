//! A browser's TLS ends here: it is shown a leaf that is as good or as bad as the site's own certificate.

use std::io;
use std::sync::Arc;

use rustls::AlertDescription;
use rustls_pki_types::UnixTime;

use super::browser::{Browser, read_into, watch};
use super::connect::speaks;
use super::dial::Unreached;
use crate::bump::{Bump, Hello, HelloReader, NoHello, Seen, Site, Tls};
use crate::mux::Code;
use crate::rules::Route;
use crate::shard::pair::{Either, select};
use crate::shard::transport::tls_error;
use crate::shard::{Level, Shard, Stream, runtime, timers};

/// What becomes of a connection that begins with TLS.
pub(super) enum Bumped {
    /// It is for the site alone.
    Opaque,
    /// As `Opaque`, but not over this stream.
    Anew,
    /// Requests come out of it.
    Secured,
    /// The browser left, or would not have our leaf.
    Gone,
    /// The stream ended before `sc` said anything of the site.
    Unseen(Unreached),
}

/// Whether TLS for this site ends here, as far as is known before anybody has spoken. What goes past the tunnel is left
/// alone.
pub(super) fn may_end_here(shard: &Shard, host: &str, port: u16) -> bool {
    let Some(bump) = shard.bump() else { return false };
    is_allowed(shard, host) && !bump.reports.is_opaque(host, port, runtime::now())
}

/// Whether the rules in force let TLS of this site end here.
pub(super) fn is_allowed(shard: &Shard, host: &str) -> bool {
    let rules = shard.rules();
    !rules.no_bump.contains(host) && rules.routes.of(host) == Route::Tunnel
}

/// How the browser's member of the pool saw the site a moment ago, if its TLS may end here: then the browser can be shown
/// a leaf at once.
pub(super) fn known(browser: &Browser, host: &str, port: u16) -> Option<Arc<Seen>> {
    let (shard, member) = (&browser.shard, browser.member?);
    let site = Site { host, port, member };
    let seen = shard.bump()?.reports.fresh(site, runtime::now())?;
    may_end_here(shard, host, port).then_some(seen)
}

/// Decides, and shakes hands with the browser where that is right. What it has sent is in the inbox. `stream`: to the
/// connected site, if it is not known how that is `seen`.
pub(super) async fn serve(
    browser: &mut Browser,
    stream: Option<&Stream>,
    seen: Option<Arc<Seen>>,
    host: &str,
    port: u16,
) -> Bumped {
    let Some(bump) = browser.shard.bump().cloned() else {
        return Bumped::Opaque;
    };
    if stream.is_some_and(Stream::is_direct) || !may_end_here(&browser.shard, host, port) {
        return Bumped::Opaque;
    }
    let hello = match select(hello(browser), speaks(stream)).await {
        Either::Left(Some(hello)) => hello,
        // No TLS after all, or the site speaks first.
        Either::Left(None) | Either::Right(()) => return Bumped::Opaque,
    };
    // Another name than the CONNECT's, or only protocols or signatures that are not spoken here: that is between the two.
    if !hello.fits(host) {
        return Bumped::Opaque;
    }
    let seen = match (seen, stream) {
        (Some(seen), _) => seen,
        (None, Some(stream)) => match look(browser, &bump, stream, host, port).await {
            Ok(seen) => seen,
            Err(unseen) => return unseen,
        },
        (None, None) => return Bumped::Opaque,
    };
    if seen.spoke_first() {
        return Bumped::Opaque;
    }
    if seen.verdict.is_opaque() {
        bump.reports.learn_opaque(host, port, runtime::now());
        let text = format!("{host}:{port}: TLS with it is left to browsers for a while; the log of sc says why");
        browser.shard.log(Level::Info, text);
        return Bumped::Anew;
    }
    let config = match bump.leaves.config(host, &seen, UnixTime::now()) {
        Ok(config) => config,
        Err(error) => {
            let text = format!("making a leaf for {host}: {error}");
            browser.shard.log(Level::Error, text);
            return Bumped::Anew;
        }
    };
    match secure(browser, config).await {
        Some(Ok(())) => {
            browser.shown = Some(seen.shown());
            Bumped::Secured
        }
        Some(Err(error)) => {
            if refuses_leaf(&error) && seen.verdict.is_good() {
                pinned(&browser.shard, &bump, host, port);
            }
            Bumped::Gone
        }
        None => Bumped::Gone,
    }
}

/// Shakes hands under a good leaf, for a page of our own. False if that came to nothing.
pub(super) async fn serve_page(browser: &mut Browser, host: &str) -> bool {
    let Some(bump) = browser.shard.bump().cloned() else {
        return false;
    };
    let fits = hello(browser).await.is_some_and(|hello| hello.fits(host));
    let Some(Ok(config)) = fits.then(|| bump.leaves.plain(host, UnixTime::now())) else {
        return false;
    };
    matches!(secure(browser, config).await, Some(Ok(())))
}

/// None if it took too long.
async fn secure(browser: &mut Browser, config: Arc<rustls::ServerConfig>) -> Option<io::Result<()>> {
    let mut tls = match Tls::server(config) {
        Ok(tls) => tls,
        Err(error) => return Some(Err(io::Error::other(error))),
    };
    *tls.input() = std::mem::take(&mut browser.inbox);
    let time = browser.shard.times().browser_head;
    timers::timeout(time, browser.socket.secure(tls)).await
}

/// Has `sc` look at the site.
///
/// # Errors
/// What becomes of the connection instead: [`Bumped::Gone`] or [`Bumped::Unseen`].
async fn look(browser: &mut Browser, bump: &Bump, stream: &Stream, host: &str, port: u16) -> Result<Arc<Seen>, Bumped> {
    stream.start_tls(host);
    let (buffers, inbox, eof) = (browser.shard.buffers(), &mut browser.inbox, &mut browser.eof);
    let left = watch(buffers, &browser.socket, inbox, eof, 0, || false);
    let reported = select(stream.tls_reported(), stream.forsaken());
    let report = match select(reported, left).await {
        Either::Left(Either::Left(Ok(report))) => report,
        Either::Left(Either::Left(Err((code, text)))) => {
            if code == Code::SiteReset && bump.reports.broke_off(host, port, runtime::now()) {
                let text = format!("{host}:{port}: it ends TLS with sc each time: left to browsers for a while");
                browser.shard.log(Level::Info, text);
                return Err(Bumped::Anew);
            }
            return Err(Bumped::Unseen((code, String::from_utf8_lossy(&text).into_owned())));
        }
        Either::Left(Either::Right(())) => {
            let text = "its tunnel was lost while it looked at the site";
            return Err(Bumped::Unseen((Code::TunnelDown, text.to_owned())));
        }
        Either::Right(()) => return Err(Bumped::Gone),
    };
    let seen = match Seen::from_report(&report) {
        Ok(seen) => Arc::new(seen),
        Err(text) => {
            let text = format!("what was reported of {host}: {text}");
            browser.shard.log(Level::Warn, text.clone());
            return Err(Bumped::Unseen((Code::Protocol, text)));
        }
    };
    // Its own may have been lost meanwhile.
    browser.member = stream.member();
    if let (false, Some(member)) = (seen.verdict.is_opaque(), browser.member) {
        let site = Site { host, port, member };
        bump.reports.insert(site, seen.clone(), runtime::now());
    }
    Ok(seen)
}

/// The whole ClientHello; none if there is none.
async fn hello(browser: &mut Browser) -> Option<Hello> {
    let deadline = runtime::now() + browser.shard.times().browser_head;
    let mut reader = HelloReader::default();
    loop {
        match reader.read(&browser.inbox) {
            Ok(Some(hello)) => return Some(hello),
            Err(NoHello) => return None,
            Ok(None) => {}
        }
        let left = deadline.since(runtime::now());
        let read = read_into(browser.shard.buffers(), &browser.socket, &mut browser.inbox);
        match timers::timeout(left, read).await {
            Some(Ok(0)) => {
                browser.eof = true;
                return None;
            }
            Some(Ok(_)) => {}
            None | Some(Err(_)) => return None,
        }
    }
}

/// It has something against this very leaf.
fn refuses_leaf(error: &io::Error) -> bool {
    matches!(
        tls_error(error),
        Some(rustls::Error::AlertReceived(
            AlertDescription::BadCertificate
                | AlertDescription::CertificateUnknown
                | AlertDescription::UnknownCA
                | AlertDescription::UnsupportedCertificate
        ))
    )
}

fn pinned(shard: &Shard, bump: &Bump, host: &str, port: u16) {
    let rules = shard.rules();
    // What an operator wants done to decrypted requests is not given up for an app.
    let exempt = rules.auth.contains(host, port) || !rules.fast_fail.is_empty();
    if bump.reports.refused(host, port, exempt, runtime::now()) {
        let text = format!("{host}:{port}: its clients refuse the tunnel's certificate: left alone for a while");
        shard.log(Level::Info, text);
    }
}
