//! Errors of operations on instances, volumes and images.

use std::io;
use std::path::PathBuf;

use super::embedded::EmbeddedError;
use super::image::ImageError;
use super::import::ImportError;
use disk::disk_image;
use ec2::{Ec2Error, ErrorCode, InstanceId};
use node::home::HomeError;
use node::instance::{Failure, MachineError};
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
    #[error(transparent)]
    Machine(MachineError),
    /// A hibernated instance could not be resumed. It can be started again once the cause is fixed.
    #[error("{source}. The saved memory is kept. To boot without it, use `wisp start {instance} --cold`")]
    NotResumed { instance: InstanceId, source: Box<CloudError> },
    #[error("cannot create the template: {0}")]
    NotWarm(String),
}

impl From<MachineError> for CloudError {
    fn from(error: MachineError) -> CloudError {
        match error.failure {
            Failure::Passt(error) => {
                let hint = "Use `--network none`, or run `wisp doctor` to check the host.";
                CloudError::refused(ErrorCode::Unsupported, format!("{error}."), Some(hint.into()))
            }
            _ => CloudError::Machine(error),
        }
    }
}

impl CloudError {
    /// Returns a one-line hint for some errors whose message does not say what to do.
    pub fn hint(&self) -> Option<String> {
        match self {
            CloudError::Ec2(refusal) => refusal.hint().map(str::to_owned),
            CloudError::Machine(error) => error.hint(),
            _ => None,
        }
    }

    /// Returns true if the error can mean that the instance's VMM or guest has ended.
    pub(super) fn is_lost_vmm(&self) -> bool {
        matches!(self, CloudError::Machine(error) if error.is_lost_vmm())
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
