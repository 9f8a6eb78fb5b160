//! EndpointSlices: the fields rules depend on.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::discovery::v1 as api;

use super::{ObjectKey, Parsed, Problem};
use crate::net::{Family, Protocol, parse_ip};

/// Names the Service a slice belongs to.
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// A slice with this label is for a headless Service: no proxy's business.
pub const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
/// When the change was made that the slice was last written for (RFC 3339), as its controller has it.
const TRIGGER_ANNOTATION: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// An EndpointSlice, as far as rules depend on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    pub service: ObjectKey,
    pub family: Family,
    pub ports: Vec<SlicePort>,
    pub endpoints: Vec<SliceEndpoint>,
    /// When what the slice was last written for happened, such as a pod becoming ready. No rule depends on it.
    pub triggered: Option<Timestamp>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    pub name: Box<str>,
    pub protocol: Protocol,
    pub port: u16,
}

/// One entry of `endpoints`, still without a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceEndpoint {
    pub address: IpAddr,
    pub node_name: Option<Arc<str>>,
    pub conditions: Conditions,
    pub hints: Hints,
}

/// Conditions with the API's meaning of a missing one: ready and serving are true, terminating is false.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conditions {
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
}

/// Topology hints: for whom the EndpointSlice controller meant this endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    pub zones: Box<[Arc<str>]>,
    pub nodes: Box<[Arc<str>]>,
}

/// An endpoint of one service port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub address: SocketAddr,
    /// Is it on this node?
    pub local: bool,
    pub conditions: Conditions,
    pub hints: Hints,
}

impl EndpointSlice {
    /// Cuts an API object down. Entries that cannot be used are reported and left out.
    pub fn from_object(object: &api::EndpointSlice) -> Parsed<Self> {
        let key = super::key_of(&object.metadata);
        let mut problems = Vec::new();
        let value = Self::parse(object, &key, &mut problems);
        Parsed { key, value, problems }
    }

    fn parse(object: &api::EndpointSlice, key: &ObjectKey, problems: &mut Vec<Problem>) -> Option<Self> {
        let labels = object.metadata.labels.as_ref()?;
        if labels.contains_key(HEADLESS_LABEL) {
            return None;
        }
        let service = labels.get(SERVICE_NAME_LABEL).filter(|name| !name.is_empty())?;
        let family = match object.address_type.as_str() {
            "IPv4" => Family::Ipv4,
            "IPv6" => Family::Ipv6,
            other => {
                let cause = format!("{other:?} is not IPv4 or IPv6, the slice is left out");
                problems.push(Problem { field: "addressType".into(), cause });
                return None;
            }
        };
        Some(Self {
            service: ObjectKey::new(key.namespace(), service),
            family,
            ports: parse_ports(object, problems),
            endpoints: parse_endpoints(object, family, problems),
            triggered: parse_trigger(object, problems),
        })
    }

    /// Do rules come out the same?
    pub(super) fn same_to_rules(&self, other: &Self) -> bool {
        let Self { service, family, ports, endpoints, triggered: _ } = self;
        (service, family, ports, endpoints) == (&other.service, &other.family, &other.ports, &other.endpoints)
    }
}

fn parse_trigger(object: &api::EndpointSlice, problems: &mut Vec<Problem>) -> Option<Timestamp> {
    let text = object.metadata.annotations.as_ref()?.get(TRIGGER_ANNOTATION)?;
    let time = text.parse().ok();
    if time.is_none() {
        let field = format!("metadata.annotations[{TRIGGER_ANNOTATION}]");
        problems.push(Problem { field, cause: format!("{text:?} is not a time such as 2026-11-26T08:00:00.5Z") });
    }
    time
}

fn parse_ports(object: &api::EndpointSlice, problems: &mut Vec<Problem>) -> Vec<SlicePort> {
    let mut ports = Vec::with_capacity(object.ports.as_ref().map_or(0, Vec::len));
    for (i, port) in object.ports.iter().flatten().enumerate() {
        match parse_port(port) {
            Ok(port) => ports.push(port),
            Err(problem) => problems.push(problem.under(&format!("ports[{i}]"))),
        }
    }
    ports
}

