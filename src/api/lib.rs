//! The EC2-compatible API: service models, wire protocols, signatures and handlers.
//!
//! A **service model** (`model`) describes the input and output of each operation. It is data from botocore, so the wire
//! formats need no code per operation: `codec` converts a request to a JSON value with the members of the operation's
//! input shape, and a JSON value with the members of its output shape to a response.

pub mod access_key;
pub mod actions;
pub mod clients;
pub mod codec;
pub mod error;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod model;
pub mod server;
pub mod service;
pub mod sigv4;
