//! Names that stand in many rules, kept once: a table of 160,000 rules has far fewer chains.

use std::collections::HashMap;

use crate::ruleset::ChainName;

#[derive(Debug, Default)]
pub struct Names(HashMap<Box<str>, ChainName>);

impl Names {
    pub fn get(&mut self, name: &str) -> ChainName {
        if let Some(known) = self.0.get(name) {
            return known.clone();
        }
        let new = ChainName::from(name);
        self.0.insert(name.into(), new.clone());
        new
    }
}
