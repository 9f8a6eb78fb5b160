//! Network devices by name, and the addresses that ipvs mode makes local to the node: on the dummy device `kube-ipvs0`
//! as kube-proxy has them, or as routes.
//!
//! The kernel goes through all addresses of a device for each that is added or deleted, which 20,000 of them make
//! felt. Packets come in by the routes of the table `local` alone, of which an address makes one; a route without an
//! address costs the same however many there are.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::address::{self, AF_INET, AF_INET6, IFA_ADDRESS, IFA_LOCAL, IFADDRMSG, RTM_DELADDR, RTM_GETADDR, RTM_NEWADDR};
use super::attr::{Head, Message, Writer, flag};
use super::errno::Errno;
use super::error::{Error, Refusal, Step};
use super::socket::Peer;
use super::talk::{self, Talk, refusal};
use super::{NodeOp, Sent};
use crate::net::Family;

/// The device, named as kube-proxy names it.
pub const DEVICE: &str = "kube-ipvs0";
/// What tells our routes from others: `rtm_protocol`, shown by `ip route` as `proto 115`. It has no name in iproute2's
/// `rt_protos`, nor does the kernel or a routing daemon known to us use it.
pub const ROUTE_PROTOCOL: u8 = 115;

/// Numbers of `linux/rtnetlink.h`, `linux/if_link.h` and `linux/if_addr.h`.
pub(super) const RTM_NEWLINK: u16 = 16;
pub(super) const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFA_F_NODAD: u8 = 0x2;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RT_TABLE_LOCAL: u8 = 255;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RT_SCOPE_HOST: u8 = 254;
const RTN_LOCAL: u8 = 2;
/// Size of `struct ifinfomsg`: family, padding, type, index, flags, and which of them are meant.
const IFINFOMSG: usize = 16;
/// Size of `struct rtmsg`.
const RTMSG: usize = 12;
/// `LOOPBACK_IFINDEX`: what `lo` is in every network namespace.
const LOOPBACK: u32 = 1;
/// Short, some 1,500 addresses: the kernel works on a send to its end, whatever signal comes, and addresses are slow where
/// there are many.
const PIECE: usize = 64 << 10;

/// How addresses are made local.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// As addresses of [`DEVICE`].
    Device,
    /// As routes of type local by `lo`, told from others by [`ROUTE_PROTOCOL`].
    Routes,
}

/// The local addresses of the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct LocalAddresses {
    talk: Talk,
    style: Style,
}

impl LocalAddresses {
    pub fn open(style: Style) -> Result<Self, Error> {
        Ok(Self { talk: Talk::open(Peer::Route, PIECE)?, style })
    }

    /// Does operations on the device and on addresses one after the other, in few sends. What was refused goes into
    /// `sent` with its place, that of the first operation being `first`.
    ///
    /// The device is made in either style, for who asks for it.
    pub fn apply(&mut self, ops: &[NodeOp], first: usize, sent: &mut Sent) -> Result<(), Error> {
        let mut first = first;
        let is_of_device = |op: &NodeOp| matches!(op, NodeOp::MakeDevice | NodeOp::RemoveDevice);
        for run in ops.chunk_by(|one, next| !is_of_device(one) && !is_of_device(next)) {
            match (&run[0], self.style) {
                (NodeOp::MakeDevice, _) => self.make_device(first, sent)?,
                (NodeOp::RemoveDevice, _) => self.remove_device(first, sent)?,
                (_, Style::Device) => self.change_addresses(run, first, sent)?,
                (_, Style::Routes) => self.change_routes(run, first, sent)?,
            }
            first += run.len();
        }
        Ok(())
    }

    /// The addresses of a family that are local by this style, link-local ones aside; `None` where they would be on the
    /// device and there is none.
    pub fn addresses(&mut self, family: Family) -> Result<Option<Vec<IpAddr>>, Error> {
        match self.style {
            Style::Device => {
                let Some(device) = self.device()? else { return Ok(None) };
                let request = |w: &mut Writer, head| {
                    let head = Head { kind: RTM_GETADDR, ..head };
                    let mut fixed = [0; IFADDRMSG];
                    fixed[0] = family_number(family);
                    w.message(head, &fixed, |_| {});
                };
                let read = |message: &Message<'_>| address::read(message).filter(|found| found.interface == device);
                let found = self.talk.list(Step::ReadAddresses, &request, &read)?.into_iter().map(|found| found.address);
                Ok(Some(found.filter(|address| Family::of(*address) == family && !is_link_local(address)).collect()))
            }
            Style::Routes => self.routes(family).map(Some),
        }
    }

