//! The addresses of the node's interfaces, as events: node ports can depend on them. In ipvs mode the addresses of
//! virtual servers stand on a device of their own, which is told apart: what becomes of it goes to the rule loop.

use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::Notify;
use tokio::sync::mpsc::Sender;

use crate::model::Event;
use crate::netlink::Error;
use crate::netlink::address::{AddressMonitor, DeviceChange};
use crate::netlink::link::DEVICE;

/// How often the thread looks whether anybody still wants to know.
const LOOK_UP: Duration = Duration::from_secs(5);

/// What became of the device of virtual servers' addresses, and has not been taken yet.
#[derive(Debug, Default)]
pub struct DeviceNews {
    changes: Mutex<Vec<DeviceChange>>,
    news: Notify,
}

impl DeviceNews {
    /// Waits until there is something to take.
    pub async fn news(&self) {
        self.news.notified().await;
    }

    pub fn take(&self) -> Vec<DeviceChange> {
        mem::take(&mut self.lock())
    }

    fn add(&self, changes: Vec<DeviceChange>) {
        if !changes.is_empty() {
            self.lock().extend(changes);
            self.news.notify_one();
        }
    }

    /// A thread that panicked left changes, which is all there is to it.
    fn lock(&self) -> MutexGuard<'_, Vec<DeviceChange>> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends all addresses at first and whenever they changed, from a thread of its own. With `device`, those of the
/// virtual servers' device are left out, and their changes go there.
pub async fn follow(events: Sender<Event>, device: Option<Arc<DeviceNews>>) -> anyhow::Result<()> {
    let thread = tokio::task::spawn_blocking(move || watch(&events, device.as_deref()));
    thread.await?.context("follow the addresses of the node's interfaces")
}

fn watch(events: &Sender<Event>, device: Option<&DeviceNews>) -> Result<(), Error> {
    // Listen first, look second: what changes in between is seen.
    let mut monitor = AddressMonitor::open(device.map(|_| DEVICE))?;
    loop {
        let own = monitor.device();
        let found = monitor.list()?.into_iter().filter(|found| own != Some(found.interface));
        if events.blocking_send(Event::Addresses(found.map(|found| found.address).collect())).is_err() {
            return Ok(()); // whoever took them has ended, and says why
        }
        loop {
            let changed = monitor.wait(LOOK_UP)?;
            let others = changed.others;
            if let Some(news) = device {
                news.add(changed.device);
            }
            if others {
                break;
            }
            if events.is_closed() {
                return Ok(());
            }
        }
    }
}
