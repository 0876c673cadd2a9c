//! Network changes that running machines may not have yet.
//!
//! A change is noted in the transaction that makes it, and forgotten when all machines have it. If a command is killed
//! in between, the next command applies the recorded network to all machines.

use super::super::error::CloudError;
use super::super::{Outcome, Warnings};
use super::interface::Interfaces;
use store::{PendingNetworkChanges, Transaction};

/// A noted change.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NetworkChange(u64);

impl NetworkChange {
    /// Notes the change that the transaction makes.
    pub fn begin(tx: &Transaction) -> Result<NetworkChange, CloudError> {
        let mut changes = pending(tx)?;
        let number = changes.next;
        changes.next = number.wrapping_add(1);
        changes.numbers.insert(number);
        tx.set(&changes)?;
        Ok(NetworkChange(number))
    }
}

impl Interfaces<'_> {
    /// Makes a change of the network, and applies it to all running machines.
    pub(super) fn change<T>(
        &self,
        change: impl FnOnce(&Transaction) -> Result<T, CloudError>,
    ) -> Result<Outcome<T>, CloudError> {
        let (value, change) =
            self.cloud.store.write::<_, CloudError>(|tx| Ok((change(tx)?, NetworkChange::begin(tx)?)))?;
        let warnings = self.cloud.security_groups().apply()?;
        self.finish(change)?;
        Ok(Outcome { value, warnings })
    }

    /// Forgets a change that all running machines have.
    pub fn finish(&self, change: NetworkChange) -> Result<(), CloudError> {
        self.forget(&[change.0])
    }

    /// Applies the changes of killed commands.
    pub fn finish_pending(&self) -> Result<Warnings, CloudError> {
        let numbers: Vec<u64> = self.cloud.store.read(pending)?.numbers.into_iter().collect();
        if numbers.is_empty() {
            return Ok(Warnings::default());
        }
        // A machine can take an address only after another machine has released it, so the first round may have
        // problems that the second one solves.
        let _solved = self.cloud.security_groups().apply()?;
        let warnings = self.cloud.security_groups().apply()?;
        self.forget(&numbers)?;
        Ok(warnings)
    }

    fn forget(&self, numbers: &[u64]) -> Result<(), CloudError> {
        self.cloud.store.write(|tx| {
            let mut changes = pending(tx)?;
            changes.numbers.retain(|number| !numbers.contains(number));
            Ok(tx.set(&changes)?)
        })
    }
}

fn pending(tx: &Transaction) -> Result<PendingNetworkChanges, CloudError> {
    Ok(tx.get(PendingNetworkChanges::KEY)?.unwrap_or_default())
}
