//! The real `sc-cloud` over loopback: accounts, REST shapes, the life of tunnels.

mod adopted;
mod ca;
mod front;
mod log;
mod pool;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use controlplane::api::TunnelRequest;
use controlplane::cloud::limits::DRAIN_MAX;
use dataplane::client::{self, Client, ClientConfig};
use dataplane::endpoint::{Driver, Event};
use dataplane::settings::Settings;
use dataplane::tls::Identity;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Everything that is waited for comes sooner than this.
const PATIENCE: Duration = Duration::from_secs(30);
const FINGERPRINT: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

struct Cloud {
    child: Child,
    state: TempDir,
    address: SocketAddr,
    runtime: tokio::runtime::Runtime,
    client: reqwest::Client,
    key: String,
    stdout: BufReader<ChildStdout>,
    arguments: Vec<String>,
    log: Option<PathBuf>,
}

struct Started {
    child: Child,
    stdout: BufReader<ChildStdout>,
    address: SocketAddr,
    /// What it said before.
    lines: Vec<String>,
}

struct Answer {
    status: u16,
    body: Value,
}

fn sc_cloud() -> Command {
    Command::new(env!("CARGO_BIN_EXE_sc-cloud"))
}

fn add_user(state: &Path, name: &str) -> String {
    let output = sc_cloud()
        .args(["user", "add", name, "--state-dir"])
        .arg(state)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let key = String::from_utf8(output.stdout).unwrap().trim().to_owned();
    assert_eq!(key.len(), 32);
    assert!(!String::from_utf8_lossy(&output.stderr).contains(&key));
    key
}

/// A port for one tunnel after the other; nothing else listens there for the moment.
fn free_ports() -> String {
    let probe = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = probe.local_addr().unwrap().port().min(u16::MAX - 20);
    format!("{port}-{}", port + 20)
}

/// Whether one of these events comes in time.
fn comes(fd: &impl AsFd, events: PollFlags) -> bool {
    let patience = Timespec::try_from(PATIENCE).unwrap();
    poll(&mut [PollFd::new(fd, events)], Some(&patience)).unwrap() == 1
}

/// Starts `sc-cloud serve` and waits until it serves.
fn serve(state: &Path, arguments: &[String], log: Option<&Path>) -> Started {
    let mut command = sc_cloud();
    command.arg("serve").args(arguments).arg("--state-dir").arg(state);
    if let Some(log) = log {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
        command.env("RUST_LOG", "trace").stderr(file);
    }
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut lines = Vec::new();
    let address = loop {
        let mut line = String::new();
        assert!(stdout.read_line(&mut line).unwrap() > 0, "ended early: {lines:?}");
        if let Some(rest) = line.strip_prefix("REST: https://") {
            break rest.split('/').next().unwrap().parse().unwrap();
        }
        lines.push(line);
    };
    Started {
        child,
        stdout,
        address,
        lines,
    }
}

/// A client of REST that trusts this PEM file.
fn trusting_only(pem: &[u8]) -> reqwest::Client {
    reqwest::Client::builder()
        .tls_certs_only([reqwest::Certificate::from_pem(pem).unwrap()])
        .no_proxy()
        .timeout(PATIENCE)
        .build()
        .unwrap()
}

impl Cloud {
    fn start() -> Self {
        Self::start_with(&[])
    }

    fn start_with(arguments: &[&str]) -> Self {
        Self::start_on(tempfile::tempdir().unwrap(), arguments, None)
    }

