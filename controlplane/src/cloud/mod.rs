//! `sc-cloud`: the REST API, the public port, and one endpoint process for each tunnel or pool of tunnels.
//!
//! ```text
//!  sc ──► front ──┬─► rest ──► registry ──► launcher ══ control socket ══► guest (endpoint process)
//!                 └─ link's socket ────────────┘                             ▲
//!  browsers ──► broker ══ sockets ═══════════════════════════════════════════┘
//! ```

pub mod accounts;
pub mod adoption;
pub mod agreement;
pub mod authority;
pub mod broker;
pub mod bucket;
pub mod cli;
pub mod dials;
pub mod front;
pub mod guest;
pub mod hello;
pub mod history;
pub mod launcher;
pub mod ledger;
pub mod limits;
pub mod messages;
pub mod outside;
pub mod pid;
pub mod probe;
pub mod process;
pub mod registry;
pub mod rest;
pub mod sandbox;
pub mod seqpacket;
pub mod store;
pub mod succession;
pub mod tunnel_ca;

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::error::TrySendError;
use tokio_rustls::TlsAcceptor;

use crate::runtime::{self, Runtime};
use authority::{Authority, Origin};
use broker::Ports;
use ledger::KeptTunnel;
use limits::{DRAIN_MAX, LOST_CHECK, SHUTDOWN_MAX};
use messages::EndpointTimes;
use outside::{Network, Outside};
use registry::{Command, Registry};
use store::Store;
use succession::Served;

/// A local port, file or folder cannot be had.
pub const EXIT_LOCAL_RESOURCE: u8 = 7;
/// The command line does not fit.
pub const EXIT_USAGE: u8 = 2;
/// A fault of this program.
pub const EXIT_INTERNAL: u8 = 1;

/// Where `serve` listens without `--listen`, and where it does without the right to.
const PORT: u16 = 443;
const PORT_UNPRIVILEGED: u16 = 8443;

/// Why a command could not do its work: one line, and the exit code.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    pub code: u8,
    pub text: String,
}

impl Failure {
    fn local(text: String) -> Self {
        let code = EXIT_LOCAL_RESOURCE;
        Self { code, text }
    }

    fn usage(text: impl Into<String>) -> Self {
        Self {
            code: EXIT_USAGE,
            text: text.into(),
        }
    }

    fn internal(e: impl ToString) -> Self {
        Self {
            code: EXIT_INTERNAL,
            text: e.to_string(),
        }
    }
}

/// Which kernel interface the shards of endpoints use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Driver {
    /// io_uring, else epoll.
    #[default]
    Auto,
    #[value(name = "io_uring", alias = "io-uring")]
    IoUring,
    Epoll,
}

impl Driver {
    /// As `--driver` and the endpoint's configuration spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::IoUring => "io_uring",
            Self::Epoll => "epoll",
        }
    }
}

/// `sc-cloud serve`, resolved.
#[derive(Clone, Debug)]
pub struct Options {
    pub state: PathBuf,
    pub listen: Option<SocketAddr>,
    /// Further names of this host in the certificate of REST.
    pub hostnames: Vec<String>,
    /// `host:port` that `sc` dials, if not the one by which it reached REST.
    pub public_address: Option<String>,
    pub proxy_address: Ipv4Addr,
    pub proxy_ports: RangeInclusive<u16>,
    /// Where browsers may come from.
    pub proxy_networks: Vec<Network>,
    /// What browsers may reach without the tunnel, beside the internet.
    pub direct_networks: Vec<Network>,
    pub endpoint_shards: usize,
    pub max_streams: usize,
    /// What one endpoint stays within.
    pub memory_bytes: usize,
    /// Rules that one tunnel of a pool sends wait this long for those of the others.
    pub pool_reload_max: Duration,
    pub driver: Driver,
    pub times: EndpointTimes,
    /// Streams of a deleted tunnel whose client waits for its jobs.
    pub drain_timeout: Duration,
    /// A tunnel without link and heartbeat is kept this long.
    pub lost_timeout: Duration,
}

/// What all tasks of the control thread share.
pub struct Cloud {
    pub options: Options,
    pub store: Store,
    pub tls: TlsAcceptor,
    /// Signs the CA of each endpoint.
    pub authority: Authority,
    /// Held, so that there is one `serve` for each state folder.
    lock: File,
    /// What is dialled for endpoints.
    pub outside: Outside,
    registry: Mutex<Registry>,
    ports: Mutex<Ports>,
}

