//! Who answers what on the two servers every proxy has: health (`:10256`) and metrics (`127.0.0.1:10249`).
//!
//! Only routing and headers; the answers are those of [`Health`] and [`Metrics`], and of the modules below for what is
//! asked less often. Like kube-proxy's, the paths take any method and any query, unless they say otherwise.

mod debug;
mod healthz;
mod negotiate;
mod zpages;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use hyper::StatusCode;
use hyper::header::{ACCEPT, HeaderMap, HeaderName, HeaderValue};
use hyper::http::request::Parts;

use super::health::{Answer, Health};
use super::http::{self, Handler, JSON, Reply, Response, TEXT, not_found};
use super::metrics::{Code, Format, Metrics};

const PROCESS_START: HeaderName = HeaderName::from_static("process-start-time-unix");

const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8; escaping=underscores";
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8; escaping=underscores";

/// `/healthz` for load balancers, `/livez` for the kubelet.
pub fn health_routes(health: Health, metrics: Arc<Metrics>) -> Handler {
    Arc::new(move |head| {
        let answer = match head.uri.path() {
            "/healthz" => {
                let answer = health.healthz();
                metrics.healthz_answered(code(&answer));
                answer
            }
            "/livez" => {
                let answer = health.livez();
                metrics.livez_answered(code(&answer));
                answer
            }
            _ => return not_found().into(),
        };
        http::answer(answer.status, JSON, answer.body).into()
    })
}

/// What the metrics server has to tell.
pub struct Pages {
    pub metrics: Arc<Metrics>,
    /// The word for the proxy mode.
    pub mode: &'static str,
    pub configz: Configz,
    /// The flags of the command line with their values, sorted by name.
    pub flags: Vec<(String, String)>,
    /// Are `/flagz` and `/statusz` there? (feature gates `ComponentFlagz` and `ComponentStatusz`)
    pub flagz: bool,
    pub statusz: bool,
    /// Is what lies below `/debug/` there? (`--profiling`)
    pub profiling: bool,
    /// Sets the level of `-v`.
    pub set_verbosity: Box<dyn Fn(u8) + Send + Sync>,
}

/// The configuration in force, as JSON of a `KubeProxyConfiguration`. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Configz(Arc<Mutex<Option<Arc<str>>>>);

impl Configz {
    /// From now on `/configz` shows this.
    pub fn set(&self, json: impl Into<Arc<str>>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(json.into());
    }

    fn body(&self) -> String {
        let config = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        config.map_or_else(|| "{}".into(), |config| format!("{{\"kubeproxy.config.k8s.io\":{config}}}"))
    }
}

/// `/metrics`, and what else kube-proxy answers next to it.
pub fn metrics_routes(pages: Pages) -> Handler {
    let pages = Arc::new(pages);
    Arc::new(move |head| answer(&pages, head))
}

fn answer(pages: &Arc<Pages>, head: &Parts) -> Reply {
    let response = match head.uri.path() {
        "/metrics" => scrape(&pages.metrics, head, Metrics::encode),
        "/metrics/slis" => scrape(&pages.metrics, head, Metrics::encode_slis),
        "/proxyMode" => http::answer(StatusCode::OK, TEXT, pages.mode),
        "/healthz" => healthz::answer(&pages.metrics, head),
        "/healthz/ping" => http::plain(StatusCode::OK, TEXT, "ok"),
        "/configz" => http::answer(StatusCode::OK, JSON, pages.configz.body()),
        "/flagz" if pages.flagz => zpages::flagz(pages, head),
        "/statusz" if pages.statusz => zpages::statusz(pages, head),
        path if pages.profiling && path.starts_with("/debug/") => return debug::answer(pages, head),
        _ => not_found(),
    };
    response.into()
}

impl fmt::Debug for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pages").field("mode", &self.mode).field("flags", &self.flags).finish_non_exhaustive()
    }
}

fn code(answer: &Answer) -> Code {
    if answer.status == StatusCode::OK { Code::Ok } else { Code::Unavailable }
}

fn scrape(metrics: &Metrics, head: &Parts, encode: fn(&Metrics, Format) -> Result<String, fmt::Error>) -> Response {
    let format = format(&head.headers);
    let content_type = match format {
        Format::Prometheus => PROMETHEUS,
        Format::OpenMetrics => OPENMETRICS,
    };
    let Ok(text) = encode(metrics, format) else {
        return http::answer(StatusCode::INTERNAL_SERVER_ERROR, TEXT, "a metric cannot be written\n");
    };
    let mut response = http::plain(StatusCode::OK, content_type, text);
    let headers = response.headers_mut();
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
