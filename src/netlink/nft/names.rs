//! Names that stand in many rules, kept once: a table of 160,000 rules has far fewer chains.

use std::collections::{BTreeMap, HashMap};

use crate::ruleset::{ChainName, SetName};

#[derive(Debug, Default)]
pub struct Names {
    chains: HashMap<Box<str>, ChainName>,
    sets: Option<BTreeMap<u16, SetName>>,
    /// A rule was read that has a set in it, before the names of sets were known.
    lacks_sets: bool,
}

impl Names {
    pub fn get(&mut self, name: &str) -> ChainName {
        if let Some(known) = self.chains.get(name) {
            return known.clone();
        }
        let new = ChainName::from(name);
        self.chains.insert(name.into(), new.clone());
        new
    }

    /// The set of a number. `None`: there is none, or [`Self::lacks_sets`].
    pub fn set(&mut self, index: u16) -> Option<SetName> {
        self.lacks_sets |= self.sets.is_none();
        self.sets.as_ref()?.get(&index).cloned()
    }

    /// Must what was read be read again, with the names of sets? They are asked for only where a rule needs them.
    pub fn lacks_sets(&self) -> bool {
        self.lacks_sets
    }

    pub fn know_sets(&mut self, sets: BTreeMap<u16, SetName>) {
        self.sets = Some(sets);
        self.lacks_sets = false;
    }
}
