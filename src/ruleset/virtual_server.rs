//! Virtual and real servers of IPVS as values (`linux/ip_vs.h`).

use std::fmt;
use std::net::SocketAddr;

use crate::net::{Family, Protocol, Scheduler};

/// What tells virtual servers apart: protocol, address and port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VirtualAddress {
    pub protocol: Protocol,
    pub address: SocketAddr,
}

impl VirtualAddress {
    pub fn family(&self) -> Family {
        Family::of(self.address.ip())
    }
}

/// As logs say it: `10.96.0.1:80/tcp`.
impl fmt::Display for VirtualAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.protocol)
    }
}

/// How a virtual server treats connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VirtualServer {
    pub scheduler: Scheduler,
    pub flags: ServerFlags,
    /// Connections of one client stay with one real server.
    pub persistence: Option<Persistence>,
}

/// `IP_VS_SVC_F_PERSISTENT` with what belongs to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Persistence {
    /// For so long after the last connection, 1 or more.
    pub seconds: u32,
    /// Clients whose addresses share so many bits count as one; all bits (32, 128) in what we make.
    pub prefix: u8,
}

/// Flags of `linux/ip_vs.h` beside `PERSISTENT` and the kernel's own `HASHED`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ServerFlags(pub u32);

impl ServerFlags {
    pub const NONE: Self = Self(0);
    /// `IP_VS_SVC_F_SCHED_MH_PORT`: mh hashes the source port too, as kube-proxy wants it.
    pub const MH_PORT: Self = Self(0x10);
}

/// A real server as the kernel has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RealServer {
    pub address: SocketAddr,
    /// 0: gets no new connections, it drains.
    pub weight: u32,
    /// Is it reached by masquerading (`IP_VS_CONN_F_MASQ`)? All of ours are.
    pub masquerades: bool,
    /// Connections that are open, and those on their way out.
    pub active: u32,
    pub inactive: u32,
}
