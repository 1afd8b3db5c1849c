//! Cache-Control (RFC 9111 section 5.2), of requests and of answers. Unknown directives mean nothing; one that is there
//! but not understood counts as the strictest reading of it. `CDN-Cache-Control` and the like are for others.

use crate::limits::CACHE_NAME_LISTS_MAX;

/// The largest number of seconds that is told apart (RFC 9111 section 1.2.2).
pub const SECONDS_MAX: u64 = 1 << 31;

/// Digits and nothing else; more than [`SECONDS_MAX`] is as much.
pub fn delta_seconds(value: &[u8]) -> Option<u64> {
    let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    digits.then(|| {
        value
            .iter()
            .fold(0, |n: u64, d| (n * 10 + u64::from(d - b'0')).min(SECONDS_MAX))
    })
}

/// What a request allows.
#[derive(Clone, Copy, Debug, Default)]
pub struct RequestControl {
    pub no_cache: bool,
    pub no_store: bool,
    pub only_if_cached: bool,
    pub max_age: Option<u64>,
    /// How stale an answer may be; without a number as stale as it is.
    pub max_stale: Option<u64>,
    pub min_fresh: Option<u64>,
    /// RFC 5861 section 4.
    pub stale_if_error: Option<u64>,
    /// The field is there: then Pragma means nothing.
    pub present: bool,
}

impl RequestControl {
    /// Takes a line of the field.
    pub fn read(&mut self, value: &[u8]) {
        self.present = true;
        for directive in directives(value) {
            let is = |name: &str| directive.name.eq_ignore_ascii_case(name.as_bytes());
            let strict = || directive.seconds().unwrap_or(0);
            match directive.name.len() {
                7 if is("max-age") => self.max_age = least(self.max_age, strict()),
                8 if is("no-cache") => self.no_cache = true,
                8 if is("no-store") => self.no_store = true,
                9 if is("min-fresh") => {
                    let seconds = directive.seconds().unwrap_or(SECONDS_MAX);
                    self.min_fresh = Some(self.min_fresh.unwrap_or(0).max(seconds));
                }
                9 if is("max-stale") => {
                    let seconds = if directive.value.is_none() {
                        SECONDS_MAX
                    } else {
                        strict()
                    };
                    self.max_stale = least(self.max_stale, seconds);
                }
                14 if is("only-if-cached") => self.only_if_cached = true,
                14 if is("stale-if-error") => self.stale_if_error = least(self.stale_if_error, strict()),
                _ => {}
            }
        }
    }

    /// It wants an answer better than any that is fresh.
    pub fn is_demanding(&self) -> bool {
        self.no_cache || self.max_age.is_some() || self.min_fresh.is_some()
    }
}

/// What an answer allows.
#[derive(Clone, Copy, Debug, Default)]
pub struct ResponseControl<'a> {
    pub no_cache: bool,
    pub no_store: bool,
    pub private: bool,
    pub public: bool,
    /// Also `proxy-revalidate`, and `s-maxage` (RFC 9111 section 5.2.2.10).
    pub must_revalidate: bool,
    pub must_understand: bool,
    /// Lets a shared cache keep an answer to a request with Authorization (RFC 9111 section 3.5).
    pub shares_authorized: bool,
    pub max_age: Option<u64>,
    pub s_maxage: Option<u64>,
    /// RFC 5861 section 3.
    pub stale_while_revalidate: Option<u64>,
    /// RFC 5861 section 4.
    pub stale_if_error: Option<u64>,
    lists: [&'a [u8]; CACHE_NAME_LISTS_MAX],
}

