//! Tracked UDP flows by ctnetlink: listing those of a family, and deleting single ones.
//!
//! Only flows of zone 0: other zones are the connection tracking of somebody else (Open vSwitch keeps several), and
//! one connection may stand in more than one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use super::attr::{Attributes, Head, Message, Messages, NLMSG_DONE, NLMSG_ERROR, Writer, flag};
use super::errno::Errno;
use super::error::{Error, Step};
use super::socket::{Peer, Socket};
use crate::net::{Family, Protocol};

/// Numbers of `linux/netfilter/nfnetlink.h` and `nfnetlink_conntrack.h`; the subsystem is the upper byte of a kind.
const NFNL_SUBSYS_CTNETLINK: u16 = 1;
const IPCTNL_MSG_CT_NEW: u16 = NFNL_SUBSYS_CTNETLINK << 8;
const IPCTNL_MSG_CT_GET: u16 = NFNL_SUBSYS_CTNETLINK << 8 | 1;
const IPCTNL_MSG_CT_DELETE: u16 = NFNL_SUBSYS_CTNETLINK << 8 | 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_FILTER: u16 = 25;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_TUPLE_ZONE: u16 = 3;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
/// `CTA_FILTER_F_CTA_*` of the kernel's `net/netfilter/nf_internals.h`: which parts of the tuple to compare.
const FILTER_IP_DST: u32 = 1 << 1;
const FILTER_PROTO_NUM: u32 = 1 << 3;
const FILTER_PROTO_DST_PORT: u32 = 1 << 5;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// Size of `struct nfgenmsg`: family, version 0, resource id 0.
const NFGENMSG: usize = 4;

/// The kernel works inside the send; what is waited for is there.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often a listing that was interrupted is begun again, as in kube-proxy. The last one counts as it is: what it
/// lacks is found after the next change.
const MAX_TRIES: usize = 5;
/// Deletions in one send: each may be answered, and all answers must fit in the receive buffer.
const DELETIONS: usize = 512;
/// What an answer takes of the receive buffer, with the management of its memory.
const BYTES_PER_ANSWER: usize = 1 << 10;

/// One direction of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tuple {
    pub source: SocketAddr,
    pub destination: SocketAddr,
}

/// A tracked UDP flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flow {
    /// As the client sends.
    pub original: Tuple,
    /// As answers come: from where packets really go.
    pub reply: Tuple,
    /// Tells a flow from a later one between the same ends.
    pub id: u32,
}

/// Which flows are asked for.
#[derive(Clone, Copy)]
#[expect(missing_debug_implementations, reason = "a function has nothing to show")]
pub struct Query<'a> {
    pub family: Family,
    /// The destination that all have as the client names it, if they have one in common: the kernel may leave out
    /// others.
    pub address: Option<IpAddr>,
    pub port: Option<u16>,
    pub wanted: &'a dyn Fn(&Flow) -> bool,
}

/// The part of the kernel that tracks flows. Two implementations: the real one and a fake for tests.
pub trait Flows {
    /// The UDP flows asked for.
    fn udp(&mut self, query: &Query<'_>) -> Result<Vec<Flow>, Error>;

    /// Deletes flows of a family and tells how many there still were. One that is gone is no error, and one that
    /// cannot be deleted does not keep the others.
    fn delete(&mut self, family: Family, flows: &[Flow]) -> Result<usize, Error>;
}

/// The flows of the network namespace of the thread that asks.
#[derive(Debug)]
pub struct Conntrack {
    /// Let the kernel leave out what is not asked for? Becomes false where it can't (before 5.8).
    pub filtered: bool,
}

impl Default for Conntrack {
    fn default() -> Self {
        Self { filtered: true }
    }
}

impl Flows for Conntrack {
    fn udp(&mut self, query: &Query<'_>) -> Result<Vec<Flow>, Error> {
        let mut listing = self.list(query)?;
        for _ in 1..MAX_TRIES {
            if !listing.interrupted {
                break;
            }
            listing = self.list(query)?;
        }
        Ok(listing.flows)
    }

