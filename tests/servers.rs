//! What the sync of ipvs mode does beside rules, on the fake kernel: which operations a change costs, in which order
//! they come, what a restart, a refusal, a lost answer and somebody else's change lead to, and how real servers drain.

mod world;

use std::net::IpAddr;
use std::time::{Duration, Instant};

use sluice::model::Event;
use sluice::net::{Family, Protocol};
use sluice::netlink::fake::FakeKernel;
use sluice::netlink::fake::balancer::{Counts, FakeBalancer};
use sluice::netlink::{Balancer as _, Errno, Error};
use sluice::ruleset::{Member, NodeOp, ServerFlags, SetSpec, SetType, VirtualAddress, VirtualServer};
use sluice::serve::metrics::Format;
use world::servers::{Shared, at, canonical, cluster_ip, gone, real, sync_fresh, web, web_service, web_slice};
use world::{endpoint, key, service, slice};

type Bench = world::servers::Bench<FakeKernel, FakeBalancer>;

impl Bench {
    fn new() -> Self {
        Self::on(FakeKernel::new(), FakeBalancer::new())
    }

    /// With Services 1 to `services`, of two endpoints each, programmed.
    fn with(services: u16) -> Self {
        let mut bench = Self::new();
        bench.sync((1..=services).flat_map(|i| web(i, 2)));
        bench.balancer.take_ops();
        bench
    }

    fn saved(&self) -> String {
        self.balancer.lock().0.save()
    }

    /// What is there is what a fresh node would be given.
    #[track_caller]
    fn assert_as_fresh(&self, what: &str) {
        let (balancer, mut rules) = (Shared::new(FakeBalancer::new()), FakeKernel::new());
        sync_fresh(&self.config, &self.state, &mut rules, &balancer);
        let (want, have) = (balancer.lock().0.save(), self.saved());
        assert!(want == have, "{what}:\n{}", world::difference(&want, &have));
        let (want, have) = (canonical(&rules.save(Family::Ipv4)), canonical(&self.rules.save(Family::Ipv4)));
        assert!(want == have, "{what}: rules\n{}", world::difference(&want, &have));
    }

    fn connect(&self, i: u16, host: u8, connections: (u32, u32)) {
        self.balancer.lock().0.connect(&at(i), real(i, host), connections);
    }

    /// Gives the first real server of some virtual server connections, or of all virtual servers all of them none.
    fn connect_some(&self, random: Option<&mut world::Random>) {
        let mut balancer = self.balancer.lock();
        let servers = balancer.0.servers(Family::Ipv4).unwrap_or_default();
        let connections = random.map(|random| (random.below(16), (u32::from(random.below(2)), 0)));
        for (number, (at, _)) in servers.iter().enumerate() {
            let reals = balancer.0.real_servers(at).expect("a reading");
            match connections {
                None => reals.iter().for_each(|real| balancer.0.connect(at, real.address, (0, 0))),
                Some((some, count)) if number == usize::from(some) => {
                    reals.first().into_iter().for_each(|real| balancer.0.connect(at, real.address, count));
                }
                Some(_) => {}
            }
        }
    }

    fn metric(&self, sample: &str) -> Option<String> {
        let text = self.metrics.encode(Format::Prometheus).expect("text");
        text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' ').map(Into::into))
    }
}

#[test]
fn a_service_is_made_from_the_inside_out_and_goes_the_other_way_round() {
    let mut bench = Bench::with(1);
    bench.sync(web(2, 2));
    let ops = bench.balancer.take_ops();
    assert_eq!(
        ops,
        [
            "add virtual server 10.96.0.2:80/tcp with scheduler rr",
            "add real server 10.240.2.1:8080 with weight 1 to 10.96.0.2:80/tcp",
            "add real server 10.240.2.2:8080 with weight 1 to 10.96.0.2:80/tcp",
            "add 10.96.0.2,tcp:80 to set KUBE-CLUSTER-IP",
            "add 10.96.0.2 to set KUBE-IPVS-IPS",
            "add local address 10.96.0.2",
        ]
    );
    bench.sync([gone(2)]);
    let ops = bench.balancer.take_ops();
    assert_eq!(
        ops,
        [
            "give real server 10.240.2.1:8080 of 10.96.0.2:80/tcp weight 0",
            "give real server 10.240.2.2:8080 of 10.96.0.2:80/tcp weight 0",
            "delete local address 10.96.0.2",
            "delete 10.96.0.2,tcp:80 from set KUBE-CLUSTER-IP",
            "delete 10.96.0.2 from set KUBE-IPVS-IPS",
            "delete virtual server 10.96.0.2:80/tcp",
        ]
    );
    bench.assert_as_fresh("after both");
}

