//! Instances of a VPC, in a network namespace like those of `network.rs`.

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Instant;

use common::instances::{exec, finding, json, launch};
use common::namespace::{WORLD, is_inside};
use common::{DEADLINE, Wisp};
use serde_json::{Value, json};

const METADATA: &str = "wget -q -O - http://169.254.169.254/latest/meta-data";

fn shown(wisp: &Wisp, name: &str) -> Value {
    json(wisp, &["show", name])["Reservations"][0]["Instances"][0].clone()
}

fn private_address(wisp: &Wisp, name: &str) -> String {
    shown(wisp, name)["PrivateIpAddress"].as_str().unwrap().to_string()
}

fn page(address: &str) -> Option<String> {
    let mut stream = TcpStream::connect((address, 80)).ok()?;
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(b"GET /page HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.lines().last().map(str::to_string)
}

fn reaches(wisp: &Wisp, client: &str, server: &str) -> bool {
    let script = format!(
        "wget -q -O /tmp/page http://{server}/page & wget=$!; (sleep 8; kill $wget) > /dev/null 2>&1 & \
         wait $wget && echo reached || echo cut"
    );
    exec(wisp, client, &script) == "reached"
}

/// Starts a stream from the server to the client. The returned function waits until the client has received more.
fn talk<'a>(wisp: &'a Wisp, server: &str, address: &str, client: &'a str) -> impl Fn() + 'a {
    exec(wisp, server, "(while true; do echo tick; sleep 1; done | nc -l -p 7) > /tmp/heard 2>&1 &");
    exec(wisp, client, &format!("(sleep 1000 | nc {address} 7) > /tmp/ticks 2>&1 &"));
    let ticks = move || exec(wisp, client, "wc -c < /tmp/ticks").parse::<u64>().unwrap();
    move || {
        let (before, deadline) = (ticks(), Instant::now() + DEADLINE);
        while ticks() <= before {
            assert!(Instant::now() < deadline, "no data arrives on the connection");
        }
    }
}

fn hello_from_the_world(wisp: &Wisp, name: &str) -> String {
    let world = TcpListener::bind((WORLD, 0)).unwrap();
    let port = world.local_addr().unwrap().port();
    let serving = std::thread::spawn(move || {
        let (mut stream, _) = world.accept().unwrap();
        let mut request = [0; 3];
        stream.read_exact(&mut request).unwrap();
        stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nhello").unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        // Closing with unread data would reset the connection.
        stream.read_to_end(&mut Vec::new()).unwrap();
    });
    let hello = exec(wisp, name, &format!("wget -q -O - http://{WORLD}:{port}/"));
    serving.join().unwrap();
    hello
}

#[test]
fn killed_router_restarts_and_keeps_connections() {
    if !is_inside("killed_router_restarts_and_keeps_connections") {
        return;
    }
    let wisp = Wisp::warm_in_long_home();
    let before = host_network_state();
    wisp.run(&["sg", "create", "db"]).expect_code(0);
    for traffic in [&["--port", "7"][..], &["--protocol", "icmp"]] {
        wisp.run(&[&["sg", "authorize", "db", "--group", "default"], traffic].concat()).expect_code(0);
    }
    launch(&wisp, &["--name", "client"]).expect_code(0);
    launch(&wisp, &["--name", "server", "--security-group", "db"]).expect_code(0);
    let address = private_address(&wisp, "server");
    let pings = |from: &str| exec(&wisp, from, &format!("ping -c 2 -w 60 {address}")).contains(" 0% packet loss");
    exec(&wisp, "server", "mkdir -p /www; echo page > /www/page; httpd -h /www");
    let heard_more = talk(&wisp, "server", &address, "client");
    heard_more();
    assert!(!reaches(&wisp, "client", &address));

    let dir = wisp.home().join("networks").join(shown(&wisp, "client")["VpcId"].as_str().unwrap());
    let dir = dir.canonicalize().unwrap().to_str().unwrap().to_string();
    let kill_the_router = || common::kill_router(&dir);
    let killed = kill_the_router();
    let router_finding = || finding(&wisp, "VPC router");
    assert_eq!(router_finding().unwrap()["Fixes"][0]["Command"], "wisp ls");
    // The next command restarts the router, with the current rules.
    let came = wisp.run(&["sg", "authorize", "db", "--port", "80", "--group", "default"]).expect_code(0);
    assert!(came.stderr.contains("it was restarted") && !came.stderr.contains("have no network"), "{}", came.stderr);
    assert_eq!(router_finding(), None);
    assert_ne!(common::processes(&["router", &dir]), [killed]);
    heard_more();
    assert!(pings("client") && reaches(&wisp, "client", &address));
    assert_eq!(hello_from_the_world(&wisp, "client"), "hello");
    let log = format!("{dir}/pasta.log");
    assert_eq!(common::processes(&["--log-file", &log]).len(), 1, "only the new uplink is running");

    // Two concurrent commands, one of which launches. The new instance joins the others' network.
    kill_the_router();
    let revoking = wisp.start(&["sg", "revoke", "db", "--port", "80", "--group", "default"]);
    let launched = launch(&wisp, &["--name", "third"]).expect_code(0);
    let revoked = revoking.wait().expect_code(0);
    for said in [&launched.stderr, &revoked.stderr] {
        assert!(!said.contains("have no network") && !said.contains("no uplink"), "{said}");
    }
    assert_eq!(common::processes(&["router", &dir]).len(), 1);
    assert!(pings("third") && !reaches(&wisp, "third", &address));
    heard_more();

    // After a reboot, the supervisor still holds the guest's network connections.
    wisp.run(&["reboot", "server"]).expect_code(0);
    exec(&wisp, "server", "echo it is up");
    wisp.run(&["terminate", "client", "third"]).expect_code(0);
    kill_the_router();
    let came = wisp.run(&["ls"]).expect_code(0);
    assert!(came.stderr.contains("it was restarted") && !came.stderr.contains("have no network"), "{}", came.stderr);
    launch(&wisp, &["--name", "fourth"]).expect_code(0);
    assert!(pings("fourth"));

    wisp.run(&["terminate", "server", "fourth"]).expect_code(0);
    common::await_no_processes_of(&wisp);
    assert!(!std::path::Path::new(&dir).join("router.sock").exists());
    assert_eq!(host_network_state(), before);
}

#[test]
fn security_groups_filter_traffic_within_vpc() {
    if !is_inside("security_groups_filter_traffic_within_vpc") {
        return;
    }
    let wisp = Wisp::warm();
    wisp.run(&["sg", "create", "db"]).expect_code(0);
    launch(&wisp, &["--name", "client"]).expect_code(0);
    let groups = ["--security-group", "db", "--security-group", "default"];
    launch(&wisp, &[&["--name", "server", "--network", "vpc"][..], &groups[..]].concat()).expect_code(0);
    let address = private_address(&wisp, "server");

    // Members of the default group reach each other by ICMP, and by TCP without lost bytes.
    let pinged = exec(&wisp, "client", &format!("ping -c 2 -w 60 {address}"));
    assert!(pinged.contains(" 0% packet loss"), "{pinged}");
    let sum = exec(
        &wisp,
        "server",
        "mkdir -p /www; seq 999999 | head -c 2097152 > /www/many; echo page > /www/page; httpd -h /www; \
         sha256sum < /www/many",
    );
    let received = exec(&wisp, "client", &format!("wget -q -O - http://{address}/many | sha256sum"));
    assert_eq!(received, sum);

    assert_eq!(hello_from_the_world(&wisp, "client"), "hello");

    // Leaving a group keeps established connections and blocks new ones.
    let heard_more = talk(&wisp, "server", &address, "client");
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

    // A fork is connected with its own address. A stopped instance keeps its address.
    wisp.run(&["fork", "client", "--name", "second"]).expect_code(0);
    assert!(reaches(&wisp, "second", &address));
    wisp.run(&["stop", "server"]).expect_code(0);
    wisp.run(&["start", "server"]).expect_code(0);
    assert_eq!(private_address(&wisp, "server"), address);
    exec(&wisp, "server", "httpd -h /www");
    assert!(reaches(&wisp, "second", &address));

    wisp.run(&["terminate", "client", "second", "server"]).expect_code(0);
    common::await_no_processes_of(&wisp);
    for dir in std::fs::read_dir(wisp.home().join("networks")).unwrap() {
        assert!(!dir.unwrap().path().join("router.sock").exists());
    }
}

#[test]
fn vpcs_are_isolated_and_elastic_address_moves() {
    if !is_inside("vpcs_are_isolated_and_elastic_address_moves") {
        return;
    }
    let wisp = Wisp::warm();
    // Two VPCs with the same addresses.
    for vpc in ["red", "blue"] {
        wisp.run(&["vpc", "create", "--cidr", "10.0.0.0/16", "--name", vpc]).expect_code(0);
        for (number, name) in [("1", "front"), ("2", "back")] {
            let (cidr, name) = (format!("10.0.{number}.0/24"), format!("{vpc}-{name}"));
            wisp.run(&["subnet", "create", "--vpc", vpc, "--cidr", &cidr, "--name", &name]).expect_code(0);
        }
        wisp.run(&["sg", "create", vpc, "--vpc", vpc]).expect_code(0);
        for traffic in [&["--port", "80"][..], &["--protocol", "icmp"]] {
            wisp.run(&[&["sg", "authorize", vpc], traffic].concat()).expect_code(0);
        }
    }
    for (name, subnet, address, group) in [
        ("a", "red-front", "10.0.1.10", "red"),
        ("b", "red-back", "10.0.2.20", "red"),
        ("c", "blue-front", "10.0.1.10", "blue"),
    ] {
        let place = ["--subnet", subnet, "--private-ip", address, "--security-group", group, "--hibernation"];
        launch(&wisp, &[&["--name", name, "--overcommit"], &place[..]].concat()).expect_code(0);
        exec(&wisp, name, &format!("mkdir -p /www; echo {name} > /www/page; httpd -h /www"));
    }
    let a = shown(&wisp, "a");
    assert_eq!((&a["PrivateIpAddress"], &a["SecurityGroups"][0]["GroupName"]), (&json!("10.0.1.10"), &json!("red")));
    assert_eq!(a.get("PublicIpAddress"), None, "the subnet assigns no public addresses");
    let network = format!("{METADATA}/network/interfaces/macs");
    let metadata =
        exec(&wisp, "a", &format!("mac=$({network}); {network}/${{mac}}subnet-id; echo; {network}/${{mac}}vpc-id"));
    assert_eq!(metadata.lines().collect::<Vec<_>>(), [a["SubnetId"].as_str().unwrap(), a["VpcId"].as_str().unwrap()]);
    let taken = launch(&wisp, &["--subnet", "red-front", "--private-ip", "10.0.1.10", "--overcommit"]).expect_code(1);
    assert!(taken.stderr.contains("InvalidIPAddress.InUse"), "{}", taken.stderr);
    assert!(wisp.run(&["subnet", "rm", "red-front"]).expect_code(1).stderr.contains("DependencyViolation"));

    assert!(reaches(&wisp, "a", "10.0.2.20"));
    let pinged = exec(&wisp, "b", "ping -c 1 -w 60 10.0.1.10");
    assert!(pinged.contains(" 0% packet loss"), "{pinged}");
    assert!(!reaches(&wisp, "c", "10.0.2.20"));

    // An elastic address moves between instances and is kept across a stop.
    let allocated = json(&wisp, &["address", "allocate", "--name", "www"]);
    let ip = allocated["PublicIp"].as_str().unwrap();
    wisp.run(&["address", "associate", "www", "a"]).expect_code(0);
    assert_eq!(page(ip).as_deref(), Some("a"));
    let kept = wisp.run(&["address", "associate", "www", "c", "--no-reassociation"]).expect_code(1);
    assert!(kept.stderr.contains("Resource.AlreadyAssociated"), "{}", kept.stderr);
    wisp.run(&["address", "associate", "www", "c"]).expect_code(0);
    assert_eq!(page(ip).as_deref(), Some("c"));
    assert_eq!(shown(&wisp, "a").get("PublicIpAddress"), None);
    assert!(wisp.run(&["address", "release", "www"]).expect_code(1).stderr.contains("InvalidIPAddress.InUse"));
    wisp.run(&["stop", "c", "--hibernate"]).expect_code(0);
    assert_eq!((shown(&wisp, "c")["PublicIpAddress"].as_str(), page(ip)), (Some(ip), None));
    wisp.run(&["start", "c"]).expect_code(0);
    assert_eq!(page(ip).as_deref(), Some("c"));
    wisp.run(&["terminate", "c"]).expect_code(0);
    assert_eq!(json(&wisp, &["address", "ls"])["Addresses"], json!([allocated]));

    wisp.run(&["terminate", "a", "b"]).expect_code(0);
    common::await_no_processes_of(&wisp);
    for vpc in ["red", "blue"] {
        for command in [&["subnet", "rm"][..], &["sg", "rm"], &["vpc", "rm"]] {
            let names = if command[0] == "subnet" { vec!["-front", "-back"] } else { vec![""] };
            for name in names {
                wisp.run(&[command, &[&format!("{vpc}{name}")]].concat()).expect_code(0);
            }
        }
    }
    let left: Vec<_> = std::fs::read_dir(wisp.home().join("networks")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

fn host_network_state() -> [String; 3] {
    let said = |program: &str, arguments: &[&str]| {
        let output = std::process::Command::new(program).args(arguments).output().unwrap();
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let namespaces = mounts.lines().filter(|line| line.contains(" - nsfs ")).collect();
    [said("ip", &["-brief", "link"]), said("nft", &["list", "ruleset"]), namespaces]
}

#[test]
fn fifty_instances_reach_each_other_and_leave_no_processes() {
    if !is_inside("fifty_instances_reach_each_other_and_leave_no_processes") {
        return;
    }
    let wisp = Wisp::warm();
    let before = host_network_state();
    launch(&wisp, &["--name", "asking", "--network", "vpc"]).expect_code(0);
    launch(&wisp, &["--count", "49", "--network", "vpc", "--overcommit"]).expect_code(0);
    let all = json(&wisp, &["ls"]);
    let all: Vec<&Value> = all["Reservations"].as_array().unwrap().iter().map(|one| &one["Instances"]).collect();
    let all: Vec<&Value> = all.iter().flat_map(|instances| instances.as_array().unwrap()).collect();
    let field = |name: &str| all.iter().map(|instance| instance[name].as_str().unwrap()).collect::<Vec<_>>();
    let addresses = field("PrivateIpAddress");
    assert_eq!(addresses.iter().collect::<std::collections::HashSet<_>>().len(), 50);

    let script = format!("for a in {}; do ping -c 1 -w 60 $a; done | grep -c ' 0% packet loss'", addresses.join(" "));
    assert_eq!(exec(&wisp, "asking", &script), "50");

    wisp.run(&[&["terminate"][..], &field("InstanceId")].concat()).expect_code(0);
    common::await_no_processes_of(&wisp);
    // The VPCs' namespaces are not mounted anywhere.
    assert_eq!(host_network_state(), before);
    for dir in std::fs::read_dir(wisp.home().join("networks")).unwrap() {
        assert!(!dir.unwrap().path().join("router.sock").exists());
    }
}
