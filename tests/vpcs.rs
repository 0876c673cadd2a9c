//! VPCs, subnets and elastic addresses, without guests.

mod common;

use common::instances::json;
use common::{Outcome, Wisp};
use serde_json::{Value, json};

fn refused(outcome: Outcome, code: &str) -> String {
    let outcome = outcome.expect_code(1);
    assert!(outcome.stderr.contains(code), "{}", outcome.stderr);
    outcome.stderr
}

fn subnet(wisp: &Wisp, name: &str) -> Value {
    let subnets = json(wisp, &["subnet", "ls"]);
    let is_it = |subnet: &&Value| subnet["Tags"].as_array().unwrap().iter().any(|tag| tag["Value"] == name);
    subnets["Subnets"].as_array().unwrap().iter().find(is_it).unwrap().clone()
}

#[test]
fn default_vpc_has_subnet_in_each_zone() {
    let wisp = Wisp::without_kvm();
    let vpcs = json(&wisp, &["vpc", "ls"]);
    let default = &vpcs["Vpcs"][0];
    assert_eq!((&default["CidrBlock"], &default["IsDefault"]), (&json!("172.31.0.0/16"), &json!(true)));
    let subnets = json(&wisp, &["subnet", "ls"]);
    let zones: Vec<&str> =
        subnets["Subnets"].as_array().unwrap().iter().map(|one| one["AvailabilityZone"].as_str().unwrap()).collect();
    assert_eq!(zones, ["us-east-1a", "us-east-1b", "us-east-1c", "us-east-1d", "us-east-1e", "us-east-1f"]);
    assert_eq!(subnets["Subnets"][5]["CidrBlock"], "172.31.80.0/20");
    assert_eq!(subnets["Subnets"][5]["AvailableIpAddressCount"], 4091);

    refused(wisp.run(&["vpc", "create", "--default"]), "DefaultVpcAlreadyExists");
    wisp.run(&["vpc", "rm", "default"]).expect_code(0);
    assert_eq!(json(&wisp, &["subnet", "ls"])["Subnets"], json!([]));
    let hint = refused(wisp.run(&["sg", "create", "web"]), "VPCIdNotSpecified");
    assert!(hint.contains("wisp vpc create --default"), "{hint}");
    wisp.run(&["vpc", "create", "--default"]).expect_code(0);
    assert_eq!(json(&wisp, &["subnet", "ls"])["Subnets"].as_array().unwrap().len(), 6);
    wisp.run(&["sg", "create", "web"]).expect_code(0);
}

#[test]
fn vpc_with_subnets_or_groups_cannot_be_removed() {
    let wisp = Wisp::without_kvm();
    refused(wisp.run(&["vpc", "create", "--cidr", "10.0.0.0/8"]), "InvalidVpc.Range");
    let made = json(&wisp, &["vpc", "create", "--cidr", "10.0.0.0/16", "--name", "lab"]);
    let lab = made["Vpc"]["VpcId"].as_str().unwrap().to_string();
    wisp.run(&["subnet", "create", "--vpc", "lab", "--cidr", "10.0.1.0/24", "--name", "front"]).expect_code(0);
    refused(wisp.run(&["subnet", "create", "--vpc", "lab", "--cidr", "10.1.0.0/24"]), "InvalidSubnet.Range");
    refused(wisp.run(&["subnet", "create", "--vpc", "lab", "--cidr", "10.0.0.0/20"]), "InvalidSubnet.Conflict");
    let zone = ["--zone", "us-east-1b", "--name", "back"];
    wisp.run(&[&["subnet", "create", "--vpc", &lab[..10], "--cidr", "10.0.2.0/28"], &zone[..]].concat()).expect_code(0);
    let back = subnet(&wisp, "back");
    assert_eq!((&back["VpcId"], &back["AvailabilityZoneId"]), (&json!(lab), &json!("use1-az2")));
    assert_eq!((&back["AvailableIpAddressCount"], &back["MapPublicIpOnLaunch"]), (&json!(11), &json!(false)));
    wisp.run(&["subnet", "modify", "back", "--map-public-ip"]).expect_code(0);
    assert_eq!(subnet(&wisp, "back")["MapPublicIpOnLaunch"], true);

    let hint = refused(wisp.run(&["vpc", "rm", "lab"]), "DependencyViolation");
    assert!(hint.contains("subnet-"), "{hint}");
    wisp.run(&["subnet", "rm", "front"]).expect_code(0);
    wisp.run(&["subnet", "rm", "back"]).expect_code(0);
    refused(wisp.run(&["subnet", "rm", "back"]), "InvalidSubnetID.NotFound");
    wisp.run(&["sg", "create", "web", "--vpc", "lab"]).expect_code(0);
    refused(wisp.run(&["vpc", "rm", "lab"]), "DependencyViolation");
    wisp.run(&["sg", "rm", "web"]).expect_code(0);
    wisp.run(&["vpc", "rm", "lab"]).expect_code(0);
    refused(wisp.run(&["vpc", "rm", &lab]), "InvalidVpcID.NotFound");
    assert_eq!(json(&wisp, &["sg", "ls"])["SecurityGroups"].as_array().unwrap().len(), 1);
}

