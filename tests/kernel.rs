//! What the real kernel does with what we send it: built-in chains, errors, sizes, order, races,
//! counters and addresses. Each test is in a network namespace of its own.
//!
//! How single rules look on the wire is in wire.rs; whether the fake agrees is in parity.rs.

#![allow(clippy::unwrap_used, reason = "where a test cannot go on it has failed")]

mod netns;

use std::process::Command;
use std::time::{Duration, Instant};

use netns::in_namespace;
use rustix::thread::{CapabilitySet, CapabilitySets};
use sluice::net::Family;
use sluice::netlink::address::{AddressMonitor, addresses};
use sluice::netlink::nfacct::{Count, Counters};
use sluice::netlink::{Committed, Errno, Error, Kernel, NftKernel, Seen};
use sluice::ruleset::{ChainName, Comment, Handle, Match, Op, Place, Rule, Table, Target, Transaction};

/// Runs a shell command line, which must succeed, and returns what it prints.
fn shell(line: &str) -> String {
    let output = Command::new("sh").args(["-ec", line]).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn transaction(ops: Vec<Op>) -> Transaction {
    Transaction { family: Family::Ipv4, ops }
}

fn new_chain(chain: &str) -> Op {
    Op::AddChain { table: Table::Nat, chain: chain.into() }
}

fn add_rule(chain: &str, place: Place, comment: &str) -> Op {
    let rule = Rule { matches: vec![Match::Comment(Comment::new(comment))], ..Rule::default() };
    Op::AddRule { table: Table::Nat, chain: chain.into(), place, rule }
}

fn jump(from: &str, to: &str) -> Op {
    let rule = Rule { target: Some(Target::Jump(to.into())), ..Rule::default() };
    Op::AddRule { table: Table::Nat, chain: from.into(), place: Place::Tail, rule }
}

fn commit(kernel: &mut NftKernel, ops: Vec<Op>) -> Committed {
    kernel.commit(&transaction(ops)).unwrap()
}

fn read_all(kernel: &mut NftKernel) -> Vec<Seen> {
    let mut seen = Vec::new();
    kernel.read(Family::Ipv4, &mut |s| seen.push(s)).unwrap();
    seen
}

#[test]
fn tables_are_as_iptables_makes_them() {
    let list = "nft list chains | sort";
    let (ours, theirs) = std::sync::mpsc::channel();
    let theirs_too = ours.clone();
    in_namespace(move || {
        let mut kernel = NftKernel::open().unwrap();
        for family in Family::ALL {
            let ops = Table::ALL.map(Op::AddTable).to_vec();
            kernel.commit(&Transaction { family, ops: ops.clone() }).unwrap();
            kernel.commit(&Transaction { family, ops }).unwrap(); // again: no error
        }
        ours.send(shell(list)).unwrap();
    });
    in_namespace(move || {
        let mut dump = String::new();
        for table in Table::ALL {
            let chains = table.builtin_chains().iter().map(|chain| format!(":{chain} ACCEPT [0:0]\n"));
            dump.extend([format!("*{table}\n"), chains.collect(), "COMMIT\n".to_owned()]);
        }
        shell(&format!("for restore in iptables-restore ip6tables-restore; do $restore <<'END'\n{dump}END\ndone"));
        theirs_too.send(shell(list)).unwrap();
    });
    let lists: Vec<String> = theirs.iter().collect();
    if let [ours, theirs] = &lists[..] {
        assert_eq!(ours, theirs);
        assert_eq!(ours.matches("type nat hook prerouting priority dstnat; policy accept;").count(), 2);
    }
}

#[test]
fn what_an_administrator_set_is_not_changed() {
    in_namespace(|| {
        shell("iptables -P INPUT DROP; iptables -A INPUT -i lo -j ACCEPT");
        let mut kernel = NftKernel::open().unwrap();
        commit(&mut kernel, vec![Op::AddTable(Table::Filter)]);
        let saved = shell("iptables-save");
        assert!(saved.contains(":INPUT DROP") && saved.contains("-A INPUT -i lo -j ACCEPT"), "{saved}");
    });
}

#[test]
fn every_refused_operation_is_named() {
    in_namespace(|| {
        let mut kernel = NftKernel::open().unwrap();
        commit(&mut kernel, vec![Op::AddTable(Table::Nat), new_chain("A"), new_chain("B"), jump("A", "B")]);
        let before = read_all(&mut kernel);
        let nat = Table::Nat;
        let bad = transaction(vec![
            Op::AddTable(nat),
            new_chain("C"),
            new_chain("A"),
            jump("C", "NONE"),
            Op::DeleteRule { table: nat, chain: "A".into(), handle: Handle(999) },
            Op::DeleteChain { table: nat, chain: "B".into() },
        ]);
        let error = kernel.commit(&bad).unwrap_err();
        let Error::Refused(refusals) = &error else { panic!("{error}") };
        let found: Vec<_> = refusals.iter().map(|r| (r.op, r.errno)).collect();
        assert_eq!(found, [(2, Errno::EEXIST), (3, Errno::ENOENT), (4, Errno::ENOENT), (5, Errno::EBUSY)]);
        assert_eq!(refusals[3].text, "-t nat -X B");
        assert!(!error.is_retryable());
        assert_eq!(read_all(&mut kernel), before, "nothing of it was applied");
    });
}

#[test]
fn thousands_of_refusals_are_not_lost() {
    in_namespace(|| {
        let mut kernel = NftKernel::open().unwrap();
        let ops: Vec<Op> = (0..20_000).map(|n| new_chain(&format!("C{n}"))).collect();
        let error = kernel.commit(&transaction(ops)).unwrap_err();
        let Error::Refused(refusals) = &error else { panic!("{error}") };
        assert_eq!(refusals.len(), 20_000, "there is no table");
        assert!(refusals.iter().enumerate().all(|(index, r)| r.op == index && r.errno == Errno::ENOENT));
    });
}

#[test]
fn megabytes_go_in_one_send() {
    in_namespace(|| {
        let mut kernel = NftKernel::open().unwrap();
        let mut ops = vec![Op::AddTable(Table::Nat)];
        for number in 0..5_000 {
            let chain = format!("KUBE-SVC-{number:016}");
            ops.push(new_chain(&chain));
            ops.extend((0..3).map(|_| add_rule(&chain, Place::Tail, "ns/name:port cluster IP")));
        }
        let committed = commit(&mut kernel, ops);
        assert!(committed.bytes > 6_000_000, "{} bytes", committed.bytes);
        let handles: Vec<Handle> = read_all(&mut kernel)
            .into_iter()
            .filter_map(|seen| if let Seen::Rule { handle, .. } = seen { Some(handle) } else { None })
            .collect();
        assert_eq!(handles.len(), 15_000);
        assert_eq!(handles, committed.handles);
    });
}

#[test]
fn rules_stand_where_they_are_put() {
    in_namespace(|| {
        let mut kernel = NftKernel::open().unwrap();
        let ops =
            vec![Op::AddTable(Table::Nat), new_chain("A"), add_rule("A", Place::Tail, "c"), add_rule("A", Place::Head, "a")];
        let handles = commit(&mut kernel, ops).handles;
        let ops = vec![
            add_rule("A", Place::Tail, "e"),
            add_rule("A", Place::After(handles[0]), "d"),
            add_rule("A", Place::Before(handles[0]), "b"),
            Op::DeleteRule { table: Table::Nat, chain: "A".into(), handle: handles[1] },
        ];
        commit(&mut kernel, ops);
        let comments = "iptables-save -t nat | grep -o 'comment .$' | cut -c9 | tr -d '\\n'";
        assert_eq!(shell(comments), "bcde");
    });
}

#[test]
fn foreign_rules_are_seen_and_not_understood() {
    in_namespace(|| {
        // Each has something that our types cannot say.
        let foreign = [
            "-o eth0 -j ACCEPT",
            "! -p tcp -j ACCEPT",
            "-p icmp -j ACCEPT",
            "-p tcp --sport 1 -j ACCEPT",
            "-p tcp ! --dport 1 -j ACCEPT",
            "-p tcp --dport 1:2 -j ACCEPT",
            "-p tcp --syn -j ACCEPT",
            "-p sctp ! --dport 1 -j ACCEPT",
            "-p udp -m multiport --dports 1,2 -j ACCEPT",
            "-s 10.0.0.1/255.0.255.0 -j ACCEPT",
            "-m limit --limit 1/s -j ACCEPT",
            "-m addrtype --dst-type BROADCAST -j ACCEPT",
            "-m addrtype --dst-type LOCAL --limit-iface-in -j ACCEPT",
            "-m conntrack --ctstate NEW --ctproto tcp -j ACCEPT",
            "-m conntrack --ctstatus ASSURED -j ACCEPT",
            "-m statistic --mode nth --every 2 --packet 0 -j ACCEPT",
            "-m statistic --mode random ! --probability 0.5 -j ACCEPT",
            "-m recent --update --seconds 5 --name X --rsource -j ACCEPT",
            "-m recent --rcheck --seconds 5 --name X --rsource -j ACCEPT",
            "-m recent --set --name X --rdest -j ACCEPT",
            "-j LOG",
            "-g A",
            "-j REJECT --reject-with tcp-reset -p tcp",
            "-j REJECT --reject-with icmp-host-prohibited",
            "-f -j ACCEPT",
        ];
        let mut dump = String::from("*filter\n:A - [0:0]\n:B - [0:0]\n");
        dump.extend(foreign.iter().map(|rule| format!("-A B {rule}\n")));
        dump += "COMMIT\n*nat\n:B - [0:0]\n-A B -p tcp -j DNAT --to-destination 10.0.0.1-10.0.0.2:80\n";
        dump += "-A B -p tcp -j DNAT --to-destination 10.0.0.1:80 --random\n-A B -j MASQUERADE --random\nCOMMIT\n";
        shell(&format!("iptables-restore <<'END'\n{dump}END"));
        shell("nft add rule ip filter A tcp dport 80 ct state new accept; nft add rule ip filter A accept comment x");
        let mut kernel = NftKernel::open().unwrap();
        let rules = read_all(&mut kernel);
        let in_chain = |name: &str| {
            let name = ChainName::from(name);
            let rules = rules.iter().filter_map(move |seen| match seen {
                Seen::Rule { chain, rule, .. } if *chain == name => Some(rule.clone()),
                _ => None,
            });
            rules.collect::<Vec<_>>()
        };
        assert_eq!(in_chain("B").len(), foreign.len() + 3);
        for (rule, text) in in_chain("B").iter().zip(dump.lines().filter(|line| line.starts_with("-A B"))) {
            assert_eq!(*rule, None, "{text}");
        }
        assert_eq!(in_chain("A")[0], None);
    });
}

#[test]
fn a_change_during_the_reading_is_noticed() {
    in_namespace(|| {
        let mut kernel = NftKernel::open().unwrap();
        let mut other = NftKernel::open().unwrap();
        commit(&mut kernel, vec![Op::AddTable(Table::Nat)]);
        let mut first = true;
        let result = kernel.read(Family::Ipv4, &mut |_| {
            if std::mem::take(&mut first) {
                commit(&mut other, vec![new_chain("MEANWHILE")]);
            }
        });
        assert!(matches!(result, Err(Error::Interrupted)), "{result:?}");
        assert!(read_all(&mut kernel).len() > 1);
    });
}

#[test]
fn probing_and_committing_nothing_change_nothing() {
    in_namespace(|| {
        let mut kernel = NftKernel::open().unwrap();
        for family in Family::ALL {
            kernel.probe(family).unwrap();
        }
        assert_eq!(commit(&mut kernel, Vec::new()), Committed::default());
        assert_eq!(shell("nft list ruleset"), "");
        assert_eq!(read_all(&mut kernel), []);
    });
}

#[test]
fn a_missing_privilege_has_its_own_error() {
    in_namespace(|| {
        let mut privileged = NftKernel::open().unwrap();
        let none = CapabilitySet::empty();
        rustix::thread::set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none }).unwrap();
        let error = NftKernel::open().unwrap_err();
        assert!(matches!(error, Error::NoPrivilege { .. }), "{error}");
        let error = Counters::open().unwrap().ensure("x").unwrap_err();
        assert!(matches!(error, Error::NoPrivilege { .. }), "{error}");
        let error = privileged.commit(&transaction(vec![Op::AddTable(Table::Nat)])).unwrap_err();
        assert!(matches!(error, Error::NoPrivilege { .. }), "{error}");
        assert_eq!(addresses().unwrap(), []);
    });
}

