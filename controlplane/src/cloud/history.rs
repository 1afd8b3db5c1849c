//! Tunnels in the store: they survive there as history.

use rusqlite::{Connection, OptionalExtension, params};

use super::ledger;
use super::limits::{TUNNEL_KEPT_BYTES_MAX, TUNNELS_KEPT_MAX};
use super::store::Store;
use crate::api::Tunnel;

/// Writes the tunnel's present state.
///
/// # Errors
/// The store fails.
pub fn write(c: &Connection, tunnel: &Tunnel) -> rusqlite::Result<()> {
    let created = seconds(tunnel.creation_time.unwrap_or_default());
    let values = params![tunnel.id, tunnel.owner, created, tunnel.status, kept(tunnel)];
    c.execute(
        "INSERT OR REPLACE INTO tunnels (id, owner, created, status, object) VALUES (?1, ?2, ?3, ?4, ?5)",
        values,
    )?;
    c.execute(
        "DELETE FROM tunnels WHERE status = 'terminated' AND id NOT IN
            (SELECT id FROM tunnels ORDER BY created DESC LIMIT ?1)",
        [TUNNELS_KEPT_MAX],
    )?;
    Ok(())
}

/// A tunnel as JSON; one with long rules without them, or a tenant could fill the disk, and an answer with many of
/// them the memory.
fn kept(tunnel: &Tunnel) -> String {
    let whole = serde_json::to_string(tunnel).unwrap_or_default();
    if whole.len() <= TUNNEL_KEPT_BYTES_MAX {
        return whole;
    }
    let short = Tunnel {
        domain_names: None,
        direct_domains: None,
        fast_fail_regexps: None,
        no_ssl_bump_domains: None,
        extra_info: None,
        metadata: None,
        ..tunnel.clone()
    };
    serde_json::to_string(&short).unwrap_or_default()
}

/// A tunnel of `owner`, as it was last saved.
///
/// # Errors
/// The store fails.
pub async fn load(store: &Store, owner: &str, id: &str) -> rusqlite::Result<Option<Tunnel>> {
    let (owner, id) = (owner.to_owned(), id.to_owned());
    let object: Option<String> = store
        .run(move |c| {
            c.query_row(
                "SELECT object FROM tunnels WHERE id = ?1 AND owner = ?2",
                [id, owner],
                |row| row.get(0),
            )
            .optional()
        })
        .await?;
    Ok(object.and_then(|text| serde_json::from_str(&text).ok()))
}

/// The newest tunnels of `owner` that have ended, newest first, at most `limit`.
///
/// # Errors
/// The store fails.
pub async fn ended(store: &Store, owner: &str, limit: u32) -> rusqlite::Result<Vec<Tunnel>> {
    let owner = owner.to_owned();
    let objects: Vec<String> = store
        .run(move |c| {
            let mut rows = c.prepare_cached(
                "SELECT object FROM tunnels WHERE owner = ?1 AND status = 'terminated'
                 ORDER BY created DESC, rowid DESC LIMIT ?2",
            )?;
            let objects = rows.query_map(params![owner, limit], |row| row.get(0))?;
            objects.collect()
        })
        .await?;
    Ok(objects
        .iter()
        .filter_map(|text| serde_json::from_str(text).ok())
        .collect())
}

/// A tunnel that came to nothing.
pub fn lost(tunnel: &Tunnel, now: u64) -> Tunnel {
    Tunnel {
        status: Some("terminated".into()),
        shutdown_reason: Some("lost".into()),
        shutdown_time: Some(now),
        ..tunnel.clone()
    }
}

/// Marks what an earlier process left unfinished as lost, but for the tunnels that go on, and says how many that were.
///
/// # Errors
/// The store fails.
pub async fn close_unfinished(store: &Store, going_on: &[String], now: u64) -> rusqlite::Result<usize> {
    let going_on = serde_json::to_string(going_on).unwrap_or_default();
    store
        .run(move |c| {
            let c = c.transaction()?;
            let lost = c.execute(
                "UPDATE tunnels SET status = 'terminated', object = json_set(object, '$.status', 'terminated',
                    '$.shutdown_reason', 'lost', '$.shutdown_time', ?1, '$.is_ready', json('false'),
                    '$.culvert', NULL)
                 WHERE status != 'terminated' AND id NOT IN (SELECT value FROM json_each(?2))",
                params![seconds(now), going_on],
            )?;
            ledger::keep(&c, &going_on)?;
            c.commit()?;
            Ok(lost)
        })
        .await
}

/// SQLite's integers have a sign.
fn seconds(unix: u64) -> i64 {
    i64::try_from(unix).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloud::store;

    fn tunnel(id: &str, status: &str, created: u64) -> Tunnel {
        Tunnel {
            id: Some(id.into()),
            owner: Some("ada".into()),
            status: Some(status.into()),
            creation_time: Some(created),
            ..Default::default()
        }
    }

    #[test]
    fn long_rules_are_not_kept() {
        let mut long = tunnel("a", "terminated", 1);
        long.direct_domains = Some(vec!["x".into()]);
        assert!(kept(&long).contains(r#""direct_domains":["x"]"#));
        long.fast_fail_regexps = Some(vec!["y".repeat(1_024); 4_000]);
        let text = kept(&long);
        assert!(text.len() <= TUNNEL_KEPT_BYTES_MAX && text.contains(r#""status":"terminated""#));
    }

    #[test]
    fn tunnels_survive_as_history() {
        let connection = store::open(std::path::Path::new(":memory:")).unwrap();
        let store = Store::start(connection).unwrap();
        crate::runtime::Runtime::epoll().unwrap().block_on(async {
            for (id, status, created) in [("a", "running", 1), ("b", "terminated", 2), ("a", "halting", 1)] {
                let tunnel = tunnel(id, status, created);
                store.run(move |c| write(c, &tunnel)).await.unwrap();
            }
            assert_eq!(
                load(&store, "ada", "a").await.unwrap().unwrap().status.unwrap(),
                "halting"
            );
            assert!(load(&store, "bob", "a").await.unwrap().is_none());
            assert_eq!(ended(&store, "ada", 9).await.unwrap().len(), 1);
            assert_eq!(close_unfinished(&store, &["a".into()], 6).await.unwrap(), 0);
            assert_eq!(close_unfinished(&store, &[], 7).await.unwrap(), 1);
            let lost = load(&store, "ada", "a").await.unwrap().unwrap();
            assert_eq!(lost.status.as_deref(), Some("terminated"));
            assert_eq!(lost.shutdown_reason.as_deref(), Some("lost"));
            assert_eq!((lost.shutdown_time, lost.is_ready), (Some(7), Some(false)));
            let ids: Vec<_> = ended(&store, "ada", 9)
                .await
                .unwrap()
                .into_iter()
                .map(|t| t.id.unwrap())
                .collect();
            assert_eq!(ids, ["b", "a"]);
            assert_eq!(ended(&store, "ada", 1).await.unwrap().len(), 1);
        });
    }
}
