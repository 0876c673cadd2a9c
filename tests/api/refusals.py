"""Requests of tests/api_instances.rs that the server refuses, without guests."""

import concurrent.futures
import datetime
import hashlib
import hmac
import http.client
import os
import urllib.parse

from client import endpoint

HOST = urllib.parse.urlparse(endpoint()).netloc
KEY, SECRET = os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
REGIONS = "Action=DescribeRegions&Version=2016-11-15"


def signed(body, secret=SECRET, region="us-east-1", late=0):
    """Returns the headers of a request that was signed some minutes ago."""
    time = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(minutes=late)
    stamp, day = time.strftime("%Y%m%dT%H%M%SZ"), time.strftime("%Y%m%d")
    scope = f"{day}/{region}/ec2/aws4_request"
    digest = hashlib.sha256(body.encode()).hexdigest()
    canonical = f"POST\n/\n\nhost:{HOST}\nx-amz-date:{stamp}\n\nhost;x-amz-date\n{digest}"
    text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    key = ("AWS4" + secret).encode()
    for part in scope.split("/"):
        key = hmac.new(key, part.encode(), "sha256").digest()
    signature = hmac.new(key, text.encode(), "sha256").hexdigest()
    return {
        "Host": HOST, "X-Amz-Date": stamp, "Content-Type": "application/x-www-form-urlencoded",
        "Authorization": f"AWS4-HMAC-SHA256 Credential={KEY}/{scope}, SignedHeaders=host;x-amz-date, "
                         f"Signature={signature}",
    }


def post(body, headers):
    connection = http.client.HTTPConnection(HOST, timeout=60)
    connection.request("POST", "/", body, headers)
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response.status, text


def check(status, code, body, headers):
    got, text = post(body, headers)
    assert (got, f"<Code>{code}</Code>" in text) == (status, True), (got, text)


assert post(REGIONS, signed(REGIONS))[0] == 200
check(401, "AuthFailure", REGIONS, signed(REGIONS, secret="another"))
check(401, "AuthFailure", REGIONS, signed(REGIONS, region="eu-west-1"))
check(400, "RequestExpired", REGIONS, signed(REGIONS, late=20))
check(401, "AuthFailure", REGIONS + "&DryRun=true", signed(REGIONS))
unknown = "Action=PaintInstances&Version=2016-11-15"
check(400, "InvalidAction", unknown, signed(unknown))
parameter = REGIONS + "&Whale=1"
check(400, "UnknownParameter", parameter, signed(parameter))
for malformed in ["", "%zz", "Version=2016-11-15", "\u0000=\u0001"]:
    status, text = post(malformed, signed(malformed))
    assert status == 400, (status, text)
check(403, "AuthFailure", REGIONS, {**signed(REGIONS), "Origin": "http://example.com"})
check(403, "AuthFailure", REGIONS, {**signed(REGIONS), "Host": "example.com"})
form = {"Host": HOST, "Content-Type": "application/x-www-form-urlencoded"}
status, text = post(REGIONS, form)
assert status >= 400 and "RegionName" not in text, (status, text)
large = REGIONS + "&RegionName.1=" + "a" * (1 << 20)
try:
    check(413, "RequestEntityTooLarge", large, signed(large))
except (BrokenPipeError, ConnectionResetError):
    # The server may close the connection before it has read the whole body.
    pass
with concurrent.futures.ThreadPoolExecutor(200) as pool:
    statuses = [status for status, _ in pool.map(lambda _: post(REGIONS, signed(REGIONS)), range(200))]
assert set(statuses) <= {200, 503} and 200 in statuses, statuses
assert post(REGIONS, signed(REGIONS))[0] == 200
