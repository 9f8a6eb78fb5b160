//! `sluice --cleanup`: everything of ours goes, of whatever mode, and nothing else. So does what ipvs mode left when
//! another mode is in force.

mod support;
mod world;

use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use sluice::config::{Mode, RuleConfig};
use sluice::model::State;
use sluice::net::{Family, Protocol, Scheduler};
use sluice::netlink::fake::FakeKernel;
use sluice::netlink::fake::balancer::{Counts, FakeBalancer};
use sluice::netlink::nfacct::Counters;
use sluice::netlink::{Errno, Error, Kernel as _};
use sluice::render::ipvs::SetId;
use sluice::render::{self, Context};
use sluice::ruleset::{
    Applied, ChainName, Member, NodeOp, Op, Place, Planner, Rule, ServerFlags, SetSpec, SetType, Table, Transaction,
    VirtualAddress, VirtualServer,
};
use sluice::serve::Metrics;
use sluice::sync::cleanup::{BalancingRemoved, Bounds, remove_balancing, remove_rules};
use support::golden::{FAMILIES, flags, for_each, name, scenarios};
use support::netns::{Namespace, Process};
use support::proxy::BINARY;
use support::{PATIENCE, require_root, wait_until};
use world::bench::{FAMILY, web};
use world::{config, facts};

const OWN: [IpAddr; 1] = [IpAddr::V4(std::net::Ipv4Addr::new(172, 31, 0, 11))];
const BOUNDS: Bounds<'_> = Bounds { own: &OWN, excluded: &[] };

fn at(protocol: Protocol, address: &str) -> VirtualAddress {
    VirtualAddress { protocol, address: address.parse().expect("an address") }
}

fn tcp(address: &str) -> VirtualAddress {
    at(Protocol::Tcp, address)
}

fn server(at: VirtualAddress) -> NodeOp {
    let server = VirtualServer { scheduler: Scheduler::Rr, flags: ServerFlags::NONE, persistence: None };
    NodeOp::AddServer { at, server }
}

fn member(set: SetId, family: Family, member: Member) -> NodeOp {
    NodeOp::AddMember { set: set.name(family), member }
}

fn named(set: SetId, at: VirtualAddress) -> NodeOp {
    let address: SocketAddr = at.address;
    member(set, at.family(), Member::IpPort(address.ip(), at.protocol, address.port()))
}

/// All sets of both families, the device, and a virtual server of each kind.
fn node_in_ipvs_mode() -> FakeBalancer {
    let mut balancer = FakeBalancer::new();
    for family in Family::ALL {
        let spec = |set: SetId| SetSpec { name: set.name(family), kind: set.kind(), family, max_members: 65_536 };
        balancer.edit(&SetId::ALL.map(|set| NodeOp::CreateSet(spec(set))));
    }
    let (v4, v6) = (tcp("10.96.0.1:443"), tcp("[fd00:10:96::1]:443"));
    // Of an address that another interface has too: not on the device.
    let external = tcp("172.31.0.12:80");
    balancer.edit(&[
        server(v4),
        NodeOp::AddReal { at: v4, real: "10.244.0.1:6443".parse().expect("an address"), weight: 1 },
        named(SetId::ClusterIp, v4),
        server(v6),
        named(SetId::ClusterIp, v6),
        server(external),
        named(SetId::ExternalIpLocal, external),
        server(tcp("172.31.0.11:30080")),
        member(SetId::NodePortTcp, Family::Ipv4, Member::Port(30_080)),
        server(at(Protocol::Udp, "172.31.0.11:30053")),
        member(SetId::NodePortUdp, Family::Ipv4, Member::Port(30_053)),
        server(at(Protocol::Sctp, "172.31.0.11:30090")),
        named(SetId::NodePortSctp, at(Protocol::Sctp, "172.31.0.11:30090")),
        NodeOp::MakeDevice,
        NodeOp::AddAddress(v4.address.ip()),
        NodeOp::AddAddress(v6.address.ip()),
    ]);
    balancer
}

fn no_pause() {
    panic!("nothing is tried again");
}

