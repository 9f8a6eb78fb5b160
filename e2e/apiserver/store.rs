//! The objects and their history. Knows nothing of HTTP.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::selector::Selector;

/// A kind that is served.
#[derive(Debug, PartialEq, Eq)]
pub struct Resource {
    pub name: &'static str,
    pub kind: &'static str,
    pub api_version: &'static str,
    pub namespaced: bool,
}

const RESOURCES: [Resource; 6] = [
    Resource { name: "services", kind: "Service", api_version: "v1", namespaced: true },
    Resource { name: "nodes", kind: "Node", api_version: "v1", namespaced: false },
    Resource { name: "namespaces", kind: "Namespace", api_version: "v1", namespaced: false },
    Resource { name: "endpointslices", kind: "EndpointSlice", api_version: "discovery.k8s.io/v1", namespaced: true },
    Resource { name: "servicecidrs", kind: "ServiceCIDR", api_version: "networking.k8s.io/v1", namespaced: false },
    Resource { name: "events", kind: "Event", api_version: "events.k8s.io/v1", namespaced: true },
];

impl Resource {
    pub fn named(api_version: &str, name: &str) -> Option<&'static Self> {
        RESOURCES.iter().find(|r| r.api_version == api_version && r.name == name)
    }
}

/// Resource name, namespace, name.
type Key = (&'static str, String, String);

/// A change: from `old` to `new`.
#[derive(Clone, Debug)]
pub struct Entry {
    pub revision: u64,
    pub resource: &'static str,
    pub old: Option<Arc<Value>>,
    pub new: Option<Arc<Value>>,
}

/// A list that was begun and is continued by its token.
struct Rest {
    revision: u64,
    items: Vec<Arc<Value>>,
}

/// A page of a list.
pub struct Page {
    pub revision: u64,
    pub items: Vec<Arc<Value>>,
    pub continue_token: String,
}

/// The position or token asked for is no longer known.
#[derive(Debug)]
pub struct Gone;

#[derive(Default)]
pub struct Store {
    /// Of the last change; the resourceVersion of whatever is listed now.
    pub revision: u64,
    /// Changes up to this one are forgotten.
    compacted: u64,
    objects: BTreeMap<Key, Arc<Value>>,
    history: Vec<Entry>,
    rests: BTreeMap<String, Rest>,
}

impl Store {
    pub fn put(&mut self, mut object: Value) -> u64 {
        let kind = object["kind"].as_str().expect("an object has a kind").to_owned();
        let resource = RESOURCES.iter().find(|r| r.kind == kind).unwrap_or_else(|| panic!("kind {kind} is not served"));
        self.revision += 1;
        let metadata = object["metadata"].as_object_mut().expect("an object has metadata");
        metadata.insert("resourceVersion".into(), json!(self.revision.to_string()));
        if resource.namespaced {
            metadata.entry("namespace").or_insert_with(|| json!("default"));
        }
        let text = |field: &str| metadata.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        let key = (resource.name, text("namespace"), text("name"));
        let new = Arc::new(object);
        let old = self.objects.insert(key, Arc::clone(&new));
        self.history.push(Entry { revision: self.revision, resource: resource.name, old, new: Some(new) });
        self.revision
    }

    pub fn delete(&mut self, resource: &str, namespace: &str, name: &str) {
        let resource = RESOURCES.iter().find(|r| r.name == resource).expect("a resource that is served").name;
        let old = self.objects.remove(&(resource, namespace.to_owned(), name.to_owned()));
        assert!(old.is_some(), "{resource} {namespace}/{name} is not there to be deleted");
        self.revision += 1;
        self.history.push(Entry { revision: self.revision, resource, old, new: None });
    }

    pub fn compact(&mut self) {
        // As in etcd: who has seen all there is can still go on from there.
        self.compacted = self.revision;
        self.history.clear();
        self.rests.clear();
    }

    pub fn get(&self, resource: &'static str, namespace: &str, name: &str) -> Option<Arc<Value>> {
        self.objects.get(&(resource, namespace.to_owned(), name.to_owned())).cloned()
    }

    pub fn all(&self, resource: &str, selector: &Selector) -> Vec<Arc<Value>> {
        let of_kind = self.objects.iter().filter(|((name, ..), object)| *name == resource && selector.matches(object));
        of_kind.map(|(_, object)| Arc::clone(object)).collect()
    }

    /// The changes after `position`, the newest last.
    pub fn since(&self, position: u64) -> Result<&[Entry], Gone> {
        if position < self.compacted {
            return Err(Gone);
        }
        let first = self.history.partition_point(|entry| entry.revision <= position);
        Ok(&self.history[first..])
    }

    /// The first page of a list; no limit: all of it.
    pub fn first_page(&mut self, resource: &str, selector: &Selector, limit: Option<usize>) -> Page {
        let rest = Rest { revision: self.revision, items: self.all(resource, selector) };
        self.page(rest, limit)
    }

    pub fn next_page(&mut self, token: &str, limit: Option<usize>) -> Result<Page, Gone> {
        let rest = self.rests.get(token).ok_or(Gone)?;
        let rest = Rest { revision: rest.revision, items: rest.items.clone() };
        Ok(self.page(rest, limit))
    }

    /// Later pages show what was there when the list was begun.
    fn page(&mut self, rest: Rest, limit: Option<usize>) -> Page {
        let Rest { revision, mut items } = rest;
        let tail = items.split_off(limit.unwrap_or(items.len()).min(items.len()));
        let continue_token = if tail.is_empty() { String::new() } else { format!("token-{}-{}", revision, tail.len()) };
        if !tail.is_empty() {
            self.rests.insert(continue_token.clone(), Rest { revision, items: tail });
        }
        Page { revision, items, continue_token }
    }
}
