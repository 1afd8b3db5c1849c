//! `sc`'s configuration: command line, environment and files become one whole [`Config`], or one sentence why not.

mod auth;
mod file;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dataplane::client::Driver;
use dataplane::limits::{
    DRAIN_MAX, ENDPOINT_STREAMS_MAX, LINKS_MAX, LOST_AFTER, MEMORY_OPTION_MIB_MAX, NAME_BYTES_MAX, RESUME_WINDOW,
    SHARDS_DEFAULT_MAX, SHARDS_MAX, SITE_TIME_MAX, STREAMS_OPTION_MAX, client_memory_bytes, client_pools,
};
use dataplane::rules::{Domains, FastFail};
use dataplane::settings::Times;
use reqwest::Url;

use self::auth::Auth;
use self::file::Lines;
use crate::cli::Args;
use crate::duration;
use crate::secret::Secret;

const MIB: usize = 1024 * 1024;

/// Everything that `sc` needs to run, resolved.
#[derive(Debug)]
pub struct Config {
    /// Account whose tunnel it is.
    pub user: String,
    /// Its access key.
    pub key: Secret,
    /// Base of the REST API, without a slash at the end.
    pub rest_url: Url,
    /// Name of the tunnel; none makes it serve all jobs that name none.
    pub identifier: Option<String>,
    /// Lives beside others of the same name and shares the load with them.
    pub tunnel_pool: bool,
    /// Where the log goes.
    pub logfile: Place,
    /// Where the pid goes.
    pub pidfile: Place,
    /// File that exists while the tunnel is ready.
    pub readyfile: Option<PathBuf>,
    /// How often `-v` was given.
    pub verbose: u8,
    /// Extra roots for REST, PEM.
    pub cainfo: Option<PathBuf>,
    /// Extra roots for sites, PEM.
    pub cacert_files: Vec<PathBuf>,
    /// Sites whose certificate is not checked; all entries are sound.
    pub insecure_domains: Vec<String>,
    /// Threads that carry traffic.
    pub shards: usize,
    /// Links to the endpoint; none lets the larger number of shards decide.
    pub links: Option<u16>,
    /// Streams that the endpoint may have open.
    pub max_streams: usize,
    /// What the process stays within.
    pub memory_bytes: usize,
    /// Of sites and of the tunnel; those of browsers are the cloud's.
    pub times: Times,
    /// Jobs and streams that are left at the end get this long.
    pub drain_timeout: Duration,
    /// Without links and REST for this long the tunnel is lost.
    pub lost_timeout: Duration,
    /// Requests for a URL in which one of these is found are dropped. They compile.
    pub fast_fail_regexps: Vec<String>,
    /// Hosts that the cloud reaches without the tunnel; here and below, all are sound.
    pub direct_domains: Vec<String>,
    /// If there are any, the only hosts that go through the tunnel.
    pub tunnel_domains: Vec<String>,
    /// Hosts whose TLS stays opaque.
    pub no_ssl_bump_domains: Vec<String>,
    /// Sites that are shown a password, and which one.
    pub auth: Auth,
    /// No cache answers for sites.
    pub no_proxy_caching: bool,
    /// Kernel interface of the shards.
    pub driver: Driver,
    /// Passed on to REST.
    pub vm_version: Option<String>,
}

/// A file of our own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Named by the user, who may mean a symbolic link or a device.
    Named(PathBuf),
    /// Our own choice in the temporary folder, where others may have planted links: none is followed.
    Temporary(PathBuf),
}

impl Place {
    /// The path, whoever chose it.
    pub fn path(&self) -> &Path {
        match self {
            Self::Named(path) | Self::Temporary(path) => path,
        }
    }
}

