//! Messages of IPVS as bytes (`linux/ip_vs.h`): operations on virtual and real servers written, and what the kernel
//! lists read. No socket here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::super::attr::{Attributes, Head, Message, Writer};
use crate::net::{Family, Protocol, Scheduler};
use crate::ruleset::{NodeOp, Persistence, RealServer, ServerFlags, VirtualAddress, VirtualServer};

/// Size of `struct genlmsghdr`: command, version, 16 reserved bits.
pub(super) const GENLMSG: usize = 4;
const IPVS_GENL_VERSION: u8 = 1;

/// `IPVS_CMD_*`.
pub(super) mod command {
    pub const NEW_SERVICE: u8 = 1;
    pub const SET_SERVICE: u8 = 2;
    pub const DEL_SERVICE: u8 = 3;
    pub const GET_SERVICE: u8 = 4;
    pub const NEW_DEST: u8 = 5;
    pub const SET_DEST: u8 = 6;
    pub const DEL_DEST: u8 = 7;
    pub const GET_DEST: u8 = 8;
    pub const SET_CONFIG: u8 = 12;
    pub const GET_CONFIG: u8 = 13;
    pub const GET_INFO: u8 = 15;
}

const IPVS_CMD_ATTR_SERVICE: u16 = 1;
const IPVS_CMD_ATTR_DEST: u16 = 2;
pub(super) const IPVS_CMD_ATTR_TIMEOUT_TCP: u16 = 4;
pub(super) const IPVS_CMD_ATTR_TIMEOUT_TCP_FIN: u16 = 5;
pub(super) const IPVS_CMD_ATTR_TIMEOUT_UDP: u16 = 6;
const IPVS_SVC_ATTR_AF: u16 = 1;
const IPVS_SVC_ATTR_PROTOCOL: u16 = 2;
const IPVS_SVC_ATTR_ADDR: u16 = 3;
const IPVS_SVC_ATTR_PORT: u16 = 4;
const IPVS_SVC_ATTR_FWMARK: u16 = 5;
const IPVS_SVC_ATTR_SCHED_NAME: u16 = 6;
const IPVS_SVC_ATTR_FLAGS: u16 = 7;
const IPVS_SVC_ATTR_TIMEOUT: u16 = 8;
const IPVS_SVC_ATTR_NETMASK: u16 = 9;
const IPVS_DEST_ATTR_ADDR: u16 = 1;
const IPVS_DEST_ATTR_PORT: u16 = 2;
const IPVS_DEST_ATTR_FWD_METHOD: u16 = 3;
const IPVS_DEST_ATTR_WEIGHT: u16 = 4;
const IPVS_DEST_ATTR_U_THRESH: u16 = 5;
const IPVS_DEST_ATTR_L_THRESH: u16 = 6;
const IPVS_DEST_ATTR_ACTIVE_CONNS: u16 = 7;
const IPVS_DEST_ATTR_INACT_CONNS: u16 = 8;
const IPVS_DEST_ATTR_ADDR_FAMILY: u16 = 11;

const IP_VS_SVC_F_PERSISTENT: u32 = 0x1;
/// The kernel's own: the virtual server is in its table.
const IP_VS_SVC_F_HASHED: u32 = 0x2;
const IP_VS_CONN_F_FWD_MASK: u32 = 0x7;
const IP_VS_CONN_F_MASQ: u32 = 0;

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// The header after that of the message.
pub(super) fn header(command: u8) -> [u8; GENLMSG] {
    [command, IPVS_GENL_VERSION, 0, 0]
}

/// Writes an operation; one that is not of IPVS leaves nothing behind.
pub(super) fn write_op(w: &mut Writer, head: Head, op: &NodeOp) {
    let mut server = |command, at, server| {
        w.message(head, &header(command), |w| write_server(w, at, server));
    };
    match op {
        NodeOp::AddServer { at, server: it } => server(command::NEW_SERVICE, at, Some(it)),
        NodeOp::EditServer { at, server: it } => server(command::SET_SERVICE, at, Some(it)),
        NodeOp::DeleteServer { at } => server(command::DEL_SERVICE, at, None),
        NodeOp::AddReal { at, real, weight } => write_real(w, (head, command::NEW_DEST), at, *real, Some(*weight)),
        NodeOp::EditReal { at, real, weight } => write_real(w, (head, command::SET_DEST), at, *real, Some(*weight)),
        NodeOp::DeleteReal { at, real } => write_real(w, (head, command::DEL_DEST), at, *real, None),
        _ => {}
    }
}

