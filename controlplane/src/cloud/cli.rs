//! The command line of `sc-cloud`.

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use dataplane::limits::{self, LOG_FLUSH_MAX, STREAMS_OPTION_MAX};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::accounts::{self, AddError};
use super::limits::{LOST_AFTER, ORPHANED_MAX, POOL_RELOAD_MAX, SHARDS_MAX};
use super::messages::EndpointTimes;
use super::outside::{LOOPBACK, Network};
use super::{Driver, EXIT_INTERNAL, Failure, Options, guest, open_store, serve, unix_now};
use crate::duration;
use crate::log::Log;

const MIB: usize = 1024 * 1024;

const EXIT_CODES: &str =
    "Exit codes: 0 clean, 1 internal error, 2 usage, 7 a port, file, folder or io_uring cannot be had.";

#[derive(Parser)]
#[command(
    name = "sc-cloud",
    version,
    about = "The cloud side of Culvert: REST API and tunnel endpoints."
)]
#[command(after_help = EXIT_CODES)]
struct Arguments {
    #[command(subcommand)]
    command: Subcommands,
}

#[derive(Subcommand)]
enum Subcommands {
    /// Serves the REST API and the tunnels
    Serve(Box<ServeArguments>),
    /// Accounts
    #[command(subcommand)]
    User(UserCommands),
    /// The process of a tunnel or pool; started by `serve`
    #[command(hide = true)]
    Endpoint,
}

#[derive(Subcommand)]
enum UserCommands {
    /// Makes an account and prints its access key, which is kept nowhere
    Add {
        /// 1 to 64 of: letters, digits, `.`, `_`, `-`
        name: String,
        #[command(flatten)]
        state: StateArgument,
    },
}

#[derive(clap::Args)]
struct StateArgument {
    /// Folder of the store, the CA and the endpoints' files [default: /var/lib/culvert, or the user's XDG state folder]
    #[arg(long, value_name = "FOLDER")]
    state_dir: Option<PathBuf>,
}

#[derive(clap::Args)]
struct ServeArguments {
    #[command(flatten)]
    state: StateArgument,
    /// The public port, for REST and links [default: 443, or 8443 without the right to]
    #[arg(long, value_name = "[ADDRESS:]PORT", value_parser = listen_address)]
    listen: Option<SocketAddr>,
    /// A further name of this host in the certificate of REST
    #[arg(long, value_name = "NAME")]
    hostname: Vec<String>,
    /// What `sc` dials, if not the address by which it reached REST
    #[arg(long, value_name = "HOST:PORT", value_parser = public_address)]
    public_address: Option<String>,
    /// Address of the proxy ports
    #[arg(long, value_name = "ADDRESS", default_value_t = Ipv4Addr::LOCALHOST)]
    proxy_address: Ipv4Addr,
    /// One for each tunnel or pool: where its browsers connect
    #[arg(long, value_name = "FIRST-LAST", default_value = "20000-29999", value_parser = port_range)]
    proxy_ports: RangeInclusive<u16>,
    /// IPv4 networks that browsers may come from, separated by commas; anybody else is told that they may not. To be
    /// named with a --proxy-address beyond loopback [default: 127.0.0.0/8]
    #[arg(long, value_name = "CIDR,…", value_delimiter = ',')]
    proxy_networks: Vec<Network>,
    /// Networks that browsers may reach without the tunnel (-D, -t of `sc`), beside the internet, separated by commas
    #[arg(long, value_name = "CIDR,…", value_delimiter = ',')]
    direct_networks: Vec<Network>,
    /// Threads that move bytes, of each endpoint
    #[arg(long, value_name = "N", default_value_t = 1)]
    endpoint_shards: usize,
    /// Streams that one endpoint may have open; more than the default need --memory-max
    #[arg(long, value_name = "N", default_value_t = limits::ENDPOINT_STREAMS_MAX)]
    max_streams: usize,
    /// Memory of one endpoint, in MiB: its buffers shrink to fit, and slow readers then slow others down earlier
    /// [default: what the other options need with as many streams as by default and buffers of full size]
    #[arg(long, value_name = "MIB", value_parser = mebibytes)]
    memory_max: Option<usize>,
    /// Seconds that new rules of one tunnel of a pool wait for the same rules of the others
    #[arg(long, value_name = "SECONDS", default_value_t = POOL_RELOAD_MAX.as_secs())]
    pool_reload_max: u64,
    #[command(flatten)]
    times: TimeArguments,
    /// How endpoints wait for the kernel; io_uring: and nothing else, auto: io_uring if it can be had
    #[arg(long, value_enum, default_value_t)]
    driver: Driver,
}