#[test]
fn an_endpoint_costs_the_same_whatever_number_of_services_there_is() {
    let costs = |services: u16| {
        let mut bench = Bench::with(services);
        bench.balancer.lock().0.take_counts();
        let mut costs = Vec::new();
        for hosts in [1..=3_u8, 1..=2] {
            let summary = bench.sync([web_slice(1, hosts)]);
            costs.push((summary.operations, bench.balancer.lock().0.take_counts()));
        }
        costs
    };
    let few = costs(10);
    assert_eq!(few[0], (1, Counts { done: 1, messages: 1, sends: 1, ..Counts::default() }), "one more");
    // Weight 0, a look at its connections, and the end.
    assert_eq!(few[1], (2, Counts { done: 2, messages: 2, sends: 2, readings: 1, ..Counts::default() }), "one less");
    assert_eq!(costs(2000), few);
}

#[test]
fn everything_from_empty_takes_a_handful_of_sends_and_a_restart_none() {
    let mut bench = Bench::new();
    bench.note((1..=1000).flat_map(|i| web(i, 2)));
    bench.try_sync().unwrap();
    let counts = bench.balancer.lock().0.take_counts();
    assert!(counts.sends <= 6 && counts.done == 17 + 3000 + 2000 + 1001, "{counts:?}");
    let (saved, rules) = (bench.saved(), bench.rules.save(Family::Ipv4));
    bench.restart();
    let summary = bench.try_sync().unwrap();
    assert_eq!((summary.operations, summary.transactions), (0, 0));
    assert_eq!((bench.saved(), bench.rules.save(Family::Ipv4)), (saved, rules));
}

#[test]
fn a_removed_endpoint_with_connections_drains_and_a_returning_one_is_back_at_once() {
    let mut bench = Bench::with(1);
    bench.connect(1, 2, (3, 1));
    bench.sync([web_slice(1, [1])]);
    let drains = r#"sluice_draining_real_servers{ip_family="IPv4"}"#;
    assert!(bench.saved().contains("real 10.240.1.2:8080 weight 0"));
    assert_eq!(bench.metric(drains).as_deref(), Some("1"));
    bench.check_drains(Instant::now()).unwrap();
    assert!(bench.saved().contains("real 10.240.1.2:8080 weight 0"), "it has connections still");

    bench.balancer.take_ops();
    bench.sync([web_slice(1, 1..=2)]);
    assert_eq!(bench.balancer.take_ops(), ["give real server 10.240.1.2:8080 of 10.96.0.1:80/tcp weight 1"]);
    assert_eq!(bench.metric(drains).as_deref(), Some("0"));

    bench.sync([web_slice(1, [1])]);
    bench.connect(1, 2, (0, 1));
    bench.check_drains(Instant::now()).unwrap();
    assert!(bench.saved().contains("10.240.1.2:8080"), "a connection that is closing counts");
    bench.connect(1, 2, (0, 0));
    bench.check_drains(Instant::now()).unwrap();
    assert!(!bench.sync.servers().unwrap().is_draining());
    assert_eq!(bench.metric(drains).as_deref(), Some("0"));
    let finished = r#"sluice_drained_real_servers_total{end="finished",ip_family="IPv4"}"#;
    assert_eq!(bench.metric(finished).as_deref(), Some("1"));
    bench.assert_as_fresh("drained");
}

