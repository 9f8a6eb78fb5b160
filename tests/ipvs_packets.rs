//! Real packets in ipvs mode, and what becomes of connections when things change: in the virtual machine, as few kernels
//! that tests run on have IPVS. The same laboratory of namespaces as in `packets.rs`; `ipvsadm`, `ipset` and `ip` tell
//! what is in the kernel.

#[path = "ipvs_packets/balance.rs"]
mod balance;
#[path = "ipvs_packets/changes.rs"]
mod changes;
#[path = "ipvs_packets/doors.rs"]
mod doors;
#[path = "ipvs_packets/drains.rs"]
mod drains;
mod support;
#[path = "ipvs_packets/view.rs"]
mod view;

use support::lab::{Family, Lab};
use support::machine::Machine;
use support::netns::Namespace;
use support::objects::{Door, Service};
use support::proxy::Sluice;
use support::traffic::{Fate, Protocol, ask};
use support::{PATIENCE, Scratch, wait_until};

const IN_GUEST: &str = r#"
uname -r
RUST_BACKTRACE=0 "$0" --ignored --test-threads 3
"#;
#[test]
fn on_linux_6_1() {
    let scratch = Scratch::new("ipvs-packets");
    let Some(machine) = Machine::run(&scratch, IN_GUEST) else { return };
    assert!(machine.failures.is_empty(), "{}", machine.failures.join("\n"));
}

/// node-a's proxy in ipvs mode, with more flags.
fn start<'lab>(lab: &'lab Lab, services: &[Service], flags: &[&str]) -> Sluice<'lab> {
    let sluice = Sluice::start_with(&lab.node_a, &lab.scratch, services, &[&["--mode=ipvs"], flags].concat());
    wait_until("both families are synced", PATIENCE, || sluice.log().matches(" rules are in force: ").count() == 2);
    sluice
}

/// The pod that answered, or what else became of the request.
fn pod_of(fate: &Fate) -> String {
    match fate {
        Fate::Answered { pod, .. } => pod.clone(),
        other => other.to_string(),
    }
}

/// Who answers so many new connections, one after the other.
fn asked(client: &Namespace, service: &Service, (family, door): (Family, Door), times: usize) -> Vec<String> {
    let to = service.at(family, door);
    client.run(|| (0..times).map(|_| pod_of(&ask(Protocol::Tcp, to))).collect())
}
