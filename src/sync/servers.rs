//! One family's virtual servers, sets and local addresses in ipvs mode: what Services want of them, beside what the
//! kernel has, and the operations in between.
//!
//! The order of operations is a promise, and lives here (design.md §5). First what is made, from the inside out: sets,
//! virtual servers with their real servers, set members; then rules (not here: [`super::FamilySync`]); then the
//! addresses that let packets in. What goes, goes the other way round: real servers that are wanted no more get no new
//! connections, then addresses, set members, virtual servers.
//!
//! Nothing about a removed real server is kept in memory alone: one with weight 0 that nobody wants is draining, whoever
//! gave it that weight, and goes when its connections have ended.

mod audit;
mod drains;
mod elsewhere;
mod ledger;
mod read;
mod send;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::mem;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use crate::config::{LocalAddresses, RuleConfig};
use crate::model::{Changes, ObjectKey, Service, State};
use crate::net::{Family, Protocol};
use crate::netlink::{Balancer, Error};
use crate::render::ipvs::{Filled, SetId, room};
use crate::render::{self, Context};
use crate::ruleset::{Member, NodeOp, SetName, SetSpec, SetType, VirtualAddress};
use crate::serve::Metrics;
use drains::Drains;
use elsewhere::Elsewhere;
use ledger::{Dirty, Ledger, Real, SetMember};
use send::Refusals;

/// Each endpoint gets the same share.
const WEIGHT: u32 = 1;
/// So many addresses take the kernel a third of a second to put on one device (netlink.md §4), twice as many four times that.
const MANY_ADDRESSES: usize = 5000;

/// What was sent, summed up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    pub operations: usize,
    pub sends: usize,
    pub bytes: usize,
}

/// Virtual servers, sets and addresses of one family, and what is still to be done about them.
#[derive(Debug)]
pub struct ServerSync {
    family: Family,
    metrics: Arc<Metrics>,
    kernel: Kernel,
    ledger: Ledger,
    /// What this sync looks at, between making and removing.
    work: Dirty,
    /// Local addresses that the kernel has; `None`: there is no device for them.
    addresses: Option<HashSet<IpAddr>>,
    /// The names of sets, made once: there is one in each operation on a member.
    names: [SetName; SetId::ALL.len()],
    /// Sets that the kernel has, with the number of members they take.
    sets: BTreeMap<SetId, usize>,
    /// Sets with members that ours never have, and that cannot be named: to be replaced.
    odd: BTreeSet<SetId>,
    /// Sets that the kernel said are full: to be replaced by larger ones.
    full: BTreeSet<SetId>,
    /// Sets whose names somebody else took, and how.
    unusable: BTreeMap<SetId, String>,
    /// Nothing is known of the kernel.
    unread: bool,
    /// A set or the device was found missing, whether or not anything is wanted of it.
    ground_lost: bool,
    /// Sets that an earlier run was about to put in another's place.
    stale_sets: Vec<SetName>,
    drains: Drains,
    places: Places,
    refusals: Refusals,
    elsewhere: Elsewhere,
    /// Virtual servers that several Services want, and that this has been said of.
    contested: BTreeSet<VirtualAddress>,
    done: Done,
    /// How many virtual servers in the kernel's order had their real servers looked at by audits, in this round.
    audited: usize,
}

/// The kernel, for `Debug`.
struct Kernel(Box<dyn Balancer>);

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Kernel")
    }
}

/// Addresses of the node that what Services want depends on.
#[derive(Debug, Default, PartialEq, Eq)]
struct Places {
    node_ports: Vec<IpAddr>,
    interfaces: BTreeSet<IpAddr>,
}

impl Places {
    fn of(config: &RuleConfig, state: &State, family: Family) -> Self {
        Self {
            node_ports: render::node_port_server_addresses(config, state, family),
            interfaces: state.addresses().filter(|address| Family::of(*address) == family).collect(),
        }
    }
}

