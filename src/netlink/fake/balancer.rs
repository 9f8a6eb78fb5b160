//! IPVS, ipset and local addresses in memory, for tests: each operation is taken or refused as the kernel would, with
//! the same errors, and counted.
//!
//! Not imitated: connections, which a test sets; hash sizes; and modules that could be missing, for which a test lets
//! operations fail by their text.

mod sets;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use super::super::errno::Errno;
use super::super::error::{Error, Refusal};
use super::super::{Balancer, Sent};
use crate::net::{Family, Scheduler};
use crate::ruleset::{Member, NodeOp, RealServer, SetHeader, SetName, VirtualAddress, VirtualServer};
use sets::FakeSets;

const ERANGE: Errno = Errno(34);

#[derive(Debug, Default)]
pub struct FakeBalancer {
    servers: BTreeMap<VirtualAddress, FakeServer>,
    sets: FakeSets,
    /// `None`: there is no device.
    addresses: Option<BTreeSet<IpAddr>>,
    disliked: Vec<Disliked>,
    /// The next answer is lost after so many operations.
    losing: Option<(usize, Error)>,
    failing_read: Option<Error>,
    /// Virtual servers cannot even be asked for.
    lacks_ipvs: bool,
    counts: Counts,
}

/// Operations that are refused: those whose text contains this.
#[derive(Debug)]
struct Disliked {
    text: String,
    errno: Errno,
    /// So many times yet.
    times: usize,
}

/// What a balancer was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Operations that were done, and those that were refused.
    pub done: usize,
    pub refused: usize,
    pub messages: usize,
    pub sends: usize,
    /// Readings, of whatever.
    pub readings: usize,
}

#[derive(Debug)]
struct FakeServer {
    server: VirtualServer,
    reals: BTreeMap<SocketAddr, RealServer>,
}

impl FakeBalancer {
    /// Without virtual servers, sets and device.
    pub fn new() -> Self {
        Self::default()
    }

    /// What was asked for since this was last asked.
    pub fn take_counts(&mut self) -> Counts {
        std::mem::take(&mut self.counts)
    }

    /// Does what another program does: nothing is counted, and nothing may be refused.
    ///
    /// # Panics
    /// When an operation is refused.
    pub fn edit(&mut self, ops: &[NodeOp]) {
        for op in ops {
            if let Err(errno) = self.try_op(op) {
                panic!("{op}: {errno}");
            }
        }
    }

    /// Gives a real server connections.
    ///
    /// # Panics
    /// When there is no such real server.
    pub fn connect(&mut self, at: &VirtualAddress, real: SocketAddr, (active, inactive): (u32, u32)) {
        let found = self.servers.get_mut(at).and_then(|server| server.reals.get_mut(&real));
        let Some(found) = found else { panic!("{at} has no real server {real}") };
        (found.active, found.inactive) = (active, inactive);
    }

    /// Puts a real server behind a virtual one as another program might: reached by whatever way.
    ///
    /// # Panics
    /// When there is no such virtual server.
    pub fn add_foreign_real(&mut self, at: &VirtualAddress, real: RealServer) {
        let Some(server) = self.servers.get_mut(at) else { panic!("no virtual server {at}") };
        server.reals.insert(real.address, real);
    }

    /// Makes a set of another program's, of a type that ours never have.
    pub fn add_foreign_set(&mut self, name: &str, type_name: &str) {
        self.sets.add_foreign(name, type_name);
    }

    /// Lets so many rules refer to a set: it cannot be destroyed.
    ///
    /// # Panics
    /// When there is no such set.
    pub fn refer_to(&mut self, set: &str, references: u32) {
        self.sets.refer_to(set, references);
    }

    /// Refuses every operation whose text contains `text`.
    pub fn dislike(&mut self, text: &str, errno: Errno) {
        self.dislike_for_now(text, errno, usize::MAX);
    }

    /// The same for so many times: later it takes them.
    pub fn dislike_for_now(&mut self, text: &str, errno: Errno, times: usize) {
        self.disliked.push(Disliked { text: text.to_owned(), errno, times });
    }

    /// Takes every operation again.
    pub fn like_everything(&mut self) {
        self.disliked.clear();
    }

