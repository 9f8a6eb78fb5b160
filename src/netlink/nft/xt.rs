//! The payloads of xt matches and targets: the structures iptables extensions pass to the kernel
//! through `nft_compat`. One small function makes each, and one reads each.
//!
//! A reader takes the few fields it knows, makes the payload of them again, and understands only what
//! is then the same to the byte: a flag we do not know is never overlooked.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;

use super::super::attr::c_string;
use super::names::Names;
use crate::net::{Family, Protocol};
use crate::ruleset::{AddrType, Comment, CtStates, Direction, Match, Negatable, RecentAction, RejectWith, Target};

/// Revision and size of what we write, after `XT_ALIGN` (8 bytes).
#[derive(Clone, Copy, Debug)]
pub struct Extension {
    pub name: &'static str,
    pub revision: u32,
}

const fn extension(name: &'static str, revision: u32) -> Extension {
    Extension { name, revision }
}

const ADDRTYPE: Extension = extension("addrtype", 1);
const COMMENT: Extension = extension("comment", 0);
const CONNTRACK: Extension = extension("conntrack", 3);
const IPVS: Extension = extension("ipvs", 0);
const NFACCT: Extension = extension("nfacct", 1);
const PHYSDEV: Extension = extension("physdev", 0);
const RECENT: Extension = extension("recent", 1);
const SCTP: Extension = extension("sctp", 0);
const SET: Extension = extension("set", 4);
const STATISTIC: Extension = extension("statistic", 0);
const TCP: Extension = extension("tcp", 0);
const UDP: Extension = extension("udp", 0);
const DNAT: Extension = extension("DNAT", 2);
const MARK: Extension = extension("MARK", 2);
const MASQUERADE: Extension = extension("MASQUERADE", 0);
const REJECT: Extension = extension("REJECT", 0);

/// Passes the xt form of a match to `write`, of a set without its number; false for the two that are native expressions
/// (marks, and ports of TCP and UDP), as iptables 1.8.9 writes them.
pub fn write_match(m: &Match, write: &mut dyn FnMut(Extension, &[u8])) -> bool {
    match m {
        Match::AddrType(kind) => write(ADDRTYPE, &addrtype(*kind)),
        Match::Comment(text) => write(COMMENT, &comment(text)),
        Match::Conntrack(states) => write(CONNTRACK, &conntrack(states)),
        Match::Ipvs { protocol, address, port } => write(IPVS, &ipvs(*protocol, *address, *port)),
        Match::NfAcct(name) => write(NFACCT, &nfacct(name)),
        Match::NotFromBridge => write(PHYSDEV, &not_from_bridge()),
        Match::Port { protocol: Protocol::Sctp, destination } => write(SCTP, &sctp(*destination)),
        Match::Port { protocol: Protocol::Tcp, destination: None } => write(TCP, &any_port()),
        Match::Port { protocol: Protocol::Udp, destination: None } => write(UDP, &any_port()),
        Match::Recent { family: _, list, action } => write(RECENT, &recent(list.as_str(), *action)),
        Match::Set { directions, .. } => write(SET, &set(directions)),
        Match::Statistic { probability } => write(STATISTIC, &statistic(*probability)),
        Match::Mark(_) | Match::Port { .. } => return false,
    }
    true
}

/// Passes the xt form of a target to `write`; false for those that are verdicts.
pub fn write_target(family: Family, target: &Target, write: &mut dyn FnMut(Extension, &[u8])) -> bool {
    match target {
        Target::Dnat(to) => write(DNAT, &dnat(*to)),
        Target::Mark { value, mask } => write(MARK, &mark(*value, *mask)),
        Target::Masquerade { random_fully } => match family {
            Family::Ipv4 => write(MASQUERADE, &masquerade_v4(*random_fully)),
            Family::Ipv6 => write(MASQUERADE, &masquerade_v6(*random_fully)),
        },
        Target::Reject(with) => write(REJECT, &reject(*with)),
        Target::Accept | Target::Drop | Target::Jump(_) | Target::Return => return false,
    }
    true
}

