//! Errors of operations on instances, volumes and images.

use std::io;
use std::path::PathBuf;

use super::console_tail::ConsoleTail;
use super::embedded::EmbeddedError;
use super::image::ImageError;
use super::import::ImportError;
use disk::disk_image;
use ec2::{Ec2Error, ErrorCode, InstanceId};
use machine::control::ClientError;
use node::guest;
use node::home::HomeError;
use store::StoreError;

#[derive(Debug, thiserror::Error)]
pub enum CloudError {
    #[error(transparent)]
    Ec2(#[from] Ec2Error),
    #[error(transparent)]
    Home(#[from] HomeError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Embedded(#[from] EmbeddedError),
    #[error(transparent)]
    DiskImage(#[from] disk_image::ImageError),
    #[error(transparent)]
    Import(#[from] ImportError),
    #[error(transparent)]
    Key(#[from] node::key::KeyError),
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        path: PathBuf,
        /// Verb for the message, such as `read`.
        action: &'static str,
        source: io::Error,
    },
    #[error("{instance}: cannot start the VMM: {source}")]
    Spawn { instance: InstanceId, source: io::Error },
    /// The VMM could not build the VM, or refused a request.
    #[error("{instance}: {why}")]
    Refused { instance: InstanceId, why: String },
    #[error("{instance}: {why}")]
    NotDone { instance: InstanceId, why: String },
    /// A hibernated instance could not be resumed. It can be started again once the cause is fixed.
    #[error("{source}. The saved memory is kept. To boot without it, use `wisp start {instance} --cold`")]
    NotResumed { instance: InstanceId, source: Box<CloudError> },
    /// The guest for a new template did not start.
    #[error(transparent)]
    Run(#[from] super::run::RunError),
    #[error("cannot create the template: {0}")]
    NotWarm(String),
    #[error("{instance}: {source}")]
    Control { instance: InstanceId, source: ClientError },
    #[error("{instance}: {source}")]
    Guest { instance: InstanceId, source: guest::Error },
    #[error("{instance}: {end} before its agent was ready{console}")]
    EndedEarly { instance: InstanceId, end: String, console: ConsoleTail },
    #[error(
        "{instance} is {state}, but its agent was not ready after {seconds} s{console}\n\
         The guest may still be booting. Watch its console with `wisp console {instance} --follow`"
    )]
    NotReady { instance: InstanceId, state: &'static str, seconds: u64, console: ConsoleTail },
}

impl CloudError {
    /// Returns a one-line hint for some errors whose message does not say what to do.
    pub fn hint(&self) -> Option<String> {
        match self {
            CloudError::Ec2(refusal) => refusal.hint(),
            CloudError::Control { instance, source } if source.is_timeout() => {
                Some(format!("The VMM is running but does not respond. Kill it with `wisp stop --force {instance}`."))
            }
            _ => None,
        }
    }

    /// Returns true if the error can mean that the instance's VMM or guest has ended.
    pub(super) fn is_lost_vmm(&self) -> bool {
        match self {
            CloudError::Control { source, .. } => source.is_gone(),
            CloudError::Guest { source, .. } => {
                matches!(
                    source,
                    guest::Error::GuestGone | guest::Error::NotListening { .. } | guest::Error::Connect { .. }
                )
            }
            _ => false,
        }
    }

    pub(super) fn refused(code: ErrorCode, what: impl Into<String>, hint: Option<String>) -> CloudError {
        Ec2Error::refused(code, what, hint).into()
    }

    /// Returns a closure that converts an I/O error on `path`. `action` is a verb, such as `read`.
    pub(super) fn file(path: impl Into<PathBuf>, action: &'static str) -> impl FnOnce(io::Error) -> CloudError {
        let path = path.into();
        move |source| CloudError::File { path, action, source }
    }
}