impl ServerSync {
    /// Nothing is known of the kernel yet: the first sync reads it.
    pub fn new(family: Family, kernel: Box<dyn Balancer>, metrics: Arc<Metrics>) -> Self {
        Self {
            family,
            metrics,
            kernel: Kernel(kernel),
            ledger: Ledger::default(),
            work: Dirty::default(),
            addresses: None,
            names: SetId::ALL.map(|set| set.name(family)),
            sets: BTreeMap::new(),
            odd: BTreeSet::new(),
            full: BTreeSet::new(),
            unusable: BTreeMap::new(),
            unread: true,
            ground_lost: false,
            stale_sets: Vec::new(),
            drains: Drains::default(),
            places: Places::default(),
            refusals: Refusals::default(),
            elsewhere: Elsewhere::default(),
            contested: BTreeSet::new(),
            done: Done::default(),
            audited: 0,
        }
    }

    /// Takes in what changed. Gives the Services that depend on addresses of the node which changed.
    pub fn note(&mut self, context: &Context<'_>, config: &RuleConfig, changes: &Changes) -> BTreeSet<ObjectKey> {
        let moved = if changes.addresses || changes.global { self.moved(context, config) } else { BTreeSet::new() };
        if changes.global {
            let gone: Vec<_> = self.ledger.services().filter(|key| context.state.service(key).is_none()).cloned().collect();
            for key in &gone {
                self.want(context, key);
            }
            context.state.services().for_each(|(key, _)| self.want(context, key));
        } else {
            changes.services.union(&moved).for_each(|key| self.want(context, key));
        }
        moved
    }

    fn want(&mut self, context: &Context<'_>, key: &ObjectKey) {
        self.elsewhere.tell(context.state, key, self.family);
        self.ledger.want(key, render::service(context, key).into_iter().map(|part| part.balanced));
    }

    /// The Services that want something else, now that the node has other addresses.
    fn moved(&mut self, context: &Context<'_>, config: &RuleConfig) -> BTreeSet<ObjectKey> {
        let places = Places::of(config, context.state, self.family);
        if places == self.places {
            return BTreeSet::new();
        }
        self.places = places;
        let depends = |service: &Service| {
            let addresses = service.families[self.family].as_ref();
            let outside = addresses.is_some_and(|a| !a.external_ips.is_empty() || !a.load_balancer_vips.is_empty());
            outside || service.ports.iter().any(|port| port.node_port != 0)
        };
        context.state.services().filter(|(_, service)| depends(service)).map(|(key, _)| key.clone()).collect()
    }

    /// Sets that hold something, or are about to.
    pub fn filled(&self) -> Filled {
        self.sets.keys().copied().filter(|set| self.ledger.count(*set) > 0).collect()
    }

    /// Sets that rules must not name: somebody else's has the name, or the kernel would not make it.
    pub fn unusable(&self) -> Filled {
        SetId::ALL.into_iter().filter(|set| !self.sets.contains_key(set)).collect()
    }

    /// What was sent since this was last asked.
    pub fn take_done(&mut self) -> Done {
        mem::take(&mut self.done)
    }

    /// Makes what is wanted and not there, but for the addresses.
    pub fn make(&mut self, config: &RuleConfig) -> Result<(), Error> {
        if self.unread {
            // What was refused is tried again with what is found now.
            self.refusals.now.clear();
            self.read_everything(config)?;
        }
        self.ground_lost = false;
        let dirty = mem::take(&mut self.ledger.dirty);
        self.work.servers.extend(dirty.servers);
        self.work.members.extend(dirty.members);
        let work = mem::take(&mut self.work);
        let outcome = self.make_all(&work);
        self.work = work;
        outcome
    }

    fn make_all(&mut self, work: &Dirty) -> Result<(), Error> {
        self.make_sets(work)?;
        let servers = work.servers.iter().flat_map(|at| self.server_ops(at)).collect();
        self.apply(servers)?;
        let wanted = |member: &&SetMember| self.ledger.is_member_wanted(member) && !self.ledger.is_member_known(member);
        let usable = |member: &&SetMember| self.sets.contains_key(&member.0);
        let missing = work.members.iter().filter(usable).filter(wanted);
        let members = missing.map(|&(set, member)| NodeOp::AddMember { set: self.set_name(set), member }).collect();
        self.apply(members)
    }

