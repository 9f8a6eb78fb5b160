//! One family's rules: rendered, compared with what is programmed, and sent.
//!
//! A [`FamilySync`] remembers what it has programmed and which Services changed since. In ipvs mode it has virtual servers,
//! sets and addresses beside the rules ([`servers`]). It is driven by the agent: when to try again is the agent's decision. After a failure it reads
//! back what the kernel holds before it sends anything else, so a failure never leads to a wrong guess.

pub mod cleanup;
pub mod flows;
mod knowledge;
mod plan;
mod removal;
mod run;
mod sender;
pub mod servers;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Instant;

use crate::config::RuleConfig;
use crate::model::{Changes, ObjectKey, State};
use crate::net::Family;
use crate::netlink::{self, Balancer, Kernel};
use crate::render::ipvs::Filled;
use crate::render::{self, Context, KernelFacts, PortPart};
use crate::ruleset::{Applied, Layout, Owner, Table, Touched};
use crate::serve::metrics::{self, Metrics, Scope, TrafficPolicy};
use run::{Run, Work, keys_of};
use sender::Sender;
use servers::ServerSync;

/// What a sync works from.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    pub config: &'a RuleConfig,
    pub facts: KernelFacts,
    pub state: &'a State,
}

/// What a sync did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Services looked at.
    pub services: usize,
    /// Transactions of rules, and sends of what else there is.
    pub transactions: usize,
    pub operations: usize,
    pub bytes: usize,
    /// Owners (service ports, the mode, leftovers) whose rules somebody else had changed.
    pub damaged: usize,
    /// Services that the kernel refuses, and that are left out until they change.
    pub left_out: usize,
}

impl Summary {
    /// Both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            services: self.services.max(other.services),
            transactions: self.transactions + other.transactions,
            operations: self.operations + other.operations,
            bytes: self.bytes + other.bytes,
            damaged: self.damaged + other.damaged,
            left_out: self.left_out.max(other.left_out),
        }
    }
}

/// The rules of one family in the kernel, and what is still to be done about them.
#[derive(Debug)]
pub struct FamilySync {
    family: Family,
    metrics: Arc<Metrics>,
    /// `None`: not known, to be read back.
    applied: Option<Applied>,
    /// Where somebody else may have changed something.
    touched: Touched,
    pending: Changes,
    /// What stands in the kernel for each Service.
    services: HashMap<ObjectKey, Programmed>,
    without_local: Counts,
    left_out: BTreeMap<ObjectKey, LeftOut>,
    /// In ipvs mode: what there is beside rules.
    servers: Option<ServerSync>,
    /// The sets that the mode's rules were made for, and those that they had to do without.
    filled: (Filled, Filled),
}

/// What was programmed for one Service.
#[derive(Debug, Default)]
struct Programmed {
    owners: Vec<Owner>,
    without_local: Counts,
}

/// A Service whose rules the kernel refuses.
#[derive(Debug)]
struct LeftOut {
    why: String,
}

/// What a sync starts from.
#[derive(Debug)]
struct Known {
    applied: Applied,
    /// It was read from the kernel just now: what it lacks of a Service's rules may be others of the same Service.
    adopted: bool,
    /// Everything is looked at, and so everything that could not be done before is tried again.
    thorough: bool,
    /// Owners that somebody else took something from, or gave something to.
    damaged: BTreeSet<Owner>,
}

/// Ports whose Local policy finds no endpoint here, by policy.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    internal: u64,
    external: u64,
}

impl FamilySync {
    /// Nothing is known of the kernel yet: the first sync reads it.
    pub fn new(family: Family, metrics: Arc<Metrics>) -> Self {
        Self {
            family,
            metrics,
            applied: None,
            touched: Touched::default(),
            pending: Changes { global: true, ..Changes::default() },
            services: HashMap::new(),
            without_local: Counts::default(),
            left_out: BTreeMap::new(),
            servers: None,
            filled: Default::default(),
        }
    }

    /// The same in ipvs mode: `balancer` is where virtual servers, sets and addresses are.
    #[must_use]
    pub fn with_servers(mut self, balancer: Box<dyn Balancer>) -> Self {
        self.servers = Some(ServerSync::new(self.family, balancer, Arc::clone(&self.metrics)));
        self
    }

    /// Virtual servers, sets and addresses, in ipvs mode.
    pub fn servers(&self) -> Option<&ServerSync> {
        self.servers.as_ref()
    }

