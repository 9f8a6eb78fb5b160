//! The addresses of the node's interfaces, and the news that they changed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use super::attr::{Head, Message, Messages, NLMSG_DONE, NLMSG_ERROR, Writer, flag};
use super::errno::Errno;
use super::error::{Error, Step};
use super::link::{RTM_DELLINK, RTM_NEWLINK, interface_index, read_link};
use super::socket::{Peer, Socket};

/// Numbers of `linux/rtnetlink.h` and `linux/if_addr.h`.
pub(super) const RTM_NEWADDR: u16 = 20;
pub(super) const RTM_DELADDR: u16 = 21;
pub(super) const RTM_GETADDR: u16 = 22;
const RTNLGRP_LINK: i32 = 1;
const RTNLGRP_IPV4_IFADDR: i32 = 5;
const RTNLGRP_IPV6_IFADDR: i32 = 9;
pub(super) const IFA_ADDRESS: u16 = 1;
pub(super) const IFA_LOCAL: u16 = 2;
pub(super) const AF_INET: u8 = 2;
pub(super) const AF_INET6: u8 = 10;
/// Size of `struct ifaddrmsg`: family, prefix length, flags, scope, and the interface's index.
pub(super) const IFADDRMSG: usize = 8;
const PATIENCE: Duration = Duration::from_secs(30);

/// An address an interface has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InterfaceAddress {
    /// Index of the interface.
    pub interface: u32,
    pub address: IpAddr,
    pub prefix_length: u8,
}

/// All addresses of all interfaces, of both families, as the kernel lists them. Whoever has no monitor must not
/// get half a list: one that somebody's change came into is no answer.
pub fn addresses() -> Result<Vec<InterfaceAddress>, Error> {
    let listing = list()?;
    if listing.interrupted { Err(Error::Interrupted) } else { Ok(listing.found) }
}

/// Addresses that change faster than they can be listed this often in a row are somebody's mistake.
const MAX_TRIES: usize = 10;

#[derive(Debug)]
struct Listing {
    found: Vec<InterfaceAddress>,
    /// Somebody changed addresses meanwhile: some may be missing, others gone already.
    interrupted: bool,
}

/// Lists until nobody came in between, or often enough.
fn list() -> Result<Listing, Error> {
    let mut listing = dump()?;
    for _ in 1..MAX_TRIES {
        if !listing.interrupted {
            break;
        }
        listing = dump()?;
    }
    Ok(listing)
}

/// One dump.
fn dump() -> Result<Listing, Error> {
    let step = Step::ReadAddresses;
    let mut socket = Socket::open(Peer::Route)?;
    let mut request = Writer::default();
    let head = Head { kind: RTM_GETADDR, flags: flag::DUMP, sequence: 1 };
    request.message(head, &[0; IFADDRMSG], |_| {});
    socket.send(request.as_bytes())?;
    let mut found = Vec::new();
    let mut interrupted = false;
    loop {
        let Some(datagram) = socket.receive(PATIENCE)? else { return Err(Error::NoAnswer { step, after: PATIENCE }) };
        for message in Messages(datagram) {
            interrupted |= message.head.flags & flag::DUMP_INTERRUPTED != 0;
            match message.head.kind {
                RTM_NEWADDR => found.extend(read(&message)),
                NLMSG_DONE => return Ok(Listing { found, interrupted }),
                NLMSG_ERROR => return Err(Error::said(step, Errno(message.error_number()), message.error_text())),
                _ => {}
            }
        }
    }
}

/// An address out of a message that tells of one.
pub(super) fn read(message: &Message<'_>) -> Option<InterfaceAddress> {
    let fixed = message.payload.first_chunk::<IFADDRMSG>()?;
    let attributes = message.attributes(IFADDRMSG);
    // On a point-to-point link the local address is IFA_LOCAL and IFA_ADDRESS is the peer's.
    let bytes = attributes.get(IFA_LOCAL).or_else(|| attributes.get(IFA_ADDRESS))?.data;
    let address = match fixed[0] {
        AF_INET => Ipv4Addr::from(*bytes.first_chunk::<4>()?).into(),
        AF_INET6 => Ipv6Addr::from(*bytes.first_chunk::<16>()?).into(),
        _ => return None,
    };
    let interface = u32::from_ne_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]);
    Some(InterfaceAddress { interface, address, prefix_length: fixed[1] })
}

