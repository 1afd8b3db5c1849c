//! `sc`'s command line as it was typed: every value a text, nothing resolved. `config.rs` makes sense of it.

use std::ffi::OsString;

use clap::error::ErrorKind;
use clap::{ArgAction, Parser};

const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Set by whoever makes a release.
const BUILD: &str = match option_env!("CULVERT_BUILD") {
    Some(build) => build,
    None => "0",
};

const AFTER_HELP: &str = "\
Every option can also be given in the environment as SAUCE_ and its name in upper snake case, and in a file as
`name: value`, where an option that takes several may have `name:` and below it a line `- value` for each. The command
line goes before the environment, the environment before the files, which are: the one named by --config-file,
$XDG_CONFIG_HOME/culvert/sc.yaml (else under ~/.config), /etc/culvert/sc.yaml.

Exit codes: 0 stopped cleanly, 1 internal error, 2 usage or configuration, 3 the cloud cannot be reached,
4 not authorized, 5 refused by the cloud (quota), 6 the tunnel was replaced or deleted by someone else,
7 a local port, file, pid file or io_uring cannot be had.";

/// What was typed. It has no `Debug`, because it holds the access key and passwords in clear.
#[derive(Parser, Default)]
#[command(
    name = "sc",
    display_name = "Sauce Connect",
    bin_name = "sc",
    disable_version_flag = true,
    about = "Carries browsers of a test cloud to the sites behind this firewall.",
    after_help = AFTER_HELP
)]
pub struct Args {
    /// User name of the account [env: SAUCE_USERNAME]
    #[arg(short, long, alias = "username", value_name = "username")]
    pub user: Option<String>,
    /// Access key of the account [env: SAUCE_ACCESS_KEY]
    #[arg(short = 'k', long, alias = "access-key", value_name = "api-key")]
    pub api_key: Option<String>,
    /// REST API of the cloud, https://HOST:PORT/rest/v1
    #[arg(short = 'x', long, value_name = "url")]
    pub rest_url: Option<String>,
    /// Name of this tunnel: only jobs that ask for it use it
    #[arg(short = 'i', long, alias = "tunnel-name", value_name = "id")]
    pub tunnel_identifier: Option<String>,
    /// Tunnels of one account with this option and the same name live side by side and share the load; their rules must
    /// be the same
    #[arg(long, alias = "no-remove-colliding-tunnels", action = ArgAction::SetTrue)]
    pub tunnel_pool: bool,
    /// Log file; in the temporary folder: sc.log, or sc-ID.log with -i ID
    #[arg(short, long, alias = "log-file", value_name = "file")]
    pub logfile: Option<String>,
    /// Log more, and more still when repeated; goes to the log file only
    #[arg(short, long, action = ArgAction::Count)]
    pub verbose: u8,
    /// File that is touched when the tunnel is ready, and removed at the end
    #[arg(short = 'f', long, value_name = "file")]
    pub readyfile: Option<String>,
    /// Pid file; in the temporary folder: sc_client.pid, or sc_client-ID.pid with -i ID
    #[arg(long, value_name = "file")]
    pub pidfile: Option<String>,
    /// Certificates (PEM) to trust for REST beside the system's
    #[arg(long, value_name = "file")]
    pub cainfo: Option<String>,
    /// Certificates (PEM) to trust for sites beside the system's; several files by repeating it or with commas
    #[arg(long, value_name = "file")]
    pub cacert_file: Vec<String>,
    /// Sites whose certificate is not checked, in the form of --direct-domains, or `all`: whoever stands between this
    /// host and them can read and change what browsers send there
    #[arg(long, value_name = "domains")]
    pub insecure_domains: Option<String>,
    /// File with options, one `name: value` a line
    #[arg(short = 'c', long, value_name = "file")]
    pub config_file: Option<String>,
    /// Threads that carry traffic [default: cores, at most 4]
    #[arg(long, value_name = "n")]
    pub shards: Option<String>,
    /// Connections to the cloud [default: the larger number of shards of both sides]
    #[arg(long, value_name = "n")]
    pub tunnel_connections: Option<String>,
    /// Requests open at one time [default: 8192]
    #[arg(long, value_name = "n")]
    pub max_streams: Option<String>,
    /// Memory of this process, in MiB: its buffers shrink to fit, and slow readers then slow others down earlier
    /// [default: what the other options need with buffers of full size]
    #[arg(long, value_name = "mib")]
    pub memory_max: Option<String>,
    /// How long a site's address may take to accept a connection; all addresses of a name get three times as
    /// long [default: 10s]
    #[arg(long, value_name = "time")]
    pub http_dial_timeout: Option<String>,
    /// How long a site may take until it begins its answer [default: 10m]
    #[arg(long, value_name = "time")]
    pub first_byte_timeout: Option<String>,
    /// How long an exchange or connection may be silent in both directions [default: 1h]
    #[arg(long, value_name = "time")]
    pub idle_timeout: Option<String>,
    /// How long streams outlive an outage of the tunnel; the cloud has its own, and the shorter one counts
    /// [default: 45s, the most]
    #[arg(long, value_name = "time")]
    pub resume_window: Option<String>,
    /// How long running jobs and requests are waited for at the end; a CONNECT or WebSocket that is silent for 15s is
    /// no longer waited for [default: 5m, the most]
    #[arg(long, value_name = "time")]
    pub drain_timeout: Option<String>,
    /// Without the cloud for so long the tunnel counts as lost, and a new one is asked for [default: 90s, the most]
    #[arg(long, value_name = "time")]
    pub lost_timeout: Option<String>,
    /// Requests are dropped if one of these regular expressions, separated by commas, is found in their URL; of HTTPS
    /// that stays opaque (-B, -D) only https://HOST/ is known
    #[arg(short = 'F', long, value_name = "regexps")]
    pub fast_fail_regexps: Option<String>,
    /// Hosts that browsers reach from the cloud, without the tunnel: example.com with its sub-domains, *.example.com for
    /// those alone, separated by commas
    #[arg(short = 'D', long, value_name = "domains")]
    pub direct_domains: Option<String>,
    /// The only hosts that go through the tunnel, in the same form; overrides --direct-domains. localhost always does
    #[arg(short = 't', long, value_name = "domains")]
    pub tunnel_domains: Option<String>,
    /// Hosts that are left alone, in the same form, or `all`: of HTTPS browsers see the sites' own certificates, and
    /// nothing is cached, of HTTP neither
    #[arg(short = 'B', long, value_name = "domains")]
    pub no_ssl_bump_domains: Option<String>,
    /// Leave the cloud's response cache out: each request for a page goes to its site
    #[arg(short = 'N', long, action = ArgAction::SetTrue)]
    pub no_proxy_caching: bool,
    /// User and password (Basic) for exactly this host and port, added to requests there that bring none of their own;
    /// repeat it for further sites, in SAUCE_AUTH one a line. Not where HTTPS stays opaque (-B) or its certificate is bad,
    /// nor past the tunnel (-D, -t)
    #[arg(short = 'a', long, value_name = "host:port:user:pwd")]
    pub auth: Vec<String>,
    /// Kernel interface for traffic: io_uring and nothing else, epoll, or auto: io_uring if it can be had [default: auto]
    #[arg(long, value_name = "driver")]
    pub driver: Option<String>,
    /// Port of the Selenium relay; this version knows only 0, off
    #[arg(short = 'P', long, value_name = "port")]
    pub se_port: Option<String>,
    /// Port of the local proxy; this version knows only 0, off
    #[arg(long, value_name = "port")]
    pub scproxy_port: Option<String>,
    /// Version of the tunnel's remote end, passed on to the cloud
    #[arg(long, value_name = "version")]
    pub vm_version: Option<String>,
    /// Print the version
    #[arg(long, action = ArgAction::SetTrue)]
    pub version: bool,
    #[command(flatten)]
    pub later: Later,
}

