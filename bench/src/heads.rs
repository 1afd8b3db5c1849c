//! Heads of requests and answers as Chromium and nginx send them, and what each end of the tunnel does with one.

use bytes::Bytes;
use dataplane::http::{Body, Finder, Form, Framing, Request, Response, Scheme, Version, rewrite};

/// The site that all requests name.
pub const HOST: &str = "shop.example.test";
/// Of all requests.
const METHOD: &str = "GET";

/// Kinds of resources: suffix, type, and what Chromium accepts where it wants one.
const KINDS: [(&str, &str, &str); 4] = [
    (
        "html",
        "text/html",
        "text/html,application/xhtml+xml,application/xml;q=0.9,image/jxl,image/avif,image/webp,image/apng,*/*;q=0.8,\
         application/signed-exchange;v=b3;q=0.7",
    ),
    ("css", "text/css", "text/css,*/*;q=0.1"),
    ("js", "application/javascript", "*/*"),
    (
        "webp",
        "image/webp",
        "image/jxl,image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8",
    ),
];

fn kind(resource: usize) -> (&'static str, &'static str, &'static str) {
    match resource {
        0 => KINDS[0],
        n => KINDS[1 + n % 3],
    }
}

/// The request for resource `resource` of page `page`, as Chromium 156 sends it to an HTTP proxy; resource 0 is the page
/// itself, then style sheets, scripts and images take turns.
pub fn request(page: usize, resource: usize) -> Vec<u8> {
    let (suffix, _, accept) = kind(resource);
    let before_agent = if resource == 0 {
        "Upgrade-Insecure-Requests: 1\r\n"
    } else {
        ""
    };
    let referer = if resource == 0 {
        String::new()
    } else {
        format!("Referer: http://{HOST}/page/{page}/0.html\r\n")
    };
    format!(
        "{METHOD} http://{HOST}/page/{page}/{resource}.{suffix} HTTP/1.1\r\nHost: {HOST}\r\nProxy-Connection: keep-alive\r\n\
         {before_agent}User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) \
         Chrome/156.0.0.0 Safari/537.36\r\nAccept: {accept}\r\n{referer}Accept-Encoding: gzip, deflate\r\n\
         Accept-Language: en-US,en;q=0.9\r\nCookie: sid=f3a9c1d27be84f0c9a6e5b1d; consent=all\r\n\r\n"
    )
    .into_bytes()
}

/// Page and resource that a request names, whether Chromium or the endpoint wrote it.
pub fn named(request: &[u8]) -> Option<(usize, usize)> {
    let line = std::str::from_utf8(request).ok()?.lines().next()?;
    let (page, rest) = line.split_once("/page/")?.1.split_once('/')?;
    let (resource, _) = rest.split_once('.')?;
    Some((page.parse().ok()?, resource.parse().ok()?))
}

/// The head of nginx 1.22's answer with a file of `bytes` bytes; without, one that nginx compresses as it goes.
pub fn answer(resource: usize, bytes: Option<usize>) -> Vec<u8> {
    let (_, of_type, _) = kind(resource);
    let head = "HTTP/1.1 200 OK\r\nServer: nginx/1.22.1\r\nDate: Fri, 27 Nov 2026 03:26:32 GMT\r\n";
    let modified = "Last-Modified: Fri, 27 Nov 2026 03:26:31 GMT\r\n";
    let expires = "Expires: Sun, 27 Dec 2026 03:26:32 GMT\r\nCache-Control: max-age=2592000\r\n";
    match bytes {
        Some(bytes) => format!(
            "{head}Content-Type: {of_type}\r\nContent-Length: {bytes}\r\n{modified}Connection: keep-alive\r\n\
             ETag: \"6b08f867-{bytes:x}\"\r\n{expires}Accept-Ranges: bytes\r\n\r\n"
        ),
        None => format!(
            "{head}Content-Type: {of_type}\r\n{modified}Transfer-Encoding: chunked\r\nConnection: keep-alive\r\n\
             Vary: Accept-Encoding\r\nETag: W/\"6b08f867-bbf\"\r\n{expires}Content-Encoding: gzip\r\n\r\n"
        ),
    }
    .into_bytes()
}

