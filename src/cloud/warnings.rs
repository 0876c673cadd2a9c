//! Warnings: sentences about work that the user did not ask for, such as cleaning up after an interrupted command.

use super::error::CloudError;
use store::StoreError;

/// Collects the warnings of an operation. They count even if the operation fails later.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Warnings(Vec<String>);

impl Warnings {
    /// Adds a warning, unless it is there already.
    pub fn push(&mut self, warning: impl Into<String>) {
        let warning = warning.into();
        if !self.0.contains(&warning) {
            self.0.push(warning);
        }
    }

    /// Turns a failure into a warning, because the user did not ask for this work. `what` says what failed.
    pub fn push_failed(&mut self, what: &str, result: Result<(), CloudError>) {
        match result {
            Ok(()) => {}
            // A damaged record gets one warning, however many steps fail because of it.
            Err(CloudError::Store(error @ StoreError::Record { .. })) => self.push(error.to_string()),
            Err(error) => self.push(format!("{what}: {error}")),
        }
    }
}

impl Extend<String> for Warnings {
    fn extend<I: IntoIterator<Item = String>>(&mut self, warnings: I) {
        warnings.into_iter().for_each(|warning| self.push(warning));
    }
}

impl IntoIterator for Warnings {
    type Item = String;
    type IntoIter = std::vec::IntoIter<String>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}