#[test]
fn everything_of_ipvs_mode_goes() {
    let mut balancer = node_in_ipvs_mode();
    let removed = remove_balancing(&mut balancer, BOUNDS, &mut no_pause).expect("a removal");
    let wanted = BalancingRemoved { servers: 6, addresses: 2, device: true, sets: 34, refused: vec![] };
    assert_eq!((removed, balancer.save()), (wanted, String::new()));
    assert_eq!(balancer.take_counts().sends, 1);
    let again = remove_balancing(&mut balancer, BOUNDS, &mut no_pause).expect("a removal");
    assert!(again.is_nothing(), "{again:?}");
    let Counts { sends, readings, .. } = balancer.take_counts();
    assert_eq!((sends, readings), (0, 3), "without sets and device nobody asks for virtual servers");
}

/// What other programs have there.
fn of_others() -> Vec<NodeOp> {
    let set = |(name, kind): (&str, SetType)| {
        NodeOp::CreateSet(SetSpec { name: name.into(), kind, family: Family::Ipv4, max_members: 10 })
    };
    let servers = [
        tcp("192.0.2.1:80"),
        // The port of a Service's node port, but on no address of the node, or of the other protocol.
        tcp("192.0.2.1:30080"),
        at(Protocol::Udp, "172.31.0.11:30080"),
        tcp("172.31.0.11:8080"),
        // An external IP of a Service that the node has itself, at another port.
        tcp("172.31.0.12:8080"),
    ];
    let sets = [("MINE", SetType::HashIp), ("KUBE-MINE", SetType::HashIpPort)];
    servers.map(server).into_iter().chain(sets.map(set)).collect()
}

#[test]
fn what_is_not_ours_stays() {
    let mut others = FakeBalancer::new();
    others.edit(&of_others());
    let mut balancer = node_in_ipvs_mode();
    balancer.edit(&of_others());
    let removed = remove_balancing(&mut balancer, BOUNDS, &mut no_pause).expect("a removal");
    assert_eq!((removed.servers, removed.sets), (6, 34));
    assert_eq!(balancer.save(), others.save());
}

#[test]
fn a_set_of_our_name_but_another_type_is_not_ours() {
    let mut balancer = FakeBalancer::new();
    balancer.add_foreign_set("KUBE-CLUSTER-IP", "hash:net");
    let of_ipv4 = |name: &str, kind| SetSpec { name: name.into(), kind, family: Family::Ipv4, max_members: 10 };
    balancer.edit(&[
        NodeOp::CreateSet(of_ipv4("KUBE-LOOP-BACK", SetType::HashIp)),
        NodeOp::CreateSet(of_ipv4("KUBE-6-IPVS-IPS", SetType::HashIp)),
        NodeOp::CreateSet(of_ipv4("KUBE-IPVS-IPS", SetType::HashIp)),
    ]);
    let removed = remove_balancing(&mut balancer, BOUNDS, &mut no_pause).expect("a removal");
    assert_eq!((removed.sets, removed.refused.len()), (1, 0));
    let stays = ["KUBE-6-IPVS-IPS hash:ip", "KUBE-CLUSTER-IP hash:net", "KUBE-LOOP-BACK hash:ip"];
    let saved = balancer.save();
    assert!(saved.lines().count() == 3 && stays.iter().all(|set| saved.contains(set)), "{saved}");
}

#[test]
fn virtual_servers_in_ranges_of_others_stay() {
    let mut balancer = node_in_ipvs_mode();
    let excluded = ["10.96.0.0/16".parse().expect("a range"), "fd00:10:96::/112".parse().expect("a range")];
    let removed = remove_balancing(&mut balancer, Bounds { own: &OWN, excluded: &excluded }, &mut no_pause).expect("a removal");
    assert_eq!((removed.servers, removed.addresses, removed.sets), (4, 2, 34));
    let stays = "server 10.96.0.1:443/tcp rr\n  real 10.244.0.1:6443 weight 1\nserver [fd00:10:96::1]:443/tcp rr\n";
    assert_eq!(balancer.save(), stays);
}

