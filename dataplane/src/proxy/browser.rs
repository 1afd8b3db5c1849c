//! A browser's connection to the proxy port: one request after the other.

use std::io;

use bytes::{Bytes, BytesMut};

use super::flow::{Activity, Inlet, cut_at_end, linger};
use super::relay::relay;
use super::{connect, fetch};
use crate::http::page::Page;
use crate::http::{Authority, Bad, Finder, Form, Framing, Request, Scheme};
use crate::limits::{BROWSER_ASKED, BROWSER_SILENT_MAX, EARLY_BYTES_MAX};
use crate::mux::{Code, Kind, Open};
use crate::shard::runtime::{self, Alarm, Either, Socket, select};
use crate::shard::{Counted, Shard, Stream};

/// One read of a head.
const HEAD_READ_BYTES: usize = 4 * 1024;

/// The name by which the broker asks whether the tunnel works; it means nothing on other connections.
pub(super) const PROBE_HOST: &str = "probe.culvert.invalid";

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
    pub socket: Socket,
    /// Read and not used yet: the next request, or a part of it.
    pub inbox: BytesMut,
    /// The browser sends no more.
    pub eof: bool,
    pub is_probe: bool,
    /// For the wait between two requests.
    alarm: Alarm,
}

/// Serves a browser's connection to its end. `is_probe`: it is the broker's own self-test.
pub async fn serve(shard: Shard, socket: Socket, is_probe: bool, _counted: Counted) {
    let mut browser = Browser {
        shard,
        socket,
        inbox: BytesMut::new(),
        eof: false,
        is_probe,
        alarm: Alarm::default(),
    };
    let next = if browser.shard.over_fd_mark() && !is_probe {
        browser.refuse("limit", "as many connections are open as may be").await
    } else {
        browser.exchanges().await
    };
    match next {
        Next::Again | Next::Close => linger(&browser.socket).await,
        Next::Done => {}
        Next::Abort => cut_at_end(&browser.socket),
        Next::Relay(stream) => {
            let early = browser.inbox.split().freeze();
            let mut inlet = Inlet::new(&stream);
            let activity = Activity::new();
            relay(&browser.socket, &stream, early, &mut inlet, Code::Cancelled, &activity).await;
        }
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
        let head = match self.read_head().await {
            Ok(head) => head,
            Err(NoHead::Closed) => return Next::Done,
            Err(NoHead::Late) => return self.refuse("request-timeout", "the head took too long").await,
            Err(NoHead::Bad(bad)) => return self.refuse_head(bad).await,
        };
        let request = match Request::parse(&head) {
            Ok(request) => request,
            Err(bad) => return self.refuse_head(bad).await,
        };
        if let Some(rule) = self.blocked_by(&request) {
            let detail = format!("the rule is {rule}");
            return self.answer(&request, "blocked", &detail, is_bodyless(&request)).await;
        }
        match request.form {
            Form::Authority => connect::serve(self, &request).await,
            Form::Absolute => fetch::serve(self, &request).await,
            Form::Origin | Form::Asterisk => {
                self.refuse_head(Bad {
                    status: 400,
                    reason: "this is a proxy: it takes CONNECT, and requests for whole URLs (http://host/path)",
                })
                .await
            }
        }
    }

    /// The rule of `-F` that drops this request. A CONNECT stays opaque: of its URLs only scheme and site are known.
    fn blocked_by(&self, request: &Request<'_>) -> Option<String> {
        let rules = self.shard.rules();
        if !rules.has_fast_fail() || self.is_probe {
            return None;
        }
        let url = match request.form {
            Form::Authority => opaque_url(request.authority?),
            _ => request.url(Scheme::Http),
        };
        rules.blocks(url.as_bytes()).map(str::to_owned)
    }

    /// Reads up to the end of the next head. An idle connection holds no buffer.
    async fn read_head(&mut self) -> Result<Bytes, NoHead> {
        let mut finder = Finder::request();
        let times = self.shard.times();
        if self.inbox.is_empty() {
            self.inbox = BytesMut::new();
            if self.eof {
                return Err(NoHead::Closed);
            }
            let idle = self.alarm.until(runtime::now() + times.browser_idle);
            match select(self.socket.readable(), idle).await {
                Either::Left(Ok(())) => {}
                Either::Left(Err(_)) | Either::Right(()) => return Err(NoHead::Closed),
            }
        }
        let deadline = runtime::now() + times.browser_head;
        loop {
            if let Some(n) = finder.find(&self.inbox).map_err(NoHead::Bad)? {
                return Ok(self.inbox.split_to(n).freeze());
            }
            let read = read_into(&self.socket, &mut self.inbox);
            let left = deadline.since(runtime::now());
            match runtime::timeout(left, read).await {
                None => return Err(NoHead::Late),
                // A head cut in the middle was no request.
                Some(Ok(0) | Err(_)) => return Err(NoHead::Closed),
                Some(Ok(_)) => {}
            }
        }
    }

    /// OPEN's fields for a site; the shard sets the credit.
    pub fn open(&self, kind: Kind, host: &str, port: u16) -> Open {
        Open {
            kind,
            settings: self.version(),
            credit: 0,
            port,
            host: Bytes::copy_from_slice(host.as_bytes()),
            shown: None,
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
            head: request.method == "HEAD",
            ..Page::new(name, self.version())
        };
        match self.last_page(&page).await {
            Next::Close if !close => Next::Again,
            next => next,
        }
    }
}

