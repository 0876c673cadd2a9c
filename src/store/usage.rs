//! Stores instances' resource usage: a row per datapoint, and a cursor for each instance's series.

use rusqlite::params;
use serde::{Deserialize, Serialize};

use super::{Record, StoreError, Transaction, Unversioned};
use ec2::InstanceId;
use ec2::usage::Datapoint;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UsageCursor {
    pub instance_id: InstanceId,
    /// The last reading that is part of the series, in the VMM's format.
    pub reading: serde_json::Value,
}

impl Record for UsageCursor {
    const TABLE: &'static str = "usage_cursors";

    fn key(&self) -> String {
        self.instance_id.to_string()
    }
}

impl Unversioned for UsageCursor {}

impl Transaction<'_> {
    /// Returns an instance's datapoints in order. Fails if one is damaged.
    pub fn usage(&self, id: InstanceId) -> Result<Vec<Datapoint>, StoreError> {
        let text = "SELECT number, record FROM usage WHERE instance = ?1 ORDER BY number";
        let mut statement = self.transaction.prepare_cached(text)?;
        let mut rows = statement.query(params![id.to_string()])?;
        let mut points = Vec::new();
        while let Some(row) = rows.next()? {
            let (number, record): (i64, String) = (row.get(0)?, row.get(1)?);
            let damaged = |source| StoreError::Record { table: "usage", key: format!("{id}/{number}"), source };
            let point: Datapoint = serde_json::from_str(&record).map_err(damaged)?;
            points.push(Datapoint { number: number.try_into().unwrap_or(0), ..point });
        }
        Ok(points)
    }

    /// Replaces an instance's datapoints `before` with `after`, and writes only the differences.
    pub fn change_usage(&self, id: InstanceId, before: &[Datapoint], after: &[Datapoint]) -> Result<(), StoreError> {
        let key = id.to_string();
        let is_in = |points: &[Datapoint], number| points.binary_search_by_key(&number, |point| point.number).ok();
        let mut remove = self.transaction.prepare_cached("DELETE FROM usage WHERE instance = ?1 AND number = ?2")?;
        for point in before.iter().filter(|point| is_in(after, point.number).is_none()) {
            remove.execute(params![key, to_sql(point.number)])?;
        }
        let text = "INSERT OR REPLACE INTO usage (instance, number, record) VALUES (?1, ?2, ?3)";
        let mut put = self.transaction.prepare_cached(text)?;
        for point in after.iter().filter(|point| is_in(before, point.number).map(|at| &before[at]) != Some(point)) {
            let record = serde_json::to_string(point).expect("a datapoint is plain data");
            put.execute(params![key, to_sql(point.number), record])?;
        }
        self.is_changed.set(true);
        Ok(())
    }

    pub fn forget_usage(&self, id: InstanceId) -> Result<(), StoreError> {
        self.transaction.prepare_cached("DELETE FROM usage WHERE instance = ?1")?.execute(params![id.to_string()])?;
        self.remove::<UsageCursor>(&id.to_string())
    }
}

fn to_sql(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::tests::store;
    use super::*;

    fn point(number: u64, cpu_ns: u64) -> Datapoint {
        Datapoint { number, cpu_ns, ..Datapoint::default() }
    }

    #[test]
    fn change_usage_affects_only_series_of_instance() {
        let (store, _directory) = store();
        let [a, b]: [InstanceId; 2] =
            ["i-0000000000000000a", "i-0000000000000000b"].map(|id| id.parse().expect("an ID"));
        let first = [point(1, 10), point(2, 20), point(10, 30)];
        let second = [point(1, 10), point(2, 25), point(11, 5)];
        let result = store.write::<_, StoreError>(|tx| {
            tx.change_usage(a, &[], &first)?;
            tx.change_usage(b, &[], &first[..1])?;
            tx.change_usage(a, &first, &second)?;
            tx.set(&UsageCursor { instance_id: a, reading: serde_json::json!({"x": 1}) })?;
            Ok((tx.usage(a)?, tx.usage(b)?))
        });
        assert_eq!(result.unwrap(), (second.to_vec(), first[..1].to_vec()));
        let left = store.write::<_, StoreError>(|tx| {
            tx.forget_usage(a)?;
            Ok((tx.usage(a)?.len(), tx.usage(b)?.len(), tx.list::<UsageCursor>()?.len()))
        });
        assert_eq!(left.unwrap(), (0, 1, 0));
    }
}
