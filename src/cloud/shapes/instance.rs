use std::collections::BTreeMap;

use super::INTERFACE;
use crate::limits::{credit_rules, mode_of};
use crate::stop::StateChange;
use ec2::api::instance::{
    CapacityReservationSpecification, CpuOptions, EbsInstanceBlockDevice, EnclaveOptions, HibernationOptions, Instance,
    InstanceBlockDeviceMapping, InstanceCreditSpecification, InstanceMaintenanceOptions, InstanceNetwork,
    InstanceStateChange, Monitoring, Placement, Reservation,
};
use ec2::api::network_interface::{
    GroupIdentifier, InstanceNetworkInterface, InstanceNetworkInterfaceAssociation, InstanceNetworkInterfaceAttachment,
    InstancePrivateIpAddress,
};
use ec2::api::vpc::PrivateDnsNameOptions;
use ec2::api::{
    ACCOUNT_ID, BOOT_MODE, HYPERVISOR, PLATFORM_DETAILS, Tag, Timestamp, USAGE_OPERATION, VIRTUALIZATION_TYPE,
};
use ec2::id::SecurityGroupId;
use ec2::network::{mac_address, private_dns_name};
use machine::network::MacAddress;
use store::{BlockDeviceMapping, InstanceRecord, NetworkRecord};

/// Names of security groups by ID.
pub type GroupNames = BTreeMap<SecurityGroupId, String>;

/// Groups instances by reservation, as `DescribeInstances` does.
pub fn reservations(instances: &[InstanceRecord], groups: &GroupNames) -> Vec<Reservation> {
    let mut launches: Vec<Vec<&InstanceRecord>> = Vec::new();
    for record in instances {
        match launches
            .iter_mut()
            .find(|launch| launch[0].status.launch.reservation_id == record.status.launch.reservation_id)
        {
            Some(launch) => launch.push(record),
            None => launches.push(vec![record]),
        }
    }
    launches.into_iter().map(|launch| reservation(launch, groups)).collect()
}

/// Returns the response of `RunInstances`.
pub fn reservation<'a>(instances: impl IntoIterator<Item = &'a InstanceRecord>, groups: &GroupNames) -> Reservation {
    let mut instances = instances.into_iter().peekable();
    Reservation {
        groups: [],
        reservation_id: instances.peek().map(|record| record.status.launch.reservation_id),
        instances: instances.map(|record| instance(record, groups)).collect(),
        owner_id: ACCOUNT_ID,
    }
}

pub fn instance(record: &InstanceRecord, groups: &GroupNames) -> Instance {
    Instance {
        ami_launch_index: record.status.launch.launch_index,
        architecture: "x86_64",
        block_device_mappings: record.status.block_devices.iter().map(block_device_mapping).collect(),
        boot_mode: BOOT_MODE,
        capacity_reservation_specification: CapacityReservationSpecification {
            capacity_reservation_preference: "open",
        },
        client_token: record.meta.client_token.clone().unwrap_or_default(),
        cpu_options: CpuOptions {
            core_count: record.spec.size.vcpus / record.spec.size.threads_per_core.max(1),
            threads_per_core: record.spec.size.threads_per_core,
        },
        current_instance_boot_mode: BOOT_MODE,
        ebs_optimized: false,
        ena_support: false,
        enclave_options: EnclaveOptions { enabled: false },
        hibernation_options: HibernationOptions { configured: record.spec.hibernation },
        hypervisor: HYPERVISOR,
        image_id: record.spec.image_id,
        instance_id: record.meta.id,
        instance_type: record.spec.size.instance_type.clone(),
        key_name: record.spec.key_name.clone(),
        launch_time: Timestamp::from_seconds(record.status.launch_time),
        maintenance_options: InstanceMaintenanceOptions { auto_recovery: "disabled", reboot_migration: "disabled" },
        monitoring: Monitoring { state: "disabled" },
        network: record.status.network.as_ref().map(|network| network_of(record, network, groups)).unwrap_or_default(),
        placement: Placement {
            availability_zone: record.status.network.as_ref().map(|network| network.zone),
            group_name: "",
            tenancy: "default",
        },
        platform_details: PLATFORM_DETAILS,
        private_dns_name_options: PrivateDnsNameOptions::IP_NAME,
        product_codes: [],
        root_device_name: record.root().map(|root| root.device_name.clone()),
        root_device_type: "ebs",
        state: record.status.state.into(),
        state_reason: record.status.state_reason.clone(),
        state_transition_reason: record.status.state_transition_reason.clone(),
        tags: Tag::list(&record.meta.tags),
        usage_operation: USAGE_OPERATION,
        usage_operation_update_time: Timestamp::from_seconds(record.meta.created),
        virtualization_type: VIRTUALIZATION_TYPE,
    }
}

fn block_device_mapping(device: &BlockDeviceMapping) -> InstanceBlockDeviceMapping {
    InstanceBlockDeviceMapping {
        device_name: device.device_name.clone(),
        ebs: EbsInstanceBlockDevice {
            attach_time: Timestamp::from_seconds(device.attach_time),
            delete_on_termination: device.delete_on_termination,
            status: "attached",
            volume_id: device.volume_id,
        },
    }
}