    /// Starts in a folder where something may be already; with `log` it says there all that it can say.
    fn start_on(state: TempDir, arguments: &[&str], log: Option<PathBuf>) -> Self {
        let key = add_user(state.path(), "ada");
        let ports = free_ports();
        let mut arguments: Vec<_> = arguments.iter().map(|a| (*a).to_owned()).collect();
        arguments.extend(["--listen", "127.0.0.1:0", "--proxy-ports", &ports].map(str::to_owned));
        let started = serve(state.path(), &arguments, log.as_deref());
        assert!(
            started
                .lines
                .iter()
                .any(|l| l.contains("ca.pem") && l.contains("SHA-256")),
            "{:?}",
            started.lines
        );
        // Another test may have been first.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let client = trusting_only(&std::fs::read(state.path().join("ca.pem")).unwrap());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        Self {
            child: started.child,
            state,
            address: started.address,
            runtime,
            client,
            key,
            stdout: started.stdout,
            arguments,
            log,
        }
    }

    /// Kills it, and starts another one in its place.
    fn replace(&mut self) {
        self.signal(Signal::KILL);
        self.exit_code();
        let started = serve(self.state.path(), &self.arguments, self.log.as_deref());
        (self.child, self.stdout, self.address) = (started.child, started.stdout, started.address);
        assert_eq!(started.lines, [""; 0]);
    }

    fn call(&self, method: &str, path: &str, body: Option<&str>) -> Answer {
        self.call_as("ada", &self.key, method, path, body)
    }

    fn call_as(&self, user: &str, key: &str, method: &str, path: &str, body: Option<&str>) -> Answer {
        let url = format!("https://{}/rest/v1/{path}", self.address);
        let mut request = self
            .client
            .request(method.parse().unwrap(), url)
            .basic_auth(user, Some(key));
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_owned());
        }
        self.runtime.block_on(async {
            let response = request.send().await.unwrap();
            let status = response.status().as_u16();
            let text = response.text().await.unwrap();
            let body = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
            Answer { status, body }
        })
    }

    fn create(&self, request: Value) -> String {
        let answer = self.call("POST", "ada/tunnels", Some(&request.to_string()));
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert_eq!(answer.body["status"], "new");
        assert_eq!(answer.body["host"], Value::Null);
        assert_eq!(answer.body["culvert"], Value::Null);
        assert_eq!(answer.body["messages"]["fatal"], json!([]));
        let id = answer.body["id"].as_str().unwrap();
        assert!(id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()), "{id}");
        id.to_owned()
    }

    fn tunnel(&self, id: &str) -> Value {
        let answer = self.call("GET", &format!("ada/tunnels/{id}"), None);
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.body
    }

    /// Asks until the tunnel is as wanted: each answer is the server's, so that no pause is needed.
    fn until(&self, id: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let start = Instant::now();
        loop {
            let tunnel = self.tunnel(id);
            if wanted(&tunnel) {
                return tunnel;
            }
            assert!(start.elapsed() < PATIENCE, "never {what}: {tunnel}");
        }
    }

    fn running(&self, id: &str) -> Value {
        self.until(id, "running", |t| t["status"] == "running")
    }

    fn terminated(&self, id: &str) -> Value {
        self.until(id, "terminated", |t| t["status"] == "terminated")
    }

    fn dial(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// The exit code, once it has ended and closed its output.
    fn exit_code(&mut self) -> Option<i32> {
        assert!(comes(self.stdout.get_ref(), PollFlags::HUP), "it does not end");
        self.child.wait().unwrap().code()
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        // Endpoints live on when it is killed, and a second signal ends it and them at once.
        if let Ok(None) = self.child.try_wait() {
            self.signal(Signal::TERM);
            self.signal(Signal::INT);
        }
        let _ = self.child.wait();
    }
}

