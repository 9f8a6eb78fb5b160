//! What a change costs in operations does not depend on how many Services there are: told on the fake kernel (which
//! tests/parity.rs holds to the real one), where operations are counted and time is not.

mod world;

use std::net::Ipv4Addr;
use std::sync::Arc;

use sluice::model::{Event, ObjectKey, State};
use sluice::net::Family;
use sluice::netlink::fake::FakeKernel;
use sluice::serve::Metrics;
use sluice::sync::{FamilySync, Inputs, Summary};
use world::{config, endpoint, facts, key, service, slice};

const FEW: u32 = 10;
const MANY: u32 = 10_000;

/// A family's sync with its kernel and state.
struct Cluster {
    kernel: FakeKernel,
    state: State,
    sync: FamilySync,
}

impl Cluster {
    /// With so many Services of two endpoints each, programmed.
    fn new(services: u32) -> Self {
        let sync = FamilySync::new(Family::Ipv4, Arc::new(Metrics::new()));
        let mut cluster = Self { kernel: FakeKernel::new(), state: State::new("node-a"), sync };
        let slices = (0..services).map(|i| (slice_key(i), some_slice(i, 2))).collect();
        let services = (0..services).map(|i| (name(i), some_service(i))).collect();
        let loaded = cluster.sync([Event::Slices(slices), Event::Services(services)]);
        assert!(loaded.services > 0 && loaded.operations > loaded.services, "{loaded:?}");
        cluster
    }

    /// What it takes to bring these events into the rules.
    fn sync(&mut self, events: impl IntoIterator<Item = Event>) -> Summary {
        for event in events {
            let changes = self.state.apply(event);
            self.sync.note(&changes);
        }
        let config = config();
        let inputs = Inputs { config: &config, facts: facts(), state: &self.state };
        self.sync.sync(&mut self.kernel, inputs).expect("a sync")
    }
}

fn name(i: u32) -> ObjectKey {
    key("shop", &format!("web-{i}"))
}

fn slice_key(i: u32) -> ObjectKey {
    key("shop", &format!("web-{i}-x"))
}

fn some_service(i: u32) -> sluice::model::Service {
    service(Ipv4Addr::from(0x0a60_0000 + i).into())
}

fn some_slice(i: u32, endpoints: u32) -> sluice::model::EndpointSlice {
    let address = |k| Ipv4Addr::from(0x0af4_0000 + i * 4 + k).into();
    slice(&name(i), (0..endpoints).map(|k| endpoint(address(k))).collect())
}

/// Changes as they come, one by one: an endpoint more, one less, a Service new, a Service gone.
fn costs(services: u32) -> [Summary; 4] {
    let mut cluster = Cluster::new(services);
    let (one, new) = (services / 2, services);
    [
        cluster.sync([Event::Slice(slice_key(one), Some(some_slice(one, 3)))]),
        cluster.sync([Event::Slice(slice_key(one), Some(some_slice(one, 2)))]),
        cluster
            .sync([Event::Slice(slice_key(new), Some(some_slice(new, 2))), Event::Service(name(new), Some(some_service(new)))]),
        cluster.sync([Event::Service(name(new), None)]),
    ]
}

#[test]
fn a_change_costs_the_same_among_ten_services_and_among_ten_thousand() {
    let few = costs(FEW);
    assert_eq!(few.map(|cost| (cost.services, cost.transactions)), [(1, 1), (1, 2), (1, 1), (1, 1)]);
    // One chain with its two rules, and the balancing chain emptied and filled with its four.
    assert_eq!(few[0].operations, 3 + 5);
    assert_eq!(costs(MANY), few);
}
