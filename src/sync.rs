//! One family's rules: rendered, compared with what is programmed, and sent.
//!
//! A [`FamilySync`] remembers what it has programmed and which Services changed since. It is driven by
//! the agent and knows no clock: when to try again is the agent's decision. After a failure it reads
//! back what the kernel holds before it sends anything else, so a failure never leads to a wrong guess.

pub mod flows;
mod removal;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crate::config::RuleConfig;
use crate::model::{Changes, ObjectKey, State};
use crate::net::Family;
use crate::netlink::{self, Kernel, Seen};
use crate::render::{self, Context, KernelFacts, PortPart};
use crate::ruleset::{Adoption, Applied, Found, Handle, Layout, Op, Owner, Planner, Step, Table, Touched, Transaction};
use crate::serve::metrics::{self, Metrics, Scope, Sent, TrafficPolicy, TransactionResult};

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
    pub transactions: usize,
    pub operations: usize,
    pub bytes: usize,
}

/// The rules of one family in the kernel, and what is still to be done about them.
#[derive(Debug)]
pub struct FamilySync {
    family: Family,
    metrics: Arc<Metrics>,
    /// `None`: not known, to be read back.
    applied: Option<Applied>,
    pending: Changes,
    /// What stands in the kernel for each Service.
    services: HashMap<ObjectKey, Programmed>,
    without_local: Counts,
}

/// What was programmed for one Service.
#[derive(Debug, Default)]
struct Programmed {
    owners: Vec<Owner>,
    without_local: Counts,
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
        let pending = Changes { global: true, ..Changes::default() };
        Self { family, metrics, applied: None, pending, services: HashMap::new(), without_local: Counts::default() }
    }

    pub fn family(&self) -> Family {
        self.family
    }

    /// Notes changes for the next sync.
    pub fn note(&mut self, changes: &Changes) {
        self.pending.merge(changes.clone());
    }

    /// Notes that somebody else changed rules: the next sync looks, and mends what is ours.
    pub fn drifted(&mut self, touched: &Touched) {
        if !touched.is_empty() {
            self.applied = None;
        }
    }

    /// Is there anything to do?
    pub fn is_due(&self) -> bool {
        self.applied.is_none() || !self.pending.is_empty()
    }

    /// Brings the kernel to what `inputs` ask for. On failure everything noted stays to be done; what
    /// was committed before stays in the kernel.
    pub fn sync(&mut self, kernel: &mut dyn Kernel, inputs: Inputs<'_>) -> Result<Summary, netlink::Error> {
        let context = Context::new(inputs.config, inputs.facts, inputs.state, self.family);
        let layout = render::layout(inputs.config);
        let metrics = Arc::clone(&self.metrics);
        let full = self.pending.global || self.applied.is_none();
        let timer = metrics.sync_started(self.family, if full { Scope::Full } else { Scope::Partial });
        let mut sender = Sender::new(kernel, &metrics, self.family);
        let outcome = self.bring_about(&mut sender, &context, layout);
        let summary = sender.summary;
        match &outcome {
            Ok(()) => timer.succeeded(),
            Err(error) => {
                self.applied = None;
                error.errno().iter().for_each(|errno| metrics.netlink_failed(errno.0));
            }
        }
        outcome.map(|()| summary)
    }

    fn bring_about(
        &mut self,
        sender: &mut Sender<'_>,
        context: &Context<'_>,
        layout: &'static Layout,
    ) -> Result<(), netlink::Error> {
        let mut applied = if let Some(applied) = self.applied.take() {
            applied
        } else {
            self.pending.global = true;
            read_back(sender.kernel, context, layout)?
        };
        let mut planner = Planner::new(&applied, layout, self.family);
        let mut done = Vec::new();
        if self.pending.global || self.pending.addresses {
            let (owner, block) = render::mode(context);
            planner.want(owner, Some(block));
        }
        if self.pending.global {
            planner.want(Owner::Nobody, None);
        }
        for key in self.services_to_render(context.state) {
            self.plan_service(&mut planner, context, &key);
            while let Some(piece) = planner.take_piece() {
                done.push(sender.commit(piece)?);
            }
            sender.summary.services += 1;
        }
        for step in planner.finish() {
            done.push(sender.commit(step)?);
        }
        for (step, handles) in done {
            applied.record(step, &handles);
        }
        self.report(&applied, &sender.written);
        self.applied = Some(applied);
        self.pending = Changes::default();
        Ok(())
    }

    fn services_to_render(&self, state: &State) -> BTreeSet<ObjectKey> {
        if self.pending.global {
            state.services().map(|(key, _)| key).chain(self.services.keys()).cloned().collect()
        } else {
            self.pending.services.clone()
        }
    }

    fn plan_service(&mut self, planner: &mut Planner<'_>, context: &Context<'_>, key: &ObjectKey) {
        let parts = render::service(context, key);
        let before = self.services.remove(key).unwrap_or_default();
        let now = Programmed::of(&parts);
        for owner in before.owners.iter().filter(|owner| !now.owners.contains(owner)) {
            planner.want(owner.clone(), None);
        }
        self.without_local.internal += now.without_local.internal;
        self.without_local.external += now.without_local.external;
        self.without_local.internal -= before.without_local.internal;
        self.without_local.external -= before.without_local.external;
        if !now.owners.is_empty() {
            self.services.insert(key.clone(), now);
        }
        for part in parts {
            planner.want(part.owner, Some(part.block));
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
    fn of(parts: &[PortPart]) -> Self {
        let count = |pick: fn(&PortPart) -> bool| parts.iter().filter(|part| pick(part)).count() as u64;
        Self {
            owners: parts.iter().map(|part| part.owner.clone()).collect(),
            without_local: Counts {
                internal: count(|part| part.without_local.internal),
                external: count(|part| part.without_local.external),
            },
        }
    }
}

/// How often the rules are read in the hope that nobody changes any meanwhile.
const READINGS: usize = 2;

/// Reads what the kernel holds and hands it to those who want it.
fn read_back(kernel: &mut dyn Kernel, context: &Context<'_>, layout: &'static Layout) -> Result<Applied, netlink::Error> {
    let mut found = Found::new(layout);
    for _ in 0..READINGS {
        found = Found::new(layout);
        let outcome = kernel.read(context.family, &mut |seen| match seen {
            Seen::Table(table) => found.table(table),
            Seen::Chain { table, chain } => found.chain(table, chain),
            Seen::Rule { table, chain, handle, rule } => found.rule(table, chain, handle, rule.as_ref()),
        });
        match outcome {
            Ok(()) => break,
            // Some programs change rules of theirs all the time, and waiting for them to end may be waiting
            // for ever. Where one made or took away a chain or rule of ours meanwhile, the kernel refuses what
            // we make of an old reading; a chain of ours that it refilled is seen with the next reading only.
            Err(netlink::Error::Interrupted) => {}
            Err(error) => return Err(error),
        }
    }
    let nothing = found.is_nothing();
    let mut adoption: Adoption = found.adopt();
    let (owner, block) = render::mode(context);
    adoption.take(&owner, &block);
    // On a node that never had such rules there is nothing to hand out, and nothing to render for it.
    if !nothing {
        let parts = context.state.services().flat_map(|(key, _)| render::service(context, key));
        parts.for_each(|part| adoption.take(&part.owner, &part.block));
    }
    Ok(adoption.finish())
}

/// Sends steps and counts.
struct Sender<'a> {
    kernel: &'a mut dyn Kernel,
    metrics: &'a Metrics,
    family: Family,
    summary: Summary,
    /// Rules added, by table.
    written: BTreeMap<Table, u64>,
}

