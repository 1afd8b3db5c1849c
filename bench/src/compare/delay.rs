//! A long line in user space: every byte arrives half a round trip after it was read, in order, at any rate. A
//! connection through it costs a round trip first, as TCP's handshake would. One thread.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendFlags, SocketFlags, SocketType, accept_with, connect, send, socket_with, sockopt,
};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use super::poller::{Interest, Poller};

const LISTENER: u64 = u64::MAX;
const TIMER: u64 = u64::MAX - 1;
const CHUNK_BYTES: usize = 256 * 1024;
/// What one direction of a connection holds: 1 GB/s at 80 ms fits; more waits in the sender's socket.
const HELD_BYTES_MAX: usize = 128 << 20;

/// Where connections to it go, once that is known; until then they are refused.
#[derive(Clone)]
pub struct Delay {
    pub address: SocketAddr,
    target: Arc<OnceLock<SocketAddr>>,
}

impl Delay {
    /// Relays from a free port of loopback until the process ends.
    ///
    /// # Errors
    /// If no socket or timer can be had.
    pub fn start(round_trip: Duration) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        sockopt::set_tcp_nodelay(&listener, true)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let target = Arc::new(OnceLock::new());
        let poller = Poller::new()?;
        poller.add(&listener, LISTENER, Interest::IN)?;
        let timer = timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
        )?;
        poller.add(&timer, TIMER, Interest::IN)?;
        let mut line = Line {
            poller,
            listener,
            timer,
            target: target.clone(),
            round_trip,
            pairs: Vec::new(),
            free: Vec::new(),
            chunks: Vec::new(),
        };
        thread::Builder::new().name("delay".into()).spawn(move || line.run())?;
        Ok(Self { address, target })
    }

    /// Once.
    pub fn lead_to(&self, target: SocketAddr) {
        self.target.set(target).expect("one target");
    }
}

struct Line {
    poller: Poller,
    listener: TcpListener,
    timer: OwnedFd,
    target: Arc<OnceLock<SocketAddr>>,
    round_trip: Duration,
    pairs: Vec<Option<Pair>>,
    free: Vec<usize>,
    chunks: Vec<Vec<u8>>,
}

/// Both sockets of a connection; what was read from one waits for the other.
struct Pair {
    sockets: [OwnedFd; 2],
    interest: [Interest; 2],
    /// Its socket has nothing more to tell.
    silent: [bool; 2],
    /// From socket 0 to 1, and back.
    ways: [Way; 2],
    /// Nothing arrives before.
    established: Instant,
}

#[derive(Default)]
struct Way {
    held: VecDeque<Chunk>,
    held_bytes: usize,
    /// The end was read, and when it arrives.
    end: Option<Instant>,
    ended: bool,
    /// The socket took less than was due.
    blocked: bool,
}

struct Chunk {
    due: Instant,
    bytes: Vec<u8>,
    sent: usize,
}

impl Way {
    fn due(&self) -> Option<Instant> {
        match self.held.front() {
            Some(chunk) => Some(chunk.due),
            None => self.end.filter(|_| !self.ended),
        }
    }
}

impl Line {
    fn run(&mut self) {
        let mut ready = Vec::new();
        loop {
            self.poller.wait(None, &mut ready).expect("epoll waits");
            for &(token, flags) in &ready {
                match token {
                    LISTENER => self.accept(),
                    TIMER => {
                        let mut count = [0; 8];
                        // It may have been set anew since.
                        let _ = rustix::io::read(&self.timer, &mut count);
                    }
                    _ => self.socket_ready((token / 2) as usize, (token % 2) as usize, flags),
                }
            }
            self.deliver();
        }
    }

    fn accept(&mut self) {
        while let Ok(browser) = accept_with(&self.listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
            let Some(target) = self.target.get() else { continue };
            let Ok(server) = dial(*target) else { continue };
            let index = self.free.pop().unwrap_or_else(|| {
                self.pairs.push(None);
                self.pairs.len() - 1
            });
            let token = 2 * index as u64;
            let added = self.poller.add(&browser, token, Interest::IN).is_ok()
                && self.poller.add(&server, token + 1, Interest::IN).is_ok();
            if !added {
                self.free.push(index);
                continue;
            }
            self.pairs[index] = Some(Pair {
                sockets: [browser, server],
                interest: [Interest::IN; 2],
                silent: [false; 2],
                ways: Default::default(),
                established: Instant::now() + self.round_trip,
            });
        }
    }

