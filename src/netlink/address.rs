//! The addresses of the node's interfaces, and the news that they changed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use super::attr::{Head, Message, Messages, NLMSG_DONE, NLMSG_ERROR, Writer, flag};
use super::errno::Errno;
use super::error::{Error, Step};
use super::socket::{Peer, Socket};

/// Numbers of `linux/rtnetlink.h` and `linux/if_addr.h`.
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const RTNLGRP_IPV4_IFADDR: i32 = 5;
const RTNLGRP_IPV6_IFADDR: i32 = 9;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// Size of `struct ifaddrmsg`: family, prefix length, flags, scope, and the interface's index.
const IFADDRMSG: usize = 8;
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
                RTM_NEWADDR => found.extend(address(&message)),
                NLMSG_DONE => return Ok(Listing { found, interrupted }),
                NLMSG_ERROR => return Err(Error::said(step, Errno(message.error_number()), message.error_text())),
                _ => {}
            }
        }
    }
}

fn address(message: &Message<'_>) -> Option<InterfaceAddress> {
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
}

impl AddressMonitor {
    /// From now on no change is missed.
    pub fn open() -> Result<Self, Error> {
        let socket = Socket::open(Peer::Route)?;
        socket.join(RTNLGRP_IPV4_IFADDR)?;
        socket.join(RTNLGRP_IPV6_IFADDR)?;
        Ok(Self { socket })
    }

    /// As [`addresses`], but where these change faster than they can be listed, what was found of them: the
    /// change that came in between is told by [`Self::wait`], so the list is looked at again.
    pub fn list(&self) -> Result<Vec<InterfaceAddress>, Error> {
        list().map(|listing| listing.found)
    }

    /// Waits until something changes, at most `timeout`; false when nothing did. All changes so far
    /// are one.
    pub fn wait(&mut self, timeout: Duration) -> Result<bool, Error> {
        let changed = self.next(timeout)?;
        while changed && self.next(Duration::ZERO)? {}
        Ok(changed)
    }

    /// An overflow means that there was more than fits: certainly a change.
    fn next(&mut self, timeout: Duration) -> Result<bool, Error> {
        match self.socket.receive(timeout) {
            Ok(datagram) => Ok(datagram.is_some()),
            Err(Error::Failed { errno: Errno::ENOBUFS, .. }) => Ok(true),
            Err(error) => Err(error),
        }
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
            assert_eq!(address(&Message { head, payload }), None);
        }
    }
}
