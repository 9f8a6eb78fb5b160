//! The sync of ipvs mode with the real kernel: random histories, restarts and others' changes in between, end as a fresh
//! start. The same with the fakes, which lose answers too, is in `servers`.

use std::time::Instant;

use sluice::config::RuleConfig;
use sluice::model::State;
use sluice::net::{Family, Protocol, Scheduler};
use sluice::netlink::link::Style;
use sluice::netlink::{Balancer as _, NftKernel, NodeBalancer};
use sluice::ruleset::{Member, NodeOp, ServerFlags, SetName, VirtualAddress, VirtualServer};

use super::netns::in_namespace;
use super::shell;
use super::world::servers::{Bench, Contents, Shared, canonical, sync_fresh};
use super::world::{Random, difference};

/// So many histories, and steps in each.
const SEEDS: u64 = 4;
const STEPS: usize = 40;

/// What there is, as text: virtual servers, sets and addresses, and rules.
fn saved(balancer: &Shared<NodeBalancer>) -> String {
    let contents = Contents::of(&mut balancer.clone()).lines();
    format!("{contents}\n{}", canonical(&shell("iptables-save")))
}

fn open() -> (NftKernel, NodeBalancer) {
    // Without a table of local routes IPVS cannot tell what kind of address a real server has.
    shell("ip link set lo up");
    (NftKernel::open().unwrap(), NodeBalancer::open(Style::Device).unwrap())
}

/// What a fresh node would be given, in a namespace of its own.
fn fresh(config: &RuleConfig, state: &State) -> String {
    let mut text = String::new();
    in_namespace(|| {
        let (mut rules, balancer) = open();
        let balancer = Shared::new(balancer);
        sync_fresh(config, state, &mut rules, &balancer);
        text = saved(&balancer);
    });
    text
}

/// Changes something as another program might; false where there is nothing to change.
fn disturb(other: &mut NodeBalancer, random: &mut Random) -> bool {
    let servers = other.servers(Family::Ipv4).unwrap();
    let server = servers.first().map(|(at, _)| *at);
    let real = servers.iter().find_map(|(at, _)| Some((*at, other.real_servers(at).unwrap().first()?.address)));
    let address = other.addresses(Family::Ipv4).unwrap().and_then(|found| found.first().copied());
    let rogue = VirtualServer { scheduler: Scheduler::Lc, flags: ServerFlags::NONE, persistence: None };
    let nobodys = VirtualAddress { protocol: Protocol::Tcp, address: ([192, 0, 2, 1], 80).into() };
    let set = SetName::from("KUBE-CLUSTER-IP");
    let ops: Vec<_> = match random.below(10) {
        0 => server.map(|at| NodeOp::DeleteServer { at }).into_iter().collect(),
        1 => server.map(|at| NodeOp::EditServer { at, server: rogue }).into_iter().collect(),
        2 => vec![NodeOp::AddServer { at: nobodys, server: rogue }],
        3 => real.map(|(at, real)| NodeOp::DeleteReal { at, real }).into_iter().collect(),
        4 => real.map(|(at, real)| NodeOp::EditReal { at, real, weight: 77 }).into_iter().collect(),
        5 => server.map(|at| NodeOp::AddReal { at, real: nobodys.address, weight: 1 }).into_iter().collect(),
        6 => {
            let members = other.members(&set).unwrap();
            members.into_iter().map(|member| NodeOp::DeleteMember { set: set.clone(), member }).collect()
        }
        7 => vec![NodeOp::AddMember { set: "KUBE-IPVS-IPS".into(), member: Member::Ip(nobodys.address.ip()) }],
        8 => address.map(NodeOp::DeleteAddress).into_iter().collect(),
        _ => vec![NodeOp::RemoveDevice],
    };
    assert_eq!(other.apply(&ops).unwrap().refused, []);
    !ops.is_empty()
}

fn walk(seed: u64) -> usize {
    let mut random = Random::new(seed);
    let (rules, balancer) = open();
    let (mut bench, mut other) = (Bench::on(rules, balancer), NodeBalancer::open(Style::Device).unwrap());
    let mut disturbances = 0;
    for step in 0..STEPS {
        bench.step(&mut random);
        bench.try_sync().unwrap_or_else(|error| panic!("seed {seed}, step {step}: {error}"));
        bench.check_drains(Instant::now()).unwrap();
        if random.chance(3) && disturb(&mut other, &mut random) {
            disturbances += 1;
            if random.chance(3) {
                bench.sync.servers_mut().unwrap().look_again();
            } else {
                assert_ne!(bench.audit(), 0, "seed {seed}, step {step}");
            }
        }
        assert_eq!(bench.sync.servers().unwrap().refusals().collect::<Vec<_>>(), [""; 0], "seed {seed}, step {step}");
    }
    bench.try_sync().unwrap();
    let (want, have) = (fresh(&bench.config, &bench.state), saved(&bench.balancer));
    assert!(want == have, "seed {seed}: wanted (-), there is (+):\n{}", difference(&want, &have));
    assert!(want.contains("server 10.96.0.") && want.contains("member of KUBE-") && want.contains("KUBE-SERVICES"), "{want}");
    bench.balancer.take_ops();
    bench.restart();
    bench.try_sync().unwrap();
    assert_eq!(bench.balancer.take_ops(), [""; 0], "seed {seed}: a restart has nothing to do");
    disturbances
}

#[test]
#[ignore = "run in the virtual machine of on_linux_6_1"]
fn any_history_ends_as_a_fresh_start() {
    let mut disturbances = 0;
    for seed in 0..SEEDS {
        in_namespace(|| disturbances += walk(seed));
    }
    assert!(disturbances > 20, "others changed {disturbances} things");
}
