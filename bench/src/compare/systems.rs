//! What is measured: Culvert and the programs beside it, each end a process of its own with one thread for traffic.
//! Where two ends meet, a long line may lie between them.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::delay::Delay;
use super::hosts::Hosts;
use super::process::{Process, free_port, run, tree};

/// What all of them are started with.
pub struct Place {
    pub origin: SocketAddr,
    /// The same over TLS on each address of loopback, and the root of its certificates.
    pub secure_origin: SocketAddr,
    pub root: String,
    pub hosts: Hosts,
    /// Programs of Culvert.
    pub programs: PathBuf,
    pub rathole: Option<PathBuf>,
    pub folder: PathBuf,
}

/// A system that is up.
pub struct System {
    pub kind: Kind,
    /// Where clients connect.
    pub target: SocketAddr,
    pub parts: Vec<Part>,
    _processes: Vec<Process>,
}

/// Processes that are counted together.
pub struct Part {
    pub name: &'static str,
    pub pids: Vec<i32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing between clients and site: how fast both are.
    Direct,
    HopTcp,
    HopHttp,
    /// Without its cache: nothing beside it has one.
    Culvert,
    /// With it.
    Caching,
    /// Two shards at each end.
    TwoShards,
    /// Both ends in one process, with cache and SSL bump.
    Squid,
    TlsPair,
    Rathole,
    Ssh,
}

impl Kind {
    pub const ALL: [Self; 10] = [
        Self::Direct,
        Self::HopTcp,
        Self::HopHttp,
        Self::Culvert,
        Self::Caching,
        Self::TwoShards,
        Self::Squid,
        Self::TlsPair,
        Self::Rathole,
        Self::Ssh,
    ];

    /// As `--only` takes it.
    pub fn key(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::HopTcp => "hop-tcp",
            Self::HopHttp => "hop-http",
            Self::Culvert => "culvert",
            Self::Caching => "culvert-cache",
            Self::TwoShards => "culvert-2",
            Self::Squid => "squid",
            Self::TlsPair => "tls-pair",
            Self::Rathole => "rathole",
            Self::Ssh => "ssh",
        }
    }

    pub fn title(self) -> &'static str {
        match self {
            Self::Direct => "no tunnel",
            Self::HopTcp => "HAProxy, one plain hop, TCP",
            Self::HopHttp => "HAProxy, one plain hop, HTTP",
            Self::Culvert => "Culvert",
            Self::Caching => "Culvert with its cache",
            Self::TwoShards => "Culvert, two shards an end",
            Self::Squid => "Squid, one hop with its cache",
            Self::TlsPair => "HAProxy pair, TLS between",
            Self::Rathole => "rathole (TLS)",
            Self::Ssh => "ssh -R",
        }
    }

    /// Starts it, with `line` between its ends.
    ///
    /// # Errors
    /// With what is missing, or why it does not run.
    pub fn start(self, place: &Place, line: Option<&Delay>) -> io::Result<System> {
        let folder = tempfile::Builder::new().tempdir_in(&place.folder)?.keep();
        let (target, parts) = match self {
            Self::Direct => (direct(place, line), Vec::new()),
            Self::HopTcp => hop(place, &folder, "tcp")?,
            Self::HopHttp => hop(place, &folder, "http")?,
            Self::Culvert => culvert(place, &folder, line, 1, false)?,
            Self::Caching => culvert(place, &folder, line, 1, true)?,
            Self::TwoShards => culvert(place, &folder, line, 2, false)?,
            Self::Squid => squid(place, &folder)?,
            Self::TlsPair => tls_pair(place, &folder, line)?,
            Self::Rathole => rathole(place, &folder, line)?,
            Self::Ssh => ssh(place, &folder, line)?,
        };
        let mut system = System {
            kind: self,
            target,
            parts: Vec::new(),
            _processes: Vec::new(),
        };
        for (name, pids, process) in parts {
            system.parts.push(Part { name, pids });
            system._processes.extend(process);
        }
        Ok(system)
    }
}

