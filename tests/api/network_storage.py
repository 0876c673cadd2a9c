"""Scenarios of tests/api_network_storage.rs: boto3 against `wisp serve`, without guests.

    network_storage.py SCENARIO
"""

import sys

from client import NAME, UNKNOWN, ec2, filters, refused, tagged


def tcp(first, last, *ranges, **members):
    ranges = [{"CidrIp": text} for text in ranges]
    return {"IpProtocol": "tcp", "FromPort": first, "ToPort": last, "IpRanges": ranges, **members}


def group(group_id):
    return ec2.describe_security_groups(GroupIds=[group_id])["SecurityGroups"][0]


def groups():
    create = dict(GroupName="web", Description="web servers", TagSpecifications=tagged("security-group"))
    refused("DryRunOperation", ec2.create_security_group, DryRun=True, **create)
    created = ec2.create_security_group(**create)
    web = created["GroupId"]
    assert created["Tags"] == NAME and created["SecurityGroupArn"].endswith(web)
    refused("InvalidGroup.Duplicate", ec2.create_security_group, **create)
    refused("InvalidParameterValue", ec2.create_security_group, GroupName="bad", Description="\u00e4")
    refused("InvalidVpcID.NotFound", ec2.create_security_group, GroupName="a", Description="a", VpcId="vpc-" + UNKNOWN)
    refused("InvalidParameterValue", ec2.create_security_group, GroupName="a", Description="a",
            TagSpecifications=tagged("vpc"))
    default = ec2.describe_security_groups(GroupNames=["default"])["SecurityGroups"][0]
    found = ec2.describe_security_groups(Filters=filters(group_name="w*", vpc_id=default["VpcId"]))["SecurityGroups"]
    assert [found["GroupId"] for found in found] == [web]
    found = found[0]
    assert found["IpPermissions"] == [] and found["IpPermissionsEgress"][0]["IpProtocol"] == "-1"
    assert found["Tags"] == NAME and found["Description"] == "web servers"
    assert ec2.describe_security_groups(Filters=[{"Name": "tag:Name", "Values": ["other"]}])["SecurityGroups"] == []
    refused("InvalidParameterValue", ec2.describe_security_groups, Filters=filters(whale="x"))
    refused("InvalidGroup.NotFound", ec2.describe_security_groups, GroupIds=["sg-" + UNKNOWN])
    refused("InvalidGroup.NotFound", ec2.describe_security_groups, GroupNames=["none"])
    # The API takes no names and no prefixes for IDs.
    refused("InvalidGroupId.Malformed", ec2.describe_security_groups, GroupIds=["web"])
    refused("InvalidGroupId.Malformed", ec2.delete_security_group, GroupId=web[:-1])
    refused("InvalidParameterCombination", ec2.describe_security_groups, GroupIds=[web], MaxResults=5)
    refused("CannotDelete", ec2.delete_security_group, GroupName="default")
    refused("MissingParameter", ec2.delete_security_group)
    refused("DryRunOperation", ec2.delete_security_group, GroupName="web", DryRun=True)
    assert ec2.delete_security_group(GroupName="web")["GroupId"] == web
    refused("InvalidGroup.NotFound", ec2.delete_security_group, GroupId=web)


