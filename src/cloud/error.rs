//! Errors of operations on instances, volumes and images.

use std::io;
use std::path::PathBuf;

use super::image::ImageError;
use super::import::ImportError;
use super::run::ConsoleTail;
use crate::ec2::{Ec2Error, ErrorCode, InstanceId};
use crate::guest;
use crate::host::disk_image;
use crate::host::home::HomeError;
use crate::store::StoreError;
use crate::vmm::control::ClientError;

/// An error of an operation on an instance, a volume or an image.
#[derive(Debug, thiserror::Error)]
pub enum CloudError {
    /// EC2's rules do not allow the operation.
    #[error(transparent)]
    Ec2(#[from] Ec2Error),
    /// The data directory is unusable.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// The store is unusable.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The image is unusable.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A disk image cannot be created or read.
    #[error(transparent)]
    DiskImage(#[from] disk_image::ImageError),
    /// An image cannot be imported, exported or verified.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// A key pair could not be created or written.
    #[error(transparent)]
    Key(#[from] crate::host::key::KeyError),
    /// A file operation on an instance or a volume failed.
    #[error("{} cannot be {action}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The failed operation, as a participle.
        action: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// The VMM process could not be started.
    #[error("{instance}: the VMM's process cannot be started: {source}")]
    Spawn {
        /// The instance.
        instance: InstanceId,
        /// The cause.
        source: io::Error,
    },
    /// The VMM could not build the VM, or refused a request.
    #[error("{instance} cannot start: {why}")]
    Refused {
        /// The instance.
        instance: InstanceId,
        /// The VMM's reason.
        why: String,
    },
    /// The VMM did not complete the operation.
    #[error("{why}")]
    NotDone {
        /// The instance.
        instance: InstanceId,
        /// The reason.
        why: String,
    },
    /// A hibernated instance could not be resumed. It can be started again once the cause is fixed.
    #[error("{source}. Its memory is kept; `wisp start {instance} --cold` boots it without")]
    NotResumed {
        /// The instance.
        instance: InstanceId,
        /// The cause.
        source: Box<CloudError>,
    },
    /// A guest for a template did not start.
    #[error(transparent)]
    Run(#[from] super::run::RunError),
    /// No template could be created.
    #[error("the template cannot be made: {0}")]
    NotWarm(String),
    /// The VMM does not respond.
    #[error("{instance}: {source}")]
    Control {
        /// The instance.
        instance: InstanceId,
        /// The cause.
        source: ClientError,
    },
    /// The guest agent could not complete the operation.
    #[error("{instance}: {source}")]
    Guest {
        /// The instance.
        instance: InstanceId,
        /// The cause.
        source: guest::Error,
    },
    /// The guest ended before its agent was ready.
    #[error("{instance}: {end}, before its agent was ready{console}")]
    EndedEarly {
        /// The instance.
        instance: InstanceId,
        /// The way in which the guest ended.
        end: String,
        /// The last console lines.
        console: ConsoleTail,
    },
    /// The guest agent did not become ready in time.
    #[error(
        "{instance} is {state}, but its agent was not ready after {seconds} s{console}\nIt is still booting: `wisp console {instance} --follow` shows it"
    )]
    NotReady {
        /// The instance.
        instance: InstanceId,
        /// The instance's state.
        state: &'static str,
        /// The elapsed time.
        seconds: u64,
        /// The last console lines.
        console: ConsoleTail,
    },
}

impl CloudError {
    /// Returns a one-line hint for the user, if the message itself does not say what to do.
    pub fn hint(&self) -> Option<String> {
        match self {
            CloudError::Ec2(refusal) => refusal.hint(),
            CloudError::Control { instance, source } if source.is_timeout() => {
                Some(format!("Its VMM is there and does not answer. `wisp stop --force {instance}` ends it."))
            }
            _ => None,
        }
    }

    /// Returns true if the cause is that the instance's VMM or guest has ended.
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

    /// Creates an error for an operation that EC2's rules do not allow.
    pub(super) fn refused(code: ErrorCode, what: impl Into<String>, hint: Option<String>) -> CloudError {
        Ec2Error::refused(code, what, hint).into()
    }

    /// Returns a closure that converts an I/O error on `path`. `action` is the failed operation, as a participle.
    pub(super) fn file(path: impl Into<PathBuf>, action: &'static str) -> impl FnOnce(io::Error) -> CloudError {
        let path = path.into();
        move |source| CloudError::File { path, action, source }
    }
}