/// Options that have a value, by long name; the first name of a row is the one that messages use. The environment
/// and files know every name of a row.
const OPTIONS: &[&[&str]] = &[
    &["user", "username"],
    &["api-key", "access-key"],
    &["rest-url"],
    &["tunnel-identifier", "tunnel-name"],
    &["tunnel-pool", "no-remove-colliding-tunnels"],
    &["logfile", "log-file"],
    &["verbose"],
    &["readyfile"],
    &["pidfile"],
    &["cainfo"],
    &["cacert-file"],
    &["insecure-domains"],
    &["shards"],
    &["tunnel-connections"],
    &["max-streams"],
    &["memory-max"],
    &["http-dial-timeout"],
    &["first-byte-timeout"],
    &["idle-timeout"],
    &["resume-window"],
    &["drain-timeout"],
    &["lost-timeout"],
    &["fast-fail-regexps"],
    &["direct-domains"],
    &["tunnel-domains"],
    &["no-ssl-bump-domains"],
    &["no-proxy-caching"],
    &["auth"],
    &["driver"],
    &["se-port"],
    &["scproxy-port"],
    &["vm-version"],
];

/// Of these those that take several values.
const LISTS: &[&str] = &[
    "cacert-file",
    "insecure-domains",
    "fast-fail-regexps",
    "direct-domains",
    "tunnel-domains",
    "no-ssl-bump-domains",
    "auth",
];

/// Reads everything.
///
/// `env` is asked for variables by name; an empty one counts as absent.
///
/// # Errors
/// One sentence for the user: what is missing or wrong, and where it was given. Never contains the access key, nor a
/// password.
pub fn resolve(args: Args, env: &dyn Fn(&str) -> Option<String>) -> Result<Config, String> {
    let sources = Sources::gather(args, env)?;
    sources.refuse_later_options()?;
    let user = name("user", sources.need("user", "-u or SAUCE_USERNAME")?)?;
    if user.contains(':') {
        return Err("--user: a user name has no colon".into());
    }
    let key = Secret::new(sources.need("api-key", "-k or SAUCE_ACCESS_KEY")?);
    let identifier = sources
        .text("tunnel-identifier")
        .map(|i| name("tunnel-identifier", i))
        .transpose()?;
    let rest_url = rest_url(&sources.text("rest-url").ok_or_else(no_url)?)?;
    let tmp = PathBuf::from(sources.env("TMPDIR").unwrap_or_else(|| "/tmp".into()));
    let place = |option: &str, stem: &str, end: &str| match sources.text(option) {
        Some(path) => Place::Named(path.into()),
        None => Place::Temporary(tmp.join(file_name(stem, identifier.as_deref(), end))),
    };
    let shards = match sources.number("shards", SHARDS_MAX)? {
        Some(n) => n,
        None => cores().min(SHARDS_DEFAULT_MAX),
    };
    let links = sources
        .number("tunnel-connections", LINKS_MAX.into())?
        .and_then(|n| u16::try_from(n).ok());
    let max_streams = sources
        .number("max-streams", STREAMS_OPTION_MAX)?
        .unwrap_or(ENDPOINT_STREAMS_MAX);
    Ok(Config {
        logfile: place("logfile", "sc", "log"),
        pidfile: place("pidfile", "sc_client", "pid"),
        readyfile: sources.text("readyfile").map(PathBuf::from),
        tunnel_pool: sources.args.tunnel_pool || sources.flag("tunnel-pool")?,
        verbose: sources.verbose()?,
        cainfo: sources.text("cainfo").map(PathBuf::from),
        cacert_files: sources.list("cacert-file").into_iter().map(PathBuf::from).collect(),
        insecure_domains: sources.domains("insecure-domains", true)?,
        shards,
        links,
        max_streams,
        memory_bytes: sources.memory_bytes(max_streams, shards, links.unwrap_or(LINKS_MAX))?,
        times: sources.times()?,
        drain_timeout: sources.time("drain-timeout", DRAIN_MAX, DRAIN_MAX)?,
        lost_timeout: sources.time("lost-timeout", LOST_AFTER, LOST_AFTER)?,
        fast_fail_regexps: sources.fast_fail_regexps()?,
        direct_domains: sources.domains("direct-domains", false)?,
        tunnel_domains: sources.domains("tunnel-domains", false)?,
        no_ssl_bump_domains: sources.domains("no-ssl-bump-domains", true)?,
        no_proxy_caching: sources.args.no_proxy_caching || sources.flag("no-proxy-caching")?,
        auth: sources.auth()?,
        driver: sources.driver()?,
        vm_version: sources.text("vm-version"),
        user,
        key,
        rest_url,
        identifier,
    })
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

fn no_url() -> String {
    "no REST URL: give -x URL, SAUCE_REST_URL, or a line `rest-url: URL` in the file named by --config-file, in \
     $XDG_CONFIG_HOME/culvert/sc.yaml (else ~/.config/culvert/sc.yaml), or in /etc/culvert/sc.yaml"
        .into()
}

/// A user name or identifier that can stand in a URL, a log line and a file name.
fn name(option: &str, text: String) -> Result<String, String> {
    if text.len() > NAME_BYTES_MAX {
        return Err(format!("--{option}: {} bytes, at most {NAME_BYTES_MAX}", text.len()));
    }
    if text.chars().any(char::is_control) {
        return Err(format!("--{option}: control characters are not allowed"));
    }
    Ok(text)
}

/// An identifier may hold anything, a file name not: what is no letter, digit, dot, dash or underscore becomes `_`.
fn file_name(stem: &str, identifier: Option<&str>, end: &str) -> String {
    let Some(identifier) = identifier else {
        return format!("{stem}.{end}");
    };
    let safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let plain: String = identifier.chars().map(|c| if safe(c) { c } else { '_' }).collect();
    format!("{stem}-{plain}.{end}")
}

/// https everywhere; http only to this host itself, since the key travels with every request.
fn rest_url(text: &str) -> Result<Url, String> {
    let bad = |why: &str| Err(format!("--rest-url: {why}"));
    let Ok(mut url) = Url::parse(text) else {
        return bad("not a URL; it looks like https://HOST:PORT/rest/v1");
    };
    let host = url.host_str().unwrap_or_default();
    let loopback = host == "localhost"
        || host
            .trim_matches(['[', ']'])
            .parse::<std::net::IpAddr>()
            .is_ok_and(|ip| ip.is_loopback());
    match url.scheme() {
        "https" => {}
        "http" if loopback => {}
        "http" => return bad("http:// would send the access key in clear; use https://"),
        _ => return bad("only https:// is possible"),
    }
    if !url.username().is_empty() || url.password().is_some() {
        return bad("credentials belong to -u and -k, not into the URL");
    }
    if url.query().is_some() || url.fragment().is_some() {
        return bad("a base URL has neither ? nor #");
    }
    let path = url.path().trim_end_matches('/').to_owned();
    url.set_path(if path.is_empty() { "/rest/v1" } else { &path });
    Ok(url)
}

/// Command line, environment and files, before anything is made of them.
struct Sources<'a> {
    args: Args,
    env: &'a dyn Fn(&str) -> Option<String>,
    files: Vec<Lines>,
}

