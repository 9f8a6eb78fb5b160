//! One family's rules as the loop sees them: what is to be done, when it may be, and what became of it.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::latency::Latency;
use super::pace::{Pace, Work};
use super::repair::{Drift, Repairs};
use super::retry::Retry;
use super::upkeep::Upkeep;
use crate::model::{Changes, ObjectKey, Trigger};
use crate::net::Family;
use crate::netlink::address::DeviceChange;
use crate::netlink::{self, Kernel};
use crate::serve::metrics::{AuditResult, RepairCause};
use crate::serve::{Health, Metrics};
use crate::sync::{FamilySync, Inputs, Summary};

/// After so many failures in a row (some three seconds) a family counts as broken, not as busy.
const GIVEN_UP: u32 = 5;

/// A family's sync, what waits for it, and when it may be tried again.
#[derive(Debug)]
pub struct Paced {
    sync: FamilySync,
    /// Not yet handed to the sync: repairs are made apart, so that it is known what they took.
    changes: Changes,
    repairs: Repairs,
    retry: Retry,
    last: Option<Summary>,
    /// Of virtual servers, in ipvs mode.
    upkeep: Upkeep,
    latency: Latency,
}

impl Paced {
    pub fn new(sync: FamilySync, upkeep: Upkeep) -> Self {
        let (changes, repairs) = (Changes::default(), Repairs::default());
        Self { sync, changes, repairs, retry: Retry::default(), last: None, upkeep, latency: Latency::since(Timestamp::now()) }
    }

    pub fn family(&self) -> Family {
        self.sync.family()
    }

    pub fn failures(&self) -> u32 {
        self.retry.failures()
    }

    /// Has it failed for so long that nobody should wait for it?
    pub fn is_given_up(&self) -> bool {
        self.retry.failures() >= GIVEN_UP
    }

    /// What the last sync that succeeded did.
    pub fn last(&self) -> Option<Summary> {
        self.last
    }

    /// The Services that the kernel refuses, and what it said.
    pub fn left_out(&self) -> impl Iterator<Item = (&ObjectKey, &str)> {
        self.sync.left_out()
    }

    pub fn note(&mut self, changes: &Changes) {
        self.changes.merge(changes.clone());
    }

    /// Notes when what changed happened.
    pub fn happened(&mut self, triggers: &[Trigger]) {
        self.latency.note(self.family(), triggers);
    }

    /// Notes what others did. Before the first sync it is nothing: that one reads everything.
    pub fn drifted(&mut self, drift: Drift) {
        if self.last.is_some() {
            self.repairs.note(drift);
        }
    }

    /// Looks at all rules with the next sync, unless it is `certain` that they are as they were.
    pub fn audit(&mut self, certain: bool, now: Instant, metrics: &Metrics) {
        // What the kernel refused it may take now: a module was loaded, a limit raised.
        let nothing_to_try = self.sync.left_out().next().is_none();
        if certain && nothing_to_try && self.repairs.waiting().is_none() {
            metrics.audited(self.family(), AuditResult::Unchanged);
        } else {
            self.drifted(Drift::audit(RepairCause::Audit, now));
        }
    }

    /// Is there something that Services or the node want?
    pub fn is_due(&self) -> bool {
        self.sync.is_due() || !self.changes.is_empty()
    }

    /// When there is something to do next, as far as is known.
    pub fn next(&self, pace: &Pace, now: Instant) -> Option<Instant> {
        let work = self.is_due().then(|| self.retry.not_before().max(pace.earliest(Work::Change)).unwrap_or(now));
        let repair = self.repairs.waiting().map(|_| {
            let paced = self.retry.not_before().max(pace.earliest(Work::Repair));
            paced.max(self.repairs.not_before()).unwrap_or(now)
        });
        let upkeep = self.sync.servers().and_then(|_| self.upkeep.next());
        [work, repair, self.repairs.contest_end(), upkeep].into_iter().flatten().min()
    }