    fn delete(&mut self, family: Family, flows: &[Flow]) -> Result<usize, Error> {
        let mut deleted = 0;
        let mut failed = None;
        if flows.is_empty() {
            return Ok(0);
        }
        let mut socket = Socket::open(Peer::Netfilter)?;
        for (number, batch) in (0_u32..).zip(flows.chunks(DELETIONS)) {
            let first = number * u32::try_from(DELETIONS).expect("512") + 1;
            let answers = delete(&mut socket, family, first, batch)?;
            deleted += batch.len() - answers.not_deleted;
            failed = failed.or(answers.failed);
        }
        failed.map_or(Ok(deleted), Err)
    }
}

impl Conntrack {
    /// Lists with the kernel's filter or, where it has none, without.
    fn list(&mut self, query: &Query<'_>) -> Result<Listing, Error> {
        if self.filtered {
            match list(query, true) {
                Err(error) if error.errno().is_some_and(is_unknown) => {}
                other => return other,
            }
        }
        let listing = list(query, false).map_err(|error| match error.errno() {
            // What nfnetlink answers for a subsystem it doesn't have and cannot load.
            Some(errno) if is_unknown(errno) => Error::Unsupported { what: "ctnetlink", errno },
            _ => error,
        })?;
        self.filtered = false;
        Ok(listing)
    }
}

fn is_unknown(errno: Errno) -> bool {
    errno == Errno::EINVAL || errno == Errno::EOPNOTSUPP
}

#[derive(Debug, Default)]
struct Listing {
    flows: Vec<Flow>,
    /// Some may be missing.
    interrupted: bool,
}

fn list(query: &Query<'_>, filtered: bool) -> Result<Listing, Error> {
    let step = Step::ReadFlows;
    let mut socket = Socket::open(Peer::Netfilter)?;
    let mut request = Writer::default();
    let head = Head { kind: IPCTNL_MSG_CT_GET, flags: flag::DUMP, sequence: 1 };
    request.message(head, &header(query.family), |w| {
        if filtered {
            write_filter(w, query);
        }
    });
    socket.send(request.as_bytes())?;
    let mut listing = Listing::default();
    loop {
        let datagram = match socket.receive(PATIENCE) {
            Ok(Some(datagram)) => datagram,
            Ok(None) => return Err(Error::NoAnswer { step, after: PATIENCE }),
            // Not seen with listings, which the reader's pace governs; then as if somebody had come in between.
            Err(Error::Failed { errno: Errno::ENOBUFS, .. }) => return Ok(Listing { interrupted: true, ..listing }),
            Err(error) => return Err(error),
        };
        for message in Messages(datagram) {
            listing.interrupted |= message.head.flags & flag::DUMP_INTERRUPTED != 0;
            match message.head.kind {
                IPCTNL_MSG_CT_NEW => listing.flows.extend(flow(&message).filter(query.wanted)),
                NLMSG_DONE | NLMSG_ERROR => return end(listing, &message),
                _ => {}
            }
        }
    }
}

/// Names the parts of the original tuple that count, and their values.
fn write_filter(w: &mut Writer, query: &Query<'_>) {
    let mut parts = FILTER_PROTO_NUM;
    w.nest(CTA_TUPLE_ORIG, |w| {
        // Up to Linux 6.18 at least, the comparison of IPv6 addresses is the wrong way round: equal ones are left out.
        if let Some(address) = query.address.filter(IpAddr::is_ipv4) {
            parts |= FILTER_IP_DST;
            w.nest(CTA_TUPLE_IP, |w| write_address(w, address, CTA_IP_V4_DST, CTA_IP_V6_DST));
        }
        w.nest(CTA_TUPLE_PROTO, |w| {
            w.bytes(CTA_PROTO_NUM, &[Protocol::Udp.number()]);
            if let Some(port) = query.port {
                parts |= FILTER_PROTO_DST_PORT;
                w.bytes(CTA_PROTO_DST_PORT, &port.to_be_bytes());
            }
        });
    });
    w.nest(CTA_FILTER, |w| w.bytes(CTA_FILTER_ORIG_FLAGS, &parts.to_ne_bytes()));
}

/// What the last message of a listing says.
fn end(mut listing: Listing, message: &Message<'_>) -> Result<Listing, Error> {
    match Errno(message.error_number()) {
        Errno(0) => Ok(listing),
        Errno::EINTR => {
            listing.interrupted = true;
            Ok(listing)
        }
        errno => Err(Error::said(Step::ReadFlows, errno, message.error_text())),
    }
}

/// What became of a batch of deletions.
#[derive(Debug, Default)]
struct Deletions {
    not_deleted: usize,
    /// The first error that is one.
    failed: Option<Error>,
}

/// Deletes in one send. Only the last message asks for an answer in any case: errors come unasked.
fn delete(socket: &mut Socket, family: Family, first: u32, flows: &[Flow]) -> Result<Deletions, Error> {
    socket.reserve_receive(flows.len() * BYTES_PER_ANSWER)?;
    let mut request = Writer::default();
    let mut last = first;
    for (sequence, flow) in (first..).zip(flows) {
        let flags = if sequence - first == u32::try_from(flows.len() - 1).expect("512 at most") { flag::ACK } else { 0 };
        write_delete(&mut request, family, Head { kind: IPCTNL_MSG_CT_DELETE, flags, sequence }, flow);
        last = sequence;
    }
    socket.send(request.as_bytes())?;
    let mut deletions = Deletions::default();
    loop {
        let datagram = match socket.receive(PATIENCE) {
            Ok(Some(datagram)) => datagram,
            Ok(None) => return Err(Error::NoAnswer { step: Step::DeleteFlows, after: PATIENCE }),
            Err(error) => return Err(error),
        };
        for message in Messages(datagram).filter(|message| message.head.kind == NLMSG_ERROR) {
            deletions.take(&message);
            if message.head.sequence == last {
                return Ok(deletions);
            }
        }
    }
}

impl Deletions {
    fn take(&mut self, message: &Message<'_>) {
        match Errno(message.error_number()) {
            Errno(0) => {}
            // It ended by itself, or another between the same ends has taken its place.
            Errno::ENOENT => self.not_deleted += 1,
            errno => {
                self.not_deleted += 1;
                self.failed.get_or_insert_with(|| Error::said(Step::DeleteFlows, errno, message.error_text()));
            }
        }
    }
}

/// A deletion always names a flow: without a tuple it would be of all flows there are.
fn write_delete(w: &mut Writer, family: Family, head: Head, flow: &Flow) {
    w.message(head, &header(family), |w| {
        write_tuple(w, CTA_TUPLE_ORIG, &flow.original);
        w.be32(CTA_ID, flow.id);
    });
}

fn write_tuple(w: &mut Writer, kind: u16, tuple: &Tuple) {
    w.nest(kind, |w| {
        w.nest(CTA_TUPLE_IP, |w| {
            write_address(w, tuple.source.ip(), CTA_IP_V4_SRC, CTA_IP_V6_SRC);
            write_address(w, tuple.destination.ip(), CTA_IP_V4_DST, CTA_IP_V6_DST);
        });
        w.nest(CTA_TUPLE_PROTO, |w| {
            w.bytes(CTA_PROTO_NUM, &[Protocol::Udp.number()]);
            w.bytes(CTA_PROTO_SRC_PORT, &tuple.source.port().to_be_bytes());
            w.bytes(CTA_PROTO_DST_PORT, &tuple.destination.port().to_be_bytes());
        });
    });
}

fn write_address(w: &mut Writer, address: IpAddr, v4: u16, v6: u16) {
    match address {
        IpAddr::V4(address) => w.bytes(v4, &address.octets()),
        IpAddr::V6(address) => w.bytes(v6, &address.octets()),
    }
}

fn header(family: Family) -> [u8; NFGENMSG] {
    let family = match family {
        Family::Ipv4 => AF_INET,
        Family::Ipv6 => AF_INET6,
    };
    [family, 0, 0, 0]
}

/// A flow out of a listing; `None` for what is not UDP or of another zone.
fn flow(message: &Message<'_>) -> Option<Flow> {
    let attributes = message.attributes(NFGENMSG);
    if attributes.get(CTA_ZONE).is_some() {
        return None;
    }
    let original = tuple(attributes.get(CTA_TUPLE_ORIG)?.nested())?;
    let reply = tuple(attributes.get(CTA_TUPLE_REPLY)?.nested())?;
    Some(Flow { original, reply, id: attributes.get(CTA_ID)?.be32()? })
}

fn tuple(attributes: Attributes<'_>) -> Option<Tuple> {
    // A zone of one direction only stands in its tuple.
    if attributes.get(CTA_TUPLE_ZONE).is_some() {
        return None;
    }
    let addresses = attributes.get(CTA_TUPLE_IP)?.nested();
    let ports = attributes.get(CTA_TUPLE_PROTO)?.nested();
    if ports.get(CTA_PROTO_NUM)?.data != [Protocol::Udp.number()] {
        return None;
    }
    let address = |v4, v6| read_address(addresses, v4, v6);
    let port = |kind| Some(u16::from_be_bytes(ports.get(kind)?.data.try_into().ok()?));
    Some(Tuple {
        source: SocketAddr::new(address(CTA_IP_V4_SRC, CTA_IP_V6_SRC)?, port(CTA_PROTO_SRC_PORT)?),
        destination: SocketAddr::new(address(CTA_IP_V4_DST, CTA_IP_V6_DST)?, port(CTA_PROTO_DST_PORT)?),
    })
}

fn read_address(addresses: Attributes<'_>, v4: u16, v6: u16) -> Option<IpAddr> {
    if let Some(attribute) = addresses.get(v4) {
        let octets: [u8; 4] = attribute.data.try_into().ok()?;
        return Some(Ipv4Addr::from(octets).into());
    }
    let octets: [u8; 16] = addresses.get(v6)?.data.try_into().ok()?;
    Some(Ipv6Addr::from(octets).into())
}

#[cfg(fuzzing)]
pub(super) fn fuzz(message: &Message<'_>) {
    let _ = flow(message);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Flow {
        let end = |text: &str| text.parse().unwrap();
        Flow {
            original: Tuple { source: end("10.244.0.9:4000"), destination: end("10.96.0.10:53") },
            reply: Tuple { source: end("10.244.1.2:5353"), destination: end("10.244.0.9:4000") },
            id: 0x0102_0304,
        }
    }

    fn listed(flow: &Flow, more: impl FnOnce(&mut Writer)) -> Vec<u8> {
        let mut w = Writer::default();
        w.message(Head { kind: IPCTNL_MSG_CT_NEW, ..Head::default() }, &header(Family::Ipv4), |w| {
            write_tuple(w, CTA_TUPLE_ORIG, &flow.original);
            write_tuple(w, CTA_TUPLE_REPLY, &flow.reply);
            w.be32(CTA_ID, flow.id);
            more(w);
        });
        w.as_bytes().to_vec()
    }

    fn read(bytes: &[u8]) -> Option<Flow> {
        flow(&Messages(bytes).next().unwrap())
    }

    #[test]
    fn a_flow_is_read() {
        assert_eq!(read(&listed(&sample(), |_| {})), Some(sample()));
        let end = |text: &str| text.parse().unwrap();
        let tuple = Tuple { source: end("[fd00::9]:4000"), destination: end("[fd00::a]:53") };
        let v6 = Flow { original: tuple, reply: tuple, id: 1 };
        assert_eq!(read(&listed(&v6, |_| {})), Some(v6));
    }

    #[test]
    fn other_zones_are_not_ours() {
        assert_eq!(read(&listed(&sample(), |w| w.bytes(CTA_ZONE, &[0, 7]))), None);
    }

    #[test]
    fn garbage_is_no_flow() {
        let whole = listed(&sample(), |_| {});
        for cut in 20..whole.len() {
            let head = Head { kind: IPCTNL_MSG_CT_NEW, ..Head::default() };
            assert_eq!(flow(&Message { head, payload: &whole[16..cut] }), None, "cut at {cut}");
        }
    }

    /// ctnetlink takes a deletion without a tuple for one of everything.
    #[test]
    fn a_deletion_names_its_flow_in_full() {
        let mut w = Writer::default();
        write_delete(&mut w, Family::Ipv4, Head { kind: IPCTNL_MSG_CT_DELETE, flags: 0, sequence: 1 }, &sample());
        let message = Messages(w.as_bytes()).next().unwrap();
        let attributes = message.attributes(NFGENMSG);
        assert_eq!(tuple(attributes.get(CTA_TUPLE_ORIG).unwrap().nested()), Some(sample().original));
        assert_eq!(attributes.get(CTA_ID).and_then(|id| id.be32()), Some(sample().id));
    }

    #[test]
    fn what_is_gone_already_is_deleted() {
        let mut deletions = Deletions::default();
        for errno in [0, 2, 16, 2, 1] {
            let payload = i32::to_ne_bytes(-errno);
            deletions.take(&Message { head: Head::default(), payload: &payload });
        }
        assert_eq!(deletions.not_deleted, 4);
        assert_eq!(deletions.failed.unwrap().errno(), Some(Errno::EBUSY));
    }
}
