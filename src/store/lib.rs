//! Keeps the state of all resources between commands, in an SQLite database (`wisp.db`) in the data directory.
//!
//! Each kind of resource has a table of records. A record is a JSON document with a key, so a new field needs no
//! migration. SQLite enforces unique keys, and unique names of registered images and security groups. Each change is
//! one transaction, so a killed process leaves the state from before or after it. Writers wait for each other.
//!
//! The schema has a version. Opening a store migrates an older version, and refuses a newer one without changing it.

mod address;
mod client_token;
mod image;
mod instance;
mod key_pair;
mod network;
mod schema;
mod security_group;
mod setting;
mod snapshot;
mod table;
mod usage;
mod volume;
mod vpc;

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, TransactionBehavior};

pub use address::{AddressRecord, AssociationRecord};
pub use client_token::ClientToken;
pub use image::{ImageRecord, Visibility};
pub use instance::{BlockDeviceMapping, InstanceRecord};
pub use key_pair::KeyPairRecord;
pub use network::NetworkRecord;
pub use security_group::SecurityGroupRecord;
pub use setting::MetadataDefaults;
pub use snapshot::{SnapshotRecord, SnapshotState};
use table::Damaged;
pub use table::{Record, Transaction};
pub use usage::UsageCursor;
pub use volume::{AttachmentRecord, LayerFormat, LayerRecord, VolumeRecord};
pub use vpc::{SubnetRecord, VpcRecord};

