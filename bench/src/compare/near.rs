//! The scenarios in which the ends are as near as loopback: every system under the same load, in turns.

use std::io;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::bare;
use super::bump;
use super::clients::{self, Form, Load, Mark};
use super::halves::Halves;
use super::poller::pass;
use super::systems::{Kind, Place, System};
use super::usage;

/// A load of clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    /// 100 connections that stay, 1 KiB bodies.
    Small,
    /// 8 connections, 100 MiB bodies.
    Bulk,
    /// 100 connections, a new one for each request of 1 KiB.
    Churn,
    /// 16 connections, a new one for each request of 1 KiB, to a host that nobody has asked for.
    Hosts,
}

impl Scenario {
    pub const ALL: [Self; 4] = [Self::Small, Self::Bulk, Self::Churn, Self::Hosts];

    pub fn key(self) -> &'static str {
        match self {
            Self::Small => "small",
            Self::Bulk => "bulk",
            Self::Churn => "churn",
            Self::Hosts => "hosts",
        }
    }

    fn load<'a>(self, contender: Contender, system: &System, place: &'a Place, times: Times) -> Load<'a> {
        Load {
            target: system.target,
            form: contender.form,
            origin: match contender.form {
                Form::Secure => place.secure_origin,
                _ => place.origin,
            },
            hosts: (self == Self::Hosts).then_some(&place.hosts),
            body_bytes: if self == Self::Bulk { 100 << 20 } else { 1_024 },
            connections: match self {
                Self::Small | Self::Churn => 100,
                Self::Bulk => 8,
                Self::Hosts => 16,
            },
            fresh: matches!(self, Self::Churn | Self::Hosts),
            warm_up: times.warm_up,
            duration: times.measured,
        }
    }
}

/// How long one measurement takes.
#[derive(Clone, Copy)]
pub struct Times {
    pub warm_up: Duration,
    pub measured: Duration,
}

/// A system as clients use it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Contender {
    pub kind: Kind,
    pub form: Form,
}

impl Contender {
    /// The ways in which clients use it: several where it is a proxy, and those that are not only carried in `small`.
    pub fn of(kind: Kind, scenario: Scenario) -> Vec<Self> {
        let forms: &[Form] = match (kind, scenario) {
            (Kind::Culvert | Kind::Squid, Scenario::Hosts) => &[Form::Secure],
            (_, Scenario::Hosts) => &[],
            (Kind::Culvert, Scenario::Small) => &[Form::Connect, Form::Absolute, Form::Secure],
            (Kind::Culvert, _) => &[Form::Connect, Form::Absolute],
            (Kind::Caching, Scenario::Small) => &[Form::Absolute, Form::Fresh],
            (Kind::TwoShards, Scenario::Small) => &[Form::Absolute],
            (Kind::Squid, Scenario::Small) => &[Form::Absolute, Form::Fresh, Form::Secure],
            (Kind::Caching | Kind::TwoShards | Kind::Squid, _) => &[],
            _ => &[Form::Origin],
        };
        forms.iter().map(|&form| Self { kind, form }).collect()
    }

    pub fn title(self) -> String {
        let kind = self.kind.title();
        match self.form {
            Form::Origin => kind.to_owned(),
            Form::Absolute if matches!(self.kind, Kind::Caching | Kind::Squid) => {
                format!("{kind}, HTTP proxy, the site asked each time")
            }
            Form::Absolute => format!("{kind}, HTTP proxy"),
            Form::Fresh => format!("{kind}, HTTP proxy, from the cache"),
            Form::Secure => format!("{kind}, HTTPS that ends there (SSL bump)"),
            Form::Connect => format!("{kind}, opaque (CONNECT)"),
        }
    }
}

/// One measurement.
#[derive(Clone)]
pub struct Sample {
    pub requests: u64,
    pub failures: u64,
    pub bytes: u64,
    pub seconds: f64,
    /// p50, p99, p99.9 in milliseconds.
    pub latency: [f64; 3],
    pub parts: Vec<Used>,
    /// Seconds of CPU of clients and site, and of everything else on the machine.
    pub own_cpu: f64,
    pub other_cpu: f64,
    /// Where it is compared with them: measured just before.
    pub in_memory: Option<InMemory>,
}

/// What a new host costs without sockets.
#[derive(Clone, Copy)]
pub struct InMemory {
    /// A handshake of rustls.
    pub bare: Halves,
    /// All that our ends do.
    pub bump: Halves,
}

/// What a part used: CPU during the load, the rest at its end.
#[derive(Clone)]
pub struct Used {
    pub name: &'static str,
    pub cpu: f64,
    pub memory: Option<u64>,
    pub descriptors: Option<u64>,
}

impl Sample {
    pub fn rate(&self) -> f64 {
        self.requests as f64 / self.seconds
    }

    /// Not a number where nothing is between clients and site.
    fn cpu(&self) -> f64 {
        self.parts
            .iter()
            .map(|part| part.cpu)
            .reduce(|a, b| a + b)
            .unwrap_or(f64::NAN)
    }

