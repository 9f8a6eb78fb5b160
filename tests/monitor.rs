//! What the kernel tells of foreign changes of rules, and what we make of it: own changes bring nothing, others'
//! bring the chains and who it was, more than fits is everything.

#![allow(clippy::unwrap_used, reason = "where a test cannot go on it has failed")]

mod netns;

use std::process::Command;
use std::time::Duration;

use netns::in_namespace;
use sluice::net::Family;
use sluice::netlink::{ForeignChange, Kernel, NftKernel, RuleMonitor};
use sluice::ruleset::{Op, Place, Rule, Table, Target, Transaction};

const PATIENCE: Duration = Duration::from_secs(10);

/// Runs a shell command line, which must succeed.
fn shell(line: &str) {
    let output = Command::new("sh").args(["-ec", line]).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

fn commit(kernel: &mut NftKernel, family: Family, ops: Vec<Op>) {
    kernel.commit(&Transaction { family, ops }).unwrap();
}

fn new_chain(chain: &str) -> Op {
    Op::AddChain { table: Table::Nat, chain: chain.into() }
}

fn add_return(chain: &str) -> Op {
    let rule = Rule { target: Some(Target::Return), ..Rule::default() };
    Op::AddRule { table: Table::Nat, chain: chain.into(), place: Place::Tail, rule }
}

fn flush(chain: &str) -> Op {
    Op::FlushChain { table: Table::Nat, chain: chain.into() }
}

/// A kernel with a nat table in both families, and a monitor of what others do.
fn watched() -> (NftKernel, RuleMonitor) {
    let mut kernel = NftKernel::open().unwrap();
    let monitor = RuleMonitor::open(kernel.port().unwrap()).unwrap();
    for family in Family::ALL {
        commit(&mut kernel, family, vec![Op::AddTable(Table::Nat), new_chain("KUBE-A"), add_return("KUBE-A")]);
    }
    (kernel, monitor)
}

fn ours_or_built_in(table: Table, chain: &str) -> bool {
    chain.starts_with("KUBE-") || table.builtin_chains().contains(&chain)
}

fn next(monitor: &mut RuleMonitor) -> ForeignChange {
    // What does not matter may come before.
    (0..100).find_map(|_| monitor.wait(PATIENCE, &ours_or_built_in).unwrap()).unwrap()
}

fn none(monitor: &mut RuleMonitor) {
    let told = (0..100).find_map(|_| monitor.wait(Duration::ZERO, &ours_or_built_in).unwrap());
    assert!(told.is_none(), "{told:?}");
}

/// `iptables -S`-like: `nat KUBE-A`.
fn chains(change: &ForeignChange, family: Family) -> Vec<String> {
    assert!(!change.touched[family].is_everything(), "{change:?}");
    change.touched[family].chains().map(|(table, chain)| format!("{table} {chain}")).collect()
}

/// Is there anything the kernel has queued?
fn is_readable(monitor: &RuleMonitor) -> bool {
    let flags = rustix::net::RecvFlags::PEEK | rustix::net::RecvFlags::DONTWAIT;
    match rustix::net::recv(monitor, &mut [0_u8; 1], flags) {
        Ok(_) => true,
        Err(rustix::io::Errno::AGAIN) => false,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn own_commits_are_not_even_queued() {
    in_namespace(|| {
        let (mut kernel, monitor) = watched();
        for n in 0..100 {
            let chain = format!("KUBE-SVC-{n}");
            commit(&mut kernel, Family::Ipv4, vec![new_chain(&chain), add_return(&chain)]);
            commit(&mut kernel, Family::Ipv4, vec![Op::DeleteChain { table: Table::Nat, chain: chain.as_str().into() }]);
        }
        assert!(!is_readable(&monitor));
        shell("iptables -t nat -N FOREIGN");
        assert!(is_readable(&monitor));
    });
}

#[test]
fn there_is_room_for_a_burst() {
    in_namespace(|| {
        let (_kernel, monitor) = watched();
        assert!(rustix::net::sockopt::socket_recv_buffer_size(&monitor).unwrap() >= 8 << 20);
    });
}

#[test]
fn a_foreign_change_names_its_chains_and_its_author() {
    in_namespace(|| {
        let (_kernel, mut monitor) = watched();
        for (line, program, found) in [
            ("iptables -t nat -F KUBE-A", "iptables", vec!["nat KUBE-A"]),
            ("iptables -t nat -A KUBE-A -j ACCEPT", "iptables", vec!["nat KUBE-A"]),
            ("iptables -t nat -R KUBE-A 1 -j RETURN", "iptables", vec!["nat KUBE-A"]),
            ("nft add rule ip nat PREROUTING counter", "nft", vec!["nat PREROUTING"]),
            ("iptables -t nat -N KUBE-B", "iptables", vec!["nat KUBE-B"]),
            ("iptables -t nat -X KUBE-B", "iptables", vec!["nat KUBE-B"]),
            (
                "nft 'add chain ip nat KUBE-B; add chain ip nat FOREIGN; flush chain ip nat KUBE-A'",
                "nft",
                vec!["nat KUBE-A", "nat KUBE-B"],
            ),
        ] {
            shell(line);
            let change = next(&mut monitor);
            assert_eq!(chains(&change, Family::Ipv4), found, "{line}");
            assert!(change.touched[Family::Ipv6].is_empty() && !change.lost, "{change:?}");
            let [by] = &change.by[..] else { panic!("{line}: {change:?}") };
            let (pid, name) = by.process.as_ref().unwrap();
            assert_eq!((&**name, *pid > 0 && by.port > 0), (program, true), "{line}: {change:?}");
        }
        shell("ip6tables -t nat -F KUBE-A");
        let change = next(&mut monitor);
        assert!(change.touched[Family::Ipv4].is_empty());
        assert_eq!((chains(&change, Family::Ipv6), change.notifications[Family::Ipv6]), (vec!["nat KUBE-A".to_owned()], 1));
        none(&mut monitor);
    });
}

#[test]
fn what_does_not_matter_is_not_told() {
    in_namespace(|| {
        let (_kernel, mut monitor) = watched();
        shell(
            "iptables -t nat -N DOCKER; iptables -t nat -A DOCKER -j RETURN; iptables -t nat -F DOCKER; iptables -t nat -X DOCKER",
        );
        shell("nft 'add table ip mine; add chain ip mine KUBE-A; add rule ip mine KUBE-A counter; delete table ip mine'");
        shell("nft 'add table inet nat; add chain inet nat KUBE-A; add chain ip nat x { type nat hook prerouting priority 7; }'");
        shell("nft 'chain ip nat x { policy drop; }'; nft delete chain ip nat x");
        none(&mut monitor);
    });
}

#[test]
fn tables_and_new_names_are_everything_of_their_family() {
    in_namespace(|| {
        let (_kernel, mut monitor) = watched();
        for (line, family) in [
            ("nft rename chain ip nat KUBE-A other", Family::Ipv4),
            ("ip6tables -t nat -E KUBE-A other", Family::Ipv6),
            ("nft rename chain ip nat other KUBE-A; nft rename chain ip nat KUBE-A KUBE-B", Family::Ipv4),
            ("nft add table ip filter", Family::Ipv4),
            ("nft delete table ip6 nat", Family::Ipv6),
            ("nft flush ruleset", Family::Ipv4),
        ] {
            shell(line);
            let change = next(&mut monitor);
            let everything: Vec<_> = Family::ALL.into_iter().filter(|f| change.touched[*f].is_everything()).collect();
            assert_eq!((everything, change.lost), (vec![family], false), "{line}");
        }
    });
}

#[test]
fn many_changes_are_told_as_one() {
    in_namespace(|| {
        let (_kernel, mut monitor) = watched();
        let mut others: Vec<_> = (0..6).map(|_| NftKernel::open().unwrap()).collect();
        for n in 0..300 {
            let other = &mut others[n % 6];
            commit(other, Family::ALL[n % 2], vec![flush("KUBE-A"), add_return("KUBE-A"), add_return("KUBE-A")]);
        }
        let change = next(&mut monitor);
        for family in Family::ALL {
            assert_eq!(chains(&change, family), ["nat KUBE-A"]);
            assert_eq!(change.notifications[family], 1 + 2 + 149 * 4);
        }
        assert_eq!(change.by.len(), 4, "of more than four the names are not kept");
        none(&mut monitor);
    });
}

/// A datagram is of one commit: the filter, which looks at its first message alone, takes nothing of others with it.
#[test]
fn own_and_foreign_commits_at_the_same_time_are_told_apart() {
    in_namespace(|| {
        let (mut kernel, mut monitor) = watched();
        let mut other = NftKernel::open().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for n in 0..300 {
                    commit(&mut kernel, Family::Ipv4, vec![new_chain(&format!("KUBE-OWN-{n}"))]);
                }
            });
            scope.spawn(move || {
                for n in 0..300 {
                    let chain = format!("KUBE-THEIRS-{n:03}");
                    // The other may come in between: the kernel serializes them.
                    commit(&mut other, Family::Ipv4, vec![new_chain(&chain)]);
                }
            });
        });
        let mut found = Vec::new();
        while let Some(change) = monitor.wait(Duration::ZERO, &ours_or_built_in).unwrap() {
            found.extend(chains(&change, Family::Ipv4));
            assert_eq!(change.by.len(), 1, "{change:?}");
        }
        assert_eq!(found, (0..300).map(|n| format!("nat KUBE-THEIRS-{n:03}")).collect::<Vec<_>>());
    });
}

