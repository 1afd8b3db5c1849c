//! WebSocket (RFC 6455) as far as an echo needs it: the opening handshake and unfragmented frames.

use std::io::{self, Read, Write};

use aws_lc_rs::digest;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use crate::http::{Client, Connection};

pub const TEXT: u8 = 1;
pub const BINARY: u8 = 2;
pub const CLOSE: u8 = 8;
pub const PING: u8 = 9;
pub const PONG: u8 = 10;

/// A frame that is larger is a fault.
const FRAME_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Sec-WebSocket-Accept of a Sec-WebSocket-Key (RFC 6455 section 4.2.2).
pub fn accept(key: &str) -> String {
    let text = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    BASE64_STANDARD.encode(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes()))
}

/// One end of an open WebSocket. The client's end masks what it sends, the server's end does not.
pub struct WebSocket<S> {
    early: Vec<u8>,
    stream: S,
    masks: bool,
}

impl WebSocket<Box<dyn crate::http::Stream>> {
    /// Opens one over a connection that leads to the site or to a proxy; `target` is sent as it is given.
    pub fn open(mut client: Client, target: &str) -> io::Result<Self> {
        let key = "dGhlIHNhbXBsZSBub25jZQ==";
        let fields = [
            ("Connection", "Upgrade"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", key),
        ];
        client.send("GET", target, &fields, &[])?;
        let head = client.read_head()?;
        if head.status() != 101 || head.field("sec-websocket-accept") != Some(&accept(key)) {
            return Err(io::Error::other(format!("no WebSocket: {head:?}")));
        }
        Ok(Self::client(client.into_connection()))
    }

    fn client(connection: Connection) -> Self {
        let (early, stream) = connection.into_parts();
        Self {
            early,
            stream,
            masks: true,
        }
    }

    /// The site's end, once the 101 is sent.
    pub fn server(connection: Connection) -> Self {
        let (early, stream) = connection.into_parts();
        Self {
            early,
            stream,
            masks: false,
        }
    }
}

impl<S: Read + Write> WebSocket<S> {
    pub fn send(&mut self, opcode: u8, payload: &[u8]) -> io::Result<()> {
        let mut frame = vec![0x80 | opcode];
        let mask_bit = if self.masks { 0x80 } else { 0 };
        match payload.len() {
            n @ 0..=125 => frame.push(mask_bit | n as u8),
            n @ 126..=0xFFFF => {
                frame.push(mask_bit | 126);
                frame.extend((n as u16).to_be_bytes());
            }
            n => {
                frame.push(mask_bit | 127);
                frame.extend((n as u64).to_be_bytes());
            }
        }
        if self.masks {
            let mask = [0x37, 0xFA, 0x21, 0x3D];
            frame.extend(mask);
            frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(b, m)| b ^ m));
        } else {
            frame.extend(payload);
        }
        self.stream.write_all(&frame)?;
        self.stream.flush()
    }

    fn exactly(&mut self, out: &mut [u8]) -> io::Result<()> {
        let n = self.early.len().min(out.len());
        out[..n].copy_from_slice(&self.early[..n]);
        self.early.drain(..n);
        self.stream.read_exact(&mut out[n..])
    }

    /// The next frame: opcode and payload.
    pub fn receive(&mut self) -> io::Result<(u8, Vec<u8>)> {
        let mut head = [0; 2];
        self.exactly(&mut head)?;
        let mut length = u64::from(head[1] & 0x7F);
        if length >= 126 {
            let mut bytes = [0; 8];
            let n = if length == 126 { 2 } else { 8 };
            self.exactly(&mut bytes[8 - n..])?;
            length = u64::from_be_bytes(bytes);
        }
        if head[0] & 0x80 == 0 || length > FRAME_BYTES_MAX {
            return Err(io::Error::other("a fragment, or a frame that is too long"));
        }
        let mut mask = [0; 4];
        if head[1] & 0x80 != 0 {
            self.exactly(&mut mask)?;
        }
        let mut payload = vec![0; length as usize];
        self.exactly(&mut payload)?;
        payload.iter_mut().zip(mask.iter().cycle()).for_each(|(b, m)| *b ^= m);
        Ok((head[0] & 0x0F, payload))
    }

    /// Sends a message and expects it back, byte for byte.
    pub fn echo(&mut self, payload: &[u8]) -> io::Result<()> {
        self.send(BINARY, payload)?;
        let (opcode, back) = self.receive()?;
        if opcode != BINARY || back != payload {
            return Err(io::Error::other(format!(
                "echo of {} bytes: opcode {opcode}, {} bytes",
                payload.len(),
                back.len()
            )));
        }
        Ok(())
    }

    /// The closing handshake, by the side that asks for it.
    pub fn close(mut self) -> io::Result<()> {
        self.send(CLOSE, &1000u16.to_be_bytes())?;
        match self.receive()? {
            (CLOSE, _) => Ok(()),
            (opcode, _) => Err(io::Error::other(format!("opcode {opcode} for an answer to close"))),
        }
    }

    /// What a site that echoes does until the other side closes; `on_message` is called for each message.
    pub fn serve_echo(mut self, mut on_message: impl FnMut()) -> io::Result<()> {
        loop {
            match self.receive()? {
                (CLOSE, payload) => return self.send(CLOSE, &payload),
                (PING, payload) => self.send(PONG, &payload)?,
                (opcode, payload) => {
                    on_message();
                    self.send(opcode, &payload)?;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_rfc() {
        assert_eq!(accept("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
