//! What `sc` saw of a site, and TLS_REPORT, which tells the endpoint.
//!
//! `verdict u8 | leaf 32`, then TLVs: 1 names (length u8 and text each), 3 not-before and not-after (i64 each), 5 TLS version
//! u16, 7 application protocol, 9 µs of the handshake u32.

use bytes::{BufMut, Bytes, BytesMut};

use super::names;
use super::verdict::Verdict;
use crate::limits::{SITE_NAMES_BYTES_MAX, SITE_NAMES_MAX};
use crate::mux::{Shown, TlsReport};

/// The application protocol of HTTP/1.1 (RFC 7301 section 6).
pub(super) const HTTP11: &[u8] = b"http/1.1";

const NAMES: u8 = 1;
const VALIDITY: u8 = 3;
const VERSION: u8 = 5;
const PROTOCOL: u8 = 7;
const TIME: u8 = 9;

/// What `sc` saw when it shook hands with a site.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    pub verdict: Verdict,
    /// SHA-256 of the site's own certificate (DER); zero if opaque.
    pub leaf: [u8; 32],
    /// DNS names and addresses that the certificate is for, the first ones of many.
    pub names: Vec<String>,
    /// The certificate's validity, in seconds since 1970.
    pub not_before: i64,
    pub not_after: i64,
    /// TLS version as in its records: 0x0303 is 1.2, 0x0304 is 1.3.
    pub version: u16,
    /// The site agreed to HTTP/1.1 by ALPN; without ALPN it speaks it too.
    pub http11: bool,
    /// µs that the handshake took.
    pub tls_us: u32,
}

impl Seen {
    /// Nothing to mirror: `verdict` says why.
    pub fn opaque(verdict: Verdict) -> Self {
        Self {
            verdict,
            ..Self::default()
        }
    }

    /// As a stream names what a browser was shown.
    pub fn shown(&self) -> Shown {
        Shown {
            verdict: self.verdict.0,
            leaf: self.leaf,
        }
    }

    /// Whether a browser that was shown this would be shown the same now. Certificates with nothing wrong are all alike.
    pub fn is_as(&self, shown: &Shown) -> bool {
        self.verdict.0 == shown.verdict && (self.verdict.is_good() || self.leaf == shown.leaf)
    }

    /// The site speaks before its client does: it does not speak TLS.
    pub fn spoke_first(&self) -> bool {
        self.verdict.has(Verdict::SPOKE_FIRST)
    }

    /// As a frame. What `sc` sees is within the bounds; of more names the first ones are told.
    pub fn to_report(&self) -> TlsReport {
        let mut tlvs = BytesMut::new();
        let mut names = BytesMut::new();
        let mut bytes = 0;
        for name in self.names.iter().take(SITE_NAMES_MAX) {
            bytes += name.len();
            if bytes > SITE_NAMES_BYTES_MAX || name.len() > usize::from(u8::MAX) {
                break;
            }
            names.put_u8(name.len() as u8);
            names.put_slice(name.as_bytes());
        }
        put(&mut tlvs, NAMES, &names);
        let validity = [self.not_before.to_be_bytes(), self.not_after.to_be_bytes()].concat();
        put(&mut tlvs, VALIDITY, &validity);
        put(&mut tlvs, VERSION, &self.version.to_be_bytes());
        put(&mut tlvs, PROTOCOL, if self.http11 { HTTP11 } else { b"" });
        put(&mut tlvs, TIME, &self.tls_us.to_be_bytes());
        TlsReport {
            verdict: self.verdict.0,
            leaf: self.leaf,
            tlvs: tlvs.freeze(),
        }
    }

