use super::gate::Gate;
use super::state::StateError;

#[test]
fn save_at_stopped_gate_fails() {
    let gate = Gate::new(1);
    gate.stop();
    gate.leave();
    assert!(matches!(gate.save(), Err(StateError::Stopping)));
}

#[test]
fn save_without_state_of_ended_vcpu_fails() {
    let gate = Gate::new(1);
    gate.leave();
    assert!(matches!(gate.save(), Err(StateError::Stopping)));
}