impl Cloud {
    /// The live tunnels. Never held over an await or a second call.
    pub fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The proxy ports. Never held over an await.
    pub fn ports(&self) -> MutexGuard<'_, Ports> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a tunnel out of service; its streams may go on for `limit`, or for less if an earlier call said so. When
    /// this returns, the next `serve` would know it, too.
    pub async fn halt(&self, id: &str, reason: &str, by_user: bool, limit: Duration) {
        let halted = self.halt_unwritten(id, reason, by_user, limit);
        if let Err(e) = ledger::save(&self.store, halted.into_iter().collect()).await {
            tracing::error!("the store: {e}");
        }
    }

    /// As [`Cloud::halt`]; what comes back is still to be written.
    pub fn halt_unwritten(&self, id: &str, reason: &str, by_user: bool, limit: Duration) -> Option<KeptTunnel> {
        let (commands, kept) = {
            let mut registry = self.registry();
            if registry.halt(id, reason, by_user, unix_now(), limit) {
                tracing::info!(tunnel = id, reason, "halting");
            }
            (registry.commands(id)?, registry.kept(id))
        };
        let tunnel = id.to_owned();
        if let Err(TrySendError::Full(command)) = commands.try_send(Command::Drain { tunnel, limit }) {
            tokio::spawn(async move { commands.send(command).await });
        }
        kept
    }
}

/// Unix seconds.
pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// Makes the state folder, for this user only.
fn make_state(state: &Path) -> Result<(), Failure> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(state);
    made.map_err(|e| Failure::local(format!("cannot make the state folder {}: {e}", state.display())))
}

/// Holds the state folder for as long as the file is open: a second `serve` would adopt the endpoints of the first.
fn hold(state: &Path) -> Result<File, Failure> {
    make_state(state)?;
    let path = state.join("serve.lock");
    let file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(&path)
        .map_err(|e| Failure::local(format!("cannot write {}: {e}", path.display())))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let text = format!("another sc-cloud serves from {}", state.display());
            Err(Failure::local(text))
        }
        Err(e) => Err(Failure::local(format!("cannot lock {}: {e}", path.display()))),
    }
}

fn open_store(state: &Path) -> Result<rusqlite::Connection, Failure> {
    make_state(state)?;
    let path = state.join("culvert.db");
    // SQLite would make it readable to all, and the folder may have been there before, with other rights.
    let private = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(&path);
    private.map_err(|e| Failure::local(format!("cannot write {}: {e}", path.display())))?;
    store::open(&path).map_err(|e| Failure::local(format!("cannot use the store {}: {e}", path.display())))
}

/// Runs the cloud until SIGINT or SIGTERM.
///
/// # Errors
/// What stands in the way of a start.
pub fn serve(options: Options) -> Result<(), Failure> {
    raise_fd_limit();
    let runtime = Runtime::new().map_err(Failure::internal)?;
    if let Some(e) = runtime.refused() {
        if options.driver == Driver::IoUring {
            return Err(Failure::local(runtime::refusal(e)));
        }
        tracing::info!("io_uring is refused here: the control thread runs on epoll");
    }
    runtime.block_on(async {
        let lock = hold(&options.state)?;
        let served = Served::last(&lock);
        let connection = open_store(&options.state)?;
        let authority = Authority::open(&options.state)
            .map_err(|e| Failure::local(format!("cannot use the CA in {}: {e}", options.state.display())))?;
        process::prepare(&options.state)
            .map_err(|e| Failure::local(format!("cannot use {}: {e}", options.state.display())))?;
        let listener = listen(options.listen).await?;
        let names = names(&options);
        let tls = authority.server_config(&names).map_err(Failure::usage)?;
        let store = Store::start(connection).map_err(Failure::internal)?;
        let public_port = listener.local_addr().map_err(Failure::internal)?.port();
        let cloud = Arc::new(Cloud {
            lock,
            outside: Outside::new(
                options.direct_networks.clone(),
                public_port,
                options.proxy_ports.clone(),
            ),
            registry: Mutex::default(),
            ports: Mutex::new(Ports::new(
                options.proxy_address,
                options.proxy_ports.clone(),
                &options.proxy_networks,
            )),
            tls: TlsAcceptor::from(tls),
            authority,
            store,
            options,
        });
        // Before the first request: what it asks for is there then.
        let taken_over = succession::take_over(&cloud, &served).await;
        taken_over.map_err(Failure::internal)?;
        announce(&cloud.options, &cloud.authority, &listener).map_err(Failure::internal)?;
        run(cloud, listener).await
    })
}

