use ec2::api::vpc::{DHCP_OPTIONS_ID, PrivateDnsNameOptions, Subnet, Vpc, VpcCidrBlockAssociation, VpcCidrBlockState};
use ec2::api::{ACCOUNT_ID, Tag, arn};
use store::{SubnetRecord, VpcRecord};

pub fn vpc(record: &VpcRecord) -> Vpc {
    let cidr_block = record.spec.cidr.to_string();
    let association = VpcCidrBlockAssociation {
        association_id: record.meta.id.with_prefix("vpc-cidr-assoc"),
        cidr_block: cidr_block.clone(),
        cidr_block_state: VpcCidrBlockState { state: "associated" },
    };
    Vpc {
        cidr_block,
        cidr_block_association_set: vec![association],
        dhcp_options_id: DHCP_OPTIONS_ID,
        instance_tenancy: "default",
        is_default: record.status.is_default,
        owner_id: ACCOUNT_ID,
        state: "available",
        tags: Tag::list(&record.meta.tags),
        vpc_id: record.meta.id,
    }
}

/// `free` is the number of unused addresses.
pub fn subnet(record: &SubnetRecord, free: usize) -> Subnet {
    Subnet {
        assign_ipv6_address_on_creation: false,
        availability_zone: record.spec.zone,
        availability_zone_id: record.spec.zone.id(),
        available_ip_address_count: free,
        cidr_block: record.spec.cidr.to_string(),
        default_for_az: record.status.default_for_zone,
        enable_dns64: false,
        ipv6_cidr_block_association_set: [],
        ipv6_native: false,
        map_customer_owned_ip_on_launch: false,
        map_public_ip_on_launch: record.spec.map_public_ip,
        owner_id: ACCOUNT_ID,
        private_dns_name_options_on_launch: PrivateDnsNameOptions::IP_NAME,
        state: "available",
        subnet_arn: arn("subnet", record.meta.id),
        subnet_id: record.meta.id,
        tags: Tag::list(&record.meta.tags),
        vpc_id: record.spec.vpc_id,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use store::Meta;

    #[test]
    fn vpc_has_association_of_its_range() {
        let record = VpcRecord {
            meta: Meta::new("vpc-0123456789abcdef0".parse().unwrap(), 0, Default::default()),
            spec: store::vpc::Spec { cidr: "10.0.0.0/16".parse().unwrap() },
            status: store::vpc::Status { is_default: false },
        };
        assert_eq!(
            serde_json::to_value(vpc(&record)).unwrap(),
            json!({
                "CidrBlock": "10.0.0.0/16",
                "CidrBlockAssociationSet": [{
                    "AssociationId": "vpc-cidr-assoc-0123456789abcdef0",
                    "CidrBlock": "10.0.0.0/16",
                    "CidrBlockState": {"State": "associated"},
                }],
                "DhcpOptionsId": "dopt-00000000000000000",
                "InstanceTenancy": "default",
                "IsDefault": false,
                "OwnerId": "000000000000",
                "State": "available",
                "Tags": [],
                "VpcId": "vpc-0123456789abcdef0",
            })
        );
    }
}
