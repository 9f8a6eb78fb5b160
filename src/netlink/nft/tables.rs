//! Whole tables that iptables does not know: those of kube-proxy's nftables mode.

use super::super::errno::Errno;
use super::super::error::{Error, Step};
use super::NftKernel;
use super::batch::Batch;
use crate::net::Family;
use crate::ruleset::Transaction;

impl NftKernel {
    /// Deletes a table with all that is in it; false where there is none.
    pub fn delete_table(&mut self, family: Family, table: &str) -> Result<bool, Error> {
        self.go_on()?;
        let mut batch = Batch::begin(family, self.sequence.wrapping_add(1), 1);
        batch.delete_table(table);
        batch.acknowledge();
        batch.end();
        self.sequence = batch.last_sequence().wrapping_add(1);
        let error = match self.exchange(&batch)?.check(&Transaction::new(family)) {
            Ok(()) => return Ok(true),
            Err(error) => error,
        };
        match error.errno() {
            Some(Errno::ENOENT) => Ok(false),
            Some(errno @ Errno::EPERM) if matches!(error, Error::Refused(_)) => {
                Err(Error::Failed { step: Step::DeleteTable, errno, said: Some("another program owns it".into()) })
            }
            Some(errno) if !error.is_retryable() => Err(Error::at(Step::DeleteTable, errno)),
            _ => Err(error),
        }
    }
}