impl<'a> Sources<'a> {
    fn gather(args: Args, env: &'a dyn Fn(&str) -> Option<String>) -> Result<Self, String> {
        let mut sources = Self {
            args,
            env,
            files: Vec::new(),
        };
        let named = sources.args.config_file.clone();
        if let Some(path) = named.or_else(|| sources.env("SAUCE_CONFIG_FILE")) {
            let path = PathBuf::from(path);
            let lines =
                Lines::read(&path)?.ok_or_else(|| format!("--config-file: {} does not exist", path.display()))?;
            sources.files.push(lines);
        }
        let home = sources
            .env("XDG_CONFIG_HOME")
            .or_else(|| sources.env("HOME").map(|home| format!("{home}/.config")));
        let own = home.map(|folder| PathBuf::from(folder).join("culvert/sc.yaml"));
        // A HOME that is somebody else's, as service managers leave it, holds no file of ours.
        let closed = |path: &PathBuf| matches!(path.metadata(), Err(e) if e.kind() == ErrorKind::PermissionDenied);
        let own = own.filter(|path| !closed(path));
        for path in own.into_iter().chain([PathBuf::from("/etc/culvert/sc.yaml")]) {
            sources.files.extend(Lines::read(&path)?);
        }
        Ok(sources)
    }

    fn env(&self, name: &str) -> Option<String> {
        (self.env)(name).filter(|value| !value.is_empty())
    }

