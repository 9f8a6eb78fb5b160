//! From what the kernel was found to hold to [`Applied`]: what is right is taken over with its handles,
//! everything else of ours becomes [`Owner::Nobody`]'s, to be replaced or removed by the same planner
//! that makes every other change.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use super::applied::{Applied, AppliedBlock, AppliedChain, AppliedGroup, ChainKey};
use super::block::{Block, Digest, Group, Kind, Layout, Owner, Side};
use super::rule::{ChainName, Rule, Table};
use super::transaction::Handle;

/// What was found in the tables of one family, as far as it can matter to a mode.
#[derive(Debug)]
pub struct Found {
    pub(super) layout: &'static Layout,
    tables: BTreeSet<Table>,
    /// Chains that may be complete in themselves, with the fingerprint of their rules.
    pub(super) chains: HashMap<ChainKey, AppliedChain>,
    /// Rules of shared chains, in their order.
    pub(super) shared: HashMap<ChainKey, Vec<(Digest, Handle)>>,
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
            Kind::Deletable | Kind::Other => drop(self.chains.insert((table, chain), AppliedChain::EMPTY)),
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

    /// Is there nothing of the mode's at all, as on a node that never had such rules?
    pub fn is_nothing(&self) -> bool {
        let common = |(table, chain): &ChainKey| self.layout.kind(*table, chain.as_str()) == Kind::Common;
        let is_ours = |(table, chain): &&ChainKey| self.layout.kind(*table, chain.as_str()) == Kind::Deletable;
        self.shared.keys().all(common) && !self.chains.keys().any(|key| is_ours(&key))
    }

    /// The tables that have all their built-in chains. iptables makes each when the first rule goes into it, so a
    /// table that others made may lack some: it counts as missing, to be completed.
    pub(super) fn complete_tables(&self) -> BTreeSet<Table> {
        let has = |table: Table, chain: &str| self.shared.contains_key(&(table, chain.into()));
        let complete = |table: &Table| table.builtin_chains().iter().all(|chain| has(*table, chain));
        self.tables.iter().copied().filter(complete).collect()
    }

    /// Begins to hand out what was found to those who want it.
    pub fn adopt(self) -> Adoption {
        let is_deletable = |(table, chain): &&ChainKey| self.layout.kind(*table, chain.as_str()) == Kind::Deletable;
        Adoption {
            free: self.shared.iter().map(|(key, rules)| (key.clone(), Free::new(rules))).collect(),
            unwanted: self.chains.keys().filter(is_deletable).cloned().collect(),
            owners: HashMap::new(),
            tails: Vec::new(),
            found: self,
        }
    }
}

/// What was found, being handed out owner by owner.
#[derive(Debug)]
pub struct Adoption {
    found: Found,
    free: HashMap<ChainKey, Free>,
    unwanted: BTreeSet<ChainKey>,
    owners: HashMap<Owner, AppliedBlock>,
    /// Groups that must stand behind all others, and so are handed theirs last.
    tails: Vec<(Owner, Group)>,
}

impl Adoption {
    /// Hands `owner` what `block` has in common with the kernel.
    pub fn take(&mut self, owner: &Owner, block: &Block) {
        let keys = block.chains.iter().map(|chain| (chain.table, chain.name.clone()));
        let chains: Vec<_> = keys.filter(|key| self.found.chains.contains_key(key)).collect();
        for key in &chains {
            self.unwanted.remove(key);
        }
        let (tails, heads): (Vec<_>, Vec<_>) = block.groups.iter().partition(|g| g.side == Side::Tail);
        self.tails.extend(tails.into_iter().map(|group| (owner.clone(), group.clone())));
        let groups = heads.into_iter().filter_map(|group| take(&mut self.free, group)).collect();
        self.owners.insert(owner.clone(), AppliedBlock { chains, groups });
    }

    /// All owners have been here. What is left is nobody's.
    pub fn finish(mut self) -> Applied {
        for (owner, group) in std::mem::take(&mut self.tails) {
            let taken = take(&mut self.free, &group);
            self.owners.entry(owner).or_default().groups.extend(taken);
        }
        let groups = leftovers(self.free, self.found.layout);
        self.owners.insert(Owner::Nobody, AppliedBlock { chains: self.unwanted.into_iter().collect(), groups });
        self.owners.retain(|_, block| *block != AppliedBlock::default());
        let mut applied = Applied {
            tables: self.found.complete_tables(),
            chains: self.found.chains,
            shared: self.found.shared.into_keys().collect(),
            owners: self.owners,
            rules: BTreeMap::new(),
        };
        applied.count();
        applied
    }
}

fn take(shared: &mut HashMap<ChainKey, Free>, group: &Group) -> Option<AppliedGroup> {
    let rules = shared.get_mut(&(group.table, group.chain.clone()))?.take(group);
    let (table, chain, slot) = (group.table, group.chain.clone(), group.slot);
    (!rules.is_empty()).then_some(AppliedGroup { table, chain, slot, rules })
}

/// What nobody took of the dispatch chains. In chains that others use too, it is theirs, but for what another mode left.
fn leftovers(shared: HashMap<ChainKey, Free>, layout: &Layout) -> Vec<AppliedGroup> {
    let group = |(key, free): (ChainKey, Free)| {
        let rules = free.rules.into_iter().flatten().filter(|(digest, _)| layout.is_ours(&key, *digest)).collect();
        AppliedGroup { table: key.0, chain: key.1, slot: 0, rules }
    };
    shared.into_iter().map(group).filter(|group| !group.rules.is_empty()).collect()
}

/// The rules of one shared chain that nobody has taken yet.
#[derive(Debug)]
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
