//! Opaque handles of a node's resources.

use std::any::Any;

/// A resource of a node, such as a lock or a temporary directory, which is released on drop. Only the node that created
/// the guard knows what is in it.
#[derive(Debug)]
pub struct Guard(Box<dyn Any + Send>);

impl Guard {
    pub fn new(resource: impl Any + Send) -> Guard {
        Guard(Box::new(resource))
    }

    /// Returns the resource, or the guard itself if the resource has another type.
    pub fn downcast<T: Any>(self) -> Result<T, Guard> {
        self.0.downcast().map(|resource| *resource).map_err(Guard)
    }

    pub fn downcast_ref<T: Any>(&self) -> Option<&T> {
        self.0.downcast_ref()
    }
}