/// Where clients connect, and each part with its processes; the process that holds them, if no earlier part has it.
type Started = (SocketAddr, Vec<(&'static str, Vec<i32>, Option<Process>)>);

fn whole(name: &'static str, process: Process) -> (&'static str, Vec<i32>, Option<Process>) {
    (name, tree(process.id()), Some(process))
}

fn direct(place: &Place, line: Option<&Delay>) -> SocketAddr {
    line.map_or(place.origin, |line| {
        line.lead_to(place.origin);
        line.address
    })
}

/// Where the dialling end finds the other one.
fn meet(line: Option<&Delay>, listens: SocketAddr) -> SocketAddr {
    line.map_or(listens, |line| {
        line.lead_to(listens);
        line.address
    })
}

fn program(name: &str) -> io::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Where Debian has servers, and an ordinary user's PATH has not.
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
    folders
        .map(|folder: PathBuf| folder.join(name))
        .find(|path| path.is_file())
        .ok_or_else(|| io::Error::other(format!("{name} is not installed")))
}

// ── Culvert ───────────────────────────────────────────────────────────────────────────────────────────────────────

/// None of them fits what is measured, each is looked at for every request.
const RULES: [&str; 6] = [
    "--fast-fail-regexps",
    r"^https?://[^/]*\.(ads|metrics)\.example/,/beacon\?,\.mp4$",
    "--direct-domains",
    "cdn.example.com,*.fonts.example.com,video.example.net",
    "--no-ssl-bump-domains",
    "pinned.example.com,*.bank.example.com",
];

fn culvert(place: &Place, folder: &Path, line: Option<&Delay>, shards: usize, caches: bool) -> io::Result<Started> {
    let (shards, root) = (shards.to_string(), folder.join("root.pem"));
    fs::write(&root, &place.root)?;
    let state = folder.join("cloud");
    let proxy = free_port()?;
    let mut serve = Command::new(place.programs.join("sc-cloud"));
    serve.args([
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--endpoint-shards",
        &shards,
        "--state-dir",
    ]);
    serve.arg(&state);
    serve.args(["--proxy-ports", &format!("{0}-{0}", proxy.port())]);
    if let Some(line) = line {
        serve.args(["--public-address", &line.address.to_string()]);
    }
    let cloud = Process::start(&mut serve, "sc-cloud", folder)?;
    let rest: SocketAddr = cloud.line(|line| line.strip_prefix("REST: https://")?.split('/').next()?.parse().ok())?;
    let key = run(Command::new(place.programs.join("sc-cloud"))
        .args(["user", "add", "ada", "--state-dir"])
        .arg(&state))?;
    let dialled = meet(line, rest);
    let mut command = Command::new(place.programs.join("sc"));
    command.args([
        "-u",
        "ada",
        "-x",
        &format!("https://{dialled}/rest/v1"),
        "--shards",
        &shards,
    ]);
    if !caches {
        command.arg("-N");
    }
    command.args(RULES);
    command.env("SAUCE_AUTH", "staging.example.com:443:bench:bench");
    command.arg("--cacert-file").arg(&root);
    command.env("SAUCE_ACCESS_KEY", key);
    command.arg("--cainfo").arg(state.join("ca.pem"));
    command.arg("-l").arg(folder.join("sc.log"));
    command.arg("--pidfile").arg(folder.join("sc.pid"));
    let sc = Process::start(&mut command, "sc", folder)?;
    sc.line(|line| line.ends_with("you may start your tests.").then_some(()))?;
    let serve = cloud.id();
    let endpoint = tree(serve).split_off(1);
    if endpoint.is_empty() {
        return Err(io::Error::other("sc-cloud has no endpoint process"));
    }
    let parts = vec![
        whole("sc", sc),
        ("endpoint", endpoint, None),
        ("sc-cloud", vec![serve], Some(cloud)),
    ];
    Ok((proxy, parts))
}

// ── HAProxy ───────────────────────────────────────────────────────────────────────────────────────────────────────

fn haproxy(folder: &Path, name: &str, mode: &str, bind: &str, server: &str) -> io::Result<Process> {
    let file = folder.join(format!("{name}.cfg"));
    fs::write(
        &file,
        format!(
            "global\n    nbthread 1\n    maxconn 4096\ndefaults\n    mode {mode}\n    timeout connect 10s\n    \
             timeout client 60s\n    timeout server 60s\nlisten hop\n    bind {bind}\n    http-reuse always\n    \
             server site {server}\n"
        ),
    )?;
    Process::start(Command::new(program("haproxy")?).arg("-f").arg(&file), name, folder)
}

fn hop(place: &Place, folder: &Path, mode: &str) -> io::Result<Started> {
    let address = free_port()?;
    let mut hop = haproxy(folder, "haproxy", mode, &address.to_string(), &place.origin.to_string())?;
    hop.listens(address)?;
    Ok((address, vec![whole("hop", hop)]))
}

fn tls_pair(place: &Place, folder: &Path, line: Option<&Delay>) -> io::Result<Started> {
    let (front_at, back_at) = (free_port()?, free_port()?);
    let (certificate, both) = certificate(folder)?;
    let suite = "ciphersuites TLS_AES_256_GCM_SHA384 ssl-min-ver TLSv1.3";
    let bind = format!("{back_at} ssl crt {} {suite}", both.display());
    let mut back = haproxy(folder, "back", "tcp", &bind, &place.origin.to_string())?;
    back.listens(back_at)?;
    let server = format!(
        "{} ssl verify required ca-file {} {suite}",
        meet(line, back_at),
        certificate.display()
    );
    let mut front = haproxy(folder, "front", "tcp", &front_at.to_string(), &server)?;
    front.listens(front_at)?;
    Ok((front_at, vec![whole("front", front), whole("back", back)]))
}

/// A certificate for `localhost` that signs itself; alone, and with its key in one file.
fn certificate(folder: &Path) -> io::Result<(PathBuf, PathBuf)> {
    let (certificate, key, both) = (folder.join("cert.pem"), folder.join("key.pem"), folder.join("both.pem"));
    run(Command::new(program("openssl")?)
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
        ])
        .args([
            "-days",
            "2",
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=DNS:localhost",
        ])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&certificate))?;
    let text = fs::read_to_string(&certificate)? + &fs::read_to_string(&key)?;
    fs::write(&both, text)?;
    Ok((certificate, both))
}

