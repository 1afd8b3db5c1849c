//! Programs under measurement: started, asked for what they use, ended in every case.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};

use super::poller::pass;

/// A program is ready after this, or never.
const PATIENCE: Duration = Duration::from_secs(20);
const LOOK_AGAIN: Duration = Duration::from_millis(10);

pub struct Process {
    child: Child,
    name: String,
    lines: Receiver<String>,
    errors: std::path::PathBuf,
}

impl Process {
    /// Starts it; what it says on standard error goes into a file of `folder`.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(command: &mut Command, name: &str, folder: &Path) -> io::Result<Self> {
        let errors = folder.join(format!("{name}.err"));
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        command.stderr(File::create(&errors)?);
        // SAFETY: prctl alone, which may be called after fork.
        unsafe { command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?)) };
        let program = command.get_program().to_owned();
        let mut child = command
            .spawn()
            .map_err(|e| io::Error::other(format!("{}: {e}", program.display())))?;
        let stdout = child.stdout.take().expect("piped");
        let (sender, lines) = channel();
        // Reads on when nobody wants lines any more, so that the program never waits for it.
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Ok(Self {
            child,
            name: name.into(),
            lines,
            errors,
        })
    }

    pub fn id(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Waits for a line of its output.
    ///
    /// # Errors
    /// If it ends, or does not come.
    pub fn line<T>(&self, wanted: impl Fn(&str) -> Option<T>) -> io::Result<T> {
        let end = Instant::now() + PATIENCE;
        while let Ok(line) = self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            if let Some(found) = wanted(&line) {
                return Ok(found);
            }
        }
        Err(self.not_ready())
    }

    /// Waits until something listens there.
    ///
    /// # Errors
    /// If it ends, or nothing does.
    pub fn listens(&mut self, address: SocketAddr) -> io::Result<()> {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end && self.child.try_wait()?.is_none() {
            if TcpStream::connect(address).is_ok() {
                return Ok(());
            }
            pass(LOOK_AGAIN);
        }
        Err(self.not_ready())
    }

    fn not_ready(&self) -> io::Error {
        let text = fs::read_to_string(&self.errors).unwrap_or_default();
        let last: Vec<&str> = text.lines().rev().take(3).collect();
        io::Error::other(format!("{} is not ready: {}", self.name, last.join(" / ")))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        for pid in tree(self.id()) {
            kill(pid);
        }
        // It was killed; there is nothing else to do about a failure.
        let _ = self.child.wait();
    }
}

/// A port that nobody uses now.
///
/// # Errors
/// If there is none.
pub fn free_port() -> io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}

/// Runs a short command to its end.
///
/// # Errors
/// With what it said, unless it exits with 0.
pub fn run(command: &mut Command) -> io::Result<String> {
    let output = command.stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    Err(io::Error::other(format!(
        "{}: {}",
        command.get_program().display(),
        String::from_utf8_lossy(&output.stderr).trim()
    )))
}

fn kill(pid: i32) {
    if let Some(pid) = Pid::from_raw(pid) {
        // It may have ended by itself.
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// A process and all that it started, itself first.
pub fn tree(root: i32) -> Vec<i32> {
    let parents = parents();
    let mut found = vec![root];
    let mut next = 0;
    while next < found.len() {
        let parent = found[next];
        found.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    found
}

/// Every process that runs and its parent.
fn parents() -> Vec<(i32, i32)> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let numbers = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    numbers
        .filter_map(|pid: i32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
            let (state, parent) = (fields.next()?, fields.next()?.parse().ok()?);
            (state != "Z").then_some((pid, parent))
        })
        .collect()
}

/// Kills whatever this process has started and what became its child since, at the end or at a signal.
pub fn end_all() {
    const ROUNDS_MAX: usize = 100;
    let own = std::process::id().cast_signed();
    for _ in 0..ROUNDS_MAX {
        let left = tree(own);
        if left.len() == 1 {
            return;
        }
        left.into_iter().skip(1).for_each(kill);
    }
}

/// Takes over orphans of what it starts, and ends everything when a signal ends the run. Call it before any thread is
/// started.
///
/// # Errors
/// If the kernel refuses.
pub fn guard() -> io::Result<()> {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    // SAFETY: a set on the stack, filled by the calls that take it.
    let set = unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
            libc::sigaddset(&raw mut set, signal);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        set
    };
    thread::spawn(move || {
        let mut signal = 0;
        // SAFETY: the set was filled above.
        unsafe { libc::sigwait(&raw const set, &raw mut signal) };
        end_all();
        std::process::exit(128 + signal);
    });
    Ok(())
}