#[test]
fn counters_count() {
    in_namespace(|| {
        let mut counters = Counters::open().unwrap();
        assert_eq!(counters.read("packets").unwrap(), None);
        counters.ensure("packets").unwrap();
        counters.ensure("packets").unwrap();
        assert_eq!(counters.read("packets").unwrap(), Some(Count::default()));
        shell("ip link set lo up; iptables -A OUTPUT -m nfacct --nfacct-name packets");
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.send_to(&[0; 72], socket.local_addr().unwrap()).unwrap();
        // 20 bytes of IP, 8 of UDP.
        assert_eq!(counters.read("packets").unwrap(), Some(Count { packets: 1, bytes: 100 }));
    });
}

#[test]
fn addresses_are_listed_and_their_changes_told() {
    in_namespace(|| {
        let mut monitor = AddressMonitor::open(None).unwrap();
        assert!(!monitor.wait(Duration::ZERO).unwrap().any());
        shell("ip link add d0 type bridge; ip address add 10.1.2.3/24 dev d0; ip address add fd00::1/64 dev d0 nodad");
        assert!(monitor.wait(Duration::from_secs(10)).unwrap().any());
        // The kernel tells of an IPv6 address once more when it is ready for use, whenever that is.
        let quiet = (0..10).find(|_| !monitor.wait(Duration::from_millis(100)).unwrap().any());
        assert!(quiet.is_some_and(|told| told < 3), "a burst is told as one change, not one by one: {quiet:?}");
        let mut found: Vec<_> = addresses().unwrap().into_iter().map(|a| (a.address.to_string(), a.prefix_length)).collect();
        found.sort();
        assert_eq!(found, [("10.1.2.3".to_owned(), 24), ("fd00::1".to_owned(), 64)]);

        let waiting = std::thread::spawn(move || monitor.wait(Duration::from_secs(10)));
        shell("ip address del 10.1.2.3/24 dev d0");
        assert!(waiting.join().unwrap().unwrap().any());
    });
}

