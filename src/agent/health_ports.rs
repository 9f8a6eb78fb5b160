//! The health check ports that Services want, kept in step with the state.

use std::collections::BTreeMap;

use crate::model::{Changes, ObjectKey, State};
use crate::serve::HealthPort;

/// Health check ports by Service.
#[derive(Debug, Default)]
pub struct HealthPorts {
    ports: BTreeMap<ObjectKey, HealthPort>,
    changed: bool,
}

impl HealthPorts {
    /// Takes changes in.
    pub fn update(&mut self, state: &State, changes: &Changes) {
        for key in &changes.services {
            self.set(key, wanted(state, key));
        }
    }

    /// All ports, if any port or count is another than when last asked.
    pub fn take_changed(&mut self) -> Option<Vec<HealthPort>> {
        std::mem::take(&mut self.changed).then(|| self.ports.values().cloned().collect())
    }

    fn set(&mut self, key: &ObjectKey, port: Option<HealthPort>) {
        if self.ports.get(key) == port.as_ref() {
            return;
        }
        self.changed = true;
        match port {
            Some(port) => drop(self.ports.insert(key.clone(), port)),
            None => drop(self.ports.remove(key)),
        }
    }
}

fn wanted(state: &State, key: &ObjectKey) -> Option<HealthPort> {
    let port = state.service(key)?.health_check_node_port;
    let local_endpoints = state.local_ready_endpoints(key);
    (port != 0).then(|| HealthPort { service: key.clone(), port, local_endpoints })
}
