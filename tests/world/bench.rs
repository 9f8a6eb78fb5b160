//! One family's sync with its kernel, the fake one, and its state.

use std::sync::Arc;

use sluice::model::{Event, State};
use sluice::net::Family;
use sluice::netlink::Error;
use sluice::netlink::fake::FakeKernel;
use sluice::serve::Metrics;
use sluice::sync::{FamilySync, Inputs, Summary};

use super::{canonical, config, difference, endpoint, facts, key, rendered, service, slice};

pub const FAMILY: Family = Family::Ipv4;

pub struct Bench {
    pub kernel: FakeKernel,
    pub state: State,
    pub sync: FamilySync,
}

impl Bench {
    pub fn new() -> Self {
        Self { kernel: FakeKernel::new(), state: State::new("node-a"), sync: fresh_sync() }
    }

    /// With Services 1 to `services`, of two endpoints each, programmed.
    pub fn with(services: u8) -> Self {
        let mut bench = Self::new();
        bench.sync((1..=services).flat_map(|i| web(i, 2)));
        bench
    }

    /// Takes events in and syncs once; what the kernel was asked to do.
    pub fn sync(&mut self, events: impl IntoIterator<Item = Event>) -> Summary {
        self.note(events);
        self.try_sync().expect("a sync")
    }

    pub fn note(&mut self, events: impl IntoIterator<Item = Event>) {
        for event in events {
            let changes = self.state.apply(event);
            self.sync.note(&changes);
        }
    }

    pub fn try_sync(&mut self) -> Result<Summary, Error> {
        let config = config();
        let inputs = Inputs { config: &config, facts: facts(), state: &self.state };
        self.sync.sync(&mut self.kernel, inputs)
    }

    pub fn saved(&self) -> String {
        canonical(&self.kernel.save(FAMILY))
    }

    /// What the kernel holds equals what a fresh node would be given for the same state.
    #[track_caller]
    pub fn assert_as_rendered(&self, what: &str) {
        let (want, have) = (rendered(&self.state, FAMILY), self.saved());
        assert!(want == have, "{what}:\n{}", difference(&want, &have));
    }
}

pub fn fresh_sync() -> FamilySync {
    FamilySync::new(FAMILY, Arc::new(Metrics::new()))
}

/// Service `i` with endpoints on hosts 1 to `endpoints`.
pub fn web(i: u8, endpoints: u8) -> [Event; 2] {
    let name = format!("web-{i}");
    let hosts = (1..=endpoints).map(|host| endpoint([10, 244, i, host].into()));
    let slice = slice(&key("shop", &name), hosts.collect());
    let service = service([10, 96, 0, i].into());
    [Event::Slice(key("shop", &format!("{name}-x")), Some(slice)), Event::Service(key("shop", &name), Some(service))]
}
