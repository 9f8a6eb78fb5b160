//! Operations on sets as the messages of one send, and which of them an answer is about. Pure: bytes out, sequence
//! numbers in.

use std::collections::BTreeMap;
use std::ops::Range;

use super::super::attr::{Head, Writer, flag};
#[allow(clippy::wildcard_imports, reason = "the numbers of the wire are this file's vocabulary")]
use super::wire::*;
use super::{codec, write_protocol};
use crate::net::Family;
use crate::ruleset::{Member, NodeOp, SetName, SetType};

/// How long a list of members may become: an attribute holds less than 64 KiB.
const LONGEST_LIST: usize = u16::MAX as usize - codec::LONGEST_MEMBER;

/// The revisions of the types that are made.
pub type Revisions = BTreeMap<(SetType, Family), u8>;

/// Messages ready to be sent. Message `i` has sequence number `first` + `i`.
#[derive(Debug)]
pub struct Piece {
    writer: Writer,
    first: u32,
    /// The operations of each message.
    carried: Vec<Range<usize>>,
    /// Where the last message starts.
    last_start: usize,
}

impl Piece {
    pub fn begin(first: u32) -> Self {
        Self { writer: Writer::default(), first, carried: Vec::new(), last_start: 0 }
    }

    /// Adds a message for the operation at `at` and, if that is about a member, for those behind it that do the same
    /// with members of the same set, as many as fit. Gives the place of the next operation.
    pub fn push(&mut self, ops: &[NodeOp], at: usize, revisions: &Revisions) -> usize {
        let Some((kind, set, _)) = member_of(&ops[at]) else { return self.push_alone(ops, at, revisions) };
        let mut next = at;
        self.message(kind, 0, |w| {
            w.text(IPSET_ATTR_SETNAME, set.as_str());
            // An error repeats the request, with the number of the line that failed in here.
            w.be32(IPSET_ATTR_LINENO, 0);
            w.nest(IPSET_ATTR_ADT, |w| {
                let start = w.len();
                while let Some((next_kind, next_set, member)) = ops.get(next).and_then(member_of)
                    && (next_kind, next_set) == (kind, set)
                    && w.len() - start < LONGEST_LIST
                {
                    // Lines count from 1: 0 is none.
                    let line = u32::try_from(next - at + 1).expect("a message has less than 64 KiB");
                    next += 1;
                    w.nest(IPSET_ATTR_DATA, |w| {
                        codec::write_member(w, member);
                        w.be32(IPSET_ATTR_LINENO, line);
                    });
                }
            });
        });
        self.carried.push(at..next);
        next
    }

    /// Adds a message for the operation at `at` alone.
    pub fn push_alone(&mut self, ops: &[NodeOp], at: usize, revisions: &Revisions) -> usize {
        match &ops[at] {
            NodeOp::CreateSet(spec) => self.message(kind::CREATE, flag::CREATE | flag::EXCLUSIVE, |w| {
                codec::write_spec(w, spec, revisions[&(spec.kind, spec.family)]);
            }),
            NodeOp::DestroySet(set) => {
                // Without the flag Linux 6.18 says nothing of a set that is not there.
                self.message(kind::DESTROY, flag::EXCLUSIVE, |w| w.text(IPSET_ATTR_SETNAME, set.as_str()));
            }
            NodeOp::SwapSets { one: set, other } => self.message(kind::SWAP, 0, |w| {
                w.text(IPSET_ATTR_SETNAME, set.as_str());
                w.text(IPSET_ATTR_SETNAME2, other.as_str());
            }),
            op => {
                let (kind, set, member) = member_of(op).expect("only operations on sets come here");
                self.message(kind, 0, |w| {
                    w.text(IPSET_ATTR_SETNAME, set.as_str());
                    w.nest(IPSET_ATTR_DATA, |w| codec::write_member(w, member));
                });
            }
        }
        self.carried.push(at..at + 1);
        at + 1
    }

    /// Asks for an acknowledgement of the last message: errors come unasked.
    pub fn acknowledge(&mut self) {
        self.writer.add_flags(self.last_start, flag::ACK);
    }

    pub fn as_bytes(&self) -> &[u8] {
        self.writer.as_bytes()
    }

