//! One family's sync in ipvs mode with its kernel, a fake or the real one, its state, and random histories of it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use sluice::config::{Mode, RuleConfig};
use sluice::model::{Event, Service, State};
use sluice::net::{Family, Protocol};
use sluice::netlink::{Balancer, Error, Kernel, Sent};
use sluice::ruleset::{Member, NodeOp, RealServer, SetHeader, SetName, VirtualAddress, VirtualServer};
use sluice::serve::Metrics;
use sluice::sync::{FamilySync, Inputs, Summary};

use super::{Random, World, config, endpoint, facts, key, service, slice};

/// A balancer that the sync has and the test looks into. It remembers what it was asked for.
pub struct Shared<B>(Arc<Mutex<(B, Vec<String>)>>);

impl<B> Clone for Shared<B> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<B> Shared<B> {
    pub fn new(balancer: B) -> Self {
        Self(Arc::new(Mutex::new((balancer, Vec::new()))))
    }

    pub fn lock(&self) -> MutexGuard<'_, (B, Vec<String>)> {
        self.0.lock().expect("no test panics inside")
    }

    pub fn take_ops(&self) -> Vec<String> {
        std::mem::take(&mut self.lock().1)
    }
}

impl<B: Balancer> Balancer for Shared<B> {
    fn apply(&mut self, ops: &[NodeOp]) -> Result<Sent, Error> {
        let mut inner = self.lock();
        inner.1.extend(ops.iter().map(ToString::to_string));
        inner.0.apply(ops)
    }
    fn servers(&mut self, family: Family) -> Result<Vec<(VirtualAddress, VirtualServer)>, Error> {
        self.lock().0.servers(family)
    }
    fn servers_at_a_glance(&mut self, family: Family) -> Result<Vec<(VirtualAddress, VirtualServer)>, Error> {
        self.lock().0.servers_at_a_glance(family)
    }
    fn real_servers(&mut self, of: &VirtualAddress) -> Result<Vec<RealServer>, Error> {
        self.lock().0.real_servers(of)
    }
    fn sets(&mut self) -> Result<Vec<SetHeader>, Error> {
        self.lock().0.sets()
    }
    fn members(&mut self, set: &SetName) -> Result<Vec<Member>, Error> {
        self.lock().0.members(set)
    }
    fn addresses(&mut self, family: Family) -> Result<Option<Vec<IpAddr>>, Error> {
        self.lock().0.addresses(family)
    }
}

/// All that a balancer has, in no order of its own.
#[derive(Debug, PartialEq)]
pub struct Contents {
    servers: BTreeMap<VirtualAddress, (VirtualServer, Vec<RealServer>)>,
    sets: BTreeMap<SetName, (SetHeader, Vec<Member>)>,
    addresses: [Option<Vec<IpAddr>>; 2],
}

impl Contents {
    pub fn of(balancer: &mut dyn Balancer) -> Self {
        let mut servers = BTreeMap::new();
        let listed = Family::ALL.map(|family| balancer.servers(family).expect("a listing"));
        for (at, server) in listed.into_iter().flatten() {
            let mut reals = balancer.real_servers(&at).expect("a listing");
            reals.sort_unstable_by_key(|real| real.address);
            assert!(servers.insert(at, (server, reals)).is_none(), "{at} twice");
        }
        let mut sets = BTreeMap::new();
        for header in balancer.sets().expect("a listing") {
            let mut members = balancer.members(&header.name).expect("a listing");
            members.sort_unstable();
            sets.insert(header.name.clone(), (header, members));
        }
        let addresses = Family::ALL.map(|family| {
            let mut found = balancer.addresses(family).expect("a listing")?;
            found.sort_unstable();
            Some(found)
        });
        Self { servers, sets, addresses }
    }

    /// A line for each thing.
    pub fn lines(&self) -> String {
        let mut lines = Vec::new();
        for (at, (server, reals)) in &self.servers {
            lines.push(format!("server {at} {server:?}"));
            lines.extend(reals.iter().map(|real| format!("  real server of {at}: {real:?}")));
        }
        for (name, (header, members)) in &self.sets {
            lines.push(format!("{header:?}"));
            lines.extend(members.iter().map(|member| format!("  member of {name}: {member}")));
        }
        lines.extend(self.addresses.iter().map(|found| format!("addresses {found:?}")));
        lines.join("\n")
    }
}

pub struct Bench<K, B> {
    pub config: RuleConfig,
    pub rules: K,
    pub balancer: Shared<B>,
    pub state: State,
    pub metrics: Arc<Metrics>,
    pub sync: FamilySync,
    world: World,
}

fn fresh_sync<B: Balancer + 'static>(balancer: &Shared<B>, metrics: &Arc<Metrics>) -> FamilySync {
    FamilySync::new(Family::Ipv4, Arc::clone(metrics)).with_servers(Box::new(balancer.clone()))
}

