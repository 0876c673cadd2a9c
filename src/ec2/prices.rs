//! Prices of instance types in US dollars per hour.
//!
//! The embedded list has AWS's public on-demand prices for Linux in us-east-1; its first line states their date. Prices
//! change and differ by region, so users can provide a list of their own in the same format.

use std::collections::BTreeMap;
use std::sync::LazyLock;

const CSV: &str = include_str!("instance-prices.csv");
/// Date of the embedded list.
pub const LIST_DATE: &str = "2026-07-20";
/// Region of the embedded list.
pub const LIST_REGION: &str = "us-east-1";
/// Hours of a month in AWS's estimates.
const HOURS_PER_MONTH: f64 = 730.0;
/// Maximum price per hour. The most expensive type costs a few hundred dollars.
const LIMIT: f64 = 1e6;

static EMBEDDED: LazyLock<PriceList> =
    LazyLock::new(|| PriceList::parse(CSV).expect("a unit test parses the embedded list"));

/// Prices of instance types in US dollars per hour, by name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PriceList {
    prices: BTreeMap<String, f64>,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PriceError {
    #[error("line {0} is not TYPE,DOLLARS")]
    Fields(usize),
    #[error("line {line}: the price of {name} must be a non-negative number of dollars, not {value:?}")]
    Amount { line: usize, name: String, value: String },
    #[error("the list has no prices")]
    Empty,
}

impl PriceList {
    pub fn embedded() -> &'static PriceList {
        &EMBEDDED
    }

    /// Parses lines of `TYPE,DOLLARS`. Ignores empty lines, lines that start with `#`, and a header that starts with
    /// `name`. If a type occurs twice, its last price is used.
    pub fn parse(csv: &str) -> Result<PriceList, PriceError> {
        let mut prices = BTreeMap::new();
        for (index, text) in csv.lines().enumerate() {
            let (line, text) = (index + 1, text.trim());
            if text.is_empty() || text.starts_with('#') || text.starts_with("name,") {
                continue;
            }
            let (name, value) = text.split_once(',').ok_or(PriceError::Fields(line))?;
            let (name, value) = (name.trim(), value.trim());
            if name.is_empty() {
                return Err(PriceError::Fields(line));
            }
            let invalid = || PriceError::Amount { line, name: name.into(), value: value.into() };
            prices.insert(name.to_owned(), amount(value).ok_or_else(invalid)?);
        }
        if prices.is_empty() { Err(PriceError::Empty) } else { Ok(PriceList { prices }) }
    }

    pub fn find(&self, instance_type: &str) -> Option<f64> {
        self.prices.get(instance_type).copied()
    }

    /// Returns the price of an instance that runs for a month.
    pub fn monthly(&self, instance_type: &str) -> Option<f64> {
        Some(self.find(instance_type)? * HOURS_PER_MONTH)
    }
}

/// Parses an amount of dollars. Returns `None` if it is negative, not finite, or too large.
pub fn amount(text: &str) -> Option<f64> {
    text.parse().ok().filter(|amount| (0.0..=LIMIT).contains(amount))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog;
    use proptest::prelude::*;

    #[test]
    fn embedded_list_has_price_of_every_type() {
        for known in catalog::all() {
            let price = PriceList::embedded().find(known.name);
            assert!(price.is_some_and(|price| price > 0.0), "{}: {price:?}", known.name);
        }
        let first = CSV.lines().next().unwrap();
        assert!(first.starts_with('#') && first.contains(LIST_DATE) && first.contains(LIST_REGION), "{first}");
        assert_eq!(PriceList::embedded().find("t3.micro"), Some(0.0104));
        assert_eq!(PriceList::embedded().find("t9.micro"), None);
        assert!((PriceList::embedded().monthly("t3.micro").unwrap() - 7.592).abs() < 1e-9);
    }

    #[test]
    fn list_may_have_comments_header_and_unknown_types() {
        let list = PriceList::parse("# mine\nname,usd\n\n t3.micro , 0.02\nx9.huge,1e2\nt3.micro,0.03\n").unwrap();
        assert_eq!((list.find("t3.micro"), list.find("x9.huge")), (Some(0.03), Some(100.0)));
    }

    #[test]
    fn malformed_list_is_refused_with_line() {
        assert_eq!(PriceList::parse("t3.micro,1\nt3.nano\n"), Err(PriceError::Fields(2)));
        assert_eq!(PriceList::parse(",1\n"), Err(PriceError::Fields(1)));
        assert_eq!(PriceList::parse("# nothing\n"), Err(PriceError::Empty));
        for value in ["-1", "NaN", "inf", "1e7", "", "1,2"] {
            let refused = PriceError::Amount { line: 1, name: "t3.nano".into(), value: value.into() };
            assert_eq!(PriceList::parse(&format!("t3.nano,{value}")), Err(refused));
        }
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in any::<String>()) {
            if let Ok(list) = PriceList::parse(&text) {
                prop_assert!(list.prices.values().all(|price| (0.0..=LIMIT).contains(price)));
            }
        }
    }
}
