//! A model-based test of the control plane: random commands against the services, over a real store and a host in
//! memory.
//!
//! [`reference`] is EC2's view of instances, volumes, snapshots, images and addresses. [`system`] carries out each
//! command with the services, and compares. [`host`] is the host in memory. It can fail a call, or end the command
//! before or after a call as if the process had been killed. The next command must then find all resources as they were
//! before the command or as they are after it. [`many`] reconciles many running instances.

mod host;
mod invariants;
mod many;
mod reference;
mod system;

use proptest::test_runner::{Config, RngSeed};
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest};

use system::System;

/// Number of command sequences.
const SEQUENCES: u32 = 2000;
/// Maximum number of commands in a sequence.
const COMMANDS: usize = 20;

#[test]
fn interrupted_commands_lose_nothing() {
    // The seed is fixed, so that the test has the same result each time. `PROPTEST_RNG_SEED` chooses another one.
    let seed = std::env::var("PROPTEST_RNG_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(SEQUENCES);
    let config = Config { cases, rng_seed: RngSeed::Fixed(seed), failure_persistence: None, ..Config::default() };
    let sequences = reference::Reference::sequential_strategy(1..COMMANDS);
    proptest::test_runner::TestRunner::new(config.clone())
        .run(&sequences, |(state, commands, seen)| {
            System::test_sequential(config.clone(), state, commands, seen);
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
}
