//! IPVS, ipset and local addresses together: operations in the order they are given, in few sends.

use std::net::IpAddr;

use super::error::Error;
use super::ipset::{self, SetKernel};
use super::ipvs::{self, VirtualServers};
use super::link::{self, LocalAddresses, Style};
use super::{Balancer, Sent};
use crate::net::Family;
use crate::ruleset::{Member, NodeOp, RealServer, SetHeader, SetName, VirtualAddress, VirtualServer};

/// The real ones, in the network namespace of the thread that opened them.
#[derive(Debug)]
pub struct NodeBalancer {
    /// Opened when there is something to ask: to open it would load the module.
    servers: Option<VirtualServers>,
    sets: SetKernel,
    addresses: LocalAddresses,
}

/// Which of the three an operation is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Servers,
    Sets,
    Addresses,
}

impl Part {
    fn of(op: &NodeOp) -> Self {
        match op {
            NodeOp::AddServer { .. }
            | NodeOp::EditServer { .. }
            | NodeOp::DeleteServer { .. }
            | NodeOp::AddReal { .. }
            | NodeOp::EditReal { .. }
            | NodeOp::DeleteReal { .. } => Self::Servers,
            NodeOp::CreateSet(_)
            | NodeOp::AddMember { .. }
            | NodeOp::DeleteMember { .. }
            | NodeOp::SwapSets { .. }
            | NodeOp::DestroySet(_) => Self::Sets,
            NodeOp::MakeDevice | NodeOp::RemoveDevice | NodeOp::AddAddress(_) | NodeOp::DeleteAddress(_) => Self::Addresses,
        }
    }
}

impl NodeBalancer {
    /// Fails with [`Error::Unsupported`], naming the module, where the kernel has no ipset; the first thing asked of IPVS
    /// does where it has none.
    pub fn open(style: Style) -> Result<Self, Error> {
        Ok(Self { servers: None, sets: SetKernel::open()?, addresses: LocalAddresses::open(style)? })
    }

    fn ipvs(&mut self) -> Result<&mut VirtualServers, Error> {
        let opened = self.servers.take().map_or_else(VirtualServers::open, Ok)?;
        Ok(self.servers.insert(opened))
    }
}

/// For benchmarks: encodes operations as [`NodeBalancer`] would to send them, and sends nothing. Gives their length.
pub fn encode(ops: &[NodeOp], style: Style) -> usize {
    let lengths = ops.chunk_by(|a, b| Part::of(a) == Part::of(b)).map(|run| match Part::of(&run[0]) {
        Part::Servers => ipvs::encode(run),
        Part::Sets => ipset::encode(run),
        Part::Addresses => link::encode(run, style),
    });
    lengths.sum()
}

impl Balancer for NodeBalancer {
    fn apply(&mut self, ops: &[NodeOp]) -> Result<Sent, Error> {
        let mut sent = Sent::default();
        let mut first = 0;
        for run in ops.chunk_by(|a, b| Part::of(a) == Part::of(b)) {
            match Part::of(&run[0]) {
                Part::Servers => self.ipvs()?.apply(run, first, &mut sent)?,
                Part::Sets => self.sets.apply(run, first, &mut sent)?,
                Part::Addresses => self.addresses.apply(run, first, &mut sent)?,
            }
            first += run.len();
        }
        Ok(sent)
    }

    fn servers(&mut self, family: Family) -> Result<Vec<(VirtualAddress, VirtualServer)>, Error> {
        self.ipvs()?.servers(family)
    }

    fn servers_at_a_glance(&mut self, family: Family) -> Result<Vec<(VirtualAddress, VirtualServer)>, Error> {
        self.ipvs()?.servers_at_a_glance(family)
    }

    fn real_servers(&mut self, of: &VirtualAddress) -> Result<Vec<RealServer>, Error> {
        self.ipvs()?.real_servers(of)
    }

    fn sets(&mut self) -> Result<Vec<SetHeader>, Error> {
        self.sets.headers()
    }

    fn members(&mut self, set: &SetName) -> Result<Vec<Member>, Error> {
        self.sets.members(set)
    }

    fn addresses(&mut self, family: Family) -> Result<Option<Vec<IpAddr>>, Error> {
        self.addresses.addresses(family)
    }
}