/// What of a request its answer depends on.
#[derive(Clone, Copy)]
pub struct Asked {
    version: Version,
    keep_alive: bool,
    upgrade: bool,
}

/// The endpoint's part of a request: appends to `out` what the site gets to see.
///
/// # Panics
/// If `sent` is not one whole request, as in all of these.
pub fn forward(sent: &[u8], out: &mut Vec<u8>) -> Asked {
    let length = whole(Finder::request(), sent);
    let request = Request::parse(&sent[..length]).expect("a valid request");
    rewrite::request(&request, &[], out);
    Asked {
        version: request.version,
        keep_alive: request.keep_alive,
        upgrade: request.upgrade,
    }
}

/// `sc`'s part of a request that came for the stream to `host`: a copy of the head, for the site.
///
/// # Panics
/// As in [`forward`], or if the request is for another site.
pub fn receive(slice: &[u8], host: &str, port: u16) -> Bytes {
    let head = Bytes::copy_from_slice(&slice[..whole(Finder::forwarded(), slice)]);
    let request = Request::parse(&head).expect("a valid request");
    let default = Scheme::Http.default_port();
    assert!(request.authority.is_some_and(|a| a.matches(host, port, default)) && request.form == Form::Origin);
    assert!(request.method == METHOD && request.framing == Framing::None);
    head
}

/// `sc`'s part of an answer's head: its length, and the body that begins behind it.
///
/// # Panics
/// If the head is not whole and valid.
pub fn follow(read: &[u8]) -> (usize, Body) {
    let length = whole(Finder::response(), read);
    let response = Response::parse(&read[..length], METHOD, false).expect("a valid answer");
    (length, Body::new(response.framing))
}

/// The endpoint's part of an answer's head: appends to `out` what the browser gets to see; else as [`follow`].
///
/// # Panics
/// As in [`follow`].
pub fn deliver(slice: &[u8], asked: Asked, out: &mut Vec<u8>) -> (usize, Body) {
    let length = whole(Finder::response(), slice);
    let response = Response::parse(&slice[..length], METHOD, asked.upgrade).expect("a valid answer");
    let delivery = rewrite::response(&response, asked.version, asked.keep_alive, &[], out);
    assert!(delivery.keep_alive && !delivery.dechunk);
    (length, Body::new(response.framing))
}

fn whole(mut finder: Finder, bytes: &[u8]) -> usize {
    finder.find(bytes).expect("a valid head").expect("a whole head")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_keeps_its_meaning_on_its_way_to_the_site() {
        let mut out = Vec::new();
        forward(&request(7, 42), &mut out);
        let head = receive(&out, HOST, 80);
        assert!(head.starts_with(b"GET /page/7/42.css HTTP/1.1\r\nHost: shop.example.test\r\n"));
        assert_eq!((named(&head), head.len()), (Some((7, 42)), out.len()));
    }

    #[test]
    fn an_answer_keeps_its_framing_on_its_way_to_the_browser() {
        let mut sent = Vec::new();
        let asked = forward(&request(7, 1), &mut sent);
        for (bytes, body) in [(Some(5), &b"hello"[..]), (None, b"5\r\nhello\r\n0\r\n\r\n")] {
            let read = [&answer(1, bytes)[..], body].concat();
            let (length, mut here) = follow(&read);
            let mut out = Vec::new();
            let (same, mut there) = deliver(&read, asked, &mut out);
            assert_eq!(length, same);
            for follower in [&mut here, &mut there] {
                assert_eq!(follower.advance(&read[length..]).map(|all| all.done), Ok(true));
            }
            assert!(
                out.ends_with(b"\r\n\r\n") && out.len() < length,
                "Connection is left out"
            );
        }
    }
}