impl<'a> Sender<'a> {
    fn new(kernel: &'a mut dyn Kernel, metrics: &'a Metrics, family: Family) -> Self {
        Self { kernel, metrics, family, summary: Summary::default(), written: BTreeMap::new() }
    }

    fn commit(&mut self, mut step: Step) -> Result<(Step, Vec<Handle>), netlink::Error> {
        let transaction = step.take_transaction();
        if transaction.only_removes() {
            step.keep_empty(removal::commit(self, &transaction)?);
            return Ok((step, Vec::new()));
        }
        let handles = self.send(&transaction)?;
        Ok((step, handles))
    }

    /// Sends one transaction and counts it. Gives the handles of the rules it added.
    fn send(&mut self, transaction: &Transaction) -> Result<Vec<Handle>, netlink::Error> {
        for op in transaction.ops.iter().filter(|op| matches!(op, Op::AddRule { .. })) {
            *self.written.entry(op.table()).or_default() += 1;
        }
        self.summary.transactions += 1;
        self.summary.operations += transaction.len();
        let outcome = self.kernel.commit(transaction);
        let bytes = outcome.as_ref().map_or(0, |committed| committed.bytes);
        self.summary.bytes += bytes;
        let result = result_of(&outcome);
        self.metrics.transaction_sent(self.family, Sent { result, operations: transaction.len() as u64, bytes: bytes as u64 });
        Ok(outcome?.handles)
    }
}

fn result_of<T>(outcome: &Result<T, netlink::Error>) -> TransactionResult {
    match outcome {
        // The transaction is in the kernel, only its handles have to be read.
        Ok(_) | Err(netlink::Error::HandlesUnknown) => TransactionResult::Committed,
        Err(netlink::Error::Refused(_) | netlink::Error::RefusedWhole { .. }) => TransactionResult::Refused,
        Err(_) => TransactionResult::Failed,
    }
}