/// Options of Sauce Connect that this version does not have. They are known so that nobody believes that they work.
#[derive(clap::Args, Default)]
pub struct Later {
    #[arg(short = 'p', long, hide = true)]
    pub proxy: Option<String>,
    #[arg(short = 'w', long, hide = true)]
    pub proxy_userpwd: Option<String>,
    #[arg(long, hide = true)]
    pub pac: Option<String>,
    #[arg(short = 'T', long, hide = true, action = ArgAction::SetTrue)]
    pub proxy_tunnel: bool,
    #[arg(short = 's', long, hide = true, action = ArgAction::SetTrue)]
    pub shared_tunnel: bool,
    #[arg(short = 'z', long, hide = true)]
    pub log_stats: Option<String>,
    #[arg(long, hide = true)]
    pub max_logsize: Option<String>,
    #[arg(long, hide = true, action = ArgAction::SetTrue)]
    pub doctor: bool,
}

impl Later {
    /// Each of these options by its name, with whether it was typed.
    pub fn typed(&self) -> [(&'static str, bool); 8] {
        [
            ("proxy", self.proxy.is_some()),
            ("proxy-userpwd", self.proxy_userpwd.is_some()),
            ("pac", self.pac.is_some()),
            ("proxy-tunnel", self.proxy_tunnel),
            ("shared-tunnel", self.shared_tunnel),
            ("log-stats", self.log_stats.is_some()),
            ("max-logsize", self.max_logsize.is_some()),
            ("doctor", self.doctor),
        ]
    }
}

/// Why there is nothing to run.
#[derive(Debug, PartialEq, Eq)]
pub enum Stop {
    /// Help or version was asked for: print the text, leave with 0.
    Text(String),
    /// The command line is wrong: one sentence, leave with 2.
    Usage(String),
}

/// The first line of every run, and all that `--version` prints.
pub fn banner() -> String {
    format!("Sauce Connect {VERSION}, build {BUILD}")
}

/// Reads a command line, the program's name first.
///
/// # Errors
/// [`Stop`]: a text to print, or what is wrong in one sentence that repeats no bare word, since that may be a key.
pub fn parse<I: IntoIterator<Item = OsString>>(argv: I) -> Result<Args, Stop> {
    let args = Args::try_parse_from(argv).map_err(|e| stop_of(&e))?;
    if args.version {
        return Err(Stop::Text(format!("{}\n", banner())));
    }
    Ok(args)
}

fn stop_of(error: &clap::Error) -> Stop {
    use clap::error::{ContextKind, ContextValue};
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        return Stop::Text(error.to_string());
    }
    if let (ErrorKind::UnknownArgument, Some(ContextValue::String(word))) =
        (error.kind(), error.get(ContextKind::InvalidArg))
    {
        let name = word.split('=').next().unwrap_or_default();
        return Stop::Usage(if name.starts_with('-') {
            format!("{name} is no option; see sc --help")
        } else {
            "a word that belongs to no option; see sc --help".into()
        });
    }
    let text = error.to_string();
    let sentence = text.split("\n\n").next().unwrap_or_default();
    let line = sentence.split_whitespace().collect::<Vec<_>>().join(" ");
    Stop::Usage(format!("{}; see sc --help", line.trim_start_matches("error: ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Result<Args, Stop> {
        parse(std::iter::once("sc").chain(line.split_whitespace()).map(OsString::from))
    }

    fn usage(line: &str) -> String {
        match words(line) {
            Err(Stop::Usage(text)) => text,
            Err(Stop::Text(text)) => panic!("text: {text}"),
            Ok(_) => panic!("accepted: {line}"),
        }
    }

    #[test]
    fn short_and_long_names_and_their_later_aliases_are_one() {
        for line in [
            "-u U -k K -x X -i I -l L -f F",
            "--user U --api-key K --rest-url X --tunnel-identifier I --logfile L --readyfile F",
            "--username U --access-key K --rest-url=X --tunnel-name I --log-file L --readyfile=F",
        ] {
            let args = words(line).unwrap_or_else(|_| panic!("{line}"));
            let got = [
                args.user,
                args.api_key,
                args.rest_url,
                args.tunnel_identifier,
                args.logfile,
                args.readyfile,
            ];
            let want = ["U", "K", "X", "I", "L", "F"].map(|s| Some(s.to_string()));
            assert_eq!(got, want, "{line}");
        }
    }

    #[test]
    fn verbose_counts() {
        for (line, verbose) in [("", 0), ("-v", 1), ("-vv", 2), ("-v --verbose -v", 3)] {
            assert_eq!(words(line).map(|a| a.verbose).ok(), Some(verbose), "{line}");
        }
    }

    #[test]
    fn the_originals_unit_line_is_understood() {
        let args = words("-u U -k K -l /tmp/sc_long.log --pidfile /tmp/sc_long.pid --se-port 0 --vm-version next")
            .unwrap_or_else(|_| panic!());
        assert_eq!(args.se_port.as_deref(), Some("0"));
        assert_eq!(args.vm_version.as_deref(), Some("next"));
        assert_eq!(args.pidfile.as_deref(), Some("/tmp/sc_long.pid"));
    }

    #[test]
    fn version_and_help_are_texts() {
        let Err(Stop::Text(text)) = words("--version") else {
            panic!()
        };
        assert_eq!(text, format!("{}\n", banner()));
        assert!(text.starts_with("Sauce Connect "));
        let Err(Stop::Text(text)) = words("--help") else {
            panic!()
        };
        assert!(text.contains("--tunnel-identifier <id>") && text.contains("Exit codes"));
        assert!(!text.contains("--pac"), "only what is built is shown");
    }

    #[test]
    fn wrong_lines_give_one_sentence_without_secrets() {
        assert_eq!(usage("--colour=planted"), "--colour is no option; see sc --help");
        assert_eq!(usage("-u U planted"), "a word that belongs to no option; see sc --help");
        let text = usage("-u");
        assert!(text.contains("--user <username>") && !text.contains('\n'), "{text}");
    }

    #[test]
    fn options_of_later_versions_are_known() {
        let line = "-B a -D a -t a -F a -a a -p a -w a --pac a -T -s -z 1 --max-logsize 1 --doctor";
        let args = words(line).unwrap_or_else(|_| panic!());
        assert!(args.later.typed().iter().all(|(_, typed)| *typed));
        let args = words("").unwrap_or_else(|_| panic!());
        assert!(!args.later.typed().iter().any(|(_, typed)| *typed));
    }
}