#[test]
fn a_drain_survives_a_restart() {
    let mut bench = Bench::with(1);
    bench.connect(1, 2, (1, 0));
    bench.sync([web_slice(1, [1])]);
    bench.restart();
    bench.note((1..=1).map(|i| web_service(i, |_| {})));
    bench.balancer.take_ops();
    bench.try_sync().unwrap();
    assert_eq!(bench.balancer.take_ops(), [""; 0], "nothing is changed by the restart");
    assert!(bench.sync.servers().unwrap().is_draining());
    bench.connect(1, 2, (0, 0));
    bench.check_drains(Instant::now()).unwrap();
    bench.assert_as_fresh("drained after a restart");
}

#[test]
fn a_removed_service_drains_with_its_address_for_as_long_as_the_flag_says() {
    let mut bench = Bench::with(2);
    bench.connect(1, 1, (1, 0));
    let started = Instant::now();
    bench.sync([gone(1)]);
    let held = "server 10.96.0.1:80/tcp rr\n  real 10.240.1.1:8080 weight 0\n";
    assert!(bench.saved().contains(held), "{}", bench.saved());
    assert!(bench.saved().contains("address 10.96.0.1\n"));
    assert!(!bench.saved().contains("KUBE-CLUSTER-IP 10.96.0.1,"), "new connections are refused");
    // The other real server has none and is gone.
    assert!(!bench.saved().contains("10.240.1.2"));
    bench.check_drains(started + Duration::from_mins(14)).unwrap();
    assert!(bench.saved().contains(held));
    // Wanted again: as if nothing had been.
    bench.sync(web(1, 2));
    bench.assert_as_fresh("wanted again");
    bench.sync([gone(1)]);
    bench.check_drains(Instant::now() + Duration::from_mins(15)).unwrap();
    let expired = r#"sluice_drained_real_servers_total{end="expired",ip_family="IPv4"}"#;
    assert_eq!(bench.metric(expired).as_deref(), Some("1"));
    bench.assert_as_fresh("expired");
}

/// The time of a removed Service begins with its removal, however long an endpoint of it has been draining.
#[test]
fn a_services_time_begins_when_it_is_removed() {
    let mut bench = Bench::with(1);
    let start = Instant::now();
    bench.connect(1, 2, (1, 0));
    bench.sync([web_slice(1, [1])]);
    std::thread::sleep(Duration::from_millis(20));
    let removed = Instant::now();
    bench.sync([gone(1)]);
    bench.check_drains(start + Duration::from_mins(15) + Duration::from_millis(10)).unwrap();
    assert!(bench.saved().contains("real 10.240.1.2:8080 weight 0"), "{}", bench.saved());
    bench.check_drains(removed + Duration::from_mins(16)).unwrap();
    bench.assert_as_fresh("expired");
}

#[test]
fn udp_and_a_drain_timeout_of_zero_end_at_once() {
    let mut bench = Bench::new();
    let dns = |endpoints: u8| {
        let mut slice = slice(&key("shop", "dns"), (1..=endpoints).map(|host| endpoint(real(9, host).ip())).collect());
        slice.ports[0].protocol = Protocol::Udp;
        Event::Slice(key("shop", "dns-x"), Some(slice))
    };
    let mut service = service(cluster_ip(9));
    service.ports[0].protocol = Protocol::Udp;
    bench.sync([dns(2), Event::Service(key("shop", "dns"), Some(service))]);
    let udp = VirtualAddress { protocol: Protocol::Udp, ..at(9) };
    bench.balancer.lock().0.connect(&udp, real(9, 2), (0, 5));
    bench.sync([dns(1)]);
    bench.assert_as_fresh("a UDP endpoint less");

    bench.sync(web(1, 2));
    bench.config.ipvs.drain_timeout = Duration::ZERO;
    bench.connect(1, 1, (7, 0));
    bench.sync([gone(1)]);
    bench.assert_as_fresh("no time to drain");
}

