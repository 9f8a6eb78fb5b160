//! One family's repairs: what others changed and nobody has looked at yet, when to look, and what to say of it.

use std::fmt::Write as _;
use std::time::Duration;

use tokio::time::Instant;

use super::contest::Contest;
use crate::net::Family;
use crate::netlink::{Committer, ForeignChange};
use crate::ruleset::Touched;
use crate::serve::Metrics;
use crate::serve::metrics::{AuditResult, RepairCause};

/// So many chains are named in the log.
const NAMED: usize = 3;

/// What others may have changed.
#[derive(Clone, Debug)]
pub struct Drift {
    pub touched: Touched,
    cause: RepairCause,
    /// Are all rules looked at, to see whether they are right?
    audit: bool,
    /// Did the kernel tell that something was changed?
    told: bool,
    by: Vec<Committer>,
    /// When it became known.
    since: Instant,
}

impl Drift {
    /// What was told of a family, if anything.
    pub fn told(change: &ForeignChange, family: Family) -> Option<Self> {
        let touched = change.touched[family].clone();
        let cause = if change.lost { RepairCause::LostNotifications } else { RepairCause::Notification };
        let since = Instant::from_std(change.since);
        (!touched.is_empty()).then(|| Self { touched, cause, audit: change.lost, told: true, by: change.by.clone(), since })
    }

    /// Nothing is known, and so everything is looked at.
    pub fn audit(cause: RepairCause, now: Instant) -> Self {
        Self { touched: Touched::everything(), cause, audit: true, told: false, by: Vec::new(), since: now }
    }

    fn merge(&mut self, later: Self) {
        self.touched.merge(later.touched);
        self.cause = self.cause.max(later.cause);
        self.audit |= later.audit;
        self.told |= later.told;
        self.since = self.since.min(later.since);
        for committer in later.by.into_iter().rev() {
            // The latest: who goes on is more interesting than who began.
            self.by.retain(|known| known.port != committer.port);
            self.by.insert(0, committer);
        }
        self.by.truncate(NAMED);
    }
}

/// The repairs of one family.
#[derive(Debug, Default)]
pub struct Repairs {
    waiting: Option<Drift>,
    contest: Contest,
}

impl Repairs {
    pub fn note(&mut self, drift: Drift) {
        match &mut self.waiting {
            Some(waiting) => waiting.merge(drift),
            None => self.waiting = Some(drift),
        }
    }

    /// What is to be looked at.
    pub fn waiting(&self) -> Option<&Drift> {
        self.waiting.as_ref()
    }

    /// Is something known to have been changed, and not just feared?
    pub fn is_told(&self) -> bool {
        self.waiting.as_ref().is_some_and(|drift| drift.told)
    }

    /// In a contest: not before this.
    pub fn not_before(&self) -> Option<Instant> {
        self.contest.not_before()
    }

    /// When a contest is over, if nothing happens.
    pub fn contest_end(&self) -> Option<Instant> {
        self.contest.end()
    }

    pub fn end_contest_if_quiet(&mut self, family: Family, now: Instant, metrics: &Metrics) {
        if self.contest.end_if_quiet(now) {
            metrics.repairs_slowed(family, false);
            tracing::info!("nobody has changed {family} rules of this proxy for a while: repairs are made at once again");
        }
    }

    /// What was waiting has been looked at, and this many operations have put it right.
    pub fn looked(&mut self, family: Family, operations: usize, metrics: &Metrics) {
        let Some(drift) = self.waiting.take() else { return };
        if drift.audit {
            metrics.audited(family, if operations == 0 { AuditResult::Clean } else { AuditResult::Repaired });
        }
        if operations == 0 {
            tracing::debug!(%family, chains = %chains(&drift.touched), by = %authors(&drift.by), "nothing of ours was changed");
            return;
        }
        let now = Instant::now();
        let took = now.saturating_duration_since(drift.since);
        metrics.repaired(family, drift.cause, operations as u64, took);
        let slowed = self.contest.is_on();
        // Whom an audit finds out did it long ago, and once.
        let begins = drift.cause != RepairCause::Audit && self.contest.repaired(&drift.touched, now);
        if slowed {
            tracing::debug!("{}", repair(family, &drift, operations, took));
        } else {
            tracing::warn!("{}", repair(family, &drift, operations, took));
        }
        if begins {
            metrics.repairs_slowed(family, true);
            tracing::warn!(
                "{} changes {family} rules of this proxy again and again, last in {}: is another proxy running on this node? \
                 Repairs are made more slowly from now on, every 1 s to 30 s, until it has been quiet for a while",
                authors(&drift.by),
                chains(&drift.touched),
            );
        }
    }

    /// What was waiting could not be looked at or put right, and is tried again.
    pub fn failed(&mut self, family: Family, metrics: &Metrics) {
        if self.waiting.as_ref().is_some_and(|drift| drift.audit) {
            metrics.audited(family, AuditResult::Failed);
        }
    }
}

