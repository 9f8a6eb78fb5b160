//! Where objects come from: files ([`manifests`]) or the API server ([`kube`]), both as [`Event`]s.
//!
//! What a watched kind is (where it is listed, how it is cut down, which events carry it) is written
//! once, as [`Watched`]; lists, watches and files are generic over it. Objects are cut down to the
//! model's values as they arrive and are not kept. This layer knows nothing of rules or the kernel,
//! and it does not remember objects: the State does.

mod backoff;
mod batch;
mod client;
mod decode;
mod describe;
mod documents;
mod follow;
pub mod kube;
mod list;
pub mod manifests;
mod outage;
mod rate;
pub mod recorder;
mod resolver;
mod series;
mod sink;
mod token;
mod watch;

use std::fmt::Debug;

use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc::Sender;

use crate::model::endpoint::HEADLESS_LABEL;
use crate::model::service::PROXY_NAME_LABEL;
use crate::model::{EndpointSlice, Event, Node, ObjectKey, Parsed, Service};

/// Whoever took the events has gone: there is nothing left to do for a source.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("events: nobody receives them any more")]
pub struct Closed;

/// A kind of object that is watched, and the events that speak of it.
pub(crate) trait Watched: Sized + Debug + Send + 'static {
    /// The API's type, decoded whole and then cut down to `Self`.
    type Object: DeserializeOwned + k8s_openapi::Metadata<Ty = ObjectMeta> + Send + 'static;

    const KIND: &'static str;
    const API_VERSION: &'static str;
    /// As RBAC and messages call it.
    const RESOURCE: &'static str;
    const NAMESPACED: bool;
    /// Where the API server lists it, all namespaces.
    const PATH: &'static str;
    /// What it means that it may not be read, for the operator.
    const WITHOUT: &'static str;

    fn cut_down(object: &Self::Object) -> Parsed<Self>;
    fn one(key: ObjectKey, value: Option<Self>) -> Event;
    fn all(values: Vec<(ObjectKey, Self)>) -> Event;
    /// What this node asks for, of all there is (behaviour.md §2.1).
    fn selectors(node_name: &str) -> Selectors;
}

/// Label and field selector of a watch; an empty one is not sent.
#[derive(Clone, Debug, Default)]
pub(crate) struct Selectors {
    pub labels: String,
    pub fields: String,
}

impl Watched for Service {
    type Object = core::Service;

    const KIND: &'static str = "Service";
    const API_VERSION: &'static str = "v1";
    const RESOURCE: &'static str = "services";
    const NAMESPACED: bool = true;
    const PATH: &'static str = "/api/v1/services";
    const WITHOUT: &'static str = "no change of a Service reaches this node";

    fn cut_down(object: &Self::Object) -> Parsed<Self> {
        Self::from_object(object)
    }

    fn one(key: ObjectKey, value: Option<Self>) -> Event {
        Event::Service(key, value)
    }

    fn all(values: Vec<(ObjectKey, Self)>) -> Event {
        Event::Services(values)
    }

    fn selectors(_: &str) -> Selectors {
        Selectors { labels: format!("!{PROXY_NAME_LABEL}"), fields: "spec.clusterIP!=None".into() }
    }
}

impl Watched for EndpointSlice {
    type Object = discovery::EndpointSlice;

    const KIND: &'static str = "EndpointSlice";
    const API_VERSION: &'static str = "discovery.k8s.io/v1";
    const RESOURCE: &'static str = "endpointslices";
    const NAMESPACED: bool = true;
    const PATH: &'static str = "/apis/discovery.k8s.io/v1/endpointslices";
    const WITHOUT: &'static str = "no change of endpoints reaches this node";

    fn cut_down(object: &Self::Object) -> Parsed<Self> {
        Self::from_object(object)
    }

    fn one(key: ObjectKey, value: Option<Self>) -> Event {
        Event::Slice(key, value)
    }

    fn all(values: Vec<(ObjectKey, Self)>) -> Event {
        Event::Slices(values)
    }

    fn selectors(_: &str) -> Selectors {
        Selectors { labels: format!("!{HEADLESS_LABEL}"), fields: String::new() }
    }
}

impl Watched for Node {
    type Object = core::Node;

    const KIND: &'static str = "Node";
    const API_VERSION: &'static str = "v1";
    const RESOURCE: &'static str = "nodes";
    const NAMESPACED: bool = false;
    const PATH: &'static str = "/api/v1/nodes";
    const WITHOUT: &'static str = "this node's zone, addresses and deletion are not known";

    fn cut_down(object: &Self::Object) -> Parsed<Self> {
        Self::from_object(object)
    }

    fn one(key: ObjectKey, value: Option<Self>) -> Event {
        Event::Node(key, value)
    }

    fn all(values: Vec<(ObjectKey, Self)>) -> Event {
        Event::Nodes(values)
    }

    fn selectors(node_name: &str) -> Selectors {
        Selectors { labels: String::new(), fields: format!("metadata.name={node_name}") }
    }
}

async fn send(sender: &Sender<Event>, event: Event) -> Result<(), Closed> {
    sender.send(event).await.map_err(|_| Closed)
}
