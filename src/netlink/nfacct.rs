//! Named packet counters of the kernel (nfacct), which rules can feed: making them and reading them.

use std::time::Duration;

use super::attr::{Head, Message, Messages, NLMSG_ERROR, Writer, flag};
use super::errno::Errno;
use super::error::{Error, Step};
use super::socket::{Peer, Socket};

/// `NFNL_SUBSYS_ACCT` of `linux/netfilter/nfnetlink.h`, in the upper byte of a message's kind.
const NFNL_SUBSYS_ACCT: u16 = 7;
const NFNL_MSG_ACCT_NEW: u16 = NFNL_SUBSYS_ACCT << 8;
const NFNL_MSG_ACCT_GET: u16 = NFNL_SUBSYS_ACCT << 8 | 1;
const NFACCT_NAME: u16 = 1;
const NFACCT_PKTS: u16 = 2;
const NFACCT_BYTES: u16 = 3;
/// Answers are there when the send returns.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a counter has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub packets: u64,
    pub bytes: u64,
}

/// The counters of the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Counters {
    socket: Socket,
    sequence: u32,
}

impl Counters {
    pub fn open() -> Result<Self, Error> {
        Ok(Self { socket: Socket::open(Peer::Netfilter)?, sequence: 0 })
    }

    /// Makes the counter unless it exists; [`Error::Unsupported`] where the kernel has no nfacct.
    pub fn ensure(&mut self, name: &str) -> Result<(), Error> {
        let flags = flag::CREATE | flag::EXCLUSIVE | flag::ACK;
        match self.ask(Step::MakeCounter, (NFNL_MSG_ACCT_NEW, flags), name) {
            Err(error) if error.errno() == Some(Errno::EEXIST) => Ok(()),
            other => other.map(drop),
        }
    }

    /// The counter's value; `None` where there is no such counter.
    pub fn read(&mut self, name: &str) -> Result<Option<Count>, Error> {
        match self.ask(Step::ReadCounter, (NFNL_MSG_ACCT_GET, 0), name) {
            Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(None),
            other => other,
        }
    }

    /// Sends one request and waits for its answer: a counter, or an error or acknowledgement.
    fn ask(&mut self, step: Step, (kind, flags): (u16, u16), name: &str) -> Result<Option<Count>, Error> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut writer = Writer::default();
        let head = Head { kind, flags, sequence: self.sequence };
        writer.message(head, &[0; 4], |w| w.text(NFACCT_NAME, name));
        self.socket.send(writer.as_bytes())?;
        loop {
            let Some(datagram) = self.socket.receive(PATIENCE)? else {
                return Err(Error::NoAnswer { step, after: PATIENCE });
            };
            let mut answers = Messages(datagram).filter(|m| m.head.sequence == self.sequence);
            if let Some(message) = answers.next() {
                return answer(step, &message);
            }
        }
    }
}

fn answer(step: Step, message: &Message<'_>) -> Result<Option<Count>, Error> {
    if message.head.kind != NLMSG_ERROR {
        let attributes = message.attributes(4);
        let number = |kind| attributes.get(kind).and_then(|a| a.be64()).unwrap_or_default();
        return Ok(Some(Count { packets: number(NFACCT_PKTS), bytes: number(NFACCT_BYTES) }));
    }
    match Errno(message.error_number()) {
        Errno(0) => Ok(None),
        // What nfnetlink answers for a subsystem it doesn't have and cannot load.
        errno @ (Errno::EINVAL | Errno::EOPNOTSUPP) => Err(Error::Unsupported { what: "nfacct", errno }),
        errno => Err(Error::said(step, errno, message.error_text())),
    }
}
