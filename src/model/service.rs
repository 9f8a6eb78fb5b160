//! Services: the fields rules depend on, and the service ports a family sees.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as api;

use super::{ObjectKey, Parsed, Problem};
use crate::net::{Family, PerFamily, Protocol, parse_cidr, parse_ip};

/// A Service with this label belongs to another proxy.
pub const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";

/// The API's default for `sessionAffinityConfig.clientIP.timeoutSeconds`: three hours.
const DEFAULT_AFFINITY_SECONDS: u32 = 10_800;

/// A Service, both families, as far as rules depend on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub families: PerFamily<Option<Addresses>>,
    pub ports: Vec<PortSpec>,
    /// `spec.sessionAffinity: ClientIP` with its timeout in seconds (1 to 86,400).
    pub affinity_seconds: Option<u32>,
    pub external_policy_local: bool,
    pub internal_policy_local: bool,
    /// 0: none.
    pub health_check_node_port: u16,
}

/// The addresses a Service has in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses {
    pub cluster_ip: IpAddr,
    pub external_ips: Vec<IpAddr>,
    /// Load balancer addresses that are virtual IPs on the node (`ipMode: VIP` or none).
    pub load_balancer_vips: Vec<IpAddr>,
    /// Empty: everybody may.
    pub source_ranges: Vec<IpNet>,
}

/// One entry of `spec.ports`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortSpec {
    pub name: Box<str>,
    pub protocol: Protocol,
    pub port: u16,
    /// 0: none.
    pub node_port: u16,
}

/// A port of a Service as one family sees it: the unit that rules are rendered for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// `namespace/name` or `namespace/name:port`: what comments say and chain names hash.
    pub name: Arc<str>,
    pub port_name: Box<str>,
    pub protocol: Protocol,
    pub port: u16,
    pub node_port: u16,
    pub addresses: Addresses,
    pub affinity_seconds: Option<u32>,
    pub external_policy_local: bool,
    pub internal_policy_local: bool,
    pub health_check_node_port: u16,
}

impl ServicePort {
    pub fn cluster_ip(&self) -> IpAddr {
        self.addresses.cluster_ip
    }

    /// Can it be reached from outside the cluster: by a node port, an external or a load balancer IP?
    pub fn externally_accessible(&self) -> bool {
        self.node_port != 0 || !self.addresses.external_ips.is_empty() || !self.addresses.load_balancer_vips.is_empty()
    }

    /// Does any of its traffic go to the endpoints of the whole cluster?
    pub fn uses_cluster_endpoints(&self) -> bool {
        !self.internal_policy_local || self.externally_accessible()
    }

    /// Does any of its traffic go to this node's endpoints only?
    pub fn uses_local_endpoints(&self) -> bool {
        self.internal_policy_local || (self.external_policy_local && self.externally_accessible())
    }
}

impl Service {
    /// Cuts an API object down. Fields that cannot be used are reported and left out.
    pub fn from_object(object: &api::Service) -> Parsed<Self> {
        let key = super::key_of(&object.metadata);
        let mut problems = Vec::new();
        let named = [("metadata.namespace", key.namespace()), ("metadata.name", key.name())];
        let value = match named.iter().find_map(|(field, name)| bad_name(field, name)) {
            _ if !Self::is_for_us(object) => None,
            Some(problem) => {
                problems.push(problem);
                None
            }
            None => Self::parse(object, &mut problems),
        };
        Parsed { key, value, problems }
    }

