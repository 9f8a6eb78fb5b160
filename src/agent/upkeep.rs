//! What virtual servers need beside syncs, in ipvs mode: an audit from time to time, since the kernel tells nobody of
//! changes there; a look at what drains; and another try at what the kernel refused.

use std::time::Duration;

use tokio::time::Instant;

use super::retry::Retry;
use crate::config::RuleConfig;
use crate::net::Family;
use crate::netlink::address::DeviceChange;
use crate::serve::Metrics;
use crate::serve::metrics::RepairCause;
use crate::sync::servers::ServerSync;

/// How soon a draining real server is looked at again, which is a dump of its virtual server.
const DRAIN_CHECK: Duration = Duration::from_secs(1);
/// Looks at what drains get one part in so many of the time: where many drain, they come less often.
const DRAIN_SHARE: u32 = 200;
const LONGEST_DRAIN_CHECK: Duration = Duration::from_mins(1);
/// Audits get one part in so many of a family's time: one of 20,000 virtual servers may take a good tenth of a second.
const AUDIT_SHARE: u32 = 2000;
/// But they come once in so many periods at least.
const LONGEST_AUDIT_PAUSE: u32 = 4;

/// When to do what.
#[derive(Debug, Default)]
pub struct Upkeep {
    audit: Option<Audit>,
    drain_check: Option<Instant>,
    retry: Retry,
    /// What others changed and nobody has put right yet.
    found: Option<Found>,
}

#[derive(Debug)]
struct Audit {
    period: Duration,
    next: Instant,
}

impl Audit {
    /// From the beginning of one that took so long to the next.
    fn pause(&self, took: Duration) -> Duration {
        let longest = self.period.saturating_mul(LONGEST_AUDIT_PAUSE);
        took.saturating_mul(AUDIT_SHARE).clamp(self.period, longest)
    }
}

#[derive(Clone, Copy, Debug)]
struct Found {
    cause: RepairCause,
    things: usize,
    since: Instant,
}

impl Upkeep {
    /// With an audit every `audit_period`; `None`: never.
    pub fn new(audit_period: Option<Duration>) -> Self {
        let audit = audit_period.map(|period| Audit { period, next: Instant::now() + period });
        Self { audit, ..Self::default() }
    }

    /// When there is something to do.
    pub fn next(&self) -> Option<Instant> {
        [self.audit.as_ref().map(|audit| audit.next), self.drain_check, self.retry.not_before()].into_iter().flatten().min()
    }

    /// Does what is due by `now`. What is to be put right is then due for a sync.
    pub fn run(&mut self, family: Family, servers: &mut ServerSync, config: &RuleConfig, now: Instant) {
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if due(self.retry.not_before()) {
            servers.look_again();
        }
        if let Some(audit) = self.audit.as_mut().filter(|audit| audit.next <= now) {
            let outcome = servers.audit(config);
            audit.next = now + audit.pause(now.elapsed());
            match outcome {
                Ok(0) => {}
                Ok(things) => self.found(RepairCause::Audit, things, now),
                Err(error) => tracing::warn!(%family, %error, "virtual servers, sets and addresses could not be looked at"),
            }
        }
        if due(self.drain_check) {
            self.check_drains(family, servers, config, now);
        }
    }

    fn check_drains(&mut self, family: Family, servers: &mut ServerSync, config: &RuleConfig, now: Instant) {
        if let Err(error) = servers.check_drains(config, now.into_std()) {
            tracing::warn!(%family, %error, "draining real servers could not be looked at");
        }
        let pause = (now.elapsed() * DRAIN_SHARE).clamp(DRAIN_CHECK, LONGEST_DRAIN_CHECK);
        self.drain_check = servers.is_draining().then(|| Instant::now() + pause);
    }

    /// The kernel told of changes on the device with the addresses; most are our own.
    pub fn told(&mut self, family: Family, servers: &mut ServerSync, changes: &[DeviceChange]) {
        match servers.told(changes) {
            Ok(0) => {}
            Ok(things) => self.found(RepairCause::Notification, things, Instant::now()),
            Err(error) => tracing::warn!(%family, %error, "local addresses could not be looked at"),
        }
    }

    fn found(&mut self, cause: RepairCause, things: usize, now: Instant) {
        let before = self.found.take().map_or(0, |found| found.things);
        self.found = Some(Found { cause, things: before + things, since: now });
    }

    /// A sync went well, with so many operations.
    pub fn synced(&mut self, family: Family, servers: &ServerSync, operations: usize, metrics: &Metrics) {
        if !servers.is_unfinished() {
            self.retry.succeeded();
        } else if self.retry.not_before().is_none_or(|at| at <= Instant::now()) {
            // Else other changes, which go well, would put it off for ever.
            self.retry.failed();
        }
        if self.drain_check.is_none() && servers.is_draining() {
            self.drain_check = Some(Instant::now() + DRAIN_CHECK);
        }
        let Some(Found { cause, things, since }) = self.found.take() else { return };
        let took = since.elapsed();
        metrics.repaired(family, cause, operations as u64, took);
        tracing::warn!(
            "somebody changed {things} {family} virtual servers, sets or addresses of this proxy: put right with {operations} \
             operations, {took:.1?} after it was found"
        );
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::agent::testing::rule_config;
    use crate::netlink::fake::balancer::FakeBalancer;

    #[tokio::test]
    async fn audits_come_at_their_period_and_nothing_else_without_cause() {
        let metrics = Arc::new(Metrics::new());
        let mut servers = ServerSync::new(Family::Ipv4, Box::new(FakeBalancer::new()), Arc::clone(&metrics));
        let config = rule_config();
        servers.make(&config).unwrap();
        servers.finish(&config, std::time::Instant::now()).unwrap();
        assert_eq!(Upkeep::new(None).next(), None);
        let mut upkeep = Upkeep::new(Some(Duration::from_secs(30)));
        let next = upkeep.next().unwrap();
        upkeep.run(Family::Ipv4, &mut servers, &config, Instant::now());
        assert_eq!(upkeep.next(), Some(next), "not yet");
        upkeep.run(Family::Ipv4, &mut servers, &config, next);
        upkeep.synced(Family::Ipv4, &servers, 0, &metrics);
        assert_eq!(upkeep.next(), Some(next + Duration::from_secs(30)));
        assert!(!servers.is_due());
    }

    #[test]
    fn an_audit_that_takes_long_comes_more_seldom() {
        let period = Duration::from_secs(30);
        let audit = Audit { period, next: Instant::now() };
        for (took, pause) in [(0, 30), (15, 30), (30, 60), (1000, 120)] {
            assert_eq!(audit.pause(Duration::from_millis(took)), Duration::from_secs(pause), "{took} ms");
        }
        let audit = Audit { period: Duration::MAX, ..audit };
        assert_eq!(audit.pause(Duration::MAX), Duration::MAX);
    }
}
