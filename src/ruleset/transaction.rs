//! A transaction as a value: a list of typed operations for one family that the kernel takes whole or
//! not at all. It can be printed, counted and compared; sending it is [`crate::netlink`]'s business.

use std::fmt;

use super::rule::{ChainName, Rule, Table};
use super::text;
use crate::net::Family;

/// The kernel's number for a rule, unique in its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Handle(pub u64);

/// Where in its chain a rule is put.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    Head,
    Tail,
    After(Handle),
    Before(Handle),
}

/// One operation. Each becomes one `nf_tables` message, but [`Op::AddTable`], which brings the table's
/// built-in chains along.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Makes the table, with all its built-in chains as iptables-nft would; no error if it exists.
    AddTable(Table),
    /// Makes a chain that must not exist yet.
    AddChain {
        table: Table,
        chain: ChainName,
    },
    /// Removes all rules of a chain.
    FlushChain {
        table: Table,
        chain: ChainName,
    },
    AddRule {
        table: Table,
        chain: ChainName,
        place: Place,
        rule: Rule,
    },
    DeleteRule {
        table: Table,
        chain: ChainName,
        handle: Handle,
    },
    /// Removes a chain and its rules; EBUSY while a rule jumps to it.
    DeleteChain {
        table: Table,
        chain: ChainName,
    },
}

impl Op {
    pub fn table(&self) -> Table {
        match self {
            Self::AddTable(table)
            | Self::AddChain { table, .. }
            | Self::FlushChain { table, .. }
            | Self::AddRule { table, .. }
            | Self::DeleteRule { table, .. }
            | Self::DeleteChain { table, .. } => *table,
        }
    }

    /// The chain it makes, changes or removes.
    pub fn chain(&self) -> Option<&ChainName> {
        match self {
            Self::AddTable(_) => None,
            Self::AddChain { chain, .. }
            | Self::FlushChain { chain, .. }
            | Self::AddRule { chain, .. }
            | Self::DeleteRule { chain, .. }
            | Self::DeleteChain { chain, .. } => Some(chain),
        }
    }
}

/// Operations of one family, applied together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    pub family: Family,
    pub ops: Vec<Op>,
}

impl Transaction {
    pub fn new(family: Family) -> Self {
        Self { family, ops: Vec::new() }
    }

    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    pub fn len(&self) -> usize {
        self.ops.len()
    }

    /// Does it take things away and add none?
    pub fn only_removes(&self) -> bool {
        let removes = |op: &Op| matches!(op, Op::FlushChain { .. } | Op::DeleteRule { .. } | Op::DeleteChain { .. });
        self.ops.iter().all(removes)
    }
}

/// What a person would type for it with iptables, near enough to read in a log.
impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddTable(table) => write!(f, "add table {table}"),
            Self::AddChain { table, chain } => write!(f, "-t {table} -N {chain}"),
            Self::FlushChain { table, chain } => write!(f, "-t {table} -F {chain}"),
            Self::AddRule { table, chain, place, rule } => {
                let rule = text::RuleText(rule);
                match place {
                    Place::Head => write!(f, "-t {table} -I {chain} {rule}"),
                    Place::Tail => write!(f, "-t {table} -A {chain} {rule}"),
                    Place::After(h) => write!(f, "-t {table} -I {chain} (after handle {}) {rule}", h.0),
                    Place::Before(h) => write!(f, "-t {table} -I {chain} (before handle {}) {rule}", h.0),
                }
            }
            Self::DeleteRule { table, chain, handle } => write!(f, "-t {table} -D {chain} (handle {})", handle.0),
            Self::DeleteChain { table, chain } => write!(f, "-t {table} -X {chain}"),
        }
    }
}

impl fmt::Display for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ops.iter().try_for_each(|op| writeln!(f, "{op}"))
    }
}
