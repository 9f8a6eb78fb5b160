//! Removing what is gone, when somebody else's rule leads to a chain of ours.
//!
//! The kernel refuses to delete a chain that a rule jumps to (EBUSY), and with it the whole transaction. One
//! foreign jump must not keep a deleted Service alive, nor the sync from ending: such a chain is emptied,
//! named in the log, and left for the next start to try again.

use std::collections::BTreeSet;

use super::Sender;
use crate::netlink::{Errno, Error, Refusal};
use crate::ruleset::{ChainName, Op, Table, Transaction};

/// Commits a transaction that only removes. Gives the chains that had to stay, now empty.
pub(super) fn commit(sender: &mut Sender<'_>, removal: &Transaction) -> Result<Vec<(Table, ChainName)>, Error> {
    let busy = match sender.send(removal) {
        Ok(_) => return Ok(Vec::new()),
        Err(Error::Refused(refusals)) => busy_chains(removal, refusals)?,
        Err(error) => return Err(error),
    };
    sender.send(&emptying(removal, &busy))?;
    // Most of them were only led to by each other's rules, which are gone now.
    let rest = Transaction { family: removal.family, ops: busy.iter().map(|&op| removal.ops[op].clone()).collect() };
    let held = match sender.send(&rest) {
        Ok(_) => return Ok(Vec::new()),
        Err(Error::Refused(refusals)) => busy_chains(&rest, refusals).map_err(overtaken)?,
        Err(error) => return Err(error),
    };
    let (held, free): (Vec<_>, Vec<_>) = rest.ops.into_iter().enumerate().partition(|(op, _)| held.contains(op));
    let free = Transaction { family: removal.family, ops: free.into_iter().map(|(_, op)| op).collect() };
    sender.send(&free).map_err(overtaken)?;
    Ok(held.into_iter().filter_map(|(_, op)| deleted_chain(op)).inspect(warn).collect())
}

/// A refusal half-way: somebody changed the rules since the first answer. What stands now has to be read.
fn overtaken(error: Error) -> Error {
    if matches!(error, Error::Refused(_)) { Error::Interrupted } else { error }
}

/// The refused operations, if each of them is a chain that something still leads to.
fn busy_chains(removal: &Transaction, refusals: Vec<Refusal>) -> Result<BTreeSet<usize>, Error> {
    let is_busy = |r: &Refusal| r.errno == Errno::EBUSY && matches!(removal.ops.get(r.op), Some(Op::DeleteChain { .. }));
    if refusals.iter().all(is_busy) { Ok(refusals.iter().map(|r| r.op).collect()) } else { Err(Error::Refused(refusals)) }
}

/// The same removal, with the chains of the operations `busy` emptied instead of deleted.
fn emptying(removal: &Transaction, busy: &BTreeSet<usize>) -> Transaction {
    let empty = |(index, op): (usize, &Op)| match op {
        Op::DeleteChain { table, chain } if busy.contains(&index) => Op::FlushChain { table: *table, chain: chain.clone() },
        op => op.clone(),
    };
    Transaction { family: removal.family, ops: removal.ops.iter().enumerate().map(empty).collect() }
}

fn deleted_chain(op: Op) -> Option<(Table, ChainName)> {
    if let Op::DeleteChain { table, chain } = op { Some((table, chain)) } else { None }
}

fn warn((table, chain): &(Table, ChainName)) {
    tracing::warn!(
        "chain {chain} of table {table} is no longer wanted, but a rule of somebody else jumps to it (EBUSY): emptied and left"
    );
}
