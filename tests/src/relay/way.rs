//! One direction of a relayed connection, with what is done to it on the way.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use super::Blow;
use crate::simulation::prng::Prng;

const READ_BYTES: usize = 64 * 1024;
/// Bytes under way while there is a delay: more than any path under test holds.
const UNDER_WAY_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Writes of one turn.
const WRITES_MAX: usize = 64;

/// What a path does to a direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Impairment {
    pub delay: Duration,
    pub bytes_per_second: Option<u64>,
    /// The longest piece that is written at once; the length of each is drawn from 1 on.
    pub piece_max: usize,
}

impl Default for Impairment {
    fn default() -> Self {
        Self {
            delay: Duration::ZERO,
            bytes_per_second: None,
            piece_max: usize::MAX,
        }
    }
}

struct Piece {
    due: Instant,
    bytes: Vec<u8>,
    sent: usize,
}

pub(super) struct Way {
    pieces: VecDeque<Piece>,
    under_way: usize,
    /// Bytes read so far.
    read: u64,
    strike: Option<(u64, Blow)>,
    blow_taken: bool,
    /// Both ends are to see a reset once the bytes before the blow are gone.
    reset: bool,
    /// Until when the bandwidth is used up.
    busy_until: Instant,
    draws: Prng,
    ended: bool,
    shut: bool,
}

impl Way {
    pub fn new(seed: u64, strike: Option<(u64, Blow)>) -> Self {
        Self {
            pieces: VecDeque::new(),
            under_way: 0,
            read: 0,
            strike,
            blow_taken: false,
            reset: false,
            busy_until: Instant::now(),
            draws: Prng::new(seed),
            ended: false,
            shut: false,
        }
    }

    /// Everything has arrived, the end included.
    pub fn done(&self) -> bool {
        self.ended && self.pieces.is_empty()
    }

    /// The blow was a reset, and everything before it has arrived.
    pub fn is_reset(&self) -> bool {
        self.reset && self.pieces.is_empty()
    }

    /// True once, after the strike has hit.
    pub fn takes_blow(&mut self) -> bool {
        std::mem::take(&mut self.blow_taken)
    }

    pub fn reads(&self, impairment: Impairment) -> bool {
        let most = if impairment == Impairment::default() {
            1
        } else {
            UNDER_WAY_BYTES_MAX
        };
        !self.ended && !self.reset && self.under_way < most
    }

    /// When the next piece may be written.
    pub fn due(&self) -> Option<Instant> {
        self.pieces.front().map(|piece| piece.due.max(self.busy_until))
    }

    /// Bytes that were read, on their way from now on.
    pub fn take_in(&mut self, mut bytes: Vec<u8>, impairment: Impairment) {
        let start = self.read;
        self.read += bytes.len() as u64;
        if let Some((at, how)) = self.strike
            && (start..self.read).contains(&at)
        {
            let at = (at - start) as usize;
            self.strike = None;
            self.blow_taken = true;
            match how {
                Blow::Flip => bytes[at] ^= 1 << (start % 8),
                Blow::Reset => {
                    bytes.truncate(at);
                    self.reset = true;
                }
                Blow::Fin => {
                    bytes.truncate(at);
                    self.ended = true;
                }
            }
        }
        if !bytes.is_empty() {
            self.under_way += bytes.len();
            self.pieces.push_back(Piece {
                due: Instant::now() + impairment.delay,
                bytes,
                sent: 0,
            });
        }
    }

    /// Reads what there is, writes what is due; the number of bytes written is returned.
    pub fn step(&mut self, mut from: &TcpStream, mut to: &TcpStream, impairment: Impairment) -> io::Result<usize> {
        if self.reads(impairment) {
            let mut bytes = vec![0; READ_BYTES];
            match non_blocking(from.read(&mut bytes))? {
                Some(0) => self.ended = true,
                Some(n) => {
                    bytes.truncate(n);
                    self.take_in(bytes, impairment);
                }
                None => {}
            }
        }
        let mut sent = 0;
        for _ in 0..WRITES_MAX {
            let now = Instant::now();
            if self.due().is_none_or(|due| due > now) {
                break;
            }
            let longest = self.piece_length(impairment);
            let piece = self.pieces.front_mut().expect("it is due");
            let end = piece.bytes.len().min(piece.sent.saturating_add(longest));
            let Some(n) = non_blocking(to.write(&piece.bytes[piece.sent..end]))? else {
                break;
            };
            piece.sent += n;
            sent += n;
            self.under_way -= n;
            if piece.sent == piece.bytes.len() {
                self.pieces.pop_front();
            }
            if let Some(rate) = impairment.bytes_per_second {
                self.busy_until = self.busy_until.max(now) + Duration::from_secs_f64(n as f64 / rate as f64);
            }
        }
        if self.done() && !self.shut {
            self.shut = true;
            to.shutdown(Shutdown::Write)?;
        }
        Ok(sent)
    }

    fn piece_length(&mut self, impairment: Impairment) -> usize {
        // What 10 ms carry, so that a slow path is slow and not jerky.
        let paced = impairment
            .bytes_per_second
            .map_or(usize::MAX, |rate| (rate as usize / 100).max(1));
        if impairment.piece_max == usize::MAX {
            return paced;
        }
        // The same seed cuts the same pieces.
        paced.min(1 + self.draws.below(impairment.piece_max as u64) as usize)
    }
}

/// `None` where the socket would block.
pub(super) fn non_blocking(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Ok(n) => Ok(Some(n)),
        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(None),
        Err(e) => Err(e),
    }
}
