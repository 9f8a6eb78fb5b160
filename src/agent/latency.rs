//! How long it takes from what happens in the cluster until it is in the kernel: the network programming latency, which
//! kube-proxy and the cluster's scalability objectives know by that name.

use std::time::Duration;

use jiff::Timestamp;

use crate::model::{ObjectKey, Trigger};
use crate::net::Family;
use crate::serve::Metrics;

/// More than these are not remembered: a kernel that takes no rules for hours must not cost memory.
const REMEMBERED: usize = 10_000;

/// What has happened and is not in one family's rules yet.
#[derive(Debug)]
pub struct Latency {
    /// What happened before was not for us to program in time, as with kube-proxy.
    since: Timestamp,
    waiting: Vec<Trigger>,
}

impl Latency {
    pub fn since(since: Timestamp) -> Self {
        Self { since, waiting: Vec::new() }
    }

    pub fn note(&mut self, family: Family, triggers: &[Trigger]) {
        let ours = triggers.iter().filter(|trigger| trigger.family == family && trigger.at > self.since);
        self.waiting.extend(ours.take(REMEMBERED.saturating_sub(self.waiting.len())).cloned());
    }

    /// All that was noted is in the kernel now, but for the Services that it refuses. The clock of whoever wrote the
    /// time may be ahead of ours: nothing takes less than no time.
    pub fn in_force(&mut self, family: Family, refused: &[ObjectKey], metrics: &Metrics) {
        let now = Timestamp::now();
        for trigger in self.waiting.drain(..).filter(|trigger| !refused.contains(&trigger.service)) {
            metrics.network_programmed(family, Duration::try_from(now.duration_since(trigger.at)).unwrap_or_default());
        }
    }
}
