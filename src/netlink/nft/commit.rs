//! Sending a transaction and making sense of the answers.
//!
//! The kernel works on the whole batch inside the send. What comes back then: an error for each message
//! it did not like (and nothing was applied), or the echoes asked for and one acknowledgement.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::attr::{Message, Messages, NLMSG_ERROR};
use super::super::errno::Errno;
use super::super::error::{Error, Refusal, Step};
use super::batch::{Batch, Owner};
use super::handles::Numbering;
use super::wire::{NFGENMSG, NFTA_RULE_HANDLE, kind};
use super::{Committed, NftKernel, PATIENCE, no_answer};
use crate::ruleset::{Handle, Transaction};

/// What an answer takes of the receive buffer, with the management of its memory: an skb with a small
/// data area. Each message may get one.
const BYTES_PER_ANSWER: usize = 1 << 10;
/// Echoes of rules are longer than errors, but few.
const BYTES_FOR_ECHOES: usize = 64 << 10;

impl NftKernel {
    pub(super) fn send_transaction(&mut self, transaction: &Transaction) -> Result<Committed, Error> {
        if transaction.is_empty() {
            return Ok(Committed::default());
        }
        let numbering = Numbering::of(&transaction.ops);
        let mut batch = self.encode(transaction, &numbering.echoes())?;
        batch.end();
        let answers = self.exchange(&batch)?;
        answers.check(transaction)?;
        match numbering.handles(&answers.handles) {
            Some(handles) => Ok(Committed { handles, bytes: batch.as_bytes().len() }),
            None => Err(Error::HandlesUnknown),
        }
    }

    /// Lets the kernel check a transaction without applying it.
    pub(super) fn try_out(&mut self, transaction: &Transaction) -> Result<(), Error> {
        let batch = self.encode(transaction, &[])?;
        match self.exchange(&batch)?.check(transaction) {
            Err(Error::RefusedWhole { errno, said }) => Err(Error::said(Step::ProbeRules, errno, said)),
            other => other,
        }
    }

    pub(super) fn encode(&mut self, transaction: &Transaction, echoes: &[usize]) -> Result<Batch, Error> {
        let first = self.sequence.wrapping_add(1);
        let mut batch = Batch::begin(transaction.family, first, transaction.len());
        let mut echoes = echoes.iter().copied().peekable();
        for (index, op) in transaction.ops.iter().enumerate() {
            let echo = echoes.next_if_eq(&index).is_some();
            batch.push(transaction.family, index, op, echo);
        }
        batch.acknowledge();
        self.sequence = batch.last_sequence().wrapping_add(1);
        self.number_sets(&mut batch, transaction)?;
        Ok(batch)
    }

    pub(super) fn exchange(&mut self, batch: &Batch) -> Result<Answers, Error> {
        self.socket.reserve_receive(batch.messages().saturating_mul(BYTES_PER_ANSWER) + BYTES_FOR_ECHOES)?;
        self.socket.send(batch.as_bytes())?;
        let mut answers = Answers::default();
        // Errors come in the order of the messages, but that of the whole batch, which has the
        // beginning's number, comes before the acknowledgement: after either, what is left is there.
        loop {
            let patience = if answers.complete { Duration::ZERO } else { PATIENCE };
            match self.socket.receive(patience) {
                Ok(Some(datagram)) => Messages(datagram).for_each(|message| answers.take(batch, &message)),
                Ok(None) if answers.complete => return Ok(answers),
                Ok(None) => return Err(no_answer(Step::Receive)),
                Err(Error::Failed { errno: Errno::ENOBUFS, .. }) => answers.lost = true,
                Err(error) => return Err(error),
            }
            if answers.lost {
                return Err(self.discard());
            }
        }
    }

    /// Takes what is left of answers of which some were lost.
    fn discard(&mut self) -> Error {
        while let Ok(Some(_)) | Err(Error::Failed { errno: Errno::ENOBUFS, .. }) = self.socket.receive(Duration::ZERO) {}
        Error::AnswersLost { errno: Errno::ENOBUFS }
    }
}

#[derive(Debug, Default)]
pub(super) struct Answers {
    /// The last answer that is sure to come has come.
    complete: bool,
    /// By operation.
    pub(super) handles: BTreeMap<usize, Handle>,
    lost: bool,
    refusals: Vec<(usize, Errno)>,
    whole: Option<(Errno, Option<String>)>,
}

