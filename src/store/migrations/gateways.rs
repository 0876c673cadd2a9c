//! Version 10: internet gateways and route tables.

use rusqlite::Transaction;
use serde_json::json;

use super::super::StoreError;
use super::super::unique_key::claim;
use super::{create_tables, documents, insert, new_id};
use ec2::id::{InternetGateway, RouteTable, RouteTableAssociation};

/// Gives each VPC a gateway, and a main route table with a default route to it. Before this version, all VPCs had the
/// connectivity of such a gateway.
pub(super) fn create(tx: &Transaction) -> Result<(), StoreError> {
    create_tables(tx, &["internet_gateways", "route_tables"])?;
    for (vpc, _) in documents(tx, "vpcs")? {
        let gateway = new_id::<InternetGateway>(tx)?;
        let meta = |id: &str| json!({"id": id, "generation": 1});
        let record = json!({"meta": meta(&gateway), "spec": {"vpc_id": vpc}});
        insert(tx, "internet_gateways", &gateway, &record)?;
        claim(tx, "internet_gateways", &gateway, &[("vpc", vpc.clone())])?;
        let table = new_id::<RouteTable>(tx)?;
        let association = json!({"id": new_id::<RouteTableAssociation>(tx)?, "subnet_id": null});
        let route = json!({"destination": "0.0.0.0/0", "gateway_id": gateway});
        let spec = json!({"vpc_id": vpc, "routes": [route], "associations": [association]});
        insert(tx, "route_tables", &table, &json!({"meta": meta(&table), "spec": spec}))?;
    }
    Ok(())
}
