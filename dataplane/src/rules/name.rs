//! How the lists of rules spell a host.

use std::io::Write;
use std::net::Ipv6Addr;
use std::ops::Deref;

use crate::limits::HOST_BYTES_MAX;

/// A host as it is looked up: in lower case, without a dot at its end; an IPv6 address, which has many spellings, as
/// RFC 5952 writes it. Allocates nothing.
pub(super) struct Name {
    bytes: [u8; HOST_BYTES_MAX],
    len: usize,
}

impl Name {
    /// Of a host without brackets; none if it is longer than any.
    pub fn of(host: &str) -> Option<Self> {
        let mut name = Self {
            bytes: [0; HOST_BYTES_MAX],
            len: 0,
        };
        let host = host.strip_suffix('.').unwrap_or(host);
        if host.contains(':')
            && let Ok(address) = host.parse::<Ipv6Addr>()
        {
            let mut rest = &mut name.bytes[..];
            write!(rest, "{address}").ok()?;
            name.len = HOST_BYTES_MAX - rest.len();
            return Some(name);
        }
        name.len = host.len();
        let lower = name.bytes.get_mut(..host.len())?;
        lower.copy_from_slice(host.as_bytes());
        lower.make_ascii_lowercase();
        Some(name)
    }
}

impl Deref for Name {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_has_one_spelling() {
        let longest = "a".repeat(HOST_BYTES_MAX);
        for (host, name) in [
            ("A.Test.", "a.test"),
            ("10.0.0.1", "10.0.0.1"),
            ("2001:DB8:0:0::1", "2001:db8::1"),
            ("::FFFF:10.0.0.1", "::ffff:10.0.0.1"),
            ("No:Address", "no:address"),
            ("", ""),
            (&longest, &longest),
        ] {
            assert_eq!(Name::of(host).as_deref(), Some(name.as_bytes()), "{host}");
        }
        assert!(Name::of(&"a".repeat(HOST_BYTES_MAX + 1)).is_none());
    }
}
