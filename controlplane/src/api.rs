//! JSON of the REST API, the same types on both sides.
//!
//! Lenient where it reads: any field may be absent or null, unknown ones are ignored. Strict about sizes, so that
//! what is kept stays bounded.

use std::collections::{BTreeMap, HashMap};

use dataplane::limits;
use dataplane::rules::{Domains, FastFail, Routes, Sites};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Identifiers, names and other short texts of a request.
pub const TEXT_BYTES_MAX: usize = 1_024;
/// What a message shows of each of two rules that differ.
const DIFFERENCE_CHARS_MAX: usize = 64;
/// Entries of one list of a request (domains, expressions).
pub const LIST_ENTRIES_MAX: usize = 20_000;
/// `metadata` and `extra_info` together, as JSON.
pub const METADATA_BYTES_MAX: usize = 64 * 1024;
/// Each of both: what is kept stands deeper, and is read back from 128 levels at most.
pub const METADATA_LEVELS_MAX: usize = 32;
/// A whole request body: the rules of SETTINGS and what stands beside them.
pub const BODY_BYTES_MAX: usize = limits::SETTINGS_BYTES_MAX + 256 * 1024;

/// Body of `POST /rest/v1/{user}/tunnels`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TunnelRequest {
    /// Null and empty both mean: unidentified.
    pub tunnel_identifier: Option<String>,
    pub domain_names: Option<Vec<String>>,
    pub direct_domains: Option<Vec<String>>,
    pub fast_fail_regexps: Option<Vec<String>>,
    pub no_ssl_bump_domains: Option<Vec<String>>,
    pub shared_tunnel: Option<bool>,
    pub shared: Option<String>,
    /// Equal identifiers live side by side.
    pub tunnel_pool: Option<bool>,
    pub no_proxy_caching: Option<bool>,
    /// False says what true says in `no_proxy_caching`.
    pub use_caching_proxy: Option<bool>,
    pub use_kgp: Option<bool>,
    pub protocol: Option<String>,
    pub ssh_port: Option<u64>,
    pub vm_version: Option<String>,
    pub extra_info: Option<Value>,
    pub metadata: Option<Value>,
    /// What Culvert adds; without it no link can be accepted.
    pub culvert: Option<MemberRequest>,
}

/// The `culvert` part of a tunnel request: what `sc` says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemberRequest {
    /// SHA-256 of the member's public key, 64 lower-case hex digits.
    pub fingerprint: Option<String>,
    /// Shards of `sc`.
    pub shards: Option<u64>,
    /// Hosts with `-a` credentials, `host:port`, never the credentials.
    pub auth_hosts: Option<Vec<String>>,
}

impl TunnelRequest {
    /// The identifier, or none if absent, null or empty.
    pub fn identifier(&self) -> Option<&str> {
        self.tunnel_identifier.as_deref().filter(|s| !s.is_empty())
    }

    /// Neither of its two fields forbids the endpoint's cache.
    pub fn allows_caching(&self) -> bool {
        self.no_proxy_caching != Some(true) && self.use_caching_proxy != Some(false)
    }

    /// The rules as SETTINGS carries them: canonical JSON, keys sorted, no white space.
    pub fn settings_json(&self) -> Vec<u8> {
        let rules = Rules {
            auth_hosts: self
                .culvert
                .as_ref()
                .and_then(|c| c.auth_hosts.clone())
                .unwrap_or_default(),
            direct_domains: self.direct_domains.clone().unwrap_or_default(),
            domain_names: self.domain_names.clone().unwrap_or_default(),
            fast_fail_regexps: self.fast_fail_regexps.clone().unwrap_or_default(),
            no_proxy_caching: !self.allows_caching(),
            no_ssl_bump_domains: self.no_ssl_bump_domains.clone().unwrap_or_default(),
        };
        serde_json::to_vec(&rules).unwrap_or_default()
    }

