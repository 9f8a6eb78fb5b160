//! From what is programmed and what is wanted to transactions.
//!
//! [`Applied`] remembers what the kernel holds of ours: a fingerprint for each chain, a handle for each
//! rule in a shared chain. [`Planner`] takes owners' blocks and makes [`Step`]s, each one transaction,
//! whose success is written back with [`Applied::record`].
//!
//! The order of operations is a promise, and lives here:
//!
//! 1. New chains first: nothing jumps to them yet, so a large first load may commit them in pieces.
//! 2. Then, in one transaction, chains whose rules changed (flushed and refilled) and the rules in
//!    shared chains: a Service becomes reachable, changes, or loses an endpoint at once.
//! 3. Then, in a transaction of its own, what is gone: rules of owners that went away, and chains,
//!    each before those it jumps to. Deletions are not validated by the kernel, and would make the
//!    next addition wait (netlink.md §2).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::mem;

use super::block::{Block, Digest, Group, Layout, OwnedChain, Owner, Side};
use super::rule::{ChainName, Rule, Table};
use super::transaction::{Handle, Op, Place, Transaction};
use crate::net::Family;

/// A first load is committed in pieces of about this many operations. At some 700 bytes a rule that is
/// 4 MB, which keeps memory and the time that others wait for the kernel's lock low (netlink.md §2).
const PIECE: usize = 6000;

pub(super) type ChainKey = (Table, ChainName);

/// What the kernel holds of ours in one family.
#[derive(Debug, Default)]
pub struct Applied {
    /// Tables that exist with all their built-in chains.
    pub(super) tables: BTreeSet<Table>,
    /// Chains that exist and are complete in themselves.
    pub(super) chains: HashMap<ChainKey, AppliedChain>,
    /// Shared chains that exist; what stands in them is known by owner.
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
    fn is(&self, group: &Group) -> bool {
        self.table == group.table && self.chain == group.chain && self.slot == group.slot
    }
}

impl Applied {
    /// The owners that have something programmed.
    pub fn owners(&self) -> impl Iterator<Item = &Owner> {
        self.owners.keys()
    }

    /// How many rules of ours `table` holds.
    pub fn rule_count(&self, table: Table) -> usize {
        self.rules.get(&table).copied().unwrap_or_default()
    }

