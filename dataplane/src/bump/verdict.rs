//! What `sc` found wrong with a site's certificate, as one byte of the multiplex.

use std::fmt;

/// A set of bits; none is a certificate without fault.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Verdict(pub u8);

/// All bits, with their words.
const WORDS: [(Verdict, &str); 6] = [
    (Verdict::EXPIRED, "expired"),
    (Verdict::NOT_YET_VALID, "not yet valid"),
    (Verdict::WRONG_NAME, "wrong name"),
    (Verdict::UNTRUSTED, "untrusted"),
    (Verdict::OPAQUE, "opaque"),
    (Verdict::SPOKE_FIRST, "spoke first"),
];

impl Verdict {
    pub const GOOD: Self = Self(0);
    pub const EXPIRED: Self = Self(0x01);
    pub const NOT_YET_VALID: Self = Self(0x02);
    /// None of its names is the one that was asked for.
    pub const WRONG_NAME: Self = Self(0x04);
    /// Nobody whom `sc` trusts issued it.
    pub const UNTRUSTED: Self = Self(0x08);
    /// The browser is to judge itself: a client certificate is asked for, there is no TLS version or protocol in common,
    /// the certificate cannot be read or has another fault.
    pub const OPAQUE: Self = Self(0x40);
    /// The site sent bytes before any came from the browser: this is no TLS.
    pub const SPOKE_FIRST: Self = Self(0x80);

    /// No fault.
    pub const fn is_good(self) -> bool {
        self.0 == 0
    }

    /// Nothing to mirror: the connection is relayed as it is.
    pub const fn is_opaque(self) -> bool {
        self.0 >= Self::OPAQUE.0
    }

    /// All bits of `other` are set.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The bits of both.
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Only bits that have a meaning, and a certificate cannot be too old and too young.
    pub(super) const fn is_possible(self) -> bool {
        self.0 & 0x30 == 0 && !self.has(Self::EXPIRED.and(Self::NOT_YET_VALID))
    }
}

/// In words, such as "expired, wrong name"; "good" if there is none.
impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_good() {
            return f.write_str("good");
        }
        let mut comma = "";
        for (_, word) in WORDS.iter().filter(|(bit, _)| self.has(*bit)) {
            write!(f, "{comma}{word}")?;
            comma = ", ";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_reads_as_words() {
        assert_eq!(Verdict(0).to_string(), "good");
        assert_eq!(Verdict(0x05).to_string(), "expired, wrong name");
        assert_eq!(
            Verdict(0xcf).to_string(),
            "expired, not yet valid, wrong name, untrusted, opaque, spoke first"
        );
    }

    #[test]
    fn from_40_on_it_is_opaque() {
        assert!(Verdict(0).is_good() && !Verdict(0).is_opaque());
        assert!(!Verdict(0x0f).is_good() && !Verdict(0x0f).is_opaque());
        assert!(Verdict(0x40).is_opaque() && Verdict(0x80).is_opaque() && Verdict(0x41).is_opaque());
    }
}