#[test]
fn more_than_fits_is_everything() {
    in_namespace(|| {
        let (mut kernel, mut monitor) = watched();
        rustix::net::sockopt::set_socket_recv_buffer_size(&monitor, 1).unwrap();
        let mut other = NftKernel::open().unwrap();
        for n in 0..50 {
            commit(&mut other, Family::Ipv4, vec![new_chain(&format!("FOREIGN-{n}"))]);
        }
        let change = next(&mut monitor);
        assert!(change.lost && Family::ALL.into_iter().all(|family| change.touched[family].is_everything()), "{change:?}");
        assert_eq!(change.by.len(), 1, "the likely author is named: {change:?}");
        none(&mut monitor);
        commit(&mut other, Family::Ipv4, vec![new_chain("KUBE-B")]);
        assert_eq!(chains(&next(&mut monitor), Family::Ipv4), ["nat KUBE-B"], "from then on as ever");
        commit(&mut kernel, Family::Ipv4, vec![new_chain("KUBE-C")]);
        none(&mut monitor);
    });
}

#[test]
fn what_was_read_is_undisturbed_until_somebody_else_commits() {
    in_namespace(|| {
        let (mut kernel, _monitor) = watched();
        let undisturbed = |kernel: &mut NftKernel| Family::ALL.map(|family| kernel.is_undisturbed(family).unwrap());
        assert_eq!(undisturbed(&mut kernel), [false, false], "never read");
        kernel.read(Family::Ipv4, &mut |_| {}).unwrap();
        assert_eq!(undisturbed(&mut kernel), [true, false]);
        kernel.read(Family::Ipv6, &mut |_| {}).unwrap();
        // Own changes of all kinds, one that changes nothing, and one that is refused.
        commit(&mut kernel, Family::Ipv4, vec![new_chain("KUBE-B"), add_return("KUBE-B")]);
        commit(&mut kernel, Family::Ipv6, vec![flush("KUBE-A"), Op::AddTable(Table::Filter), new_chain("KUBE-B")]);
        commit(&mut kernel, Family::Ipv6, vec![flush("KUBE-A")]);
        let refused = Transaction { family: Family::Ipv4, ops: vec![new_chain("KUBE-B")] };
        kernel.commit(&refused).unwrap_err();
        commit(&mut kernel, Family::Ipv4, vec![Op::DeleteChain { table: Table::Nat, chain: "KUBE-B".into() }]);
        assert_eq!(undisturbed(&mut kernel), [true, true]);
        shell("iptables -t nat -S > /dev/null; iptables -t nat -F KUBE-B 2> /dev/null || true; nft list ruleset > /dev/null");
        assert_eq!(undisturbed(&mut kernel), [true, true], "who only looks disturbs nothing");

        let foreign = ["nft add table inet other", "iptables -t nat -A KUBE-A -j ACCEPT", "iptables -t nat -F KUBE-A"];
        for line in foreign {
            shell(line);
            assert_eq!(undisturbed(&mut kernel), [false, false], "{line}");
            commit(&mut kernel, Family::Ipv4, vec![new_chain("KUBE-C")]);
            commit(&mut kernel, Family::Ipv4, vec![Op::DeleteChain { table: Table::Nat, chain: "KUBE-C".into() }]);
            assert_eq!(undisturbed(&mut kernel), [false, false], "{line}");
            for family in Family::ALL {
                kernel.read(family, &mut |_| {}).unwrap();
            }
            assert_eq!(undisturbed(&mut kernel), [true, true]);
        }
    });
}

