//! Making a tunnel: the request, the wait until it runs, and what a tunnel object says about its life.

use std::time::Duration;

use dataplane::limits::RUNNING_MAX;
use dataplane::tls::Fingerprint;
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::Failure;
use super::rest::{Rest, RestError};
use crate::api::{EndpointInfo, MemberRequest, Tunnel, TunnelRequest};
use crate::cli;
use crate::config::Config;

/// Waits between polls of a new tunnel: it is often there within milliseconds; afterwards every second.
const POLLS_MS: [u64; 6] = [20, 40, 80, 160, 320, 640];
const POLL_REST: Duration = Duration::from_secs(1);
/// A cloud that is overloaded or restarting is asked again after these times.
const RETRIES_MS: [u64; 4] = [500, 1_000, 2_000, 4_000];

/// The wait before poll `n` of something new.
pub fn poll_pause(n: usize) -> Duration {
    POLLS_MS.get(n).map_or(POLL_REST, |ms| Duration::from_millis(*ms))
}

/// Where the other end of a tunnel is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// `host:port`.
    pub address: String,
    pub server_name: String,
    pub fingerprint: Fingerprint,
    pub shards: u16,
    pub links_max: u16,
}

impl Endpoint {
    /// Takes it from a tunnel object; none as long as the cloud has none.
    ///
    /// # Errors
    /// What is missing or wrong in it.
    pub fn of(tunnel: &Tunnel) -> Result<Option<Self>, String> {
        tunnel.culvert.as_ref().map(Self::parse).transpose()
    }

    fn parse(info: &EndpointInfo) -> Result<Self, String> {
        let need = |text: &Option<String>, what: &str| text.clone().ok_or_else(|| format!("culvert.{what} is missing"));
        let small = |n: Option<u64>, absent: u16| n.map_or(absent, |n| u16::try_from(n).unwrap_or(u16::MAX)).max(1);
        Ok(Self {
            address: need(&info.address, "address")?,
            server_name: need(&info.server_name, "server_name")?,
            fingerprint: need(&info.fingerprint, "fingerprint")?
                .parse()
                .map_err(|_| "culvert.fingerprint is not 64 hex digits".to_owned())?,
            shards: small(info.shards, 1),
            links_max: small(info.links_max, u16::MAX),
        })
    }

    /// Each shard on both sides has a link, unless the user chose a number.
    pub fn links(&self, config: &Config) -> u16 {
        let shards = u16::try_from(config.shards).unwrap_or(u16::MAX);
        config.links.unwrap_or(shards.max(self.shards)).min(self.links_max)
    }
}

/// What a tunnel object says about going on.
#[derive(Debug, PartialEq, Eq)]
pub enum Life {
    /// Not yet running.
    Starting,
    Running,
    /// The cloud lost it: make a new one.
    Lost(String),
    /// Somebody wanted it to end: never make a new one, or two `sc` would end each other for ever.
    Ended(String),
}

/// Reads the state of a tunnel. An absent state is taken as running: only what the cloud says ends a tunnel.
pub fn life(tunnel: &Tunnel) -> Life {
    let status = tunnel.status.as_deref().unwrap_or("running");
    match status {
        "running" => return Life::Running,
        "new" | "booting" | "starting" => return Life::Starting,
        _ => {}
    }
    let reason = tunnel.shutdown_reason.as_deref().unwrap_or_default();
    match reason {
        "lost" | "endpoint" => return Life::Lost(format!("the cloud ended it: {reason}")),
        "replaced" => {
            let text = "the tunnel was replaced by a newer one with the same identifier";
            return Life::Ended(text.into());
        }
        _ => {}
    }
    if tunnel.user_shutdown == Some(true) {
        return Life::Ended("the tunnel was ended by its user (user shutdown)".into());
    }
    let why = if reason.is_empty() { status } else { reason };
    Life::Ended(format!("the tunnel was ended by the cloud: {why}"))
}

/// It ends, and what is open may end before.
pub fn is_halting(tunnel: &Tunnel) -> bool {
    tunnel.status.as_deref() == Some("halting")
}

