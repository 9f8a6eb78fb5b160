//! The kernel's rules in memory, for tests: it takes and refuses what the real one does, with the same
//! errors on the same operations and the same handles. `tests/parity.rs` holds it to that.
//!
//! Not imitated: sets and nfacct objects are taken to exist, and addresses, list names and chain names to be well
//! formed. It stands for Linux 6.18.

pub mod balancer;
pub mod flows;
mod table;
mod validate;

use std::fmt::Write as _;

use super::errno::Errno;
use super::error::{Error, Refusal};
use super::{Committed, Kernel, Seen};
use crate::net::{Family, PerFamily};
use crate::ruleset::text::RuleText;
use crate::ruleset::{ChainName, Handle, Op, Table, Transaction};
use table::FakeTable;

#[derive(Debug, Default)]
pub struct FakeKernel {
    commits: usize,
    failing_commit: Option<(Failing, Error)>,
    /// How many commits go well before that one.
    good_before: usize,
    failing_read: Option<Error>,
    disliked: Option<Disliked>,
    ops: usize,
    /// In the order they were made, as the kernel keeps and validates them.
    tables: PerFamily<Vec<FakeTable>>,
}

/// What becomes of a commit that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failing {
    Undone,
    /// It is applied all the same, and only the answer is bad.
    Applied,
}

/// Rules that are refused: those whose text contains this.
#[derive(Debug)]
struct Disliked {
    text: String,
    errno: Errno,
    /// Is it said which operation is meant?
    named: bool,
}

impl FakeKernel {
    pub fn new() -> Self {
        Self::default()
    }

    /// How many transactions were applied, empty ones not counted.
    pub fn commits(&self) -> usize {
        self.commits
    }

    /// How many operations were applied.
    pub fn ops(&self) -> usize {
        self.ops
    }

    /// Lets the next commit fail so, applying nothing.
    pub fn fail_next_commit(&mut self, error: Error) {
        self.failing_commit = Some((Failing::Undone, error));
    }

    /// The same after so many that go well.
    pub fn fail_commit_after(&mut self, good: usize, error: Error) {
        self.fail_next_commit(error);
        self.good_before = good;
    }

    /// Lets the next commit be applied and its answer be this error.
    pub fn lose_next_answer(&mut self, error: Error) {
        self.failing_commit = Some((Failing::Applied, error));
    }

    /// Refuses every rule whose text contains `text`, as a kernel that lacks an extension does; with `named` it says
    /// which operation it means.
    pub fn dislike(&mut self, text: &str, errno: Errno, named: bool) {
        self.disliked = Some(Disliked { text: text.to_owned(), errno, named });
    }

    /// Takes every rule again.
    pub fn like_everything(&mut self) {
        self.disliked = None;
    }

    fn refusals_of_disliked(&self, transaction: &Transaction) -> Result<(), Error> {
        let Some(Disliked { text, errno, named }) = &self.disliked else { return Ok(()) };
        let is_disliked = |op: &Op| matches!(op, Op::AddRule { rule, .. } if RuleText(rule).to_string().contains(text));
        let bad = transaction.ops.iter().enumerate().filter(|(_, op)| is_disliked(op));
        let refusals: Vec<_> = bad.map(|(index, op)| Refusal { op: index, errno: *errno, text: op.to_string() }).collect();
        match (refusals.is_empty(), named) {
            (true, _) => Ok(()),
            (false, true) => Err(Error::Refused(refusals)),
            (false, false) => Err(Error::RefusedWhole { errno: *errno, said: None }),
        }
    }

    /// Lets the next reading fail so: after all was visited with [`Error::Interrupted`], else at once.
    pub fn fail_next_read(&mut self, error: Error) {
        self.failing_read = Some(error);
    }

    /// Puts a rule that our types cannot say at a chain's end, as another program would; `None` where
    /// there is no such chain.
    pub fn add_foreign_rule(&mut self, family: Family, table: Table, chain: &ChainName) -> Option<Handle> {
        self.tables[family].iter_mut().find(|t| t.name == table)?.add_foreign_rule(chain)
    }

    /// Takes a table away with all that is in it, as `nft delete table` does.
    pub fn forget(&mut self, family: Family, table: Table) {
        self.tables[family].retain(|t| t.name != table);
    }

