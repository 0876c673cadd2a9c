//! The schema and its versions (`PRAGMA user_version`).

use std::path::Path;

use rusqlite::{Connection, TransactionBehavior};

use super::StoreError;

/// Each step migrates a version to the next, starting from an empty database. A released step must never change.
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
    // Creates the default VPC, and moves existing security groups and instances into it. The instances move to its
    // first subnet, which contains their addresses.
    "
    CREATE TABLE vpcs (key TEXT PRIMARY KEY NOT NULL, record TEXT NOT NULL) STRICT, WITHOUT ROWID;
    CREATE UNIQUE INDEX default_vpc ON vpcs (json_extract(record, '$.is_default'))
        WHERE json_extract(record, '$.is_default');
    CREATE TABLE subnets (key TEXT PRIMARY KEY NOT NULL, record TEXT NOT NULL) STRICT, WITHOUT ROWID;
    CREATE TABLE addresses (key TEXT PRIMARY KEY NOT NULL, record TEXT NOT NULL) STRICT, WITHOUT ROWID;
    CREATE UNIQUE INDEX address_ips ON addresses (json_extract(record, '$.public_ip'));

    CREATE TEMP TABLE made (vpc TEXT NOT NULL);
    INSERT INTO made VALUES ('vpc-' || substr(lower(hex(randomblob(9))), 1, 17));
    INSERT INTO vpcs SELECT vpc, json_object('id', vpc, 'cidr', '172.31.0.0/16', 'is_default', json('true')) FROM made;
    CREATE TEMP TABLE zones AS
        SELECT column1 AS letter, column2 AS octet, 'subnet-' || substr(lower(hex(randomblob(9))), 1, 17) AS subnet
        FROM (VALUES ('a', 0), ('b', 16), ('c', 32), ('d', 48), ('e', 64), ('f', 80));
    INSERT INTO subnets SELECT subnet, json_object(
        'id', subnet, 'vpc_id', vpc, 'vpc_cidr', '172.31.0.0/16', 'cidr', '172.31.' || octet || '.0/20',
        'zone', 'us-east-1' || letter, 'default_for_zone', json('true'), 'map_public_ip', json('true')
    ) FROM zones, made;

    DROP INDEX security_group_names;
    UPDATE security_groups SET record = json_set(record, '$.vpc_id', (SELECT vpc FROM made));
    CREATE UNIQUE INDEX security_group_names
        ON security_groups (json_extract(record, '$.vpc_id'), json_extract(record, '$.name'));
    UPDATE instances SET record = json_set(
        record, '$.network.vpc_id', (SELECT vpc FROM made),
        '$.network.subnet_id', (SELECT subnet FROM zones WHERE letter = 'a'),
        '$.network.zone', 'us-east-1a', '$.network.wants_public_ip', json('true')
    ) WHERE json_extract(record, '$.network') IS NOT NULL;
    DROP TABLE zones;
    DROP TABLE made;
",
    "
    CREATE TABLE usage (
        instance TEXT NOT NULL, number INTEGER NOT NULL, record TEXT NOT NULL, PRIMARY KEY (instance, number)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE usage_cursors (key TEXT PRIMARY KEY NOT NULL, record TEXT NOT NULL) STRICT, WITHOUT ROWID;
",
    "CREATE TABLE settings (key TEXT PRIMARY KEY NOT NULL, record TEXT NOT NULL) STRICT, WITHOUT ROWID;",
    // Adds the backing files of volumes and snapshots, unknown at first. The next command reads them from the image
    // headers (`cloud/layers.rs`). An older Wisp would lose this field, so the new version makes it refuse the store.
    "
    UPDATE volumes SET record = json_set(record, '$.backing', json('null')) WHERE json_valid(record);
    UPDATE snapshots SET record = json_set(record, '$.backing', json('null')) WHERE json_valid(record);
",
];

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
    for step in &MIGRATIONS[found as usize..] {
        transaction.execute_batch(step)?;
    }
    transaction.pragma_update(None, "user_version", latest())?;
    Ok(transaction.commit()?)
}

#[cfg(test)]
mod tests {
    use super::super::{SecurityGroupRecord, Store, StoreError, SubnetRecord, VpcRecord};
    use super::*;
    use ec2::network::{SubnetRange, Zone};

    #[test]
    fn older_stores_groups_and_instances_move_to_default_vpc() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(super::super::FILE);
        let old = Connection::open(&path).unwrap();
        old.execute_batch(MIGRATIONS[0]).unwrap();
        old.execute_batch(MIGRATIONS[1]).unwrap();
        old.pragma_update(None, "user_version", 2).unwrap();
        let group = r#"{"id": "sg-0123456789abcdef0", "name": "web", "description": "", "rules": []}"#;
        let instance = r#"{"network": {"private_ip": "172.31.0.4"}}"#;
        old.execute("INSERT INTO security_groups VALUES ('sg-0123456789abcdef0', ?1)", [group]).unwrap();
        old.execute("INSERT INTO instances VALUES ('i-0', ?1), ('i-1', '{\"network\": null}')", [instance]).unwrap();
        // The migration leaves damaged records unchanged.
        old.execute("INSERT INTO volumes VALUES ('vol-0', '{'), ('vol-1', '{}')", []).unwrap();
        drop(old);

        let store = Store::open(directory.path()).unwrap();
        let (vpcs, subnets, groups) = store
            .read::<_, StoreError>(|tx| {
                Ok((tx.list::<VpcRecord>()?, tx.list::<SubnetRecord>()?, tx.list::<SecurityGroupRecord>()?))
            })
            .unwrap();
        assert_eq!((vpcs.len(), subnets.len(), groups[0].vpc_id), (1, 6, vpcs[0].id));
        for subnet in &subnets {
            assert_eq!((subnet.vpc_id, subnet.range()), (vpcs[0].id, SubnetRange::default_in(subnet.zone)));
        }
        let first = subnets.iter().find(|subnet| subnet.zone == Zone::A).unwrap().id.to_string();
        let read = |key: &str| -> Option<String> {
            let text = "SELECT json_extract(record, '$.network.subnet_id') FROM instances WHERE key = ?1";
            store.connection.query_row(text, [key], |row| row.get(0)).unwrap()
        };
        assert_eq!((read("i-0"), read("i-1")), (Some(first), None));
        let volume = |key: &str| -> String {
            store.connection.query_row("SELECT record FROM volumes WHERE key = ?1", [key], |row| row.get(0)).unwrap()
        };
        assert_eq!((volume("vol-0").as_str(), volume("vol-1").as_str()), ("{", r#"{"backing":null}"#));
    }
}
