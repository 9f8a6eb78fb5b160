//! Sets and their members as attributes, and attributes as sets and members. Pure: values in, bytes out, and back.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::super::attr::{Attributes, Writer};
#[allow(clippy::wildcard_imports, reason = "the numbers of the wire are this file's vocabulary")]
use super::wire::*;
use crate::net::{Family, Protocol};
use crate::ruleset::{Member, SetHeader, SetName, SetSpec, SetType};

/// What kube-proxy gives its sets, and ipset(8) any set by default. The kernel makes the table larger as it fills.
const SMALL: (u32, u32) = (1024, 65_536);
/// No set begins with more buckets: each takes 8 bytes at once.
const MOST_BUCKETS: u32 = 1 << 20;
/// More than a member with its line takes: two IPv6 addresses, a port, and four attributes of one byte or number.
pub const LONGEST_MEMBER: usize = 96;

/// `NFPROTO_*`; of a set without addresses it is none.
pub fn family_number(kind: SetType, family: Family) -> u8 {
    match (kind, family) {
        (SetType::BitmapPort, _) => 0,
        (_, Family::Ipv4) => 2,
        (_, Family::Ipv6) => 10,
    }
}

/// The revision of a type in which the last feature known here came (`bucketsize` or, of bitmaps, `skbinfo`). We use
/// none of the features: a lower one serves as well.
pub fn newest_revision(kind: SetType) -> u8 {
    match kind {
        SetType::HashIp => 5,
        SetType::HashIpPort | SetType::HashIpPortIp => 6,
        SetType::HashIpPortNet => 8,
        SetType::BitmapPort => 3,
    }
}

/// The attributes that make a set.
pub fn write_spec(w: &mut Writer, spec: &SetSpec, revision: u8) {
    w.text(IPSET_ATTR_SETNAME, spec.name.as_str());
    w.text(IPSET_ATTR_TYPENAME, spec.kind.as_str());
    w.bytes(IPSET_ATTR_REVISION, &[revision]);
    w.bytes(IPSET_ATTR_FAMILY, &[family_number(spec.kind, spec.family)]);
    w.nest(IPSET_ATTR_DATA, |w| {
        if spec.kind == SetType::BitmapPort {
            w.bytes(IPSET_ATTR_PORT | BIG_ENDIAN, &0_u16.to_be_bytes());
            w.bytes(IPSET_ATTR_PORT_TO | BIG_ENDIAN, &u16::MAX.to_be_bytes());
        } else {
            w.be32(IPSET_ATTR_HASHSIZE | BIG_ENDIAN, hash_size(spec.max_members));
            w.be32(IPSET_ATTR_MAXELEM | BIG_ENDIAN, spec.max_members);
        }
    });
}

/// How many buckets a set begins with. To grow a table step by step while it is filled takes five times as long as
/// to fill one of the right size: 46 ms for 9 ms with 20,000 members.
fn hash_size(max_members: u32) -> u32 {
    let (buckets, members) = SMALL;
    if max_members <= members {
        return buckets;
    }
    max_members.checked_next_power_of_two().map_or(MOST_BUCKETS, |power| (power / 2).min(MOST_BUCKETS))
}

/// The attributes of a member, within `IPSET_ATTR_DATA`.
pub fn write_member(w: &mut Writer, member: &Member) {
    match member {
        Member::Ip(ip) => write_address(w, IPSET_ATTR_IP, *ip),
        Member::IpPort(ip, protocol, port) => write_socket(w, *ip, *protocol, *port),
        Member::IpPortIp(ip, protocol, port, other) => {
            write_socket(w, *ip, *protocol, *port);
            write_address(w, IPSET_ATTR_IP2, *other);
        }
        Member::IpPortNet(ip, protocol, port, net) => {
            write_socket(w, *ip, *protocol, *port);
            write_address(w, IPSET_ATTR_IP2, net.network());
            w.bytes(IPSET_ATTR_CIDR2, &[net.prefix_len()]);
        }
        Member::Port(port) => w.bytes(IPSET_ATTR_PORT | BIG_ENDIAN, &port.to_be_bytes()),
    }
}

fn write_socket(w: &mut Writer, ip: IpAddr, protocol: Protocol, port: u16) {
    write_address(w, IPSET_ATTR_IP, ip);
    w.bytes(IPSET_ATTR_PORT | BIG_ENDIAN, &port.to_be_bytes());
    w.bytes(IPSET_ATTR_PROTO, &[protocol.number()]);
}

fn write_address(w: &mut Writer, kind: u16, address: IpAddr) {
    w.nest(kind, |w| match address {
        IpAddr::V4(ip) => w.bytes(IPSET_ATTR_IPADDR_IPV4 | BIG_ENDIAN, &ip.octets()),
        IpAddr::V6(ip) => w.bytes(IPSET_ATTR_IPADDR_IPV6 | BIG_ENDIAN, &ip.octets()),
    });
}

