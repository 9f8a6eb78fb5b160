//! `/flagz` and `/statusz`: how the process was started and since when it runs, as text or as an object.

use std::collections::BTreeMap;

use hyper::StatusCode;
use hyper::header::{CONTENT_TYPE, HeaderValue, WARNING};
use hyper::http::request::Parts;
use jiff::Timestamp;
use serde::Serialize;

use super::Pages;
use super::negotiate::{self, Encoding, Form, Version};
use crate::serve::build::{BINARY_VERSION, GO_VERSION};
use crate::serve::http::{self, JSON, Response, TEXT};

const COMPONENT: &str = "kube-proxy";
const CAUTION: &str = "Warning: This endpoint is not meant to be machine parseable, has no formatting compatibility \
                       guarantees and is for debugging purposes only.";

/// The fields in kube-proxy's order, as in all of these.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Object<T> {
    kind: &'static str,
    api_version: String,
    metadata: Metadata,
    #[serde(flatten)]
    content: T,
}

#[derive(Serialize)]
struct Metadata {
    name: &'static str,
}

#[derive(Serialize)]
struct Flags<'a> {
    flags: BTreeMap<&'a str, &'a str>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    start_time: String,
    uptime_seconds: i64,
    go_version: &'static str,
    binary_version: &'static str,
    emulation_version: &'static str,
    paths: Vec<&'static str>,
}

#[derive(Serialize)]
struct Empty {}

/// What Kubernetes answers when it has nothing of what a client accepts.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Refusal {
    kind: &'static str,
    api_version: &'static str,
    metadata: Empty,
    status: &'static str,
    message: &'static str,
    reason: &'static str,
    code: u16,
}

pub(super) fn flagz(pages: &Pages, head: &Parts) -> Response {
    match negotiate::form(head, "Flagz") {
        Form::Text => {
            let lines: Vec<_> = pages.flags.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
            text(format!("\n{COMPONENT} flagz\n{CAUTION}\n{}", lines.concat()))
        }
        Form::Object { encoding, version } => {
            let flags = pages.flags.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            object(head, ("Flagz", version), encoding, Flags { flags })
        }
        Form::NotAcceptable => not_acceptable(head),
    }
}

pub(super) fn statusz(pages: &Pages, head: &Parts) -> Response {
    #[expect(clippy::cast_possible_truncation, reason = "seconds since 1970")]
    let start = Timestamp::from_second(pages.metrics.process_start() as i64).unwrap_or_default();
    let uptime = (Timestamp::now().as_second() - start.as_second()).max(0);
    match negotiate::form(head, "Statusz") {
        Form::Text => text(status_text(start, uptime, &paths(pages))),
        Form::Object { encoding, version } => {
            let status = Status {
                start_time: start.to_string(),
                uptime_seconds: uptime,
                go_version: GO_VERSION,
                binary_version: BINARY_VERSION,
                emulation_version: BINARY_VERSION,
                paths: paths(pages),
            };
            object(head, ("Statusz", version), encoding, status)
        }
        Form::NotAcceptable => not_acceptable(head),
    }
}

/// kube-proxy puts one of four separators at random between name and value, the same for as long as it runs; a script
/// that reads this copes with each, so one is enough.
fn status_text(start: Timestamp, uptime: i64, paths: &[&str]) -> String {
    let started = start.strftime("%a %b %e %H:%M:%S UTC %Y");
    let (hours, minutes, seconds) = (uptime / 3600, uptime / 60 % 60, uptime % 60);
    let paths = paths.join(" ");
    format!(
        "\n{COMPONENT} statusz\n{CAUTION}\n\n\
         Started  {started}\n\
         Up  {hours} hr {minutes:02} min {seconds:02} sec\n\
         Go version  {GO_VERSION}\n\
         Binary version  {BINARY_VERSION}\n\
         Emulation version  {BINARY_VERSION}\n\
         Paths  {paths}\n"
    )
}

/// The pages beside this one.
fn paths(pages: &Pages) -> Vec<&'static str> {
    let all = ["/configz", "/flagz", "/healthz", "/metrics", "/proxyMode"];
    all.into_iter().filter(|path| pages.flagz || *path != "/flagz").collect()
}

fn text(body: String) -> Response {
    http::plain(StatusCode::OK, TEXT, body)
}

fn object<T: Serialize>(head: &Parts, (kind, version): (&'static str, Version), encoding: Encoding, content: T) -> Response {
    let api_version = format!("config.k8s.io/{}", version.as_str());
    let object = Object { kind, api_version, metadata: Metadata { name: COMPONENT }, content };
    let body = match encoding {
        Encoding::Json => json(head, &object),
        Encoding::Yaml => yaml(&object),
    };
    let mut response = text(body);
    let media_type = format!("{};g=config.k8s.io;v={};as={kind}", encoding.media_type(), version.as_str());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_str(&media_type).expect("made of words"));
    if version == Version::V1Alpha1 {
        let page = kind.to_lowercase();
        let warning = format!("299 - \"This version of the {page} endpoint is deprecated. Please use a newer version.\"");
        headers.insert(WARNING, HeaderValue::from_str(&warning).expect("made of words"));
    }
    response
}

fn not_acceptable(head: &Parts) -> Response {
    let refusal = Refusal {
        kind: "Status",
        api_version: "v1",
        metadata: Empty {},
        status: "Failure",
        message: "only the following media types are accepted: application/json, application/yaml, text/plain",
        reason: "NotAcceptable",
        code: StatusCode::NOT_ACCEPTABLE.as_u16(),
    };
    http::plain(StatusCode::NOT_ACCEPTABLE, JSON, json(head, &refusal))
}

/// Indented, or in one line with an end, as Kubernetes writes them.
fn json<T: Serialize>(head: &Parts, object: &T) -> String {
    let written = if negotiate::is_pretty(head) {
        serde_json::to_string_pretty(object)
    } else {
        serde_json::to_string(object).map(|line| line + "\n")
    };
    written.expect("texts and numbers are always JSON")
}

/// With sorted names, as Kubernetes writes them.
fn yaml<T: Serialize>(object: &T) -> String {
    let sorted = serde_json::to_value(object).expect("texts and numbers are always JSON");
    serde_norway::to_string(&sorted).expect("JSON is always YAML")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_by_go() {
        let start: Timestamp = "2026-11-02T03:05:11Z".parse().unwrap();
        let text = status_text(start, 100 * 3600 + 62, &["/a", "/b"]);
        assert!(text.contains("\nStarted  Mon Nov  2 03:05:11 UTC 2026\nUp  100 hr 01 min 02 sec\n"), "{text}");
        assert!(text.ends_with("\nPaths  /a /b\n"), "{text}");
    }
}
