//! TLS towards a browser or a site, sans-IO. While nothing is under way it holds no buffer.

use std::io::IoSlice;
use std::sync::Arc;

use bytes::{Buf, BytesMut};
use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncryptError, InsufficientSizeError, UnbufferedStatus};
use rustls::{ClientConfig, CommonState, Error, ProtocolVersion, ServerConfig};
use rustls_pki_types::ServerName;

use crate::limits::{HANDSHAKE_BYTES_MAX, TLS_WRITE_BYTES_MAX};
use crate::tls::encode;

/// Why a handshake fails in which the peer says that it sends no more.
pub(super) const ENDED: &str = "the peer ended the handshake";

/// One connection. What it has for the peer is in [`Tls::unsent`] after each call, also after an error: then it is the
/// alert that tells the peer why.
pub struct Tls {
    side: Side,
    /// Records that are not opened: the beginning of one, or whole ones that there was no room for.
    sealed: BytesMut,
    /// Content that there was no room for.
    content: BytesMut,
    unsent: BytesMut,
    /// Bytes of the peer before the handshake was done.
    taken: usize,
    done: bool,
    asked_anew: bool,
    /// The peer has said that it sends no more.
    ended: bool,
    /// Why it is over. rustls is not to be asked again.
    failed: Option<Error>,
    closed: bool,
}

enum Side {
    Client(Box<UnbufferedClientConnection>),
    Server(Box<UnbufferedServerConnection>),
}

/// One step of rustls' state machine.
enum Step {
    Again,
    /// Nothing more without input.
    Rest,
    Ended,
}

impl Tls {
    /// Towards a site: the ClientHello is unsent.
    ///
    /// # Errors
    /// What rustls says of the configuration.
    pub fn client(config: Arc<ClientConfig>, name: ServerName<'static>) -> Result<Self, Error> {
        let client = Box::new(UnbufferedClientConnection::new(config, name)?);
        let mut tls = Self::new(Side::Client(client));
        tls.shake()?;
        Ok(tls)
    }

    /// Towards a browser, whose ClientHello is its first input.
    ///
    /// # Errors
    /// What rustls says of the configuration.
    pub fn server(config: Arc<ServerConfig>) -> Result<Self, Error> {
        Ok(Self::new(Side::Server(Box::new(UnbufferedServerConnection::new(
            config,
        )?))))
    }

    fn new(side: Side) -> Self {
        Self {
            side,
            sealed: BytesMut::new(),
            content: BytesMut::new(),
            unsent: BytesMut::new(),
            taken: 0,
            done: false,
            asked_anew: false,
            ended: false,
            failed: None,
            closed: false,
        }
    }

    /// Where bytes of the peer are appended, for [`Tls::shake`] or [`Tls::open`].
    pub fn input(&mut self) -> &mut BytesMut {
        &mut self.sealed
    }

    /// Goes on with the handshake; true once content may be sent.
    ///
    /// # Errors
    /// Why the handshake failed; more bytes than a handshake may have are [`Error::General`].
    pub fn shake(&mut self) -> Result<bool, Error> {
        let before = self.sealed.len();
        // Content may stand behind the last message.
        while self.content.is_empty() {
            match self.step(&mut |_| 0)? {
                Step::Again => {}
                Step::Rest => break,
                Step::Ended => return Err(Error::General(ENDED.to_owned())),
            }
        }
        self.done = !self.facts().is_handshaking();
        self.taken += before - self.sealed.len();
        if self.taken.max(self.sealed.len()) > HANDSHAKE_BYTES_MAX {
            return Err(Error::General("the peer's handshake is too long".to_owned()));
        }
        Ok(self.done)
    }

    /// Opens what was put in, as long as there is room: `sink` takes content and says how much of it.
    ///
    /// # Errors
    /// The peer's records are not what they should be, or its alert.
    pub fn open(&mut self, mut sink: impl FnMut(&[u8]) -> usize) -> Result<(), Error> {
        while !self.content.is_empty() {
            let taken = sink(&self.content);
            if taken == 0 {
                return Ok(());
            }
            self.content.advance(taken);
        }
        self.content = BytesMut::new();
        while self.content.is_empty() && !self.ended {
            match self.step(&mut sink)? {
                Step::Again => {}
                Step::Rest => break,
                Step::Ended => self.ended = true,
            }
        }
        if self.sealed.is_empty() {
            self.sealed = BytesMut::new();
        }
        Ok(())
    }

    /// Content or records wait for room: nothing of the peer is needed to go on.
    pub fn is_ready(&self) -> bool {
        !self.content.is_empty() || self.ended || self.failed.is_some()
    }

    /// The peer has said that it sends no more.
    pub fn has_ended(&self) -> bool {
        self.ended && self.content.is_empty()
    }

