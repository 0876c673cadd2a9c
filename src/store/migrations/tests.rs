//! Opens stores of earlier versions, which these tests create with the statements and records of that time.

use rusqlite::Connection;
use serde_json::{Value, json};

use super::super::*;
use super::MIGRATIONS;
use ec2::network::{SubnetRange, Zone};
use ec2::state::InstanceState;
use ec2::volume::VolumeState;

const VPC: &str = "vpc-0123456789abcdef0";
const IMAGE: &str = "ami-0123456789abcdef0";
const INSTANCE: &str = "i-0123456789abcdef0";
const VOLUME: &str = "vol-0123456789abcdef0";

/// Creates a store with `tables` and `statements`, as of `version`.
fn old_store(version: i64, tables: &[&str], statements: &str) -> (Connection, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let old = Connection::open(directory.path().join(FILE)).unwrap();
    for table in tables {
        let columns = "key TEXT PRIMARY KEY NOT NULL, record TEXT NOT NULL";
        old.execute_batch(&format!("CREATE TABLE {table} ({columns}) STRICT, WITHOUT ROWID")).unwrap();
    }
    old.execute_batch(statements).unwrap();
    old.pragma_update(None, "user_version", version).unwrap();
    (old, directory)
}

fn add(old: &Connection, table: &str, key: &str, record: &str) {
    old.execute(&format!("INSERT INTO {table} VALUES (?1, ?2)"), [key, record]).unwrap();
}

fn record_text(store: &Store, table: &str, key: &str) -> String {
    let text = format!("SELECT record FROM {table} WHERE key = ?1");
    store.connection.query_row(&text, [key], |row| row.get(0)).unwrap()
}

fn get<R: Record>(store: &Store, key: &str) -> R {
    store.read::<_, StoreError>(|tx| tx.get(key)).unwrap().unwrap()
}

