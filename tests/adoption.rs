//! Rules that were damaged while nobody looked: what a restart takes over, what it mends, and what it leaves alone.

mod world;

use std::sync::Arc;

use sluice::model::State;
use sluice::net::Family;
use sluice::netlink::fake::FakeKernel;
use sluice::netlink::{Kernel as _, Seen};
use sluice::ruleset::text::RuleText;
use sluice::ruleset::{ChainName, Handle, Op, Place, Rule, Table, Target, Transaction};
use sluice::serve::Metrics;
use sluice::sync::{FamilySync, Inputs, Summary};
use world::{Random, World, canonical, config, facts};

const FAMILY: Family = Family::Ipv4;

/// A node with some Services' rules in it, all of them right.
struct Node {
    kernel: FakeKernel,
    state: State,
}

/// A rule as it stands in the kernel.
#[derive(Clone)]
struct Standing {
    table: Table,
    chain: ChainName,
    handle: Handle,
    rule: Rule,
}

impl Node {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut world = World::default();
        let mut node = Self { kernel: FakeKernel::new(), state: State::new("node-a") };
        for _ in 0..60 {
            for event in world.change(&mut random) {
                node.state.apply(event);
            }
        }
        node.restart();
        node
    }

    /// What a new process does.
    fn restart(&mut self) -> Summary {
        let config = config();
        let inputs = Inputs { config: &config, facts: facts(), state: &self.state };
        FamilySync::new(FAMILY, Arc::new(Metrics::new())).sync(&mut self.kernel, inputs).expect("a sync")
    }

    fn saved(&self) -> String {
        canonical(&self.kernel.save(FAMILY))
    }

    #[track_caller]
    fn assert_mended(&mut self, what: &str) {
        self.restart();
        let (want, have) = (world::rendered(&self.state, FAMILY), self.saved());
        assert!(want == have, "{what}:\n{}", world::difference(&want, &have));
        assert_eq!(self.restart().operations, 0, "{what}: a second start");
    }

    fn rules(&mut self) -> Vec<Standing> {
        let mut rules = Vec::new();
        let mut visit = |seen| {
            if let Seen::Rule { table, chain, handle, rule: Some(rule) } = seen {
                rules.push(Standing { table, chain, handle, rule });
            }
        };
        self.kernel.read(FAMILY, &mut visit).expect("a reading");
        rules
    }

    /// The first rule of `chain` whose text has `words` in it.
    fn find(&mut self, chain: &str, words: &str) -> Standing {
        let is_it = |s: &Standing| s.chain.as_str() == chain && RuleText(&s.rule).to_string().contains(words);
        self.rules().into_iter().find(is_it).expect("such a rule")
    }

    fn commit(&mut self, ops: impl IntoIterator<Item = Op>) {
        let transaction = Transaction { family: FAMILY, ops: ops.into_iter().collect() };
        self.kernel.commit(&transaction).expect("a change by another");
    }
}

impl Standing {
    fn delete(&self) -> Op {
        Op::DeleteRule { table: self.table, chain: self.chain.clone(), handle: self.handle }
    }

    fn again(&self, place: Place) -> Op {
        Op::AddRule { table: self.table, chain: self.chain.clone(), place, rule: self.rule.clone() }
    }

    /// KUBE-FIREWALL is kubelet's too: what stands there stays.
    fn is_in_shared_chain(&self) -> bool {
        self.is_in_builtin_chain() || self.chain.as_str() == "KUBE-FIREWALL"
    }

    fn is_in_builtin_chain(&self) -> bool {
        self.table.builtin_chains().contains(&self.chain.as_str())
    }
}

fn jump(table: Table, from: &str, to: &str) -> Op {
    Op::AddRule { table, chain: from.into(), place: Place::Head, rule: Rule::new().then(Target::Jump(to.into())) }
}

fn chain(name: &str) -> Op {
    Op::AddChain { table: Table::Nat, chain: name.into() }
}

#[test]
fn rules_of_our_chains_that_are_missing_doubled_or_moved_are_mended() {
    for seed in 1..=40 {
        let mut node = Node::new(seed);
        let mut random = Random::new(seed + 1000);
        let rules: Vec<_> = node.rules().into_iter().filter(|rule| !rule.is_in_shared_chain()).collect();
        for rule in rules {
            // Some are left as they are.
            match random.below(12) {
                0 => node.commit([rule.delete()]),
                1 => node.commit([rule.again(Place::Head)]),
                2 => node.commit([rule.again(Place::Tail)]),
                3 => node.commit([rule.delete(), rule.again(Place::Head)]),
                4 => node.commit([rule.delete(), rule.again(Place::Tail)]),
                5 => drop(node.kernel.add_foreign_rule(FAMILY, rule.table, &rule.chain)),
                _ => {}
            }
        }
        node.assert_mended(&format!("seed {seed}"));
    }
}

#[test]
fn the_last_rule_is_last_again() {
    let mut node = Node::new(1);
    let last = node.find("KUBE-SERVICES", "must be the last rule");
    node.commit([last.delete(), last.again(Place::Head)]);
    node.assert_mended("the last rule came first");
}

#[test]
fn jumps_of_built_in_chains_come_back_and_stay_where_they_are() {
    let mut node = Node::new(1);
    let portals = node.find("PREROUTING", "kubernetes service portals");
    node.commit([portals.delete()]);
    node.assert_mended("a jump was gone");

    // Where others put ours, and how often, is theirs to say.
    let forward = node.find("FORWARD", "kubernetes forwarding rules");
    node.commit([forward.delete(), forward.again(Place::Tail), forward.again(Place::Tail)]);
    let before = node.saved();
    assert_eq!(node.restart().operations, 0);
    assert_eq!(node.saved(), before);
}

#[test]
fn leftovers_that_lead_to_each_other_go() {
    let mut node = Node::new(1);
    let before = node.saved();
    let live = node.rules().into_iter().find(|rule| rule.chain.as_str().starts_with("KUBE-SVC-")).expect("a Service's chain");
    node.commit([
        chain("KUBE-SVC-OLD"),
        chain("KUBE-SEP-OLD"),
        chain("KUBE-EXT-OLD"),
        jump(Table::Nat, "KUBE-SEP-OLD", "KUBE-EXT-OLD"),
        jump(Table::Nat, "KUBE-SVC-OLD", "KUBE-SEP-OLD"),
        jump(Table::Nat, "KUBE-SERVICES", "KUBE-SVC-OLD"),
        jump(Table::Nat, live.chain.as_str(), "KUBE-SEP-OLD"),
        jump(Table::Nat, "KUBE-MARK-MASQ", "KUBE-EXT-OLD"),
    ]);
    node.assert_mended("leftovers");
    assert_eq!(node.saved(), before);
}

#[test]
fn chains_that_went_are_made_again() {
    let mut node = Node::new(1);
    let flush = |table: Table, chain: &str| Op::FlushChain { table, chain: chain.into() };
    let hooks: Vec<_> = node.rules().into_iter().filter(Standing::is_in_builtin_chain).map(|rule| rule.delete()).collect();
    node.commit(hooks);
    for name in ["KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-EXTERNAL-SERVICES", "KUBE-PROXY-FIREWALL"] {
        node.commit([flush(Table::Filter, name), Op::DeleteChain { table: Table::Filter, chain: name.into() }]);
    }
    for name in ["KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-POSTROUTING"] {
        node.commit([flush(Table::Nat, name), Op::DeleteChain { table: Table::Nat, chain: name.into() }]);
    }
    node.assert_mended("chains were gone");
}
