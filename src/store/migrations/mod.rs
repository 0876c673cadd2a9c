//! Migrations of the store, as functions over a transaction. They change documents of any shape, never record types,
//! because a released migration must not change with them.

mod gateways;
mod parts;
#[cfg(test)]
mod tests;

use rusqlite::{Transaction, params};
use serde_json::{Value, json};

use super::StoreError;
use ec2::id::{Id, RANDOM_BYTES, ResourceKind, Subnet, Vpc};

type Migration = fn(&Transaction) -> Result<(), StoreError>;

/// Each step migrates a version to the next, starting from an empty database. Only the state after all steps counts,
/// because they run in one transaction.
pub(super) const MIGRATIONS: &[Migration] = &[
    create_first_tables,
    create_security_groups,
    create_vpcs,
    create_usage,
    create_settings,
    add_backing,
    parts::split,
    create_launch_templates,
    create_image_aliases,
    gateways::create,
    create_commands,
];

fn create_first_tables(tx: &Transaction) -> Result<(), StoreError> {
    create_tables(tx, &["instances", "volumes", "snapshots", "images", "key_pairs", "client_tokens"])
}

fn create_security_groups(tx: &Transaction) -> Result<(), StoreError> {
    create_tables(tx, &["security_groups"])
}

/// Creates the default VPC, and moves existing security groups and instances into it. The instances move to its first
/// subnet, which contains their addresses.
fn create_vpcs(tx: &Transaction) -> Result<(), StoreError> {
    create_tables(tx, &["vpcs", "subnets", "addresses"])?;
    // This index of version 2 refuses groups without a VPC that are not unique by name.
    tx.execute_batch("DROP INDEX IF EXISTS security_group_names")?;
    let vpc = new_id::<Vpc>(tx)?;
    insert(tx, "vpcs", &vpc, &json!({"id": vpc, "cidr": "172.31.0.0/16", "is_default": true}))?;
    let mut subnets = Vec::new();
    for (letter, octet) in [("a", 0), ("b", 16), ("c", 32), ("d", 48), ("e", 64), ("f", 80)] {
        let subnet = new_id::<Subnet>(tx)?;
        let record = json!({
            "id": subnet, "vpc_id": vpc, "vpc_cidr": "172.31.0.0/16", "cidr": format!("172.31.{octet}.0/20"),
            "zone": format!("us-east-1{letter}"), "default_for_zone": true, "map_public_ip": true,
        });
        insert(tx, "subnets", &subnet, &record)?;
        subnets.push(subnet);
    }
    change(tx, "security_groups", |group| group["vpc_id"] = json!(vpc))?;
    change(tx, "instances", |instance| {
        if let Some(network @ Value::Object(_)) = instance.get_mut("network") {
            network["vpc_id"] = json!(vpc);
            network["subnet_id"] = json!(subnets[0]);
            network["zone"] = json!("us-east-1a");
            network["wants_public_ip"] = json!(true);
        }
    })
}

fn create_usage(tx: &Transaction) -> Result<(), StoreError> {
    tx.execute_batch(
        "CREATE TABLE usage (
            instance TEXT NOT NULL, number INTEGER NOT NULL, record TEXT NOT NULL, PRIMARY KEY (instance, number)
        ) STRICT, WITHOUT ROWID;",
    )?;
    create_tables(tx, &["usage_cursors"])
}

fn create_settings(tx: &Transaction) -> Result<(), StoreError> {
    create_tables(tx, &["settings"])
}

/// Adds the backing files of volumes and snapshots, unknown at first. The next command reads them from the image
/// headers (`cloud/layers.rs`). An older Wisp would lose this field, so the new version makes it refuse the store.
fn add_backing(tx: &Transaction) -> Result<(), StoreError> {
    for table in ["volumes", "snapshots"] {
        change(tx, table, |record| record["backing"] = Value::Null)?;
    }
    Ok(())
}

fn create_launch_templates(tx: &Transaction) -> Result<(), StoreError> {
    create_tables(tx, &["launch_templates"])
}

fn create_image_aliases(tx: &Transaction) -> Result<(), StoreError> {
    create_tables(tx, &["image_aliases"])
}

fn create_commands(tx: &Transaction) -> Result<(), StoreError> {
    create_tables(tx, &["commands", "invocations"])
}

fn create_tables(tx: &Transaction, names: &[&str]) -> Result<(), StoreError> {
    for name in names {
        tx.execute_batch(&format!(
            "CREATE TABLE {name} (key TEXT PRIMARY KEY NOT NULL, record TEXT NOT NULL) STRICT, WITHOUT ROWID;"
        ))?;
    }
    Ok(())
}

fn insert(tx: &Transaction, table: &str, key: &str, record: &Value) -> Result<(), StoreError> {
    let text = format!("INSERT INTO {table} (key, record) VALUES (?1, ?2)");
    tx.prepare_cached(&text)?.execute(params![key, record.to_string()])?;
    Ok(())
}

/// Returns the keys and documents of a table, without damaged records, which migrations leave unchanged.
fn documents(tx: &Transaction, table: &str) -> Result<Vec<(String, Value)>, StoreError> {
    let mut statement = tx.prepare_cached(&format!("SELECT key, record FROM {table} ORDER BY key"))?;
    let rows = statement.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))?;
    let mut documents = Vec::new();
    for row in rows {
        let (key, text) = row?;
        if let Ok(document @ Value::Object(_)) = serde_json::from_str(&text) {
            documents.push((key, document));
        }
    }
    Ok(documents)
}

/// Changes all documents of a table.
fn change(tx: &Transaction, table: &str, change: impl Fn(&mut Value)) -> Result<(), StoreError> {
    let mut update = tx.prepare_cached(&format!("UPDATE {table} SET record = ?2 WHERE key = ?1"))?;
    for (key, mut document) in documents(tx, table)? {
        change(&mut document);
        update.execute(params![key, document.to_string()])?;
    }
    Ok(())
}

fn new_id<K: ResourceKind>(tx: &Transaction) -> Result<String, StoreError> {
    let random: [u8; RANDOM_BYTES] = tx.query_row("SELECT randomblob(?1)", [RANDOM_BYTES as i64], |row| row.get(0))?;
    Ok(Id::<K>::from_random(random).to_string())
}
