//! The report: Markdown for people, JSON for programs.

use std::fmt::Write;
use std::fs;
use std::time::Duration;

use serde_json::{Value, json};

use super::clients::Form;
use super::distance::{ROUND_TRIP, median};
use super::halves::{Halves, microseconds};
use super::near::{Contender, InMemory, Sample, Scenario};
use super::stalled::{Round, STALLED};
use super::systems::Kind;
use super::{Results, Row};

/// A dash where nothing could be measured: what a process holds is for its own user and root to see.
fn number(value: f64, digits: usize) -> String {
    if value.is_finite() {
        format!("{value:.digits$}")
    } else {
        "–".into()
    }
}

/// The same figure of all rounds.
struct Figure(Vec<f64>);

impl Figure {
    fn of<T>(samples: &[T], value: impl Fn(&T) -> f64) -> Self {
        Self(samples.iter().map(value).collect())
    }

    /// Of each round in which both were measured.
    fn ratio(samples: &[Sample], others: &[Sample], value: impl Fn(&Sample) -> f64) -> Self {
        Self(
            samples
                .iter()
                .zip(others)
                .map(|(one, other)| value(one) / value(other))
                .collect(),
        )
    }

    fn median(&self) -> f64 {
        median(&self.0)
    }

    fn json(&self) -> Value {
        json!({ "median": self.median(), "min": self.min(), "max": self.max() })
    }

    fn min(&self) -> f64 {
        self.0.iter().copied().fold(f64::INFINITY, f64::min)
    }

    fn max(&self) -> f64 {
        self.0.iter().copied().fold(f64::NEG_INFINITY, f64::max)
    }

    /// Median and spread.
    fn show(&self) -> String {
        let digits = match self.median() {
            m if m >= 1_000.0 => 0,
            m if m >= 10.0 => 1,
            _ => 2,
        };
        let median = number(self.median(), digits);
        match self.0.len() {
            2.. if self.median().is_finite() => format!("{median} ({:.digits$}–{:.digits$})", self.min(), self.max()),
            _ => median,
        }
    }
}

/// What is to be reached, and what was.
struct Goal {
    name: &'static str,
    /// At most this; with `at_least` at least this.
    bound: f64,
    at_least: bool,
    reached: Figure,
}

impl Goal {
    fn met(&self) -> bool {
        let median = self.reached.median();
        if self.at_least {
            median >= self.bound
        } else {
            median <= self.bound
        }
    }
}

/// The load average, and what else the machine is.
pub fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().take(3).collect::<Vec<_>>().join(" ")
}

/// Both forms of the report; `load` is the load average before and after.
pub fn write(results: &Results, load: &[String; 2]) -> (String, Value) {
    let goals = goals(results);
    let mut text = String::from("# Culvert beside other programs\n\n");
    let (cores, kernel, cpu) = machine();
    // Writing to a text cannot fail.
    let _ = writeln!(
        text,
        "{cores} cores, {cpu}, Linux {kernel}; load average {} before, {} after. Medians of the rounds, (least–most). \
         Figures hold within this run.\n",
        load[0], load[1]
    );
    for scenario in Scenario::ALL {
        let rows: Vec<&Row> = results.rows.iter().filter(|row| row.scenario == scenario).collect();
        if !rows.is_empty() {
            near_table(&mut text, scenario, &rows);
            if scenario == Scenario::Hosts {
                beside_hosts(&mut text, results, &rows);
            }
        }
    }
    if !results.stalled.is_empty() {
        stalled_table(&mut text, &results.stalled);
    }
    if !results.far.is_empty() {
        far_table(&mut text, results);
    }
    goal_table(&mut text, &goals);
    if !results.left_out.is_empty() {
        text.push_str("## Left out\n\n");
        results.left_out.iter().for_each(|line| text.extend(["- ", line, "\n"]));
    }
    let json = json!({
        "machine": { "cores": cores, "cpu": cpu, "kernel": kernel, "load_before": load[0], "load_after": load[1] },
        "near": results.rows.iter().map(row_json).collect::<Vec<_>>(),
        "stalled": results.stalled.iter().map(Round::json).collect::<Vec<_>>(),
        "distance": {
            "round_trip_ms": ROUND_TRIP.as_millis() as u64,
            "systems": results.far.iter().map(|(kind, rounds)| json!({
                "system": kind.key(), "rounds": rounds.iter().map(|far| far.json()).collect::<Vec<_>>(),
            })).collect::<Vec<_>>(),
            "culvert_without_delay_bytes_per_s": results.unbound,
        },
        "goals": goals.iter().map(|goal| json!({
            "name": goal.name, "bound": goal.bound, "at_least": goal.at_least, "reached": goal.reached.json(),
            "met": goal.met(),
        })).collect::<Vec<_>>(),
        "left_out": results.left_out,
    });
    (text, json)
}