/// A set out of a listing. Of one with many members the kernel tells the rest in messages without a type: those are no
/// headers.
pub fn read_header(message: Attributes<'_>) -> Option<SetHeader> {
    let name = SetName::from(message.get(IPSET_ATTR_SETNAME)?.text()?);
    let type_name = message.get(IPSET_ATTR_TYPENAME)?.text()?;
    let family = match message.get(IPSET_ATTR_FAMILY).and_then(|a| a.byte()) {
        Some(2) => Some(Family::Ipv4),
        Some(10) => Some(Family::Ipv6),
        _ => None,
    };
    let data = message.get(IPSET_ATTR_DATA)?.nested();
    let number = |kind| data.get(kind).and_then(|a| a.be32());
    let kind = SetType::ALL.into_iter().find(|kind| kind.as_str() == type_name && is_plain(*kind, data));
    let max_members = match kind {
        Some(SetType::BitmapPort) => u32::from(u16::MAX) + 1,
        _ => number(IPSET_ATTR_MAXELEM).unwrap_or_default(),
    };
    Some(SetHeader {
        name,
        kind,
        type_name: type_name.into(),
        family,
        max_members,
        members: number(IPSET_ATTR_ELEMENTS).unwrap_or_default(),
        references: number(IPSET_ATTR_REFERENCES).unwrap_or_default(),
    })
}

/// Has a set no options beside size and limit? Each option is an attribute, whether we know it or not.
fn is_plain(kind: SetType, data: Attributes<'_>) -> bool {
    let port = |kind| data.get(kind).and_then(|a| a.be16());
    let size: &[u16] = match kind {
        SetType::BitmapPort => &[IPSET_ATTR_PORT, IPSET_ATTR_PORT_TO],
        _ => &[IPSET_ATTR_HASHSIZE, IPSET_ATTR_MAXELEM, IPSET_ATTR_BUCKETSIZE, IPSET_ATTR_INITVAL],
    };
    let all_ports = port(IPSET_ATTR_PORT) == Some(0) && port(IPSET_ATTR_PORT_TO) == Some(u16::MAX);
    let state = [IPSET_ATTR_ELEMENTS, IPSET_ATTR_REFERENCES, IPSET_ATTR_MEMSIZE];
    data.into_iter().all(|a| size.contains(&a.kind) || state.contains(&a.kind)) && (kind != SetType::BitmapPort || all_ports)
}

/// The number by which rules name a set.
pub fn read_index(message: Attributes<'_>) -> Option<u16> {
    message.get(IPSET_ATTR_INDEX)?.be16()
}

/// A member out of a listing; `None` for one of a kind that ours never are, as an exception (`nomatch`).
pub fn read_member(data: Attributes<'_>) -> Option<Member> {
    let known = [IPSET_ATTR_IP, IPSET_ATTR_PORT, IPSET_ATTR_PROTO, IPSET_ATTR_IP2, IPSET_ATTR_CIDR2];
    if data.into_iter().any(|attribute| !known.contains(&attribute.kind)) {
        return None;
    }
    let address = |kind| data.get(kind).map(|a| read_address(a.nested()));
    let byte = |kind| data.get(kind).map(|a| a.byte());
    let port = data.get(IPSET_ATTR_PORT).map(|a| a.be16());
    // The outer option: is it there? The inner: can it be understood?
    match (address(IPSET_ATTR_IP), byte(IPSET_ATTR_PROTO), port, address(IPSET_ATTR_IP2), byte(IPSET_ATTR_CIDR2)) {
        (Some(ip), None, None, None, None) => Some(Member::Ip(ip?)),
        (None, None, Some(port), None, None) => Some(Member::Port(port?)),
        (Some(ip), Some(number), Some(port), other, length) => {
            let (ip, protocol, port) = (ip?, Protocol::from_number(number?)?, port?);
            match (other, length) {
                (None, None) => Some(Member::IpPort(ip, protocol, port)),
                (Some(other), None) => Some(Member::IpPortIp(ip, protocol, port, other?)),
                (Some(other), Some(length)) => Some(Member::IpPortNet(ip, protocol, port, IpNet::new(other?, length?).ok()?)),
                (None, Some(_)) => None,
            }
        }
        _ => None,
    }
}