/// The module that was there is not there any more, or never came.
#[test]
fn sets_and_device_go_where_there_is_no_ipvs() {
    let mut balancer = node_in_ipvs_mode();
    balancer.lose_ipvs();
    let removed = remove_balancing(&mut balancer, BOUNDS, &mut no_pause).expect("a removal");
    assert_eq!((removed.servers, removed.sets, balancer.save().as_str()), (0, 34, ""));
}

#[test]
fn a_set_that_is_still_in_use_is_waited_for() {
    let mut balancer = node_in_ipvs_mode();
    balancer.dislike_for_now("destroy set KUBE-LOOP-BACK", Errno(4100), 3);
    let mut pauses = 0;
    let removed = remove_balancing(&mut balancer, BOUNDS, &mut || pauses += 1).expect("a removal");
    assert_eq!((removed.sets, removed.refused.len(), pauses, balancer.save().as_str()), (34, 0, 3, ""));

    let mut balancer = node_in_ipvs_mode();
    balancer.refer_to("KUBE-LOOP-BACK", 1);
    let removed = remove_balancing(&mut balancer, BOUNDS, &mut || pauses += 1).expect("a removal");
    let failures: Vec<_> = removed.failures().collect();
    assert!(removed.sets == 33 && failures.len() == 1 && failures[0].contains("destroy set KUBE-LOOP-BACK: "), "{failures:?}");
    assert!(pauses < 50, "not for ever");
}

/// What was removed before an answer was lost is not missed, and what tells the rest apart is still there.
#[test]
fn a_removal_that_broke_off_can_be_done_again() {
    for done in 0..43 {
        let mut balancer = node_in_ipvs_mode();
        balancer.edit(&of_others());
        balancer.lose_next_answer(done, Error::AnswersLost { errno: Errno::ENOBUFS });
        remove_balancing(&mut balancer, BOUNDS, &mut no_pause).expect_err("a lost answer");
        let rest = remove_balancing(&mut balancer, BOUNDS, &mut no_pause).expect("a removal");
        assert!(rest.refused.is_empty(), "{rest:?}");
        let mut others = FakeBalancer::new();
        others.edit(&of_others());
        assert_eq!(balancer.save(), others.save(), "after {done}");
    }
}

/// Rules of both modes at once, as when one was changed for the other half-way, with kubelet's and others' beside them.
fn node_with_rules() -> FakeKernel {
    let mut kernel = FakeKernel::new();
    for mode in [Mode::Ipvs, Mode::Iptables] {
        let config = RuleConfig { mode, ..config() };
        let mut state = State::new("node-a");
        for event in web(9, 2) {
            state.apply(event);
        }
        let context = Context::new(&config, facts(), &state, FAMILY);
        let mut planner = Planner::new(&Applied::default(), render::layout(&config), FAMILY);
        for (owner, block) in render::all(&context).rules {
            planner.want(&Applied::default(), &owner, Some(block));
        }
        for mut step in planner.finish() {
            let mut transaction = step.take_transaction();
            transaction.ops.retain(|op| !matches!(op, Op::AddChain { chain, .. } if has_chain(&kernel, op.table(), chain)));
            kernel.commit(&transaction).expect("rules");
        }
    }
    kernel
}

fn has_chain(kernel: &FakeKernel, table: Table, chain: &ChainName) -> bool {
    let saved = kernel.save(FAMILY);
    let rest = saved.split(&format!("*{table}\n")).nth(1).unwrap_or_default();
    rest.split("COMMIT").next().is_some_and(|rest| rest.contains(&format!(":{chain} -")))
}

fn commit(kernel: &mut FakeKernel, ops: impl IntoIterator<Item = Op>) {
    kernel.commit(&Transaction { family: FAMILY, ops: ops.into_iter().collect() }).expect("a change by another");
}

fn jump(from: &str, to: &str) -> Op {
    Op::AddRule { table: Table::Nat, chain: from.into(), place: Place::Tail, rule: Rule::new().jump(to) }
}

