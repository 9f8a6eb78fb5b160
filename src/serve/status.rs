//! Who answers what on the two servers every proxy has: health (`:10256`) and metrics (`127.0.0.1:10249`).
//!
//! Only routing and headers; the answers are those of [`Health`] and [`Metrics`]. Like kube-proxy's, the
//! paths take any method and any query.

use std::sync::Arc;

use hyper::StatusCode;
use hyper::header::{ACCEPT, HeaderMap, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::http::request::Parts;

use super::health::{Answer, Health};
use super::http::{self, Handler, JSON, Response, TEXT, not_found};
use super::metrics::{Code, Format, Metrics};

const PROCESS_START: HeaderName = HeaderName::from_static("process-start-time-unix");

const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8; escaping=underscores";
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8; escaping=underscores";

/// `/healthz` for load balancers, `/livez` for the kubelet.
pub fn health_routes(health: Health, metrics: Arc<Metrics>) -> Handler {
    Arc::new(move |head| match head.uri.path() {
        "/healthz" => {
            let answer = health.healthz();
            metrics.healthz_answered(code(&answer));
            http::answer(answer.status, JSON, answer.body)
        }
        "/livez" => {
            let answer = health.livez();
            metrics.livez_answered(code(&answer));
            http::answer(answer.status, JSON, answer.body)
        }
        _ => not_found(),
    })
}

/// `/metrics`, and what else kube-proxy answers next to it. `mode` is the word for the proxy mode.
pub fn metrics_routes(metrics: Arc<Metrics>, mode: &'static str) -> Handler {
    Arc::new(move |head| match head.uri.path() {
        "/metrics" => scrape(&metrics, head),
        "/proxyMode" => http::answer(StatusCode::OK, TEXT, mode),
        "/healthz" if asks_verbose(head) => http::answer(StatusCode::OK, TEXT, "[+]ping ok\nhealthz check passed\n"),
        "/healthz" | "/healthz/ping" => http::answer(StatusCode::OK, TEXT, "ok"),
        _ => not_found(),
    })
}

fn code(answer: &Answer) -> Code {
    if answer.status == StatusCode::OK { Code::Ok } else { Code::Unavailable }
}

fn asks_verbose(head: &Parts) -> bool {
    let query = head.uri.query().unwrap_or_default();
    query.split('&').any(|pair| pair.split('=').next() == Some("verbose"))
}

fn scrape(metrics: &Metrics, head: &Parts) -> Response {
    let format = format(&head.headers);
    let content_type = match format {
        Format::Prometheus => PROMETHEUS,
        Format::OpenMetrics => OPENMETRICS,
    };
    let Ok(text) = metrics.encode(format) else {
        return http::answer(StatusCode::INTERNAL_SERVER_ERROR, TEXT, "a metric cannot be written\n");
    };
    let mut response = http::answer(StatusCode::OK, content_type, text);
    let headers = response.headers_mut();
    // The one answer on which kube-proxy does not set it.
    headers.remove(X_CONTENT_TYPE_OPTIONS);
    if let Ok(start) = HeaderValue::from_str(&format!("{:.0}", metrics.process_start().floor())) {
        headers.insert(PROCESS_START, start);
    }
    response
}

/// OpenMetrics for those who ask for it at least as much as for plain text.
fn format(headers: &HeaderMap) -> Format {
    let (mut openmetrics, mut text) = (0.0_f32, 0.0_f32);
    let accepted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    for range in accepted.flat_map(|value| value.split(',')) {
        let mut parts = range.split(';').map(str::trim);
        let kind = parts.next().unwrap_or_default();
        let weight: f32 = parts.find_map(|part| part.strip_prefix("q=")).map_or(1.0, |q| q.parse().unwrap_or(0.0));
        match kind {
            "application/openmetrics-text" => openmetrics = weight.max(openmetrics),
            "text/plain" | "text/*" | "*/*" => text = weight.max(text),
            _ => {}
        }
    }
    if openmetrics > 0.0 && openmetrics >= text { Format::OpenMetrics } else { Format::Prometheus }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openmetrics_is_for_those_who_prefer_it() {
        let of = |accept: &'static str| format(&HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(accept))]));
        assert_eq!(format(&HeaderMap::new()), Format::Prometheus);
        assert_eq!(of("*/*"), Format::Prometheus);
        assert_eq!(of("text/plain;version=0.0.4"), Format::Prometheus);
        assert_eq!(of("application/openmetrics-text"), Format::OpenMetrics);
        assert_eq!(of("application/openmetrics-text;q=0.3, text/plain;q=0.7"), Format::Prometheus);
        assert_eq!(of("application/openmetrics-text;q=0"), Format::Prometheus);
        let prometheus_3 = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
                            text/plain;version=0.0.4;q=0.2,*/*;q=0.1";
        assert_eq!(of(prometheus_3), Format::OpenMetrics);
    }
}