#[test]
fn group_names_resolve_in_default_vpc_first() {
    let wisp = Wisp::without_kvm();
    wisp.run(&["vpc", "create", "--cidr", "10.0.0.0/16", "--name", "lab"]).expect_code(0);
    let id = |made: Value| made["SecurityGroups"][0]["GroupId"].as_str().unwrap().to_string();
    let there = id(json(&wisp, &["sg", "create", "web", "--vpc", "lab"]));
    assert_eq!(id(json(&wisp, &["sg", "show", "web"])), there);
    let here = id(json(&wisp, &["sg", "create", "web"]));
    assert_ne!(here, there);
    assert_eq!(id(json(&wisp, &["sg", "show", "web"])), here);
    refused(wisp.run(&["sg", "create", "web", "--vpc", "lab"]), "InvalidGroup.Duplicate");
    let error =
        refused(wisp.run(&["sg", "authorize", &there, "--port", "80", "--group", &here]), "InvalidGroup.NotFound");
    assert!(error.contains("another VPC"), "{error}");
    wisp.run(&["sg", "authorize", &there, "--port", "80", "--group", "default"]).expect_code(0);
    let rules = json(&wisp, &["sg", "show", &there])["SecurityGroups"][0]["IpPermissions"].clone();
    let of_lab = json(&wisp, &["sg", "ls", "--vpc", "lab"])["SecurityGroups"][0].clone();
    assert_eq!(
        (&of_lab["GroupName"], &rules[0]["UserIdGroupPairs"][0]["GroupId"]),
        (&json!("default"), &of_lab["GroupId"])
    );
}

#[test]
fn elastic_address_exists_until_released() {
    let wisp = Wisp::without_kvm();
    let first = json(&wisp, &["address", "allocate", "--name", "www"]);
    let second = json(&wisp, &["address", "allocate"]);
    let ip = first["PublicIp"].as_str().unwrap().to_string();
    assert!(ip.starts_with("127.18.") && second["PublicIp"] != first["PublicIp"], "{first} {second}");
    wisp.run(&["tag", "www", "stage=test"]).expect_code(0);
    refused(wisp.run(&["address", "associate", "www", "nobody"]), "InvalidInstanceID.NotFound");
    refused(wisp.run(&["address", "disassociate", &ip]), "InvalidAssociationID.NotFound");
    wisp.run(&["address", "release", &ip]).expect_code(0);
    refused(wisp.run(&["address", "release", "www"]), "InvalidAllocationID.NotFound");
    assert_eq!(json(&wisp, &["address", "ls"])["Addresses"], json!([second]));
}

#[test]
fn invalid_launch_placement_is_refused() {
    let wisp = Wisp::new();
    wisp.run(&["vpc", "create", "--cidr", "10.0.0.0/16", "--name", "lab"]).expect_code(0);
    wisp.run(&["subnet", "create", "--vpc", "lab", "--cidr", "10.0.1.0/24", "--name", "front"]).expect_code(0);
    for (place, code) in [
        (&["--subnet", "nothing"][..], "InvalidSubnetID.NotFound"),
        (&["--subnet", "front", "--zone", "us-east-1b"], "InvalidParameterValue"),
        (&["--subnet", "front", "--private-ip", "10.0.2.4"], "InvalidParameterValue"),
        (&["--subnet", "front", "--private-ip", "10.0.1.3"], "InvalidParameterValue"),
        (&["--private-ip", "172.31.0.9", "--count", "2"], "InvalidParameterCombination"),
        (&["--subnet", "front", "--network", "user"], "InvalidParameterCombination"),
    ] {
        refused(wisp.run(&[&["launch", "--vcpus", "1", "--memory", "128M"], place].concat()), code);
    }
    assert_eq!(common::instances::files(&wisp, "instances"), Vec::<String>::new());
}
