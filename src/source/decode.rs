//! From the bytes of the API server's answers to cut-down values: pages of a list, lines of a watch.
//!
//! An object that cannot be decoded must not take the good ones around it along. It becomes an object
//! without a usable part and with one problem, like any other that cannot be used. The typed decoding
//! is tried first; only what fails is read again as plain JSON to find the culprit and its name.

use k8s_openapi::Metadata as _;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ListMeta;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use ::kube::api::WatchEvent;
use ::kube::core::Status;

use super::Watched;
use crate::model::{ObjectKey, Parsed, Problem};

/// A page of a list.
#[derive(Debug)]
pub(crate) struct Page<W> {
    pub items: Vec<Parsed<W>>,
    /// Empty: this was the last page.
    pub continue_token: String,
    pub resource_version: String,
}

/// A line of a watch.
#[derive(Debug)]
pub(crate) struct Line<W> {
    pub change: Change<W>,
    /// The position after this line. Empty: not known, stay where we are.
    pub resource_version: String,
}

#[derive(Debug)]
pub(crate) enum Change<W> {
    Applied(Parsed<W>),
    Deleted(ObjectKey),
    /// Nothing changed up to here. `true`: this ends the initial events of a watch-list.
    Bookmark(bool),
    Error(Box<Status>),
}

/// Neither field has a default: an answer without them, a login page's or another program's, must not pass for an
/// empty list, which takes everything away.
#[derive(Deserialize)]
struct RawPage<T> {
    metadata: ListMeta,
    // Go writes an empty list as null. The function keeps serde from taking a missing one for the same.
    #[serde(deserialize_with = "Option::deserialize", bound(deserialize = "T: Deserialize<'de>"))]
    items: Option<Vec<T>>,
}

/// Reads a page of a list.
pub(crate) fn page<W: Watched>(body: &[u8]) -> Result<Page<W>, serde_json::Error> {
    match serde_json::from_slice::<RawPage<W::Object>>(body) {
        Ok(raw) => cut_page(raw, |object| W::cut_down(&object)),
        Err(_) => cut_page(serde_json::from_slice::<RawPage<Value>>(body)?, from_value),
    }
}

fn cut_page<W, T>(raw: RawPage<T>, cut: impl Fn(T) -> Parsed<W>) -> Result<Page<W>, serde_json::Error> {
    let resource_version = raw.metadata.resource_version.unwrap_or_default();
    if resource_version.is_empty() {
        return Err(serde::de::Error::custom("a list without a resourceVersion"));
    }
    Ok(Page {
        items: raw.items.unwrap_or_default().into_iter().map(cut).collect(),
        continue_token: raw.metadata.continue_.unwrap_or_default(),
        resource_version,
    })
}

/// Reads a line of a watch.
pub(crate) fn line<W: Watched>(text: &[u8]) -> Result<Line<W>, serde_json::Error> {
    match serde_json::from_slice::<WatchEvent<W::Object>>(text) {
        Ok(event) => Ok(cut_line(event, |object: &W::Object| W::cut_down(object))),
        Err(_) => broken_line(text),
    }
}

fn cut_line<W: Watched>(event: WatchEvent<W::Object>, cut: impl Fn(&W::Object) -> Parsed<W>) -> Line<W> {
    let (change, resource_version) = match event {
        WatchEvent::Added(object) | WatchEvent::Modified(object) => {
            (Change::Applied(cut(&object)), object.metadata().resource_version.clone())
        }
        WatchEvent::Deleted(object) => (Change::Deleted(cut(&object).key), object.metadata().resource_version.clone()),
        WatchEvent::Bookmark(mark) => {
            let ends_initial = mark.metadata.annotations.get("k8s.io/initial-events-end").is_some_and(|v| v == "true");
            (Change::Bookmark(ends_initial), Some(mark.metadata.resource_version))
        }
        WatchEvent::Error(status) => (Change::Error(status), None),
    };
    Line { change, resource_version: resource_version.unwrap_or_default() }
}

/// A line whose object is not what its kind promises.
fn broken_line<W: Watched>(text: &[u8]) -> Result<Line<W>, serde_json::Error> {
    let value = serde_json::from_slice::<Value>(text)?;
    let object = value.get("object").cloned().unwrap_or_default();
    let resource_version = text_at(&object, "/metadata/resourceVersion").to_owned();
    let change = match value.get("type").and_then(Value::as_str) {
        Some("ADDED" | "MODIFIED") => Change::Applied(from_value(object)),
        Some("DELETED") => Change::Deleted(key_of(&object)),
        // A bookmark or an error in no known form, or no watch event at all: let it be told as it is.
        _ => Change::Error(Box::new(Status::deserialize(&object).or_else(|_| Status::deserialize(&value))?)),
    };
    Ok(Line { change, resource_version })
}

