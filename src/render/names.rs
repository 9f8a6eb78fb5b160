//! Every name and mark that the kernel, and so a person with iptables, sees of us.

use std::net::SocketAddr;

use data_encoding::BASE32;
use sha2::{Digest as _, Sha256};

use crate::model::ServicePort;
use crate::ruleset::{ChainName, Owner};

/// nfacct object that counts the packets dropped because conntrack could not place them.
pub const NFACCT_INVALID: &str = "ct_state_invalid_dropped_pkts";
/// nfacct object that counts the packets to node ports on loopback addresses.
pub const NFACCT_LOCALHOST: &str = "localhost_nps_accepted_pkts";

/// The table, one in each family, that nftables mode has all to itself.
pub const NFTABLES_TABLE: &str = "kube-proxy";

/// The chains of one service port share a hash of its name and protocol (behaviour.md §3.2).
#[derive(Debug)]
pub struct PortChains {
    /// `KUBE-SVC-`: to the endpoints of the Cluster policy.
    pub cluster: ChainName,
    /// `KUBE-SVL-`: to the endpoints of the Local policy.
    pub local: ChainName,
    /// `KUBE-EXT-`: entry for traffic from outside the cluster.
    pub external: ChainName,
    /// `KUBE-FW-`: the load balancer's source ranges.
    pub firewall: ChainName,
}

impl PortChains {
    pub fn of(port: &ServicePort) -> Self {
        let hash = hash(&[&port.name, port.protocol.as_str()]);
        let chain = |prefix: &str| ChainName::new(format!("{prefix}{hash}"));
        Self { cluster: chain("KUBE-SVC-"), local: chain("KUBE-SVL-"), external: chain("KUBE-EXT-"), firewall: chain("KUBE-FW-") }
    }
}

/// `KUBE-SEP-`: one endpoint of one service port. Also the name of its `recent` list.
pub fn endpoint_chain(port: &ServicePort, endpoint: SocketAddr) -> ChainName {
    ChainName::new(format!("KUBE-SEP-{}", hash(&[&port.name, port.protocol.as_str(), &endpoint.to_string()])))
}

/// What differences call a service port.
pub fn owner(port: &ServicePort) -> Owner {
    Owner::ServicePort(format!("{}/{}", port.name, port.protocol).into())
}

/// The first 16 characters of the Base32 of a SHA-256: 80 bits, so two names never meet by chance.
fn hash(parts: &[&str]) -> String {
    let mut sha = Sha256::new();
    for part in parts {
        sha.update(part);
    }
    let mut text = BASE32.encode(&sha.finalize());
    text.truncate(16);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The check values of behaviour.md §3.2, taken from kube-proxy.
    #[test]
    fn hashes_are_kube_proxys() {
        for (parts, want) in [
            (&["ns1/svc1:p80", "tcp"][..], "XPGD46QRK7WJZT7O"),
            (&["default/kubernetes:https", "tcp"], "NPX46M4PTMTKRN6Y"),
            (&["ns1/svc1:p80", "tcp", "10.244.0.1:8080"], "EUTZX3TP5527HRHV"),
            (&["ns1/svc1:p80", "tcp", "[fd00:244::1]:8080"], "MCDPB3DYT7EG3VWU"),
            (&["ns1/svc6", "tcp"], "H2BSOX5JJL4CR47B"),
        ] {
            assert_eq!(hash(parts), want);
        }
    }
}
