//! Operations on their way to the kernel, and what became of each: what was done is written down, what was refused is
//! named in the log, and both are counted.

use std::collections::{BTreeMap, HashSet};
use std::mem;

use super::ledger::{Known, Real};
use super::{ServerSync, room_of};
use crate::netlink::{Errno, Error, Refusal};
use crate::render::ipvs::SetId;
use crate::ruleset::{Member, NodeOp, SetName, SetSpec};

/// What the kernel would not do.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    /// With this sync: what, for whom, and what the kernel said.
    pub now: BTreeMap<String, String>,
    /// What has been said already.
    told: BTreeMap<String, String>,
}

impl ServerSync {
    /// Sends operations, and writes down what became of each.
    pub(super) fn apply(&mut self, ops: Vec<NodeOp>) -> Result<(), Error> {
        if ops.is_empty() {
            return Ok(());
        }
        let sent = self.kernel.0.apply(&ops).inspect_err(|error| self.failed(error))?;
        self.done.operations += ops.len();
        self.done.sends += sent.sends;
        self.done.bytes += sent.bytes;
        self.metrics.node_operations_sent(self.family, ops.len() as u64, sent.refused.len() as u64);
        let mut refused: BTreeMap<usize, Refusal> = sent.refused.into_iter().map(|refusal| (refusal.op, refusal)).collect();
        for (index, op) in ops.into_iter().enumerate() {
            match refused.remove(&index) {
                None => self.learn(op),
                Some(refusal) if is_moot(&op, refusal.errno) => self.learn(op),
                Some(refusal) => self.refused(&op, &refusal),
            }
        }
        Ok(())
    }

    pub(super) fn failed(&mut self, error: &Error) {
        self.unread = true;
        error.errno().iter().for_each(|errno| self.metrics.netlink_failed(errno.0));
    }

    /// Writes down what was done.
    fn learn(&mut self, op: NodeOp) {
        match op {
            NodeOp::AddServer { at, server } => {
                // Neither more nor less than it will have: there are thousands of these.
                let count = self.ledger.wanted(&at).map_or(0, |(_, wanted)| wanted.real_servers.len());
                self.ledger.learn_server(at, Some(Known { server, reals: Vec::with_capacity(count) }));
            }
            NodeOp::EditServer { at, server } => {
                let reals = self.ledger.reals_mut(&at).map(mem::take).unwrap_or_default();
                self.ledger.learn_server(at, Some(Known { server, reals }));
            }
            NodeOp::DeleteServer { at } => self.ledger.learn_server(at, None),
            NodeOp::AddReal { at, real, weight } | NodeOp::EditReal { at, real, weight } => {
                let now = Real { address: real, weight, masquerades: true };
                if let Some(reals) = self.ledger.reals_mut(&at) {
                    match reals.iter_mut().find(|known| known.address == real) {
                        Some(known) => *known = now,
                        None => reals.push(now),
                    }
                }
            }
            NodeOp::DeleteReal { at, real } => {
                self.ledger.reals_mut(&at).into_iter().for_each(|reals| reals.retain(|known| known.address != real));
            }
            NodeOp::CreateSet(spec) => {
                let room = room_of(spec.kind, spec.max_members);
                if let Some(set) = self.set_id(&spec.name) {
                    self.sets.insert(set, room);
                }
            }
            NodeOp::AddMember { set, member } => self.learn_member(&set, member, true),
            NodeOp::DeleteMember { set, member } => self.learn_member(&set, member, false),
            NodeOp::SwapSets { .. } | NodeOp::DestroySet(_) => {}
            NodeOp::RemoveDevice => self.addresses = None,
            NodeOp::MakeDevice => self.addresses = Some(HashSet::new()),
            NodeOp::AddAddress(address) => {
                self.addresses.get_or_insert_default().insert(address);
            }
            NodeOp::DeleteAddress(address) => {
                if let Some(known) = &mut self.addresses {
                    known.remove(&address);
                }
            }
        }
    }