fn row_json(row: &Row) -> Value {
    json!({
        "scenario": row.scenario.key(), "system": row.contender.kind.key(),
        "form": match row.contender.form {
            Form::Origin => "origin",
            Form::Absolute => "proxy",
            Form::Fresh => "cached",
            Form::Secure => "bumped",
            Form::Connect => "opaque",
        },
        "rate": Figure::of(&row.samples, Sample::rate).json(),
        "cpu_us_per_request": Figure::of(&row.samples, Sample::micros_a_request).json(),
        "cpu_ns_per_byte": Figure::of(&row.samples, Sample::nanos_a_byte).json(),
        "rounds": row.samples.iter().map(Sample::json).collect::<Vec<_>>(),
    })
}

fn machine() -> (usize, String, String) {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let info = read("/proc/cpuinfo");
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    (
        std::thread::available_parallelism().map_or(0, usize::from),
        read("/proc/sys/kernel/osrelease").trim().to_owned(),
        model.map_or("unknown CPU", |(_, name)| name).to_owned(),
    )
}

fn near_table(text: &mut String, scenario: Scenario, rows: &[&Row]) {
    let bulk = scenario == Scenario::Bulk;
    text.push_str(match scenario {
        Scenario::Small => "## small: 100 connections that stay, bodies of 1 KiB\n\n",
        Scenario::Bulk => "## bulk: 8 connections, bodies of 100 MiB\n\n",
        Scenario::Churn => "## churn: 100 connections, a new one for each request of 1 KiB\n\n",
        Scenario::Hosts => {
            "## hosts: HTTPS to a host never seen before, its TLS ended at the endpoint\n\n\
             16 clients; a request is a new connection, CONNECT, TLS, 1 KiB, and the next one is to another host.\n\n"
        }
    });
    text.push_str(if bulk {
        "| system | GB/s | CPU ns/byte | of it each process | PSS MiB | fds | CPU of others |\n|---|--:|--:|---|--:|--:|--:|\n"
    } else {
        "| system | rate /s | p50 ms | p99 ms | p99.9 ms | CPU µs/request | of it each process | clients and site µs | \
         PSS MiB | fds | failed | CPU of others |\n|---|--:|--:|--:|--:|--:|---|--:|--:|--:|--:|--:|\n"
    });
    for row in rows {
        let samples = &row.samples;
        let of = |value: fn(&Sample) -> f64| Figure::of(samples, value);
        let per = |sample: &Sample, cpu: f64| {
            if bulk {
                cpu * 1e9 / sample.bytes as f64
            } else {
                cpu * 1e6 / sample.requests as f64
            }
        };
        let parts: Vec<String> = (0..samples.first().map_or(0, |sample| sample.parts.len()))
            .map(|i| {
                let cpu = Figure::of(samples, |sample| per(sample, sample.parts[i].cpu));
                format!("{} {:.2}", samples[0].parts[i].name, cpu.median())
            })
            .collect();
        let memory = samples.iter().filter_map(|sample| {
            let sum: Option<u64> = sample.parts.iter().map(|part| part.memory).sum();
            Some(sum? as f64 / f64::from(1 << 20))
        });
        let descriptors = samples.iter().filter_map(|sample| {
            let sum: Option<u64> = sample.parts.iter().map(|part| part.descriptors).sum();
            Some(sum? as f64)
        });
        let (memory, descriptors) = (Figure(memory.collect()), Figure(descriptors.collect()));
        let others = of(|sample| sample.other_cpu / sample.seconds);
        let mut cells = vec![row.contender.title()];
        if bulk {
            cells.extend([
                of(|sample| sample.bytes as f64 / sample.seconds / 1e9).show(),
                of(Sample::nanos_a_byte).show(),
            ]);
        } else {
            cells.extend([
                of(Sample::rate).show(),
                of(|sample| sample.latency[0]).show(),
                of(|sample| sample.latency[1]).show(),
                of(|sample| sample.latency[2]).show(),
                of(Sample::micros_a_request).show(),
            ]);
        }
        cells.push(parts.join(", "));
        if !bulk {
            cells.push(format!(
                "{:.1}",
                Figure::of(samples, |sample| per(sample, sample.own_cpu)).median()
            ));
        }
        cells.extend([number(memory.median(), 1), number(descriptors.median(), 0)]);
        if !bulk {
            cells.push(samples.iter().map(|sample| sample.failures).sum::<u64>().to_string());
        }
        cells.push(format!("{:.0} %", 100.0 * others.median()));
        let _ = writeln!(text, "| {} |", cells.join(" | "));
    }
    text.push('\n');
}

