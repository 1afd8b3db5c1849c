//! The server name in a ClientHello (RFC 8446 sections 4.1.2 and 5.1, RFC 6066 section 3), without I/O.
//!
//! Only the front reads it, to find out where a connection belongs; the TLS of that place judges the rest.

use dataplane::limits::CLIENT_HELLO_BYTES_MAX;

const RECORD_HANDSHAKE: u8 = 22;
const RECORD_BYTES_MAX: usize = 16_384;
const MESSAGE_CLIENT_HELLO: u8 = 1;
const EXTENSION_SERVER_NAME: u16 = 0;
const NAME_HOST: u8 = 0;
const NAME_BYTES_MAX: usize = 255;

/// Why what a client sent is no ClientHello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// The first byte is not that of a handshake record.
    NotTls,
    /// Longer than the front reads.
    TooLong,
    /// Lengths or fields that contradict each other.
    Syntax,
}

/// Collects a ClientHello from any splitting over packets and records. Each byte is looked at once.
#[derive(Debug, Default)]
pub struct HelloReader {
    /// All bytes as they came, for whoever gets the connection.
    raw: Vec<u8>,
    /// Where in `raw` the next record begins.
    record: usize,
    /// The handshake message without record headers.
    message: Vec<u8>,
}

impl HelloReader {
    /// Takes what arrived. `Some(name)` once the hello is complete: its server name in lower case, if it has one.
    ///
    /// # Errors
    /// The connection is not worth reading further.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Option<Option<String>>, Malformed> {
        if self.raw.len() + bytes.len() > CLIENT_HELLO_BYTES_MAX {
            return Err(Malformed::TooLong);
        }
        self.raw.extend_from_slice(bytes);
        if self.raw.first().is_some_and(|&first| first != RECORD_HANDSHAKE) {
            return Err(Malformed::NotTls);
        }
        while let Some(payload) = next_record(&self.raw[self.record..])? {
            self.message.extend_from_slice(payload);
            self.record += 5 + payload.len();
            if let Some(name) = self.complete()? {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }

    /// Every byte that was pushed.
    pub fn into_raw(self) -> Vec<u8> {
        self.raw
    }

    fn complete(&self) -> Result<Option<Option<String>>, Malformed> {
        if self.message.first().is_some_and(|&kind| kind != MESSAGE_CLIENT_HELLO) {
            return Err(Malformed::Syntax);
        }
        let Some((header, rest)) = self.message.split_at_checked(4) else {
            return Ok(None);
        };
        let length = usize::from(header[1]) << 16 | usize::from(header[2]) << 8 | usize::from(header[3]);
        if length + 4 > CLIENT_HELLO_BYTES_MAX {
            return Err(Malformed::TooLong);
        }
        match rest.get(..length) {
            None => Ok(None),
            Some(body) => server_name(body).map(Some),
        }
    }
}

/// The payload of the record at the start of `bytes`, once it is there whole.
fn next_record(bytes: &[u8]) -> Result<Option<&[u8]>, Malformed> {
    let Some((header, rest)) = bytes.split_at_checked(5) else {
        return Ok(None);
    };
    let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
    // An empty handshake record is forbidden (RFC 8446 section 5.1), and would let a client send headers for ever.
    if header[0] != RECORD_HANDSHAKE || header[1] != 3 || length == 0 || length > RECORD_BYTES_MAX {
        return Err(Malformed::Syntax);
    }
    Ok(rest.get(..length))
}

/// The server name in the body of a ClientHello.
fn server_name(body: &[u8]) -> Result<Option<String>, Malformed> {
    let mut hello = Fields(body);
    hello.take(2 + 32)?;
    let session = hello.u8()?;
    hello.take(usize::from(session))?;
    let suites = hello.u16()?;
    hello.take(usize::from(suites))?;
    let compressions = hello.u8()?;
    hello.take(usize::from(compressions))?;
    if session > 32 || suites == 0 || suites % 2 == 1 || compressions == 0 {
        return Err(Malformed::Syntax);
    }
    if hello.0.is_empty() {
        return Ok(None);
    }
    let mut extensions = hello.block()?;
    hello.end()?;
    let mut name = None;
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let mut value = extensions.block()?;
        if kind != EXTENSION_SERVER_NAME {
            continue;
        }
        if name.is_some() {
            return Err(Malformed::Syntax);
        }
        name = Some(host_name(value.block()?)?);
        value.end()?;
    }
    Ok(name)
}

/// The one host name of a ServerNameList.
fn host_name(mut list: Fields<'_>) -> Result<String, Malformed> {
    let kind = list.u8()?;
    let name = list.block()?.0;
    list.end()?;
    let allowed = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
    if kind != NAME_HOST || name.is_empty() || name.len() > NAME_BYTES_MAX || !name.iter().all(allowed) {
        return Err(Malformed::Syntax);
    }
    Ok(name.iter().map(|b| char::from(b.to_ascii_lowercase())).collect())
}

/// What is left of a structure; every read is checked.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Malformed::Syntax)?;
        self.0 = rest;
        Ok(taken)
    }

    fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.take(1)?[0])
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// A vector behind its length of 16 bits.
    fn block(&mut self) -> Result<Fields<'a>, Malformed> {
        let length = self.u16()?;
        self.take(usize::from(length)).map(Fields)
    }

    fn end(&self) -> Result<(), Malformed> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(Malformed::Syntax)
        }
    }
}

/// Where a server name leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// `<link>.<tunnel id>.tunnel.culvert`.
    Link { link: u16, tunnel: String },
    /// Under `.tunnel.culvert`, but no such name can exist.
    Nowhere,
    /// Any other name, and none.
    Rest,
}

