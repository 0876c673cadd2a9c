"""Scenarios of tests/api_templates_routes.rs: boto3 against `wisp serve`, without guests.

    templates_routes.py SCENARIO
"""

import subprocess
import sys

from client import NAME, UNKNOWN, ec2, filters, refused, ssm, tagged

ANYWHERE = "0.0.0.0/0"


def templates():
    data = {"ImageId": "ami-def456", "InstanceType": "t3.nano", "TagSpecifications": tagged("instance"),
            "EbsOptimized": False, "MetadataOptions": {"HttpTokens": "required"}}
    create = dict(LaunchTemplateName="web", LaunchTemplateData=data, TagSpecifications=tagged("launch-template"))
    refused("DryRunOperation", ec2.create_launch_template, DryRun=True, **create)
    template = ec2.create_launch_template(VersionDescription="first", **create)["LaunchTemplate"]
    template_id = template["LaunchTemplateId"]
    assert (template["DefaultVersionNumber"], template["LatestVersionNumber"], template["Tags"]) == (1, 1, NAME)
    message = refused("InvalidLaunchTemplateName.AlreadyExistsException", ec2.create_launch_template, **create)
    assert message.startswith("Launch template name already in use."), message
    unsupported = {"InstanceRequirements": {"VCpuCount": {"Min": 1}, "MemoryMiB": {"Min": 1}}}
    message = refused("UnsupportedOperation", ec2.create_launch_template, LaunchTemplateName="other",
                      LaunchTemplateData=unsupported)
    assert "LaunchTemplateData.InstanceRequirements" in message, message
    describe = lambda **parameters: ec2.describe_launch_templates(**parameters)["LaunchTemplates"]
    assert describe(LaunchTemplateNames=["web"]) == describe(LaunchTemplateIds=[template_id]) == [template]
    assert describe(Filters=filters(launch_template_name="w*")) == [template]
    assert describe(Filters=[{"Name": "tag:Name", "Values": ["other"]}]) == []
    refused("InvalidLaunchTemplateName.NotFoundException", ec2.describe_launch_templates, LaunchTemplateNames=["missing"])
    refused("InvalidLaunchTemplateId.NotFound", ec2.describe_launch_templates, LaunchTemplateIds=["lt-" + UNKNOWN])
    versions(template_id, data)
    ec2.create_tags(Resources=[template_id], Tags=[{"Key": "stage", "Value": "test"}])
    assert ec2.describe_tags(Filters=filters(key="stage"))["Tags"][0]["ResourceType"] == "launch-template"
    refused("InvalidLaunchTemplateId.Malformed", ec2.delete_launch_template, LaunchTemplateId="lt-1")
    ec2.delete_launch_template(LaunchTemplateName="web")
    refused("InvalidLaunchTemplateName.NotFoundException", ec2.delete_launch_template, LaunchTemplateName="web")


def versions(template_id, data):
    describe = lambda **parameters: ec2.describe_launch_template_versions(**parameters)["LaunchTemplateVersions"]
    assert describe(LaunchTemplateName="web", Versions=["$Default"])[0]["LaunchTemplateData"] == data
    made = ec2.create_launch_template_version(LaunchTemplateId=template_id, SourceVersion="1",
                                              LaunchTemplateData={"InstanceType": "t3.micro"})["LaunchTemplateVersion"]
    assert made["VersionNumber"] == 2 and not made["DefaultVersion"]
    assert made["LaunchTemplateData"] == {**data, "InstanceType": "t3.micro"}
    alone = ec2.create_launch_template_version(LaunchTemplateName="web", LaunchTemplateData={"ImageId": "ami-1"})
    assert alone["LaunchTemplateVersion"]["LaunchTemplateData"] == {"ImageId": "ami-1"}
    numbers = lambda **parameters: sorted(one["VersionNumber"] for one in describe(LaunchTemplateName="web", **parameters))
    assert numbers() == [1, 2, 3] and numbers(MinVersion="2", MaxVersion="2") == [2]
    assert numbers(Versions=["$Latest", "1"]) == [1, 3]
    assert [one["VersionNumber"] for one in describe(Versions=["$Latest"])] == [3]
    refused("MissingParameter", ec2.describe_launch_template_versions)
    refused("InvalidParameterValue", ec2.describe_launch_template_versions, Versions=["1"])
    message = refused("InvalidLaunchTemplateId.VersionNotFound", ec2.describe_launch_template_versions,
                      LaunchTemplateName="web", Versions=["9"])
    assert message.startswith(f"Could not find the specified version 9 for the launch template with ID {template_id}.")
    refused("InvalidParameterCombination", ec2.modify_launch_template, LaunchTemplateId=template_id,
            LaunchTemplateName="web", DefaultVersion="2")
    modified = ec2.modify_launch_template(LaunchTemplateName="web", DefaultVersion="2")["LaunchTemplate"]
    assert modified["DefaultVersionNumber"] == 2
    deleted = ec2.delete_launch_template_versions(LaunchTemplateName="web", Versions=["1", "2", "9"])
    assert [one["VersionNumber"] for one in deleted["SuccessfullyDeletedLaunchTemplateVersions"]] == [1]
    failed = deleted["UnsuccessfullyDeletedLaunchTemplateVersions"]
    codes = [(one["VersionNumber"], one["ResponseError"]["Code"]) for one in failed]
    assert codes == [(2, "unexpectedError"), (9, "launchTemplateVersionDoesNotExist")], codes


