//! A browser's own conditions, against a stored answer (RFC 9110 section 13, RFC 9111 section 4.3.2).

use super::date;

/// Whether an If-None-Match line lists this tag, or any (weak comparison, RFC 9110 section 8.8.3.2).
pub fn lists(value: &[u8], etag: Option<&[u8]>) -> bool {
    if value == b"*" {
        return true;
    }
    let Some(etag) = etag else {
        return false;
    };
    let mut rest = value;
    while let Some((tag, behind)) = next_tag(rest) {
        if opaque(tag) == opaque(etag) {
            return true;
        }
        rest = behind;
    }
    false
}

/// Whether nothing changed since a date. A stored answer without Last-Modified is as old as its Date.
pub fn unmodified_since(value: &[u8], last_modified: Option<u64>, date: u64, wall: u64) -> bool {
    date::parse(value, wall).is_some_and(|since| last_modified.unwrap_or(date) <= since)
}

/// Whether If-Range lets a range be taken from this answer: by a strong tag, or by a date that is a strong validator
/// because it was a second old when it was given (RFC 9110 sections 13.1.5 and 8.8.2.2).
pub fn range_holds(value: &[u8], etag: Option<&[u8]>, last_modified: Option<u64>, date: u64, wall: u64) -> bool {
    if value.starts_with(b"\"") {
        return etag == Some(value);
    }
    let since = date::parse(value, wall);
    since.is_some() && since == last_modified && last_modified.is_some_and(|modified| modified < date)
}

/// Whether a tag of a 304 names the stored answer (RFC 9111 section 4.3.4): a strong one only if it is the same.
pub fn confirms(stored: &[u8], confirmed: &[u8]) -> bool {
    if confirmed.starts_with(b"W/") {
        opaque(stored) == opaque(confirmed)
    } else {
        stored == confirmed
    }
}

fn opaque(tag: &[u8]) -> &[u8] {
    tag.strip_prefix(b"W/").unwrap_or(tag)
}

/// The first tag of a list, and what is behind it. A tag may hold commas and has no escapes; without quotes it is what some
/// sites make of one.
fn next_tag(list: &[u8]) -> Option<(&[u8], &[u8])> {
    let start = list.iter().position(|b| !matches!(b, b' ' | b'\t' | b','))?;
    let list = &list[start..];
    let quote = if list.starts_with(b"W/\"") { 2 } else { 0 };
    let end = match list[quote..].strip_prefix(b"\"") {
        Some(inner) => memchr::memchr(b'"', inner).map(|at| quote + at + 2),
        None => memchr::memchr(b',', list),
    };
    let (tag, rest) = list.split_at(end.unwrap_or(list.len()));
    Some((tag.trim_ascii_end(), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WALL: u64 = 1_789_516_800;

    #[test]
    fn a_list_of_tags_is_compared_weakly() {
        for (value, etag, want) in [
            ("\"a\"", "\"a\"", true),
            ("W/\"a\"", "\"a\"", true),
            ("\"a\"", "W/\"a\"", true),
            ("W/\"a\"", "W/\"a\"", true),
            ("\"x\", \"a\", \"y\"", "\"a\"", true),
            ("\"x\",\"y\",W/\"a\"", "\"a\"", true),
            (" , \"a\"", "\"a\"", true),
            ("\"b,\\\"", "\"b,\\\"", true),
            ("\"a\u{fc}\"", "\"a\u{fc}\"", true),
            ("a", "a", true),
            ("w/\"a\"", "w/\"a\"", true),
            ("*", "\"a\"", true),
            ("\"x, a, y\"", "\"a\"", false),
            ("\"A\"", "\"a\"", false),
            ("a", "\"a\"", false),
            ("\"a", "\"a\"", false),
            ("*, \"b\"", "\"a\"", false),
            ("", "\"a\"", false),
        ] {
            assert_eq!(
                lists(value.as_bytes(), Some(etag.as_bytes())),
                want,
                "{value} and {etag}"
            );
        }
        assert!(lists(b"*", None) && !lists(b"\"a\"", None));
    }

    #[test]
    fn dates_are_compared_as_moments() {
        let since = |value: &str, modified, date| unmodified_since(value.as_bytes(), modified, date, WALL);
        let day = "Sun, 06 Nov 1994 08:49:37 GMT";
        assert!(since(day, Some(784_111_777), 0) && since(day, Some(784_111_776), WALL));
        assert!(!since(day, Some(784_111_778), 0));
        assert!(since("Sunday, 06-Nov-94 08:49:37 GMT", Some(784_111_777), 0));
        assert!(since(day, None, 784_111_777) && !since(day, None, 784_111_778));
        assert!(!since("yesterday", Some(0), 0));
    }

    #[test]
    fn a_range_needs_a_strong_validator() {
        let tag = |value: &str, etag: &str| range_holds(value.as_bytes(), Some(etag.as_bytes()), None, 0, WALL);
        assert!(tag("\"a\"", "\"a\""));
        assert!(!tag("\"a\"", "\"b\"") && !tag("W/\"a\"", "W/\"a\"") && !tag("\"a\"", "W/\"a\""));
        let day = |date| range_holds(b"Sun, 06 Nov 1994 08:49:37 GMT", None, Some(784_111_777), date, WALL);
        assert!(day(784_111_778) && !day(784_111_777));
        assert!(!range_holds(
            b"Sun, 06 Nov 1994 08:49:38 GMT",
            None,
            Some(784_111_777),
            WALL,
            WALL
        ));
        assert!(!range_holds(b"", None, None, WALL, WALL));
    }

    #[test]
    fn a_confirmation_names_the_same_answer() {
        let by = |stored: &str, tag: &str| confirms(stored.as_bytes(), tag.as_bytes());
        assert!(by("\"a\"", "\"a\"") && by("W/\"a\"", "W/\"a\"") && by("\"a\"", "W/\"a\""));
        assert!(!by("\"a\"", "\"b\"") && !by("W/\"a\"", "\"a\"") && !by("W/\"a\"", "W/\"b\""));
    }
}
