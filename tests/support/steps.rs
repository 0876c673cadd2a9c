//! Steps of a long scenario. A failed step does not hide the results of the following ones.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Collects the failures of a scenario's steps. When it is dropped, the test fails if a step has failed.
#[derive(Debug, Default)]
pub struct Steps {
    count: usize,
    failures: Vec<String>,
}

impl Steps {
    pub fn new() -> Steps {
        Steps::default()
    }

    /// Runs a step that no later step needs. If it panics, the scenario continues.
    pub fn run(&mut self, name: &str, step: impl FnOnce()) {
        self.attempt(name, step);
    }

    /// Runs a step that later steps need, and returns its result.
    ///
    /// # Panics
    ///
    /// Panics with all failures so far if the step does, which ends the scenario.
    #[track_caller]
    pub fn require<T>(&mut self, name: &str, step: impl FnOnce() -> T) -> T {
        self.attempt(name, step).unwrap_or_else(|| {
            let report = self.report();
            self.failures.clear();
            panic!("{report}")
        })
    }

    fn attempt<T>(&mut self, name: &str, step: impl FnOnce() -> T) -> Option<T> {
        self.count += 1;
        match catch_unwind(AssertUnwindSafe(step)) {
            Ok(result) => Some(result),
            Err(panic) => {
                self.failures.push(format!("{name}: {}", message(&*panic)));
                None
            }
        }
    }

    fn report(&self) -> String {
        format!("{} of {} steps failed:\n{}", self.failures.len(), self.count, self.failures.join("\n"))
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        if self.failures.is_empty() {
            return;
        }
        let report = self.report();
        if std::thread::panicking() {
            eprintln!("{report}");
        } else {
            panic!("{report}");
        }
    }
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("a panic without a message")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panic_message(scenario: impl FnOnce()) -> String {
        message(&*catch_unwind(AssertUnwindSafe(scenario)).unwrap_err()).to_string()
    }

    #[test]
    fn all_failed_steps_are_reported() {
        let mut last = false;
        let report = panic_message(|| {
            let mut steps = Steps::new();
            steps.run("first", || panic!("one"));
            assert_eq!(steps.require("second", || 2), 2);
            steps.run("third", || panic!("the reason is {}", 3));
            steps.run("fourth", || last = true);
        });
        assert_eq!(report, "2 of 4 steps failed:\nfirst: one\nthird: the reason is 3");
        assert!(last);
    }

    #[test]
    fn failed_requirement_ends_scenario_with_all_failures() {
        let mut last = false;
        let report = panic_message(|| {
            let mut steps = Steps::new();
            steps.run("first", || panic!("one"));
            steps.require("second", || panic!("two"));
            last = true;
        });
        assert_eq!(report, "2 of 2 steps failed:\nfirst: one\nsecond: two");
        assert!(!last);
    }

    #[test]
    fn scenario_without_failures_passes() {
        let mut steps = Steps::new();
        steps.run("only", || assert_eq!(1 + 1, 2));
    }

    #[test]
    fn panic_between_steps_is_kept() {
        let message = panic_message(|| {
            let mut steps = Steps::new();
            steps.run("first", || panic!("one"));
            panic!("outside of a step");
        });
        assert_eq!(message, "outside of a step");
    }
}