    fn learn_member(&mut self, set: &SetName, member: Member, known: bool) {
        if let Some(set) = self.set_id(set) {
            self.ledger.learn_member((set, member), known);
        }
    }

    /// Which of our sets has this name; `None` for one that is about to take another's place.
    fn set_id(&self, name: &SetName) -> Option<SetId> {
        SetId::ALL.into_iter().find(|set| self.names[*set as usize] == *name)
    }

    /// Writes down what the kernel would not do. What follows from it is not told: the real servers of a virtual server
    /// that could not be made.
    fn refused(&mut self, op: &NodeOp, refusal: &Refusal) {
        self.metrics.netlink_failed(refusal.errno.0);
        if let (NodeOp::AddMember { set, .. }, Errno::IPSET_ERR_HASH_FULL) = (op, refusal.errno) {
            self.full.extend(self.set_id(set));
        }
        let object = self.object(op);
        self.refusals.now.entry(object).or_insert_with(|| format!("cannot {op}: {}", refusal.errno));
    }

    /// What an operation is about, in an operator's words.
    fn object(&self, op: &NodeOp) -> String {
        match op {
            NodeOp::AddServer { at, .. }
            | NodeOp::EditServer { at, .. }
            | NodeOp::DeleteServer { at }
            | NodeOp::AddReal { at, .. }
            | NodeOp::EditReal { at, .. }
            | NodeOp::DeleteReal { at, .. } => match self.ledger.wanted(at) {
                Some((service, _)) => format!("virtual server {at} of Service {service}"),
                None => format!("virtual server {at}, which no Service wants"),
            },
            NodeOp::AddMember { set, member } => {
                let wanted_by = self.set_id(set).and_then(|set| self.ledger.who_wants(&(set, *member)));
                let of = wanted_by.map(|service| format!(", wanted by Service {service}")).unwrap_or_default();
                format!("member {member} of set {set}{of}")
            }
            NodeOp::CreateSet(SetSpec { name: set, .. })
            | NodeOp::DeleteMember { set, .. }
            | NodeOp::SwapSets { other: set, .. }
            | NodeOp::DestroySet(set) => format!("set {set}"),
            NodeOp::MakeDevice | NodeOp::RemoveDevice => "device kube-ipvs0".to_owned(),
            NodeOp::AddAddress(address) | NodeOp::DeleteAddress(address) => format!("local address {address}"),
        }
    }

    /// Each refusal is told once, and once more when the kernel gives another reason.
    pub(super) fn tell_refusals(&mut self) {
        for (set, why) in &self.unusable {
            self.refusals.now.insert(format!("set {}", self.set_name(*set)), why.clone());
        }
        for (object, why) in &self.refusals.now {
            if self.refusals.told.get(object) != Some(why) {
                tracing::error!("{} {object}: {why}; the others go on, this is tried again", self.family);
            }
        }
        for object in self.refusals.told.keys().filter(|object| !self.refusals.now.contains_key(*object)) {
            tracing::info!("{} {object}: it is as it should be now", self.family);
        }
        self.refusals.told = self.refusals.now.clone();
        self.tell_contests();
    }

    /// Two Services with one external IP and port: kube-proxy gives it to either, as it happens to go through them.
    fn tell_contests(&mut self) {
        let contested = self.ledger.contested();
        for (at, services) in contested.iter().filter(|(at, _)| !self.contested.contains(at)) {
            let services: Vec<_> = services.iter().map(ToString::to_string).collect();
            tracing::warn!("virtual server {at} is wanted by the Services {}: the first of them has it", services.join(", "));
        }
        self.contested = contested.keys().copied().collect();
    }
}

/// Was refused because there was nothing to delete: somebody else did it.
fn is_moot(op: &NodeOp, errno: Errno) -> bool {
    let deletes = matches!(op, NodeOp::DeleteServer { .. } | NodeOp::DeleteReal { .. } | NodeOp::DestroySet(_));
    deletes && matches!(errno, Errno::ENOENT | Errno::ESRCH)
}
