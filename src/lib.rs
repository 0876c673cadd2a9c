//! Wisp: EC2 on one Linux machine. Real Linux guests under KVM, in a monitor of its own, with the nouns and manners
//! of Amazon EC2.
//!
//! The library behind the binary, room by room; arrows point down only:
//!
//! - [`cli`]: one file a subcommand;
//! - [`cloud`]: what the subcommands do;
//! - [`ec2`]: EC2's rules, pure;
//! - [`host`]: the host's side of an instance;
//! - [`guest`]: the host's end of the guest's agent;
//! - [`vmm`]: the virtual machine monitor;
//! - [`unix_socket`]: Unix sockets at paths of any length, for all of them.
//!
//! `docs/architecture.md` tells the story of one boot through them.

pub mod cli;
pub mod cloud;
pub mod ec2;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod guest;
pub mod host;
pub mod store;
pub mod unix_socket;
pub mod vmm;
