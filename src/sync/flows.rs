//! One family's stale UDP flows: found and deleted once the rules that make them stale are in force.
//!
//! A [`FlowSync`] remembers what changed until it is done about, however often that fails. At most one listing is
//! asked for per sync, and none where no UDP Service changed.

use std::sync::Arc;
use std::time::Instant;

use crate::config::RuleConfig;
use crate::model::flows::{Common, Ends, Ledger};
use crate::model::{Changes, State};
use crate::net::Family;
use crate::netlink::Error;
use crate::netlink::conntrack::{Flow, Flows, Query};
use crate::render;
use crate::serve::Metrics;

/// The tracked UDP flows of one family, and what is still to be done about them.
#[derive(Debug)]
pub struct FlowSync {
    family: Family,
    metrics: Arc<Metrics>,
    ledger: Ledger,
}

impl FlowSync {
    /// Nothing is known of what was before: all Services that come first count as changed.
    pub fn new(family: Family, config: &RuleConfig, metrics: Arc<Metrics>) -> Self {
        Self { family, metrics, ledger: Ledger::new(family, config.external_ips) }
    }

    pub fn family(&self) -> Family {
        self.family
    }

    /// Notes what `changes` made of the Services, in `state` as it is after them.
    pub fn note(&mut self, state: &State, changes: &Changes) {
        changes.services.iter().for_each(|key| self.ledger.note(state, key));
    }

    /// Is there anything to look for?
    pub fn is_due(&self) -> bool {
        self.ledger.is_due()
    }

    /// Deletes the flows that the rules now in force would lead elsewhere, and tells how many. To be called when
    /// those of `state` are. On failure everything noted stays to be done.
    pub fn reconcile(&mut self, kernel: &mut dyn Flows, config: &RuleConfig, state: &State) -> Result<usize, Error> {
        if !self.is_due() {
            return Ok(0);
        }
        let own = render::own_addresses(config, state, self.family);
        let started = Instant::now();
        let is_stale = |flow: &Flow| self.ledger.is_stale(ends(flow), &own);
        let Common { address, port } = self.ledger.common();
        let found = kernel.udp(&Query { family: self.family, address, port, wanted: &is_stale });
        let outcome = found.and_then(|stale| kernel.delete(self.family, &stale));
        let deleted = outcome.as_ref().copied().unwrap_or_default();
        self.metrics.conntrack_reconciled(self.family, started.elapsed(), deleted as u64);
        match &outcome {
            Ok(_) => self.ledger.settled(),
            Err(error) => error.errno().iter().for_each(|errno| self.metrics.netlink_failed(errno.0)),
        }
        outcome
    }
}

fn ends(flow: &Flow) -> Ends {
    Ends { asked: flow.original.destination, answers: flow.reply.source }
}
