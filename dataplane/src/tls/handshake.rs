//! The handshake, driven by rustls without I/O until traffic keys are known.

use std::sync::{Arc, Mutex};

use bytes::{Buf, BufMut, BytesMut};
use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, InsufficientSizeError, UnbufferedStatus};
use rustls::{ClientConfig, CommonState, ServerConfig};
use rustls_pki_types::ServerName;

use super::config::Fingerprint;
use super::opener::Opener;
use super::record::{HEADER_BYTES, Key, Schedule};
use super::sealer::Sealer;
use super::{ALPN, explain};
use crate::error::Error;
use crate::limits::{HANDSHAKE_BYTES_MAX, RECORD_CIPHERTEXT_BYTES_MAX};

/// What [`Handshake::handle`] came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// More bytes of the peer are needed.
    NeedsInput,
    /// Write [`Handshake::output`], then take [`Handshake::into_records`].
    Done,
}

/// One handshake, sans-IO.
///
/// Write what [`Handshake::output`] returns after each call, also after an error: then it is the alert that tells
/// the peer why.
pub struct Handshake {
    side: Side,
    /// Records given to rustls that it has not discarded yet: a message may span several.
    pending: Vec<u8>,
    /// Bytes taken from the peer so far.
    taken: usize,
    output: Vec<u8>,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Running,
    Done,
    Failed,
}

enum Side {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
}

/// One step of rustls' state machine.
enum Step {
    Again,
    Blocked,
    Done,
}

impl Handshake {
    /// The dialling end; [`Handshake::output`] holds the ClientHello. `server_name` becomes the SNI.
    pub fn client(config: Arc<ClientConfig>, server_name: &str) -> Result<Self, Error> {
        let name = ServerName::try_from(server_name.to_owned())
            .map_err(|_| Error::Tls(format!("{server_name:?} is no server name")))?;
        let client = UnbufferedClientConnection::new(config, name).map_err(explain)?;
        let mut handshake = Self::new(Side::Client(client));
        handshake.handle(&mut BytesMut::new())?;
        Ok(handshake)
    }

    /// The accepting end; the ClientHello is its first input.
    pub fn server(config: Arc<ServerConfig>) -> Result<Self, Error> {
        let server = UnbufferedServerConnection::new(config).map_err(explain)?;
        Ok(Self::new(Side::Server(server)))
    }

    fn new(side: Side) -> Self {
        Self {
            side,
            pending: Vec::new(),
            taken: 0,
            output: Vec::new(),
            state: State::Running,
        }
    }

    /// Takes whole records of the handshake from the front of `input`, never a byte of what follows it.
    ///
    /// Errors: [`Error::Tls`] (a wrong key has the text [`super::WRONG_KEY`]), [`Error::Limit`] when the peer's
    /// messages exceed `HANDSHAKE_BYTES_MAX`. No error is recoverable.
    pub fn handle(&mut self, input: &mut BytesMut) -> Result<Progress, Error> {
        match self.state {
            State::Done => return Ok(Progress::Done),
            State::Failed => return Err(Error::Closed("handshake")),
            State::Running => {}
        }
        let result = self.run(input);
        match result {
            Ok(Progress::NeedsInput) => {}
            Ok(Progress::Done) => self.state = State::Done,
            Err(_) => self.state = State::Failed,
        }
        result
    }

    fn run(&mut self, input: &mut BytesMut) -> Result<Progress, Error> {
        loop {
            match self.step()? {
                Step::Again => {}
                Step::Done => return Ok(Progress::Done),
                Step::Blocked if self.feed(input)? => {}
                Step::Blocked => return Ok(Progress::NeedsInput),
            }
        }
    }

    /// Bytes for the peer, if there are any.
    pub fn output(&mut self) -> Option<Vec<u8>> {
        (!self.output.is_empty()).then(|| std::mem::take(&mut self.output))
    }

