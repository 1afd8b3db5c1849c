//! The program `sc` itself against a REST API of our own: what launchers see, that is stdout, stderr, files, signals
//! and exit codes.

mod roots;
mod stub;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde_json::{Value, json};
use stub::{Api, Impostor, Stub, tunnel};

const KEY: &str = "planted-access-key";
const UP: &str = "Sauce Connect is up, you may start your tests.";
/// A line that does not come within this time is a failure.
const LINE_MAX: Duration = Duration::from_secs(30);

/// Killed when dropped.
struct Running(Child);

impl Running {
    fn id(&self) -> u32 {
        self.0.id()
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill").args([name, &self.id().to_string()]).status();
        assert!(status.expect("kill").success());
    }

    /// The exit code, once it has ended; none if a signal ended it.
    fn exit_code(&mut self) -> Option<i32> {
        let process = pidfd_open(Pid::from_child(&self.0), PidfdFlags::empty()).expect("not waited for yet");
        let limit = Timespec::try_from(LINE_MAX).expect("a limit of seconds");
        let ended = poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&limit));
        assert_eq!(ended, Ok(1), "it does not end");
        self.0.wait().expect("exit").code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A started `sc` with a temporary folder of its own.
struct Sc {
    child: Running,
    lines: Receiver<String>,
    seen: Vec<String>,
    stderr: ChildStderr,
    folder: tempfile::TempDir,
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("temporary folder")
}

fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sc"));
    command
        .args(arguments)
        .env_clear()
        .env("TMPDIR", folder)
        .env("HOME", folder)
        // Not taken unasked.
        .env("http_proxy", "http://127.0.0.1:1")
        .env("ALL_PROXY", "http://127.0.0.1:1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

impl Sc {
    fn start(arguments: &[&str]) -> Self {
        Self::start_in(folder(), arguments)
    }

    fn start_in(folder: tempfile::TempDir, arguments: &[&str]) -> Self {
        Self::start_with(folder, arguments, &[])
    }

    fn start_with(folder: tempfile::TempDir, arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        let mut child = command(folder.path(), arguments)
            .envs(variables.iter().copied())
            .spawn()
            .expect("sc");
        let stdout = BufReader::new(child.stdout.take().expect("stdout"));
        let stderr = child.stderr.take().expect("stderr");
        let (send, lines) = channel();
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        Self {
            child: Running(child),
            lines,
            seen: Vec::new(),
            stderr,
            folder,
        }
    }

    /// With user, key and the stub's URL.
    fn with(stub: &Stub, more: &[&str]) -> Self {
        Self::start(&[&["-u", "U", "-k", KEY, "-x", &stub.url], more].concat())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Waits for a line that starts so.
    fn line(&mut self, start: &str) -> String {
        let deadline = Instant::now() + LINE_MAX;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = match self.lines.recv_timeout(left) {
                Ok(line) => line,
                Err(e) => panic!("{start:?}: {e} after {:#?}", self.seen),
            };
            self.seen.push(line.clone());
            if line.starts_with(start) {
                return line;
            }
        }
    }

    fn signal(&self, name: &str) {
        self.child.signal(name);
    }

    /// Waits for the end: exit code and all lines. Nothing may have come on stderr.
    fn end(mut self) -> (i32, Vec<String>) {
        let deadline = Instant::now() + LINE_MAX;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => self.seen.push(line),
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => break,
                Err(e) => panic!("no end: {e} after {:#?}", self.seen),
            }
        }
        let code = self.child.exit_code().unwrap_or(-1);
        let mut text = String::new();
        self.stderr.read_to_string(&mut text).expect("stderr");
        assert_eq!(text, "", "stderr");
        (code, self.seen)
    }
}

/// Runs to the end: exit code and the last line.
fn last_line(arguments: &[&str]) -> (i32, String) {
    let (code, lines) = Sc::start(arguments).end();
    let last = lines.last().cloned().unwrap_or_default();
    assert!(!lines.join("\n").contains(KEY), "{lines:?}");
    (code, last)
}

