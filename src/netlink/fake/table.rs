//! One table of the fake kernel, and what each operation does to it.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::errno::Errno;
use super::validate;
use crate::net::Protocol;
use crate::ruleset::{ChainName, Handle, Match, Op, Place, Rule, Table, Target};

#[derive(Clone, Debug)]
pub struct FakeTable {
    pub name: Table,
    /// The last handle given out. A failed transaction gives none back.
    pub counter: u64,
    /// Behind a counted pointer, so that a copy of the table to try things on is cheap.
    pub chains: BTreeMap<ChainName, Arc<FakeChain>>,
    /// A rule was added that can make the table invalid (`NFT_VALIDATE_NEED`).
    pub needs_validation: bool,
}

#[derive(Clone, Debug)]
pub struct FakeChain {
    /// A built-in chain: packets enter here.
    pub base: bool,
    /// The chain's own handle: chains are listed by age.
    pub born: u64,
    /// How many rules jump here.
    pub jumps: usize,
    pub rules: Vec<Slot>,
}

#[derive(Clone, Debug)]
pub struct Slot {
    pub handle: Handle,
    /// `None`: a rule of somebody else that our types cannot say.
    pub rule: Option<Arc<Rule>>,
    /// Deleted in the transaction under way: it has no effect, but keeps its place until the end, and
    /// other rules can be put beside it.
    pub deleted: bool,
}

impl FakeTable {
    pub fn new(name: Table) -> Self {
        Self { name, counter: 0, chains: BTreeMap::new(), needs_validation: false }
    }

    /// Built-in chains first, in the order iptables prints them, then the others by name.
    pub fn sorted_chains(&self) -> Vec<(&ChainName, &FakeChain)> {
        let builtin = self.name.builtin_chains();
        let mut chains: Vec<_> = self.chains.iter().map(|(name, chain)| (name, &**chain)).collect();
        chains.sort_by_key(|(name, _)| builtin.iter().position(|b| *b == name.as_str()).unwrap_or(builtin.len()));
        chains
    }

    pub fn chains_by_age(&self) -> Vec<(Table, &ChainName, &FakeChain)> {
        let mut chains: Vec<_> = self.chains.iter().map(|(name, chain)| (self.name, name, &**chain)).collect();
        chains.sort_by_key(|(_, _, chain)| chain.born);
        chains
    }

    pub fn add_foreign_rule(&mut self, chain: &ChainName) -> Option<Handle> {
        let chain = Arc::make_mut(self.chains.get_mut(chain)?);
        self.counter += 1;
        let handle = Handle(self.counter);
        chain.rules.push(Slot { handle, rule: None, deleted: false });
        Some(handle)
    }

    /// Validates the table if that is due; its name if it is bad.
    pub fn validate(&mut self) -> Option<Table> {
        if self.needs_validation && validate::table(self).is_err() {
            return Some(self.name);
        }
        self.needs_validation = false;
        None
    }

    /// Forgets the places of deleted rules.
    pub fn settle(&mut self) {
        for chain in self.chains.values_mut().filter(|chain| chain.rules.iter().any(|slot| slot.deleted)) {
            Arc::make_mut(chain).rules.retain(|slot| !slot.deleted);
        }
    }

    fn next_handle(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    fn chain(&mut self, name: &ChainName) -> Result<&mut FakeChain, Errno> {
        self.chains.get_mut(name).map(Arc::make_mut).ok_or(Errno::ENOENT)
    }

    fn insert_chain(&mut self, name: ChainName, base: bool) {
        let born = self.next_handle();
        self.chains.insert(name, Arc::new(FakeChain { base, born, jumps: 0, rules: Vec::new() }));
    }
}

/// What the operations do.
impl FakeTable {
    /// Returns the handle of an added rule.
    pub fn apply(&mut self, op: &Op) -> Result<Option<Handle>, Errno> {
        match op {
            Op::AddTable(_) => self.add_builtin_chains().map(|()| None),
            Op::AddChain { chain, .. } => self.add_chain(chain).map(|()| None),
            Op::FlushChain { chain, .. } => self.flush(chain).map(|()| None),
            Op::AddRule { chain, place, rule, .. } => self.add_rule(chain, *place, rule).map(Some),
            Op::DeleteRule { chain, handle, .. } => self.delete_rule(chain, *handle).map(|()| None),
            Op::DeleteChain { chain, .. } => self.delete_chain(chain).map(|()| None),
        }
    }