fn read_address(attributes: Attributes<'_>) -> Option<IpAddr> {
    if let Some(v4) = attributes.get(IPSET_ATTR_IPADDR_IPV4) {
        return Some(Ipv4Addr::from(<[u8; 4]>::try_from(v4.data).ok()?).into());
    }
    let v6 = attributes.get(IPSET_ATTR_IPADDR_IPV6)?;
    Some(Ipv6Addr::from(<[u8; 16]>::try_from(v6.data).ok()?).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members() -> Vec<Member> {
        let mut members = vec![Member::Port(0), Member::Port(u16::MAX)];
        for (ip, net) in [("10.96.0.1", "10.0.0.0/8"), ("fd00::1", "fd00::/64")] {
            let (ip, net): (IpAddr, IpNet) = (ip.parse().unwrap(), net.parse().unwrap());
            members.push(Member::Ip(ip));
            members.push(Member::IpPort(ip, Protocol::Sctp, 80));
            members.push(Member::IpPortIp(ip, Protocol::Tcp, 80, ip));
            members.push(Member::IpPortNet(ip, Protocol::Udp, 53, net));
            members.push(Member::IpPortNet(ip, Protocol::Udp, 53, ip.into()));
        }
        members
    }

    fn encoded(write: impl FnOnce(&mut Writer)) -> Vec<u8> {
        let mut w = Writer::default();
        write(&mut w);
        w.as_bytes().to_vec()
    }

    #[test]
    fn members_are_read_as_they_are_written() {
        for member in members() {
            let bytes = encoded(|w| write_member(w, &member));
            assert_eq!(read_member(Attributes(&bytes)), Some(member));
            assert!(bytes.len() + 12 < LONGEST_MEMBER, "{member} takes {} bytes, beside its header and line", bytes.len());
        }
    }

    #[test]
    fn members_that_ours_never_are_are_not_understood() {
        let ip = Member::Ip("10.96.0.1".parse().unwrap());
        let with = |kind, value: &[u8]| {
            let bytes = encoded(|w| {
                write_member(w, &ip);
                w.bytes(kind, value);
            });
            read_member(Attributes(&bytes))
        };
        assert_eq!(with(3, &[24]), None, "a network");
        assert_eq!(with(6, &[0, 0, 0, 9]), None, "a timeout");
        assert_eq!(with(8, &[0, 0, 0, 4]), None, "nomatch");
        assert_eq!(with(IPSET_ATTR_CIDR2, &[24]), None, "a length of nothing");
        let port = |protocol| {
            let bytes = encoded(|w| {
                write_address(w, IPSET_ATTR_IP, "10.96.0.1".parse().unwrap());
                w.bytes(IPSET_ATTR_PORT, &[0, 80]);
                w.bytes(IPSET_ATTR_PROTO, &[protocol]);
            });
            read_member(Attributes(&bytes))
        };
        assert!(port(6).is_some());
        assert_eq!(port(1), None, "icmp");
    }

    /// What the kernel says of a set that we made.
    fn header(spec: &SetSpec, more: impl FnOnce(&mut Writer)) -> Option<SetHeader> {
        let mut data = Writer::default();
        write_spec(&mut data, spec, 6);
        let options = Attributes(data.as_bytes()).get(IPSET_ATTR_DATA).unwrap().data;
        let bytes = encoded(|w| {
            w.text(IPSET_ATTR_SETNAME, spec.name.as_str());
            w.text(IPSET_ATTR_TYPENAME, spec.kind.as_str());
            w.bytes(IPSET_ATTR_FAMILY, &[family_number(spec.kind, spec.family)]);
            w.nest(IPSET_ATTR_DATA, |w| {
                for option in Attributes(options) {
                    w.bytes(option.kind, option.data);
                }
                w.be32(IPSET_ATTR_ELEMENTS, 7);
                w.be32(IPSET_ATTR_REFERENCES, 2);
                more(w);
            });
        });
        read_header(Attributes(&bytes))
    }

    #[test]
    fn a_set_with_options_is_none_of_ours() {
        for kind in SetType::ALL {
            let spec = SetSpec { name: "KUBE-X".into(), kind, family: Family::Ipv6, max_members: 65_536 };
            let plain = header(&spec, |_| {}).unwrap();
            assert_eq!((plain.kind, plain.max_members, plain.members, plain.references), (Some(kind), 65_536, 7, 2));
            assert_eq!(plain.family, Some(Family::Ipv6).filter(|_| kind != SetType::BitmapPort));
            let odd = header(&spec, |w| w.be32(6, 300)).unwrap();
            assert_eq!((odd.kind, &*odd.type_name), (None, kind.as_str()), "a timeout");
        }
    }

    #[test]
    fn large_sets_begin_large() {
        let sizes = [1, 65_536, 65_537, 131_072, 200_000, 1 << 30, u32::MAX].map(hash_size);
        assert_eq!(sizes, [1024, 1024, 65_536, 65_536, 131_072, 1 << 20, 1 << 20]);
    }

    #[test]
    fn garbled_bytes_are_never_a_panic() {
        let spec = SetSpec { name: "KUBE-X".into(), kind: SetType::HashIp, family: Family::Ipv4, max_members: 1 };
        let header = encoded(|w| write_spec(w, &spec, 1));
        let members = members().into_iter().map(|member| encoded(|w| write_member(w, &member)));
        for good in members.chain([header]) {
            for cut in 0..good.len() {
                read_header(Attributes(&good[..cut]));
                read_member(Attributes(&good[..cut]));
            }
            for place in 0..good.len() {
                for bit in 0..8 {
                    let mut bad = good.clone();
                    bad[place] ^= 1 << bit;
                    read_header(Attributes(&bad));
                    read_member(Attributes(&bad));
                    read_index(Attributes(&bad));
                }
            }
        }
    }
}