fn parse_port(port: &api::EndpointPort) -> Result<SlicePort, Problem> {
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    let missing = || Problem { field: "port".into(), cause: "is missing: a Service port needs one".into() };
    let number = port.port.ok_or_else(missing)?;
    Ok(SlicePort {
        name: port.name.as_deref().unwrap_or_default().into(),
        protocol: Protocol::from_api(protocol)
            .ok_or_else(|| Problem { field: "protocol".into(), cause: format!("{protocol:?} is not TCP, UDP or SCTP") })?,
        port: super::port_number(number).ok_or_else(|| super::bad_port("port", number))?,
    })
}

fn parse_endpoints(object: &api::EndpointSlice, family: Family, problems: &mut Vec<Problem>) -> Vec<SliceEndpoint> {
    let listed = object.endpoints.as_deref().unwrap_or_default();
    let mut endpoints = Vec::with_capacity(listed.len());
    for (i, endpoint) in listed.iter().enumerate() {
        let Some(text) = endpoint.addresses.first() else {
            problems.push(Problem { field: format!("endpoints[{i}].addresses"), cause: "is empty".into() });
            continue;
        };
        match parse_ip(text).filter(|&address| Family::of(address) == family) {
            Some(address) => endpoints.push(parse_endpoint(endpoint, address)),
            None => problems.push(Problem {
                field: format!("endpoints[{i}].addresses[0]"),
                cause: format!("{text:?} is not an {family} address"),
            }),
        }
    }
    endpoints
}

fn parse_endpoint(endpoint: &api::Endpoint, address: IpAddr) -> SliceEndpoint {
    let conditions = endpoint.conditions.as_ref();
    let hints = endpoint.hints.as_ref();
    let zones = hints.and_then(|h| h.for_zones.as_deref()).unwrap_or_default();
    let nodes = hints.and_then(|h| h.for_nodes.as_deref()).unwrap_or_default();
    SliceEndpoint {
        address,
        node_name: endpoint.node_name.as_deref().map(Into::into),
        conditions: Conditions {
            ready: conditions.and_then(|c| c.ready).unwrap_or(true),
            serving: conditions.and_then(|c| c.serving).unwrap_or(true),
            terminating: conditions.and_then(|c| c.terminating).unwrap_or(false),
        },
        hints: Hints {
            zones: zones.iter().map(|z| z.name.as_str().into()).collect(),
            nodes: nodes.iter().map(|n| n.name.as_str().into()).collect(),
        },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_time_that_is_none_costs_the_slice_nothing() {
        let read = |time: &str| {
            let object = json!({
                "metadata": {
                    "name": "web-1", "namespace": "shop",
                    "labels": {SERVICE_NAME_LABEL: "web"}, "annotations": {TRIGGER_ANNOTATION: time},
                },
                "addressType": "IPv4",
                "endpoints": [{"addresses": ["10.244.0.1"]}],
                "ports": [{"port": 80}],
            });
            let Parsed { value, problems, .. } = EndpointSlice::from_object(&serde_json::from_value(object).unwrap());
            let slice = value.unwrap();
            (slice.endpoints.len(), slice.triggered, problems.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        assert_eq!(read("2026-11-26T08:00:00.5Z"), (1, Some("2026-11-26T08:00:00.5Z".parse().unwrap()), vec![]));
        let named = |(endpoints, at, problems): (usize, Option<Timestamp>, Vec<String>)| {
            endpoints == 1 && at.is_none() && problems[0].contains("last-change-trigger-time]: \"soon\" is not a time")
        };
        assert!(named(read("soon")));
    }

    #[test]
    fn a_port_that_cannot_be_used_is_named_and_the_others_are_taken() {
        let object = json!({
            "metadata": {"name": "web-1", "namespace": "shop", "labels": {SERVICE_NAME_LABEL: "web"}},
            "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.244.0.1"]}],
            "ports": [{"name": "none"}, {"name": "zero", "port": 0}, {"name": "http", "port": 80}],
        });
        let Parsed { value, problems, .. } = EndpointSlice::from_object(&serde_json::from_value(object).unwrap());
        assert_eq!(value.unwrap().ports.iter().map(|port| port.port).collect::<Vec<_>>(), [80]);
        let problems: Vec<_> = problems.iter().map(ToString::to_string).collect();
        assert!(problems[0].contains("ports[0].port: is missing"), "{problems:?}");
        assert!(problems[1].contains("ports[1].port: 0 is not a port number"), "{problems:?}");
        assert_eq!(problems.len(), 2, "{problems:?}");
    }
}