#[test]
fn a_clean_run() {
    let stub = Stub::start();
    let place = folder();
    let ready = place.path().join("ready");
    let log = place.path().join("log");
    let arguments = ["-u", "U", "-k", KEY, "-x", &stub.url, "-vv", "-i", "a b/c"];
    let files = ["-f", ready.to_str().expect("path"), "-l", log.to_str().expect("path")];
    let mut sc = Sc::start_in(place, &[&arguments[..], &files[..]].concat());
    sc.line(UP);
    assert!(ready.exists());
    let pid = sc.child.id();
    let pid_file = sc.path("sc_client-a_b_c.pid");
    assert_eq!(fs::read_to_string(&pid_file).expect("pid"), format!("{pid}\n"));
    let typed = fs::read(format!("/proc/{pid}/cmdline")).expect("cmdline");
    assert!(!String::from_utf8_lossy(&typed).contains(KEY), "the key stands in `ps`");
    sc.signal("-TERM");
    sc.line("Goodbye.");
    let kept = std::mem::replace(&mut sc.folder, folder());
    let (code, lines) = sc.end();
    let id = "0123456789abcdef0123456789abcdef";
    let banner = format!("Sauce Connect {}, build 0", env!("CARGO_PKG_VERSION"));
    assert_eq!(
        lines,
        [
            banner,
            format!("Starting up; pid {pid}"),
            format!("Provisioned tunnel: {id}"),
            format!("Tunnel ID: {id}"),
            "Sauce Connect is connected.".into(),
            UP.into(),
            "Will wait for up to 300s for jobs using this tunnel to finish".into(),
            "Press Ctrl-C again to shut down immediately.".into(),
            "Goodbye.".into(),
        ]
    );
    assert_eq!(code, 0);
    assert!(!ready.exists() && !pid_file.exists());
    let log = fs::read_to_string(log).expect("log");
    assert!(log.contains("SIGTERM") && log.contains("REST DELETE"), "{log}");
    assert!(!log.contains(KEY), "the key stands in the log");
    drop(kept);
    check_calls(&stub);
}

fn check_calls(stub: &Stub) {
    let api = stub.api();
    let create = &api.calls[0];
    assert!(create.line.starts_with("POST /rest/v1/U/tunnels "));
    // Basic of U:planted-access-key.
    let basic = "authorization: basic vtpwbgfudgvklwfjy2vzcy1rzxk=";
    assert!(create.head.to_lowercase().contains(basic), "{}", create.head);
    assert_eq!(create.body["tunnel_identifier"], "a b/c");
    for list in [
        "domain_names",
        "direct_domains",
        "fast_fail_regexps",
        "no_ssl_bump_domains",
    ] {
        assert_eq!(create.body[list], json!([]), "{list}");
    }
    assert_eq!(create.body["protocol"], "kgp");
    assert_eq!(create.body["ssh_port"], 443);
    assert_eq!(create.body["tunnel_pool"], false);
    assert_eq!(create.body["no_proxy_caching"], false);
    assert_eq!(create.body["metadata"]["command"], "sc");
    let fingerprint = create.body["culvert"]["fingerprint"].as_str();
    assert_eq!(fingerprint.map(str::len), Some(64));
    assert!(create.body["culvert"]["shards"].is_u64());
    let delete = api.calls.iter().find(|c| c.line.starts_with("DELETE"));
    assert!(delete.expect("DELETE").line.contains("?reason=sigterm&wait=0 "));
    let after = api.calls.last().map(|c| c.line.clone()).unwrap_or_default();
    assert!(after.starts_with("GET "), "it polls until the tunnel is gone");
}

#[test]
fn up_is_said_only_when_it_is_true() {
    let stub = Stub::start();
    stub.api().tunnel = (200, tunnel("running", false, stub.address));
    let mut sc = Sc::with(&stub, &[]);
    sc.line("Tunnel ID:");
    stub.wait(|api| api.count("GET") >= 4);
    assert!(sc.lines.try_recv().is_err(), "said before it was true");
    stub.api().tunnel = (200, tunnel("running", true, stub.address));
    sc.line(UP);
    sc.signal("-INT");
    assert_eq!(sc.end().0, 0);
}

