//! What a connection carries, told by the server name of its ClientHello.

use super::Kind;

const HELLO_BYTES_MAX: usize = 17 * 1024;
const LINK_SUFFIX: &str = ".tunnel.culvert";

/// What a connection carries, once enough of it was read.
pub fn classify(hello: &[u8]) -> Option<Kind> {
    match server_name(hello) {
        Ok(name) => {
            let link = name.and_then(|name| name.strip_suffix(LINK_SUFFIX)?.split('.').next()?.parse().ok());
            Some(link.map_or(Kind::Rest, Kind::Link))
        }
        Err(()) if hello.len() > HELLO_BYTES_MAX => Some(Kind::Rest),
        Err(()) => None,
    }
}

/// The server name of a ClientHello (RFC 8446 section 4.1.2, RFC 6066 section 3), `Err` while bytes are missing.
fn server_name(bytes: &[u8]) -> Result<Option<&str>, ()> {
    if *bytes.first().ok_or(())? != 22 {
        return Ok(None);
    }
    let record = usize::from(u16::from_be_bytes([*bytes.get(3).ok_or(())?, *bytes.get(4).ok_or(())?]));
    let body = bytes.get(5..5 + record).ok_or(())?;
    Ok(find_name(body))
}

fn find_name(mut hello: &[u8]) -> Option<&str> {
    // Handshake header, version and random; then the lists before the extensions.
    take(&mut hello, 4 + 2 + 32)?;
    for width in [1, 2, 1] {
        let length = number(&mut hello, width)?;
        take(&mut hello, length)?;
    }
    number(&mut hello, 2)?;
    loop {
        let kind = number(&mut hello, 2)?;
        let length = number(&mut hello, 2)?;
        let mut extension = take(&mut hello, length)?;
        if kind == 0 {
            take(&mut extension, 3)?;
            let length = number(&mut extension, 2)?;
            return std::str::from_utf8(take(&mut extension, length)?).ok();
        }
    }
}

fn take<'a>(bytes: &mut &'a [u8], n: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(n)?;
    *bytes = rest;
    Some(taken)
}

fn number(bytes: &mut &[u8], width: usize) -> Option<usize> {
    Some(take(bytes, width)?.iter().fold(0, |n, b| n << 8 | usize::from(*b)))
}
