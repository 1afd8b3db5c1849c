//! A cloud and its tunnels: `sc-cloud serve` with a fresh state folder, `sc` dialling it through a [`Relay`].

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rustix::process::Signal;
use rustls::ClientConfig;
use serde_json::Value;
use tempfile::TempDir;

use crate::http::{self, Answer, Client};
use crate::origin::Origin;
use crate::process::{Held, PATIENCE, Process, limit};
use crate::relay::Relay;
use crate::seccomp::{refuse_in, refuse_io_uring};
use crate::tls;

/// The line of `sc` after which tests may start.
pub const UP: &str = "Sauce Connect is up, you may start your tests.";

/// Proxy ports of one cloud: its tunnels take one each.
const PROXY_PORTS: u16 = 64;

/// What carries the bytes on a shard; every suite that moves bytes runs on both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    IoUring,
    Epoll,
    /// Whichever can be had.
    Auto,
    /// As `Auto`, and the kernel refuses io_uring.
    Refused,
}

impl Driver {
    pub fn name(self) -> &'static str {
        match self {
            Self::IoUring => "io_uring",
            Self::Epoll => "epoll",
            Self::Auto | Self::Refused => "auto",
        }
    }
}

/// True where the kernel refuses io_uring, as the seccomp profiles of containers do. What needs it is then left out,
/// which is said, and with `CI=true` is a failure.
pub fn left_out(driver: Driver) -> bool {
    // SAFETY: a null pointer is never written through: the call fails with EFAULT or, for 0 entries, EINVAL.
    let result = unsafe { libc::syscall(libc::SYS_io_uring_setup, 0, std::ptr::null_mut::<libc::c_void>()) };
    let errno = std::io::Error::last_os_error().raw_os_error();
    let refused = result < 0 && matches!(errno, Some(libc::ENOSYS | libc::EPERM | libc::EACCES));
    if driver != Driver::IoUring || !refused {
        return false;
    }
    crate::leave_out("the kernel refuses io_uring");
    true
}

/// Makes a test of each driver out of each function of a driver.
#[macro_export]
macro_rules! both_drivers {
    ($($name:ident),* $(,)?) => {
        mod io_uring {
            $(#[test]
            fn $name() {
                if !$crate::cloud::left_out($crate::cloud::Driver::IoUring) {
                    super::$name($crate::cloud::Driver::IoUring);
                }
            })*
        }
        mod epoll {
            $(#[test]
            fn $name() {
                super::$name($crate::cloud::Driver::Epoll);
            })*
        }
    };
}

/// A program that was built before the tests: in `CULVERT_BIN_DIR`, or beside this test's own folder.
pub fn binary(name: &str) -> PathBuf {
    let folder = std::env::var_os("CULVERT_BIN_DIR")
        .map(PathBuf::from)
        .unwrap_or_else(|| {
            let own = std::env::current_exe().expect("a path of this test");
            own.ancestors().nth(2).expect("PROFILE/deps/TEST").to_owned()
        });
    let path = folder.join(name);
    assert!(
        path.exists(),
        "{} is not built: scripts/test does it, or cargo build",
        path.display()
    );
    path
}

/// A program that another user starts, from a copy in a folder that is given to this user: only root may.
pub fn command_as(user: u32, name: &str, folder: &Path) -> Command {
    let copy = folder.join(name);
    // By a program of its own: a child that another test starts meanwhile would inherit the copy open for writing, and a
    // file that is written cannot be run.
    let copied = Command::new("cp")
        .arg(binary(name))
        .arg(&copy)
        .status()
        .expect("cp runs");
    assert!(copied.success(), "no copy of {name}");
    chown(folder, Some(user), Some(user)).expect("root gives a folder away");
    let mut command = Command::new(copy);
    command.uid(user).gid(user);
    command
}

/// `--proxy-ports` that nobody listens on; below the range the kernel takes ports of outgoing connections from.
fn proxy_ports() -> (u16, u16) {
    const FIRST: u16 = 10_000;
    const SPAN: u16 = 20_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Test programs that run at the same time start at different places.
    let start = (std::process::id() % u32::from(SPAN / PROXY_PORTS)) as u16 * PROXY_PORTS;
    for _ in 0..SPAN / PROXY_PORTS {
        let step = NEXT.fetch_add(PROXY_PORTS * 37, Ordering::Relaxed);
        let first = FIRST + (start.wrapping_add(step)) % SPAN;
        let free = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
        if (first..first + PROXY_PORTS).all(free) {
            return (first, first + PROXY_PORTS - 1);
        }
    }
    panic!("no {PROXY_PORTS} free ports in a row");
}

