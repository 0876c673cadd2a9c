//! Keeps the state of all resources between commands, in an SQLite database (`wisp.db`) in the data directory.
//!
//! Each kind of resource has a table of records. A record is a JSON document with a key, so a new field needs no
//! migration. The record of a resource has three parts: `meta` ([`Meta`]), `spec` (what was requested) and `status`
//! (what was assigned or observed). Settings, client tokens and invocations of commands have one part.
//!
//! Each change is one transaction, so a killed process leaves the state from before or after it. Writers wait for each
//! other. A generation guards each resource: a transaction cannot replace a record that another one wrote since it was
//! read. A record type declares its unique keys, such as an image's name, and the store enforces them.
//!
//! The schema has a version. Opening a store migrates an older version, and refuses a newer one without changing it.

pub mod address;
mod client_token;
pub mod command;
pub mod image;
mod image_alias;
pub mod instance;
pub mod internet_gateway;
pub mod key_pair;
pub mod launch_template;
mod meta;
mod migrations;
mod network;
pub mod route_table;
mod schema;
pub mod security_group;
mod setting;
pub mod snapshot;
pub mod subnet;
mod table;
mod unique_key;
mod usage;
pub mod volume;
pub mod vpc;

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, TransactionBehavior};

pub use address::{AddressRecord, AssociationRecord};
pub use client_token::ClientToken;
pub use command::{CommandRecord, InvocationRecord};
pub use image::{ImageRecord, Visibility};
pub use image_alias::ImageAlias;
pub use instance::{BlockDeviceMapping, InstanceRecord, LaunchRecord, SizeRecord};
pub use internet_gateway::InternetGatewayRecord;
pub use key_pair::KeyPairRecord;
pub use launch_template::{LaunchTemplateRecord, LaunchTemplateVersion};
pub use meta::Meta;
pub use network::NetworkRecord;
pub use route_table::{Route, RouteTableAssociation, RouteTableRecord};
pub use security_group::SecurityGroupRecord;
pub use setting::{MetadataDefaults, PendingNetworkChanges};
pub use snapshot::{SnapshotRecord, SnapshotState};
pub use subnet::SubnetRecord;
use table::Damaged;
pub use table::{Record, Resource, Transaction, Unversioned};
pub use usage::UsageCursor;
pub use volume::{AttachmentRecord, FiguresRecord, LayerFormat, LayerRecord, ModificationRecord, VolumeRecord};
pub use vpc::VpcRecord;

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
    /// Another record has the same key, or the same value of a unique key.
    #[error("the store already contains a record with the {name} {value:?} ({table})")]
    Duplicate { table: &'static str, name: &'static str, value: String },
    /// Another transaction wrote or removed the record since it was read: `stored` is its generation now.
    #[error("another command changed the record {key} ({table}) at the same time. Run the command again")]
    Conflict { table: &'static str, key: String, read: u64, stored: Option<u64> },
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

    /// Returns the number of committed transactions that changed the store. An unchanged number means unchanged records.
    pub fn generation(&self) -> Result<u64, StoreError> {
        let number: i64 = self.connection.query_row("SELECT number FROM generation", [], |row| row.get(0))?;
        Ok(u64::try_from(number).unwrap_or(0))
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
            meta: Meta::new("key-0123456789abcdef0".parse().unwrap(), 1, Default::default()),
            spec: key_pair::Spec {
                name: name.into(),
                key_type: "ed25519".into(),
                public_key: "ssh-ed25519 AAAA".into(),
            },
            status: key_pair::Status { fingerprint: "SHA256:x".into() },
        }
    }

    /// Returns the record of [`key`] as the store returns it after an insertion.
    fn stored(name: &str) -> KeyPairRecord {
        let mut record = key(name);
        record.meta.generation = 1;
        record
    }

    fn insert(store: &Store, name: &str) -> Result<(), StoreError> {
        store.write(|tx| tx.insert(&mut key(name)))
    }

    fn get(store: &Store, name: &str) -> Option<KeyPairRecord> {
        store.read::<_, StoreError>(|tx| tx.get(name)).unwrap()
    }

    fn image(id: &str, name: &str) -> ImageRecord {
        ImageRecord {
            meta: Meta::new(id.parse().unwrap(), 1, Default::default()),
            spec: image::Spec {
                name: name.into(),
                description: String::new(),
                visibility: Visibility::Private,
                source_instance: None,
                imds_support: None,
            },
            status: image::Status { owner: "me".into(), deregistered: None },
        }
    }

    #[test]
    fn record_survives_reopening() {
        let (store, dir) = store();
        insert(&store, "a").unwrap();
        drop(store);
        let store = Store::open(dir.path()).unwrap();
        assert_eq!(get(&store, "a"), Some(stored("a")));
        assert_eq!(get(&store, "b"), None);
    }

    #[test]
    fn failed_write_changes_nothing() {
        let (store, _directory) = store();
        let before = store.generation().unwrap();
        let result = store.write::<(), StoreError>(|tx| {
            tx.insert(&mut key("a"))?;
            tx.insert(&mut key("a"))
        });
        assert!(matches!(result, Err(StoreError::Duplicate { name: "key", .. })), "{result:?}");
        assert_eq!(store.read::<_, StoreError>(|tx| tx.list::<KeyPairRecord>()).unwrap(), []);
        assert_eq!(store.generation().unwrap(), before);
    }

    #[test]
    fn rehearse_changes_nothing() {
        let (store, _directory) = store();
        let listed = store.rehearse::<_, StoreError>(|tx| {
            tx.insert(&mut key("a"))?;
            tx.list::<KeyPairRecord>()
        });
        assert_eq!(listed.unwrap(), [stored("a")]);
        assert_eq!(store.read::<_, StoreError>(|tx| tx.list::<KeyPairRecord>()).unwrap(), []);
        insert(&store, "a").unwrap();
    }

    #[test]
    fn put_raises_generations_of_record_and_store() {
        let (store, _directory) = store();
        insert(&store, "a").unwrap();
        let before = store.generation().unwrap();
        store
            .write::<_, StoreError>(|tx| {
                let mut record = tx.get::<KeyPairRecord>("a")?.unwrap();
                tx.put(&mut record)?;
                tx.put(&mut record)
            })
            .unwrap();
        assert_eq!(get(&store, "a").unwrap().meta.generation, 3);
        assert_eq!(store.generation().unwrap(), before + 1);
        store.write::<_, StoreError>(|tx| tx.list::<KeyPairRecord>()).unwrap();
        assert_eq!(store.generation().unwrap(), before + 1, "a transaction without writes");
    }

    #[test]
    fn put_of_record_from_before_another_write_is_conflict() {
        let (store, _directory) = store();
        insert(&store, "a").unwrap();
        let mut old = get(&store, "a").unwrap();
        let mut new = old.clone();
        new.spec.key_type = "rsa".into();
        store.write::<_, StoreError>(|tx| tx.put(&mut new)).unwrap();
        let put = |record: &mut KeyPairRecord| store.write::<_, StoreError>(|tx| tx.put(record));
        assert!(matches!(put(&mut old), Err(StoreError::Conflict { read: 1, stored: Some(2), .. })));
        assert_eq!(get(&store, "a").as_ref(), Some(&new));
        store.write::<_, StoreError>(|tx| tx.remove::<KeyPairRecord>("a")).unwrap();
        assert!(matches!(put(&mut new), Err(StoreError::Conflict { read: 2, stored: None, .. })));
        assert_eq!(get(&store, "a"), None);
    }

    #[test]
    fn unique_key_belongs_to_one_record_until_released() {
        let (store, _directory) = store();
        let [mut a, mut b] = ["ami-0000000000000000a", "ami-0000000000000000b"].map(|id| image(id, "web"));
        store.write::<_, StoreError>(|tx| tx.insert(&mut a)).unwrap();
        let mut insert_b = || store.write::<_, StoreError>(|tx| tx.insert(&mut b));
        let refused = insert_b();
        assert!(
            matches!(&refused, Err(StoreError::Duplicate { table: "images", name: "name", value }) if value == "web"),
            "{refused:?}"
        );
        a.status.deregistered = Some(1);
        store.write::<_, StoreError>(|tx| tx.put(&mut a)).unwrap();
        insert_b().unwrap();
        a.status.deregistered = None;
        let refused = store.write::<_, StoreError>(|tx| tx.put(&mut a.clone()));
        assert!(matches!(refused, Err(StoreError::Duplicate { .. })), "{refused:?}");
        store.write::<_, StoreError>(|tx| tx.remove::<ImageRecord>("ami-0000000000000000b")).unwrap();
        store.write::<_, StoreError>(|tx| tx.put(&mut a)).unwrap();
    }

    #[test]
    fn writers_of_two_processes_are_serialized() {
        let (_, dir) = store();
        let add = |name: &str| {
            let store = Store::open(dir.path()).unwrap();
            for number in 0..50 {
                insert(&store, &format!("{name}{number}")).unwrap();
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
        ["a", "b", "c"].iter().for_each(|name| insert(&store, name).unwrap());
        store.connection.execute("UPDATE key_pairs SET record = '{\"id\": 7' WHERE key = 'b'", []).unwrap();
        let names = store.read::<_, StoreError>(|tx| tx.list::<KeyPairRecord>()).unwrap();
        assert_eq!(names.iter().map(|key| key.spec.name.as_str()).collect::<Vec<_>>(), ["a", "c"]);
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
                "meta": {"id": id, "created": 1, "generation": 0},
                "spec": {
                    "image_id": "ami-0123456789abcdef0", "key_name": null, "user_data": null,
                    "shutdown_behavior": "stop", "termination_protection": false,
                    "size": {"instance_type": "t3.nano", "vcpus": 1, "threads_per_core": 1, "memory_mib": 192},
                },
                "status": {
                    "launch": {
                        "reservation_id": "r-0123456789abcdef0", "launch_index": 0, "image_name": "none",
                        "sequence": sequence,
                    },
                    "state": "stopped", "state_reason": null, "launch_time": 1, "terminated": null,
                    "block_devices": [],
                },
            }))
            .unwrap()
        };
        let next = store.write::<_, StoreError>(|tx| {
            let first = InstanceRecord::next_sequence(tx)?;
            tx.insert(&mut instance("i-0000000000000000b", 7))?;
            tx.insert(&mut instance("i-0000000000000000a", 3))?;
            Ok((first, InstanceRecord::next_sequence(tx)?))
        });
        assert_eq!(next.unwrap(), (1, 8));
    }
}
