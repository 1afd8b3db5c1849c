//! A browser's connection to the proxy port: one request after the other.

use std::io;

use bytes::{Bytes, BytesMut};

use super::dial::Unreached;
use super::flow::{Activity, End, Inlet, cut_at_end, linger};
use super::relay::{DISMISSED, dismissed, relay};
use super::{bump, connect, fetch};
use crate::http::page::Page;
use crate::http::{Authority, Bad, CONTINUE, Finder, Form, Framing, Request, Scheme};
use crate::limits::{BROWSER_ASKED, BROWSER_SILENT_MAX, WAITING_EARLY_BYTES_MAX};
use crate::mux::{Code, Kind, Open, Shown};
use crate::rules::Route;
use crate::shard::buffers::Buffers;
use crate::shard::pair::{Either, select};
use crate::shard::runtime::{self, Socket};
use crate::shard::timers::{self, Alarm};
use crate::shard::transport::Transport;
use crate::shard::{Counted, Seat, Shard, Stream, Visitor};

/// One read of a head.
const HEAD_READ_BYTES: usize = 4 * 1024;

/// The name by which the broker asks whether the tunnel works; it means nothing on other connections.
pub(super) const PROBE_HOST: &str = "probe.culvert.invalid";

/// Whoever reads this may ask again over another connection, also what cannot be repeated (RFC 9110 section 15.5.20).
pub(super) const OUTDATED: Bad = Bad {
    status: 421,
    reason: "the rules in force leave this site's TLS alone: it takes a new connection",
};

/// What becomes of the connection after an exchange.
pub(super) enum Next {
    /// Another request may follow.
    Again,
    /// The last answer was delivered whole, but the browser may still be sending.
    Close,
    /// As `Close`, and the browser has said that it sends no more.
    Done,
    /// Something was cut, and the browser must see that, as it does unless told otherwise.
    Abort,
    /// It is opaque from here on. The request is forgotten first: a relay may live for days.
    Relay(Stream),
}

/// The connection between two exchanges.
pub(super) struct Browser {
    pub shard: Shard,
    pub socket: Transport,
    /// Read and not used yet: the next request, or a part of it.
    pub inbox: BytesMut,
    /// The browser sends no more.
    pub eof: bool,
    /// It asks with HEAD: no page may have a body (RFC 9110 section 9.3.2), a refused head's neither.
    asks_head: bool,
    pub visitor: Visitor,
    /// The CONNECT in which it speaks HTTP, if it does.
    pub inside: Option<Inside>,
    /// What it was shown of the site, if its TLS ends here.
    pub shown: Option<Shown>,
    /// The member of the pool that saw the site, while TLS ends here or may come to: others may trust other issuers.
    pub member: Option<[u8; 16]>,
    /// For the wait between two requests.
    alarm: Alarm,
    /// Its place among those that a drain closes while they ask for nothing; a browser that comes later has none.
    pub seat: Option<Seat>,
    /// Why there is no connection to the site of a CONNECT that was answered all the same: each request in it is told so.
    pub unreached: Option<Box<Unreached>>,
}

/// Serves a browser's connection to its end.
pub async fn serve(shard: Shard, socket: Socket, visitor: Visitor, counted: Counted) {
    let mut browser = Browser {
        seat: shard.take_seat().await,
        shard,
        socket: socket.into(),
        inbox: BytesMut::new(),
        eof: false,
        asks_head: false,
        visitor,
        inside: None,
        shown: None,
        member: None,
        alarm: Alarm::default(),
        unreached: None,
    };
    let next = if browser.shard.over_fd_mark() && visitor != Visitor::Probe {
        browser.refuse("limit", "as many connections are open as may be").await
    } else {
        browser.exchanges().await
    };
    match next {
        Next::Again | Next::Close => linger(&browser.socket).await,
        Next::Done if browser.socket.tls().is_some() => browser.socket.finish().await,
        Next::Done => {}
        Next::Abort => cut_at_end(&browser.socket),
        Next::Relay(stream) => {
            let Browser { socket, inbox, .. } = browser;
            // In a task of its own: this one has room for a whole exchange, and a relay may live for days.
            runtime::spawn(carry(socket, stream, inbox.freeze(), counted));
        }
    }
}

/// Carries what is opaque to its end.
async fn carry(socket: Transport, stream: Stream, early: Bytes, _counted: Counted) {
    let mut inlet = Inlet::new(&stream);
    let activity = Activity::new();
    let relayed = relay(&socket, &stream, early, &mut inlet, Code::Cancelled, &activity);
    if let Either::Right(()) = select(relayed, dismissed(&stream, &activity)).await {
        stream.reset(Code::Shutdown, DISMISSED);
    }
    if let Some(End::Cut(code, text)) = inlet.end() {
        let Open { host, port, .. } = stream.open();
        let host = String::from_utf8_lossy(host);
        let site = match host.contains(':') {
            true => format!("[{host}]:{port}"),
            false => format!("{host}:{port}"),
        };
        tell_cut(stream.shard(), &site, code.name(), text);
    }
}

