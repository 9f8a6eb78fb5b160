//! What ipvs mode has beside rules, as metrics: operations on virtual servers, sets and addresses, and what drains.

use prometheus_client::registry::Registry;

use super::super::labels::{ByDrainEnd, ByFamily, DrainEnd};
use super::{Counters, Counts, Metrics, label, ours};
use crate::net::Family;

#[derive(Debug)]
pub(super) struct Servers {
    operations: Counters<ByFamily>,
    refused: Counters<ByFamily>,
    unfinished: Counts<ByFamily>,
    there: Counts<ByFamily>,
    draining: Counts<ByFamily>,
    drained: Counters<ByDrainEnd>,
}

impl Metrics {
    /// From now on this family's virtual servers are kept: what did not happen yet is 0 and not missing.
    pub fn servers_kept(&self, ip_family: Family) {
        let (servers, label) = (&self.servers, label(ip_family));
        for counter in [&servers.operations, &servers.refused] {
            counter.get_or_create(&label).inc_by(0);
        }
        for count in [&servers.unfinished, &servers.there, &servers.draining] {
            count.get_or_create(&label).set(0);
        }
        for end in [DrainEnd::Finished, DrainEnd::Expired] {
            servers.drained.get_or_create(&ByDrainEnd { end, ip_family }).inc_by(0);
        }
    }

    /// Operations on virtual servers, sets and addresses were sent, and so many of them refused.
    pub fn node_operations_sent(&self, family: Family, operations: u64, refused: u64) {
        self.servers.operations.get_or_create(&label(family)).inc_by(operations);
        self.servers.refused.get_or_create(&label(family)).inc_by(refused);
    }

    /// So many virtual servers there are; so many things are not as they should be, since the kernel refused it; and so
    /// many real servers have connections but get no new ones.
    pub fn servers_counted(&self, family: Family, virtual_servers: u64, unfinished: u64, draining: u64) {
        let label = label(family);
        self.servers.there.get_or_create(&label).set(virtual_servers);
        self.servers.unfinished.get_or_create(&label).set(unfinished);
        self.servers.draining.get_or_create(&label).set(draining);
    }

    /// Removed real servers of a virtual server are gone: their connections ended, or were ended.
    pub fn drained(&self, ip_family: Family, end: DrainEnd, real_servers: u64) {
        self.servers.drained.get_or_create(&ByDrainEnd { end, ip_family }).inc_by(real_servers);
    }
}

impl Servers {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let refused = "Operations on virtual servers, sets and addresses that the kernel refused; each is tried again";
        Self {
            operations: ours(registry, "node_operations", "Operations on virtual servers, sets and addresses sent"),
            refused: ours(registry, "node_operations_refused", refused),
            unfinished: ours(
                registry,
                "node_objects_unfinished",
                "Virtual servers, sets and addresses that are not as they should be because the kernel refused it",
            ),
            there: ours(registry, "virtual_servers", "Virtual servers in the kernel"),
            draining: ours(
                registry,
                "draining_real_servers",
                "Real servers that are wanted no more and still have connections; they get no new ones",
            ),
            drained: ours(
                registry,
                "drained_real_servers",
                "Draining real servers that are gone: finished with their last connection, or expired by --ipvs-drain-timeout",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::metrics::Format;

    #[test]
    fn servers_and_drains_are_counted_by_family() {
        let metrics = Metrics::new();
        metrics.servers_kept(Family::Ipv6);
        metrics.node_operations_sent(Family::Ipv4, 7, 2);
        metrics.servers_counted(Family::Ipv4, 30, 1, 3);
        metrics.drained(Family::Ipv4, DrainEnd::Finished, 2);
        let text = metrics.encode(Format::Prometheus).unwrap();
        for sample in [
            r#"sluice_node_operations_total{ip_family="IPv4"} 7"#,
            r#"sluice_node_operations_refused_total{ip_family="IPv4"} 2"#,
            r#"sluice_node_objects_unfinished{ip_family="IPv4"} 1"#,
            r#"sluice_virtual_servers{ip_family="IPv4"} 30"#,
            r#"sluice_draining_real_servers{ip_family="IPv4"} 3"#,
            r#"sluice_draining_real_servers{ip_family="IPv6"} 0"#,
            r#"sluice_drained_real_servers_total{end="finished",ip_family="IPv4"} 2"#,
            r#"sluice_drained_real_servers_total{end="expired",ip_family="IPv6"} 0"#,
        ] {
            assert!(text.lines().any(|line| line == sample), "{sample} is missing:\n{text}");
        }
    }
}
