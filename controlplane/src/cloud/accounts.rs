//! Accounts: a name, and the SHA-256 of an access key.

use rusqlite::{Connection, OptionalExtension, params};

use super::limits::USER_BYTES_MAX;
use super::store::Store;
use crate::secret::{self, Secret};

/// Why there is no new account.
#[derive(Debug)]
pub enum AddError {
    /// Not 1 to 64 of `a-z A-Z 0-9 . _ -`.
    Name,
    Exists,
    Randomness,
    Store(rusqlite::Error),
}

/// Makes an account and returns its access key, which is kept nowhere.
///
/// # Errors
/// The name is not allowed or taken, or the store fails.
pub fn add(connection: &Connection, name: &str, now: u64) -> Result<Secret, AddError> {
    if !is_name(name) {
        return Err(AddError::Name);
    }
    let key = secret::access_key().map_err(|_| AddError::Randomness)?;
    let added = connection.execute(
        "INSERT OR IGNORE INTO accounts (name, key_sha256, created) VALUES (?1, ?2, ?3)",
        params![name, key.hash().as_slice(), i64::try_from(now).unwrap_or(i64::MAX)],
    );
    match added {
        Ok(0) => Err(AddError::Exists),
        Ok(_) => Ok(key),
        Err(e) => Err(AddError::Store(e)),
    }
}

/// Whether `key` is the access key of `name`. An unknown name takes as long as a wrong key.
///
/// # Errors
/// The store fails.
pub async fn check(store: &Store, name: &str, key: &Secret) -> rusqlite::Result<bool> {
    let known = hash(store, name).await?;
    let equal = secret::ct_eq(&known.unwrap_or_default(), &key.hash());
    Ok(equal && known.is_some())
}

/// Whether there is such an account.
///
/// # Errors
/// The store fails.
pub async fn exists(store: &Store, name: &str) -> rusqlite::Result<bool> {
    Ok(hash(store, name).await?.is_some())
}

async fn hash(store: &Store, name: &str) -> rusqlite::Result<Option<[u8; 32]>> {
    let name = name.to_owned();
    store
        .run(move |c| {
            c.prepare_cached("SELECT key_sha256 FROM accounts WHERE name = ?1")?
                .query_row([name], |row| row.get(0))
                .optional()
        })
        .await
}

fn is_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    (1..=USER_BYTES_MAX).contains(&name.len()) && name.bytes().all(allowed) && !name.starts_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloud::store;

    #[test]
    fn a_key_opens_its_own_account_only() {
        let folder = tempfile::tempdir().unwrap();
        let connection = store::open(&folder.path().join("culvert.db")).unwrap();
        let ada = add(&connection, "ada", 1).unwrap();
        let bob = add(&connection, "bob", 1).unwrap();
        assert!(matches!(add(&connection, "ada", 2), Err(AddError::Exists)));
        for bad in ["", "a/b", "a:b", "-a", "a b", &"x".repeat(65)] {
            assert!(matches!(add(&connection, bad, 2), Err(AddError::Name)), "{bad}");
        }
        let store = Store::start(connection).unwrap();
        crate::runtime::Runtime::epoll().unwrap().block_on(async {
            assert!(check(&store, "ada", &ada).await.unwrap());
            assert!(!check(&store, "ada", &bob).await.unwrap());
            assert!(!check(&store, "eve", &ada).await.unwrap());
            assert!(exists(&store, "bob").await.unwrap() && !exists(&store, "eve").await.unwrap());
        });
        let file = std::fs::read(folder.path().join("culvert.db-wal")).unwrap_or_default();
        let planted = ada.expose().as_bytes();
        assert!(!file.windows(planted.len()).any(|w| w == planted));
    }
}
