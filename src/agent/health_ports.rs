//! The health check ports that Services want, kept in step with the state.

use std::collections::BTreeMap;

use crate::model::{Changes, ObjectKey, State};
use crate::serve::HealthPort;

/// Health check ports by Service.
#[derive(Debug, Default)]
pub struct HealthPorts(BTreeMap<ObjectKey, HealthPort>);

impl HealthPorts {
    /// Takes changes in; tells whether any port or count is another now.
    pub fn update(&mut self, state: &State, changes: &Changes) -> bool {
        let changed = |ports: &mut Self, key: &ObjectKey| ports.set(key, wanted(state, key));
        changes.services.iter().fold(false, |any, key| changed(self, key) | any)
    }

    pub fn all(&self) -> Vec<HealthPort> {
        self.0.values().cloned().collect()
    }

    fn set(&mut self, key: &ObjectKey, port: Option<HealthPort>) -> bool {
        let before = match &port {
            Some(port) => self.0.insert(key.clone(), port.clone()),
            None => self.0.remove(key),
        };
        before != port
    }
}

fn wanted(state: &State, key: &ObjectKey) -> Option<HealthPort> {
    let port = state.service(key)?.health_check_node_port;
    let local_endpoints = state.local_ready_endpoints(key);
    (port != 0).then(|| HealthPort { service: key.clone(), port, local_endpoints })
}
