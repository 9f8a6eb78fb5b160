//! The kernel's `nf_tables`, spoken to in its own messages: rules as iptables-nft writes them, whole
//! transactions in one send, and rules read back as values.

mod ahead;
mod batch;
mod commit;
mod decode;
mod expression;
mod handles;
mod names;
mod read;
mod wire;
mod xt;

use std::time::Duration;

use super::attr::{Head, Message, Messages, NLMSG_DONE, NLMSG_ERROR, Writer, flag};
use super::errno::Errno;
use super::error::{Error, Step};
use super::socket::{Peer, Socket};
use super::{Committed, Kernel, Seen};
use crate::net::Family;
use crate::ruleset::{ChainName, Match, Op, Place, Rule, Table, Transaction};
pub use ahead::Encoded;
use wire::{NFGENMSG, NFTA_GEN_ID, kind, nfgenmsg};

/// A send returns when the kernel is done, so answers are there at once; only a dump is still made while
/// it is read. Nothing honest takes this long.
const PATIENCE: Duration = Duration::from_secs(30);

/// The real kernel, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct NftKernel {
    socket: Socket,
    sequence: u32,
}

impl NftKernel {
    /// Opens the way to `nf_tables`, and fails with [`Error::Unsupported`] where the kernel has none and
    /// with [`Error::NoPrivilege`] where we may not use it.
    pub fn open() -> Result<Self, Error> {
        let socket = Socket::open(Peer::Netfilter).map_err(|error| match error.errno() {
            Some(errno @ (Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT)) => {
                Error::Unsupported { what: "netfilter netlink", errno }
            }
            _ => error,
        })?;
        let mut kernel = Self { socket, sequence: 0 };
        // What nfnetlink answers for a subsystem it doesn't have and cannot load.
        kernel.generation().map_err(|error| match error.errno() {
            Some(errno @ (Errno::EINVAL | Errno::EOPNOTSUPP)) => Error::Unsupported { what: "nf_tables", errno },
            _ => error,
        })?;
        Ok(kernel)
    }

    /// Tries whether rules of `family` would be taken, xt extensions included, and changes nothing.
    pub fn probe(&mut self, family: Family) -> Result<(), Error> {
        let chain = ChainName::from("SLUICE-PROBE");
        let rule = Rule { matches: vec![Match::Statistic { probability: 1 }], ..Rule::default() };
        let table = Table::Nat;
        let mut trial = Transaction::new(family);
        trial.ops.push(Op::AddTable(table));
        trial.ops.push(Op::AddChain { table, chain: chain.clone() });
        trial.ops.push(Op::AddRule { table, chain, place: Place::Tail, rule });
        self.try_out(&trial).map_err(|error| match &error {
            // Table and chain are fine; the rule is the third operation.
            Error::Refused(refusals) if refusals[0].op == 2 && refusals[0].errno == Errno::ENOENT => {
                Error::Unsupported { what: "xt extensions in nf_tables (modules nft_compat, xt_statistic)", errno: Errno::ENOENT }
            }
            _ => error,
        })
    }

    /// The port id that notifications of our own changes carry.
    pub fn port(&self) -> Result<u32, Error> {
        self.socket.port()
    }

    /// The number of the rules' generation: each commit of anybody raises it.
    fn generation(&mut self) -> Result<u32, Error> {
        let request = self.request(kind::GET_GENERATION, 0, 0, |_| {});
        let step = Step::ReadGeneration;
        self.socket.send(request.as_bytes())?;
        loop {
            let Some(datagram) = self.socket.receive(PATIENCE)? else { return Err(no_answer(step)) };
            for message in Messages(datagram).filter(|m| m.head.sequence == self.sequence) {
                match message.head.kind {
                    NLMSG_ERROR => return Err(kernel_error(step, &message)),
                    kind::NEW_GENERATION => {
                        let id = message.attributes(NFGENMSG).get(NFTA_GEN_ID).and_then(|a| a.be32());
                        return id.ok_or(Error::at(step, Errno::EINVAL));
                    }
                    _ => {}
                }
            }
        }
    }

    /// A request of one message, with the next sequence number.
    fn request(&mut self, kind: u16, flags: u16, family: u8, body: impl FnOnce(&mut Writer)) -> Writer {
        self.sequence = self.sequence.wrapping_add(1);
        let mut writer = Writer::default();
        writer.message(Head { kind, flags, sequence: self.sequence }, &nfgenmsg(family, 0), body);
        writer
    }

    /// Asks for everything of a kind; of an object that is missing there is nothing.
    fn dump(&mut self, step: Step, request: &Writer, visit: &mut dyn FnMut(&Message<'_>)) -> Result<(), Error> {
        self.socket.send(request.as_bytes())?;
        let mut interrupted = false;
        loop {
            let Some(datagram) = self.socket.receive(PATIENCE)? else { return Err(no_answer(step)) };
            for message in Messages(datagram).filter(|m| m.head.sequence == self.sequence) {
                interrupted |= message.head.flags & flag::DUMP_INTERRUPTED != 0;
                match message.head.kind {
                    NLMSG_DONE | NLMSG_ERROR => return dump_end(step, &message, interrupted),
                    _ => visit(&message),
                }
            }
        }
    }
}

fn dump_end(step: Step, message: &Message<'_>, interrupted: bool) -> Result<(), Error> {
    match Errno(message.error_number()) {
        _ if interrupted => Err(Error::Interrupted),
        Errno(0) | Errno::ENOENT => Ok(()),
        Errno::EINTR => Err(Error::Interrupted),
        _ => Err(kernel_error(step, message)),
    }
}

fn kernel_error(step: Step, message: &Message<'_>) -> Error {
    Error::said(step, Errno(message.error_number()), message.error_text())
}

fn no_answer(step: Step) -> Error {
    Error::NoAnswer { step, after: PATIENCE }
}

impl Kernel for NftKernel {
    fn read(&mut self, family: Family, visit: &mut dyn FnMut(Seen)) -> Result<(), Error> {
        self.read_rules(family, visit)
    }

    fn commit(&mut self, transaction: &Transaction) -> Result<Committed, Error> {
        self.send_transaction(transaction)
    }
}