fn network_of(record: &InstanceRecord, network: &NetworkRecord, groups: &GroupNames) -> InstanceNetwork {
    let group = |id: &SecurityGroupId| GroupIdentifier { group_id: *id, group_name: groups.get(id).cloned() };
    let security_groups: Vec<GroupIdentifier> = network.security_groups.iter().map(group).collect();
    InstanceNetwork {
        metadata_options: Some((&network.metadata_options).into()),
        network_interfaces: vec![interface(record, network, security_groups.clone())],
        private_dns_name: private_dns_name(network.private_ip),
        private_ip_address: Some(network.private_ip),
        public_dns_name: "",
        public_ip_address: network.public_ip,
        security_groups,
        source_dest_check: Some(true),
        subnet_id: Some(network.subnet_id),
        vpc_id: Some(network.vpc_id),
    }
}

fn interface(
    record: &InstanceRecord,
    network: &NetworkRecord,
    groups: Vec<GroupIdentifier>,
) -> InstanceNetworkInterface {
    let association = network.public_ip.map(|public_ip| InstanceNetworkInterfaceAssociation {
        ip_owner_id: if network.elastic_address.is_some() { ACCOUNT_ID } else { "amazon" },
        public_dns_name: "",
        public_ip,
    });
    let private_dns_name = private_dns_name(network.private_ip);
    InstanceNetworkInterface {
        association: association.clone(),
        attachment: InstanceNetworkInterfaceAttachment {
            attach_time: Timestamp::from_seconds(record.meta.created),
            attachment_id: record.meta.id.with_prefix("eni-attach"),
            delete_on_termination: true,
            device_index: 0,
            network_card_index: 0,
            status: "attached",
        },
        description: "",
        groups,
        interface_type: "interface",
        ipv6_addresses: [],
        mac_address: MacAddress(mac_address(record.meta.id)).to_string(),
        network_interface_id: record.meta.id.with_prefix(INTERFACE),
        owner_id: ACCOUNT_ID,
        private_dns_name: private_dns_name.clone(),
        private_ip_address: network.private_ip,
        private_ip_addresses: [InstancePrivateIpAddress {
            association,
            primary: true,
            private_dns_name,
            private_ip_address: network.private_ip,
        }],
        source_dest_check: true,
        status: "in-use",
        subnet_id: network.subnet_id,
        vpc_id: network.vpc_id,
    }
}

pub fn state_change(change: &StateChange) -> InstanceStateChange {
    InstanceStateChange {
        current_state: change.current.into(),
        instance_id: change.instance,
        previous_state: change.previous.into(),
    }
}