/// The lines with a name of Kubernetes.
fn kube_lines(kernel: &FakeKernel) -> Vec<String> {
    kernel.save(FAMILY).lines().filter(|line| line.contains("KUBE-")).map(Into::into).collect()
}

const OF_KUBELET: [&str; 4] = [
    ":KUBE-FIREWALL - [0:0]",
    "-A INPUT -j KUBE-FIREWALL",
    "-A OUTPUT -j KUBE-FIREWALL",
    "-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment \"block incoming localnet connections\" \
     -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP",
];

#[test]
fn rules_of_both_modes_go_and_kubelets_stay() {
    let mut kernel = node_with_rules();
    commit(&mut kernel, [Op::AddChain { table: Table::Nat, chain: "CNI".into() }, jump("POSTROUTING", "CNI")]);
    assert!(kube_lines(&kernel).len() > 60);
    let removed = remove_rules(&mut kernel, &Metrics::new(), FAMILY).expect("a removal");
    assert!(removed.held.is_empty() && removed.chains > 20 && removed.hooks == 12 + 9, "{removed:?}");
    assert_eq!(kube_lines(&kernel), OF_KUBELET);
    assert!(kernel.save(FAMILY).contains("-A POSTROUTING -j CNI\n"));
    let again = remove_rules(&mut kernel, &Metrics::new(), FAMILY).expect("a removal");
    assert_eq!((again.chains, again.hooks), (0, 0));
}

#[test]
fn a_chain_that_somebody_jumps_to_is_emptied_and_named() {
    let mut kernel = node_with_rules();
    commit(&mut kernel, [Op::AddChain { table: Table::Nat, chain: "CNI".into() }, jump("CNI", "KUBE-MARK-MASQ")]);
    let removed = remove_rules(&mut kernel, &Metrics::new(), FAMILY).expect("a removal");
    let failures: Vec<_> = removed.failures().collect();
    assert!(failures.len() == 1 && failures[0].starts_with("chain KUBE-MARK-MASQ of table nat: "), "{failures:?}");
    let mut wanted = vec![OF_KUBELET[0], OF_KUBELET[1], OF_KUBELET[2], OF_KUBELET[3], ":KUBE-MARK-MASQ - [0:0]"];
    wanted.push("-A CNI -j KUBE-MARK-MASQ");
    assert_eq!(kube_lines(&kernel), wanted);
}

/// Who changes rules meanwhile makes us look again.
#[test]
fn a_removal_of_rules_is_tried_again() {
    let mut kernel = node_with_rules();
    kernel.fail_next_commit(Error::RefusedWhole { errno: Errno::ERESTART, said: None });
    remove_rules(&mut kernel, &Metrics::new(), FAMILY).expect("a removal");
    let mut kernel = node_with_rules();
    kernel.lose_next_answer(Error::AnswersLost { errno: Errno::ENOBUFS });
    remove_rules(&mut kernel, &Metrics::new(), FAMILY).expect("a removal");
    assert_eq!(kube_lines(&kernel), OF_KUBELET);
}

#[test]
fn a_node_without_rules_gets_none() {
    let mut kernel = FakeKernel::new();
    let removed = remove_rules(&mut kernel, &Metrics::new(), FAMILY).expect("a removal");
    assert_eq!((removed.chains, removed.hooks, kernel.commits(), kernel.save(FAMILY).as_str()), (0, 0, 0, ""));
}

/// Makes what kube-proxy's rules refer to and iptables-restore cannot make.
fn make_counters(node: &Namespace) {
    node.run(|| {
        let mut counters = Counters::open().expect("nfacct");
        for name in ["ct_state_invalid_dropped_pkts", "localhost_nps_accepted_pkts"] {
            counters.ensure(name).expect("a counter");
        }
    });
}

fn clean_up(node: &Namespace) -> Output {
    node.command(BINARY).arg("--cleanup").output().expect("sluice")
}

