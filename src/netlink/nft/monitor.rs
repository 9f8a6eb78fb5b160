//! What others change in `nf_tables`, as the kernel tells it: which chains, and who. Our own changes are thrown
//! away by the kernel, before they are queued.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use super::super::attr::{Attributes, Message, Messages, flag};
use super::super::errno::Errno;
use super::super::error::Error;
use super::super::socket::{Peer, Socket};
use super::read::table as table_of;
#[allow(clippy::wildcard_imports, reason = "the numbers of the wire are this file's vocabulary")]
use super::wire::*;
use crate::net::{Family, PerFamily};
use crate::ruleset::{ChainName, Table, Touched};

/// Room for what comes while the reader is not scheduled: the notifications of some 20,000 rules. The kernel takes
/// twice as much, for its own management.
const BUFFER: usize = 8 << 20;
/// Datagrams (of about 4 KiB) taken at a time, so that what came first is not kept back by a flood.
const AT_A_TIME: usize = 4096;
/// The kernel tells who it was right after what was changed, so this long is never waited but by accident.
const UNTIL_NAMED: Duration = Duration::from_millis(5);
/// Of so many committers the names are kept.
const NAMED: usize = 4;

/// Hears of every change of `nf_tables` in its network namespace.
#[derive(Debug)]
pub struct RuleMonitor {
    socket: Socket,
    own_port: u32,
    /// Notifications were lost, and until the queue has been empty more may be.
    behind: bool,
}

/// What others did.
#[derive(Clone, Debug)]
pub struct ForeignChange {
    pub touched: PerFamily<Touched>,
    /// How many things were told of, by family, of those that matter.
    pub notifications: PerFamily<u64>,
    /// The kernel had more to tell than there was room for: anything may have changed.
    pub lost: bool,
    /// Who it was, the first few.
    pub by: Vec<Committer>,
    /// When the first of it was received.
    pub since: Instant,
}

impl ForeignChange {
    /// Takes in what came after it.
    pub fn merge(&mut self, later: Self) {
        let Self { mut touched, notifications, lost, by, since } = later;
        for family in Family::ALL {
            self.touched[family].merge(std::mem::take(&mut touched[family]));
            self.notifications[family] += notifications[family];
        }
        self.lost |= lost;
        for committer in by {
            push_new(&mut self.by, committer);
        }
        self.since = self.since.min(since);
    }
}

/// Who changed something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committer {
    /// The netlink port, which is often the process id too.
    pub port: u32,
    /// Process id, as the machine's first PID namespace numbers it, and name (at most 15 bytes).
    pub process: Option<(u32, Box<str>)>,
}

impl fmt::Display for Committer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.process {
            Some((pid, name)) => write!(f, "{name} (pid {pid}, netlink port {})", self.port),
            None => write!(f, "netlink port {}", self.port),
        }
    }
}

/// Whether a chain of a table matters to the caller.
type Matters<'a> = &'a dyn Fn(Table, &str) -> bool;

impl RuleMonitor {
    /// From now on no change is missed but those that come from `own_port`.
    pub fn open(own_port: u32) -> Result<Self, Error> {
        let mut socket = Socket::open(Peer::Netfilter)?;
        socket.ignore(own_port)?;
        socket.reserve_receive(BUFFER)?;
        socket.join(NFNLGRP_NFTABLES)?;
        Ok(Self { socket, own_port, behind: false })
    }

    /// What [`NftKernel::spare`] wants.
    ///
    /// [`NftKernel::spare`]: super::NftKernel::spare
    pub fn ears(&self) -> Result<Ears, Error> {
        self.socket.second_hand().map(Ears)
    }

    /// Waits until others have changed something, at most `timeout`. Takes what is there already, up to a bound, as
    /// one change; `None` when in that was nothing that matters.
    ///
    /// Of chains only those are told that matter. A table that was made or deleted is everything of its family; lost
    /// notifications are everything there is.
    pub fn wait(&mut self, timeout: Duration, matters: Matters<'_>) -> Result<Option<ForeignChange>, Error> {
        let mut collector = Collector::new(self.own_port, matters);
        let mut patience = timeout;
        let mut emptied = false;
        for _ in 0..AT_A_TIME {
            match self.socket.receive(patience) {
                Ok(Some(datagram)) => collector.take(datagram),
                Ok(None) => {
                    emptied = true;
                    break;
                }
                // The kernel drops everything until the queue has been empty, and says so once.
                Err(Error::Failed { errno: Errno::ENOBUFS, .. }) => self.behind = true,
                Err(error) => return Err(error),
            }
            patience = if collector.unnamed.is_some() { UNTIL_NAMED } else { Duration::ZERO };
        }
        let lost = self.behind;
        self.behind &= !emptied;
        Ok(collector.finish(lost))
    }
}

/// The monitor's ears, to be closed while we make so many changes ourselves that telling of them would take long.
#[derive(Debug)]
pub struct Ears(Socket);

impl Ears {
    pub(super) fn close(&self) -> Result<(), Error> {
        self.0.leave(NFNLGRP_NFTABLES)
    }

    pub(super) fn open(&self) -> Result<(), Error> {
        self.0.join(NFNLGRP_NFTABLES)
    }
}