def rules():
    web = ec2.create_security_group(GroupName="web", Description="web")["GroupId"]
    other = ec2.create_security_group(GroupName="other", Description="other")["GroupId"]
    authorize, revoke = ec2.authorize_security_group_ingress, ec2.revoke_security_group_ingress
    http = tcp(80, 81, UserIdGroupPairs=[{"GroupId": other, "Description": "backend"}])
    http["IpRanges"] = [{"CidrIp": "10.0.0.0/8", "Description": "office"}]
    refused("DryRunOperation", authorize, GroupId=web, IpPermissions=[http], DryRun=True)
    added = authorize(GroupId=web, IpPermissions=[http], TagSpecifications=tagged("security-group-rule"))
    office, backend = added["SecurityGroupRules"]
    assert added["Return"] and office["Description"] == "office" and office["CidrIpv4"] == "10.0.0.0/8"
    assert office["Tags"] == NAME and not office["IsEgress"] and (office["FromPort"], office["ToPort"]) == (80, 81)
    assert backend["ReferencedGroupInfo"] == {"GroupId": other, "UserId": backend["GroupOwnerId"]}
    shown = group(web)["IpPermissions"][0]
    assert shown["IpRanges"] == http["IpRanges"] and shown["UserIdGroupPairs"][0]["Description"] == "backend"
    # A description does not distinguish rules.
    refused("InvalidPermission.Duplicate", authorize, GroupId=web, IpPermissions=[tcp(80, 81, "10.0.0.0/8")])
    refused("InvalidParameterValue", authorize, GroupId=web, IpPermissions=[tcp(1, 1, "10.0.0.0/8", "10.0.0.0/8")])
    assert len(group(web)["IpPermissions"]) == 1
    refused("DependencyViolation", ec2.delete_security_group, GroupId=other)
    malformed_rules(web)
    # The form with a rule's members in the request itself.
    authorize(GroupName="web", IpProtocol="tcp", FromPort=22, ToPort=22, CidrIp="0.0.0.0/0")
    authorize(GroupName="web", SourceSecurityGroupName="other")
    rule_changes(web, office)
    revoke(GroupName="web", IpProtocol="tcp", FromPort=22, ToPort=22, CidrIp="0.0.0.0/0")
    refused("InvalidPermission.NotFound", revoke, GroupId=web, IpPermissions=[tcp(22, 22, "0.0.0.0/0")])
    refused("InvalidSecurityGroupRuleId.NotFound", ec2.revoke_security_group_egress, GroupId=web,
            SecurityGroupRuleIds=[office["SecurityGroupRuleId"]])
    revoked = revoke(GroupId=web, SecurityGroupRuleIds=[backend["SecurityGroupRuleId"]])["RevokedSecurityGroupRules"]
    assert [rule["ReferencedGroupId"] for rule in revoked] == [other]
    revoke(GroupId=web, IpPermissions=group(web)["IpPermissions"])
    assert group(web)["IpPermissions"] == []
    egress = group(web)["IpPermissionsEgress"]
    ec2.revoke_security_group_egress(GroupId=web, IpPermissions=egress)
    assert group(web)["IpPermissionsEgress"] == []
    ec2.authorize_security_group_egress(GroupId=web, IpPermissions=egress)
    assert group(web)["IpPermissionsEgress"] == egress
    ec2.delete_security_group(GroupId=other)


def malformed_rules(web):
    authorize = ec2.authorize_security_group_ingress
    for permission in [tcp(80, 80, "10.0.0.0"), tcp(81, 80, "10.0.0.0/8"), tcp(-1, -1, "10.0.0.0/8"),
                       {"IpProtocol": "whale", "IpRanges": [{"CidrIp": "10.0.0.0/8"}]}]:
        refused("InvalidParameterValue", authorize, GroupId=web, IpPermissions=[permission])
    refused("MissingParameter", authorize, GroupId=web)
    refused("MissingParameter", authorize, GroupId=web, IpPermissions=[tcp(80, 80)])
    refused("UnsupportedOperation", authorize, GroupId=web,
            IpPermissions=[tcp(80, 80, Ipv6Ranges=[{"CidrIpv6": "::/0"}])])
    # Terraform ignores this error: it removes an IPv6 rule that EC2 may have added to a new group.
    refused("InvalidPermission.NotFound", ec2.revoke_security_group_egress, GroupId=web,
            IpPermissions=[{"IpProtocol": "-1", "FromPort": 0, "ToPort": 0, "Ipv6Ranges": [{"CidrIpv6": "::/0"}]}])
    refused("InvalidGroup.NotFound", authorize, GroupId=web,
            IpPermissions=[tcp(80, 80, UserIdGroupPairs=[{"GroupId": "sg-" + UNKNOWN}])])


