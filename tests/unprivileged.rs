//! Wisp without root privileges: everything works except what the kernel forbids, which `wisp doctor` names.
//! The test needs root, to create a user. If the test suite runs as another user, the other tests cover the same.

mod common;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use common::instances::{SMALL, exec, finding, json, launch};
use common::namespace::{self, WORLD};
use common::user::{OpenDevices, User};
use common::wait::await_end_of;
use common::{Outcome, Wisp};
use serde_json::Value;

const TEST: &str = "unprivileged_user_runs_all_features_and_leaves_nothing";
const KVM: &str = "/dev/kvm";
const LOW_PORTS: &str = "net.ipv4.ip_unprivileged_port_start";

#[test]
fn unprivileged_user_runs_all_features_and_leaves_nothing() {
    if namespace::set_up_if_inside() {
        return use_all_features(&Wisp::of(User::inside()));
    }
    let Some(user) = User::create() else {
        return test_support::skip_without(test_support::Capability::Root);
    };
    // This can be checked only if the device is not accessible to all users.
    if std::fs::metadata(KVM).unwrap().permissions().mode() & 0o006 == 0 {
        let output = user.wisp().arg("doctor").output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains(KVM) && text.contains("sudo setfacl -m u:"), "{text}");
    }
    let _devices = OpenDevices::new(&[KVM, "/dev/net/tun"]);
    let (name, value) = user.environment();
    namespace::run(Command::new("unshare").args(["--net", "--"]).env(name, value), TEST);
}

fn use_all_features(wisp: &Wisp) {
    let doctor = json(wisp, &["doctor"]);
    let found = |name: &str| doctor["Findings"].as_array().unwrap().iter().find(|one| one["Name"] == name).unwrap();
    assert_eq!((&found(KVM)["Status"], &found("VPC")["Status"]), (&"ok".into(), &"ok".into()), "{doctor}");

    // One guest cold-boots. All others are restored from it.
    wisp.run(&[&["image", "warm", "tiny"], &SMALL[..]].concat()).expect_code(0);
    let ran = wisp.run(&[&["run"], &SMALL[..], &["--", "sh", "-c", &fetch("1.2.3.4:9", "|| id -u")]].concat());
    assert_eq!(ran.expect_code(0).text().trim(), "0");

    launch(wisp, &["--name", "alone", "--network", "user"]).expect_code(0);
    assert_eq!(hello_from_the_world(wisp, "alone"), "hello");
    wisp.run(&["terminate", "alone"]).expect_code(0);

    let key = wisp.home().join("mine.pem");
    wisp.run(&["key", "create", "mine", "--file", key.to_str().unwrap()]).expect_code(0);
    wisp.run(&["sg", "create", "open"]).expect_code(0);
    wisp.run(&["sg", "authorize", "open", "--port", "22"]).expect_code(0);
    let vpc = ["--network", "vpc", "--security-group", "default", "--security-group", "open"];
    let launched = launch(wisp, &[&["--name", "client", "--key", "mine"], &vpc[..]].concat()).expect_code(0);
    assert!(!launched.stderr.contains("no uplink"), "{}", launched.stderr);
    launch(wisp, &[&["--name", "server", "--hibernation"], &vpc[..]].concat()).expect_code(0);
    let [client, server] = ["client", "server"].map(|name| instance(wisp, name));
    let private = server["PrivateIpAddress"].as_str().unwrap();
    let pinged = exec(wisp, "client", &format!("ping -c 1 -w 60 {private}"));
    assert!(pinged.contains(" 0% packet loss"), "{pinged}");
    exec(wisp, "server", "mkdir -p /www; echo page > /www/page; httpd -h /www");
    assert_eq!(exec(wisp, "client", &fetch(private, "")), "page");
    assert_eq!(hello_from_the_world(wisp, "client"), "hello");

    let networks = std::fs::read_dir(wisp.home().join("networks")).unwrap().map(|entry| entry.unwrap().path());
    let [dir] = &networks.filter(|path| path.is_dir()).collect::<Vec<_>>()[..] else { panic!("expected one VPC") };
    common::kill_router(dir.to_str().unwrap());
    assert_eq!(finding(wisp, "VPC router").unwrap()["Fixes"][0]["Command"], "wisp ls");
    let came = wisp.run(&["ls"]).expect_code(0);
    assert!(came.stderr.contains("it was restarted") && !came.stderr.contains("have no network"), "{}", came.stderr);
    assert_eq!(exec(wisp, "client", &fetch(private, "")), "page");
    assert_eq!(hello_from_the_world(wisp, "client"), "hello");

    let public: Ipv4Addr = server["PublicIpAddress"].as_str().unwrap().parse().unwrap();
    assert!(TcpStream::connect((public, 8080)).is_err());
    wisp.run(&["sg", "authorize", "open", "--port", "8080"]).expect_code(0);
    TcpStream::connect((public, 8080)).unwrap();
    wisp.run(&["sg", "revoke", "open", "--port", "8080"]).expect_code(0);
    assert!(TcpStream::connect((public, 8080)).is_err());

    // The kernel reserves the SSH port for root, unless the setting is changed.
    let ssh = || {
        let key = key.to_str().unwrap();
        let outcome = wisp.run(&["ssh", "client", "-i", key, "--", "hostname; exit 7"]).expect_code(7);
        assert_eq!(outcome.text().trim(), &client["InstanceId"].as_str().unwrap()[..10]);
        outcome.stderr.contains("through the guest's agent")
    };
    assert_eq!(found("Ports below 1024")["Fixes"][0]["Command"], format!("sudo sysctl {LOW_PORTS}=22"));
    assert!(launched.stderr.contains(LOW_PORTS), "{}", launched.stderr);
    assert!(ssh());
    std::fs::write(format!("/proc/sys/{}", LOW_PORTS.replace('.', "/")), "22").unwrap();
    wisp.run(&["modify", "client", "--security-group", "open"]).expect_code(0);
    assert!(!ssh());
    wisp.run(&["modify", "client", "--security-group", "default"]).expect_code(0);
    wisp.run(&["modify", "server", "--security-group", "open"]).expect_code(0);
    assert_eq!(exec(wisp, "client", &fetch(private, "|| echo cut")), "cut");
    wisp.run(&["modify", "server", "--security-group", "default"]).expect_code(0);

    wisp.run(&["stop", "server", "--hibernate"]).expect_code(0);
    wisp.run(&["start", "server"]).expect_code(0);
    assert_eq!(exec(wisp, "client", &fetch(private, "")), "page");

    without_namespaces(wisp);
    wisp.run(&["terminate", "client", "server"]).expect_code(0);
    assert_nothing_is_left(wisp);
}

