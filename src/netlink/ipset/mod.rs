//! The kernel's sets of addresses and ports (ipset): making, filling and removing them, and reading them back.
//!
//! It knows values of [`crate::ruleset`] and no rules; how rules name sets is in `nft`.

mod apply;
mod codec;
mod piece;
pub(super) mod wire;

use std::collections::BTreeMap;
use std::time::Duration;

use super::attr::{Head, Message, Messages, NLMSG_DONE, NLMSG_ERROR, Writer, flag};
use super::errno::Errno;
use super::error::{Error, Step};
use super::socket::{Peer, Socket};
use crate::net::Family;
use crate::ruleset::{Member, SetHeader, SetName, SetType};
pub(super) use apply::encode;
pub(super) use codec::read_index;
#[allow(clippy::wildcard_imports, reason = "the numbers of the wire are this file's vocabulary")]
use wire::*;

/// The kernel works inside the send; what is waited for is there.
const PATIENCE: Duration = Duration::from_secs(30);

/// The sets of the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct SetKernel {
    socket: Socket,
    sequence: u32,
    /// The revision of each type to be made, where the kernel was asked for it.
    revisions: BTreeMap<(SetType, Family), u8>,
}

impl SetKernel {
    /// Opens the way to ipset, and fails with [`Error::Unsupported`] where the kernel has none or an old one, and with
    /// [`Error::NoPrivilege`] where we may not use it.
    pub fn open() -> Result<Self, Error> {
        let socket = Socket::open(Peer::Netfilter).map_err(|error| match error.errno() {
            Some(errno @ (Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT)) => {
                Error::Unsupported { what: "netfilter netlink", errno }
            }
            _ => error,
        })?;
        let mut kernel = Self { socket, sequence: 0, revisions: BTreeMap::new() };
        let protocol = |message: &Message<'_>| message.attributes(NFGENMSG).get(IPSET_ATTR_PROTOCOL).and_then(|a| a.byte());
        let answer = kernel.ask(Step::ProbeSets, kind::PROTOCOL, |_| {}, protocol).map_err(|error| match error.errno() {
            // What nfnetlink answers for a subsystem it doesn't have and cannot load.
            Some(errno @ (Errno::EINVAL | Errno::EOPNOTSUPP)) => Error::Unsupported { what: "ipset (module ip_set)", errno },
            _ => error,
        })?;
        if answer.is_none_or(|version| version < IPSET_PROTOCOL) {
            let what = "protocol 7 of ipset, which tells the numbers by which rules name sets (Linux 4.20)";
            return Err(Error::Unsupported { what, errno: Errno::EPROTONOSUPPORT });
        }
        Ok(kernel)
    }

    /// Fails with [`Error::Unsupported`] where the kernel has no sets of a type and cannot load its module.
    pub fn require(&mut self, kind: SetType, family: Family) -> Result<(), Error> {
        self.revision(kind, family).map(drop)
    }

