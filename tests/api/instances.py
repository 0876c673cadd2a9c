"""A session of tests/api_instances.rs: boto3 against `wisp serve`, with a real guest."""

import time

import botocore.exceptions

from client import UNKNOWN, ec2, filters, refused, ssm

TYPE = "t2.micro"


def wait(name, **parameters):
    ec2.get_waiter(name).wait(WaiterConfig={"Delay": 1, "MaxAttempts": 60}, **parameters)


def find_image():
    images = ec2.describe_images(Filters=filters(name="tiny"))["Images"]
    assert [image["Name"] for image in images] == ["tiny"], images
    assert ec2.describe_images(Owners=["amazon"])["Images"] == []
    assert ec2.describe_images(Owners=["self"])["Images"] == images
    refused("InvalidAMIID.NotFound", ec2.describe_images, ImageIds=["ami-" + UNKNOWN])
    return images[0]["ImageId"]


def launch(image, group, key):
    tags = [{"Key": "Name", "Value": "web"}]
    parameters = dict(
        ImageId=image, InstanceType=TYPE, MinCount=1, MaxCount=1, KeyName=key, SecurityGroupIds=[group],
        ClientToken="once", DisableApiTermination=True, InstanceInitiatedShutdownBehavior="terminate",
        UserData="#!/bin/sh\necho ran > /root/user-data\n", MetadataOptions={"HttpTokens": "required"},
        BlockDeviceMappings=[{"DeviceName": "/dev/xvda", "Ebs": {"DeleteOnTermination": True, "VolumeType": "gp2"}}],
        TagSpecifications=[{"ResourceType": kind, "Tags": tags} for kind in ("instance", "volume")],
    )
    refused("DryRunOperation", ec2.run_instances, DryRun=True, **parameters)
    began = time.monotonic()
    reservation = ec2.run_instances(**parameters)
    print(f"RunInstances: {(time.monotonic() - began) * 1000:.0f} ms")
    instance = reservation["Instances"][0]
    assert instance["State"]["Name"] in ("pending", "running"), instance
    assert instance["MetadataOptions"]["HttpTokens"] == "required"
    again = ec2.run_instances(**parameters)
    assert again["ReservationId"] == reservation["ReservationId"]
    refused("IdempotentParameterMismatch", ec2.run_instances, **{**parameters, "InstanceType": "t2.small"})
    return instance["InstanceId"]


def refuse(image):
    once = dict(MinCount=1, MaxCount=1)
    run = ec2.run_instances
    refused("InvalidAMIID.NotFound", run, ImageId="ami-" + UNKNOWN, **once)
    refused("InvalidParameterValue", run, ImageId=image, MinCount=2, MaxCount=1)
    refused("InvalidKeyPair.NotFound", run, ImageId=image, KeyName="missing", **once)
    for name, value in [
        ("EbsOptimized", True), ("Monitoring", {"Enabled": True}), ("Placement", {"Tenancy": "host"}),
        ("IamInstanceProfile", {"Name": "admin"}), ("Ipv6AddressCount", 1),
    ]:
        assert name in refused("UnsupportedOperation", run, ImageId=image, **once, **{name: value})
    refused("UnsupportedOperation", ec2.monitor_instances, InstanceIds=["i-" + UNKNOWN])


def look(instance, group):
    found = ec2.describe_instances(Filters=[{"Name": "tag:Name", "Values": ["w*"]}])
    shape = found["Reservations"][0]["Instances"][0]
    assert (shape["InstanceId"], shape["InstanceType"]) == (instance, TYPE)
    assert shape["NetworkInterfaces"][0]["Attachment"]["DeviceIndex"] == 0
    assert shape["SecurityGroups"][0]["GroupId"] == group
    volume = ec2.describe_volumes(Filters=[{"Name": "attachment.instance-id", "Values": [instance]}])["Volumes"][0]
    assert (volume["VolumeType"], volume["Tags"]) == ("gp2", [{"Key": "Name", "Value": "web"}]), volume
    status = ec2.describe_instance_status(InstanceIds=[instance])["InstanceStatuses"][0]
    assert (status["SystemStatus"]["Status"], status["InstanceStatus"]["Status"]) == ("ok", "ok")
    assert ec2.get_console_output(InstanceId=instance)["InstanceId"] == instance
    assert ec2.get_password_data(InstanceId=instance)["PasswordData"] == ""
    assert ec2.describe_iam_instance_profile_associations()["IamInstanceProfileAssociations"] == []
    assert ec2.unmonitor_instances(InstanceIds=[instance])["InstanceMonitorings"][0]["Monitoring"]["State"] == "disabled"


