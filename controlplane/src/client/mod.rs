//! `sc`: makes a tunnel by REST, dials it, keeps it, and ends it.

mod argv;
mod files;
mod held;
mod link;
mod provision;
mod rest;
mod run;
mod trust;

use std::any::Any;
use std::fmt;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};

use dataplane::client::Driver;

use crate::cli;
use crate::config::{self, Config};
use crate::log::{Log, escape};
use crate::runtime::{self, Runtime};

/// Why `sc` ends otherwise than it was asked to; each has an exit code.
#[derive(Debug, PartialEq, Eq)]
pub enum Failure {
    /// A defect of `sc`, or of the system under it.
    Internal(String),
    /// Command line, environment or files are wrong.
    Usage(String),
    /// The cloud cannot be reached, or what answers is no cloud.
    Unreachable(String),
    /// User name or access key are wrong.
    NotAuthorized(String),
    /// The cloud says no: quota, or a request that it does not accept.
    Refused(String),
    /// Someone else replaced or deleted the tunnel.
    Gone(String),
    /// A file, a port or io_uring cannot be had on this host.
    Local(String),
}

impl Failure {
    /// The exit code, as `sc --help` lists them.
    pub fn code(&self) -> u8 {
        match self {
            Self::Internal(_) => 1,
            Self::Usage(_) => 2,
            Self::Unreachable(_) => 3,
            Self::NotAuthorized(_) => 4,
            Self::Refused(_) => 5,
            Self::Gone(_) => 6,
            Self::Local(_) => 7,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAuthorized(text) => write!(f, "Not authorized: {text}"),
            Self::Internal(text) => write!(f, "Error: internal: {text}"),
            Self::Usage(text)
            | Self::Unreachable(text)
            | Self::Refused(text)
            | Self::Gone(text)
            | Self::Local(text) => write!(f, "Error: {text}"),
        }
    }
}

/// One line for people and launchers on stdout, and the same in the log. A closed stdout is no reason to stop.
fn say(line: &str) {
    let line = escape(line);
    tracing::info!("{line}");
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

/// All of `sc`: reads its command line, runs until it is stopped, and returns the exit code. Errors go to stdout
/// too, where launchers look for them.
pub fn main() -> u8 {
    let args = match cli::parse(std::env::args_os()) {
        Ok(args) => args,
        Err(cli::Stop::Text(text)) => {
            let _ = std::io::stdout().lock().write_all(text.as_bytes());
            return 0;
        }
        Err(cli::Stop::Usage(text)) => return report(&Failure::Usage(text)),
    };
    for entry in &args.auth {
        argv::hide(entry);
    }
    if let Some(name) = unreadable_variable() {
        return report(&Failure::Usage(format!(
            "{name} is not UTF-8: write it so, or into a file"
        )));
    }
    let env = |name: &str| std::env::var(name).ok();
    let result = config::resolve(args, &env).map_err(Failure::Usage).and_then(|config| {
        argv::hide(config.key.expose());
        run_with_log(config)
    });
    result.map_or_else(|failure| report(&failure), |()| 0)
}

/// A variable of ours whose value is no text: as if it were absent, a password would not be given.
fn unreadable_variable() -> Option<String> {
    let mut all = std::env::vars_os().filter(|(_, value)| value.to_str().is_none());
    all.find_map(|(name, _)| name.into_string().ok().filter(|name| name.starts_with("SAUCE_")))
}

fn report(failure: &Failure) -> u8 {
    say(&failure.to_string());
    failure.code()
}

fn run_with_log(config: Config) -> Result<(), Failure> {
    let log = Log::start(&config.logfile, config.verbose).map_err(|e| {
        let path = config.logfile.path().display();
        Failure::Local(format!("cannot write the log file {path}: {e}"))
    })?;
    let result = catch_unwind(AssertUnwindSafe(|| run_on_runtime(config)))
        .unwrap_or_else(|panic| Err(Failure::Internal(panic_text(panic.as_ref()))));
    if let Err(failure) = &result {
        tracing::error!("leaving with exit code {}: {failure}", failure.code());
    }
    drop(log);
    result
}

fn run_on_runtime(config: Config) -> Result<(), Failure> {
    say(&cli::banner());
    let runtime = Runtime::new().map_err(|e| Failure::Internal(format!("cannot start the control thread: {e}")))?;
    if let Some(e) = runtime.refused() {
        if config.driver == Driver::IoUring {
            return Err(Failure::Local(runtime::refusal(e)));
        }
        tracing::info!("the kernel refuses io_uring to the control thread: it runs on epoll");
    }
    let result = runtime.block_on(run::run(config));
    // Dropping it would wait for a name look-up that hangs, for as long as the resolver likes.
    std::mem::forget(runtime);
    result
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a text".into())
}