    /// Removes what is not wanted, and puts wanted addresses in their place. `now`: when draining begins.
    pub fn finish(&mut self, config: &RuleConfig, now: Instant) -> Result<(), Error> {
        let work = mem::take(&mut self.work);
        let gone = self.quiesce(&work.servers, config, now)?;
        self.warn_of_many_addresses(&work.members, config);
        self.clear(&work.members, gone)?;
        self.tell_refusals();
        self.report();
        Ok(())
    }

    /// Before an operator wonders for half a minute.
    fn warn_of_many_addresses(&self, members: &BTreeSet<SetMember>, config: &RuleConfig) {
        let many = self.ledger.count(SetId::IpvsIps) >= MANY_ADDRESSES && members.len() >= MANY_ADDRESSES;
        if many && config.ipvs.local_addresses == LocalAddresses::Device && self.addresses.as_ref().is_none_or(HashSet::is_empty)
        {
            tracing::warn!(
                "{} {} addresses are put on kube-ipvs0, for which the kernel needs time quadratic in their number; \
                 --ipvs-local-addresses=routes does it in a hundredth of that",
                self.ledger.count(SetId::IpvsIps),
                self.family
            );
        }
    }

    /// Is something not as it should be, since the kernel refused it?
    pub fn is_unfinished(&self) -> bool {
        !self.refusals.now.is_empty()
    }