fn fetch(server: &str, otherwise: &str) -> String {
    format!("timeout 8 wget -q -O - http://{server}/page 2> /dev/null {otherwise}")
}

fn instance(wisp: &Wisp, name: &str) -> Value {
    json(wisp, &["show", name])["Reservations"][0]["Instances"][0].clone()
}

fn hello_from_the_world(wisp: &Wisp, name: &str) -> String {
    let world = TcpListener::bind((WORLD, 0)).unwrap();
    let address = world.local_addr().unwrap().to_string();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut stream, _) = world.accept().unwrap();
            stream.read_exact(&mut [0; 3]).unwrap();
            stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nhello").unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            // Closing with unread data would reset the connection.
            stream.read_to_end(&mut Vec::new()).unwrap();
        });
        exec(wisp, name, &fetch(&address, ""))
    })
}

/// Asserts that Wisp suggests the fix if the kernel allows no user namespaces.
fn without_namespaces(wisp: &Wisp) {
    const FIX: &str = "sudo sysctl user.max_user_namespaces=15000";
    let forbidden = |args: &[&str]| {
        let mut command = wisp.user().command("unshare");
        command.args(["--user", "--map-current-user", "--keep-caps", "sh", "-c"]);
        command.arg("echo 0 > /proc/sys/user/max_user_namespaces && exec \"$0\" \"$@\"");
        command.arg(wisp.user().wisp().get_program()).args(args).env("WISP_HOME", wisp.home().join("other"));
        let output = command.output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        Outcome { code: output.status.code(), stdout: output.stdout, stderr }
    };
    let doctor = forbidden(&["doctor"]).expect_code(0).text();
    assert!(doctor.contains(FIX), "{doctor}");
    for mode in ["vpc", "user"] {
        let refused = forbidden(&["launch", "--network", mode]).expect_code(1);
        assert!(refused.stderr.contains(FIX), "{mode}: {}", refused.stderr);
    }
}

fn assert_nothing_is_left(wisp: &Wisp) {
    let user = wisp.user();
    let pids = || user.processes().iter().map(|(pid, _)| pid.as_raw_nonzero().get()).collect();
    await_end_of("a process of the user", pids);
    let links = Command::new("ip").args(["-o", "link"]).output().unwrap();
    let links = String::from_utf8(links.stdout).unwrap();
    assert_eq!(links.lines().count(), 3, "expected only the host's own links: {links}");
    for path in tree(wisp.home()) {
        let metadata = path.symlink_metadata().unwrap();
        assert_eq!(metadata.uid(), user.uid(), "{} belongs to another user", path.display());
        assert!(!metadata.file_type().is_socket(), "{} is left", path.display());
    }
    assert!(wisp.instances().is_empty());
}

fn tree(dir: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            all.extend(tree(&entry.path()));
        }
        all.push(entry.path());
    }
    all
}