    /// The same with nothing in its rules.
    pub fn without_rules(&self) -> Self {
        let culvert = self.culvert.clone().map(|c| MemberRequest { auth_hosts: None, ..c });
        Self {
            domain_names: None,
            direct_domains: None,
            fast_fail_regexps: None,
            no_ssl_bump_domains: None,
            no_proxy_caching: None,
            use_caching_proxy: None,
            culvert,
            ..self.clone()
        }
    }

    /// Takes other rules, as SETTINGS carries them.
    ///
    /// # Errors
    /// A sentence that names what is wrong in them; nothing is taken then.
    pub fn take_rules(&mut self, json: &[u8]) -> Result<(), String> {
        let rules: Rules = serde_json::from_slice(json).map_err(|e| format!("the rules: {e}"))?;
        let mut taken = self.clone();
        taken.culvert.get_or_insert_default().auth_hosts = Some(rules.auth_hosts);
        taken.direct_domains = Some(rules.direct_domains);
        taken.domain_names = Some(rules.domain_names);
        taken.fast_fail_regexps = Some(rules.fast_fail_regexps);
        taken.no_proxy_caching = Some(rules.no_proxy_caching);
        taken.use_caching_proxy = Some(!rules.no_proxy_caching);
        taken.no_ssl_bump_domains = Some(rules.no_ssl_bump_domains);
        taken.check_sizes()?;
        *self = taken;
        Ok(())
    }

    /// Checks what a caller sends: every size, and how deep it is nested.
    ///
    /// # Errors
    /// A sentence for the caller that names the field.
    pub fn check(&self) -> Result<(), String> {
        for (name, value) in [("metadata", &self.metadata), ("extra_info", &self.extra_info)] {
            let levels = value.as_ref().map_or(0, levels);
            if levels > METADATA_LEVELS_MAX {
                return Err(format!("{name}: nested {levels} deep, at most {METADATA_LEVELS_MAX}"));
            }
        }
        self.check_sizes()
    }

    fn check_sizes(&self) -> Result<(), String> {
        let texts = [
            ("tunnel_identifier", &self.tunnel_identifier),
            ("shared", &self.shared),
            ("protocol", &self.protocol),
            ("vm_version", &self.vm_version),
        ];
        for (name, text) in texts {
            check_text(name, text.as_deref().unwrap_or_default())?;
        }
        let culvert = self.culvert.as_ref();
        let lists = [
            ("domain_names", &self.domain_names),
            ("direct_domains", &self.direct_domains),
            ("fast_fail_regexps", &self.fast_fail_regexps),
            ("no_ssl_bump_domains", &self.no_ssl_bump_domains),
            ("auth_hosts", culvert.map_or(&None, |c| &c.auth_hosts)),
        ];
        for (name, list) in lists {
            check_list(name, list.as_deref().unwrap_or_default())?;
        }
        let extra = json_bytes(&self.metadata) + json_bytes(&self.extra_info);
        if extra > METADATA_BYTES_MAX {
            return Err(format!(
                "metadata and extra_info: {extra} bytes, at most {METADATA_BYTES_MAX}"
            ));
        }
        let rules = self.settings_json().len();
        if rules > limits::SETTINGS_BYTES_MAX {
            return Err(format!(
                "all rules together: {rules} bytes, at most {}",
                limits::SETTINGS_BYTES_MAX
            ));
        }
        Ok(())
    }

    /// Its rules as the data plane asks them.
    ///
    /// # Errors
    /// A sentence that names what is wrong in them.
    pub fn rules(&self) -> Result<dataplane::rules::Rules, String> {
        let fast_fail = self.fast_fail_regexps.as_deref().unwrap_or_default();
        let auth_hosts = self.culvert.as_ref().and_then(|c| c.auth_hosts.as_deref());
        let auth_hosts = auth_hosts.unwrap_or_default();
        Ok(dataplane::rules::Rules {
            fast_fail: FastFail::compile(fast_fail).map_err(|e| format!("fast_fail_regexps: {e}"))?,
            routes: self.routes()?,
            no_bump: domains("no_ssl_bump_domains", &self.no_ssl_bump_domains, true)?,
            no_cache: !self.allows_caching(),
            auth: Sites::parse(auth_hosts).map_err(|e| format!("auth_hosts: {e}"))?,
        })
    }

