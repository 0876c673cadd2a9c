//! The table of actions in `docs/api.md`, generated from the dispatch table.

use super::{Entry, entry};
use crate::model;

/// Returns the table: a row for each state of the actions of a service.
pub fn markdown() -> String {
    let mut rows = String::from("| service | state | actions |\n|---|---|---|\n");
    for name in model::SIGNING_NAMES {
        let Some(service) = model::by_signing_name(name) else { continue };
        let (mut served, mut empty, mut others) = (Vec::new(), Vec::new(), Vec::new());
        for (action, _) in service.operations() {
            match entry(name, action) {
                Some(Entry::Handler(_)) => served.push(action),
                Some(Entry::EmptyList(_)) => empty.push(action),
                Some(Entry::Unsupported(_)) | None => others.push(action),
            }
        }
        for (state, actions) in [("served", served), ("always an empty list", empty), ("refused", others)] {
            if !actions.is_empty() {
                rows += &format!("| {name} | {state} | {} |\n", actions.join(", "));
            }
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documented_table_is_current() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/api.md");
        let page = std::fs::read_to_string(path).unwrap();
        let (start, end) = ("<!-- actions -->\n", "<!-- end of actions -->\n");
        let (before, rest) = page.split_once(start).unwrap();
        let (table, after) = rest.split_once(end).unwrap();
        if std::env::var_os("WISP_WRITE_GOLDEN").is_some() {
            std::fs::write(path, format!("{before}{start}{}{end}{after}", markdown())).unwrap();
            return;
        }
        assert_eq!(table, markdown(), "run this test with WISP_WRITE_GOLDEN=1 to write the table");
    }
}
