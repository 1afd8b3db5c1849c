//! What an answer is stored under (RFC 9111 section 2): scheme, host, port, path and query. The method is not in it because
//! answers to GET alone are stored; HEAD is answered from them, and no other method looks anything up.

use std::borrow::Cow;
use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};

use crate::http::{Authority, Request, Scheme};
use crate::limits::HOST_BYTES_MAX;

/// A URL, as slices of the request that names it.
#[derive(Clone, Copy)]
pub struct Key<'a> {
    scheme: Scheme,
    /// In the case that was sent; compared without it.
    host: &'a str,
    port: u16,
    /// Path and query as sent, byte for byte; empty or beginning with `?` stands for `/` before it.
    path: &'a [u8],
}

impl<'a> Key<'a> {
    /// Over TLS.
    pub fn is_secure(&self) -> bool {
        self.scheme == Scheme::Https
    }

    /// `scheme` where the target names none. `None` if the request names no site, or a site and nothing on it.
    pub fn of(request: &Request<'a>, scheme: Scheme) -> Option<Self> {
        use crate::http::Form;

        let scheme = request.scheme.unwrap_or(scheme);
        let authority = request.authority?;
        matches!(request.form, Form::Origin | Form::Absolute).then_some(())?;
        Some(Self::new(scheme, &authority, request.path))
    }

    fn new(scheme: Scheme, authority: &Authority<'a>, path: &'a [u8]) -> Self {
        Self {
            scheme,
            host: authority.host,
            port: authority.port_or(scheme.default_port()),
            path,
        }
    }

    /// The same for equal keys.
    pub fn hash(&self, state: &RandomState) -> u64 {
        let mut hasher = state.build_hasher();
        let mut host = [0; HOST_BYTES_MAX];
        let host = &mut host[..self.host.len().min(HOST_BYTES_MAX)];
        host.copy_from_slice(&self.host.as_bytes()[..host.len()]);
        host.make_ascii_lowercase();
        hasher.write_u8(self.scheme as u8);
        hasher.write_u16(self.port);
        hasher.write(host);
        // No host has it: what follows cannot be taken for a part of it.
        hasher.write_u8(0xff);
        hasher.write(self.slash());
        hasher.write(self.path);
        hasher.finish()
    }

    /// A copy that outlives the request.
    pub fn to_owned(self) -> OwnedKey {
        OwnedKey {
            scheme: self.scheme,
            host: self.host.to_ascii_lowercase().into(),
            port: self.port,
            path: [self.slash(), self.path].concat().into(),
        }
    }

    /// The same site with another path.
    pub fn with_path<'b>(&self, path: &'b [u8]) -> Key<'b>
    where
        'a: 'b,
    {
        Key {
            scheme: self.scheme,
            host: self.host,
            port: self.port,
            path,
        }
    }

    /// What a reference on this page (Location, Content-Location) names, without fragment (RFC 3986 section 5.2), if it is
    /// on the same site: others must not be touched on its word (RFC 9111 section 4.4).
    pub fn resolve<'b>(&self, reference: &'b [u8]) -> Option<Cow<'b, [u8]>> {
        let end = memchr::memchr(b'#', reference).unwrap_or(reference.len());
        let reference = &reference[..end];
        let path = match scheme_of(reference) {
            Some((scheme, rest)) => {
                scheme
                    .eq_ignore_ascii_case(self.scheme.as_str().as_bytes())
                    .then_some(())?;
                self.on_this_site(rest.strip_prefix(b"//")?)?
            }
            None if reference.starts_with(b"//") => self.on_this_site(&reference[2..])?,
            None => Cow::Borrowed(reference),
        };
        Some(self.merge(path))
    }

    /// Path and query behind an authority.
    fn on_this_site<'b>(&self, rest: &'b [u8]) -> Option<Cow<'b, [u8]>> {
        let at = memchr::memchr2(b'/', b'?', rest).unwrap_or(rest.len());
        let authority = Authority::parse(&rest[..at]).ok()?;
        let default = self.scheme.default_port();
        authority.matches(self.host, self.port, default).then_some(())?;
        Some(match &rest[at..] {
            path @ [b'/', ..] => Cow::Borrowed(path),
            query => Cow::Owned([b"/", query].concat()),
        })
    }

    fn merge<'b>(&self, reference: Cow<'b, [u8]>) -> Cow<'b, [u8]> {
        let own = [self.slash(), self.path].concat();
        let (base, _) = split_query(&own);
        match &*reference {
            [b'/', ..] => without_dots(reference),
            [] => Cow::Owned(own),
            [b'?', ..] => Cow::Owned([base, &reference].concat()),
            _ => {
                let folder = memchr::memrchr(b'/', base).map_or(0, |at| at + 1);
                without_dots(Cow::Owned([&base[..folder], &reference].concat()))
            }
        }
    }

    fn slash(&self) -> &'static [u8] {
        if self.path.first() == Some(&b'/') { b"" } else { b"/" }
    }
}

/// A key that outlives its request.
#[derive(PartialEq, Eq)]
pub struct OwnedKey {
    scheme: Scheme,
    /// Lower case.
    host: Box<str>,
    port: u16,
    /// Begins with `/`.
    path: Box<[u8]>,
}

