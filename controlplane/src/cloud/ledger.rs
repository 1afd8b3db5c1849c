//! Live endpoints and their tunnels in the store, so that another `serve` can go on with them. Written when something
//! in their lives changes, never for a request.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, Row, params};
use serde::{Deserialize, Serialize};

use super::adoption::Key;
use super::history;
use super::pid::Pid;
use super::registry::State;
use super::store::Store;
use super::tunnel_ca::{Certificate, TunnelCa};
use crate::api::{Tunnel, TunnelRequest};
use crate::secret::Secret;

pub const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS endpoints (
        id TEXT PRIMARY KEY, proxy TEXT NOT NULL, shards INTEGER NOT NULL, rules BLOB NOT NULL,
        pid INTEGER, born TEXT, adoption_key BLOB, fingerprint TEXT,
        linked INTEGER NOT NULL DEFAULT FALSE, dark_since INTEGER);
    CREATE TABLE IF NOT EXISTS members (
        tunnel TEXT PRIMARY KEY, endpoint TEXT NOT NULL, entry TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS tunnel_cas (
        endpoint TEXT PRIMARY KEY, certificate TEXT NOT NULL, ca_key TEXT NOT NULL);
";

/// An endpoint as it was last written.
pub struct KeptEndpoint {
    pub id: String,
    pub proxy: SocketAddr,
    pub shards: usize,
    /// The rules in force, as JSON.
    pub rules: Vec<u8>,
    /// None if it was made by a version without.
    pub ca: Option<TunnelCa>,
    /// Its last process, which may still be there.
    pub process: Option<Launched>,
    pub fingerprint: Option<String>,
    /// A tunnel had a link.
    pub linked: bool,
    /// When the last link was lost, in unix milliseconds.
    pub dark_since: Option<i64>,
}

impl KeptEndpoint {
    /// Since when no tunnel has had a link. Nobody has seen when it lost one that it had.
    pub fn dark_since(&self) -> Option<Instant> {
        if self.linked {
            return Some(Instant::now());
        }
        let dark = Duration::from_millis(u64::try_from(now() - self.dark_since?).unwrap_or_default());
        Instant::now().checked_sub(dark)
    }
}

/// Unix milliseconds.
pub fn now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
}

/// A process of an endpoint, and what opens it to another `serve`.
pub struct Launched {
    pub pid: Pid,
    pub key: Key,
}

/// A tunnel as it was last written. Its rules are those of its endpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KeptTunnel {
    pub id: String,
    pub endpoint: String,
    pub owner: String,
    pub request: TunnelRequest,
    pub address: String,
    pub index: usize,
    pub state: State,
    /// All times are unix seconds.
    pub created: u64,
    pub launched: Option<u64>,
    pub last_connected: Option<u64>,
    pub shutdown: Option<u64>,
    pub reason: Option<String>,
    pub user_shutdown: bool,
    /// When its streams are cut, once it is on its way out.
    pub cut_at: Option<u64>,
}

/// A new endpoint.
pub struct NewEndpoint {
    pub id: String,
    pub proxy: SocketAddr,
    pub shards: usize,
    pub rules: Vec<u8>,
    pub ca: TunnelCa,
}

/// Writes a new tunnel, its endpoint if that is new too, and what became of those that make room for it; all or nothing.
///
/// # Errors
/// The store fails.
pub async fn add(
    store: &Store,
    object: Tunnel,
    tunnel: KeptTunnel,
    endpoint: Option<NewEndpoint>,
    replaced: Vec<KeptTunnel>,
) -> rusqlite::Result<()> {
    store
        .run(move |c| {
            let c = c.transaction()?;
            history::write(&c, &object)?;
            if let Some(e) = endpoint {
                let shards = u32::try_from(e.shards).unwrap_or(u32::MAX);
                let values = params![e.id, e.proxy.to_string(), shards, e.rules];
                c.execute(
                    "INSERT INTO endpoints (id, proxy, shards, rules) VALUES (?1, ?2, ?3, ?4)",
                    values,
                )?;
                c.execute(
                    "INSERT INTO tunnel_cas (endpoint, certificate, ca_key) VALUES (?1, ?2, ?3)",
                    params![e.id, e.ca.certificate.0, e.ca.key.expose()],
                )?;
            }
            let values = params![tunnel.id, tunnel.endpoint, entry(&tunnel)];
            c.execute(
                "INSERT INTO members (tunnel, endpoint, entry) VALUES (?1, ?2, ?3)",
                values,
            )?;
            update(&c, &replaced)?;
            c.commit()
        })
        .await
}

