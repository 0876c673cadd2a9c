//! A network namespace for one test. The address of its only external interface represents the outside world.

use std::process::Command;

/// An environment variable that is set in the test process inside the namespace.
const INSIDE: &str = "WISP_TEST_NETWORK";
/// The address of the namespace's only external interface. Servers of the outside world listen on it.
pub const WORLD: &str = "192.0.2.2";

/// Returns true inside a namespace. Otherwise runs the test `name` in a new one and returns false.
pub fn is_inside(name: &str) -> bool {
    let is_inside = set_up_if_inside();
    if !is_inside {
        run(Command::new("unshare").args(["--map-root-user", "--net", "--"]), name);
    }
    is_inside
}

/// Returns true inside a namespace, after creating its interface.
pub fn set_up_if_inside() -> bool {
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

pub fn run(unshare: &mut Command, name: &str) {
    let own = std::env::current_exe().unwrap();
    let command = unshare.arg(own).args(["--exact", name, "--nocapture"]).env(INSIDE, "1");
    let status = command.status().unwrap();
    assert!(status.success(), "the test in its own network namespace ended with {status}");
}