/// For the operator at 3 a.m.: what, who, and what was done about it.
fn repair(family: Family, drift: &Drift, operations: usize, took: Duration) -> String {
    let (chains, by) = (chains(&drift.touched), authors(&drift.by));
    let done = format!("put right with {operations} operation{}", if operations == 1 { "" } else { "s" });
    match drift.cause {
        RepairCause::Notification => {
            format!("{by} changed {family} rules of this proxy in {chains}: {done}, {took:.1?} after it was told")
        }
        RepairCause::LostNotifications => {
            format!("{by} changed more {family} rules than the kernel could tell of: all were read, and {done}, {took:.1?} later")
        }
        RepairCause::Audit => {
            format!("the audit found that somebody had changed {family} rules of this proxy: {done}, in {took:.1?}")
        }
    }
}

/// The first few chains, and how many more.
fn chains(touched: &Touched) -> String {
    if touched.is_everything() {
        return "whole tables".to_owned();
    }
    let mut text = String::new();
    for (n, (table, chain)) in touched.chains().take(NAMED).enumerate() {
        let comma = if n > 0 { ", " } else { "" };
        _ = write!(text, "{comma}{table} {}", chain.as_str());
    }
    let more = touched.chains().count().saturating_sub(NAMED);
    if more > 0 {
        _ = write!(text, " and {more} more");
    }
    text
}

fn authors(by: &[Committer]) -> String {
    match by {
        [] => "somebody".to_owned(),
        by => by.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ruleset::Table;

    fn drift(names: &[&str], by: &[u32]) -> Drift {
        let mut touched = Touched::default();
        for name in names {
            touched.add(Table::Nat, (*name).into());
        }
        let committer = |&port: &u32| Committer { port, process: Some((port, "iptables".into())) };
        let by = by.iter().map(committer).collect();
        Drift { touched, cause: RepairCause::Notification, audit: false, told: true, by, since: Instant::now() }
    }

    #[test]
    fn a_repair_says_what_and_who_and_how_long() {
        let mut drift = drift(&["KUBE-SVC-A", "KUBE-SVC-B", "KUBE-SVC-C", "KUBE-SVC-D"], &[7]);
        let took = Duration::from_micros(12_345);
        assert_eq!(
            repair(Family::Ipv4, &drift, 9, took),
            "iptables (pid 7, netlink port 7) changed IPv4 rules of this proxy in nat KUBE-SVC-A, nat KUBE-SVC-B, nat KUBE-SVC-C \
             and 1 more: put right with 9 operations, 12.3ms after it was told"
        );
        assert!(repair(Family::Ipv4, &drift, 1, took).contains(": put right with 1 operation, 12.3ms after it was told"));
        drift.merge(Drift::audit(RepairCause::LostNotifications, Instant::now()));
        assert_eq!(
            repair(Family::Ipv6, &drift, 9, took),
            "iptables (pid 7, netlink port 7) changed more IPv6 rules than the kernel could tell of: all were read, and put right \
             with 9 operations, 12.3ms later"
        );
    }

    #[test]
    fn what_comes_later_is_added_and_the_latest_are_named() {
        let mut repairs = Repairs::default();
        repairs.note(drift(&["KUBE-SVC-A"], &[1, 2]));
        repairs.note(drift(&["KUBE-SVC-B"], &[3, 4]));
        repairs.note(drift(&["KUBE-SVC-B"], &[3]));
        let waiting = repairs.waiting().unwrap();
        assert_eq!(chains(&waiting.touched), "nat KUBE-SVC-A, nat KUBE-SVC-B");
        assert_eq!(waiting.by.iter().map(|by| by.port).collect::<Vec<_>>(), [3, 4, 1]);
    }

    #[test]
    fn a_contest_is_told_by_its_metric_until_it_has_been_quiet() {
        let (mut repairs, metrics) = (Repairs::default(), Metrics::new());
        let slowed = || {
            let text = metrics.encode(crate::serve::metrics::Format::Prometheus).unwrap();
            text.lines().any(|line| line == r#"sluice_drift_repairs_slowed{ip_family="IPv4"} 1"#)
        };
        for turn in 0..20 {
            assert!(!slowed(), "{turn}");
            repairs.note(drift(&["KUBE-SERVICES"], &[7]));
            repairs.looked(Family::Ipv4, 1, &metrics);
        }
        assert!(slowed() && repairs.not_before().unwrap() > Instant::now());
        let end = repairs.contest_end().unwrap();
        repairs.end_contest_if_quiet(Family::Ipv4, end - Duration::from_secs(1), &metrics);
        assert!(slowed());
        repairs.end_contest_if_quiet(Family::Ipv4, end, &metrics);
        assert!(!slowed() && repairs.not_before().is_none());
    }
}
