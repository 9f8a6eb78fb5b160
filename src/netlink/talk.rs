//! Questions and orders to the kernel over one socket, told apart by their sequence numbers: one at a time with its
//! answer, a listing, or thousands in few sends of which only those are answered that were refused.
//!
//! It knows heads and errors of messages; what they say is the business of who writes and reads them.

use std::time::Duration;

use super::attr::{Head, Message, Messages, NLMSG_DONE, NLMSG_ERROR, Writer, flag};
use super::errno::Errno;
use super::error::{Error, Refusal, Step};
use super::socket::{Peer, Socket};
use super::{NodeOp, Sent};

/// The kernel works inside the send; what is waited for is there.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often a listing is begun again because somebody changed things meanwhile.
pub(super) const MAX_TRIES: usize = 10;
/// What an answer takes of the receive buffer, with the management of its memory.
const BYTES_PER_ANSWER: usize = 1 << 10;

#[derive(Debug)]
pub(super) struct Talk {
    socket: Socket,
    /// Of the last message.
    sequence: u32,
    /// A send is ended when it has got so long.
    piece: usize,
}

impl Talk {
    pub fn open(peer: Peer, piece: usize) -> Result<Self, Error> {
        Ok(Self { socket: Socket::open(peer)?, sequence: 0, piece })
    }

