//! Many instances of one VPC at a time: each has a network, and nothing of it is left when they are gone.
//!
//! The test runs in a network namespace of its own, as those of `network.rs`.

mod common;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Command;
use std::sync::mpsc;
use std::time::Instant;

use common::instances::{exec, json, launch};
use common::namespace::{WORLD, is_inside};
use common::{DEADLINE, Wisp};

/// How many there are, besides the one that they all ask.
const COUNT: usize = 50;

/// What a program prints.
fn printed(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The paths that are asked for at the world's address, one by one.
fn reports(world: TcpListener) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in world.incoming() {
            let mut stream = stream.unwrap();
            let mut request = Vec::new();
            let mut piece = [0; 512];
            while !request.windows(4).any(|bytes| bytes == b"\r\n\r\n") {
                let count = stream.read(&mut piece).unwrap_or(0);
                if count == 0 {
                    break;
                }
                request.extend(&piece[..count]);
            }
            let _ = stream.write_all(b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n");
            let path = String::from_utf8_lossy(&request).split(' ').nth(1).unwrap_or_default().to_string();
            if sender.send(path).is_err() {
                return;
            }
        }
    });
    receiver
}

#[test]
fn fifty_instances_have_a_network_and_leave_nothing_of_it() {
    if !is_inside("fifty_instances_have_a_network_and_leave_nothing_of_it") {
        return;
    }
    let here = || (printed("ip", &["-o", "link"]).lines().count(), printed("nft", &["list", "ruleset"]));
    let before = here();
    let wisp = Wisp::warm();
    launch(&wisp, &["--name", "server"]).expect_code(0);
    exec(&wisp, "server", "mkdir -p /www; echo page > /www/page; httpd -h /www");
    let server = json(&wisp, &["show", "server"])["Reservations"][0]["Instances"][0]["PrivateIpAddress"].clone();
    let world = TcpListener::bind((WORLD, 0)).unwrap();
    let port = world.local_addr().unwrap().port();
    let reports = reports(world);

    // Each asks its neighbour, and says to the world what it was answered, and by whom it was asked.
    let script = wisp.home().join("script");
    let server = server.as_str().unwrap();
    let text = format!(
        "#!/bin/sh\npage=$(wget -q -O - http://{server}/page)\n\
         wget -q -O - http://{WORLD}:{port}/$page/$(wget -q -O - http://169.254.169.254/latest/meta-data/instance-id)\n"
    );
    std::fs::write(&script, text).unwrap();
    let count = COUNT.to_string();
    let many = ["--count", &count, "--overcommit", "--wait", "running", "--user-data", script.to_str().unwrap()];
    let launched = launch(&wisp, &many).expect_code(0).text();
    let expected: BTreeSet<String> = launched.lines().map(|id| format!("/page/{id}")).collect();
    assert_eq!(expected.len(), COUNT);
    let deadline = Instant::now() + DEADLINE;
    let mut seen = BTreeSet::new();
    while seen != expected {
        let left = deadline.saturating_duration_since(Instant::now());
        match reports.recv_timeout(left) {
            Ok(path) => drop(seen.insert(path)),
            Err(_) => panic!("{} of {COUNT} came; not these: {:?}", seen.len(), expected.difference(&seen)),
        }
    }

    let ids: Vec<&str> = launched.lines().chain(["server"]).collect();
    wisp.run(&[&["terminate"], &ids[..]].concat()).expect_code(0);
    common::await_no_processes_of(&wisp);
    assert_eq!(here(), before);
}