#[test]
fn an_overflow_of_notifications_is_a_change() {
    in_namespace(|| {
        let mut monitor = AddressMonitor::open(None).unwrap();
        shell(
            "ip link add d0 type bridge; for i in 1 2 3 4; do seq 0 250 | sed \"s/.*/address add 10.$i.&.1\\/32 dev d0/\"; done | ip -batch -",
        );
        let start = Instant::now();
        assert!(monitor.wait(Duration::from_secs(10)).unwrap().any());
        assert!(!monitor.wait(Duration::ZERO).unwrap().any());
        assert!(start.elapsed() < Duration::from_secs(5));
    });
}

/// Somebody's mistake must not end the proxy: who listens for changes gets what there is, and looks again.
#[test]
fn addresses_that_change_all_the_time_are_listed_for_who_listens() {
    in_namespace(|| {
        shell(
            "ip link set lo up; for i in $(seq 3000); do echo addr add 172.20.$((i / 250)).$((i % 250 + 1))/32 dev lo; done | ip -batch -",
        );
        let churn = "while echo addr add 172.30.0.1/32 dev lo; do echo addr del 172.30.0.1/32 dev lo; done | ip -batch -";
        let mut churn = Command::new("setsid").args(["sh", "-c", churn]).spawn().unwrap();
        let monitor = AddressMonitor::open(None).unwrap();
        std::thread::sleep(Duration::from_millis(200));
        let lists: Vec<_> = (0..20).map(|_| monitor.list()).collect();
        shell(&format!("kill -- -{}", churn.id()));
        churn.wait().unwrap();
        assert!(lists.into_iter().all(|list| list.unwrap().len() > 2000));
    });
}