    /// Writes down that `step` was committed, with the handles of the rules it added.
    pub fn record(&mut self, step: Step, handles: &[Handle]) {
        self.tables.extend(step.tables);
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

/// One transaction, and what its success means.
#[derive(Debug)]
pub struct Step {
    transaction: Transaction,
    tables: Vec<Table>,
    shared: Vec<ChainKey>,
    chains: Vec<(ChainKey, AppliedChain)>,
    deleted: Vec<ChainKey>,
    owners: Vec<(Owner, Option<PendingBlock>)>,
    /// `AddRule` operations so far: the index the next one's handle will have.
    added: usize,
}

impl Step {
    /// Takes the transaction out, to be committed and dropped: what is left to remember is small.
    pub fn take_transaction(&mut self) -> Transaction {
        let family = self.transaction.family;
        mem::replace(&mut self.transaction, Transaction::new(family))
    }

    /// Notes that chains it was to delete exist still, without rules.
    pub fn keep_empty(&mut self, chains: Vec<(Table, ChainName)>) {
        self.deleted.retain(|chain| !chains.contains(chain));
        self.chains.extend(chains.into_iter().map(|chain| (chain, AppliedChain::EMPTY)));
    }

    fn new(family: Family) -> Self {
        Self {
            transaction: Transaction::new(family),
            tables: Vec::new(),
            shared: Vec::new(),
            chains: Vec::new(),
            deleted: Vec::new(),
            owners: Vec::new(),
            added: 0,
        }
    }

    fn push(&mut self, op: Op) {
        self.transaction.ops.push(op);
    }

    /// Adds a rule and tells which of the step's handles will be its own.
    fn add_rule(&mut self, at: &Group, place: Place, rule: Rule) -> HandleRef {
        self.push(Op::AddRule { table: at.table, chain: at.chain.clone(), place, rule });
        self.added += 1;
        HandleRef::Added(self.added - 1)
    }

    fn fill(&mut self, chain: OwnedChain, digest: Digest) {
        let filled = AppliedChain { digest, rules: chain.rules.len() };
        self.added += filled.rules;
        let (table, name) = (chain.table, chain.name);
        let add = |rule| Op::AddRule { table, chain: name.clone(), place: Place::Tail, rule };
        self.transaction.ops.extend(chain.rules.into_iter().map(add));
        self.chains.push(((table, name), filled));
    }

    /// Appends another step's operations and notes behind this one's.
    fn absorb(&mut self, mut other: Self) {
        for (_, pending) in &mut other.owners {
            if let Some(pending) = pending {
                pending.shift(self.added);
            }
        }
        self.transaction.ops.append(&mut other.transaction.ops);
        self.tables.append(&mut other.tables);
        self.shared.append(&mut other.shared);
        self.chains.append(&mut other.chains);
        self.deleted.append(&mut other.deleted);
        self.owners.append(&mut other.owners);
        self.added += other.added;
    }
}

/// An owner's block as it will be, with handles still to come.
#[derive(Debug)]
struct PendingBlock {
    chains: Vec<ChainKey>,
    groups: Vec<PendingGroup>,
}

#[derive(Debug)]
struct PendingGroup {
    table: Table,
    chain: ChainName,
    slot: u8,
    rules: Vec<(Digest, HandleRef)>,
}

#[derive(Clone, Copy, Debug)]
enum HandleRef {
    Known(Handle),
    /// Of the step's rule with this index.
    Added(usize),
    /// The same among the rules of built-in chains, which end behind all others of the step.
    Hooked(usize),
}

impl PendingGroup {
    /// Its rules stand in the step of the built-in chains, not in that of its owner.
    fn are_hooks(&mut self) {
        for (_, handle) in &mut self.rules {
            if let HandleRef::Added(index) = *handle {
                *handle = HandleRef::Hooked(index);
            }
        }
    }
}

impl PendingBlock {
    fn shift(&mut self, by: usize) {
        for handle in self.handles() {
            if let HandleRef::Added(index) = handle {
                *index += by;
            }
        }
    }

    /// The rules of built-in chains come next, behind `rules` others.
    fn place_hooks(&mut self, rules: usize) {
        for handle in self.handles() {
            if let HandleRef::Hooked(index) = *handle {
                *handle = HandleRef::Added(rules + index);
            }
        }
    }

    fn handles(&mut self) -> impl Iterator<Item = &mut HandleRef> {
        self.groups.iter_mut().flat_map(|g| &mut g.rules).map(|(_, handle)| handle)
    }

    fn resolve(self, handles: &[Handle]) -> AppliedBlock {
        let resolve = |handle| match handle {
            HandleRef::Known(handle) => handle,
            HandleRef::Added(index) | HandleRef::Hooked(index) => handles[index],
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

/// Makes steps out of wanted blocks. The mode's own block is to be given first where it changed: other
/// blocks jump to its chains.
#[derive(Debug)]
pub struct Planner<'a> {
    applied: &'a Applied,
    layout: &'static Layout,
    /// New chains, which nothing reaches yet.
    fresh: Step,
    /// Changes that packets may meet at once.
    live: Step,
    /// Rules of the built-in chains: after everything they lead to.
    hooks: Step,
    gone: Step,
}

impl<'a> Planner<'a> {
    pub fn new(applied: &'a Applied, layout: &'static Layout, family: Family) -> Self {
        let mut planner = Self {
            applied,
            layout,
            fresh: Step::new(family),
            live: Step::new(family),
            hooks: Step::new(family),
            gone: Step::new(family),
        };
        planner.lay_ground();
        planner
    }

    /// Tables, built-in and shared chains that are missing.
    fn lay_ground(&mut self) {
        for table in Table::ALL.into_iter().filter(|t| !self.applied.tables.contains(t)) {
            self.fresh.push(Op::AddTable(table));
            self.fresh.tables.push(table);
        }
        for &(table, name) in self.layout.dispatch.iter().chain(self.layout.common) {
            let key = (table, ChainName::from(name));
            if !self.applied.shared.contains(&key) {
                self.fresh.push(Op::AddChain { table, chain: key.1.clone() });
                self.fresh.shared.push(key);
            }
        }
    }

    /// Notes that `owner` is to have `block`; `None`: nothing any more.
    pub fn want(&mut self, owner: Owner, block: Option<Block>) {
        let before = self.applied.owners.get(&owner);
        let Some(block) = block else {
            if let Some(before) = before {
                self.drop_all(&owner, before);
            }
            return;
        };
        let none = AppliedBlock::default();
        let before = before.unwrap_or(&none);
        let chains: Vec<_> = block.chains.iter().map(|c| (c.table, c.name.clone())).collect();
        block.chains.into_iter().for_each(|chain| self.want_chain(chain));
        let groups = self.want_groups(block.groups, before);
        let lost = before.chains.iter().rev().filter(|c| !chains.contains(c));
        lost.for_each(|chain| Self::drop_chain(&mut self.gone, chain));
        if let Some(groups) = groups.or_else(|| (chains != before.chains).then(|| keep(&before.groups))) {
            self.live.owners.push((owner, Some(PendingBlock { chains, groups })));
        }
    }

    /// A piece of a large load that can be committed already.
    pub fn take_piece(&mut self) -> Option<Step> {
        let family = self.fresh.transaction.family;
        (self.fresh.transaction.len() >= PIECE).then(|| mem::replace(&mut self.fresh, Step::new(family)))
    }

    /// The rest, in the order it is to be committed; no step is empty.
    pub fn finish(self) -> Vec<Step> {
        let mut first = self.fresh;
        first.absorb(self.live);
        let before_hooks = first.added;
        first.owners.iter_mut().filter_map(|(_, pending)| pending.as_mut()).for_each(|p| p.place_hooks(before_hooks));
        first.absorb(self.hooks);
        let worth = |step: &Step| !step.transaction.is_empty() || !step.owners.is_empty();
        [first, self.gone].into_iter().filter(worth).collect()
    }

    fn want_chain(&mut self, chain: OwnedChain) {
        let digest = Digest::of_chain(&chain.rules);
        let (table, name) = (chain.table, chain.name.clone());
        match self.applied.chains.get(&(table, name.clone())) {
            Some(known) if known.digest == digest => {}
            Some(_) => {
                self.live.push(Op::FlushChain { table, chain: name });
                self.live.fill(chain, digest);
            }
            None => {
                self.fresh.push(Op::AddChain { table, chain: name });
                self.fresh.fill(chain, digest);
            }
        }
    }

    /// Brings the groups of one owner about; `None`: they are what they were.
    fn want_groups(&mut self, groups: Vec<Group>, before: &AppliedBlock) -> Option<Vec<PendingGroup>> {
        let mut changed = false;
        for old in before.groups.iter().filter(|old| !groups.iter().any(|g| old.is(g))) {
            changed = true;
            delete_rules(&mut self.live, old, &old.rules);
        }
        let mut pending = Vec::with_capacity(groups.len());
        // From the last to the first: each is put at the head, so they end in the order given.
        for group in groups.into_iter().rev() {
            let old = before.groups.iter().find(|old| old.is(&group));
            let builtin = group.table.builtin_chains().contains(&group.chain.as_str());
            let step = if builtin { &mut self.hooks } else { &mut self.live };
            let (mut group, differs) = want_group(step, group, old.map_or(&[], |o| &o.rules));
            if builtin {
                group.are_hooks();
            }
            changed |= differs;
            pending.push(group);
        }
        pending.reverse();
        changed.then_some(pending)
    }

    fn drop_all(&mut self, owner: &Owner, before: &AppliedBlock) {
        for group in &before.groups {
            delete_rules(&mut self.gone, group, &group.rules);
        }
        if *owner == Owner::Nobody {
            // Leftovers jump to each other in any order; an empty chain can always be deleted.
            let flush = |(table, chain): &ChainKey| Op::FlushChain { table: *table, chain: chain.clone() };
            self.gone.transaction.ops.extend(before.chains.iter().map(flush));
        }
        before.chains.iter().rev().for_each(|chain| Self::drop_chain(&mut self.gone, chain));
        self.gone.owners.push((owner.clone(), None));
    }

    fn drop_chain(step: &mut Step, key: &ChainKey) {
        step.push(Op::DeleteChain { table: key.0, chain: key.1.clone() });
        step.deleted.push(key.clone());
    }
}

fn keep(groups: &[AppliedGroup]) -> Vec<PendingGroup> {
    let known = |rules: &[(Digest, Handle)]| rules.iter().map(|&(d, h)| (d, HandleRef::Known(h))).collect();
    let keep = |g: &AppliedGroup| PendingGroup { table: g.table, chain: g.chain.clone(), slot: g.slot, rules: known(&g.rules) };
    groups.iter().map(keep).collect()
}

fn delete_rules(step: &mut Step, from: &AppliedGroup, rules: &[(Digest, Handle)]) {
    let delete = |&(_, handle): &(Digest, Handle)| Op::DeleteRule { table: from.table, chain: from.chain.clone(), handle };
    step.transaction.ops.extend(rules.iter().map(delete));
}

/// Turns the rules `old` of a group into those of `group`: what both begin and end with stays, the
/// middle is replaced. Tells also whether anything differed.
fn want_group(step: &mut Step, mut group: Group, old: &[(Digest, Handle)]) -> (PendingGroup, bool) {
    let digests: Vec<_> = group.rules.iter().map(Digest::of).collect();
    let head = old.iter().zip(&digests).take_while(|((o, _), n)| o == *n).count();
    let shorter = old.len().min(digests.len()) - head;
    let tail = old.iter().rev().zip(digests.iter().rev()).take(shorter).take_while(|((o, _), n)| o == *n).count();
    let (kept_head, rest) = old.split_at(head);
    let (removed, kept_tail) = rest.split_at(rest.len() - tail);
    let added: Vec<_> = group.rules.drain(head..digests.len() - tail).collect();
    let differs = !removed.is_empty() || !added.is_empty();

    for &(_, handle) in removed {
        step.push(Op::DeleteRule { table: group.table, chain: group.chain.clone(), handle });
    }
    let known = |&(digest, handle): &(Digest, Handle)| (digest, HandleRef::Known(handle));
    let mut rules: Vec<_> = kept_head.iter().map(known).collect();
    let refs = add_rules(step, &group, added, (kept_head.last(), kept_tail.first()));
    rules.extend(digests[head..].iter().copied().zip(refs));
    rules.extend(kept_tail.iter().map(known));
    (PendingGroup { table: group.table, chain: group.chain, slot: group.slot, rules }, differs)
}

type Neighbours<'a> = (Option<&'a (Digest, Handle)>, Option<&'a (Digest, Handle)>);

/// Adds rules so that they end in the given order: behind the neighbour before them, in front of the
/// one after them, or at the group's side of the chain.
fn add_rules(step: &mut Step, group: &Group, rules: Vec<Rule>, neighbours: Neighbours<'_>) -> Vec<HandleRef> {
    let (place, backwards) = match (neighbours, group.side) {
        ((Some(&(_, before)), _), _) => (Place::After(before), true),
        ((None, Some(&(_, after))), _) => (Place::Before(after), false),
        ((None, None), Side::Head) => (Place::Head, true),
        ((None, None), Side::Tail) => (Place::Tail, false),
    };
    if backwards {
        let mut refs: Vec<_> = rules.into_iter().rev().map(|rule| step.add_rule(group, place, rule)).collect();
        refs.reverse();
        refs
    } else {
        rules.into_iter().map(|rule| step.add_rule(group, place, rule)).collect()
    }
}