/// `https://host/`, with the port unless it is 443.
fn opaque_url(authority: Authority<'_>) -> String {
    let site = authority.raw.strip_suffix(":443").unwrap_or(authority.raw);
    format!("https://{site}/")
}

/// A request that ends with its head.
pub(super) fn is_bodyless(request: &Request<'_>) -> bool {
    matches!(request.framing, Framing::None | Framing::Length(0))
}

/// Waits for bytes and appends them; 0 is the end. While it waits for the first ones it holds no buffer.
pub(super) async fn read_into(socket: &Socket, inbox: &mut BytesMut) -> io::Result<usize> {
    loop {
        inbox.reserve(HEAD_READ_BYTES);
        match socket.try_read(std::slice::from_mut(inbox), HEAD_READ_BYTES) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                if inbox.is_empty() {
                    *inbox = BytesMut::new();
                }
                socket.readable().await?;
            }
            read => return read,
        }
    }
}

/// Watches a browser that waits: holds what it sends already, as far as the bound goes, and returns once its
/// connection broke.
pub(super) async fn watch(socket: &Socket, inbox: &mut BytesMut, eof: &mut bool) {
    if inbox.is_empty() {
        // It would hold the buffer of the head for as long as a relay lives.
        *inbox = BytesMut::new();
    }
    while !*eof && inbox.len() < EARLY_BYTES_MAX {
        // First: most browsers say nothing while they wait.
        if socket.readable().await.is_err() {
            return;
        }
        match read_into(socket, inbox).await {
            Ok(0) => *eof = true,
            Ok(_) => {}
            Err(_) => return,
        }
    }
    forgotten(socket).await;
}

/// Waits until the connection broke where no read tells of it. A browser's end alone changes nothing: it may be half
/// closed and still read. One that has closed looks the same, so it is asked with keep-alive probes, which its system
/// answers with a reset once it has forgotten the connection.
async fn forgotten(socket: &Socket) {
    let socket = socket2::SockRef::from(socket);
    let ask = socket2::TcpKeepalive::new()
        .with_time(BROWSER_ASKED)
        .with_interval(BROWSER_ASKED)
        .with_retries(BROWSER_SILENT_MAX);
    // Fails only if the connection is gone, which the next look shows.
    let _ = socket.set_tcp_keepalive(&ask);
    while matches!(socket.take_error(), Ok(None)) {
        runtime::sleep(BROWSER_ASKED).await;
    }
}