/// Which virtual server is meant and, where that is to be set, how it is.
pub(super) fn write_server(w: &mut Writer, at: &VirtualAddress, server: Option<&VirtualServer>) {
    w.nest(IPVS_CMD_ATTR_SERVICE, |w| {
        w.ne16(IPVS_SVC_ATTR_AF, family_number(at.address.ip()));
        w.ne16(IPVS_SVC_ATTR_PROTOCOL, at.protocol.number().into());
        w.bytes(IPVS_SVC_ATTR_ADDR, &address_bytes(at.address.ip()));
        w.bytes(IPVS_SVC_ATTR_PORT, &at.address.port().to_be_bytes());
        let Some(server) = server else { return };
        let persistent = if server.persistence.is_some() { IP_VS_SVC_F_PERSISTENT } else { 0 };
        let all = Persistence { seconds: 0, prefix: at.family().host_prefix() };
        let Persistence { seconds, prefix } = server.persistence.unwrap_or(all);
        w.text(IPVS_SVC_ATTR_SCHED_NAME, server.scheduler.as_str());
        // struct ip_vs_flags: the flags, and which of them are meant.
        let flags = [server.flags.0 | persistent, u32::MAX].map(u32::to_ne_bytes);
        w.bytes(IPVS_SVC_ATTR_FLAGS, flags.as_flattened());
        w.ne32(IPVS_SVC_ATTR_TIMEOUT, seconds);
        w.bytes(IPVS_SVC_ATTR_NETMASK, &netmask(at.family(), prefix));
    });
}

/// An IPv4 netmask is a mask in network order, an IPv6 one the length of the prefix.
fn netmask(family: Family, prefix: u8) -> [u8; 4] {
    match family {
        Family::Ipv4 => u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0).to_be_bytes(),
        Family::Ipv6 => u32::from(prefix).to_ne_bytes(),
    }
}

/// Without a weight only which real server is meant.
fn write_real(w: &mut Writer, (head, command): (Head, u8), at: &VirtualAddress, real: SocketAddr, weight: Option<u32>) {
    w.message(head, &header(command), |w| {
        write_server(w, at, None);
        w.nest(IPVS_CMD_ATTR_DEST, |w| {
            w.bytes(IPVS_DEST_ATTR_ADDR, &address_bytes(real.ip()));
            w.bytes(IPVS_DEST_ATTR_PORT, &real.port().to_be_bytes());
            w.ne16(IPVS_DEST_ATTR_ADDR_FAMILY, family_number(real.ip()));
            let Some(weight) = weight else { return };
            w.ne32(IPVS_DEST_ATTR_FWD_METHOD, IP_VS_CONN_F_MASQ);
            w.ne32(IPVS_DEST_ATTR_WEIGHT, weight);
            w.ne32(IPVS_DEST_ATTR_U_THRESH, 0);
            w.ne32(IPVS_DEST_ATTR_L_THRESH, 0);
        });
    });
}

fn family_number(address: IpAddr) -> u16 {
    match address {
        IpAddr::V4(_) => AF_INET,
        IpAddr::V6(_) => AF_INET6,
    }
}

/// `union nf_inet_addr`: room for both families, IPv4 in front.
fn address_bytes(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets();
            [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        }
        IpAddr::V6(address) => address.octets(),
    }
}

fn read_address(family: u16, bytes: &[u8]) -> Option<IpAddr> {
    match family {
        AF_INET => Some(Ipv4Addr::from(*bytes.first_chunk::<4>()?).into()),
        AF_INET6 => Some(Ipv6Addr::from(*bytes.first_chunk::<16>()?).into()),
        _ => None,
    }
}

fn read_port(attributes: Attributes<'_>, kind: u16) -> Option<u16> {
    Some(u16::from_be_bytes(attributes.get(kind)?.data.try_into().ok()?))
}