/// What is big is not even told to the monitor, and what others do meanwhile is not overlooked.
#[test]
fn big_transactions_are_sent_unheard() {
    in_namespace(|| {
        let (mut kernel, mut monitor) = watched();
        kernel.spare(monitor.ears().unwrap());
        let big = |name: &str| (0..2_000).map(|n| new_chain(&format!("KUBE-{name}-{n}"))).collect::<Vec<_>>();
        commit(&mut kernel, Family::Ipv4, big("SVC"));
        kernel.commit(&Transaction { family: Family::Ipv4, ops: big("SVC") }).unwrap_err();
        assert!(!kernel.take_unheard(), "nobody else was there");
        shell("iptables -t nat -F KUBE-A");
        assert_eq!(chains(&next(&mut monitor), Family::Ipv4), ["nat KUBE-A"], "it listens again");

        // Somebody commits all the time: some of it falls into our transactions.
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let mut other = NftKernel::open().unwrap();
            let (stop, kernel) = (&stop, &mut kernel);
            scope.spawn(move || {
                for n in 0.. {
                    commit(&mut other, Family::Ipv6, vec![new_chain(&format!("FOREIGN-{n}"))]);
                    if stop.load(std::sync::atomic::Ordering::Relaxed) {
                        return;
                    }
                }
            });
            let missed = (0..200).any(|n| {
                commit(kernel, Family::Ipv4, big(&n.to_string()));
                kernel.take_unheard()
            });
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            assert!(missed, "a change of others was never in doubt");
        });
        assert!(!kernel.take_unheard(), "it is asked for once");
    });
}
