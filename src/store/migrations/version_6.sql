-- A store of version 6 with records of each kind, as that version wrote them.

CREATE TABLE instances (key TEXT PRIMARY KEY NOT NULL, record TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE volumes (key TEXT PRIMARY KEY NOT NULL, record TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE snapshots (key TEXT PRIMARY KEY NOT NULL, record TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE images (key TEXT PRIMARY KEY NOT NULL, record TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE key_pairs (key TEXT PRIMARY KEY NOT NULL, record TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE client_tokens (key TEXT PRIMARY KEY NOT NULL, record TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE security_groups (key TEXT PRIMARY KEY NOT NULL, record TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE vpcs (key TEXT PRIMARY KEY NOT NULL, record TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE subnets (key TEXT PRIMARY KEY NOT NULL, record TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE addresses (key TEXT PRIMARY KEY NOT NULL, record TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE usage (
    instance TEXT NOT NULL, number INTEGER NOT NULL, record TEXT NOT NULL, PRIMARY KEY (instance, number)
) STRICT, WITHOUT ROWID;
CREATE TABLE usage_cursors (key TEXT PRIMARY KEY NOT NULL, record TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE settings (key TEXT PRIMARY KEY NOT NULL, record TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE UNIQUE INDEX image_names ON images (json_extract(record, '$.name'))
    WHERE json_extract(record, '$.deregistered') IS NULL;
CREATE UNIQUE INDEX security_group_names
    ON security_groups (json_extract(record, '$.vpc_id'), json_extract(record, '$.name'));
CREATE UNIQUE INDEX default_vpc ON vpcs (json_extract(record, '$.is_default'))
    WHERE json_extract(record, '$.is_default');
CREATE UNIQUE INDEX address_ips ON addresses (json_extract(record, '$.public_ip'));

INSERT INTO instances VALUES ('i-0123456789abcdef0', '{
    "id": "i-0123456789abcdef0", "reservation_id": "r-0123456789abcdef0", "launch_index": 1, "client_token": "token",
    "image_id": "ami-0123456789abcdef0", "image_name": "web", "instance_type": "t3.nano", "vcpus": 2,
    "threads_per_core": 2, "memory_mib": 512, "overridden": true, "state": "stopped", "state_reason": null,
    "state_transition_reason": "User initiated", "created": 5, "sequence": 7, "launch_time": 6, "starts": 3,
    "terminated": null, "key_name": "me", "user_data": "ZGF0YQ==", "shutdown_behavior": "terminate",
    "termination_protection": true, "hibernation": true, "cmdline": "quiet",
    "block_devices": [{
        "device_name": "/dev/xvda", "volume_id": "vol-0123456789abcdef0", "delete_on_termination": true,
        "attach_time": 5
    }],
    "network": {
        "vpc_id": "vpc-0123456789abcdef0", "subnet_id": "subnet-0123456789abcdef0", "zone": "us-east-1a",
        "private_ip": "10.0.0.4", "wants_public_ip": false
    },
    "cpu_credits": "standard", "credits": null, "no_limits": true, "tags": {"Name": "web"}
}');
INSERT INTO volumes VALUES ('vol-0123456789abcdef0', '{
    "id": "vol-0123456789abcdef0", "size": 1024, "volume_type": "gp3", "iops": 4000, "throughput": 250,
    "state": "in-use", "created": 8, "snapshot_id": "snap-0123456789abcdef0", "image_id": "ami-0123456789abcdef0",
    "file": "a.qcow2", "backing": [{"file": "volumes/base.qcow2", "format": "qcow2"}], "generation": 4,
    "attachment": {
        "instance_id": "i-0123456789abcdef0", "device_name": "/dev/xvda", "attach_time": 5,
        "delete_on_termination": true
    },
    "tags": {"Name": "data"}
}');
INSERT INTO snapshots VALUES ('snap-0123456789abcdef0', '{
    "id": "snap-0123456789abcdef0", "volume_id": "vol-0123456789abcdef0", "size": 1024, "state": "completed",
    "started": 9, "description": "before", "file": "b.qcow2", "backing": null, "image_id": "ami-0123456789abcdef0",
    "tags": {}
}');
INSERT INTO images VALUES ('ami-0123456789abcdef0', '{
    "id": "ami-0123456789abcdef0", "name": "web", "description": "a server", "created": 10, "owner": "me",
    "visibility": "public", "source_instance": "i-0123456789abcdef0", "tags": {}
}'), ('ami-1123456789abcdef0', '{
    "id": "ami-1123456789abcdef0", "name": "web", "description": "", "created": 1, "owner": "me",
    "visibility": "private", "source_instance": null, "deregistered": 12, "tags": {}
}');
INSERT INTO key_pairs VALUES ('me', '{
    "id": "key-0123456789abcdef0", "name": "me", "fingerprint": "SHA256:x", "key_type": "rsa",
    "public_key": "ssh-rsa AAAA", "created": 11, "tags": {}
}');
INSERT INTO client_tokens VALUES ('token', '{
    "token": "token", "parameters": "x", "reservation_id": "r-0123456789abcdef0", "created": 5
}');
INSERT INTO security_groups VALUES ('sg-0123456789abcdef0', '{
    "id": "sg-0123456789abcdef0", "vpc_id": "vpc-0123456789abcdef0", "name": "web", "description": "", "rules": []
}');
INSERT INTO vpcs VALUES ('vpc-0123456789abcdef0', '{
    "id": "vpc-0123456789abcdef0", "cidr": "10.0.0.0/16", "is_default": true
}');
INSERT INTO subnets VALUES ('subnet-0123456789abcdef0', '{
    "id": "subnet-0123456789abcdef0", "vpc_id": "vpc-0123456789abcdef0", "vpc_cidr": "10.0.0.0/16",
    "cidr": "10.0.0.0/24", "zone": "us-east-1a", "default_for_zone": true, "map_public_ip": false
}');
INSERT INTO addresses VALUES ('eipalloc-0123456789abcdef0', '{
    "id": "eipalloc-0123456789abcdef0", "public_ip": "127.18.0.1",
    "association": {"id": "eipassoc-0123456789abcdef0", "instance_id": "i-0123456789abcdef0"}
}');
INSERT INTO settings VALUES ('metadata-defaults', '{"options": {}}');