/// A virtual server out of a listing; `None` for one of a firewall mark.
pub(super) fn read_server(message: &Message<'_>) -> Option<(VirtualAddress, VirtualServer)> {
    let attributes = message.attributes(GENLMSG).get(IPVS_CMD_ATTR_SERVICE)?.nested();
    if attributes.get(IPVS_SVC_ATTR_FWMARK).is_some() {
        return None;
    }
    let family = attributes.get(IPVS_SVC_ATTR_AF)?.ne16()?;
    let ip = read_address(family, attributes.get(IPVS_SVC_ATTR_ADDR)?.data)?;
    let address = SocketAddr::new(ip, read_port(attributes, IPVS_SVC_ATTR_PORT)?);
    let number = attributes.get(IPVS_SVC_ATTR_PROTOCOL)?.ne16()?;
    let protocol = Protocol::from_number(number.try_into().ok()?)?;
    let scheduler = attributes.get(IPVS_SVC_ATTR_SCHED_NAME)?.text().and_then(Scheduler::from_name);
    let flags = attributes.get(IPVS_SVC_ATTR_FLAGS)?.data.first_chunk().map(|flags| u32::from_ne_bytes(*flags))?;
    let persistence = if flags & IP_VS_SVC_F_PERSISTENT == 0 {
        None
    } else {
        let seconds = attributes.get(IPVS_SVC_ATTR_TIMEOUT)?.ne32()?;
        let netmask = attributes.get(IPVS_SVC_ATTR_NETMASK)?;
        let prefix = if ip.is_ipv4() { netmask.be32()?.leading_ones() } else { netmask.ne32()? };
        Some(Persistence { seconds, prefix: prefix.try_into().ok()? })
    };
    let server = VirtualServer {
        scheduler: scheduler.unwrap_or(Scheduler::Other),
        flags: ServerFlags(flags & !(IP_VS_SVC_F_PERSISTENT | IP_VS_SVC_F_HASHED)),
        persistence,
    };
    Some((VirtualAddress { protocol, address }, server))
}