/// Reads a match; `None` if it is not exactly one we could have written.
pub fn read_match(family: Family, name: &str, info: &[u8], names: &mut Names) -> Option<Match> {
    match name {
        "addrtype" => read_addrtype(info),
        "comment" => c_string(info).map(Comment::new).map(Match::Comment),
        "conntrack" => Some(Match::Conntrack(Negatable { not: field16(info, 148)? != 0, value: CtStates(field16(info, 150)?) })),
        "ipvs" => read_ipvs(family, info),
        "nfacct" => c_string(info.get(..32)?).map(|name| Match::NfAcct(name.into())),
        "physdev" => Some(Match::NotFromBridge),
        "recent" => read_recent(family, info, names),
        "sctp" => Some(port(Protocol::Sctp, (field32(info, 284)? != 0).then_some(field16(info, 0)?))),
        "set" => read_set(info, names),
        "statistic" => Some(Match::Statistic { probability: field32(info, 4)? }),
        "tcp" => Some(port(Protocol::Tcp, None)),
        "udp" => Some(port(Protocol::Udp, None)),
        _ => None,
    }
}

/// Reads a target; `None` if it is not exactly one we could have written.
pub fn read_target(family: Family, name: &str, info: &[u8]) -> Option<Target> {
    match name {
        "DNAT" => read_dnat(family, info),
        "MARK" => Some(Target::Mark { value: field32(info, 0)?, mask: field32(info, 4)? }),
        "MASQUERADE" => {
            let flags = field32(info, if family == Family::Ipv4 { 4 } else { 0 })?;
            Some(Target::Masquerade { random_fully: flags != 0 })
        }
        // The number is compared by `same`; 4 means another answer in IPv4.
        "REJECT" => Some(Target::Reject(match family {
            Family::Ipv4 => RejectWith::IcmpPortUnreachable,
            Family::Ipv6 => RejectWith::Icmp6PortUnreachable,
        })),
        _ => None,
    }
}

fn field16(info: &[u8], offset: usize) -> Option<u16> {
    info.get(offset..)?.first_chunk().map(|b| u16::from_ne_bytes(*b))
}

fn field32(info: &[u8], offset: usize) -> Option<u32> {
    info.get(offset..)?.first_chunk().map(|b| u32::from_ne_bytes(*b))
}

fn put(info: &mut [u8], offset: usize, value: &[u8]) {
    info[offset..offset + value.len()].copy_from_slice(value);
}

/// Puts a name into a field of fixed size that ends with a NUL; what is longer is cut, and then the
/// kernel looks for an object of that shorter name.
fn put_name(field: &mut [u8], name: &str) {
    let length = name.len().min(field.len() - 1);
    field[..length].copy_from_slice(&name.as_bytes()[..length]);
}

fn port(protocol: Protocol, destination: Option<u16>) -> Match {
    Match::Port { protocol, destination }
}

/// `XT_ADDRTYPE_LOCAL`: bit of `RTN_LOCAL`.
const ADDRTYPE_LOCAL: u16 = 1 << 2;

/// Of `linux/netfilter/xt_addrtype.h`.
const XT_ADDRTYPE_INVERT_SOURCE: u32 = 1 << 0;

/// `struct xt_addrtype_info_v1`: source u16, dest u16, flags u32.
fn addrtype(kind: AddrType) -> [u8; 8] {
    let mut info = [0; 8];
    let offset = match kind {
        AddrType::SourceLocal | AddrType::SourceNotLocal => 0,
        AddrType::DestinationLocal => 2,
    };
    put(&mut info, offset, &ADDRTYPE_LOCAL.to_ne_bytes());
    if kind == AddrType::SourceNotLocal {
        put(&mut info, 4, &XT_ADDRTYPE_INVERT_SOURCE.to_ne_bytes());
    }
    info
}