def rule_changes(web, office):
    rule_id = office["SecurityGroupRuleId"]
    describe = ec2.describe_security_group_rules
    rule = lambda: describe(SecurityGroupRuleIds=[rule_id])["SecurityGroupRules"][0]
    assert rule() == office
    assert len(describe(Filters=filters(group_id=web))["SecurityGroupRules"]) == 5
    tag = [{"Name": "tag:Name", "Values": ["test"]}]
    assert len(describe(Filters=tag)["SecurityGroupRules"]) == 2
    refused("InvalidSecurityGroupRuleId.NotFound", describe, SecurityGroupRuleIds=["sgr-" + UNKNOWN])
    describe_rules = ec2.update_security_group_rule_descriptions_ingress
    described = [{"SecurityGroupRuleId": rule_id, "Description": "new"}]
    describe_rules(GroupId=web, SecurityGroupRuleDescriptions=described)
    assert rule()["Description"] == "new"
    refused("InvalidSecurityGroupRuleId.NotFound", ec2.update_security_group_rule_descriptions_egress, GroupId=web,
            SecurityGroupRuleDescriptions=described)
    describe_rules(GroupId=web, IpPermissions=[tcp(80, 81, "10.0.0.0/8")])
    assert "Description" not in rule()
    change = {"IpProtocol": "udp", "FromPort": 53, "ToPort": 53, "CidrIpv4": "10.1.0.0/16", "Description": "DNS"}
    modify = lambda **change: dict(GroupId=web, SecurityGroupRules=[
        {"SecurityGroupRuleId": rule_id, "SecurityGroupRule": change}])
    ec2.modify_security_group_rules(**modify(**change))
    assert rule()["CidrIpv4"] == "10.1.0.0/16" and rule()["IpProtocol"] == "udp" and rule()["Tags"] == NAME
    ssh = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "CidrIpv4": "0.0.0.0/0"}
    refused("InvalidPermission.Duplicate", ec2.modify_security_group_rules, **modify(**ssh))
    refused("MissingParameter", ec2.modify_security_group_rules, **modify(IpProtocol="-1"))
    ec2.create_tags(Resources=[rule_id], Tags=[{"Key": "more", "Value": "1"}])
    assert {tag["Key"] for tag in rule()["Tags"]} == {"Name", "more"}
    listed = ec2.describe_tags(Filters=filters(resource_id=rule_id))["Tags"]
    assert {tag["ResourceType"] for tag in listed} == {"security-group-rule"}