// ── Squid ─────────────────────────────────────────────────────────────────────────────────────────────────────────

fn squid(place: &Place, folder: &Path) -> io::Result<Started> {
    const CERTIFICATES: &str = "/usr/lib/squid/security_file_certgen";
    let program_of_it = program("squid")?;
    if !Path::new(CERTIFICATES).is_file() {
        return Err(io::Error::other(
            "squid without SSL bump is installed: squid-openssl has it",
        ));
    }
    let (root, made) = (folder.join("root.pem"), folder.join("made"));
    fs::write(&root, &place.root)?;
    let (_, both) = certificate(folder)?;
    run(Command::new(CERTIFICATES)
        .arg("-c")
        .arg("-s")
        .arg(&made)
        .args(["-M", "4MB"]))?;
    // Started by root it works as a user of its own, who reads these and writes there.
    run(Command::new("chmod").arg("a+rX").arg(&place.folder))?;
    run(Command::new("chmod").args(["-R", "a+rwX"]).arg(folder))?;
    let (address, file, shown) = (free_port()?, folder.join("squid.conf"), folder.display());
    fs::write(
        &file,
        format!(
            "http_port {address} ssl-bump cert={} generate-host-certificates=on dynamic_cert_mem_cache_size=4MB\n\
             sslcrtd_program {CERTIFICATES} -s {} -M 4MB\nsslcrtd_children 1\n\
             ssl_bump bump all\ntls_outgoing_options cafile={}\nhttp_access allow all\n\
             cache_mem 64 MB\naccess_log none\ncache_log {shown}/squid.log\ncache_store_log none\n\
             pid_filename none\nvisible_hostname bench\ncoredump_dir {shown}\nshutdown_lifetime 0 seconds\n",
            both.display(),
            made.display(),
            root.display()
        ),
    )?;
    // It shares memory under the name of its service, which it must not find, and leaves it there when it is killed.
    let service = format!("bench{}", std::process::id());
    forget_shared(&service)?;
    let mut squid = Process::start(
        Command::new(program_of_it)
            .args(["-N", "-n", &service, "-f"])
            .arg(&file),
        "squid",
        folder,
    )?;
    squid.listens(address)?;
    forget_shared(&service)?;
    Ok((address, vec![whole("squid", squid)]))
}

/// Takes the names away under which a service shares memory: who has it open keeps it.
fn forget_shared(service: &str) -> io::Result<()> {
    for entry in fs::read_dir("/dev/shm")? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&format!("{service}-")) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

