//! A transaction as one batch of messages, and which answer belongs to which operation. Pure: bytes
//! out, sequence numbers in.

use super::super::attr::{Head, Writer, flag};
use super::expression;
#[allow(clippy::wildcard_imports, reason = "the numbers of the wire are this file's vocabulary")]
use super::wire::*;
use crate::net::Family;
use crate::ruleset::{Handle, Op, Place, SetName, Table};

/// Per operation on average, a little more than the usual rule takes: growing a buffer of 100 MB
/// copies it.
const BYTES_PER_OP: usize = 512;

/// A batch ready to be sent. Message `i` (0: the beginning) has sequence number `first` + `i`.
#[derive(Debug)]
pub struct Batch {
    writer: Writer,
    family: u8,
    first: u32,
    /// The operation of each message after the beginning.
    owners: Vec<u32>,
    /// Where the last message starts.
    last_start: usize,
    sets: Vec<NamedSet>,
}

/// A set that a rule of a batch names.
#[derive(Debug)]
pub struct NamedSet {
    pub name: SetName,
    /// The operation that adds the rule.
    pub op: usize,
    /// Where its number belongs.
    place: usize,
}

impl Batch {
    pub fn begin(family: Family, first: u32, ops: usize) -> Self {
        let writer = Writer::with_capacity(ops.saturating_mul(BYTES_PER_OP));
        let owners = Vec::with_capacity(ops);
        let mut batch = Self { writer, family: family_number(family), first, owners, last_start: 0, sets: Vec::new() };
        batch.marker(NFNL_MSG_BATCH_BEGIN, first);
        batch
    }

    /// Adds the messages of an operation. `echo`: let the kernel tell what it made of it.
    pub fn push(&mut self, family: Family, index: usize, op: &Op, echo: bool) {
        let owner = u32::try_from(index).expect("a transaction has fewer than 2^32 operations");
        let table = op.table().as_str();
        match op {
            Op::AddTable(table) => self.add_table(owner, *table),
            Op::AddChain { chain, .. } => {
                self.message(owner, kind::NEW_CHAIN, flag::CREATE | flag::EXCLUSIVE, |w| {
                    w.text(NFTA_CHAIN_TABLE, table);
                    w.text(NFTA_CHAIN_NAME, chain.as_str());
                });
            }
            Op::DeleteChain { chain, .. } => self.message(owner, kind::DELETE_CHAIN, 0, |w| {
                w.text(NFTA_CHAIN_TABLE, table);
                w.text(NFTA_CHAIN_NAME, chain.as_str());
            }),
            Op::FlushChain { chain, .. } => self.message(owner, kind::DELETE_RULE, 0, |w| {
                rule_address(w, table, chain.as_str());
            }),
            Op::DeleteRule { chain, handle, .. } => self.message(owner, kind::DELETE_RULE, 0, |w| {
                rule_address(w, table, chain.as_str());
                w.be64(NFTA_RULE_HANDLE, handle.0);
            }),
            Op::AddRule { chain, place, rule, .. } => {
                let (append, position) = placement(*place);
                let flags = flag::CREATE | append | if echo { flag::ECHO } else { 0 };
                let mut sets = Vec::new();
                self.message(owner, kind::NEW_RULE, flags, |w| {
                    rule_address(w, table, chain.as_str());
                    if let Some(handle) = position {
                        w.be64(NFTA_RULE_POSITION, handle.0);
                    }
                    expression::write_rule(w, family, rule, &mut sets);
                });
                self.sets.extend(sets.into_iter().map(|(place, name)| NamedSet { name: name.clone(), op: index, place }));
            }
        }
    }

    /// Adds the deletion of a table with all that is in it, whoever made it.
    pub fn delete_table(&mut self, table: &str) {
        self.message(0, kind::DELETE_TABLE, 0, |w| w.text(NFTA_TABLE_NAME, table));
    }

    /// Asks for an acknowledgement of the last message: that of the end marker is unreliable before
    /// Linux 6.10, and one for each overflows the socket.
    pub fn acknowledge(&mut self) {
        self.writer.add_flags(self.last_start, flag::ACK);
    }

