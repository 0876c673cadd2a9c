//! Random commands and random kills of commands and VMMs. After each round the next command must find or restore a
//! consistent state of the store, the processes and the files. At the end nothing is left.
//! `scripts/soak` sets WISP_SOAK_ROUNDS and WISP_SOAK_SEED.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::{Running, Wisp};
use ec2::InstanceId;
use ec2::state::InstanceState;
use store::{ImageRecord, InstanceRecord, SnapshotRecord, Store, StoreError, VolumeRecord};

const ROUNDS: u64 = 30;
const SEED: u64 = 20_061;
/// Guests are small and few: the test is about interleaved commands, not about guests.
const MOST_INSTANCES: usize = 3;
const LONGEST_DELAY_US: u64 = 3_000_000;

#[test]
fn random_commands_and_kills_leave_consistent_state() {
    let rounds = number("WISP_SOAK_ROUNDS").unwrap_or(ROUNDS);
    let seed = number("WISP_SOAK_SEED").unwrap_or(SEED);
    let mut soak = Soak { wisp: Wisp::new(), random: Random(seed.max(1)), killed: [0; 2] };
    for round in 1..=rounds {
        let did = soak.round();
        if let Err(find) = soak.check() {
            panic!("seed {seed}, round {round} ({did}): {find}");
        }
        println!("round {round}: {did}");
    }
    if let Err(find) = soak.clear() {
        panic!("seed {seed}, after {rounds} rounds: {find}");
    }
    let [commands, vmms] = soak.killed;
    println!("{rounds} rounds from seed {seed}: {commands} commands and {vmms} VMMs killed, nothing found");
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// Marsaglia's xorshift64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    fn of<T: Clone>(&mut self, choices: &[T]) -> Option<T> {
        (!choices.is_empty()).then(|| choices[self.below(choices.len() as u64) as usize].clone())
    }

    /// Returns a delay of a random magnitude, so that faults within microseconds are as likely as after seconds.
    fn delay(&mut self) -> Duration {
        let limit = LONGEST_DELAY_US >> self.below(14);
        Duration::from_micros(self.below(limit.max(1)))
    }
}

struct State {
    instances: Vec<InstanceRecord>,
    volumes: Vec<VolumeRecord>,
    snapshots: Vec<SnapshotRecord>,
    images: Vec<ImageRecord>,
}

struct Soak {
    wisp: Wisp,
    random: Random,
    /// The number of killed commands, and of killed VMMs.
    killed: [u32; 2],
}

impl Soak {
    fn round(&mut self) -> String {
        let words = self.command();
        let mut did = words.join(" ");
        let mut running = self.start(&words);
        match self.random.below(4) {
            0 => {
                let other = self.command();
                did = format!("{did}; concurrently {}", other.join(" "));
                let other = self.start(&other);
                finish(running);
                finish(other);
            }
            1 => {
                let delay = self.random.delay();
                if running.kill_after(delay) {
                    self.killed[0] += 1;
                    did = format!("{did}, killed after {delay:?}");
                }
            }
            2 => {
                running.has_ended_within(self.random.delay());
                let vmm_processes = common::vmm_processes(self.wisp.home());
                if let Some((pid, id)) = self.random.of(&vmm_processes) {
                    kill(pid);
                    // A VMM and its supervisor end together.
                    let both = vmm_processes.iter().filter(|(_, other)| *other == id);
                    both.for_each(|(pid, _)| common::wait_until_gone((*pid).try_into().unwrap()));
                    self.killed[1] += 1;
                    did = format!("{did}; the VMM of {id} killed");
                }
                finish(running);
            }
            _ => finish(running),
        }
        did
    }

