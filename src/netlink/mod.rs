//! The kernel, by netlink: sockets, the attribute codec, `nf_tables` messages with xt compatibility
//! payloads, tracked flows, and what else a mode needs of it. It knows [`crate::ruleset`] and no Kubernetes.

pub mod address;
mod attr;
mod balancer;
pub mod conntrack;
mod errno;
mod error;
pub mod fake;
#[cfg(fuzzing)]
pub mod fuzz;
pub mod ipset;
pub mod ipvs;
pub mod link;
pub mod nfacct;
mod nft;
mod socket;
mod talk;

pub use balancer::{NodeBalancer, encode};
pub use errno::{Errno, IoCause};
pub use error::{Error, Refusal, Step};
pub use nft::{Committer, Ears, Encoded, ForeignChange, NftKernel, RuleMonitor};

use std::net::IpAddr;

use crate::net::Family;
use crate::ruleset::{
    ChainName, Handle, Member, NodeOp, RealServer, Rule, SetHeader, SetName, Table, Transaction, VirtualAddress, VirtualServer,
};

/// The part of the kernel that holds rules. Two implementations: the real one and the fake for tests,
/// which is held to the real one's answers by a parity test.
pub trait Kernel: Send {
    /// Reads the tables of `family` that iptables users share, telling `visit` of each thing: tables
    /// first, then chains, then rules in the order they have in their chain.
    ///
    /// Fails with [`Error::Interrupted`] when somebody changed rules meanwhile, of whatever table: all has
    /// been visited then, each chain in itself as it was at one moment, but not all at the same moment.
    fn read(&mut self, family: Family, visit: &mut dyn FnMut(Seen)) -> Result<(), Error>;

    /// Reads single chains in the same way: of one that does not exist there is nothing to tell.
    fn read_chains(
        &mut self,
        family: Family,
        chains: &mut dyn Iterator<Item = &(Table, ChainName)>,
        visit: &mut dyn FnMut(Seen),
    ) -> Result<(), Error>;

    /// Applies a transaction, whole or not at all.
    fn commit(&mut self, transaction: &Transaction) -> Result<Committed, Error>;
}

/// Something [`Kernel::read`] came across.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    Table(Table),
    Chain {
        table: Table,
        chain: ChainName,
    },
    /// `rule` is `None` where it says something our types cannot: then it isn't one of ours.
    Rule {
        table: Table,
        chain: ChainName,
        handle: Handle,
        rule: Option<Rule>,
    },
}

/// What a commit made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Committed {
    /// The handles of the added rules, one for each `Op::AddRule`, in order.
    pub handles: Vec<Handle>,
    /// How long the message was.
    pub bytes: usize,
}

/// The parts of the kernel that `--mode=ipvs` needs beside rules: IPVS, ipset, and local addresses. Two implementations,
/// as of [`Kernel`].
pub trait Balancer: Send {
    /// Does these operations one after the other, in few sends. Each is taken or refused on its own, and those behind a
    /// refused one are still done. An error means that answers were lost, or that nothing could be sent: what was done
    /// is to be read back.
    fn apply(&mut self, ops: &[NodeOp]) -> Result<Sent, Error>;

    /// All virtual servers of a family that are told by protocol, address and port (not those of firewall marks).
    fn servers(&mut self, family: Family) -> Result<Vec<(VirtualAddress, VirtualServer)>, Error>;

    /// The same from one look, for who asks whether anything changed: while others change them, some may be missing.
    fn servers_at_a_glance(&mut self, family: Family) -> Result<Vec<(VirtualAddress, VirtualServer)>, Error> {
        self.servers(family)
    }

    /// The real servers of a virtual server, with their connections. None where it does not exist.
    fn real_servers(&mut self, of: &VirtualAddress) -> Result<Vec<RealServer>, Error>;

    /// All sets there are, whoever made them.
    fn sets(&mut self) -> Result<Vec<SetHeader>, Error>;

    /// The members of a set; none where it does not exist.
    fn members(&mut self, set: &SetName) -> Result<Vec<Member>, Error>;

    /// The addresses of a family that were made local by [`NodeOp::AddAddress`], by whomever: all that are on the
    /// device, link-local ones aside. `None`: there is no such device.
    fn addresses(&mut self, family: Family) -> Result<Option<Vec<IpAddr>>, Error>;
}

/// What became of operations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Those that were refused, by index.
    pub refused: Vec<Refusal>,
    /// Messages, and the sends they went in.
    pub messages: usize,
    pub sends: usize,
    pub bytes: usize,
}
