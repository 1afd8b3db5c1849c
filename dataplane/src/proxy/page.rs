//! Answers that the endpoint writes itself: error pages that a tester understands, and CONNECT's 200.

use crate::mux::Code;

/// Why the endpoint answers instead of the site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// The stream ended, or never began, with this code.
    Stream(Code),
    /// The request is not HTTP, or could be read in two ways.
    BadRequest,
    /// The browser's head or body did not arrive in time.
    RequestTimeout,
    /// The request target is too long.
    TargetTooLong,
    /// The head is too long or has too many fields.
    HeadTooLarge,
    /// An HTTP version that is not spoken here.
    Version,
}

impl Problem {
    /// Status of the page and its phrase.
    pub fn status(self) -> (u16, &'static str) {
        match self {
            Self::Stream(code) => status(code),
            Self::BadRequest => (400, "Bad Request"),
            Self::RequestTimeout => (408, "Request Timeout"),
            Self::TargetTooLong => (414, "URI Too Long"),
            Self::HeadTooLarge => (431, "Request Header Fields Too Large"),
            Self::Version => (505, "HTTP Version Not Supported"),
        }
    }

    /// Value of `Culvert-Error`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stream(code) => code.name(),
            Self::BadRequest => "bad-request",
            Self::RequestTimeout => "request-timeout",
            Self::TargetTooLong => "target-too-long",
            Self::HeadTooLarge => "head-too-large",
            Self::Version => "version",
        }
    }

    /// What to do about it.
    fn advice(self) -> &'static str {
        match self {
            Self::Stream(code) => advice(code),
            Self::BadRequest => "The proxy reads requests strictly; look at what the client sends.",
            Self::RequestTimeout => "The request did not arrive whole in time; send it again.",
            Self::TargetTooLong => "Shorten the URL; 16 KiB pass.",
            Self::HeadTooLarge => "Send fewer or smaller header fields (cookies); 64 KiB and 128 fields pass.",
            Self::Version => "Speak HTTP/1.1 or HTTP/1.0 to the proxy.",
        }
    }
}

/// Status that stands for a RESET code.
pub fn status(code: Code) -> (u16, &'static str) {
    match code {
        Code::Denied => (403, "Forbidden"),
        Code::Limit | Code::TunnelDown | Code::Shutdown | Code::PeerRestarted => {
            (503, "Service Unavailable")
        }
        Code::ConnectTimeout | Code::FirstByteTimeout | Code::IdleTimeout => {
            (504, "Gateway Timeout")
        }
        _ => (502, "Bad Gateway"),
    }
}

fn advice(code: Code) -> &'static str {
    match code {
        Code::Dns => "The tunnel host cannot resolve this name; look it up there.",
        Code::Refused => "Nothing listens on this port; start the site, or correct the port.",
        Code::ConnectTimeout => "The site did not answer the connection; look for a firewall between the tunnel host and the site.",
        Code::Unreachable => "The tunnel host has no route to this address.",
        Code::Tls => "The site's TLS failed on the tunnel host.",
        Code::SiteReset => "The site broke the connection off, or its answer is not valid HTTP; look at the site's log.",
        Code::FirstByteTimeout => "The site accepted the request but did not answer in time.",
        Code::IdleTimeout => "The site fell silent in the middle of its answer.",
        Code::Denied => "The tunnel does not serve this address.",
        Code::Limit => "The tunnel is full; try again shortly.",
        Code::Protocol => "The two ends of the tunnel disagree; compare their versions.",
        Code::Cancelled => "The request was cancelled.",
        Code::PeerRestarted => "The tunnel client was restarted; try again.",
        Code::TunnelDown => "The tunnel client is not connected; look at its log.",
        Code::Shutdown => "The tunnel is shutting down.",
        Code::UpstreamProxy => "The proxy between the tunnel host and the site refused; look at its log.",
        Code::VerdictChanged => "The site's certificate changed; load the page again.",
    }
}

/// A whole answer for `problem`. `detail` is text of the other side or of a parser and is shown escaped; it never
/// holds header values. `head_only` for HEAD requests; `keep_alive` says whether another request may follow.
pub fn page(
    problem: Problem,
    detail: &str,
    settings: u32,
    head_only: bool,
    keep_alive: bool,
) -> Vec<u8> {
    let (status, phrase) = problem.status();
    let name = problem.name();
    let body = format!(
        "<!DOCTYPE html>\n<html><head><meta charset=\"utf-8\"><title>{status} {phrase}</title></head>\n<body>\
         <h1>{status} {phrase}</h1>\n<p><strong>{name}</strong>: {}</p>\n<p>{}</p>\n<hr><p>Culvert</p></body></html>\n",
        escaped(detail),
        problem.advice(),
    );
    let retry = match problem {
        Problem::Stream(Code::Limit | Code::TunnelDown) => "Retry-After: 1\r\n",
        _ => "",
    };
    let connection = if keep_alive { "keep-alive" } else { "close" };
    let mut out = format!(
        "HTTP/1.1 {status} {phrase}\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: {}\r\n\
         Cache-Control: no-store\r\nCulvert-Error: {name}\r\nCulvert-Settings: {settings}\r\n{retry}\
         Connection: {connection}\r\n\r\n",
        body.len(),
    )
    .into_bytes();
    if !head_only {
        out.extend_from_slice(body.as_bytes());
    }
    out
}

/// HTML text of `text`; control characters vanish.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_the_status_of_its_class() {
        assert_eq!(status(Code::Denied).0, 403);
        for code in [
            Code::Limit,
            Code::TunnelDown,
            Code::Shutdown,
            Code::PeerRestarted,
        ] {
            assert_eq!(status(code).0, 503, "{code:?}");
        }
        for code in [
            Code::ConnectTimeout,
            Code::FirstByteTimeout,
            Code::IdleTimeout,
        ] {
            assert_eq!(status(code).0, 504, "{code:?}");
        }
        for code in [
            Code::Dns,
            Code::Refused,
            Code::Unreachable,
            Code::Tls,
            Code::SiteReset,
            Code::Protocol,
            Code::Cancelled,
            Code::UpstreamProxy,
            Code::VerdictChanged,
        ] {
            assert_eq!(status(code).0, 502, "{code:?}");
        }
    }

    #[test]
    fn a_page_names_its_error_and_its_rules() {
        let page = page(
            Problem::Stream(Code::Dns),
            "<b>x</b>\r\nX: y",
            7,
            false,
            true,
        );
        let text = String::from_utf8(page).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 502 Bad Gateway\r\n"));
        assert!(head.contains("\r\nCulvert-Error: dns\r\n"));
        assert!(head.contains("\r\nCulvert-Settings: 7\r\n"));
        assert!(head.contains(&format!("\r\nContent-Length: {}\r\n", body.len())));
        assert!(body.contains("&lt;b&gt;x&lt;/b&gt;  X: y"));
    }

    #[test]
    fn a_page_for_head_has_no_body_and_a_full_tunnel_says_when_to_come_back() {
        let page = page(Problem::Stream(Code::Limit), "", 1, true, false);
        let text = String::from_utf8(page).unwrap();
        assert!(text.ends_with("Connection: close\r\n\r\n"));
        assert!(text.contains("Retry-After: 1\r\n"));
    }
}
