//! What IPVS has on a node, as `ipvsadm` tells it, and the addresses of `kube-ipvs0`.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::slice::from_ref;

use super::support::netns::Namespace;
use super::support::{PATIENCE, wait_until};

/// Virtual servers by protocol, as `ipvsadm` writes it, and address.
pub type Servers = BTreeMap<(String, SocketAddr), Server>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// With what stands behind it: flags, persistence.
    pub scheduler: String,
    pub reals: Vec<Real>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Real {
    pub address: SocketAddr,
    pub weight: u32,
    pub active: u32,
    pub inactive: u32,
}

impl Server {
    pub fn real(&self, address: IpAddr) -> Option<&Real> {
        self.reals.iter().find(|real| real.address.ip() == address)
    }
}

/// # Panics
/// When `ipvsadm` fails or says what it never says.
pub fn servers(node: &Namespace) -> Servers {
    let mut servers = Servers::new();
    let mut current = None;
    for line in node.output(&["ipvsadm", "-Ln"]).lines().skip(3) {
        let words: Vec<_> = line.split_whitespace().collect();
        match words[..] {
            ["->", address, "Masq", weight, active, inactive] => {
                let number = |text: &str| text.parse().expect("a number");
                let real = Real {
                    address: address.parse().expect("an address"),
                    weight: number(weight),
                    active: number(active),
                    inactive: number(inactive),
                };
                let server: Option<&mut Server> = current.as_ref().and_then(|at| servers.get_mut(at));
                server.expect("a virtual server").reals.push(real);
            }
            [protocol, address, ..] => {
                let at = (protocol.to_owned(), address.parse().expect("an address"));
                servers.insert(at.clone(), Server { scheduler: words[2..].join(" "), reals: Vec::new() });
                current = Some(at);
            }
            _ => panic!("ipvsadm says {line:?}"),
        }
    }
    servers
}

/// The lines of `ipvsadm -Lnc`, one for each connection: protocol, time left, state, client, virtual server, real server.
///
/// The kernel keeps the connections of all namespaces in one table and hands it out in parts, each time finding its place
/// by counting; when another test connects meanwhile, a connection is told twice or left out. So this reads until two
/// readings tell of the same connections.
///
/// # Panics
/// When no two readings agree for as long as tests wait.
pub fn connections(node: &Namespace) -> Vec<String> {
    let read = || -> BTreeMap<Vec<String>, String> {
        let output = node.output(&["ipvsadm", "-Lnc"]);
        output.lines().skip(2).map(|line| (identity(line), line.to_owned())).collect()
    };
    let mut last = read();
    wait_until("two readings tell of the same connections", PATIENCE, || {
        let before = std::mem::replace(&mut last, read());
        before.keys().eq(last.keys())
    });
    last.into_values().collect()
}

/// What a connection is known by, whatever its state and the time it has left.
fn identity(line: &str) -> Vec<String> {
    let words: Vec<_> = line.split_whitespace().map(str::to_owned).collect();
    let [protocol, _, _, addresses @ ..] = &words[..] else { panic!("ipvsadm says {line:?}") };
    [from_ref(protocol), addresses].concat()
}

/// Whether this address is on `kube-ipvs0`.
pub fn has_address(node: &Namespace, address: IpAddr) -> bool {
    let output = node.exec(&["ip", "-o", "address", "show", "dev", "kube-ipvs0"]);
    let wanted = format!(" {address}/");
    String::from_utf8_lossy(&output.stdout).lines().any(|line| line.contains(&wanted))
}

/// The members of a set; none where there is no such set.
pub fn members(node: &Namespace, set: &str) -> Vec<String> {
    let output = node.exec(&["ipset", "list", set]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().skip_while(|line| !line.starts_with("Members:")).skip(1).map(str::to_owned).collect()
}