    /// The rules of a family as `iptables-save` prints them, without its comment lines: tables in the order
    /// mangle, filter, nat; chains the built-in ones first, the others by name.
    pub fn save(&self, family: Family) -> String {
        let mut tables: Vec<_> = self.tables[family].iter().collect();
        tables.sort_by_key(|table| table.name);
        tables.into_iter().map(save_table).collect()
    }
}

fn save_table(table: &FakeTable) -> String {
    let mut text = format!("*{}\n", table.name);
    let mut rules = String::new();
    for (name, chain) in table.sorted_chains() {
        let policy = if chain.base { "ACCEPT" } else { "-" };
        writeln!(text, ":{name} {policy} [0:0]").expect("a String takes everything");
        for slot in &chain.rules {
            let rule = slot.rule.as_ref().map_or_else(|| "(foreign)".to_owned(), |rule| RuleText(rule).to_string());
            let line = format!("-A {name} {rule}");
            rules.push_str(line.trim_end());
            rules.push('\n');
        }
    }
    text + &rules + "COMMIT\n"
}

impl Kernel for FakeKernel {
    fn read(&mut self, family: Family, visit: &mut dyn FnMut(Seen)) -> Result<(), Error> {
        let late = match self.failing_read.take() {
            None => Ok(()),
            Some(Error::Interrupted) => Err(Error::Interrupted),
            Some(error) => return Err(error),
        };
        let tables = &self.tables[family];
        for table in tables {
            visit(Seen::Table(table.name));
        }
        for (table, name, _) in tables.iter().flat_map(FakeTable::chains_by_age) {
            visit(Seen::Chain { table, chain: name.clone() });
        }
        for (table, name, chain) in tables.iter().flat_map(FakeTable::chains_by_age) {
            for slot in &chain.rules {
                let rule = slot.rule.as_deref().cloned();
                visit(Seen::Rule { table, chain: name.clone(), handle: slot.handle, rule });
            }
        }
        late
    }

    fn read_chains(
        &mut self,
        family: Family,
        chains: &mut dyn Iterator<Item = &(Table, ChainName)>,
        visit: &mut dyn FnMut(Seen),
    ) -> Result<(), Error> {
        if let Some(error) = self.failing_read.take().filter(|error| !matches!(error, Error::Interrupted)) {
            return Err(error);
        }
        for (table, name) in chains {
            let found = self.tables[family].iter().find(|t| t.name == *table).and_then(|t| t.chains.get(name));
            let Some(chain) = found else { continue };
            visit(Seen::Chain { table: *table, chain: name.clone() });
            for slot in &chain.rules {
                let rule = slot.rule.as_deref().cloned();
                visit(Seen::Rule { table: *table, chain: name.clone(), handle: slot.handle, rule });
            }
        }
        Ok(())
    }

    fn commit(&mut self, transaction: &Transaction) -> Result<Committed, Error> {
        if transaction.is_empty() {
            return Ok(Committed::default());
        }
        let its_turn = self.good_before == 0;
        self.good_before = self.good_before.saturating_sub(1);
        let late = match self.failing_commit.take_if(|_| its_turn) {
            Some((Failing::Undone, error)) => return Err(error),
            Some((Failing::Applied, error)) => Some(error),
            None => None,
        };
        self.refusals_of_disliked(transaction)?;
        let tables = &mut self.tables[transaction.family];
        let mut after = tables.clone();
        let mut tried = try_ops(&mut after, transaction, &[]);
        if tried.refusals.is_empty()
            && let Some(bad) = after.iter_mut().find_map(FakeTable::validate)
        {
            // What the kernel finds wrong when all is done it pins down by doing everything again,
            // validating that table after each rule, and so each table it makes meanwhile.
            roll_back(tables, &after);
            let is_new = |name: &Table| !tables.iter().any(|table| table.name == *name);
            let suspects: Vec<Table> = Table::ALL.into_iter().filter(|name| *name == bad || is_new(name)).collect();
            after.clone_from(tables);
            tried = try_ops(&mut after, transaction, &suspects);
        }
        if !tried.refusals.is_empty() {
            roll_back(tables, &after);
            return Err(Error::Refused(tried.refusals));
        }
        after.iter_mut().for_each(FakeTable::settle);
        *tables = after;
        self.commits += 1;
        self.ops += transaction.len();
        // Nothing is encoded here, so nothing has a length.
        late.map_or(Ok(Committed { handles: tried.handles, bytes: 0 }), Err)
    }
}

