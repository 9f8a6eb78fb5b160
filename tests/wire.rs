//! Rules on their way to the kernel and back, in network namespaces, with iptables 1.8.9 as the judge:
//! what we program it must print as `ruleset::text` does, what it programs we must read as the same. What needs IPVS in the
//! kernel runs in a virtual machine.

#![allow(clippy::unwrap_used, reason = "where a test cannot go on it has failed")]

mod netns;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use netns::in_namespace;
use sluice::net::{Family, Protocol};
use sluice::netlink::nfacct::Counters;
use sluice::netlink::{Kernel, NftKernel, Seen};
use sluice::ruleset::text::RuleText;
use sluice::ruleset::{
    AddrType, ChainName, Comment, CtStates, Direction, Handle, InterfaceMatch, Match, Negatable, Op, Place, RecentAction,
    RejectWith, Rule, Table, Target, Transaction,
};

const COUNTERS: [&str; 2] = ["ct_state_invalid_dropped_pkts", "localhost_nps_accepted_pkts"];

/// Runs a program with `input` and returns what it prints; it must succeed.
fn run(program: &str, arguments: &[&str], input: &str) -> String {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{program}: {error}"));
    let mut stdin = child.stdin.take().expect("it is piped");
    let input = input.to_owned();
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().unwrap();
    let written = writer.join().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {}\n{errors}", output.status);
    written.unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// Sets for rules with so many dimensions. The name of the last is as long as names get.
const SETS: [&str; 3] = ["ONE", "TWO", "KUBE-6-LOAD-BALANCER-SOURCE-CID"];

fn make_sets(family: Family) {
    let inet = if family == Family::Ipv4 { "inet" } else { "inet6" };
    let [one, two, three] = SETS;
    let sets = format!(
        "create {one} bitmap:port range 0-65535\n\
         create {two} hash:ip,port family {inet}\n\
         create {three} hash:ip,port,net family {inet}\n"
    );
    run("ipset", &["restore"], &sets);
}

fn make_counters() {
    let mut counters = Counters::open().unwrap();
    for name in COUNTERS {
        counters.ensure(name).unwrap();
    }
}

fn save(family: Family) -> String {
    run(if family == Family::Ipv4 { "iptables-save" } else { "ip6tables-save" }, &[], "")
}

fn restore(family: Family, dump: &str) {
    run(if family == Family::Ipv4 { "iptables-restore" } else { "ip6tables-restore" }, &[], dump);
}

/// The rules of a dump by table and chain, without `-A CHAIN`.
fn rules_of(dump: &str) -> BTreeMap<(String, String), Vec<String>> {
    let mut rules: BTreeMap<_, Vec<_>> = BTreeMap::new();
    let mut table = "";
    for line in dump.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = name;
        } else if let Some(rule) = line.strip_prefix("-A ") {
            let (chain, rule) = rule.split_once(' ').unwrap_or((rule, ""));
            rules.entry((table.to_owned(), chain.to_owned())).or_default().push(rule.to_owned());
        }
    }
    rules
}

struct Contents {
    tables: BTreeSet<Table>,
    chains: BTreeSet<(Table, String)>,
    rules: Vec<(Table, String, Handle, Option<Rule>)>,
}

fn read(kernel: &mut NftKernel, family: Family) -> Contents {
    let mut contents = Contents { tables: BTreeSet::new(), chains: BTreeSet::new(), rules: Vec::new() };
    let visit = &mut |seen| match seen {
        Seen::Table(table) => drop(contents.tables.insert(table)),
        Seen::Chain { table, chain } => drop(contents.chains.insert((table, chain.to_string()))),
        Seen::Rule { table, chain, handle, rule } => contents.rules.push((table, chain.to_string(), handle, rule)),
    };
    kernel.read(family, visit).unwrap();
    contents
}

fn net(text: &str) -> Negatable<ipnet::IpNet> {
    Negatable::is(text.parse().unwrap())
}

fn not<T>(value: Negatable<T>) -> Negatable<T> {
    Negatable::is_not(value.value)
}

fn comment(text: &str) -> Match {
    Match::Comment(Comment::new(text))
}

fn interface(name: &str) -> InterfaceMatch {
    InterfaceMatch(name.into())
}

fn with(matches: Vec<Match>) -> Rule {
    Rule { matches, ..Rule::default() }
}

fn to(target: Target) -> Rule {
    Rule { target: Some(target), ..Rule::default() }
}