/// What is promised, or protects the cloud, can only be made shorter.
#[derive(clap::Args)]
struct TimeArguments {
    /// A browser's request head must be complete, else 408 [default: 30s, the most]
    #[arg(long, value_name = "TIME", value_parser = up_to(limits::HEAD_TIME_MAX))]
    browser_head_timeout: Option<Duration>,
    /// A browser may pause within its request body, else 408 [default: 60s, the most]
    #[arg(long, value_name = "TIME", value_parser = up_to(limits::BODY_PAUSE_MAX))]
    browser_body_timeout: Option<Duration>,
    /// A browser's connection without a request is kept [default: 5m, the most]
    #[arg(long, value_name = "TIME", value_parser = up_to(limits::KEEP_ALIVE_IDLE_MAX))]
    browser_idle_timeout: Option<Duration>,
    /// Streams outlive an outage of their link, and requests wait for one; `sc` has its own, and the shorter one counts
    /// [default: 45s, the most]
    #[arg(long, value_name = "TIME", value_parser = up_to(limits::RESUME_WINDOW))]
    resume_window: Option<Duration>,
    /// Streams of a deleted tunnel whose client waits for its jobs [default: 5m, the most]
    #[arg(long, value_name = "TIME", value_parser = up_to(limits::DRAIN_MAX))]
    drain_timeout: Option<Duration>,
    /// A tunnel without link and heartbeat is kept [default: 90s, the most]
    #[arg(long, value_name = "TIME", value_parser = up_to(LOST_AFTER))]
    lost_timeout: Option<Duration>,
    /// An endpoint whose `serve` is gone waits for another one; then it drains and leaves [default: 90s, the most]
    #[arg(long, value_name = "TIME", value_parser = up_to(ORPHANED_MAX))]
    orphan_timeout: Option<Duration>,
}

impl TimeArguments {
    fn of_endpoints(&self) -> EndpointTimes {
        EndpointTimes {
            browser_head: self.browser_head_timeout.unwrap_or(limits::HEAD_TIME_MAX),
            browser_body: self.browser_body_timeout.unwrap_or(limits::BODY_PAUSE_MAX),
            browser_idle: self.browser_idle_timeout.unwrap_or(limits::KEEP_ALIVE_IDLE_MAX),
            resume_window: self.resume_window.unwrap_or(limits::RESUME_WINDOW),
            orphaned: self.orphan_timeout.unwrap_or(ORPHANED_MAX),
        }
    }
}

/// Reads a time limit of at most `max`.
fn up_to(max: Duration) -> impl Fn(&str) -> Result<Duration, String> + Clone + Send + Sync + 'static {
    move |text| duration::limit(text, max)
}

/// Runs the program.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match arguments.command {
        Subcommands::Serve(arguments) => options(*arguments).and_then(|options| {
            let _log = Log::to_stderr().map_err(Failure::internal)?;
            serve(options)
        }),
        Subcommands::User(UserCommands::Add { name, state }) => add_user(&name, state),
        Subcommands::Endpoint => guest::run().map_err(|text| Failure {
            code: EXIT_INTERNAL,
            text,
        }),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // Nobody reads it: the code still says what it was.
            let _ = last_line(&failure.text);
            ExitCode::from(failure.code)
        }
    }
}

/// Why the program ends, to standard error; a reader that stalls does not keep it from ending.
fn last_line(text: &str) -> io::Result<()> {
    let wait = Timespec::try_from(LOG_FLUSH_MAX).map_err(io::Error::other)?;
    let mut stderr = io::stderr();
    if poll(&mut [PollFd::new(&stderr, PollFlags::OUT)], Some(&wait))? > 0 {
        writeln!(stderr, "sc-cloud: {text}")?;
    }
    Ok(())
}

fn add_user(name: &str, state: StateArgument) -> Result<(), Failure> {
    let connection = open_store(&state_dir(state)?)?;
    let key = accounts::add(&connection, name, unix_now()).map_err(|e| match e {
        AddError::Name => Failure::usage(format!(
            "{name:?} is no user name: 1 to 64 letters, digits, '.', '_', '-'"
        )),
        AddError::Exists => Failure::usage(format!("user {name} exists already")),
        AddError::Randomness => Failure::internal("the system gives no random numbers"),
        AddError::Store(e) => Failure::local(format!("the store: {e}")),
    })?;
    writeln!(io::stdout(), "{}", key.expose()).map_err(Failure::internal)?;
    let _ = writeln!(
        io::stderr(),
        "User {name} added; the access key is shown only this once."
    );
    Ok(())
}

