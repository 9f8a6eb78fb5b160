//! Operations on what a node has beside rules: virtual and real servers, sets, and the addresses that make packets
//! for virtual servers come in. Unlike those of a transaction each is taken or refused on its own, in order.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use super::set::{Member, SetName, SetSpec};
use super::virtual_server::{VirtualAddress, VirtualServer};

/// One operation; each becomes one message, or a part of one for members of sets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeOp {
    /// Makes a virtual server that must not exist yet.
    AddServer {
        at: VirtualAddress,
        server: VirtualServer,
    },
    /// Changes scheduler, flags and persistence in place; connections live on.
    EditServer {
        at: VirtualAddress,
        server: VirtualServer,
    },
    /// Removes a virtual server with its real servers; their connections end.
    DeleteServer {
        at: VirtualAddress,
    },
    /// Adds a real server that must not be there yet, reached by masquerading.
    AddReal {
        at: VirtualAddress,
        real: SocketAddr,
        weight: u32,
    },
    /// Gives a real server another weight, and masquerading as its way.
    EditReal {
        at: VirtualAddress,
        real: SocketAddr,
        weight: u32,
    },
    DeleteReal {
        at: VirtualAddress,
        real: SocketAddr,
    },
    /// Makes a set that must not exist yet.
    CreateSet(SetSpec),
    /// A member that is there already is no error.
    AddMember {
        set: SetName,
        member: Member,
    },
    /// A member that is not there is no error.
    DeleteMember {
        set: SetName,
        member: Member,
    },
    /// Exchanges what two sets of one type hold; rules that name them see it at once.
    SwapSets {
        one: SetName,
        other: SetName,
    },
    DestroySet(SetName),
    /// Makes the dummy device that addresses are put on, if it is missing. It stays down.
    MakeDevice,
    /// Removes the device with what is on it; one that is not there is no error.
    RemoveDevice,
    /// Makes an address local to this node; one that is already is no error.
    AddAddress(IpAddr),
    /// An address that is not there is no error.
    DeleteAddress(IpAddr),
}

/// What a person would type for it with `ipvsadm`, `ipset` and `ip`, near enough to read in a log.
impl fmt::Display for NodeOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddServer { at, server } => write!(f, "add virtual server {at} with scheduler {}", server.scheduler),
            Self::EditServer { at, server } => write!(f, "change virtual server {at} to scheduler {}", server.scheduler),
            Self::DeleteServer { at } => write!(f, "delete virtual server {at}"),
            Self::AddReal { at, real, weight } => write!(f, "add real server {real} with weight {weight} to {at}"),
            Self::EditReal { at, real, weight } => write!(f, "give real server {real} of {at} weight {weight}"),
            Self::DeleteReal { at, real } => write!(f, "delete real server {real} of {at}"),
            Self::CreateSet(spec) => write!(f, "create set {} of type {}", spec.name, spec.kind.as_str()),
            Self::AddMember { set, member } => write!(f, "add {member} to set {set}"),
            Self::DeleteMember { set, member } => write!(f, "delete {member} from set {set}"),
            Self::SwapSets { one, other } => write!(f, "swap sets {one} and {other}"),
            Self::DestroySet(set) => write!(f, "destroy set {set}"),
            Self::MakeDevice => f.write_str("make device kube-ipvs0"),
            Self::RemoveDevice => f.write_str("remove device kube-ipvs0"),
            Self::AddAddress(address) => write!(f, "add local address {address}"),
            Self::DeleteAddress(address) => write!(f, "delete local address {address}"),
        }
    }
}
