//! Tracked flows in memory, with a count of what was asked.

use std::mem;

use super::super::conntrack::{Flow, Flows, Query};
use super::super::error::Error;
use crate::net::{Family, PerFamily};

#[derive(Debug, Default)]
pub struct FakeFlows {
    flows: PerFamily<Vec<Flow>>,
    listings: usize,
    failing_listing: Option<Error>,
    failing_deletion: Option<Error>,
}

impl FakeFlows {
    pub fn new() -> Self {
        Self::default()
    }

    /// A flow begins.
    pub fn track(&mut self, flow: Flow) {
        self.flows[Family::of(flow.original.source.ip())].push(flow);
    }

    pub fn flows(&self, family: Family) -> &[Flow] {
        &self.flows[family]
    }

    /// How often flows were listed since this was last asked.
    pub fn take_listings(&mut self) -> usize {
        mem::take(&mut self.listings)
    }

    /// Lets the next listing fail so.
    pub fn fail_next_listing(&mut self, error: Error) {
        self.failing_listing = Some(error);
    }

    /// Lets the next deletion fail so, deleting the first flow alone.
    pub fn fail_next_deletion(&mut self, error: Error) {
        self.failing_deletion = Some(error);
    }
}

impl Flows for FakeFlows {
    fn udp(&mut self, query: &Query<'_>) -> Result<Vec<Flow>, Error> {
        self.listings += 1;
        let asked = |flow: &Flow| {
            let destination = flow.original.destination;
            query.address.is_none_or(|address| address == destination.ip())
                && query.port.is_none_or(|port| port == destination.port())
        };
        let found = || self.flows[query.family].iter().copied().filter(asked).filter(query.wanted).collect();
        self.failing_listing.take().map_or_else(|| Ok(found()), Err)
    }

    fn delete(&mut self, family: Family, flows: &[Flow]) -> Result<usize, Error> {
        let error = self.failing_deletion.take();
        let flows = if error.is_some() { &flows[..flows.len().min(1)] } else { flows };
        let before = self.flows[family].len();
        self.flows[family].retain(|flow| !flows.contains(flow));
        error.map_or_else(|| Ok(before - self.flows[family].len()), Err)
    }
}
