//! The addresses of the node's interfaces, as events: node ports can depend on them.

use std::os::fd::{AsFd as _, AsRawFd, RawFd};
use std::time::Duration;

use anyhow::Context as _;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc::Sender;

use crate::model::Event;
use crate::netlink::address::{AddressMonitor, addresses};

/// Sends all addresses at first and whenever they changed.
pub async fn follow(events: Sender<Event>) -> anyhow::Result<()> {
    // Listen first, look second: what changes in between is seen.
    let monitor = AddressMonitor::open().context("follow the addresses of the node's interfaces")?;
    let mut monitor = AsyncFd::with_interest(Monitor(monitor), Interest::READABLE)?;
    loop {
        let found = addresses().context("follow the addresses of the node's interfaces")?;
        let found = found.into_iter().map(|a| a.address).collect();
        if events.send(Event::Addresses(found)).await.is_err() {
            return Ok(()); // whoever took them has ended, and says why
        }
        loop {
            let mut ready = monitor.readable_mut().await?;
            let changed = ready.get_inner_mut().0.wait(Duration::ZERO)?;
            ready.clear_ready();
            if changed {
                break;
            }
        }
    }
}

struct Monitor(AddressMonitor);

impl AsRawFd for Monitor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}
