//! Route tables: EC2's `CreateRouteTable`, `CreateRoute`, `AssociateRouteTable` and the like.

use std::collections::BTreeMap;

use super::super::error::CloudError;
use super::super::lookup::with_token;
use super::super::{Cloud, Outcome, new_id, now, resolve};
use super::internet_gateway::attached_to;
use super::lookup::vpc_or_default;
use super::routes::Routing;
use ec2::id::{InternetGatewayId, RouteTableAssociationId, RouteTableId, VpcId};
use ec2::{Ec2Error, ErrorCode};
use ipnet::Ipv4Net;
use store::{Meta, Route, RouteTableAssociation, RouteTableRecord, SubnetRecord, Transaction, VpcRecord};

/// Maximum number of routes of a table, as in EC2's default quota.
const MAX_ROUTES: usize = 50;

#[derive(Debug, Clone, Copy)]
pub struct RouteTables<'a> {
    pub(crate) cloud: &'a Cloud,
}

impl RouteTables<'_> {
    /// Lists all tables by VPC, main tables first.
    pub fn list(&self) -> Result<Vec<RouteTableRecord>, CloudError> {
        let mut tables: Vec<RouteTableRecord> = self.cloud.records()?;
        tables.sort_by_key(|table| (table.spec.vpc_id, !table.is_main(), table.meta.created));
        Ok(tables)
    }

    pub fn find(&self, reference: &str) -> Result<RouteTableRecord, CloudError> {
        self.cloud.store.read(|tx| resolve::route_table(tx, reference))
    }

    /// Creates a table that has only the local route, by default in the default VPC.
    /// Two requests with the same client token create one table.
    pub fn create(
        &self,
        vpc: Option<&str>,
        tags: BTreeMap<String, String>,
        client_token: Option<String>,
    ) -> Result<RouteTableRecord, CloudError> {
        self.cloud.store.write(|tx| {
            let vpc = vpc_or_default(tx, vpc)?.meta.id;
            let is_repeated = |table: &RouteTableRecord| Ok(table.spec.vpc_id == vpc);
            if let Some(existing) = with_token(tx, client_token.as_deref(), "route table", is_repeated)? {
                return Ok(existing);
            }
            let meta = Meta { client_token: client_token.clone(), ..Meta::new(new_id(), now(), tags.clone()) };
            let spec = store::route_table::Spec { vpc_id: vpc, routes: Vec::new(), associations: Vec::new() };
            let mut record = RouteTableRecord { meta, spec };
            tx.insert(&mut record)?;
            Ok(record)
        })
    }

    /// Deletes a table. Fails if it has an association; the main table always has one.
    pub fn delete(&self, reference: &str) -> Result<RouteTableRecord, CloudError> {
        self.cloud.store.write(|tx| {
            let table = resolve::route_table(tx, reference)?;
            let id = table.meta.id.to_string();
            if !table.spec.associations.is_empty() {
                let what = format!("The routeTable '{id}' has dependencies and cannot be deleted.");
                let hint = match table.is_main() {
                    true => "Make another table the main one first: `wisp route-table set-main`.",
                    false => "Disassociate its subnets first: `wisp route-table disassociate`.",
                };
                return Err(Ec2Error::refused(ErrorCode::DependencyViolation, what, Some(hint.into())).into());
            }
            tx.remove::<RouteTableRecord>(&id)?;
            Ok(table)
        })
    }

    /// Adds a route through an internet gateway, which must be attached to the table's VPC.
    pub fn create_route(
        &self,
        reference: &str,
        destination: Ipv4Net,
        gateway: &str,
    ) -> Result<Outcome<RouteTableRecord>, CloudError> {
        self.cloud.interfaces().change(|tx| {
            let mut table = resolve::route_table(tx, reference)?;
            let route = new_route(tx, &table, destination, gateway)?;
            if table.spec.routes.iter().any(|known| known.destination == route.destination) {
                let what = format!("The route identified by {} already exists.", route.destination);
                return Err(CloudError::refused(ErrorCode::RouteAlreadyExists, what, None));
            }
            if table.spec.routes.len() >= MAX_ROUTES {
                let what = format!("The maximum number of routes has been reached: {MAX_ROUTES} per route table.");
                return Err(CloudError::refused(ErrorCode::RouteLimitExceeded, what, None));
            }
            table.spec.routes.push(route);
            tx.put(&mut table)?;
            Ok(table)
        })
    }

    /// Replaces the gateway of a route.
    pub fn replace_route(
        &self,
        reference: &str,
        destination: Ipv4Net,
        gateway: &str,
    ) -> Result<Outcome<RouteTableRecord>, CloudError> {
        self.cloud.interfaces().change(|tx| {
            let mut table = resolve::route_table(tx, reference)?;
            let new = new_route(tx, &table, destination, gateway)?;
            let known = table.spec.routes.iter_mut().find(|route| route.destination == new.destination);
            *known.ok_or_else(|| no_route(reference, new.destination))? = new;
            tx.put(&mut table)?;
            Ok(table)
        })
    }

    pub fn delete_route(&self, reference: &str, destination: Ipv4Net) -> Result<Outcome<RouteTableRecord>, CloudError> {
        let destination = destination.trunc();
        self.cloud.interfaces().change(|tx| {
            let mut table = resolve::route_table(tx, reference)?;
            let count = table.spec.routes.len();
            table.spec.routes.retain(|route| route.destination != destination);
            if table.spec.routes.len() == count {
                return Err(no_route(reference, destination));
            }
            tx.put(&mut table)?;
            Ok(table)
        })
    }

    /// Associates a subnet with a table of its VPC. Fails if the subnet has an association.
    pub fn associate(&self, reference: &str, subnet: &str) -> Result<Outcome<RouteTableAssociationId>, CloudError> {
        self.cloud.interfaces().change(|tx| {
            let table = resolve::route_table(tx, reference)?;
            let subnet = resolve::subnet(tx, subnet)?;
            check_vpc(&table, subnet.spec.vpc_id)?;
            let tables: Vec<RouteTableRecord> = tx.list()?;
            let mut associations = tables.iter().flat_map(|table| &table.spec.associations);
            if let Some(known) = associations.find(|known| known.subnet_id == Some(subnet.meta.id)) {
                let what =
                    format!("the specified association for subnet {} conflicts with {}.", subnet.meta.id, known.id);
                let hint = format!("Disassociate it first: `wisp route-table disassociate {}`.", subnet.meta.id);
                return Err(CloudError::refused(ErrorCode::ResourceAlreadyAssociated, what, Some(hint)));
            }
            let association = RouteTableAssociation { id: new_id(), subnet_id: Some(subnet.meta.id) };
            add_association(tx, table, association)?;
            Ok(association.id)
        })
    }

    /// Disassociates a subnet, given by its association. It then uses the main table.
    pub fn disassociate(&self, id: RouteTableAssociationId) -> Result<Outcome<()>, CloudError> {
        self.cloud.interfaces().change(|tx| {
            if take_association(tx, id)?.1.subnet_id.is_some() {
                return Ok(());
            }
            let what = format!("cannot disassociate the main route table association {id}");
            Err(CloudError::refused(ErrorCode::InvalidParameterValue, what, None))
        })
    }

    /// Moves an association to another table of the VPC, and returns its new ID. The association of the main table makes
    /// the other table the main one.
    pub fn replace_association(
        &self,
        id: RouteTableAssociationId,
        reference: &str,
    ) -> Result<Outcome<RouteTableAssociationId>, CloudError> {
        self.cloud.interfaces().change(|tx| {
            let (old, association) = take_association(tx, id)?;
            let table = resolve::route_table(tx, reference)?;
            check_vpc(&table, old.spec.vpc_id)?;
            let association = RouteTableAssociation { id: new_id(), ..association };
            add_association(tx, table, association)?;
            Ok(association.id)
        })
    }

    /// Returns the table that a subnet uses.
    pub fn of_subnet(&self, subnet: &str) -> Result<RouteTableRecord, CloudError> {
        self.cloud.store.read(|tx| {
            let subnet = resolve::subnet(tx, subnet)?;
            let table = Routing::read(tx)?.into_table_of(subnet.spec.vpc_id, subnet.meta.id);
            table.ok_or_else(|| RouteTableId::not_found(&subnet.spec.vpc_id.to_string()).into())
        })
    }

    /// Returns the association of a subnet.
    pub fn association_of(&self, subnet: &str) -> Result<RouteTableAssociationId, CloudError> {
        self.cloud.store.read(|tx| {
            let subnet = resolve::subnet(tx, subnet)?.meta.id;
            let tables: Vec<RouteTableRecord> = tx.list()?;
            let mut associations = tables.iter().flat_map(|table| &table.spec.associations);
            let found = associations.find(|association| association.subnet_id == Some(subnet));
            found.map(|association| association.id).ok_or_else(|| {
                let what = format!("The subnet {subnet} is not associated with a route table; it uses the main one.");
                CloudError::refused(ErrorCode::InvalidAssociationIdNotFound, what, None)
            })
        })
    }

    /// Makes a table the main one of its VPC.
    pub fn set_main(&self, reference: &str) -> Result<Outcome<RouteTableRecord>, CloudError> {
        let table = self.find(reference)?;
        let tables = self.list()?;
        let main = tables.iter().find(|other| other.spec.vpc_id == table.spec.vpc_id && other.is_main());
        let association = main.and_then(|main| main.spec.associations.iter().find(|one| one.subnet_id.is_none()));
        let Some(association) = association.filter(|_| !table.is_main()) else { return Ok(table.into()) };
        let Outcome { warnings, .. } = self.replace_association(association.id, reference)?;
        Ok(Outcome { value: self.find(reference)?, warnings })
    }
}

