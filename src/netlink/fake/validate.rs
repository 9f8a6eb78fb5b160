//! What the kernel checks of a table as a whole: how deep jumps go, and that targets are reached from
//! hooks only where they can work (`nft_table_validate`).

use std::collections::HashMap;

use super::super::errno::Errno;
use super::table::FakeTable;
use crate::ruleset::{ChainName, Table, Target};

/// `NFT_JUMP_STACK_SIZE` of `net/netfilter/nf_tables.h`.
const DEEPEST: usize = 16;

/// The table and the built-in chains a target is for (the `hooks` of its `struct xt_target`).
pub fn limits(target: &Target) -> Option<(Table, &'static [&'static str])> {
    match target {
        Target::Dnat(_) => Some((Table::Nat, &["PREROUTING", "OUTPUT"])),
        Target::Masquerade { .. } => Some((Table::Nat, &["POSTROUTING"])),
        Target::Reject(_) => Some((Table::Filter, &["INPUT", "FORWARD", "OUTPUT"])),
        Target::Accept | Target::Drop | Target::Jump(_) | Target::Mark { .. } | Target::Return => None,
    }
}

/// Walks all that built-in chains reach; loops nobody can enter are fine.
pub fn table(table: &FakeTable) -> Result<(), Errno> {
    let mut hooks: Vec<_> = table.chains.iter().filter(|(_, chain)| chain.base).collect();
    hooks.sort_by_key(|(_, chain)| chain.born);
    hooks.into_iter().try_for_each(|(hook, _)| Walk { table, hook, passed: HashMap::new() }.chain(hook, 0))
}

struct Walk<'a> {
    table: &'a FakeTable,
    hook: &'a ChainName,
    /// The greatest depth at which each chain was found good.
    passed: HashMap<&'a ChainName, usize>,
}

impl<'a> Walk<'a> {
    fn chain(&mut self, name: &'a ChainName, depth: usize) -> Result<(), Errno> {
        if depth == DEEPEST {
            return Err(Errno::EMLINK); // a loop comes here too
        }
        if self.passed.get(name).is_some_and(|passed| *passed >= depth) {
            return Ok(());
        }
        let Some(chain) = self.table.chains.get(name) else { return Ok(()) };
        for target in chain.rules.iter().filter(|slot| !slot.deleted).filter_map(|slot| slot.rule.as_ref()?.target.as_ref()) {
            match (target, limits(target)) {
                (Target::Jump(next), _) => self.chain(next, depth + 1)?,
                (_, Some((_, hooks))) if !hooks.contains(&self.hook.as_str()) => return Err(Errno::EINVAL),
                _ => {}
            }
        }
        self.passed.insert(name, depth);
        Ok(())
    }
}
