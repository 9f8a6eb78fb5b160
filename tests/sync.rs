//! The sync engine on the fake kernel (which tests/parity.rs holds to the real one): what a change costs in
//! operations, and that whatever happens the result is what a full render says.

mod world;

use std::sync::LazyLock;
use std::time::Duration;

use sluice::model::{Event, State};
use sluice::net::Protocol;
use sluice::netlink::fake::FakeKernel;
use sluice::netlink::{self, Errno, Error, Kernel as _};
use sluice::ruleset::{
    Applied, Block, ChainName, Group, Layout, Op, OwnedChain, Owner, Place, Planner, Rule, Side, StaleHooks, Table, Touched,
    Transaction,
};
use world::bench::{Bench, FAMILY, fresh_sync, web};
use world::{Random, World, key, service};

#[test]
fn an_endpoint_costs_its_chain_and_the_balancing_chain() {
    let mut bench = Bench::new();
    bench.sync((1..=50).flat_map(|i| web(i, 2)));

    // One more: its chain (1 + 2 rules), and the balancing chain flushed and refilled (1 + 1 + 3 rules).
    let more = bench.sync([web(7, 3)[0].clone()]);
    assert_eq!((more.services, more.transactions, more.operations), (1, 1, 8));
    bench.assert_as_rendered("one endpoint more");

    // One less: the balancing chain, then, in a transaction of its own, the chain that is gone.
    let less = bench.sync([web(7, 2)[0].clone()]);
    assert_eq!((less.services, less.transactions, less.operations), (1, 2, 1 + 1 + 2 + 1));
    bench.assert_as_rendered("one endpoint less");
}

#[test]
fn a_service_costs_what_it_has() {
    let mut bench = Bench::new();
    bench.sync((1..=50).flat_map(|i| web(i, 2)));
    // Two endpoint chains of two rules, the balancing chain of three, one dispatch rule.
    let added = bench.sync(web(51, 2));
    assert_eq!((added.services, added.transactions, added.operations), (1, 1, 2 * 3 + 4 + 1));
    bench.assert_as_rendered("a service more");
    let removed = bench.sync([Event::Service(key("shop", "web-51"), None)]);
    assert_eq!((removed.services, removed.transactions, removed.operations), (1, 1, 1 + 3));
    bench.assert_as_rendered("a service less");
}

#[test]
fn what_rules_do_not_depend_on_costs_nothing() {
    let mut bench = Bench::new();
    bench.sync(web(1, 2));
    bench.note(web(1, 2));
    assert!(!bench.sync.is_due());
}

/// Every pod that comes or goes brings an address of its link: that must not cost a look at each Service.
#[test]
fn an_address_of_the_node_costs_no_look_at_the_services() {
    let mut bench = Bench::new();
    bench.sync((1..=50).flat_map(|i| web(i, 2)));
    bench.note([Event::Addresses(vec![[172, 31, 0, 10].into(), "fe80::1".parse().expect("an address")])]);
    let summary = bench.sync([]);
    assert_eq!((summary.services, summary.operations), (0, 0));
    bench.assert_as_rendered("another address");
}

#[test]
fn a_service_that_loses_all_endpoints_is_refused_in_the_same_transaction() {
    let mut bench = Bench::new();
    bench.sync(web(1, 2));
    let summary = bench.sync([web(1, 0)[0].clone()]);
    // Dispatch rule out, reject rule in; then the three chains.
    assert_eq!((summary.transactions, summary.operations), (2, 2 + 3));
    bench.assert_as_rendered("no endpoint");
}

#[test]
fn a_restart_over_right_rules_sends_nothing() {
    let mut bench = Bench::new();
    bench.sync((1..=20).flat_map(|i| web(i, 3)));
    let commits = bench.kernel.commits();
    bench.sync = fresh_sync();
    let summary = bench.sync([]);
    assert_eq!((summary.operations, bench.kernel.commits()), (0, commits));
}

#[test]
fn a_restart_removes_what_went_away_meanwhile() {
    let mut bench = Bench::new();
    bench.sync((1..=20).flat_map(|i| web(i, 3)));
    bench.sync = fresh_sync();
    bench.state = State::new("node-a");
    bench.sync((1..=10).flat_map(|i| web(i, 2)));
    bench.assert_as_rendered("half of the services, fewer endpoints");
}

#[test]
fn a_failed_transaction_is_made_up_for() {
    for errno in [Errno::ENOMEM, Errno::ENOBUFS, Errno::ERESTART] {
        let mut bench = Bench::new();
        bench.sync(web(1, 2));
        bench.note(web(2, 2));
        bench.kernel.fail_next_commit(Error::RefusedWhole { errno, said: None });
        assert!(bench.try_sync().is_err());
        assert!(bench.sync.is_due(), "{errno}: it is still to be done");
        bench.try_sync().expect("a sync");
        bench.assert_as_rendered("after a failure");
    }
}

