//! Groups the limits of all figures, so that each limit is explained once.

use super::Shown;
use cloud::bench::bound::{Bound, By};
use cloud::bench::comparison::{Compared, ComparisonRow};

/// A limit and the figures that it bounds.
pub struct Limit<'a> {
    pub bound: &'a Bound,
    /// Measures, each followed by the types in parentheses unless the limit bounds all of its types.
    pub measures: Vec<String>,
}

/// Returns the limits of the types, then those of this host, each in the order of its first figure.
pub fn limits<'a>(shown: &'a Shown) -> Vec<Limit<'a>> {
    let mut limits: Vec<Limit> = Vec::new();
    for compared in &shown.comparison.measures {
        for bound in compared.entries.iter().filter_map(bound) {
            let is_same = |limit: &&mut Limit| limit.bound.by == bound.by && limit.bound.limit == bound.limit;
            let place = place(shown, compared, bound);
            match limits.iter_mut().find(is_same) {
                Some(limit) if limit.measures.last() == Some(&place) => {}
                Some(limit) => limit.measures.push(place),
                None => limits.push(Limit { bound, measures: vec![place] }),
            }
        }
    }
    limits.sort_by_key(|limit| limit.bound.by == By::Host);
    limits
}

impl Limit<'_> {
    pub fn sentence(&self) -> String {
        let whose = match self.bound.by {
            By::Type => "Limit of the type",
            By::Host => "Limit of this host",
        };
        format!("{whose}: {}, in {}.", self.bound.limit, self.measures.join(", "))
    }
}

fn bound<'a>(entry: &'a ComparisonRow) -> Option<&'a Bound> {
    entry.summary.as_ref().map(|(_, bound)| bound)
}

fn place(shown: &Shown, compared: &Compared, of: &Bound) -> String {
    let measured = || compared.entries.iter().filter_map(|entry| Some((entry.subject, bound(entry)?)));
    let is_same = |other: &Bound| other.by == of.by && other.limit == of.limit;
    let name = compared.measure.name;
    if measured().all(|(_, bound)| is_same(bound)) {
        return name.into();
    }
    let types: Vec<&str> = measured().filter(|(_, bound)| is_same(bound)).map(|(index, _)| shown.name(index)).collect();
    format!("{name} ({})", types.join(", "))
}

#[cfg(test)]
mod tests {
    use super::super::shown::tests::{report, samples, shown};
    use super::*;

    #[test]
    fn each_limit_is_listed_once() {
        let sentences = |report: &_| limits(&shown(report)).iter().map(Limit::sentence).collect::<Vec<_>>();
        let mut report = report();
        let of_type = "Limit of the type: 2 vCPUs, in command.";
        assert_eq!(sentences(&report), [of_type, "Limit of this host: speed of one CPU, in integer-one."]);
        report.types[0].results[0].samples = samples(&[100.0, 200.0]);
        let unsteady = "Limit of this host: unsteady CPU speed, in integer-one (t3.micro).";
        let one_cpu = "Limit of this host: speed of one CPU, in integer-one (m5.large).";
        assert_eq!(sentences(&report), [of_type, unsteady, one_cpu]);
    }
}
