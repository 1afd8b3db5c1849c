//! Requests that no browser waits for: an answer that was given stale is asked for anew (RFC 5861 section 3).

use super::browser::open_of;
use super::cached::{ask, kept, now};
use super::flow::{End, Inlet};
use crate::cache::{Answer, Asked, Fetch, Fill};
use crate::http::{Body, Finder, Framing, Request, Response, Scheme, Version};
use crate::limits::{CACHE_REFRESH_TIME_MAX, INTERIM_ANSWERS_MAX};
use crate::mux::Kind;
use crate::rules::Route;
use crate::shard::pair::{Either, select};
use crate::shard::{Shard, Stream, buffers, timers};

/// What the target and a condition add to a head.
const HEAD_GROWTH_BYTES: usize = 128;

/// Sends the request again, if there is room for one more. `member` of the pool: the one that the browser asks, if it matters.
pub(super) fn start(shard: &Shard, request: &Request<'_>, member: Option<[u8; 16]>, fetch: Fetch) {
    if shard.dismisses() {
        return;
    }
    let Some(place) = shard.take_refresh() else { return };
    let (head, rules) = (owned(request), shard.rules_version());
    let own = shard.clone();
    shard.spawn(async move {
        let _place = place;
        timers::timeout(CACHE_REFRESH_TIME_MAX, refresh(&own, &head, rules, member, fetch)).await;
    });
}

/// The head as one for a whole URL, which needs no connection around it.
fn owned(request: &Request<'_>) -> Vec<u8> {
    let version = match request.version {
        Version::Http10 => "HTTP/1.0",
        Version::Http11 => "HTTP/1.1",
    };
    let authority = request.authority.map_or("", |a| a.raw);
    let scheme = request.scheme.unwrap_or(Scheme::Http).as_str();
    [
        format!("{} {scheme}://{authority}", request.method).as_bytes(),
        request.path,
        format!(" {version}\r\n").as_bytes(),
        request.fields().rest(),
    ]
    .concat()
}

/// None if it came to nothing: then the answer is as stale as it was.
async fn refresh(shard: &Shard, head: &[u8], rules: u32, member: Option<[u8; 16]>, mut fetch: Fetch) -> Option<()> {
    let request = Request::parse(head).ok()?;
    // Nothing of a site that is not is ever stored.
    let asked = ask(shard, &request, true)?;
    // The second time without a condition: what the site confirmed was not what is stored.
    for _ in 0..2 {
        let stream = open(shard, &request, rules, member).await?;
        stream.count_request();
        // Nobody waits for it: least of all a drain.
        fetch = match select(exchange(&stream, &asked, fetch), stream.draining()).await {
            Either::Left(Some(Some(again))) => again,
            Either::Left(Some(None)) => return Some(()),
            Either::Left(None) | Either::Right(()) => return None,
        };
    }
    None
}

/// Asks the site and stores its answer; gives back what to ask it with once more, if need be.
async fn exchange(stream: &Stream, asked: &Asked<'_>, fetch: Fetch) -> Option<Option<Fetch>> {
    let request = asked.request();
    let mut out = buffers::head_room(request.head_bytes() + HEAD_GROWTH_BYTES);
    fetch.write_request(asked, &[], &mut out);
    stream.send_frame(out).await.ok()?;
    stream.finish(None);
    let mut inlet = Inlet::new(stream);
    let answer = final_head(&mut inlet).await?;
    let response = Response::parse(&answer, request.method, false).ok()?;
    let again = match fetch.answer(asked, &response, now()) {
        Answer::Keep(_, fill) => {
            keep(&mut inlet, response.framing, *fill).await?;
            None
        }
        Answer::Relay(_) | Answer::Stored(_) => None,
        Answer::Again(again) => Some(again),
    };
    inlet.settle().await;
    Some(again)
}

/// None if `rules` are not those in force any more: what was under way then is not stored.
async fn open(shard: &Shard, request: &Request<'_>, rules: u32, member: Option<[u8; 16]>) -> Option<Stream> {
    let authority = request.authority?;
    let scheme = request.scheme.unwrap_or(Scheme::Http);
    let kind = match scheme {
        Scheme::Http => Kind::Http,
        Scheme::Https => Kind::Https,
    };
    let in_force = || shard.rules_version() == rules;
    if !in_force() {
        return None;
    }
    let open = open_of(shard, kind, authority.host, authority.port_or(scheme.default_port()));
    let route = shard.rules().routes.of(authority.host);
    let opened = match route {
        Route::Direct => shard.open_direct(open).ok(),
        Route::Tunnel => shard.open(open, member).await.ok(),
    };
    opened.filter(|_| in_force())
}

async fn final_head(inlet: &mut Inlet<'_>) -> Option<bytes::Bytes> {
    let mut finder = Finder::response();
    for _ in 0..INTERIM_ANSWERS_MAX {
        let head = inlet.head(&mut finder).await.ok()?;
        if !Response::parse(&head, "GET", false).ok()?.is_interim() {
            return Some(head);
        }
    }
    None
}

/// Stores a body.
async fn keep(inlet: &mut Inlet<'_>, framing: Framing, mut fill: Fill) -> Option<()> {
    let mut body = Body::new(framing);
    while !body.is_done() {
        inlet.fill().await;
        match inlet.end() {
            Some(End::Fin) if body.clean_end() => break,
            Some(_) => return None,
            None => {}
        }
        let taken = kept(&mut body, inlet.slice(), &mut fill).ok()?;
        if fill.is_given_up() {
            return None;
        }
        inlet.skip(taken);
    }
    fill.commit(now());
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_of_its_own_means_the_same() {
        for head in [
            "GET http://a.test:81?x HTTP/1.1\r\nHost: a.test:81\r\nX-Lang: a\r\n\r\n",
            "GET http://a.test/x HTTP/1.0\r\n\r\n",
        ] {
            let request = Request::parse(head.as_bytes()).unwrap();
            assert_eq!(String::from_utf8(owned(&request)).unwrap(), head);
        }
        let mut inside = Request::parse(b"GET /x HTTP/1.1\r\nHost: a.test\r\n\r\n").unwrap();
        inside.scheme = Some(Scheme::Http);
        assert_eq!(owned(&inside), b"GET http://a.test/x HTTP/1.1\r\nHost: a.test\r\n\r\n");
    }
}