/// How a cloud differs from the plain one.
#[derive(Clone, Debug)]
pub struct CloudOptions {
    pub driver: Driver,
    pub endpoint_shards: usize,
    /// Where the relay in front of the cloud listens.
    pub public: Ipv4Addr,
    /// Further arguments of `sc-cloud serve`.
    pub arguments: Vec<String>,
    /// `RLIMIT_NOFILE` of `sc-cloud` and of its endpoints.
    pub files: Option<u64>,
    /// System calls that the kernel refuses it and its endpoints.
    pub refused: Vec<libc::c_long>,
    /// Who it runs as, if root starts it.
    pub user: Option<u32>,
    /// What else is done to the commands of both programs.
    pub prepare: Option<fn(&mut Command)>,
}

impl CloudOptions {
    pub fn new(driver: Driver) -> Self {
        Self {
            driver,
            endpoint_shards: 1,
            public: Ipv4Addr::LOCALHOST,
            arguments: Vec::new(),
            files: None,
            refused: Vec::new(),
            user: None,
            prepare: None,
        }
    }
}

pub struct Cloud {
    pub process: Process,
    pub state: TempDir,
    /// Everything that `sc` and the tests send to the cloud goes through it.
    pub relay: Relay,
    pub user: String,
    pub key: String,
    /// Of the next start.
    pub options: CloudOptions,
    ports: (u16, u16),
    trust: Arc<ClientConfig>,
    /// Endpoints that [`Cloud::kill`] has left.
    orphans: Vec<Held>,
}

impl Cloud {
    pub fn start(driver: Driver) -> Self {
        Self::with(CloudOptions::new(driver))
    }

    pub fn with(options: CloudOptions) -> Self {
        let state = tempfile::tempdir().expect("a temporary folder");
        let relay = Relay::start_at(options.public);
        let ports = proxy_ports();
        let process = serve(&options, state.path(), &relay, ports);
        let trust = tls::trust_file(&state.path().join("ca.pem")).expect("the cloud's CA");
        let user = "ada".to_owned();
        let key = add_user(state.path(), &user);
        Self {
            process,
            state,
            relay,
            user,
            key,
            options,
            ports,
            trust,
            orphans: Vec::new(),
        }
    }

    /// The process of its only endpoint.
    pub fn endpoint(&self) -> u32 {
        let [endpoint] = self.process.children()[..] else {
            panic!("one endpoint expected: {:?}", self.process.children());
        };
        endpoint
    }

    /// Kills `sc-cloud`; its endpoints, whose ids come back, live on.
    pub fn kill(&mut self) -> Vec<u32> {
        let endpoints = self.process.children();
        self.orphans.extend(endpoints.iter().copied().filter_map(Held::of));
        self.process.signal(Signal::KILL);
        self.process.end(PATIENCE);
        endpoints
    }

    /// Another `sc-cloud serve` with the same state folder.
    pub fn second(&self) -> Process {
        Process::start(&mut serve_command(
            &self.options,
            self.state.path(),
            &self.relay,
            self.ports,
        ))
    }

    /// Starts `sc-cloud` anew on the same state, after [`Cloud::kill`] or another end.
    pub fn restart(&mut self) {
        self.process = serve(&self.options, self.state.path(), &self.relay, self.ports);
    }

    /// Ends it by SIGTERM: all that it has said on stderr.
    pub fn last_words(&mut self) -> String {
        self.process.signal(Signal::TERM);
        assert_eq!(self.process.exit_code(PATIENCE), 0);
        self.process.stderr()
    }

    /// The base URL for `sc -x`.
    pub fn url(&self) -> String {
        format!("https://{}/rest/v1", self.relay.address)
    }

    pub fn ca(&self) -> PathBuf {
        self.state.path().join("ca.pem")
    }

    /// One REST call as the user; `path` is below `/rest/v1`.
    pub fn rest(&self, method: &str, path: &str) -> Answer {
        self.rest_with(method, path, &[])
    }

