use super::head;
use crate::http::{Finder, Framing, Response, Version};

fn parse(lines: &[&str], method: &str, upgrade: bool) -> Result<(u16, Framing, bool), u16> {
    let bytes = head(lines);
    match Response::parse(&bytes, method, upgrade) {
        Ok(r) => Ok((r.status, r.framing, r.keep_alive)),
        Err(bad) => Err(bad.status),
    }
}

#[test]
fn framing_follows_status_method_and_fields() {
    use Framing::{Chunked, Length, None, UntilClose};
    let (ok, cl, te) = ("HTTP/1.1 200 OK", "Content-Length: 5", "Transfer-Encoding: chunked");
    for (lines, method, want) in [
        (&[ok, cl][..], "GET", Ok((200, Length(5), true))),
        (&[ok, te], "GET", Ok((200, Chunked, true))),
        (&[ok], "GET", Ok((200, UntilClose, false))),
        (&[ok, cl, "Connection: close"], "GET", Ok((200, Length(5), false))),
        (
            &[ok, te, "Connection: Transfer-Encoding"],
            "GET",
            Ok((200, Chunked, true)),
        ),
        (&["HTTP/1.0 200 OK", cl], "GET", Ok((200, Length(5), false))),
        (
            &["HTTP/1.0 200 OK", cl, "Connection: Keep-Alive"],
            "GET",
            Ok((200, Length(5), true)),
        ),
        (&["HTTP/1.0 200 OK"], "GET", Ok((200, UntilClose, false))),
        (&["HTTP/1.0 200 OK", te], "GET", Err(502)),
        (&[ok, te, cl], "GET", Err(502)),
        (&[ok, cl, cl], "GET", Err(502)),
        (&[ok, "Content-Length: +5"], "GET", Err(502)),
        (&[ok, "Content-Length: 5, 5"], "GET", Err(502)),
        (&[ok, "Transfer-Encoding: gzip, chunked"], "GET", Err(502)),
        (&[ok, "Transfer-Encoding: identity"], "GET", Err(502)),
        (&[ok, "Transfer-Encoding: gzip"], "GET", Err(502)),
        (&[ok, "Transfer-Encoding: x-own"], "GET", Ok((200, UntilClose, false))),
        (&[ok, "Transfer-Encoding: x-own"], "HEAD", Ok((200, None, true))),
        (&[ok, "Transfer-Encoding: x-own, chunked"], "GET", Err(502)),
        (&[ok, "Transfer-Encoding: x-own;q=1"], "GET", Err(502)),
        (&[ok, "Transfer-Encoding: Br"], "GET", Err(502)),
        (&[ok, "Transfer-Encoding: zstd"], "GET", Err(502)),
        (&[ok, "Transfer-Encoding: br"], "HEAD", Err(502)),
        (
            &[ok, "Transfer-Encoding: x-own", "Transfer-Encoding: x-own"],
            "GET",
            Err(502),
        ),
        (&[ok, "Transfer-Encoding: x-own", te], "GET", Err(502)),
        (&[ok, te, "Transfer-Encoding: x-own"], "GET", Err(502)),
        (&[ok, "Transfer-Encoding: x-own", cl], "GET", Err(502)),
        (&["HTTP/1.0 200 OK", "Transfer-Encoding: x-own"], "GET", Err(502)),
        (
            &["HTTP/1.1 204 No Content", "Transfer-Encoding: x-own"],
            "GET",
            Err(502),
        ),
        (&[ok, "X : y"], "GET", Err(502)),
        (&[ok, "X: y", " z"], "GET", Err(502)),
        (&[ok, cl], "HEAD", Ok((200, None, true))),
        (&[ok, te], "HEAD", Ok((200, None, true))),
        (&[ok], "HEAD", Ok((200, None, true))),
        (&["HTTP/1.1 304 Not Modified", cl], "GET", Ok((304, None, true))),
        (&["HTTP/1.1 204 No Content"], "GET", Ok((204, None, true))),
        (
            &["HTTP/1.1 204 No Content", "Content-Length: 0"],
            "GET",
            Ok((204, None, true)),
        ),
        (&["HTTP/1.1 204 No Content", cl], "GET", Err(502)),
        (&["HTTP/1.1 204 No Content", te], "GET", Err(502)),
        (&["HTTP/1.1 100 Continue"], "POST", Ok((100, None, true))),
        (&["HTTP/1.1 100 Continue", cl], "POST", Err(502)),
        (&["HTTP/1.1 103 Early Hints", "Link: x"], "GET", Ok((103, None, true))),
        (&["HTTP/1.0 100 Continue"], "POST", Err(502)),
        (&[ok, cl], "CONNECT", Ok((200, None, false))),
        (&["HTTP/1.1 407 Auth", cl], "CONNECT", Ok((407, Length(5), true))),
        (&["HTTP/1.1 999 Odd", cl], "GET", Ok((999, Length(5), true))),
    ] {
        assert_eq!(parse(lines, method, false), want, "{method} {lines:?}");
    }
}

#[test]
fn an_upgrade_happens_only_if_asked_for() {
    let lines = [
        "HTTP/1.1 101 Switching Protocols",
        "Connection: Upgrade",
        "Upgrade: websocket",
    ];
    assert_eq!(parse(&lines, "GET", true), Ok((101, Framing::None, false)));
    assert_eq!(parse(&lines, "GET", false), Err(502));
    assert_eq!(parse(&lines[..2], "GET", true), Err(502));
    assert_eq!(parse(&[lines[0], lines[2]], "GET", true), Err(502));
    assert_eq!(parse(&[lines[0], lines[1], "Upgrade: h2c"], "GET", true), Err(502));
}

#[test]
fn status_lines() {
    for (line, good) in [
        ("HTTP/1.1 200 OK", true),
        ("HTTP/1.1 200 ", true),
        ("HTTP/1.1 200", true),
        ("HTTP/1.1 200 \u{e4} b\tc", true),
        ("HTTP/1.1  200 OK", false),
        ("HTTP/1.1 20 OK", false),
        ("HTTP/1.1 2000 OK", false),
        ("HTTP/1.1 099 OK", false),
        ("HTTP/1.1 +20 OK", false),
        ("HTTP/1.1 200\tOK", false),
        ("HTTP/1.1 200 O\x00K", false),
        ("HTTP/1.1 200 O\x1bK", false),
        ("HTTP/1.2 200 OK", false),
        ("HTTP/2 200", false),
        ("ICY 200 OK", false),
        ("", false),
    ] {
        assert_eq!(
            parse(&[line, "Content-Length: 0"], "GET", false).is_ok(),
            good,
            "{line:?}"
        );
    }
}

#[test]
fn what_is_not_http_is_refused_at_once() {
    for bytes in [
        &b"SSH-2.0-x\r\n"[..],
        b"\r\nHTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/2",
        b"\x15",
        b"HTTP/1.1 200 OK\n",
    ] {
        assert_eq!(
            Finder::response().find(bytes).map_err(|bad| bad.status),
            Err(502),
            "{bytes:?}"
        );
    }
    assert_eq!(Finder::response().find(b"HTT"), Ok(None));
    let bytes = head(&["HTTP/1.1 100 Continue"]);
    let response = Response::parse(&bytes, "POST", false).unwrap();
    assert!(response.is_interim() && !response.is_upgrade() && response.version == Version::Http11);
}
