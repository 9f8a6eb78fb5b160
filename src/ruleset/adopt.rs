//! From what the kernel was found to hold to [`Applied`]: what is right is taken over with its handles,
//! everything else of ours becomes [`Owner::Nobody`]'s, to be replaced or removed by the same planner
//! that makes every other change.

use std::collections::{BTreeSet, HashMap, VecDeque};

use super::block::{Block, Digest, Group, Kind, Layout, Owner, Side};
use super::diff::{Applied, AppliedBlock, AppliedGroup, ChainKey};
use super::rule::{ChainName, Rule, Table};
use super::transaction::Handle;

/// What was found in the tables of one family, as far as it can matter to a mode.
#[derive(Debug)]
pub struct Found {
    layout: &'static Layout,
    tables: BTreeSet<Table>,
    /// Chains that may be complete in themselves, with the fingerprint of their rules.
    chains: HashMap<ChainKey, Digest>,
    /// Rules of shared chains, in their order.
    shared: HashMap<ChainKey, Vec<(Digest, Handle)>>,
}

impl Found {
    pub fn new(layout: &'static Layout) -> Self {
        Self { layout, tables: BTreeSet::new(), chains: HashMap::new(), shared: HashMap::new() }
    }

    pub fn table(&mut self, table: Table) {
        self.tables.insert(table);
    }

    pub fn chain(&mut self, table: Table, chain: ChainName) {
        match self.layout.kind(table, chain.as_str()) {
            Kind::Dispatch | Kind::Common => drop(self.shared.insert((table, chain), Vec::new())),
            Kind::PerService | Kind::Other => drop(self.chains.insert((table, chain), Digest::EMPTY)),
        }
    }

    /// Notes the next rule of a chain that was noted before; `None`: a rule our types cannot say.
    pub fn rule(&mut self, table: Table, chain: ChainName, handle: Handle, rule: Option<&Rule>) {
        let digest = rule.map_or_else(Digest::unknown, Digest::of);
        let key = (table, chain);
        if let Some(rules) = self.shared.get_mut(&key) {
            rules.push((digest, handle));
        } else if let Some(chain) = self.chains.get_mut(&key) {
            *chain = chain.then(digest);
        }
    }

    /// Hands what was found to those who want it.
    pub fn assign<'b>(self, wanted: impl Iterator<Item = (&'b Owner, &'b Block)> + Clone) -> Applied {
        let mut shared: HashMap<_, _> = self.shared.iter().map(|(key, rules)| (key.clone(), Free::new(rules))).collect();
        let mut owners: HashMap<Owner, AppliedBlock> = HashMap::new();
        let mut unwanted: BTreeSet<_> = self.chains.keys().filter(|key| self.is_per_service(key)).cloned().collect();
        // The tail's groups come after all others, so that only what stands behind those is taken.
        for side in [Side::Head, Side::Tail] {
            for (owner, block) in wanted.clone() {
                let taken = owners.entry(owner.clone()).or_default();
                let groups = block.groups.iter().filter(|g| g.side == side);
                taken.groups.extend(groups.filter_map(|group| take(&mut shared, group)));
            }
        }
        for (owner, block) in wanted {
            let keys = block.chains.iter().map(|chain| (chain.table, chain.name.clone()));
            let existing: Vec<_> = keys.filter(|key| self.chains.contains_key(key)).collect();
            existing.iter().for_each(|key| _ = unwanted.remove(key));
            owners.entry(owner.clone()).or_default().chains = existing;
        }
        let nobody = AppliedBlock { chains: unwanted.into_iter().collect(), groups: leftovers(shared, self.layout) };
        owners.insert(Owner::Nobody, nobody);
        owners.retain(|_, block| *block != AppliedBlock::default());
        Applied { tables: self.tables, chains: self.chains, shared: self.shared.into_keys().collect(), owners }
    }

    fn is_per_service(&self, (table, chain): &ChainKey) -> bool {
        self.layout.kind(*table, chain.as_str()) == Kind::PerService
    }
}

fn take(shared: &mut HashMap<ChainKey, Free>, group: &Group) -> Option<AppliedGroup> {
    let rules = shared.get_mut(&(group.table, group.chain.clone()))?.take(group);
    let (table, chain, slot) = (group.table, group.chain.clone(), group.slot);
    (!rules.is_empty()).then_some(AppliedGroup { table, chain, slot, rules })
}

/// What nobody took of the dispatch chains. In chains that others use too, it is theirs.
fn leftovers(shared: HashMap<ChainKey, Free>, layout: &Layout) -> Vec<AppliedGroup> {
    let ours = shared.into_iter().filter(|((table, chain), _)| layout.kind(*table, chain.as_str()) == Kind::Dispatch);
    let groups = ours.map(|((table, chain), free)| AppliedGroup {
        table,
        chain,
        slot: 0,
        rules: free.rules.into_iter().flatten().collect(),
    });
    groups.filter(|group| !group.rules.is_empty()).collect()
}

/// The rules of one shared chain that nobody has taken yet.
struct Free {
    rules: Vec<Option<(Digest, Handle)>>,
    positions: HashMap<Digest, VecDeque<usize>>,
    /// Where the next group of the tail may begin: behind all that was taken for the head.
    tail: usize,
}

impl Free {
    fn new(rules: &[(Digest, Handle)]) -> Self {
        let mut positions: HashMap<Digest, VecDeque<usize>> = HashMap::new();
        for (position, (digest, _)) in rules.iter().enumerate() {
            positions.entry(*digest).or_default().push_back(position);
        }
        Self { rules: rules.iter().copied().map(Some).collect(), positions, tail: 0 }
    }

    /// Takes those of the group's rules that stand in the chain, in the group's order and on its side.
    /// One that stands elsewhere is not taken: it will be replaced by one in the right place.
    fn take(&mut self, group: &Group) -> Vec<(Digest, Handle)> {
        let mut from = match group.side {
            Side::Head => 0,
            Side::Tail => self.tail,
        };
        let mut taken = Vec::new();
        for digest in group.rules.iter().map(Digest::of) {
            let Some(queue) = self.positions.get_mut(&digest) else { continue };
            let Some(index) = queue.iter().position(|&p| p >= from) else { continue };
            let position = queue.remove(index).expect("the index was just found");
            from = position + 1;
            taken.extend(self.rules[position].take());
        }
        if group.side == Side::Head {
            self.tail = self.tail.max(from);
        }
        taken
    }
}
