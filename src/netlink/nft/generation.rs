//! Whether anybody else changed rules since we last read them, told from the number of the rules' generation.
//!
//! A commit that changes anything raises the number by one (`nf_tables_commit`); one that turns out to change
//! nothing, as flushing a chain without rules, leaves it. So the number we read at, plus one for each commit of ours,
//! is the number now only if there was no other.

use crate::net::{Family, PerFamily};
use crate::ruleset::{Op, Transaction};

/// For each family the generation that holds what was read and our own commits since, and nothing else.
#[derive(Debug, Default)]
pub struct Undisturbed(PerFamily<Option<u32>>);

impl Undisturbed {
    /// All of a family was read, at one generation.
    pub fn read(&mut self, family: Family, generation: u32) {
        self.0[family] = Some(generation);
    }

    /// Nothing is known of a family any more.
    pub fn forget(&mut self, family: Family) {
        self.0[family] = None;
    }

    /// We committed, and this generation was found afterwards.
    pub fn committed(&mut self, transaction: &Transaction, generation: u32) {
        for family in Family::ALL {
            self.0[family] = self.0[family].filter(|&before| is_alone(transaction, before, generation)).map(|_| generation);
        }
    }

    pub fn holds(&self, family: Family, generation: u32) -> bool {
        self.0[family] == Some(generation)
    }
}

/// Was the transaction the only one that was committed between two generations? False also when that is not certain.
pub fn is_alone(transaction: &Transaction, before: u32, after: u32) -> bool {
    after == if certainly_changes(transaction) { next(before) } else { before }
}

/// Does the kernel find something to do in it, whatever there is? Chains may be empty and tables complete.
fn certainly_changes(transaction: &Transaction) -> bool {
    transaction.ops.iter().any(|op| !matches!(op, Op::FlushChain { .. } | Op::AddTable(_)))
}

/// The kernel leaves out 0.
fn next(generation: u32) -> u32 {
    generation.checked_add(1).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ruleset::Table;

    fn transaction(op: Op) -> Transaction {
        Transaction { family: Family::Ipv4, ops: vec![op] }
    }

    fn adds() -> Transaction {
        transaction(Op::AddChain { table: Table::Nat, chain: "KUBE-SVC-A".into() })
    }

    #[test]
    fn our_own_commits_disturb_neither_family() {
        let mut undisturbed = Undisturbed::default();
        undisturbed.read(Family::Ipv4, u32::MAX);
        undisturbed.committed(&adds(), 1);
        undisturbed.committed(&adds(), 2);
        assert!(undisturbed.holds(Family::Ipv4, 2) && !undisturbed.holds(Family::Ipv4, 3));
        assert!(!undisturbed.holds(Family::Ipv6, 2), "never read");
        undisturbed.read(Family::Ipv6, 2);
        undisturbed.committed(&adds(), 3);
        assert!(Family::ALL.into_iter().all(|family| undisturbed.holds(family, 3)));
    }

    #[test]
    fn somebody_elses_commit_is_never_forgotten() {
        let mut undisturbed = Undisturbed::default();
        undisturbed.read(Family::Ipv4, 10);
        undisturbed.committed(&adds(), 12);
        undisturbed.committed(&adds(), 13);
        assert!(!undisturbed.holds(Family::Ipv4, 13));
    }

    #[test]
    fn a_commit_that_may_change_nothing_is_not_taken_for_somebody_elses() {
        let mut undisturbed = Undisturbed::default();
        let flush = transaction(Op::FlushChain { table: Table::Nat, chain: "KUBE-SVC-A".into() });
        undisturbed.read(Family::Ipv4, 10);
        undisturbed.committed(&flush, 10);
        assert!(undisturbed.holds(Family::Ipv4, 10));
        // It may have been ours or not: nobody knows.
        undisturbed.committed(&flush, 11);
        assert!(!undisturbed.holds(Family::Ipv4, 11));
    }
}
