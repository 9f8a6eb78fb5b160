//! ipsets and their members as values (`linux/netfilter/ipset/ip_set.h`).

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::net::{Family, Protocol};

/// The name of a set: at most 31 characters (`IPSET_MAXNAMELEN` less the NUL). Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SetName(Arc<str>);

impl SetName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for SetName {
    fn from(name: &str) -> Self {
        Self(name.into())
    }
}

impl fmt::Display for SetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The types of sets in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SetType {
    HashIp,
    HashIpPort,
    HashIpPortIp,
    HashIpPortNet,
    BitmapPort,
}

impl SetType {
    pub const ALL: [Self; 5] = [Self::HashIp, Self::HashIpPort, Self::HashIpPortIp, Self::HashIpPortNet, Self::BitmapPort];

    /// The kernel's name of it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::HashIp => "hash:ip",
            Self::HashIpPort => "hash:ip,port",
            Self::HashIpPortIp => "hash:ip,port,ip",
            Self::HashIpPortNet => "hash:ip,port,net",
            Self::BitmapPort => "bitmap:port",
        }
    }

    /// The module it lives in.
    pub fn module(self) -> &'static str {
        match self {
            Self::HashIp => "ip_set_hash_ip",
            Self::HashIpPort => "ip_set_hash_ipport",
            Self::HashIpPortIp => "ip_set_hash_ipportip",
            Self::HashIpPortNet => "ip_set_hash_ipportnet",
            Self::BitmapPort => "ip_set_bitmap_port",
        }
    }
}

/// A set to be made.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SetSpec {
    pub name: SetName,
    pub kind: SetType,
    /// Of the addresses in it; bitmaps of ports have none.
    pub family: Family,
    /// How many members it takes (`maxelem`); bitmaps have room for all ports.
    pub max_members: u32,
}

/// A set as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetHeader {
    pub name: SetName,
    /// `None`: of a type, or with options, that ours never have.
    pub kind: Option<SetType>,
    /// The type's name, for messages.
    pub type_name: Box<str>,
    /// `None` for bitmaps.
    pub family: Option<Family>,
    pub max_members: u32,
    pub members: u32,
    /// Rules and the like that lead to it.
    pub references: u32,
}

/// A member of a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Member {
    Ip(IpAddr),
    IpPort(IpAddr, Protocol, u16),
    IpPortIp(IpAddr, Protocol, u16, IpAddr),
    IpPortNet(IpAddr, Protocol, u16, IpNet),
    Port(u16),
}

/// As `ipset save` writes it: a network of one address without its length.
impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => write!(f, "{ip}"),
            Self::IpPort(ip, protocol, port) => write!(f, "{ip},{protocol}:{port}"),
            Self::IpPortIp(ip, protocol, port, other) => write!(f, "{ip},{protocol}:{port},{other}"),
            Self::IpPortNet(ip, protocol, port, net) if net.prefix_len() == net.max_prefix_len() => {
                write!(f, "{ip},{protocol}:{port},{}", net.addr())
            }
            Self::IpPortNet(ip, protocol, port, net) => write!(f, "{ip},{protocol}:{port},{net}"),
            Self::Port(port) => write!(f, "{port}"),
        }
    }
}

/// Which part of a packet a dimension of a set is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    Source,
    Destination,
}

impl Direction {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Source => "src",
            Self::Destination => "dst",
        }
    }
}
