//! Why something could not be done to an instance, a volume or an image.

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

/// The causes.
#[derive(Debug, thiserror::Error)]
pub enum CloudError {
    /// EC2's rules refuse it.
    #[error(transparent)]
    Ec2(#[from] Ec2Error),
    /// The data directory is unusable.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// The store is.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The image cannot be used.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A disk image cannot be made or read.
    #[error(transparent)]
    DiskImage(#[from] disk_image::ImageError),
    /// An image cannot be imported, exported or checked.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// A key pair could not be made or written.
    #[error(transparent)]
    Key(#[from] crate::host::key::KeyError),
    /// A file of an instance or a volume.
    #[error("{} cannot be {action}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What was to be done with it, as a participle.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The monitor's process could not be started.
    #[error("{instance}: the monitor's process cannot be started: {source}")]
    Spawn {
        /// For which instance.
        instance: InstanceId,
        /// Why.
        source: io::Error,
    },
    /// The monitor could not build the machine.
    #[error("{instance} cannot start: {why}")]
    Refused {
        /// Which instance.
        instance: InstanceId,
        /// What the monitor said.
        why: String,
    },
    /// The monitor could not do it; the machine runs on.
    #[error("{why}")]
    NotDone {
        /// Which instance.
        instance: InstanceId,
        /// What the monitor said.
        why: String,
    },
    /// A hibernated instance could not go on; it still can, if that is mended.
    #[error("{source}. Its memory is kept; `wisp start {instance} --cold` boots it without")]
    NotResumed {
        /// Which instance.
        instance: InstanceId,
        /// Why.
        source: Box<CloudError>,
    },
    /// A guest for a warm snapshot did not come up.
    #[error(transparent)]
    Run(#[from] super::run::RunError),
    /// There is no warm snapshot.
    #[error("the warm snapshot cannot be made: {0}")]
    NotWarm(String),
    /// The monitor does not answer.
    #[error("{instance}: {source}")]
    Control {
        /// Whose monitor.
        instance: InstanceId,
        /// What happened.
        source: ClientError,
    },
    /// The guest's agent could not do it.
    #[error("{instance}: {source}")]
    Guest {
        /// Whose guest.
        instance: InstanceId,
        /// What happened.
        source: guest::Error,
    },
    /// The guest ended before its agent was ready.
    #[error("{instance}: {end}, before its agent was ready{console}")]
    EndedEarly {
        /// Which instance.
        instance: InstanceId,
        /// How it ended.
        end: String,
        /// Its last console lines.
        console: ConsoleTail,
    },
    /// The guest's agent did not become ready in time.
    #[error(
        "{instance} is {state}, but its agent was not ready after {seconds} s{console}\nIt goes on booting: `wisp console {instance} --follow` shows it"
    )]
    NotReady {
        /// Which instance.
        instance: InstanceId,
        /// Its state.
        state: &'static str,
        /// How long was waited.
        seconds: u64,
        /// Its last console lines.
        console: ConsoleTail,
    },
}

impl CloudError {
    /// What to do about it, as one line; none where the sentence says it all.
    pub fn hint(&self) -> Option<String> {
        match self {
            CloudError::Ec2(refusal) => refusal.hint(),
            CloudError::Control { instance, source } if source.is_timeout() => {
                Some(format!("Its monitor is there and does not answer. `wisp stop --force {instance}` ends it."))
            }
            _ => None,
        }
    }

    /// Returns whether the cause is that the instance's VMM, or its guest, has ended.
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

    /// EC2's rules refuse it, for a reason of its own.
    pub(super) fn refused(code: ErrorCode, what: impl Into<String>, hint: Option<String>) -> CloudError {
        Ec2Error::refused(code, what, hint).into()
    }

    /// A file could not be `action`: a participle.
    pub(super) fn file(path: impl Into<PathBuf>, action: &'static str) -> impl FnOnce(io::Error) -> CloudError {
        let path = path.into();
        move |source| CloudError::File { path, action, source }
    }
}
