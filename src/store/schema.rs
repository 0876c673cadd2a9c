//! The schema and its versions (`PRAGMA user_version`).

use std::path::Path;

use rusqlite::{Connection, TransactionBehavior};

use super::StoreError;

/// What makes each version out of the one before; the first makes it out of nothing. A step that was ever released is
/// never changed.
const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE instances (key TEXT PRIMARY KEY NOT NULL, record TEXT NOT NULL) STRICT, WITHOUT ROWID;
    CREATE TABLE volumes (key TEXT PRIMARY KEY NOT NULL, record TEXT NOT NULL) STRICT, WITHOUT ROWID;
    CREATE TABLE snapshots (key TEXT PRIMARY KEY NOT NULL, record TEXT NOT NULL) STRICT, WITHOUT ROWID;
    CREATE TABLE images (key TEXT PRIMARY KEY NOT NULL, record TEXT NOT NULL) STRICT, WITHOUT ROWID;
    CREATE TABLE key_pairs (key TEXT PRIMARY KEY NOT NULL, record TEXT NOT NULL) STRICT, WITHOUT ROWID;
    CREATE TABLE client_tokens (key TEXT PRIMARY KEY NOT NULL, record TEXT NOT NULL) STRICT, WITHOUT ROWID;
    CREATE UNIQUE INDEX image_names ON images (json_extract(record, '$.name'))
        WHERE json_extract(record, '$.deregistered') IS NULL;
",
    "
    CREATE TABLE security_groups (key TEXT PRIMARY KEY NOT NULL, record TEXT NOT NULL) STRICT, WITHOUT ROWID;
    CREATE UNIQUE INDEX security_group_names ON security_groups (json_extract(record, '$.name'));
",
];

/// The version that this program writes.
fn latest() -> i64 {
    MIGRATIONS.len() as i64
}

/// Refuses a store of a newer version.
pub(super) fn check(connection: &Connection, path: &Path) -> Result<i64, StoreError> {
    let failed = |source| StoreError::Open { path: path.to_path_buf(), source };
    let found = connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(failed)?;
    if found > latest() {
        return Err(StoreError::Newer { path: path.to_path_buf(), found, known: latest() });
    }
    Ok(found)
}

/// Brings the store to the latest version, in one transaction.
pub(super) fn migrate(connection: &mut Connection, path: &Path) -> Result<(), StoreError> {
    if check(connection, path)? == latest() {
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // Another process may have done it meanwhile.
    let found = check(&transaction, path)?;
    for step in &MIGRATIONS[found as usize..] {
        transaction.execute_batch(step)?;
    }
    transaction.pragma_update(None, "user_version", latest())?;
    Ok(transaction.commit()?)
}
