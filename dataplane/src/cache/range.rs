//! A part of a stored answer (RFC 9110 section 14).

/// What a Range field selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ranged {
    /// All of it: what is no range of bytes means nothing, and several ranges need not be honoured.
    Whole,
    /// From the first to the last byte, both included.
    Part { first: u64, last: u64 },
    /// 416.
    Unsatisfiable,
}

/// `bytes=first-last`, `bytes=first-` or `bytes=-length`, of a content of `len` bytes.
pub fn select(value: &[u8], len: u64) -> Ranged {
    match parse(value) {
        Some((Some(first), _)) if first >= len => Ranged::Unsatisfiable,
        Some((None, Some(0))) => Ranged::Unsatisfiable,
        // No Content-Range can say "all of nothing".
        Some((None, Some(_))) if len == 0 => Ranged::Whole,
        Some((Some(first), last)) => Ranged::Part {
            first,
            last: last.map_or(len - 1, |last| last.min(len - 1)),
        },
        Some((None, Some(length))) => Ranged::Part {
            first: len - length.min(len),
            last: len - 1,
        },
        _ => Ranged::Whole,
    }
}

fn parse(value: &[u8]) -> Option<(Option<u64>, Option<u64>)> {
    let (unit, range) = value.split_at_checked(6)?;
    unit.eq_ignore_ascii_case(b"bytes=").then_some(())?;
    let range = range.trim_ascii();
    let dash = memchr::memchr(b'-', range)?;
    let (first, last) = (position(&range[..dash])?, position(&range[dash + 1..])?);
    let backwards = matches!((first, last), (Some(first), Some(last)) if first > last);
    (!backwards && (first, last) != (None, None)).then_some((first, last))
}

/// No digit at all is a position too. What no content can have is as far as can be counted.
fn position(digits: &[u8]) -> Option<Option<u64>> {
    if digits.is_empty() {
        return Some(None);
    }
    let number = digits.iter().try_fold(0_u64, |n, d| {
        let digit = d.is_ascii_digit().then(|| u64::from(d - b'0'))?;
        Some(n.saturating_mul(10).saturating_add(digit))
    });
    number.map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_selects_what_it_says() {
        let part = |first, last| Ranged::Part { first, last };
        for (value, len, want) in [
            ("bytes=0-1", 11, part(0, 1)),
            ("bytes=1-", 11, part(1, 10)),
            ("bytes=-1", 11, part(10, 10)),
            ("bytes=-99", 11, part(0, 10)),
            ("bytes=0-99", 11, part(0, 10)),
            ("BYTES= 3-3 ", 11, part(3, 3)),
            ("bytes=10-10", 11, part(10, 10)),
            ("bytes=0-18446744073709551616", 11, part(0, 10)),
            ("bytes=11-", 11, Ranged::Unsatisfiable),
            ("bytes=18446744073709551616-", 11, Ranged::Unsatisfiable),
            ("bytes=-0", 11, Ranged::Unsatisfiable),
            ("bytes=0-", 0, Ranged::Unsatisfiable),
            ("bytes=-5", 0, Ranged::Whole),
            ("bytes=2-1", 11, Ranged::Whole),
            ("bytes=0-1,3-4", 11, Ranged::Whole),
            ("bytes=-", 11, Ranged::Whole),
            ("bytes=+1-2", 11, Ranged::Whole),
            ("bytes=a-b", 11, Ranged::Whole),
            ("bytes=1 - 2", 11, Ranged::Whole),
            ("lines=0-1", 11, Ranged::Whole),
            ("bytes", 11, Ranged::Whole),
            ("", 11, Ranged::Whole),
        ] {
            assert_eq!(select(value.as_bytes(), len), want, "{value} of {len}");
        }
    }
}
