//! Tables, chain names and rules in the terms of iptables.
//!
//! A [`Rule`] is what `iptables-save` can print in one line. It holds only what the modes of this
//! project write; a rule of somebody else that does not fit is not represented here at all.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

use super::set::{Direction, SetName};
use crate::net::{Family, Protocol};

/// A table that iptables-nft users share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    Mangle,
    Filter,
    Nat,
}

impl Table {
    pub const ALL: [Self; 3] = [Self::Mangle, Self::Filter, Self::Nat];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mangle => "mangle",
            Self::Filter => "filter",
            Self::Nat => "nat",
        }
    }

    /// The built-in chains, in the order iptables lists them.
    pub fn builtin_chains(self) -> &'static [&'static str] {
        match self {
            Self::Mangle => &["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"],
            Self::Filter => &["INPUT", "FORWARD", "OUTPUT"],
            Self::Nat => &["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"],
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The name of a chain. Cheap to clone: one name stands in many rules.
///
/// iptables takes at most 28 characters (`XT_EXTENSION_MAXNAMELEN`); the names we make have 25.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChainName(Arc<str>);

impl ChainName {
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self(name.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for ChainName {
    fn from(name: &str) -> Self {
        Self::new(name)
    }
}

impl From<&ChainName> for ChainName {
    fn from(name: &ChainName) -> Self {
        name.clone()
    }
}

impl fmt::Display for ChainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A match value, possibly negated with `!`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Negatable<T> {
    pub not: bool,
    pub value: T,
}

impl<T> Negatable<T> {
    pub fn is(value: T) -> Self {
        Self { not: false, value }
    }

    pub fn is_not(value: T) -> Self {
        Self { not: true, value }
    }
}

/// An interface name; a trailing `+` matches every name that begins so.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct InterfaceMatch(pub Box<str>);

/// The text of `-m comment`: one line of at most 255 bytes (`XT_MAX_COMMENT_LEN` less the NUL).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Comment(Box<str>);

impl Comment {
    pub const MAX_LEN: usize = 255;

    /// Makes a comment of `text`. What does not fit is cut at a character boundary: a tenant's long
    /// name must not make the kernel refuse a whole transaction. Control characters become `?`: iptables
    /// saves them as they are, and a line break in a comment would be a line of its own to whoever
    /// restores it.
    pub fn new(text: &str) -> Self {
        let text = &text[..text.floor_char_boundary(Self::MAX_LEN)];
        Self(text.replace(char::is_control, "?").into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// `-m addrtype`: the three forms in use, without `--limit-iface-*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AddrType {
    SourceLocal,
    /// `! --src-type LOCAL`
    SourceNotLocal,
    DestinationLocal,
}

/// States of `-m conntrack --ctstate`, with the bits of `XT_CONNTRACK_STATE_*`
/// (`linux/netfilter/xt_conntrack.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CtStates(pub u16);

impl CtStates {
    pub const INVALID: Self = Self(1 << 0);
    pub const ESTABLISHED: Self = Self(1 << 1);
    pub const RELATED: Self = Self(1 << 2);
    pub const NEW: Self = Self(1 << 3);
    pub const SNAT: Self = Self(1 << 6);
    pub const DNAT: Self = Self(1 << 7);
    pub const UNTRACKED: Self = Self(1 << 8);

    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// What `-m recent` does with its list. All lists use the source address and the full mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RecentAction {
    /// `--set`: note the source address.
    Set,
    /// `--rcheck --seconds N --reap`: was it seen in the last N seconds? Older entries are dropped.
    Check { seconds: u32 },
}

/// One `-m` extension, in the place it has on the command line.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Match {
    AddrType(AddrType),
    Comment(Comment),
    Conntrack(Negatable<CtStates>),
    /// `-m ipvs --vproto --vaddr --vport`: packets of connections to that virtual server.
    Ipvs {
        protocol: Protocol,
        address: IpAddr,
        port: u16,
    },
    /// `-m mark --mark value/mask`.
    Mark(Negatable<(u32, u32)>),
    /// `-m nfacct`: counts packets in the named object, which must exist.
    NfAcct(Box<str>),
    /// `-m physdev ! --physdev-is-in`: it did not come in by a port of a bridge.
    NotFromBridge,
    /// `-m tcp|udp|sctp [--dport]`, beside `-p` of the same protocol.
    Port {
        protocol: Protocol,
        destination: Option<u16>,
    },
    /// `-m recent` on the source address; the mask it prints is its family's full one.
    Recent {
        family: Family,
        list: ChainName,
        action: RecentAction,
    },
    /// `-m set --match-set`: a set that must exist, with what each of its dimensions is compared with.
    Set {
        set: SetName,
        directions: Box<[Direction]>,
    },
    /// `-m statistic --mode random`: matches with `probability` / 2³¹.
    Statistic {
        probability: u32,
    },
}

/// `--reject-with`: the kernel's default answer of each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RejectWith {
    /// IPv4: ICMP port unreachable (`IPT_ICMP_PORT_UNREACHABLE`, 3).
    IcmpPortUnreachable,
    /// IPv6: `ICMPv6` port unreachable (`IP6T_ICMP6_PORT_UNREACH`, 4).
    Icmp6PortUnreachable,
}

/// Where a matching packet goes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    Accept,
    Dnat(SocketAddr),
    Drop,
    Jump(ChainName),
    /// `--set-xmark value/mask`: clears the mask's bits, then xors the value.
    Mark {
        value: u32,
        mask: u32,
    },
    Masquerade {
        random_fully: bool,
    },
    Reject(RejectWith),
    Return,
}

/// One rule: header matches, extensions in their order, and a target (a rule without one only counts).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Rule {
    pub source: Option<Negatable<IpNet>>,
    pub destination: Option<Negatable<IpNet>>,
    pub in_interface: Option<Negatable<InterfaceMatch>>,
    pub protocol: Option<Protocol>,
    pub matches: Vec<Match>,
    pub target: Option<Target>,
}

/// Rules are built from the front as iptables prints them: header, extensions in order, target.
impl Rule {
    /// A rule that matches every packet and only counts it.
    pub fn new() -> Self {
        Self::default()
    }

    /// A range of length zero holds every address, and iptables writes nothing for it.
    #[must_use]
    pub fn from(mut self, source: Negatable<IpNet>) -> Self {
        self.source = Some(source).filter(|s| s.not || s.value.prefix_len() > 0);
        self
    }

    #[must_use]
    pub fn to(mut self, destination: Negatable<IpNet>) -> Self {
        self.destination = Some(destination);
        self
    }

    #[must_use]
    pub fn on(mut self, interface: Negatable<InterfaceMatch>) -> Self {
        self.in_interface = Some(interface);
        self
    }

    #[must_use]
    pub fn matching(mut self, extension: Match) -> Self {
        self.matches.push(extension);
        self
    }

    #[must_use]
    pub fn comment(self, text: &str) -> Self {
        self.matching(Match::Comment(Comment::new(text)))
    }

    /// `-p PROTOCOL`
    #[must_use]
    pub fn of(mut self, protocol: Protocol) -> Self {
        self.protocol = Some(protocol);
        self
    }

    /// `-p PROTOCOL -m PROTOCOL [--dport PORT]`
    #[must_use]
    pub fn port(self, protocol: Protocol, destination: Option<u16>) -> Self {
        self.of(protocol).matching(Match::Port { protocol, destination })
    }

    #[must_use]
    pub fn then(mut self, target: Target) -> Self {
        self.target = Some(target);
        self
    }

    #[must_use]
    pub fn jump(self, chain: impl Into<ChainName>) -> Self {
        self.then(Target::Jump(chain.into()))
    }
}