/// Counts and logs what a browser sees as a cut alone. `url`: as a page has it.
pub(super) fn tell_cut(shard: &Shard, url: &str, name: &'static str, detail: &str) {
    let page = Page {
        url: url.as_bytes(),
        detail,
        ..Page::new(name, shard.rules_version())
    };
    shard.tell_error(name, || page.reason());
}

/// A site to which a browser speaks HTTP through a CONNECT.
pub(super) struct Inside {
    pub scheme: Scheme,
    /// As the CONNECT named it.
    pub host: Box<str>,
    pub port: u16,
    /// Host and port, as a Host field has them.
    pub raw: Box<str>,
}

impl Inside {
    /// Of a CONNECT.
    pub fn of(connect: &Request<'_>, host: &str, port: u16, scheme: Scheme) -> Self {
        Self {
            scheme,
            host: host.into(),
            port,
            raw: connect.authority.map_or("", |a| a.raw).into(),
        }
    }

    /// Its TLS ended here, and the rules in force leave it alone.
    fn is_outdated(&self, shard: &Shard) -> bool {
        self.scheme == Scheme::Https && !bump::is_allowed(shard, &self.host)
    }

    /// The request as one for a whole URL, if it is for this site.
    fn place<'a>(&'a self, request: &mut Request<'a>) -> Result<(), Bad> {
        let own = Authority {
            raw: &self.raw,
            host: &self.host,
            port: Some(self.port),
        };
        let named = *request.authority.get_or_insert(own);
        let default = self.scheme.default_port();
        let other_scheme = request.scheme.is_some_and(|scheme| scheme != self.scheme);
        if request.form == Form::Authority {
            return Err(Bad {
                status: 400,
                reason: "a CONNECT inside another one",
            });
        }
        if other_scheme || !named.matches(&self.host, self.port, default) {
            return Err(Bad {
                status: 421,
                reason: "the request names another site than the CONNECT around it",
            });
        }
        request.scheme = Some(self.scheme);
        Ok(())
    }
}

/// What came instead of a whole head.
enum NoHead {
    Closed,
    Late,
    Bad(Bad),
}

impl Browser {
    async fn exchanges(&mut self) -> Next {
        loop {
            match self.exchange().await {
                Next::Again => {}
                last => return last,
            }
        }
    }

    async fn exchange(&mut self) -> Next {
        let head = self.read_head().await;
        let bytes = head.as_ref().unwrap_or(&self.inbox);
        self.asks_head = bytes.starts_with(b"HEAD ");
        let head = match head {
            Ok(head) => head,
            Err(NoHead::Closed) => return Next::Done,
            Err(NoHead::Late) => return self.refuse("request-timeout", "the head took too long").await,
            Err(NoHead::Bad(bad)) => return self.refuse_head(bad).await,
        };
        let inside = self.inside.take();
        let next = self.serve(&head, inside.as_ref()).await;
        // A CONNECT may just have turned out to be one.
        self.inside = inside.or(self.inside.take());
        next
    }

    /// Serves one request, up to the end of its answer.
    async fn serve(&mut self, head: &[u8], inside: Option<&Inside>) -> Next {
        let mut request = match Request::parse(head) {
            Ok(request) => request,
            Err(bad) => return self.refuse_head(bad).await,
        };
        if self.visitor == Visitor::Stranger {
            let detail =
                "browsers of this network may not use the proxy: sc-cloud serve --proxy-networks names those that may";
            return self.answer(&request, "denied", detail, false).await;
        }
        if let Some(inside) = inside
            && let Err(bad) = inside.place(&mut request)
        {
            return self.refuse_head(bad).await;
        }
        let mut counted = false;
        loop {
            if let Some(next) = self.decide(&request, inside, &mut counted).await {
                return next;
            }
        }
    }