/// Adds a table to a VPC.
pub(super) fn insert(
    tx: &Transaction,
    vpc_id: VpcId,
    routes: Vec<Route>,
    associations: Vec<RouteTableAssociation>,
    tags: BTreeMap<String, String>,
) -> Result<RouteTableRecord, CloudError> {
    let spec = store::route_table::Spec { vpc_id, routes, associations };
    let mut record = RouteTableRecord { meta: Meta::new(new_id(), now(), tags), spec };
    tx.insert(&mut record)?;
    Ok(record)
}

/// Adds the main table of a new VPC, with a default route to `gateway` if there is one.
pub(super) fn insert_main(
    tx: &Transaction,
    vpc: VpcId,
    gateway: Option<InternetGatewayId>,
) -> Result<RouteTableRecord, CloudError> {
    let default = |gateway_id| Route { destination: Ipv4Net::default(), gateway_id };
    let main = RouteTableAssociation { id: new_id(), subnet_id: None };
    insert(tx, vpc, gateway.map(default).into_iter().collect(), vec![main], BTreeMap::new())
}

/// Removes the association of a deleted subnet.
pub(super) fn forget_subnet(tx: &Transaction, subnet: &SubnetRecord) -> Result<(), CloudError> {
    for mut table in tx.list::<RouteTableRecord>()? {
        let count = table.spec.associations.len();
        table.spec.associations.retain(|association| association.subnet_id != Some(subnet.meta.id));
        if table.spec.associations.len() < count {
            tx.put(&mut table)?;
        }
    }
    Ok(())
}

