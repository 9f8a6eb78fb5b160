//! What came from the source of objects, and how much of it is kept, as metrics.

use prometheus_client::registry::Registry;

use super::super::labels::{ByFamily, ByKind, EventKind};
use super::{Counters, Counts, Metrics, label, ours};
use crate::model::Size;
use crate::net::Family;

#[derive(Debug)]
pub(super) struct Sources {
    events: Counters<ByKind>,
    objects: Counts<ByKind>,
    endpoints: Counts<ByFamily>,
}

impl Metrics {
    /// An event came from the source.
    pub fn event_received(&self, kind: EventKind) {
        self.sources.events.get_or_create(&ByKind { kind }).inc();
    }

    /// So much is kept in memory now.
    pub fn model_sized(&self, size: Size) {
        for (kind, count) in [(EventKind::Service, size.services), (EventKind::EndpointSlice, size.slices)] {
            self.sources.objects.get_or_create(&ByKind { kind }).set(count as u64);
        }
        for family in Family::ALL {
            self.sources.endpoints.get_or_create(&label(family)).set(size.endpoints[family] as u64);
        }
    }
}

impl Sources {
    pub(super) fn register(registry: &mut Registry) -> Self {
        Self {
            events: ours(registry, "events", "Events received from the source of objects"),
            objects: ours(
                registry,
                "model_objects",
                "Services and EndpointSlices kept in memory, what is no proxy's business left out",
            ),
            endpoints: ours(registry, "model_endpoints", "Endpoints kept in memory, counted over the ports of their Services"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::PerFamily;
    use crate::serve::metrics::Format;

    #[test]
    fn the_size_of_the_model_is_told_by_kind_and_family() {
        let metrics = Metrics::new();
        metrics.model_sized(Size { services: 7, slices: 9, endpoints: PerFamily { v4: 500, v6: 0 } });
        let text = metrics.encode(Format::Prometheus).unwrap();
        for sample in [
            r#"sluice_model_objects{kind="service"} 7"#,
            r#"sluice_model_objects{kind="endpoint_slice"} 9"#,
            r#"sluice_model_endpoints{ip_family="IPv4"} 500"#,
            r#"sluice_model_endpoints{ip_family="IPv6"} 0"#,
        ] {
            assert!(text.lines().any(|line| line == sample), "{sample} is missing:\n{text}");
        }
    }
}