    /// Lets the next [`Balancer::apply`] do so many operations and give this error; `usize::MAX`: all, and only the
    /// answer is bad.
    pub fn lose_next_answer(&mut self, done: usize, error: Error) {
        self.losing = Some((done, error));
    }

    /// Lets the next reading of anything fail so.
    pub fn fail_next_read(&mut self, error: Error) {
        self.failing_read = Some(error);
    }

    /// Takes IPVS away, as from a kernel without its module, with all virtual servers.
    pub fn lose_ipvs(&mut self) {
        self.servers.clear();
        self.lacks_ipvs = true;
    }

    /// Everything, sorted, line by line: virtual servers with their real ones, sets with their members, addresses.
    pub fn save(&self) -> String {
        let mut text = String::new();
        for (at, FakeServer { server, reals }) in &self.servers {
            let persistence = server.persistence.map(|p| format!(" persistent {}/{}", p.seconds, p.prefix)).unwrap_or_default();
            let flags = if server.flags.0 == 0 { String::new() } else { format!(" flags {:#x}", server.flags.0) };
            writeln!(text, "server {at} {}{flags}{persistence}", server.scheduler).expect("a String takes everything");
            for real in reals.values() {
                let way = if real.masquerades { "" } else { " not masquerading" };
                writeln!(text, "  real {} weight {}{way}", real.address, real.weight).expect("a String takes everything");
            }
        }
        self.sets.save(&mut text);
        for address in self.addresses.iter().flatten() {
            writeln!(text, "address {address}").expect("a String takes everything");
        }
        text
    }

    fn refuse_disliked(&mut self, text: &str) -> Result<(), Errno> {
        let found = self.disliked.iter_mut().find(|disliked| disliked.times > 0 && text.contains(&disliked.text));
        let Some(disliked) = found else { return Ok(()) };
        disliked.times -= 1;
        Err(disliked.errno)
    }

    fn try_op(&mut self, op: &NodeOp) -> Result<(), Errno> {
        match op {
            NodeOp::AddServer { at, server } => self.add_server(*at, *server),
            NodeOp::EditServer { at, server } => self.edit_server(at, *server),
            NodeOp::DeleteServer { at } => self.servers.remove(at).map(|_| ()).ok_or(Errno::ESRCH),
            NodeOp::AddReal { at, real, weight } => self.server(at)?.add_real(at, *real, *weight),
            NodeOp::EditReal { at, real, weight } => self.server(at)?.edit_real(at, *real, *weight),
            NodeOp::DeleteReal { at, real } => self.server(at)?.reals.remove(real).map(|_| ()).ok_or(Errno::ENOENT),
            NodeOp::CreateSet(spec) => self.sets.create(spec),
            NodeOp::AddMember { set, member } => self.sets.add(set, *member),
            NodeOp::DeleteMember { set, member } => self.sets.delete(set, member),
            NodeOp::SwapSets { one, other } => self.sets.swap(one, other),
            NodeOp::DestroySet(set) => self.sets.destroy(set),
            NodeOp::MakeDevice => {
                self.addresses.get_or_insert_default();
                Ok(())
            }
            NodeOp::RemoveDevice => {
                self.addresses = None;
                Ok(())
            }
            NodeOp::AddAddress(address) => self.add_address(*address),
            NodeOp::DeleteAddress(address) => {
                if let Some(addresses) = &mut self.addresses {
                    addresses.remove(address);
                }
                Ok(())
            }
        }
    }

    fn add_server(&mut self, at: VirtualAddress, server: VirtualServer) -> Result<(), Errno> {
        if self.servers.contains_key(&at) {
            return Err(Errno::EEXIST);
        }
        check_server(&at, &server)?;
        self.servers.insert(at, FakeServer { server, reals: BTreeMap::new() });
        Ok(())
    }

    fn edit_server(&mut self, at: &VirtualAddress, server: VirtualServer) -> Result<(), Errno> {
        let found = self.server(at)?;
        check_server(at, &server)?;
        found.server = server;
        Ok(())
    }

