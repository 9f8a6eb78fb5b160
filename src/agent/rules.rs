//! The loop at the heart: events into the state, the state into the kernel, and what became of it into
//! health, metrics and the log.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::sync::mpsc::Receiver;
use tokio::time::{Instant, sleep_until};

use super::addresses::DeviceNews;
use super::cleanup::remove_other_modes;
use super::drift;
use super::family::Paced;
use super::flows::FlowLoop;
use super::ground::Ground;
use super::health_ports::HealthPorts;
use super::incidents;
use super::pace::Pace;
use super::repair::Drift;
use super::upkeep::Upkeep;
use crate::config::{Config, DetectLocal, Source};
use crate::model::{Changes, Event, Node, State};
use crate::netlink::conntrack::Conntrack;
use crate::netlink::{self, NftKernel};
use crate::render;
use crate::serve::http::{Shutdown, fired};
use crate::serve::metrics::{EventKind, RepairCause};
use crate::serve::{Health, ListenOn, Metrics, ServiceHealth};
use crate::source::recorder::Recorder;
use crate::sync::{FamilySync, Inputs, Summary};

/// With `--once`, how often the kernel may refuse the rules before that is the result.
const ONCE_TRIES: u32 = 3;

/// How long the Node may be missing before the proxy goes on without it (behaviour.md §7.2).
const NODE_PATIENCE: Duration = Duration::from_secs(30);
/// How long its pod CIDRs may be, where they are needed.
const POD_CIDR_PATIENCE: Duration = Duration::from_mins(5);

/// Whom the loop tells what happened.
#[derive(Debug)]
pub struct Reports {
    pub health: Health,
    pub metrics: Arc<Metrics>,
    pub service_health: ServiceHealth,
    pub recorder: Recorder,
}

/// What the loop works on.
#[derive(Debug)]
pub struct Site {
    pub ground: Ground,
    pub kernel: NftKernel,
    /// What others change there.
    pub drift: Arc<drift::Changes>,
    /// What becomes of the device with the addresses of virtual servers.
    pub device: Arc<DeviceNews>,
    /// One for each family.
    pub syncs: Vec<FamilySync>,
}

/// The loop's state.
#[derive(Debug)]
pub struct RuleLoop {
    config: Arc<Config>,
    ground: Ground,
    kernel: NftKernel,
    drift: Arc<drift::Changes>,
    device: Arc<DeviceNews>,
    state: State,
    families: Vec<Paced>,
    flows: FlowLoop<Conntrack>,
    health_ports: HealthPorts,
    reports: Reports,
    started: Instant,
    /// Since when the first lists are complete.
    complete: Option<Instant>,
    /// Was everything there once that is needed to begin?
    begun: bool,
    /// Was it said that the Node is waited for?
    told_to_wait: bool,
    pace: Pace,
    next_audit: Option<Instant>,
    /// Was what another mode had removed?
    is_alone: bool,
}

impl RuleLoop {
    pub fn new(config: Arc<Config>, site: Site, reports: Reports) -> Self {
        let Site { ground, kernel, drift, device, syncs } = site;
        ground.families.iter().for_each(|family| reports.metrics.drift_watched(*family));
        let upkeep = || Upkeep::new(Some(config.sync_period).filter(|_| !config.once));
        let paced = |sync| Paced::new(sync, upkeep());
        Self {
            state: State::new(Arc::clone(&config.node_name)),
            families: syncs.into_iter().map(paced).collect(),
            flows: FlowLoop::new(Conntrack::default(), &ground.families, &config.rules, &reports.metrics),
            health_ports: HealthPorts::default(),
            started: Instant::now(),
            complete: None,
            begun: false,
            is_alone: false,
            told_to_wait: false,
            pace: Pace::new(config.min_sync_period),
            next_audit: config.audit_period.filter(|_| !config.once).map(|period| Instant::now() + period),
            config,
            ground,
            kernel,
            drift,
            device,
            reports,
        }
    }