    /// Seals content, at most [`TLS_WRITE_BYTES_MAX`] of it; returns how much.
    ///
    /// # Errors
    /// The keys are used up, or the handshake is not done.
    pub fn seal(&mut self, slices: &[IoSlice<'_>]) -> Result<usize, Error> {
        let mut gathered = BytesMut::new();
        let content = match slices {
            [only] => &only[..only.len().min(TLS_WRITE_BYTES_MAX)],
            _ => {
                gathered.reserve(slices.iter().map(|s| s.len()).sum::<usize>().min(TLS_WRITE_BYTES_MAX));
                for slice in slices {
                    let room = TLS_WRITE_BYTES_MAX - gathered.len();
                    gathered.extend_from_slice(&slice[..slice.len().min(room)]);
                }
                &gathered[..]
            }
        };
        if content.is_empty() {
            return Ok(0);
        }
        self.settle()?;
        self.write(Some(content))?;
        Ok(content.len())
    }

    /// Takes what rustls itself has to say: it goes before what is ours. What the peer has sent by now is opened.
    fn settle(&mut self) -> Result<(), Error> {
        loop {
            match self.step(&mut |_: &[u8]| 0)? {
                Step::Again => {}
                Step::Ended if !self.ended => self.ended = true,
                Step::Rest | Step::Ended => return Ok(()),
            }
        }
    }

    /// Seals content, or the notice that none follows.
    fn write(&mut self, content: Option<&[u8]>) -> Result<(), Error> {
        let (sealed, out) = (&mut self.sealed, &mut self.unsent);
        match &mut self.side {
            Side::Client(client) => put(client.process_tls_records(sealed), content, out),
            Side::Server(server) => put(server.process_tls_records(sealed), content, out),
        }
    }

    /// Says that no more content follows (RFC 8446 section 6.1).
    pub fn close(&mut self) {
        if !self.done || std::mem::replace(&mut self.closed, true) {
            return;
        }
        // Whoever gets no notice sees the end of the connection.
        let _ = self.settle().and_then(|()| self.write(None));
    }

    /// What is to be written, in order.
    pub fn unsent(&self) -> &[u8] {
        &self.unsent
    }

    /// The socket took so much of it.
    pub fn sent(&mut self, bytes: usize) {
        self.unsent.advance(bytes);
        if self.unsent.is_empty() {
            self.unsent = BytesMut::new();
        }
    }

    /// Whether the site has asked for another handshake. It was refused (RFC 5246 section 7.2.2), which rustls does once on a
    /// connection: those who ask mostly want a client certificate. TLS 1.3 has no such thing.
    pub fn was_asked_anew(&self) -> bool {
        self.asked_anew
    }

    /// What the handshake came to.
    pub fn facts(&self) -> &CommonState {
        match &self.side {
            Side::Client(client) => client,
            Side::Server(server) => server,
        }
    }

    fn step(&mut self, sink: &mut impl FnMut(&[u8]) -> usize) -> Result<Step, Error> {
        self.has_failed()?;
        let step = self.turn(sink);
        if let Err(error) = &step {
            self.failed = Some(error.clone());
            // What rustls still has to say. Asked for only while something is queued, because the next look at the input
            // would find the same error again.
            while self.facts().wants_write() && self.turn(sink).is_ok() {}
        }
        step
    }

    /// The error that it ended with.
    fn has_failed(&self) -> Result<(), Error> {
        self.failed.clone().map_or(Ok(()), Err)
    }

    /// Always over all that is sealed: rustls remembers how far it has come in it.
    fn turn(&mut self, sink: &mut impl FnMut(&[u8]) -> usize) -> Result<Step, Error> {
        let queued = self.unsent.len();
        let (out, rest) = (&mut self.unsent, &mut self.content);
        let (discard, step) = match &mut self.side {
            Side::Client(client) => act(client.process_tls_records(&mut self.sealed), out, rest, sink),
            Side::Server(server) => act(server.process_tls_records(&mut self.sealed), out, rest, sink),
        };
        if step.is_ok() {
            self.sealed.advance(discard);
        }
        // rustls refuses by itself, and says nothing. In TLS 1.2 it has nothing else to say of its own behind a handshake
        // but why it fails.
        if self.done && self.failed.is_none() && self.unsent.len() > queued {
            let version = self.facts().protocol_version();
            self.asked_anew |= matches!(self.side, Side::Client(_)) && version == Some(ProtocolVersion::TLSv1_2);
        }
        step
    }
}

/// Does what rustls asks for; returns the bytes that it is done with.
fn act<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    out: &mut BytesMut,
    rest: &mut BytesMut,
    sink: &mut impl FnMut(&[u8]) -> usize,
) -> (usize, Result<Step, Error>) {
    let step = match status.state {
        Err(error) => Err(error),
        Ok(ConnectionState::ReadTraffic(mut traffic)) => traffic.next_record().transpose().map(|record| {
            if let Some(record) = record {
                let taken = sink(record.payload);
                rest.extend_from_slice(&record.payload[taken..]);
            }
            Step::Again
        }),
        Ok(ConnectionState::EncodeTlsData(data)) => match encode(data, out) {
            Ok(()) => Ok(Step::Again),
            Err(error) => Err(Error::General(error.to_string())),
        },
        Ok(ConnectionState::TransmitTlsData(data)) => {
            data.done();
            Ok(Step::Again)
        }
        Ok(ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_)) => Ok(Step::Rest),
        Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => Ok(Step::Ended),
        Ok(_) => Err(Error::General("early data was not offered".to_owned())),
    };
    (status.discard, step)
}

/// Writes content, or the notice that none follows.
fn put<Data>(status: UnbufferedStatus<'_, '_, Data>, content: Option<&[u8]>, out: &mut BytesMut) -> Result<(), Error> {
    let ConnectionState::WriteTraffic(mut traffic) = status.state? else {
        return Err(Error::HandshakeNotComplete);
    };
    match content {
        Some(content) => append(out, |room| traffic.encrypt(content, room)),
        None => append(out, |room| traffic.queue_close_notify(room)),
    }
}

fn append(out: &mut BytesMut, mut write: impl FnMut(&mut [u8]) -> Result<usize, EncryptError>) -> Result<(), Error> {
    let start = out.len();
    let mut size = 0;
    loop {
        out.resize(start + size, 0);
        match write(&mut out[start..]) {
            Ok(written) => {
                out.truncate(start + written);
                return Ok(());
            }
            Err(EncryptError::InsufficientSize(InsufficientSizeError { required_size })) if required_size > size => {
                size = required_size;
            }
            Err(error) => {
                out.truncate(start);
                return Err(Error::General(error.to_string()));
            }
        }
    }
}

#[cfg(test)]
mod tests;