    fn add_address(&mut self, address: IpAddr) -> Result<(), Errno> {
        let addresses = self.addresses.as_mut().ok_or(Errno::ENODEV)?;
        match address {
            IpAddr::V6(ip) if ip.is_multicast() || ip.is_loopback() || ip.is_unspecified() => Err(Errno::EADDRNOTAVAIL),
            // The device has it, but that is not told.
            IpAddr::V6(ip) if ip.is_unicast_link_local() => Ok(()),
            _ => {
                addresses.insert(address);
                Ok(())
            }
        }
    }

    /// `ip_vs_genl_set_cmd` looks the virtual server up before anything else.
    fn server(&mut self, at: &VirtualAddress) -> Result<&mut FakeServer, Errno> {
        self.servers.get_mut(at).ok_or(Errno::ESRCH)
    }

    fn read<T>(&mut self, read: impl FnOnce(&Self) -> T) -> Result<T, Error> {
        self.counts.readings += 1;
        self.failing_read.take().map_or(Ok(()), Err)?;
        Ok(read(self))
    }
}

/// What `ip_vs_add_service` and `ip_vs_edit_service` do not take: the scheduler comes before the prefix, which counts
/// for IPv6 alone.
fn check_server(at: &VirtualAddress, server: &VirtualServer) -> Result<(), Errno> {
    if server.scheduler == Scheduler::Other {
        return Err(Errno::ENOENT);
    }
    let prefix = server.persistence.map_or(1, |persistence| persistence.prefix);
    let is_good = at.family() == Family::Ipv4 || (1..=Family::Ipv6.host_prefix()).contains(&prefix);
    if is_good { Ok(()) } else { Err(Errno::EINVAL) }
}

/// What is refused of a real server wherever it is put: another family would need a tunnel, and a weight has a sign.
fn check_real(at: &VirtualAddress, real: SocketAddr, weight: u32) -> Result<(), Errno> {
    if Family::of(real.ip()) != at.family() {
        return Err(Errno::EINVAL);
    }
    i32::try_from(weight).map(drop).map_err(|_| ERANGE)
}

/// Can packets be sent to this one host? A link-local address could be the node's own, which is not imitated.
fn is_host(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(ip) => !(ip.octets()[0] == 0 || ip.is_broadcast() || ip.is_multicast()),
        IpAddr::V6(ip) => !(ip.is_unspecified() || ip.is_multicast() || ip.is_unicast_link_local()),
    }
}

impl FakeServer {
    fn add_real(&mut self, at: &VirtualAddress, address: SocketAddr, weight: u32) -> Result<(), Errno> {
        check_real(at, address, weight)?;
        if self.reals.contains_key(&address) {
            return Err(Errno::EEXIST);
        }
        if !is_host(address.ip()) {
            return Err(Errno::EINVAL);
        }
        self.reals.insert(address, RealServer { address, weight, masquerades: true, active: 0, inactive: 0 });
        Ok(())
    }

    fn edit_real(&mut self, at: &VirtualAddress, address: SocketAddr, weight: u32) -> Result<(), Errno> {
        check_real(at, address, weight)?;
        let real = self.reals.get_mut(&address).ok_or(Errno::ENOENT)?;
        (real.weight, real.masquerades) = (weight, true);
        Ok(())
    }
}

impl Balancer for FakeBalancer {
    fn apply(&mut self, ops: &[NodeOp]) -> Result<Sent, Error> {
        if ops.is_empty() {
            return Ok(Sent::default());
        }
        let (done, lost) = match self.losing.take() {
            Some((done, error)) => (done.min(ops.len()), Some(error)),
            None => (ops.len(), None),
        };
        // Nothing is encoded here, so nothing has a length.
        let mut sent = Sent { messages: messages(&ops[..done]), sends: 1, ..Sent::default() };
        for (index, op) in ops[..done].iter().enumerate() {
            let text = op.to_string();
            match self.refuse_disliked(&text).and_then(|()| self.try_op(op)) {
                Ok(()) => self.counts.done += 1,
                Err(errno) => sent.refused.push(Refusal { op: index, errno, text }),
            }
        }
        self.counts.refused += sent.refused.len();
        self.counts.messages += sent.messages;
        self.counts.sends += sent.sends;
        lost.map_or(Ok(sent), Err)
    }

