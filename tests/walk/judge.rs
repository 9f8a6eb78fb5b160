//! Whether a kernel holds what a full render says: compared as values, since text for each of 100,000 steps would take
//! most of their time. tests/golden.rs holds the text of a render to kube-proxy's.

use std::collections::{BTreeMap, HashMap};

use sluice::config::RuleConfig;
use sluice::model::{ObjectKey, State};
use sluice::net::Family;
use sluice::netlink::{Error, Kernel, Seen};
use sluice::render::{self, Context, KernelFacts};
use sluice::ruleset::text::RuleText;
use sluice::ruleset::{ChainName, Group, Handle, Kind, Match, Rule, Side, Table};

/// What a process was started with, and found.
pub type Flags = (RuleConfig, KernelFacts);
pub type ChainKey = (Table, ChainName);
/// The rules of each chain, in order; `None`: one that our types cannot say.
pub type Contents = BTreeMap<ChainKey, Vec<(Handle, Option<Rule>)>>;

pub fn read(kernel: &mut impl Kernel, family: Family) -> Contents {
    let mut contents = Contents::new();
    read_into(kernel, family, &mut contents).expect("a reading");
    contents
}

/// Reads into `contents`, which has all there is also where somebody's change interrupted the reading.
pub fn read_into(kernel: &mut impl Kernel, family: Family, contents: &mut Contents) -> Result<(), Error> {
    contents.clear();
    let mut note = |seen| match seen {
        Seen::Table(_) => {}
        Seen::Chain { table, chain } => drop(contents.entry((table, chain)).or_default()),
        Seen::Rule { table, chain, handle, rule } => contents.entry((table, chain)).or_default().push((handle, rule)),
    };
    kernel.read(family, &mut note)
}

/// Everything that is not as a full render says, in words; `without`: the Services whose rules are not looked at.
pub fn differences(
    (config, facts): &Flags,
    (state, family): (&State, Family),
    have: &Contents,
    without: &[ObjectKey],
) -> Vec<String> {
    let layout = render::layout(config);
    let context = Context::new(config, *facts, state, family);
    let keys = state.services().map(|(key, _)| key).filter(|key| !without.contains(key));
    let parts = keys.flat_map(|key| render::service(&context, key)).map(|part| part.block);
    let blocks: Vec<_> = std::iter::once(render::mode(&context).1).chain(parts).collect();
    let mut wrong = Vec::new();
    let mut wanted: HashMap<ChainKey, Vec<Group>> = HashMap::new();
    let mut known: HashMap<ChainKey, Vec<Rule>> = HashMap::new();
    for block in blocks {
        known.extend(block.chains.into_iter().map(|chain| ((chain.table, chain.name), chain.rules)));
        for group in block.groups {
            wanted.entry((group.table, group.chain.clone())).or_default().push(group);
        }
    }
    for (key, rules) in &known {
        match have.get(key) {
            None => wrong.push(format!("missing chain {} {}", key.0, key.1)),
            Some(found) if found.iter().map(|(_, rule)| rule.as_ref()).eq(rules.iter().map(Some)) => {}
            Some(found) => wrong.push(format!("chain {} {}: {:#?}\nwanted {}", key.0, key.1, texts(found), list(rules))),
        }
    }
    let shared = layout.dispatch.iter().chain(layout.common).map(|&(table, chain)| (table, ChainName::from(chain)));
    let builtin = Table::ALL.into_iter().flat_map(|table| table.builtin_chains().iter().map(move |&chain| (table, chain.into())));
    for key in shared.chain(builtin) {
        let groups = wanted.remove(&key).unwrap_or_default();
        match have.get(&key) {
            None => wrong.push(format!("missing chain {} {}", key.0, key.1)),
            Some(found) => wrong.extend(misplaced(&key, groups, found, layout.kind(key.0, key.1.as_str()) == Kind::Common)),
        }
    }
    wrong.extend(wanted.into_keys().map(|(table, chain)| format!("rules wanted in {table} {chain}, which is no shared chain")));
    let ours = |(table, chain): &&ChainKey| layout.kind(*table, chain.as_str()) == Kind::Deletable;
    let leftovers = have.keys().filter(ours).filter(|key| !known.contains_key(*key));
    wrong.extend(leftovers.map(|(table, chain)| format!("stale chain {table} {chain}")));
    wrong
}