#[test]
fn a_wrong_key_is_4() {
    let stub = Stub::start();
    for code in [401, 403] {
        stub.api().create = vec![(code, json!({"error": "no"}))];
        let (exit, line) = last_line(&["-u", "U", "-k", KEY, "-x", &stub.url]);
        assert_eq!(exit, 4);
        assert!(line.starts_with("Not authorized: user \"U\""), "{line}");
    }
    stub.api().create = vec![(404, json!({"error": "Unknown user"}))];
    let (exit, line) = last_line(&["-u", "U", "-k", KEY, "-x", &stub.url]);
    assert_eq!((exit, line.contains("Unknown user")), (4, true));
}

#[test]
fn a_cloud_out_of_reach_is_3_and_the_cause_is_named() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").expect("port");
    let url = format!("https://{}/rest/v1", closed.local_addr().expect("address"));
    drop(closed);
    let (code, line) = last_line(&["-u", "U", "-k", KEY, "-x", &url]);
    assert_eq!(code, 3);
    assert!(line.starts_with("Error: cannot reach the REST API at https://127.0.0.1:"));
    assert!(line.contains("Connection refused"), "{line}");
}

#[test]
fn an_answer_that_is_no_tunnel_is_3() {
    let stub = Stub::start();
    for (answer, why) in [
        ((200, json!("what")), "not understood"),
        ((200, json!({})), "without an id"),
        ((302, json!({})), "HTTP 302"),
        ((404, json!("page")), "no REST API at"),
        ((404, json!({"error": "Not found"})), "no REST API at"),
    ] {
        stub.api().create = vec![answer];
        let (code, line) = last_line(&["-u", "U", "-k", KEY, "-x", &stub.url]);
        assert_eq!(code, 3, "{line}");
        assert!(line.contains(why), "{line}");
    }
}

#[test]
fn an_unknown_certificate_is_3_until_cainfo_names_it() {
    let stub = Stub::start_tls();
    let (code, line) = last_line(&["-u", "U", "-k", KEY, "-x", &stub.url]);
    assert_eq!(code, 3);
    assert!(line.contains("UnknownIssuer") && line.contains("--cainfo"), "{line}");
    let place = folder();
    let ca = place.path().join("ca.pem");
    fs::write(&ca, &stub.ca).expect("ca");
    let mut sc = Sc::with(&stub, &["--cainfo", ca.to_str().expect("path")]);
    sc.line(UP);
    sc.signal("-TERM");
    assert_eq!(sc.end().0, 0);
    let (code, line) = last_line(&["-u", "U", "-k", KEY, "-x", &stub.url, "--cainfo", "/nonexistent"]);
    assert_eq!(code, 2);
    assert!(line.starts_with("Error: --cainfo: /nonexistent: "), "{line}");
}

#[test]
fn a_tunnel_out_of_reach_is_3_and_the_cause_is_named() {
    let stub = Stub::start();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").expect("port");
    let address = closed.local_addr().expect("address");
    drop(closed);
    stub.api().tunnel = (200, tunnel("running", false, address));
    let (code, line) = last_line(&["-u", "U", "-k", KEY, "-x", &stub.url]);
    assert_eq!(code, 3, "{line}");
    let start = format!("Error: cannot reach the tunnel at {address} ");
    assert!(line.starts_with(&start), "{line}");
    assert!(line.contains("refused"), "{line}");
    assert_eq!(stub.api().count("DELETE"), 1, "no tunnel is left behind");
}

#[test]
fn an_endpoint_with_another_key_is_3_and_said_so() {
    let stub = Stub::start();
    let impostor = Impostor::start();
    stub.api().tunnel = (200, tunnel("running", false, impostor.address));
    let (code, line) = last_line(&["-u", "U", "-k", KEY, "-x", &stub.url]);
    assert_eq!(code, 3, "{line}");
    assert!(line.contains(dataplane::tls::WRONG_KEY), "{line}");
}

