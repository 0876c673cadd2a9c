//! The effect of route tables: the destinations that a subnet reaches through an internet gateway.

use std::net::Ipv4Addr;

use super::super::error::CloudError;
use ec2::id::{InternetGatewayId, SubnetId, VpcId};
use ipnet::Ipv4Net;
use machine::network::{Filter, FilterRule};
use store::{InternetGatewayRecord, RouteTableRecord, Transaction};

/// The route tables and gateways of all VPCs.
#[derive(Debug)]
pub(super) struct Routing {
    tables: Vec<RouteTableRecord>,
    gateways: Vec<InternetGatewayRecord>,
}

impl Routing {
    pub fn read(tx: &Transaction) -> Result<Routing, CloudError> {
        Ok(Routing { tables: tx.list()?, gateways: tx.list()? })
    }

    /// Returns the destinations that a subnet reaches through a gateway, without overlaps. A route to a gateway that is
    /// not attached to the VPC leads nowhere.
    pub fn destinations(&self, vpc: VpcId, subnet: SubnetId) -> Vec<Ipv4Net> {
        let Some(table) = self.table_of(vpc, subnet) else { return Vec::new() };
        let active = table.spec.routes.iter().filter(|route| is_attached(&self.gateways, route.gateway_id, vpc));
        Ipv4Net::aggregate(&active.map(|route| route.destination).collect())
    }

    pub fn into_table_of(self, vpc: VpcId, subnet: SubnetId) -> Option<RouteTableRecord> {
        self.table_of(vpc, subnet).cloned()
    }

    /// Returns the route table with which a subnet is associated, else the VPC's main one.
    fn table_of(&self, vpc: VpcId, subnet: SubnetId) -> Option<&RouteTableRecord> {
        let is_associated = |table: &&RouteTableRecord| {
            table.spec.associations.iter().any(|association| association.subnet_id == Some(subnet))
        };
        let is_main = |table: &&RouteTableRecord| table.spec.vpc_id == vpc && table.is_main();
        self.tables.iter().find(is_associated).or_else(|| self.tables.iter().find(is_main))
    }
}

pub(crate) fn is_attached(gateways: &[InternetGatewayRecord], id: InternetGatewayId, vpc: VpcId) -> bool {
    gateways.iter().any(|gateway| gateway.meta.id == id && gateway.spec.vpc_id == Some(vpc))
}

/// Returns true if the host, from which connections to public addresses come, is among the destinations.
pub(super) fn reaches_host(destinations: &[Ipv4Net]) -> bool {
    destinations.iter().any(|range| range.contains(&Ipv4Addr::LOCALHOST))
}

/// Restricts the outbound traffic of an instance without a router to the destinations.
pub(super) fn restricted(filter: Filter, destinations: &[Ipv4Net]) -> Filter {
    let common = |peer: &Ipv4Net| {
        let narrower = |range: &Ipv4Net| match (peer.contains(range), range.contains(peer)) {
            (true, _) => Some(*range),
            (false, true) => Some(*peer),
            (false, false) => None,
        };
        destinations.iter().filter_map(narrower).collect::<Vec<_>>()
    };
    let rule = |FilterRule { protocol, peers }: FilterRule| {
        let peers: Vec<Ipv4Net> = peers.iter().flat_map(common).collect();
        (!peers.is_empty()).then_some(FilterRule { protocol, peers })
    };
    Filter { egress: filter.egress.into_iter().filter_map(rule).collect(), ..filter }
}

#[cfg(test)]
mod tests {
    use super::*;
    use machine::network::FilterProtocol;

    fn ranges(texts: &[&str]) -> Vec<Ipv4Net> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn outbound_traffic_is_restricted_to_destinations() {
        let rule = |peers: &[&str]| FilterRule { protocol: FilterProtocol::All, peers: ranges(peers) };
        let filter = Filter { ingress: vec![rule(&["0.0.0.0/0"])], egress: vec![rule(&["0.0.0.0/0", "10.0.0.0/8"])] };
        let egress = |destinations: &[&str]| restricted(filter.clone(), &ranges(destinations)).egress;
        assert_eq!(egress(&["0.0.0.0/0"]), filter.egress);
        assert_eq!(egress(&["10.1.0.0/16"]), [rule(&["10.1.0.0/16", "10.1.0.0/16"])]);
        assert_eq!(egress(&["11.0.0.0/8"]), [rule(&["11.0.0.0/8"])]);
        assert_eq!(egress(&[]), []);
        assert_eq!(restricted(filter.clone(), &[]).ingress, filter.ingress);
    }

    #[test]
    fn host_is_reached_by_default_route() {
        assert!(reaches_host(&ranges(&["0.0.0.0/0"])) && !reaches_host(&ranges(&["10.0.0.0/8"])));
    }
}