    /// Deletes the device with its addresses; false where there is none. One of another type is somebody else's.
    pub fn delete_device(&mut self) -> Result<bool, Error> {
        let Some(index) = self.device()? else { return Ok(false) };
        let write = |w: &mut Writer, head| w.message(Head { kind: RTM_DELLINK, ..head }, &link_header(index), |_| {});
        match self.talk.ask(Step::DeleteDevice, &write, &mut |_| {}) {
            Err(Error::Failed { errno: Errno::ENODEV, .. }) => Ok(false),
            other => other.map(|()| true),
        }
    }

    fn remove_device(&mut self, first: usize, sent: &mut Sent) -> Result<(), Error> {
        sent.messages += 1;
        sent.sends += 1;
        match self.delete_device() {
            Ok(_) => Ok(()),
            Err(Error::Failed { errno, .. }) => {
                sent.refused.push(Refusal { op: first, errno, text: NodeOp::RemoveDevice.to_string() });
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Deletes our routes of both families, and tells how many there were.
    pub fn delete_routes(&mut self) -> Result<usize, Error> {
        let mut sent = Sent::default();
        let mut count = 0;
        for family in Family::ALL {
            let ops: Vec<_> = self.routes(family)?.into_iter().map(NodeOp::DeleteAddress).collect();
            self.change_routes(&ops, 0, &mut sent)?;
            count += ops.len();
        }
        if sent.refused.is_empty() { Ok(count) } else { Err(Error::Refused(sent.refused)) }
    }

    /// The index of the device. A device of that name which is no dummy is not ours to put addresses on.
    fn device(&mut self) -> Result<Option<u32>, Error> {
        let found = find(&mut self.talk, DEVICE)?;
        Ok(found.filter(Link::is_dummy).map(|link| link.index))
    }

    fn make_device(&mut self, op: usize, sent: &mut Sent) -> Result<(), Error> {
        let write = |w: &mut Writer, head: Head, _: &NodeOp| {
            let head = Head { kind: RTM_NEWLINK, flags: flag::CREATE | flag::EXCLUSIVE, ..head };
            w.message(head, &link_header(0), |w| {
                w.text(IFLA_IFNAME, DEVICE);
                w.nest(IFLA_LINKINFO, |w| w.text(IFLA_INFO_KIND, DUMMY));
            });
        };
        let refused = self.talk.send_many(&[NodeOp::MakeDevice], &write, sent)?;
        let Some(&(_, errno)) = refused.first() else { return Ok(()) };
        let why = match errno {
            Errno::EEXIST => match find(&mut self.talk, DEVICE)? {
                Some(link) if link.is_dummy() => return Ok(()),
                Some(Link { kind: Some(kind), .. }) => format!(", one of type {kind} has that name"),
                _ => ", something else has that name".to_owned(),
            },
            Errno::EOPNOTSUPP => " of type dummy (module dummy)".to_owned(),
            _ => String::new(),
        };
        sent.refused.push(Refusal { op, errno, text: format!("{}{why}", NodeOp::MakeDevice) });
        Ok(())
    }

    fn change_addresses(&mut self, ops: &[NodeOp], first: usize, sent: &mut Sent) -> Result<(), Error> {
        let refused = match self.device()? {
            Some(device) => self.talk.send_many(ops, &|w, head, op| write_address(w, head, device, op), sent)?,
            None => (0..ops.len()).map(|index| (index, Errno::ENODEV)).collect(),
        };
        // An address that is there already, or one that is not there any more, be it that the device is gone.
        let is_done = |op: &NodeOp, errno| match op {
            NodeOp::AddAddress(_) => errno == Errno::EEXIST,
            _ => [Errno::EADDRNOTAVAIL, Errno::ENODEV].contains(&errno),
        };
        let refused = refused.into_iter().filter(|&(index, errno)| !is_done(&ops[index], errno));
        sent.refused.extend(refused.map(|it| refusal(ops, first, it)));
        Ok(())
    }

    fn change_routes(&mut self, ops: &[NodeOp], first: usize, sent: &mut Sent) -> Result<(), Error> {
        let refused = self.talk.send_many(ops, &write_route, sent)?;
        let is_done = |op: &NodeOp, errno| match op {
            NodeOp::AddAddress(_) => errno == Errno::EEXIST,
            _ => errno == Errno::ESRCH,
        };
        let refused = refused.into_iter().filter(|&(index, errno)| !is_done(&ops[index], errno));
        sent.refused.extend(refused.map(|it| refusal(ops, first, it)));
        Ok(())
    }

    fn routes(&mut self, family: Family) -> Result<Vec<IpAddr>, Error> {
        let request = |w: &mut Writer, head| {
            let mut fixed = [0; RTMSG];
            fixed[0] = family_number(family);
            w.message(Head { kind: RTM_GETROUTE, ..head }, &fixed, |_| {});
        };
        // Where IPv6 is disabled, the kernel lists what it has of other families.
        let of_family = |message: &Message<'_>| read_route(message).filter(|address| Family::of(*address) == family);
        self.talk.list(Step::ReadRoutes, &request, &of_family)
    }
}

/// For benchmarks: the length of what [`LocalAddresses::apply`] would send for addresses, once it is encoded.
pub(super) fn encode(ops: &[NodeOp], style: Style) -> usize {
    match style {
        Style::Device => talk::encode(ops, PIECE, &|w, head, op| write_address(w, head, LOOPBACK, op)),
        Style::Routes => talk::encode(ops, PIECE, &write_route),
    }
}

const DUMMY: &str = "dummy";

/// A network device.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub index: u32,
    pub name: String,
    /// Its type, for those that were made by one.
    kind: Option<String>,
}

impl Link {
    fn is_dummy(&self) -> bool {
        self.kind.as_deref() == Some(DUMMY)
    }
}

/// The index of an interface by its name; `None` where there is none.
pub fn interface_index(name: &str) -> Result<Option<u32>, Error> {
    find(&mut Talk::open(Peer::Route, PIECE)?, name).map(|found| found.map(|link| link.index))
}

fn find(talk: &mut Talk, name: &str) -> Result<Option<Link>, Error> {
    let write = |w: &mut Writer, head| {
        w.message(Head { kind: RTM_GETLINK, ..head }, &link_header(0), |w| w.text(IFLA_IFNAME, name));
    };
    let mut found = None;
    match talk.ask(Step::FindDevice, &write, &mut |message| found = read_link(message)) {
        Err(Error::Failed { errno: Errno::ENODEV, .. }) => Ok(None),
        Err(Error::Failed { step: step @ Step::FindDevice, errno, .. }) => Err(Error::said(step, errno, Some(name.to_owned()))),
        other => other.map(|()| found),
    }
}

fn link_header(index: u32) -> [u8; IFINFOMSG] {
    let mut header = [0; IFINFOMSG];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header
}

/// A device out of a message that tells of one.
pub(super) fn read_link(message: &Message<'_>) -> Option<Link> {
    let fixed = message.payload.first_chunk::<IFINFOMSG>()?;
    let attributes = message.attributes(IFINFOMSG);
    let kind = attributes.get(IFLA_LINKINFO).and_then(|info| info.nested().get(IFLA_INFO_KIND)?.text());
    Some(Link {
        index: u32::from_ne_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]),
        name: attributes.get(IFLA_IFNAME)?.text()?.to_owned(),
        kind: kind.map(str::to_owned),
    })
}

