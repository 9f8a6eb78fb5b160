//! Real servers that nobody wants any more, and whose connections are let end.
//!
//! Of a removed endpoint: its real server has weight 0, gets no new connections, and goes when the last one is gone. Of a
//! removed Service: all its real servers do, and for as long its address stays local, or the packets of its connections
//! would not come in; new connections are refused by then. That may last as long as `--ipvs-drain-timeout` says.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::ledger::{Real, SetMember};
use super::{ServerSync, drains};
use crate::config::RuleConfig;
use crate::netlink::Error;
use crate::render::ipvs::SetId;
use crate::ruleset::{Member, NodeOp, RealServer, VirtualAddress};
use crate::serve::metrics::DrainEnd;

/// Virtual servers that have draining real servers.
#[derive(Debug, Default)]
pub(super) struct Drains(BTreeMap<VirtualAddress, Drain>);

#[derive(Debug)]
struct Drain {
    /// Of a removed Service: since it was removed.
    since: Instant,
    is_removed: bool,
    /// Real servers that have connections still.
    reals: usize,
    /// The address that stays for them.
    held: Option<SetMember>,
}

impl Drains {
    /// How many real servers are draining.
    pub fn count(&self) -> usize {
        self.0.values().map(|drain| drain.reals).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl ServerSync {
    /// Lets real servers that are wanted no more get no new connections. Gives what can be deleted.
    pub(super) fn quiesce(
        &mut self,
        servers: &BTreeSet<VirtualAddress>,
        config: &RuleConfig,
        now: Instant,
    ) -> Result<Vec<NodeOp>, Error> {
        let (mut ops, mut gone, mut asked) = (Vec::new(), Vec::new(), Vec::new());
        for at in servers {
            let Some(known) = self.ledger.known(at) else { continue };
            let is_wanted = self.ledger.wanted(at).is_some();
            if !is_wanted && !self.is_ours(at, config) {
                continue;
            }
            let unwanted: Vec<_> = known.reals.iter().filter(|real| !self.is_real_wanted(at, real)).collect();
            if drains(at) && (is_wanted || !config.ipvs.drain_timeout.is_zero()) {
                let quiet = |real: &&&Real| real.weight != 0;
                ops.extend(unwanted.iter().filter(quiet).map(|real| NodeOp::EditReal { at: *at, real: real.address, weight: 0 }));
                if !is_wanted || !unwanted.is_empty() || self.drains.0.contains_key(at) {
                    asked.push(*at);
                }
            } else if is_wanted {
                gone.extend(unwanted.iter().map(|real| NodeOp::DeleteReal { at: *at, real: real.address }));
            } else {
                gone.push(NodeOp::DeleteServer { at: *at });
            }
        }
        self.apply(ops)?;
        for at in asked {
            gone.extend(self.settle(at, now)?);
        }
        Ok(gone)
    }

    fn is_real_wanted(&self, at: &VirtualAddress, real: &Real) -> bool {
        self.ledger.wanted(at).is_some_and(|(_, wanted)| wanted.real_servers.contains(&real.address))
    }

    /// Looks at the connections of a virtual server's unwanted real servers. Gives what can be deleted.
    fn settle(&mut self, at: VirtualAddress, now: Instant) -> Result<Vec<NodeOp>, Error> {
        let found = self.kernel.0.real_servers(&at).inspect_err(|error| self.failed(error))?;
        let unwanted = found.iter().filter(|real| !self.is_real_wanted(&at, &Real::from(**real)));
        let (busy, idle): (Vec<_>, Vec<_>) = unwanted.copied().partition(|real| real.active + real.inactive > 0);
        let is_wanted = self.ledger.wanted(&at).is_some();
        let finished = self.drains.0.get(&at).map_or(0, |drain| drain.reals.min(idle.len()));
        self.metrics.drained(self.family, DrainEnd::Finished, finished as u64);
        if busy.is_empty() {
            self.tell_end(&at, !idle.is_empty(), now);
        } else {
            self.note_drain(at, &busy, now);
        }
        if !is_wanted && busy.is_empty() {
            return Ok(vec![NodeOp::DeleteServer { at }]);
        }
        Ok(idle.into_iter().map(|real| NodeOp::DeleteReal { at, real: real.address }).collect())
    }

    /// Nothing of a virtual server drains any more: connections have ended, or all is wanted again.
    fn tell_end(&mut self, at: &VirtualAddress, ended: bool, now: Instant) {
        let Some(since) = self.end_drain(at) else { return };
        let lasted = now.saturating_duration_since(since);
        let what = if ended { "the last connection to what was removed has ended" } else { "what was removed is wanted again" };
        tracing::info!("{} {}: {what}, after {lasted:.0?}", self.family, self.name(at));
    }

    /// Writes down which real servers of a virtual server have connections that are to end.
    fn note_drain(&mut self, at: VirtualAddress, busy: &[RealServer], now: Instant) {
        if !self.drains.0.contains_key(&at) {
            let connections: u64 = busy.iter().map(|real| u64::from(real.active) + u64::from(real.inactive)).sum();
            let reals: Vec<_> = busy.iter().map(|real| real.address.to_string()).collect();
            tracing::info!(
                "{} {}: no new connections go to {}, until the {connections} there are have ended",
                self.family,
                self.name(&at),
                reals.join(", ")
            );
        }
        let is_wanted = self.ledger.wanted(&at).is_some();
        let drain = self.drains.0.entry(at).or_insert(Drain { since: now, is_removed: !is_wanted, reals: 0, held: None });
        drain.reals = busy.len();
        if drain.is_removed == is_wanted {
            (drain.since, drain.is_removed) = (now, !is_wanted);
        }
        let member = (SetId::IpvsIps, Member::Ip(at.address.ip()));
        let is_local = self.addresses.as_ref().is_some_and(|known| known.contains(&at.address.ip()));
        if is_wanted {
            drain.held.take().into_iter().for_each(|member| self.ledger.release(member));
        } else if drain.held.is_none() && is_local {
            drain.held = Some(member);
            self.ledger.hold(member);
        }
    }

    /// Nothing of it drains any more. Gives since when something had.
    fn end_drain(&mut self, at: &VirtualAddress) -> Option<Instant> {
        let drain = self.drains.0.remove(at)?;
        drain.held.into_iter().for_each(|member| self.ledger.release(member));
        Some(drain.since)
    }

    fn name(&self, at: &VirtualAddress) -> String {
        match self.ledger.wanted(at) {
            Some((service, _)) => format!("virtual server {at} of Service {service}"),
            None => format!("virtual server {at} of a removed Service"),
        }
    }

    /// Does anything drain?
    pub fn is_draining(&self) -> bool {
        !self.drains.is_empty()
    }

    /// Removes what has no connections any more, or has had them for too long.
    pub fn check_drains(&mut self, config: &RuleConfig, now: Instant) -> Result<(), Error> {
        let all: Vec<_> = self.drains.0.iter().map(|(at, drain)| (*at, drain.since, drain.reals)).collect();
        let mut gone = Vec::new();
        for (at, since, reals) in all {
            let lasted = now.saturating_duration_since(since);
            if self.ledger.wanted(&at).is_none() && lasted >= config.ipvs.drain_timeout {
                self.expire(at, lasted, reals);
                gone.push(NodeOp::DeleteServer { at });
            } else {
                gone.extend(self.settle(at, now)?);
            }
        }
        self.clear(&BTreeSet::new(), gone)?;
        self.report();
        Ok(())
    }

    fn expire(&mut self, at: VirtualAddress, lasted: Duration, reals: usize) {
        tracing::warn!(
            "{} {}: connections to {reals} real servers are ended, {lasted:.0?} after it was removed (--ipvs-drain-timeout)",
            self.family,
            self.name(&at)
        );
        self.end_drain(&at);
        self.metrics.drained(self.family, DrainEnd::Expired, reals as u64);
    }
}
