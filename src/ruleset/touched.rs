//! Which chains somebody else changed: where to look again, not what was changed.

use std::collections::BTreeSet;

use super::rule::{ChainName, Table};

/// From so many chains on, reading everything is simpler and hardly dearer than chain by chain.
const MANY: usize = 4096;

/// Chains of one family that may not hold any more what we put there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    chains: BTreeSet<(Table, ChainName)>,
    everything: bool,
}

impl Touched {
    /// Nobody knows what was changed.
    pub fn everything() -> Self {
        Self { chains: BTreeSet::new(), everything: true }
    }

    pub fn is_everything(&self) -> bool {
        self.everything
    }

    pub fn is_empty(&self) -> bool {
        !self.everything && self.chains.is_empty()
    }

    /// The chains, unless it is everything.
    pub fn chains(&self) -> impl Iterator<Item = &(Table, ChainName)> {
        self.chains.iter()
    }

    pub fn contains(&self, chain: &(Table, ChainName)) -> bool {
        self.everything || self.chains.contains(chain)
    }

    pub fn add(&mut self, table: Table, chain: ChainName) {
        if !self.everything {
            self.chains.insert((table, chain));
            if self.chains.len() >= MANY {
                *self = Self::everything();
            }
        }
    }

    pub fn merge(&mut self, other: Self) {
        if other.everything {
            *self = other;
        } else {
            other.chains.into_iter().for_each(|(table, chain)| self.add(table, chain));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_chains_are_everything() {
        let mut touched = Touched::default();
        for i in 0..MANY {
            assert!(!touched.is_everything());
            touched.add(Table::Nat, ChainName::from(format!("KUBE-SEP-{i}").as_str()));
        }
        assert!(touched.is_everything() && touched.chains().next().is_none());
        touched.add(Table::Nat, "KUBE-SVC-A".into());
        assert_eq!(touched, Touched::everything());
    }

    #[test]
    fn two_reports_are_one() {
        let mut touched = Touched::default();
        assert!(touched.is_empty());
        let mut other = Touched::default();
        other.add(Table::Nat, "KUBE-SVC-A".into());
        touched.merge(other.clone());
        touched.merge(other.clone());
        assert_eq!(touched, other);
        touched.merge(Touched::everything());
        touched.merge(other);
        assert!(touched.is_everything());
    }
}