/// The request for a tunnel, with its rules and what the cloud's operator wants to know about this host.
pub fn request(config: &Config, fingerprint: &Fingerprint) -> TunnelRequest {
    TunnelRequest {
        tunnel_identifier: config.identifier.clone(),
        domain_names: Some(config.tunnel_domains.clone()),
        direct_domains: Some(config.direct_domains.clone()),
        fast_fail_regexps: Some(config.fast_fail_regexps.clone()),
        no_ssl_bump_domains: Some(config.no_ssl_bump_domains.clone()),
        shared_tunnel: Some(false),
        tunnel_pool: Some(config.tunnel_pool),
        no_proxy_caching: Some(config.no_proxy_caching),
        use_caching_proxy: Some(!config.no_proxy_caching),
        use_kgp: Some(true),
        protocol: Some("kgp".into()),
        ssh_port: Some(443),
        vm_version: config.vm_version.clone(),
        metadata: Some(metadata()),
        culvert: Some(MemberRequest {
            fingerprint: Some(fingerprint.to_string()),
            shards: Some(config.shards as u64),
            auth_hosts: Some(config.auth.sites.clone()),
        }),
        ..TunnelRequest::default()
    }
}

/// No arguments: they may hold secrets of options that this version does not know.
fn metadata() -> serde_json::Value {
    let kernel = |name: &str| {
        let text = std::fs::read_to_string(format!("/proc/sys/kernel/{name}"));
        text.map_or(String::new(), |t| t.trim().to_owned())
    };
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    json!({
        "build": cli::banner(),
        "command": "sc",
        "command_args": "",
        "hostname": kernel("hostname"),
        "host_cpu": std::thread::available_parallelism().map_or(1, |n| n.get()),
        "nofile_limit": files.unwrap_or(u64::MAX),
        "platform": format!("linux {}", std::env::consts::ARCH),
        "release": kernel("osrelease"),
    })
}

/// Asks for the tunnel, again after a while if the cloud is overloaded. Returns it with its id.
///
/// # Errors
/// [`Failure`] with the exit code that fits the last answer.
pub async fn create(rest: &Rest, request: &TunnelRequest) -> Result<(String, Tunnel), Failure> {
    let mut retries = RETRIES_MS.iter();
    let tunnel = loop {
        match rest.create(request).await {
            Ok(tunnel) => break tunnel,
            Err(RestError::Status(code @ (429 | 500..), text)) => {
                let error = RestError::Status(code, text);
                let Some(pause) = retries.next() else {
                    return Err(failure(rest, error));
                };
                tracing::warn!("no tunnel yet: {error}; again in {pause} ms");
                sleep(Duration::from_millis(*pause)).await;
            }
            Err(error) => return Err(failure(rest, error)),
        }
    };
    let messages = tunnel.messages.clone().unwrap_or_default();
    for text in messages.warning.iter().flatten() {
        tracing::warn!("the cloud says: {text}");
    }
    if let Some(text) = messages.fatal.iter().flatten().next() {
        return Err(Failure::Refused(format!("the cloud refuses: {text}")));
    }
    match &tunnel.id {
        Some(id) if !id.is_empty() => Ok((id.clone(), tunnel)),
        _ => Err(failure(rest, RestError::Garbage("a tunnel without an id".into()))),
    }
}

/// What an error of the first calls means for the user.
pub fn failure(rest: &Rest, error: RestError) -> Failure {
    let (base, user) = (rest.base(), rest.user());
    match error {
        RestError::Status(401 | 403, _) => {
            Failure::NotAuthorized(format!("user {user:?} or its access key is wrong ({base})"))
        }
        // Servers say so of a path that they do not know, too.
        RestError::Status(404, Some(text)) if text.to_lowercase().contains("user") => {
            Failure::NotAuthorized(format!("user {user:?}: {text} ({base})"))
        }
        RestError::Status(404, _) => Failure::Unreachable(format!("there is no REST API at {base}: {error}")),
        RestError::Status(400..=499, _) => Failure::Refused(format!("the cloud refuses the tunnel: {error}")),
        RestError::Unreachable(_) => Failure::Unreachable(format!("cannot reach the REST API at {base}: {error}")),
        RestError::Status(..) | RestError::Garbage(_) => {
            Failure::Unreachable(format!("the REST API at {base} fails: {error}"))
        }
    }
}

