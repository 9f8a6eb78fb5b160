//! Doing operations on sets, many in a send, each taken or refused on its own.
//!
//! Of a list of members the kernel takes those before the first it does not like, names that one, and does not look at
//! the rest. What is left is then sent member by member, which tells of each. Operations keep their order where it
//! matters: within a set, and around those that swap and destroy sets.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::thread;
use std::time::{Duration, Instant};

use super::super::Sent;
use super::super::attr::{Message, Messages, NLMSG_ERROR};
use super::super::errno::Errno;
use super::super::error::{Error, Refusal, Step};
use super::piece::Piece;
use super::wire::{IPSET_ATTR_LINENO, NFGENMSG};
use super::{SetKernel, codec, receive};
use crate::net::Family;
use crate::ruleset::{NodeOp, SetName, SetType};

/// About so many bytes go in one send.
const BYTES_PER_SEND: usize = 1 << 20;
/// Messages in one send where each may be answered.
const ANSWERED: usize = 1024;
/// What an answer takes of the receive buffer, with the management of its memory.
const BYTES_PER_ANSWER: usize = 1 << 10;
/// A rule that is gone may refer to its sets until the kernel has cleaned up behind it: 5 to 19 ms were seen.
const UNTIL_RELEASED: Duration = Duration::from_millis(200);
const PAUSE: Duration = Duration::from_millis(3);

/// What was refused, by operation.
type Refused = BTreeMap<usize, Errno>;

impl SetKernel {
    /// Does operations on sets (others must not be among them) in their order. `first` is the number of the first one, by
    /// which refusals are told in `sent`. An error means that it is not known what was done.
    pub fn apply(&mut self, ops: &[NodeOp], first: usize, sent: &mut Sent) -> Result<(), Error> {
        let mut refused = self.ask_for_types(ops)?;
        let mut next = 0;
        while let Some(op) = ops.get(next) {
            next = match op {
                NodeOp::SwapSets { .. } | NodeOp::DestroySet(_) => self.release(ops, next, &mut refused, sent)?,
                NodeOp::CreateSet(_) | NodeOp::AddMember { .. } | NodeOp::DeleteMember { .. } => {
                    self.fill(ops, next, &mut refused, sent)?
                }
                other => unreachable!("{other}: no operation on sets"),
            };
        }
        sent.refused.extend(refused.into_iter().map(|(op, errno)| Refusal {
            op: first + op,
            errno,
            text: text(&ops[op], errno),
        }));
        Ok(())
    }

    /// Learns what must be known to make the sets. Those of a type that the kernel has not are refused.
    fn ask_for_types(&mut self, ops: &[NodeOp]) -> Result<Refused, Error> {
        let mut refused = Refused::new();
        for (index, op) in ops.iter().enumerate() {
            let NodeOp::CreateSet(spec) = op else { continue };
            match self.revision(spec.kind, spec.family) {
                Ok(_) => {}
                Err(Error::Unsupported { errno, .. }) => drop(refused.insert(index, errno)),
                Err(error) => return Err(error),
            }
        }
        Ok(refused)
    }

    /// Makes and fills sets, in one send with what more it takes to find those refused. Gives the place of the next
    /// operation.
    fn fill(&mut self, ops: &[NodeOp], from: usize, refused: &mut Refused, sent: &mut Sent) -> Result<usize, Error> {
        let mut piece = Piece::begin(self.sequence.wrapping_add(1));
        let mut next = from;
        while let Some(NodeOp::CreateSet(_) | NodeOp::AddMember { .. } | NodeOp::DeleteMember { .. }) = ops.get(next)
            && piece.as_bytes().len() < BYTES_PER_SEND
        {
            next = if refused.contains_key(&next) { next + 1 } else { piece.push(ops, next, &self.revisions) };
        }
        let failures = self.send(piece, sent)?;
        let again = sort_out(&ops[..next], failures, refused);
        refused.extend(self.send_alone(ops, &again, sent)?);
        Ok(next)
    }

    /// Swaps two sets, or destroys sets, and waits a while for those in use. Gives the place of the next operation.
    fn release(&mut self, ops: &[NodeOp], from: usize, refused: &mut Refused, sent: &mut Sent) -> Result<usize, Error> {
        let destroyed = ops[from..].iter().take_while(|op| matches!(op, NodeOp::DestroySet(_))).count();
        let next = from + destroyed.max(1);
        let deadline = Instant::now() + UNTIL_RELEASED;
        let mut left: Vec<_> = (from..next).collect();
        loop {
            let failed = self.send_alone(ops, &left, sent)?;
            let in_time = Instant::now() < deadline;
            let is_busy = |errno: &Errno| [Errno::EBUSY, Errno::IPSET_ERR_BUSY].contains(errno);
            let (busy, bad): (Refused, Refused) = failed.into_iter().partition(|(_, errno)| in_time && is_busy(errno));
            refused.extend(bad);
            if busy.is_empty() {
                return Ok(next);
            }
            left = busy.into_keys().collect();
            thread::sleep(PAUSE);
        }
    }