/// Name of the database file in the data directory.
pub const FILE: &str = "wisp.db";
/// Maximum time to wait for other writers. Transactions take milliseconds, unless the disk is very slow.
const BUSY_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot open the store {}: {source}", path.display())]
    Open { path: PathBuf, source: rusqlite::Error },
    #[error(
        "the store {} has version {found}, but this wisp supports only versions up to {known}. Nothing was changed. \
         Use the newer wisp that wrote it, or set WISP_HOME to another directory", path.display()
    )]
    Newer { path: PathBuf, found: i64, known: i64 },
    /// For example, the disk is full, or the file is damaged.
    #[error("database error in the store: {0}")]
    Sqlite(#[from] rusqlite::Error),
    #[error("the store contains a damaged record ({table} {key}): {source}")]
    Record { table: &'static str, key: String, source: serde_json::Error },
}

#[derive(Debug)]
pub struct Store {
    connection: Connection,
    /// Damaged records that [`Transaction::list`] has skipped and that have not been reported yet.
    damaged: RefCell<Damaged>,
}

impl Store {
    /// Opens the store in `dir`. Creates it if it does not exist, and migrates an older schema.
    pub fn open(dir: &Path) -> Result<Store, StoreError> {
        let path = dir.join(FILE);
        let failed = |source| StoreError::Open { path: path.clone(), source };
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(&path, flags).map_err(failed)?;
        connection.busy_timeout(BUSY_TIMEOUT).map_err(failed)?;
        // Check the version before setting anything, because a newer store must not be changed.
        schema::check(&connection, &path)?;
        connection.pragma_update(None, "journal_mode", "WAL").map_err(failed)?;
        // A change that a command reported must survive a power failure.
        connection.pragma_update(None, "synchronous", "FULL").map_err(failed)?;
        connection.pragma_update(None, "foreign_keys", true).map_err(failed)?;
        schema::migrate(&mut connection, &path)?;
        Ok(Store { connection, damaged: RefCell::default() })
    }

    /// Runs `change` in a transaction and commits all of its writes, or none if it fails. Other writers wait meanwhile.
    /// Fails within another transaction of this store, because SQLite transactions do not nest.
    pub fn write<T, E: From<StoreError>>(&self, change: impl FnOnce(&Transaction) -> Result<T, E>) -> Result<T, E> {
        let transaction = self.begin(TransactionBehavior::Immediate)?;
        let result = change(&transaction)?;
        transaction.commit()?;
        Ok(result)
    }

    /// Returns what [`write`](Self::write) would return, but rolls the transaction back.
    pub fn rehearse<T, E: From<StoreError>>(&self, change: impl FnOnce(&Transaction) -> Result<T, E>) -> Result<T, E> {
        // The transaction is rolled back when it is dropped.
        change(&self.begin(TransactionBehavior::Immediate)?)
    }

    /// Returns the error for each damaged record that [`Transaction::list`] has skipped since the last call.
    pub fn take_damaged(&self) -> Vec<String> {
        self.damaged.take().into_values().collect()
    }

    /// Runs `look` in a read transaction, in which all reads see the same state.
    pub fn read<T, E: From<StoreError>>(&self, look: impl FnOnce(&Transaction) -> Result<T, E>) -> Result<T, E> {
        look(&self.begin(TransactionBehavior::Deferred)?)
    }

    fn begin(&self, behavior: TransactionBehavior) -> Result<Transaction<'_>, StoreError> {
        let transaction = rusqlite::Transaction::new_unchecked(&self.connection, behavior)?;
        Ok(Transaction::new(transaction, &self.damaged))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn store() -> (Store, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        (Store::open(dir.path()).unwrap(), dir)
    }

    fn key(name: &str) -> KeyPairRecord {
        KeyPairRecord {
            id: "key-0123456789abcdef0".parse().unwrap(),
            name: name.into(),
            fingerprint: "SHA256:x".into(),
            key_type: "ed25519".into(),
            public_key: "ssh-ed25519 AAAA".into(),
            created: 1,
            tags: Default::default(),
        }
    }

    #[test]
    fn record_survives_reopening() {
        let (store, dir) = store();
        store.write::<_, StoreError>(|tx| tx.insert(&key("a"))).unwrap();
        drop(store);
        let store = Store::open(dir.path()).unwrap();
        assert_eq!(store.read::<_, StoreError>(|tx| tx.get::<KeyPairRecord>("a")).unwrap(), Some(key("a")));
        assert_eq!(store.read::<_, StoreError>(|tx| tx.get::<KeyPairRecord>("b")).unwrap(), None);
    }

    #[test]
    fn failed_write_changes_nothing() {
        let (store, _directory) = store();
        let result = store.write::<(), StoreError>(|tx| {
            tx.insert(&key("a"))?;
            tx.insert(&key("a"))
        });
        assert!(matches!(result, Err(StoreError::Sqlite(_))));
        assert_eq!(store.read::<_, StoreError>(|tx| tx.list::<KeyPairRecord>()).unwrap(), []);
    }

    #[test]
    fn rehearse_changes_nothing() {
        let (store, _directory) = store();
        let listed = store.rehearse::<_, StoreError>(|tx| {
            tx.insert(&key("a"))?;
            tx.list::<KeyPairRecord>()
        });
        assert_eq!(listed.unwrap(), [key("a")]);
        assert_eq!(store.read::<_, StoreError>(|tx| tx.list::<KeyPairRecord>()).unwrap(), []);
        store.write::<_, StoreError>(|tx| tx.insert(&key("a"))).unwrap();
    }

    #[test]
    fn writers_of_two_processes_are_serialized() {
        let (_, dir) = store();
        let add = |name: &str| {
            let store = Store::open(dir.path()).unwrap();
            for number in 0..50 {
                store.write::<_, StoreError>(|tx| tx.insert(&key(&format!("{name}{number}")))).unwrap();
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(|| add("a"));
            scope.spawn(|| add("b"));
        });
        let store = Store::open(dir.path()).unwrap();
        assert_eq!(store.read::<_, StoreError>(|tx| tx.list::<KeyPairRecord>()).unwrap().len(), 100);
    }

    #[test]
    fn newer_store_is_refused_and_unchanged() {
        let (store, dir) = store();
        store.connection.pragma_update(None, "user_version", 1000).unwrap();
        drop(store);
        let before = std::fs::read(dir.path().join(FILE)).unwrap();
        let error = Store::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("version 1000"), "{error}");
        assert_eq!(std::fs::read(dir.path().join(FILE)).unwrap(), before);
    }

    #[test]
    fn damaged_record_is_left_out_of_lists_and_reported() {
        let (store, _directory) = store();
        store.write::<_, StoreError>(|tx| ["a", "b", "c"].iter().try_for_each(|name| tx.insert(&key(name)))).unwrap();
        store.connection.execute("UPDATE key_pairs SET record = '{\"id\": 7' WHERE key = 'b'", []).unwrap();
        let names = store.read::<_, StoreError>(|tx| tx.list::<KeyPairRecord>()).unwrap();
        assert_eq!(names.iter().map(|key| key.name.as_str()).collect::<Vec<_>>(), ["a", "c"]);
        let told = store.take_damaged();
        assert!(matches!(&told[..], [one] if one.contains("damaged record (key_pairs b)")), "{told:?}");
        assert_eq!(store.take_damaged(), [] as [String; 0]);
        let whole = store.read::<_, StoreError>(|tx| tx.list_whole::<KeyPairRecord>());
        assert!(matches!(whole, Err(StoreError::Record { .. })), "{whole:?}");
        assert!(store.read::<_, StoreError>(|tx| tx.get::<KeyPairRecord>("b")).is_err());
    }

    #[test]
    fn file_that_is_not_a_database_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), [b'x'; 4096]).unwrap();
        let error = Store::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("not a database"), "{error}");
    }

    #[test]
    fn sequence_numbers_follow_those_of_all_instances() {
        let (store, _dir) = store();
        let instance = |id: &str, sequence: u64| -> InstanceRecord {
            serde_json::from_value(serde_json::json!({
                "id": id, "reservation_id": "r-0123456789abcdef0", "launch_index": 0, "client_token": null,
                "image_id": "ami-0123456789abcdef0", "image_name": "none", "instance_type": "t3.nano", "vcpus": 1,
                "threads_per_core": 1, "memory_mib": 192, "state": "stopped", "state_reason": null, "created": 1,
                "sequence": sequence, "launch_time": 1, "terminated": null, "key_name": null, "user_data": null,
                "shutdown_behavior": "stop", "termination_protection": false, "block_devices": [],
            }))
            .unwrap()
        };
        let next = store.write::<_, StoreError>(|tx| {
            let first = InstanceRecord::next_sequence(tx)?;
            tx.insert(&instance("i-0000000000000000b", 7))?;
            tx.insert(&instance("i-0000000000000000a", 3))?;
            Ok((first, InstanceRecord::next_sequence(tx)?))
        });
        assert_eq!(next.unwrap(), (1, 8));
    }
}
