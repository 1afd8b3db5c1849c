//! What the cache must know of a request: read in one pass over its fields, without allocating.

use super::control::RequestControl;
use super::key::Key;
use crate::http::{Fields, Framing, Request, Scheme, Version};
use crate::limits::HEAD_FIELDS_MAX;

/// What the caller knows of the site of a request.
#[derive(Clone, Copy, Debug)]
pub struct Site {
    /// Of requests whose target names none.
    pub scheme: Scheme,
    /// Its certificate is in order (TLS verdict 0), or there is none. Of other sites nothing is stored and nothing served.
    pub trusted: bool,
    /// `-a` adds credentials to what it is asked: each request counts as one with Authorization.
    pub authorized: bool,
}

/// What may become of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// Looked up, and its answer stored.
    Get,
    /// Looked up; its answer confirms or refutes the stored one (RFC 9111 section 4.3.5).
    Head,
    /// Sent on.
    Pass,
    /// Sent on; if it succeeds, what is stored is not true any more (RFC 9111 section 4.4).
    Unsafe,
}

/// A request as the cache sees it.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    pub(super) request: Request<'a>,
    pub(super) key: Key<'a>,
    pub(super) plan: Plan,
    pub(super) control: RequestControl,
    pub(super) authorized: bool,
    /// The answer may be meant for one session.
    pub(super) cookie: bool,
    pub(super) range: Option<&'a [u8]>,
    pub(super) if_range: Option<&'a [u8]>,
    pub(super) if_none_match: bool,
    pub(super) if_modified_since: Option<&'a [u8]>,
    fields: usize,
}

impl<'a> Asked<'a> {
    /// `None` for what has no URL (CONNECT, `OPTIONS *`): the cache has no part in it.
    pub fn read(request: &Request<'a>, site: Site) -> Option<Self> {
        let mut asked = Self {
            request: *request,
            key: Key::of(request, site.scheme)?,
            plan: Plan::Pass,
            control: RequestControl::default(),
            authorized: site.authorized,
            cookie: false,
            range: None,
            if_range: None,
            if_none_match: false,
            if_modified_since: None,
            fields: 0,
        };
        let bodyless = matches!(request.framing, Framing::None | Framing::Length(0));
        asked.plan = match request.method {
            "GET" if bodyless && !request.upgrade => Plan::Get,
            "HEAD" if bodyless => Plan::Head,
            "GET" | "HEAD" | "OPTIONS" | "TRACE" => Plan::Pass,
            _ => Plan::Unsafe,
        };
        if matches!(asked.plan, Plan::Get | Plan::Head) {
            let odd = asked.read_fields();
            // What a hop keeps to itself cannot tell one answer from another.
            if odd || !site.trusted || asked.control.no_store || request.lists_fields {
                asked.plan = Plan::Pass;
            }
        }
        Some(asked)
    }

    /// Says whether it asks for something that only the site can judge.
    fn read_fields(&mut self) -> bool {
        let (mut odd, mut pragma) = (false, false);
        for field in self.request.fields() {
            self.fields += 1;
            // By length first: most fields are none of these.
            match field.name.len() {
                5 if field.is("Range") => odd |= self.range.replace(field.value).is_some(),
                6 if field.is("Cookie") => self.cookie = true,
                6 if field.is("Pragma") => pragma |= field.value.eq_ignore_ascii_case(b"no-cache"),
                8 if field.is("If-Range") => odd |= self.if_range.replace(field.value).is_some(),
                8 if field.is("If-Match") => odd = true,
                13 if field.is("If-None-Match") => self.if_none_match = true,
                13 if field.is("Authorization") => self.authorized = true,
                13 if field.is("Cache-Control") => self.control.read(field.value),
                17 if field.is("If-Modified-Since") => odd |= self.if_modified_since.replace(field.value).is_some(),
                19 if field.is("If-Unmodified-Since") => odd = true,
                _ => {}
            }
        }
        // RFC 9111 section 5.4: what HTTP/1.0 had instead.
        self.control.no_cache |= pragma && !self.control.present;
        odd
    }

    /// The request itself.
    pub fn request(&self) -> &Request<'a> {
        &self.request
    }

    /// What is stored may not be true any more once it has succeeded.
    pub fn is_unsafe(&self) -> bool {
        self.plan == Plan::Unsafe
    }

    pub(super) fn headers(&self) -> Fields<'a> {
        self.request.fields()
    }

    /// Others may wait for its answer: it asks for a whole one that is nobody's own.
    pub(super) fn is_common(&self) -> bool {
        self.plan == Plan::Get
            && !self.authorized
            && !self.control.is_demanding()
            && self.range.is_none()
            && !self.is_conditional()
    }

    pub(super) fn is_conditional(&self) -> bool {
        self.if_none_match || self.if_modified_since.is_some()
    }

    /// The request has room for a condition, and for the Host that rewriting may add.
    pub(super) fn has_room(&self) -> bool {
        self.fields + 2 <= HEAD_FIELDS_MAX
    }

    pub(super) fn may_be_kept_alive(&self) -> bool {
        self.request.version == Version::Http11
    }
}