def send(instance, *lines, **parameters):
    """Sends a command, and returns its invocation once it has finished."""
    script = {"commands": list(lines), **parameters}
    where = {"Targets": [{"Key": "tag:Name", "Values": ["web"]}]} if parameters else {"InstanceIds": [instance]}
    document = dict(DocumentName="AWS-RunShellScript", Comment="a test")
    command = ssm.send_command(Parameters=script, **document, **where)["Command"]
    assert (command["Status"], command["TargetCount"]) == ("Pending", 1), command
    ids = dict(CommandId=command["CommandId"], InstanceId=instance)
    try:
        ssm.get_waiter("command_executed").wait(WaiterConfig={"Delay": 1, "MaxAttempts": 60}, **ids)
    except botocore.exceptions.WaiterError as error:
        assert error.last_response["Status"] in ("Failed", "TimedOut"), error
    return ssm.get_command_invocation(**ids)


def run_commands(instance):
    managed = ssm.describe_instance_information(Filters=[{"Key": "InstanceIds", "Values": [instance]}])
    information = managed["InstanceInformationList"][0]
    assert (information["PingStatus"], information["PlatformType"]) == ("Online", "Linux"), information
    done = send(instance, "echo out", "echo $AWS_SSM_INSTANCE_ID >&2")
    assert (done["Status"], done["ResponseCode"], done["StandardOutputContent"]) == ("Success", 0, "out\n"), done
    assert done["StandardErrorContent"] == instance + "\n", done
    failed = send(instance, "pwd", "exit 3", workingDirectory=["/tmp"])
    assert (failed["StatusDetails"], failed["ResponseCode"], failed["StandardOutputContent"]) == ("Failed", 3, "/tmp\n")
    late = send(instance, "echo begun; sleep 1000", executionTimeout=["1"])
    assert (late["Status"], late["StatusDetails"], late["ResponseCode"]) == ("TimedOut", "ExecutionTimedOut", -1), late
    commands = ssm.list_commands(InstanceId=instance)["Commands"]
    assert sorted(command["Status"] for command in commands) == ["Failed", "Success", "TimedOut"], commands
    only = ssm.list_command_invocations(CommandId=done["CommandId"], Details=True)["CommandInvocations"][0]
    assert (only["InstanceName"], only["CommandPlugins"][0]["ResponseCode"]) == ("web", 0), only
    refused("InvalidInstanceId", ssm.send_command, InstanceIds=["i-" + UNKNOWN], DocumentName="AWS-RunShellScript",
            Parameters={"commands": ["true"]})
    unknown = dict(CommandId=done["CommandId"], InstanceId="i-" + UNKNOWN)
    refused("InvocationDoesNotExist", ssm.get_command_invocation, **unknown)


def attribute(instance, name, member):
    return ec2.describe_instance_attribute(InstanceId=instance, Attribute=name)[member]


def change(instance):
    assert attribute(instance, "instanceType", "InstanceType") == {"Value": TYPE}
    assert attribute(instance, "instanceInitiatedShutdownBehavior", "InstanceInitiatedShutdownBehavior") == {
        "Value": "terminate"}
    assert attribute(instance, "disableApiStop", "DisableApiStop") == {"Value": False}
    refused("OperationNotPermitted", ec2.terminate_instances, InstanceIds=[instance])
    modify = ec2.modify_instance_attribute
    modify(InstanceId=instance, DisableApiTermination={"Value": False})
    modify(InstanceId=instance, Attribute="instanceInitiatedShutdownBehavior", Value="stop")
    assert attribute(instance, "disableApiTermination", "DisableApiTermination") == {"Value": False}
    refused("IncorrectInstanceState", modify, InstanceId=instance, InstanceType={"Value": "t2.small"})
    refused("UnsupportedOperation", modify, InstanceId=instance, SourceDestCheck={"Value": False})
    options = ec2.modify_instance_metadata_options(InstanceId=instance, HttpPutResponseHopLimit=2)
    assert options["InstanceMetadataOptions"]["HttpPutResponseHopLimit"] == 2