fn write_address(w: &mut Writer, head: Head, device: u32, op: &NodeOp) {
    let (kind, flags, address) = match op {
        NodeOp::AddAddress(address) => (RTM_NEWADDR, flag::CREATE | flag::EXCLUSIVE, address),
        NodeOp::DeleteAddress(address) => (RTM_DELADDR, 0, address),
        _ => return,
    };
    // No other node is asked whether it has an IPv6 address: on this device there is none to ask.
    let address_flags = if address.is_ipv6() { IFA_F_NODAD } else { 0 };
    let family = Family::of(*address);
    let mut fixed: [u8; IFADDRMSG] = [family_number(family), family.host_prefix(), address_flags, RT_SCOPE_UNIVERSE, 0, 0, 0, 0];
    fixed[4..].copy_from_slice(&device.to_ne_bytes());
    w.message(Head { kind, flags, ..head }, &fixed, |w| {
        write_ip(w, IFA_LOCAL, *address);
        write_ip(w, IFA_ADDRESS, *address);
    });
}

/// A route is put beside the one of an address that is the same, and stays when that goes.
fn write_route(w: &mut Writer, head: Head, op: &NodeOp) {
    let (kind, flags, address) = match op {
        NodeOp::AddAddress(address) => (RTM_NEWROUTE, flag::CREATE | flag::APPEND, address),
        NodeOp::DeleteAddress(address) => (RTM_DELROUTE, 0, address),
        _ => return,
    };
    let family = Family::of(*address);
    let (number, prefix) = (family_number(family), family.host_prefix());
    let fixed: [u8; RTMSG] = [number, prefix, 0, 0, RT_TABLE_LOCAL, ROUTE_PROTOCOL, RT_SCOPE_HOST, RTN_LOCAL, 0, 0, 0, 0];
    w.message(Head { kind, flags, ..head }, &fixed, |w| {
        write_ip(w, RTA_DST, *address);
        w.ne32(RTA_OIF, LOOPBACK);
    });
}