#[test]
fn what_is_refused_once_is_not_refused_for_what_it_is() {
    let mut bench = Bench::new();
    bench.sync(web(1, 2));
    bench.note(web(2, 2));
    bench.kernel.fail_next_commit(Error::RefusedWhole { errno: Errno::EBUSY, said: None });
    let summary = bench.try_sync().expect("a sync");
    assert_eq!((summary.transactions, summary.left_out), (2, 0));
    bench.assert_as_rendered("refused once");
}

/// The kernel did it, but nobody knows: the tables say.
#[test]
fn a_transaction_whose_answer_was_lost_is_not_done_twice() {
    let no_answer = Error::NoAnswer { step: netlink::Step::Receive, after: Duration::from_secs(30) };
    for error in [Error::AnswersLost { errno: Errno::ENOBUFS }, Error::HandlesUnknown, no_answer] {
        let mut bench = Bench::new();
        bench.sync(web(1, 2));
        bench.note(web(2, 2));
        bench.kernel.lose_next_answer(error);
        assert!(bench.try_sync().is_err());
        let operations = bench.try_sync().expect("a sync").operations;
        assert_eq!(operations, 0, "all of it was done already");
        bench.assert_as_rendered("an answer lost");
    }
}

#[test]
fn a_read_that_failed_is_tried_again() {
    let mut bench = Bench::new();
    bench.kernel.fail_next_read(Error::AnswersLost { errno: Errno::ENOBUFS });
    bench.note(web(1, 2));
    assert!(bench.try_sync().is_err());
    bench.try_sync().expect("a sync");
    bench.assert_as_rendered("after a failed read");
}

#[test]
fn somebody_who_changes_rules_meanwhile_does_not_keep_us_waiting() {
    let mut bench = Bench::new();
    bench.kernel.fail_next_read(Error::Interrupted);
    bench.note(web(1, 2));
    bench.try_sync().expect("a sync");
    bench.assert_as_rendered("after an interrupted read");
}

#[test]
fn rules_in_our_chains_that_nobody_wants_go_and_others_stay() {
    let mut bench = Bench::new();
    bench.sync(web(1, 2));
    let mine = ChainName::from("USER-CHAIN");
    let mut foreign = Transaction::new(FAMILY);
    foreign.ops.push(Op::AddChain { table: Table::Nat, chain: mine.clone() });
    foreign.ops.push(Op::AddChain { table: Table::Nat, chain: "KUBE-SVC-STALE".into() });
    bench.kernel.commit(&foreign).expect("foreign chains");
    bench.kernel.add_foreign_rule(FAMILY, Table::Nat, &mine).expect("a rule");
    bench.kernel.add_foreign_rule(FAMILY, Table::Nat, &"PREROUTING".into()).expect("a rule");
    let before = bench.kernel.save(FAMILY);
    bench.kernel.add_foreign_rule(FAMILY, Table::Nat, &"KUBE-SERVICES".into()).expect("a rule");
    bench.sync = fresh_sync();
    bench.sync([]);
    assert_eq!(bench.kernel.save(FAMILY), before.replace(":KUBE-SVC-STALE - [0:0]\n", ""));
}

/// iptables makes a built-in chain when the first rule goes into it: where only kubelet or a network plugin
/// was before, tables lack some or all.
#[test]
fn built_in_chains_that_a_table_lacks_are_made() {
    let mut bench = Bench::new();
    let mut partial = Transaction::new(FAMILY);
    for table in Table::ALL {
        partial.ops.push(Op::AddTable(table));
        let lacking = table.builtin_chains().iter().filter(|chain| **chain != "INPUT");
        partial.ops.extend(lacking.map(|&chain| Op::DeleteChain { table, chain: chain.into() }));
    }
    bench.kernel.commit(&partial).expect("tables with one chain each");
    bench.sync(web(1, 2));
    bench.assert_as_rendered("over tables that lacked chains");
}

/// A Service, and somebody's rule that jumps to its chain of this name.
fn with_a_foreign_jump() -> (Bench, ChainName) {
    let mut bench = Bench::new();
    bench.sync(web(1, 2));
    let chain = |prefix: &str| {
        let saved = bench.kernel.save(FAMILY);
        let line = saved.lines().find(|line| line.starts_with(&format!(":{prefix}"))).expect("a chain");
        ChainName::new(line[1..].split(' ').next().expect("a name"))
    };
    let (user, ours) = (ChainName::from("USER"), chain("KUBE-SVC-"));
    let mut foreign = Transaction::new(FAMILY);
    foreign.ops.push(Op::AddChain { table: Table::Nat, chain: user.clone() });
    let rule = Rule::new().jump(&ours);
    foreign.ops.push(Op::AddRule { table: Table::Nat, chain: user, place: Place::Tail, rule });
    bench.kernel.commit(&foreign).expect("a foreign jump");
    (bench, ours)
}

