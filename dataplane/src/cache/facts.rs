//! What the cache must know of an answer: read in one pass over its fields.

use super::control::{ResponseControl, SECONDS_MAX, delta_seconds};
use super::date;
use super::vary::Names;
use crate::http::Fields;
use crate::limits::CACHE_HEURISTIC_MAX;

/// What an answer says of itself.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Facts<'a> {
    pub control: ResponseControl<'a>,
    pub vary: Names<'a>,
    /// Seconds; 0 where none was named, or no number (RFC 9111 section 5.1).
    pub age: u64,
    pub etag: Option<&'a [u8]>,
    pub last_modified: Option<u64>,
    /// The field is there, whatever it says.
    pub has_date: bool,
    pub date: Option<u64>,
    pub sets_cookie: bool,
    expires: Expires,
    has_age: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Expires {
    #[default]
    Absent,
    /// Past.
    Invalid,
    At(u64),
}

/// How long an answer is fresh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lifetime {
    pub seconds: u64,
    /// The site said so; otherwise it is a guess.
    pub explicit: bool,
}

impl<'a> Facts<'a> {
    /// `wall`: seconds since 1970.
    pub fn read(fields: Fields<'a>, wall: u64) -> Self {
        let mut facts = Self::default();
        for field in fields {
            match field.name.len() {
                3 if field.is("Age") => facts.read_age(field.value),
                4 if field.is("Date") => {
                    facts.has_date = true;
                    facts.date = facts.date.or(date::parse(field.value, wall));
                }
                4 if field.is("ETag") => facts.etag = facts.etag.or(Some(field.value)),
                4 if field.is("Vary") => facts.vary.read(field.value),
                7 if field.is("Expires") => facts.read_expires(field.value, wall),
                10 if field.is("Set-Cookie") => facts.sets_cookie = true,
                13 if field.is("Cache-Control") => facts.control.read(field.value),
                13 if field.is("Last-Modified") => {
                    facts.last_modified = facts.last_modified.or(date::parse(field.value, wall));
                }
                _ => {}
            }
        }
        facts
    }

    /// RFC 9111 section 5.1: the first member of the first line.
    fn read_age(&mut self, value: &[u8]) {
        if !std::mem::replace(&mut self.has_age, true) {
            let first = value.split(|b| *b == b',').next().unwrap_or_default();
            self.age = delta_seconds(first.trim_ascii()).unwrap_or(0);
        }
    }

    /// Two that differ say nothing.
    fn read_expires(&mut self, value: &[u8], wall: u64) {
        let read = date::parse(value, wall).map_or(Expires::Invalid, Expires::At);
        self.expires = match self.expires {
            Expires::Absent => read,
            before if before == read => read,
            _ => Expires::Invalid,
        };
    }

    /// RFC 9111 section 4.2.1. `heuristic`: the status allows a guess; `received` stands for a Date that is missing.
    pub fn lifetime(&self, heuristic: bool, received: u64) -> Lifetime {
        let explicit = |seconds: u64| Lifetime {
            seconds: seconds.min(SECONDS_MAX),
            explicit: true,
        };
        let date = self.date.unwrap_or(received);
        match (self.control.s_maxage.or(self.control.max_age), self.expires) {
            (Some(seconds), _) => explicit(seconds),
            (None, Expires::At(expires)) => explicit(expires.saturating_sub(date)),
            (None, Expires::Invalid) => explicit(0),
            (None, Expires::Absent) => {
                let unchanged = self.last_modified.map_or(0, |modified| date.saturating_sub(modified));
                let guess = if heuristic || self.control.public {
                    unchanged / 10
                } else {
                    0
                };
                Lifetime {
                    seconds: guess.min(CACHE_HEURISTIC_MAX.as_secs()),
                    explicit: false,
                }
            }
        }
    }
}