#[test]
fn what_two_services_want_stays_for_the_other() {
    let mut bench = Bench::with(2);
    let external = |i| {
        web_service(i, |service| {
            let addresses = service.families.v4.as_mut().unwrap();
            addresses.external_ips = vec![[198, 51, 100, 1].into()];
            service.ports[0].port = 80 + i;
        })
    };
    bench.sync([external(1), external(2)]);
    assert_eq!(bench.saved().matches("address 198.51.100.1\n").count(), 1);
    bench.sync([web_service(1, |_| {})]);
    assert!(bench.saved().contains("address 198.51.100.1\n"));
    bench.assert_as_fresh("one of two");
    // And both the very same virtual server: the first has it.
    let same = |i| web_service(i, |service| service.families.v4.as_mut().unwrap().external_ips = vec![[198, 51, 100, 1].into()]);
    bench.sync([same(1), same(2)]);
    assert!(bench.saved().contains("server 198.51.100.1:80/tcp rr\n  real 10.240.1.1:8080"));
    bench.assert_as_fresh("a contest");
    bench.sync([web_service(1, |_| {})]);
    assert!(bench.saved().contains("server 198.51.100.1:80/tcp rr\n  real 10.240.2.1:8080"));
    bench.assert_as_fresh("the other has it now");
}

#[test]
fn a_set_grows_before_it_is_full_and_is_never_empty() {
    let mut bench = Bench::with(1);
    bench.balancer.lock().0.edit(&[
        NodeOp::DestroySet("KUBE-CLUSTER-IP".into()),
        NodeOp::CreateSet(SetSpec {
            name: "KUBE-CLUSTER-IP".into(),
            kind: SetType::HashIpPort,
            family: Family::Ipv4,
            max_members: 3,
        }),
    ]);
    bench.restart();
    bench.sync((1..=3).flat_map(|i| web(i, 1)));
    bench.balancer.take_ops();
    bench.sync(web(4, 1));
    let ops = bench.balancer.take_ops();
    let position = |start: &str| ops.iter().position(|op| op.starts_with(start)).unwrap_or_else(|| panic!("{start}: {ops:?}"));
    let (made, swapped) = (position("create set KUBE-LARGER-1"), position("swap sets KUBE-LARGER-1 and KUBE-CLUSTER-IP"));
    let filled = ops.iter().filter(|op| op.ends_with("to set KUBE-LARGER-1")).count();
    assert_eq!(filled, 3);
    assert!(made < position("add 10.96.0.1,tcp:80 to set KUBE-LARGER-1") && swapped < position("destroy set KUBE-LARGER-1"));
    assert!(position("destroy set") < position("add 10.96.0.4,tcp:80 to set KUBE-CLUSTER-IP"));
    bench.assert_as_fresh("grown");
}

/// A kernel without a module: rules do without its sets, and all else is programmed.
#[test]
fn a_set_that_cannot_be_made_is_told_once_and_done_without() {
    let mut bench = Bench::new();
    bench.balancer.lock().0.dislike("create set KUBE-CLUSTER-IP", Errno::ENOENT);
    bench.sync((1..=3).flat_map(|i| web(i, 2)));
    let unfinished: Vec<_> = bench.sync.servers().unwrap().refusals().collect();
    assert_eq!(unfinished.len(), 1, "{unfinished:?}");
    assert!(unfinished[0].starts_with("set KUBE-CLUSTER-IP: cannot create set KUBE-CLUSTER-IP of type hash:ip,port: ENOENT"));
    assert!(!bench.rules.save(Family::Ipv4).contains("KUBE-CLUSTER-IP"));
    assert_eq!(bench.saved().matches("address 10.96.0.").count(), 3);
    bench.balancer.lock().0.like_everything();
    bench.sync.servers_mut().unwrap().look_again();
    bench.try_sync().unwrap();
    bench.assert_as_fresh("the module is there");
}

/// A kernel that has no room for a larger set: who does not fit is named, and all others are programmed.
#[test]
fn a_full_set_that_cannot_grow_is_told() {
    let mut bench = Bench::new();
    let spec =
        |max_members| SetSpec { name: "KUBE-CLUSTER-IP".into(), kind: SetType::HashIpPort, family: Family::Ipv4, max_members };
    bench.balancer.lock().0.edit(&[NodeOp::CreateSet(spec(2))]);
    bench.balancer.lock().0.dislike("create set KUBE-LARGER", Errno::ENOMEM);
    bench.sync((1..=3).flat_map(|i| web(i, 1)));
    let unfinished: Vec<_> = bench.sync.servers().unwrap().refusals().collect();
    let said = |text: &str| unfinished.iter().any(|refusal| refusal.contains(text));
    assert!(
        said("ENOMEM") && said("of set KUBE-CLUSTER-IP, wanted by Service shop/web-") && said("IPSET_ERR_HASH_FULL"),
        "{unfinished:?}"
    );
    let saved = bench.saved();
    assert_eq!(saved.matches("server 10.96.0.").count(), 3, "{saved}");
    assert_eq!(saved.matches("address 10.96.0.").count(), 3);
    bench.balancer.lock().0.like_everything();
    bench.sync.servers_mut().unwrap().look_again();
    bench.try_sync().unwrap();
    bench.assert_as_fresh("room again");
}