fn read_addrtype(info: &[u8]) -> Option<Match> {
    let (source, inverted) = (field16(info, 0)? != 0, field32(info, 4)? != 0);
    Some(Match::AddrType(match (source, inverted) {
        (true, false) => AddrType::SourceLocal,
        (true, true) => AddrType::SourceNotLocal,
        (false, _) => AddrType::DestinationLocal,
    }))
}

/// `struct xt_comment_info`: `XT_MAX_COMMENT_LEN` bytes with the NUL.
fn comment(text: &Comment) -> [u8; 256] {
    let mut info = [0; 256];
    put_name(&mut info, text.as_str());
    info
}

/// `struct xt_conntrack_mtinfo3`: eight addresses and masks, then expiry, ports, and at 146 the match
/// flags, the inverted flags and the states.
fn conntrack(states: &Negatable<CtStates>) -> [u8; 168] {
    const XT_CONNTRACK_STATE: u16 = 1;
    let mut info = [0; 168];
    put(&mut info, 146, &XT_CONNTRACK_STATE.to_ne_bytes());
    put(&mut info, 148, &u16::from(states.not).to_ne_bytes());
    put(&mut info, 150, &states.value.0.to_ne_bytes());
    info
}

/// Flags of `linux/netfilter/xt_ipvs.h`.
const XT_IPVS_IPVS_PROPERTY: u8 = 1 << 0;
const XT_IPVS_PROTO: u8 = 1 << 1;
const XT_IPVS_VADDR: u8 = 1 << 2;
const XT_IPVS_VPORT: u8 = 1 << 3;

/// `struct xt_ipvs_mtinfo`: address and mask (16 bytes each), port, protocol, at 39 what is compared. iptables fills the
/// mask of an IPv4 address to its end.
fn ipvs(protocol: Protocol, address: IpAddr, port: u16) -> [u8; 40] {
    let mut info = [0; 40];
    match address {
        IpAddr::V4(ip) => put(&mut info, 0, &ip.octets()),
        IpAddr::V6(ip) => put(&mut info, 0, &ip.octets()),
    }
    info[16..32].fill(0xff);
    put(&mut info, 32, &port.to_be_bytes());
    info[34] = protocol.number();
    info[39] = XT_IPVS_IPVS_PROPERTY | XT_IPVS_PROTO | XT_IPVS_VADDR | XT_IPVS_VPORT;
    info
}

fn read_ipvs(family: Family, info: &[u8]) -> Option<Match> {
    let protocol = Protocol::from_number(*info.get(34)?)?;
    Some(Match::Ipvs { protocol, address: address(family, info)?, port: u16::from_be(field16(info, 32)?) })
}

/// `struct xt_nfacct_match_info_v1`: name of 32 bytes, and the kernel's pointer.
fn nfacct(name: &str) -> [u8; 40] {
    let mut info = [0; 40];
    put_name(&mut info[..32], name);
    info
}

/// `XT_PHYSDEV_OP_ISIN` of `linux/netfilter/xt_physdev.h`.
const XT_PHYSDEV_OP_ISIN: u8 = 1 << 3;

/// `struct xt_physdev_info`: two names with their masks (16 bytes each), at 64 what is inverted, at 65 what is compared.
fn not_from_bridge() -> [u8; 72] {
    let mut info = [0; 72];
    info[64] = XT_PHYSDEV_OP_ISIN;
    info[65] = XT_PHYSDEV_OP_ISIN;
    info
}

/// `struct xt_tcp` (12 bytes) and `struct xt_udp` (10): both begin with the ranges of source and
/// destination ports and are zero after them.
fn any_port() -> [u8; 16] {
    let mut info = [0; 16];
    put(&mut info, 2, &u16::MAX.to_ne_bytes());
    put(&mut info, 6, &u16::MAX.to_ne_bytes());
    info
}