    /// The watch's selectors (behaviour.md §2.1) and what the proxy itself ignores (§2.2).
    fn is_for_us(object: &api::Service) -> bool {
        let labelled = object.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(PROXY_NAME_LABEL));
        let Some(spec) = &object.spec else { return false };
        let cluster_ip = spec.cluster_ip.as_deref().unwrap_or_default();
        !labelled && !cluster_ip.is_empty() && cluster_ip != "None" && spec.type_.as_deref() != Some("ExternalName")
    }

    fn parse(object: &api::Service, problems: &mut Vec<Problem>) -> Option<Self> {
        let spec = object.spec.as_ref()?;
        let families = parse_addresses(spec, object.status.as_ref(), problems);
        let kind = spec.type_.as_deref().unwrap_or("ClusterIP");
        let has_external_ips = spec.external_ips.as_ref().is_some_and(|ips| !ips.is_empty());
        let external_policy_local = spec.external_traffic_policy.as_deref() == Some("Local")
            && (kind == "LoadBalancer" || kind == "NodePort" || has_external_ips);
        let service = Self {
            ports: parse_ports(spec, problems),
            affinity_seconds: parse_affinity(spec, problems),
            external_policy_local,
            internal_policy_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
            health_check_node_port: parse_health_port(spec, kind == "LoadBalancer" && external_policy_local, problems),
            families,
        };
        let visible = Family::ALL.iter().any(|&f| service.families[f].is_some());
        (visible && !service.ports.is_empty()).then_some(service)
    }

    /// The service ports that `family` sees, in the order of the object.
    pub fn ports_of<'a>(&'a self, key: &'a ObjectKey, family: Family) -> impl Iterator<Item = ServicePort> + 'a {
        let addresses = self.families[family].as_ref();
        self.ports.iter().filter_map(move |port| Some(self.service_port(key, port, addresses?)))
    }

    fn service_port(&self, key: &ObjectKey, port: &PortSpec, addresses: &Addresses) -> ServicePort {
        let name = if port.name.is_empty() { key.to_string() } else { format!("{key}:{}", port.name) };
        ServicePort {
            name: name.into(),
            port_name: port.name.clone(),
            protocol: port.protocol,
            port: port.port,
            node_port: port.node_port,
            addresses: addresses.clone(),
            affinity_seconds: self.affinity_seconds,
            external_policy_local: self.external_policy_local,
            internal_policy_local: self.internal_policy_local,
            health_check_node_port: self.health_check_node_port,
        }
    }
}

fn parse_addresses(
    spec: &api::ServiceSpec,
    status: Option<&api::ServiceStatus>,
    problems: &mut Vec<Problem>,
) -> PerFamily<Option<Addresses>> {
    let cluster_ips = parse_cluster_ips(spec, problems);
    let mut external_ips = external_ips(spec, problems);
    let mut vips = load_balancer_vips(status, problems);
    let mut ranges = source_ranges(spec, problems);
    PerFamily::from_fn(|family| {
        Some(Addresses {
            cluster_ip: cluster_ips[family]?,
            external_ips: std::mem::take(&mut external_ips[family]),
            load_balancer_vips: std::mem::take(&mut vips[family]),
            source_ranges: std::mem::take(&mut ranges[family]),
        })
    })
}

/// The ClusterIP of each family: the n-th of `clusterIPs` is of the n-th of `ipFamilies`. Without those lists,
/// `clusterIP` alone counts (behaviour.md §2.2).
fn parse_cluster_ips(spec: &api::ServiceSpec, problems: &mut Vec<Problem>) -> PerFamily<Option<IpAddr>> {
    let mut found = PerFamily::<Option<IpAddr>>::default();
    let listed = spec.cluster_ips.as_deref().unwrap_or_default();
    let families = spec.ip_families.as_deref().unwrap_or_default();
    if families.is_empty() || listed.is_empty() {
        let text = spec.cluster_ip.as_deref().unwrap_or_default();
        match parse_ip(text) {
            Some(address) => found[Family::of(address)] = Some(address),
            None => problems.push(Problem { field: "spec.clusterIP".into(), cause: format!("{text:?} is not an IP address") }),
        }
    }
    for (i, (family, text)) in families.iter().zip(listed).enumerate() {
        match parse_ip(text).filter(|&address| Family::of(address).as_str() == family) {
            Some(address) => found[Family::of(address)] = Some(address),
            None => problems.push(Problem {
                field: format!("spec.clusterIPs[{i}]"),
                cause: format!("{text:?} is not an {family} address, as spec.ipFamilies[{i}] says"),
            }),
        }
    }
    found
}

/// Sorts `texts` by family as `parse` reads them; what it cannot read is a problem of `field[index]`.
fn by_family<'a, T>(
    texts: impl Iterator<Item = (String, &'a str)>,
    parse: impl Fn(&str) -> Option<T>,
    family: impl Fn(&T) -> Family,
    problems: &mut Vec<Problem>,
) -> PerFamily<Vec<T>> {
    let mut sorted = PerFamily::<Vec<T>>::default();
    for (field, text) in texts {
        match parse(text) {
            Some(value) => sorted[family(&value)].push(value),
            None => problems.push(Problem { field, cause: format!("{text:?} cannot be used, left out") }),
        }
    }
    sorted
}

fn external_ips(spec: &api::ServiceSpec, problems: &mut Vec<Problem>) -> PerFamily<Vec<IpAddr>> {
    let texts = spec.external_ips.iter().flatten().enumerate();
    by_family(texts.map(|(i, t)| (format!("spec.externalIPs[{i}]"), t.as_str())), parse_ip, |ip| Family::of(*ip), problems)
}