/// The lines that a person, and whoever starts this program, waits for.
fn announce(options: &Options, authority: &Authority, listener: &TcpListener) -> io::Result<()> {
    use io::Write;
    let mut own = listener.local_addr()?.to_string();
    if listener.local_addr()?.ip().is_unspecified() {
        own = format!("{}:{}", hostname(), listener.local_addr()?.port());
    }
    let address = options
        .public_address
        .as_ref()
        .filter(|_| options.listen.is_none())
        .unwrap_or(&own);
    let mut out = io::stdout().lock();
    let what = match authority.origin {
        Origin::Found => None,
        Origin::Made => Some("New CA"),
        Origin::Renewed => Some("Renewed CA, the old file is still good for --cainfo"),
    };
    if let Some(what) = what {
        let path = options.state.join("ca.pem");
        writeln!(out, "{what}: {} (SHA-256 {})", path.display(), authority.fingerprint())?;
    }
    writeln!(out, "REST: https://{address}/rest/v1")?;
    out.flush()
}

async fn run(cloud: Arc<Cloud>, listener: TcpListener) -> Result<(), Failure> {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Failure::internal)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(Failure::internal)?;
    let front = tokio::spawn(front::run(Arc::clone(&cloud), listener));
    let watch = tokio::spawn(watch(Arc::clone(&cloud)));
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    tracing::info!(
        "ending: tunnels get {} s, a second signal ends at once",
        SHUTDOWN_MAX.as_secs()
    );
    front.abort();
    watch.abort();
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        () = tokio::time::sleep(SHUTDOWN_MAX) => tracing::warn!("endpoints did not end in time"),
        () = end_tunnels(&cloud) => tracing::info!("all tunnels have ended"),
    }
    Ok(())
}

/// Ends all tunnels and waits until they are gone.
async fn end_tunnels(cloud: &Cloud) {
    let ids = cloud.registry().ids();
    for id in ids {
        // The next start of this cloud would call it so, too: its `sc` asks for a new tunnel then.
        cloud.halt(&id, "lost", false, DRAIN_MAX).await;
    }
    loop {
        let next = {
            let registry = cloud.registry();
            registry.ids().first().and_then(|id| registry.commands(id))
        };
        match next {
            // Closed as soon as the tunnel's task has ended.
            Some(commands) => commands.closed().await,
            None => return,
        }
        tokio::task::yield_now().await;
    }
}

/// Halts tunnels whose member has gone without a word, and shows that this process lives.
async fn watch(cloud: Arc<Cloud>) {
    let mut tick = tokio::time::interval(LOST_CHECK);
    loop {
        tick.tick().await;
        Served::note(&cloud.lock);
        let lost = cloud.registry().lost(Instant::now(), cloud.options.lost_timeout);
        for id in lost {
            cloud.halt(&id, "lost", false, DRAIN_MAX).await;
        }
    }
}

async fn listen(wanted: Option<SocketAddr>) -> Result<TcpListener, Failure> {
    let fails = |address: SocketAddr, e: io::Error| Failure::local(format!("cannot listen on {address}: {e}"));
    if let Some(address) = wanted {
        return TcpListener::bind(address).await.map_err(|e| fails(address, e));
    }
    let any = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    match TcpListener::bind(any(PORT)).await {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            let address = any(PORT_UNPRIVILEGED);
            TcpListener::bind(address).await.map_err(|e| fails(address, e))
        }
        bound => bound.map_err(|e| fails(any(PORT), e)),
    }
}

/// Every name by which a client may call this host.
fn names(options: &Options) -> Vec<String> {
    let mut names = vec!["localhost".into(), "127.0.0.1".into(), "::1".into(), hostname()];
    names.extend(options.hostnames.iter().cloned());
    names.extend(
        options
            .listen
            .filter(|a| !a.ip().is_unspecified())
            .map(|a| a.ip().to_string()),
    );
    let public = options.public_address.as_ref().and_then(|a| a.rsplit_once(':'));
    names.extend(public.map(|(host, _)| host.trim_matches(['[', ']']).to_owned()));
    names.sort();
    names.dedup();
    names
}

fn hostname() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let usable = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.');
    let name = name.trim();
    if !name.is_empty() && name.bytes().all(usable) {
        return name.to_owned();
    }
    "localhost".into()
}

/// Each connection costs a descriptor, and a soft limit of 1,024 is still common.
fn raise_fd_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(e) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!("the limit of open files stays at {:?}: {e}", limit.current);
    }
}