    /// Does operations by messages of their own.
    fn send_alone(&mut self, ops: &[NodeOp], places: &[usize], sent: &mut Sent) -> Result<Refused, Error> {
        let mut refused = Refused::new();
        for some in places.chunks(ANSWERED) {
            let mut piece = Piece::begin(self.sequence.wrapping_add(1));
            for at in some {
                piece.push_alone(ops, *at, &self.revisions);
            }
            let failures = self.send(piece, sent)?;
            refused.extend(failures.into_iter().map(|failure| (failure.carried.start, failure.errno)));
        }
        Ok(refused)
    }

    fn send(&mut self, mut piece: Piece, sent: &mut Sent) -> Result<Vec<Failure>, Error> {
        if piece.messages() == 0 {
            return Ok(Vec::new());
        }
        piece.acknowledge();
        let bytes = piece.as_bytes().len();
        // An error in a list repeats the list, in memory of the next power of two.
        self.socket.reserve_receive(2 * bytes + piece.messages() * BYTES_PER_ANSWER)?;
        self.sequence = piece.last_sequence();
        self.socket.send(piece.as_bytes())?;
        sent.messages += piece.messages();
        sent.sends += 1;
        sent.bytes += bytes;
        self.answers(&piece).map_err(|error| match error {
            Error::Failed { step: Step::Receive, errno: Errno::ENOBUFS, .. } => self.discard(),
            error => error,
        })
    }

    fn answers(&mut self, piece: &Piece) -> Result<Vec<Failure>, Error> {
        let mut failures = Vec::new();
        loop {
            for message in Messages(receive(&mut self.socket, Step::ChangeSets)?).filter(|m| m.head.kind == NLMSG_ERROR) {
                let Some(carried) = piece.carried_by(message.head.sequence) else { continue };
                match Errno(message.error_number()) {
                    Errno(0) => {}
                    // One answer for all that was sent.
                    Errno::EPERM => return Err(Error::at(Step::ChangeSets, Errno::EPERM)),
                    errno => failures.push(Failure { bad: bad_line(&message, &carried), carried, errno }),
                }
                if message.head.sequence == piece.last_sequence() {
                    return Ok(failures);
                }
            }
        }
    }

    /// Takes what is left of answers of which some were lost.
    fn discard(&mut self) -> Error {
        while let Ok(Some(_)) | Err(Error::Failed { errno: Errno::ENOBUFS, .. }) = self.socket.receive(Duration::ZERO) {}
        Error::AnswersLost { errno: Errno::ENOBUFS }
    }
}

/// For benchmarks: the length of what [`SetKernel::apply`] would send, once it is encoded, to a kernel as new as we know.
pub fn encode(ops: &[NodeOp]) -> usize {
    let kinds = SetType::ALL.into_iter().flat_map(|kind| Family::ALL.map(|family| (kind, family)));
    let revisions = kinds.map(|it| (it, codec::newest_revision(it.0))).collect();
    let (mut next, mut length) = (0, 0);
    while next < ops.len() {
        let mut piece = Piece::begin(0);
        while next < ops.len() && piece.as_bytes().len() < BYTES_PER_SEND {
            next = piece.push(ops, next, &revisions);
        }
        length += piece.as_bytes().len();
    }
    length
}

/// A message that the kernel did not like.
#[derive(Debug)]
struct Failure {
    carried: Range<usize>,
    errno: Errno,
    /// Of a list, the operation that it stopped at.
    bad: Option<usize>,
}

/// The operation that an error in a list is about. Where there is no list the error names no line.
fn bad_line(message: &Message<'_>, carried: &Range<usize>) -> Option<usize> {
    let line = message.repeated(NFGENMSG).get(IPSET_ATTR_LINENO)?.be32()?;
    let bad = carried.start.checked_add(usize::try_from(line).ok()?.checked_sub(1)?)?;
    carried.contains(&bad).then_some(bad)
}

