//! Tables of records, and the transaction that reads and writes them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt::Display;

use rusqlite::{OptionalExtension, params};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::unique_key::{claim, is_constraint, release};
use super::{Meta, StoreError};

/// A document with a key.
pub trait Record: Serialize + DeserializeOwned {
    const TABLE: &'static str;
    /// Names of the record's unique keys.
    const UNIQUE_KEYS: &'static [&'static str] = &[];

    fn key(&self) -> String;

    /// Returns the value of a unique key, or `None` if the record need not be unique in this respect.
    fn unique_key(&self, _name: &str) -> Option<String> {
        None
    }
}

/// The record of a resource. A write fails if the record was written since it was read.
pub trait Resource: Record {
    type Id: Copy + Display;

    fn meta(&self) -> &Meta<Self::Id>;

    fn meta_mut(&mut self) -> &mut Meta<Self::Id>;
}

/// A record without a generation. The last write wins.
pub trait Unversioned: Record {}

/// A transaction within [`Store::write`](super::Store::write) or [`Store::read`](super::Store::read).
#[derive(Debug)]
pub struct Transaction<'a> {
    pub(super) transaction: rusqlite::Transaction<'a>,
    pub(super) is_changed: Cell<bool>,
    damaged: &'a RefCell<Damaged>,
}

/// A key with its record, or with the reason why the record cannot be parsed.
type Row<R> = (String, Result<R, StoreError>);

/// Error messages for records that cannot be parsed, by table and key.
pub(super) type Damaged = BTreeMap<(&'static str, String), String>;

/// The part of a stored resource that guards a write.
#[derive(Deserialize)]
struct Stored {
    meta: StoredMeta,
}

#[derive(Deserialize)]
struct StoredMeta {
    generation: u64,
}

impl<'a> Transaction<'a> {
    pub(super) fn new(transaction: rusqlite::Transaction<'a>, damaged: &'a RefCell<Damaged>) -> Transaction<'a> {
        Transaction { transaction, is_changed: Cell::new(false), damaged }
    }

    /// Commits the changes, and raises the store's generation if there are any.
    pub(super) fn commit(self) -> Result<(), StoreError> {
        if self.is_changed.get() {
            self.transaction.prepare_cached("UPDATE generation SET number = number + 1")?.execute([])?;
        }
        Ok(self.transaction.commit()?)
    }

    pub fn get<R: Record>(&self, key: &str) -> Result<Option<R>, StoreError> {
        self.text::<R>(key)?.map(|text| parse::<R, R>(key, &text)).transpose()
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

    fn text<R: Record>(&self, key: &str) -> Result<Option<String>, StoreError> {
        let text = format!("SELECT record FROM {} WHERE key = ?1", R::TABLE);
        let mut statement = self.transaction.prepare_cached(&text)?;
        Ok(statement.query_row(params![key], |row| row.get(0)).optional()?)
    }

    fn rows<R: Record>(&self) -> Result<Vec<Row<R>>, StoreError> {
        let text = format!("SELECT key, record FROM {} ORDER BY key", R::TABLE);
        let mut statement = self.transaction.prepare_cached(&text)?;
        let rows = statement.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))?;
        rows.map(|row| {
            let (key, text) = row?;
            let record = parse::<R, R>(&key, &text);
            Ok((key, record))
        })
        .collect()
    }

    /// Adds a resource with generation 1. Fails if the table contains the record's key or one of its unique keys.
    pub fn insert<R: Resource>(&self, record: &mut R) -> Result<(), StoreError> {
        record.meta_mut().generation = 1;
        let key = record.key();
        let text = format!("INSERT INTO {} (key, record) VALUES (?1, ?2)", R::TABLE);
        let inserted = self.transaction.prepare_cached(&text)?.execute(params![key, render(record)]);
        inserted.map_err(|error| match is_constraint(&error) {
            true => StoreError::Duplicate { table: R::TABLE, name: "key", value: key.clone() },
            false => error.into(),
        })?;
        self.written(&key, record)
    }

    /// Replaces a resource, and raises its generation. Fails if the stored generation is not the one that was read.
    pub fn put<R: Resource>(&self, record: &mut R) -> Result<(), StoreError> {
        let key = record.key();
        let stored = self.text::<R>(&key)?.map(|text| parse::<R, Stored>(&key, &text)).transpose()?;
        let stored = stored.map(|stored| stored.meta.generation);
        let read = record.meta().generation;
        if stored != Some(read) {
            return Err(StoreError::Conflict { table: R::TABLE, key, read, stored });
        }
        record.meta_mut().generation = read.saturating_add(1);
        self.replace(&key, record)
    }

    /// Adds or replaces a record without a generation.
    pub fn set<R: Unversioned>(&self, record: &R) -> Result<(), StoreError> {
        self.replace(&record.key(), record)
    }

    /// Removes a record. Does nothing if there is none.
    pub fn remove<R: Record>(&self, key: &str) -> Result<(), StoreError> {
        let text = format!("DELETE FROM {} WHERE key = ?1", R::TABLE);
        self.transaction.prepare_cached(&text)?.execute(params![key])?;
        self.is_changed.set(true);
        if R::UNIQUE_KEYS.is_empty() { Ok(()) } else { release(&self.transaction, R::TABLE, key) }
    }

    fn replace<R: Record>(&self, key: &str, record: &R) -> Result<(), StoreError> {
        let text = format!("INSERT OR REPLACE INTO {} (key, record) VALUES (?1, ?2)", R::TABLE);
        self.transaction.prepare_cached(&text)?.execute(params![key, render(record)])?;
        self.written(key, record)
    }

    fn written<R: Record>(&self, key: &str, record: &R) -> Result<(), StoreError> {
        self.is_changed.set(true);
        if R::UNIQUE_KEYS.is_empty() {
            return Ok(());
        }
        let value = |name: &&'static str| Some((*name, record.unique_key(name)?));
        let unique_keys: Vec<_> = R::UNIQUE_KEYS.iter().filter_map(value).collect();
        claim(&self.transaction, R::TABLE, key, &unique_keys)
    }
}

/// Parses a stored document of the type `R`, or the part `T` of it.
fn parse<R: Record, T: DeserializeOwned>(key: &str, text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|source| StoreError::Record { table: R::TABLE, key: key.to_string(), source })
}

fn render(record: &impl Record) -> String {
    serde_json::to_string(record).expect("records are plain data with text for keys")
}
