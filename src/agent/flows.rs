//! When stale UDP flows are looked for: after the rules of a family came into force, and after a failure again,
//! in a pace of its own that keeps no rules waiting.

use std::sync::Arc;

use tokio::time::Instant;

use super::retry::Retry;
use crate::config::RuleConfig;
use crate::model::{Changes, State};
use crate::net::Family;
use crate::netlink::Error;
use crate::netlink::conntrack::Flows;
use crate::serve::Metrics;
use crate::sync::flows::FlowSync;

/// The flows of all families.
#[derive(Debug)]
pub struct FlowLoop<K> {
    kernel: K,
    families: Vec<Paced>,
}

#[derive(Debug)]
struct Paced {
    sync: FlowSync,
    /// The rules of everything noted are in force.
    ready: bool,
    retry: Retry,
}

impl<K: Flows> FlowLoop<K> {
    pub fn new(kernel: K, families: &[Family], config: &RuleConfig, metrics: &Arc<Metrics>) -> Self {
        let paced =
            |&family| Paced { sync: FlowSync::new(family, config, Arc::clone(metrics)), ready: false, retry: Retry::default() };
        Self { kernel, families: families.iter().map(paced).collect() }
    }

    /// Notes changes, whose rules are yet to come.
    pub fn note(&mut self, state: &State, changes: &Changes) {
        for family in &mut self.families {
            family.sync.note(state, changes);
            family.ready = false;
        }
    }

    /// The rules of everything noted are in force.
    pub fn rules_in_force(&mut self, family: Family) {
        for paced in self.families.iter_mut().filter(|paced| paced.sync.family() == family) {
            paced.ready = true;
        }
    }

    /// When there is something to look for next; `None`: after the next rules.
    pub fn due(&self) -> Option<Instant> {
        self.families.iter().filter_map(Paced::due).min()
    }

    /// Looks for what is due.
    pub fn run(&mut self, config: &RuleConfig, state: &State) {
        let mut unsupported = false;
        for family in self.families.iter_mut().filter(|family| family.due().is_some_and(|due| due <= Instant::now())) {
            let outcome = tokio::task::block_in_place(|| family.sync.reconcile(&mut self.kernel, config, state));
            match outcome {
                Ok(deleted) => family.succeeded(deleted),
                Err(error @ Error::Unsupported { .. }) => {
                    tracing::warn!(%error, "stale UDP flows stay until they expire; is the module nf_conntrack_netlink missing?");
                    unsupported = true;
                    break;
                }
                Err(error) => family.failed(&error),
            }
        }
        if unsupported {
            self.families.clear();
        }
    }
}

impl Paced {
    fn due(&self) -> Option<Instant> {
        (self.ready && self.sync.is_due()).then(|| self.retry.not_before().unwrap_or_else(Instant::now))
    }

    fn succeeded(&mut self, deleted: usize) {
        self.retry.succeeded();
        if deleted > 0 {
            tracing::debug!(family = %self.sync.family(), deleted, "stale UDP flows deleted");
        }
    }

    fn failed(&mut self, error: &Error) {
        let family = self.sync.family();
        let wait = self.retry.failed();
        tracing::warn!(%family, %error, "stale UDP flows could not be deleted; next try in {wait:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::retry;
    use crate::agent::testing::rule_config;
    use crate::model::service::{Addresses, PortSpec};
    use crate::model::{Event, ObjectKey, Service};
    use crate::net::{PerFamily, Protocol};
    use crate::netlink::Errno;
    use crate::netlink::fake::flows::FakeFlows;

    struct Bench {
        flows: FlowLoop<FakeFlows>,
        state: State,
    }

    impl Bench {
        fn new() -> Self {
            let metrics = Arc::new(Metrics::new());
            let flows = FlowLoop::new(FakeFlows::new(), &[Family::Ipv4], &rule_config(), &metrics);
            Self { flows, state: State::new("node-a") }
        }

        /// A UDP Service comes, or changes its port.
        fn note_service(&mut self, port: u16) {
            let address = Some([10, 96, 0, 1].into());
            let addresses = address.map(|cluster_ip| Addresses {
                cluster_ip,
                external_ips: vec![],
                load_balancer_vips: vec![],
                source_ranges: vec![],
            });
            let service = Service {
                families: PerFamily { v4: addresses, v6: None },
                ports: vec![PortSpec { name: "dns".into(), protocol: Protocol::Udp, port, node_port: 0 }],
                affinity_seconds: None,
                external_policy_local: false,
                internal_policy_local: false,
                health_check_node_port: 0,
            };
            let changes = self.state.apply(Event::Service(ObjectKey::new("shop", "dns"), Some(service)));
            self.flows.note(&self.state, &changes);
        }

        /// Runs, and tells how often flows were listed.
        fn run(&mut self) -> usize {
            self.flows.run(&rule_config(), &self.state);
            self.flows.kernel.take_listings()
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn flows_wait_for_their_rules() {
        let mut bench = Bench::new();
        bench.note_service(53);
        assert_eq!((bench.flows.due(), bench.run()), (None, 0));
        bench.flows.rules_in_force(Family::Ipv6);
        assert_eq!(bench.run(), 0, "another family's");
        bench.flows.rules_in_force(Family::Ipv4);
        assert!(bench.flows.due().is_some());
        assert_eq!(bench.run(), 1);
        assert_eq!((bench.flows.due(), bench.run()), (None, 0));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_failure_is_made_up_for_in_its_own_pace() {
        let mut bench = Bench::new();
        let failure = || Error::RefusedWhole { errno: Errno::ENOBUFS, said: None };
        bench.note_service(53);
        bench.flows.rules_in_force(Family::Ipv4);
        bench.flows.kernel.fail_next_listing(failure());
        let failed = Instant::now();
        assert_eq!(bench.run(), 1);
        // More changes come and their rules too: no reason to hurry.
        bench.note_service(54);
        assert_eq!(bench.flows.due(), None, "rules are on their way");
        bench.flows.rules_in_force(Family::Ipv4);
        assert_eq!(bench.run(), 0);
        let due = bench.flows.due().expect("another try");
        assert!(due >= failed + retry::FIRST);
        tokio::time::sleep_until(due).await;
        assert_eq!(bench.run(), 1);
        assert_eq!(bench.flows.due(), None);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_kernel_that_cannot_is_asked_once() {
        let mut bench = Bench::new();
        bench.note_service(53);
        bench.flows.rules_in_force(Family::Ipv4);
        bench.flows.kernel.fail_next_listing(Error::Unsupported { what: "ctnetlink", errno: Errno::EINVAL });
        assert_eq!(bench.run(), 1);
        bench.note_service(54);
        bench.flows.rules_in_force(Family::Ipv4);
        assert_eq!((bench.flows.due(), bench.run()), (None, 0));
    }
}