    /// Does what the rules in force say of a request. None if they have changed before anything was done.
    async fn decide(&mut self, request: &Request<'_>, inside: Option<&Inside>, counted: &mut bool) -> Option<Next> {
        // Rules may have changed since the handshake; connections that ask for nothing are closed by that.
        if inside.is_some_and(|inside| inside.is_outdated(&self.shard)) {
            return Some(self.refuse_head(OUTDATED).await);
        }
        if let Some(rule) = self.blocked_by(request) {
            let detail = format!("the rule is {rule}");
            // What follows a CONNECT is the site's, and no request.
            let whole = is_bodyless(request) && request.form != Form::Authority;
            return Some(self.answer(request, "blocked", &detail, whole).await);
        }
        if let Some(unreached) = self.unreached.take() {
            return Some(self.answer(request, unreached.0.name(), &unreached.1, false).await);
        }
        match request.form {
            Form::Authority => Some(connect::serve(self, request).await),
            Form::Absolute => fetch::serve(self, request, counted).await,
            Form::Origin | Form::Asterisk if inside.is_some() => fetch::serve(self, request, counted).await,
            Form::Origin | Form::Asterisk => {
                let bad = Bad {
                    status: 400,
                    reason: "this is a proxy: it takes CONNECT, and requests for whole URLs (http://host/path)",
                };
                Some(self.refuse_head(bad).await)
            }
        }
    }

    /// The rule of `-F` that drops this request. Of what stays opaque only scheme and site are known; a CONNECT that need
    /// not is asked about later.
    fn blocked_by(&self, request: &Request<'_>) -> Option<String> {
        let fast_fail = &self.shard.rules().fast_fail;
        if fast_fail.is_empty() || self.visitor == Visitor::Probe {
            return None;
        }
        if request.form == Form::Authority
            && request
                .authority
                .is_some_and(|a| bump::may_end_here(&self.shard, a.host, a.port_or(0)))
        {
            return None;
        }
        fast_fail.blocks_request(request).map(str::to_owned)
    }

    /// Reads up to the end of the next head. An idle connection holds no buffer.
    async fn read_head(&mut self) -> Result<BytesMut, NoHead> {
        let mut finder = Finder::request();
        let (came, is_stranger) = (runtime::now(), self.visitor == Visitor::Stranger);
        if self.inbox.is_empty() {
            self.inbox = BytesMut::new();
            if self.eof {
                return Err(NoHead::Closed);
            }
            let times = self.shard.times();
            let patience = if is_stranger {
                times.browser_head
            } else {
                times.browser_idle
            };
            let idle = self.alarm.until(came + patience);
            match select(self.socket.readable(), select(idle, self.is_dismissed())).await {
                Either::Left(Ok(())) => {}
                Either::Left(Err(_)) | Either::Right(_) => return Err(NoHead::Closed),
            }
        }
        // Asked now: a reload may have come while nothing was said.
        let begun = if is_stranger { came } else { runtime::now() };
        let deadline = begun + self.shard.times().browser_head;
        loop {
            if let Some(n) = finder.find(&self.inbox).map_err(NoHead::Bad)? {
                // Mostly it is all there is: no part of a buffer that is shared.
                return Ok(match n == self.inbox.len() {
                    true => std::mem::take(&mut self.inbox),
                    false => self.inbox.split_to(n),
                });
            }
            let read = read_into(self.shard.buffers(), &self.socket, &mut self.inbox);
            let left = deadline.since(runtime::now());
            match timers::timeout(left, read).await {
                None => return Err(NoHead::Late),
                // A head cut in the middle was no request.
                Some(Ok(0) | Err(_)) => return Err(NoHead::Closed),
                Some(Ok(_)) => {}
            }
        }
    }

    /// Waits until nobody serves it any more, or the rules in force leave the site alone whose TLS ended here.
    async fn is_dismissed(&self) {
        match &self.seat {
            Some(seat) => {
                let is_outdated = || {
                    self.inside
                        .as_ref()
                        .is_some_and(|inside| inside.is_outdated(&self.shard))
                };
                seat.is_dismissed(is_outdated).await;
            }
            None => std::future::pending().await,
        }
    }

    /// Opens a stream for this request, or waits for a link as long as the browser does: none if it has left. What the
    /// rules keep out of the tunnel needs no link. `asks`: meanwhile it may be sent a 100.
    pub async fn open_stream(
        &mut self,
        request: &Request<'_>,
        open: Open,
        asks: bool,
    ) -> Option<Result<Stream, (Code, String)>> {
        let host = request.authority.map_or("", |a| a.host);
        if self.shard.rules().routes.of(host) == Route::Direct {
            return Some(self.shard.open_direct(open));
        }
        let opening = self.shard.open(open, self.member);
        let most = WAITING_EARLY_BYTES_MAX;
        let (buffers, inbox, eof) = (self.shard.buffers(), &mut self.inbox, &mut self.eof);
        match select(opening, watch(buffers, &self.socket, inbox, eof, most, || asks)).await {
            Either::Left(opened) => Some(opened),
            Either::Right(()) => None,
        }
    }

    /// OPEN's fields for a site; the shard sets the credit.
    pub fn open(&self, kind: Kind, host: &str, port: u16) -> Open {
        Open {
            shown: self.shown.filter(|_| kind == Kind::Https),
            ..open_of(&self.shard, kind, host, port)
        }
    }

