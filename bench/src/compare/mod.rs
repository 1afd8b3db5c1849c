//! Culvert beside other programs under the same load on the same machine, in turns: A B C A B C, medians. Absolute
//! figures do not travel from one machine to another, ratios within one run do; the steadiest is CPU time a request.

mod bare;
mod bump;
mod certificates;
mod clients;
mod delay;
mod distance;
mod halves;
mod hosts;
mod near;
mod origin;
mod poller;
mod process;
mod report;
mod stalled;
mod systems;
#[cfg(test)]
mod tests;
mod usage;
mod wire;

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use distance::Far;
use hosts::Hosts;
use near::{Contender, Sample, Scenario, Times};
use stalled::Round;
use systems::{Kind, Place, System};

/// What to run.
#[derive(clap::Parser)]
#[command(
    name = "culvert-bench",
    about = "Measures Culvert beside other programs under the same load."
)]
pub struct Options {
    /// Fewer and shorter rounds
    #[arg(long)]
    pub quick: bool,
    /// Only these systems: direct, hop-tcp, hop-http, culvert, culvert-cache, culvert-2, squid, tls-pair, rathole, ssh
    #[arg(long, value_delimiter = ',', value_name = "SYSTEMS")]
    pub only: Vec<String>,
    /// Only these scenarios: small, bulk, churn, hosts, stalled, distance
    #[arg(long, value_delimiter = ',', value_name = "SCENARIOS")]
    pub scenarios: Vec<String>,
    /// Rounds of each scenario [default: 5, of stalled 7, of distance 3; with --quick 2, 3, 1]
    #[arg(long, value_name = "N")]
    pub rounds: Option<usize>,
    /// Seconds of one measurement [default: 3, of stalled 10 without and 60 beside them; with --quick 1]
    #[arg(long, value_name = "N")]
    pub seconds: Option<f64>,
    /// The program rathole
    #[arg(long, value_name = "FILE")]
    pub rathole: Option<PathBuf>,
    /// Where the report goes: FILE.md and FILE.json
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
}

/// All measurements of one contender in one scenario, a round each.
pub struct Row {
    pub scenario: Scenario,
    pub contender: Contender,
    pub samples: Vec<Sample>,
}

/// Everything that was measured.
#[derive(Default)]
pub struct Results {
    pub rows: Vec<Row>,
    /// Of Culvert.
    pub stalled: Vec<Round>,
    pub far: Vec<(Kind, Vec<Far>)>,
    /// Culvert without delay in the line, a round each: bytes a second.
    pub unbound: Vec<f64>,
    /// What was not measured, and why.
    pub left_out: Vec<String>,
}

/// Measures what the options say and writes the report.
///
/// # Errors
/// If the options name nothing, or site and report cannot be had. A system that fails is left out and named.
pub fn run(options: &Options) -> io::Result<()> {
    let kinds = chosen(&options.only, &Kind::ALL, Kind::key)?;
    let folder = tempfile::tempdir()?;
    let site = certificates::Site::new();
    let root = site.root().to_owned();
    let place = Place {
        origin: origin::start(None)?,
        secure_origin: origin::start(Some(site))?,
        root,
        hosts: Hosts::new(),
        programs: std::env::current_exe()?.with_file_name(""),
        rathole: options.rathole.clone(),
        folder: folder.path().to_owned(),
    };
    let mut results = Results::default();
    let load_before = report::load_average();
    let names: Vec<&str> = Scenario::ALL
        .map(Scenario::key)
        .into_iter()
        .chain(["stalled", "distance"])
        .collect();
    let scenarios = chosen(&options.scenarios, &names, |name| name)?;
    let near: Vec<Scenario> = Scenario::ALL
        .into_iter()
        .filter(|s| scenarios.contains(&s.key()))
        .collect();
    if !near.is_empty() {
        run_near(options, &kinds, &near, &place, &mut results);
    }
    if scenarios.contains(&"stalled") {
        run_stalled(options, &kinds, &place, &mut results);
    }
    if scenarios.contains(&"distance") {
        run_distance(options, &kinds, &place, &mut results);
    }
    let load = [load_before, report::load_average()];
    let (markdown, json) = report::write(&results, &load);
    let with = |ending: &str| PathBuf::from(format!("{}.{ending}", options.out.display()));
    if let Some(folder) = options.out.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(with("md"), &markdown)?;
    std::fs::write(with("json"), serde_json::to_string_pretty(&json)? + "\n")?;
    io::stdout().write_all(markdown.as_bytes())
}