#[test]
fn a_tunnel_from_post_to_history() {
    let cloud = Cloud::start();
    let id = cloud.create(json!({
        "tunnel_identifier": "suite", "domain_names": ["a.test"], "ssh_port": 443, "use_kgp": true,
        "metadata": {"nofile_limit": 18446744073709551615u64}, "culvert": {"fingerprint": FINGERPRINT, "shards": 2},
    }));
    let tunnel = cloud.running(&id);
    for (field, value) in [
        ("owner", json!("ada")),
        ("host", json!("127.0.0.1")),
        ("tunnel_identifier", json!("suite")),
        ("is_ready", json!(false)),
        ("domain_names", json!(["a.test"])),
        ("direct_domains", json!([])),
        ("shutdown_time", Value::Null),
        ("user_shutdown", json!(false)),
        ("metadata", json!({"nofile_limit": 18446744073709551615u64})),
    ] {
        assert_eq!(tunnel[field], value, "{field}");
    }
    let culvert = &tunnel["culvert"];
    assert_eq!(culvert["address"], cloud.address.to_string());
    assert_eq!(culvert["server_name"], format!("{id}.tunnel.culvert"));
    assert_eq!(culvert["fingerprint"].as_str().unwrap().len(), 64);
    assert_eq!((&culvert["shards"], &culvert["links_max"]), (&json!(1), &json!(16)));
    let proxy: SocketAddr = culvert["proxy"].as_str().unwrap().parse().unwrap();
    assert!(proxy.ip().is_loopback());
    assert!(TcpStream::connect(proxy).is_ok());

    assert_eq!(cloud.call("GET", "ada/tunnels", None).body, json!([id]));
    assert_eq!(cloud.call("GET", "ada/tunnels?full=1", None).body[0]["id"], json!(id));
    assert_eq!(
        cloud.call("GET", "ada/tunnels?full=1&all=1", None).body["ada"][0]["id"],
        json!(id)
    );
    let jobs = cloud.call("GET", &format!("ada/tunnels/{id}/num_jobs"), None);
    assert_eq!((jobs.status, jobs.body), (200, json!({"id": id, "jobs_running": 0})));
    let beat = cloud.call(
        "POST",
        &format!("ada/tunnels/{id}/connected"),
        Some(r#"{"kgp_is_connected":true}"#),
    );
    assert_eq!((beat.status, beat.body), (200, json!({"id": id, "result": true})));

    let deleted = cloud.call("DELETE", &format!("ada/tunnels/{id}?reason=sigterm&wait=0"), None);
    assert_eq!(deleted.status, 200);
    assert_eq!(deleted.body, json!({"id": id, "result": true, "jobs_running": 0}));
    let ended = cloud.terminated(&id);
    assert_eq!(ended["shutdown_reason"], "sigterm");
    assert_eq!(
        (&ended["user_shutdown"], &ended["culvert"]),
        (&json!(true), &Value::Null)
    );
    assert!(ended["shutdown_time"].as_u64() >= ended["creation_time"].as_u64());
    assert!(TcpStream::connect(proxy).is_err());
    assert_eq!(cloud.call("GET", "ada/tunnels", None).body, json!([]));
    let all = cloud.call("GET", "ada/all_tunnels?limit=5", None).body;
    assert_eq!(all["tunnels"][0]["id"], json!(id));
    let beat = cloud.call("POST", &format!("ada/tunnels/{id}/connected"), None);
    assert_eq!((beat.status, beat.body), (200, json!({"id": id, "result": false})));
}

#[test]
fn refusals_name_their_reason() {
    let cloud = Cloud::start();
    let bob = add_user(cloud.state.path(), "bob");
    let text = |answer: &Answer| answer.body["error"].as_str().unwrap().to_owned();
    for (user, key) in [("ada", "wrong"), ("ada", ""), ("eve", &*cloud.key), ("ada", &*bob)] {
        let answer = cloud.call_as(user, key, "GET", "ada/tunnels", None);
        assert_eq!((answer.status, text(&answer)), (401, "Not authorized".into()));
    }
    assert_eq!(cloud.call_as("bob", &bob, "GET", "ada/tunnels", None).status, 403);
    assert_eq!(cloud.call("GET", "eve/tunnels", None).status, 404);
    let id = cloud.create(json!({}));
    for (method, path) in [
        ("GET", ""),
        ("DELETE", ""),
        ("POST", "/connected"),
        ("GET", "/num_jobs"),
    ] {
        let other = cloud.call_as("bob", &bob, method, &format!("bob/tunnels/{id}{path}"), None);
        assert_eq!(other.status, 404, "{method} {path}: {}", other.body);
        let unknown = cloud.call(method, &format!("ada/tunnels/{FINGERPRINT}{path}"), None);
        assert_eq!((unknown.status, text(&unknown)), (404, "Tunnel not found".into()));
    }
    for body in [
        "{",
        "[]",
        r#"{"domain_names":"x"}"#,
        r#"{"culvert":{"fingerprint":"xyz"}}"#,
    ] {
        let answer = cloud.call("POST", "ada/tunnels", Some(body));
        assert_eq!(answer.status, 400, "{body}");
        assert!(!text(&answer).is_empty());
    }
    let twice = cloud.call("DELETE", &format!("ada/tunnels/{id}?wait=1&wait=0"), None);
    assert_eq!((twice.status, &twice.body["result"]), (200, &json!(true)));
    let long = json!({"tunnel_identifier": "x".repeat(10_000)}).to_string();
    assert_eq!(cloud.call("POST", "ada/tunnels", Some(&long)).status, 400);
    let huge = "x".repeat(400 * 1024);
    assert_eq!(cloud.call("POST", "ada/errors", Some(&huge)).status, 413);
    assert_eq!(cloud.call("GET", "nowhere", None).status, 404);
    assert_eq!(cloud.call("PUT", "ada/tunnels", None).status, 405);
    assert_eq!(
        cloud.call("GET", "ada/tunnels/info/updates", None).body["fatal"],
        json!([])
    );
    assert_eq!(
        cloud.call("GET", "public/tunnels/info/versions", None).body["status"],
        "OK"
    );
}

#[test]
fn a_newer_tunnel_of_the_same_name_replaces_the_older() {
    let cloud = Cloud::start();
    let request = |identifier: Value, pool: bool| json!({"tunnel_identifier": identifier, "tunnel_pool": pool, "culvert": {"fingerprint": FINGERPRINT}});
    let named = cloud.create(request(json!("x"), false));
    let plain = cloud.create(request(Value::Null, false));
    cloud.running(&named);
    cloud.running(&plain);
    let second = cloud.create(request(json!("x"), false));
    let replaced = cloud.terminated(&named);
    assert_eq!(
        (&replaced["shutdown_reason"], &replaced["user_shutdown"]),
        (&json!("replaced"), &json!(false))
    );
    assert_eq!(cloud.tunnel(&plain)["status"], "running");
    let other = cloud.create(request(Value::Null, false));
    cloud.terminated(&plain);
    let pooled = cloud.create(request(json!("x"), true));
    for id in [&second, &other, &pooled] {
        cloud.running(id);
    }
    let count = |query: &str| {
        let list = cloud.call("GET", &format!("ada/tunnels{query}"), None).body;
        list.as_array().unwrap().len()
    };
    assert_eq!((count(""), count("?protocol=h2c&protocol=kgp")), (3, 3));
    assert_eq!(count("?protocol=h2c"), 0);
}

#[test]
fn a_killed_endpoint_comes_back_on_its_port_under_a_new_key() {
    let cloud = Cloud::start();
    let id = cloud.create(json!({"culvert": {"fingerprint": FINGERPRINT}}));
    let before = cloud.running(&id);
    let [endpoint] = children(cloud.child.id())[..] else {
        panic!("one endpoint process expected")
    };
    let arguments = std::fs::read(format!("/proc/{endpoint}/cmdline")).unwrap();
    assert_eq!(arguments, b"sc-cloud\0endpoint\0");
    match std::fs::read(format!("/proc/{endpoint}/environ")) {
        Ok(environment) => assert_eq!(environment, b""),
        // It is closed even to its own user.
        Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::PermissionDenied),
    }
    kill_process(Pid::from_raw(endpoint).unwrap(), Signal::KILL).unwrap();
    let after = cloud.until(&id, "relaunched", |t| {
        assert_eq!(t["status"], "running");
        t["culvert"]["fingerprint"] != before["culvert"]["fingerprint"]
    });
    assert_eq!(after["culvert"]["proxy"], before["culvert"]["proxy"]);
    assert_eq!(children(cloud.child.id()).len(), 1);
}