def vpcs():
    default = ec2.describe_vpcs(Filters=filters(is_default="true"))["Vpcs"]
    assert [vpc["CidrBlock"] for vpc in default] == ["172.31.0.0/16"]
    refused("DefaultVpcAlreadyExists", ec2.create_default_vpc)
    create = dict(CidrBlock="10.0.0.0/16", TagSpecifications=tagged("vpc"), InstanceTenancy="default",
                  AmazonProvidedIpv6CidrBlock=False)
    refused("DryRunOperation", ec2.create_vpc, DryRun=True, **create)
    vpc = ec2.create_vpc(**create)["Vpc"]
    assert vpc["Tags"] == NAME and vpc["State"] == "available" and not vpc["IsDefault"]
    assert vpc["CidrBlockAssociationSet"][0]["CidrBlock"] == "10.0.0.0/16"
    vpc_id = vpc["VpcId"]
    assert ec2.describe_vpcs(VpcIds=[vpc_id])["Vpcs"] == [vpc]
    assert ec2.describe_vpcs(Filters=filters(cidr="10.0.*"))["Vpcs"] == [vpc]
    refused("InvalidVpc.Range", ec2.create_vpc, CidrBlock="10.0.0.0/8")
    refused("InvalidParameterValue", ec2.create_vpc, CidrBlock="10.0.0.0")
    refused("MissingParameter", ec2.create_vpc)
    refused("UnsupportedOperation", ec2.create_vpc, CidrBlock="10.0.0.0/16", InstanceTenancy="dedicated")
    refused("InvalidVpcID.NotFound", ec2.describe_vpcs, VpcIds=["vpc-" + UNKNOWN])
    refused("InvalidVpcID.NotFound", ec2.describe_vpcs, VpcIds=["vpc-12345678"])
    refused("InvalidVpcID.Malformed", ec2.delete_vpc, VpcId="test")
    vpc_attributes(vpc)
    acl = ec2.describe_network_acls(Filters=filters(vpc_id=vpc_id))["NetworkAcls"][0]
    assert acl["IsDefault"] and acl["Associations"] == [] and len(acl["Entries"]) == 4
    assert ec2.describe_network_acls(NetworkAclIds=[acl["NetworkAclId"]])["NetworkAcls"] == [acl]
    refused("InvalidNetworkAclID.NotFound", ec2.describe_network_acls, NetworkAclIds=["acl-" + UNKNOWN])
    subnets(vpc_id)
    ec2.delete_vpc(VpcId=vpc_id)
    refused("InvalidVpcID.NotFound", ec2.delete_vpc, VpcId=vpc_id)
    pages()
    ec2.delete_vpc(VpcId=default[0]["VpcId"])
    refused("VPCIdNotSpecified", ec2.create_security_group, GroupName="a", Description="a")
    assert ec2.create_default_vpc()["Vpc"]["IsDefault"]
    assert len(ec2.describe_subnets(Filters=filters(default_for_az="true"))["Subnets"]) == 6


def vpc_attributes(vpc):
    vpc_id = vpc["VpcId"]
    attribute = lambda name: ec2.describe_vpc_attribute(VpcId=vpc_id, Attribute=name)
    assert attribute("enableDnsSupport")["EnableDnsSupport"] == {"Value": True}
    assert attribute("enableDnsHostnames")["EnableDnsHostnames"] == {"Value": True}
    metrics = attribute("enableNetworkAddressUsageMetrics")["EnableNetworkAddressUsageMetrics"]
    assert metrics == {"Value": False}
    ec2.modify_vpc_attribute(VpcId=vpc_id, EnableDnsSupport={"Value": True})
    refused("UnsupportedOperation", ec2.modify_vpc_attribute, VpcId=vpc_id, EnableDnsSupport={"Value": False})
    refused("MissingParameter", ec2.modify_vpc_attribute, VpcId=vpc_id)
    link = ec2.describe_vpc_classic_link(VpcIds=[vpc_id])["Vpcs"]
    assert link == [{"ClassicLinkEnabled": False, "Tags": NAME, "VpcId": vpc_id}]
    options = ec2.describe_dhcp_options(DhcpOptionsIds=[vpc["DhcpOptionsId"]])["DhcpOptions"]
    assert options[0]["DhcpConfigurations"][0] == {"Key": "domain-name", "Values": [{"Value": "ec2.internal"}]}
    refused("InvalidDhcpOptionID.NotFound", ec2.describe_dhcp_options, DhcpOptionsIds=["dopt-" + UNKNOWN])


