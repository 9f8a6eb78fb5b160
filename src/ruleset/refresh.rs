//! What is remembered, corrected by what the kernel was found to hold. Nothing is rendered for it, and only the
//! owners that lost something, or were given something, have to be looked at again.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::adopt::Found;
use super::applied::{Applied, AppliedBlock, AppliedChain, AppliedGroup, ChainKey};
use super::block::{Digest, Kind, Layout, Owner};
use super::rule::{ChainName, Table};
use super::step::Step;
use super::touched::Touched;
use super::transaction::Handle;

/// The rules of the shared chains that were looked at, less those that an owner has claimed.
type Unclaimed = HashMap<ChainKey, HashMap<Handle, Digest>>;

/// Chains of one owner that are not what they were.
#[derive(Debug, Default)]
struct Differences {
    changed: HashSet<ChainKey>,
    missing: HashSet<ChainKey>,
    new: Vec<ChainKey>,
}

impl Applied {
    /// Takes in what was `found` in the chains `touched`. Gives the owners whose rules are not what was
    /// programmed for them. What should not be there at all becomes that of [`Owner::Nobody`].
    pub fn refresh(&mut self, touched: &Touched, found: Found) -> BTreeSet<Owner> {
        let layout = found.layout;
        if touched.is_everything() {
            self.tables = found.complete_tables();
        }
        let differences = self.refresh_chains(touched, found.chains);
        let mut unclaimed = self.refresh_shared(touched, found.shared);
        let mut affected = BTreeSet::new();
        for (owner, block) in &mut self.owners {
            let lost_chains = block.lose(&differences);
            if block.claim(&mut unclaimed) || lost_chains {
                affected.insert(owner.clone());
            }
        }
        let strange = self.strange_chains(touched, differences.new, layout);
        let is_ours = |key: &ChainKey| layout.kind(key.0, key.1.as_str()) == Kind::Dispatch;
        let groups = unclaimed.into_iter().filter(|(key, rules)| is_ours(key) && !rules.is_empty()).map(alien_group);
        if self.disown(strange, groups.collect()) {
            affected.insert(Owner::Nobody);
        }
        self.rules.clear();
        self.count();
        affected
    }

    /// Leaves `owner` nothing but what it had programmed: chains that were made for it in vain become nobody's.
    pub fn abandon(&mut self, owner: &Owner, chains: impl IntoIterator<Item = ChainKey>) {
        let kept = self.owners.get(owner).map(|block| block.chains.as_slice()).unwrap_or_default();
        let made: Vec<_> = chains.into_iter().filter(|key| self.chains.contains_key(key) && !kept.contains(key)).collect();
        self.disown(made, Vec::new());
    }