/// Writes what is new about tunnels that have not ended.
///
/// # Errors
/// The store fails.
pub async fn save(store: &Store, tunnels: Vec<KeptTunnel>) -> rusqlite::Result<()> {
    store
        .run(move |c| {
            let c = c.transaction()?;
            update(&c, &tunnels)?;
            c.commit()
        })
        .await
}

fn update(c: &Connection, tunnels: &[KeptTunnel]) -> rusqlite::Result<()> {
    let mut update = c.prepare_cached("UPDATE members SET entry = ?2 WHERE tunnel = ?1")?;
    for tunnel in tunnels {
        update.execute(params![tunnel.id, entry(tunnel)])?;
    }
    Ok(())
}

/// Rules may be long, and a pool has them once.
fn entry(tunnel: &KeptTunnel) -> String {
    let tunnel = KeptTunnel {
        request: tunnel.request.without_rules(),
        ..tunnel.clone()
    };
    serde_json::to_string(&tunnel).unwrap_or_default()
}

/// An endpoint has a new process, of which no key is known yet.
///
/// # Errors
/// The store fails.
pub async fn launched(store: &Store, id: &str, process: Launched) -> rusqlite::Result<()> {
    let id = id.to_owned();
    store
        .run(move |c| {
            let Launched { pid, key } = process;
            c.execute(
                "UPDATE endpoints SET pid = ?2, born = ?3, adoption_key = ?4, fingerprint = NULL WHERE id = ?1",
                params![id, pid.id, pid.born, key.expose()],
            )?;
            Ok(())
        })
        .await
}

/// The endpoint's process runs, under this key.
///
/// # Errors
/// The store fails.
pub async fn runs(store: &Store, id: &str, fingerprint: &str) -> rusqlite::Result<()> {
    let values = (id.to_owned(), fingerprint.to_owned());
    execute(store, "UPDATE endpoints SET fingerprint = ?2 WHERE id = ?1", values).await
}

/// New rules are in force.
///
/// # Errors
/// The store fails.
pub async fn rules(store: &Store, id: &str, rules: Vec<u8>) -> rusqlite::Result<()> {
    let values = (id.to_owned(), rules);
    execute(store, "UPDATE endpoints SET rules = ?2 WHERE id = ?1", values).await
}

/// The endpoint has its first link, or has lost its last one.
///
/// # Errors
/// The store fails.
pub async fn linked(store: &Store, id: &str, linked: bool, dark_since: Option<i64>) -> rusqlite::Result<()> {
    let values = (id.to_owned(), linked, dark_since);
    execute(
        store,
        "UPDATE endpoints SET linked = ?2, dark_since = ?3 WHERE id = ?1",
        values,
    )
    .await
}

async fn execute(
    store: &Store,
    sql: &'static str,
    values: impl rusqlite::Params + Send + 'static,
) -> rusqlite::Result<()> {
    store.run(move |c| c.execute(sql, values).map(drop)).await
}

/// A tunnel has ended: it is history, and its endpoint with the last one.
///
/// # Errors
/// The store fails.
pub async fn ended(store: &Store, object: Tunnel) -> rusqlite::Result<()> {
    store
        .run(move |c| {
            let c = c.transaction()?;
            history::write(&c, &object)?;
            c.execute("DELETE FROM members WHERE tunnel = ?1", [&object.id])?;
            forget_empty(&c)?;
            c.commit()
        })
        .await
}

/// Forgets all tunnels but these (a JSON list of ids), and endpoints without any.
///
/// # Errors
/// The store fails.
pub fn keep(c: &Connection, tunnels: &str) -> rusqlite::Result<()> {
    c.execute(
        "DELETE FROM members WHERE tunnel NOT IN (SELECT value FROM json_each(?1))",
        [tunnels],
    )?;
    forget_empty(c)
}