fn state_dir(argument: StateArgument) -> Result<PathBuf, Failure> {
    if let Some(folder) = argument.state_dir {
        return std::path::absolute(&folder).map_err(|e| Failure::usage(format!("--state-dir: {e}")));
    }
    if rustix::process::geteuid().is_root() {
        return Ok("/var/lib/culvert".into());
    }
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    absolute("XDG_STATE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))
        .map(|folder| folder.join("culvert"))
        .ok_or_else(|| Failure::usage("neither HOME nor XDG_STATE_HOME is set: --state-dir is needed"))
}

fn options(arguments: ServeArguments) -> Result<Options, Failure> {
    let shards = arguments.endpoint_shards;
    if !(1..=SHARDS_MAX).contains(&shards) {
        return Err(Failure::usage(format!("--endpoint-shards: 1 to {SHARDS_MAX}")));
    }
    if !(shards..=STREAMS_OPTION_MAX).contains(&arguments.max_streams) {
        return Err(Failure::usage(format!(
            "--max-streams: {shards} (the shards) to {STREAMS_OPTION_MAX}"
        )));
    }
    let streams = arguments.max_streams;
    let needs = |streams| limits::endpoint_memory_bytes(streams, shards);
    let (memory_bytes, fits) = match arguments.memory_max.map(|mib| mib * MIB) {
        Some(memory) => (memory, limits::endpoint_pools(memory, streams, shards).map(drop)),
        None if streams > limits::ENDPOINT_STREAMS_MAX => (0, Err(needs(streams))),
        None => (needs(limits::ENDPOINT_STREAMS_MAX), Ok(())),
    };
    if let Err(needed) = fits {
        return Err(Failure::usage(format!(
            "--memory-max: endpoints of {shards} shards and {streams} streams (--max-streams) need {} MiB",
            needed.div_ceil(MIB)
        )));
    }
    let (address, mut networks) = (arguments.proxy_address, arguments.proxy_networks);
    if networks.is_empty() {
        if !address.is_loopback() {
            return Err(Failure::usage(format!(
                "--proxy-address {address}: name the networks that browsers come from, such as \
                 --proxy-networks 10.0.0.0/8 (0.0.0.0/0 for everybody who can reach it)"
            )));
        }
        networks.push(LOOPBACK);
    }
    if let Some(network) = networks.iter().find(|network| !network.is_ipv4()) {
        return Err(Failure::usage(format!(
            "--proxy-networks {network}: proxy ports are IPv4, and no browser comes from there: name IPv4 networks"
        )));
    }
    if address.is_loopback() && !networks.iter().any(|network| network.meets(&LOOPBACK)) {
        return Err(Failure::usage(format!(
            "--proxy-networks: browsers that reach --proxy-address {address} come from {LOOPBACK}: name that as well, \
             or another --proxy-address"
        )));
    }
    Ok(Options {
        state: state_dir(arguments.state)?,
        listen: arguments.listen,
        hostnames: arguments.hostname,
        public_address: arguments.public_address,
        proxy_address: address,
        proxy_ports: arguments.proxy_ports,
        proxy_networks: networks,
        direct_networks: arguments.direct_networks,
        endpoint_shards: shards,
        max_streams: streams,
        memory_bytes,
        pool_reload_max: Duration::from_secs(arguments.pool_reload_max),
        times: arguments.times.of_endpoints(),
        drain_timeout: arguments.times.drain_timeout.unwrap_or(limits::DRAIN_MAX),
        lost_timeout: arguments.times.lost_timeout.unwrap_or(LOST_AFTER),
        driver: arguments.driver,
    })
}

fn mebibytes(text: &str) -> Result<usize, String> {
    let most = limits::MEMORY_OPTION_MIB_MAX;
    let number = text.parse().ok().filter(|n| (1..=most).contains(n));
    number.ok_or_else(|| format!("a number from 1 to {most} is needed"))
}

fn listen_address(text: &str) -> Result<SocketAddr, String> {
    if let Ok(port) = text.parse::<u16>() {
        return Ok((Ipv4Addr::UNSPECIFIED, port).into());
    }
    text.parse().map_err(|_| "PORT or ADDRESS:PORT is needed".into())
}

fn port_range(text: &str) -> Result<RangeInclusive<u16>, String> {
    let bad = || "FIRST-LAST is needed, both from 1 to 65535".to_owned();
    let (first, last) = text.split_once('-').ok_or_else(bad)?;
    let (first, last) = (first.parse().map_err(|_| bad())?, last.parse().map_err(|_| bad())?);
    if first == 0 || first > last {
        return Err(bad());
    }
    Ok(first..=last)
}

fn public_address(text: &str) -> Result<String, String> {
    let bad = || "HOST:PORT is needed".to_owned();
    let (host, port) = text.rsplit_once(':').ok_or_else(bad)?;
    port.parse::<u16>().ok().filter(|p| *p > 0).ok_or_else(bad)?;
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let is_address = bare.is_some_and(|h| h.parse::<IpAddr>().is_ok());
    let is_name = !host.is_empty()
        && host
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-'));
    if is_address || is_name {
        Ok(text.to_owned())
    } else {
        Err(bad())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Options, Failure> {
        let all = ["sc-cloud", "serve", "--state-dir", "/tmp/x"].iter().chain(arguments);
        match Arguments::try_parse_from(all)
            .map_err(|e| Failure::usage(e.to_string()))?
            .command
        {
            Subcommands::Serve(arguments) => options(*arguments),
            _ => Err(Failure::internal("another command")),
        }
    }

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory;
        Arguments::command().debug_assert();
    }

    #[test]
    fn defaults_and_values() {
        let plain = parse(&[]).unwrap();
        assert_eq!(
            (plain.listen, plain.endpoint_shards, plain.max_streams),
            (None, 1, 8_192)
        );
        assert_eq!(
            (plain.proxy_ports, plain.proxy_address),
            (20_000..=29_999, Ipv4Addr::LOCALHOST)
        );
        assert_eq!(plain.proxy_networks, ["127.0.0.0/8".parse().unwrap()]);
        let open = parse(&["--proxy-address", "0.0.0.0", "--proxy-networks", "10.0.0.0/8,10.1.1.1"]).unwrap();
        assert_eq!(
            open.proxy_networks,
            ["10.0.0.0/8", "10.1.1.1/32"].map(|network| network.parse().unwrap())
        );
        for networks in ["10.0.0.0/8,127.9.9.9", "0.0.0.0/0"] {
            assert!(parse(&["--proxy-networks", networks]).is_ok(), "{networks}");
        }
        let given = parse(&["--listen", "9000", "--driver", "io_uring", "--proxy-ports", "5-5"]).unwrap();
        assert_eq!(given.listen.unwrap().to_string(), "0.0.0.0:9000");
        assert_eq!((given.driver, given.proxy_ports), (Driver::IoUring, 5..=5));
        assert_eq!(
            parse(&["--public-address", "[::1]:9"])
                .unwrap()
                .public_address
                .as_deref(),
            Some("[::1]:9")
        );
    }

    #[test]
    fn by_default_an_endpoint_has_buffers_of_full_size() {
        for arguments in [&[][..], &["--endpoint-shards", "4"], &["--max-streams", "100"]] {
            let o = parse(arguments).unwrap();
            let full = limits::endpoint_pools(usize::MAX, o.max_streams, o.endpoint_shards);
            let pools = limits::endpoint_pools(o.memory_bytes, o.max_streams, o.endpoint_shards);
            assert_eq!(pools, full, "{arguments:?}");
        }
    }

    #[test]
    fn what_does_not_fit_is_named() {
        for (arguments, named) in [
            (["--listen", "x"], "--listen"),
            (["--proxy-ports", "9-8"], "--proxy-ports"),
            (["--proxy-ports", "0-8"], "--proxy-ports"),
            (["--proxy-networks", "10.0.0.0/33"], "--proxy-networks"),
            (
                ["--proxy-networks", "127.0.0.0/8,fd00::/8"],
                "fd00::/8: proxy ports are IPv4",
            ),
            (["--proxy-networks", "10.0.0.0/8"], "127.0.0.1 come from 127.0.0.0/8"),
            (["--proxy-address", "0.0.0.0"], "--proxy-networks"),
            (["--public-address", "host"], "--public-address"),
            (["--endpoint-shards", "0"], "--endpoint-shards"),
            (["--max-streams", "8193"], "--max-streams"),
            (["--memory-max", "100"], "streams (--max-streams) need"),
            (["--memory-max", "0"], "1 to 1048576"),
            (["--driver", "kqueue"], "--driver"),
            (["--browser-head-timeout", "31s"], "--browser-head-timeout"),
            (["--browser-body-timeout", "61s"], "--browser-body-timeout"),
            (["--browser-idle-timeout", "301s"], "--browser-idle-timeout"),
            (["--resume-window", "46s"], "from 100ms to 45s"),
            (["--drain-timeout", "0"], "--drain-timeout"),
            (["--lost-timeout", "soon"], "--lost-timeout"),
            (["--orphan-timeout", "91s"], "--orphan-timeout"),
        ] {
            let failure = parse(&arguments).unwrap_err();
            assert!(failure.text.contains(named), "{}", failure.text);
        }
    }
}
