//! The kernel's `nf_tables`, spoken to in its own messages: rules as iptables-nft writes them, whole
//! transactions in one send, and rules read back as values.

mod ahead;
mod batch;
mod commit;
mod decode;
mod expression;
#[cfg(fuzzing)]
pub(super) mod fuzz;
mod generation;
mod handles;
mod monitor;
mod names;
mod read;
mod sets;
mod tables;
mod wire;
mod xt;

pub use ahead::Encoded;
pub use monitor::{Committer, Ears, ForeignChange, RuleMonitor};

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::attr::{Head, Message, Messages, NLMSG_DONE, NLMSG_ERROR, Writer, flag};
use super::errno::Errno;
use super::error::{Error, Step};
use super::socket::{Peer, Socket};
use super::{Committed, Kernel, Seen};
use crate::net::Family;
use crate::ruleset::{ChainName, Match, Op, Place, Rule, Table, Transaction};
use generation::{Undisturbed, is_alone};
use wire::{NFGENMSG, NFTA_GEN_ID, kind, nfgenmsg};

/// A send returns when the kernel is done, so answers are there at once; only a dump is still made while
/// it is read. Nothing honest takes this long.
const PATIENCE: Duration = Duration::from_secs(30);

/// From so many operations on, a transaction is not told to the monitor: that the kernel makes a notification of each
/// operation, only to throw it away, costs a first load of 20,000 Services nearly half as much again (3.5 s for 2.4 s). To close its
/// ears and open them again costs as much as some ten operations.
const LOUD: usize = 500;

/// The real kernel, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct NftKernel {
    socket: Socket,
    sequence: u32,
    undisturbed: Undisturbed,
    /// Of the monitor that is spared our own big transactions.
    ears: Option<Ears>,
    /// Did others commit while the monitor did not listen?
    unheard: bool,
    /// Set when the process is about to end.
    stop: Arc<AtomicBool>,
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
        let mut kernel =
            Self { socket, sequence: 0, undisturbed: Undisturbed::default(), ears: None, unheard: false, stop: Arc::default() };
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

    /// Did nobody but us commit anything since `family` was last read as a whole? False also when that is not known.
    pub fn is_undisturbed(&mut self, family: Family) -> Result<bool, Error> {
        let generation = self.generation()?;
        Ok(self.undisturbed.holds(family, generation))
    }

    /// Closes the monitor's ears during our own big transactions, which it would hear nothing of but slow down.
    /// What of others it misses then, [`Self::take_unheard`] tells.
    pub fn spare(&mut self, ears: Ears) {
        self.ears = Some(ears);
    }

    /// May others have committed something that the monitor was not told of, since this was last asked?
    pub fn take_unheard(&mut self) -> bool {
        std::mem::take(&mut self.unheard)
    }

    /// From the moment that this is set on nothing more is sent, and long readings end: with [`Error::Stopped`].
    pub fn stop_when(&mut self, stop: Arc<AtomicBool>) {
        self.stop = stop;
    }

    fn go_on(&self) -> Result<(), Error> {
        if self.stop.load(Ordering::Relaxed) { Err(Error::Stopped) } else { Ok(()) }
    }

    /// Sends a transaction; a big one while the monitor does not listen.
    fn send(&mut self, transaction: &Transaction) -> Result<Committed, Error> {
        self.go_on()?;
        let Some(ears) = self.ears.take_if(|_| transaction.len() >= LOUD) else { return self.send_transaction(transaction) };
        let before = self.generation();
        let closed = ears.close();
        let outcome = self.send_transaction(transaction);
        let opened = ears.open();
        self.unheard |= match (closed, opened, before, self.generation()) {
            (Ok(()), Ok(()), Ok(before), Ok(after)) if outcome.is_ok() => !is_alone(transaction, before, after),
            (Ok(()), Ok(()), Ok(before), Ok(after)) => before != after,
            _ => true,
        };
        self.ears = Some(ears);
        outcome
    }

    /// The number of the rules' generation: each commit of anybody raises it, whatever table it is about.
    pub fn generation(&mut self) -> Result<u32, Error> {
        let request = self.request(kind::GET_GENERATION, 0, 0, |_| {});
        let step = Step::ReadGeneration;
        let id = |message: &Message<'_>| message.attributes(NFGENMSG).get(NFTA_GEN_ID).and_then(|a| a.be32());
        self.ask(step, &request, kind::NEW_GENERATION, id)?.ok_or(Error::at(step, Errno::EINVAL))
    }

    /// Asks for one thing, and gives what `take` makes of the answer of the kind `answer`.
    fn ask<T>(&mut self, step: Step, request: &Writer, answer: u16, take: impl Fn(&Message<'_>) -> T) -> Result<T, Error> {
        self.socket.send(request.as_bytes())?;
        loop {
            let Some(datagram) = self.socket.receive(PATIENCE)? else { return Err(no_answer(step)) };
            for message in Messages(datagram).filter(|m| m.head.sequence == self.sequence) {
                match message.head.kind {
                    NLMSG_ERROR => return Err(kernel_error(step, &message)),
                    kind if kind == answer => return Ok(take(&message)),
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

    /// Asks for everything of a kind; of an object that is missing there is nothing. False: it is all there, but
    /// somebody committed something meanwhile, so that it may be of several moments.
    fn dump(&mut self, step: Step, request: &Writer, visit: &mut dyn FnMut(&Message<'_>)) -> Result<bool, Error> {
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

fn dump_end(step: Step, message: &Message<'_>, interrupted: bool) -> Result<bool, Error> {
    match Errno(message.error_number()) {
        Errno(0) | Errno::ENOENT => Ok(!interrupted),
        Errno::EINTR => Err(Error::Interrupted),
        _ if interrupted => Err(Error::Interrupted),
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
        self.undisturbed.forget(family);
        let generation = self.read_rules(family, visit)?;
        self.undisturbed.read(family, generation);
        Ok(())
    }

    fn read_chains(
        &mut self,
        family: Family,
        chains: &mut dyn Iterator<Item = &(Table, ChainName)>,
        visit: &mut dyn FnMut(Seen),
    ) -> Result<(), Error> {
        self.read_named_chains(family, chains, visit)
    }

    fn commit(&mut self, transaction: &Transaction) -> Result<Committed, Error> {
        let outcome = self.send(transaction);
        let generation = match &outcome {
            Ok(_) => self.generation().ok(),
            // Nothing was applied.
            Err(Error::Refused(_) | Error::RefusedWhole { .. }) => return outcome,
            Err(_) => None,
        };
        match generation {
            Some(generation) => self.undisturbed.committed(transaction, generation),
            None => Family::ALL.into_iter().for_each(|family| self.undisturbed.forget(family)),
        }
        outcome
    }
}