/// Sorts a lower-case server name.
pub fn place(name: Option<&str>) -> Place {
    let Some(name) = name else {
        return Place::Rest;
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    let Some(labels) = name.strip_suffix(".tunnel.culvert") else {
        return if name == "tunnel.culvert" {
            Place::Nowhere
        } else {
            Place::Rest
        };
    };
    let link = labels.split_once('.').and_then(|(link, tunnel)| {
        let canonical = link == "0" || !link.starts_with('0');
        let digits = link.bytes().all(|b| b.is_ascii_digit());
        let number = link.parse::<u16>().ok().filter(|_| canonical && digits)?;
        crate::secret::unhex::<16>(tunnel)?;
        Some((number, tunnel.to_owned()))
    });
    match link {
        Some((link, tunnel)) => Place::Link { link, tunnel },
        None => Place::Nowhere,
    }
}

/// Feeds arbitrary bytes in arbitrary pieces: it must not panic, and the splitting must not matter.
#[doc(hidden)]
pub fn fuzz_hello(data: &[u8]) {
    let (&step, bytes) = match data.split_first() {
        Some(split) => split,
        None => return,
    };
    let mut whole = HelloReader::default();
    let expected = whole.push(bytes);
    let mut pieces = HelloReader::default();
    let mut last = Ok(None);
    for piece in bytes.chunks(usize::from(step).max(1)) {
        last = pieces.push(piece);
        if last != Ok(None) {
            break;
        }
    }
    // In pieces the reader may stop early, at a complete hello or an error, and never sees what is too long behind it.
    if expected != Err(Malformed::TooLong) {
        assert_eq!(last, expected);
    }
    if let Ok(Some(name)) = last {
        place(name.as_deref());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A ClientHello as rustls writes it.
    fn hello(name: &'static str) -> Vec<u8> {
        let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let mut client = rustls::ClientConnection::new(config.into(), name.try_into().unwrap()).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    /// The same hello with its message cut into records of `size` bytes.
    fn fragment(hello: &[u8], size: usize) -> Vec<u8> {
        hello[5..]
            .chunks(size)
            .flat_map(|part| [&[22, 3, 1][..], &(part.len() as u16).to_be_bytes(), part].concat())
            .collect()
    }

    #[test]
    fn a_real_hello_in_any_splitting() {
        let bytes = hello("7.Example.ORG");
        for size in [1, 2, 3, 50, 16_000] {
            for record in [1, 7, 16_000] {
                let bytes = fragment(&bytes, record);
                let mut reader = HelloReader::default();
                let mut found = None;
                for piece in bytes.chunks(size) {
                    assert!(found.is_none(), "complete before its end");
                    found = reader.push(piece).unwrap();
                }
                assert_eq!(found, Some(Some("7.example.org".to_owned())), "{size} {record}");
                assert_eq!(reader.into_raw(), bytes);
            }
        }
    }

    #[test]
    fn no_name_is_no_error() {
        let mut reader = HelloReader::default();
        assert_eq!(reader.push(&hello("127.0.0.1")), Ok(Some(None)));
    }

    #[test]
    fn garbage_is_named() {
        let push = |bytes: &[u8]| HelloReader::default().push(bytes);
        assert_eq!(push(b"GET / HTTP/1.1\r\n"), Err(Malformed::NotTls));
        assert_eq!(push(&[22, 2, 0, 0, 5]), Err(Malformed::Syntax));
        assert_eq!(push(&[22, 3, 1, 0, 0]), Err(Malformed::Syntax));
        assert_eq!(push(&[22, 3, 1, 0xff, 0xff]), Err(Malformed::Syntax));
        assert_eq!(push(&[22, 3, 1, 0, 1, 2]), Err(Malformed::Syntax));
        assert_eq!(push(&[22, 3, 1, 0, 4, 1, 0xff, 0, 0]), Err(Malformed::TooLong));
        assert_eq!(push(&[22; CLIENT_HELLO_BYTES_MAX + 1]), Err(Malformed::TooLong));
        let mut short = hello("example.org");
        short[8] -= 1;
        assert_eq!(push(&short), Err(Malformed::Syntax));
    }

    #[test]
    fn every_flipped_byte_is_survived() {
        let bytes = hello("3.0123456789abcdef0123456789abcdef.tunnel.culvert");
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..20_000 {
            let mut data = vec![(seed >> 8) as u8];
            data.extend_from_slice(&bytes);
            for _ in 0..=(seed % 4) {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                let at = 1 + seed as usize % bytes.len();
                data[at] = (seed >> 32) as u8;
            }
            data.truncate(1 + (seed >> 16) as usize % (2 * bytes.len()));
            fuzz_hello(&data);
        }
    }

    #[test]
    fn names_lead_to_places() {
        let id = "0123456789abcdef0123456789abcdef";
        let link = |name: String| place(Some(&name));
        assert_eq!(
            link(format!("12.{id}.tunnel.culvert")),
            Place::Link {
                link: 12,
                tunnel: id.into()
            }
        );
        for bad in ["", "x", "01", "+1", "65536", "-1"] {
            assert_eq!(link(format!("{bad}.{id}.tunnel.culvert")), Place::Nowhere, "{bad}");
        }
        assert_eq!(link(format!("{id}.tunnel.culvert")), Place::Nowhere);
        assert_eq!(link(format!("1.{}.tunnel.culvert", &id[1..])), Place::Nowhere);
        assert_eq!(place(Some("tunnel.culvert")), Place::Nowhere);
        for rest in [
            None,
            Some("localhost"),
            Some("xtunnel.culvert"),
            Some("tunnel.culvert.org"),
        ] {
            assert_eq!(place(rest), Place::Rest, "{rest:?}");
        }
    }
}