    fn servers(&mut self, family: Family) -> Result<Vec<(VirtualAddress, VirtualServer)>, Error> {
        if self.lacks_ipvs {
            return Err(Error::Unsupported { what: "IPVS (module ip_vs)", errno: Errno::ENOENT });
        }
        let of_family = |(at, found): (&VirtualAddress, &FakeServer)| (at.family() == family).then_some((*at, found.server));
        self.read(|fake| fake.servers.iter().filter_map(of_family).collect())
    }

    fn real_servers(&mut self, of: &VirtualAddress) -> Result<Vec<RealServer>, Error> {
        self.read(|fake| fake.servers.get(of).into_iter().flat_map(|server| server.reals.values().copied()).collect())
    }

    fn sets(&mut self) -> Result<Vec<SetHeader>, Error> {
        self.read(|fake| fake.sets.headers())
    }

    fn members(&mut self, set: &SetName) -> Result<Vec<Member>, Error> {
        self.read(|fake| fake.sets.members(set))
    }

    fn addresses(&mut self, family: Family) -> Result<Option<Vec<IpAddr>>, Error> {
        let of_family = |all: &BTreeSet<IpAddr>| all.iter().copied().filter(|a| Family::of(*a) == family).collect();
        self.read(|fake| fake.addresses.as_ref().map(of_family))
    }
}

