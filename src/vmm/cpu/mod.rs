//! Virtual CPUs: features ([`cpuid`]), initial state ([`registers`]), saved state ([`state`]), exits ([`exit`]),
//! threads ([`vcpu`]) and CPU quota ([`quota`]). [`emulation`] and [`xstate`] are specific to software KVM.

pub(super) mod cpu_timer;
pub mod cpuid;
pub mod emulation;
pub mod exit;
pub mod gate;
#[cfg(test)]
mod gate_tests;
mod msrs;
pub mod quota;
pub mod registers;
pub mod state;
pub mod time;
pub mod vcpu;
pub mod xstate;