// ── rathole ───────────────────────────────────────────────────────────────────────────────────────────────────────

fn rathole(place: &Place, folder: &Path, line: Option<&Delay>) -> io::Result<Started> {
    const PASSWORD: &str = "bench";
    let program_of_it = place
        .rathole
        .clone()
        .ok_or_else(|| io::Error::other("rathole is not installed"))?;
    let (certificate, both) = certificate(folder)?;
    let identity = folder.join("identity.pfx");
    run(Command::new(program("openssl")?)
        .args(["pkcs12", "-export", "-passout", &format!("pass:{PASSWORD}"), "-in"])
        .arg(&both)
        .arg("-out")
        .arg(&identity))?;
    let (visitors, control) = (free_port()?, free_port()?);
    let dialled = meet(line, control);
    let (server_file, client_file) = (folder.join("server.toml"), folder.join("client.toml"));
    fs::write(
        &server_file,
        format!(
            "[server]\nbind_addr = \"{control}\"\ndefault_token = \"bench\"\n[server.transport]\ntype = \"tls\"\n\
             [server.transport.tls]\npkcs12 = \"{}\"\npkcs12_password = \"{PASSWORD}\"\n[server.services.site]\n\
             bind_addr = \"{visitors}\"\n",
            identity.display()
        ),
    )?;
    fs::write(
        &client_file,
        format!(
            "[client]\nremote_addr = \"{dialled}\"\ndefault_token = \"bench\"\n[client.transport]\ntype = \"tls\"\n\
             [client.transport.tls]\ntrusted_root = \"{}\"\nhostname = \"localhost\"\n[client.services.site]\n\
             local_addr = \"{}\"\n",
            certificate.display(),
            place.origin
        ),
    )?;
    let start = |file: &Path, name| {
        let mut command = Command::new(&program_of_it);
        Process::start(command.arg(file).env("TOKIO_WORKER_THREADS", "1"), name, folder)
    };
    let mut server = start(&server_file, "rathole-server")?;
    server.listens(control)?;
    let client = start(&client_file, "rathole-client")?;
    server.listens(visitors)?;
    Ok((visitors, vec![whole("client", client), whole("server", server)]))
}

// ── ssh ───────────────────────────────────────────────────────────────────────────────────────────────────────────

const SSH_CIPHER: &str = "aes256-gcm@openssh.com";

fn ssh(place: &Place, folder: &Path, line: Option<&Delay>) -> io::Result<Started> {
    let sshd = program("sshd")?;
    for name in ["host", "user"] {
        run(Command::new(program("ssh-keygen")?)
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(folder.join(name)))?;
    }
    let (visitors, listens) = (free_port()?, free_port()?);
    let (file, shown) = (folder.join("sshd_config"), folder.display());
    fs::write(
        &file,
        format!(
            "ListenAddress {listens}\nHostKey {shown}/host\nAuthorizedKeysFile {shown}/user.pub\nPidFile none\n\
             StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n\
             Ciphers {SSH_CIPHER}\n"
        ),
    )?;
    if rustix::process::geteuid().is_root() {
        // What its service makes; sshd does not start without it.
        fs::create_dir_all("/run/sshd")?;
    }
    let mut server = Process::start(Command::new(sshd).args(["-D", "-e", "-f"]).arg(&file), "sshd", folder)?;
    server.listens(listens)?;
    let dialled = meet(line, listens);
    let mut command = Command::new(program("ssh")?);
    command.args([
        "-N",
        "-F",
        "none",
        "-p",
        &dialled.port().to_string(),
        "-c",
        SSH_CIPHER,
        "-i",
    ]);
    command.arg(folder.join("user"));
    for option in [
        "BatchMode=yes",
        "IdentitiesOnly=yes",
        "StrictHostKeyChecking=no",
        "UserKnownHostsFile=/dev/null",
        "ExitOnForwardFailure=yes",
    ] {
        command.args(["-o", option]);
    }
    command.args(["-R", &format!("{visitors}:{}", place.origin), "127.0.0.1"]);
    let client = Process::start(&mut command, "ssh", folder)?;
    server.listens(visitors)?;
    Ok((visitors, vec![whole("ssh", client), whole("sshd", server)]))
}