    /// Does all that may be done by now; `None` when that was nothing.
    pub fn run(
        &mut self,
        kernel: &mut dyn Kernel,
        inputs: Inputs<'_>,
        pace: &Pace,
        (health, metrics): (&Health, &Metrics),
    ) -> Option<Result<Summary, netlink::Error>> {
        let now = Instant::now();
        self.repairs.end_contest_if_quiet(self.family(), now, metrics);
        self.look_after_servers(inputs, now);
        let may = |earliest: Option<Instant>| earliest.is_none_or(|at| at <= now);
        if !may(self.retry.not_before()) {
            return None;
        }
        let change = self.is_due() && may(pace.earliest(Work::Change));
        // What is made for a change is made on true ground, contest or not.
        let repair = change || may(pace.earliest(Work::Repair)) && may(self.repairs.not_before());
        // Each on its own, so that it is known what a repair took. One that looks at everything sends waiting changes
        // too, so where nobody told of any damage they go first.
        let order = if self.repairs.is_told() || self.changes.is_empty() {
            [Work::Repair, Work::Change]
        } else {
            [Work::Change, Work::Repair]
        };
        let mut done: Option<Summary> = None;
        for work in order {
            let outcome = match work {
                Work::Repair if repair => self.repair(kernel, inputs, (health, metrics)),
                Work::Change if change => Some(self.change(kernel, inputs, (health, metrics))),
                _ => None,
            };
            match outcome {
                Some(Ok(summary)) => done = Some(done.unwrap_or_default().and(summary)),
                Some(Err(error)) => return Some(Err(error)),
                None => {}
            }
        }
        done.map(Ok)
    }

    fn look_after_servers(&mut self, inputs: Inputs<'_>, now: Instant) {
        let family = self.family();
        if let Some(servers) = self.sync.servers_mut().filter(|_| self.last.is_some()) {
            self.upkeep.run(family, servers, inputs.config, now);
        }
    }

    /// Notes what became of the device with the addresses of virtual servers. Before the first sync it is nothing.
    pub fn device_changed(&mut self, changes: &[DeviceChange]) {
        let family = self.family();
        if let Some(servers) = self.sync.servers_mut().filter(|_| self.last.is_some()) {
            self.upkeep.told(family, servers, changes);
        }
    }

    /// What the kernel would not do for virtual servers, sets and addresses.
    pub fn refusal(&self) -> Option<String> {
        self.sync.servers()?.refusals().next()
    }

    fn change(
        &mut self,
        kernel: &mut dyn Kernel,
        inputs: Inputs<'_>,
        reports: (&Health, &Metrics),
    ) -> Result<Summary, netlink::Error> {
        self.sync.note(&std::mem::take(&mut self.changes));
        self.sync(kernel, inputs, reports)
    }

    fn repair(
        &mut self,
        kernel: &mut dyn Kernel,
        inputs: Inputs<'_>,
        (health, metrics): (&Health, &Metrics),
    ) -> Option<Result<Summary, netlink::Error>> {
        self.sync.drifted(&self.repairs.waiting()?.touched);
        // Else a node whose rules cannot be repaired would be healthy.
        health.queued(self.family());
        let outcome = self.sync(kernel, inputs, (health, metrics));
        match &outcome {
            Ok(summary) => self.repairs.looked(self.sync.family(), summary.operations, metrics),
            Err(_) => self.repairs.failed(self.sync.family(), metrics),
        }
        Some(outcome)
    }

    fn sync(
        &mut self,
        kernel: &mut dyn Kernel,
        inputs: Inputs<'_>,
        (health, metrics): (&Health, &Metrics),
    ) -> Result<Summary, netlink::Error> {
        let started = Instant::now();
        let outcome = self.sync.sync(kernel, inputs);
        match &outcome {
            Ok(summary) => {
                self.succeeded(*summary, started.elapsed(), health);
                // A repair sends what a failed sync left to do as well; what still waits here it does not.
                if self.changes.is_empty() {
                    let refused: Vec<_> = self.sync.left_out().map(|(service, _)| service.clone()).collect();
                    self.latency.in_force(self.sync.family(), &refused, metrics);
                }
                if let Some(servers) = self.sync.servers() {
                    self.upkeep.synced(self.sync.family(), servers, summary.operations, metrics);
                }
            }
            Err(netlink::Error::Stopped) => {}
            Err(error) => self.failed(error, metrics),
        }
        outcome
    }

    fn succeeded(&mut self, summary: Summary, took: Duration, health: &Health) {
        let family = self.family();
        health.updated(family);
        let first = self.last.replace(summary).is_none();
        let failures = self.retry.succeeded();
        let Summary { services, transactions, operations, bytes, left_out, .. } = summary;
        if first || failures > 0 {
            let without = if left_out > 0 { format!(" without {left_out} that the kernel refuses") } else { String::new() };
            tracing::info!(
                "{family} rules are in force: {services} services{without}, {operations} operations sent in {took:.1?}"
            );
        } else {
            tracing::debug!(%family, services, transactions, operations, bytes, ?took, "rules programmed");
        }
    }

