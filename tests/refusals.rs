//! What the kernel refuses, on the fake kernel: the Service it is about is found, named and left out with what it had
//! before; all others go on. And what somebody else changed under us is looked at before anybody is blamed.

mod world;

use sluice::model::Event;
use sluice::netlink::{Errno, Error, Kernel as _};
use sluice::ruleset::{ChainName, Op, Table, Touched, Transaction};
use sluice::sync::Inputs;
use world::bench::{Bench, FAMILY, fresh_sync, web};
use world::{config, endpoint, facts, key, slice};

fn left_out(bench: &Bench) -> Vec<String> {
    bench.sync.left_out().map(|(key, _)| key.to_string()).collect()
}

fn gone(i: u8) -> [Event; 2] {
    let name = format!("web-{i}");
    [Event::Slice(key("shop", &format!("{name}-x")), None), Event::Service(key("shop", &name), None)]
}

/// The other Services' changes of the same sync are programmed; the refused one keeps what it had.
#[test]
fn a_refused_service_keeps_what_it_had_and_the_others_go_on() {
    for named in [true, false] {
        let mut bench = Bench::with(20);
        bench.kernel.dislike("10.244.7.3:", Errno::EINVAL, named);
        let summary = bench.sync((1..=20).flat_map(|i| web(i, 3)));
        assert_eq!((left_out(&bench), summary.left_out), (vec!["shop/web-7".to_owned()], 1), "named: {named}");
        let saved = bench.saved();
        assert_eq!(saved.matches("--to-destination 10.244.7.").count(), 2, "two endpoints as before: {saved}");
        // All is as if the seventh had never changed.
        let mut others = Bench::with(20);
        others.sync((1..=20).filter(|i| *i != 7).flat_map(|i| web(i, 3)));
        assert!(others.saved() == saved, "{}", world::difference(&others.saved(), &saved));
        assert!(!bench.sync.is_due(), "and it is not tried for ever");
    }
}

#[test]
fn it_is_tried_again_when_it_changes_and_only_then() {
    let mut bench = Bench::with(3);
    bench.kernel.dislike("10.244.2.3:", Errno::EINVAL, true);
    bench.sync(web(2, 3));
    let quiet = bench.sync(web(3, 3));
    assert_eq!((quiet.services, quiet.transactions, quiet.left_out), (1, 1, 1), "the others' changes cost what they cost");
    let again = bench.sync(web(2, 4));
    assert_eq!((again.services, again.left_out), (0, 1));
    let better = bench.sync(web(2, 1));
    assert_eq!((better.left_out, left_out(&bench).len()), (0, 0));
    bench.assert_as_rendered("rules");
}

/// As after a module was loaded: whoever looks at everything tries everything again.
#[test]
fn an_audit_tries_it_again() {
    let mut bench = Bench::with(3);
    bench.kernel.dislike("10.244.2.3:", Errno::ENOENT, true);
    bench.sync(web(2, 3));
    bench.kernel.like_everything();
    bench.sync.drifted(&Touched::everything());
    assert_eq!(bench.sync([]).left_out, 0);
    bench.assert_as_rendered("rules");
}

#[test]
fn several_refused_services_are_all_found() {
    for named in [true, false] {
        let mut bench = Bench::with(0);
        // Endpoints .30 are not to the kernel's liking, which three of forty Services have.
        bench.kernel.dislike(".30:8080", Errno::ENOENT, named);
        let bad = |i: u8| {
            Event::Slice(
                key("shop", &format!("web-{i}-x")),
                Some(slice(&key("shop", &format!("web-{i}")), vec![endpoint([10, 244, i, 30].into())])),
            )
        };
        let events = (1..=40).flat_map(|i| web(i, 2)).chain([bad(4), bad(5), bad(33)]);
        let summary = bench.sync(events);
        assert_eq!((summary.left_out, left_out(&bench)), (3, ["web-33", "web-4", "web-5"].map(|n| format!("shop/{n}")).to_vec()));
        for (key, why) in bench.sync.left_out().filter(|_| named) {
            assert!(why.contains("ENOENT") && why.contains(&format!("{key}:")), "{key}: {why}");
        }
        let mut others = Bench::with(0);
        others.sync((1..=40).filter(|i| ![4, 5, 33].contains(i)).flat_map(|i| web(i, 2)));
        assert!(others.saved() == bench.saved(), "{}", world::difference(&others.saved(), &bench.saved()));
    }
}