    /// Without an end the kernel tries the batch and takes it back.
    pub fn end(&mut self) {
        self.marker(NFNL_MSG_BATCH_END, self.last_sequence().wrapping_add(1));
    }

    /// The sets that rules name, whose numbers are still missing.
    pub fn take_sets(&mut self) -> Vec<NamedSet> {
        std::mem::take(&mut self.sets)
    }

    pub fn number_set(&mut self, set: &NamedSet, index: u16) {
        self.writer.overwrite(set.place, &index.to_ne_bytes());
    }

    pub fn as_bytes(&self) -> &[u8] {
        self.writer.as_bytes()
    }

    pub fn messages(&self) -> usize {
        self.owners.len()
    }

    /// The sequence number of the message that is acknowledged.
    pub fn last_sequence(&self) -> u32 {
        let count = u32::try_from(self.owners.len()).expect("fewer messages than 2^32");
        self.first.wrapping_add(count)
    }

    /// To what a sequence number belongs.
    pub fn owner(&self, sequence: u32) -> Owner {
        match sequence.wrapping_sub(self.first) {
            0 => Owner::Begin,
            n => match self.owners.get(n as usize - 1) {
                Some(op) => Owner::Op(*op as usize),
                None => Owner::Nobody,
            },
        }
    }

    fn marker(&mut self, kind: u16, sequence: u32) {
        let head = Head { kind, flags: 0, sequence };
        self.writer.message(head, &nfgenmsg(0, NFNL_SUBSYS_NFTABLES), |_| {});
    }

    fn message(&mut self, owner: u32, kind: u16, flags: u16, body: impl FnOnce(&mut Writer)) {
        self.owners.push(owner);
        self.last_start = self.writer.len();
        let head = Head { kind, flags, sequence: self.last_sequence() };
        self.writer.message(head, &nfgenmsg(self.family, 0), body);
    }

    /// Neither flags of the table nor a policy are said: of what exists, they would be changed.
    fn add_table(&mut self, owner: u32, table: Table) {
        self.message(owner, kind::NEW_TABLE, flag::CREATE, |w| w.text(NFTA_TABLE_NAME, table.as_str()));
        for chain in table.builtin_chains() {
            let (hook, priority, kind_name) = hook(table, chain);
            self.message(owner, kind::NEW_CHAIN, flag::CREATE, |w| {
                w.text(NFTA_CHAIN_TABLE, table.as_str());
                w.text(NFTA_CHAIN_NAME, chain);
                w.nest(NFTA_CHAIN_HOOK, |w| {
                    w.be32(NFTA_HOOK_HOOKNUM, hook);
                    w.be32(NFTA_HOOK_PRIORITY, priority.cast_unsigned());
                });
                w.text(NFTA_CHAIN_TYPE, kind_name);
            });
        }
    }
}

/// What a message of a batch was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    Begin,
    Op(usize),
    Nobody,
}

fn rule_address(w: &mut Writer, table: &str, chain: &str) {
    w.text(NFTA_RULE_TABLE, table);
    w.text(NFTA_RULE_CHAIN, chain);
}

fn placement(place: Place) -> (u16, Option<Handle>) {
    match place {
        Place::Head => (0, None),
        Place::Tail => (flag::APPEND, None),
        Place::After(handle) => (flag::APPEND, Some(handle)),
        Place::Before(handle) => (0, Some(handle)),
    }
}

/// Hook number, priority (`NF_IP_PRI_*`) and type of a built-in chain, as iptables-nft makes it.
fn hook(table: Table, chain: &str) -> (u32, i32, &'static str) {
    // NF_INET_* of linux/netfilter.h
    let number = match chain {
        "PREROUTING" => 0,
        "INPUT" => 1,
        "FORWARD" => 2,
        "OUTPUT" => 3,
        _ => 4,
    };
    match (table, chain) {
        (Table::Mangle, "OUTPUT") => (number, -150, "route"),
        (Table::Mangle, _) => (number, -150, "filter"),
        (Table::Filter, _) => (number, 0, "filter"),
        (Table::Nat, "PREROUTING" | "OUTPUT") => (number, -100, "nat"),
        (Table::Nat, _) => (number, 100, "nat"),
    }
}