#[test]
fn a_refused_tunnel_is_5() {
    let stub = Stub::start();
    let text = "Too many active org tunnels: 3 >= 2";
    stub.api().create = vec![(400, json!({"error": text}))];
    let (code, line) = last_line(&["-u", "U", "-k", KEY, "-x", &stub.url]);
    assert_eq!((code, line.contains(text)), (5, true), "{line}");
}

#[test]
fn a_cloud_that_restarts_is_asked_again() {
    let stub = Stub::start();
    let good = stub.api().create[0].clone();
    stub.api().create = vec![(503, json!({"error": "restarting"})), good];
    let mut sc = Sc::with(&stub, &[]);
    sc.line(UP);
    sc.signal("-TERM");
    assert_eq!(sc.end().0, 0);
    assert_eq!(stub.api().count("POST /rest/v1/U/tunnels "), 2);
}

#[test]
fn files_that_cannot_be_written_are_7() {
    let stub = Stub::start();
    for (option, what) in [
        ("-l", "Error: cannot write the log file /nonexistent/f: "),
        ("--pidfile", "Error: cannot write the pid file /nonexistent/f: "),
        ("-f", "Error: cannot write the ready file /nonexistent/f: "),
    ] {
        let (code, line) = last_line(&["-u", "U", "-k", KEY, "-x", &stub.url, option, "/nonexistent/f"]);
        assert_eq!(code, 7, "{line}");
        assert!(line.starts_with(what), "{line}");
    }
    assert!(stub.api().calls.is_empty(), "no tunnel was asked for");
}

#[test]
fn a_pid_file_serves_one() {
    let stub = Stub::start();
    let mut first = Sc::with(&stub, &[]);
    first.line(UP);
    let pid = first.path("sc_client.pid").display().to_string();
    let (code, line) = last_line(&["-u", "U", "-k", KEY, "-x", &stub.url, "--pidfile", &pid]);
    assert_eq!(code, 7);
    assert!(line.contains("another sc uses it"), "{line}");
    first.signal("-KILL");
    let mut second = Sc::with(&stub, &["--pidfile", &pid]);
    second.line(UP);
    second.signal("-TERM");
    assert_eq!(second.end().0, 0);
}

#[test]
fn wrong_use_is_2_in_one_line() {
    for (arguments, start) in [
        (
            &["-u", "U", "-k", KEY][..],
            "Error: no REST URL: give -x URL, SAUCE_REST_URL, ",
        ),
        (&["-k", KEY], "Error: --user is missing"),
        (&["-u", "U", KEY], "Error: a word that belongs to no option"),
        (&["--colour"], "Error: --colour is no option"),
        (
            &["-u", "U", "-k", KEY, "--pac", "a.example"],
            "Error: --pac is not built yet",
        ),
        (
            &[
                "-u",
                "U",
                "-k",
                KEY,
                "-x",
                "https://cloud.example/",
                "-D",
                "http://a.example",
            ],
            "Error: --direct-domains: \"http://a.example\" is no domain",
        ),
        (
            &["-u", "U", "-k", KEY, "-x", "http://cloud.example/"],
            "Error: --rest-url: http://",
        ),
    ] {
        let (code, lines) = Sc::start(arguments).end();
        assert_eq!((code, lines.len()), (2, 1), "{lines:?}");
        assert!(lines[0].starts_with(start) && !lines[0].contains(KEY), "{lines:?}");
    }
}

#[test]
fn version_and_help_are_0() {
    let (code, line) = last_line(&["--version"]);
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!((code, line), (0, format!("Sauce Connect {version}, build 0")));
    assert_eq!(last_line(&["--help"]).0, 0);
}