def subnets(vpc_id):
    create = dict(VpcId=vpc_id, CidrBlock="10.0.1.0/24", AvailabilityZone="us-east-1b",
                  TagSpecifications=tagged("subnet"))
    refused("DryRunOperation", ec2.create_subnet, DryRun=True, **create)
    subnet = ec2.create_subnet(**create)["Subnet"]
    assert subnet["Tags"] == NAME and subnet["AvailableIpAddressCount"] == 251
    assert (subnet["AvailabilityZoneId"], subnet["MapPublicIpOnLaunch"]) == ("use1-az2", False)
    refused("InvalidSubnet.Conflict", ec2.create_subnet, **create)
    refused("InvalidSubnet.Range", ec2.create_subnet, VpcId=vpc_id, CidrBlock="10.1.0.0/24")
    refused("InvalidParameterValue", ec2.create_subnet, VpcId=vpc_id, CidrBlock="10.0.2.0/24", AvailabilityZone="x")
    refused("InvalidVpcID.NotFound", ec2.create_subnet, VpcId="vpc-" + UNKNOWN, CidrBlock="10.0.2.0/24")
    by_zone = ec2.create_subnet(VpcId=vpc_id, CidrBlock="10.0.2.0/24", AvailabilityZoneId="use1-az3")["Subnet"]
    assert by_zone["AvailabilityZone"] == "us-east-1c"
    subnet_id = subnet["SubnetId"]
    ec2.modify_subnet_attribute(SubnetId=subnet_id, MapPublicIpOnLaunch={"Value": True})
    found = ec2.describe_subnets(Filters=filters(vpc_id=vpc_id, map_public_ip_on_launch="true"))["Subnets"]
    assert [found["SubnetId"] for found in found] == [subnet_id]
    refused("UnsupportedOperation", ec2.modify_subnet_attribute, SubnetId=subnet_id, EnableDns64={"Value": True})
    refused("InvalidSubnetID.NotFound", ec2.describe_subnets, SubnetIds=["subnet-" + UNKNOWN])
    refused("DependencyViolation", ec2.delete_vpc, VpcId=vpc_id)
    acl = ec2.describe_network_acls(Filters=[{"Name": "association.subnet-id", "Values": [subnet_id]}])["NetworkAcls"]
    assert [acl["VpcId"] for acl in acl] == [vpc_id]
    for subnet_id in (subnet_id, by_zone["SubnetId"]):
        ec2.delete_subnet(SubnetId=subnet_id)
        refused("InvalidSubnetID.NotFound", ec2.delete_subnet, SubnetId=subnet_id)


def pages():
    all_ids = [subnet["SubnetId"] for subnet in ec2.describe_subnets()["Subnets"]]
    assert len(all_ids) == 6
    pages = list(ec2.get_paginator("describe_subnets").paginate(PaginationConfig={"PageSize": 5}))
    assert [len(page["Subnets"]) for page in pages] == [5, 1]
    assert [subnet["SubnetId"] for page in pages for subnet in page["Subnets"]] == all_ids


def addresses():
    refused("DryRunOperation", ec2.allocate_address, DryRun=True)
    address = ec2.allocate_address(Domain="vpc", TagSpecifications=tagged("elastic-ip"))
    assert address["Domain"] == "vpc" and address["PublicIp"].startswith("127.18.")
    allocation, public_ip = address["AllocationId"], address["PublicIp"]
    second = ec2.allocate_address()
    assert second["PublicIp"] != public_ip
    shown = ec2.describe_addresses(AllocationIds=[allocation])["Addresses"][0]
    assert shown["Tags"] == NAME and "AssociationId" not in shown
    assert ec2.describe_addresses(PublicIps=[public_ip])["Addresses"] == [shown]
    assert ec2.describe_addresses(Filters=filters(public_ip=public_ip))["Addresses"] == [shown]
    refused("InvalidAddress.NotFound", ec2.describe_addresses, PublicIps=["192.0.2.1"])
    refused("InvalidAllocationID.NotFound", ec2.describe_addresses, AllocationIds=["eipalloc-" + UNKNOWN])
    refused("UnsupportedOperation", ec2.allocate_address, Address="192.0.2.1")
    attributes = ec2.describe_addresses_attribute(AllocationIds=[allocation], Attribute="domain-name")["Addresses"]
    assert attributes == [{"AllocationId": allocation, "PublicIp": public_ip}]
    associate = ec2.associate_address
    refused("InvalidInstanceID.NotFound", associate, AllocationId=allocation, InstanceId="i-" + UNKNOWN)
    refused("InvalidNetworkInterfaceID.NotFound", associate, AllocationId=allocation, NetworkInterfaceId="eni-" + UNKNOWN)
    refused("MissingParameter", associate, AllocationId=allocation)
    refused("InvalidAssociationID.NotFound", ec2.disassociate_address, AssociationId="eipassoc-" + UNKNOWN)
    refused("InvalidAssociationID.NotFound", ec2.disassociate_address, PublicIp=public_ip)
    assert ec2.describe_network_interfaces()["NetworkInterfaces"] == []
    refused("InvalidNetworkInterfaceID.NotFound", ec2.describe_network_interfaces,
            NetworkInterfaceIds=["eni-" + UNKNOWN])
    refused("DryRunOperation", ec2.release_address, AllocationId=allocation, DryRun=True)
    ec2.release_address(AllocationId=allocation)
    ec2.release_address(PublicIp=second["PublicIp"])
    refused("InvalidAllocationID.NotFound", ec2.release_address, AllocationId=allocation)
    assert ec2.describe_addresses()["Addresses"] == []


