//! What counts where the configuration says nothing (behaviour.md §1.3), and its normal form.
//!
//! Files such as kubeadm's say nothing by zero values: `mode: ""`, `syncPeriod: 0s`, `maxPerCore: null`.

use super::duration::GoDuration;
use super::kube_proxy::{
    API_VERSION, Conntrack, FlushFrequency, Iptables, Ipvs, KIND, KubeProxyConfiguration, Logging, Nftables,
};
use crate::net::parse_ip;

/// A bind address that means: nowhere. As controller-runtime has it; kube-proxy knows no way to say so in a file.
pub const NOT_SERVED: &str = "0";

pub(super) const HEALTHZ_PORT: u16 = 10256;
pub(super) const METRICS_PORT: u16 = 10249;

/// Requests to the API server in a second, and at once.
pub(super) const QPS: f32 = 5.0;
pub(super) const BURST: i32 = 10;

fn or<T: Default + PartialEq>(field: &mut T, default: impl Into<T>) {
    if *field == T::default() {
        *field = default.into();
    }
}

impl KubeProxyConfiguration {
    /// The configuration of a file that says nothing.
    pub fn of_defaults() -> Self {
        Self::default().with_defaults()
    }

    /// Fills in what counts where nothing is said.
    pub(super) fn with_defaults(mut self) -> Self {
        or(&mut self.kind, KIND);
        or(&mut self.api_version, API_VERSION);
        or(&mut self.bind_address, "0.0.0.0");
        let v6 = parse_ip(&self.bind_address).is_some_and(|address| address.is_ipv6());
        let (any, loopback) = if v6 { ("[::]", "[::1]") } else { ("0.0.0.0", "127.0.0.1") };
        or(&mut self.healthz_bind_address, any);
        or(&mut self.metrics_bind_address, loopback);
        or(&mut self.client_connection.content_type, "application/vnd.kubernetes.protobuf");
        or(&mut self.client_connection.qps, QPS);
        or(&mut self.client_connection.burst, BURST);
        or(&mut self.oom_score_adj, Some(-999));
        or(&mut self.config_sync_period, GoDuration::from_secs(15 * 60));
        logging(&mut self.logging);
        iptables(&mut self.iptables);
        or(&mut self.ipvs.sync_period, SYNC_PERIOD);
        or(&mut self.nftables.masquerade_bit, Some(MASQUERADE_BIT));
        or(&mut self.nftables.sync_period, SYNC_PERIOD);
        conntrack(&mut self.conntrack);
        self.with_ports()
    }

    fn with_ports(mut self) -> Self {
        self.healthz_bind_address = with_port(&self.healthz_bind_address, HEALTHZ_PORT.into());
        self.metrics_bind_address = with_port(&self.metrics_bind_address, METRICS_PORT.into());
        self
    }

    /// What is in effect: names of modes as they are used, and nothing of sections of other modes that kube-proxy has
    /// in one place for all.
    pub(super) fn normalized(self) -> Self {
        let mut it = self.with_ports();
        or(&mut it.mode, "iptables");
        or(&mut it.detect_local_mode, "ClusterCIDR");
        it.hostname_override = it.hostname_override.trim().to_lowercase();
        if it.mode == "nftables" {
            or(&mut it.node_port_addresses, ["primary".to_owned()]);
        }
        let none = GoDuration::default();
        if it.mode == "ipvs" || it.mode == "nftables" {
            it.iptables = Iptables { sync_period: none, min_sync_period: none, ..it.iptables };
        }
        if it.mode != "ipvs" {
            it.ipvs = Ipvs { sync_period: none, min_sync_period: none, ..it.ipvs };
        }
        if it.mode == "nftables" {
            it.iptables.masquerade_all = false;
        } else {
            it.nftables = Nftables { masquerade_all: false, sync_period: none, min_sync_period: none, ..it.nftables };
        }
        it
    }
}

const MASQUERADE_BIT: i32 = 14;
const SYNC_PERIOD: GoDuration = GoDuration::from_secs(30);

fn logging(fields: &mut Logging) {
    or(&mut fields.format, "text");
    or(&mut fields.flush_frequency, FlushFrequency(GoDuration::from_secs(5)));
}

/// The least time between syncs stays 0s, where kube-proxy has 1s (docs/differences.md).
fn iptables(fields: &mut Iptables) {
    or(&mut fields.masquerade_bit, Some(MASQUERADE_BIT));
    or(&mut fields.localhost_node_ports, Some(true));
    or(&mut fields.sync_period, SYNC_PERIOD);
}

fn conntrack(fields: &mut Conntrack) {
    or(&mut fields.max_per_core, Some(32 * 1024));
    or(&mut fields.min, Some(128 * 1024));
    or(&mut fields.tcp_established_timeout, Some(GoDuration::from_secs(24 * 3600)));
    or(&mut fields.tcp_close_wait_timeout, Some(GoDuration::from_secs(3600)));
}

/// A bind address with this port where it has none. What is no address stays, to be refused as it was written.
pub fn with_port(address: &str, port: i64) -> String {
    let bare = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address);
    match parse_ip(bare) {
        Some(ip) if ip.is_ipv6() => format!("[{bare}]:{port}"),
        Some(_) => format!("{bare}:{port}"),
        None => address.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bind_addresses_get_a_port_where_they_have_none() {
        let table = [
            ("127.0.0.1", "127.0.0.1:80"),
            ("127.0.0.1:81", "127.0.0.1:81"),
            ("::", "[::]:80"),
            ("[::1]", "[::1]:80"),
            ("[::1]:81", "[::1]:81"),
            ("localhost", "localhost"),
            (NOT_SERVED, NOT_SERVED),
            ("", ""),
        ];
        for (address, wanted) in table {
            assert_eq!(with_port(address, 80), wanted, "{address}");
        }
    }

    #[test]
    fn the_servers_addresses_are_of_the_family_of_the_bind_address() {
        let v6 = KubeProxyConfiguration { bind_address: "::".into(), ..KubeProxyConfiguration::default() }.with_defaults();
        assert_eq!((v6.healthz_bind_address.as_str(), v6.metrics_bind_address.as_str()), ("[::]:10256", "[::1]:10249"));
        let v4 = KubeProxyConfiguration::of_defaults();
        assert_eq!((v4.healthz_bind_address.as_str(), v4.metrics_bind_address.as_str()), ("0.0.0.0:10256", "127.0.0.1:10249"));
    }
}