/// Readable when others changed something.
impl AsFd for RuleMonitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Makes one change of many datagrams.
struct Collector<'a> {
    own_port: u32,
    matters: Matters<'a>,
    touched: PerFamily<Touched>,
    notifications: PerFamily<u64>,
    by: Vec<Committer>,
    /// The port of a change that matters, until it is told who it was.
    unnamed: Option<u32>,
    /// Who changed something of no interest; if notifications were lost it may have been they.
    bystanders: Vec<Committer>,
    since: Option<Instant>,
}

impl<'a> Collector<'a> {
    fn new(own_port: u32, matters: Matters<'a>) -> Self {
        Self {
            own_port,
            matters,
            touched: PerFamily::default(),
            notifications: PerFamily::default(),
            by: Vec::new(),
            unnamed: None,
            bystanders: Vec::new(),
            since: None,
        }
    }

    fn take(&mut self, datagram: &[u8]) {
        self.since.get_or_insert_with(Instant::now);
        let mut messages = Messages(datagram);
        while let Some(port) = messages.port()
            && let Some(message) = messages.next()
        {
            // The socket's filter looks at the first message alone.
            if port != self.own_port {
                self.message(port, &message);
            }
        }
    }

    fn message(&mut self, port: u32, message: &Message<'_>) {
        let attributes = message.attributes(NFGENMSG);
        if message.head.kind == kind::NEW_GENERATION {
            let committer = committer(port, attributes);
            let list =
                if self.unnamed.take_if(|unnamed| *unnamed == port).is_some() { &mut self.by } else { &mut self.bystanders };
            push_new(list, committer);
            return;
        }
        let Some(family) = message.payload.first().and_then(|number| family_of(*number)) else { return };
        match what(message, attributes, self.matters) {
            What::Nothing => return,
            What::Chain(table, chain) => self.touched[family].add(table, chain),
            What::Everything => self.touched[family] = Touched::everything(),
        }
        self.notifications[family] += 1;
        if self.unnamed != Some(port) {
            self.name_port();
            self.unnamed = Some(port);
        }
    }

    /// Of an earlier change nobody was told who it was.
    fn name_port(&mut self) {
        if let Some(port) = self.unnamed.take() {
            push_new(&mut self.by, Committer { port, process: None });
        }
    }

    fn finish(mut self, lost: bool) -> Option<ForeignChange> {
        self.name_port();
        if lost {
            self.touched = PerFamily::from_fn(|_| Touched::everything());
            for committer in std::mem::take(&mut self.bystanders) {
                push_new(&mut self.by, committer);
            }
        }
        if Family::ALL.into_iter().all(|family| self.touched[family].is_empty()) {
            return None;
        }
        let Self { touched, notifications, by, since, .. } = self;
        Some(ForeignChange { touched, notifications, lost, by, since: since.unwrap_or_else(Instant::now) })
    }
}

fn push_new(list: &mut Vec<Committer>, committer: Committer) {
    if list.len() < NAMED && list.iter().all(|known| known.port != committer.port) {
        list.push(committer);
    }
}

/// What a message says was changed.
enum What {
    Nothing,
    Chain(Table, ChainName),
    Everything,
}

/// Rules are looked at for the names of their table and chain alone.
fn what(message: &Message<'_>, attributes: Attributes<'_>, matters: Matters<'_>) -> What {
    let text = |kind| attributes.get(kind).and_then(|attribute| attribute.text());
    let (table, chain) = match message.head.kind {
        kind::NEW_TABLE | kind::DELETE_TABLE => (table_of(attributes, NFTA_TABLE_NAME), None),
        kind::NEW_CHAIN | kind::DELETE_CHAIN => (table_of(attributes, NFTA_CHAIN_TABLE), Some(NFTA_CHAIN_NAME)),
        kind::NEW_RULE | kind::DELETE_RULE => (table_of(attributes, NFTA_RULE_TABLE), Some(NFTA_RULE_CHAIN)),
        _ => return What::Nothing,
    };
    match (table, chain.map(text)) {
        (Some(_), None) => What::Everything,
        // Of a chain that got a new name nobody says the old one, which may have been ours whatever the new one is.
        (Some(_), Some(_)) if may_be_renamed(message, attributes) => What::Everything,
        (Some(table), Some(Some(chain))) if matters(table, chain) => What::Chain(table, chain.into()),
        (None, _) | (Some(_), Some(_)) => What::Nothing,
    }
}

/// A chain that was changed, not made. Of one with a hook it is the policy that is changed.
fn may_be_renamed(message: &Message<'_>, attributes: Attributes<'_>) -> bool {
    let made = message.head.flags & (flag::CREATE | flag::EXCLUSIVE) != 0;
    message.head.kind == kind::NEW_CHAIN && !made && attributes.get(NFTA_CHAIN_HOOK).is_none()
}

fn committer(port: u32, attributes: Attributes<'_>) -> Committer {
    let pid = attributes.get(NFTA_GEN_PROC_PID).and_then(|attribute| attribute.be32());
    // A process names itself: nothing in it may reach a terminal.
    let clean = |name: &str| name.chars().map(|c| if c.is_control() { '?' } else { c }).collect::<String>();
    let name = attributes.get(NFTA_GEN_PROC_NAME).and_then(|attribute| attribute.text()).map(clean);
    Committer { port, process: pid.zip(name.map(String::into_boxed_str)) }
}

/// Takes notifications as they may come.
#[cfg(fuzzing)]
pub(super) fn fuzz(datagram: &[u8]) {
    let mut collector = Collector::new(1, &|_, chain| chain.starts_with("KUBE-"));
    collector.take(datagram);
    let _ = collector.finish(false);
}