/// What a new host is to be compared with: a bare handshake, and a connection without TLS if the run has it.
fn beside_hosts(text: &mut String, results: &Results, rows: &[&Row]) {
    let in_memory: Vec<InMemory> = rows
        .iter()
        .flat_map(|row| row.samples.iter().filter_map(|s| s.in_memory))
        .collect();
    let half = |of: fn(&InMemory) -> Duration| Figure::of(&in_memory, |m| microseconds(of(m))).show();
    let _ = writeln!(
        text,
        "- One bare rustls handshake in memory, before each of these measurements: client half {} µs of CPU, server half \
         {} µs.\n\
         - Bump of a new host in memory, likewise, beyond a connection that is only carried: sc (configuration, handshake, \
         judgement, report) {} µs, endpoint (ClientHello, report, leaf, handshake) {} µs.",
        half(|m| m.bare.client),
        half(|m| m.bare.server),
        half(|m| m.bump.client),
        half(|m| m.bump.server),
    );
    for (form, what) in [(Form::Connect, "opaque"), (Form::Absolute, "HTTP proxy")] {
        let churn = samples(results, Scenario::Churn, Kind::Culvert, form);
        if !churn.is_empty() {
            let part = |name| Figure::of(churn, |sample| sample.micros_a_request_of(&[name])).show();
            let _ = writeln!(
                text,
                "- A new connection without TLS (churn, {what}): sc {} µs, endpoint {} µs.",
                part("sc"),
                part("endpoint")
            );
        }
    }
    text.push('\n');
}

fn stalled_table(text: &mut String, rounds: &[Round]) {
    let memory = rounds
        .iter()
        .filter_map(|round| Some(round.memory? as f64 / f64::from(1 << 20)));
    let _ = writeln!(
        text,
        "## stalled: the readers of {STALLED} of 100 streams have stopped after 4 MiB, their senders go on\n\n\
         | Culvert | stalled for s | p99 ms of the others without them | beside them | ratio | PSS MiB |\n\
         |---|--:|--:|--:|--:|--:|\n\
         | {} rounds | {} | {} | {} | {} | {} |\n",
        rounds.len(),
        number(Figure::of(rounds, |round| round.seconds).median(), 0),
        Figure::of(rounds, |round| round.alone).show(),
        Figure::of(rounds, |round| round.beside).show(),
        Figure::of(rounds, Round::ratio).show(),
        Figure(memory.collect()).show(),
    );
}

