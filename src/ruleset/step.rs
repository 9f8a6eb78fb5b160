//! One transaction of a plan, and what its success means for what is remembered.

use std::mem;

use super::applied::{AppliedBlock, AppliedChain, AppliedGroup, ChainKey};
use super::block::{Digest, Group, OwnedChain, Owner};
use super::rule::{ChainName, Match, Rule, Table};
use super::transaction::{Handle, Op, Place, Transaction};
use crate::net::Family;

/// One transaction, and what its success means.
#[derive(Debug)]
pub struct Step {
    pub(super) transaction: Transaction,
    pub(super) tables: Vec<Table>,
    pub(super) shared: Vec<ChainKey>,
    pub(super) chains: Vec<(ChainKey, AppliedChain)>,
    pub(super) deleted: Vec<ChainKey>,
    pub(super) owners: Vec<(Owner, Option<PendingBlock>)>,
    /// `AddRule` operations so far: the index the next one's handle will have.
    pub(super) added: usize,
    /// About how long the message will be, in units of some 300 bytes.
    pub(super) weight: usize,
    /// Whose the operations are: each run of them by the index behind its last.
    authors: Vec<(usize, Option<Owner>)>,
}

impl Step {
    /// How many operations it has.
    pub fn len(&self) -> usize {
        self.transaction.len()
    }

    pub fn is_empty(&self) -> bool {
        self.transaction.is_empty()
    }

    pub fn ops(&self) -> &[Op] {
        &self.transaction.ops
    }

    /// Takes the transaction out, to be committed and dropped: what is left to remember is small.
    pub fn take_transaction(&mut self) -> Transaction {
        let family = self.transaction.family;
        mem::replace(&mut self.transaction, Transaction::new(family))
    }

    /// Whose an operation of the transaction is; `None`: it lays the ground for everybody.
    pub fn author(&self, op: usize) -> Option<&Owner> {
        let run = self.authors.partition_point(|(end, _)| *end <= op);
        self.authors.get(run).and_then(|(_, owner)| owner.as_ref())
    }

    pub(super) fn new(family: Family) -> Self {
        Self {
            transaction: Transaction::new(family),
            tables: Vec::new(),
            shared: Vec::new(),
            chains: Vec::new(),
            deleted: Vec::new(),
            owners: Vec::new(),
            added: 0,
            weight: 0,
            authors: Vec::new(),
        }
    }

    /// Ascribes the operations that were pushed last to `owner`.
    pub(super) fn ascribe(&mut self, owner: Option<&Owner>) {
        let end = self.transaction.len();
        if self.authors.last().map_or(0, |(end, _)| *end) < end {
            self.authors.push((end, owner.cloned()));
        }
    }

    /// Takes all there is in it.
    pub(super) fn take(&mut self) -> Self {
        let family = self.transaction.family;
        mem::replace(self, Self::new(family))
    }

    pub(super) fn push(&mut self, op: Op) {
        self.weight += weight(&op);
        self.transaction.ops.push(op);
    }

    /// Adds a rule and tells which of the step's handles will be its own.
    pub(super) fn add_rule(&mut self, at: &Group, place: Place, rule: Rule) -> HandleRef {
        self.push(Op::AddRule { table: at.table, chain: at.chain.clone(), place, rule });
        self.added += 1;
        HandleRef::Added(self.added - 1)
    }

    pub(super) fn fill(&mut self, chain: OwnedChain, digest: Digest) {
        let filled = AppliedChain { digest, rules: chain.rules.len() };
        self.added += filled.rules;
        let (table, name) = (chain.table, chain.name);
        for rule in chain.rules {
            self.push(Op::AddRule { table, chain: name.clone(), place: Place::Tail, rule });
        }
        self.chains.push(((table, name), filled));
    }

    /// Appends another step's operations and notes behind this one's.
    pub(super) fn absorb(&mut self, mut other: Self) {
        for (_, pending) in &mut other.owners {
            if let Some(pending) = pending {
                pending.shift(self.added);
            }
        }
        let before = self.transaction.len();
        self.authors.extend(other.authors.into_iter().map(|(end, owner)| (before + end, owner)));
        self.transaction.ops.append(&mut other.transaction.ops);
        self.tables.append(&mut other.tables);
        self.shared.append(&mut other.shared);
        self.chains.append(&mut other.chains);
        self.deleted.append(&mut other.deleted);
        self.owners.append(&mut other.owners);
        self.added += other.added;
        self.weight += other.weight;
    }
}

/// A rule's comment is longer than all else in it: xt's takes 256 bytes whatever it says.
fn weight(op: &Op) -> usize {
    let has_comment = |rule: &Rule| rule.matches.iter().any(|m| matches!(m, Match::Comment(_)));
    if matches!(op, Op::AddRule { rule, .. } if has_comment(rule)) { 2 } else { 1 }
}

/// An owner's block as it will be, with handles still to come.
#[derive(Debug)]
pub(super) struct PendingBlock {
    pub chains: Vec<ChainKey>,
    pub groups: Vec<PendingGroup>,
}

#[derive(Debug)]
pub(super) struct PendingGroup {
    pub table: Table,
    pub chain: ChainName,
    pub slot: u8,
    pub rules: Vec<(Digest, HandleRef)>,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum HandleRef {
    Known(Handle),
    /// Of the step's rule with this index.
    Added(usize),
}

impl PendingBlock {
    fn shift(&mut self, by: usize) {
        for handle in self.handles() {
            if let HandleRef::Added(index) = handle {
                *index += by;
            }
        }
    }

    fn handles(&mut self) -> impl Iterator<Item = &mut HandleRef> {
        self.groups.iter_mut().flat_map(|g| &mut g.rules).map(|(_, handle)| handle)
    }

    pub(super) fn resolve(self, handles: &[Handle]) -> AppliedBlock {
        let resolve = |handle| match handle {
            HandleRef::Known(handle) => handle,
            HandleRef::Added(index) => handles[index],
        };
        let groups = self.groups.into_iter().map(|g| AppliedGroup {
            table: g.table,
            chain: g.chain,
            slot: g.slot,
            rules: g.rules.into_iter().map(|(digest, handle)| (digest, resolve(handle))).collect(),
        });
        AppliedBlock { chains: self.chains, groups: groups.collect() }
    }
}
