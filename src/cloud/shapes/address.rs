use super::INTERFACE;
use ec2::api::address::{Address, AddressAssociation};
use ec2::api::{ACCOUNT_ID, Tag};
use ec2::network::REGION;
use store::{AddressRecord, AssociationRecord};

pub fn address(record: &AddressRecord) -> Address {
    let association = |AssociationRecord { id, instance_id }| AddressAssociation {
        association_id: id,
        instance_id,
        network_interface_id: instance_id.with_prefix(INTERFACE),
        network_interface_owner_id: ACCOUNT_ID,
    };
    Address {
        allocation_id: record.meta.id,
        association: record.spec.association.map(association),
        domain: "vpc",
        network_border_group: REGION,
        public_ip: record.status.public_ip,
        public_ipv4_pool: "amazon",
        tags: Tag::list(&record.meta.tags),
    }
}
