//! The removal of everything that is ours, of whatever mode: rules, and what ipvs mode makes beside them. It needs to know
//! neither Services nor settings: what is ours is told by names and by what rules say.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::sender::Sender;
use crate::net::{Family, Protocol};
use crate::netlink::{self, Balancer, Error, Kernel, Refusal};
use crate::render;
use crate::render::ipvs::SetId;
use crate::ruleset::{ChainName, Member, NodeOp, Op, Planner, SetHeader, SetName, SetType, Table, VirtualAddress};
use crate::serve::Metrics;

/// Who changes rules between each two of so many attempts is not to be outrun.
const MAX_TRIES: usize = 5;

/// What became of rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RulesRemoved {
    pub chains: usize,
    /// Rules in built-in chains.
    pub hooks: usize,
    /// Chains that a rule of somebody else jumps to: empty now.
    pub held: Vec<(Table, ChainName)>,
}

/// Removes every rule and chain of ours from a family's tables; tables stay, as iptables leaves them.
pub fn remove_rules(kernel: &mut dyn Kernel, metrics: &Metrics, family: Family) -> Result<RulesRemoved, Error> {
    let mut sender = Sender::new(kernel, metrics, family);
    let mut tries = 1..MAX_TRIES;
    loop {
        match try_to_remove_rules(&mut sender, family) {
            // Somebody changed them after they were read, or the answer was lost.
            Err(error) if (error.is_retryable() || matches!(error, Error::Refused(_))) && tries.next().is_some() => {}
            outcome => return outcome,
        }
    }
}

fn try_to_remove_rules(sender: &mut Sender<'_>, family: Family) -> Result<RulesRemoved, Error> {
    let applied = sender.read_without_owners(render::everything())?;
    let mut planner = Planner::removing(family);
    planner.want_no_leftovers(&applied);
    let mut removed = RulesRemoved::default();
    for step in planner.finish() {
        removed.count(step.ops());
        let done = sender.commit(step).map_err(|failure| failure.error)?;
        removed.held.extend(done.stayed);
    }
    removed.chains -= removed.held.len();
    Ok(removed)
}

impl RulesRemoved {
    /// What had to stay, in words.
    pub fn failures(&self) -> impl Iterator<Item = String> {
        let held = |(table, chain): &(Table, ChainName)| {
            format!("chain {chain} of table {table}: a rule of somebody else jumps to it (EBUSY); it is empty now")
        };
        self.held.iter().map(held)
    }

    fn count(&mut self, ops: &[Op]) {
        self.chains += ops.iter().filter(|op| matches!(op, Op::DeleteChain { .. })).count();
        self.hooks += ops.iter().filter(|op| matches!(op, Op::DeleteRule { .. })).count();
    }
}

impl fmt::Display for RulesRemoved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} chains, {} jumps from built-in chains", self.chains, self.hooks)
    }
}

/// What tells virtual servers of ours from others.
#[derive(Clone, Copy, Debug)]
pub struct Bounds<'a> {
    /// The node's own addresses: those that node ports are on.
    pub own: &'a [IpAddr],
    /// Where virtual servers are somebody else's (`--ipvs-exclude-cidrs`).
    pub excluded: &'a [IpNet],
}

/// What became of the things that ipvs mode has beside rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BalancingRemoved {
    pub servers: usize,
    pub addresses: usize,
    pub device: bool,
    pub sets: usize,
    /// What could not be removed, and why.
    pub refused: Vec<Refusal>,
}

impl BalancingRemoved {
    /// Was there nothing to remove?
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }

    /// What had to stay, in words.
    pub fn failures(&self) -> impl Iterator<Item = String> {
        self.refused.iter().map(ToString::to_string)
    }

    fn count(&mut self, op: &NodeOp) {
        match op {
            NodeOp::DeleteServer { .. } => self.servers += 1,
            NodeOp::RemoveDevice => self.device = true,
            NodeOp::DestroySet(_) => self.sets += 1,
            _ => {}
        }
    }
}

impl fmt::Display for BalancingRemoved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { servers, addresses, sets, .. } = self;
        let device = if self.device { " with their device" } else { "" };
        write!(f, "{servers} virtual servers, {addresses} local addresses{device}, {sets} sets")
    }
}

/// How often what is refused is tried again: a set is still in use for some milliseconds after the rule that used it is
/// gone (netlink.md §4).
const SET_TRIES: usize = 20;

/// Removes virtual servers, local addresses with their device, and sets of ipvs mode, ours alone. Rules that name the
/// sets must be gone. `pause` waits a little; it is called between attempts.
///
/// Where there is neither a set nor the device nothing else is asked for: such a node needs no IPVS.
pub fn remove_balancing(
    balancer: &mut dyn Balancer,
    bounds: Bounds<'_>,
    pause: &mut dyn FnMut(),
) -> Result<BalancingRemoved, Error> {
    let remains = Remains::find(balancer, bounds)?;
    let addresses = remains.addresses.len();
    let mut ops = remains.removal();
    let mut removed = BalancingRemoved::default();
    for attempt in 1.. {
        let sent = balancer.apply(&ops)?;
        let refused: BTreeMap<_, _> = sent.refused.into_iter().filter(|refusal| !is_gone(refusal)).map(|r| (r.op, r)).collect();
        let is_refused = |index: &usize| refused.contains_key(index);
        ops.iter().enumerate().filter(|(index, _)| !is_refused(index)).for_each(|(_, op)| removed.count(op));
        if refused.is_empty() || attempt == SET_TRIES {
            removed.refused = refused.into_values().collect();
            break;
        }
        ops = ops.into_iter().enumerate().filter(|(index, _)| is_refused(index)).map(|(_, op)| op).collect();
        pause();
    }
    if removed.device {
        removed.addresses = addresses;
    }
    Ok(removed)
}