#[test]
fn groups_and_instances_of_version_2_move_to_default_vpc() {
    let tables = ["instances", "volumes", "snapshots", "images", "key_pairs", "client_tokens", "security_groups"];
    let indexes = "
        CREATE UNIQUE INDEX image_names ON images (json_extract(record, '$.name'))
            WHERE json_extract(record, '$.deregistered') IS NULL;
        CREATE UNIQUE INDEX security_group_names ON security_groups (json_extract(record, '$.name'));
    ";
    let (old, directory) = old_store(2, &tables, indexes);
    let group = r#"{"id": "sg-0123456789abcdef0", "name": "web", "description": "", "rules": []}"#;
    add(&old, "security_groups", "sg-0123456789abcdef0", group);
    add(&old, "instances", "i-0", r#"{"network": {"private_ip": "172.31.0.4"}}"#);
    add(&old, "instances", "i-1", r#"{"network": null}"#);
    // The migration leaves damaged records unchanged.
    add(&old, "volumes", "vol-0", "{");
    add(&old, "volumes", "vol-1", "{}");
    drop(old);

    let store = Store::open(directory.path()).unwrap();
    let (vpcs, subnets, groups) = store
        .read::<_, StoreError>(|tx| {
            Ok((tx.list::<VpcRecord>()?, tx.list::<SubnetRecord>()?, tx.list::<SecurityGroupRecord>()?))
        })
        .unwrap();
    assert_eq!((vpcs.len(), subnets.len(), groups[0].spec.vpc_id), (1, 6, vpcs[0].meta.id));
    for subnet in &subnets {
        assert_eq!((subnet.spec.vpc_id, subnet.range()), (vpcs[0].meta.id, SubnetRange::default_in(subnet.spec.zone)));
    }
    let first = subnets.iter().find(|subnet| subnet.spec.zone == Zone::A).unwrap().meta.id.to_string();
    let network = |key: &str| -> Value {
        let record: Value = serde_json::from_str(&record_text(&store, "instances", key)).unwrap();
        record["status"]["network"].clone()
    };
    assert_eq!((&network("i-0")["subnet_id"], network("i-1")), (&json!(first), Value::Null));
    assert_eq!(record_text(&store, "volumes", "vol-0"), "{");
    assert_eq!(record_text(&store, "volumes", "vol-1"), r#"{"meta":{"generation":1},"status":{"backing":null}}"#);
}

/// Creates a store of version 6 with records of each kind.
fn store_of_version_6() -> (Connection, tempfile::TempDir) {
    old_store(6, &[], include_str!("version_6.sql"))
}

#[test]
fn instance_of_version_6_has_spec_and_status() {
    let (_, directory) = store_of_version_6();
    let store = Store::open(directory.path()).unwrap();
    let record: InstanceRecord = get(&store, INSTANCE);
    assert_eq!((record.meta.name(), record.meta.client_token.as_deref()), (Some("web"), Some("token")));
    assert_eq!((record.meta.created, record.meta.generation), (5, 1));
    let size = SizeRecord {
        instance_type: "t3.nano".into(),
        vcpus: 2,
        threads_per_core: 2,
        memory_mib: 512,
        overridden: true,
    };
    assert_eq!((record.spec.size, record.spec.image_id.to_string().as_str()), (size, IMAGE));
    assert_eq!((record.spec.key_name.as_deref(), record.spec.cmdline.as_deref()), (Some("me"), Some("quiet")));
    assert!(record.spec.termination_protection && record.spec.hibernation && record.spec.no_limits);
    assert_eq!((record.spec.user_data.as_deref(), record.spec.cpu_credits.is_some()), (Some("ZGF0YQ=="), true));
    let launch = &record.status.launch;
    assert_eq!((launch.launch_index, launch.sequence, launch.image_name.as_str()), (1, 7, "web"));
    assert_eq!((record.status.state, record.status.launch_time, record.status.starts), (InstanceState::Stopped, 6, 3));
    assert_eq!(record.status.state_transition_reason, "User initiated");
    assert_eq!(record.status.block_devices[0].volume_id.to_string(), VOLUME);
    assert_eq!(record.status.network.unwrap().vpc_id.to_string(), VPC);
}

#[test]
fn records_of_version_6_have_spec_and_status() {
    let (_, directory) = store_of_version_6();
    let store = Store::open(directory.path()).unwrap();
    let volume: VolumeRecord = get(&store, VOLUME);
    assert_eq!((volume.meta.created, volume.meta.generation, volume.meta.name()), (8, 1, Some("data")));
    assert_eq!((volume.spec.size, volume.spec.iops, volume.spec.throughput), (1024, Some(4000), Some(250)));
    assert_eq!((volume.status.state, volume.status.file_number), (VolumeState::InUse, 4));
    assert_eq!(volume.status.backing.as_ref().unwrap()[0].format, LayerFormat::Qcow2);
    assert_eq!(volume.mapping().unwrap().device_name, "/dev/xvda");
    let snapshot: SnapshotRecord = get(&store, "snap-0123456789abcdef0");
    assert_eq!((snapshot.meta.created, snapshot.spec.description.as_str()), (9, "before"));
    assert_eq!((snapshot.status.state, snapshot.status.file.as_str()), (SnapshotState::Completed, "b.qcow2"));
    let image: ImageRecord = get(&store, IMAGE);
    assert_eq!((image.spec.visibility, image.status.deregistered), (Visibility::Public, None));
    let pair: KeyPairRecord = get(&store, "me");
    assert_eq!((pair.spec.key_type.as_str(), pair.status.fingerprint.as_str()), ("rsa", "SHA256:x"));
    let group: SecurityGroupRecord = get(&store, "sg-0123456789abcdef0");
    assert_eq!((group.spec.name.as_str(), group.spec.vpc_id.to_string().as_str()), ("web", VPC));
    assert!(get::<VpcRecord>(&store, VPC).status.is_default);
    let subnet: SubnetRecord = get(&store, "subnet-0123456789abcdef0");
    assert_eq!((subnet.spec.zone, subnet.status.default_for_zone), (Zone::A, true));
    let address: AddressRecord = get(&store, "eipalloc-0123456789abcdef0");
    assert_eq!(address.instance().unwrap().to_string(), INSTANCE);
    assert_eq!(get::<ClientToken>(&store, "token").created, 5);
    assert_eq!(get::<MetadataDefaults>(&store, MetadataDefaults::KEY), MetadataDefaults::default());
    assert_eq!(store.take_damaged(), [] as [String; 0]);
}

#[test]
fn vpcs_of_version_6_keep_their_connectivity() {
    let (_, directory) = store_of_version_6();
    let store = Store::open(directory.path()).unwrap();
    let (gateways, tables) = store
        .read::<_, StoreError>(|tx| Ok((tx.list::<InternetGatewayRecord>()?, tx.list::<RouteTableRecord>()?)))
        .unwrap();
    assert_eq!((gateways.len(), tables.len()), (1, 1));
    assert_eq!(gateways[0].spec.vpc_id.unwrap().to_string(), VPC);
    let table = &tables[0];
    assert!(table.is_main() && table.spec.vpc_id.to_string() == VPC);
    let default = Route { destination: "0.0.0.0/0".parse().unwrap(), gateway_id: gateways[0].meta.id };
    assert_eq!(table.spec.routes, [default]);
    assert_eq!(store.take_damaged(), [] as [String; 0]);
}

#[test]
fn unique_keys_of_version_6_stay_unique() {
    let (_, directory) = store_of_version_6();
    let store = Store::open(directory.path()).unwrap();
    let mut image: ImageRecord = get(&store, IMAGE);
    image.meta.id = "ami-2123456789abcdef0".parse().unwrap();
    let mut vpc: VpcRecord = get(&store, VPC);
    vpc.meta.id = "vpc-2123456789abcdef0".parse().unwrap();
    let mut group: SecurityGroupRecord = get(&store, "sg-0123456789abcdef0");
    group.meta.id = "sg-2123456789abcdef0".parse().unwrap();
    let mut address: AddressRecord = get(&store, "eipalloc-0123456789abcdef0");
    address.meta.id = "eipalloc-2123456789abcdef0".parse().unwrap();
    let results = [
        store.write::<_, StoreError>(|tx| tx.insert(&mut image)),
        store.write::<_, StoreError>(|tx| tx.insert(&mut vpc)),
        store.write::<_, StoreError>(|tx| tx.insert(&mut group)),
        store.write::<_, StoreError>(|tx| tx.insert(&mut address)),
    ];
    let names: Vec<&str> = results
        .iter()
        .map(|result| match result {
            Err(StoreError::Duplicate { name, .. }) => *name,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(names, ["name", "default", "name", "public_ip"]);
}

#[test]
fn failed_migration_changes_nothing() {
    let (old, directory) = store_of_version_6();
    // The last step cannot create its table.
    old.execute_batch("CREATE TABLE generation (other TEXT)").unwrap();
    let contents = |connection: &Connection| -> (i64, String) {
        let version = connection.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
        let record = connection.query_row("SELECT record FROM instances", [], |row| row.get(0)).unwrap();
        (version, record)
    };
    let before = contents(&old);
    assert!(Store::open(directory.path()).is_err());
    assert_eq!(contents(&old), before);
    assert!(old.prepare("SELECT * FROM unique_keys").is_err());
    old.execute_batch("DROP TABLE generation").unwrap();
    Store::open(directory.path()).unwrap();
    assert_eq!(contents(&old).0, MIGRATIONS.len() as i64);
}