def volumes():
    create = dict(AvailabilityZone="us-east-1c", Size=1, TagSpecifications=tagged("volume"), Encrypted=False)
    refused("DryRunOperation", ec2.create_volume, DryRun=True, **create)
    made = ec2.create_volume(ClientToken="token", **create)
    volume = made["VolumeId"]
    assert (made["VolumeType"], made["Iops"], made["Size"]) == ("gp2", 100, 1)
    assert (made["AvailabilityZone"], made["State"], made["Tags"]) == ("us-east-1c", "available", NAME)
    # A request with the same token creates nothing.
    assert ec2.create_volume(ClientToken="token", **create)["VolumeId"] == volume
    refused("IdempotentParameterMismatch", ec2.create_volume, ClientToken="token", **{**create, "Size": 2})
    assert len(ec2.describe_volumes(MaxResults=1000)["Volumes"]) == 1
    zone = dict(AvailabilityZone="us-east-1a")
    refused("MissingParameter", ec2.create_volume, **zone)
    refused("MissingParameter", ec2.create_volume, Size=1)
    refused("InvalidParameterValue", ec2.create_volume, Size=0, **zone)
    refused("InvalidParameterValue", ec2.create_volume, Size=1, VolumeType="gp9", **zone)
    refused("InvalidParameterValue", ec2.create_volume, Size=1, AvailabilityZone="us-west-1a")
    refused("UnsupportedOperation", ec2.create_volume, Size=1, Encrypted=True, **zone)
    refused("InvalidSnapshot.NotFound", ec2.create_volume, SnapshotId="snap-" + UNKNOWN, **zone)
    refused("InvalidVolume.NotFound", ec2.describe_volumes, VolumeIds=["vol-" + UNKNOWN])
    assert ec2.describe_volumes(Filters=filters(status="in-use"))["Volumes"] == []
    assert ec2.describe_volumes(Filters=filters(volume_type="gp2", size="1"))["Volumes"][0]["VolumeId"] == volume
    status = ec2.describe_volume_status(VolumeIds=[volume])["VolumeStatuses"][0]
    assert status["VolumeStatus"]["Status"] == "ok" and status["AvailabilityZone"] == "us-east-1c"
    attribute = ec2.describe_volume_attribute(VolumeId=volume, Attribute="autoEnableIO")
    assert attribute["AutoEnableIO"] == {"Value": False}
    modifications(volume)
    refused("InvalidInstanceID.NotFound", ec2.attach_volume, VolumeId=volume, InstanceId="i-" + UNKNOWN,
            Device="/dev/sdf")
    refused("IncorrectState", ec2.detach_volume, VolumeId=volume)
    refused("InvalidAttachment.NotFound", ec2.detach_volume, VolumeId=volume, InstanceId="i-" + UNKNOWN)
    snapshots(volume)
    refused("DryRunOperation", ec2.delete_volume, VolumeId=volume, DryRun=True)
    ec2.delete_volume(VolumeId=volume)
    ec2.get_waiter("volume_deleted").wait(VolumeIds=[volume], WaiterConfig={"Delay": 0, "MaxAttempts": 1})
    refused("InvalidVolume.NotFound", ec2.delete_volume, VolumeId=volume)


