//! A program under test: its lines as they come, signals, its end; killed when dropped.

use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Resource, Rlimit, Signal, getrlimit, kill_process, pidfd_open, pidfd_send_signal, setrlimit,
};

/// Limits a resource (`RLIMIT_NOFILE` and the like) of a program and of what it starts, softly and for good.
pub fn limit(command: &mut Command, resource: libc::__rlimit_resource_t, most: u64) {
    let limit = libc::rlimit {
        rlim_cur: most,
        rlim_max: most,
    };
    // SAFETY: between fork and exec one system call is made, on memory that was ready before.
    unsafe {
        command.pre_exec(move || match libc::setrlimit(resource, &limit) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
}

/// Raises this process's own soft limit of descriptors to the hard one, and that to `FILES` where root runs it; returns it.
pub fn raise_own_limit() -> u64 {
    const FILES: u64 = 65_536;
    let all = Rlimit {
        current: Some(FILES),
        maximum: Some(FILES),
    };
    let limit = getrlimit(Resource::Nofile);
    if limit.maximum.is_some_and(|hard| hard < FILES) && setrlimit(Resource::Nofile, all).is_ok() {
        return FILES;
    }
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    setrlimit(Resource::Nofile, raised).expect("the soft limit may rise to the hard one");
    limit.maximum.unwrap_or(u64::MAX)
}

/// Until a program has said or done what it must: starts of browsers on a busy machine included.
pub const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Default)]
struct Output {
    lines: Vec<String>,
    ended: bool,
}

#[derive(Default)]
struct Lines(Mutex<Output>, Condvar);

impl Lines {
    fn push(&self, line: Option<String>) {
        let mut output = self.0.lock().expect("readers do not panic");
        match line {
            Some(line) => output.lines.push(line),
            None => output.ended = true,
        }
        self.1.notify_all();
    }

    fn text(&self) -> String {
        self.0.lock().expect("readers do not panic").lines.join("\n")
    }
}

pub struct Process {
    name: String,
    child: Child,
    stdout: Arc<Lines>,
    stderr: Arc<Lines>,
    readers: Vec<JoinHandle<()>>,
    status: Option<ExitStatus>,
}