/// `struct xt_sctp_info`: range of destination ports (host order), of source ports, at 8 the map of chunks (256 bytes),
/// its type, four flag entries of 3 bytes (first byte 0xff: none), at 284 the flags.
fn sctp(destination: Option<u16>) -> [u8; 296] {
    const XT_SCTP_DEST_PORTS: u32 = 2;
    let mut info = [0; 296];
    for entry in 0..4 {
        info[268 + entry * 3] = 0xff;
    }
    if let Some(port) = destination {
        put(&mut info, 0, &port.to_ne_bytes());
        put(&mut info, 2, &port.to_ne_bytes());
        put(&mut info, 284, &XT_SCTP_DEST_PORTS.to_ne_bytes());
    }
    info
}

/// Flags of `check_set` in `linux/netfilter/xt_recent.h`.
const XT_RECENT_CHECK: u8 = 1 << 0;
const XT_RECENT_SET: u8 = 1 << 1;
const XT_RECENT_REAP: u8 = 1 << 5;

/// Where the mask is in `struct xt_recent_mtinfo_v1`.
const RECENT_MASK: Range<usize> = 212..228;

/// `struct xt_recent_mtinfo_v1`: seconds, hit count, `check_set`, invert, name (200 bytes), side
/// (0: source), and the mask. It is a full one in both families, as iptables makes it when no `--mask` is given.
fn recent(list: &str, action: RecentAction) -> [u8; 232] {
    let mut info = [0; 232];
    match action {
        RecentAction::Set => info[8] = XT_RECENT_SET,
        RecentAction::Check { seconds } => {
            put(&mut info, 0, &seconds.to_ne_bytes());
            info[8] = XT_RECENT_CHECK | XT_RECENT_REAP;
        }
    }
    put_name(&mut info[10..210], list);
    info[RECENT_MASK].fill(0xff);
    info
}

fn read_recent(family: Family, info: &[u8], names: &mut Names) -> Option<Match> {
    let action =
        if *info.get(8)? == XT_RECENT_SET { RecentAction::Set } else { RecentAction::Check { seconds: field32(info, 0)? } };
    let list = names.get(c_string(info.get(10..210)?)?);
    Some(Match::Recent { family, list, action })
}

/// Size of the payload of `set`.
pub const SET_INFO: usize = 48;

/// `struct xt_set_info_match_v4`: number of the set (u16), how many dimensions, flags, and from 8 on conditions on
/// counters. The number is not a rule's own: it is put in when the kernel has told it, and left out of comparisons.
fn set(directions: &[Direction]) -> [u8; SET_INFO] {
    let mut info = [0; SET_INFO];
    for direction in directions {
        info[2] += 1;
        if *direction == Direction::Source {
            info[3] |= 1 << info[2]; // IPSET_DIM_ONE_SRC and so on; 1 << 0 would be inversion
        }
    }
    info
}

fn read_set(info: &[u8], names: &mut Names) -> Option<Match> {
    let (dimensions, flags) = (*info.get(2)?, *info.get(3)?);
    if dimensions > 6 {
        return None; // IPSET_DIM_MAX
    }
    let direction = |dimension| if flags >> dimension & 1 == 1 { Direction::Source } else { Direction::Destination };
    let directions = (1..=dimensions).map(direction).collect();
    Some(Match::Set { set: names.set(field16(info, 0)?)?, directions })
}

/// `struct xt_statistic_info`: mode u16 (0: random), flags u16, probability × 2³¹, then the other mode's
/// fields and the kernel's pointer.
///
/// iptables 1.8.9 leaves a copy of the probability at 12, where the other mode's counter is; see [`same`].
fn statistic(probability: u32) -> [u8; 24] {
    let mut info = [0; 24];
    put(&mut info, 4, &probability.to_ne_bytes());
    info
}

/// Flags of `linux/netfilter/nf_nat.h`.
const NF_NAT_RANGE_MAP_IPS: u32 = 1 << 0;
const NF_NAT_RANGE_PROTO_SPECIFIED: u32 = 1 << 1;
const NF_NAT_RANGE_PROTO_RANDOM_FULLY: u32 = 1 << 4;