/// Somebody else removed it first.
fn is_gone(refusal: &Refusal) -> bool {
    [netlink::Errno::ENOENT, netlink::Errno::ESRCH].contains(&refusal.errno)
}

/// What is there of ours.
#[derive(Debug, Default)]
struct Remains {
    sets: Vec<(SetId, SetName)>,
    /// Those that were about to take another's place.
    larger: Vec<SetName>,
    has_device: bool,
    addresses: BTreeSet<IpAddr>,
    servers: Vec<VirtualAddress>,
}

impl Remains {
    fn find(balancer: &mut dyn Balancer, bounds: Bounds<'_>) -> Result<Self, Error> {
        let found = none_without(balancer.sets())?;
        let is_larger = |header: &&SetHeader| Family::ALL.iter().any(|&family| SetId::is_larger(&header.name, family));
        let larger = found.iter().filter(is_larger).map(|header| header.name.clone()).collect();
        let mut remains = Self { sets: our_sets(&found), larger, ..Self::default() };
        for family in Family::ALL {
            if let Some(addresses) = balancer.addresses(family)? {
                remains.has_device = true;
                remains.addresses.extend(addresses);
            }
        }
        if remains.has_device || !remains.sets.is_empty() {
            let named = Named::read(balancer, &remains.sets)?;
            for family in Family::ALL {
                let servers = none_without(balancer.servers(family))?.into_iter().map(|(at, _)| at);
                remains
                    .servers
                    .extend(servers.filter(|at| remains.addresses.contains(&at.address.ip()) || named.contains(at, bounds)));
            }
            remains.servers.retain(|at| !bounds.excluded.iter().any(|range| range.contains(&at.address.ip())));
        }
        Ok(remains)
    }

    /// Servers before addresses: packets that still come are refused here instead of leaving the node. The addresses go
    /// with their device, as to delete 20,000 of IPv6 one by one takes minutes. Sets last, since after an interruption
    /// they tell what else is ours.
    fn removal(self) -> Vec<NodeOp> {
        let mut ops: Vec<_> = self.servers.into_iter().map(|at| NodeOp::DeleteServer { at }).collect();
        ops.extend(self.has_device.then_some(NodeOp::RemoveDevice));
        ops.extend(self.larger.into_iter().chain(self.sets.into_iter().map(|(_, name)| name)).map(NodeOp::DestroySet));
        ops
    }
}

/// Where the kernel has no such thing there is none of ours.
fn none_without<T>(found: Result<Vec<T>, Error>) -> Result<Vec<T>, Error> {
    match found {
        Err(Error::Unsupported { .. }) => Ok(Vec::new()),
        found => found,
    }
}

/// Those of the right name and type. One of another type is another program's.
fn our_sets(found: &[SetHeader]) -> Vec<(SetId, SetName)> {
    let names = Family::ALL.into_iter().flat_map(|family| SetId::ALL.map(|set| (set, family, set.name(family))));
    let is_there = |(set, family, name): &(SetId, Family, SetName)| {
        let of_family = |header: &SetHeader| set.kind() == SetType::BitmapPort || header.family == Some(*family);
        found.iter().any(|header| header.name == *name && header.kind == Some(set.kind()) && of_family(header))
    };
    names.filter(is_there).map(|(set, _, name)| (set, name)).collect()
}

/// What our sets say virtual servers are at.
#[derive(Debug, Default)]
struct Named {
    servers: BTreeSet<(IpAddr, Protocol, u16)>,
    node_ports: BTreeSet<(Family, Protocol, u16)>,
}

impl Named {
    fn read(balancer: &mut dyn Balancer, sets: &[(SetId, SetName)]) -> Result<Self, Error> {
        let mut named = Self::default();
        for (set, name) in sets {
            let protocol = match set {
                SetId::ClusterIp | SetId::ExternalIp | SetId::ExternalIpLocal | SetId::LoadBalancer | SetId::NodePortSctp => None,
                SetId::NodePortTcp => Some(Protocol::Tcp),
                SetId::NodePortUdp => Some(Protocol::Udp),
                _ => continue,
            };
            let family = if *name == set.name(Family::Ipv4) { Family::Ipv4 } else { Family::Ipv6 };
            for member in balancer.members(name)? {
                named.take(family, protocol, member);
            }
        }
        Ok(named)
    }

    fn take(&mut self, family: Family, protocol: Option<Protocol>, member: Member) {
        match (member, protocol) {
            (Member::IpPort(address, protocol, port), _) => drop(self.servers.insert((address, protocol, port))),
            (Member::Port(port), Some(protocol)) => drop(self.node_ports.insert((family, protocol, port))),
            _ => {}
        }
    }

    fn contains(&self, at: &VirtualAddress, bounds: Bounds<'_>) -> bool {
        let (ip, port) = (at.address.ip(), at.address.port());
        let is_node_port = || self.node_ports.contains(&(at.family(), at.protocol, port)) && bounds.own.contains(&ip);
        self.servers.contains(&(ip, at.protocol, port)) || is_node_port()
    }
}