/// After a start nobody knows what such a Service had: half of its rules would be worse than none.
#[test]
fn a_refused_service_found_at_start_leaves_no_half_rules() {
    let mut bench = Bench::with(5);
    bench.kernel.dislike("10.244.2.3:", Errno::EINVAL, true);
    bench.sync = fresh_sync();
    bench.sync(web(2, 3));
    assert_eq!(left_out(&bench), ["shop/web-2"]);
    assert_eq!(bench.saved().matches("shop/web-2:").count(), 0, "{}", bench.saved());
    bench.sync = fresh_sync();
    bench.sync([]);
    assert_eq!((left_out(&bench).len(), bench.saved().matches("10.244.2.").count()), (1, 0));
    bench.kernel.like_everything();
    bench.sync(web(2, 4));
    bench.assert_as_rendered("rules");
}

#[test]
fn a_refused_service_that_goes_leaves_nothing() {
    let mut bench = Bench::with(5);
    bench.kernel.dislike("10.244.2.3:", Errno::EINVAL, true);
    bench.sync(web(2, 3));
    bench.sync(gone(2));
    assert_eq!(left_out(&bench).len(), 0);
    bench.assert_as_rendered("rules");
}

/// What no Service can help is nobody's fault: the sync fails, and nothing of it is forgotten.
#[test]
fn the_modes_own_rules_are_not_left_out() {
    let mut bench = Bench::with(0);
    bench.kernel.dislike("kubernetes forwarding rules", Errno::EINVAL, true);
    bench.sync = fresh_sync();
    bench.kernel = sluice::netlink::fake::FakeKernel::new();
    bench.kernel.dislike("kubernetes forwarding rules", Errno::EINVAL, true);
    bench.note(web(1, 2));
    let error = bench.try_sync().expect_err("refused");
    assert_eq!(error.errno(), Some(Errno::EINVAL));
    assert_eq!(left_out(&bench).len(), 0);
    bench.kernel.like_everything();
    bench.sync([]);
    bench.assert_as_rendered("rules");
}

#[test]
fn too_large_a_transaction_is_sent_in_parts() {
    let mut bench = Bench::with(2);
    bench.kernel.fail_next_commit(Error::Failed { step: sluice::netlink::Step::Send, errno: Errno::EMSGSIZE, said: None });
    let summary = bench.sync((1..=2).flat_map(|i| web(i, 3)));
    assert_eq!((summary.transactions, summary.left_out), (3, 0));
    bench.assert_as_rendered("rules");
}

/// Somebody flushed a chain, and the next change of the Service would delete a rule that is not there.
#[test]
fn what_somebody_else_changed_is_not_the_services_fault() {
    let mut bench = Bench::with(10);
    let mut foreign = Transaction::new(FAMILY);
    foreign.ops.push(Op::FlushChain { table: Table::Nat, chain: "KUBE-SERVICES".into() });
    bench.kernel.commit(&foreign).expect("a flush");
    let summary = bench.sync(web(3, 0));
    assert_eq!(summary.left_out, 0);
    bench.assert_as_rendered("rules");
}

/// Not only what was touched by name: the whole table is gone, and with it all handles.
#[test]
fn a_table_that_was_emptied_is_filled_again_with_the_next_change() {
    let mut bench = Bench::with(10);
    bench.kernel.forget(FAMILY, Table::Nat);
    bench.sync(web(3, 3));
    bench.assert_as_rendered("rules");
}

/// `nft flush ruleset`, and the kernel tells: the built-in chains that we made are gone with their jumps.
#[test]
fn tables_that_are_gone_are_made_again_with_all_their_jumps() {
    let mut bench = Bench::with(3);
    for table in Table::ALL {
        bench.kernel.forget(FAMILY, table);
    }
    bench.sync.drifted(&Touched::everything());
    bench.sync([]);
    bench.assert_as_rendered("rules");
}