/// The destination of a route that is one of ours.
fn read_route(message: &Message<'_>) -> Option<IpAddr> {
    let fixed = message.payload.first_chunk::<RTMSG>()?;
    let [family, prefix, _, _, RT_TABLE_LOCAL, ROUTE_PROTOCOL, _, RTN_LOCAL, ..] = *fixed else { return None };
    let destination = message.attributes(RTMSG).get(RTA_DST)?.data;
    match (family, prefix) {
        (AF_INET, 32) => Some(Ipv4Addr::from(<[u8; 4]>::try_from(destination).ok()?).into()),
        (AF_INET6, 128) => Some(Ipv6Addr::from(<[u8; 16]>::try_from(destination).ok()?).into()),
        _ => None,
    }
}

fn write_ip(w: &mut Writer, kind: u16, address: IpAddr) {
    match address {
        IpAddr::V4(address) => w.bytes(kind, &address.octets()),
        IpAddr::V6(address) => w.bytes(kind, &address.octets()),
    }
}

fn family_number(family: Family) -> u8 {
    match family {
        Family::Ipv4 => AF_INET,
        Family::Ipv6 => AF_INET6,
    }
}

/// An IPv6 interface gives itself one.
fn is_link_local(address: &IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

#[cfg(test)]
mod tests {
    use super::super::attr::Messages;
    use super::*;

    fn route(address: &str) -> Vec<u8> {
        let mut w = Writer::default();
        write_route(&mut w, Head::default(), &NodeOp::AddAddress(address.parse().unwrap()));
        w.as_bytes().to_vec()
    }

    fn read(bytes: &[u8]) -> Option<IpAddr> {
        read_route(&Messages(bytes).next().unwrap())
    }

    #[test]
    fn our_routes_are_told_from_others() {
        for address in ["10.96.0.10", "fd00::a"] {
            let ours = route(address);
            assert_eq!(read(&ours), address.parse().ok());
            // Prefix length, table, protocol and type come at these places of the family's header.
            for place in [17, 20, 21, 23] {
                let mut other = ours.clone();
                other[place] = 1;
                assert_eq!(read(&other), None, "{address}, byte {place}");
            }
        }
    }

    #[test]
    fn garbage_is_no_route_and_no_device() {
        let head = Head::default();
        let whole = &route("fd00::a")[16..];
        // Up to the end of the destination.
        for cut in 0..RTMSG + 20 {
            assert_eq!(read_route(&Message { head, payload: &whole[..cut] }), None, "cut at {cut}");
        }
        let mut w = Writer::default();
        w.message(head, &link_header(7), |w| {
            w.nest(IFLA_LINKINFO, |w| w.text(IFLA_INFO_KIND, DUMMY));
            w.text(IFLA_IFNAME, DEVICE);
        });
        let whole = &w.as_bytes()[16..];
        let link = Link { index: 7, name: DEVICE.to_owned(), kind: Some(DUMMY.to_owned()) };
        assert_eq!(read_link(&Message { head, payload: whole }), Some(link));
        for cut in 0..whole.len() - 4 {
            assert_eq!(read_link(&Message { head, payload: &whole[..cut] }), None, "cut at {cut}");
        }
    }

    #[test]
    fn other_operations_are_not_written() {
        let mut w = Writer::default();
        let at = "10.96.0.10:53".parse().unwrap();
        let at = crate::ruleset::VirtualAddress { protocol: crate::net::Protocol::Tcp, address: at };
        for op in [NodeOp::MakeDevice, NodeOp::DeleteServer { at }] {
            write_address(&mut w, Head::default(), 1, &op);
            write_route(&mut w, Head::default(), &op);
        }
        assert_eq!(w.len(), 0);
    }
}