impl Process {
    /// Starts a command with no input and both outputs taken.
    pub fn start(command: &mut Command) -> Self {
        let name = command.get_program().to_string_lossy().into_owned();
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        // SAFETY: prctl only sets a flag of the fresh process, and is allowed between fork and exec.
        unsafe {
            command.pre_exec(|| {
                // Whatever ends this test, a time-out of its suite included, ends the program too.
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let mut child = command.spawn().unwrap_or_else(|e| panic!("{name} does not start: {e}"));
        let (stdout, stderr) = (Arc::new(Lines::default()), Arc::new(Lines::default()));
        let readers = vec![
            read_lines(child.stdout.take().expect("taken above"), stdout.clone()),
            read_lines(child.stderr.take().expect("taken above"), stderr.clone()),
        ];
        Self {
            name,
            child,
            stdout,
            stderr,
            readers,
            status: None,
        }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the first line of stdout that `pick` takes.
    pub fn line<T>(&self, what: &str, pick: impl Fn(&str) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        let mut output = self.stdout.0.lock().expect("readers do not panic");
        let mut seen = 0;
        loop {
            if let Some(found) = output.lines[seen..].iter().find_map(|line| pick(line)) {
                return found;
            }
            seen = output.lines.len();
            let left = deadline.saturating_duration_since(Instant::now());
            if output.ended || left.is_zero() {
                let how = if output.ended {
                    "ended"
                } else {
                    "said nothing of the kind"
                };
                drop(output);
                panic!("{} {how}, waited for {what}.\n{}", self.name, self.transcript());
            }
            output = self
                .stdout
                .1
                .wait_timeout(output, left)
                .expect("readers do not panic")
                .0;
        }
    }

    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    fn transcript(&self) -> String {
        format!("stdout:\n{}\nstderr:\n{}", self.stdout(), self.stderr())
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(pid(&self.child), signal).expect("the process is there");
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("wait").is_none()
    }

    /// Waits for the end and for all output; panics when it takes longer than `limit`.
    pub fn end(&mut self, limit: Duration) -> ExitStatus {
        if let Some(status) = self.status {
            return status;
        }
        if !ends_within(&self.child, limit) {
            panic!("{} has not ended within {limit:?}.\n{}", self.name, self.transcript());
        }
        let status = self.child.wait().expect("wait");
        self.status = Some(status);
        self.readers
            .drain(..)
            .for_each(|reader| reader.join().expect("readers do not panic"));
        status
    }

    /// The exit code of a program that ends by itself.
    pub fn exit_code(&mut self, limit: Duration) -> i32 {
        let status = self.end(limit);
        status
            .code()
            .unwrap_or_else(|| panic!("{} ended by signal {:?}", self.name, status.signal()))
    }

    /// Processes that this one has started and that live.
    pub fn children(&self) -> Vec<u32> {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.id())).expect("procfs");
        let lists = threads.map(|thread| std::fs::read_to_string(thread.expect("procfs").path().join("children")));
        let text: String = lists.flatten().collect();
        text.split_whitespace()
            .map(|id| id.parse().expect("a process id"))
            .collect()
    }

    /// `cmdline` and `environ` of this process, as others on the machine may see them.
    pub fn visible(&self) -> String {
        let read = |file| std::fs::read(format!("/proc/{}/{file}", self.id())).unwrap_or_default();
        String::from_utf8_lossy(&[read("cmdline"), read("environ")].concat()).replace('\0', " ")
    }
}

/// A process that is no child of this test; killed when dropped.
pub struct Held(OwnedFd);

impl Held {
    /// None if there is no such process.
    pub fn of(id: u32) -> Option<Self> {
        let id = Pid::from_raw(id.cast_signed())?;
        pidfd_open(id, PidfdFlags::empty()).ok().map(Self)
    }

    pub fn signal(&self, signal: Signal) {
        // One that has ended needs none.
        let _ = pidfd_send_signal(&self.0, signal);
    }

    /// Whether it ends in this time.
    pub fn ends_within(&self, limit: Duration) -> bool {
        readable(&self.0, limit)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

/// Bytes of memory that are a process's own, its share of shared pages included (PSS); 0 if it [`is_closed_to_us`].
pub fn memory_bytes(id: u32) -> u64 {
    rolled_up(id, "Pss:")
}

/// As [`memory_bytes`] without what comes from files: a process's share of its program grows when others of it end.
pub fn anonymous_bytes(id: u32) -> u64 {
    rolled_up(id, "Pss_Anon:")
}

fn rolled_up(id: u32, name: &str) -> u64 {
    if is_closed_to_us(id) {
        return 0;
    }
    let text = std::fs::read_to_string(format!("/proc/{id}/smaps_rollup")).expect("procfs of a live process");
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let kib = line
        .and_then(|l| l.split_whitespace().next())
        .and_then(|n| n.parse::<u64>().ok());
    1024 * kib.unwrap_or_else(|| panic!("{name} N kB"))
}

/// Open descriptors of a process; 0 if it [`is_closed_to_us`].
pub fn open_fds(id: u32) -> usize {
    if is_closed_to_us(id) {
        return 0;
    }
    std::fs::read_dir(format!("/proc/{id}/fd"))
        .expect("procfs of a live process")
        .count()
}

/// The open descriptors of a process, by number, and what they are.
///
/// # Errors
/// There is no such process, or it [`is_closed_to_us`].
pub fn descriptors(id: u32) -> io::Result<Vec<(u32, PathBuf)>> {
    let fds = std::fs::read_dir(format!("/proc/{id}/fd"))?.flatten();
    let named = fds.filter_map(|fd| {
        Some((
            fd.file_name().to_str()?.parse().ok()?,
            std::fs::read_link(fd.path()).ok()?,
        ))
    });
    Ok(named.collect())
}

/// Operations that the rings of a process have taken and not completed; 0 without rings, or if it [`is_closed_to_us`].
pub fn ring_operations(id: u32) -> usize {
    if is_closed_to_us(id) {
        return 0;
    }
    let rings = descriptors(id)
        .expect("procfs of a live process")
        .into_iter()
        .filter(|(_, target)| target.as_os_str() == "anon_inode:[io_uring]");
    rings.map(|(fd, _)| in_flight(&format!("/proc/{id}/fdinfo/{fd}"))).sum()
}

/// Entries taken from a ring's submission queue, less those in its completion queue: none of ours completes more than once.
fn in_flight(fdinfo: &str) -> usize {
    let since = Instant::now();
    while since.elapsed() < PATIENCE {
        let text = std::fs::read_to_string(fdinfo).expect("procfs of a live process");
        let field = |name| {
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.trim().parse::<u32>().ok())
        };
        // Left out while its own thread has the ring; read one after the other before Linux 6.16.
        if let (Some(taken), Some(completed)) = (field("SqHead:"), field("CqTail:")) {
            return usize::try_from(taken.wrapping_sub(completed) as i32).unwrap_or(0);
        }
    }
    panic!("{fdinfo} does not show the heads of a ring: that needs Linux 5.16");
}

/// True if only root may look into this process, and we are not: an endpoint keeps its keys from debuggers, core dumps
/// and what runs as the same user. What needs it is then left out, which is said, and with `CI=true` is a failure.
pub fn is_closed_to_us(id: u32) -> bool {
    let opened = std::fs::read_dir(format!("/proc/{id}/fd"));
    let closed = opened.is_err_and(|e| e.kind() == std::io::ErrorKind::PermissionDenied);
    if closed {
        crate::leave_out("only root looks into an endpoint");
    }
    closed
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.status.is_none() {
            // What it has started does not end with it.
            let children: Vec<_> = self.children().into_iter().filter_map(Held::of).collect();
            let _ = self.child.kill();
            let _ = self.child.wait();
            drop(children);
        }
        if thread::panicking() {
            eprintln!("── {} ──\n{}", self.name, self.transcript());
        }
    }
}

fn pid(child: &Child) -> Pid {
    Pid::from_child(child)
}

fn ends_within(child: &Child, limit: Duration) -> bool {
    match pidfd_open(pid(child), PidfdFlags::empty()) {
        Ok(fd) => readable(&fd, limit),
        Err(_) => true,
    }
}

fn readable(fd: &OwnedFd, limit: Duration) -> bool {
    let limit = Timespec::try_from(limit).expect("a limit of seconds");
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    loop {
        match poll(&mut fds, Some(&limit)) {
            Err(rustix::io::Errno::INTR) => continue,
            result => return result.expect("poll") > 0,
        }
    }
}

fn read_lines(pipe: impl Read + Send + 'static, lines: Arc<Lines>) -> JoinHandle<()> {
    thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n') {
            let Ok(line) = line else { break };
            lines.push(Some(String::from_utf8_lossy(&line).into_owned()));
        }
        lines.push(None);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_signals_and_codes() {
        let script = "trap 'kill $!; exit 3' TERM; sleep 60 & echo one; echo two >&2; echo ready; wait";
        let mut process = Process::start(Command::new("bash").args(["-c", script]));
        assert_eq!(process.line("ready", |line| (line == "ready").then_some(7)), 7);
        assert!(process.is_running());
        process.signal(Signal::TERM);
        assert_eq!(process.exit_code(PATIENCE), 3);
        assert_eq!(process.stderr(), "two");
        assert!(process.stdout().starts_with("one\nready"));
    }
}
