//! Our own account: the requests that this proxy reads in the bytes of a browser, as the site is to see them.

use aws_lc_rs::digest::{SHA256, digest};
use dataplane::http::{Body, Finder, Form, Request, Scheme, rewrite};

/// A request as everybody has to count it.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Seen {
    pub method: Vec<u8>,
    /// As the site reads it.
    pub target: Vec<u8>,
    /// Without chunks.
    pub body: Vec<u8>,
}

impl Seen {
    /// By which the programs on both sides name it.
    pub fn digest(&self) -> String {
        let parts = [&self.method[..], b" ", &self.target, b"\n", &self.body].concat();
        let digest = digest(&SHA256, &parts);
        digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// What follows the last whole request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// Nothing: the connection waits for the next request.
    Nothing,
    /// The last request asked for the end of its connection: what follows is read by nobody.
    Closed,
    /// A head that is refused with this status.
    Refused(u16),
    /// A request whose body breaks its framing.
    Broken,
    /// The beginning of a head.
    Head,
    /// A head, and not all of its body.
    Body,
}

/// What one connection carried.
pub struct Reading {
    pub requests: Vec<Seen>,
    pub rest: Rest,
}

/// Where browsers send their requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// To the proxy port, for whole URLs.
    Absolute,
    /// Into a CONNECT for the site, or to the site itself.
    Origin,
    /// Into TLS in a CONNECT for the site.
    Secured,
}

impl Way {
    fn scheme(self) -> Scheme {
        match self {
            Self::Absolute | Self::Origin => Scheme::Http,
            Self::Secured => Scheme::Https,
        }
    }
}

/// Reads a connection's bytes. None if they hold a request for another place than `site`, which nobody is to be asked for.
pub fn read(mut bytes: &[u8], way: Way, site: &str) -> Option<Reading> {
    let mut requests = Vec::new();
    let rest = loop {
        if bytes.is_empty() {
            break Rest::Nothing;
        }
        let length = match Finder::request().find(bytes) {
            Ok(Some(length)) => length,
            Ok(None) => break Rest::Head,
            Err(bad) => break Rest::Refused(bad.status),
        };
        let (head, after) = bytes.split_at(length);
        let mut request = match Request::parse(head) {
            Ok(request) => request,
            Err(bad) => break Rest::Refused(bad.status),
        };
        match (request.form, way) {
            (Form::Authority, _) => return None,
            (Form::Absolute, _) if request.scheme != Some(way.scheme()) => return None,
            (Form::Origin | Form::Asterisk, Way::Absolute) => break Rest::Refused(400),
            _ => {}
        }
        match request.authority {
            Some(authority) if authority.raw != site => return None,
            Some(_) => {}
            None => request.authority = dataplane::http::Authority::parse(site.as_bytes()).ok(),
        }
        let mut seen = Seen {
            method: request.method.as_bytes().to_vec(),
            target: target(&request),
            body: Vec::new(),
        };
        let mut body = Body::new(request.framing);
        let mut at = 0;
        let broken = loop {
            let Ok(run) = body.run(&after[at..]) else {
                break true;
            };
            if run.data {
                seen.body.extend_from_slice(&after[at..at + run.bytes]);
            }
            at += run.bytes;
            if run.done || run.bytes == 0 {
                break false;
            }
        };
        if broken {
            break Rest::Broken;
        }
        if !body.is_done() {
            break Rest::Body;
        }
        requests.push(seen);
        bytes = &after[at..];
        if !request.keep_alive {
            break Rest::Closed;
        }
    };
    Some(Reading { requests, rest })
}

fn target(request: &Request<'_>) -> Vec<u8> {
    let mut head = Vec::new();
    rewrite::request(request, &[], &mut head);
    let target = head.split(|byte| *byte == b' ').nth(1);
    target.unwrap_or_default().to_vec()
}
