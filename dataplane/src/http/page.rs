//! Error pages that a tester understands: what failed, and what to do.

use std::fmt::Write;

use crate::limits::PAGE_TEXT_CHARS_MAX;

/// One error, as a browser is told of it.
#[derive(Clone, Copy, Debug)]
pub struct Page<'a> {
    /// Name of the cause as in logs, counters and RESET: a row of [`CAUSES`].
    pub name: &'static str,
    /// Status, where it is not the cause's own ([`Page::new`]): that of a refused head, for instance.
    pub status: u16,
    /// What was asked for: a URL, or host and port of a CONNECT. User information and query are not shown.
    pub url: &'a [u8],
    /// What is known beyond the cause: the text of a RESET, the rule that refused. User information is masked.
    pub detail: &'a str,
    /// Version of the rules in force.
    pub settings: u32,
    /// The connection is closed afterwards.
    pub close: bool,
    /// The answer to HEAD: no body.
    pub head: bool,
}

/// A cause: name, status, what failed, what to do.
pub type Cause = (&'static str, u16, &'static str, &'static str);

/// Every cause there is; the first one stands for names that are not here.
pub const CAUSES: &[Cause] = &[
    (
        "protocol",
        502,
        "The site or the tunnel broke the rules of HTTP",
        "Ask the site directly; if it answers well there, report this page.",
    ),
    (
        "dns",
        502,
        "The name of the site could not be resolved",
        "Check the name, and that the tunnel host can resolve it.",
    ),
    (
        "refused",
        502,
        "The site refused the connection",
        "Check that the site runs and listens on this port.",
    ),
    (
        "unreachable",
        502,
        "The site cannot be reached from the tunnel host",
        "Check routes and firewalls between the tunnel host and the site.",
    ),
    (
        "tls",
        502,
        "TLS with the site failed",
        "Check the site's certificate and TLS versions.",
    ),
    (
        "site-reset",
        502,
        "The site closed the connection before its answer was complete",
        "Look into the site's own log.",
    ),
    (
        "upstream-proxy",
        502,
        "The company's proxy did not let the request through",
        "Check the proxy and PAC settings of the tunnel and its credentials.",
    ),
    (
        "verdict-changed",
        502,
        "The site's certificate has changed",
        "Load the page again.",
    ),
    ("cancelled", 502, "The request was cancelled", "Load the page again."),
    (
        "connect-timeout",
        504,
        "The site did not accept the connection in time",
        "Check that the site runs and that no firewall drops its packets.",
    ),
    (
        "first-byte-timeout",
        504,
        "The site did not begin its answer in time",
        "Look for what keeps the site busy, or allow it more time.",
    ),
    (
        "idle-timeout",
        504,
        "The site fell silent in the middle",
        "Look for what keeps the site busy, or allow it more time.",
    ),
    (
        "only-if-cached",
        504,
        "The answer is not in the cache",
        "The request forbids to ask the site: Cache-Control: only-if-cached.",
    ),
    (
        "denied",
        403,
        "This address is not reachable through the tunnel",
        "The rules of the tunnel or of this cloud forbid it.",
    ),
    (
        "blocked",
        403,
        "A fast-fail rule of the tunnel blocks this address",
        "Change the rule if the test needs this address.",
    ),
    (
        "limit",
        503,
        "Too much is going on in this tunnel",
        "Try again shortly, or run fewer tests at once.",
    ),
    (
        "tunnel-down",
        503,
        "The tunnel has no connection",
        "Check that the tunnel client runs and reaches this cloud.",
    ),
    (
        "peer-restarted",
        503,
        "The tunnel was restarted",
        "Load the page again.",
    ),
    (
        "shutdown",
        503,
        "The tunnel is shutting down",
        "Start the tunnel again.",
    ),
    (
        "bad-request",
        400,
        "The browser's request is not valid",
        "A request must have one reading only; the program that sent it needs a change.",
    ),
    (
        "misdirected",
        421,
        "The request names another site than its connection",
        "Open a connection of its own for each site.",
    ),
    (
        "request-timeout",
        408,
        "The request did not arrive in time",
        "Send it again.",
    ),
];

/// The row of `name`.
pub fn cause(name: &str) -> &'static Cause {
    CAUSES.iter().find(|c| c.0 == name).unwrap_or(&CAUSES[0])
}

/// Seconds after which a 503 for `limit` asks to be tried again.
const RETRY_AFTER_S: u32 = 1;

impl<'a> Page<'a> {
    /// The page of a cause, with the cause's status, connection kept.
    pub fn new(name: &'static str, settings: u32) -> Self {
        let status = cause(name).1;
        Self {
            name,
            status,
            url: b"",
            detail: "",
            settings,
            close: false,
            head: false,
        }
    }

