//! What a browser's ClientHello says (RFC 8446 section 4.1.2).

use rustls::crypto::aws_lc_rs::DEFAULT_CIPHER_SUITES;
use rustls::server::{Acceptor, ClientHello};
use rustls::{SignatureAlgorithm, SignatureScheme, SupportedCipherSuite};

use crate::limits::HELLO_BYTES_MAX;

/// What matters of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// SNI: none where the site is an address.
    pub name: Option<String>,
    /// HTTP/1.1 will do: it is offered, or nothing is.
    pub http11: bool,
    /// It takes a leaf of ours: ECDSA with P-256, under a suite that is spoken here.
    pub ecdsa: bool,
}

/// There is none, or one that is too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoHello;

/// Reads a connection's first bytes as they come, each of them once.
#[derive(Default)]
pub struct HelloReader {
    /// Large, and of no use once the handshake begins.
    acceptor: Box<Acceptor>,
    read: usize,
}

impl HelloReader {
    /// Of all bytes so far; none while it is not whole.
    ///
    /// # Errors
    /// It will never be.
    pub fn read(&mut self, bytes: &[u8]) -> Result<Option<Hello>, NoHello> {
        let mut left = bytes.get(self.read..).unwrap_or_default();
        self.read = bytes.len();
        while !left.is_empty() {
            self.acceptor.read_tls(&mut left).map_err(|_| NoHello)?;
            if let Some(accepted) = self.acceptor.accept().map_err(|_| NoHello)? {
                let hello = accepted.client_hello();
                return Ok(Some(Hello {
                    name: hello.server_name().map(str::to_owned),
                    http11: hello
                        .alpn()
                        .is_none_or(|mut names| names.any(|name| name == b"http/1.1")),
                    ecdsa: takes_ecdsa(&hello),
                }));
            }
        }
        if bytes.len() > HELLO_BYTES_MAX {
            return Err(NoHello);
        }
        Ok(None)
    }
}

impl Hello {
    /// As [`HelloReader::read`], of bytes that come at once.
    ///
    /// # Errors
    /// As there.
    pub fn read(bytes: &[u8]) -> Result<Option<Self>, NoHello> {
        HelloReader::default().read(bytes)
    }

    /// Whether it can be answered in the place of this host, as CONNECT names it.
    pub fn fits(&self, host: &str) -> bool {
        self.http11 && self.ecdsa && self.is_for(host)
    }

    fn is_for(&self, host: &str) -> bool {
        let host = host.strip_suffix('.').unwrap_or(host);
        self.name.as_deref().is_none_or(|name| name.eq_ignore_ascii_case(host))
    }
}

/// Suites of TLS 1.3 say nothing of signatures, those of TLS 1.2 do.
fn takes_ecdsa(hello: &ClientHello<'_>) -> bool {
    let suits = |spoken: &SupportedCipherSuite| {
        spoken.usable_for_signature_algorithm(SignatureAlgorithm::ECDSA)
            && hello.cipher_suites().contains(&spoken.suite())
    };
    let schemes = hello.signature_schemes();
    schemes.contains(&SignatureScheme::ECDSA_NISTP256_SHA256) && DEFAULT_CIPHER_SUITES.iter().any(suits)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use rustls::crypto::CryptoProvider;
    use rustls::crypto::aws_lc_rs::default_provider;
    use rustls::{ClientConfig, ClientConnection, RootCertStore};
    use rustls_pki_types::ServerName;

    use super::*;

    fn hello(name: &str, protocols: &[&str]) -> Vec<u8> {
        hello_of(default_provider(), name, protocols)
    }

    fn hello_of(provider: CryptoProvider, name: &str, protocols: &[&str]) -> Vec<u8> {
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|p| p.as_bytes().to_vec()).collect();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut bytes = Vec::new();
        let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn name_and_protocols_are_read_once_all_is_there() {
        for (name, protocols, sni, http11) in [
            ("a.test", &[][..], Some("a.test"), true),
            ("a.test", &["h2", "http/1.1"], Some("a.test"), true),
            ("a.test", &["h2"], Some("a.test"), false),
            ("127.0.0.1", &["http/1.1"], None, true),
        ] {
            let bytes = hello(name, protocols);
            for end in [0, 1, 5, 6, bytes.len() / 2, bytes.len() - 1] {
                assert_eq!(Hello::read(&bytes[..end]), Ok(None), "{end}");
            }
            let read = Hello::read(&bytes).unwrap().unwrap();
            assert_eq!((read.name.as_deref(), read.http11), (sni, http11));
            assert!(read.is_for(name) && read.is_for(&format!("{}.", name.to_uppercase())));
            assert_eq!(read.is_for("b.test"), sni.is_none());
        }
    }

    /// In records of a byte each, one after the other.
    #[test]
    fn it_may_come_in_any_pieces() {
        let whole = hello("a.test", &["http/1.1"]);
        let records = whole[5..].iter().flat_map(|byte| [0x16, 3, 1, 0, 1, *byte]);
        for bytes in [whole.clone(), records.collect()] {
            for step in [1, 6, 60, 61] {
                let mut reader = HelloReader::default();
                let ends = (step..bytes.len()).step_by(step);
                for end in ends {
                    assert_eq!(reader.read(&bytes[..end]), Ok(None), "{end}");
                }
                let read = reader.read(&bytes).unwrap().unwrap();
                assert!(read.fits("a.test"), "{step}");
            }
        }
    }

    #[test]
    fn who_takes_no_ecdsa_is_left_to_the_site() {
        let fits = |change: &dyn Fn(&mut CryptoProvider)| {
            let mut provider = default_provider();
            change(&mut provider);
            let bytes = hello_of(provider, "a.test", &[]);
            Hello::read(&bytes).unwrap().unwrap().fits("a.test")
        };
        let has = |suite: &rustls::SupportedCipherSuite, part: &str| format!("{:?}", suite.suite()).contains(part);
        assert!(fits(&|_| ()));
        assert!(fits(&|p| p.cipher_suites.retain(|s| has(s, "TLS13"))));
        assert!(fits(&|p| p.cipher_suites.retain(|s| has(s, "ECDHE_ECDSA"))));
        assert!(!fits(&|p| p.cipher_suites.retain(|s| has(s, "ECDHE_RSA"))));
        assert!(!fits(&|p| {
            let all = p.signature_verification_algorithms.mapping.iter().copied();
            let rsa: Vec<_> = all
                .filter(|(scheme, _)| format!("{scheme:?}").contains("RSA"))
                .collect();
            p.signature_verification_algorithms.mapping = rsa.leak();
        }));
    }

    #[test]
    fn what_is_none_is_found_out() {
        let mut bytes = hello("a.test", &[]);
        bytes[5] = 2;
        assert_eq!(Hello::read(&bytes), Err(NoHello));
        assert_eq!(Hello::read(b"\x16GET / HTTP/1.1\r\n"), Err(NoHello));
        // Announces more than may come.
        let mut long = vec![0x16, 3, 1, 0x3f, 0xff, 1, 0, 0xff, 0xff];
        long.resize(HELLO_BYTES_MAX + 1, 0);
        assert_eq!(Hello::read(&long), Err(NoHello));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(at in 0_usize..250, flip in 1_u8.., end in 0_usize..400) {
            let mut bytes = hello("a.test", &["http/1.1"]);
            let at = at % bytes.len();
            bytes[at] ^= flip;
            bytes.truncate(end);
            let _ = Hello::read(&bytes);
        }
    }
}