/// Rules with sets, with each combination of directions.
fn set_matches() -> Vec<Rule> {
    let mut lists: Vec<Vec<Direction>> = vec![Vec::new()];
    let mut rules = Vec::new();
    for set in SETS {
        let longer = |list: &Vec<Direction>, direction| [list.as_slice(), &[direction]].concat();
        lists = lists.iter().flat_map(|list| [Direction::Source, Direction::Destination].map(|d| longer(list, d))).collect();
        rules.extend(lists.iter().map(|list| with(vec![Match::Set { set: set.into(), directions: list.as_slice().into() }])));
    }
    let not_from_here = [Match::NotFromBridge, Match::AddrType(AddrType::SourceNotLocal)];
    let directions = [Direction::Destination; 2].into();
    let mut matches = vec![comment("a b"), Match::Set { set: SETS[1].into(), directions }];
    matches.extend(not_from_here);
    let target = Some(Target::Accept);
    rules.push(Rule { protocol: Some(Protocol::Tcp), matches, target, ..Rule::default() });
    rules
}

/// Rules for connections of IPVS. iptables tells them in the form of `RuleText`.
fn ipvs_matches(family: Family) -> Vec<Rule> {
    let address = if family == Family::Ipv4 { "203.0.113.77" } else { "2001:db8::77" };
    let rule = |protocol, port| Rule {
        source: Some(net(&format!("{address}/{}", family.host_prefix()))),
        matches: vec![Match::Ipvs { protocol, address: address.parse().unwrap(), port }],
        target: Some(Target::Drop),
        ..Rule::default()
    };
    Protocol::ALL.into_iter().flat_map(|protocol| [80, u16::MAX].map(|port| rule(protocol, port))).collect()
}

/// Every other match there is, in the forms that are encoded differently.
fn matches(family: Family) -> Vec<Rule> {
    let list = ChainName::from("KUBE-SEP-XYZ");
    let recent = |action| with(vec![Match::Recent { family, list: list.clone(), action }]);
    let states = CtStates::RELATED.or(CtStates::ESTABLISHED);
    let all_states = [CtStates::INVALID, CtStates::NEW, CtStates::SNAT, CtStates::DNAT, CtStates::UNTRACKED];
    let every_state = all_states.into_iter().fold(states, CtStates::or);
    vec![
        Rule::default(),
        with(vec![comment("plain-word_1")]),
        with(vec![comment("ns/svc:p80 -> 10.0.0.1:80 \"quoted\" it's \\ ünïcode 🦀")]),
        with(vec![comment(&"x".repeat(255))]),
        with(vec![Match::AddrType(AddrType::SourceLocal)]),
        with(vec![Match::AddrType(AddrType::SourceNotLocal)]),
        with(vec![Match::AddrType(AddrType::DestinationLocal)]),
        with(vec![Match::Conntrack(Negatable::is(states))]),
        with(vec![Match::Conntrack(Negatable::is_not(states.or(CtStates::DNAT)))]),
        with(vec![Match::Conntrack(Negatable::is(every_state))]),
        with(vec![Match::Mark(Negatable::is((0x4000, 0x4000)))]),
        with(vec![Match::Mark(Negatable::is_not((0x8000_0000, 0x8000_0000)))]),
        with(vec![Match::NfAcct(COUNTERS[0].into())]),
        with(vec![Match::NotFromBridge]),
        recent(RecentAction::Set),
        recent(RecentAction::Check { seconds: 10_800 }),
        with(vec![Match::Statistic { probability: 715_827_883 }]),
        with(vec![Match::Statistic { probability: 1 << 31 }]),
        // Order of extensions is kept, also around those that are native expressions.
        with(vec![Match::Mark(Negatable::is((1, 1))), comment("a b"), Match::Mark(Negatable::is((2, 2)))]),
    ]
}

