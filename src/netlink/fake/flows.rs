//! Tracked flows in memory, with a count of what was asked.

use std::mem;

use super::super::conntrack::{Flow, Flows};
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
    fn udp(&mut self, family: Family, wanted: &dyn Fn(&Flow) -> bool) -> Result<Vec<Flow>, Error> {
        self.listings += 1;
        let found = || self.flows[family].iter().copied().filter(wanted).collect();
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
