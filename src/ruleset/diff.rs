//! From what is programmed and what is wanted to transactions.
//!
//! [`Planner`] takes owners' blocks, compares them with [`Applied`] and makes [`Step`]s, each one transaction,
//! whose success is written back with [`Applied::record`].
//!
//! The order of operations is a promise, and lives here:
//!
//! 1. New chains first: nothing jumps to them yet, so a large first load may commit them in pieces.
//! 2. Then chains whose rules changed (flushed and refilled) and the rules in shared chains: a Service becomes
//!    reachable, changes, or loses an endpoint at once. A big change is committed in pieces, each of whole Services.
//! 3. With the last of these the rules of built-in chains, behind all that they lead to.
//! 4. Then, in transactions of their own, what is gone: rules of owners that went away, and chains,
//!    each before those it jumps to. Deletions are not validated by the kernel, and would make the
//!    next addition wait (netlink.md §2).

use std::collections::HashSet;

use super::applied::{Applied, AppliedBlock, AppliedGroup, ChainKey};
use super::block::{Block, Digest, Group, Layout, OwnedChain, Owner, Side};
use super::rule::{ChainName, Rule};
use super::step::{HandleRef, PendingBlock, PendingGroup, Step};
use super::transaction::{Handle, Op, Place};
use crate::net::Family;

/// A first load is committed in pieces of about this weight, which is 4 MB: that keeps memory and the time that others
/// wait for the kernel's lock low (netlink.md §2), and the walks through all chains that each commit costs few.
const PIECE: usize = 12_000;

/// Makes steps out of wanted blocks. The mode's own block is to be given first where it changed: other
/// blocks jump to its chains.
#[derive(Debug)]
pub struct Planner {
    /// New chains, which nothing reaches yet.
    fresh: Step,
    /// Changes that packets may meet at once.
    live: Step,
    /// Shared rules of owners that have some in built-in chains: after everything they lead to.
    hooks: Step,
    gone: Step,
    /// Chains of those owners that are gone: after the rules that led to them.
    unhooked: Step,
    /// Chains that an owner came to want.
    claimed: HashSet<ChainKey>,
}

impl Planner {
    pub fn new(applied: &Applied, layout: &'static Layout, family: Family) -> Self {
        let mut planner = Self::removing(family);
        planner.lay_ground(applied, layout);
        planner
    }

    /// Of one who makes nothing, not even what everybody stands on.
    pub fn removing(family: Family) -> Self {
        Self {
            fresh: Step::new(family),
            live: Step::new(family),
            hooks: Step::new(family),
            gone: Step::new(family),
            unhooked: Step::new(family),
            claimed: HashSet::new(),
        }
    }

    /// Tables, built-in and shared chains that are missing.
    fn lay_ground(&mut self, applied: &Applied, layout: &Layout) {
        for &table in layout.tables.iter().filter(|table| !applied.tables.contains(table)) {
            self.fresh.push(Op::AddTable(table));
            self.fresh.tables.push(table);
        }
        for &(table, name) in layout.dispatch.iter().chain(layout.common) {
            let key = (table, ChainName::from(name));
            if !applied.shared.contains(&key) {
                self.fresh.push(Op::AddChain { table, chain: key.1.clone() });
                self.fresh.shared.push(key);
            }
        }
        self.fresh.ascribe(None);
    }

    /// Notes that what nobody wants is to go, but for chains that somebody wants after all: to be called last.
    pub fn want_no_leftovers(&mut self, applied: &Applied) {
        let Some(leftovers) = applied.owners.get(&Owner::Nobody) else { return };
        let others = applied.owners.iter().filter(|(owner, _)| **owner != Owner::Nobody);
        let owned: HashSet<_> = others.flat_map(|(_, block)| &block.chains).chain(&self.claimed).cloned().collect();
        for group in &leftovers.groups {
            delete_rules(&mut self.gone, group, &group.rules);
        }
        let unwanted: Vec<_> = leftovers.chains.iter().filter(|chain| !owned.contains(chain)).collect();
        // They jump to each other in any order; an empty chain can always be deleted.
        let flush = |(table, chain): &&ChainKey| Op::FlushChain { table: *table, chain: chain.clone() };
        unwanted.iter().map(flush).for_each(|op| self.gone.push(op));
        for chain in unwanted {
            drop_chain(&mut self.gone, chain);
        }
        self.gone.owners.push((Owner::Nobody, None));
        self.gone.ascribe(Some(&Owner::Nobody));
    }

    /// Notes that `owner` is to have `block`; `None`: nothing any more. `applied` is what the planner was made
    /// with, and what was committed of its pieces since.
    pub fn want(&mut self, applied: &Applied, owner: &Owner, block: Option<Block>) {
        self.compare(applied, owner, block);
        for step in [&mut self.fresh, &mut self.live, &mut self.hooks, &mut self.gone, &mut self.unhooked] {
            step.ascribe(Some(owner));
        }
    }

