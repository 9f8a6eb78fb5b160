//! The addresses of the node's interfaces, as events: node ports can depend on them.

use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::mpsc::Sender;

use crate::model::Event;
use crate::netlink::Error;
use crate::netlink::address::AddressMonitor;

/// How often the thread looks whether anybody still wants to know.
const LOOK_UP: Duration = Duration::from_secs(5);

/// Sends all addresses at first and whenever they changed, from a thread of its own.
pub async fn follow(events: Sender<Event>) -> anyhow::Result<()> {
    let thread = tokio::task::spawn_blocking(move || watch(&events));
    thread.await?.context("follow the addresses of the node's interfaces")
}

fn watch(events: &Sender<Event>) -> Result<(), Error> {
    // Listen first, look second: what changes in between is seen.
    let mut monitor = AddressMonitor::open(None)?;
    loop {
        let found = monitor.list()?.into_iter().map(|a| a.address).collect();
        if events.blocking_send(Event::Addresses(found)).is_err() {
            return Ok(()); // whoever took them has ended, and says why
        }
        while !monitor.wait(LOOK_UP)?.any() {
            if events.is_closed() {
                return Ok(());
            }
        }
    }
}