/// Returns the credit modes of burstable instances, as `DescribeInstanceCreditSpecifications` does.
pub fn credit_specifications(instances: &[InstanceRecord]) -> Vec<InstanceCreditSpecification> {
    let specification = |record: &InstanceRecord| {
        let rules = credit_rules(record)?;
        Some(InstanceCreditSpecification { cpu_credits: mode_of(record, &rules).as_str(), instance_id: record.meta.id })
    };
    instances.iter().filter_map(specification).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ec2::network::Zone;
    use ec2::state::{InstanceState, ShutdownBehavior, StateReason};
    use serde_json::{Value, json};
    use store::{LaunchRecord, Meta, SizeRecord};

    const GROUP: &str = "sg-0123456789abcdef0";

    fn network() -> NetworkRecord {
        NetworkRecord {
            vpc_id: "vpc-0123456789abcdef0".parse().unwrap(),
            subnet_id: "subnet-0123456789abcdef0".parse().unwrap(),
            zone: Zone::B,
            private_ip: [172, 31, 16, 4].into(),
            public_ip: Some([127, 18, 0, 1].into()),
            wants_public_ip: true,
            elastic_address: None,
            mode: Default::default(),
            published: Vec::new(),
            security_groups: vec![GROUP.parse().unwrap()],
            metadata_options: Default::default(),
        }
    }

    fn record() -> InstanceRecord {
        InstanceRecord {
            meta: Meta::new("i-0123456789abcdef0".parse().unwrap(), 60, Default::default()),
            spec: store::instance::Spec {
                image_id: "ami-0123456789abcdef0".parse().unwrap(),
                size: SizeRecord {
                    instance_type: "t3.nano".into(),
                    vcpus: 2,
                    threads_per_core: 2,
                    memory_mib: 512,
                    overridden: false,
                },
                key_name: Some("me".into()),
                user_data: None,
                shutdown_behavior: ShutdownBehavior::default(),
                termination_protection: false,
                hibernation: false,
                cmdline: None,
                cpu_credits: None,
                no_limits: false,
            },
            status: status(),
        }
    }

    fn status() -> store::instance::Status {
        store::instance::Status {
            launch: LaunchRecord {
                reservation_id: "r-0123456789abcdef0".parse().unwrap(),
                launch_index: 0,
                image_name: "tiny".into(),
                sequence: 1,
            },
            state: InstanceState::Running,
            state_reason: None,
            state_transition_reason: String::new(),
            launch_time: 120,
            starts: 2,
            terminated: None,
            block_devices: vec![BlockDeviceMapping {
                device_name: "/dev/xvda".into(),
                volume_id: "vol-0123456789abcdef0".parse().unwrap(),
                delete_on_termination: true,
                attach_time: 60,
            }],
            network: Some(network()),
            credits: None,
        }
    }

    fn shape(record: &InstanceRecord) -> Value {
        let groups = [(GROUP.parse().unwrap(), "web".to_string())].into();
        serde_json::to_value(instance(record, &groups)).unwrap()
    }

    #[test]
    fn running_instance_has_one_network_interface() {
        let shape = shape(&record());
        let association = json!({"IpOwnerId": "amazon", "PublicDnsName": "", "PublicIp": "127.18.0.1"});
        let groups = json!([{"GroupId": GROUP, "GroupName": "web"}]);
        assert_eq!(
            shape["NetworkInterfaces"],
            json!([{
                "Association": association,
                "Attachment": {
                    "AttachTime": "1970-01-01T00:01:00.000Z",
                    "AttachmentId": "eni-attach-0123456789abcdef0",
                    "DeleteOnTermination": true,
                    "DeviceIndex": 0,
                    "NetworkCardIndex": 0,
                    "Status": "attached",
                },
                "Description": "",
                "Groups": groups,
                "InterfaceType": "interface",
                "Ipv6Addresses": [],
                "MacAddress": "06:78:9a:bc:de:f0",
                "NetworkInterfaceId": "eni-0123456789abcdef0",
                "OwnerId": "000000000000",
                "PrivateDnsName": "ip-172-31-16-4.ec2.internal",
                "PrivateIpAddress": "172.31.16.4",
                "PrivateIpAddresses": [{
                    "Association": association,
                    "Primary": true,
                    "PrivateDnsName": "ip-172-31-16-4.ec2.internal",
                    "PrivateIpAddress": "172.31.16.4",
                }],
                "SourceDestCheck": true,
                "Status": "in-use",
                "SubnetId": "subnet-0123456789abcdef0",
                "VpcId": "vpc-0123456789abcdef0",
            }])
        );
        assert_eq!(shape["SecurityGroups"], groups);
        assert_eq!(
            shape["Placement"],
            json!({"AvailabilityZone": "us-east-1b", "GroupName": "", "Tenancy": "default"})
        );
        assert_eq!((&shape["Hypervisor"], &shape["Monitoring"]), (&json!("xen"), &json!({"State": "disabled"})));
        assert_eq!(
            shape["PrivateDnsNameOptions"],
            json!({
                "EnableResourceNameDnsAAAARecord": false,
                "EnableResourceNameDnsARecord": false,
                "HostnameType": "ip-name",
            })
        );
        assert_eq!((&shape["KeyName"], shape.get("StateReason")), (&json!("me"), None));
    }

    #[test]
    fn elastic_address_is_owned_by_account() {
        let network = NetworkRecord { elastic_address: "eipalloc-0123456789abcdef0".parse().ok(), ..network() };
        let mut record = record();
        record.status.network = Some(network);
        let shape = shape(&record);
        assert_eq!(shape["NetworkInterfaces"][0]["Association"]["IpOwnerId"], "000000000000");
    }

    #[test]
    fn terminated_instance_has_no_network_interface() {
        let mut terminated = record();
        terminated.status.state = InstanceState::Terminated;
        terminated.status.state_reason = Some(StateReason::user_initiated());
        terminated.status.network = None;
        let shape = shape(&terminated);
        assert_eq!((&shape["NetworkInterfaces"], &shape["SecurityGroups"]), (&json!([]), &json!([])));
        assert_eq!((shape.get("VpcId"), &shape["PrivateDnsName"]), (None, &json!("")));
        assert_eq!(shape["StateReason"]["Code"], "Client.UserInitiatedShutdown");
        assert_eq!(shape["State"], json!({"Code": 48, "Name": "terminated"}));
    }

    #[test]
    fn instances_of_one_launch_are_in_one_reservation() {
        let mut other = record();
        other.status.launch.reservation_id = "r-1123456789abcdef0".parse().unwrap();
        let launches = reservations(&[record(), other, record()], &GroupNames::new());
        let sizes: Vec<usize> = launches.iter().map(|launch| launch.instances.len()).collect();
        assert_eq!(sizes, [2, 1]);
    }

    #[test]
    fn only_burstable_instances_have_credit_specifications() {
        let mut fixed = record();
        fixed.spec.size.instance_type = "m5.large".into();
        let shape = serde_json::to_value(credit_specifications(&[record(), fixed])).unwrap();
        assert_eq!(shape, json!([{"CpuCredits": "unlimited", "InstanceId": "i-0123456789abcdef0"}]));
    }
}