    fn socket_ready(&mut self, index: usize, side: usize, flags: Interest) {
        let Some(pair) = self.pairs.get_mut(index).and_then(Option::as_mut) else {
            return;
        };
        if flags.contains(Interest::OUT) {
            pair.ways[1 - side].blocked = false;
        }
        if !flags.intersects(Interest::IN | Interest::HUP | Interest::ERR) {
            return;
        }
        let way = &mut pair.ways[side];
        if way.end.is_some() || way.held_bytes >= HELD_BYTES_MAX {
            // Closed both ways or reset, which would be told again and again; what is held still arrives.
            if flags.intersects(Interest::HUP | Interest::ERR) && !pair.silent[side] {
                pair.silent[side] = true;
                pair.ways[1 - side].blocked = false;
                if self.poller.delete(&pair.sockets[side]).is_err() {
                    self.remove(index);
                }
            }
            return;
        }
        let mut bytes = self.chunks.pop().unwrap_or_else(|| Vec::with_capacity(CHUNK_BYTES));
        let read = rustix::io::read(&pair.sockets[side], rustix::buffer::spare_capacity(&mut bytes));
        let due = Instant::now().max(pair.established) + self.round_trip / 2;
        match read {
            Ok(read) if read > 0 => {
                way.held_bytes += read;
                way.held.push_back(Chunk { due, bytes, sent: 0 });
            }
            Ok(_) => way.end = Some(due),
            Err(Errno::AGAIN | Errno::INTR) => self.chunks.push(bytes),
            Err(_) => self.remove(index),
        }
    }

    fn remove(&mut self, index: usize) {
        self.pairs[index] = None;
        self.free.push(index);
    }

    /// Sends what is due and sets the timer to what is next.
    fn deliver(&mut self) {
        let mut next: Option<Instant> = None;
        for index in 0..self.pairs.len() {
            let Some(pair) = &mut self.pairs[index] else { continue };
            let token = 2 * index as u64;
            let alive = (0..2).all(|from| pair.send_due(from, &mut self.chunks).is_ok())
                && pair.ways.iter().any(|way| !way.ended)
                && (0..2).all(|side| pair.set_interest(side, token + side as u64, &self.poller).is_ok());
            if !alive {
                self.remove(index);
                continue;
            }
            for way in pair.ways.iter().filter(|way| !way.blocked) {
                next = [next, way.due()].into_iter().flatten().min();
            }
        }
        let wait = next.map_or(Duration::ZERO, |next| {
            // Zero would switch the timer off.
            next.saturating_duration_since(Instant::now())
                .max(Duration::from_nanos(1))
        });
        let value = Itimerspec {
            it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: Timespec::try_from(wait).expect("a short time"),
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &value).expect("a valid time");
    }
}

impl Pair {
    fn send_due(&mut self, from: usize, chunks: &mut Vec<Vec<u8>>) -> Result<(), Errno> {
        let (way, socket) = (&mut self.ways[from], &self.sockets[1 - from]);
        let now = Instant::now();
        while let Some(chunk) = way.held.front_mut() {
            if way.blocked || chunk.due > now {
                return Ok(());
            }
            match send(socket, &chunk.bytes[chunk.sent..], SendFlags::NOSIGNAL) {
                Ok(sent) => {
                    chunk.sent += sent;
                    way.held_bytes -= sent;
                }
                Err(Errno::AGAIN) => way.blocked = true,
                Err(e) => return Err(e),
            }
            if chunk.sent == chunk.bytes.len()
                && let Some(mut chunk) = way.held.pop_front()
            {
                chunk.bytes.clear();
                chunks.push(chunk.bytes);
            }
        }
        if way.end.is_some_and(|end| end <= now) && !way.ended {
            way.ended = true;
            // A socket that is gone already needs no end.
            let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Write);
        }
        Ok(())
    }

    fn set_interest(&mut self, side: usize, token: u64, poller: &Poller) -> io::Result<()> {
        let reads = self.ways[side].end.is_none() && self.ways[side].held_bytes < HELD_BYTES_MAX;
        let mut interest = Interest::empty();
        interest.set(Interest::IN, reads);
        interest.set(Interest::OUT, self.ways[1 - side].blocked);
        if interest != self.interest[side] && !self.silent[side] {
            poller.modify(&self.sockets[side], token, interest)?;
            self.interest[side] = interest;
        }
        Ok(())
    }
}

fn dial(target: SocketAddr) -> io::Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
    sockopt::set_tcp_nodelay(&socket, true)?;
    match connect(&socket, &target) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(e) => Err(e.into()),
    }
}
