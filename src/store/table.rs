//! Tables of records, and the transaction that reads and writes them.

use std::cell::RefCell;
use std::collections::BTreeMap;

use rusqlite::{OptionalExtension, params};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::StoreError;

pub trait Record: Serialize + DeserializeOwned {
    const TABLE: &'static str;

    fn key(&self) -> String;
}

/// A transaction within [`Store::write`](super::Store::write) or [`Store::read`](super::Store::read).
#[derive(Debug)]
pub struct Transaction<'a> {
    pub(super) transaction: rusqlite::Transaction<'a>,
    damaged: &'a RefCell<Damaged>,
}

/// A key with its record, or with the reason why the record cannot be parsed.
type Row<R> = (String, Result<R, StoreError>);

/// Error messages for records that cannot be parsed, by table and key.
pub(super) type Damaged = BTreeMap<(&'static str, String), String>;

impl<'a> Transaction<'a> {
    pub(super) fn new(transaction: rusqlite::Transaction<'a>, damaged: &'a RefCell<Damaged>) -> Transaction<'a> {
        Transaction { transaction, damaged }
    }

    pub(super) fn commit(self) -> Result<(), StoreError> {
        Ok(self.transaction.commit()?)
    }

    pub fn get<R: Record>(&self, key: &str) -> Result<Option<R>, StoreError> {
        let text = format!("SELECT record FROM {} WHERE key = ?1", R::TABLE);
        let mut statement = self.transaction.prepare_cached(&text)?;
        let record = statement.query_row(params![key], |row| row.get::<_, String>(0)).optional()?;
        record.map(|record| parse(key, &record)).transpose()
    }

    /// Returns all readable records in key order. Skips damaged records, so that commands for other records succeed.
    /// [`Store::take_damaged`](super::Store::take_damaged) reports the damaged ones.
    pub fn list<R: Record>(&self) -> Result<Vec<R>, StoreError> {
        let mut records = Vec::new();
        for (key, record) in self.rows::<R>()? {
            match record {
                Ok(record) => records.push(record),
                Err(error) => drop(self.damaged.borrow_mut().insert((R::TABLE, key), error.to_string())),
            }
        }
        Ok(records)
    }

    /// Returns all records in key order, and fails if one is damaged. Use this before removing unused files, because
    /// the files of a skipped record would look unused.
    pub fn list_whole<R: Record>(&self) -> Result<Vec<R>, StoreError> {
        self.rows::<R>()?.into_iter().map(|(_, record)| record).collect()
    }

    fn rows<R: Record>(&self) -> Result<Vec<Row<R>>, StoreError> {
        let text = format!("SELECT key, record FROM {} ORDER BY key", R::TABLE);
        let mut statement = self.transaction.prepare_cached(&text)?;
        let rows = statement.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))?;
        rows.map(|row| {
            let (key, text) = row?;
            let record = parse(&key, &text);
            Ok((key, record))
        })
        .collect()
    }

    /// Fails if the table contains the record's key already.
    pub fn insert<R: Record>(&self, record: &R) -> Result<(), StoreError> {
        let text = format!("INSERT INTO {} (key, record) VALUES (?1, ?2)", R::TABLE);
        self.transaction.prepare_cached(&text)?.execute(params![record.key(), render(record)])?;
        Ok(())
    }

    pub fn put<R: Record>(&self, record: &R) -> Result<(), StoreError> {
        let text = format!("INSERT OR REPLACE INTO {} (key, record) VALUES (?1, ?2)", R::TABLE);
        self.transaction.prepare_cached(&text)?.execute(params![record.key(), render(record)])?;
        Ok(())
    }

    pub fn remove<R: Record>(&self, key: &str) -> Result<(), StoreError> {
        let text = format!("DELETE FROM {} WHERE key = ?1", R::TABLE);
        self.transaction.prepare_cached(&text)?.execute(params![key])?;
        Ok(())
    }
}

fn parse<R: Record>(key: &str, record: &str) -> Result<R, StoreError> {
    serde_json::from_str(record).map_err(|source| StoreError::Record { table: R::TABLE, key: key.to_string(), source })
}

fn render(record: &impl Record) -> String {
    serde_json::to_string(record).expect("records are plain data with text for keys")
}
