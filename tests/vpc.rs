//! Instances of a VPC: they reach each other as their security groups say, and leave nothing.
//!
//! The tests run in a network namespace of their own, as those of `network.rs`.

mod common;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::time::Instant;

use common::instances::{exec, json, launch};
use common::namespace::{WORLD, is_inside};
use common::{DEADLINE, Wisp};

fn private_address(wisp: &Wisp, name: &str) -> String {
    let shown = json(wisp, &["show", name]);
    shown["Reservations"][0]["Instances"][0]["PrivateIpAddress"].as_str().unwrap().to_string()
}

/// Whether `client` gets a page of `server`'s within some seconds.
fn reaches(wisp: &Wisp, client: &str, server: &str) -> bool {
    let script = format!(
        "wget -q -O /tmp/page http://{server}/page & wget=$!; (sleep 8; kill $wget) > /dev/null 2>&1 & \
         wait $wget && echo reached || echo cut"
    );
    exec(wisp, client, &script) == "reached"
}

/// The processes with `text` in their command lines.
fn processes(text: &str) -> Vec<String> {
    let command_line = |folder: &Path| std::fs::read_to_string(folder.join("cmdline")).unwrap_or_default();
    let all = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| command_line(&entry.path()));
    all.filter(|line| line.contains(text)).collect()
}

#[test]
fn instances_of_a_vpc_reach_each_other_as_their_groups_say() {
    if !is_inside("instances_of_a_vpc_reach_each_other_as_their_groups_say") {
        return;
    }
    let wisp = Wisp::new();
    wisp.run(&["sg", "create", "db"]).expect_code(0);
    launch(&wisp, &["--name", "client", "--network", "vpc"]).expect_code(0);
    let groups = ["--security-group", "db", "--security-group", "default"];
    launch(&wisp, &[&["--name", "server", "--network", "vpc"][..], &groups[..]].concat()).expect_code(0);
    let address = private_address(&wisp, "server");

    // Members of the default group reach each other: by ICMP, and by TCP with as many bytes as left there.
    let pinged = exec(&wisp, "client", &format!("ping -c 2 -w 60 {address}"));
    assert!(pinged.contains(" 0% packet loss"), "{pinged}");
    let sum = exec(
        &wisp,
        "server",
        "mkdir -p /www; seq 9999999 | head -c 16777216 > /www/many; echo page > /www/page; httpd -h /www; \
         sha256sum < /www/many",
    );
    let received = exec(&wisp, "client", &format!("wget -q -O - http://{address}/many | sha256sum"));
    assert_eq!(received, sum);

    // Out, and what is there is not in.
    let world = TcpListener::bind((WORLD, 0)).unwrap();
    let port = world.local_addr().unwrap().port();
    let serving = std::thread::spawn(move || {
        let (mut stream, _) = world.accept().unwrap();
        let mut request = [0; 3];
        stream.read_exact(&mut request).unwrap();
        stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nhello").unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        // It is read to its end, or closing would reset it.
        stream.read_to_end(&mut Vec::new()).unwrap();
    });
    assert_eq!(exec(&wisp, "client", &format!("wget -q -O - http://{WORLD}:{port}/")), "hello");
    serving.join().unwrap();

    // What was begun goes on when its group is left; what is begun then does not. The other way likewise.
    let talking = "(while true; do echo tick; sleep 1; done | nc -l -p 7) > /tmp/heard 2>&1 &";
    exec(&wisp, "server", talking);
    exec(&wisp, "client", &format!("(sleep 1000 | nc {address} 7) > /tmp/ticks 2>&1 &"));
    let ticks = || exec(&wisp, "client", "wc -c < /tmp/ticks").parse::<u64>().unwrap();
    let heard_more = || {
        let (before, deadline) = (ticks(), Instant::now() + DEADLINE);
        while ticks() <= before {
            assert!(Instant::now() < deadline, "the connection is silent");
        }
    };
    heard_more();
    wisp.run(&["modify", "server", "--security-group", "db"]).expect_code(0);
    assert!(!reaches(&wisp, "client", &address));
    heard_more();
    wisp.run(&["sg", "authorize", "db", "--port", "80", "--group", "default"]).expect_code(0);
    assert!(reaches(&wisp, "client", &address));
    wisp.run(&["sg", "revoke", "db", "--port", "80", "--group", "default"]).expect_code(0);
    assert!(!reaches(&wisp, "client", &address));
    wisp.run(&["sg", "authorize", "db", "--port", "80", "--cidr", "172.31.0.0/16"]).expect_code(0);
    wisp.run(&["sg", "revoke", "default", "--egress", "--protocol", "all"]).expect_code(0);
    assert!(!reaches(&wisp, "client", &address));
    wisp.run(&["sg", "authorize", "default", "--egress", "--port", "80", "--group", "db"]).expect_code(0);
    assert!(reaches(&wisp, "client", &address));

    // One that goes on from a saved guest is connected by its own address; one that was stopped has the one it had.
    wisp.run(&["fork", "client", "--name", "second"]).expect_code(0);
    assert!(reaches(&wisp, "second", &address));
    wisp.run(&["stop", "server"]).expect_code(0);
    wisp.run(&["start", "server"]).expect_code(0);
    assert_eq!(private_address(&wisp, "server"), address);
    exec(&wisp, "server", "httpd -h /www");
    assert!(reaches(&wisp, "second", &address));

    wisp.run(&["terminate", "client", "second", "server"]).expect_code(0);
    let networks = wisp.home().join("networks");
    let deadline = Instant::now() + DEADLINE;
    while !processes(networks.to_str().unwrap()).is_empty() {
        assert!(Instant::now() < deadline, "left: {:?}", processes(networks.to_str().unwrap()));
    }
    assert!(!networks.join("default/router.sock").exists());
}