def parameters():
    wisp = sys.argv[2]
    for path in ("/images/a/tiny", "/images/tiny"):
        subprocess.run([wisp, "image", "alias", "add", path, "tiny"], check=True, capture_output=True)
    found = ssm.get_parameter(Name="/images/tiny")["Parameter"]
    assert found["Value"].startswith("ami-") and (found["Type"], found["Version"]) == ("String", 1)
    assert found["LastModifiedDate"].year >= 2026
    assert ssm.get_parameter(Name="/images/tiny:1")["Parameter"]["Value"] == found["Value"]
    refused("ParameterNotFound", ssm.get_parameter, Name="/images/none")
    refused("ParameterVersionNotFound", ssm.get_parameter, Name="/images/tiny:2")
    several = ssm.get_parameters(Names=["/images/tiny", "/images/none"])
    assert several["InvalidParameters"] == ["/images/none"] and len(several["Parameters"]) == 1
    names = lambda **parameters: [one["Name"] for one in ssm.get_parameters_by_path(**parameters)["Parameters"]]
    assert names(Path="/images") == ["/images/tiny"]
    assert names(Path="/images", Recursive=True) == ["/images/a/tiny", "/images/tiny"]
    data = {"ImageId": "resolve:ssm:/images/tiny"}
    ec2.create_launch_template(LaunchTemplateName="web", LaunchTemplateData=data)
    describe = dict(LaunchTemplateName="web", ResolveAlias=True)
    version = ec2.describe_launch_template_versions(**describe)["LaunchTemplateVersions"][0]
    assert version["LaunchTemplateData"] == {"ImageId": found["Value"]}


def routes():
    vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.0.1.0/24")["Subnet"]["SubnetId"]
    gateway = ec2.create_internet_gateway(TagSpecifications=tagged("internet-gateway"))["InternetGateway"]
    assert gateway["Attachments"] == [] and gateway["Tags"] == NAME
    gateway = gateway["InternetGatewayId"]
    tables = lambda **values: ec2.describe_route_tables(Filters=filters(**values))["RouteTables"]
    main = tables(vpc_id=vpc)[0]
    local = {"DestinationCidrBlock": "10.0.0.0/16", "GatewayId": "local", "Origin": "CreateRouteTable", "State": "active"}
    assert main["Routes"] == [local] and main["Associations"][0]["Main"], main
    table = ec2.create_route_table(VpcId=vpc)["RouteTable"]["RouteTableId"]
    route = dict(RouteTableId=table, DestinationCidrBlock=ANYWHERE, GatewayId=gateway)
    refused("InvalidParameterValue", ec2.create_route, **route)
    ec2.attach_internet_gateway(InternetGatewayId=gateway, VpcId=vpc)
    refused("Resource.AlreadyAssociated", ec2.attach_internet_gateway, InternetGatewayId=gateway, VpcId=vpc)
    assert ec2.create_route(**route)["Return"]
    refused("RouteAlreadyExists", ec2.create_route, **route)
    ec2.replace_route(**route)
    refused("UnsupportedOperation", ec2.create_route, RouteTableId=table, DestinationCidrBlock=ANYWHERE,
            NatGatewayId="nat-" + UNKNOWN)
    association = ec2.associate_route_table(RouteTableId=table, SubnetId=subnet)["AssociationId"]
    found = ec2.describe_route_tables(Filters=[{"Name": "association.subnet-id", "Values": [subnet]}])["RouteTables"]
    assert [one["RouteTableId"] for one in found] == [table]
    moved = ec2.replace_route_table_association(AssociationId=association, RouteTableId=main["RouteTableId"])
    refused("InvalidAssociationID.NotFound", ec2.disassociate_route_table, AssociationId=association)
    ec2.disassociate_route_table(AssociationId=moved["NewAssociationId"])
    ec2.delete_route(RouteTableId=table, DestinationCidrBlock=ANYWHERE)
    refused("InvalidRoute.NotFound", ec2.delete_route, RouteTableId=table, DestinationCidrBlock=ANYWHERE)
    ec2.delete_route_table(RouteTableId=table)
    refused("DependencyViolation", ec2.delete_internet_gateway, InternetGatewayId=gateway)
    ec2.detach_internet_gateway(InternetGatewayId=gateway, VpcId=vpc)
    ec2.delete_internet_gateway(InternetGatewayId=gateway)
    refused("InvalidInternetGatewayID.NotFound", ec2.describe_internet_gateways, InternetGatewayIds=[gateway])
    ec2.delete_subnet(SubnetId=subnet)
    ec2.delete_vpc(VpcId=vpc)


SCENARIOS = {scenario.__name__: scenario for scenario in (templates, parameters, routes)}

if __name__ == "__main__":
    SCENARIOS[sys.argv[1]]()
