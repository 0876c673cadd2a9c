//! Unique keys: values that at most one record of a kind has, such as an image's name.

use rusqlite::{ErrorCode, params};

use super::StoreError;

/// Claims the unique keys of a record, given as names and values, and gives up its previous ones.
pub(super) fn claim(
    tx: &rusqlite::Transaction,
    table: &'static str,
    key: &str,
    unique_keys: &[(&'static str, String)],
) -> Result<(), StoreError> {
    release(tx, table, key)?;
    let text = "INSERT INTO unique_keys (kind, name, value, key) VALUES (?1, ?2, ?3, ?4)";
    let mut insert = tx.prepare_cached(text)?;
    for (name, value) in unique_keys {
        insert.execute(params![table, name, value, key]).map_err(|error| match is_constraint(&error) {
            true => StoreError::Duplicate { table, name, value: value.clone() },
            false => error.into(),
        })?;
    }
    Ok(())
}

/// Gives up the unique keys of a record.
pub(super) fn release(tx: &rusqlite::Transaction, table: &str, key: &str) -> Result<(), StoreError> {
    tx.prepare_cached("DELETE FROM unique_keys WHERE kind = ?1 AND key = ?2")?.execute(params![table, key])?;
    Ok(())
}

pub(super) fn is_constraint(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::ConstraintViolation)
}
