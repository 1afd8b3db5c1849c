//! Field lines of a head, iterated over the caller's bytes.

use memchr::memchr;

/// One field line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field<'a> {
    /// As sent, in its own case.
    pub name: &'a [u8],
    /// Without the white space around it (RFC 9112 section 5.1).
    pub value: &'a [u8],
    /// The whole line as sent, with its CRLF.
    pub line: &'a [u8],
}

impl Field<'_> {
    /// Whether this field has that name, in any case.
    pub fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name.as_bytes())
    }
}

/// The field lines of a head that was parsed before; on other bytes it ends early and never panics.
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    /// `head` is a whole head: start line, field lines, empty line.
    pub(crate) fn of_head(head: &'a [u8]) -> Self {
        let start = memchr(b'\n', head).map_or(head.len(), |at| at + 1);
        Self { rest: &head[start..] }
    }

    /// The lines that are still to come, with the empty line.
    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Field<'a>;

    fn next(&mut self) -> Option<Field<'a>> {
        let end = memchr(b'\n', self.rest)? + 1;
        let (line, rest) = self.rest.split_at(end);
        // Names are short: a search that takes many bytes at a time would cost more.
        let colon = line.iter().position(|b| *b == b':')?;
        self.rest = rest;
        Some(Field {
            name: &line[..colon],
            value: trim(&line[colon + 1..]),
            line,
        })
    }
}

/// Drops white space and line end around a value.
pub(crate) fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = value {
        value = rest;
    }
    while let [rest @ .., b' ' | b'\t' | b'\r' | b'\n'] = value {
        value = rest;
    }
    value
}

/// The members of a comma-separated list, empty ones left out (RFC 9110 section 5.6.1).
pub(crate) fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|b| *b == b',').map(trim).filter(|item| !item.is_empty())
}