/// Tells that addresses changed, not which: read them again with [`addresses`].
#[derive(Debug)]
pub struct AddressMonitor {
    socket: Socket,
    device: Option<Device>,
}

/// What changed, as far as [`AddressMonitor`] tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Addresses of an interface that is not told apart.
    pub others: bool,
    /// What became of the device that is told apart, in order.
    pub device: Vec<DeviceChange>,
}

/// What became of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceChange {
    /// It came, changed, or went.
    Link { exists: bool },
    /// It has this address now, or has it no more.
    Address { address: IpAddr, exists: bool },
    /// There was more to tell than there was room for.
    Lost,
}

/// More changes than these are not kept one by one.
const MANY_CHANGES: usize = 1 << 16;

impl Changed {
    pub fn any(&self) -> bool {
        self.others || !self.device.is_empty()
    }

    fn add(&mut self, other: Self) {
        self.others |= other.others;
        self.device.extend(other.device);
        if self.device.len() > MANY_CHANGES {
            self.device = vec![DeviceChange::Lost];
        }
    }
}

/// A device by its name, as the notifications tell of it.
#[derive(Debug)]
struct Device {
    name: String,
    /// While it exists.
    index: Option<u32>,
}

impl AddressMonitor {
    /// From now on no change is missed. Those of the device of this name are told apart; it need not exist yet.
    pub fn open(device: Option<&str>) -> Result<Self, Error> {
        let socket = Socket::open(Peer::Route)?;
        socket.join(RTNLGRP_IPV4_IFADDR)?;
        socket.join(RTNLGRP_IPV6_IFADDR)?;
        let Some(name) = device else { return Ok(Self { socket, device: None }) };
        socket.join(RTNLGRP_LINK)?;
        // Listen first, look second: a device that is made in between is told of.
        let device = Device { name: name.to_owned(), index: interface_index(name)? };
        Ok(Self { socket, device: Some(device) })
    }

    /// As [`addresses`], but where these change faster than they can be listed, what was found of them: the
    /// change that came in between is told by [`Self::wait`], so the list is looked at again.
    pub fn list(&self) -> Result<Vec<InterfaceAddress>, Error> {
        list().map(|listing| listing.found)
    }

    /// The index of the device that is told apart, as far as [`Self::wait`] has told of it.
    pub fn device(&self) -> Option<u32> {
        self.device.as_ref()?.index
    }

    /// Waits until something changes, at most `timeout`; nothing did where nothing is told. All changes so far
    /// are one.
    pub fn wait(&mut self, timeout: Duration) -> Result<Changed, Error> {
        let deadline = Instant::now() + timeout;
        let mut changed = Changed::default();
        loop {
            // Devices come and go that nobody asked for: they don't end the waiting.
            let left = if changed.any() { Duration::ZERO } else { deadline.saturating_duration_since(Instant::now()) };
            match self.socket.receive(left) {
                Ok(Some(datagram)) => {
                    Messages(datagram).for_each(|message| changed.add(told(self.device.as_mut(), &message)));
                }
                Ok(None) => return Ok(changed),
                Err(Error::Failed { errno: Errno::ENOBUFS, .. }) => changed.add(self.overflow()?),
                Err(error) => return Err(error),
            }
        }
    }

    /// There was more than fits: certainly a change, and the device may be another.
    fn overflow(&mut self) -> Result<Changed, Error> {
        if let Some(device) = &mut self.device {
            device.index = interface_index(&device.name)?;
        }
        Ok(Changed { others: true, device: self.device.iter().map(|_| DeviceChange::Lost).collect() })
    }
}

