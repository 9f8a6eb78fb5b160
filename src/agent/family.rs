//! One family's rules as the loop sees them: what is to be done, when it may be, and what became of it.

use std::time::Duration;

use tokio::time::Instant;

use super::pace::{Pace, Work};
use super::repair::{Drift, Repairs};
use crate::model::Changes;
use crate::net::Family;
use crate::netlink::{self, Kernel};
use crate::serve::metrics::{AuditResult, RepairCause};
use crate::serve::{Health, Metrics};
use crate::sync::{FamilySync, Inputs, Summary};

/// After a failure the next try comes after this long, then twice as long, and so on.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(30);
/// After so many failures in a row (some three seconds) a family counts as broken, not as busy.
const GIVEN_UP: u32 = 5;

/// A family's sync, what waits for it, and when it may be tried again.
#[derive(Debug)]
pub struct Paced {
    sync: FamilySync,
    /// Not yet handed to the sync: a repair goes first, so that it is known what it took.
    changes: Changes,
    repairs: Repairs,
    failures: u32,
    not_before: Option<Instant>,
    last: Option<Summary>,
}

impl Paced {
    pub fn new(sync: FamilySync) -> Self {
        let (changes, repairs) = (Changes::default(), Repairs::default());
        Self { sync, changes, repairs, failures: 0, not_before: None, last: None }
    }

    pub fn family(&self) -> Family {
        self.sync.family()
    }

    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Has it failed for so long that nobody should wait for it?
    pub fn is_given_up(&self) -> bool {
        self.failures >= GIVEN_UP
    }

    /// What the last sync that succeeded did.
    pub fn last(&self) -> Option<Summary> {
        self.last
    }

    pub fn note(&mut self, changes: &Changes) {
        self.changes.merge(changes.clone());
    }

    /// Notes what others did. Before the first sync it is nothing: that one reads everything.
    pub fn drifted(&mut self, drift: Drift) {
        if self.last.is_some() {
            self.repairs.note(drift);
        }
    }

    /// Looks at all rules with the next sync, unless it is `certain` that they are as they were.
    pub fn audit(&mut self, certain: bool, now: Instant, metrics: &Metrics) {
        if certain && self.repairs.waiting().is_none() {
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
        let work = self.is_due().then(|| self.not_before.max(pace.earliest(Work::Change)).unwrap_or(now));
        let repair = self.repairs.waiting().map(|_| {
            let paced = self.not_before.max(pace.earliest(Work::Repair));
            paced.max(self.repairs.not_before()).unwrap_or(now)
        });
        [work, repair, self.repairs.contest_end()].into_iter().flatten().min()
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
        let may = |earliest: Option<Instant>| earliest.is_none_or(|at| at <= now);
        if !may(self.not_before) {
            return None;
        }
        let change = self.is_due() && may(pace.earliest(Work::Change));
        // What is made for a change is made on true ground, contest or not.
        let repair = change || may(pace.earliest(Work::Repair)) && may(self.repairs.not_before());
        let repaired = if repair { self.repair(kernel, inputs, (health, metrics)) } else { None };
        if !change || matches!(repaired, Some(Err(_))) {
            return repaired;
        }
        self.sync.note(&std::mem::take(&mut self.changes));
        let outcome = self.sync(kernel, inputs, (health, metrics));
        Some(outcome.map(|summary| summary.and(repaired.and_then(Result::ok).unwrap_or_default())))
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
            Ok(summary) => self.succeeded(*summary, started.elapsed(), health),
            Err(error) => self.failed(error, metrics),
        }
        outcome
    }

    fn succeeded(&mut self, summary: Summary, took: Duration, health: &Health) {
        let family = self.family();
        health.updated(family);
        let first = self.last.replace(summary).is_none();
        let failures = std::mem::take(&mut self.failures);
        self.not_before = None;
        let Summary { services, transactions, operations, bytes, .. } = summary;
        if first || failures > 0 {
            tracing::info!("{family} rules are in force: {services} services, {operations} operations sent in {took:.1?}");
        } else {
            tracing::debug!(%family, services, transactions, operations, bytes, ?took, "rules programmed");
        }
    }

    fn failed(&mut self, error: &netlink::Error, metrics: &Metrics) {
        let family = self.family();
        let wait = (FIRST_RETRY * 2_u32.saturating_pow(self.failures)).min(LAST_RETRY);
        self.failures = (self.failures + 1).min(16);
        self.not_before = Some(Instant::now() + wait);
        metrics.sync_retried(family);
        let failures = self.failures;
        tracing::error!(%family, %error, failures, "rules could not be programmed, what was there before stays; next try in {wait:?}");
    }
}
