//! The node this process runs on, as far as rules and health depend on it.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as api;

use super::{Parsed, Problem};
use crate::net::{Family, PerFamily, parse_cidr, parse_ip};

/// The zone that topology hints speak of.
pub const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
/// A node the cluster autoscaler is about to delete: load balancers should stop sending to it.
pub const DELETION_TAINT: &str = "ToBeDeletedByClusterAutoscaler";

/// A Node, as far as we depend on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    pub zone: Option<Arc<str>>,
    /// Internal addresses first, then external ones, each in the order of the object.
    pub addresses: Vec<IpAddr>,
    pub pod_cidrs: Vec<IpNet>,
    /// Being deleted, by the API or by the cluster autoscaler: `/healthz` answers 503.
    pub leaving: bool,
}

impl Node {
    /// Cuts an API object down. Fields that cannot be used are reported and left out.
    pub fn from_object(object: &api::Node) -> Parsed<Self> {
        let mut problems = Vec::new();
        let node = Self {
            zone: zone(object),
            addresses: addresses(object, &mut problems),
            pod_cidrs: pod_cidrs(object, &mut problems),
            leaving: is_leaving(object),
        };
        Parsed { key: super::key_of(&object.metadata), value: Some(node), problems }
    }

    /// The node's first address of each family.
    pub fn primary_addresses(&self) -> PerFamily<Option<IpAddr>> {
        PerFamily::from_fn(|family| self.addresses.iter().copied().find(|&a| Family::of(a) == family))
    }

    /// The first pod CIDR of each family.
    pub fn primary_pod_cidrs(&self) -> PerFamily<Option<IpNet>> {
        PerFamily::from_fn(|family| self.pod_cidrs.iter().copied().find(|c| Family::of_net(c) == family))
    }
}

/// An empty label names no zone, so that an empty hint does not mean this node.
fn zone(object: &api::Node) -> Option<Arc<str>> {
    let label = object.metadata.labels.as_ref()?.get(ZONE_LABEL)?;
    (!label.is_empty()).then(|| label.as_str().into())
}

fn addresses(object: &api::Node, problems: &mut Vec<Problem>) -> Vec<IpAddr> {
    let listed = object.status.as_ref().and_then(|s| s.addresses.as_deref()).unwrap_or_default();
    let mut found = Vec::new();
    for kind in ["InternalIP", "ExternalIP"] {
        for (i, entry) in listed.iter().enumerate().filter(|(_, entry)| entry.type_ == kind) {
            match parse_ip(&entry.address) {
                Some(address) => found.push(address),
                None => problems.push(Problem {
                    field: format!("status.addresses[{i}].address"),
                    cause: format!("{:?} is not an IP address", entry.address),
                }),
            }
        }
    }
    found
}

fn pod_cidrs(object: &api::Node, problems: &mut Vec<Problem>) -> Vec<IpNet> {
    let Some(spec) = &object.spec else { return Vec::new() };
    let listed = spec.pod_cidrs.as_deref().filter(|cidrs| !cidrs.is_empty());
    let texts = listed.unwrap_or(spec.pod_cidr.as_slice());
    let mut found = Vec::new();
    for (i, text) in texts.iter().enumerate() {
        match parse_cidr(text) {
            Some(net) => found.push(net),
            None => problems.push(Problem { field: format!("spec.podCIDRs[{i}]"), cause: format!("{text:?} is not a CIDR") }),
        }
    }
    found
}

fn is_leaving(object: &api::Node) -> bool {
    let taints = object.spec.as_ref().and_then(|s| s.taints.as_deref()).unwrap_or_default();
    object.metadata.deletion_timestamp.is_some() || taints.iter().any(|t| t.key == DELETION_TAINT)
}
