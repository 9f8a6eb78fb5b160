//! The ipsets of ipvs mode: names, types, and what each says in the comments of rules (behaviour.md §4.5).

use crate::net::Family;
use crate::ruleset::{SetName, SetSpec, SetType};

/// One of the sets that kube-proxy makes, in its order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SetId {
    LoopBack,
    ClusterIp,
    ExternalIp,
    ExternalIpLocal,
    LoadBalancer,
    LoadBalancerFw,
    LoadBalancerLocal,
    LoadBalancerSourceIp,
    LoadBalancerSourceCidr,
    NodePortTcp,
    NodePortLocalTcp,
    NodePortUdp,
    NodePortLocalUdp,
    NodePortSctp,
    NodePortLocalSctp,
    HealthCheckNodePort,
    IpvsIps,
}

impl SetId {
    pub const ALL: [Self; 17] = [
        Self::LoopBack,
        Self::ClusterIp,
        Self::ExternalIp,
        Self::ExternalIpLocal,
        Self::LoadBalancer,
        Self::LoadBalancerFw,
        Self::LoadBalancerLocal,
        Self::LoadBalancerSourceIp,
        Self::LoadBalancerSourceCidr,
        Self::NodePortTcp,
        Self::NodePortLocalTcp,
        Self::NodePortUdp,
        Self::NodePortLocalUdp,
        Self::NodePortSctp,
        Self::NodePortLocalSctp,
        Self::HealthCheckNodePort,
        Self::IpvsIps,
    ];

    /// The name without `KUBE-` or `KUBE-6-`, and the type.
    fn entry(self) -> (&'static str, SetType) {
        match self {
            Self::LoopBack => ("LOOP-BACK", SetType::HashIpPortIp),
            Self::ClusterIp => ("CLUSTER-IP", SetType::HashIpPort),
            Self::ExternalIp => ("EXTERNAL-IP", SetType::HashIpPort),
            Self::ExternalIpLocal => ("EXTERNAL-IP-LOCAL", SetType::HashIpPort),
            Self::LoadBalancer => ("LOAD-BALANCER", SetType::HashIpPort),
            Self::LoadBalancerFw => ("LOAD-BALANCER-FW", SetType::HashIpPort),
            Self::LoadBalancerLocal => ("LOAD-BALANCER-LOCAL", SetType::HashIpPort),
            Self::LoadBalancerSourceIp => ("LOAD-BALANCER-SOURCE-IP", SetType::HashIpPortIp),
            Self::LoadBalancerSourceCidr => ("LOAD-BALANCER-SOURCE-CIDR", SetType::HashIpPortNet),
            Self::NodePortTcp => ("NODE-PORT-TCP", SetType::BitmapPort),
            Self::NodePortLocalTcp => ("NODE-PORT-LOCAL-TCP", SetType::BitmapPort),
            Self::NodePortUdp => ("NODE-PORT-UDP", SetType::BitmapPort),
            Self::NodePortLocalUdp => ("NODE-PORT-LOCAL-UDP", SetType::BitmapPort),
            Self::NodePortSctp => ("NODE-PORT-SCTP-HASH", SetType::HashIpPort),
            Self::NodePortLocalSctp => ("NODE-PORT-LOCAL-SCTP-HASH", SetType::HashIpPort),
            Self::HealthCheckNodePort => ("HEALTH-CHECK-NODE-PORT", SetType::BitmapPort),
            Self::IpvsIps => ("IPVS-IPS", SetType::HashIp),
        }
    }