    pub fn servers_mut(&mut self) -> Option<&mut ServerSync> {
        self.servers.as_mut()
    }

    pub fn family(&self) -> Family {
        self.family
    }

    /// Notes changes for the next sync.
    pub fn note(&mut self, changes: &Changes) {
        self.pending.merge(changes.clone());
    }

    /// Notes that somebody else may have changed rules there: the next sync looks, and mends what is ours.
    pub fn drifted(&mut self, touched: &Touched) {
        self.touched.merge(touched.clone());
    }

    /// Is there anything to do?
    pub fn is_due(&self) -> bool {
        let servers = self.servers.as_ref().is_some_and(ServerSync::is_due);
        servers || self.applied.is_none() || !self.touched.is_empty() || !self.pending.is_empty()
    }

    /// The Services that the kernel refuses, and what it said.
    pub fn left_out(&self) -> impl Iterator<Item = (&ObjectKey, &str)> {
        self.left_out.iter().map(|(key, left_out)| (key, left_out.why.as_str()))
    }

    /// Brings the kernel to what `inputs` ask for. On failure everything noted stays to be done; what
    /// was committed before stays in the kernel.
    pub fn sync(&mut self, kernel: &mut dyn Kernel, inputs: Inputs<'_>) -> Result<Summary, netlink::Error> {
        let context = Context::new(inputs.config, inputs.facts, inputs.state, self.family);
        let metrics = Arc::clone(&self.metrics);
        let full = self.pending.global || self.applied.is_none();
        let timer = metrics.sync_started(self.family, if full { Scope::Full } else { Scope::Partial });
        let outcome = match self.servers.take() {
            None => self.sync_rules(kernel, &context, inputs.config),
            Some(mut servers) => {
                let outcome = self.sync_all(kernel, context, inputs.config, &mut servers);
                self.servers = Some(servers);
                outcome
            }
        };
        if outcome.is_ok() {
            timer.succeeded();
        }
        outcome
    }

    fn sync_rules(
        &mut self,
        kernel: &mut dyn Kernel,
        context: &Context<'_>,
        config: &RuleConfig,
    ) -> Result<Summary, netlink::Error> {
        let metrics = Arc::clone(&self.metrics);
        let outcome = self.bring_about(Sender::new(kernel, &metrics, self.family), context, render::layout(config));
        if outcome.is_err() {
            self.applied = None;
        }
        outcome
    }

    /// Servers and sets, then the rules that name the sets, then the addresses that let packets in; what is to go, the
    /// other way round. Rules that the kernel refuses keep nothing else from being done.
    fn sync_all(
        &mut self,
        kernel: &mut dyn Kernel,
        mut context: Context<'_>,
        config: &RuleConfig,
        servers: &mut ServerSync,
    ) -> Result<Summary, netlink::Error> {
        let moved = servers.note(&context, config, &self.pending);
        self.pending.services.extend(moved);
        servers.make(config)?;
        // A set that is about to become empty keeps its rules until it is.
        self.fill(&mut context, servers.filled().and(self.filled.0), servers.unusable());
        let rules = self.sync_rules(kernel, &context, config);
        if matches!(rules, Err(netlink::Error::Stopped)) {
            return rules;
        }
        let finished = servers.finish(config, Instant::now());
        // A rule may have been refused because somebody took its set away.
        let mut summary = rules.inspect_err(|_| servers.look_again())?;
        finished?;
        if self.filled.0 != servers.filled() {
            self.fill(&mut context, servers.filled(), servers.unusable());
            summary = summary.and(self.sync_rules(kernel, &context, config)?);
        }
        let done = servers.take_done();
        summary.operations += done.operations;
        summary.transactions += done.sends;
        summary.bytes += done.bytes;
        Ok(summary)
    }

    /// Has the mode's rules made anew where other sets are filled than they were made for.
    fn fill(&mut self, context: &mut Context<'_>, filled: Filled, unusable: Filled) {
        context.fill(filled, unusable);
        if self.filled != (filled, unusable) {
            self.filled = (filled, unusable);
            self.pending.addresses = true;
        }
    }

    fn bring_about(
        &mut self,
        mut sender: Sender<'_>,
        context: &Context<'_>,
        layout: &'static Layout,
    ) -> Result<Summary, netlink::Error> {
        let known = self.know(&mut sender, context, layout)?;
        sender.summary.damaged = known.damaged.len();
        let work = self.work(context, &known);
        let mut run = Run::new(sender, context, layout, known, &self.services);
        let outcome = run.program(work);
        let Run { mut sender, applied, planned, left_out, .. } = run;
        sender.summary.services = planned.len();
        self.leave_out(left_out);
        outcome?;
        self.take_over(planned);
        sender.summary.left_out = self.left_out.len();
        self.report(&applied, &sender.written);
        self.applied = Some(applied);
        self.pending = Changes::default();
        Ok(sender.summary)
    }