    fn argument(&self, option: &str) -> Option<String> {
        let a = &self.args;
        let files = (!a.cacert_file.is_empty()).then(|| a.cacert_file.join(","));
        match option {
            "user" => &a.user,
            "api-key" => &a.api_key,
            "rest-url" => &a.rest_url,
            "tunnel-identifier" => &a.tunnel_identifier,
            "logfile" => &a.logfile,
            "readyfile" => &a.readyfile,
            "pidfile" => &a.pidfile,
            "cainfo" => &a.cainfo,
            "cacert-file" => &files,
            "insecure-domains" => &a.insecure_domains,
            "shards" => &a.shards,
            "tunnel-connections" => &a.tunnel_connections,
            "max-streams" => &a.max_streams,
            "memory-max" => &a.memory_max,
            "http-dial-timeout" => &a.http_dial_timeout,
            "first-byte-timeout" => &a.first_byte_timeout,
            "idle-timeout" => &a.idle_timeout,
            "resume-window" => &a.resume_window,
            "drain-timeout" => &a.drain_timeout,
            "lost-timeout" => &a.lost_timeout,
            "fast-fail-regexps" => &a.fast_fail_regexps,
            "direct-domains" => &a.direct_domains,
            "tunnel-domains" => &a.tunnel_domains,
            "no-ssl-bump-domains" => &a.no_ssl_bump_domains,
            "driver" => &a.driver,
            "se-port" => &a.se_port,
            "scproxy-port" => &a.scproxy_port,
            "vm-version" => &a.vm_version,
            _ => &None,
        }
        .clone()
    }

    /// Environment and files; the command line goes before them.
    fn elsewhere(&self, names: &[&str]) -> Option<String> {
        names
            .iter()
            .find_map(|name| self.env(&variable(name)))
            .or_else(|| self.files.iter().find_map(|file| file.value(names)))
    }

    /// An option's value; an empty one counts as absent.
    fn text(&self, option: &str) -> Option<String> {
        let own = [option];
        let names = OPTIONS
            .iter()
            .find(|names| names[0] == option)
            .map_or(own.as_slice(), |names| names);
        self.argument(option)
            .or_else(|| self.elsewhere(names))
            .filter(|value| !value.is_empty())
    }

    fn need(&self, option: &str, ways: &str) -> Result<String, String> {
        self.text(option)
            .ok_or_else(|| format!("--{option} is missing: give {ways}"))
    }

    fn number(&self, option: &str, max: usize) -> Result<Option<usize>, String> {
        let Some(text) = self.text(option) else {
            return Ok(None);
        };
        match text.parse() {
            Ok(n) if (1..=max).contains(&n) => Ok(Some(n)),
            _ => Err(format!("--{option}: {text:?} is no number from 1 to {max}")),
        }
    }

    fn memory_bytes(&self, streams: usize, shards: usize, links: u16) -> Result<usize, String> {
        let Some(mib) = self.number("memory-max", MEMORY_OPTION_MIB_MAX)? else {
            return Ok(client_memory_bytes(streams, shards, links.into()));
        };
        match client_pools(mib * MIB, streams, shards, links.into()) {
            Ok(_) => Ok(mib * MIB),
            Err(needed) => Err(format!(
                "--memory-max: {shards} shards (--shards), {links} links (--tunnel-connections) and {streams} streams \
                 (--max-streams) need at least {} MiB",
                needed.div_ceil(MIB)
            )),
        }
    }

    /// An option without a value on the command line, where it is given elsewhere.
    fn flag(&self, option: &str) -> Result<bool, String> {
        match self.text(option).as_deref() {
            None | Some("false" | "no" | "off") => Ok(false),
            Some("true" | "yes" | "on") => Ok(true),
            Some(text) => Err(format!("--{option}: {text:?} is neither true nor false")),
        }
    }

