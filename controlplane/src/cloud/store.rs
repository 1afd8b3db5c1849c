//! The embedded store: one SQLite file in the state folder, on a thread of its own.

use std::path::Path;

use super::ledger;
use super::limits::{STORE_BUSY_MS_MAX, STORE_CALLS_MAX};
use rusqlite::Connection;
use tokio::sync::oneshot;

const SCHEMA: &str = "
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = NORMAL;
    CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
    INSERT OR IGNORE INTO meta VALUES ('schema', '1');
    CREATE TABLE IF NOT EXISTS accounts (
        name TEXT PRIMARY KEY, key_sha256 BLOB NOT NULL, created INTEGER NOT NULL);
    CREATE TABLE IF NOT EXISTS tunnels (
        id TEXT PRIMARY KEY, owner TEXT NOT NULL, created INTEGER NOT NULL, status TEXT NOT NULL,
        object TEXT NOT NULL);
    CREATE INDEX IF NOT EXISTS tunnels_by_age ON tunnels (owner, created);
";

type Call = Box<dyn FnOnce(&mut Connection) + Send>;

/// A handle to the store. Calls run in order on the store's thread, so that the control thread never waits for a disk.
#[derive(Clone)]
pub struct Store {
    calls: tokio::sync::mpsc::Sender<Call>,
}

/// Opens the file and makes the tables that are missing.
///
/// # Errors
/// The file cannot be opened or is not ours.
pub fn open(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(std::time::Duration::from_millis(STORE_BUSY_MS_MAX))?;
    connection.execute_batch(SCHEMA)?;
    connection.execute_batch(ledger::SCHEMA)?;
    Ok(connection)
}

impl Store {
    /// Starts the store's thread over an open file.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(mut connection: Connection) -> std::io::Result<Self> {
        let (calls, mut waiting) = tokio::sync::mpsc::channel::<Call>(STORE_CALLS_MAX);
        std::thread::Builder::new().name("store".into()).spawn(move || {
            while let Some(call) = waiting.blocking_recv() {
                call(&mut connection);
            }
        })?;
        Ok(Self { calls })
    }

    /// Runs `call` on the store's thread.
    ///
    /// # Errors
    /// What SQLite says; `InvalidQuery` if the store's thread is gone.
    pub async fn run<T: Send + 'static>(
        &self,
        call: impl FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> rusqlite::Result<T> {
        let (answer, answered) = oneshot::channel();
        let call: Call = Box::new(move |connection| {
            // A caller that has gone away needs no answer.
            let _ = answer.send(call(connection));
        });
        if self.calls.send(call).await.is_err() {
            return Err(rusqlite::Error::InvalidQuery);
        }
        answered.await.unwrap_or(Err(rusqlite::Error::InvalidQuery))
    }
}