/// Polls until the tunnel runs and has an endpoint.
///
/// # Errors
/// [`Failure`]: it ended, or did not run within [`RUNNING_MAX`].
pub async fn running(rest: &Rest, id: &str, mut tunnel: Tunnel) -> Result<Endpoint, Failure> {
    let deadline = Instant::now() + RUNNING_MAX;
    for n in 0.. {
        match life(&tunnel) {
            Life::Running => {
                if let Some(endpoint) = Endpoint::of(&tunnel).map_err(|e| failure(rest, RestError::Garbage(e)))? {
                    return Ok(endpoint);
                }
            }
            Life::Starting => {}
            Life::Ended(why) => return Err(Failure::Gone(why)),
            Life::Lost(why) => return Err(Failure::Unreachable(format!("no tunnel: {why}"))),
        }
        if Instant::now() >= deadline {
            break;
        }
        sleep(poll_pause(n)).await;
        match rest.tunnel(id).await {
            Ok(newer) => tunnel = newer,
            Err(RestError::Status(404, _)) => {
                return Err(Failure::Gone("the tunnel was deleted while it started".into()));
            }
            Err(error @ RestError::Status(401 | 403, _)) => return Err(failure(rest, error)),
            Err(error) => tracing::warn!("the new tunnel's state is unknown: {error}"),
        }
    }
    Err(Failure::Unreachable(format!(
        "the tunnel did not start within {} s",
        RUNNING_MAX.as_secs()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(status: &str, reason: Option<&str>, by_user: bool) -> Tunnel {
        Tunnel {
            status: Some(status.into()),
            shutdown_reason: reason.map(Into::into),
            user_shutdown: Some(by_user),
            ..Tunnel::default()
        }
    }

    #[test]
    fn a_new_tunnel_only_when_the_server_lost_the_old_one() {
        for reason in ["lost", "endpoint"] {
            assert!(matches!(life(&ended("terminated", Some(reason), false)), Life::Lost(_)));
        }
        for (reason, by_user, word) in [
            (Some("replaced"), false, "replaced"),
            (Some("replaced"), true, "replaced"),
            (Some("sigterm"), true, "user shutdown"),
            (None, true, "user shutdown"),
            (None, false, "halting"),
            (Some("quota"), false, "quota"),
        ] {
            let Life::Ended(text) = life(&ended("halting", reason, by_user)) else {
                panic!("{reason:?}");
            };
            assert!(text.contains(word), "{text}");
        }
    }

    #[test]
    fn states() {
        for status in ["new", "booting", "starting"] {
            assert_eq!(life(&ended(status, None, false)), Life::Starting);
        }
        assert_eq!(life(&ended("running", None, false)), Life::Running);
        assert_eq!(life(&Tunnel::default()), Life::Running);
    }

    #[test]
    fn polls_are_quick_first() {
        let pauses: Vec<u128> = (0..8).map(|n| poll_pause(n).as_millis()).collect();
        assert_eq!(pauses, [20, 40, 80, 160, 320, 640, 1_000, 1_000]);
    }

    #[test]
    fn an_endpoint_is_whole_or_an_error() {
        let info = EndpointInfo {
            address: Some("h:443".into()),
            server_name: Some("a.tunnel.culvert".into()),
            fingerprint: Some("ab".repeat(32)),
            shards: Some(3),
            links_max: None,
            proxy: None,
            ca_fingerprint: None,
            counts: None,
        };
        let endpoint = Endpoint::parse(&info).unwrap();
        assert_eq!((endpoint.shards, endpoint.links_max), (3, u16::MAX));
        let broken = [
            EndpointInfo {
                address: None,
                ..info.clone()
            },
            EndpointInfo {
                server_name: None,
                ..info.clone()
            },
            EndpointInfo {
                fingerprint: Some("ab".into()),
                ..info.clone()
            },
        ];
        for info in broken {
            assert!(Endpoint::parse(&info).unwrap_err().starts_with("culvert."));
        }
        assert_eq!(Endpoint::of(&Tunnel::default()), Ok(None));
    }

    #[test]
    fn the_request_has_the_shape_of_version_4() {
        let request = TunnelRequest {
            culvert: None,
            ..TunnelRequest::default()
        };
        assert_eq!(request.identifier(), None);
        let metadata = metadata();
        assert_eq!(metadata["command"], "sc");
        assert!(metadata["nofile_limit"].is_u64());
        assert!(metadata.to_string().len() < crate::api::METADATA_BYTES_MAX);
    }
}