/// What of a shared chain is missing, in the wrong order, or too much.
fn misplaced(key: &ChainKey, mut groups: Vec<Group>, found: &[(Handle, Option<Rule>)], common: bool) -> Vec<String> {
    let mut places: HashMap<&Rule, Vec<usize>> = HashMap::new();
    for (place, (_, rule)) in found.iter().enumerate().rev() {
        if let Some(rule) = rule {
            places.entry(rule).or_default().push(place);
        }
    }
    groups.sort_by_key(|group| group.side == Side::Tail);
    let (mut wrong, mut taken, mut end) = (Vec::new(), 0, 0);
    for group in groups {
        // In a chain of others it is theirs where ours stand.
        let mut from = if group.side == Side::Tail && !common { end } else { 0 };
        for rule in &group.rules {
            let place = places.get_mut(rule).and_then(|places| {
                let index = places.iter().rposition(|&place| place >= from)?;
                Some(places.remove(index))
            });
            match place {
                Some(place) => from = place + 1,
                None => wrong.push(format!("{} {}: not there, or not in its place: {}", key.0, key.1, RuleText(rule))),
            }
            taken += usize::from(place.is_some());
        }
        end = end.max(from);
    }
    // What a process with other flags left in KUBE-FIREWALL cannot be told from kubelet's own.
    let extra = found.len() - taken;
    if extra > 0 && key.1.as_str() != "KUBE-FIREWALL" {
        wrong.push(format!("{} {}: {extra} rules too many: {:#?}", key.0, key.1, texts(found)));
    }
    wrong
}

fn texts(found: &[(Handle, Option<Rule>)]) -> Vec<String> {
    let text =
        |(_, rule): &(Handle, Option<Rule>)| rule.as_ref().map_or_else(|| "(foreign)".to_owned(), |r| RuleText(r).to_string());
    found.iter().map(text).collect()
}

fn list(rules: &[Rule]) -> String {
    format!("{:#?}", rules.iter().map(|rule| RuleText(rule).to_string()).collect::<Vec<_>>())
}

/// Takes out what a Service has: its own chains, and its rules in those of all.
pub fn take_out(have: &mut Contents, service: &ObjectKey) -> BTreeMap<ChainKey, Vec<String>> {
    let mut taken = BTreeMap::new();
    let its = |(_, rule): &(Handle, Option<Rule>)| rule.as_ref().is_some_and(|rule| names(rule, service));
    have.retain(|key, rules| {
        let own = ["KUBE-SVC-", "KUBE-SVL-", "KUBE-EXT-", "KUBE-FW-", "KUBE-SEP-"].iter().any(|p| key.1.as_str().starts_with(p));
        if !rules.iter().any(its) {
            return true;
        }
        let (of_service, others): (Vec<_>, Vec<_>) = std::mem::take(rules).into_iter().partition(|rule| own || its(rule));
        taken.insert(key.clone(), texts(&of_service));
        *rules = others;
        !own
    });
    taken
}

/// Comments say whose a rule is.
fn names(rule: &Rule, service: &ObjectKey) -> bool {
    rule.matches.iter().any(|m| matches!(m, Match::Comment(comment) if comment.as_str().contains(&service.to_string())))
}

/// All rules as `iptables-save` prints them, sorted.
pub fn lines(have: &Contents) -> Vec<String> {
    let rules =
        have.iter().flat_map(|((_, chain), rules)| texts(rules).into_iter().map(move |rule| format!("-A {chain} {rule}")));
    let mut lines: Vec<_> = rules.collect();
    lines.sort();
    lines
}