    fn start(&self, words: &[String]) -> Running {
        self.wisp.start(&words.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn command(&mut self) -> Vec<String> {
        let state = self.state();
        let living: Vec<String> = state
            .instances
            .iter()
            .filter(|it| it.status.state != InstanceState::Terminated)
            .map(|it| it.meta.id.to_string())
            .collect();
        let volumes: Vec<String> = state.volumes.iter().map(|it| it.meta.id.to_string()).collect();
        let snapshots: Vec<String> = state.snapshots.iter().map(|it| it.meta.id.to_string()).collect();
        let images: Vec<String> =
            state.images.iter().filter(|it| it.spec.name != "tiny").map(|it| it.meta.id.to_string()).collect();
        let words = |text: &str| text.split_whitespace().map(str::to_string).collect::<Vec<_>>();
        let with = |verb: &str, of: Option<String>| of.map(|id| [words(verb), vec![id]].concat());
        let wait = if self.random.below(3) == 0 { "" } else { " --no-wait" };
        let launch = words(&format!("launch --vcpus 1 --memory 128M --overcommit --hibernation{wait}"));
        if living.is_empty() {
            return launch;
        }
        let (instance, volume) = (self.random.of(&living), self.random.of(&volumes));
        let chosen = match self.random.below(18) {
            0 | 1 if living.len() < MOST_INSTANCES => Some(launch),
            2 | 3 => with(&format!("start{wait}"), instance),
            4 => with("stop", instance),
            5 => with("stop --force", instance),
            16 | 17 => with("stop --hibernate", instance),
            6 => with("reboot --no-wait", instance),
            7 => with("terminate", instance),
            8 => Some(words("volume create 16M")),
            9 => with("volume attach", volume).zip(instance).map(|(attach, id)| [attach, vec![id]].concat()),
            10 => with("volume detach", volume),
            11 => with("volume rm", volume),
            12 => with("snapshot create", volume),
            13 => with("snapshot rm", self.random.of(&snapshots)),
            14 if images.is_empty() => with("image create --no-reboot --name", Some("made".into()))
                .zip(instance)
                .map(|(create, id)| [create, vec![id]].concat()),
            14 => with("image rm", self.random.of(&images)),
            _ => with("tag", instance).map(|tag| [tag, words("round=now")].concat()),
        };
        chosen.unwrap_or_else(|| words("volume create 16M"))
    }

    fn state(&self) -> State {
        let store = Store::open(self.wisp.home()).unwrap();
        store
            .read::<_, StoreError>(|tx| {
                Ok(State { instances: tx.list()?, volumes: tx.list()?, snapshots: tx.list()?, images: tx.list()? })
            })
            .unwrap()
    }

    /// Runs the next command and checks the state after it.
    fn check(&self) -> Result<(), String> {
        let state = self.settled()?;
        let running: BTreeSet<InstanceId> = state
            .instances
            .iter()
            .filter(|it| it.status.state == InstanceState::Running)
            .map(|it| it.meta.id)
            .collect();
        let alive: BTreeSet<InstanceId> =
            common::vmm_processes(self.wisp.home()).into_iter().map(|(_, id)| id).collect();
        same("running instances", &running, "VMMs", &alive)?;
        self.check_volumes(&state)?;
        self.check_files(&state)
    }

    /// Runs `wisp ls` until no instance is in a transitional state. One command usually suffices, but several are
    /// needed if a killed command had just started a VMM.
    fn settled(&self) -> Result<State, String> {
        let mut passing = String::new();
        for _ in 0..100 {
            let listed = self.wisp.run(&["ls"]);
            if listed.code != Some(0) {
                return Err(format!("`wisp ls` failed: {}", listed.stderr));
            }
            let state = self.state();
            let is_passing = |it: &&InstanceRecord| {
                !matches!(it.status.state, InstanceState::Running | InstanceState::Stopped | InstanceState::Terminated)
            };
            match state.instances.iter().find(is_passing) {
                Some(record) => {
                    passing = format!(
                        "{} is {}, but no command is working on it",
                        record.meta.id,
                        record.status.state.as_str()
                    )
                }
                None => return Ok(state),
            }
        }
        Err(passing)
    }

    fn check_volumes(&self, state: &State) -> Result<(), String> {
        let of_instances: BTreeSet<String> = state
            .instances
            .iter()
            .flat_map(|it| {
                it.status.block_devices.iter().map(move |device| format!("{} at {}", device.volume_id, it.meta.id))
            })
            .collect();
        let of_volumes: BTreeSet<String> = state
            .volumes
            .iter()
            .filter_map(|it| {
                it.status.attachment.as_ref().map(|attachment| format!("{} at {}", it.meta.id, attachment.instance_id))
            })
            .collect();
        same("volumes of instances", &of_instances, "attached volumes", &of_volumes)
    }

    /// Checks that every file has an owner, and that the files of each record exist and are sound.
    fn check_files(&self, state: &State) -> Result<(), String> {
        let home = self.wisp.home();
        let living: BTreeSet<String> = state
            .instances
            .iter()
            .filter(|it| it.status.state != InstanceState::Terminated)
            .map(|it| it.meta.id.to_string())
            .collect();
        same("existing instances", &living, "directories", &names(&home.join("instances")))?;
        // The embedded image's directory is created on first use.
        let embedded = node::embedded::id().to_string();
        let without = |mut names: BTreeSet<String>| {
            names.remove(&embedded);
            names
        };
        let images = without(state.images.iter().map(|it| it.meta.id.to_string()).collect());
        same("images", &images, "directories", &without(names(&home.join("images"))))?;

        let volumes = home.join("volumes");
        let mut needed: Vec<String> = state.volumes.iter().map(|it| it.status.file.clone()).collect();
        needed.extend(state.snapshots.iter().map(|it| it.status.file.clone()));
        let mut index = 0;
        while index < needed.len() {
            let below = backing(&volumes.join(&needed[index]))?;
            needed.extend(below.filter(|name| !needed.contains(name)));
            index += 1;
        }
        same("needed files", &needed.into_iter().collect(), "files", &names(&volumes))
    }

    fn clear(&self) -> Result<(), String> {
        let run = |words: &[&str], id: String| {
            let outcome = self.wisp.run(&[words, &[&id]].concat());
            if outcome.code == Some(0) { Ok(()) } else { Err(format!("{words:?} {id}: {}", outcome.stderr)) }
        };
        let state = self.state();
        let living = state.instances.iter().filter(|it| it.status.state != InstanceState::Terminated);
        living.into_iter().try_for_each(|it| run(&["terminate"], it.meta.id.to_string()))?;
        self.state().volumes.into_iter().try_for_each(|it| run(&["volume", "rm"], it.meta.id.to_string()))?;
        self.state().snapshots.into_iter().try_for_each(|it| run(&["snapshot", "rm"], it.meta.id.to_string()))?;
        let made =
            self.state().images.into_iter().filter(|it| it.spec.name != "tiny" && it.status.deregistered.is_none());
        made.into_iter().try_for_each(|it| run(&["image", "rm"], it.meta.id.to_string()))?;
        self.check()?;
        let left: Vec<String> =
            ["instances", "volumes", "runs"].iter().flat_map(|dir| names(&self.wisp.home().join(dir))).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("left over: {left:?}")) }
    }
}