/// Forgets endpoints without a tunnel.
fn forget_empty(c: &Connection) -> rusqlite::Result<()> {
    c.execute_batch(
        "DELETE FROM endpoints WHERE id NOT IN (SELECT endpoint FROM members);
         DELETE FROM tunnel_cas WHERE endpoint NOT IN (SELECT id FROM endpoints);",
    )
}

/// All that the last `serve` left. What cannot be read is as good as ended, and forgotten.
///
/// # Errors
/// The store fails.
pub async fn load(store: &Store) -> rusqlite::Result<Vec<(KeptEndpoint, Vec<KeptTunnel>)>> {
    store
        .run(move |c| {
            let mut all = BTreeMap::new();
            let mut rows = c.prepare("SELECT * FROM endpoints LEFT JOIN tunnel_cas ON endpoint = id")?;
            for kept in rows.query_map([], read)? {
                if let Some(kept) = kept? {
                    all.insert(kept.id.clone(), (kept, Vec::new()));
                }
            }
            let mut rows = c.prepare("SELECT endpoint, entry FROM members")?;
            let mut rows = rows.query([])?;
            while let Some(row) = rows.next()? {
                let (endpoint, entry): (String, String) = (row.get(0)?, row.get(1)?);
                let Some((endpoint, tunnels)) = all.get_mut(&endpoint) else {
                    continue;
                };
                if let Ok(mut tunnel) = serde_json::from_str::<KeptTunnel>(&entry)
                    && tunnel.request.take_rules(&endpoint.rules).is_ok()
                {
                    tunnels.push(tunnel);
                }
            }
            Ok(all.into_values().collect())
        })
        .await
}