    /// Steps that were to delete chains were not committed: those whose owner wants them no more become nobody's.
    pub fn keep_in_mind<'a>(&mut self, steps: impl Iterator<Item = &'a Step>) {
        let deleted = steps.flat_map(|step| &step.deleted);
        let mut chains: Vec<_> = deleted.filter(|key| self.chains.contains_key(key)).cloned().collect();
        self.retain_unowned(&mut chains);
        self.disown(chains, Vec::new());
    }

    /// Chains that were to be deleted exist still, without rules, and are nobody's.
    pub fn keep_empty(&mut self, chains: Vec<(Table, ChainName)>) {
        self.chains.extend(chains.iter().map(|chain| (chain.clone(), AppliedChain::EMPTY)));
        self.disown(chains, Vec::new());
    }

    /// Is there anything that nobody wants?
    pub fn has_leftovers(&self) -> bool {
        self.owners.contains_key(&Owner::Nobody)
    }

    fn refresh_chains(&mut self, touched: &Touched, mut found: HashMap<ChainKey, AppliedChain>) -> Differences {
        let mut differences = Differences::default();
        let looked_at: Vec<ChainKey> =
            if touched.is_everything() { self.chains.keys().cloned().collect() } else { touched.chains().cloned().collect() };
        for key in looked_at {
            let Some(known) = self.chains.get_mut(&key) else { continue };
            match found.remove(&key) {
                Some(now) if now == *known => {}
                Some(now) => {
                    *known = now;
                    differences.changed.insert(key);
                }
                None => {
                    self.chains.remove(&key);
                    differences.missing.insert(key);
                }
            }
        }
        differences.new = found.keys().cloned().collect();
        self.chains.extend(found);
        differences
    }

    fn refresh_shared(&mut self, touched: &Touched, found: HashMap<ChainKey, Vec<(Digest, Handle)>>) -> Unclaimed {
        let mut unclaimed = Unclaimed::new();
        for key in self.shared.iter().filter(|key| touched.contains(key) && !found.contains_key(key)) {
            // Its rules went with it; and a table without one of its built-in chains is not complete.
            unclaimed.insert(key.clone(), HashMap::new());
            if key.0.builtin_chains().contains(&key.1.as_str()) {
                self.tables.remove(&key.0);
            }
        }
        self.shared.retain(|key| !unclaimed.contains_key(key));
        for (key, rules) in found {
            self.shared.insert(key.clone());
            unclaimed.insert(key, rules.into_iter().map(|(digest, handle)| (handle, digest)).collect());
        }
        unclaimed
    }

    /// Chains that only we make and that no owner has.
    fn strange_chains(&self, touched: &Touched, new: Vec<ChainKey>, layout: &Layout) -> Vec<ChainKey> {
        let mut suspects = if touched.is_everything() { self.chains.keys().cloned().collect() } else { new };
        suspects.retain(|(table, chain)| layout.kind(*table, chain.as_str()) == Kind::PerService);
        self.retain_unowned(&mut suspects);
        suspects
    }

    fn retain_unowned(&self, chains: &mut Vec<ChainKey>) {
        if chains.is_empty() {
            return;
        }
        let owned: HashSet<_> = self.owners.values().flat_map(|block| &block.chains).collect();
        chains.retain(|key| !owned.contains(key));
    }

    fn disown(&mut self, chains: Vec<ChainKey>, groups: Vec<AppliedGroup>) -> bool {
        if chains.is_empty() && groups.is_empty() {
            return false;
        }
        let nobody = self.owners.entry(Owner::Nobody).or_default();
        let known: HashSet<_> = nobody.chains.iter().cloned().collect();
        nobody.chains.extend(chains.into_iter().filter(|chain| !known.contains(chain)));
        nobody.groups.extend(groups);
        true
    }
}

impl AppliedBlock {
    /// Tells whether one of its chains is not what it was, and forgets those that are gone.
    fn lose(&mut self, differences: &Differences) -> bool {
        let before = self.chains.len();
        self.chains.retain(|key| !differences.missing.contains(key));
        self.chains.len() < before || self.chains.iter().any(|key| differences.changed.contains(key))
    }

    /// Claims its rules in the chains that were looked at. Tells whether some are not there any more, which it
    /// forgets.
    fn claim(&mut self, unclaimed: &mut Unclaimed) -> bool {
        let mut lost = false;
        for group in &mut self.groups {
            let Some(rules) = unclaimed.get_mut(&(group.table, group.chain.clone())) else { continue };
            let before = group.rules.len();
            // A table that was made anew gives the same handles to other rules.
            group.rules.retain(|(digest, handle)| rules.get(handle) == Some(digest) && rules.remove(handle).is_some());
            lost |= group.rules.len() < before;
        }
        self.groups.retain(|group| !group.rules.is_empty());
        lost
    }
}

fn alien_group(((table, chain), rules): (ChainKey, HashMap<Handle, Digest>)) -> AppliedGroup {
    AppliedGroup { table, chain, slot: 0, rules: rules.into_iter().map(|(handle, digest)| (digest, handle)).collect() }
}
