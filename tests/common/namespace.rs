//! A network namespace for a test of its own, with one interface that leads nowhere, and its address in place of the world.

use std::process::Command;

/// Set in the process that is in the namespace.
const INSIDE: &str = "WISP_TEST_NETWORK";
/// The host's address there.
pub const WORLD: &str = "192.0.2.2";

/// Whether this process is in a namespace of its own; if not, the test `name` is run in one.
pub fn is_inside(name: &str) -> bool {
    let is_inside = is_there();
    if !is_inside {
        run(Command::new("unshare").args(["--map-root-user", "--net", "--"]), name);
    }
    is_inside
}

/// Whether this process is in a namespace, which then has its interface.
pub fn is_there() -> bool {
    if std::env::var_os(INSIDE).is_none() {
        return false;
    }
    for line in [
        "link set lo up",
        "link add world type veth peer name nowhere",
        "link set nowhere up",
        &format!("address add {WORLD}/24 dev world"),
        "link set world up",
        "route add default via 192.0.2.1",
    ] {
        assert!(Command::new("ip").args(line.split(' ')).status().unwrap().success(), "ip {line}");
    }
    true
}

/// Has `unshare` run the test `name` in a namespace.
pub fn run(unshare: &mut Command, name: &str) {
    let own = std::env::current_exe().unwrap();
    let command = unshare.arg(own).args(["--exact", name, "--nocapture"]).env(INSIDE, "1");
    let status = command.status().unwrap();
    assert!(status.success(), "in a network namespace of its own, the test ended with {status}");
}