    /// Asks one question, an acknowledgement included, and shows what is answered. `write` fills in the kind.
    pub fn ask(
        &mut self,
        step: Step,
        write: &dyn Fn(&mut Writer, Head),
        visit: &mut dyn FnMut(&Message<'_>),
    ) -> Result<(), Error> {
        self.converse(step, flag::ACK, write, visit).map(drop)
    }

    /// Lists all there is of what `read` understands. Fails with [`Error::Interrupted`] when others go on changing it.
    pub fn list<T>(
        &mut self,
        step: Step,
        write: &dyn Fn(&mut Writer, Head),
        read: &dyn Fn(&Message<'_>) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        for _ in 0..MAX_TRIES {
            let (found, how) = self.list_once(step, write, read)?;
            if !how.interrupted {
                return Ok(found);
            }
        }
        Err(Error::Interrupted)
    }

    /// Lists once, and tells how far that can be trusted.
    pub fn list_once<T>(
        &mut self,
        step: Step,
        write: &dyn Fn(&mut Writer, Head),
        read: &dyn Fn(&Message<'_>) -> Option<T>,
    ) -> Result<(Vec<T>, Heard), Error> {
        let mut found = Vec::new();
        let how = self.converse(step, flag::DUMP, write, &mut |message| found.extend(read(message)))?;
        Ok((found, how))
    }

    /// Sends one message and takes its answers up to the last.
    fn converse(
        &mut self,
        step: Step,
        flags: u16,
        write: &dyn Fn(&mut Writer, Head),
        visit: &mut dyn FnMut(&Message<'_>),
    ) -> Result<Heard, Error> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = Writer::default();
        write(&mut request, Head { kind: 0, flags, sequence: self.sequence });
        self.socket.send(request.as_bytes())?;
        let mut heard = Heard::default();
        loop {
            let Some(datagram) = self.socket.receive(PATIENCE)? else { return Err(Error::NoAnswer { step, after: PATIENCE }) };
            heard.datagrams += 1;
            for message in Messages(datagram).filter(|message| message.head.sequence == self.sequence) {
                heard.interrupted |= message.head.flags & flag::DUMP_INTERRUPTED != 0;
                match message.head.kind {
                    NLMSG_DONE | NLMSG_ERROR => {
                        return match Errno(message.error_number()) {
                            Errno(0) => Ok(heard),
                            errno => Err(Error::said(step, errno, message.error_text())),
                        };
                    }
                    _ => visit(&message),
                }
            }
        }
    }

    /// Sends a message for each item, many in one send, and tells which were refused and why. `write` gets a head
    /// without a kind; an item for which it writes nothing counts as refused with `EOPNOTSUPP`.
    pub fn send_many<T>(
        &mut self,
        items: &[T],
        write: &dyn Fn(&mut Writer, Head, &T),
        sent: &mut Sent,
    ) -> Result<Vec<(usize, Errno)>, Error> {
        let base = self.sequence.wrapping_add(1);
        let mut refused = Vec::new();
        let mut piece = Piece { base, ..Piece::default() };
        for (index, item) in items.iter().enumerate() {
            self.sequence = self.sequence.wrapping_add(1);
            let start = piece.bytes.len();
            write(&mut piece.bytes, Head { sequence: self.sequence, ..Head::default() }, item);
            if piece.bytes.len() == start {
                refused.push((index, Errno::EOPNOTSUPP));
                continue;
            }
            piece.messages += 1;
            (piece.last, piece.last_start) = (self.sequence, start);
            if piece.bytes.len() >= self.piece {
                self.send_piece(&mut piece, &mut refused, sent)?;
                piece = Piece { base, ..Piece::default() };
            }
        }
        if piece.messages > 0 {
            self.send_piece(&mut piece, &mut refused, sent)?;
        }
        Ok(refused)
    }

    /// Only the last message asks for an answer in any case: errors come unasked.
    fn send_piece(&mut self, piece: &mut Piece, refused: &mut Vec<(usize, Errno)>, sent: &mut Sent) -> Result<(), Error> {
        piece.bytes.add_flags(piece.last_start, flag::ACK);
        self.socket.reserve_receive(piece.messages.saturating_mul(BYTES_PER_ANSWER))?;
        self.socket.send(piece.bytes.as_bytes())?;
        sent.sends += 1;
        sent.messages += piece.messages;
        sent.bytes += piece.bytes.len();
        loop {
            match self.socket.receive(PATIENCE) {
                Ok(Some(datagram)) => {
                    if Messages(datagram).any(|message| piece.take(&message, refused)) {
                        return Ok(());
                    }
                }
                Ok(None) => return Err(Error::NoAnswer { step: Step::Receive, after: PATIENCE }),
                Err(Error::Failed { errno: Errno::ENOBUFS, .. }) => return Err(self.discard()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Takes what is left of answers of which some were lost.
    fn discard(&mut self) -> Error {
        while let Ok(Some(_)) | Err(Error::Failed { errno: Errno::ENOBUFS, .. }) = self.socket.receive(Duration::ZERO) {}
        Error::AnswersLost { errno: Errno::ENOBUFS }
    }
}

/// How an answer came.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Heard {
    /// The kernel says of a listing that somebody changed things meanwhile.
    pub interrupted: bool,
    /// That of a listing's end counts too.
    pub datagrams: usize,
}

/// For benchmarks: writes what [`Talk::send_many`] would send, and sends nothing. Gives its length.
pub(super) fn encode<T>(items: &[T], piece: usize, write: &dyn Fn(&mut Writer, Head, &T)) -> usize {
    let (mut bytes, mut length) = (Writer::default(), 0);
    for item in items {
        write(&mut bytes, Head::default(), item);
        if bytes.len() >= piece {
            length += bytes.len();
            bytes = Writer::default();
        }
    }
    length + bytes.len()
}

/// What goes in one send.
#[derive(Debug, Default)]
struct Piece {
    bytes: Writer,
    messages: usize,
    /// Sequence number of the first item of all.
    base: u32,
    /// Of the last message: its sequence number, and where it begins.
    last: u32,
    last_start: usize,
}

impl Piece {
    /// Takes an answer; true for that to the last message.
    fn take(&self, message: &Message<'_>, refused: &mut Vec<(usize, Errno)>) -> bool {
        let sequence = message.head.sequence;
        let place = sequence.wrapping_sub(self.base);
        // Others are late answers to what was asked before an error.
        if message.head.kind != NLMSG_ERROR || place > self.last.wrapping_sub(self.base) {
            return false;
        }
        let errno = Errno(message.error_number());
        if errno != Errno(0) {
            refused.push((usize::try_from(place).expect("an index of a slice"), errno));
        }
        sequence == self.last
    }
}

/// A refusal of one of `ops`, the first of which has the index `first` for whoever gave it.
pub(super) fn refusal(ops: &[NodeOp], first: usize, (index, errno): (usize, Errno)) -> Refusal {
    Refusal { op: first + index, errno, text: ops[index].to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The answer to message `sequence`.
    fn answer(sequence: u32, errno: i32) -> (Head, [u8; 4]) {
        (Head { kind: NLMSG_ERROR, flags: 0, sequence }, (-errno).to_ne_bytes())
    }

    #[test]
    fn answers_belong_to_their_items() {
        // Numbers wrap round.
        let piece = Piece { base: u32::MAX, last: 2, ..Piece::default() };
        let mut refused = Vec::new();
        let mut take = |(head, payload): (Head, [u8; 4])| piece.take(&Message { head, payload: &payload }, &mut refused);
        assert!(!take(answer(u32::MAX, 17)));
        assert!(!take(answer(1, 2)));
        assert!(!take(answer(3, 1)), "an answer to somebody else's question");
        assert!(!take(answer(u32::MAX - 1, 1)), "an answer to an earlier question");
        assert!(take(answer(2, 0)));
        assert_eq!(refused, [(0, Errno::EEXIST), (2, Errno::ENOENT)]);
    }
}
