//! A stream becomes a connection to a site: at `sc` what the endpoint opened, at an endpoint what goes past the tunnel.

use std::borrow::Cow;
use std::pin::pin;

use bytes::Bytes;

use super::answer::Answer;
use super::dial::{Dialled, Site, Sites, Unreached, micros};
use super::exchange::{self, Fault, Progress, was_asked_anew};
use super::flow::{Activity, End, Inlet, NoHead, cut_at_end};
use super::handshake::shake;
use super::origin::{Attempt, Key};
use super::relay::{self, BROKEN_OFF, DISMISSED, dismissed, relay};
use crate::bump::{CLIENT_CERTIFICATE, Seen, Verdict};
use crate::http::{Finder, Form, Framing, Request, Scheme, rewrite};
use crate::mux::{Code, Kind, Shown, Timings};
use crate::rules::Route;
use crate::shard::pair::{Either, select};
use crate::shard::{Level, Shard, Stream, runtime, timers};

/// What a browser was shown where nothing is said of it.
const GOOD: Shown = Shown {
    verdict: 0,
    leaf: [0; 32],
};

const UNWANTED: &str = "the tunnel's own rules drop this URL (-F)";

/// Serves one stream to its end.
pub async fn serve(shard: Shard, stream: Stream) {
    let Ok(host) = std::str::from_utf8(&stream.open().host).map(str::to_ascii_lowercase) else {
        return stream.reset(Code::Dns, "the name is not text");
    };
    let sites = match Sites::here(&shard) {
        Ok(sites) => sites,
        Err(e) => {
            shard.log(Level::Error, format!("starting name look-ups: {e}"));
            return stream.reset(Code::Limit, "the tunnel host has no descriptors or threads left");
        }
    };
    let routed = shard.rules().routes.of(&host);
    if !stream.is_direct() && routed == Route::Direct {
        return stream.reset(Code::Denied, "the tunnel's own rules keep this host out of it (-D, -t)");
    }
    if stream.open().kind == Kind::Https && shard.rules().no_bump.contains(&host) {
        return stream.reset(Code::Denied, "the tunnel's own rules leave this host's TLS alone (-B)");
    }
    let call = Call {
        shard: &shard,
        sites: &sites,
        stream: &stream,
        host: &host,
        port: stream.open().port,
    };
    match stream.open().kind {
        Kind::Tcp => call.tcp().await,
        Kind::Http => call.http(Scheme::Http).await,
        Kind::Https => call.http(Scheme::Https).await,
        Kind::Relay | Kind::Probe => stream.reset(Code::Protocol, "nothing that a site could serve"),
    }
}

/// One stream and where it goes.
struct Call<'a> {
    shard: &'a Shard,
    sites: &'a Sites,
    stream: &'a Stream,
    host: &'a str,
    port: u16,
}

