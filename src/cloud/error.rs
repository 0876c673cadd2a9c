//! Errors of operations on instances, volumes and images.

use disk::disk_image;
use ec2::{Ec2Error, ErrorCode, InstanceId};
use node::error::NodeError;
use node::home::HomeError;
use node::instance::{Failure, MachineError};
use std::io;
use std::path::PathBuf;
use store::StoreError;

#[derive(Debug, thiserror::Error)]
pub enum CloudError {
    #[error(transparent)]
    Ec2(#[from] Ec2Error),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Key(#[from] node::key::KeyError),
    #[error(transparent)]
    Node(NodeError),
    /// A hibernated instance could not be resumed. It can be started again once the cause is fixed.
    #[error("{source}. The saved memory is kept. To boot without it, use `wisp start {instance} --cold`")]
    NotResumed { instance: InstanceId, source: Box<CloudError> },
    #[error("cannot create the template: {0}")]
    NotWarm(String),
    /// The command that waited for a template gets the error of the one that made it.
    #[error("another launch of this image and size failed to boot the first guest: {0}")]
    FirstBoot(String),
}

impl From<NodeError> for CloudError {
    fn from(error: NodeError) -> CloudError {
        match error {
            NodeError::Machine(MachineError { failure: Failure::Passt(error), .. }) => {
                let hint = "Use `--network none`, or run `wisp doctor` to check the host.";
                CloudError::refused(ErrorCode::Unsupported, format!("{error}."), Some(hint.into()))
            }
            NodeError::Driver { instance, action } => {
                let what = format!("The guest of {instance} could not {action} the disk's driver.");
                let hint = "Check whether the guest is still using the disk. `--force` detaches it anyway.";
                CloudError::refused(ErrorCode::IncorrectState, what, Some(hint.into()))
            }
            error => CloudError::Node(error),
        }
    }
}

impl From<MachineError> for CloudError {
    fn from(error: MachineError) -> CloudError {
        NodeError::from(error).into()
    }
}

impl From<HomeError> for CloudError {
    fn from(error: HomeError) -> CloudError {
        NodeError::from(error).into()
    }
}

impl From<disk_image::ImageError> for CloudError {
    fn from(error: disk_image::ImageError) -> CloudError {
        NodeError::from(error).into()
    }
}

impl CloudError {
    /// Returns a one-line hint for some errors whose message does not say what to do.
    pub fn hint(&self) -> Option<String> {
        match self {
            CloudError::Ec2(refusal) => refusal.hint().map(str::to_owned),
            CloudError::Node(NodeError::Machine(error)) => error.hint(),
            _ => None,
        }
    }

    /// Returns true if the error can mean that the instance's VMM or guest has ended.
    pub(super) fn is_lost_vmm(&self) -> bool {
        matches!(self, CloudError::Node(NodeError::Machine(error)) if error.is_lost_vmm())
    }

    /// Returns true if the VMM reported that it did not carry out a request.
    pub(super) fn is_refusal_of_vmm(&self) -> bool {
        matches!(self, CloudError::Node(NodeError::Machine(MachineError { failure: Failure::Refused(_), .. })))
    }

    pub(super) fn refused(code: ErrorCode, what: impl Into<String>, hint: Option<String>) -> CloudError {
        Ec2Error::refused(code, what, hint).into()
    }

    /// Returns a closure that converts an I/O error on `path`. `action` is a verb, such as `read`.
    pub(super) fn file(path: impl Into<PathBuf>, action: &'static str) -> impl FnOnce(io::Error) -> CloudError {
        move |source| NodeError::file(path, action)(source).into()
    }
}
