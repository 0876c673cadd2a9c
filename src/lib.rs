//! Wisp: EC2 on one Linux machine.
pub mod vmm;