fn new_route(
    tx: &Transaction,
    table: &RouteTableRecord,
    destination: Ipv4Net,
    gateway: &str,
) -> Result<Route, CloudError> {
    let destination = destination.trunc();
    let gateway = resolve::internet_gateway(tx, gateway)?.meta.id;
    let vpc = table.spec.vpc_id;
    if attached_to(tx, vpc)?.is_none_or(|attached| attached.meta.id != gateway) {
        let what = format!("route table {} and network gateway {gateway} belong to different networks", table.meta.id);
        let hint = format!("Attach the gateway first: `wisp gateway attach {gateway} {vpc}`.");
        return Err(CloudError::refused(ErrorCode::InvalidParameterValue, what, Some(hint)));
    }
    let range = tx.get::<VpcRecord>(&vpc.to_string())?.map(|vpc| vpc.spec.cidr);
    if range.is_some_and(|range| range.contains(&destination)) {
        let rule = "it is in the VPC's range, which always has the local route.";
        return Err(Ec2Error::invalid_parameter("DestinationCidrBlock", destination, rule).into());
    }
    Ok(Route { destination, gateway_id: gateway })
}

fn no_route(table: &str, destination: Ipv4Net) -> CloudError {
    let what = format!("no route with destination-cidr-block {destination} in route table {table}");
    CloudError::refused(ErrorCode::InvalidRouteNotFound, what, None)
}

fn check_vpc(table: &RouteTableRecord, vpc: VpcId) -> Result<(), CloudError> {
    if table.spec.vpc_id == vpc {
        return Ok(());
    }
    let what = format!("The route table {} belongs to {}, not to {vpc}.", table.meta.id, table.spec.vpc_id);
    Err(CloudError::refused(ErrorCode::InvalidParameterValue, what, None))
}