    /// As [`Cloud::rest`], with a JSON body.
    pub fn rest_with(&self, method: &str, path: &str, body: &[u8]) -> Answer {
        let credentials = BASE64_STANDARD.encode(format!("{}:{}", self.user, self.key));
        let authorization = format!("Basic {credentials}");
        let host = self.relay.address.ip().to_string();
        let socket = http::dial(self.relay.address).expect("the relay listens");
        let mut client = tls::client(&self.trust, &host, socket).expect("TLS with the cloud's REST");
        let fields = [("Authorization", authorization.as_str()), ("Connection", "close")];
        client
            .request(method, &format!("/rest/v1{path}"), &fields, body)
            .expect("an answer of REST")
    }

    /// The tunnel's REST object.
    pub fn tunnel(&self, id: &str) -> Value {
        let answer = self.rest("GET", &format!("/{}/tunnels/{id}", self.user));
        assert_eq!(answer.status(), 200, "{}", answer.text());
        answer.json()
    }

    /// Waits until the tunnel is history.
    pub fn await_end(&self, id: &str) {
        let started = Instant::now();
        while self.tunnel(id)["status"] != "terminated" {
            assert!(started.elapsed() < PATIENCE, "{}", self.tunnel(id));
            // The front limits the connections of one address.
            fault_lasts(Duration::from_millis(50));
        }
    }

    /// As [`Cloud::bumping_sc`], and every host is left alone: neither does TLS end at the endpoint, nor is anything
    /// cached.
    pub fn sc(&self, log: &Path) -> Command {
        let mut command = self.bumping_sc(log);
        command.env("SAUCE_NO_SSL_BUMP_DOMAINS", "all");
        command
    }

    /// `sc` with this cloud's URL, user, key and trust.
    pub fn bumping_sc(&self, log: &Path) -> Command {
        let mut command = Command::new(binary("sc"));
        command.args([
            "-u",
            &self.user,
            "-k",
            &self.key,
            "-x",
            &self.url(),
            "--driver",
            self.options.driver.name(),
            "--cainfo",
        ]);
        command.arg(self.ca()).arg("-l").arg(log);
        if self.options.driver == Driver::Refused {
            refuse_io_uring(&mut command);
        }
        if let Some(prepare) = self.options.prepare {
            prepare(&mut command);
        }
        command
    }

    pub fn start_tunnel(&self) -> Tunnel {
        self.start_tunnel_with(&["--shards", "1"])
    }

    /// Waits until its endpoints have said so often that a link is up.
    pub fn await_links(&self, links: usize) {
        let started = Instant::now();
        while self.process.stderr().matches("link up").count() < links {
            assert!(
                started.elapsed() < PATIENCE,
                "not all links are up:\n{}",
                self.process.stderr()
            );
            fault_lasts(Duration::from_millis(20));
        }
    }

    /// Starts `sc` with further arguments and waits until it is up.
    pub fn start_tunnel_with(&self, arguments: &[&str]) -> Tunnel {
        self.tunnel_of(Self::sc, arguments)
    }

    /// As [`Cloud::start_tunnel_with`], and TLS of browsers ends at the endpoint, which caches.
    pub fn start_bumping_tunnel(&self, arguments: &[&str]) -> Tunnel {
        self.tunnel_of(Self::bumping_sc, arguments)
    }

    fn tunnel_of(&self, sc: fn(&Self, &Path) -> Command, arguments: &[&str]) -> Tunnel {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut command = sc(self, &folder.path().join("sc.log"));
        command
            .arg("--pidfile")
            .arg(folder.path().join("sc.pid"))
            .args(arguments);
        self.adopt(Process::start(&mut command), folder)
    }

    /// Waits until the same `sc` has another tunnel that is ready: where browsers connect then.
    pub fn renewed(&self, tunnel: &Tunnel) -> SocketAddr {
        let id = tunnel.process.line("another tunnel", |line| {
            let id = line.strip_prefix("Tunnel ID: ")?;
            (id != tunnel.id).then(|| id.to_owned())
        });
        let started = Instant::now();
        loop {
            let object = self.tunnel(&id);
            if object["is_ready"] == true {
                return proxy_of(&object);
            }
            assert!(started.elapsed() < PATIENCE, "{object}\n{}", tunnel.log());
            fault_lasts(Duration::from_millis(50));
        }
    }

