//! What others change in the kernel's rules, gathered by a thread for the rule loop.
//!
//! The thread takes notifications as they come, whatever the loop is busy with, and adds them up; the loop takes the
//! sum. So nothing is lost while the loop is in the kernel, and what is kept is bounded.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::Notify;

use crate::net::Family;
use crate::netlink::{Ears, Error, ForeignChange, NftKernel, RuleMonitor};
use crate::ruleset::{Kind, Layout, Table};
use crate::serve::Metrics;

/// How often the thread looks whether anybody still wants to know.
const LOOK_UP: Duration = Duration::from_secs(5);

/// What has not been taken yet.
#[derive(Debug, Default)]
pub struct Changes {
    sum: Mutex<Option<ForeignChange>>,
    news: Notify,
}

impl Changes {
    /// Waits until there is something to take.
    pub async fn news(&self) {
        self.news.notified().await;
    }

    pub fn take(&self) -> Option<ForeignChange> {
        self.lock().take()
    }

    fn add(&self, change: ForeignChange) {
        let mut sum = self.lock();
        match &mut *sum {
            Some(sum) => sum.merge(change),
            None => *sum = Some(change),
        }
        drop(sum);
        self.news.notify_one();
    }

    /// A thread that panicked left a sum, which is all there is to it.
    fn lock(&self) -> MutexGuard<'_, Option<ForeignChange>> {
        self.sum.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Listens from now on to what anybody but `kernel` changes. Where that cannot be, the audit is left.
pub fn listen(kernel: &mut NftKernel, audit: Option<Duration>) -> Option<RuleMonitor> {
    let open = || -> Result<(RuleMonitor, Ears), Error> {
        let monitor = RuleMonitor::open(kernel.port()?)?;
        let ears = monitor.ears()?;
        Ok((monitor, ears))
    };
    match open() {
        Ok((monitor, ears)) => {
            kernel.spare(ears);
            Some(monitor)
        }
        Err(error) => {
            let instead = match audit {
                Some(period) => format!("it is repaired with the audit, every {period:?}"),
                None => "it stays, as --audit-period=0 switches the audit off too".to_owned(),
            };
            tracing::warn!(%error, "cannot hear of it when others change rules: {instead}");
            None
        }
    }
}

/// Gathers what the monitor tells, from a thread of its own.
pub async fn follow(
    monitor: RuleMonitor,
    layout: &'static Layout,
    changes: Arc<Changes>,
    metrics: Arc<Metrics>,
) -> anyhow::Result<()> {
    let reader = Arc::downgrade(&changes);
    drop(changes);
    let thread = tokio::task::spawn_blocking(move || watch(monitor, layout, &reader, &metrics));
    thread.await?.context("follow what others change in the kernel's rules")
}

fn watch(mut monitor: RuleMonitor, layout: &Layout, reader: &Weak<Changes>, metrics: &Metrics) -> Result<(), Error> {
    let matters = |table, chain: &str| matters(layout, table, chain);
    loop {
        let change = monitor.wait(LOOK_UP, &matters)?;
        let Some(changes) = reader.upgrade() else { return Ok(()) }; // the loop has ended, and says why
        let Some(change) = change else { continue };
        tracing::debug!(by = ?change.by, lost = change.lost, notifications = ?change.notifications, "others changed rules");
        for family in Family::ALL.into_iter().filter(|family| change.notifications[*family] > 0) {
            metrics.drift_notified(family, change.notifications[family]);
        }
        if change.lost {
            metrics.notifications_lost();
        }
        changes.add(change);
    }
}

/// Whether a chain is ours or may hold a rule of ours. The mode's own complete chains are of no kind but have the
/// prefix that all have.
fn matters(layout: &Layout, table: Table, chain: &str) -> bool {
    chain.starts_with("KUBE-") || layout.kind(table, chain) != Kind::Other
}