/// What stands on a node beside kube-proxy.
const OTHERS: &str = "\
*mangle
:KUBE-IPTABLES-HINT - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
COMMIT
*filter
:CNI-FORWARD - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
-A INPUT -i lo -j ACCEPT
-A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j CNI-FORWARD
COMMIT
*nat
:CNI-MASQ - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
-A POSTROUTING -j CNI-MASQ
-A CNI-MASQ -j RETURN
COMMIT
";

/// The rules and chains, without counters.
fn saved(node: &Namespace, tool: &str) -> Vec<String> {
    let uncounted = |line: &str| line.strip_suffix(']').and_then(|line| line.rsplit_once(" [")).map(|(line, _)| line.to_owned());
    let lines = node.output(&[tool]);
    lines.lines().filter(|line| !line.starts_with('#')).map(|line| uncounted(line).unwrap_or_else(|| line.into())).collect()
}

#[test]
fn nothing_of_kube_proxys_rules_is_left() {
    if !require_root("nothing_of_kube_proxys_rules_is_left") {
        return;
    }
    let names = ["dual-stack", "external-ips-local", "nodeport-local", "session-affinity", "terminating-local"];
    let scenarios: Vec<_> = scenarios().into_iter().filter(|scenario| names.contains(&name(scenario))).collect();
    assert_eq!(scenarios.len(), names.len());
    for_each(&scenarios, |scenario| ["", "ipvs-"].iter().filter_map(|mode| not_cleaned_up(scenario, mode)).collect());
}

/// What is wrong after `--cleanup` over the rules and sets of a scenario's dumps, of the mode that their names begin with.
fn not_cleaned_up(scenario: &Path, mode: &str) -> Option<String> {
    let dump = |file: &str| fs::read_to_string(scenario.join(file)).expect("a dump");
    let node = Namespace::golden(&format!("cleanup-{mode}{}", name(scenario)));
    make_counters(&node);
    node.feed(&["ipset", "restore"], &dump("ipvs-ipset.txt"));
    let before = FAMILIES.map(|(_, tool, file)| {
        let restore = tool.replace("save", "restore");
        node.feed(&[&restore], OTHERS);
        let before = saved(&node, tool);
        node.feed(&[&restore, "--noflush"], &dump(&format!("{mode}{file}")));
        assert!(saved(&node, tool).len() > before.len() + 20, "{}: the rules are there", name(scenario));
        before
    });
    let ran = clean_up(&node);
    let after = FAMILIES.map(|(_, tool, _)| saved(&node, tool));
    let is_kubelets = |line: &&String| line.contains("KUBE-FIREWALL");
    let rest = after.clone().map(|lines| lines.into_iter().filter(|line| !is_kubelets(&line)).collect::<Vec<_>>());
    let kubelets = after.clone().map(|lines| lines.iter().filter(is_kubelets).count());
    // The chain, two jumps, and a rule that is for IPv4 alone.
    let wanted = if mode.is_empty() { [4, 3] } else { [0, 0] };
    let sets = node.output(&["ipset", "list", "-n"]);
    let right = ran.status.success() && rest == before && kubelets == wanted && sets.is_empty();
    let log = String::from_utf8_lossy(&ran.stderr);
    (!right).then(|| format!("{} {mode}: {log}\nsets {sets}\n{after:#?}", name(scenario)))
}