impl Call<'_> {
    async fn tcp(&self) {
        let mut inlet = Inlet::new(self.stream);
        let Some(dialled) = self.dial().await else { return };
        self.stream.opened(dialled.opened());
        let site = dialled.site;
        let activity = Activity::new();
        if self
            .shard
            .rules()
            .fast_fail
            .blocks_opaque(self.host, self.port)
            .is_some()
        {
            // Only what stays opaque is: where the endpoint ends TLS, or finds HTTP, each request is asked about.
            let asked = select(self.stream.tls_asked(), inlet.fill());
            return match select(asked, self.silence(&site, &activity)).await {
                Either::Left(Either::Left(sni)) if self.may_shake(&site, &sni, &activity) => {
                    self.tls(site, inlet).await
                }
                Either::Left(Either::Right(())) if matches!(inlet.end(), Some(End::Cut(..))) => {
                    self.keep_unused(site, &inlet, &activity)
                }
                Either::Left(_) => self.reset(Code::Denied, UNWANTED),
                Either::Right((code, text)) => self.reset(code, text),
            };
        }
        let shakes = {
            let mut relayed = pin!(self.relay(&site, &mut inlet, &activity));
            match select(relayed.as_mut(), self.stream.tls_asked()).await {
                Either::Left(()) => false,
                Either::Right(sni) => {
                    let shakes = self.may_shake(&site, &sni, &activity);
                    if !shakes {
                        // The same one: its own direction may have ended already.
                        relayed.await;
                    }
                    shakes
                }
            }
        };
        if shakes {
            return self.tls(site, inlet).await;
        }
        self.keep_unused(site, &inlet, &activity);
    }

    /// Where the endpoint has found HTTP in a stream, what was dialled serves the first request. Not where a browser is to
    /// speak TLS itself: some sites serve one connection at a time, and that is its own.
    fn keep_unused(&self, site: Site, inlet: &Inlet<'_>, activity: &Activity) {
        let is_http = !activity.any() && !self.asks_late();
        if is_http && matches!(inlet.end(), Some(End::Cut(Code::Cancelled, _))) {
            relay::undo(&site.socket);
            self.keep(Key::new(self.host.as_bytes(), self.port), site);
        } else if activity.any() && self.site_credentials().is_some() {
            self.shown_nothing("the connection stayed opaque");
        }
    }

    /// Whether TLS can be spoken where the endpoint asks for it. A site that has spoken first does not.
    fn may_shake(&self, site: &Site, sni: &[u8], activity: &Activity) -> bool {
        let verdict = if activity.any() || !site.socket.is_quiet(true) {
            Verdict::SPOKE_FIRST
        } else if !sni.eq_ignore_ascii_case(self.host.as_bytes())
            || self.shard.rules().no_bump.contains(self.host)
            || self.asks_late()
        {
            Verdict::OPAQUE
        } else {
            return true;
        };
        self.stream.tls_report(Seen::opaque(verdict).to_report());
        false
    }

    /// Shakes hands for the endpoint, and keeps the connection for the browser's first request, which comes on a stream
    /// of its own.
    async fn tls(&self, mut site: Site, mut inlet: Inlet<'_>) {
        relay::undo(&site.socket);
        let seen = match select(
            shake(self.shard, &mut site, self.host, self.port),
            self.stream.stopped(),
        )
        .await
        {
            Either::Left(Ok(seen)) => {
                let key = Key::secure(self.host.as_bytes(), self.port, &seen.shown());
                self.keep(key, site);
                seen
            }
            Either::Left(Err((Code::Tls, text))) => {
                self.shard.log(Level::Info, format!("{}: {text}", Code::Tls.name()));
                Seen::opaque(Verdict::OPAQUE)
            }
            Either::Left(Err(broken)) => return self.unreached(broken),
            Either::Right(_) => return,
        };
        self.stream.tls_report(seen.to_report());
        // It carries nothing more.
        inlet.fill().await;
    }

    /// Keeps a connection that owes nothing for the next request.
    fn keep(&self, key: Key, site: Site) {
        // Asked now, so that the pool knows when it gives the connection out.
        if may_serve(&site, false) {
            self.sites.pool.borrow_mut().put(runtime::now(), key, site);
            self.sites.filled.raise();
        }
    }

    /// Dials; `None` if it failed or nobody waits for it any more.
    async fn dial(&self) -> Option<Dialled> {
        let dialled = self.sites.dial(self.shard, self.host, self.port);
        self.reached(select(dialled, self.stream.stopped()).await)
    }

    /// What an attempt has come to; the stream is told if it failed or nobody waits for it any more.
    fn reached<T>(&self, attempt: Either<Result<T, Unreached>, Code>) -> Option<T> {
        match attempt {
            Either::Left(Ok(reached)) => return Some(reached),
            Either::Left(Err(unreached)) => self.unreached(unreached),
            Either::Right(_) => self.stream.reset(Code::Cancelled, ""),
        }
        None
    }

    fn unreached(&self, (code, text): Unreached) {
        self.log(code, &text);
        self.stream.reset(code, &text);
    }

    fn reset(&self, code: Code, text: &str) {
        if code != Code::Cancelled {
            self.log(code, &format!("{}:{}: {text}", self.host, self.port));
        }
        self.stream.reset(code, text);
    }

    fn log(&self, code: Code, text: &str) {
        // Past the tunnel the endpoint says itself what it tells browsers.
        if !self.stream.is_direct() {
            self.shard.log(Level::Info, format!("{}: {text}", code.name()));
        }
    }

    async fn http(&self, scheme: Scheme) {
        let mut inlet = Inlet::new(self.stream);
        let mut finder = Finder::forwarded();
        let idle = self.shard.times().idle;
        let head = match timers::timeout(idle, inlet.head(&mut finder)).await {
            // It may be a slice of a link's buffer, and the exchange may take hours.
            Some(Ok(head)) => Box::<[u8]>::from(&*head),
            Some(Err(NoHead::Bad(bad))) => return self.reset(Code::Protocol, bad.reason),
            Some(Err(NoHead::Ended(_))) => return self.stream.reset(Code::Cancelled, ""),
            None => return self.reset(Code::IdleTimeout, "the request did not arrive"),
        };
        let mut request = match Request::parse(&head) {
            Ok(request) => request,
            Err(bad) => return self.reset(Code::Protocol, bad.reason),
        };
        let port = scheme.default_port();
        let names_site = request.authority.is_some_and(|a| a.matches(self.host, self.port, port));
        if !names_site || !matches!(request.form, Form::Origin | Form::Asterisk) {
            return self.reset(Code::Protocol, "the request names another site than its stream");
        }
        request.scheme = Some(scheme);
        // The endpoint has asked under its rules, which may be older, or not its own any more.
        if self.shard.rules().fast_fail.blocks_request(&request).is_some() {
            return self.reset(Code::Denied, UNWANTED);
        }
        let sent = match self.credentials(&request) {
            None => Cow::Borrowed(&*head),
            Some(line) => Cow::Owned(rewrite::with_line(&head, line)),
        };
        let upgraded = self.exchange(&mut inlet, &request, &sent).await;
        drop(sent);
        drop(head);
        if let Some(site) = upgraded {
            self.relay(&site, &mut inlet, &Activity::new()).await;
        }
    }

    /// The field line that `-a` adds to a request that has none of its own. The answer to TRACE would show it to whoever
    /// asks (RFC 9110 section 9.3.8); and a site that does not prove who it is may be somebody else.
    fn credentials(&self, request: &Request<'_>) -> Option<&[u8]> {
        let line = self.site_credentials()?;
        if request.method == "TRACE" || request.fields().any(|field| field.is("Authorization")) {
            return None;
        }
        let verdict = Verdict(self.stream.open().shown.unwrap_or(GOOD).verdict);
        if request.scheme == Some(Scheme::Https) && !verdict.is_good() {
            let why = format!("its certificate is {verdict} (--cacert-file, --insecure-domains)");
            self.shown_nothing(&why);
            return None;
        }
        Some(line)
    }

    fn site_credentials(&self) -> Option<&[u8]> {
        self.shard.credentials()?.of(self.host, self.port)
    }

    /// Tells why a site that `-a` names was not shown what it is for.
    fn shown_nothing(&self, why: &str) {
        let text = format!(
            "{}:{}: no credentials of --auth were added: {why}",
            self.host, self.port
        );
        self.shard.log(Level::Info, text);
    }

    /// Sends the request on a kept connection or a new one; a second time only where that does no harm. Returns the
    /// connection if it is opaque from here on.
    async fn exchange(&self, inlet: &mut Inlet<'_>, request: &Request<'_>, head: &[u8]) -> Option<Site> {
        let begun = runtime::now();
        let shown = (request.scheme == Some(Scheme::Https)).then(|| self.stream.open().shown.unwrap_or(GOOD));
        let key = match &shown {
            None => Key::new(self.host.as_bytes(), self.port),
            Some(shown) => Key::secure(self.host.as_bytes(), self.port, shown),
        };
        let repeatable = request.is_idempotent() && matches!(request.framing, Framing::None | Framing::Length(0));
        let take = || {
            self.sites.pool.borrow_mut().take(begun, &key, repeatable, |site| {
                // The ring tells nothing of what came since it was last entered, and a POST has one try.
                may_serve(site, !repeatable)
            })
        };
        let mut kept = take();
        if kept.is_none() {
            // The stream before it may be about to give its connection back: a CONNECT in which the endpoint found HTTP.
            runtime::yield_now().await;
            kept = take();
        }
        loop {
            let pooled = kept.is_some();
            let (site, timings) = match kept.take() {
                Some(site) => (site, Timings::default()),
                None => match self.dial().await {
                    Some(dialled) => {
                        let timings = dialled.timings();
                        let (mut site, shown) = (dialled.site, shown.as_ref());
                        match shown {
                            None => (site, timings),
                            Some(shown) => {
                                let tls_us = self.as_shown(&mut site, shown).await?;
                                (site, Timings { tls_us, ..timings })
                            }
                        }
                    }
                    None => return None,
                },
            };
            let progress = Progress::default();
            let mut answer = Answer::new(request.method, request.upgrade);
            let ran = exchange::run(&site, self.stream, inlet, request, head, &mut answer, &progress).await;
            let attempt = Attempt {
                pooled,
                answered: progress.first_byte.get().is_some(),
                repeatable,
            };
            match ran {
                Err(Fault::Silent) if attempt.may_repeat() => {}
                Err(fault) => {
                    let late = was_asked_anew(&site.socket) && may_want_certificate(&fault, attempt.answered);
                    let fault = if late { self.learn_late() } else { fault };
                    let (code, text) = fault.reset();
                    cut_at_end(&site.socket);
                    self.reset(code, text);
                    return None;
                }
                Ok(()) if answer.is_upgraded() => return Some(site),
                Ok(()) => {
                    let first_byte = progress.first_byte.get().unwrap_or(begun).since(begun);
                    self.stream.finish(Some(Timings {
                        first_byte_us: micros(first_byte),
                        ..timings
                    }));
                    let reusable = answer.keep_alive() && !progress.surplus.get();
                    self.conclude(inlet, site, key, progress.sent.get(), reusable).await;
                    return None;
                }
            }
        }
    }

    /// The site wants a client certificate once it has a request: the next START_TLS is told so, and its browser speaks TLS
    /// with the site itself.
    fn learn_late(&self) -> Fault {
        if let Some(judge) = self.shard.judge() {
            judge.learn_late(self.host, self.port, runtime::now());
        }
        let text = format!(
            "{}:{}: {CLIENT_CERTIFICATE} once it has a request",
            self.host, self.port
        );
        self.shard.log(Level::Info, text);
        Fault::Denied
    }

    fn asks_late(&self) -> bool {
        let judge = self.shard.judge();
        judge.is_some_and(|judge| judge.asks_late(self.host, self.port, runtime::now()))
    }

    /// Shakes hands, and makes sure that the site is what the browser was shown: nothing is sent to another one. Returns the
    /// µs that it took; `None` if it came to nothing.
    async fn as_shown(&self, site: &mut Site, shown: &Shown) -> Option<u32> {
        let shaken = shake(self.shard, site, self.host, self.port);
        let seen = self.reached(select(shaken, self.stream.stopped()).await)?;
        if seen.is_as(shown) {
            return Some(seen.tls_us);
        }
        let text = format!(
            "the site's certificate is {} now, the browser was shown one that is {}",
            seen.verdict,
            Verdict(shown.verdict)
        );
        self.reset(Code::VerdictChanged, &text);
        None
    }

    /// After a whole answer: keeps the connection if all of the request went over it, else stops the endpoint.
    async fn conclude(&self, inlet: &mut Inlet<'_>, site: Site, key: Key, sent: bool, reusable: bool) {
        if !sent {
            let text = "answered before the request was complete";
            return self.stream.reset(Code::Cancelled, text);
        }
        if reusable {
            self.keep(key, site);
        }
        if inlet.end().is_none() {
            inlet.settle().await;
        }
    }

    /// Relays to the end.
    async fn relay(&self, site: &Site, inlet: &mut Inlet<'_>, activity: &Activity) {
        let relayed = relay(
            &site.socket,
            self.stream,
            Bytes::new(),
            inlet,
            Code::SiteReset,
            activity,
        );
        match select(relayed, self.silence(site, activity)).await {
            Either::Left(true) => self.log(Code::SiteReset, &format!("{}:{}: {BROKEN_OFF}", self.host, self.port)),
            Either::Left(false) => {}
            Either::Right((code, text)) => self.reset(code, text),
        }
    }

    /// Waits until nothing has moved for too long; says how the stream is to be reset then.
    async fn silence(&self, site: &Site, activity: &Activity) -> (Code, &'static str) {
        let idle = self.shard.times().idle;
        let silent = activity.silence(&site.alarm, idle, || idle);
        match select(silent, dismissed(self.stream, activity)).await {
            Either::Left(()) => (Code::IdleTimeout, "no byte in either direction"),
            Either::Right(()) => (Code::Shutdown, DISMISSED),
        }
    }
}

/// Whether a request may go over a connection that waited. The second handshake that a site asks for on one is an error to
/// rustls, and would cost that request.
fn may_serve(site: &Site, certain: bool) -> bool {
    site.socket.is_quiet(certain) && !was_asked_anew(&site.socket)
}

/// Whether a site that was refused another handshake may have wanted a client certificate: it answers nothing, or denies.
/// Who gives up before a byte has most likely waited for what never comes.
fn may_want_certificate(fault: &Fault, answered: bool) -> bool {
    match fault {
        Fault::Denied | Fault::Silent | Fault::TimedOut(Code::FirstByteTimeout) => true,
        Fault::GivenUp => !answered,
        _ => false,
    }
}