/// The kernel may call a set full before it has all that it was made for: it grows all the same.
#[test]
fn a_set_that_is_full_before_its_time_grows() {
    let mut bench = Bench::with(1);
    bench.balancer.lock().0.dislike_for_now("add 10.96.0.2,tcp:80 to set KUBE-CLUSTER-IP", Errno::IPSET_ERR_HASH_FULL, 1);
    bench.sync(web(2, 1));
    assert!(bench.sync.servers().unwrap().is_unfinished());
    bench.balancer.take_ops();
    bench.sync.servers_mut().unwrap().look_again();
    bench.try_sync().unwrap();
    let ops = bench.balancer.take_ops();
    for op in
        ["create set KUBE-LARGER-1", "swap sets KUBE-LARGER-1 and KUBE-CLUSTER-IP", "add 10.96.0.2,tcp:80 to set KUBE-CLUSTER-IP"]
    {
        assert!(ops.iter().any(|done| done.starts_with(op)), "{op}: {ops:?}");
    }
    assert!(!bench.sync.servers().unwrap().is_unfinished());
}

#[test]
fn what_is_refused_is_named_and_tried_again_and_the_rest_is_done() {
    let mut bench = Bench::with(1);
    bench.balancer.lock().0.dislike("virtual server 10.96.0.2:80/tcp", Errno::EINVAL);
    bench.sync((2..=3).flat_map(|i| web(i, 2)));
    let servers = bench.sync.servers().unwrap();
    assert!(servers.is_unfinished());
    let refusal = servers.refusals().next().unwrap();
    assert!(refusal.starts_with("virtual server 10.96.0.2:80/tcp of Service shop/web-2: cannot add virtual server"), "{refusal}");
    assert!(refusal.ends_with("EINVAL (Invalid argument)"), "{refusal}");
    assert!(bench.saved().contains("server 10.96.0.3:80/tcp"));
    let unfinished = r#"sluice_node_objects_unfinished{ip_family="IPv4"}"#;
    assert_eq!(bench.metric(unfinished).as_deref(), Some("1"));
    bench.sync(web(4, 1));
    assert!(bench.sync.servers().unwrap().is_unfinished(), "another change does not make it good");
    bench.balancer.lock().0.like_everything();
    bench.sync.servers_mut().unwrap().look_again();
    bench.try_sync().unwrap();
    assert_eq!(bench.metric(unfinished).as_deref(), Some("0"));
    bench.assert_as_fresh("tried again");
}

#[test]
fn lost_answers_and_failed_readings_are_made_up_for() {
    let mut bench = Bench::with(2);
    for done in [0, 1, 2, 3, usize::MAX] {
        bench.balancer.lock().0.lose_next_answer(done, Error::AnswersLost { errno: Errno::ENOBUFS });
        bench.note(web(3, 2));
        bench.try_sync().unwrap_err();
        bench.balancer.lock().0.fail_next_read(Error::Interrupted);
        bench.try_sync().unwrap_err();
        bench.try_sync().unwrap();
        bench.assert_as_fresh("made up for");
        bench.sync([gone(3)]);
        bench.assert_as_fresh("and gone");
    }
}