    fn failed(&mut self, error: &netlink::Error, metrics: &Metrics) {
        let family = self.family();
        let wait = self.retry.failed();
        metrics.sync_retried(family);
        let failures = self.retry.failures();
        tracing::error!(%family, %error, failures, "rules could not be programmed, what was there before stays; next try in {wait:?}");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::agent::testing::rule_config;
    use crate::config::{NodePortAddresses, RuleConfig};
    use crate::model::{Event, Node, State};
    use crate::netlink::fake::FakeKernel;
    use crate::render::KernelFacts;
    use crate::ruleset::{Op, Table, Transaction};
    use crate::serve::metrics::Format;

    /// A family without Services on the fake kernel.
    struct Bench {
        paced: Paced,
        kernel: FakeKernel,
        config: RuleConfig,
        state: State,
        pace: Pace,
        health: Health,
        metrics: Arc<Metrics>,
    }

    impl Bench {
        /// After the first sync.
        fn new() -> Self {
            let metrics = Arc::new(Metrics::new());
            let mut bench = Self {
                paced: Paced::new(FamilySync::new(Family::Ipv4, Arc::clone(&metrics)), Upkeep::default()),
                kernel: FakeKernel::new(),
                config: rule_config(),
                state: State::new("node-a"),
                pace: Pace::new(Duration::ZERO),
                health: Health::new(Duration::from_secs(30)),
                metrics,
            };
            bench.run().unwrap().unwrap();
            bench
        }

        fn run(&mut self) -> Option<Result<Summary, netlink::Error>> {
            let facts = KernelFacts { nfacct: false, tcp_be_liberal: false };
            let inputs = Inputs { config: &self.config, facts, state: &self.state };
            self.paced.run(&mut self.kernel, inputs, &self.pace, (&self.health, &self.metrics))
        }

        /// What somebody does behind our back.
        fn empty_chain(&mut self, chain: &str) {
            let ops = vec![Op::FlushChain { table: Table::Nat, chain: chain.into() }];
            self.kernel.commit(&Transaction { family: Family::Ipv4, ops }).unwrap();
        }

        fn count(&self, sample: &str) -> Option<String> {
            let text = self.metrics.encode(Format::Prometheus).unwrap();
            text.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' ').map(Into::into))
        }

