//! What others did to our rules and what became of it, as metrics.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::super::labels::{AuditResult, ByAudit, ByCause, ByFamily, RepairCause};
use super::{Counters, Counts, Durations, Metrics, durations, label, ours};
use crate::net::Family;

#[derive(Debug)]
pub(super) struct Repairs {
    notifications: Counters<ByFamily>,
    lost: Counter,
    made: Counters<ByCause>,
    operations: Counters<ByFamily>,
    duration: Durations,
    slowed: Counts<ByFamily>,
    audits: Counters<ByAudit>,
}

impl Metrics {
    /// From now on this family's rules are watched: what did not happen yet is 0 and not missing, or an alert on its
    /// increase would not see the first time.
    pub fn drift_watched(&self, ip_family: Family) {
        let (repairs, label) = (&self.repairs, label(ip_family));
        for counter in [&repairs.notifications, &repairs.operations] {
            counter.get_or_create(&label).inc_by(0);
        }
        drop(repairs.duration.get_or_create(&label));
        repairs.slowed.get_or_create(&label).set(0);
        for cause in [RepairCause::Audit, RepairCause::Notification, RepairCause::LostNotifications] {
            repairs.made.get_or_create(&ByCause { cause, ip_family }).inc_by(0);
        }
        for result in [AuditResult::Unchanged, AuditResult::Clean, AuditResult::Repaired, AuditResult::Failed] {
            repairs.audits.get_or_create(&ByAudit { ip_family, result }).inc_by(0);
        }
    }

    /// The kernel told of this many changes by others of chains that we have something in.
    pub fn drift_notified(&self, family: Family, notifications: u64) {
        self.repairs.notifications.get_or_create(&label(family)).inc_by(notifications);
    }

    /// The kernel had more to tell than there was room for, or others committed during a big transaction of ours.
    pub fn notifications_lost(&self) {
        self.repairs.lost.inc();
    }

    /// What others changed was put right, this long after it was known.
    pub fn repaired(&self, ip_family: Family, cause: RepairCause, operations: u64, took: Duration) {
        let label = label(ip_family);
        self.repairs.made.get_or_create(&ByCause { cause, ip_family }).inc();
        self.repairs.operations.get_or_create(&label).inc_by(operations);
        self.repairs.duration.get_or_create(&label).observe(took.as_secs_f64());
    }

    /// Repairs are made more slowly, because somebody undoes each; or no longer.
    pub fn repairs_slowed(&self, family: Family, slowed: bool) {
        self.repairs.slowed.get_or_create(&label(family)).set(u64::from(slowed));
    }

    /// All rules of a family were compared with what they should be.
    pub fn audited(&self, ip_family: Family, result: AuditResult) {
        self.repairs.audits.get_or_create(&ByAudit { ip_family, result }).inc();
    }
}

/// Milliseconds for what is repaired at once, up to a minute for what waits.
fn repair_histogram() -> Histogram {
    Histogram::new([0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0])
}

impl Repairs {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let duration = durations(repair_histogram);
        let help = "Time from the notification of a foreign change to the commit that put it right";
        registry.register("sluice_drift_repair_duration_seconds", help, duration.clone());
        Self {
            notifications: ours(registry, "drift_notifications", "Changes by others of chains that we have rules in"),
            lost: ours(
                registry,
                "drift_notifications_lost",
                "Times that changes of others were missed, for lack of room or during a big transaction of ours, and everything was read",
            ),
            made: ours(registry, "drift_repairs", "Times that something others had changed was put right"),
            operations: ours(registry, "drift_repair_operations", "Operations sent to put right what others had changed"),
            duration,
            slowed: ours(registry, "drift_repairs_slowed", "1 while repairs are slowed because somebody undoes each"),
            audits: ours(registry, "audits", "Comparisons of all rules with what they should be"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::metrics::Format;

    #[test]
    fn repairs_are_counted_by_family_and_cause() {
        let metrics = Metrics::new();
        metrics.drift_watched(Family::Ipv6);
        metrics.drift_notified(Family::Ipv4, 3);
        metrics.notifications_lost();
        metrics.repaired(Family::Ipv4, RepairCause::Notification, 4, Duration::from_millis(60));
        metrics.repaired(Family::Ipv6, RepairCause::LostNotifications, 1, Duration::from_millis(600));
        metrics.repairs_slowed(Family::Ipv4, true);
        metrics.audited(Family::Ipv4, AuditResult::Unchanged);
        let text = metrics.encode(Format::Prometheus).unwrap();
        for sample in [
            r#"sluice_drift_notifications_total{ip_family="IPv4"} 3"#,
            "sluice_drift_notifications_lost_total 1",
            r#"sluice_drift_repairs_total{cause="notification",ip_family="IPv4"} 1"#,
            r#"sluice_drift_repairs_total{cause="lost_notifications",ip_family="IPv6"} 1"#,
            r#"sluice_drift_repair_operations_total{ip_family="IPv4"} 4"#,
            r#"sluice_drift_repair_duration_seconds_bucket{ip_family="IPv4",le="0.05"} 0"#,
            r#"sluice_drift_repair_duration_seconds_bucket{ip_family="IPv4",le="0.1"} 1"#,
            r#"sluice_drift_repairs_slowed{ip_family="IPv4"} 1"#,
            r#"sluice_audits_total{ip_family="IPv4",result="unchanged"} 1"#,
            r#"sluice_audits_total{ip_family="IPv6",result="failed"} 0"#,
            r#"sluice_drift_repairs_total{cause="notification",ip_family="IPv6"} 0"#,
            r#"sluice_drift_notifications_total{ip_family="IPv6"} 0"#,
            r#"sluice_drift_repairs_slowed{ip_family="IPv6"} 0"#,
        ] {
            assert!(text.lines().any(|line| line == sample), "{sample} is missing:\n{text}");
        }
    }
}