fn read(row: &Row<'_>) -> rusqlite::Result<Option<KeptEndpoint>> {
    let Ok(proxy) = row.get::<_, String>("proxy")?.parse() else {
        return Ok(None);
    };
    let pid: Option<i32> = row.get("pid")?;
    let born: Option<String> = row.get("born")?;
    let key: Option<Vec<u8>> = row.get("adoption_key")?;
    let certificate: Option<String> = row.get("certificate")?;
    let ca_key = row.get::<_, Option<String>>("ca_key")?.map(Secret::new);
    let ca = certificate.map(Certificate).zip(ca_key);
    let process = pid.zip(born).zip(key.and_then(|k| Key::of(&k)));
    Ok(Some(KeptEndpoint {
        id: row.get("id")?,
        proxy,
        shards: row.get::<_, u32>("shards")? as usize,
        rules: row.get("rules")?,
        ca: ca.map(|(certificate, key)| TunnelCa { certificate, key }),
        process: process.map(|((id, born), key)| Launched {
            pid: Pid { id, born },
            key,
        }),
        fingerprint: row.get("fingerprint")?,
        linked: row.get("linked")?,
        dark_since: row.get("dark_since")?,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::METADATA_LEVELS_MAX;
    use crate::api::tests::lists;
    use crate::cloud::store;

    fn tunnel(id: &str, endpoint: &str) -> KeptTunnel {
        let mut request = TunnelRequest {
            tunnel_identifier: Some("x".into()),
            // As deep as may be.
            metadata: Some(lists(METADATA_LEVELS_MAX)),
            ..Default::default()
        };
        assert_eq!(request.check(), Ok(()));
        request.take_rules(br#"{"direct_domains":["d.test"]}"#).unwrap();
        KeptTunnel {
            id: id.into(),
            endpoint: endpoint.into(),
            owner: "ada".into(),
            request,
            address: "cloud.test:443".into(),
            index: 0,
            state: State::New,
            created: 1,
            launched: None,
            last_connected: None,
            shutdown: None,
            reason: None,
            user_shutdown: false,
            cut_at: None,
        }
    }

    fn ca(id: &str) -> TunnelCa {
        TunnelCa {
            certificate: Certificate(format!("certificate of {id}")),
            key: Secret::new(format!("key of {id}")),
        }
    }

    fn object(id: &str, status: &str) -> Tunnel {
        Tunnel {
            id: Some(id.into()),
            owner: Some("ada".into()),
            status: Some(status.into()),
            ..Default::default()
        }
    }

    #[test]
    fn a_life_is_read_as_it_was_written() {
        let store = Store::start(store::open(std::path::Path::new(":memory:")).unwrap()).unwrap();
        crate::runtime::Runtime::epoll().unwrap().block_on(async {
            let rules = tunnel("a", "a").request.settings_json();
            let new = NewEndpoint {
                id: "a".into(),
                proxy: "127.0.0.1:20000".parse().unwrap(),
                shards: 3,
                rules: rules.clone(),
                ca: ca("a"),
            };
            let (a, b) = (tunnel("a", "a"), tunnel("b", "a"));
            add(&store, object("a", "new"), a.clone(), Some(new), Vec::new())
                .await
                .unwrap();
            let halting = KeptTunnel {
                state: State::Halting,
                reason: Some("replaced".into()),
                cut_at: Some(9),
                ..a.clone()
            };
            add(&store, object("b", "new"), b.clone(), None, vec![halting.clone()])
                .await
                .unwrap();
            let [(endpoint, tunnels)] = &load(&store).await.unwrap()[..] else {
                panic!("one endpoint expected");
            };
            assert_eq!(
                (endpoint.proxy.port(), endpoint.shards, &endpoint.rules),
                (20_000, 3, &rules)
            );
            assert!(endpoint.process.is_none() && endpoint.fingerprint.is_none() && endpoint.dark_since().is_none());
            assert_eq!(tunnels, &[halting.clone(), b.clone()]);

            let pid = Pid {
                id: 7,
                born: "boot 1".into(),
            };
            let key = Key::random().unwrap();
            let process = Launched {
                pid: pid.clone(),
                key: key.clone(),
            };
            launched(&store, "a", process).await.unwrap();
            runs(&store, "a", "f").await.unwrap();
            linked(&store, "a", false, Some(now() - 60_000)).await.unwrap();
            let other = br#"{"direct_domains":["e.test"]}"#;
            super::rules(&store, "a", other.to_vec()).await.unwrap();
            let [(endpoint, tunnels)] = &load(&store).await.unwrap()[..] else {
                panic!("one endpoint expected");
            };
            let process = endpoint.process.as_ref().unwrap();
            assert!(process.pid == pid && process.key == key);
            assert_eq!(endpoint.fingerprint.as_deref(), Some("f"));
            assert!(endpoint.dark_since().unwrap().elapsed() >= Duration::from_secs(60));
            assert_eq!(tunnels[0].request.direct_domains.as_ref().unwrap(), &["e.test"]);
            assert_eq!(endpoint.ca, Some(ca("a")));

            // What has ended is not written again, and its endpoint goes with the last one.
            ended(&store, object("b", "terminated")).await.unwrap();
            save(&store, vec![b]).await.unwrap();
            assert_eq!(load(&store).await.unwrap()[0].1.len(), 1);
            ended(&store, object("a", "terminated")).await.unwrap();
            assert!(load(&store).await.unwrap().is_empty());
            let left = store.run(|c| c.query_row("SELECT count(*) FROM tunnel_cas", [], |row| row.get(0)));
            assert_eq!(left.await, Ok(0));
        });
    }

    #[test]
    fn only_what_goes_on_is_kept() {
        let store = Store::start(store::open(std::path::Path::new(":memory:")).unwrap()).unwrap();
        crate::runtime::Runtime::epoll().unwrap().block_on(async {
            for id in ["a", "b"] {
                let new = NewEndpoint {
                    id: id.into(),
                    proxy: "127.0.0.1:20000".parse().unwrap(),
                    shards: 1,
                    rules: b"{}".to_vec(),
                    ca: ca(id),
                };
                let tunnel = tunnel(id, id);
                add(&store, object(id, "running"), tunnel, Some(new), Vec::new())
                    .await
                    .unwrap();
            }
            assert_eq!(history::close_unfinished(&store, &["b".into()], 7).await.unwrap(), 1);
            let kept = load(&store).await.unwrap();
            let kept: Vec<_> = kept.into_iter().map(|(e, _)| (e.id, e.ca)).collect();
            assert_eq!(kept, [("b".to_owned(), Some(ca("b")))]);
            // Of a version that had none.
            let forgotten = store.run(|c| c.execute("DELETE FROM tunnel_cas", []));
            assert_eq!(forgotten.await, Ok(1));
            assert_eq!(load(&store).await.unwrap()[0].0.ca, None);
        });
    }
}
