//! Which request fields chose an answer (RFC 9111 section 4.1).

use sha2::{Digest, Sha256};

use super::control::items;
use crate::http::Fields;
use crate::limits::CACHE_VARY_NAMES_MAX;

/// What the Vary fields of an answer list.
#[derive(Clone, Copy, Debug, Default)]
pub struct Names<'a> {
    names: [&'a [u8]; CACHE_VARY_NAMES_MAX],
    len: usize,
    /// `*`, or more names than are looked at: no other request is known to be alike.
    pub star: bool,
}

impl<'a> Names<'a> {
    /// Takes a line of the field.
    pub fn read(&mut self, value: &'a [u8]) {
        for name in items(value) {
            match self.names.get_mut(self.len) {
                Some(place) if name != b"*" => {
                    *place = name;
                    self.len += 1;
                }
                _ => self.star = true,
            }
        }
    }
}

/// The request fields that an answer was chosen by, and a digest of what they said: their values may be secrets
/// (`Vary: Cookie`), and long.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Variant {
    /// Lower case, sorted.
    names: Box<[Box<[u8]>]>,
    digest: [u8; 32],
}

impl Variant {
    /// Of the answer to a request with these fields.
    pub fn of(names: &Names<'_>, fields: &Fields<'_>) -> Self {
        if names.len == 0 {
            return Self::default();
        }
        let mut lower: Vec<Box<[u8]>> = names.names[..names.len]
            .iter()
            .map(|name| name.to_ascii_lowercase().into())
            .collect();
        lower.sort();
        lower.dedup();
        Self {
            digest: digest(&lower, fields),
            names: lower.into(),
        }
    }

    /// Whether a request with these fields would have been given the same answer.
    pub fn matches(&self, fields: &Fields<'_>) -> bool {
        self.is_all() || digest(&self.names, fields) == self.digest
    }

    /// It was not chosen by any field.
    pub fn is_all(&self) -> bool {
        self.names.is_empty()
    }

    /// Tells apart requests that this answer's Vary tells apart; 0 if there is no Vary.
    pub fn mark(&self, fields: &Fields<'_>) -> u64 {
        if self.is_all() {
            return 0;
        }
        let [a, b, c, d, e, f, g, h, ..] = digest(&self.names, fields);
        u64::from_be_bytes([a, b, c, d, e, f, g, h])
    }

    /// Bytes on the heap.
    pub fn bytes(&self) -> usize {
        self.names.iter().map(|name| size_of_val(name) + name.len()).sum()
    }
}

/// Absent and empty are different; lines are joined, and white space around commas outside of quotes means nothing.
fn digest(names: &[Box<[u8]>], fields: &Fields<'_>) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for name in names {
        let lines = fields.clone().filter(|field| field.name.eq_ignore_ascii_case(name));
        let mut present = false;
        for field in lines {
            present = true;
            for item in items(field.value) {
                hasher.update([b',']);
                feed(&mut hasher, name, item);
            }
        }
        // No value holds these.
        hasher.update([u8::from(present), b'\n']);
    }
    hasher.finalize().into()
}

/// Names of languages and codings have no case, and their parameters no significant white space. Their order may mean
/// something to a site, so it stays.
fn feed(hasher: &mut Sha256, name: &[u8], item: &[u8]) {
    if matches!(name, b"accept-language" | b"accept-encoding" | b"accept-charset") {
        for word in item.split(|b| b.is_ascii_whitespace()) {
            hasher.update(word.to_ascii_lowercase());
        }
    } else {
        hasher.update(item);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(lines: &[&str]) -> Vec<u8> {
        let lines = lines.iter().map(|line| format!("{line}\r\n"));
        ["GET / HTTP/1.1\r\n".to_owned(), lines.collect(), "\r\n".to_owned()]
            .concat()
            .into_bytes()
    }

    #[track_caller]
    fn alike(vary: &[&str], stored: &[&str], asked: &[&str], want: bool) {
        let (stored, asked) = (fields(stored), fields(asked));
        let mut names = Names::default();
        vary.iter().for_each(|line| names.read(line.as_bytes()));
        assert!(!names.star);
        let variant = Variant::of(&names, &Fields::of_head(&stored));
        let asked = Fields::of_head(&asked);
        assert_eq!(variant.matches(&asked), want);
        assert_eq!(variant.mark(&asked) == variant.mark(&Fields::of_head(&stored)), want);
    }

    #[test]
    fn requests_are_alike_in_what_vary_names() {
        alike(&["Foo"], &["Foo: 1"], &["foo: 1", "Bar: 2"], true);
        alike(&["Foo"], &["Foo: 1"], &["Foo: 2"], false);
        alike(&["Foo"], &["Foo: 1"], &[], false);
        alike(&["Foo"], &[], &["Foo: 1"], false);
        alike(&["Foo"], &[], &["Foo:"], false);
        alike(&["Foo, Bar", "Baz"], &["Foo: 1", "Baz: 3"], &["Baz: 3", "Foo: 1"], true);
        alike(&["Foo, Bar"], &["Foo: 1", "Bar: a"], &["Foo: 1", "Bar: b"], false);
        alike(&["Foo, Bar"], &["Foo: 1"], &["Bar: 1"], false);
        alike(&["Foo"], &["Foo: 12"], &["Foo: 1", "Foo: 2"], false);
        alike(&[], &["Foo: 1"], &["Foo: 2"], true);
    }

    #[test]
    fn spelling_does_not_tell_apart() {
        alike(&["Foo"], &["Foo: 1, 2"], &["Foo: 1", "Foo: 2"], true);
        alike(&["Foo"], &["Foo: 1,2"], &["Foo:  1, 2 "], true);
        alike(&["Foo"], &["Foo: \"1, 2\""], &["Foo: \"1,2\""], false);
        alike(&["Foo"], &["Foo: a"], &["Foo: A"], false);
        alike(&["fOO, Foo"], &["Foo: a"], &["Foo: a"], true);
        alike(
            &["Accept-Language"],
            &["Accept-Language: en, de"],
            &["accept-language: eN ,  De"],
            true,
        );
        alike(
            &["Accept-Language"],
            &["Accept-Language: de;q=0.5"],
            &["Accept-Language: de; q=0.5"],
            true,
        );
        alike(
            &["Accept-Language"],
            &["Accept-Language: en, de"],
            &["Accept-Language: de, en"],
            false,
        );
    }

    #[test]
    fn star_and_too_many_names_match_nothing() {
        let many = ["x"; CACHE_VARY_NAMES_MAX + 1].join(",");
        for lines in [
            &["*"][..],
            &["*, *"],
            &["", "*"],
            &[", *"],
            &["Foo", "*"],
            &["*, Foo"],
            &[&many],
        ] {
            let mut names = Names::default();
            lines.iter().for_each(|line| names.read(line.as_bytes()));
            assert!(names.star, "{lines:?}");
        }
    }

    #[test]
    fn a_variant_keeps_no_value() {
        let head = fields(&["Cookie: session=s3cret"]);
        let mut names = Names::default();
        names.read(b"Cookie");
        let variant = Variant::of(&names, &Fields::of_head(&head));
        assert!(!format!("{variant:?}").contains("s3cret"));
    }
}
