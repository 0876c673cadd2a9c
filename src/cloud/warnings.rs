//! Warnings: sentences about work that the user did not ask for, such as cleaning up after an interrupted command.

use super::error::CloudError;
use store::StoreError;

/// A result with warnings for the user, such as that a guest has no outbound connectivity.
#[derive(Debug, Default)]
#[must_use]
pub struct Outcome<T> {
    pub value: T,
    pub warnings: Warnings,
}

impl<T> Outcome<T> {
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Outcome<U> {
        Outcome { value: change(self.value), warnings: self.warnings }
    }
}

impl<T> From<T> for Outcome<T> {
    fn from(value: T) -> Outcome<T> {
        Outcome { value, warnings: Warnings::default() }
    }
}

/// The warnings of an operation, without duplicates.
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

impl From<Option<String>> for Warnings {
    fn from(warning: Option<String>) -> Warnings {
        Warnings(warning.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_record_gets_one_warning_for_all_failed_steps() {
        let failed = || {
            let source = serde_json::from_str::<u8>("{").unwrap_err();
            Err(CloudError::Store(StoreError::Record { table: "volumes", key: "vol-1".into(), source }))
        };
        let mut warnings = Warnings::default();
        warnings.push_failed("cannot check the volumes", failed());
        warnings.push_failed("cannot remove the files of deleted volumes", failed());
        let warnings: Vec<String> = warnings.into_iter().collect();
        assert!(matches!(&warnings[..], [one] if one.contains("damaged record (volumes vol-1)")), "{warnings:?}");
    }

    #[test]
    fn mapped_outcome_keeps_warnings() {
        let mut outcome = Outcome::from(1);
        outcome.warnings.push("no uplink");
        let Outcome { value, warnings } = outcome.map(|value| value + 1);
        assert_eq!((value, warnings.into_iter().collect::<Vec<_>>()), (2, vec!["no uplink".to_string()]));
    }
}