        fn audits(&self, result: &str) -> Option<String> {
            self.count(&format!("sluice_audits_total{{ip_family=\"IPv4\",result=\"{result}\"}}"))
        }
    }
    #[test]
    fn an_audit_finds_what_nobody_told() {
        let mut bench = Bench::new();
        let right = bench.kernel.save(Family::Ipv4);
        bench.paced.audit(true, Instant::now(), &bench.metrics);
        assert!(bench.run().is_none(), "nobody else has committed: nothing is read");
        bench.paced.audit(false, Instant::now(), &bench.metrics);
        assert_eq!(bench.run().unwrap().unwrap().operations, 0);
        bench.empty_chain("KUBE-POSTROUTING");
        bench.paced.audit(false, Instant::now(), &bench.metrics);
        assert!(bench.run().unwrap().unwrap().operations > 0);
        assert_eq!(bench.kernel.save(Family::Ipv4), right);
        for result in ["unchanged", "clean", "repaired"] {
            assert_eq!(bench.audits(result).as_deref(), Some("1"), "{result}");
        }
        let repairs = r#"sluice_drift_repairs_total{cause="audit",ip_family="IPv4"}"#;
        assert_eq!(bench.count(repairs).as_deref(), Some("1"));
        assert!(bench.run().is_none());
    }

    #[test]
    fn what_happened_since_the_start_is_measured_when_it_is_in_force() {
        let mut bench = Bench::new();
        let hour = Duration::from_hours(1);
        let now = Timestamp::now();
        let told = |family, at| Trigger { service: ObjectKey::new("shop", "web"), family, at };
        let triggers = vec![
            told(Family::Ipv4, now - hour), // before the start
            told(Family::Ipv4, now),
            told(Family::Ipv4, now + hour), // a clock that is ahead
            told(Family::Ipv6, now),
        ];
        let node = Node { addresses: vec![[192, 0, 2, 7].into()], ..Node::default() };
        bench.config.node_port_addresses = NodePortAddresses::Primary;
        let changes = bench.state.apply(Event::Nodes(vec![(ObjectKey::new("", "node-a"), node)]));
        bench.paced.note(&changes);
        bench.paced.happened(&triggers);
        let count = |bench: &Bench, what: &str| {
            bench.count(&format!("kubeproxy_network_programming_duration_seconds_{what}{{ip_family=\"IPv4\"}}"))
        };
        bench.kernel.fail_next_commit(netlink::Error::HandlesUnknown);
        bench.run().unwrap().unwrap_err();
        assert_eq!(count(&bench, "count"), None, "not in force");
        bench.paced.retry = Retry::default();
        bench.run().unwrap().unwrap();
        assert_eq!(count(&bench, "count").as_deref(), Some("2"));
        let sum: f64 = count(&bench, "sum").unwrap().parse().unwrap();
        assert!((0.0..60.0).contains(&sum), "{sum}");
    }

    /// Changes wait for as long as the last sync took, a repair does not.
    #[test]
    fn what_a_repair_makes_up_for_is_measured_then() {
        let mut bench = Bench::new();
        let node = Node { addresses: vec![[192, 0, 2, 7].into()], ..Node::default() };
        bench.config.node_port_addresses = NodePortAddresses::Primary;
        let changes = bench.state.apply(Event::Nodes(vec![(ObjectKey::new("", "node-a"), node)]));
        bench.paced.note(&changes);
        let (service, at) = (ObjectKey::new("shop", "web"), Timestamp::now());
        bench.paced.happened(&[Trigger { service, family: Family::Ipv4, at }]);
        bench.kernel.fail_next_commit(netlink::Error::HandlesUnknown);
        bench.run().unwrap().unwrap_err();
        bench.paced.retry = Retry::default();
        let ended = Instant::now().checked_sub(Duration::from_millis(100)).unwrap();
        bench.pace.synced(ended.checked_sub(Duration::from_secs(5)).unwrap(), ended, true);
        bench.paced.audit(false, Instant::now(), &bench.metrics);
        assert!(bench.run().unwrap().unwrap().operations > 0);
        assert!(bench.run().is_none() && !bench.paced.is_due(), "all is in force");
        let count = "kubeproxy_network_programming_duration_seconds_count{ip_family=\"IPv4\"}";
        assert_eq!(bench.count(count).as_deref(), Some("1"));
    }

    #[test]
    fn an_audit_that_fails_is_tried_again() {
        let mut bench = Bench::new();
        bench.empty_chain("KUBE-POSTROUTING");
        bench.kernel.fail_next_commit(netlink::Error::HandlesUnknown);
        bench.paced.audit(false, Instant::now(), &bench.metrics);
        bench.run().unwrap().unwrap_err();
        let next = bench.paced.next(&bench.pace, Instant::now()).unwrap();
        assert!(bench.run().is_none() && next > Instant::now(), "not at once");
        bench.paced.retry = Retry::default();
        assert!(bench.run().unwrap().unwrap().operations > 0);
        assert_eq!((bench.audits("failed").as_deref(), bench.audits("repaired").as_deref()), (Some("1"), Some("1")));
    }

    #[test]
    fn a_change_that_waits_is_no_repair() {
        let mut bench = Bench::new();
        let node = Node { addresses: vec![[192, 0, 2, 7].into()], ..Node::default() };
        bench.config.node_port_addresses = NodePortAddresses::Primary;
        let changes = bench.state.apply(Event::Nodes(vec![(crate::model::ObjectKey::new("", "node-a"), node)]));
        bench.paced.note(&changes);
        bench.paced.audit(false, Instant::now(), &bench.metrics);
        assert!(bench.run().unwrap().unwrap().operations > 0);
        assert_eq!((bench.audits("clean").as_deref(), bench.audits("repaired")), (Some("1"), None));
    }

    #[test]
    fn a_pause_holds_changes_back_and_idle_ones_go_at_once() {
        let mut bench = Bench::new();
        assert_eq!(bench.paced.next(&bench.pace, Instant::now()), None, "nothing to do");
        let now = Instant::now();
        bench.pace.synced(now.checked_sub(Duration::from_secs(5)).unwrap(), now, true);
        bench.paced.note(&Changes { global: true, ..Changes::default() });
        assert_eq!(bench.paced.next(&bench.pace, now), Some(now + Duration::from_secs(1)));
        assert!(bench.run().is_none() && bench.paced.is_due());
        bench.pace = Pace::new(Duration::ZERO);
        assert_eq!(bench.paced.next(&bench.pace, now), Some(now));
        assert!(bench.run().is_some() && !bench.paced.is_due());
    }
}
