//! Wisp: EC2 on one Linux machine. Instances are Linux guests under KVM, each in its own VMM process.
//!
//! [`cli`] has one file per subcommand. `docs/architecture.md` shows the other crates of the workspace and follows one
//! launch through them.

pub mod cli;

#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
