//! What others do to our rules: an administrator's hand, another proxy's leftovers, a flush of everything.

use sluice::net::Family;
use sluice::netlink::{Error, Kernel};
use sluice::ruleset::{ChainName, Handle, Op, Place, Rule, Table, Target, Touched, Transaction};

use crate::judge::{ChainKey, Contents};
use crate::random::Random;

/// Operations of somebody else, and the chains that their notifications would name.
#[derive(Debug)]
pub struct Act {
    pub ops: Vec<Op>,
    pub touched: Touched,
}

impl Act {
    fn new() -> Self {
        Self { ops: Vec::new(), touched: Touched::default() }
    }

    fn push(&mut self, (table, chain): &ChainKey, op: Op) {
        self.touched.add(*table, chain.clone());
        self.ops.push(op);
    }

    pub fn commit(&self, family: Family, kernel: &mut impl Kernel) -> Result<(), Error> {
        kernel.commit(&Transaction { family, ops: self.ops.clone() }).map(drop)
    }
}

/// Something that somebody may do to what is there; `None` where there is nothing to do it to.
pub fn act(have: &Contents, random: &mut Random) -> Option<Act> {
    let mut act = Act::new();
    match random.below(11) {
        0 => flush_all(&mut act, have),
        1 => delete_chain(&mut act, pick(have, random, is_deletable)?, have),
        2 => stale_chain(&mut act, have, random),
        3 => flush(&mut act, pick(have, random, is_ours)?),
        4 => reverse(&mut act, pick(have, random, is_ours_alone)?, have),
        5 => add(&mut act, pick(have, random, is_ours_alone)?, (Place::Head, intruder(random))),
        7 => restore(&mut act, have),
        6 => double(&mut act, pick(have, random, is_ours_alone)?, have, random)?,
        _ => delete_rule(&mut act, pick(have, random, is_ours)?, have, random)?,
    }
    Some(act)
}

fn is_builtin((table, chain): &ChainKey) -> bool {
    table.builtin_chains().contains(&chain.as_str())
}

/// Ours alone: what others put there goes.
fn is_ours_alone(key: &ChainKey) -> bool {
    !is_builtin(key) && key.1.as_str().starts_with("KUBE-") && key.1.as_str() != "KUBE-FIREWALL"
}

fn is_ours(key: &ChainKey) -> bool {
    is_builtin(key) || key.1.as_str().starts_with("KUBE-")
}

fn is_deletable(key: &ChainKey) -> bool {
    !is_builtin(key) && is_ours(key)
}

fn pick<'a>(have: &'a Contents, random: &mut Random, wanted: fn(&ChainKey) -> bool) -> Option<&'a ChainKey> {
    let chains: Vec<_> = have.keys().filter(|key| wanted(key)).collect();
    let index = random.below(u64::try_from(chains.len()).ok()?.max(1));
    chains.get(usize::try_from(index).ok()?).copied()
}

fn flush(act: &mut Act, key: &ChainKey) {
    act.push(key, Op::FlushChain { table: key.0, chain: key.1.clone() });
}

/// What `iptables -F` does in all tables.
fn flush_all(act: &mut Act, have: &Contents) {
    for key in have.keys() {
        flush(act, key);
    }
}

fn jumps_to<'a>(have: &'a Contents, target: &'a ChainKey) -> impl Iterator<Item = (&'a ChainKey, Handle)> {
    let jump = Target::Jump(target.1.clone());
    let in_table = have.iter().filter(|(key, _)| key.0 == target.0);
    in_table.flat_map(move |(key, rules)| {
        let jump = jump.clone();
        let jumps = rules.iter().filter(move |(_, rule)| rule.as_ref().is_some_and(|r| r.target.as_ref() == Some(&jump)));
        jumps.map(move |(handle, _)| (key, *handle))
    })
}

fn delete_chain(act: &mut Act, target: &ChainKey, have: &Contents) {
    for (key, handle) in jumps_to(have, target) {
        act.push(key, Op::DeleteRule { table: key.0, chain: key.1.clone(), handle });
    }
    flush(act, target);
    act.push(target, Op::DeleteChain { table: target.0, chain: target.1.clone() });
}

/// What a proxy that was ended half-way leaves.
fn stale_chain(act: &mut Act, have: &Contents, random: &mut Random) {
    let key = (Table::Nat, ChainName::from(format!("KUBE-SEP-STALE{}", random.below(1000)).as_str()));
    if have.contains_key(&key) || !have.contains_key(&(Table::Nat, "KUBE-SERVICES".into())) {
        return flush_all(act, have);
    }
    act.push(&key, Op::AddChain { table: key.0, chain: key.1.clone() });
    add(act, &key, (Place::Tail, intruder(random)));
    let jump = Rule::new().comment("stale").then(Target::Jump(key.1.clone()));
    add(act, &(Table::Nat, "KUBE-SERVICES".into()), (Place::Head, jump));
}

fn add(act: &mut Act, key: &ChainKey, (place, rule): (Place, Rule)) {
    act.push(key, Op::AddRule { table: key.0, chain: key.1.clone(), place, rule });
}

fn intruder(random: &mut Random) -> Rule {
    Rule::new().comment(&format!("intruder {}", random.below(3))).then(Target::Return)
}

fn one_of<'a>(key: &ChainKey, have: &'a Contents, random: &mut Random) -> Option<(Handle, Option<&'a Rule>)> {
    let rules = have.get(key)?;
    let index = random.below(u64::try_from(rules.len()).ok()?.max(1));
    rules.get(usize::try_from(index).ok()?).map(|(handle, rule)| (*handle, rule.as_ref()))
}

fn delete_rule(act: &mut Act, key: &ChainKey, have: &Contents, random: &mut Random) -> Option<()> {
    let (handle, _) = one_of(key, have, random)?;
    act.push(key, Op::DeleteRule { table: key.0, chain: key.1.clone(), handle });
    Some(())
}

fn double(act: &mut Act, key: &ChainKey, have: &Contents, random: &mut Random) -> Option<()> {
    let (_, rule) = one_of(key, have, random)?;
    let place = if random.chance(2) { Place::Head } else { Place::Tail };
    add(act, key, (place, rule?.clone()));
    Some(())
}

/// What `iptables-restore` of our own dump does: all rules are what they were, with other handles.
fn restore(act: &mut Act, have: &Contents) {
    for (key, rules) in have {
        flush(act, key);
        for rule in rules.iter().filter_map(|(_, rule)| rule.clone()) {
            add(act, key, (Place::Tail, rule));
        }
    }
}

/// The same rules the other way round.
fn reverse(act: &mut Act, key: &ChainKey, have: &Contents) {
    flush(act, key);
    for rule in have[key].iter().rev().filter_map(|(_, rule)| rule.clone()) {
        add(act, key, (Place::Tail, rule));
    }
}