impl OwnedKey {
    pub fn is(&self, key: &Key<'_>) -> bool {
        self.scheme == key.scheme
            && self.port == key.port
            && self.host.eq_ignore_ascii_case(key.host)
            && self.path.strip_prefix(key.slash()) == Some(key.path)
    }

    /// Bytes on the heap.
    pub fn bytes(&self) -> usize {
        self.host.len() + self.path.len()
    }
}

/// Only where it leads: paths and queries hold secrets.
impl fmt::Debug for OwnedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}:{}/…", self.scheme.as_str(), self.host, self.port)
    }
}

fn scheme_of(reference: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = reference.iter().position(|b| matches!(b, b':' | b'/' | b'?'))?;
    let rest = reference[at..].strip_prefix(b":")?;
    Some((&reference[..at], rest))
}

fn split_query(path: &[u8]) -> (&[u8], &[u8]) {
    path.split_at(memchr::memchr(b'?', path).unwrap_or(path.len()))
}

/// RFC 3986 section 5.2.4, for a path that begins with `/`.
fn without_dots(path: Cow<'_, [u8]>) -> Cow<'_, [u8]> {
    let (base, query) = split_query(&path);
    let is_dots = |segment: &[u8]| segment == b"." || segment == b"..";
    if !base.split(|b| *b == b'/').any(is_dots) {
        return path;
    }
    let mut kept: Vec<&[u8]> = Vec::new();
    let mut folder = false;
    for segment in base[1..].split(|b| *b == b'/') {
        folder = is_dots(segment);
        match segment {
            b"." => {}
            b".." => drop(kept.pop()),
            name => kept.push(name),
        }
    }
    let mut out = Vec::with_capacity(path.len());
    for segment in kept {
        out.push(b'/');
        out.extend_from_slice(segment);
    }
    if folder || out.is_empty() {
        out.push(b'/');
    }
    out.extend_from_slice(query);
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(authority: &'static str, scheme: Scheme, path: &'static str) -> Key<'static> {
        Key::new(
            scheme,
            &Authority::parse(authority.as_bytes()).unwrap(),
            path.as_bytes(),
        )
    }

    #[test]
    fn each_part_tells_keys_apart() {
        let state = RandomState::new();
        let first = key("a.test", Scheme::Http, "/x?y");
        for same in [
            key("A.TEST", Scheme::Http, "/x?y"),
            key("a.test:80", Scheme::Http, "/x?y"),
        ] {
            assert!(first.to_owned().is(&same) && first.hash(&state) == same.hash(&state));
        }
        for other in [
            key("b.test", Scheme::Http, "/x?y"),
            key("a.test", Scheme::Https, "/x?y"),
            key("a.test:80", Scheme::Https, "/x?y"),
            key("a.test:81", Scheme::Http, "/x?y"),
            key("a.test", Scheme::Http, "/X?y"),
            key("a.test", Scheme::Http, "/x?Y"),
            key("a.test", Scheme::Http, "/x"),
            key("a.test", Scheme::Http, "/x?y&"),
            key("a.test", Scheme::Http, "/%78?y"),
        ] {
            assert!(!first.to_owned().is(&other) && first.hash(&state) != other.hash(&state));
        }
    }

    #[test]
    fn an_empty_path_is_the_root() {
        let state = RandomState::new();
        for (bare, root) in [("", "/"), ("?a", "/?a")] {
            let (bare, root) = (key("a", Scheme::Http, bare), key("a", Scheme::Http, root));
            assert!(bare.to_owned() == root.to_owned() && bare.to_owned().is(&root) && root.to_owned().is(&bare));
            assert_eq!(bare.hash(&state), root.hash(&state));
        }
        assert!(!key("a", Scheme::Http, "").to_owned().is(&key("a", Scheme::Http, "/x")));
    }

    #[test]
    fn a_reference_on_the_same_site_is_resolved() {
        let base = key("A.test:8080", Scheme::Http, "/b/c/d?q");
        for (reference, want) in [
            ("/x", Some("/x")),
            ("/x?y#z", Some("/x?y")),
            ("http://a.test:8080/x", Some("/x")),
            ("HTTP://A.Test:8080", Some("/")),
            ("http://a.test:8080?y", Some("/?y")),
            ("//a.test:8080/x", Some("/x")),
            ("", Some("/b/c/d?q")),
            ("#z", Some("/b/c/d?q")),
            ("?y", Some("/b/c/d?y")),
            ("g", Some("/b/c/g")),
            ("./g/.", Some("/b/c/g/")),
            ("../g", Some("/b/g")),
            ("../../../g", Some("/g")),
            ("..", Some("/b/")),
            ("/a/../../x/", Some("/x/")),
            ("g?y/../x", Some("/b/c/g?y/../x")),
            ("http://a.test/x", None),
            ("http://b.test:8080/x", None),
            ("https://a.test:8080/x", None),
            ("http:/x", None),
            ("//user@a.test:8080/x", None),
            ("mailto:x", None),
        ] {
            let got = base.resolve(reference.as_bytes());
            assert_eq!(got.as_deref(), want.map(str::as_bytes), "{reference}");
        }
    }

    #[test]
    fn what_a_url_may_hold_is_not_shown() {
        let shown = format!("{:?}", key("a.test", Scheme::Http, "/reset?token=s3cret").to_owned());
        assert!(shown.contains("a.test") && !shown.contains("s3cret") && !shown.contains("reset"));
    }
}
