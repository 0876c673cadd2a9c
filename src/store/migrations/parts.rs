//! Version 7: a resource's record has `meta`, `spec` and `status`, and unique keys have a table of their own.

use rusqlite::Transaction;
use serde_json::Value;

use super::super::StoreError;
use super::super::unique_key::claim;
use super::{change, documents};

/// The fields of a record by the place to which they move.
type Layout = &'static [(&'static [&'static str], &'static [&'static str])];

const INSTANCES: Layout = &[
    (&["meta"], &["id", "tags", "client_token", "created"]),
    (&["spec"], &["image_id", "key_name", "user_data", "shutdown_behavior", "termination_protection", "hibernation"]),
    (&["spec"], &["cmdline", "cpu_credits", "no_limits"]),
    (&["spec", "size"], &["instance_type", "vcpus", "threads_per_core", "memory_mib", "overridden"]),
    (&["status", "launch"], &["reservation_id", "launch_index", "image_name", "sequence"]),
    (&["status"], &["state", "state_reason", "state_transition_reason", "launch_time", "starts", "terminated"]),
    (&["status"], &["block_devices", "network", "credits"]),
];
const VOLUMES: Layout = &[
    (&["meta"], &["id", "tags", "created"]),
    (&["spec"], &["size", "volume_type", "iops", "throughput", "snapshot_id"]),
    (&["status"], &["state", "image_id", "file", "file_number", "backing", "attachment"]),
];
const SNAPSHOTS: Layout = &[
    (&["meta"], &["id", "tags", "created"]),
    (&["spec"], &["volume_id", "description"]),
    (&["status"], &["size", "state", "file", "backing", "image_id"]),
];
const IMAGES: Layout = &[
    (&["meta"], &["id", "tags", "created"]),
    (&["spec"], &["name", "description", "visibility", "source_instance", "imds_support"]),
    (&["status"], &["owner", "deregistered"]),
];
const KEY_PAIRS: Layout = &[
    (&["meta"], &["id", "tags", "created"]),
    (&["spec"], &["name", "key_type", "public_key"]),
    (&["status"], &["fingerprint"]),
];
const SECURITY_GROUPS: Layout =
    &[(&["meta"], &["id", "tags"]), (&["spec"], &["vpc_id", "name", "description", "rules"])];
const VPCS: Layout = &[(&["meta"], &["id", "tags"]), (&["spec"], &["cidr"]), (&["status"], &["is_default"])];
const SUBNETS: Layout = &[
    (&["meta"], &["id", "tags"]),
    (&["spec"], &["vpc_id", "cidr", "zone", "map_public_ip"]),
    (&["status"], &["vpc_cidr", "default_for_zone"]),
];
const ADDRESSES: Layout = &[(&["meta"], &["id", "tags"]), (&["spec"], &["association"]), (&["status"], &["public_ip"])];

const LAYOUTS: [(&str, Layout); 9] = [
    ("instances", INSTANCES),
    ("volumes", VOLUMES),
    ("snapshots", SNAPSHOTS),
    ("images", IMAGES),
    ("key_pairs", KEY_PAIRS),
    ("security_groups", SECURITY_GROUPS),
    ("vpcs", VPCS),
    ("subnets", SUBNETS),
    ("addresses", ADDRESSES),
];

/// Fields that also get another name: the table, the former name and the new one.
const RENAMED: [(&str, &str, &str); 2] =
    [("volumes", "generation", "file_number"), ("snapshots", "started", "created")];

pub(super) fn split(tx: &Transaction) -> Result<(), StoreError> {
    // These indexes of older versions read the contents of records.
    for index in ["image_names", "security_group_names", "default_vpc", "address_ips"] {
        tx.execute_batch(&format!("DROP INDEX IF EXISTS {index}"))?;
    }
    tx.execute_batch(
        "CREATE TABLE unique_keys (
            kind TEXT NOT NULL, name TEXT NOT NULL, value TEXT NOT NULL, key TEXT NOT NULL,
            PRIMARY KEY (kind, name, value)
        ) STRICT, WITHOUT ROWID;
        CREATE INDEX unique_keys_of_record ON unique_keys (kind, key);
        CREATE TABLE generation (number INTEGER NOT NULL) STRICT;
        INSERT INTO generation VALUES (0);",
    )?;
    for (table, layout) in LAYOUTS {
        change(tx, table, |document| *document = split_document(table, layout, document.take()))?;
    }
    claim_unique_keys(tx)
}

fn split_document(table: &str, layout: Layout, mut flat: Value) -> Value {
    for (_, from, to) in RENAMED.iter().filter(|(renamed, ..)| *renamed == table) {
        if let Some(value) = flat.get_mut(*from).map(Value::take) {
            flat[*to] = value;
        }
    }
    let mut split = Value::Null;
    for (place, fields) in layout {
        for field in *fields {
            let Some(value) = flat.get_mut(*field).map(Value::take) else { continue };
            let part = place.iter().fold(&mut split, |object, part| &mut object[*part]);
            part[*field] = value;
        }
    }
    split["meta"]["generation"] = 1.into();
    split
}

fn claim_unique_keys(tx: &Transaction) -> Result<(), StoreError> {
    let text = |document: &Value, pointer: &str| document.pointer(pointer).and_then(Value::as_str).map(String::from);
    for (key, image) in documents(tx, "images")? {
        let is_registered = image.pointer("/status/deregistered").is_none_or(Value::is_null);
        if let Some(name) = text(&image, "/spec/name").filter(|_| is_registered) {
            claim(tx, "images", &key, &[("name", name)])?;
        }
    }
    for (key, group) in documents(tx, "security_groups")? {
        if let (Some(vpc), Some(name)) = (text(&group, "/spec/vpc_id"), text(&group, "/spec/name")) {
            claim(tx, "security_groups", &key, &[("name", format!("{vpc}/{name}"))])?;
        }
    }
    for (key, vpc) in documents(tx, "vpcs")? {
        if vpc.pointer("/status/is_default") == Some(&Value::Bool(true)) {
            claim(tx, "vpcs", &key, &[("default", "true".into())])?;
        }
    }
    for (key, address) in documents(tx, "addresses")? {
        if let Some(address) = text(&address, "/status/public_ip") {
            claim(tx, "addresses", &key, &[("public_ip", address)])?;
        }
    }
    Ok(())
}