/// `struct nf_nat_range2`: flags, lowest and highest address (16 bytes each), and at 36 the ports.
fn dnat(to: SocketAddr) -> [u8; 48] {
    let mut info = [0; 48];
    put(&mut info, 0, &(NF_NAT_RANGE_MAP_IPS | NF_NAT_RANGE_PROTO_SPECIFIED).to_ne_bytes());
    for offset in [4, 20] {
        match to.ip() {
            IpAddr::V4(ip) => put(&mut info, offset, &ip.octets()),
            IpAddr::V6(ip) => put(&mut info, offset, &ip.octets()),
        }
    }
    for offset in [36, 38] {
        put(&mut info, offset, &to.port().to_be_bytes());
    }
    info
}

fn read_dnat(family: Family, info: &[u8]) -> Option<Target> {
    Some(Target::Dnat(SocketAddr::new(address(family, info.get(4..)?)?, u16::from_be(field16(info, 36)?))))
}

/// The address that a field begins with.
fn address(family: Family, field: &[u8]) -> Option<IpAddr> {
    Some(match family {
        Family::Ipv4 => Ipv4Addr::from(*field.first_chunk::<4>()?).into(),
        Family::Ipv6 => Ipv6Addr::from(*field.first_chunk::<16>()?).into(),
    })
}

/// `struct xt_mark_tginfo2`.
fn mark(value: u32, mask: u32) -> [u8; 8] {
    let mut info = [0; 8];
    put(&mut info, 0, &value.to_ne_bytes());
    put(&mut info, 4, &mask.to_ne_bytes());
    info
}

fn masquerade_flags(random_fully: bool) -> [u8; 4] {
    if random_fully { NF_NAT_RANGE_PROTO_RANDOM_FULLY.to_ne_bytes() } else { [0; 4] }
}

/// `struct nf_nat_ipv4_multi_range_compat`: number of ranges (always 1), flags, addresses, ports.
fn masquerade_v4(random_fully: bool) -> [u8; 24] {
    let mut info = [0; 24];
    put(&mut info, 0, &1u32.to_ne_bytes());
    put(&mut info, 4, &masquerade_flags(random_fully));
    info
}

/// `struct nf_nat_range`: flags, addresses, ports.
fn masquerade_v6(random_fully: bool) -> [u8; 40] {
    let mut info = [0; 40];
    put(&mut info, 0, &masquerade_flags(random_fully));
    info
}

/// `struct ipt_reject_info` and `ip6t_reject_info`: the answer's number.
fn reject(with: RejectWith) -> [u8; 8] {
    let mut info = [0; 8];
    let number: u32 = match with {
        RejectWith::IcmpPortUnreachable => 3,  // IPT_ICMP_PORT_UNREACHABLE
        RejectWith::Icmp6PortUnreachable => 4, // IP6T_ICMP6_PORT_UNREACH
    };
    put(&mut info, 0, &number.to_ne_bytes());
    info
}

/// Whether what the kernel gave is what we write: extension, revision and bytes.
pub fn same(family: Family, ours: (Extension, &[u8]), name: &str, revision: u32, info: &[u8]) -> bool {
    let (extension, bytes) = ours;
    let ignored = match name {
        // Its number, which we don't write here.
        "set" => 0..2,
        // What a field does not use may hold anything: the counter of the other mode.
        "statistic" => 8..16,
        // Of the mask IPv4 has the first four bytes.
        "recent" if family == Family::Ipv4 => RECENT_MASK.start + 4..RECENT_MASK.end,
        _ => 0..0,
    };
    extension.name == name
        && extension.revision == revision
        && bytes.len() == info.len()
        && bytes[..ignored.start] == info[..ignored.start]
        && bytes[ignored.end..] == info[ignored.end..]
}
