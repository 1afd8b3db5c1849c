//! The two halves of a handshake in memory, and the CPU of each.

use std::io;
use std::time::Duration;

use rustls::Connection;
use serde_json::{Value, json};

use super::usage;

const HANDSHAKES: u32 = 500;
/// Before those that count.
const WARM_UP: u32 = 50;

/// CPU of each half alone: at the client's end, which is `sc`'s towards sites, and at the server's, which is the
/// endpoint's towards browsers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Halves {
    pub client: Duration,
    pub server: Duration,
}

impl Halves {
    pub fn both(self) -> Duration {
        self.client + self.server
    }

    /// The mean of several hundred in this thread, once it has warmed up; `shake` adds what one takes.
    ///
    /// # Errors
    /// The first of them.
    pub fn mean(mut shake: impl FnMut(&mut Self) -> io::Result<()>) -> io::Result<Self> {
        for _ in 0..WARM_UP {
            shake(&mut Self::default())?;
        }
        let mut spent = Self::default();
        for _ in 0..HANDSHAKES {
            shake(&mut spent)?;
        }
        Ok(Self {
            client: spent.client / HANDSHAKES,
            server: spent.server / HANDSHAKES,
        })
    }

    pub fn json(self) -> Value {
        json!({ "client_cpu_us": microseconds(self.client), "server_cpu_us": microseconds(self.server) })
    }
}

pub fn microseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// Adds what this thread works for it.
pub fn on<T>(spent: &mut Duration, work: impl FnOnce() -> T) -> T {
    let before = usage::thread();
    let done = work();
    *spent += usage::thread().saturating_sub(before);
    done
}

/// Reads what the other half has sent, and writes its own in its place.
///
/// # Errors
/// If it does not like that.
pub fn turn(half: &mut Connection, wire: &mut Vec<u8>) -> io::Result<()> {
    let mut unread = &wire[..];
    while !unread.is_empty() {
        half.read_tls(&mut unread)?;
        half.process_new_packets().map_err(io::Error::other)?;
    }
    wire.clear();
    while half.wants_write() {
        half.write_tls(wire)?;
    }
    Ok(())
}