    /// Whether the traffic keys are known.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// The two halves of the record layer and the key that the peer proved.
    ///
    /// Bytes that followed the handshake are still in the caller's input: they are the opener's. Errors:
    /// [`Error::Tls`] before the handshake is done, or when the peer did not agree on [`ALPN`].
    pub fn into_records(self) -> Result<(Sealer, Opener, Fingerprint), Error> {
        // A byte left here would be lost to the opener.
        if !self.is_done() || !self.pending.is_empty() {
            return Err(Error::Tls("the handshake is not complete".to_owned()));
        }
        let common = self.side.common();
        if common.alpn_protocol() != Some(ALPN) {
            return Err(Error::Tls("the peer does not speak culvert".to_owned()));
        }
        let certificate = common.peer_certificates().and_then(<[_]>::first);
        let certificate = certificate.ok_or_else(|| Error::Tls("the peer showed no key".to_owned()))?;
        let peer = Fingerprint::of_certificate(certificate)?;
        let (secrets, schedule) = match self.side {
            Side::Client(client) => {
                let (secrets, kernel) = client.dangerous_into_kernel_connection().map_err(explain)?;
                (secrets, Schedule::Client(kernel))
            }
            Side::Server(server) => {
                let (secrets, kernel) = server.dangerous_into_kernel_connection().map_err(explain)?;
                (secrets, Schedule::Server(kernel))
            }
        };
        let schedule = Arc::new(Mutex::new(schedule));
        let sealer = Sealer::new(Key::new(secrets.tx)?, schedule.clone());
        let opener = Opener::new(Key::new(secrets.rx)?, schedule);
        Ok((sealer, opener, peer))
    }

    /// Moves one whole record from `input` to rustls; false if there is none yet.
    ///
    /// One at a time, because rustls would decrypt, and keep, whatever stands behind the last message.
    fn feed(&mut self, input: &mut BytesMut) -> Result<bool, Error> {
        let Some(&[kind, major, _, high, low]) = input.first_chunk::<HEADER_BYTES>() else {
            return Ok(false);
        };
        let length = usize::from(u16::from_be_bytes([high, low]));
        if !(20..=23).contains(&kind) || major != 3 || length > RECORD_CIPHERTEXT_BYTES_MAX {
            return Err(Error::Tls("the peer does not speak TLS".to_owned()));
        }
        let record = HEADER_BYTES + length;
        if input.len() < record {
            return Ok(false);
        }
        self.taken += record;
        if self.taken > HANDSHAKE_BYTES_MAX {
            return Err(Error::Limit(format!(
                "the peer's handshake is longer than {HANDSHAKE_BYTES_MAX} bytes"
            )));
        }
        self.pending.extend_from_slice(&input[..record]);
        input.advance(record);
        Ok(true)
    }

    fn step(&mut self) -> Result<Step, Error> {
        let step = match &mut self.side {
            Side::Client(client) => act(client.process_tls_records(&mut self.pending), &mut self.output),
            Side::Server(server) => act(server.process_tls_records(&mut self.pending), &mut self.output),
        };
        match step {
            (discard, Ok(step)) => {
                self.pending.drain(..discard);
                Ok(step)
            }
            (_, Err(error)) => {
                self.collect_alert();
                Err(error)
            }
        }
    }

    /// After an error: what rustls still has to say. Asked for only while something is queued, because the next
    /// look at the input would find the same error again.
    fn collect_alert(&mut self) {
        while self.side.common().wants_write() {
            let result = match &mut self.side {
                Side::Client(client) => act(client.process_tls_records(&mut self.pending), &mut self.output).1,
                Side::Server(server) => act(server.process_tls_records(&mut self.pending), &mut self.output).1,
            };
            if result.is_err() {
                break;
            }
        }
    }
}

impl Side {
    fn common(&self) -> &CommonState {
        match self {
            Self::Client(client) => client,
            Self::Server(server) => server,
        }
    }
}

/// Does what rustls asks for; returns the bytes that it is done with.
fn act<Data>(status: UnbufferedStatus<'_, '_, Data>, output: &mut Vec<u8>) -> (usize, Result<Step, Error>) {
    let step = match status.state {
        Err(error) => Err(explain(error)),
        Ok(ConnectionState::EncodeTlsData(data)) => match encode(data, output) {
            Ok(()) => Ok(Step::Again),
            Err(error) => Err(Error::Tls(error.to_string())),
        },
        Ok(ConnectionState::TransmitTlsData(data)) => {
            data.done();
            Ok(Step::Again)
        }
        Ok(ConnectionState::BlockedHandshake) => Ok(Step::Blocked),
        Ok(ConnectionState::WriteTraffic(_)) => Ok(Step::Done),
        Ok(_) => Err(Error::Tls("the peer ended the handshake".to_owned())),
    };
    (status.discard, step)
}

/// Appends what rustls has to say.
///
/// # Errors
/// What rustls says of it.
pub(crate) fn encode<Data>(mut data: EncodeTlsData<'_, Data>, output: &mut impl BufMut) -> Result<(), EncodeError> {
    let size = match data.encode(&mut []) {
        Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) => required_size,
        Err(error) => return Err(error),
        Ok(_) => return Ok(()),
    };
    let mut bytes = vec![0; size];
    data.encode(&mut bytes)?;
    output.put_slice(&bytes);
    Ok(())
}