    fn compare(&mut self, applied: &Applied, owner: &Owner, block: Option<Block>) {
        let before = applied.owners.get(owner);
        let Some(block) = block else {
            if let Some(before) = before {
                self.drop_all(owner, before);
            }
            return;
        };
        let none = AppliedBlock::default();
        let before = before.unwrap_or(&none);
        let chains: Vec<_> = block.chains.iter().map(|c| (c.table, c.name.clone())).collect();
        if applied.owners.contains_key(&Owner::Nobody) {
            self.claimed.extend(chains.iter().cloned());
        }
        block.chains.into_iter().for_each(|chain| self.want_chain(applied, chain));
        let hooked = block.groups.iter().any(is_hook);
        let step = if hooked { &mut self.hooks } else { &mut self.live };
        let groups = want_groups(step, block.groups, before);
        let lost = before.chains.iter().rev().filter(|c| !chains.contains(c));
        let gone = if hooked { &mut self.unhooked } else { &mut self.gone };
        lost.for_each(|chain| drop_chain(gone, chain));
        if let Some(groups) = groups.or_else(|| (chains != before.chains).then(|| keep(&before.groups))) {
            step.owners.push((owner.clone(), Some(PendingBlock { chains, groups })));
        }
    }

    /// A piece of a big load or change that can be committed already.
    pub fn take_piece(&mut self) -> Option<Step> {
        if self.fresh.weight >= PIECE {
            return Some(self.fresh.take());
        }
        let much_gone = self.gone.weight >= PIECE;
        if self.live.weight >= PIECE || (much_gone && !self.live.transaction.is_empty()) {
            let mut piece = self.fresh.take();
            piece.absorb(self.live.take());
            return Some(piece);
        }
        much_gone.then(|| self.gone.take())
    }

    /// The rest, in the order it is to be committed; no step is empty.
    pub fn finish(self) -> Vec<Step> {
        let Self { fresh: mut first, live, hooks, mut gone, unhooked, .. } = self;
        first.absorb(live);
        first.absorb(hooks);
        gone.absorb(unhooked);
        let worth = |step: &Step| !step.transaction.is_empty() || !step.owners.is_empty();
        [first, gone].into_iter().filter(worth).collect()
    }

    fn want_chain(&mut self, applied: &Applied, chain: OwnedChain) {
        let digest = Digest::of_chain(&chain.rules);
        let (table, name) = (chain.table, chain.name.clone());
        match applied.chains.get(&(table, name.clone())) {
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

    fn drop_all(&mut self, owner: &Owner, before: &AppliedBlock) {
        for group in &before.groups {
            delete_rules(&mut self.gone, group, &group.rules);
        }
        before.chains.iter().rev().for_each(|chain| drop_chain(&mut self.gone, chain));
        self.gone.owners.push((owner.clone(), None));
    }
}

fn drop_chain(step: &mut Step, key: &ChainKey) {
    step.push(Op::DeleteChain { table: key.0, chain: key.1.clone() });
    step.deleted.push(key.clone());
}

fn is_hook(group: &Group) -> bool {
    group.table.builtin_chains().contains(&group.chain.as_str())
}

/// Brings the groups of one owner about; `None`: they are what they were.
fn want_groups(step: &mut Step, groups: Vec<Group>, before: &AppliedBlock) -> Option<Vec<PendingGroup>> {
    let mut changed = false;
    for old in before.groups.iter().filter(|old| !groups.iter().any(|g| old.is(g))) {
        changed = true;
        delete_rules(step, old, &old.rules);
    }
    let mut pending = Vec::with_capacity(groups.len());
    // From the last to the first: each is put at the head, so they end in the order given.
    for group in groups.into_iter().rev() {
        let old = before.groups.iter().find(|old| old.is(&group));
        let (group, differs) = want_group(step, group, old.map_or(&[], |o| &o.rules));
        changed |= differs;
        pending.push(group);
    }
    pending.reverse();
    changed.then_some(pending)
}

fn keep(groups: &[AppliedGroup]) -> Vec<PendingGroup> {
    let known = |rules: &[(Digest, Handle)]| rules.iter().map(|&(d, h)| (d, HandleRef::Known(h))).collect();
    let keep = |g: &AppliedGroup| PendingGroup { table: g.table, chain: g.chain.clone(), slot: g.slot, rules: known(&g.rules) };
    groups.iter().map(keep).collect()
}

fn delete_rules(step: &mut Step, from: &AppliedGroup, rules: &[(Digest, Handle)]) {
    let delete = |&(_, handle): &(Digest, Handle)| Op::DeleteRule { table: from.table, chain: from.chain.clone(), handle };
    rules.iter().map(delete).for_each(|op| step.push(op));
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