    /// Each is a message of its own: one that fails leaves the others be.
    pub fn add_builtin_chains(&mut self) -> Result<(), Errno> {
        let mut result = Ok(());
        for name in self.name.builtin_chains() {
            let name = ChainName::from(*name);
            match self.chains.get(&name) {
                None => self.insert_chain(name, true),
                Some(chain) if chain.base => {}
                Some(_) => result = Err(Errno::EEXIST),
            }
        }
        result
    }

    fn add_chain(&mut self, name: &ChainName) -> Result<(), Errno> {
        if self.chains.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        self.insert_chain(name.clone(), false);
        Ok(())
    }

    fn add_rule(&mut self, name: &ChainName, place: Place, rule: &Rule) -> Result<Handle, Errno> {
        self.chain(name)?;
        // Taken before anything else is looked at: a refused rule uses its handle up.
        let handle = Handle(self.next_handle());
        let chain = self.chain(name)?;
        let base = chain.base;
        let index = match place {
            Place::Head => 0,
            Place::Tail => chain.rules.len(),
            Place::After(handle) => chain.place_of(handle)? + 1,
            Place::Before(handle) => chain.place_of(handle)?,
        };
        let hook = base.then_some(name);
        check_extensions(self.name, hook, rule)?;
        if let Some(Target::Jump(target)) = &rule.target {
            let target = self.chain(target)?;
            if target.base {
                return Err(Errno::EOPNOTSUPP);
            }
            target.jumps += 1;
        }
        let slot = Slot { handle, rule: Some(Arc::new(rule.clone())), deleted: false };
        self.chain(name)?.rules.insert(index, slot);
        self.needs_validation |= rule.target.is_some() || rule.matches.iter().any(is_extension);
        Ok(handle)
    }

    fn delete_rule(&mut self, name: &ChainName, handle: Handle) -> Result<(), Errno> {
        let chain = self.chain(name)?;
        let slot = chain.rules.iter_mut().find(|slot| slot.handle == handle && !slot.deleted).ok_or(Errno::ENOENT)?;
        slot.deleted = true;
        let rule = slot.rule.clone();
        self.forget_jump(rule.as_deref());
        Ok(())
    }

    fn flush(&mut self, name: &ChainName) -> Result<(), Errno> {
        let chain = self.chain(name)?;
        let live = chain.rules.iter_mut().filter(|slot| !slot.deleted);
        let mut rules = Vec::new();
        for slot in live {
            slot.deleted = true;
            rules.extend(slot.rule.clone());
        }
        for rule in &rules {
            self.forget_jump(Some(rule));
        }
        Ok(())
    }

    /// The rules go first, also when the chain then cannot.
    fn delete_chain(&mut self, name: &ChainName) -> Result<(), Errno> {
        // Counted before: a chain that jumps to itself cannot go.
        let jumps = self.chain(name)?.jumps;
        self.flush(name)?;
        if jumps > 0 {
            return Err(Errno::EBUSY);
        }
        self.chains.remove(name);
        Ok(())
    }

    fn forget_jump(&mut self, rule: Option<&Rule>) {
        if let Some(Target::Jump(target)) = rule.and_then(|rule| rule.target.as_ref())
            && let Ok(chain) = self.chain(target)
        {
            chain.jumps -= 1;
        }
    }
}

impl FakeChain {
    fn place_of(&self, handle: Handle) -> Result<usize, Errno> {
        self.rules.iter().position(|slot| slot.handle == handle).ok_or(Errno::ENOENT)
    }
}

/// Whether a match is an xt extension: those and verdicts can make a table invalid.
fn is_extension(m: &Match) -> bool {
    !matches!(m, Match::Mark(_) | Match::Port { destination: Some(_), protocol: Protocol::Tcp | Protocol::Udp })
}

/// What extensions check of the rule they are put into. `hook`: the built-in chain it is in.
fn check_extensions(table: Table, hook: Option<&ChainName>, rule: &Rule) -> Result<(), Errno> {
    for m in &rule.matches {
        if let Match::Port { protocol, .. } = m
            && is_extension(m)
            && rule.protocol != Some(*protocol)
        {
            return Err(Errno::EINVAL);
        }
    }
    let Some((wanted, hooks)) = rule.target.as_ref().and_then(validate::limits) else { return Ok(()) };
    let hook_fits = hook.is_none_or(|hook| hooks.contains(&hook.as_str()));
    if wanted == table && hook_fits { Ok(()) } else { Err(Errno::EINVAL) }
}