    /// Reads a frame.
    ///
    /// # Errors
    /// What of it breaks the rules: the peer's fault.
    pub fn from_report(report: &TlsReport) -> Result<Self, &'static str> {
        let mut seen = Self {
            verdict: Verdict(report.verdict),
            leaf: report.leaf,
            ..Self::default()
        };
        if !seen.verdict.is_possible() {
            return Err("TLS_REPORT with a verdict that does not exist");
        }
        let mut rest = report.tlvs.clone();
        let mut read = 0u16;
        while !rest.is_empty() {
            let kind = take(&mut rest, 1)?[0];
            let length = u16::from_be_bytes(array(&take(&mut rest, 2)?)?);
            let value = take(&mut rest, usize::from(length))?;
            let bit = 1u16.checked_shl(u32::from(kind)).unwrap_or(0);
            if read & bit != 0 {
                return Err("TLS_REPORT with a TLV twice");
            }
            read |= bit;
            seen.read(kind, value)?;
        }
        if read & 1 << VALIDITY == 0 && !seen.verdict.is_opaque() {
            return Err("TLS_REPORT without the certificate's validity");
        }
        if seen.not_before > seen.not_after {
            return Err("TLS_REPORT of a certificate that ends before it begins");
        }
        Ok(seen)
    }

    fn read(&mut self, kind: u8, mut value: Bytes) -> Result<(), &'static str> {
        match kind {
            NAMES => self.names = read_names(value)?,
            VALIDITY => {
                self.not_before = i64::from_be_bytes(array(&take(&mut value, 8)?)?);
                self.not_after = i64::from_be_bytes(array(&value)?);
            }
            VERSION => self.version = u16::from_be_bytes(array(&value)?),
            PROTOCOL => self.http11 = value == HTTP11,
            TIME => self.tls_us = u32::from_be_bytes(array(&value)?),
            even if even % 2 == 0 => return Err("TLS_REPORT with an unknown TLV that must not be ignored"),
            _ => {}
        }
        Ok(())
    }
}

fn put(tlvs: &mut BytesMut, kind: u8, value: &[u8]) {
    tlvs.put_u8(kind);
    tlvs.put_u16(value.len() as u16);
    tlvs.put_slice(value);
}

fn take(rest: &mut Bytes, length: usize) -> Result<Bytes, &'static str> {
    if rest.len() < length {
        return Err("TLS_REPORT that is cut short");
    }
    Ok(rest.split_to(length))
}

fn array<const N: usize>(bytes: &[u8]) -> Result<[u8; N], &'static str> {
    bytes.try_into().map_err(|_| "TLS_REPORT with a TLV of a wrong length")
}

fn read_names(mut value: Bytes) -> Result<Vec<String>, &'static str> {
    let mut names = Vec::new();
    let mut bytes = 0;
    while !value.is_empty() {
        let length = usize::from(take(&mut value, 1)?[0]);
        let name = take(&mut value, length)?;
        let name = std::str::from_utf8(&name).ok().filter(|name| names::is_name(name));
        let name = name.ok_or("TLS_REPORT with a name that is none")?;
        bytes += name.len();
        if names.len() == SITE_NAMES_MAX || bytes > SITE_NAMES_BYTES_MAX {
            return Err("TLS_REPORT with too many names");
        }
        names.push(name.to_owned());
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_certificates_are_alike_and_bad_ones_are_not() {
        let seen = |verdict, leaf| Seen {
            verdict,
            leaf: [leaf; 32],
            ..Seen::default()
        };
        let is_as = |one: &Seen, other: &Seen| one.is_as(&other.shown());
        let (good, bad) = (Verdict::GOOD, Verdict::EXPIRED);
        assert!(is_as(&seen(good, 1), &seen(good, 1)));
        assert!(is_as(&seen(good, 1), &seen(good, 2)));
        assert!(is_as(&seen(bad, 1), &seen(bad, 1)));
        assert!(!is_as(&seen(bad, 1), &seen(bad, 2)));
        assert!(!is_as(&seen(good, 1), &seen(bad, 1)));
        assert!(!is_as(&seen(bad, 1), &seen(good, 1)));
        let worse = bad.and(Verdict::UNTRUSTED);
        assert!(!is_as(&seen(bad, 1), &seen(worse, 1)));
    }
}