/// Processes that `parent` has started.
fn children(parent: u32) -> Vec<i32> {
    let tasks = std::fs::read_dir(format!("/proc/{parent}/task")).unwrap();
    tasks
        .flatten()
        .filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|list| {
            list.split_whitespace()
                .map(|pid| pid.parse().unwrap())
                .collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn sigterm_ends_all_endpoints_and_history_says_so() {
    let mut cloud = Cloud::start();
    let ids: Vec<_> = ["a", "b"]
        .map(|name| cloud.create(json!({"tunnel_identifier": name, "culvert": {"fingerprint": FINGERPRINT}})))
        .into();
    ids.iter().for_each(|id| drop(cloud.running(id)));
    let endpoints = children(cloud.child.id());
    assert_eq!(endpoints.len(), 2);
    cloud.signal(Signal::TERM);
    assert_eq!(cloud.exit_code(), Some(0));
    for endpoint in endpoints {
        assert!(!Path::new(&format!("/proc/{endpoint}")).exists());
    }
    let connection = rusqlite::Connection::open(cloud.state.path().join("culvert.db")).unwrap();
    let open: u32 = connection
        .query_row("SELECT count(*) FROM tunnels WHERE status != 'terminated'", [], |row| {
            row.get(0)
        })
        .unwrap();
    assert_eq!(open, 0);
}

#[test]
fn what_stands_in_the_way_is_one_line_and_a_code() {
    let refused = |arguments: &[&str], code: i32, named: &str| {
        let output = sc_cloud().args(arguments).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
        assert!(text.contains(named), "{text}");
        text
    };
    let busy = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = busy.local_addr().unwrap().to_string();
    let state = tempfile::tempdir().unwrap();
    let folder = state.path().to_str().unwrap();
    let text = refused(&["serve", "--listen", &address, "--state-dir", folder], 7, &address);
    assert_eq!(text.lines().count(), 1, "{text}");
    let cloud = Cloud::start();
    let held = cloud.state.path().to_str().unwrap();
    let text = refused(&["serve", "--listen", "127.0.0.1:0", "--state-dir", held], 7, held);
    assert_eq!(text.lines().count(), 1, "{text}");
    let text = refused(
        &["serve", "--listen", "127.0.0.1:0", "--state-dir", "/dev/null/x"],
        7,
        "/dev/null/x",
    );
    assert_eq!(text.lines().count(), 1, "{text}");
    refused(&["serve", "--proxy-ports", "9"], 2, "--proxy-ports");
    refused(&["user", "add", "a b", "--state-dir", folder], 2, "a b");
    add_user(state.path(), "ada");
    refused(&["user", "add", "ada", "--state-dir", folder], 2, "exists");
    refused(&["endpoint"], 1, "serve");
}

/// The data plane of `sc`, dialling the tunnel `id`.
fn client(cloud: &Cloud, tunnel: &Value, identity: &Arc<Identity>) -> Client {
    let culvert = &tunnel["culvert"];
    let config = ClientConfig {
        shards: 1,
        links: 2,
        cloud: cloud.address,
        server_name: culvert["server_name"].as_str().unwrap().to_owned(),
        fingerprint: culvert["fingerprint"].as_str().unwrap().parse().unwrap(),
        identity: Arc::clone(identity),
        settings: Arc::new(Settings {
            version: 1,
            json: TunnelRequest::default().settings_json().into(),
            ..Settings::default()
        }),
        driver: Driver::Auto,
        denied: Vec::new(),
        max_streams: 64,
        memory_bytes: dataplane::limits::CLIENT_MEMORY_BYTES,
        trust: dataplane::bump::Trust {
            roots: Arc::new(rustls::RootCertStore::empty()),
            insecure: Default::default(),
        },
        credentials: Default::default(),
    };
    client::start(config).unwrap()
}

#[test]
fn ready_means_that_a_request_went_there_and_back() {
    let cloud = Cloud::start();
    let identity = Arc::new(Identity::generate().unwrap());
    let id = cloud.create(json!({"culvert": {"fingerprint": identity.fingerprint().to_string()}}));
    let tunnel = cloud.running(&id);
    assert_eq!(
        (&tunnel["is_ready"], &tunnel["last_connected"]),
        (&json!(false), &Value::Null)
    );
    let client = client(&cloud, &tunnel, &identity);
    let ready = cloud.until(&id, "ready", |t| t["is_ready"] == true);
    assert!(ready["last_connected"].is_u64());

    let [endpoint] = children(cloud.child.id())[..] else {
        panic!("one endpoint process expected")
    };
    kill_process(Pid::from_raw(endpoint).unwrap(), Signal::KILL).unwrap();
    let again = cloud.until(&id, "relaunched", |t| {
        t["culvert"]["fingerprint"] != tunnel["culvert"]["fingerprint"]
    });
    assert_eq!(again["is_ready"], false);
    client.set_cloud(
        cloud.address,
        again["culvert"]["fingerprint"].as_str().unwrap().parse().unwrap(),
    );
    cloud.until(&id, "ready again", |t| t["is_ready"] == true);

    cloud.call("DELETE", &format!("ada/tunnels/{id}"), None);
    cloud.terminated(&id);
    client.stop();
}

#[test]
fn a_second_signal_ends_it_and_its_endpoints_at_once() {
    let mut cloud = Cloud::start();
    let identity = Arc::new(Identity::generate().unwrap());
    let id = cloud.create(json!({"culvert": {"fingerprint": identity.fingerprint().to_string()}}));
    let tunnel = cloud.running(&id);
    let client = client(&cloud, &tunnel, &identity);
    cloud.until(&id, "ready", |t| t["is_ready"] == true);
    let [endpoint] = children(cloud.child.id())[..] else {
        panic!("one endpoint process expected")
    };
    let endpoint = pidfd_open(Pid::from_raw(endpoint).unwrap(), PidfdFlags::empty()).unwrap();
    // It never answers: the drain waits for it.
    let site = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = site.local_addr().unwrap();
    let mut browser = TcpStream::connect(tunnel["culvert"]["proxy"].as_str().unwrap()).unwrap();
    let request = format!("GET http://{address}/ HTTP/1.1\r\nHost: {address}\r\n\r\n");
    browser.write_all(request.as_bytes()).unwrap();
    assert!(comes(&site, PollFlags::IN), "nobody dials the site");
    let _asked = site.accept().unwrap();
    let begun = Instant::now();
    cloud.signal(Signal::TERM);
    // It has heard that when nobody is let in any more.
    while TcpStream::connect(cloud.address).is_ok() {
        assert!(begun.elapsed() < DRAIN_MAX, "it does not hear the first signal");
    }
    browser.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let silence = browser.read(&mut [0]).unwrap_err();
    assert_eq!(silence.kind(), std::io::ErrorKind::WouldBlock, "it does not drain");
    cloud.signal(Signal::INT);
    assert_eq!(cloud.exit_code(), Some(0));
    assert!(comes(&endpoint, PollFlags::IN), "its endpoint lives on");
    let took = begun.elapsed();
    assert!(took < DRAIN_MAX, "{took:?}");
    client.stop();
}

#[test]
fn a_member_with_another_key_gets_no_link() {
    let cloud = Cloud::start();
    let pinned = Identity::generate().unwrap();
    let id = cloud.create(json!({"culvert": {"fingerprint": pinned.fingerprint().to_string()}}));
    let tunnel = cloud.running(&id);
    let stranger = Arc::new(Identity::generate().unwrap());
    let client = client(&cloud, &tunnel, &stranger);
    let refused = |event| match event {
        Event::DialFailed { wrong_key, .. } => wrong_key,
        Event::Log { text, .. } => text.contains("refused our key"),
        other => panic!("{other:?}"),
    };
    while !refused(client.events().recv_timeout(PATIENCE).unwrap()) {}
    let tunnel = cloud.tunnel(&id);
    assert_eq!(
        (&tunnel["is_ready"], &tunnel["last_connected"]),
        (&json!(false), &Value::Null)
    );
    client.stop();
}
