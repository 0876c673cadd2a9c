//! A guest's network: outbound connections, published ports and SSH, metadata.
//! The tests' network namespace has one interface without a real peer, whose address represents the outside world.

mod common;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::Instant;

use common::instances::{dir, exec, json, launch};
use common::namespace::{WORLD, is_inside};
use common::wait::{await_end_of, pids};
use common::{DEADLINE, Wisp};
use disk::sparse::hex;
use machine::control::{ControlClient, ControlRequest, Message};
use machine::sandbox_record::SandboxLayer;
use serde_json::Value;
use sha2::{Digest, Sha256};
use test_support::Steps;

/// The size of the download in bytes, several TCP windows. An emulated kernel receives about 200 KiB per second.
const DOWNLOAD: u32 = 1 << 20;
/// The size of the upload in bytes. It is small, because the guest's nc is slow: it sends small pieces.
const UPLOAD: usize = 256 << 10;

fn ask(address: impl Into<SocketAddr>, request: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address.into()).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(request).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    answer
}

fn instance(wisp: &Wisp, name: &str) -> Value {
    json(wisp, &["show", name])["Reservations"][0]["Instances"][0].clone()
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

const METADATA: &str = "wget -q -O - http://169.254.169.254/latest/meta-data";

#[test]
fn guest_network_works_outbound_and_inbound() {
    if !is_inside("guest_network_works_outbound_and_inbound") {
        return;
    }
    let wisp = Wisp::warm();
    let key = wisp.home().join("mine.pem");
    wisp.run(&["key", "create", "mine", "--file", key.to_str().unwrap()]).expect_code(0);
    wisp.run(&["sg", "create", "shell"]).expect_code(0);
    wisp.run(&["sg", "authorize", "shell", "--port", "22"]).expect_code(0);
    let port = free_port();
    let published = format!("{port}:80");
    let tags = ["--tag", "stage=test", "--metadata-options", "tags=enabled"];
    let launched = launch(
        &wisp,
        &[
            &["--name", "web", "--key", "mine", "--security-group", "shell", "--network", "user", "-p", &published],
            &tags[..],
        ]
        .concat(),
    );
    assert!(!launched.expect_code(0).stderr.contains("cannot forward"));

    let content: Vec<u8> = (0..DOWNLOAD).map(|index| (index.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let server = TcpListener::bind((WORLD, 0)).unwrap();
    let world = server.local_addr().unwrap();
    let sent = content.clone();
    let mut steps = Steps::new();
    steps.require("the guest downloads and uploads", || {
        let serving = std::thread::spawn(move || {
            serve(&server, &sent);
            let (mut stream, _) = server.accept().unwrap();
            let mut received = Vec::new();
            stream.read_to_end(&mut received).unwrap();
            received
        });
        let sum = exec(&wisp, "web", &format!("wget -q -O /tmp/content http://{world}/; sha256sum < /tmp/content"));
        assert_eq!(sum.split(' ').next(), Some(hex(&Sha256::digest(&content)).as_str()));
        exec(&wisp, "web", &format!("head -c {UPLOAD} /tmp/content | nc {WORLD} {}", world.port()));
        assert!(serving.join().unwrap() == content[..UPLOAD], "the guest's upload was corrupted");
    });

    steps.require("a published port reaches the guest", || {
        exec(&wisp, "web", "mkdir -p /www; cp /tmp/content /www; httpd -h /www");
        let answer = ask(([127, 0, 0, 1], port), b"GET /content HTTP/1.0\r\n\r\n");
        let body = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap() + 4;
        assert!(answer[body..] == content, "received {} bytes", answer.len() - body);
    });

    let shown = instance(&wisp, "web");
    let public: std::net::Ipv4Addr = shown["PublicIpAddress"].as_str().unwrap().parse().unwrap();
    assert!(public.octets()[..2] == [127, 18], "{public}");
    steps.run("SSH runs a command and returns its exit code", || {
        let outcome = wisp.run(&["ssh", "web", "-i", key.to_str().unwrap(), "--", "hostname; exit 7"]).expect_code(7);
        assert_eq!(outcome.text().trim(), &shown["InstanceId"].as_str().unwrap()[..10]);
        assert!(!outcome.stderr.contains("agent"), "{}", outcome.stderr);
    });

    // Changes of a security group take effect at once, inbound and outbound.
    steps.run("inbound rules take effect at once", || {
        let at_public = || TcpStream::connect((public, 80));
        assert!(at_public().is_err());
        wisp.run(&["sg", "authorize", "shell", "--port", "80"]).expect_code(0);
        let answer = ask((public, 80), b"GET /nothing HTTP/1.0\r\n\r\n");
        assert!(answer.starts_with(b"HTTP/1."), "{}", String::from_utf8_lossy(&answer));
        wisp.run(&["sg", "revoke", "shell", "--port", "80"]).expect_code(0);
        assert!(at_public().is_err());
    });
    steps.run("a revoked egress rule blocks outbound traffic", || {
        wisp.run(&["sg", "revoke", "shell", "--egress", "--protocol", "all"]).expect_code(0);
        let script = format!("(wget -q -O - http://{world}/ & sleep 2; kill $!) 2>&1; true");
        assert_eq!(exec(&wisp, "web", &script), "");
    });
    wisp.run(&["sg", "authorize", "shell", "--egress", "--protocol", "all"]).expect_code(0);

    let private = shown["PrivateIpAddress"].as_str().unwrap();
    steps.run("metadata has the address, ID and tag", || {
        let metadata = exec(
            &wisp,
            "web",
            &format!("for path in local-ipv4 instance-id tags/instance/stage; do {METADATA}/$path; echo; done"),
        );
        let expected = [private, shown["InstanceId"].as_str().unwrap(), "test"];
        assert_eq!(metadata.lines().collect::<Vec<_>>(), expected);
    });
    steps.run("metadata follows a changed tag", || {
        wisp.run(&["tag", "web", "stage=live"]).expect_code(0);
        assert_eq!(exec(&wisp, "web", &format!("{METADATA}/tags/instance/stage")), "live");
    });
    steps.run("required tokens are enforced", || {
        wisp.run(&["modify", "web", "--imds", "required"]).expect_code(0);
        let refused = exec(&wisp, "web", &format!("{METADATA}/ 2>&1 || true"));
        assert!(refused.contains("401"), "{refused}");
        let script =
        "token=$(printf 'PUT /latest/api/token HTTP/1.0\\r\\nX-aws-ec2-metadata-token-ttl-seconds: 60\\r\\n\\r\\n' |
             nc 169.254.169.254 80 | tail -n 1)
         wget -q -O - --header \"X-aws-ec2-metadata-token: $token\" http://169.254.169.254/latest/meta-data/local-ipv4";
        assert_eq!(exec(&wisp, "web", script), private);
    });

    steps.run("DHCP offers the instance's address", || {
        let script =
            "printf '#!/bin/sh\\nenv\\n' > /tmp/dhcp; chmod +x /tmp/dhcp; udhcpc -f -q -n -i eth0 -s /tmp/dhcp 2>&1";
        let lease = exec(&wisp, "web", script);
        for line in [
            format!("ip={private}"),
            "subnet=255.255.240.0".into(),
            "router=172.31.0.1".into(),
            "dns=172.31.0.2".into(),
        ] {
            assert!(lease.lines().any(|known| known == line), "no {line} in {lease}");
        }
    });

    // The VMM cannot access the host's network, although its ports are published there.
    steps.run("the VMM has its own network namespace", || in_own_network_namespace(&wisp, "web"));

    // A reboot keeps the network, and a stop keeps the address.
    steps.require("the instance reboots", || wisp.run(&["reboot", "web"]).expect_code(0));
    steps.run("reboot keeps the network", || {
        in_own_network_namespace(&wisp, "web");
        exec(&wisp, "web", "mkdir -p /www; echo again > /www/page; httpd -h /www");
        assert!(ask(([127, 0, 0, 1], port), b"GET /page HTTP/1.0\r\n\r\n").ends_with(b"again\n"));
        let answered = reach(&world_server(), &wisp, "web");
        assert_eq!(answered, "hello");
    });
    wisp.run(&["stop", "web"]).expect_code(0);
    steps.run("stop keeps the private address only", || {
        let stopped = instance(&wisp, "web");
        assert_eq!(
            (&stopped["PrivateIpAddress"], &stopped["PublicIpAddress"]),
            (&shown["PrivateIpAddress"], &Value::Null)
        );
        TcpStream::connect((public, 22)).unwrap_err();
    });
    steps.run("start restores the network", || {
        wisp.run(&["start", "web"]).expect_code(0);
        assert_eq!(reach(&world_server(), &wisp, "web"), "hello");
    });
    steps.run("terminate releases the port and the backend", || {
        wisp.run(&["terminate", "web"]).expect_code(0);
        assert!(wisp.instances().is_empty());
        TcpListener::bind(("127.0.0.1", port)).unwrap();
        assert_no_passt();
    });
}

fn in_own_network_namespace(wisp: &Wisp, name: &str) {
    let mut control = ControlClient::connect(&dir(wisp, name).join("vmm/control.sock")).unwrap();
    control.send(&ControlRequest::Status).unwrap();
    let Message::Status(status) = control.receive(Some(DEADLINE)).unwrap() else { panic!("no status") };
    assert!(status.sandbox.layers.contains(&SandboxLayer::NetworkNamespace), "{:?}", status.sandbox);
    let namespace = |pid: u32| std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
    assert_ne!(namespace(status.sandbox.pid), namespace(std::process::id()));
    let text = std::fs::read_to_string(format!("/proc/{}/net/dev", status.sandbox.pid)).unwrap();
    let interfaces: Vec<&str> = text.lines().skip(2).filter_map(|line| line.split(':').next()).map(str::trim).collect();
    assert_eq!(interfaces, ["lo"]);
}

fn world_server() -> TcpListener {
    TcpListener::bind((WORLD, 0)).unwrap()
}

fn serve(server: &TcpListener, body: &[u8]) {
    let (mut stream, _) = server.accept().unwrap();
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        request.extend(byte);
    }
    stream.write_all(b"HTTP/1.0 200 OK\r\n\r\n").unwrap();
    stream.write_all(body).unwrap();
}

fn reach(server: &TcpListener, wisp: &Wisp, instance: &str) -> String {
    let address = server.local_addr().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| serve(server, b"hello"));
        exec(wisp, instance, &format!("wget -q -O - http://{address}/"))
    })
}

