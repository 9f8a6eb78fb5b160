//! What one owner wants in a family's tables, and which chains belong to whom.
//!
//! Everything wanted is a set of [`Block`]s, one for each owner: a service port, or the mode itself. A
//! change of one Service changes its blocks and nothing else, so differences are found block by block.

use std::collections::HashSet;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, LazyLock};

use sha2::{Digest as _, Sha256};

use super::rule::{ChainName, Rule, Table};

/// Whose block it is: the mode itself, or a service port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Owner {
    /// Rules that exist whatever Services there are.
    Mode,
    /// `namespace/name:port/protocol`.
    ServicePort(Arc<str>),
    /// Nobody wants it: left over by an earlier run, another proxy, or somebody's hand.
    Nobody,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mode => f.write_str("the mode's own rules"),
            Self::ServicePort(name) => write!(f, "service port {name}"),
            Self::Nobody => f.write_str("leftovers"),
        }
    }
}

/// All that one owner wants in one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Block {
    /// Chains that are the owner's alone, each complete. A chain stands after those it jumps to.
    pub chains: Vec<OwnedChain>,
    /// Rules in chains that several owners, or other programs, put rules into.
    pub groups: Vec<Group>,
}

impl Block {
    pub fn is_empty(&self) -> bool {
        self.chains.is_empty() && self.groups.is_empty()
    }
}

/// A chain and all its rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedChain {
    pub table: Table,
    pub name: ChainName,
    pub rules: Vec<Rule>,
}

/// Rules of one owner that follow each other in a shared chain. Their order counts; where the group as
/// a whole stands among others does not, but for its [`Side`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    pub table: Table,
    pub chain: ChainName,
    /// Tells apart the groups that one owner has in one chain.
    pub slot: u8,
    pub side: Side,
    pub rules: Vec<Rule>,
}

/// Which end of its chain a group is put at. Groups of one side are never sorted among themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    Head,
    /// Behind every group of the other side.
    Tail,
}

/// Which chains are a mode's, beside those that blocks own.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Tables it has something in: made when missing.
    pub tables: &'static [Table],
    /// Dispatch chains: ours alone; a rule in one that no owner wants is removed.
    pub dispatch: &'static [(Table, &'static str)],
    /// Chains that other programs use too (kubelet's `KUBE-FIREWALL`): made when missing, never flushed
    /// nor deleted, and what else stands in them stays.
    pub common: &'static [(Table, &'static str)],
    /// Beginnings of the names of chains that are ours to delete when no owner wants them.
    pub prefixes: &'static [(Table, &'static str)],
    /// Chains, by their whole names, that another mode leaves behind: ours to delete when no owner wants them.
    pub stale_chains: &'static [&'static [(Table, &'static str)]],
    /// What another mode leaves behind in built-in chains.
    pub stale_hooks: &'static LazyLock<StaleHooks>,
}

/// Rules in built-in chains that are ours to delete when no owner wants them: exactly these, whatever looks like them.
#[derive(Debug, Default)]
pub struct StaleHooks(HashSet<(Table, ChainName, Digest)>);

impl FromIterator<Group> for StaleHooks {
    fn from_iter<T: IntoIterator<Item = Group>>(groups: T) -> Self {
        let rules = |group: Group| group.rules.into_iter().map(move |rule| (group.table, group.chain.clone(), Digest::of(&rule)));
        Self(groups.into_iter().flat_map(rules).collect())
    }
}

/// What a chain is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Dispatch,
    /// A built-in chain, or one of [`Layout::common`].
    Common,
    /// Deletable by its name: a service port's, or another mode's.
    Deletable,
    /// Somebody else's, or one of the mode's own complete chains.
    Other,
}

impl Layout {
    pub fn kind(&self, table: Table, chain: &str) -> Kind {
        let stands_in = |list: &[(Table, &str)]| list.iter().any(|&(t, c)| t == table && c == chain);
        if stands_in(self.dispatch) {
            Kind::Dispatch
        } else if table.builtin_chains().contains(&chain) || stands_in(self.common) {
            Kind::Common
        } else if self.prefixes.iter().any(|&(t, prefix)| t == table && chain.starts_with(prefix))
            || self.stale_chains.iter().any(|list| stands_in(list))
        {
            Kind::Deletable
        } else {
            Kind::Other
        }
    }

    /// Is a rule nobody's business but ours, where it stands and no owner wants it? All are in a dispatch chain; in a
    /// built-in one those that another mode left.
    pub(super) fn is_ours(&self, (table, chain): &(Table, ChainName), rule: Digest) -> bool {
        match self.kind(*table, chain.as_str()) {
            Kind::Dispatch => true,
            Kind::Common => self.stale_hooks.0.contains(&(*table, chain.clone(), rule)),
            Kind::Deletable | Kind::Other => false,
        }
    }
}

/// A fingerprint of a rule or of a chain's rules in their order: what is remembered of what was
/// programmed. 128 bits of SHA-256, so that no tenant can make two rules look the same.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 16]);

impl Digest {
    /// The fingerprint of a chain without rules.
    pub const EMPTY: Self = Self([0; 16]);

    pub fn of(rule: &Rule) -> Self {
        let mut hasher = Sha(Sha256::new());
        rule.hash(&mut hasher);
        hasher.digest()
    }

    /// The fingerprint of a rule that our types cannot say: like that of no rule of ours.
    pub fn unknown() -> Self {
        Self([0xff; 16])
    }

    pub fn of_chain<'a>(rules: impl IntoIterator<Item = &'a Rule>) -> Self {
        rules.into_iter().fold(Self::EMPTY, |chain, rule| chain.then(Self::of(rule)))
    }

    /// The fingerprint of this chain with one more rule.
    #[must_use]
    pub fn then(self, rule: Self) -> Self {
        let mut hasher = Sha(Sha256::new());
        hasher.write(&self.0);
        hasher.write(&rule.0);
        hasher.digest()
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

/// Feeds what `derive(Hash)` tells into SHA-256.
struct Sha(Sha256);

impl Sha {
    fn digest(self) -> Digest {
        let full = self.0.finalize();
        Digest(std::array::from_fn(|i| full[i]))
    }
}

impl Hasher for Sha {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        unreachable!("the digest is taken whole")
    }
}
