//! Addresses of Services that another interface of the node has too. The log names each once, since who looks for one on
//! `kube-ipvs0` should learn why it is not there, or why it is there twice.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::model::{ObjectKey, State};
use crate::net::Family;

/// What has been said, by Service.
#[derive(Debug, Default)]
pub(super) struct Elsewhere(BTreeMap<ObjectKey, BTreeSet<IpAddr>>);

impl Elsewhere {
    /// Names those of a Service that are new.
    pub fn tell(&mut self, state: &State, key: &ObjectKey, family: Family) {
        let before = self.0.remove(key).unwrap_or_default();
        let Some(of) = state.service(key).and_then(|service| service.families[family].as_ref()) else { return };
        let all = [of.cluster_ip].into_iter().chain(of.external_ips.iter().chain(&of.load_balancer_vips).copied());
        let elsewhere: BTreeSet<_> = all.filter(|address| state.has_address(*address)).collect();
        for address in elsewhere.difference(&before) {
            if *address == of.cluster_ip {
                tracing::warn!("ClusterIP {address} of Service {key} is also an address of another interface of this node");
            } else {
                tracing::info!(
                    "{address} of Service {key} is an address of another interface of this node: it is served there, and not \
                     put on kube-ipvs0"
                );
            }
        }
        if !elsewhere.is_empty() {
            self.0.insert(key.clone(), elsewhere);
        }
    }
}
