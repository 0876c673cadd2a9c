//! Replays the corpus, and mutations of it, as ordinary tests, which need no fuzzer and take a second or two.

use std::fs;
use std::path::PathBuf;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};

/// The number of mutated inputs for each target. If WISP_FUZZ_CASES sets it, the inputs are different in each run.
const CASES: u32 = 256;

fn dir(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(name)
}

fn inputs(target: &str) -> Vec<Vec<u8>> {
    let dir = dir("corpus").join(target);
    let entries = fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// Calls `entry` with every input in the target's corpus, and then with [`CASES`] mutated inputs.
pub fn all(target: &str, entry: fn(&[u8])) {
    let inputs = inputs(target);
    assert!(!inputs.is_empty(), "{target} has no inputs");
    for input in &inputs {
        entry(input);
    }
    let more = std::env::var("WISP_FUZZ_CASES").ok().map(|cases| cases.parse().expect("WISP_FUZZ_CASES is a number"));
    let config = Config { cases: more.unwrap_or(CASES), failure_persistence: None, ..Config::default() };
    let random = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = if more.is_some() { TestRunner::new(config) } else { TestRunner::new_with_rng(config, random) };
    let change = |(first, second, changes): &(Index, Index, Vec<Change>)| {
        let (mut input, other) = (first.get(&inputs).clone(), second.get(&inputs));
        changes.iter().for_each(|change| change.apply(&mut input, other));
        input
    };
    let outcome = runner.run(&(any::<Index>(), any::<Index>(), vec(change_of_one(), 1..8)), |choice| {
        entry(&change(&choice));
        Ok(())
    });
    match outcome {
        Ok(()) => {}
        Err(TestError::Fail(reason, choice)) => {
            let input: String = change(&choice).iter().map(|byte| format!("\\x{byte:02x}")).collect();
            panic!("{reason}; the input (for printf '%b' > fuzz/corpus/{target}/NAME) is\n{input}");
        }
        Err(TestError::Abort(reason)) => panic!("{reason}"),
    }
}

/// Checks that each target has a corpus, a program and an entry in `fuzz/Cargo.toml`.
pub fn are_complete(targets: &[&str]) {
    let names = |name: &str| {
        let entries = fs::read_dir(dir(name)).unwrap();
        let mut names: Vec<String> = entries.map(|entry| stem(&entry.unwrap().path())).collect();
        names.sort();
        names
    };
    let mut targets: Vec<String> = targets.iter().map(|name| name.to_string()).collect();
    targets.sort();
    assert_eq!(names("corpus"), targets);
    assert_eq!(names("fuzz_targets"), targets);
    let manifest = fs::read_to_string(dir("Cargo.toml")).unwrap();
    for target in targets {
        assert!(
            manifest.contains(&format!("path = \"fuzz_targets/{target}.rs\"")),
            "{target} is not in fuzz/Cargo.toml"
        );
    }
}

fn stem(path: &std::path::Path) -> String {
    path.file_stem().unwrap().to_str().unwrap().to_string()
}

#[derive(Debug, Clone)]
enum Change {
    Set(Index, u8),
    Flip(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index, u8),
    Repeat(Index, u8),
    Splice(Index),
    Cut(Index),
}

fn change_of_one() -> impl Strategy<Value = Change> {
    let byte = prop_oneof![any::<u8>(), Just(0), Just(0xff), Just(0x7f), Just(0x80)];
    prop_oneof![
        4 => (any::<Index>(), byte).prop_map(|(at, value)| Change::Set(at, value)),
        4 => (any::<Index>(), 0_u8..8).prop_map(|(at, bit)| Change::Flip(at, bit)),
        2 => (any::<Index>(), vec(any::<u8>(), 1..8)).prop_map(|(at, bytes)| Change::Insert(at, bytes)),
        2 => (any::<Index>(), 1_u8..32).prop_map(|(at, count)| Change::Remove(at, count)),
        1 => (any::<Index>(), 1_u8..64).prop_map(|(at, count)| Change::Repeat(at, count)),
        1 => any::<Index>().prop_map(Change::Splice),
        1 => any::<Index>().prop_map(Change::Cut),
    ]
}

impl Change {
    fn apply(&self, input: &mut Vec<u8>, other: &[u8]) {
        // Add 1 for the position at the end, because `Index` needs at least one position.
        let place = |at: &Index, input: &[u8]| at.index(input.len() + 1);
        match self {
            Change::Set(at, value) => {
                let place = place(at, input);
                input.get_mut(place).into_iter().for_each(|byte| *byte = *value);
            }
            Change::Flip(at, bit) => {
                let place = place(at, input);
                input.get_mut(place).into_iter().for_each(|byte| *byte ^= 1 << bit);
            }
            Change::Insert(at, bytes) => {
                let place = place(at, input);
                drop(input.splice(place..place, bytes.iter().copied()));
            }
            Change::Remove(at, count) => {
                let place = place(at, input);
                input.drain(place..input.len().min(place + usize::from(*count)));
            }
            Change::Repeat(at, count) => {
                let place = place(at, input);
                let part = input[place..input.len().min(place + usize::from(*count))].to_vec();
                drop(input.splice(place..place, part));
            }
            Change::Splice(at) => {
                let place = place(at, input);
                input.truncate(place);
                input.extend(other.get(place..).unwrap_or_default());
            }
            Change::Cut(at) => input.truncate(place(at, input)),
        }
    }
}
