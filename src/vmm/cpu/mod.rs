//! Virtual CPUs: what they can do ([`cpuid`]), how they start ([`registers`]), why they stop ([`exit`]), and the
//! thread in which each of them runs ([`vcpu`]), for as long as it may ([`quota`]). [`emulation`] and [`xstate`] are what differs where KVM emulates guest
//! kernels.

pub(super) mod cpu_timer;
pub mod cpuid;
pub mod emulation;
pub mod exit;
pub mod gate;
pub mod kept_balance;
pub mod quota;
pub mod registers;
pub mod state;
pub mod time;
pub mod vcpu;
pub mod xstate;