    /// What the kernel refused, and why.
    pub fn refusals(&self) -> impl Iterator<Item = String> + '_ {
        self.refusals.now.iter().map(|(what, why)| format!("{what}: {why}"))
    }

    /// The next sync reads everything: what the kernel has is not known for sure.
    pub fn look_again(&mut self) {
        self.unread = true;
    }

    /// Is there anything to be done that no Service asks for?
    pub fn is_due(&self) -> bool {
        self.unread || self.ground_lost || !self.ledger.dirty.servers.is_empty() || !self.ledger.dirty.members.is_empty()
    }

    /// The sets that are missing or too small. Sets are few, and nearly always nothing is to be done.
    fn make_sets(&mut self, work: &Dirty) -> Result<(), Error> {
        let stale = mem::take(&mut self.stale_sets).into_iter().map(NodeOp::DestroySet).collect();
        self.apply(stale)?;
        let mut room: BTreeMap<SetId, usize> = SetId::ALL.map(|set| (set, self.ledger.known_count(set))).into();
        for member in work.members.iter().filter(|member| self.ledger.is_member_wanted(member)) {
            if !self.ledger.is_member_known(member) {
                *room.entry(member.0).or_default() += 1;
            }
        }
        let mut missing = Vec::new();
        for (set, members) in room {
            match self.sets.get(&set) {
                _ if self.unusable.contains_key(&set) => {}
                None => missing.push(NodeOp::CreateSet(self.spec(set, self.set_name(set), members))),
                Some(&room) if self.full.contains(&set) => self.replace(set, members.max(room + 1))?,
                Some(&room) if room < members || self.odd.contains(&set) => self.replace(set, members)?,
                Some(_) => {}
            }
        }
        self.apply(missing)
    }

    fn set_name(&self, set: SetId) -> SetName {
        self.names[set as usize].clone()
    }

    fn spec(&self, set: SetId, name: SetName, members: usize) -> SetSpec {
        SetSpec { name, ..set.spec(self.family, members) }
    }

    /// Puts another set in a set's place, large enough and with all its members: rules that name it never find it empty.
    fn replace(&mut self, set: SetId, members: usize) -> Result<(), Error> {
        let (name, larger) = (self.set_name(set), set.larger_name(self.family));
        let spec = self.spec(set, larger.clone(), members);
        let room = room_of(spec.kind, spec.max_members);
        let mut ops = vec![NodeOp::CreateSet(spec)];
        ops.extend(self.ledger.known_members(set).map(|member| NodeOp::AddMember { set: larger.clone(), member }));
        tracing::info!(
            "{} set {name} is replaced: {members} members need more room than it has, or some are of no known kind; now {room}",
            self.family
        );
        let refusals = self.refusals.now.len();
        self.apply(ops)?;
        if self.refusals.now.len() > refusals {
            return self.apply(vec![NodeOp::DestroySet(larger)]);
        }
        self.apply(vec![NodeOp::SwapSets { one: larger.clone(), other: name }, NodeOp::DestroySet(larger)])?;
        if self.refusals.now.len() == refusals {
            self.sets.insert(set, room);
            self.odd.remove(&set);
            self.full.remove(&set);
        }
        Ok(())
    }

    /// What one virtual server lacks.
    fn server_ops(&self, at: &VirtualAddress) -> Vec<NodeOp> {
        let Some((_, wanted)) = self.ledger.wanted(at) else { return Vec::new() };
        let mut ops = Vec::new();
        let known = self.ledger.known(at);
        match known {
            None => ops.push(NodeOp::AddServer { at: *at, server: wanted.server }),
            Some(known) if known.server != wanted.server => {
                ops.push(NodeOp::EditServer { at: *at, server: wanted.server });
            }
            Some(_) => {}
        }
        let reals = known.map(|known| known.reals.as_slice()).unwrap_or_default();
        for &real in &wanted.real_servers {
            match reals.iter().find(|known| known.address == real) {
                None => ops.push(NodeOp::AddReal { at: *at, real, weight: WEIGHT }),
                Some(Real { weight: WEIGHT, masquerades: true, .. }) => {}
                Some(_) => ops.push(NodeOp::EditReal { at: *at, real, weight: WEIGHT }),
            }
        }
        ops
    }

    /// Addresses that come and go, members that go, and then `gone`: what has no connections any more.
    fn clear(&mut self, members: &BTreeSet<SetMember>, gone: Vec<NodeOp>) -> Result<(), Error> {
        let released = mem::take(&mut self.ledger.dirty.members);
        let members: BTreeSet<_> = members.iter().copied().chain(released).collect();
        let mut ops = self.address_ops(&members);
        let unwanted = |member: &&SetMember| !self.ledger.is_member_wanted(member) && self.ledger.is_member_known(member);
        let leaving = members.iter().filter(unwanted);
        ops.extend(leaving.map(|&(set, member)| NodeOp::DeleteMember { set: self.set_name(set), member }));
        ops.extend(gone);
        self.apply(ops)
    }

    fn address_ops(&self, members: &BTreeSet<SetMember>) -> Vec<NodeOp> {
        let addresses = members.iter().filter_map(|member| match member {
            (SetId::IpvsIps, Member::Ip(address)) => Some(*address),
            _ => None,
        });
        let is_there = |address: &IpAddr| self.addresses.as_ref().is_some_and(|known| known.contains(address));
        let (wanted, unwanted): (Vec<_>, Vec<_>) = addresses.partition(|address| self.ledger.is_address_wanted(*address));
        let mut ops = Vec::new();
        if self.addresses.is_none() {
            ops.push(NodeOp::MakeDevice);
        }
        ops.extend(wanted.into_iter().filter(|address| !is_there(address)).map(NodeOp::AddAddress));
        ops.extend(unwanted.into_iter().filter(is_there).map(NodeOp::DeleteAddress));
        ops
    }

    fn report(&self) {
        let (unfinished, draining) = (self.refusals.now.len() as u64, self.drains.count() as u64);
        self.metrics.servers_counted(self.family, self.ledger.known_server_count() as u64, unfinished, draining);
    }
}

/// How many members fit into a set. All ports fit into a bitmap of them.
fn room_of(kind: SetType, max_members: u32) -> usize {
    if kind == SetType::BitmapPort { usize::MAX } else { room(max_members) }
}

/// Do its connections live on when it is wanted no more? Those of UDP have no end to wait for, and kube-proxy takes
/// SCTP for the same.
fn drains(at: &VirtualAddress) -> bool {
    at.protocol == Protocol::Tcp
}