    /// Runs until `stop` fires; with `--once`, until everything is programmed, which it then sums up in a line. Fails
    /// then when Services had to be left out, once all others are programmed.
    pub async fn run(mut self, mut events: Receiver<Event>, stop: Shutdown) -> anyhow::Result<Option<String>> {
        let mut stopped = std::pin::pin!(fired(stop));
        let (drift, device) = (Arc::clone(&self.drift), Arc::clone(&self.device));
        loop {
            let due = self.due()?;
            let flows_due = self.flows.due();
            // Not biased: events that never pause must not keep the sync from its turn.
            tokio::select! {
                () = &mut stopped => return Ok(None),
                event = events.recv() => match event {
                    Some(event) => self.take(std::iter::once(event)),
                    None => bail!("the sources of Services and addresses ended"),
                },
                () = drift.news() => self.take_drift(),
                () = device.news() => self.take_device_news(),
                () = sleep_until(flows_due.unwrap_or_else(Instant::now)), if flows_due.is_some() => {
                    self.flows.run(&self.config.rules, &self.state);
                }
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    // What came meanwhile shares this sync.
                    self.take(std::iter::from_fn(|| events.try_recv().ok()).take(super::EVENTS));
                    self.take_drift();
                    self.audit();
                    if self.begun && self.sync()? && self.config.once {
                        return self.outcome().map(Some);
                    }
                }
            }
        }
    }

    fn take(&mut self, events: impl Iterator<Item = Event>) {
        let mut changes = Changes::default();
        for event in events {
            self.count(&event);
            changes.merge(self.state.apply(event));
        }
        self.tell_node();
        if changes.is_empty() {
            return;
        }
        self.reports.metrics.model_sized(self.state.size());
        self.health_ports.update(&self.state, &changes);
        self.flows.note(&self.state, &changes);
        let triggers = std::mem::take(&mut changes.triggers);
        for family in &mut self.families {
            family.note(&changes);
            family.happened(&triggers);
            if self.begun {
                self.reports.health.queued(family.family());
                self.reports.metrics.sync_queued(family.family());
            }
        }
    }

    fn take_drift(&mut self) {
        let Some(change) = self.drift.take() else { return };
        for family in &mut self.families {
            if let Some(drift) = Drift::told(&change, family.family()) {
                family.drifted(drift);
            }
        }
    }

    fn take_device_news(&mut self) {
        let changes = self.device.take();
        self.families.iter_mut().for_each(|family| family.device_changed(&changes));
    }

    /// From time to time everything is looked at, unless nobody else has committed anything since it was read.
    fn audit(&mut self) {
        let now = Instant::now();
        if let (Some(next), Some(period)) = (&mut self.next_audit, self.config.audit_period)
            && now >= *next
        {
            *next = now + period;
            for family in &mut self.families {
                let certain = self.kernel.is_undisturbed(family.family()).unwrap_or_default();
                family.audit(certain, now, &self.reports.metrics);
            }
        }
    }

    fn count(&self, event: &Event) {
        let metrics = &self.reports.metrics;
        metrics.event_received(EventKind::of(event));
        match event {
            Event::Service(..) => self.count_services(1),
            Event::Services(all) => self.count_services(all.len()),
            Event::Slice(..) => metrics.endpoints_changed(),
            Event::Slices(all) => all.iter().for_each(|_| metrics.endpoints_changed()),
            Event::Node(..) | Event::Nodes(_) | Event::Addresses(_) => {}
        }
    }

    /// kube-proxy counts a change of a Service once for each family.
    fn count_services(&self, services: usize) {
        (0..services * self.families.len()).for_each(|_| self.reports.metrics.service_changed());
    }

    /// Without an API server there may be no Node object, and nobody who waits for one.
    fn tell_node(&self) {
        let default = Node::default();
        let stand_in = matches!(self.config.source, Source::Manifests(_)).then_some(&default);
        self.reports.health.set_node(self.state.node().or(stand_in));
    }

    /// When there is something to do next; `None`: when the next event comes.
    fn due(&mut self) -> anyhow::Result<Option<Instant>> {
        if !self.begun {
            let Some(wait) = self.missing()? else { return Ok(None) };
            let left = wait.saturating_duration_since(Instant::now());
            if !left.is_zero() {
                if self.state.received().nodes {
                    self.tell_to_wait(left);
                }
                return Ok(Some(wait));
            }
            self.begin();
        }
        let now = Instant::now();
        let families = self.families.iter().filter_map(|family| family.next(&self.pace, now));
        Ok(families.chain(self.next_audit).min())
    }

    /// Once: nothing is programmed yet, and the log should say why.
    fn tell_to_wait(&mut self, left: Duration) {
        if !std::mem::replace(&mut self.told_to_wait, true) {
            let name = &self.config.node_name;
            let lacks = if self.state.node().is_none() { "there is no such object" } else { "it has no pod CIDRs" };
            tracing::warn!("wait for Node {name}: {lacks}; nothing is programmed before it comes, or {left:.0?} have passed");
        }
    }

    fn begin(&mut self) {
        self.begun = true;
        if self.state.node().is_none() && matches!(self.config.source, Source::Api { .. }) {
            let name = &self.config.node_name;
            tracing::warn!("wait for Node {name}: it did not come, going on without its zone and addresses");
        }
        for doubt in render::doubts(&self.config.rules, &self.state, &self.ground.families) {
            tracing::warn!("{doubt}");
        }
        // Else a node whose very first rules are refused would be healthy for ever.
        for family in &self.families {
            self.reports.health.queued(family.family());
            self.reports.metrics.sync_queued(family.family());
        }
        let services = self.state.services().count();
        tracing::info!(services, node = %self.config.node_name, "the first complete lists are in, programming rules");
        self.reports.recorder.record(incidents::starting(&self.config.node_name));
    }

    /// Is everything there that the first sync needs? `None`: no, and only an event can change that;
    /// otherwise the moment from which on the proxy does without what is missing.
    fn missing(&mut self) -> anyhow::Result<Option<Instant>> {
        let received = self.state.received();
        if !(received.services && received.slices && received.addresses) {
            return Ok(None);
        }
        let now = Instant::now();
        // Not from the process's start: the API server may have been away for longer than any patience.
        let complete = *self.complete.get_or_insert(now);
        let name = &self.config.node_name;
        let waits = matches!(self.config.source, Source::Api { .. });
        let needs_cidrs = self.config.rules.detect_local == DetectLocal::NodeCidr;
        if !received.nodes {
            // Perhaps Nodes may not be read, which the source tells of: the others' rules need not wait for that.
            return Ok((waits && !needs_cidrs).then(|| complete + NODE_PATIENCE));
        }
        let node = self.state.node();
        if needs_cidrs && node.is_none_or(|n| n.pod_cidrs.is_empty()) {
            let end = complete + POD_CIDR_PATIENCE;
            if !waits || now >= end {
                bail!("wait for the pod CIDRs of node {name}: it has none, and --detect-local-mode=NodeCIDR needs them");
            }
            return Ok(Some(end));
        }
        Ok(Some(if node.is_none() && waits { complete + NODE_PATIENCE } else { now }))
    }

    /// Syncs every family that may be; true when nothing is left to do.
    fn sync(&mut self) -> anyhow::Result<bool> {
        let started = Instant::now();
        let (mut ran, mut sent, mut failed) = (false, false, None);
        for family in &mut self.families {
            let inputs = Inputs { config: &self.config.rules, facts: self.ground.facts, state: &self.state };
            let reports = (&self.reports.health, &*self.reports.metrics);
            let outcome = tokio::task::block_in_place(|| family.run(&mut self.kernel, inputs, &self.pace, reports));
            ran |= outcome.is_some();
            match outcome {
                Some(Ok(summary)) => {
                    sent |= summary.transactions > 0;
                    if !family.is_due() {
                        self.flows.rules_in_force(family.family());
                    }
                }
                Some(Err(netlink::Error::Stopped)) => return Ok(false), // whoever stopped it tells the loop
                Some(Err(error)) => failed = Some((family.family(), family.failures(), error)),
                None => {}
            }
        }
        if ran {
            self.pace.synced(started, Instant::now(), sent || failed.is_some());
        }
        if self.kernel.take_unheard() {
            self.look_again();
        }
        self.flows.run(&self.config.rules, &self.state);
        self.tell_health_ports();
        match failed {
            Some((family, failures, error)) if self.config.once && is_final(&error, failures) => {
                Err(error).with_context(|| format!("program {family} rules"))
            }
            Some(_) => Ok(false),
            None => Ok(self.all_done() && self.alone()),
        }
    }

    /// Others may have changed something while the monitor was spared our own transactions.
    fn look_again(&mut self) {
        self.reports.metrics.notifications_lost();
        tracing::debug!("others committed during a big transaction of ours, all rules are read");
        let drift = Drift::audit(RepairCause::LostNotifications, Instant::now());
        self.families.iter_mut().for_each(|family| family.drifted(drift.clone()));
    }

    /// What became of a run with `--once`: a line that sums it up, or what the kernel would not have.
    fn outcome(&self) -> anyhow::Result<String> {
        for family in &self.families {
            if let Some(refusal) = family.refusal() {
                bail!("program {}: {refusal}", family.family());
            }
            let mut left_out = family.left_out();
            if let Some((service, why)) = left_out.next() {
                let others = match left_out.count() {
                    0 => String::new(),
                    more => format!(" (and {more} more)"),
                };
                bail!("program {} rules: of Service {service}{others}: {why}", family.family());
            }
        }
        Ok(self.summary())
    }

    fn summary(&self) -> String {
        let of_family = |paced: &Paced| {
            let Summary { services, transactions, operations, .. } = paced.last().unwrap_or_default();
            format!("{}: {services} services, {operations} operations in {transactions} transactions", paced.family())
        };
        let families: Vec<_> = self.families.iter().map(of_family).collect();
        format!("programmed in {:.1?}: {}", self.started.elapsed(), families.join("; "))
    }

    /// Is everything programmed that is wanted?
    fn all_done(&self) -> bool {
        let done = self.families.iter().all(|family| !family.is_due());
        if done {
            self.reports.metrics.changes_taken();
        }
        done
    }

    /// Everything is in force: what another mode had is removed, once.
    fn alone(&mut self) -> bool {
        if !std::mem::replace(&mut self.is_alone, true) {
            tokio::task::block_in_place(|| remove_other_modes(&mut self.kernel, &self.config.rules));
        }
        true
    }

    /// Who asks about endpoints gets the new answer once it is in the rules. A family that cannot be
    /// programmed at all must not take the other's load balancers away: it is not waited for.
    fn tell_health_ports(&mut self) {
        let waited_for = |family: &&Paced| !family.is_given_up();
        let mut families = self.families.iter().filter(waited_for).peekable();
        if families.peek().is_none() || families.any(Paced::is_due) {
            return;
        }
        let addresses = render::node_port_addresses(&self.config.rules, &self.state, &self.ground.families);
        self.reports.service_health.listen_on(addresses.map_or(ListenOn::All, ListenOn::These));
        if let Some(ports) = self.health_ports.take_changed() {
            self.reports.service_health.sync(ports);
        }
    }
}

/// Is there no use in trying again? What the kernel refuses may be refused because somebody else changed rules
/// after they were read: the next try reads them again.
fn is_final(error: &netlink::Error, failures: u32) -> bool {
    match error {
        netlink::Error::Refused(_) => failures >= ONCE_TRIES,
        other => !other.is_retryable(),
    }
}
