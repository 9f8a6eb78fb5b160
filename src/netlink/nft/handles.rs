//! Handles of added rules without asking for each: within a batch a table hands them out one by one, to
//! chains and rules alike, in the order of the messages. Knowing the first and the last of a run of
//! operations tells all, and that the two fit proves it.

use std::collections::BTreeMap;

use crate::ruleset::{Handle, Op, Table};

/// Which rules of a transaction are echoed, and what follows from their handles.
#[derive(Debug, Default)]
pub struct Numbering {
    /// For each `Op::AddRule` its run and how many handles after the run's first it comes.
    rules: Vec<(usize, u64)>,
    /// First and last operation of each run, and how far apart their handles must be.
    runs: Vec<(usize, usize, u64)>,
}

impl Numbering {
    pub fn of(ops: &[Op]) -> Self {
        let mut numbering = Self::default();
        // The run each table is in, and the handles given out since its first rule.
        let mut open: BTreeMap<Table, (usize, u64)> = BTreeMap::new();
        for (index, op) in ops.iter().enumerate() {
            let table = op.table();
            match op {
                // May make up to five chains or none: nobody knows how many handles that takes.
                Op::AddTable(_) => drop(open.remove(&table)),
                Op::AddChain { .. } => drop(open.get_mut(&table).map(|(_, offset)| *offset += 1)),
                Op::AddRule { .. } => {
                    let (run, offset) =
                        *open.entry(table).and_modify(|(_, offset)| *offset += 1).or_insert_with(|| (numbering.runs.len(), 0));
                    numbering.rules.push((run, offset));
                    match numbering.runs.get_mut(run) {
                        Some((_, last, span)) => (*last, *span) = (index, offset),
                        None => numbering.runs.push((index, index, offset)),
                    }
                }
                Op::FlushChain { .. } | Op::DeleteRule { .. } | Op::DeleteChain { .. } => {}
            }
        }
        numbering
    }

    /// The operations whose handles must be asked for, in order.
    pub fn echoes(&self) -> Vec<usize> {
        let mut ops: Vec<usize> = self.runs.iter().flat_map(|(first, last, _)| [*first, *last]).collect();
        ops.sort_unstable();
        ops.dedup();
        ops
    }

    /// All handles, from those of the echoed operations; `None` if these don't fit together.
    pub fn handles(&self, echoed: &BTreeMap<usize, Handle>) -> Option<Vec<Handle>> {
        let mut firsts = Vec::with_capacity(self.runs.len());
        for (first, last, span) in &self.runs {
            let (first, last) = (echoed.get(first)?.0, echoed.get(last)?.0);
            firsts.push((last.checked_sub(first)? == *span).then_some(first)?);
        }
        Some(self.rules.iter().map(|(run, offset)| Handle(firsts[*run] + offset)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ruleset::{ChainName, Place, Rule};

    fn rule(table: Table) -> Op {
        Op::AddRule { table, chain: ChainName::from("A"), place: Place::Tail, rule: Rule::default() }
    }

    fn chain(table: Table) -> Op {
        Op::AddChain { table, chain: ChainName::from("A") }
    }

    fn echoed(handles: &[(usize, u64)]) -> BTreeMap<usize, Handle> {
        handles.iter().map(|(op, handle)| (*op, Handle(*handle))).collect()
    }

    #[test]
    fn chains_take_handles_too_and_tables_count_apart() {
        let (nat, filter) = (Table::Nat, Table::Filter);
        let ops = [rule(nat), chain(nat), rule(filter), rule(nat), chain(filter), rule(nat)];
        let numbering = Numbering::of(&ops);
        assert_eq!(numbering.echoes(), [0, 2, 5]);
        let handles = numbering.handles(&echoed(&[(0, 10), (2, 7), (5, 13)])).unwrap();
        assert_eq!(handles, [Handle(10), Handle(7), Handle(12), Handle(13)]);
    }

    #[test]
    fn handles_that_do_not_fit_are_unknown() {
        let numbering = Numbering::of(&[rule(Table::Nat), rule(Table::Nat)]);
        assert!(numbering.handles(&echoed(&[(0, 10), (1, 12)])).is_none());
        assert!(numbering.handles(&echoed(&[(0, 10)])).is_none());
    }

    #[test]
    fn a_table_in_between_starts_anew() {
        let ops = [rule(Table::Nat), Op::AddTable(Table::Nat), rule(Table::Nat)];
        let numbering = Numbering::of(&ops);
        assert_eq!(numbering.echoes(), [0, 2]);
        assert!(numbering.handles(&echoed(&[(0, 10), (2, 99)])).is_some());
    }
}