impl Answers {
    fn take(&mut self, batch: &Batch, message: &Message<'_>) {
        let owner = batch.owner(message.head.sequence);
        match (message.head.kind, owner) {
            (NLMSG_ERROR, owner) => self.take_error(batch, message, owner),
            (kind::NEW_RULE, Owner::Op(op)) => {
                let handle = message.attributes(NFGENMSG).get(NFTA_RULE_HANDLE).and_then(|a| a.be64());
                self.handles.extend(handle.map(|handle| (op, Handle(handle))));
            }
            _ => {}
        }
    }

    fn take_error(&mut self, batch: &Batch, message: &Message<'_>, owner: Owner) {
        let errno = Errno(message.error_number());
        self.complete |= owner == Owner::Begin || message.head.sequence == batch.last_sequence();
        match owner {
            _ if errno == Errno(0) => {}
            Owner::Begin => self.whole = Some((errno, message.error_text())),
            // The messages of one operation are one to the caller.
            Owner::Op(op) if self.refusals.last().is_some_and(|(last, _)| *last == op) => {}
            Owner::Op(op) => self.refusals.push((op, errno)),
            Owner::Nobody => {}
        }
    }

    pub(super) fn check(&self, transaction: &Transaction) -> Result<(), Error> {
        if let Some((errno, said)) = &self.whole {
            return Err(match *errno {
                Errno::EPERM => Error::NoPrivilege { step: Step::Send },
                errno => Error::RefusedWhole { errno, said: said.clone() },
            });
        }
        if self.refusals.is_empty() {
            return Ok(());
        }
        let refusal = |(op, errno): &(usize, Errno)| {
            let text = transaction.ops.get(*op).map(ToString::to_string).unwrap_or_default();
            Refusal { op: *op, errno: *errno, text }
        };
        Err(Error::Refused(self.refusals.iter().map(refusal).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::attr::Head;
    use super::*;
    use crate::net::Family;
    use crate::ruleset::{Op, Table};

    /// What the kernel answers to a message of a batch that begins with number 100.
    fn answers_to(transaction: &Transaction, errors: &[(u32, i32)]) -> Answers {
        let mut batch = Batch::begin(Family::Ipv4, 100, 2);
        for (index, op) in transaction.ops.iter().enumerate() {
            batch.push(Family::Ipv4, index, op, false);
        }
        let mut answers = Answers::default();
        for (number, errno) in errors {
            let head = Head { kind: NLMSG_ERROR, flags: 0, sequence: 100 + number };
            answers.take(&batch, &Message { head, payload: &(-errno).to_ne_bytes() });
        }
        answers
    }

    fn sample() -> Transaction {
        let chain = |name: &str| Op::AddChain { table: Table::Filter, chain: name.into() };
        // Table and three chains are messages 1 to 4.
        Transaction { family: Family::Ipv4, ops: vec![Op::AddTable(Table::Filter), chain("A"), chain("B")] }
    }

    #[test]
    fn the_last_answer_completes_whatever_it_says() {
        assert!(!answers_to(&sample(), &[(5, 17)]).complete);
        let good = answers_to(&sample(), &[(6, 0)]);
        assert!(good.complete && good.check(&sample()).is_ok());
        assert!(answers_to(&sample(), &[(6, 17)]).complete);
        assert!(answers_to(&sample(), &[(0, 85)]).complete);
        assert!(!answers_to(&sample(), &[(99, 1)]).complete, "an answer to somebody else's question");
    }

    #[test]
    fn errors_belong_to_their_operation() {
        let answers = answers_to(&sample(), &[(2, 17), (3, 17), (5, 2), (6, 0)]);
        let Err(Error::Refused(refusals)) = answers.check(&sample()) else { panic!("{answers:?}") };
        let found: Vec<_> = refusals.iter().map(|r| (r.op, r.errno, r.text.as_str())).collect();
        assert_eq!(found, [(0, Errno::EEXIST, "add table filter"), (1, Errno::ENOENT, "-t filter -N A")]);
    }

    #[test]
    fn a_stale_generation_is_told_apart() {
        let error = answers_to(&sample(), &[(0, 85), (6, 0)]).check(&sample()).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::ERESTART));
        assert!(error.is_retryable());
        let error = answers_to(&sample(), &[(0, 1)]).check(&sample()).unwrap_err();
        assert!(matches!(error, Error::NoPrivilege { .. }));
    }
}