    pub fn messages(&self) -> usize {
        self.carried.len()
    }

    /// The sequence number of the message that is acknowledged.
    pub fn last_sequence(&self) -> u32 {
        let count = u32::try_from(self.carried.len()).expect("fewer messages than 2^32");
        self.first.wrapping_add(count).wrapping_sub(1)
    }

    /// The operations of the message with a sequence number.
    pub fn carried_by(&self, sequence: u32) -> Option<Range<usize>> {
        self.carried.get(sequence.wrapping_sub(self.first) as usize).cloned()
    }
}

impl Piece {
    fn message(&mut self, kind: u16, flags: u16, body: impl FnOnce(&mut Writer)) {
        self.last_start = self.writer.len();
        let sequence = self.last_sequence().wrapping_add(1);
        self.writer.message(Head { kind, flags, sequence }, &HEADER, |w| {
            write_protocol(w);
            body(w);
        });
    }
}

/// What is done with which member of which set.
fn member_of(op: &NodeOp) -> Option<(u16, &SetName, &Member)> {
    match op {
        NodeOp::AddMember { set, member } => Some((kind::ADD, set, member)),
        NodeOp::DeleteMember { set, member } => Some((kind::DELETE, set, member)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::attr::Messages;
    use super::*;

    fn add(set: &str, port: u16) -> NodeOp {
        NodeOp::AddMember { set: set.into(), member: Member::Port(port) }
    }

    fn delete(set: &str, port: u16) -> NodeOp {
        NodeOp::DeleteMember { set: set.into(), member: Member::Port(port) }
    }

    fn pack(ops: &[NodeOp]) -> Piece {
        let mut piece = Piece::begin(100);
        let mut at = 0;
        while at < ops.len() {
            at = piece.push(ops, at, &Revisions::new());
        }
        piece.acknowledge();
        piece
    }

    #[test]
    fn members_of_one_set_share_a_message() {
        let ops = [add("A", 1), add("A", 2), delete("A", 3), add("A", 4), add("B", 5), NodeOp::DestroySet("A".into())];
        let piece = pack(&ops);
        assert_eq!(piece.carried, [0..2, 2..3, 3..4, 4..5, 5..6]);
        let heads: Vec<_> = Messages(piece.as_bytes()).map(|m| (m.head.sequence, m.head.kind)).collect();
        let kinds = [kind::ADD, kind::DELETE, kind::ADD, kind::ADD, kind::DESTROY];
        assert_eq!(heads, (100..).zip(kinds).collect::<Vec<_>>());
        assert_eq!((piece.last_sequence(), piece.carried_by(101), piece.carried_by(99)), (104, Some(2..3), None));
        let acknowledged: Vec<_> = Messages(piece.as_bytes()).map(|m| m.head.flags & flag::ACK != 0).collect();
        assert_eq!(acknowledged, [false, false, false, false, true]);
    }

    #[test]
    fn long_lists_are_split_and_lines_count_from_one() {
        let ops: Vec<_> = (0..u16::MAX).map(|port| add("A", port)).collect();
        let piece = pack(&ops);
        assert!(piece.messages() > 10);
        for (message, carried) in Messages(piece.as_bytes()).zip(&piece.carried) {
            let list = message.attributes(NFGENMSG).get(IPSET_ATTR_ADT).unwrap().nested();
            let lines = list.map(|data| data.nested().get(IPSET_ATTR_LINENO).and_then(|line| line.be32()).unwrap());
            assert_eq!(lines.collect::<Vec<_>>(), (1..).take(carried.len()).collect::<Vec<_>>());
        }
        assert_eq!(piece.carried.last().map(|last| last.end), Some(ops.len()));
    }

    /// ipset takes a request to destroy without a name for one of everything.
    #[test]
    fn what_is_destroyed_has_a_name() {
        let piece = pack(&[NodeOp::DestroySet("KUBE-X".into())]);
        let message = Messages(piece.as_bytes()).next().unwrap();
        assert_eq!(message.attributes(NFGENMSG).get(IPSET_ATTR_SETNAME).and_then(|a| a.text()), Some("KUBE-X"));
    }
}
