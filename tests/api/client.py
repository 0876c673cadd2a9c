"""The client and the helpers of the API's scenarios."""

import os

import boto3
import botocore.exceptions

UNKNOWN = "0123456789abcdef0"
NAME = [{"Key": "Name", "Value": "test"}]
ec2 = boto3.client("ec2")
ssm = boto3.client("ssm")


def refused(code, call, **parameters):
    """Calls an action that must fail with a code, and returns the message."""
    try:
        call(**parameters)
    except botocore.exceptions.ClientError as error:
        assert error.response["Error"]["Code"] == code, error
        return error.response["Error"]["Message"]
    raise AssertionError(f"{call.__name__} succeeded, but {code} was expected")


def tagged(kind):
    return [{"ResourceType": kind, "Tags": NAME}]


def filters(**values):
    return [{"Name": name.replace("_", "-"), "Values": [value]} for name, value in values.items()]


def endpoint():
    return os.environ["AWS_ENDPOINT_URL"]