    /// Of its rules those that say which hosts go through the tunnel.
    ///
    /// # Errors
    /// As [`TunnelRequest::rules`].
    pub fn routes(&self) -> Result<Routes, String> {
        Ok(Routes {
            direct: domains("direct_domains", &self.direct_domains, false)?,
            tunnel: domains("domain_names", &self.domain_names, false)?,
        })
    }
}

/// Fields in the order of their names: that makes the JSON canonical.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Rules {
    auth_hosts: Vec<String>,
    direct_domains: Vec<String>,
    domain_names: Vec<String>,
    fast_fail_regexps: Vec<String>,
    no_proxy_caching: bool,
    no_ssl_bump_domains: Vec<String>,
}

/// The rules as the data plane asks them, of what SETTINGS carries.
///
/// # Errors
/// A sentence that names what is wrong in them, sizes included.
pub fn rules(json: &[u8]) -> Result<dataplane::rules::Rules, String> {
    let mut request = TunnelRequest::default();
    request.take_rules(json)?;
    request.rules()
}

/// Of lists and objects; 0 for what is neither.
fn levels(value: &Value) -> usize {
    let deepest = match value {
        Value::Array(values) => values.iter().map(levels).max(),
        Value::Object(fields) => fields.values().map(levels).max(),
        _ => return 0,
    };
    1 + deepest.unwrap_or(0)
}

fn domains(name: &str, list: &Option<Vec<String>>, knows_all: bool) -> Result<Domains, String> {
    Domains::parse(list.as_deref().unwrap_or_default(), knows_all).map_err(|e| format!("{name}: {e}"))
}

/// As [`rules`], of those that say which hosts go through the tunnel.
///
/// # Errors
/// As [`rules`].
pub fn routes(json: &[u8]) -> Result<Routes, String> {
    let mut request = TunnelRequest::default();
    request.take_rules(json)?;
    request.routes()
}

/// What of two sets of rules differs, in words: the first field of which that is so. None if they are the same.
pub fn difference(own: &[u8], pool: &[u8]) -> Option<String> {
    let parse = |json: &[u8]| serde_json::from_slice::<serde_json::Map<String, Value>>(json).unwrap_or_default();
    let (own, pool) = (parse(own), parse(pool));
    let names: std::collections::BTreeSet<_> = own.keys().chain(pool.keys()).collect();
    let name = names.into_iter().find(|name| own.get(*name) != pool.get(*name))?;
    let show = |rules: &serde_json::Map<String, Value>| {
        let text = rules.get(name).map_or("absent".into(), Value::to_string);
        let mut short: String = text.chars().take(DIFFERENCE_CHARS_MAX).collect();
        if short.len() < text.len() {
            short.push('…');
        }
        short
    };
    Some(format!("{name} is {} here and {} in the pool", show(&own), show(&pool)))
}

fn check_text(name: &str, text: &str) -> Result<(), String> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(format!("{name}: {} bytes, at most {TEXT_BYTES_MAX}", text.len()));
    }
    if text.chars().any(char::is_control) {
        return Err(format!("{name}: control characters are not allowed"));
    }
    Ok(())
}

fn check_list(name: &str, list: &[String]) -> Result<(), String> {
    if list.len() > LIST_ENTRIES_MAX {
        return Err(format!("{name}: {} entries, at most {LIST_ENTRIES_MAX}", list.len()));
    }
    list.iter().try_for_each(|entry| check_text(name, entry))
}

fn json_bytes(value: &Option<Value>) -> usize {
    value.as_ref().map_or(0, |v| v.to_string().len())
}