/// Looking at what was touched costs the touched chains and mends them, and nothing else.
#[test]
fn damage_is_mended_where_it_is() {
    let mut bench = Bench::with(10);
    let before = bench.saved();
    let sep = before.lines().find_map(|line| line.strip_prefix(":KUBE-SEP-")).expect("a chain");
    let sep = ChainName::new(format!("KUBE-SEP-{}", sep.split(' ').next().expect("a name")));
    let mut foreign = Transaction::new(FAMILY);
    foreign.ops.push(Op::FlushChain { table: Table::Nat, chain: sep.clone() });
    bench.kernel.commit(&foreign).expect("a flush");
    let mut touched = Touched::default();
    touched.add(Table::Nat, sep);
    bench.sync.drifted(&touched);
    assert!(bench.sync.is_due());
    let summary = bench.sync([]);
    // The chain, flushed again to be sure, and its two rules.
    assert_eq!((summary.damaged, summary.services, summary.operations), (1, 1, 3));
    assert_eq!(bench.saved(), before);
    bench.sync.drifted(&touched);
    let nothing = bench.sync([]);
    assert_eq!((nothing.damaged, nothing.services, nothing.operations), (0, 0, 0));
}

/// An upgrade, or kube-proxy before it is stopped: both learn of a Service, and the other is first.
#[test]
fn another_proxy_that_was_first_is_not_undone() {
    for told in [true, false] {
        let mut bench = Bench::with(5);
        let mut other = fresh_sync();
        for event in web(6, 2) {
            bench.sync.note(&bench.state.apply(event));
        }
        let config = config();
        let inputs = Inputs { config: &config, facts: facts(), state: &bench.state };
        other.sync(&mut bench.kernel, inputs).expect("the other's sync");
        if told {
            let mut touched = Touched::default();
            let saved = bench.kernel.save(FAMILY);
            for chain in saved.lines().filter_map(|line| line.strip_prefix(":KUBE-")) {
                touched.add(Table::Nat, ChainName::new(format!("KUBE-{}", chain.split(' ').next().expect("a name"))));
            }
            bench.sync.drifted(&touched);
        }
        let summary = bench.sync([]);
        assert_eq!(summary.left_out, 0);
        bench.assert_as_rendered("rules");
    }
}

/// Its chain was there already, somebody else's: what was made in vain goes, once.
#[test]
fn a_refused_service_whose_chain_somebody_made_leaves_nothing() {
    let mut bench = Bench::with(3);
    let before = bench.saved();
    let mut other = Bench::with(4);
    other.sync([]);
    let saved = other.saved();
    let chain = saved.lines().find_map(|line| line.rsplit_once("shop/web-4:http cluster IP\" -m tcp --dport 80 -j ")?.1.into());
    let chain: &str = chain.filter(|chain: &&str| chain.starts_with("KUBE-SVC-")).expect("a jump");
    let mut foreign = Transaction::new(FAMILY);
    foreign.ops.push(Op::AddChain { table: Table::Nat, chain: chain.into() });
    bench.kernel.commit(&foreign).expect("a chain");
    bench.kernel.dislike(&format!("-j {chain}"), Errno::EOPNOTSUPP, true);
    let summary = bench.sync(web(4, 2));
    assert_eq!(summary.left_out, 1);
    assert_eq!(bench.saved(), before);
}

/// The endpoint is out of the balancing chain, but its own chain was not deleted: that is not forgotten.
#[test]
fn a_removal_that_was_refused_is_made_up_for() {
    for errno in [Errno::EBUSY, Errno::EINVAL] {
        let mut bench = Bench::with(3);
        bench.kernel.fail_commit_after(1, Error::RefusedWhole { errno, said: None });
        let summary = bench.sync(web(2, 1));
        assert_eq!((summary.left_out, summary.transactions), (0, 3));
        bench.assert_as_rendered("rules");
    }
}