#[test]
fn a_foreign_jump_to_a_chain_of_ours_does_not_keep_a_service_alive() {
    let (mut bench, ours) = with_a_foreign_jump();
    bench.sync([Event::Service(key("shop", "web-1"), None)]);
    let saved = bench.kernel.save(FAMILY);
    assert!(saved.contains(&format!(":{ours} ")) && !saved.contains(&format!("-A {ours} ")), "emptied: {saved}");
    assert!(!saved.contains("KUBE-SEP-") && !saved.contains("shop/web-1"), "all else is gone: {saved}");
    assert!(!bench.sync.is_due());

    // When the rule is gone and somebody looks, so is the chain.
    let emptied = bench.kernel.save(FAMILY);
    let mut withdrawn = Transaction::new(FAMILY);
    withdrawn.ops.push(Op::FlushChain { table: Table::Nat, chain: "USER".into() });
    bench.kernel.commit(&withdrawn).expect("a flush");
    bench.sync.drifted(&Touched::everything());
    bench.sync([]);
    assert_eq!(
        bench.kernel.save(FAMILY),
        emptied.replace(&format!(":{ours} - [0:0]\n"), "").replace(&format!("-A USER -j {ours}\n"), "")
    );
}

/// Both the running proxy and the next one use the chain again when it is wanted again.
#[test]
fn a_chain_that_had_to_stay_is_used_again() {
    let (mut bench, ours) = with_a_foreign_jump();
    bench.sync([Event::Service(key("shop", "web-1"), None)]);
    bench.sync(web(1, 2));
    assert!(bench.kernel.save(FAMILY).contains(&format!("-A {ours} ")));
    bench.sync([Event::Service(key("shop", "web-1"), None)]);
    bench.sync = fresh_sync();
    bench.sync([]);
    assert!(!bench.sync.is_due());
}

#[test]
fn the_node_port_rule_stays_last() {
    let mut bench = Bench::new();
    bench.sync(web(1, 2));
    bench.sync(web(2, 2));
    let saved = bench.kernel.save(FAMILY);
    let last = saved.lines().rfind(|line| line.starts_with("-A KUBE-SERVICES"));
    assert!(last.is_some_and(|rule| rule.contains("must be the last rule")), "{last:?}");
}

#[test]
fn random_histories_end_as_a_full_render_says() {
    for seed in 1..=20 {
        let mut random = Random::new(seed);
        let mut world = World::default();
        let mut bench = Bench::new();
        for step in 0..100 {
            bench.note(world.change(&mut random));
            if random.below(10) == 0 {
                bench.kernel.fail_next_commit(Error::RefusedWhole { errno: Errno::EBUSY, said: None });
                // Nothing to send is nothing to fail.
                let _ = bench.try_sync();
            }
            if random.below(25) == 0 {
                bench.sync = fresh_sync();
            }
            while bench.sync.is_due() && bench.try_sync().is_err() {}
            bench.assert_as_rendered(&format!("seed {seed}, step {step}"));
        }
    }
}

#[test]
fn protocols_share_a_port() {
    let mut bench = Bench::new();
    let mut service = service([10, 96, 0, 1].into());
    let mut udp = service.ports[0].clone();
    udp.protocol = Protocol::Udp;
    udp.name = "dns".into();
    service.ports.push(udp);
    bench.sync([Event::Service(key("shop", "both"), Some(service))]);
    bench.assert_as_rendered("TCP and UDP");
    assert_eq!(bench.kernel.save(FAMILY).matches("has no endpoints").count(), 2);
}

/// Rules of built-in chains are added last, whoever's they are: their handles must be theirs all the same.
#[test]
fn a_jump_of_a_built_in_chain_can_be_taken_away_again() {
    static NO_HOOKS: LazyLock<StaleHooks> = LazyLock::new(StaleHooks::default);
    static LAYOUT: Layout = Layout {
        tables: &Table::ALL,
        dispatch: &[(Table::Filter, "DISPATCH")],
        common: &[],
        prefixes: &[],
        stale_chains: &[],
        stale_hooks: &NO_HOOKS,
    };
    let group = |chain: &str, comment: &str| {
        let rules = vec![Rule::new().comment(comment)];
        Group { table: Table::Filter, chain: chain.into(), slot: 0, side: Side::Head, rules }
    };
    let chain = OwnedChain { table: Table::Filter, name: "OWN".into(), rules: vec![Rule::new().comment("own")] };
    let with = Block { chains: vec![chain], groups: vec![group("INPUT", "a hook"), group("DISPATCH", "dispatched")] };
    let without = Block { groups: vec![group("DISPATCH", "dispatched")], ..with.clone() };

    let mut kernel = FakeKernel::new();
    let mut applied = Applied::default();
    for block in [with, without] {
        let mut planner = Planner::new(&applied, &LAYOUT, FAMILY);
        planner.want(&applied, &Owner::Mode, Some(block));
        for mut step in planner.finish() {
            let committed = kernel.commit(&step.take_transaction()).expect("a commit");
            applied.record(step, &committed.handles);
        }
    }
    let saved = kernel.save(FAMILY);
    assert!(!saved.contains("a hook") && saved.contains("dispatched") && saved.contains("own"), "{saved}");
}
