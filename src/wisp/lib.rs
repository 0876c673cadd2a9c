//! Wisp: EC2 on one Linux machine. Instances are Linux guests under KVM, each in its own VMM process.
//!
//! Each module depends only on those below it:
//!
//! - [`cli`]: one file a subcommand;
//! - [`cloud`]: the operations behind the subcommands;
//! - [`store`]: the persistent state;
//! - [`host`]: the host's side of an instance;
//! - [`guest`]: the client of the guest's agent;
//! - [`ec2`]: the rules of EC2, without I/O;
//! - [`vmm`]: the virtual machine monitor;
//! - [`unix_socket`]: Unix sockets at paths of any length, used by all.
//!
//! `docs/architecture.md` follows one boot through the modules.

pub mod cli;

#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
