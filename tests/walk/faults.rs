//! A kernel between the sync and the one that holds the rules: now and then it refuses, loses an answer, or is changed
//! by somebody while it is read.

use sluice::net::Family;
use sluice::netlink::{Committed, Errno, Error, Kernel, Seen, Step};
use sluice::ruleset::{ChainName, Table, Transaction};

use crate::random::Random;

/// What goes wrong once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The transaction is refused as a whole.
    Refused(Errno),
    /// The answers are lost, and the transaction was applied, or was not.
    AnswersLost { applied: bool },
    /// It was applied, but nobody knows the handles.
    HandlesUnknown,
    /// Nothing can be read.
    ReadFailed,
    /// Somebody's changes interrupt the readings, this many times.
    Interrupted(u8),
}

impl Fault {
    pub fn any(random: &mut Random) -> Self {
        match random.below(8) {
            0 => Self::Refused(Errno::ERESTART),
            1 => Self::Refused(Errno::ENOBUFS),
            2 => Self::Refused(Errno::EBUSY),
            3 => Self::AnswersLost { applied: true },
            4 => Self::AnswersLost { applied: false },
            5 => Self::HandlesUnknown,
            6 => Self::ReadFailed,
            _ => Self::Interrupted(1 + u8::from(random.chance(2))),
        }
    }
}

/// The kernel as one family's sync meets it.
#[derive(Debug)]
pub struct Faulty<'a, K> {
    pub kernel: &'a mut K,
    pub fault: &'a mut Option<Fault>,
    /// How many commits go well before.
    pub after: &'a mut u8,
}

impl<K: Kernel> Kernel for Faulty<'_, K> {
    fn read(&mut self, family: Family, visit: &mut dyn FnMut(Seen)) -> Result<(), Error> {
        match *self.fault {
            Some(Fault::ReadFailed) => {
                *self.fault = None;
                Err(failed(Step::ReadRules, Errno::ENOBUFS))
            }
            Some(Fault::Interrupted(times)) => {
                *self.fault = (times > 1).then(|| Fault::Interrupted(times - 1));
                self.kernel.read(family, visit)?;
                Err(Error::Interrupted)
            }
            _ => self.kernel.read(family, visit),
        }
    }

    fn read_chains(
        &mut self,
        family: Family,
        chains: &mut dyn Iterator<Item = &(Table, ChainName)>,
        visit: &mut dyn FnMut(Seen),
    ) -> Result<(), Error> {
        match *self.fault {
            Some(Fault::ReadFailed) => {
                *self.fault = None;
                Err(failed(Step::ReadRules, Errno::ENOBUFS))
            }
            _ => self.kernel.read_chains(family, chains, visit),
        }
    }

    fn commit(&mut self, transaction: &Transaction) -> Result<Committed, Error> {
        let is_of_commits = !matches!(self.fault, None | Some(Fault::ReadFailed | Fault::Interrupted(_)));
        if transaction.is_empty() || !is_of_commits {
            return self.kernel.commit(transaction);
        }
        if *self.after > 0 {
            *self.after -= 1;
            return self.kernel.commit(transaction);
        }
        match self.fault.take() {
            Some(Fault::Refused(errno)) => Err(Error::RefusedWhole { errno, said: None }),
            Some(Fault::AnswersLost { applied }) => {
                if applied {
                    self.kernel.commit(transaction)?;
                }
                Err(Error::AnswersLost { errno: Errno::ENOBUFS })
            }
            Some(Fault::HandlesUnknown) => {
                self.kernel.commit(transaction)?;
                Err(Error::HandlesUnknown)
            }
            _ => self.kernel.commit(transaction),
        }
    }
}

fn failed(step: Step, errno: Errno) -> Error {
    Error::Failed { step, errno, said: None }
}