/// What a notification tells. `device` learns its index.
fn told(device: Option<&mut Device>, message: &Message<'_>) -> Changed {
    let others = Changed { others: true, device: Vec::new() };
    let Some(device) = device else { return others };
    let of_device = |change| Changed { others: false, device: vec![change] };
    match message.head.kind {
        kind @ (RTM_NEWADDR | RTM_DELADDR) => match read(message).filter(|found| Some(found.interface) == device.index) {
            Some(found) => of_device(DeviceChange::Address { address: found.address, exists: kind == RTM_NEWADDR }),
            None => others,
        },
        RTM_NEWLINK | RTM_DELLINK => {
            let Some(link) = read_link(message) else { return Changed::default() };
            let is_new = message.head.kind == RTM_NEWLINK && link.name == device.name;
            let is_it = is_new || Some(link.index) == device.index;
            if is_it {
                // A device that has got another name is it no more.
                device.index = is_new.then_some(link.index);
            }
            if is_it { of_device(DeviceChange::Link { exists: is_new }) } else { Changed::default() }
        }
        _ => Changed::default(),
    }
}

/// Readable when something changed.
impl AsFd for AddressMonitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_address_is_listed_or_nothing_is() {
        // A namespace of its own may have no address at all; listing needs no privilege.
        for found in addresses().unwrap() {
            assert!(found.prefix_length <= 128 && found.interface > 0, "{found:?}");
        }
    }

    #[test]
    fn garbage_is_no_address() {
        let head = Head::default();
        for payload in [&[][..], &[AF_INET; 8], &[AF_INET, 24, 0, 0, 1, 0, 0, 0, 5, 0, 1, 0, 9]] {
            assert_eq!(read(&Message { head, payload }), None);
        }
    }

    fn address_message(kind: u16, interface: u32) -> (Head, Vec<u8>) {
        let mut payload = vec![AF_INET, 32, 0, 0];
        payload.extend(interface.to_ne_bytes());
        payload.extend(8_u16.to_ne_bytes());
        payload.extend(IFA_LOCAL.to_ne_bytes());
        payload.extend([10, 96, 0, 1]);
        (Head { kind, ..Head::default() }, payload)
    }

    fn link_message(kind: u16, index: u32, name: &str) -> (Head, Vec<u8>) {
        let mut fixed = [0; 16];
        fixed[4..8].copy_from_slice(&index.to_ne_bytes());
        let mut w = Writer::default();
        w.message(Head::default(), &fixed, |w| w.text(3, name));
        (Head { kind, ..Head::default() }, w.as_bytes()[16..].to_vec())
    }

    #[test]
    fn a_devices_changes_are_told_apart() {
        let of_device = |change| Changed { others: false, device: vec![change] };
        let theirs = Changed { others: true, device: Vec::new() };
        let address = [10, 96, 0, 1].into();
        let mut device = Device { name: "kube-ipvs0".to_owned(), index: Some(7) };
        let mut hear = |(head, payload): (Head, Vec<u8>)| {
            let changed = told(Some(&mut device), &Message { head, payload: &payload });
            (changed, device.index)
        };
        assert_eq!(hear(address_message(RTM_NEWADDR, 7)), (of_device(DeviceChange::Address { address, exists: true }), Some(7)));
        assert_eq!(hear(address_message(RTM_DELADDR, 8)), (theirs.clone(), Some(7)));
        assert_eq!(hear(link_message(RTM_NEWLINK, 8, "eth0")), (Changed::default(), Some(7)));
        assert_eq!(hear(link_message(RTM_DELLINK, 7, "kube-ipvs0")), (of_device(DeviceChange::Link { exists: false }), None));
        assert_eq!(hear(address_message(RTM_NEWADDR, 7)), (theirs.clone(), None));
        assert_eq!(hear(link_message(RTM_NEWLINK, 9, "kube-ipvs0")), (of_device(DeviceChange::Link { exists: true }), Some(9)));
        assert_eq!(
            hear(link_message(RTM_NEWLINK, 9, "other")),
            (of_device(DeviceChange::Link { exists: false }), None),
            "renamed"
        );
        assert_eq!(hear((Head { kind: RTM_NEWLINK, ..Head::default() }, vec![0; 3])), (Changed::default(), None));
    }
}