    pub fn micros_a_request(&self) -> f64 {
        self.cpu() * 1e6 / self.requests as f64
    }

    /// Of the parts with these names alone.
    pub fn micros_a_request_of(&self, names: &[&str]) -> f64 {
        let parts = self.parts.iter().filter(|part| names.contains(&part.name));
        let cpu = parts.map(|part| part.cpu).reduce(|a, b| a + b);
        cpu.unwrap_or(f64::NAN) * 1e6 / self.requests as f64
    }

    pub fn nanos_a_byte(&self) -> f64 {
        self.cpu() * 1e9 / self.bytes as f64
    }

    pub fn json(&self) -> Value {
        let parts: Vec<Value> = self
            .parts
            .iter()
            .map(|part| {
                json!({ "name": part.name, "cpu_s": part.cpu, "pss_bytes": part.memory, "fds": part.descriptors })
            })
            .collect();
        json!({
            "requests": self.requests, "failures": self.failures, "bytes": self.bytes, "seconds": self.seconds,
            "p50_ms": self.latency[0], "p99_ms": self.latency[1], "p999_ms": self.latency[2], "parts": parts,
            "clients_and_site_cpu_s": self.own_cpu, "others_cpu_s": self.other_cpu,
            "bare_handshake": self.in_memory.map(|m| m.bare.json()), "bump_in_memory": self.in_memory.map(|m| m.bump.json()),
        })
    }
}

/// CPU times at one moment, in seconds.
pub struct Clock {
    parts: Vec<f64>,
    own: f64,
    machine: f64,
}

impl Clock {
    /// What everything else on the machine has used since `start`.
    pub fn others_since(&self, start: &Self) -> f64 {
        let of_parts: f64 = self
            .parts
            .iter()
            .zip(&start.parts)
            .map(|(end, start)| end - start)
            .sum();
        (self.machine - start.machine - (self.own - start.own) - of_parts).max(0.0)
    }
}

/// Reads them.
///
/// # Errors
/// If a process has gone.
pub fn clock(system: &System) -> io::Result<Clock> {
    let mut parts = Vec::new();
    for part in &system.parts {
        let mut sum = Duration::ZERO;
        for pid in &part.pids {
            sum += usage::cpu(*pid)?;
        }
        parts.push(sum.as_secs_f64());
    }
    Ok(Clock {
        parts,
        own: usage::own().as_secs_f64(),
        machine: usage::machine().as_secs_f64(),
    })
}

/// Loads a system once.
///
/// # Errors
/// If the load fails or a process has gone.
pub fn measure(
    scenario: Scenario,
    contender: Contender,
    system: &System,
    place: &Place,
    times: Times,
) -> io::Result<Sample> {
    let in_memory = match scenario {
        Scenario::Hosts => Some(InMemory {
            bare: bare::measure()?,
            bump: bump::measure()?,
        }),
        _ => None,
    };
    let mut clocks: Vec<io::Result<Clock>> = Vec::new();
    let mut at_end: Vec<(Option<u64>, Option<u64>)> = Vec::new();
    let outcome = clients::run(&scenario.load(contender, system, place, times), |mark| {
        clocks.push(clock(system));
        if mark == Mark::End {
            at_end = system
                .parts
                .iter()
                .map(|part| (sum(part, usage::memory), sum(part, usage::descriptors)))
                .collect();
        }
    })?;
    settle(system)?;
    let (Some(end), Some(start)) = (clocks.pop().transpose()?, clocks.pop().transpose()?) else {
        return Err(io::Error::other("the load did not run"));
    };
    let parts: Vec<Used> = (0..system.parts.len())
        .map(|i| Used {
            name: system.parts[i].name,
            cpu: end.parts[i] - start.parts[i],
            memory: at_end[i].0,
            descriptors: at_end[i].1,
        })
        .collect();
    Ok(Sample {
        requests: outcome.requests,
        failures: outcome.failures,
        bytes: outcome.bytes,
        seconds: outcome.seconds,
        latency: [0.5, 0.99, 0.999].map(|at| outcome.latency.value_at_quantile(at) as f64 / 1e3),
        parts,
        own_cpu: end.own - start.own,
        other_cpu: end.others_since(&start),
        in_memory,
    })
}

fn sum(part: &super::systems::Part, of: fn(i32) -> Option<u64>) -> Option<u64> {
    part.pids.iter().map(|pid| of(*pid)).sum()
}

/// Waits until a system is done with what the load left behind, so that the next one has the machine.
///
/// # Errors
/// If a process has gone.
pub fn settle(system: &System) -> io::Result<()> {
    const LOOK: Duration = Duration::from_millis(50);
    const IDLE: f64 = 0.001;
    let end = Instant::now() + Duration::from_secs(3);
    let busy = |system: &System| -> io::Result<f64> { Ok(clock(system)?.parts.iter().sum()) };
    let mut before = busy(system)?;
    while Instant::now() < end {
        pass(LOOK);
        let now = busy(system)?;
        if now - before < IDLE {
            break;
        }
        before = now;
    }
    Ok(())
}