impl<'a> ResponseControl<'a> {
    /// Takes a line of the field.
    pub fn read(&mut self, value: &'a [u8]) {
        for directive in directives(value) {
            let is = |name: &str| directive.name.eq_ignore_ascii_case(name.as_bytes());
            let seconds = || directive.seconds().unwrap_or(0);
            match directive.name.len() {
                6 if is("public") => {
                    self.public = true;
                    self.shares_authorized = true;
                }
                7 if is("max-age") => self.max_age = least(self.max_age, seconds()),
                7 if is("private") => self.private |= !self.keep_back(directive.value),
                8 if is("no-cache") => self.no_cache |= !self.keep_back(directive.value),
                8 if is("no-store") => self.no_store = true,
                8 if is("s-maxage") => {
                    self.s_maxage = least(self.s_maxage, seconds());
                    self.must_revalidate = true;
                    self.shares_authorized = true;
                }
                14 if is("stale-if-error") => self.stale_if_error = least(self.stale_if_error, seconds()),
                15 if is("must-revalidate") => {
                    self.must_revalidate = true;
                    self.shares_authorized = true;
                }
                15 if is("must-understand") => self.must_understand = true,
                16 if is("proxy-revalidate") => self.must_revalidate = true,
                22 if is("stale-while-revalidate") => {
                    self.stale_while_revalidate = least(self.stale_while_revalidate, seconds());
                }
                _ => {}
            }
        }
        // Whatever stood behind a quote that is not closed was swallowed by it: it may have been `no-store`.
        self.no_store |= has_open_quote(value);
    }

    /// A field that `no-cache="…"` or `private="…"` names: it is for one request only.
    pub fn keeps_back(&self, name: &[u8]) -> bool {
        let mut names = self.lists.iter().flat_map(|list| items(list));
        names.any(|listed| listed.eq_ignore_ascii_case(name))
    }

    /// Notes the names of a directive. False: it has none, or there is no room, so that it is about the whole answer.
    fn keep_back(&mut self, names: Option<&'a [u8]>) -> bool {
        let Some(names) = names.filter(|names| items(names).next().is_some()) else {
            return false;
        };
        let place = self.lists.iter_mut().find(|list| list.is_empty());
        place.map(|place| *place = names).is_some()
    }
}

/// RFC 9111 section 4.2.1 wants the first of several values, or the answer taken for stale: the least is never later
/// than the first.
fn least(before: Option<u64>, seconds: u64) -> Option<u64> {
    Some(before.map_or(seconds, |b| b.min(seconds)))
}

/// `name`, `name=token` or `name="string"`.
struct Directive<'a> {
    name: &'a [u8],
    /// Without its quotes.
    value: Option<&'a [u8]>,
    /// There is white space around `=`, which the grammar does not know.
    spaced: bool,
}

impl Directive<'_> {
    fn seconds(&self) -> Option<u64> {
        let value = self.value.filter(|_| !self.spaced);
        value.and_then(delta_seconds)
    }
}

fn directives(value: &[u8]) -> impl Iterator<Item = Directive<'_>> {
    items(value).map(|item| match memchr::memchr(b'=', item) {
        None => Directive {
            name: item,
            value: None,
            spaced: false,
        },
        Some(at) => {
            let (name, value) = (item[..at].trim_ascii_end(), item[at + 1..].trim_ascii_start());
            let unquoted = value.strip_prefix(b"\"").and_then(|v| v.strip_suffix(b"\""));
            Directive {
                name,
                value: Some(unquoted.unwrap_or(value)),
                spaced: name.len() != at || name.len() + 1 + value.len() != item.len(),
            }
        }
    })
}

/// The members of a comma-separated list whose members may hold quoted strings, trimmed, empty ones left out.
pub fn items(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut quotes = Quotes::default();
    value
        .split(move |b| !quotes.take(*b) && *b == b',')
        .map(<[u8]>::trim_ascii)
        .filter(|item| !item.is_empty())
}

fn has_open_quote(value: &[u8]) -> bool {
    let mut quotes = Quotes::default();
    value.iter().fold(false, |_, b| quotes.take(*b))
}

/// Follows quoted strings (RFC 9110 section 5.6.4).
#[derive(Default)]
struct Quotes {
    inside: bool,
    escaped: bool,
}