/// Those that were asked for; all if none was named.
fn chosen<T: Copy>(asked: &[String], all: &[T], key: impl Fn(T) -> &'static str) -> io::Result<Vec<T>> {
    if asked.is_empty() {
        return Ok(all.to_vec());
    }
    asked
        .iter()
        .map(|name| {
            all.iter().copied().find(|one| key(*one) == name).ok_or_else(|| {
                let known: Vec<&str> = all.iter().map(|one| key(*one)).collect();
                io::Error::other(format!("{name:?} is none of: {}", known.join(", ")))
            })
        })
        .collect()
}

/// Progress goes to standard error, the report to standard output.
fn say(text: &str) {
    // Nobody looks: the report comes all the same.
    let _ = writeln!(io::stderr(), "{text}");
}

/// Of one measurement, with what it takes where nothing else was asked for.
fn times(options: &Options, seconds: f64) -> Times {
    let seconds = options.seconds.unwrap_or(if options.quick { 1.0 } else { seconds });
    Times {
        warm_up: Duration::from_millis(if options.quick { 200 } else { 400 }),
        measured: Duration::from_secs_f64(seconds),
    }
}

fn run_near(options: &Options, kinds: &[Kind], scenarios: &[Scenario], place: &Place, results: &mut Results) {
    let mut systems: Vec<System> = Vec::new();
    for &kind in kinds {
        match kind.start(place, None) {
            Ok(system) => {
                let parts: Vec<String> = system
                    .parts
                    .iter()
                    .map(|p| format!("{} {:?}", p.name, p.pids))
                    .collect();
                say(&format!("{} at {}: {}", kind.key(), system.target, parts.join(", ")));
                systems.push(system);
            }
            Err(e) => results.left_out.push(format!("{}: {e}", kind.title())),
        }
    }
    let times = times(options, 3.0);
    let rounds = options.rounds.unwrap_or(if options.quick { 2 } else { 5 });
    for &scenario in scenarios {
        let first = results.rows.len();
        for system in &systems {
            results
                .rows
                .extend(Contender::of(system.kind, scenario).into_iter().map(|contender| Row {
                    scenario,
                    contender,
                    samples: Vec::new(),
                }));
        }
        for round in 1..=rounds {
            say(&format!("{}, round {round} of {rounds}", scenario.key()));
            for row in &mut results.rows[first..] {
                let system = systems.iter().find(|system| system.kind == row.contender.kind);
                let system = system.expect("rows are of systems that run");
                match near::measure(scenario, row.contender, system, place, times) {
                    Ok(sample) => row.samples.push(sample),
                    Err(e) => {
                        let title = row.contender.title();
                        results
                            .left_out
                            .push(format!("{title}, {} round {round}: {e}", scenario.key()));
                    }
                }
            }
        }
    }
}

fn run_stalled(options: &Options, kinds: &[Kind], place: &Place, results: &mut Results) {
    if !kinds.contains(&Kind::Culvert) {
        let text = "stalled streams: Culvert alone is measured beside them";
        return results.left_out.push(text.to_owned());
    }
    let rounds = options.rounds.unwrap_or(if options.quick { 3 } else { 7 });
    let (alone, beside) = (times(options, 10.0), times(options, 60.0).measured);
    let system = match Kind::Culvert.start(place, None) {
        Ok(system) => system,
        Err(e) => return results.left_out.push(format!("Culvert beside stalled streams: {e}")),
    };
    for round in 1..=rounds {
        say(&format!("stalled, round {round} of {rounds}"));
        match stalled::measure(&system, place, alone, beside) {
            Ok(measured) => results.stalled.push(measured),
            Err(e) => results.left_out.push(format!("Culvert, stalled round {round}: {e}")),
        }
    }
}

fn run_distance(options: &Options, kinds: &[Kind], place: &Place, results: &mut Results) {
    let rounds = options.rounds.unwrap_or(if options.quick { 1 } else { 3 });
    let connections = if options.quick { 10 } else { 20 };
    let churn = Duration::from_secs(if options.quick { 1 } else { 3 });
    let kinds: Vec<Kind> = distance::KINDS
        .into_iter()
        .filter(|kind| kinds.contains(kind))
        .collect();
    results.far = kinds.iter().map(|kind| (*kind, Vec::new())).collect();
    for round in 1..=rounds {
        say(&format!("distance, round {round} of {rounds}"));
        for (kind, fars) in &mut results.far {
            match distance::measure(*kind, place, connections, churn) {
                Ok(far) => fars.push(far),
                Err(e) => results
                    .left_out
                    .push(format!("{}, distance round {round}: {e}", kind.title())),
            }
        }
        if kinds.contains(&Kind::Culvert) {
            match distance::unbound(place) {
                Ok(rate) => results.unbound.push(rate),
                Err(e) => results
                    .left_out
                    .push(format!("Culvert without delay, round {round}: {e}")),
            }
        }
    }
}

/// The program.
pub fn main(options: &Options) -> io::Result<()> {
    process::guard()?;
    let done = run(options);
    process::end_all();
    done
}