    fn time(&self, option: &str, default: Duration, max: Duration) -> Result<Duration, String> {
        match self.text(option) {
            None => Ok(default),
            Some(text) => duration::limit(&text, max).map_err(|why| format!("--{option}: {why}")),
        }
    }

    fn times(&self) -> Result<Times, String> {
        let plain = Times::default();
        Ok(Times {
            dial: self.time("http-dial-timeout", plain.dial, SITE_TIME_MAX)?,
            first_byte: self.time("first-byte-timeout", plain.first_byte, SITE_TIME_MAX)?,
            idle: self.time("idle-timeout", plain.idle, SITE_TIME_MAX)?,
            resume_window: self.time("resume-window", plain.resume_window, RESUME_WINDOW)?,
            ..plain
        })
    }

    fn verbose(&self) -> Result<u8, String> {
        if self.args.verbose > 0 {
            return Ok(self.args.verbose);
        }
        let Some(text) = self.text("verbose") else {
            return Ok(0);
        };
        match text.as_str() {
            "true" | "yes" | "on" => Ok(1),
            "false" | "no" | "off" => Ok(0),
            _ => text
                .parse()
                .map_err(|_| format!("--verbose: {text:?} is neither true, false nor a number")),
        }
    }

    /// The entries of a comma list, or of one in a file; empty ones are left out.
    fn list(&self, option: &str) -> Vec<String> {
        let text = self.text(option).unwrap_or_default();
        let entries = text.split([',', '\n']).map(str::trim).filter(|t| !t.is_empty());
        entries.map(str::to_owned).collect()
    }

    fn domains(&self, option: &str, knows_all: bool) -> Result<Vec<String>, String> {
        let list = self.list(option);
        Domains::parse(&list, knows_all).map_err(|why| format!("--{option}: {why}"))?;
        Ok(list)
    }

    /// A password may hold anything but the end of a line.
    fn auth(&self) -> Result<Auth, String> {
        let typed = &self.args.auth;
        let entries = if typed.is_empty() {
            let text = self.text("auth").unwrap_or_default();
            text.lines().map(str::to_owned).collect()
        } else {
            typed.clone()
        };
        auth::parse(&entries).map_err(|why| format!("--auth: {why}"))
    }

    fn fast_fail_regexps(&self) -> Result<Vec<String>, String> {
        let list = self.list("fast-fail-regexps");
        FastFail::compile(&list).map_err(|why| format!("--fast-fail-regexps: {why}"))?;
        Ok(list)
    }

    fn driver(&self) -> Result<Driver, String> {
        match self.text("driver").as_deref() {
            None | Some("auto") => Ok(Driver::Auto),
            Some("io_uring") => Ok(Driver::IoUring),
            Some("epoll") => Ok(Driver::Epoll),
            Some(other) => Err(format!("--driver: {other:?} is neither auto, io_uring nor epoll")),
        }
    }

    /// What this version does not have must not be taken silently, wherever it was given.
    fn refuse_later_options(&self) -> Result<(), String> {
        let later = self
            .args
            .later
            .typed()
            .into_iter()
            .find(|(option, typed)| *typed || self.elsewhere(&[option]).is_some())
            .map(|(option, _)| option);
        let relay = ["se-port", "scproxy-port"]
            .into_iter()
            .find(|option| self.text(option).is_some_and(|port| port != "0"));
        match (later, relay) {
            (Some(option), _) => Err(format!("--{option} is not built yet")),
            (None, Some(option)) => Err(format!("--{option} with a port other than 0 is not built yet")),
            (None, None) => Ok(()),
        }
    }
}

/// `tunnel-identifier` is `SAUCE_TUNNEL_IDENTIFIER` in the environment.
fn variable(option: &str) -> String {
    format!("SAUCE_{}", option.to_ascii_uppercase().replace('-', "_"))
}

fn known(name: &str) -> bool {
    let later = crate::cli::Later::default().typed();
    OPTIONS.iter().any(|names| names.contains(&name)) || later.iter().any(|(n, _)| *n == name)
}

#[cfg(test)]
mod tests;