fn far_table(text: &mut String, results: &Results) {
    let _ = writeln!(
        text,
        "## {} ms of round trip between the ends\n\n\
         | system | cold 100 MiB s | warm 1 GiB MB/s | new connection, round trips | worst | CONNECT answered | its first \
         byte | 50 clients, new connections /s | p99 round trips | failed | CPU of others |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
        ROUND_TRIP.as_millis()
    );
    for (kind, fars) in &results.far {
        let late = if fars.iter().all(|far| far.cold_whole) {
            ""
        } else {
            " (not whole)"
        };
        let connect = |i: usize| Figure(fars.iter().filter_map(|far| Some(far.connect?[i])).collect()).show();
        let _ = writeln!(
            text,
            "| {} | {}{late} | {} | {} | {} | {} | {} | {} | {} | {} | {:.0} % |",
            kind.title(),
            Figure::of(fars, |far| far.cold_seconds).show(),
            Figure::of(fars, |far| far.warm_rate / 1e6).show(),
            Figure::of(fars, |far| far.new[0]).show(),
            Figure::of(fars, |far| far.new[1]).show(),
            connect(0),
            connect(1),
            Figure::of(fars, |far| far.churn[0]).show(),
            Figure::of(fars, |far| far.churn[1]).show(),
            fars.iter().map(|far| far.failures).sum::<u64>(),
            100.0 * Figure::of(fars, |far| far.others).median(),
        );
    }
    let unbound = Figure::of(&results.unbound, |rate| rate / 1e6);
    let _ = writeln!(
        text,
        "\nCulvert through the same relay without delay, where its flow control cannot bind: {} MB/s.\n",
        unbound.show()
    );
}

fn goal_table(text: &mut String, goals: &[Goal]) {
    if goals.is_empty() {
        return;
    }
    text.push_str("## Goals\n\nRatios of each round, their median and spread.\n\n| goal | bound | reached | |\n|---|--:|--:|---|\n");
    for goal in goals {
        let sign = if goal.at_least { '≥' } else { '≤' };
        let met = if goal.met() { "met" } else { "missed" };
        let _ = writeln!(
            text,
            "| {} | {sign} {} | {} | {met} |",
            goal.name,
            goal.bound,
            goal.reached.show()
        );
    }
    text.push('\n');
}

/// Of a contender, none if it was not measured.
fn samples(results: &Results, scenario: Scenario, kind: Kind, form: Form) -> &[Sample] {
    let contender = Contender { kind, form };
    let row = results
        .rows
        .iter()
        .find(|row| row.scenario == scenario && row.contender == contender);
    row.map_or(&[], |row| &row.samples)
}

