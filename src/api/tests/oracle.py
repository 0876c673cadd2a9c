"""Generates random requests and responses with botocore, and checks responses with botocore's parser.

    oracle.py generate SEED ROUNDS < actions.txt    print cases: one JSON object a line
    oracle.py check < LINES                         read cases with encoded responses, and fail if one is parsed differently

Values in JSON have timestamps in ISO 8601 and blobs in Base64.
"""

import base64
import datetime
import functools
import json
import random
import sys
import urllib.parse

import botocore.loaders
import botocore.model
import botocore.parsers
import botocore.serialize

MAX_DEPTH = 8
TEXT = "abcXYZ019 -_./:=+*?<>&\"'%#;,@!\u00e4\u20ac\U0001f40b\t\n\r"


@functools.cache
def model(service, version):
    description = botocore.loaders.create_loader().load_service_model(service, "service-2", version)
    return botocore.model.ServiceModel(description, service)


def served(lines):
    for line in lines:
        line = line.split("#")[0].strip()
        if line.startswith("["):
            service = line.strip("[]").split()
        elif line:
            yield (*service, line)


def text(shape, generator):
    if getattr(shape, "enum", None):
        return generator.choice(shape.enum)
    low, high = bounds(shape, 1, 12)
    return "".join(generator.choice(TEXT) for _ in range(generator.randint(low, high)))


def bounds(shape, low, span):
    metadata = getattr(shape, "metadata", {})
    low = max(low, int(metadata.get("min", low)))
    return low, max(low, min(low + span, int(metadata.get("max", low + span))))


def value(shape, generator, depth=0):
    """Returns a random value as botocore takes it, or None where recursion ends."""
    kind = shape.type_name
    if kind == "structure":
        members = {}
        for name, member in shape.members.items():
            if depth < MAX_DEPTH and generator.random() < 0.6:
                inner = value(member, generator, depth + 1)
                if inner is not None:
                    members[name] = inner
        return members or None
    if kind == "list":
        low, high = bounds(shape, 1, 3)
        values = [value(shape.member, generator, depth + 1) for _ in range(generator.randint(low, min(high, low + 3)))]
        return None if depth >= MAX_DEPTH or None in values else values
    if kind == "map":
        values = {text(shape.key, generator): value(shape.value, generator, depth + 1) for _ in range(2)}
        return None if depth >= MAX_DEPTH or None in values.values() else values
    if kind == "timestamp":
        seconds = generator.randint(0, 4_000_000_000)
        return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
    if kind == "blob":
        return generator.randbytes(generator.randint(1, 9))
    if kind == "boolean":
        return generator.random() < 0.5
    if kind in ("integer", "long"):
        return generator.randint(*bounds(shape, -1000, 100_000))
    if kind in ("float", "double"):
        return generator.randint(*bounds(shape, -1000, 2000)) + 0.25
    return text(shape, generator)


def plain(given):
    if isinstance(given, dict):
        return {name: plain(inner) for name, inner in given.items()}
    if isinstance(given, list):
        return [plain(inner) for inner in given]
    if isinstance(given, datetime.datetime):
        return given.astimezone(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.000Z")
    if isinstance(given, bytes):
        return base64.b64encode(given).decode()
    return given


def generate(seed, rounds):
    generator = random.Random(seed)
    for service, version, action in served(sys.stdin):
        description = model(service, version)
        operation = description.operation_model(action)
        serializer = botocore.serialize.create_serializer(description.protocol, include_validation=False)
        for _ in range(rounds):
            given = (operation.input_shape and value(operation.input_shape, generator)) or {}
            body = serializer.serialize_to_request(given, operation)["body"]
            if isinstance(body, dict):
                body = urllib.parse.urlencode(body)
            output = (operation.output_shape and value(operation.output_shape, generator)) or {}
            case = {"service": service, "version": version, "action": action, "input": plain(given), "output": plain(output),
                    "body": body if isinstance(body, str) else body.decode()}
            print(json.dumps(case))


def check():
    checked = 0
    for line in sys.stdin:
        case = json.loads(line)
        description = model(case["service"], case["version"])
        operation = description.operation_model(case["action"])
        parser = botocore.parsers.create_parser(description.protocol)
        response = {"status_code": 200, "headers": {}, "body": case["response"].encode()}
        parsed = plain(parser.parse(response, operation.output_shape))
        metadata = parsed.pop("ResponseMetadata", {})
        if parsed != case["output"]:
            sys.exit(f"{case['action']}: botocore read\n{parsed}\nfrom\n{case['response']}\nfor\n{case['output']}")
        if description.protocol != "json" and metadata.get("RequestId") != "the-id":
            sys.exit(f"{case['action']}: the request ID is {metadata}")
        checked += 1
    print(checked)


if __name__ == "__main__":
    if sys.argv[1] == "generate":
        generate(int(sys.argv[2]), int(sys.argv[3]))
    else:
        check()