/// Waits until no passt is left in this namespace.
fn assert_no_passt() {
    let namespace = std::fs::read_link("/proc/self/ns/net").unwrap();
    let is_ours = |dir: &Path| {
        let name = std::fs::read_to_string(dir.join("comm")).unwrap_or_default();
        name.starts_with("passt") && std::fs::read_link(dir.join("ns/net")).is_ok_and(|other| other == namespace)
    };
    await_end_of("passt", || pids().filter(|pid| is_ours(&Path::new("/proc").join(pid.to_string()))).collect());
}

#[test]
fn forked_and_hibernated_guests_have_own_addresses() {
    if !is_inside("forked_and_hibernated_guests_have_own_addresses") {
        return;
    }
    let wisp = Wisp::warm();
    let port = free_port();
    let published = format!("{port}:7");
    launch(&wisp, &["--name", "first", "--hibernation", "-p", &published]).expect_code(0);
    let own = "ip -o -4 address show dev eth0 | awk '{print $4}'; cat /sys/class/net/eth0/address";
    let first = exec(&wisp, "first", own);
    wisp.run(&["fork", "first", "--name", "second"]).expect_code(0);
    let second = exec(&wisp, "second", own);
    let metadata = exec(&wisp, "second", &format!("echo $({METADATA}/local-ipv4)/20; {METADATA}/mac"));
    assert_ne!(first, second);
    assert_eq!(second, metadata);
    for name in ["first", "second"] {
        assert_eq!(reach(&world_server(), &wisp, name), "hello", "{name}");
    }
    assert_eq!(exec(&wisp, "first", own), first);

    wisp.run(&["stop", "first", "--hibernate"]).expect_code(0);
    wisp.run(&["start", "first"]).expect_code(0);
    assert_eq!(exec(&wisp, "first", own), first);
    assert_eq!(reach(&world_server(), &wisp, "first"), "hello");
    exec(&wisp, "first", "(echo back | nc -l -p 7) > /dev/null 2>&1 &");
    let deadline = Instant::now() + DEADLINE;
    loop {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let mut answer = String::new();
        if stream.read_to_string(&mut answer).is_ok() && answer == "back\n" {
            break;
        }
        assert!(Instant::now() < deadline, "the guest does not answer: {answer:?}");
    }
    wisp.run(&["terminate", "first", "second"]).expect_code(0);
    assert_no_passt();
}

#[test]
fn guest_without_network_has_metadata_and_published_ports() {
    if !is_inside("guest_without_network_has_metadata_and_published_ports") {
        return;
    }
    let wisp = Wisp::warm();
    let port = free_port();
    let published = format!("{port}:7");
    let script = format!("{METADATA}/instance-type; echo; nc -l -p 7; wget -q -O - http://{WORLD}:9/ || echo nothing");
    let mut guest = wisp.start(&["run", "--network", "none", "-p", &published, "--", "sh", "-c", &script]);
    guest.wait_for("custom");
    // The client may connect before the guest listens.
    let deadline = Instant::now() + DEADLINE;
    loop {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        if stream.write_all(b"told\n").and_then(|()| stream.shutdown(Shutdown::Write)).is_ok()
            && stream.read(&mut [0]).is_ok()
        {
            break;
        }
        assert!(Instant::now() < deadline, "the guest does not listen");
    }
    let outcome = guest.wait();
    assert_eq!(outcome.text().lines().collect::<Vec<_>>(), ["custom", "told", "nothing"], "{}", outcome.stderr);
}