    /// The highest revision of a type that both the kernel and we know.
    fn revision(&mut self, kind: SetType, family: Family) -> Result<u8, Error> {
        if let Some(known) = self.revisions.get(&(kind, family)) {
            return Ok(*known);
        }
        let body = |w: &mut Writer| {
            w.text(IPSET_ATTR_TYPENAME, kind.as_str());
            w.bytes(IPSET_ATTR_FAMILY, &[codec::family_number(kind, family)]);
        };
        let range = |message: &Message<'_>| {
            let byte = |kind| message.attributes(NFGENMSG).get(kind).and_then(|a| a.byte());
            byte(IPSET_ATTR_REVISION_MIN).zip(byte(IPSET_ATTR_REVISION))
        };
        let unsupported = |errno| Error::Unsupported { what: missing(kind), errno };
        let answer = self.ask(Step::ProbeSets, kind::TYPE, body, range).map_err(|error| match error.errno() {
            Some(errno @ (Errno::IPSET_ERR_FIND_TYPE | Errno::IPSET_ERR_INVALID_FAMILY)) => unsupported(errno),
            _ => error,
        })?;
        let newest = codec::newest_revision(kind);
        let (_, highest) = answer.filter(|(lowest, _)| *lowest <= newest).ok_or(unsupported(Errno::EPROTONOSUPPORT))?;
        self.revisions.insert((kind, family), newest.min(highest));
        Ok(newest.min(highest))
    }

    /// All sets there are.
    pub fn headers(&mut self) -> Result<Vec<SetHeader>, Error> {
        let mut headers = Vec::new();
        self.list(Step::ReadSets, write_header_listing, &mut |message| {
            headers.extend(codec::read_header(message.attributes(NFGENMSG)));
        })?;
        Ok(headers)
    }

    /// The members of a set, in no order; none where it does not exist. Members that [`Member`] cannot say are left out:
    /// the set's header counts them.
    pub fn members(&mut self, set: &SetName) -> Result<Vec<Member>, Error> {
        let mut members = Vec::new();
        let body = |w: &mut Writer| w.text(IPSET_ATTR_SETNAME, set.as_str());
        let listed = self.list(Step::ReadMembers, body, &mut |message| {
            let list = message.attributes(NFGENMSG).get(IPSET_ATTR_ADT).map(|a| a.nested()).unwrap_or_default();
            members.extend(list.filter_map(|data| codec::read_member(data.nested())));
        });
        match listed {
            Err(Error::Failed { errno: Errno::ENOENT, .. }) => Ok(Vec::new()),
            other => other.map(|()| members),
        }
    }

    /// Sends a request of one message, and gives what `take` makes of the answer.
    fn ask<T>(
        &mut self,
        step: Step,
        kind: u16,
        body: impl FnOnce(&mut Writer),
        take: impl Fn(&Message<'_>) -> T,
    ) -> Result<T, Error> {
        let sequence = self.request(kind, 0, body)?;
        loop {
            for message in Messages(receive(&mut self.socket, step)?).filter(|m| m.head.sequence == sequence) {
                match message.head.kind {
                    NLMSG_ERROR => return Err(kernel_error(step, &message)),
                    answer if answer == kind => return Ok(take(&message)),
                    _ => {}
                }
            }
        }
    }

    fn list(&mut self, step: Step, body: impl FnOnce(&mut Writer), visit: &mut dyn FnMut(&Message<'_>)) -> Result<(), Error> {
        let sequence = self.request(kind::LIST, flag::DUMP, body)?;
        loop {
            for message in Messages(receive(&mut self.socket, step)?).filter(|m| m.head.sequence == sequence) {
                match message.head.kind {
                    NLMSG_DONE | NLMSG_ERROR if message.error_number() == 0 => return Ok(()),
                    NLMSG_DONE | NLMSG_ERROR => return Err(kernel_error(step, &message)),
                    _ => visit(&message),
                }
            }
        }
    }

    fn request(&mut self, kind: u16, flags: u16, body: impl FnOnce(&mut Writer)) -> Result<u32, Error> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut writer = Writer::default();
        writer.message(Head { kind, flags, sequence: self.sequence }, &HEADER, |w| {
            write_protocol(w);
            body(w);
        });
        self.socket.send(writer.as_bytes())?;
        Ok(self.sequence)
    }
}

fn receive(socket: &mut Socket, step: Step) -> Result<&[u8], Error> {
    socket.receive(PATIENCE)?.ok_or(Error::NoAnswer { step, after: PATIENCE })
}

fn kernel_error(step: Step, message: &Message<'_>) -> Error {
    Error::said(step, Errno(message.error_number()), message.error_text())
}

/// What every request begins with.
pub(super) fn write_protocol(w: &mut Writer) {
    w.bytes(IPSET_ATTR_PROTOCOL, &[IPSET_PROTOCOL]);
}

/// Asks a listing of all sets to leave out their members.
pub(super) fn write_header_listing(w: &mut Writer) {
    w.be32(IPSET_ATTR_FLAGS | BIG_ENDIAN, LIST_HEADER);
}

/// What a kernel lacks that has no sets of a type.
fn missing(kind: SetType) -> &'static str {
    match kind {
        SetType::HashIp => "sets of type hash:ip (module ip_set_hash_ip)",
        SetType::HashIpPort => "sets of type hash:ip,port (module ip_set_hash_ipport)",
        SetType::HashIpPortIp => "sets of type hash:ip,port,ip (module ip_set_hash_ipportip)",
        SetType::HashIpPortNet => "sets of type hash:ip,port,net (module ip_set_hash_ipportnet)",
        SetType::BitmapPort => "sets of type bitmap:port (module ip_set_bitmap_port)",
    }
}

#[cfg(fuzzing)]
pub(super) fn fuzz(message: &Message<'_>) {
    let attributes = message.attributes(NFGENMSG);
    let _ = (codec::read_header(attributes), codec::read_index(attributes));
    let list = attributes.get(IPSET_ATTR_ADT).map(|a| a.nested()).unwrap_or_default();
    let _ = list.filter_map(|data| codec::read_member(data.nested())).count();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_its_module() {
        for kind in SetType::ALL {
            assert_eq!(missing(kind), format!("sets of type {} (module {})", kind.as_str(), kind.module()));
        }
    }
}
