//! Virtual CPUs: what they can do ([`cpuid`]), how they start ([`registers`]), why they stop ([`exit`]), and the
//! thread in which each of them runs ([`vcpu`]). [`emulation`] and [`xstate`] are what differs where KVM emulates guest
//! kernels.

pub mod cpuid;
pub mod emulation;
pub mod exit;
pub mod gate;
pub mod registers;
pub mod state;
pub mod time;
pub mod vcpu;
pub mod xstate;
