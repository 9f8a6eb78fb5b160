//! Events of `events.k8s.io/v1` as they are created and patched: the checks of kube-apiserver's validation that a
//! reporter can fail.

use serde_json::{Value, json};

use super::http::Refusal;
use super::store::Store;

/// What may not change once an Event is there.
const IMMUTABLE: [&str; 9] =
    ["regarding", "related", "reason", "note", "type", "eventTime", "action", "reportingController", "reportingInstance"];
/// What belongs to the older kind of Event.
const DEPRECATED: [&str; 4] = ["deprecatedCount", "deprecatedFirstTimestamp", "deprecatedLastTimestamp", "deprecatedSource"];

pub fn create(store: &mut Store, namespace: &str, mut event: Value) -> Result<Value, Refusal> {
    let name = text(&event["metadata"], "name").to_owned();
    if event["kind"] != "Event" || event["apiVersion"] != "events.k8s.io/v1" {
        return Err(Refusal::new(400, "BadRequest", format!("no Event of events.k8s.io/v1: {event}")));
    }
    // The request says where; the object may say the same or nothing.
    let said = text(&event["metadata"], "namespace");
    if !said.is_empty() && said != namespace {
        return Err(Refusal::new(400, "BadRequest", "the namespace of the provided object does not match the request"));
    }
    event["metadata"]["namespace"] = json!(namespace);
    let problems: Vec<_> = problems(&event, namespace).into_iter().chain(problems_of_series(&event)).collect();
    if !problems.is_empty() {
        return Err(invalid(&name, &problems));
    }
    let is_terminating = |namespace: &Value| namespace["status"]["phase"] == "Terminating";
    if store.get("namespaces", "", namespace).is_some_and(|namespace| is_terminating(&namespace)) {
        let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
        return Err(Refusal::new(403, "Forbidden", format!("events.events.k8s.io {name:?} is forbidden: {why}")));
    }
    if store.get("events", namespace, &name).is_some() {
        return Err(Refusal::new(409, "AlreadyExists", format!("events.events.k8s.io {name:?} already exists")));
    }
    event["metadata"]["uid"] = json!(format!("uid-of-{name}"));
    event["metadata"]["creationTimestamp"] = json!("2026-11-22T03:25:12Z");
    store.put(event.clone());
    Ok(event)
}

pub fn patch(store: &mut Store, namespace: &str, name: &str, patch: &Value) -> Result<Value, Refusal> {
    let Some(old) = store.get("events", namespace, name) else {
        return Err(Refusal::new(404, "NotFound", format!("events.events.k8s.io {name:?} not found")));
    };
    let mut new = Value::clone(&old);
    merge(&mut new, patch);
    let changed = IMMUTABLE.iter().filter(|field| old[**field] != new[**field]);
    let problems: Vec<_> = changed.map(|field| format!("{field}: field is immutable")).chain(problems_of_series(&new)).collect();
    if !problems.is_empty() {
        return Err(invalid(name, &problems));
    }
    store.put(new.clone());
    Ok(new)
}

fn problems(event: &Value, namespace: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let mut check = |holds: bool, problem: String| {
        if !holds {
            problems.push(problem);
        }
    };
    for (field, limit) in [("reportingController", 316), ("reportingInstance", 128), ("action", 128), ("reason", 128)] {
        let length = text(event, field).len();
        check((1..=limit).contains(&length), format!("{field}: required, and at most {limit} characters"));
    }
    check(text(event, "note").len() <= 1024, "message: can have at most 1024 characters".into());
    check(text(event, "eventTime").ends_with('Z'), "eventTime: Required value".into());
    check(matches!(text(event, "type"), "Normal" | "Warning"), format!("type: has invalid value: {}", event["type"]));
    for field in DEPRECATED {
        check(event[field].is_null(), format!("{field}: needs to be unset"));
    }
    let about = text(&event["regarding"], "namespace");
    let matches = if about.is_empty() { matches!(namespace, "default" | "kube-system") } else { about == namespace };
    check(matches, "involvedObject.namespace: does not match event.namespace".into());
    let name = text(&event["metadata"], "name");
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '-');
    check((1..=253).contains(&name.len()) && name.chars().all(good), format!("metadata.name: Invalid value: {name:?}"));
    problems
}

fn problems_of_series(event: &Value) -> Option<String> {
    let series = &event["series"];
    let good = series.is_null() || (series["count"].as_i64() >= Some(2) && series["lastObservedTime"].is_string());
    (!good).then(|| format!("series: should be at least 2, with lastObservedTime: {series}"))
}

fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object[field].as_str().unwrap_or_default()
}

fn invalid(name: &str, problems: &[String]) -> Refusal {
    Refusal::new(422, "Invalid", format!("Event.events.k8s.io {name:?} is invalid: {}", problems.join(", ")))
}

/// RFC 7386.
fn merge(target: &mut Value, patch: &Value) {
    let Some(fields) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (name, value) in fields {
        match value {
            Value::Null => drop(target.as_object_mut().unwrap().remove(name)),
            value => merge(&mut target[name.as_str()], value),
        }
    }
}