fn finish(running: Running) {
    let outcome = running.wait();
    assert!(matches!(outcome.code, Some(0 | 1)), "{outcome:?}");
}

fn same<T: Ord + std::fmt::Debug>(what: &str, a: &BTreeSet<T>, other: &str, b: &BTreeSet<T>) -> Result<(), String> {
    if a == b {
        return Ok(());
    }
    let (only_a, only_b): (Vec<_>, Vec<_>) = (a.difference(b).collect(), b.difference(a).collect());
    Err(format!("only in {what}: {only_a:?}; only in {other}: {only_b:?}"))
}

fn names(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    entries.filter(|name| name != ".lock" && name != ".snapshots").collect()
}

/// Checks a volume's file and returns the name of its backing file in the same directory.
fn backing(file: &Path) -> Result<Option<String>, String> {
    let qemu_img = |verb: &str| {
        let output = Command::new("qemu-img").args([verb, "-U", "--output", "json"]).arg(file).output();
        let output = output.expect("qemu-img (Debian package qemu-utils) is needed: scripts/test installs it");
        // Exit code 3 means only leaked clusters, which a killed process may leave.
        let sound = matches!(output.status.code(), Some(0 | 3));
        if sound { Ok(output.stdout) } else { Err(format!("{file:?}: {}", String::from_utf8_lossy(&output.stderr))) }
    };
    qemu_img("check")?;
    let information: serde_json::Value = serde_json::from_slice(&qemu_img("info")?).unwrap();
    let below = information["full-backing-filename"].as_str().map(Path::new);
    let below = below.filter(|below| below.parent() == file.parent());
    Ok(below.map(|below| below.file_name().unwrap().to_str().unwrap().to_string()))
}

fn kill(pid: i32) {
    // SAFETY: it is a VMM of this test's data directory.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    common::wait_until_gone(pid.try_into().unwrap());
}