    /// The page for a head that was refused: `bad-request`, or `misdirected` where its site is not the connection's; closes.
    pub fn refused(bad: super::Bad, settings: u32) -> Page<'static> {
        let name = match bad.status {
            421 => "misdirected",
            _ => "bad-request",
        };
        Page {
            status: bad.status,
            detail: bad.reason,
            close: true,
            ..Page::new(name, settings)
        }
    }

    /// For a log: site and detail. Of a URL the path is left out too, which may be confidential.
    pub fn reason(&self) -> String {
        let (site, detail) = (site_text(self.url), detail_text(self.detail));
        // Most details of a site begin with it.
        let host = host_of(&site);
        let site = match detail.strip_prefix(host).is_some_and(|rest| rest.starts_with(':')) {
            true => "",
            false => &site,
        };
        let visible = |c: char| if c.is_control() { ' ' } else { c };
        let mut text = String::new();
        for part in [site, &detail].into_iter().filter(|part| !part.is_empty()) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.extend(part.chars().take(PAGE_TEXT_CHARS_MAX).map(visible));
        }
        text
    }

    /// The whole response.
    pub fn write(&self) -> Vec<u8> {
        let body = self.body();
        let mut out = format!(
            "HTTP/1.1 {} {}\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: {}\r\n\
             Cache-Control: no-store\r\nContent-Security-Policy: default-src 'none'\r\n\
             X-Content-Type-Options: nosniff\r\nCulvert-Error: {}\r\nCulvert-Settings: {}\r\n",
            self.status,
            phrase(self.status),
            body.len(),
            self.name,
            self.settings,
        );
        if self.name == "limit" {
            put(&mut out, format_args!("Retry-After: {RETRY_AFTER_S}\r\n"));
        }
        if self.close {
            out.push_str("Connection: close\r\n");
        }
        out.push_str("\r\n");
        if !self.head {
            out.push_str(&body);
        }
        out.into_bytes()
    }

    fn body(&self) -> String {
        let (_, _, failed, todo) = cause(self.name);
        let mut html = format!(
            "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{failed}</title></head><body>\n\
             <h1>{failed}</h1>\n"
        );
        if !self.url.is_empty() {
            put(
                &mut html,
                format_args!("<p><code>{}</code></p>\n", Shown(&url_text(self.url))),
            );
        }
        if !self.detail.is_empty() {
            put(&mut html, format_args!("<p>{}</p>\n", Shown(&detail_text(self.detail))));
        }
        put(
            &mut html,
            format_args!(
                "<p>{todo}</p>\n<hr><p>Culvert: <code>{}</code>, rules version {}</p>\n</body></html>\n",
                self.name, self.settings
            ),
        );
        html
    }
}

/// A whole plain-text response of our own: the answer to the tunnel's self-test, for instance.
pub fn plain(status: u16, text: &str, close: bool) -> Vec<u8> {
    let connection = if close { "Connection: close\r\n" } else { "" };
    format!(
        "HTTP/1.1 {status} {}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n\
         Cache-Control: no-store\r\n{connection}\r\n{text}",
        phrase(status),
        text.len()
    )
    .into_bytes()
}

fn put(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = out.write_fmt(text);
}

/// Foreign text as it may stand in a page: cut, escaped, without control characters.
struct Shown<'a>(&'a str);

impl std::fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut chars = self.0.chars();
        for c in chars.by_ref().take(PAGE_TEXT_CHARS_MAX) {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                c if c.is_control() => f.write_char(' ')?,
                c => f.write_char(c)?,
            }
        }
        if chars.next().is_some() {
            f.write_char('…')?;
        }
        Ok(())
    }
}

/// The site in a URL, or in the target of a CONNECT.
fn site_text(url: &[u8]) -> String {
    let url = url_text(url);
    let start = url.find("//").map_or(0, |at| at + 2);
    let end = url[start..].find('/').map_or(url.len(), |at| start + at);
    url[..end].to_owned()
}

/// The host of what [`site_text`] returns, without brackets.
fn host_of(site: &str) -> &str {
    let authority = site.rsplit_once("//").map_or(site, |(_, authority)| authority);
    match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => authority.split(':').next().unwrap_or(""),
    }
}

/// A URL without query and fragment, and without user information in its authority.
fn url_text(url: &[u8]) -> String {
    let url = String::from_utf8_lossy(url);
    let url = url.split(['?', '#']).next().unwrap_or("");
    let start = url.find("//").map_or(0, |at| at + 2);
    let end = url[start..].find('/').map_or(url.len(), |at| start + at);
    format!("{}{}{}", &url[..start], masked(&url[start..end]), &url[end..])
}

/// Free text in which each word loses what stands before its last `@`.
fn detail_text(text: &str) -> String {
    text.split_whitespace().map(masked).collect::<Vec<_>>().join(" ")
}

fn masked(word: &str) -> String {
    match word.rsplit_once('@') {
        None => word.to_owned(),
        Some((before, after)) => {
            let scheme = before.find("//").map_or("", |at| &before[..at + 2]);
            format!("{scheme}***@{after}")
        }
    }
}

fn phrase(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        408 => "Request Timeout",
        414 => "URI Too Long",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "Error",
    }
}