/// Those whose systems were measured.
fn goals(results: &Results) -> Vec<Goal> {
    let samples = |scenario, kind, form| samples(results, scenario, kind, form);
    let opaque = |scenario| samples(scenario, Kind::Culvert, Form::Connect);
    let proxy = |scenario| samples(scenario, Kind::Culvert, Form::Absolute);
    let other = |scenario, kind| samples(scenario, kind, Form::Origin);
    let at_most = |name, bound, reached| Goal {
        name,
        bound,
        at_least: false,
        reached,
    };
    let (small, bulk, churn) = (Scenario::Small, Scenario::Bulk, Scenario::Churn);
    let micros = Sample::micros_a_request;
    let nanos = Sample::nanos_a_byte;
    let p99 = |sample: &Sample| sample.latency[1];
    // Of each round the better one.
    let pairs = [other(small, Kind::TlsPair), other(small, Kind::Rathole)];
    let to_best_pair = |of: &[Sample]| {
        let ratios: Vec<Figure> = pairs.iter().map(|pair| Figure::ratio(of, pair, p99)).collect();
        Figure(
            (0..of.len())
                .filter_map(|i| ratios.iter().filter_map(|r| r.0.get(i).copied()).reduce(f64::max))
                .collect(),
        )
    };
    let mut goals = vec![
        at_most(
            "small, opaque: CPU to one plain HAProxy TCP hop",
            1.6,
            Figure::ratio(opaque(small), other(small, Kind::HopTcp), micros),
        ),
        at_most(
            "small, HTTP proxy: CPU to one plain HAProxy HTTP hop",
            1.3,
            Figure::ratio(proxy(small), other(small, Kind::HopHttp), micros),
        ),
        at_most(
            "small, from the cache: CPU to one plain HAProxy HTTP hop",
            0.6,
            Figure::ratio(
                samples(small, Kind::Caching, Form::Fresh),
                other(small, Kind::HopHttp),
                micros,
            ),
        ),
        at_most(
            "small, HTTPS that ends there: CPU to that of the HTTP proxy",
            1.5,
            Figure::ratio(samples(small, Kind::Culvert, Form::Secure), proxy(small), micros),
        ),
        at_most(
            "small, HTTP proxy, two shards: CPU to that of one",
            1.1,
            Figure::ratio(samples(small, Kind::TwoShards, Form::Absolute), proxy(small), micros),
        ),
        at_most(
            "small, opaque: p99 to the best TLS pair",
            0.5,
            to_best_pair(opaque(small)),
        ),
        at_most(
            "small, HTTP proxy: p99 to the best TLS pair",
            0.5,
            to_best_pair(proxy(small)),
        ),
        at_most(
            "bulk, opaque: CPU to one plain HAProxy TCP hop",
            2.2,
            Figure::ratio(opaque(bulk), other(bulk, Kind::HopTcp), nanos),
        ),
        at_most(
            "bulk, HTTP proxy: CPU to one plain HAProxy TCP hop",
            2.2,
            Figure::ratio(proxy(bulk), other(bulk, Kind::HopTcp), nanos),
        ),
        at_most(
            "churn, HTTP proxy: CPU to one plain HAProxy HTTP hop",
            1.6,
            Figure::ratio(proxy(churn), other(churn, Kind::HopHttp), micros),
        ),
    ];
    let hosts = samples(Scenario::Hosts, Kind::Culvert, Form::Secure);
    let to_bare = |name, parts: &[&str], half: fn(Halves) -> Duration| {
        let ratio =
            |sample: &Sample| Some(sample.micros_a_request_of(parts) / microseconds(half(sample.in_memory?.bare)));
        at_most(name, 1.5, Figure(hosts.iter().filter_map(ratio).collect()))
    };
    let alone = |name, half: fn(Halves) -> Duration| {
        let in_memory = hosts.iter().filter_map(|sample| sample.in_memory);
        let ratios = in_memory.map(|m| microseconds(half(m.bump)) / microseconds(half(m.bare)));
        at_most(name, 1.5, Figure(ratios.collect()))
    };
    goals.extend([
        alone("hosts: bump alone, in memory, at sc to the client half of a bare rustls handshake", |h| h.client),
        alone("hosts: bump alone, in memory, at the endpoint to the server half", |h| h.server),
        to_bare(
            "hosts: CPU of sc and endpoint a new host, connection and request included, to one bare rustls handshake, both halves",
            &["sc", "endpoint"],
            Halves::both,
        ),
        to_bare(
            "hosts: CPU of sc a new host (connection to the site, TLS with it, request) to the client half",
            &["sc"],
            |h| h.client,
        ),
        to_bare(
            "hosts: CPU of the endpoint a new host (browser's connection, leaf, TLS with it, request) to the server half",
            &["endpoint"],
            |h| h.server,
        ),
    ]);
    goals.push(at_most(
        "stalled: p99 of 50 clients beside 50 stalled streams to that without them",
        1.1,
        Figure::of(&results.stalled, Round::ratio),
    ));
    if let Some((_, fars)) = results.far.iter().find(|(kind, _)| *kind == Kind::Culvert) {
        let kept = fars
            .iter()
            .zip(&results.unbound)
            .map(|(far, unbound)| far.warm_rate / unbound);
        goals.push(Goal {
            name: "80 ms, warm link, 1 GiB: rate to the same programs without delay",
            bound: 0.8,
            at_least: true,
            reached: Figure(kept.collect()),
        });
        goals.push(at_most(
            "80 ms: new connection, HTTP proxy, in round trips",
            1.1,
            Figure::of(fars, |far| far.new[0]),
        ));
    }
    goals.retain(|goal| !goal.reached.0.is_empty());
    goals
}