def stop(instance):
    changes = ec2.stop_instances(InstanceIds=[instance])["StoppingInstances"]
    assert changes[0]["CurrentState"]["Name"] == "stopping", changes
    wait("instance_stopped", InstanceIds=[instance])
    assert ec2.describe_instance_status(InstanceIds=[instance])["InstanceStatuses"] == []
    every = ec2.describe_instance_status(InstanceIds=[instance], IncludeAllInstances=True)["InstanceStatuses"]
    assert every[0]["InstanceStatus"]["Status"] == "not-applicable"
    ec2.modify_instance_attribute(InstanceId=instance, InstanceType={"Value": "t2.small"})
    assert attribute(instance, "instanceType", "InstanceType") == {"Value": "t2.small"}


def create_image(instance):
    tags = [{"ResourceType": "image", "Tags": [{"Key": "stage", "Value": "test"}]}]
    image = ec2.create_image(InstanceId=instance, Name="copy", Description="a copy", TagSpecifications=tags)["ImageId"]
    ec2.get_waiter("image_available").wait(ImageIds=[image])
    shape = ec2.describe_images(ImageIds=[image])["Images"][0]
    assert (shape["Name"], shape["SourceInstanceId"], shape["Public"]) == ("copy", instance, False)
    assert shape["BlockDeviceMappings"][0]["Ebs"]["SnapshotId"] and shape["Tags"] == tags[0]["Tags"]
    refused("InvalidAMIName.Duplicate", ec2.create_image, InstanceId=instance, Name="copy")
    ec2.modify_image_attribute(ImageId=image, LaunchPermission={"Add": [{"Group": "all"}]})
    permissions = ec2.describe_image_attribute(ImageId=image, Attribute="launchPermission")["LaunchPermissions"]
    assert permissions == [{"Group": "all"}]
    ec2.deregister_image(ImageId=image)
    refused("InvalidAMIID.NotFound", ec2.describe_images, ImageIds=[image])


def launch_from_template(image, group):
    """Launches an instance whose type replaces that of the template."""
    once = dict(MinCount=1, MaxCount=1)
    data = {"ImageId": image, "InstanceType": "t2.small", "SecurityGroupIds": [group],
            "TagSpecifications": [{"ResourceType": "instance", "Tags": [{"Key": "stage", "Value": "test"}]}]}
    template = ec2.create_launch_template(LaunchTemplateName="web", LaunchTemplateData=data)["LaunchTemplate"]
    refused("InvalidLaunchTemplateName.NotFoundException", ec2.run_instances,
            LaunchTemplate={"LaunchTemplateName": "missing"}, **once)
    reservation = ec2.run_instances(
        LaunchTemplate={"LaunchTemplateName": "web", "Version": "$Latest"}, InstanceType=TYPE, **once)
    instance = reservation["Instances"][0]
    assert (instance["InstanceType"], instance["SecurityGroups"][0]["GroupId"]) == (TYPE, group), instance
    tags = {tag["Key"]: tag["Value"] for tag in instance["Tags"]}
    assert tags == {"stage": "test", "aws:ec2launchtemplate:id": template["LaunchTemplateId"],
                    "aws:ec2launchtemplate:version": "1"}, tags
    ec2.delete_launch_template(LaunchTemplateName="web")
    return instance["InstanceId"]


def main():
    image = find_image()
    refuse(image)
    group = ec2.create_security_group(GroupName="web", Description="web servers")["GroupId"]
    assert ec2.create_key_pair(KeyName="mine")["KeyMaterial"].startswith("-----BEGIN")
    instance = launch(image, group, "mine")
    of_template = launch_from_template(image, group)
    wait("instance_running", InstanceIds=[instance, of_template])
    wait("instance_status_ok", InstanceIds=[instance])
    ec2.terminate_instances(InstanceIds=[of_template])
    look(instance, group)
    run_commands(instance)
    change(instance)
    stop(instance)
    create_image(instance)
    ec2.terminate_instances(InstanceIds=[instance])
    wait("instance_terminated", InstanceIds=[instance, of_template])
    ec2.delete_security_group(GroupId=group)
    ec2.delete_key_pair(KeyName="mine")


main()