    fn know(&mut self, sender: &mut Sender<'_>, context: &Context<'_>, layout: &'static Layout) -> Result<Known, netlink::Error> {
        let touched = std::mem::take(&mut self.touched);
        let Some(mut applied) = self.applied.take() else {
            self.pending.global = true;
            self.services.clear();
            self.without_local = Counts::default();
            let applied = sender.read_back(context, layout)?;
            return Ok(Known { applied, adopted: true, thorough: true, damaged: BTreeSet::new() });
        };
        let damaged = if touched.is_empty() { BTreeSet::new() } else { sender.look_again(layout, &touched, &mut applied)? };
        let thorough = touched.is_everything() || self.pending.global;
        Ok(Known { applied, adopted: false, thorough, damaged })
    }

    fn work(&mut self, context: &Context<'_>, known: &Known) -> Work {
        let Known { adopted, thorough, damaged, .. } = known;
        let global = self.pending.global;
        if *thorough && !adopted {
            self.pending.services.extend(self.left_out.keys().cloned());
        }
        let mut work = Work {
            mode: global || self.pending.addresses || damaged.contains(&Owner::Mode),
            gone: BTreeSet::new(),
            leftovers: *thorough || damaged.contains(&Owner::Nobody),
            services: self.pending.services.clone(),
        };
        self.left_out.retain(|key, _| !work.services.contains(key));
        if global {
            let all = context.state.services().map(|(key, _)| key).chain(self.services.keys());
            work.services = all.filter(|key| !self.left_out.contains_key(key)).cloned().collect();
        } else {
            let damaged = keys_of(&damaged.iter().collect(), self.services.iter());
            work.services.extend(damaged.into_iter().filter(|key| !self.left_out.contains_key(key)));
        }
        if *adopted {
            // Of theirs only that was recognised which is as the kernel will not have it.
            let parts = self.left_out.keys().flat_map(|key| render::service(context, key));
            work.gone.extend(parts.map(|part| part.owner));
        }
        work
    }

    fn leave_out(&mut self, services: BTreeMap<ObjectKey, LeftOut>) {
        for (key, LeftOut { why }) in &services {
            tracing::error!(
                "{} rules of Service {key}: {why}: it is left out until it changes, with what it had before; others go on",
                self.family
            );
        }
        self.left_out.extend(services);
        self.metrics.services_left_out(self.family, self.left_out.len() as u64);
    }

    /// Writes down what is in the kernel now.
    fn take_over(&mut self, planned: HashMap<ObjectKey, Programmed>) {
        for (key, now) in planned {
            let before = self.services.remove(&key).unwrap_or_default();
            self.without_local.internal += now.without_local.internal;
            self.without_local.external += now.without_local.external;
            self.without_local.internal -= before.without_local.internal;
            self.without_local.external -= before.without_local.external;
            if !now.is_nothing() {
                self.services.insert(key, now);
            }
        }
    }

    fn report(&self, applied: &Applied, written: &BTreeMap<Table, u64>) {
        for (table, label) in [(Table::Filter, metrics::Table::Filter), (Table::Nat, metrics::Table::Nat)] {
            let written = written.get(&table).copied().unwrap_or_default();
            self.metrics.rules_counted(self.family, label, applied.rule_count(table) as u64, written);
        }
        let counts = self.without_local;
        self.metrics.without_local_endpoints(self.family, TrafficPolicy::Internal, counts.internal);
        self.metrics.without_local_endpoints(self.family, TrafficPolicy::External, counts.external);
    }
}

impl Programmed {
    fn is_nothing(&self) -> bool {
        self.owners.is_empty() && self.without_local.internal + self.without_local.external == 0
    }

    fn of(parts: &[PortPart]) -> Self {
        let count = |pick: fn(&PortPart) -> bool| parts.iter().filter(|part| pick(part)).count() as u64;
        Self {
            owners: parts.iter().filter(|part| !part.block.is_empty()).map(|part| part.owner.clone()).collect(),
            without_local: Counts {
                internal: count(|part| part.without_local.internal),
                external: count(|part| part.without_local.external),
            },
        }
    }
}