    /// What the comments of rules say of it.
    pub fn comment(self) -> &'static str {
        match self {
            Self::LoopBack => "Kubernetes endpoints dst ip:port, source ip for solving hairpin purpose",
            Self::ClusterIp => "Kubernetes service cluster ip + port for masquerade purpose",
            Self::ExternalIp => "Kubernetes service external ip + port for masquerade and filter purpose",
            Self::ExternalIpLocal => "Kubernetes service external ip + port with externalTrafficPolicy=local",
            Self::LoadBalancer => "Kubernetes service lb portal",
            Self::LoadBalancerFw => "Kubernetes service load balancer ip + port for load balancer with sourceRange",
            Self::LoadBalancerLocal => "Kubernetes service load balancer ip + port with externalTrafficPolicy=local",
            Self::LoadBalancerSourceIp => "Kubernetes service load balancer ip + port + source IP for packet filter purpose",
            Self::LoadBalancerSourceCidr => "Kubernetes service load balancer ip + port + source cidr for packet filter purpose",
            Self::NodePortTcp => "Kubernetes nodeport TCP port for masquerade purpose",
            Self::NodePortLocalTcp => "Kubernetes nodeport TCP port with externalTrafficPolicy=local",
            Self::NodePortUdp => "Kubernetes nodeport UDP port for masquerade purpose",
            Self::NodePortLocalUdp => "Kubernetes nodeport UDP port with externalTrafficPolicy=local",
            Self::NodePortSctp => "Kubernetes nodeport SCTP port for masquerade purpose with type 'hash ip:port'",
            Self::NodePortLocalSctp => "Kubernetes nodeport SCTP port with externalTrafficPolicy=local with type 'hash ip:port'",
            Self::HealthCheckNodePort => "Kubernetes health check node port",
            Self::IpvsIps => "Addresses on the ipvs interface",
        }
    }

    pub fn kind(self) -> SetType {
        self.entry().1
    }

    /// The set's name in a family. The kernel takes 31 characters, and kube-proxy cuts at that.
    pub fn name(self, family: Family) -> SetName {
        const MAX: usize = 31;
        let prefix = match family {
            Family::Ipv4 => "KUBE-",
            Family::Ipv6 => "KUBE-6-",
        };
        let mut name = format!("{prefix}{}", self.entry().0);
        name.truncate(MAX);
        name.as_str().into()
    }

    /// The set with room for so many members.
    pub fn spec(self, family: Family, members: usize) -> SetSpec {
        SetSpec { name: self.name(family), kind: self.kind(), family, max_members: max_members(members) }
    }

    /// The name of the set that is made to take this one's place when it needs more room.
    pub fn larger_name(self, family: Family) -> SetName {
        format!("{}{}", larger_prefix(family), self as u8).as_str().into()
    }

    /// Is it the name of such a set? One that is found was left by a run that was killed.
    pub fn is_larger(name: &SetName, family: Family) -> bool {
        name.as_str().starts_with(larger_prefix(family))
    }

    fn bit(self) -> u32 {
        1 << self as u32
    }
}

/// How many members a set is made for that is to hold `count`: as many as by default while these are enough; else the
/// power of two that has [`room`] for them.
fn max_members(count: usize) -> u32 {
    const DEFAULT: u32 = 65_536;
    let mut max = DEFAULT;
    while room(max) < count && max < 1 << 31 {
        max *= 2;
    }
    max
}

/// How many members surely fit into a hash set that is made for `max_members`. The kernel divides its table, and the limit,
/// into regions, and refuses what falls into a full one while others have room (`mtype_add` in
/// `net/netfilter/ipset/ip_set_hash_gen.h`, since 5.6): a quarter less keeps chance out of it.
pub fn room(max_members: u32) -> usize {
    (max_members - max_members / 4) as usize
}

fn larger_prefix(family: Family) -> &'static str {
    match family {
        Family::Ipv4 => "KUBE-LARGER-",
        Family::Ipv6 => "KUBE-6-LARGER-",
    }
}

/// Which sets hold something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filled(u32);

impl Filled {
    pub fn contains(self, set: SetId) -> bool {
        self.0 & set.bit() != 0
    }

    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl FromIterator<SetId> for Filled {
    fn from_iter<T: IntoIterator<Item = SetId>>(sets: T) -> Self {
        Self(sets.into_iter().fold(0, |bits, set| bits | set.bit()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cut_as_the_kernel_demands() {
        let names: Vec<_> = SetId::ALL.iter().map(|set| set.name(Family::Ipv6)).collect();
        assert!(names.contains(&"KUBE-6-LOAD-BALANCER-SOURCE-CID".into()), "{names:?}");
        assert!(names.contains(&"KUBE-6-NODE-PORT-LOCAL-SCTP-HAS".into()));
        assert_eq!(SetId::LoadBalancerSourceCidr.name(Family::Ipv4).as_str(), "KUBE-LOAD-BALANCER-SOURCE-CIDR");
    }

    #[test]
    fn sets_grow_by_powers_of_two_with_room_to_spare() {
        let cases = [(0, 1 << 16), (49_152, 1 << 16), (49_153, 1 << 17), (98_304, 1 << 17), (98_305, 1 << 18)];
        for (count, want) in cases {
            assert_eq!(max_members(count), want, "{count}");
        }
        assert_eq!(max_members(usize::MAX), 1 << 31);
    }

    #[test]
    fn filled_sets_are_counted_apart() {
        let filled: Filled = [SetId::LoopBack, SetId::IpvsIps].into_iter().collect();
        assert!(SetId::ALL.into_iter().all(|set| filled.contains(set) == matches!(set, SetId::LoopBack | SetId::IpvsIps)));
    }
}
