//! Half of 100 streams stall, each after 4 MiB at full rate and with its sender going on: what the clients of the other half
//! pay for it, in turns with and without them.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::clients::{self, Form, Load};
use super::distance::Client;
use super::near::{self, Times};
use super::poller::pass;
use super::systems::{Place, System};
use super::usage;

pub const STALLED: usize = 50;
const OTHERS: usize = 50;
/// Read at full rate before the stall.
const READ_BYTES: usize = 4 << 20;
/// A sender that gets rid of nothing for so long is stalled.
const STILL: Duration = Duration::from_millis(300);
/// A system that takes in more for longer has no bound.
const FILL_MAX: Duration = Duration::from_secs(30);

/// One round.
pub struct Round {
    /// The 99th percentile of the others, in milliseconds: without stalled streams, and beside them.
    pub alone: f64,
    pub beside: f64,
    /// How long they were stalled.
    pub seconds: f64,
    /// Bytes that its processes hold beside them (PSS).
    pub memory: Option<u64>,
}

impl Round {
    pub fn ratio(&self) -> f64 {
        self.beside / self.alone
    }

    pub fn json(&self) -> Value {
        json!({ "p99_ms_alone": self.alone, "p99_ms_beside": self.beside, "stalled_s": self.seconds,
            "pss_bytes": self.memory })
    }
}

/// Measures the others for the time of `alone`, then beside stalled streams for that of `beside`.
///
/// # Errors
/// If a stream does not carry, the load fails, or what is stalled goes on.
pub fn measure(system: &System, place: &Place, alone: Times, beside: Duration) -> io::Result<Round> {
    let latency = |times| p99(system, place, times);
    let alone_ms = latency(alone)?;
    let stalled: Vec<Stalled> = (0..STALLED)
        .map(|number| Stalled::start(system.target, number))
        .collect::<io::Result<_>>()?;
    await_stall(&stalled)?;
    let beside_ms = latency(Times {
        measured: beside,
        ..alone
    })?;
    let memory = system
        .parts
        .iter()
        .flat_map(|part| &part.pids)
        .map(|pid| usage::memory(*pid))
        .sum();
    // One that was given up would cost nobody anything.
    if stalled.iter().any(Stalled::has_ended) {
        return Err(io::Error::other("a stream whose reader had stopped was ended"));
    }
    drop(stalled);
    near::settle(system)?;
    Ok(Round {
        alone: alone_ms,
        beside: beside_ms,
        seconds: beside.as_secs_f64(),
        memory,
    })
}

fn p99(system: &System, place: &Place, times: Times) -> io::Result<f64> {
    let load = Load {
        target: system.target,
        form: Form::Absolute,
        origin: place.origin,
        hosts: None,
        body_bytes: 1_024,
        connections: OTHERS,
        fresh: false,
        warm_up: times.warm_up,
        duration: times.measured,
    };
    let outcome = clients::run(&load, |_| {})?;
    if outcome.failures > 0 {
        return Err(io::Error::other(format!("{} requests failed", outcome.failures)));
    }
    Ok(outcome.latency.value_at_quantile(0.99) as f64 / 1e3)
}

/// Waits until no sender gets on any more: until then they are bulk transfers, which fill what there is of buffers.
fn await_stall(stalled: &[Stalled]) -> io::Result<()> {
    const LOOK: Duration = Duration::from_millis(20);
    let sent = || -> u64 { stalled.iter().map(|s| s.sent.load(Ordering::Relaxed)).sum() };
    let since = Instant::now();
    let mut last = (sent(), since);
    while last.1.elapsed() < STILL {
        if since.elapsed() > FILL_MAX {
            return Err(io::Error::other("senders whose readers have stopped go on and on"));
        }
        pass(LOOK);
        let now = sent();
        if now != last.0 {
            last = (now, Instant::now());
        }
    }
    Ok(())
}

/// A stream whose reader has stopped and whose sender goes on; dropping it ends both.
struct Stalled {
    sockets: [TcpStream; 2],
    /// Pieces that its sender got rid of.
    sent: Arc<AtomicU64>,
    sender: Option<JoinHandle<()>>,
}

impl Stalled {
    /// Even ones stall at the browser, odd ones at the site.
    fn start(proxy: SocketAddr, number: usize) -> io::Result<Self> {
        let site = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let client = Client {
            target: proxy,
            origin: site.local_addr()?,
        };
        let browser = client.dial(Form::Connect)?;
        let (socket, _) = site.accept()?;
        socket.set_read_timeout(browser.read_timeout()?)?;
        let sockets = [browser, socket];
        let (mut reader, mut writer) = (sockets[number % 2].try_clone()?, sockets[1 - number % 2].try_clone()?);
        let sent = Arc::new(AtomicU64::new(0));
        let pieces = sent.clone();
        let sender = thread::spawn(move || {
            let piece = [7; 64 * 1024];
            // Ends when the sockets are shut down.
            while writer.write_all(&piece).is_ok() {
                pieces.fetch_add(1, Ordering::Relaxed);
            }
        });
        let stalled = Self {
            sockets,
            sent,
            sender: Some(sender),
        };
        let mut piece = vec![0; 256 * 1024];
        let mut read = 0;
        while read < READ_BYTES {
            match reader.read(&mut piece)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                bytes => read += bytes,
            }
        }
        Ok(stalled)
    }
}

impl Stalled {
    fn has_ended(&self) -> bool {
        self.sender.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for Stalled {
    fn drop(&mut self) {
        for socket in &self.sockets {
            // One that has ended needs none.
            let _ = socket.shutdown(Shutdown::Both);
        }
        if let Some(sender) = self.sender.take() {
            sender.join().expect("a sender does not panic");
        }
    }
}