/// Notes what was refused in a send that ended with the last of `ops`, and gives what must be done again: what was not
/// looked at and, since that comes late now, all that was done to the same set after it.
fn sort_out(ops: &[NodeOp], failures: Vec<Failure>, refused: &mut Refused) -> Vec<usize> {
    let mut again = Vec::new();
    let mut sets = BTreeSet::new();
    for failure in failures {
        let set = set_of(&ops[failure.carried.start]);
        if set.is_some_and(|set| sets.contains(set)) {
            continue;
        }
        let next = match failure.bad {
            Some(bad) => {
                refused.insert(bad, failure.errno);
                bad + 1
            }
            // Of a member with attributes that the type of set does not know no line is told.
            None if failure.errno == Errno::IPSET_ERR_PROTOCOL && failure.carried.len() > 1 => failure.carried.start,
            None => {
                refused.extend(failure.carried.map(|at| (at, failure.errno)));
                continue;
            }
        };
        if let Some(set) = set {
            sets.insert(set);
            again.extend((next..ops.len()).filter(|at| set_of(&ops[*at]) == Some(set)));
        }
    }
    again
}

/// The set whose member an operation is about.
fn set_of(op: &NodeOp) -> Option<&SetName> {
    match op {
        NodeOp::AddMember { set, .. } | NodeOp::DeleteMember { set, .. } => Some(set),
        _ => None,
    }
}

fn text(op: &NodeOp, errno: Errno) -> String {
    match op {
        NodeOp::CreateSet(spec) if errno == Errno::IPSET_ERR_FIND_TYPE => format!("{op} (module {})", spec.kind.module()),
        _ => op.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::attr::{Head, Writer};
    use super::*;
    use crate::ruleset::Member;

    fn ops(sets: &[&str]) -> Vec<NodeOp> {
        sets.iter().map(|set| NodeOp::AddMember { set: (*set).into(), member: Member::Port(1) }).collect()
    }

    fn failure(carried: Range<usize>, bad: Option<usize>) -> Failure {
        Failure { carried, errno: Errno::EINVAL, bad }
    }

    #[test]
    fn what_comes_after_a_bad_member_in_its_set_is_done_again() {
        let ops = ops(&["A", "A", "A", "B", "A", "B"]);
        let mut refused = Refused::new();
        let failures = vec![failure(0..3, Some(1)), failure(4..5, Some(4)), failure(5..6, None)];
        assert_eq!(sort_out(&ops, failures, &mut refused), [2, 4]);
        let places: Vec<_> = refused.into_keys().collect();
        assert_eq!(places, [1, 5], "of 4 the second try will tell");
    }

    #[test]
    fn a_list_with_a_bad_member_of_no_line_is_done_one_by_one() {
        let ops = ops(&["A", "A", "B", "B", "A"]);
        let mut refused = Refused::new();
        let protocol = |carried| Failure { carried, errno: Errno::IPSET_ERR_PROTOCOL, bad: None };
        let missing = Failure { carried: 2..4, errno: Errno::ENOENT, bad: None };
        assert_eq!(sort_out(&ops, vec![protocol(0..2), missing, protocol(4..5)], &mut refused), [0, 1, 4]);
        assert_eq!(refused.into_keys().collect::<Vec<_>>(), [2, 3], "a set that is not there takes none of them");
        let mut refused = Refused::new();
        assert!(sort_out(&ops, vec![protocol(4..5)], &mut refused).is_empty());
        assert_eq!(refused.into_keys().collect::<Vec<_>>(), [4]);
    }

    /// The kernel's answer to a list, whose line it wrote into the request that it repeats.
    fn answer(line: u32) -> Vec<u8> {
        let mut request = Writer::default();
        request.message(Head::default(), &[0; NFGENMSG], |w| w.be32(IPSET_ATTR_LINENO, line));
        [&(-4352_i32).to_ne_bytes(), request.as_bytes()].concat()
    }

    fn line_of(payload: &[u8], flags: u16) -> Option<usize> {
        let head = Head { kind: NLMSG_ERROR, flags, sequence: 0 };
        bad_line(&Message { head, payload }, &(10..15))
    }

    #[test]
    fn the_line_of_an_error_is_an_operation() {
        assert_eq!(line_of(&answer(1), 0), Some(10));
        assert_eq!(line_of(&answer(5), 0), Some(14));
        assert_eq!(line_of(&answer(0), 0), None, "as we sent it: of no line");
        assert_eq!(line_of(&answer(6), 0), None);
        assert_eq!(line_of(&answer(u32::MAX), 0), None);
        assert_eq!(line_of(&answer(1), 0x100), None, "NLM_F_CAPPED: the request is not repeated");
    }

    #[test]
    fn garbled_answers_are_never_a_panic() {
        let good = answer(1);
        for cut in 0..good.len() {
            assert_eq!(line_of(&good[..cut], 0), None, "cut at {cut}");
        }
        for place in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[place] ^= 1 << bit;
                line_of(&bad, 0);
            }
        }
    }
}