impl Quotes {
    /// Whether the string goes on behind this byte.
    fn take(&mut self, byte: u8) -> bool {
        match byte {
            _ if self.escaped => self.escaped = false,
            b'\\' if self.inside => self.escaped = true,
            b'"' => self.inside = !self.inside,
            _ => {}
        }
        self.inside
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response<'a>(lines: &[&'a str]) -> ResponseControl<'a> {
        let mut control = ResponseControl::default();
        lines.iter().for_each(|line| control.read(line.as_bytes()));
        control
    }

    fn request(lines: &[&str]) -> RequestControl {
        let mut control = RequestControl::default();
        lines.iter().for_each(|line| control.read(line.as_bytes()));
        control
    }

    #[test]
    fn a_number_is_digits_and_the_least_counts() {
        for (line, want) in [
            ("max-age=3600", Some(3600)),
            ("MaX-aGe=3600", Some(3600)),
            ("max-age=\"3600\"", Some(3600)),
            ("max-age=003600", Some(3600)),
            (" , max-age=3600 ,", Some(3600)),
            ("foobar, max-age=3600;x", Some(0)),
            ("max-age=99999999999999999999999", Some(SECONDS_MAX)),
            ("max-age=0", Some(0)),
            ("max-age", Some(0)),
            ("max-age=", Some(0)),
            ("max-age=-3600", Some(0)),
            ("max-age='3600'", Some(0)),
            ("max-age=3600.0", Some(0)),
            ("max-age=a3600", Some(0)),
            ("max-age=3600a", Some(0)),
            ("max-age =3600", Some(0)),
            ("max-age= 3600", Some(0)),
            ("max-age=3600, max-age=1", Some(1)),
            ("max-age=1, max-age=3600", Some(1)),
            ("extension=\"max-age=3600\", max-age=1", Some(1)),
            ("max-age=1, extension=\"max-age=3600\"", Some(1)),
            ("extension=\"\\\", max-age=3600\"", None),
            ("x-max-age=3600", None),
            ("", None),
        ] {
            assert_eq!(response(&[line]).max_age, want, "{line}");
        }
        assert_eq!(response(&["max-age=3600", "max-age=60"]).max_age, Some(60));
        assert_eq!(response(&["max-age=1", "s-maxage=60"]).s_maxage, Some(60));
    }

    #[test]
    fn restrictions_hold_however_they_are_written() {
        for line in [
            "no-store",
            "No-StOrE",
            "max-age=1,no-store ,x",
            "no-store=1",
            "x=\"y, no-store",
            "\"a\\\"",
        ] {
            assert!(response(&[line]).no_store, "{line}");
        }
        for line in ["no-storex", "x=\"no-store\"", "x=no-store", "x=\"a\\\"b\", no-stor"] {
            assert!(!response(&[line]).no_store, "{line}");
        }
        assert!(response(&["private"]).private && response(&["private=\"\""]).private);
        assert!(response(&["no-cache=\" , \""]).no_cache);
        let control = response(&["s-maxage=5"]);
        assert!(control.must_revalidate && control.shares_authorized);
        let control = response(&["proxy-revalidate"]);
        assert!(control.must_revalidate && !control.shares_authorized);
    }

    #[test]
    fn named_fields_are_kept_back_alone() {
        let control = response(&["no-cache=\"a, B\", max-age=5", "private=c"]);
        assert!(!control.no_cache && !control.private);
        assert!(control.keeps_back(b"A") && control.keeps_back(b"b") && control.keeps_back(b"c"));
        assert!(!control.keeps_back(b"d"));
        let many = "no-cache=a, no-cache=b, no-cache=c, no-cache=d, no-cache=e";
        assert!(response(&[many]).no_cache, "no room for the names: all of it");
    }

    #[test]
    fn requests_are_read_strictly() {
        let control = request(&["max-age=5, max-stale, min-fresh=7", "max-stale=9"]);
        assert_eq!(
            (control.max_age, control.max_stale, control.min_fresh),
            (Some(5), Some(9), Some(7))
        );
        assert_eq!(request(&["max-stale"]).max_stale, Some(SECONDS_MAX));
        assert_eq!(request(&["max-stale=x, max-age=x, min-fresh=x"]).max_stale, Some(0));
        assert_eq!(request(&["max-age=x"]).max_age, Some(0));
        assert_eq!(request(&["min-fresh=x"]).min_fresh, Some(SECONDS_MAX));
        assert!(request(&["only-if-cached"]).only_if_cached && request(&["NO-CACHE"]).no_cache);
        let unknown = request(&["nothing-to-see-here"]);
        assert!(unknown.present && !unknown.is_demanding() && !unknown.no_store);
    }
}