fn header_matches(family: Family) -> Vec<Rule> {
    let prefixes: &[&str] = match family {
        Family::Ipv4 => {
            &["10.0.0.0/8", "10.16.0.0/12", "10.1.0.0/16", "10.1.2.0/24", "10.1.2.128/25", "1.2.3.4/32", "128.0.0.0/1"]
        }
        Family::Ipv6 => &["fd00::/8", "fd00:10::/56", "fd00:10::/57", "fd00::/64", "fd00::1/128", "8000::/1", "fd00::4/127"],
    };
    let mut rules = Vec::new();
    for (prefix, other) in prefixes.iter().zip(prefixes.iter().rev()) {
        rules.push(Rule { source: Some(net(prefix)), destination: Some(net(other)), ..Rule::default() });
        rules.push(Rule { source: Some(not(net(prefix))), destination: Some(not(net(other))), ..Rule::default() });
    }
    for name in ["cni0", "veth+", "fifteen-letters"] {
        rules.push(Rule { in_interface: Some(Negatable::is(interface(name))), ..Rule::default() });
        rules.push(Rule { in_interface: Some(Negatable::is_not(interface(name))), ..Rule::default() });
    }
    for protocol in Protocol::ALL {
        rules.push(Rule { protocol: Some(protocol), ..Rule::default() });
        for destination in [None, Some(80), Some(u16::MAX)] {
            let matches = vec![comment("ns/svc:p80 cluster IP"), Match::Port { protocol, destination }];
            rules.push(Rule {
                destination: Some(net(prefixes[5])),
                in_interface: Some(Negatable::is_not(interface("cni0"))),
                protocol: Some(protocol),
                matches,
                source: Some(not(net(prefixes[0]))),
                target: None,
            });
        }
    }
    rules
}

/// Every target of the nat table (no hook reaches the chain, so all may stand there).
fn nat_targets(family: Family) -> Vec<Rule> {
    let address = if family == Family::Ipv4 { "10.0.0.1:65535" } else { "[fd00::1]:65535" };
    let dnat = |protocol| Rule {
        protocol: Some(protocol),
        matches: vec![comment("to an endpoint"), Match::Port { protocol, destination: None }],
        target: Some(Target::Dnat(address.parse().unwrap())),
        ..Rule::default()
    };
    let mark = |value, mask| to(Target::Mark { value, mask });
    vec![
        to(Target::Accept),
        to(Target::Return),
        to(Target::Jump("KUBE-OTHER".into())),
        mark(0x4000, 0x4000),
        mark(0x4000, 0),
        mark(1, u32::MAX),
        to(Target::Masquerade { random_fully: true }),
        to(Target::Masquerade { random_fully: false }),
        dnat(Protocol::Tcp),
        dnat(Protocol::Udp),
        dnat(Protocol::Sctp),
    ]
}

fn filter_targets(family: Family) -> Vec<Rule> {
    let with = match family {
        Family::Ipv4 => RejectWith::IcmpPortUnreachable,
        Family::Ipv6 => RejectWith::Icmp6PortUnreachable,
    };
    vec![to(Target::Reject(with)), to(Target::Drop), to(Target::Accept)]
}

fn chains_with(family: Family, contents: &[(Table, Vec<Rule>)]) -> Transaction {
    let mut transaction = Transaction::new(family);
    for (table, rules) in contents {
        let (table, chain) = (*table, ChainName::from("KUBE-TEST"));
        transaction.ops.push(Op::AddTable(table));
        transaction.ops.push(Op::AddChain { table, chain: "KUBE-OTHER".into() });
        transaction.ops.push(Op::AddChain { table, chain: chain.clone() });
        for rule in rules {
            transaction.ops.push(Op::AddRule { table, chain: chain.clone(), place: Place::Tail, rule: rule.clone() });
        }
    }
    transaction
}

fn check_round_trip(family: Family) {
    make_counters();
    make_sets(family);
    let nat: Vec<Rule> = [matches(family), header_matches(family), set_matches(), nat_targets(family)].concat();
    round_trip(family, &[(Table::Nat, nat), (Table::Filter, filter_targets(family)), (Table::Mangle, matches(family))]);
}

/// Programs rules, which iptables must then print and we must read as they are.
fn round_trip(family: Family, contents: &[(Table, Vec<Rule>)]) {
    let mut kernel = NftKernel::open().unwrap();
    let committed = kernel.commit(&chains_with(family, contents)).unwrap();

    let saved = rules_of(&save(family));
    let read = read(&mut kernel, family);
    for (table, rules) in contents {
        let key = (table.to_string(), "KUBE-TEST".to_owned());
        let texts: Vec<String> = rules.iter().map(|rule| RuleText(rule).to_string()).collect();
        assert_eq!(saved[&key], texts, "{family} {table}");
        let back: Vec<_> = read.rules.iter().filter(|(t, ..)| t == table).map(|(_, _, _, rule)| rule.clone()).collect();
        let expected: Vec<_> = rules.iter().cloned().map(Some).collect();
        assert_eq!(back, expected, "{family} {table}");
    }
    let handles: BTreeSet<_> = read.rules.iter().map(|(table, _, handle, _)| (*table, *handle)).collect();
    let tables = contents.iter().flat_map(|(table, rules)| rules.iter().map(|_| *table));
    assert_eq!(handles, tables.zip(committed.handles).collect(), "the computed handles are the real ones");
}