def modifications(volume):
    refused("InvalidVolumeModification.NotFound", ec2.describe_volumes_modifications, VolumeIds=[volume])
    refused("InvalidVolume.NotFound", ec2.describe_volumes_modifications, VolumeIds=["vol-" + UNKNOWN])
    refused("DryRunOperation", ec2.modify_volume, VolumeId=volume, Size=2, DryRun=True)
    refused("InvalidParameterCombination", ec2.modify_volume, VolumeId=volume)
    modified = ec2.modify_volume(VolumeId=volume, Size=8, VolumeType="gp3", Iops=4000)["VolumeModification"]
    assert (modified["OriginalSize"], modified["TargetSize"]) == (1, 8)
    assert (modified["OriginalVolumeType"], modified["TargetVolumeType"]) == ("gp2", "gp3")
    assert (modified["TargetIops"], modified["TargetThroughput"]) == (4000, 125)
    assert (modified["ModificationState"], modified["Progress"]) == ("completed", 100)
    listed = ec2.describe_volumes_modifications(Filters=filters(modification_state="completed"))
    assert listed["VolumesModifications"] == [modified]
    refused("InvalidParameterValue", ec2.modify_volume, VolumeId=volume, Size=1)
    shown = ec2.describe_volumes(VolumeIds=[volume])["Volumes"][0]
    assert (shown["Size"], shown["Iops"], shown["Throughput"]) == (8, 4000, 125)


def snapshots(volume):
    create = dict(VolumeId=volume, Description="first", TagSpecifications=tagged("snapshot"))
    refused("DryRunOperation", ec2.create_snapshot, DryRun=True, **create)
    refused("InvalidVolume.NotFound", ec2.create_snapshot, VolumeId="vol-" + UNKNOWN)
    made = ec2.create_snapshot(**create)
    snapshot = made["SnapshotId"]
    assert (made["VolumeId"], made["Description"], made["VolumeSize"]) == (volume, "first", 8)
    assert made["Tags"] == NAME
    ec2.get_waiter("snapshot_completed").wait(SnapshotIds=[snapshot], WaiterConfig={"Delay": 0, "MaxAttempts": 1})
    describe = lambda **parameters: [found["SnapshotId"] for found in ec2.describe_snapshots(**parameters)["Snapshots"]]
    assert describe(OwnerIds=["self"]) == describe(Filters=filters(volume_id=volume)) == [snapshot]
    assert describe(OwnerIds=["amazon"]) == describe(RestorableByUserIds=["all"]) == []
    refused("InvalidSnapshot.NotFound", ec2.describe_snapshots, SnapshotIds=["snap-" + UNKNOWN])
    small = dict(SnapshotId=snapshot, AvailabilityZone="us-east-1a")
    refused("InvalidParameterValue", ec2.create_volume, Size=1, **small)
    copy = ec2.create_volume(VolumeType="gp3", **small)
    assert (copy["Size"], copy["SnapshotId"]) == (8, snapshot)
    ec2.delete_snapshot(SnapshotId=snapshot)
    refused("InvalidSnapshot.NotFound", ec2.delete_snapshot, SnapshotId=snapshot)
    ec2.delete_volume(VolumeId=copy["VolumeId"])


SCENARIOS = {scenario.__name__: scenario for scenario in (groups, rules, vpcs, addresses, volumes)}

if __name__ == "__main__":
    SCENARIOS[sys.argv[1]]()
