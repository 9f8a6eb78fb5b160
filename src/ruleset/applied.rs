//! What the kernel holds of ours, as it is remembered: a fingerprint for each chain, a handle for each rule in a
//! shared chain. Small, since it is kept for as long as the process runs.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::block::{Digest, Group, Owner};
use super::rule::{ChainName, Table};
use super::step::Step;
use super::transaction::Handle;

pub(super) type ChainKey = (Table, ChainName);

/// What the kernel holds of ours in one family.
#[derive(Debug, Default)]
pub struct Applied {
    /// Tables that exist with all their built-in chains.
    pub(super) tables: BTreeSet<Table>,
    /// Chains that exist and are complete in themselves.
    pub(super) chains: HashMap<ChainKey, AppliedChain>,
    /// Shared chains that exist, the built-in ones among them; what stands in them is known by owner.
    pub(super) shared: BTreeSet<ChainKey>,
    pub(super) owners: HashMap<Owner, AppliedBlock>,
    /// How many rules of ours each table holds.
    pub(super) rules: BTreeMap<Table, usize>,
}

/// A chain's rules: their fingerprint and how many they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AppliedChain {
    pub(super) digest: Digest,
    pub(super) rules: usize,
}

impl AppliedChain {
    pub(super) const EMPTY: Self = Self { digest: Digest::EMPTY, rules: 0 };

    /// The chain with one more rule.
    pub(super) fn then(self, rule: Digest) -> Self {
        Self { digest: self.digest.then(rule), rules: self.rules + 1 }
    }
}

/// What the kernel holds of one owner.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct AppliedBlock {
    pub(super) chains: Vec<ChainKey>,
    pub(super) groups: Vec<AppliedGroup>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AppliedGroup {
    pub(super) table: Table,
    pub(super) chain: ChainName,
    pub(super) slot: u8,
    pub(super) rules: Vec<(Digest, Handle)>,
}

impl AppliedGroup {
    pub(super) fn is(&self, group: &Group) -> bool {
        self.table == group.table && self.chain == group.chain && self.slot == group.slot
    }
}

impl Applied {
    /// How many rules of ours `table` holds.
    pub fn rule_count(&self, table: Table) -> usize {
        self.rules.get(&table).copied().unwrap_or_default()
    }

    /// Writes down that `step` was committed, with the handles of the rules it added.
    pub fn record(&mut self, step: Step, handles: &[Handle]) {
        for table in step.tables {
            self.tables.insert(table);
            self.shared.extend(table.builtin_chains().iter().map(|&chain| (table, chain.into())));
        }
        self.shared.extend(step.shared);
        for (key, chain) in step.chains {
            *self.rules.entry(key.0).or_default() += chain.rules;
            let before = self.chains.insert(key.clone(), chain);
            self.uncount(key.0, before.map_or(0, |c| c.rules));
        }
        for key in &step.deleted {
            let before = self.chains.remove(key);
            self.uncount(key.0, before.map_or(0, |c| c.rules));
        }
        for (owner, pending) in step.owners {
            let before = self.owners.remove(&owner).unwrap_or_default();
            before.groups.iter().for_each(|group| self.uncount(group.table, group.rules.len()));
            if let Some(pending) = pending {
                let block = pending.resolve(handles);
                block.groups.iter().for_each(|group| *self.rules.entry(group.table).or_default() += group.rules.len());
                self.owners.insert(owner, block);
            }
        }
    }

    /// Counts afresh. Chains that belong to nobody we know are not counted.
    pub(super) fn count(&mut self) {
        for block in self.owners.values() {
            for key in &block.chains {
                *self.rules.entry(key.0).or_default() += self.chains.get(key).map_or(0, |c| c.rules);
            }
            for group in &block.groups {
                *self.rules.entry(group.table).or_default() += group.rules.len();
            }
        }
    }

    /// Saturating: a chain of ours that a step refills may have been found without its owner.
    fn uncount(&mut self, table: Table, rules: usize) {
        let count = self.rules.entry(table).or_default();
        *count = count.saturating_sub(rules);
    }
}