#[test]
fn every_kind_of_rule_is_printed_and_read_back_ipv4() {
    in_namespace(|| check_round_trip(Family::Ipv4));
}

#[test]
fn every_kind_of_rule_is_printed_and_read_back_ipv6() {
    in_namespace(|| check_round_trip(Family::Ipv6));
}

/// The iptables dumps of the golden scenarios, of a family, in the folders that have one. `prefix`: the mode's.
fn golden(prefix: &str, family: Family) -> Vec<(PathBuf, String)> {
    let name = format!("{prefix}{}", if family == Family::Ipv4 { "iptables-v4.save" } else { "iptables-v6.save" });
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")];
    let mut dumps = Vec::new();
    while let Some(folder) = folders.pop() {
        folders.extend(fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()));
        dumps.extend(fs::read_to_string(folder.join(&name)).map(|dump| (folder, dump)));
    }
    assert!(dumps.len() >= 60, "{} golden dumps", dumps.len());
    dumps
}

/// What it takes to make `contents` from nothing.
fn as_transaction(family: Family, contents: &Contents) -> Transaction {
    let mut transaction = Transaction::new(family);
    transaction.ops.extend(contents.tables.iter().map(|table| Op::AddTable(*table)));
    for (table, chain) in &contents.chains {
        if !table.builtin_chains().contains(&chain.as_str()) {
            transaction.ops.push(Op::AddChain { table: *table, chain: ChainName::from(chain.as_str()) });
        }
    }
    for (table, chain, _, rule) in &contents.rules {
        let (table, chain, rule) = (*table, ChainName::from(chain.as_str()), rule.clone().unwrap());
        transaction.ops.push(Op::AddRule { table, chain, place: Place::Tail, rule });
    }
    transaction
}

/// Loads each golden dump with iptables and reads it; then everything is removed, what was read is
/// programmed by us, and iptables must print the golden dump again.
fn check_golden(family: Family, dumps: Vec<(PathBuf, String)>) {
    make_counters();
    let mut kernel = NftKernel::open().unwrap();
    for (folder, dump) in dumps {
        let name = folder.display();
        if dump.contains("-m set ") {
            // All scenarios have the same sets: those of the last one stay.
            run("ipset", &["-exist", "restore"], &fs::read_to_string(folder.join("ipvs-ipset.txt")).unwrap());
        }
        restore(family, &dump);
        let contents = read(&mut kernel, family);
        let mut texts: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (table, chain, _, rule) in &contents.rules {
            let rule = rule.as_ref().unwrap_or_else(|| panic!("{name}: a rule in {table} {chain} was not understood"));
            texts.entry((table.to_string(), chain.clone())).or_default().push(RuleText(rule).to_string());
        }
        assert_eq!(texts, rules_of(&dump), "{name}");
        run("nft", &["flush", "ruleset"], "");
        kernel.commit(&as_transaction(family, &contents)).unwrap();
        assert_eq!(rules_of(&save(family)), rules_of(&dump), "{name}, programmed by us");
    }
}

#[test]
fn what_iptables_programs_is_read_ipv4() {
    in_namespace(|| check_golden(Family::Ipv4, golden("", Family::Ipv4)));
}

#[test]
fn what_iptables_programs_is_read_ipv6() {
    in_namespace(|| check_golden(Family::Ipv6, golden("", Family::Ipv6)));
}