#[derive(Default)]
struct Tried {
    handles: Vec<Handle>,
    refusals: Vec<Refusal>,
}

/// Does what can be done of a transaction: like the kernel, it goes on after an error. `suspects`: the
/// tables to validate after each rule.
fn try_ops(tables: &mut Vec<FakeTable>, transaction: &Transaction, suspects: &[Table]) -> Tried {
    let mut tried = Tried::default();
    for (index, op) in transaction.ops.iter().enumerate() {
        let result = try_op(tables, op);
        let added = matches!(result, Ok(Some(_))) && suspects.contains(&op.table());
        let valid = if added { validate_named(tables, op.table()) } else { Ok(()) };
        match valid.and(result) {
            Ok(handle) => tried.handles.extend(handle),
            Err(errno) => tried.refusals.push(Refusal { op: index, errno, text: op.to_string() }),
        }
    }
    tried
}

fn try_op(tables: &mut Vec<FakeTable>, op: &Op) -> Result<Option<Handle>, Errno> {
    let name = op.table();
    let known = tables.iter().position(|table| table.name == name);
    match (op, known) {
        (Op::AddTable(_), None) => {
            tables.push(FakeTable::new(name));
            tables.last_mut().expect("it was just pushed").apply(op)
        }
        (_, Some(known)) => tables[known].apply(op),
        (_, None) => Err(Errno::ENOENT),
    }
}

fn validate_named(tables: &[FakeTable], name: Table) -> Result<(), Errno> {
    tables.iter().filter(|table| table.name == name).try_for_each(validate::table)
}

/// What of a failed transaction stays: handles are not given back.
fn roll_back(before: &mut [FakeTable], failed: &[FakeTable]) {
    for table in before {
        let failed = failed.iter().find(|failed| failed.name == table.name);
        table.counter = failed.map_or(table.counter, |failed| failed.counter);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ruleset::{Place, Rule, Target};

    fn sample() -> Transaction {
        let (table, chain) = (Table::Nat, ChainName::from("KUBE-B"));
        let rule = Rule { target: Some(Target::Jump("KUBE-A".into())), ..Rule::default() };
        let mut transaction = Transaction::new(Family::Ipv4);
        transaction.ops.extend([Table::Nat, Table::Mangle].map(Op::AddTable));
        transaction.ops.push(Op::AddChain { table, chain: chain.clone() });
        transaction.ops.push(Op::AddChain { table, chain: "KUBE-A".into() });
        transaction.ops.push(Op::AddRule { table, chain: chain.clone(), place: Place::Tail, rule });
        transaction.ops.push(Op::AddRule { table, chain, place: Place::Head, rule: Rule::default() });
        transaction
    }

    #[test]
    fn it_prints_itself_as_iptables_save_does() {
        let mut fake = FakeKernel::new();
        fake.commit(&sample()).unwrap();
        fake.add_foreign_rule(Family::Ipv4, Table::Nat, &ChainName::from("INPUT")).unwrap();
        let expected = "\
*mangle
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:KUBE-A - [0:0]
:KUBE-B - [0:0]
-A INPUT (foreign)
-A KUBE-B
-A KUBE-B -j KUBE-A
COMMIT
";
        assert_eq!(fake.save(Family::Ipv4), expected);
        assert_eq!(fake.save(Family::Ipv6), "");
        assert_eq!((fake.commits(), fake.ops()), (1, 6));
    }

    #[test]
    fn it_fails_when_told_to_and_applies_nothing() {
        let mut fake = FakeKernel::new();
        fake.fail_next_commit(Error::RefusedWhole { errno: Errno::ERESTART, said: None });
        assert!(fake.commit(&sample()).unwrap_err().is_retryable());
        assert_eq!((fake.save(Family::Ipv4).as_str(), fake.commits()), ("", 0));
        fake.commit(&sample()).unwrap();
        fake.fail_next_read(Error::Interrupted);
        assert!(matches!(fake.read(Family::Ipv4, &mut |_| {}), Err(Error::Interrupted)));
        fake.read(Family::Ipv4, &mut |_| {}).unwrap();
    }
}