/// Programs a state where nothing is yet.
pub fn sync_fresh<B: Balancer + 'static>(config: &RuleConfig, state: &State, rules: &mut dyn Kernel, balancer: &Shared<B>) {
    let inputs = Inputs { config, facts: facts(), state };
    fresh_sync(balancer, &Arc::new(Metrics::new())).sync(rules, inputs).expect("a sync");
}

impl<K: Kernel, B: Balancer + 'static> Bench<K, B> {
    pub fn on(rules: K, balancer: B) -> Self {
        let (balancer, metrics) = (Shared::new(balancer), Arc::new(Metrics::new()));
        Self {
            config: RuleConfig { mode: Mode::Ipvs, ..config() },
            rules,
            state: State::new("node-a"),
            sync: fresh_sync(&balancer, &metrics),
            balancer,
            metrics,
            world: World::default(),
        }
    }

    pub fn note(&mut self, events: impl IntoIterator<Item = Event>) {
        for event in events {
            let changes = self.state.apply(event);
            self.sync.note(&changes);
        }
    }

    pub fn try_sync(&mut self) -> Result<Summary, Error> {
        let inputs = Inputs { config: &self.config, facts: facts(), state: &self.state };
        self.sync.sync(&mut self.rules, inputs)
    }

    #[track_caller]
    pub fn sync(&mut self, events: impl IntoIterator<Item = Event>) -> Summary {
        self.note(events);
        self.try_sync().expect("a sync")
    }

    pub fn restart(&mut self) {
        self.sync = fresh_sync(&self.balancer, &self.metrics);
    }

    pub fn check_drains(&mut self, now: Instant) -> Result<(), Error> {
        let servers = self.sync.servers_mut().expect("ipvs mode");
        servers.check_drains(&self.config, now).map(drop)
    }

    /// Looks whether others changed something, and gives how many things.
    pub fn audit(&mut self) -> usize {
        let servers = self.sync.servers_mut().expect("ipvs mode");
        servers.audit(&self.config).expect("an audit")
    }

    /// What happens next in a history, without a sync: mostly something that is another in the cluster or on the node.
    pub fn step(&mut self, random: &mut Random) {
        let i = u16::from(random.below(6)) + 1;
        match random.below(12) {
            0 => self.restart(),
            1 => self.note([gone(i)]),
            // Two Services with one address, and both want the same port of it now and then.
            2 => self.note([web_service(i, |service| {
                service.families.v4.as_mut().expect("IPv4").external_ips = vec![[198, 51, 100, random.below(3)].into()];
                service.ports[0].node_port = 30_000 + i;
            })]),
            3 => {
                let addresses = [[172, 31, 0, 10], [198, 51, 100, 1], [203, 0, 113, 5]].into_iter();
                let there = addresses.filter(|_| random.chance(2)).map(IpAddr::from).collect();
                self.note([Event::Addresses(there)]);
            }
            4..7 => self.note(web(i, random.below(4))),
            _ => {
                let events = self.world.change(random);
                self.note(events);
            }
        }
    }
}

/// Chains where the rules of Services stand before the mode's own, in any order.
const SHARED: [&str; 2] = ["-A KUBE-IPVS-OUT-FILTER ", "-A KUBE-PROXY-FIREWALL "];

/// Rules as text, without comments and in one order where they may have any.
pub fn canonical(saved: &str) -> String {
    let mut lines: Vec<&str> = saved.lines().filter(|line| !line.starts_with('#')).collect();
    let chain = |line: &str| SHARED.into_iter().find(|start| line.starts_with(start));
    for run in lines.chunk_by_mut(|a, b| chain(a).is_some() && chain(a) == chain(b)) {
        run.sort_unstable_by_key(|rule| (!rule.contains("-j DROP"), *rule));
    }
    lines.join("\n")
}

pub fn cluster_ip(i: u16) -> IpAddr {
    let [high, low] = i.to_be_bytes();
    [10, 96, high, low].into()
}

pub fn at(i: u16) -> VirtualAddress {
    VirtualAddress { protocol: Protocol::Tcp, address: (cluster_ip(i), 80).into() }
}

pub fn real(i: u16, host: u8) -> SocketAddr {
    let [high, low] = i.to_be_bytes();
    ([10, 240 + high, low, host], 8080).into()
}

pub fn web_slice(i: u16, hosts: impl IntoIterator<Item = u8>) -> Event {
    let name = format!("web-{i}");
    let endpoints = hosts.into_iter().map(|host| endpoint(real(i, host).ip())).collect();
    Event::Slice(key("shop", &format!("{name}-x")), Some(slice(&key("shop", &name), endpoints)))
}

pub fn web_service(i: u16, change: impl FnOnce(&mut Service)) -> Event {
    let mut service = service(cluster_ip(i));
    change(&mut service);
    Event::Service(key("shop", &format!("web-{i}")), Some(service))
}

/// Service `i` with endpoints on hosts 1 to `endpoints`.
pub fn web(i: u16, endpoints: u8) -> [Event; 2] {
    [web_slice(i, 1..=endpoints), web_service(i, |_| {})]
}

pub fn gone(i: u16) -> Event {
    Event::Service(key("shop", &format!("web-{i}")), None)
}