/// What iptables mode made itself: what it shares with kubelet stays, and so does the sysctl (behaviour.md §3.5).
#[test]
fn after_our_own_rules_what_kubelet_shares_stays() {
    if !require_root("after_our_own_rules_what_kubelet_shares_stays") {
        return;
    }
    let node = Namespace::golden("cleanup-own");
    for (_, tool, _) in FAMILIES {
        node.feed(&[&tool.replace("save", "restore")], OTHERS);
    }
    let before = FAMILIES.map(|(_, tool, _)| saved(&node, tool));
    let scenario = scenario("dual-stack-loadbalancer");
    let mut command = node.command(BINARY);
    command.args(flags(&scenario)).arg("--once").arg("--manifests").arg(scenario.join("objects.yaml"));
    assert!(command.output().expect("sluice").status.success());
    assert!(saved(&node, "iptables-save").len() > before[0].len() + 20);
    assert!(clean_up(&node).status.success());
    let after = FAMILIES.map(|(_, tool, _)| saved(&node, tool));
    let rest = after.clone().map(|lines| lines.into_iter().filter(|line| !line.contains("KUBE-FIREWALL")).collect::<Vec<_>>());
    assert_eq!(rest, before);
    let [v4, v6] = after.map(|lines| lines.into_iter().filter(|line| line.contains("KUBE-FIREWALL")).collect::<Vec<_>>());
    let chain_and_jumps = [":KUBE-FIREWALL -", "-A INPUT -j KUBE-FIREWALL", "-A OUTPUT -j KUBE-FIREWALL"];
    assert_eq!((&v4[..3], &v6[..]), (&chain_and_jumps.map(String::from)[..], &chain_and_jumps.map(String::from)[..]));
    assert_eq!((v4.len(), v4[3].as_str()), (4, OF_KUBELET[3]));
    let route_localnet = node.run(|| fs::read_to_string("/proc/sys/net/ipv4/conf/all/route_localnet"));
    assert_eq!(route_localnet.expect("a sysctl"), "1\n");
}

#[test]
fn without_privilege_nothing_is_removed_and_the_exit_code_says_so() {
    if !require_root("without_privilege_nothing_is_removed_and_the_exit_code_says_so") {
        return;
    }
    let node = Namespace::new("cleanup", "caps");
    node.feed(&["iptables-restore"], "*nat\n:KUBE-MARK-MASQ - [0:0]\nCOMMIT\n");
    let mut command = node.command("setpriv");
    let ran = command.args(["--bounding-set=-all", "--inh-caps=-all", BINARY, "--cleanup"]).output().expect("sluice");
    let log = String::from_utf8_lossy(&ran.stderr).into_owned();
    let line = log.lines().last().unwrap_or_default();
    assert_eq!(ran.status.code(), Some(1), "{log}");
    let words = "error: encountered an error while tearing down rules: rules: cannot ";
    assert!(line.starts_with(words) && line.contains("CAP_NET_ADMIN"), "{line}");
    assert!(node.output(&["iptables-save"]).contains("KUBE-MARK-MASQ"));
}

#[test]
fn a_chain_that_could_not_be_removed_is_a_failure() {
    if !require_root("a_chain_that_could_not_be_removed_is_a_failure") {
        return;
    }
    let node = Namespace::new("cleanup", "held");
    let ran = clean_up(&node);
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    assert_eq!(node.output(&["nft", "list", "tables"]), "", "nothing is made where there was nothing");
    node.feed(
        &["iptables-restore"],
        "*nat\n:KUBE-MARK-MASQ - [0:0]\n:KUBE-SEP-A - [0:0]\n:CNI - [0:0]\n-A CNI -j KUBE-MARK-MASQ\nCOMMIT\n",
    );
    let ran = clean_up(&node);
    let log = String::from_utf8_lossy(&ran.stderr).into_owned();
    let line = log.lines().last().unwrap_or_default();
    assert!(
        ran.status.code() == Some(1)
            && line.starts_with("error: encountered an error while tearing down rules: IPv4 chain KUBE-MARK-MASQ of table nat: "),
        "{log}"
    );
    let after = node.output(&["iptables-save"]);
    assert!(after.contains("-A CNI -j KUBE-MARK-MASQ") && !after.contains("KUBE-SEP-A"), "{after}");
}

/// Of others, with names like it.
const NEIGHBOURS: &str = "\
table inet kube-proxy { chain mine { accept; }; }
table ip kube-proxy-mine { set cluster-ips { type ipv4_addr; elements = { 192.0.2.1 }; }; }
table ip6 mine { chain services { type nat hook output priority -100; counter packets 0 bytes 0 accept; }; }
table arp kube-proxy { chain mine { accept; }; }
";

/// What kube-proxy's nftables mode made of a scenario.
fn make_nftables_mode(node: &Namespace, scenario: &Path) {
    for dump in ["nftables-v4.nft", "nftables-v6.nft"] {
        node.feed(&["nft", "-f", "-"], &fs::read_to_string(scenario.join(dump)).expect("a dump"));
    }
}