    /// Of the rules in force.
    pub fn version(&self) -> u32 {
        self.shard.rules_version()
    }

    /// The page for a request that was not taken; what else the browser sends is not read.
    pub async fn refuse(&mut self, name: &'static str, detail: &str) -> Next {
        let page = Page {
            detail,
            close: true,
            ..Page::new(name, self.version())
        };
        self.last_page(&page).await
    }

    pub async fn refuse_head(&mut self, bad: Bad) -> Next {
        let page = Page::refused(bad, self.version());
        self.last_page(&page).await
    }

    async fn last_page(&mut self, page: &Page<'_>) -> Next {
        if self.visitor != Visitor::Probe {
            self.shard.tell_error(page.name, || page.reason());
        }
        let page = Page {
            head: self.asks_head,
            ..*page
        };
        match self.socket.write_all(&page.write()).await {
            Ok(()) => Next::Close,
            Err(_) => Next::Abort,
        }
    }

    /// Answers a request itself. `whole`: all of the request was read, so that another may follow.
    pub async fn answer(&mut self, request: &Request<'_>, name: &'static str, detail: &str, whole: bool) -> Next {
        let close = !(whole && request.keep_alive && !request.upgrade);
        let url = match request.form {
            Form::Authority => request.authority.map_or("", |a| a.raw).to_owned(),
            _ => request.url(Scheme::Http),
        };
        let page = Page {
            url: url.as_bytes(),
            detail,
            close,
            ..Page::new(name, self.version())
        };
        match self.last_page(&page).await {
            Next::Close if !close => Next::Again,
            next => next,
        }
    }
}

/// As [`Browser::open`].
pub(super) fn open_of(shard: &Shard, kind: Kind, host: &str, port: u16) -> Open {
    Open {
        kind,
        settings: shard.rules_version(),
        credit: 0,
        port,
        host: Bytes::copy_from_slice(host.as_bytes()),
        shown: None,
    }
}

/// A request that ends with its head.
pub(super) fn is_bodyless(request: &Request<'_>) -> bool {
    matches!(request.framing, Framing::None | Framing::Length(0))
}

/// Waits for bytes and appends them; 0 is the end.
pub(super) async fn read_into(buffers: &Buffers, socket: &Transport, inbox: &mut BytesMut) -> io::Result<usize> {
    loop {
        match buffers.read_into(socket, HEAD_READ_BYTES, inbox) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => socket.readable().await?,
            read => return read,
        }
    }
}

/// Watches a browser that waits: holds up to `most` of what it sends already, and returns once its connection broke.
/// While `may_ask` is true nothing of an answer is there yet, and an interim one may leave.
pub(super) async fn watch(
    buffers: &Buffers,
    socket: &Transport,
    inbox: &mut BytesMut,
    eof: &mut bool,
    most: usize,
    may_ask: impl Fn() -> bool,
) {
    if inbox.is_empty() {
        // It would hold the buffer of the head for as long as a relay lives.
        *inbox = BytesMut::new();
    }
    while !*eof && inbox.len() < most {
        // First: most browsers say nothing while they wait.
        if socket.readable().await.is_err() {
            return;
        }
        match read_into(buffers, socket, inbox).await {
            Ok(0) => *eof = true,
            Ok(_) => {}
            Err(_) => return,
        }
    }
    // Also where more came than is held: the end may stand behind it.
    forgotten(socket, may_ask).await;
}

/// Waits until the connection broke where no read tells of it. A browser's end alone changes nothing: it may be half
/// closed and still read. One that has closed looks the same, so it is asked: with keep-alive probes, which its system
/// answers with a reset once it has forgotten the connection, as late as a minute after; and where the request has no
/// place yet, with a 100, which every client of HTTP/1.1 reads over (RFC 9110 section 15.2) and a closed one's system
/// answers with a reset at once.
async fn forgotten(socket: &Transport, may_ask: impl Fn() -> bool) {
    let options = socket2::SockRef::from(socket);
    let ask = socket2::TcpKeepalive::new()
        .with_time(BROWSER_ASKED)
        .with_interval(BROWSER_ASKED)
        .with_retries(BROWSER_SILENT_MAX);
    // Fails only if the connection is gone, which the next look shows.
    let _ = options.set_tcp_keepalive(&ask);
    let mut asked = false;
    while matches!(options.take_error(), Ok(None)) {
        if !asked && may_ask() {
            match socket.try_write(&[io::IoSlice::new(CONTINUE)]) {
                // Half of it would spoil the answer.
                Ok(written) if written < CONTINUE.len() => return,
                // A full socket takes none of it, and what it holds already asks as well.
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                _ => asked = true,
            }
        }
        runtime::sleep(BROWSER_ASKED).await;
    }
}