    /// Waits until a started `sc` is up.
    pub fn adopt(&self, process: Process, folder: TempDir) -> Tunnel {
        let id = process.line("its tunnel", |line| Some(line.strip_prefix("Tunnel ID: ")?.to_owned()));
        process.line("readiness", |line| line.ends_with(UP).then_some(()));
        let object = self.tunnel(&id);
        Tunnel {
            process,
            id,
            proxy: proxy_of(&object),
            folder,
        }
    }
}

fn proxy_of(object: &Value) -> SocketAddr {
    let proxy = object["culvert"]["proxy"].as_str().and_then(|text| text.parse().ok());
    proxy.unwrap_or_else(|| panic!("no proxy address: {object}"))
}

/// Starts `sc-cloud serve` behind `relay`, and waits until it serves.
fn serve(options: &CloudOptions, state: &Path, relay: &Relay, (first, last): (u16, u16)) -> Process {
    let process = Process::start(&mut serve_command(options, state, relay, (first, last)));
    let address = process.line("its REST address", |line| {
        line.strip_prefix("REST: https://")?
            .split('/')
            .next()?
            .parse::<SocketAddr>()
            .ok()
    });
    relay.set_target(address);
    process
}

fn serve_command(options: &CloudOptions, state: &Path, relay: &Relay, (first, last): (u16, u16)) -> Command {
    let mut command = match options.user {
        None => Command::new(binary("sc-cloud")),
        Some(user) => command_as(user, "sc-cloud", state),
    };
    if options.driver == Driver::Refused {
        refuse_io_uring(&mut command);
    }
    if let Some(files) = options.files {
        limit(&mut command, libc::RLIMIT_NOFILE, files);
    }
    for call in &options.refused {
        refuse_in(&mut command, *call);
    }
    if let Some(prepare) = options.prepare {
        prepare(&mut command);
    }
    command
        .args(["serve", "--listen", "127.0.0.1:0", "--state-dir"])
        .arg(state)
        .args(["--proxy-ports", &format!("{first}-{last}")])
        .args(["--public-address", &relay.address.to_string()])
        .args(["--driver", options.driver.name()])
        .args(["--endpoint-shards", &options.endpoint_shards.to_string()])
        .args(&options.arguments);
    command
}

/// `sc-cloud user add`: the access key.
pub fn add_user(state: &Path, name: &str) -> String {
    let output = Command::new(binary("sc-cloud"))
        .args(["user", "add", name, "--state-dir"])
        .arg(state)
        .output();
    let output = output.expect("sc-cloud runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout)
        .expect("a key is text")
        .trim()
        .to_owned()
}

/// `sc` that is up.
pub struct Tunnel {
    pub process: Process,
    pub id: String,
    /// Where browsers connect.
    pub proxy: SocketAddr,
    pub folder: TempDir,
}

impl Tunnel {
    /// A browser's connection to the proxy port.
    pub fn client(&self) -> Client {
        Client::dial(self.proxy).expect("the proxy port listens")
    }

    /// Proves that the tunnel works: one request through it.
    pub fn serves(&self, origin: &Origin) {
        let answer = self.client().get(&format!("{}/echo-head", origin.base()));
        assert_eq!(answer.expect("an answer").status(), 200);
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("sc.log")).unwrap_or_default()
    }

    /// SIGTERM, and a clean end: code 0, nothing on stderr.
    pub fn stop(mut self) {
        self.process.signal(Signal::TERM);
        let code = self.process.exit_code(PATIENCE);
        assert_eq!(
            (code, self.process.stderr()),
            (0, String::new()),
            "{}\n{}",
            self.process.stdout(),
            self.log()
        );
        assert!(self.process.stdout().contains("Goodbye."), "{}", self.process.stdout());
    }
}

/// Waits until something holds that a log or REST tells.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let since = Instant::now();
    while !holds() {
        assert!(since.elapsed() < PATIENCE, "{what}: in vain");
        // The front limits the connections of one address.
        fault_lasts(Duration::from_millis(50));
    }
}

/// A fault that lasts: the one wait that is not for something.
pub fn fault_lasts(duration: Duration) {
    let nothing = std::sync::Mutex::new(());
    let never = std::sync::Condvar::new();
    let _ = never.wait_timeout_while(nothing.lock().expect("fresh"), duration, |()| true);
}
