//! Requests to the API server, by the names that client-go's metrics have in every component of Kubernetes.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::super::labels::{ByRequest, ByVerb, Method, StatusCode};
use super::{Counters, Metrics, Vector};

const BUCKETS: [f64; 12] = [0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0];

#[derive(Debug)]
pub(super) struct Client {
    requests: Counters<ByRequest>,
    duration: Vector<ByVerb, Histogram>,
}

impl Metrics {
    /// A request to the API server at `host` was answered, or not (no `status`). `latency` is that of all but watches.
    pub fn request_ended(&self, host: &str, method: &str, status: Option<u16>, latency: Option<Duration>) {
        let (host, method) = (host.into(), Method::named(method));
        if let Some(latency) = latency {
            let label = ByVerb { host: Arc::clone(&host), verb: method };
            self.client.duration.get_or_create(&label).observe(latency.as_secs_f64());
        }
        self.client.requests.get_or_create(&ByRequest { code: StatusCode::of(status), host, method }).inc();
    }
}

impl Client {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let requests = Counters::default();
        let help = "[ALPHA] Number of HTTP requests, partitioned by status code, method, and host.";
        registry.register("rest_client_requests", help, requests.clone());
        let duration = Vector::<ByVerb, Histogram>::new_with_constructor(|| Histogram::new(BUCKETS));
        let help = "[ALPHA] Request latency in seconds. Broken down by verb, and host.";
        registry.register("rest_client_request_duration_seconds", help, duration.clone());
        Self { requests, duration }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Format;
    use super::*;

    /// As a kube-proxy 1.36.2 shows it, from `captures/m_metrics.txt`; the sum is another.
    const CAPTURED: &str = r#"# HELP rest_client_request_duration_seconds [ALPHA] Request latency in seconds. Broken down by verb, and host.
# TYPE rest_client_request_duration_seconds histogram
rest_client_request_duration_seconds_bucket{host="127.0.0.1:6443",verb="POST",le="0.005"} 0
rest_client_request_duration_seconds_bucket{host="127.0.0.1:6443",verb="POST",le="0.025"} 1
rest_client_request_duration_seconds_bucket{host="127.0.0.1:6443",verb="POST",le="0.1"} 1
rest_client_request_duration_seconds_bucket{host="127.0.0.1:6443",verb="POST",le="0.25"} 1
rest_client_request_duration_seconds_bucket{host="127.0.0.1:6443",verb="POST",le="0.5"} 1
rest_client_request_duration_seconds_bucket{host="127.0.0.1:6443",verb="POST",le="1"} 1
rest_client_request_duration_seconds_bucket{host="127.0.0.1:6443",verb="POST",le="2"} 1
rest_client_request_duration_seconds_bucket{host="127.0.0.1:6443",verb="POST",le="4"} 1
rest_client_request_duration_seconds_bucket{host="127.0.0.1:6443",verb="POST",le="8"} 1
rest_client_request_duration_seconds_bucket{host="127.0.0.1:6443",verb="POST",le="15"} 1
rest_client_request_duration_seconds_bucket{host="127.0.0.1:6443",verb="POST",le="30"} 1
rest_client_request_duration_seconds_bucket{host="127.0.0.1:6443",verb="POST",le="60"} 1
rest_client_request_duration_seconds_bucket{host="127.0.0.1:6443",verb="POST",le="+Inf"} 1
rest_client_request_duration_seconds_sum{host="127.0.0.1:6443",verb="POST"} 0.0078125
rest_client_request_duration_seconds_count{host="127.0.0.1:6443",verb="POST"} 1
# HELP rest_client_requests_total [ALPHA] Number of HTTP requests, partitioned by status code, method, and host.
# TYPE rest_client_requests_total counter
rest_client_requests_total{code="200",host="127.0.0.1:6443",method="GET"} 12
rest_client_requests_total{code="201",host="127.0.0.1:6443",method="POST"} 1"#;

    /// Sorted, since client-go's sum and count stand behind the buckets and ours before.
    fn sorted<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
        let mut lines: Vec<_> = lines.filter(|line| line.contains("rest_client_")).collect();
        lines.sort_unstable();
        lines
    }

    #[test]
    fn requests_are_shown_as_client_go_shows_them() {
        let metrics = Metrics::new();
        let server = "127.0.0.1:6443";
        for _ in 0..12 {
            metrics.request_ended(server, "GET", Some(200), None);
        }
        metrics.request_ended(server, "POST", Some(201), Some(Duration::from_nanos(7_812_500)));
        let text = metrics.encode(Format::Prometheus).unwrap();
        assert_eq!(sorted(text.lines()).join("\n"), sorted(CAPTURED.lines()).join("\n"));
    }

    #[test]
    fn what_a_server_answers_does_not_grow_the_metrics_without_end() {
        let metrics = Metrics::new();
        for status in (100..1000).map(Some).chain([None]) {
            for method in ["GET", "POST", "PATCH", "DELETE", "BREW"] {
                metrics.request_ended("s:1", method, status, Some(Duration::ZERO));
            }
        }
        let text = metrics.encode(Format::Prometheus).unwrap();
        assert!(text.contains(r#"rest_client_requests_total{code="<error>",host="s:1",method="GET"} 1"#), "{text}");
        assert!(text.contains(r#"rest_client_requests_total{code="503",host="s:1",method="other"} 2"#), "{text}");
        let series = text.lines().filter(|line| line.starts_with("rest_client_requests_total{")).count();
        assert!(series < 70 * 4, "{series} series");
    }
}