fn from_value<W: Watched>(object: Value) -> Parsed<W> {
    let key = key_of(&object);
    decode_value::<W::Object>(object).map_or_else(
        |cause| {
            let problem = Problem { field: "object".into(), cause: format!("cannot be decoded, left out: {cause}") };
            Parsed { key, value: None, problems: vec![problem] }
        },
        |object| W::cut_down(&object),
    )
}

fn decode_value<T: DeserializeOwned>(object: Value) -> Result<T, serde_json::Error> {
    serde_json::from_value(object)
}

fn key_of(object: &Value) -> ObjectKey {
    ObjectKey::new(text_at(object, "/metadata/namespace"), text_at(object, "/metadata/name"))
}

fn text_at<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Service;

    fn service(name: &str, port: &str) -> String {
        format!(
            r#"{{"metadata":{{"namespace":"default","name":"{name}","resourceVersion":"7"}},
                "spec":{{"clusterIP":"10.96.0.1","ports":[{{"port":{port}}}]}}}}"#
        )
    }

    #[test]
    fn a_malformed_object_spares_its_page() {
        let body = format!(
            r#"{{"metadata":{{"resourceVersion":"9","continue":"more"}},"items":[{},{}]}}"#,
            service("good", "80"),
            service("bad", r#""abc""#)
        );
        let page = page::<Service>(body.as_bytes()).unwrap();
        assert_eq!((page.continue_token.as_str(), page.resource_version.as_str()), ("more", "9"));
        assert!(page.items[0].value.is_some() && page.items[0].problems.is_empty());
        assert_eq!(page.items[1].key, ObjectKey::new("default", "bad"));
        assert!(page.items[1].value.is_none());
        assert!(page.items[1].problems[0].cause.contains("abc"), "{:?}", page.items[1].problems);
    }

    #[test]
    fn a_malformed_object_in_a_watch_is_named_and_moves_the_position_on() {
        let text = format!(r#"{{"type":"MODIFIED","object":{}}}"#, service("bad", r#""abc""#).replace('\n', ""));
        let line = line::<Service>(text.as_bytes()).unwrap();
        assert_eq!(line.resource_version, "7");
        let Change::Applied(parsed) = line.change else { panic!("{line:?}") };
        assert_eq!(parsed.key, ObjectKey::new("default", "bad"));
        assert!(parsed.value.is_none() && parsed.problems.len() == 1);
    }

    #[test]
    fn bookmarks_errors_and_statuses_are_told_apart() {
        let read = |text: &str| line::<Service>(text.as_bytes()).unwrap();
        let mark = r#"{"type":"BOOKMARK","object":{"kind":"Service","apiVersion":"v1","metadata":{"resourceVersion":"12"}}}"#;
        assert!(matches!(read(mark), Line { change: Change::Bookmark(false), resource_version } if resource_version == "12"));
        let end = mark.replace(r#""12""#, r#""12","annotations":{"k8s.io/initial-events-end":"true"}"#);
        assert!(matches!(read(&end).change, Change::Bookmark(true)));
        let gone = r#"{"type":"ERROR","object":{"kind":"Status","code":410,"message":"too old","reason":"Expired"}}"#;
        assert!(matches!(read(gone).change, Change::Error(status) if status.code == 410));
        let bare = r#"{"kind":"Status","code":500,"message":"boom"}"#;
        assert!(matches!(read(bare).change, Change::Error(status) if status.code == 500));
        assert!(line::<Service>(b"<html>").is_err());
    }

    #[test]
    fn what_is_no_list_is_not_an_empty_one() {
        let not_lists = [
            r"{}",
            r#"{"message":"please log in"}"#,
            r#"{"kind":"Status","metadata":{},"status":"Success"}"#,
            r#"{"metadata":{"resourceVersion":"3"}}"#,
            r#"{"metadata":{},"items":[]}"#,
            r#"{"items":null}"#,
        ];
        for text in not_lists {
            assert!(page::<Service>(text.as_bytes()).is_err(), "taken for a list: {text}");
        }
    }

    #[test]
    fn an_empty_list_may_be_null() {
        let page = page::<Service>(br#"{"metadata":{"resourceVersion":"3"},"items":null}"#).unwrap();
        assert!(page.items.is_empty() && page.continue_token.is_empty());
    }
}