/// A tunnel as REST shows it. Times are unix seconds, null when not yet.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tunnel {
    /// 32 hex digits.
    pub id: Option<String>,
    pub owner: Option<String>,
    pub host: Option<String>,
    pub ip_address: Option<String>,
    /// `new`, `booting`, `running`, `halting` or `terminated`.
    pub status: Option<String>,
    pub tunnel_identifier: Option<String>,
    pub creation_time: Option<u64>,
    pub launch_time: Option<u64>,
    pub last_connected: Option<u64>,
    pub shutdown_time: Option<u64>,
    /// `replaced`, `lost`, `endpoint`, or what DELETE named.
    pub shutdown_reason: Option<String>,
    pub user_shutdown: Option<bool>,
    /// Running, and a request has gone through the whole path and back.
    pub is_ready: Option<bool>,
    pub shared_tunnel: Option<bool>,
    pub shared: Option<String>,
    pub tunnel_pool: Option<bool>,
    pub domain_names: Option<Vec<String>>,
    pub direct_domains: Option<Vec<String>>,
    pub fast_fail_regexps: Option<Vec<String>>,
    pub no_ssl_bump_domains: Option<Vec<String>>,
    pub no_proxy_caching: Option<bool>,
    pub use_caching_proxy: Option<bool>,
    pub use_kgp: Option<bool>,
    pub ssh_port: Option<u64>,
    pub vm_version: Option<String>,
    pub extra_info: Option<Value>,
    pub metadata: Option<Value>,
    /// In the answer to POST only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages: Option<Messages>,
    /// Null until `running`.
    pub culvert: Option<EndpointInfo>,
}

/// The `culvert` part of a tunnel: how to reach its endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EndpointInfo {
    /// `host:port` to dial.
    pub address: Option<String>,
    /// `<tunnel id>.tunnel.culvert`; link `n` sends the SNI `n.<server_name>`.
    pub server_name: Option<String>,
    /// SHA-256 of the endpoint's public key, 64 lower-case hex digits. A new one after each relaunch.
    pub fingerprint: Option<String>,
    /// Shards of the endpoint.
    pub shards: Option<u64>,
    pub links_max: Option<u64>,
    /// `address:port` where browsers find this tunnel's HTTP proxy.
    pub proxy: Option<String>,
    /// SHA-256 of the tunnel's CA certificate, 64 lower-case hex digits; of all tunnels of a pool the same.
    pub ca_fingerprint: Option<String>,
    /// Only where one tunnel is asked for.
    #[serde(flatten)]
    pub counts: Option<Counts>,
}

/// What an endpoint has counted of one tunnel, from the endpoint's start on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Exchanges that went through the tunnel: requests, and CONNECTs that stay opaque.
    pub requests: u64,
    /// Streams that are open now.
    pub streams: u64,
    /// Cuts of links that were bridged.
    pub resumes: u64,
    /// Frames that the endpoint wrote again after a cut.
    pub frames_replayed: u64,
    /// Of the endpoint, which a pool has in common. An earlier version's says nothing of it.
    #[serde(default)]
    pub cache: CacheCounts,
    /// Failures that browsers were told of by a page, or by a cut in the middle, by the name that page and log show. Of the
    /// endpoint too.
    #[serde(default)]
    pub errors: BTreeMap<String, u64>,
}

/// What an endpoint's response cache has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheCounts {
    /// Requests that were answered without asking the site.
    pub hits: u64,
    /// Requests that the site was asked, although something might have been stored.
    pub misses: u64,
    /// Bytes of contents that were sent from the cache.
    pub bytes_saved: u64,
    /// Answers that are stored now …
    pub entries: u64,
    /// … and what the cache holds, its tables included.
    pub bytes: u64,
}

/// Texts for the user of a client.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Messages {
    pub fatal: Option<Vec<String>>,
    pub warning: Option<Vec<String>>,
    pub info: Option<Vec<String>>,
}

impl Messages {
    /// Three empty lists.
    pub fn none() -> Self {
        Self {
            fatal: Some(Vec::new()),
            warning: Some(Vec::new()),
            info: Some(Vec::new()),
        }
    }
}

/// Body of `POST /rest/v1/{user}/tunnels/{id}/connected`, sent every 30 s.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Heartbeat {
    pub kgp_is_connected: Option<bool>,
    pub kgp_seconds_since_last_status_change: Option<f64>,
    pub memory: Option<Value>,
}

/// Answer to DELETE, `connected` and `num_jobs`; each uses a part.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Outcome {
    pub id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jobs_running: Option<u64>,
}