fn load_balancer_vips(status: Option<&api::ServiceStatus>, problems: &mut Vec<Problem>) -> PerFamily<Vec<IpAddr>> {
    let ingress = status.and_then(|s| s.load_balancer.as_ref()).and_then(|lb| lb.ingress.as_deref()).unwrap_or_default();
    let texts = ingress.iter().enumerate().filter_map(|(i, entry)| {
        let vip = entry.ip_mode.as_deref().is_none_or(|mode| mode == "VIP");
        let ip = entry.ip.as_deref().filter(|ip| vip && !ip.is_empty())?;
        Some((format!("status.loadBalancer.ingress[{i}].ip"), ip))
    });
    by_family(texts, parse_ip, |ip| Family::of(*ip), problems)
}

/// A range of length zero admits everybody, so it empties its family's list.
fn source_ranges(spec: &api::ServiceSpec, problems: &mut Vec<Problem>) -> PerFamily<Vec<IpNet>> {
    let texts = spec.load_balancer_source_ranges.iter().flatten().enumerate();
    let texts = texts.map(|(i, t)| (format!("spec.loadBalancerSourceRanges[{i}]"), t.trim()));
    let mut ranges = by_family(texts, parse_cidr, Family::of_net, problems);
    for family in Family::ALL {
        if ranges[family].iter().any(|net| net.prefix_len() == 0) {
            ranges[family].clear();
        }
    }
    ranges
}

/// Of two ports with one name and protocol the later counts: names of chains are made of these, so there
/// can be only one.
fn parse_ports(spec: &api::ServiceSpec, problems: &mut Vec<Problem>) -> Vec<PortSpec> {
    let mut found = Vec::<PortSpec>::with_capacity(spec.ports.as_ref().map_or(0, Vec::len));
    for (i, port) in spec.ports.iter().flatten().enumerate() {
        let place = || format!("spec.ports[{i}]");
        match parse_port(port) {
            Err(problem) => problems.push(problem.under(&place())),
            Ok(port) => match found.iter_mut().find(|p| p.name == port.name && p.protocol == port.protocol) {
                None => found.push(port),
                Some(earlier) => {
                    let cause = format!("takes the place of an earlier port with the same name and protocol {}", port.protocol);
                    problems.push(Problem { field: place(), cause });
                    *earlier = port;
                }
            },
        }
    }
    found
}

/// What the API server never lets pass, but a file can say: `/` and `:` divide the names that chains are
/// called after, and a line break has no place in any rule.
fn bad_name(field: &str, name: &str) -> Option<Problem> {
    let bad = name.contains(|c: char| c.is_control() || c == '/' || c == ':');
    bad.then(|| Problem { field: field.into(), cause: format!("{name:?} is no name, left out") })
}

fn parse_port(port: &api::ServicePort) -> Result<PortSpec, Problem> {
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    if let Some(problem) = bad_name("name", port.name.as_deref().unwrap_or_default()) {
        return Err(problem);
    }
    Ok(PortSpec {
        name: port.name.as_deref().unwrap_or_default().into(),
        protocol: Protocol::from_api(protocol)
            .ok_or_else(|| Problem { field: "protocol".into(), cause: format!("{protocol:?} is not TCP, UDP or SCTP") })?,
        port: super::port_number(port.port).ok_or_else(|| super::bad_port("port", port.port))?,
        node_port: match port.node_port {
            None | Some(0) => 0,
            Some(number) => super::port_number(number).ok_or_else(|| super::bad_port("nodePort", number))?,
        },
    })
}

fn parse_affinity(spec: &api::ServiceSpec, problems: &mut Vec<Problem>) -> Option<u32> {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return None;
    }
    let config = spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref());
    let Some(seconds) = config.and_then(|c| c.timeout_seconds) else { return Some(DEFAULT_AFFINITY_SECONDS) };
    if let Ok(seconds @ 1..=86_400) = u32::try_from(seconds) {
        Some(seconds)
    } else {
        let cause = format!("{seconds} is not in 1..86400, taken as {DEFAULT_AFFINITY_SECONDS}");
        problems.push(Problem { field: "spec.sessionAffinityConfig.clientIP.timeoutSeconds".into(), cause });
        Some(DEFAULT_AFFINITY_SECONDS)
    }
}

fn parse_health_port(spec: &api::ServiceSpec, wanted: bool, problems: &mut Vec<Problem>) -> u16 {
    if !wanted {
        return 0;
    }
    let number = spec.health_check_node_port.unwrap_or(0);
    super::port_number(number).unwrap_or_else(|| {
        problems.push(super::bad_port("spec.healthCheckNodePort", number));
        0
    })
}