/// Members that follow each other into or out of one set share a message, everything else has its own.
fn messages(ops: &[NodeOp]) -> usize {
    let shares = |a: &NodeOp, b: &NodeOp| match (a, b) {
        (NodeOp::AddMember { set: a, .. }, NodeOp::AddMember { set: b, .. })
        | (NodeOp::DeleteMember { set: a, .. }, NodeOp::DeleteMember { set: b, .. }) => a == b,
        _ => false,
    };
    ops.chunk_by(shares).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Protocol;
    use crate::ruleset::{Persistence, ServerFlags};

    const SERVER: VirtualServer = VirtualServer { scheduler: Scheduler::Rr, flags: ServerFlags::NONE, persistence: None };

    fn at(port: u16) -> VirtualAddress {
        VirtualAddress { protocol: Protocol::Tcp, address: SocketAddr::from(([10, 96, 0, 1], port)) }
    }

    fn real(host: u8) -> SocketAddr {
        SocketAddr::from(([10, 244, 0, host], 8080))
    }

    fn errors(fake: &mut FakeBalancer, ops: &[NodeOp]) -> Vec<(usize, Errno)> {
        fake.apply(ops).unwrap().refused.into_iter().map(|refusal| (refusal.op, refusal.errno)).collect()
    }

    #[test]
    fn servers_are_refused_as_ip_vs_does_and_the_rest_is_done() {
        let mut fake = FakeBalancer::new();
        let (add, add_real) = (NodeOp::AddServer { at: at(80), server: SERVER }, |host| NodeOp::AddReal {
            at: at(80),
            real: real(host),
            weight: 1,
        });
        let ops = [
            NodeOp::EditServer { at: at(80), server: SERVER },
            NodeOp::DeleteServer { at: at(80) },
            add_real(1),
            add.clone(),
            add,
            add_real(1),
            add_real(1),
            NodeOp::EditReal { at: at(80), real: real(2), weight: 0 },
            NodeOp::DeleteReal { at: at(80), real: real(2) },
            add_real(2),
            NodeOp::EditReal { at: at(80), real: real(2), weight: 0 },
        ];
        let refused = [
            (0, Errno::ESRCH),
            (1, Errno::ESRCH),
            (2, Errno::ESRCH),
            (4, Errno::EEXIST),
            (6, Errno::EEXIST),
            (7, Errno::ENOENT),
            (8, Errno::ENOENT),
        ];
        assert_eq!(errors(&mut fake, &ops), refused);
        let saved = "server 10.96.0.1:80/tcp rr\n  real 10.244.0.1:8080 weight 1\n  real 10.244.0.2:8080 weight 0\n";
        assert_eq!(fake.save(), saved);
        assert_eq!(fake.take_counts(), Counts { done: 4, refused: 7, messages: 11, sends: 1, readings: 0 });
        fake.connect(&at(80), real(2), (3, 1));
        let drains = RealServer { address: real(2), weight: 0, masquerades: true, active: 3, inactive: 1 };
        assert_eq!(fake.real_servers(&at(80)).unwrap()[1], drains);
        assert_eq!(fake.real_servers(&at(81)).unwrap(), []);
    }

    #[test]
    fn what_makes_no_sense_is_refused_in_the_order_of_the_kernel() {
        let mut fake = FakeBalancer::new();
        let six = VirtualAddress { protocol: Protocol::Tcp, address: "[fd00::1]:80".parse().unwrap() };
        let sticky = |scheduler, prefix| {
            let persistence = Some(Persistence { seconds: 1, prefix });
            NodeOp::AddServer { at: six, server: VirtualServer { scheduler, persistence, ..SERVER } }
        };
        let add_real = |at, real: &str, weight| NodeOp::AddReal { at, real: real.parse().unwrap(), weight };
        let ops = [
            sticky(Scheduler::Other, 0),
            sticky(Scheduler::Rr, 0),
            sticky(Scheduler::Rr, 64),
            sticky(Scheduler::Other, 0),
            NodeOp::AddServer { at: at(80), server: SERVER },
            add_real(at(80), "[fd00::2]:80", 1 << 31),
            add_real(at(80), "224.0.0.1:80", 1 << 31),
            add_real(at(80), "224.0.0.1:80", 1),
            add_real(six, "[fe80::1]:80", 1),
            add_real(six, "[::1]:80", i32::MAX as u32),
            NodeOp::EditReal { at: at(80), real: real(1), weight: 1 << 31 },
        ];
        let refused = [
            (0, Errno::ENOENT),
            (1, Errno::EINVAL),
            (3, Errno::EEXIST),
            (5, Errno::EINVAL),
            (6, ERANGE),
            (7, Errno::EINVAL),
            (8, Errno::EINVAL),
            (10, ERANGE),
        ];
        assert_eq!(errors(&mut fake, &ops), refused);
    }

    #[test]
    fn addresses_need_the_device() {
        let mut fake = FakeBalancer::new();
        let add = NodeOp::AddAddress([10, 96, 0, 1].into());
        assert_eq!(errors(&mut fake, std::slice::from_ref(&add)), [(0, Errno::ENODEV)]);
        assert_eq!(fake.addresses(Family::Ipv4).unwrap(), None);
        let delete = NodeOp::DeleteAddress([10, 96, 0, 2].into());
        assert_eq!(errors(&mut fake, &[NodeOp::MakeDevice, NodeOp::MakeDevice, add.clone(), add, delete]), []);
        assert_eq!(fake.addresses(Family::Ipv4).unwrap(), Some(vec![[10, 96, 0, 1].into()]));
        let of_ipv6 = ["::1", "fe80::1"].map(|address| NodeOp::AddAddress(address.parse().unwrap()));
        assert_eq!(errors(&mut fake, &of_ipv6), [(0, Errno::EADDRNOTAVAIL)]);
        assert_eq!(fake.addresses(Family::Ipv6).unwrap(), Some(vec![]), "link-local ones are not told");
        assert_eq!(errors(&mut fake, &[NodeOp::RemoveDevice, NodeOp::RemoveDevice]), []);
        assert_eq!(fake.addresses(Family::Ipv4).unwrap(), None);
    }

    #[test]
    fn it_fails_as_it_is_told_to() {
        let mut fake = FakeBalancer::new();
        let ops = [80, 81, 82].map(|port| NodeOp::AddServer { at: at(port), server: SERVER });
        fake.dislike(":81/tcp", Errno::ENOENT);
        assert_eq!(errors(&mut fake, &ops), [(1, Errno::ENOENT)]);
        fake.like_everything();
        fake.lose_next_answer(1, Error::AnswersLost { errno: Errno::ENOBUFS });
        let deletions = [80, 82].map(|port| NodeOp::DeleteServer { at: at(port) });
        fake.apply(&deletions).unwrap_err();
        assert_eq!(fake.servers(Family::Ipv4).unwrap(), [(at(82), SERVER)]);
        fake.fail_next_read(Error::Interrupted);
        fake.sets().unwrap_err();
        fake.sets().unwrap();
    }
}