/// A real server out of the listing of one virtual server's, whose family counts where none is said (before 3.18).
pub(super) fn read_real(of: &VirtualAddress, message: &Message<'_>) -> Option<RealServer> {
    let attributes = message.attributes(GENLMSG).get(IPVS_CMD_ATTR_DEST)?.nested();
    let number = |kind| attributes.get(kind)?.ne32();
    let family = attributes.get(IPVS_DEST_ATTR_ADDR_FAMILY);
    let family = family.map_or(Some(family_number(of.address.ip())), |family| family.ne16())?;
    let ip = read_address(family, attributes.get(IPVS_DEST_ATTR_ADDR)?.data)?;
    Some(RealServer {
        address: SocketAddr::new(ip, read_port(attributes, IPVS_DEST_ATTR_PORT)?),
        weight: number(IPVS_DEST_ATTR_WEIGHT)?,
        masquerades: number(IPVS_DEST_ATTR_FWD_METHOD)? & IP_VS_CONN_F_FWD_MASK == IP_VS_CONN_F_MASQ,
        active: number(IPVS_DEST_ATTR_ACTIVE_CONNS)?,
        inactive: number(IPVS_DEST_ATTR_INACT_CONNS)?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::super::attr::Messages;
    use super::*;

    fn at(text: &str) -> VirtualAddress {
        VirtualAddress { protocol: Protocol::Udp, address: text.parse().unwrap() }
    }

    fn server(persistence: Option<Persistence>) -> VirtualServer {
        VirtualServer { scheduler: Scheduler::Mh, flags: ServerFlags::MH_PORT, persistence }
    }

    /// The one message that an operation becomes.
    fn written(op: &NodeOp) -> Vec<u8> {
        let mut w = Writer::default();
        write_op(&mut w, Head::default(), op);
        assert_eq!(Messages(w.as_bytes()).count(), 1);
        w.as_bytes().to_vec()
    }

    /// A listing has a virtual server just as it is made.
    fn listed(at: VirtualAddress, server: VirtualServer) -> Vec<u8> {
        written(&NodeOp::AddServer { at, server })
    }

    fn read(bytes: &[u8]) -> Option<(VirtualAddress, VirtualServer)> {
        read_server(&Messages(bytes).next().unwrap())
    }

    fn listed_real(real: &str, more: impl FnOnce(&mut Writer)) -> Vec<u8> {
        let real: SocketAddr = real.parse().unwrap();
        let mut w = Writer::default();
        w.message(Head::default(), &header(command::NEW_DEST), |w| {
            w.nest(IPVS_CMD_ATTR_DEST, |w| {
                w.bytes(IPVS_DEST_ATTR_ADDR, &address_bytes(real.ip()));
                w.bytes(IPVS_DEST_ATTR_PORT, &real.port().to_be_bytes());
                w.ne32(IPVS_DEST_ATTR_FWD_METHOD, 3);
                w.ne32(IPVS_DEST_ATTR_WEIGHT, 7);
                w.ne32(IPVS_DEST_ATTR_ACTIVE_CONNS, 5);
                w.ne32(IPVS_DEST_ATTR_INACT_CONNS, 6);
                more(w);
            });
        });
        w.as_bytes().to_vec()
    }

    #[test]
    fn a_virtual_server_is_read() {
        for address in ["10.96.0.10:53", "[fd00::a]:53"] {
            let at = at(address);
            for prefix in [24, at.family().host_prefix()] {
                let sticky = server(Some(Persistence { seconds: 10_800, prefix }));
                assert_eq!(read(&listed(at, sticky)), Some((at, sticky)));
            }
            assert_eq!(read(&listed(at, server(None))), Some((at, server(None))));
        }
    }

    #[test]
    fn every_prefix_has_its_netmask() {
        let masks = [(0, [0, 0, 0, 0]), (1, [128, 0, 0, 0]), (20, [255, 255, 240, 0]), (32, [255; 4])];
        for (prefix, mask) in masks {
            assert_eq!(netmask(Family::Ipv4, prefix), mask);
        }
        assert_eq!(netmask(Family::Ipv6, 128), 128_u32.to_ne_bytes());
    }

    #[test]
    fn firewall_marks_are_left_out() {
        let mut w = Writer::default();
        w.message(Head::default(), &header(command::NEW_SERVICE), |w| {
            w.nest(IPVS_CMD_ATTR_SERVICE, |w| {
                w.ne16(IPVS_SVC_ATTR_AF, AF_INET);
                w.ne32(IPVS_SVC_ATTR_FWMARK, 7);
                w.text(IPVS_SVC_ATTR_SCHED_NAME, "rr");
            });
        });
        assert_eq!(read(w.as_bytes()), None);
    }

    #[test]
    fn a_real_server_is_read() {
        let bytes = listed_real("10.244.1.2:5353", |_| {});
        let real = read_real(&at("10.96.0.10:53"), &Messages(&bytes).next().unwrap()).unwrap();
        let address = "10.244.1.2:5353".parse().unwrap();
        assert_eq!(real, RealServer { address, weight: 7, masquerades: false, active: 5, inactive: 6 });
        // IPv4 behind IPv6 goes by tunnel; the family that is said counts.
        let bytes = listed_real("10.244.1.2:5353", |w| w.ne16(IPVS_DEST_ATTR_ADDR_FAMILY, AF_INET));
        let real = read_real(&at("[fd00::a]:53"), &Messages(&bytes).next().unwrap()).unwrap();
        assert_eq!(real.address, address);
    }

    #[test]
    fn garbage_is_no_server() {
        let at = at("[fd00::a]:53");
        let whole = listed(at, server(Some(Persistence { seconds: 1, prefix: 128 })));
        for cut in 16..whole.len() {
            assert_eq!(read_server(&Message { head: Head::default(), payload: &whole[16..cut] }), None, "cut at {cut}");
        }
        let whole = listed_real("[fd00::b]:53", |_| {});
        for cut in 16..whole.len() {
            assert_eq!(read_real(&at, &Message { head: Head::default(), payload: &whole[16..cut] }), None, "cut at {cut}");
        }
        // No byte, whatever it becomes, makes reading fail.
        for place in 16..whole.len() {
            let mut garbled = whole.clone();
            garbled[place] ^= 0xff;
            let message = Message { head: Head::default(), payload: &garbled[16..] };
            let _ = (read_real(&at, &message), read_server(&message));
        }
    }

    #[test]
    fn only_operations_of_ipvs_are_written() {
        let mut w = Writer::default();
        write_op(&mut w, Head::default(), &NodeOp::MakeDevice);
        assert_eq!(w.len(), 0);
    }
}
