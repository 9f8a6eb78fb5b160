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
        changes.services.iter().fold(false, |any, key| self.set(key, wanted(state, key)) | any)
    }

    pub fn all(&self) -> Vec<HealthPort> {
        self.0.values().cloned().collect()
    }

    fn set(&mut self, key: &ObjectKey, port: Option<HealthPort>) -> bool {
        if self.0.get(key) == port.as_ref() {
            return false;
        }
        match port {
            Some(port) => drop(self.0.insert(key.clone(), port)),
            None => drop(self.0.remove(key)),
        }
        true
    }
}

fn wanted(state: &State, key: &ObjectKey) -> Option<HealthPort> {
    let port = state.service(key)?.health_check_node_port;
    let local_endpoints = state.local_ready_endpoints(key);
    (port != 0).then(|| HealthPort { service: key.clone(), port, local_endpoints })
}