#[test]
fn a_set_of_another_type_is_left_and_rules_do_without_it() {
    let mut bench = Bench::new();
    bench.balancer.lock().0.add_foreign_set("KUBE-CLUSTER-IP", "list:set");
    bench.sync(web(1, 2));
    let refusal = bench.sync.servers().unwrap().refusals().next().unwrap();
    assert!(refusal.contains("set KUBE-CLUSTER-IP") && refusal.contains("list:set"), "{refusal}");
    assert!(bench.saved().contains("server 10.96.0.1:80/tcp"));
    let rules = bench.rules.save(Family::Ipv4);
    assert!(!rules.contains("match-set KUBE-CLUSTER-IP") && rules.contains("match-set KUBE-LOAD-BALANCER "), "{rules}");
}

#[test]
fn the_audit_finds_what_others_changed() {
    let mut bench = Bench::with(3);
    let server = VirtualServer { scheduler: sluice::net::Scheduler::Lc, flags: ServerFlags::NONE, persistence: None };
    let member = |i| Member::IpPort(cluster_ip(i), Protocol::Tcp, 80);
    let changes = [
        vec![NodeOp::DeleteServer { at: at(1) }],
        vec![NodeOp::EditServer { at: at(2), server }],
        vec![NodeOp::AddServer { at: at(77), server }],
        vec![NodeOp::DeleteReal { at: at(1), real: real(1, 1) }],
        vec![NodeOp::EditReal { at: at(2), real: real(2, 2), weight: 7 }],
        vec![NodeOp::DeleteMember { set: "KUBE-CLUSTER-IP".into(), member: member(2) }],
        vec![NodeOp::AddMember { set: "KUBE-CLUSTER-IP".into(), member: member(99) }],
        vec![NodeOp::DestroySet("KUBE-LOOP-BACK".into())],
        vec![NodeOp::DeleteAddress(cluster_ip(3))],
        vec![NodeOp::AddAddress(cluster_ip(88))],
        vec![NodeOp::RemoveDevice],
    ];
    assert_eq!(bench.audit(), 0);
    for change in changes {
        bench.balancer.lock().0.edit(&change);
        let found = bench.audit();
        assert!(found > 0 && bench.sync.is_due(), "{change:?}");
        bench.try_sync().unwrap();
        bench.assert_as_fresh(&format!("{change:?}"));
        assert!(!bench.sync.is_due());
    }
}

#[test]
fn foreign_servers_in_excluded_ranges_stay() {
    let mut bench = Bench::new();
    bench.config.ipvs.exclude_cidrs = vec!["203.0.113.0/24".parse().unwrap()];
    let foreign = |ip: [u8; 4]| VirtualAddress { protocol: Protocol::Tcp, address: (IpAddr::from(ip), 443).into() };
    let server = VirtualServer { scheduler: sluice::net::Scheduler::Wlc, flags: ServerFlags::NONE, persistence: None };
    let add = |ip| NodeOp::AddServer { at: foreign(ip), server };
    bench.balancer.lock().0.edit(&[add([203, 0, 113, 9]), add([192, 0, 2, 9])]);
    bench.sync(web(1, 2));
    assert!(bench.saved().contains("server 203.0.113.9:443/tcp wlc") && !bench.saved().contains("192.0.2.9"));
    assert_eq!(bench.audit(), 0);
}

/// Random histories, restarts, connections and lost answers in between: in the end what is there is what a fresh node
/// would be given. The same with a real kernel is in `ipvs_kernel`.
#[test]
fn any_history_ends_as_a_fresh_start() {
    for seed in 0..150 {
        let mut random = world::Random::new(seed);
        let mut bench = Bench::new();
        for _ in 0..60 {
            match random.below(10) {
                0 => bench.connect_some(Some(&mut random)),
                1 => bench.balancer.lock().0.lose_next_answer(2, Error::AnswersLost { errno: Errno::ENOBUFS }),
                2 => _ = bench.check_drains(Instant::now()),
                _ => bench.step(&mut random),
            }
            _ = bench.try_sync();
        }
        bench.connect_some(None);
        // An answer may be lost once more.
        _ = bench.try_sync();
        _ = bench.check_drains(Instant::now());
        bench.try_sync().unwrap();
        bench.check_drains(Instant::now()).unwrap();
        bench.assert_as_fresh(&format!("seed {seed}"));
        assert!(!bench.sync.servers().unwrap().is_draining());
    }
}
