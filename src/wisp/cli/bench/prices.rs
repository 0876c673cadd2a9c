//! Prices of instance types: the embedded list or a file, and single prices from the command line.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, bail};

use ec2::catalog;
use ec2::prices::{LIST_DATE, LIST_REGION, PriceList, amount};

/// Maximum size of a price list in bytes. The embedded list has 4 KiB.
const SIZE_LIMIT: u64 = 1 << 20;

/// The price of a type, written `TYPE=DOLLARS`.
#[derive(Debug, Clone, PartialEq)]
pub struct Price {
    pub instance_type: &'static str,
    pub dollars: f64,
}

impl FromStr for Price {
    type Err = String;

    fn from_str(text: &str) -> Result<Price, String> {
        let (name, dollars) = text.split_once('=').ok_or("it must be TYPE=DOLLARS, such as t3.micro=0.0104")?;
        let instance_type = catalog::find(name).map_err(|error| error.to_string())?.name;
        let dollars = amount(dollars).ok_or("the price must be a non-negative number of dollars")?;
        Ok(Price { instance_type, dollars })
    }
}

/// Prices of a list, except for those given on the command line.
#[derive(Debug)]
pub struct Prices<'a> {
    given: &'a [Price],
    /// The file and its list. `None` for the embedded list.
    file: Option<(&'a Path, PriceList)>,
}

impl<'a> Prices<'a> {
    pub fn new(given: &'a [Price], file: Option<&'a Path>) -> anyhow::Result<Prices<'a>> {
        let file = file.map(|path| read(path).map(|list| (path, list))).transpose()?;
        Ok(Prices { given, file })
    }

    pub fn find(&self, instance_type: &str) -> Option<f64> {
        // The last price given for a type is used, as with other options.
        let given = self.given.iter().rev().find(|price| price.instance_type == instance_type);
        let list = self.file.as_ref().map_or(PriceList::embedded(), |(_, list)| list);
        given.map(|price| price.dollars).or_else(|| list.find(instance_type))
    }

    /// Names the source of the prices.
    pub fn describe(&self) -> String {
        let list = match &self.file {
            Some((path, _)) => path.display().to_string(),
            None => format!("on-demand Linux in {LIST_REGION}, {LIST_DATE}"),
        };
        if self.given.is_empty() { list } else { format!("{list}, and --price") }
    }
}

fn read(path: &Path) -> anyhow::Result<PriceList> {
    let mut text = String::new();
    // One byte more than the limit distinguishes a file that is too long.
    let length = File::open(path).and_then(|file| file.take(SIZE_LIMIT + 1).read_to_string(&mut text));
    if length.with_context(|| format!("cannot read {}", path.display()))? as u64 > SIZE_LIMIT {
        bail!("{} is longer than {SIZE_LIMIT} bytes", path.display());
    }
    PriceList::parse(&text).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn given_price_overrides_file_and_file_replaces_embedded_list() {
        let given: Vec<Price> = ["t3.micro=1", "t3.micro=2"].map(|text| text.parse().unwrap()).into();
        let embedded = Prices::new(&given, None).unwrap();
        assert_eq!((embedded.find("t3.micro"), embedded.find("t3.nano")), (Some(2.0), Some(0.0052)));
        assert_eq!(embedded.describe(), "on-demand Linux in us-east-1, 2026-07-20, and --price");

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("prices.csv");
        fs::write(&path, "t3.micro,7\nt3.small,8\n").unwrap();
        let file = Prices::new(&given, Some(&path)).unwrap();
        assert_eq!(["t3.micro", "t3.small", "t3.nano"].map(|name| file.find(name)), [Some(2.0), Some(8.0), None]);
    }

    #[test]
    fn unreadable_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("prices.csv");
        let refused = |text: &str| format!("{:#}", Prices::new(&[], Some(&path)).unwrap_err()).contains(text);
        assert!(refused("cannot read"));
        fs::write(&path, "t3.micro\n").unwrap();
        assert!(refused("prices.csv: line 1 is not TYPE,DOLLARS"));
        File::create(&path).unwrap().set_len(SIZE_LIMIT + 1).unwrap();
        assert!(refused("is longer than 1048576 bytes"));
    }
}