fn add_association(
    tx: &Transaction,
    mut table: RouteTableRecord,
    association: RouteTableAssociation,
) -> Result<(), CloudError> {
    table.spec.associations.push(association);
    Ok(tx.put(&mut table)?)
}

/// Removes an association, and returns it with its table.
fn take_association(
    tx: &Transaction,
    id: RouteTableAssociationId,
) -> Result<(RouteTableRecord, RouteTableAssociation), CloudError> {
    for mut table in tx.list::<RouteTableRecord>()? {
        if let Some(index) = table.spec.associations.iter().position(|association| association.id == id) {
            let association = table.spec.associations.remove(index);
            tx.put(&mut table)?;
            return Ok((table, association));
        }
    }
    Err(RouteTableAssociationId::not_found(&id.to_string()).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use node::home::Home;

    const ANYWHERE: &str = "0.0.0.0/0";

    /// Creates the VPC `lab` with the subnet `front` and the detached gateway `exit`.
    fn cloud() -> (Cloud, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let cloud = Cloud::at(Home::at(dir.path()).unwrap()).unwrap();
        cloud.vpcs().create("10.0.0.0/16".parse().unwrap(), named("lab")).unwrap();
        let subnet = super::super::SubnetSpec {
            vpc: Some("lab".into()),
            cidr: "10.0.1.0/24".parse().unwrap(),
            zone: Default::default(),
            map_public_ip: false,
            tags: named("front"),
        };
        cloud.subnets().create(&subnet).unwrap();
        cloud.internet_gateways().create(named("exit")).unwrap();
        (cloud, dir)
    }

    fn named(name: &str) -> BTreeMap<String, String> {
        [("Name".to_string(), name.to_string())].into()
    }

    fn code<T: std::fmt::Debug>(result: Result<T, CloudError>) -> ErrorCode {
        match result {
            Err(CloudError::Ec2(error)) => error.code(),
            other => panic!("{other:?}"),
        }
    }

    /// Returns the result of a change without warnings.
    fn done<T>(result: Result<Outcome<T>, CloudError>) -> T {
        let Outcome { value, warnings } = result.unwrap();
        assert_eq!(warnings.into_iter().next(), None);
        value
    }

    fn range(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    /// Returns the destinations that the subnet `front` reaches.
    fn destinations(cloud: &Cloud) -> Vec<Ipv4Net> {
        let read = |tx: &Transaction| {
            let subnet = resolve::subnet(tx, "front")?;
            Ok::<_, CloudError>(Routing::read(tx)?.destinations(subnet.spec.vpc_id, subnet.meta.id))
        };
        cloud.store.read(read).unwrap()
    }

    fn main_of(cloud: &Cloud) -> RouteTableRecord {
        cloud.route_tables().of_subnet("front").unwrap()
    }

    #[test]
    fn route_needs_an_attached_gateway() {
        let (cloud, _dir) = cloud();
        let main = main_of(&cloud).meta.id.to_string();
        let create = || cloud.route_tables().create_route(&main, range(ANYWHERE), "exit");
        assert_eq!(destinations(&cloud), []);
        assert_eq!(code(create()), ErrorCode::InvalidParameterValue);
        done(cloud.internet_gateways().attach("exit", "lab"));
        done(create());
        assert_eq!(destinations(&cloud), [range(ANYWHERE)]);
        assert_eq!(code(create()), ErrorCode::RouteAlreadyExists);
        done(cloud.internet_gateways().detach("exit", Some("lab")));
        assert_eq!(destinations(&cloud), []);
        let local = cloud.route_tables().create_route(&main, range("10.0.1.0/24"), "exit");
        assert_eq!(code(local), ErrorCode::InvalidParameterValue);
    }

    #[test]
    fn routes_are_replaced_and_deleted() {
        let (cloud, _dir) = cloud();
        done(cloud.internet_gateways().attach("exit", "lab"));
        let tables = cloud.route_tables();
        let main = main_of(&cloud).meta.id.to_string();
        done(tables.create_route(&main, range("11.0.0.9/8"), "exit"));
        assert_eq!(destinations(&cloud), [range("11.0.0.0/8")]);
        done(tables.replace_route(&main, range("11.0.0.0/8"), "exit"));
        assert_eq!(code(tables.replace_route(&main, range(ANYWHERE), "exit")), ErrorCode::InvalidRouteNotFound);
        done(tables.delete_route(&main, range("11.0.0.0/8")));
        assert_eq!(code(tables.delete_route(&main, range("11.0.0.0/8"))), ErrorCode::InvalidRouteNotFound);
    }

    #[test]
    fn subnet_uses_its_table_until_disassociated() {
        let (cloud, _dir) = cloud();
        done(cloud.internet_gateways().attach("exit", "lab"));
        let tables = cloud.route_tables();
        tables.create(Some("lab"), named("public"), None).unwrap();
        done(tables.create_route("public", range(ANYWHERE), "exit"));
        assert_eq!(destinations(&cloud), []);
        done(tables.associate("public", "front"));
        assert_eq!(destinations(&cloud), [range(ANYWHERE)]);
        assert_eq!(code(tables.associate("public", "front")), ErrorCode::ResourceAlreadyAssociated);
        assert_eq!(code(tables.delete("public")), ErrorCode::DependencyViolation);
        done(tables.disassociate(tables.association_of("front").unwrap()));
        assert_eq!(destinations(&cloud), []);
        assert_eq!(code(tables.association_of("front")), ErrorCode::InvalidAssociationIdNotFound);
        tables.delete("public").unwrap();
    }

    #[test]
    fn main_table_can_be_replaced_but_not_removed() {
        let (cloud, _dir) = cloud();
        let tables = cloud.route_tables();
        let main = main_of(&cloud);
        assert_eq!(code(tables.disassociate(main.spec.associations[0].id)), ErrorCode::InvalidParameterValue);
        assert_eq!(code(tables.delete(&main.meta.id.to_string())), ErrorCode::DependencyViolation);
        tables.create(Some("lab"), named("other"), None).unwrap();
        assert!(done(tables.set_main("other")).is_main());
        assert_eq!(main_of(&cloud).meta.name(), Some("other"));
        tables.delete(&main.meta.id.to_string()).unwrap();
        tables.create(None, named("elsewhere"), None).unwrap();
        let association = main_of(&cloud).spec.associations[0].id;
        assert_eq!(code(tables.replace_association(association, "elsewhere")), ErrorCode::InvalidParameterValue);
    }

    #[test]
    fn gateway_has_one_attachment_and_blocks_deletion() {
        let (cloud, _dir) = cloud();
        let gateways = cloud.internet_gateways();
        assert_eq!(code(gateways.detach("exit", None)), ErrorCode::GatewayNotAttached);
        assert_eq!(code(gateways.attach("exit", "default")), ErrorCode::InvalidParameterValue);
        done(gateways.attach("exit", "lab"));
        assert_eq!(code(gateways.attach("exit", "lab")), ErrorCode::ResourceAlreadyAssociated);
        assert_eq!(code(gateways.delete("exit")), ErrorCode::DependencyViolation);
        cloud.subnets().delete("front").unwrap();
        assert_eq!(code(cloud.vpcs().delete("lab")), ErrorCode::DependencyViolation);
        done(gateways.detach("exit", None));
        gateways.delete("exit").unwrap();
        cloud.vpcs().delete("lab").unwrap();
        let left = cloud.route_tables().list().unwrap();
        assert_eq!(left.len(), 1);
    }

    #[test]
    fn deleted_subnet_has_no_association() {
        let (cloud, _dir) = cloud();
        let tables = cloud.route_tables();
        tables.create(Some("lab"), named("public"), None).unwrap();
        done(tables.associate("public", "front"));
        cloud.subnets().delete("front").unwrap();
        tables.delete("public").unwrap();
    }

    #[test]
    fn vpc_with_gateway_has_default_route() {
        let (cloud, _dir) = cloud();
        let vpc = cloud.vpcs().create_with_gateway(range("10.1.0.0/16"), named("open")).unwrap();
        let tables = cloud.route_tables().list().unwrap();
        let main = tables.iter().find(|table| table.spec.vpc_id == vpc.meta.id).unwrap();
        assert!(main.is_main() && main.spec.routes[0].destination == range(ANYWHERE));
        assert_eq!(code(cloud.vpcs().delete("open")), ErrorCode::DependencyViolation);
    }
}
