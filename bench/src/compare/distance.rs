//! The scenarios with 80 ms of round trip between the ends.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use memchr::memmem;
use serde_json::{Value, json};

use super::clients::{self, Form, Load};
use super::delay::Delay;
use super::near::clock;
use super::systems::{Kind, Place};

pub const ROUND_TRIP: Duration = Duration::from_millis(80);
const COLD_BYTES: u64 = 100 << 20;
const WARM_BYTES: u64 = 1 << 30;
/// A system that needs longer is measured by what arrived until then.
const TRANSFER_MAX: Duration = Duration::from_secs(8);
/// A window may open so long before it counts.
const OPENING: Duration = Duration::from_secs(1);
const READ_BYTES: usize = 256 * 1024;

/// Who is measured over the line, and how.
pub const KINDS: [Kind; 5] = [Kind::Direct, Kind::Culvert, Kind::TlsPair, Kind::Rathole, Kind::Ssh];

/// One round of one system.
#[derive(Clone)]
pub struct Far {
    /// The first 100 MiB of a new tunnel: seconds, and whether all of it came in time.
    pub cold_seconds: f64,
    pub cold_whole: bool,
    /// 1 GiB thereafter: bytes a second once the window had time to open.
    pub warm_rate: f64,
    /// A new connection: time to the first byte, median and worst, in round trips.
    pub new: [f64; 2],
    /// The same with CONNECT: time to its answer, and to the first byte behind it, medians.
    pub connect: Option<[f64; 2]>,
    /// 50 clients, a new connection for each request: requests a second, p99 in round trips.
    pub churn: [f64; 2],
    pub failures: u64,
    /// Cores that everything else on the machine kept busy meanwhile.
    pub others: f64,
}

impl Far {
    pub fn json(&self) -> Value {
        json!({
            "cold_100mib_s": self.cold_seconds, "cold_whole": self.cold_whole, "warm_1gib_bytes_per_s": self.warm_rate,
            "new_connection_rtt": { "median": self.new[0], "worst": self.new[1] },
            "connect_rtt": self.connect.map(|[answer, byte]| json!({ "answer": answer, "first_byte": byte })),
            "others_cores": self.others, "churn_50": { "rate": self.churn[0], "p99_rtt": self.churn[1], "failures": self.failures },
        })
    }
}

fn form_of(kind: Kind) -> Form {
    if kind == Kind::Culvert {
        Form::Absolute
    } else {
        Form::Origin
    }
}

/// Starts a system anew with the line between its ends and measures it.
///
/// # Errors
/// If it does not start, or a transfer breaks off.
pub fn measure(kind: Kind, place: &Place, connections: usize, churn: Duration) -> io::Result<Far> {
    let line = Delay::start(ROUND_TRIP)?;
    let system = kind.start(place, Some(&line))?;
    let client = Client {
        target: system.target,
        origin: place.origin,
    };
    let form = form_of(kind);
    let (started, before) = (Instant::now(), clock(&system)?);
    let cold = client.transfer(form, COLD_BYTES)?;
    let warm = client.transfer(form, WARM_BYTES)?;
    let new = client.new_connections(form, connections)?;
    let connect = match kind {
        Kind::Culvert => Some(client.new_connections(Form::Connect, connections)?),
        _ => None,
    };
    let load = Load {
        target: system.target,
        form,
        origin: place.origin,
        hosts: None,
        body_bytes: 1_024,
        connections: 50,
        fresh: true,
        warm_up: 2 * ROUND_TRIP,
        duration: churn,
    };
    let outcome = clients::run(&load, |_| {})?;
    Ok(Far {
        cold_seconds: cold.seconds(),
        cold_whole: cold.total() == COLD_BYTES,
        warm_rate: warm.rate(),
        new: [
            median(&new.first_byte),
            new.first_byte.iter().copied().fold(0.0, f64::max),
        ],
        connect: connect.map(|connect| [median(&connect.answer), median(&connect.first_byte)]),
        churn: [
            outcome.requests as f64 / outcome.seconds,
            outcome.latency.value_at_quantile(0.99) as f64 / ROUND_TRIP.as_micros() as f64,
        ],
        failures: outcome.failures,
        others: clock(&system)?.others_since(&before) / started.elapsed().as_secs_f64(),
    })
}