#[test]
fn a_tunnel_that_someone_ended_is_6() {
    for (change, word) in [
        (
            json!({"shutdown_reason": "replaced", "user_shutdown": true}),
            "replaced by a newer one",
        ),
        (
            json!({"shutdown_reason": "sigterm", "user_shutdown": true}),
            "user shutdown",
        ),
    ] {
        let stub = Stub::start();
        let mut sc = Sc::with(&stub, &[]);
        sc.line(UP);
        let mut gone = tunnel("terminated", false, stub.address);
        merge(&mut gone, &change);
        stub.api().tunnel = (200, gone);
        let (code, lines) = sc.end();
        let last = lines.last().cloned().unwrap_or_default();
        assert_eq!(code, 6, "{lines:?}");
        assert!(last.starts_with("Error: ") && last.contains(word), "{last}");
        assert_eq!(stub.api().count("DELETE"), 0);
        assert_eq!(stub.api().count("POST /rest/v1/U/tunnels "), 1);
    }
}

fn merge(object: &mut Value, change: &Value) {
    for (name, value) in change.as_object().into_iter().flatten() {
        object[name] = value.clone();
    }
}

#[test]
fn a_tunnel_that_the_cloud_lost_is_made_anew() {
    let stub = Stub::start();
    let mut sc = Sc::with(&stub, &[]);
    sc.line(UP);
    let mut lost = tunnel("terminated", false, stub.address);
    merge(&mut lost, &json!({"shutdown_reason": "lost"}));
    stub.api().tunnel = (200, lost);
    stub.wait(|api| api.count("POST /rest/v1/U/tunnels ") == 2);
    stub.api().tunnel = (200, tunnel("running", true, stub.address));
    sc.line("Provisioned tunnel: ");
    sc.line(UP);
    sc.signal("-TERM");
    assert_eq!(sc.end().0, 0);
}

#[test]
fn f23_a_signal_while_it_starts_leaves_no_tunnel() {
    let stub = Stub::start();
    stub.api().tunnel = (200, tunnel("booting", false, stub.address));
    let mut sc = Sc::with(&stub, &[]);
    sc.line("Provisioned tunnel: ");
    sc.signal("-TERM");
    let (code, lines) = sc.end();
    assert_eq!((code, lines.last().map(String::as_str)), (0, Some("Goodbye.")));
    assert_eq!(stub.api().count("DELETE"), 1);
}

#[test]
fn f23_jobs_are_waited_for_and_a_second_signal_does_not_wait() {
    let stub = Stub::start();
    stub.api().jobs = 1;
    let mut sc = Sc::with(&stub, &[]);
    sc.line(UP);
    sc.signal("-TERM");
    sc.line("Press Ctrl-C again");
    stub.wait(Api::jobs_asked);
    assert_eq!(stub.api().count("DELETE"), 0);
    stub.api().jobs = 0;
    assert_eq!(sc.end().0, 0);
    assert_eq!(stub.api().count("DELETE"), 1);

    for signal in ["-INT", "-TERM"] {
        let stub = Stub::start();
        stub.api().jobs = 1;
        let mut sc = Sc::with(&stub, &[]);
        sc.line(UP);
        sc.signal(signal);
        stub.wait(Api::jobs_asked);
        sc.signal(signal);
        let (code, lines) = sc.end();
        assert_eq!(
            (code, lines.last().map(String::as_str)),
            (0, Some("Goodbye.")),
            "{signal}"
        );
        assert_eq!(stub.api().count("DELETE"), 1, "{signal}");
    }
}

#[test]
fn f23_who_reads_its_lines_may_leave() {
    let stub = Stub::start();
    let folder = folder();
    let arguments = ["-u", "U", "-k", KEY, "-x", &stub.url];
    let mut sc = Running(command(folder.path(), &arguments).spawn().expect("sc"));
    let stdout = BufReader::new(sc.0.stdout.take().expect("stdout"));
    let (send, told) = channel();
    thread::spawn(move || {
        // Its reader is gone before this is passed on.
        let up = stdout.lines().map_while(Result::ok).any(|line| line.starts_with(UP));
        let _ = send.send(up);
    });
    assert_eq!(told.recv_timeout(LINE_MAX), Ok(true), "it is never up");
    drop(sc.0.stderr.take());
    sc.signal("-TERM");
    assert_eq!(sc.exit_code(), Some(0));
    assert_eq!(stub.api().count("DELETE"), 1);
}