/// Forms of the same extensions that ours never have: what is not understood whole is not understood at all.
#[test]
fn what_is_nearly_ours_is_not_understood() {
    let others = [
        "-m set ! --match-set ONE dst",
        "-m set --match-set ONE dst --return-nomatch",
        "-m set --match-set ONE dst ! --update-counters",
        "-m set --match-set ONE dst --packets-gt 3",
        "-m physdev --physdev-is-in",
        "-m physdev ! --physdev-in eth0",
        "-m physdev ! --physdev-is-bridged",
        "-m addrtype ! --dst-type LOCAL",
        "-m addrtype ! --src-type LOCAL --limit-iface-in",
        "-m addrtype ! --src-type LOCAL --dst-type LOCAL",
        "-m addrtype ! --src-type UNICAST",
    ];
    in_namespace(move || {
        make_sets(Family::Ipv4);
        let ours = "-m set --match-set ONE dst";
        let rules: Vec<_> = others.iter().chain([&ours]).map(|rule| format!("-A FORWARD {rule}\n")).collect();
        restore(Family::Ipv4, &format!("*filter\n{}COMMIT\n", rules.concat()));
        let read = read(&mut NftKernel::open().unwrap(), Family::Ipv4);
        let understood: Vec<_> = read.rules.iter().map(|(_, _, _, rule)| rule.is_some()).collect();
        assert_eq!(understood, [vec![false; others.len()], vec![true]].concat());
    });
}

/// iptables fills all of the mask's bytes unless `--mask` is given, and then only those that its family has.
#[test]
fn a_list_of_addresses_is_ours_with_the_full_mask_alone() {
    let full = ["255.255.255.255", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"];
    let others: [&[&str]; 2] = [
        &["255.255.255.254", "0.0.0.0"],
        &["ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe", "ffff:ffff::", "7fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"],
    ];
    for ((family, full), others) in Family::ALL.into_iter().zip(full).zip(others) {
        in_namespace(move || {
            let given = [full].into_iter().chain(others.iter().copied()).map(|mask| format!("--mask {mask}"));
            let masks = [String::new()].into_iter().chain(given).enumerate();
            let rules = masks.map(|(i, mask)| format!("-A FORWARD -m recent --set --name KUBE-SEP-{i} {mask}\n"));
            restore(family, &format!("*filter\n{}COMMIT\n", rules.collect::<String>()));
            let read = read(&mut NftKernel::open().unwrap(), family);
            let understood: Vec<_> = read.rules.iter().map(|(_, _, _, rule)| rule.is_some()).collect();
            assert_eq!(understood, [vec![true; 2], vec![false; others.len()]].concat(), "{family}");
        });
    }
}

/// The golden dumps of ipvs mode with rules for connections of IPVS, which need a kernel with it, or those without.
fn ipvs_golden(family: Family, with_ipvs: bool) -> Vec<(PathBuf, String)> {
    let mut dumps = golden("ipvs-", family);
    dumps.retain(|(_, dump)| dump.contains("-m ipvs ") == with_ipvs);
    assert!(dumps.len() >= 4, "{} golden dumps", dumps.len());
    dumps
}

#[test]
fn what_iptables_programs_for_ipvs_is_read_ipv4() {
    in_namespace(|| check_golden(Family::Ipv4, ipvs_golden(Family::Ipv4, false)));
}

#[test]
fn what_iptables_programs_for_ipvs_is_read_ipv6() {
    in_namespace(|| check_golden(Family::Ipv6, ipvs_golden(Family::Ipv6, false)));
}

mod with_ipvs {
    use super::*;

    #[test]
    #[ignore = "run in the virtual machine of the_same_with_ipvs"]
    fn rules_for_its_connections_are_printed_and_read_back() {
        for family in Family::ALL {
            in_namespace(move || round_trip(family, &[(Table::Filter, ipvs_matches(family))]));
        }
    }

    #[test]
    #[ignore = "run in the virtual machine of the_same_with_ipvs"]
    fn what_iptables_programs_is_read() {
        for family in Family::ALL {
            in_namespace(move || check_golden(family, ipvs_golden(family, true)));
        }
    }
}

#[test]
fn the_same_with_ipvs() {
    let machine = Path::new(env!("CARGO_MANIFEST_DIR")).join("e2e/vmrun");
    let tests = std::env::current_exe().unwrap();
    // On a machine of two cores, with other tests beside it, the boot takes some 10 s.
    let run =
        Command::new(machine).args(["--timeout", "200", "--"]).arg(tests).args(["--ignored", "with_ipvs::"]).output().unwrap();
    let (out, log) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    if run.status.code() == Some(125) && std::env::var_os("CI").is_none() {
        eprintln!("not run with IPVS, there is no virtual machine here (e2e/vmrun --setup makes one ready): {log}");
        return;
    }
    assert!(run.status.success(), "{}\n{out}\n{log}", run.status);
    assert!(out.contains("test result: ok. 2 passed"), "{out}");
}