/// Any answer but 200.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Failure {
    pub error: Option<String>,
}

/// Arguments of DELETE, as query or as JSON body.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DeleteArguments {
    pub reason: Option<String>,
    /// 0 or 1, or a boolean: wait for running jobs.
    pub wait: Option<Value>,
    /// The older name of `wait`.
    pub wait_for_jobs: Option<Value>,
}

impl DeleteArguments {
    /// What the query says; of a name that stands twice the last value.
    pub fn of_query(query: &HashMap<String, String>) -> Self {
        let value = |name: &str| query.get(name).cloned().map(Value::String);
        Self {
            reason: query.get("reason").cloned(),
            wait: value("wait"),
            wait_for_jobs: value("wait_for_jobs"),
        }
    }

    /// Whether the tunnel's jobs may end first.
    pub fn waits(&self) -> bool {
        [&self.wait, &self.wait_for_jobs]
            .into_iter()
            .flatten()
            .any(|v| match v {
                Value::Bool(b) => *b,
                Value::Number(n) => n.as_u64() == Some(1),
                Value::String(s) => s == "1" || s == "true",
                _ => false,
            })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Lists in lists.
    pub fn lists(levels: usize) -> Value {
        (0..levels).fold(Value::Null, |inner, _| Value::Array(vec![inner]))
    }

    #[test]
    fn counts_of_an_earlier_version_are_read() {
        let counts: Counts =
            serde_json::from_str(r#"{"requests":1,"streams":0,"resumes":0,"frames_replayed":0}"#).unwrap();
        assert_eq!((counts.requests, counts.cache), (1, CacheCounts::default()));
    }

    #[test]
    fn nulls_absence_and_unknown_fields_are_all_the_same() {
        let empty: TunnelRequest = serde_json::from_str("{}").unwrap();
        let nulls: TunnelRequest = serde_json::from_str(
            r#"{"tunnel_identifier":null,"domain_names":null,"ssh_port":null,"culvert":null,"later":{"a":[1]}}"#,
        )
        .unwrap();
        assert_eq!(empty, nulls);
        assert_eq!(empty, TunnelRequest::default());
        let limit: TunnelRequest =
            serde_json::from_str(r#"{"metadata":{"nofile_limit":18446744073709551615}}"#).unwrap();
        assert_eq!(limit.metadata.unwrap()["nofile_limit"].as_u64(), Some(u64::MAX));
    }

    #[test]
    fn settings_are_canonical() {
        let request: TunnelRequest = serde_json::from_str(
            r#"{"no_ssl_bump_domains":["c"],"direct_domains":["a","b"],"no_proxy_caching":true,
                "culvert":{"auth_hosts":["h:80"]}}"#,
        )
        .unwrap();
        assert_eq!(
            String::from_utf8(request.settings_json()).unwrap(),
            r#"{"auth_hosts":["h:80"],"direct_domains":["a","b"],"domain_names":[],"fast_fail_regexps":[],"no_proxy_caching":true,"no_ssl_bump_domains":["c"]}"#
        );
    }

    #[test]
    fn rules_are_taken_whole_or_not_at_all() {
        let request = TunnelRequest {
            direct_domains: Some(vec!["a".into()]),
            culvert: Some(MemberRequest {
                auth_hosts: Some(vec!["h:80".into()]),
                ..Default::default()
            }),
            ..Default::default()
        };
        let mut other = TunnelRequest {
            vm_version: Some("kept".into()),
            ..Default::default()
        };
        other.take_rules(&request.settings_json()).unwrap();
        assert_eq!(other.settings_json(), request.settings_json());
        assert_eq!(other.vm_version.as_deref(), Some("kept"));
        let without = other.without_rules();
        assert_eq!(without.settings_json(), TunnelRequest::default().settings_json());
        assert_eq!(without.vm_version, other.vm_version);
        let long = format!(r#"{{"direct_domains":[],"domain_names":["{}"]}}"#, "x".repeat(2_000));
        for bad in ["{", r#"{"direct_domains":1}"#, &long] {
            assert!(other.take_rules(bad.as_bytes()).is_err(), "{bad}");
            assert_eq!(other.settings_json(), request.settings_json());
        }
    }

    #[test]
    fn caching_is_forbidden_by_either_field() {
        for (json, allowed) in [
            ("{}", true),
            (r#"{"no_proxy_caching":false,"use_caching_proxy":true}"#, true),
            (r#"{"no_proxy_caching":true,"use_caching_proxy":true}"#, false),
            (r#"{"use_caching_proxy":false}"#, false),
        ] {
            let request: TunnelRequest = serde_json::from_str(json).unwrap();
            assert_eq!(rules(&request.settings_json()).unwrap().no_cache, !allowed, "{json}");
        }
        let mut request: TunnelRequest = serde_json::from_str(r#"{"use_caching_proxy":false}"#).unwrap();
        request.take_rules(&TunnelRequest::default().settings_json()).unwrap();
        assert!(request.allows_caching(), "later rules count");
    }

    #[test]
    fn hosts_with_credentials_are_compiled_by_name() {
        let of = |host: &str| rules(format!(r#"{{"auth_hosts":["{host}"]}}"#).as_bytes());
        assert!(of("A.test:80").unwrap().auth.contains("a.test", 80));
        assert!(of("a.test").unwrap_err().starts_with("auth_hosts: \"a.test\""));
    }

    #[test]
    fn a_difference_names_the_field_and_both_values() {
        let of = |a: &str, b: &str| difference(a.as_bytes(), b.as_bytes());
        assert_eq!(of(r#"{"a":[1]}"#, r#"{"a":[1]}"#), None);
        assert_eq!(
            of(r#"{"a":[1],"b":["x"]}"#, r#"{"a":[1],"b":["y"]}"#).as_deref(),
            Some(r#"b is ["x"] here and ["y"] in the pool"#)
        );
        let long = of(&format!(r#"{{"a":"{}"}}"#, "é".repeat(500)), "{}").unwrap();
        assert!(long.chars().count() < 150 && long.contains("absent"), "{long}");
    }

    #[test]
    fn sizes_are_bounded() {
        let long = TunnelRequest {
            tunnel_identifier: Some("x".repeat(TEXT_BYTES_MAX + 1)),
            ..Default::default()
        };
        assert!(long.check().unwrap_err().starts_with("tunnel_identifier: "));
        let many = TunnelRequest {
            domain_names: Some(vec![String::new(); LIST_ENTRIES_MAX + 1]),
            ..Default::default()
        };
        assert!(many.check().unwrap_err().starts_with("domain_names: "));
        let big = TunnelRequest {
            fast_fail_regexps: Some(vec!["y".repeat(TEXT_BYTES_MAX); 4_200]),
            ..Default::default()
        };
        assert!(big.check().unwrap_err().starts_with("all rules together: "));
        let chatty = TunnelRequest {
            metadata: Some(Value::String("z".repeat(METADATA_BYTES_MAX))),
            ..Default::default()
        };
        assert!(chatty.check().is_err());
        let nested = |levels| TunnelRequest {
            extra_info: Some(lists(levels)),
            ..Default::default()
        };
        assert_eq!(nested(METADATA_LEVELS_MAX).check(), Ok(()));
        let text = nested(METADATA_LEVELS_MAX + 1).check().unwrap_err();
        assert_eq!(text, "extra_info: nested 33 deep, at most 32");
        let line = TunnelRequest {
            tunnel_identifier: Some("a\nb".into()),
            ..Default::default()
        };
        assert!(line.check().is_err());
    }

    #[test]
    fn delete_arguments_come_as_text_and_as_json() {
        for (json, waits) in [
            (r#"{"wait":"1"}"#, true),
            (r#"{"wait":1,"reason":"sigterm"}"#, true),
            (r#"{"wait_for_jobs":true}"#, true),
            (r#"{"wait":"0"}"#, false),
            (r#"{"wait":null}"#, false),
            (r#"{}"#, false),
        ] {
            let arguments: DeleteArguments = serde_json::from_str(json).unwrap();
            assert_eq!(arguments.waits(), waits, "{json}");
        }
    }
}
