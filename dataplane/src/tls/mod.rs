//! Stand-in until the record layer lands: names and shapes only.

use crate::error::Error;
use sha2::{Digest, Sha256};
use std::fmt;
use std::str::FromStr;

/// SHA-256 of a public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl FromStr for Fingerprint {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let bad = || Error::Tls("a fingerprint is 64 hex digits".into());
        if text.len() != 64 || !text.is_ascii() {
            return Err(bad());
        }
        let mut out = [0; 32];
        for (i, byte) in out.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).map_err(|_| bad())?;
        }
        Ok(Self(out))
    }
}

/// A fresh key.
pub struct Identity([u8; 32]);

impl Identity {
    pub fn generate() -> Result<Self, Error> {
        Ok(Self(
            Sha256::digest(std::process::id().to_be_bytes()).into(),
        ))
    }

    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint(self.0)
    }
}
