//! Versions of the schema (`PRAGMA user_version`).

use std::path::Path;

use rusqlite::{Connection, TransactionBehavior};

use super::StoreError;
use super::migrations::MIGRATIONS;

fn latest() -> i64 {
    MIGRATIONS.len() as i64
}

/// Returns the store's version. Fails if this wisp does not support it yet.
pub(super) fn check(connection: &Connection, path: &Path) -> Result<i64, StoreError> {
    let failed = |source| StoreError::Open { path: path.to_path_buf(), source };
    let found = connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(failed)?;
    if found > latest() {
        return Err(StoreError::Newer { path: path.to_path_buf(), found, known: latest() });
    }
    Ok(found)
}

/// Migrates the store to the latest version, in one transaction.
pub(super) fn migrate(connection: &mut Connection, path: &Path) -> Result<(), StoreError> {
    if check(connection, path)? == latest() {
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // Another process may have migrated the store meanwhile.
    let found = check(&transaction, path)?;
    for step in MIGRATIONS.iter().skip(usize::try_from(found).unwrap_or(0)) {
        step(&transaction)?;
    }
    transaction.pragma_update(None, "user_version", latest())?;
    Ok(transaction.commit()?)
}