fn scenario(wanted: &str) -> PathBuf {
    scenarios().into_iter().find(|path| name(path) == wanted).expect("the scenario")
}

fn tables(node: &Namespace) -> String {
    node.output(&["nft", "list", "ruleset"])
}

#[test]
fn the_tables_of_nftables_mode_go_and_no_others() {
    if !require_root("the_tables_of_nftables_mode_go_and_no_others") {
        return;
    }
    let of_nftables: Vec<_> = scenarios().into_iter().filter(|path| path.join("nftables-v4.nft").exists()).collect();
    assert!(of_nftables.len() > 40, "dumps of nftables mode");
    for_each(&of_nftables, |scenario| {
        let node = Namespace::new("cleanup-nft", name(scenario));
        node.feed(&["nft", "-f", "-"], NEIGHBOURS);
        let before = tables(&node);
        make_nftables_mode(&node, scenario);
        assert!(tables(&node).lines().count() > before.lines().count() + 100, "{}: the tables are there", name(scenario));
        let ran = clean_up(&node);
        let told = String::from_utf8_lossy(&ran.stdout).ends_with("; 2 tables of nftables mode\n");
        let right = ran.status.success() && told && tables(&node) == before;
        let failure = || format!("{}: {}\n{}", name(scenario), String::from_utf8_lossy(&ran.stderr), tables(&node));
        if right { Vec::new() } else { vec![failure()] }
    });
}

/// A table of whom its maker is still there, and who wants it for itself alone.
#[test]
fn a_table_that_could_not_be_deleted_is_a_failure() {
    if !require_root("a_table_that_could_not_be_deleted_is_a_failure") {
        return;
    }
    let node = Namespace::new("cleanup", "owned");
    make_nftables_mode(&node, &scenario("dual-stack"));
    node.output(&["nft", "delete table ip kube-proxy"]);
    let mut owner = Process::start(node.command("nft").arg("-i").stdin(Stdio::piped()).stdout(Stdio::null()));
    let words = b"add table ip kube-proxy { flags owner; }\n";
    owner.child().stdin.as_mut().expect("a pipe").write_all(words).expect("to write");
    wait_until("there is a table", PATIENCE, || tables(&node).contains("flags owner"));
    let ran = clean_up(&node);
    let log = String::from_utf8_lossy(&ran.stderr).into_owned();
    let line = "error: encountered an error while tearing down rules: table ip kube-proxy: cannot delete a table: EPERM \
                (Operation not permitted): another program owns it";
    assert_eq!((ran.status.code(), log.lines().last()), (Some(1), Some(line)));
    assert!(!tables(&node).contains("ip6 kube-proxy"), "the rest goes");
}

/// Who changes to iptables mode: kube-proxy deletes them too.
#[test]
fn iptables_mode_removes_the_tables_of_nftables_mode() {
    if !require_root("iptables_mode_removes_the_tables_of_nftables_mode") {
        return;
    }
    let node = Namespace::golden("cleanup-nft-start");
    node.feed(&["nft", "-f", "-"], NEIGHBOURS);
    let scenario = scenario("dual-stack");
    make_nftables_mode(&node, &scenario);
    let start = || {
        let mut command = node.command(BINARY);
        command.args(flags(&scenario)).arg("--once").arg("--manifests").arg(scenario.join("objects.yaml"));
        let ran = command.output().expect("sluice");
        let log = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert!(ran.status.success(), "{log}");
        log
    };
    let log = start();
    assert!(log.contains("INFO removed what nftables mode left: tables ip kube-proxy, ip6 kube-proxy"), "{log}");
    let found = tables(&node);
    let [ours, theirs, gone] = ["KUBE-SVC-", "table inet kube-proxy", "rules for kube-proxy"].map(|word| found.contains(word));
    assert!(ours && theirs && !gone, "{found}");
    assert!(!start().contains("nftables mode"), "once is enough");
}