/// What Culvert carries where its flow control cannot bind: the same programs and the same relay between them, but no
/// delay in it. The bandwidth-delay product is then far below the first window, while every other cost is the same.
/// Bytes a second of a 1 GiB body on a warm link.
///
/// # Errors
/// As [`measure`].
pub fn unbound(place: &Place) -> io::Result<f64> {
    let line = Delay::start(Duration::ZERO)?;
    let system = Kind::Culvert.start(place, Some(&line))?;
    let client = Client {
        target: system.target,
        origin: place.origin,
    };
    client.transfer(Form::Absolute, COLD_BYTES)?;
    Ok(client.transfer(Form::Absolute, WARM_BYTES)?.rate())
}

/// One client at a time.
pub struct Client {
    pub target: SocketAddr,
    pub origin: SocketAddr,
}

/// Times of new connections, in round trips.
#[derive(Default)]
pub struct New {
    /// Until CONNECT was answered.
    answer: Vec<f64>,
    pub first_byte: Vec<f64>,
}

/// How a body came in: when how much of it was there.
pub struct Transfer {
    progress: Vec<(Duration, u64)>,
}

impl Transfer {
    pub fn total(&self) -> u64 {
        self.progress.last().map_or(0, |(_, bytes)| *bytes)
    }

    fn seconds(&self) -> f64 {
        self.progress.last().map_or(0.0, |(time, _)| time.as_secs_f64())
    }

    /// Bytes a second after the first second; of a body that was faster, in the second half of its time.
    fn rate(&self) -> f64 {
        let from = OPENING.as_secs_f64().min(self.seconds() / 2.0);
        let before = self.progress.iter().rfind(|(time, _)| time.as_secs_f64() <= from);
        let (start, already) = before.map_or((0.0, 0), |(time, bytes)| (time.as_secs_f64(), *bytes));
        (self.total() - already) as f64 / (self.seconds() - start)
    }
}

impl Client {
    /// A connection on which requests go next, with CONNECT once that is answered.
    ///
    /// # Errors
    /// If it is refused, or no answer comes.
    pub fn dial(&self, form: Form) -> io::Result<TcpStream> {
        let mut socket = TcpStream::connect(self.target)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(TRANSFER_MAX))?;
        if form == Form::Connect {
            write!(socket, "CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n\r\n", self.origin)?;
            read_head(&mut socket, &mut vec![0; READ_BYTES])?;
        }
        Ok(socket)
    }

    fn ask(&self, socket: &mut TcpStream, form: Form, bytes: u64) -> io::Result<()> {
        let site = match form {
            Form::Absolute => format!("http://{}", self.origin),
            _ => String::new(),
        };
        let text = format!(
            "{} {site}/{bytes} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
            form.method(),
            self.origin
        );
        socket.write_all(text.as_bytes())
    }

    pub fn transfer(&self, form: Form, bytes: u64) -> io::Result<Transfer> {
        let mut socket = self.dial(form)?;
        let mut buffer = vec![0; READ_BYTES];
        let started = Instant::now();
        self.ask(&mut socket, form, bytes)?;
        let mut total = read_head(&mut socket, &mut buffer)? as u64;
        let mut progress = vec![(started.elapsed(), total)];
        while total < bytes && started.elapsed() < TRANSFER_MAX {
            match socket.read(&mut buffer)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => total += read as u64,
            }
            progress.push((started.elapsed(), total));
        }
        Ok(Transfer { progress })
    }

    pub fn new_connections(&self, form: Form, connections: usize) -> io::Result<New> {
        let mut new = New::default();
        let mut buffer = vec![0; READ_BYTES];
        for _ in 0..connections {
            let started = Instant::now();
            let trips = || started.elapsed().as_secs_f64() / ROUND_TRIP.as_secs_f64();
            let mut socket = self.dial(form)?;
            new.answer.push(trips());
            self.ask(&mut socket, form, 1_024)?;
            read_head(&mut socket, &mut buffer)?;
            new.first_byte.push(trips());
        }
        Ok(new)
    }
}

/// Reads until a head is whole and good; the bytes that came behind it.
fn read_head(socket: &mut TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    loop {
        let read = socket.read(&mut buffer[filled..])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        filled += read;
        if let Some(end) = memmem::find(&buffer[..filled], b"\r\n\r\n") {
            if !buffer.starts_with(b"HTTP/1.1 200") {
                let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
                return Err(io::Error::other(head.lines().next().unwrap_or_default().to_owned()));
            }
            return Ok(filled - end - 4);
        }
    }
}

/// The middle one; the mean of both in the middle of an even number.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n => f64::midpoint(sorted[(n - 1) / 2], sorted[n / 2]),
    }
}
