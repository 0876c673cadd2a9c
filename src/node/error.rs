//! Errors of operations on this host.

use std::io;
use std::path::PathBuf;

use crate::embedded::EmbeddedError;
use crate::home::HomeError;
use crate::image::ImageError;
use crate::import::ImportError;
use crate::instance::MachineError;
use disk::disk_image;
use ec2::InstanceId;

#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error(transparent)]
    Home(#[from] HomeError),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Embedded(#[from] EmbeddedError),
    #[error(transparent)]
    Import(#[from] ImportError),
    #[error(transparent)]
    DiskImage(#[from] disk_image::ImageError),
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        path: PathBuf,
        /// Verb for the message, such as `read`.
        action: &'static str,
        source: io::Error,
    },
    #[error("the guest of {instance} could not {action} the disk's driver")]
    Driver {
        instance: InstanceId,
        /// `bind` or `unbind`.
        action: &'static str,
    },
    #[error("a handle of another node cannot be used")]
    ForeignHandle,
    /// Networks are not available for a reason that `wisp doctor` explains.
    #[error("{0}")]
    Network(String),
}

impl NodeError {
    /// Returns a closure that converts an I/O error on `path`. `action` is a verb, such as `read`.
    pub fn file(path: impl Into<PathBuf>, action: &'static str) -> impl FnOnce(io::Error) -> NodeError {
        let path = path.into();
        move |source| NodeError::File { path, action, source }
    }
}
