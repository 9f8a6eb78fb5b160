//! When stale UDP flows are looked for: after the rules of a family came into force, and after a failure again,
//! in a pace of its own that keeps no rules waiting.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::config::RuleConfig;
use crate::model::{Changes, State};
use crate::net::Family;
use crate::netlink::Error;
use crate::netlink::conntrack::Conntrack;
use crate::serve::Metrics;
use crate::sync::flows::FlowSync;

/// After a failure the next try comes after this long, then twice as long, and so on.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(30);

/// The flows of all families.
#[derive(Debug)]
pub struct FlowLoop {
    kernel: Conntrack,
    families: Vec<Paced>,
}

#[derive(Debug)]
struct Paced {
    sync: FlowSync,
    /// The rules of everything noted are in force.
    ready: bool,
    failures: u32,
    not_before: Option<Instant>,
}

impl FlowLoop {
    pub fn new(families: &[Family], config: &RuleConfig, metrics: &Arc<Metrics>) -> Self {
        let paced = |&family| Paced {
            sync: FlowSync::new(family, config, Arc::clone(metrics)),
            ready: false,
            failures: 0,
            not_before: None,
        };
        Self { kernel: Conntrack::default(), families: families.iter().map(paced).collect() }
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
        (self.ready && self.sync.is_due()).then(|| self.not_before.unwrap_or_else(Instant::now))
    }

    fn succeeded(&mut self, deleted: usize) {
        self.failures = 0;
        self.not_before = None;
        if deleted > 0 {
            tracing::debug!(family = %self.sync.family(), deleted, "stale UDP flows deleted");
        }
    }

    fn failed(&mut self, error: &Error) {
        let family = self.sync.family();
        let wait = (FIRST_RETRY * 2_u32.saturating_pow(self.failures)).min(LAST_RETRY);
        self.failures = (self.failures + 1).min(16);
        self.not_before = Some(Instant::now() + wait);
        tracing::warn!(%family, %error, "stale UDP flows could not be deleted; next try in {wait:?}");
    }
}
