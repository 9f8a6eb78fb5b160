//! For benchmarks: what the kernel alone takes for a transaction or a reading, without the work we put into it.

use super::super::attr::flag;
use super::super::error::{Error, Step};
use super::batch::Batch;
use super::handles::Numbering;
use super::names::Names;
use super::wire::{NFTA_RULE_CHAIN, NFTA_RULE_TABLE, family_number, kind};
use super::{Committed, NftKernel};
use crate::net::Family;
use crate::ruleset::Transaction;

/// A transaction as the bytes that will be sent. They hold sequence numbers: encoded by the kernel that is to
/// commit them, and committed in the order they were encoded in.
#[derive(Debug)]
pub struct Encoded {
    batch: Batch,
    family: Family,
    numbering: Numbering,
}

impl NftKernel {
    /// Encodes a transaction to be committed later. Sets in its rules must exist.
    pub fn encode_ahead(&mut self, transaction: &Transaction) -> Result<Encoded, Error> {
        let numbering = Numbering::of(&transaction.ops);
        let mut batch = self.encode(transaction, &numbering.echoes())?;
        batch.end();
        Ok(Encoded { batch, family: transaction.family, numbering })
    }

    /// Commits what was encoded before, as [`super::Kernel::commit`] would have committed the transaction.
    pub fn commit_encoded(&mut self, encoded: &Encoded) -> Result<Committed, Error> {
        let answers = self.exchange(&encoded.batch)?;
        answers.check(&Transaction::new(encoded.family))?;
        let handles = encoded.numbering.handles(&answers.handles).ok_or(Error::HandlesUnknown)?;
        Ok(Committed { handles, bytes: encoded.batch.as_bytes().len() })
    }

    /// Has the kernel dump all rules that [`super::Kernel::read`] would read, chain by chain, and looks at none.
    /// Gives their number.
    pub fn dump_unread(&mut self, family: Family) -> Result<usize, Error> {
        let mut rules = 0;
        for (table, chain) in self.read_chains(family, &mut Names::default())?.0 {
            let request = self.request(kind::GET_RULE, flag::DUMP, family_number(family), |w| {
                w.text(NFTA_RULE_TABLE, table.as_str());
                w.text(NFTA_RULE_CHAIN, chain.as_str());
            });
            self.dump(Step::ReadRules, &request, &mut |_| rules += 1)?;
        }
        Ok(rules)
    }
}
