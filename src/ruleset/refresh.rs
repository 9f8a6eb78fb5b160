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
type Unclaimed = HashMap<ChainKey, Rest>;

/// What nobody has claimed of one shared chain.
#[derive(Debug)]
struct Rest {
    /// Each rule and its place in the chain.
    rules: HashMap<Handle, (Digest, usize)>,
    /// Others' rules stand there too, and nobody removes what nobody claims: equals of ours must be claimed, or they
    /// would stand there twice.
    is_common: bool,
}

impl Rest {
    fn new(rules: &[(Digest, Handle)], is_common: bool) -> Self {
        let rules = rules.iter().enumerate().map(|(place, &(digest, handle))| (handle, (digest, place)));
        Self { rules: rules.collect(), is_common }
    }

    /// Takes the rule with this handle if it is this rule. Gives its place.
    fn take(&mut self, (digest, handle): (Digest, Handle)) -> Option<usize> {
        // A table that was made anew gives the same handles to other rules.
        let (_, place) = self.rules.get(&handle).copied().filter(|(found, _)| *found == digest)?;
        self.rules.remove(&handle);
        Some(place)
    }

    /// Takes the first equal of a rule that stands between these places, as `iptables-restore` of our own dump leaves.
    fn take_equal(&mut self, digest: Digest, after: Option<usize>, before: Option<usize>) -> Option<(Handle, usize)> {
        let fits = |place: usize| after.is_none_or(|after| place > after) && before.is_none_or(|before| place < before);
        let equals = self.rules.iter().filter(|(_, (found, place))| *found == digest && fits(*place));
        let (handle, place) = equals.map(|(handle, (_, place))| (*handle, *place)).min_by_key(|(_, place)| *place)?;
        self.rules.remove(&handle);
        Some((handle, place))
    }
}

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
        let mut unclaimed = self.refresh_shared(touched, found.shared, layout);
        let mut affected = BTreeSet::new();
        for (owner, block) in &mut self.owners {
            let lost_chains = block.lose(&differences);
            if block.claim(&mut unclaimed) || lost_chains {
                affected.insert(owner.clone());
            }
        }
        let strange = self.strange_chains(touched, differences.new, layout);
        let groups = unclaimed.into_iter().map(|(key, rest)| alien_group(key, rest, layout));
        if self.disown(strange, groups.filter(|group| !group.rules.is_empty()).collect()) {
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

    fn refresh_shared(
        &mut self,
        touched: &Touched,
        found: HashMap<ChainKey, Vec<(Digest, Handle)>>,
        layout: &Layout,
    ) -> Unclaimed {
        let mut unclaimed = Unclaimed::new();
        for key in self.shared.iter().filter(|key| touched.contains(key) && !found.contains_key(key)) {
            // Its rules went with it; and a table without one of its built-in chains is not complete.
            unclaimed.insert(key.clone(), Rest::new(&[], false));
            if key.0.builtin_chains().contains(&key.1.as_str()) {
                self.tables.remove(&key.0);
            }
        }
        self.shared.retain(|key| !unclaimed.contains_key(key));
        for (key, rules) in found {
            self.shared.insert(key.clone());
            let is_common = layout.kind(key.0, key.1.as_str()) == Kind::Common;
            unclaimed.insert(key, Rest::new(&rules, is_common));
        }
        unclaimed
    }

    /// Chains that only we make and that no owner has.
    fn strange_chains(&self, touched: &Touched, new: Vec<ChainKey>, layout: &Layout) -> Vec<ChainKey> {
        let mut suspects = if touched.is_everything() { self.chains.keys().cloned().collect() } else { new };
        suspects.retain(|(table, chain)| layout.kind(*table, chain.as_str()) == Kind::Deletable);
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
            let Some(rest) = unclaimed.get_mut(&(group.table, group.chain.clone())) else { continue };
            lost |= group.claim(rest);
        }
        self.groups.retain(|group| !group.rules.is_empty());
        lost
    }
}

impl AppliedGroup {
    /// The same for one group.
    fn claim(&mut self, rest: &mut Rest) -> bool {
        let mut places: Vec<_> = self.rules.iter().map(|&rule| rest.take(rule)).collect();
        if rest.is_common {
            self.claim_equals(rest, &mut places);
        }
        let count = self.rules.len();
        let mut places = places.iter();
        self.rules.retain(|_| places.next().is_some_and(Option::is_some));
        self.rules.len() < count
    }

    /// For rules without a place: equals of theirs between those that have one.
    fn claim_equals(&mut self, rest: &mut Rest, places: &mut [Option<usize>]) {
        for (index, (digest, handle)) in self.rules.iter_mut().enumerate() {
            if places[index].is_some() {
                continue;
            }
            let after = places[..index].iter().rev().find_map(|place| *place);
            let before = places[index + 1..].iter().find_map(|place| *place);
            if let Some((equal, place)) = rest.take_equal(*digest, after, before) {
                *handle = equal;
                places[index] = Some(place);
            }
        }
    }
}

/// What of the rest should not be there.
fn alien_group(key: ChainKey, rest: Rest, layout: &Layout) -> AppliedGroup {
    let rules = rest.rules.into_iter().map(|(handle, (digest, _))| (digest, handle));
    let rules = rules.filter(|(digest, _)| layout.is_ours(&key, *digest)).collect();
    AppliedGroup { table: key.0, chain: key.1, slot: 0, rules }
}
