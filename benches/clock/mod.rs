//! The real kernel with a stop-watch, and beside it the floor: what the kernel alone takes, measured in the same
//! moments, so that whatever disturbs the one disturbs the other.

use std::time::{Duration, Instant};

use sluice::net::Family;
use sluice::netlink::{Committed, Encoded, Error, Kernel, NftKernel, Seen};
use sluice::ruleset::{ChainName, Op, Place, Rule, Table, Target, Transaction};

use crate::netns::in_namespace;

/// Deletions are finished behind the caller's back, and the next addition waits for that (netlink.md §2).
const SETTLED: Duration = Duration::from_millis(40);

/// The kernel of the thread's namespace, timed.
pub struct Clocked {
    kernel: NftKernel,
    /// A kernel in a namespace of its own, which is sent the very same bytes.
    twin: Option<NftKernel>,
    turns: usize,
    pub times: Times,
}

/// What a measurement took, in parts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Times {
    /// The kernel's, for what it was asked by us; with our reading of its answers.
    kernel: Duration,
    /// Turning operations into bytes, which is part of `kernel` as we call it.
    encoding: Duration,
    /// The twin's, for the bytes alone.
    pub floor: Duration,
    /// What measuring itself took, to be left out of the whole.
    aside: Duration,
}

impl Times {
    /// Of a measurement that took so long on the clock: what it takes when nobody measures.
    pub fn whole(&self, elapsed: Duration) -> Duration {
        elapsed.saturating_sub(self.aside)
    }

    /// Our own part of it: up to the sent message, encoding included.
    pub fn ours(&self, elapsed: Duration) -> Duration {
        self.whole(elapsed).saturating_sub(self.kernel) + self.encoding
    }
}

impl Clocked {
    pub fn open() -> Self {
        Self { kernel: open(), twin: None, turns: 0, times: Times::default() }
    }

    /// From now on another namespace gets the same transactions.
    pub fn with_twin(&mut self) {
        let (give, take) = std::sync::mpsc::channel();
        // The namespace lives as long as the socket in it.
        in_namespace(move || give.send(open()).expect("somebody waits"));
        self.twin = take.recv().ok();
    }

    pub fn without_twin(&mut self) {
        self.twin = None;
    }

    /// The same operations, encoded ahead and sent to the twin; at least encoded, to know what that takes.
    fn beside(&mut self, transaction: &Transaction) -> (Duration, Option<Encoded>) {
        let started = Instant::now();
        let encoded = self.twin.as_mut().unwrap_or(&mut self.kernel).encode_ahead(transaction).expect("its sets exist");
        (started.elapsed(), self.twin.is_some().then_some(encoded))
    }

    fn commit_to_twin(&mut self, encoded: Option<&Encoded>) {
        if let (Some(twin), Some(encoded)) = (self.twin.as_mut(), encoded) {
            let started = Instant::now();
            twin.commit_encoded(encoded).expect("the twin takes what we send");
            self.times.floor += started.elapsed();
        }
    }
}

impl Kernel for Clocked {
    fn read(&mut self, family: Family, visit: &mut dyn FnMut(Seen)) -> Result<(), Error> {
        let started = Instant::now();
        let result = self.kernel.read(family, visit);
        self.times.kernel += started.elapsed();
        result
    }

    fn read_chains(
        &mut self,
        family: Family,
        chains: &mut dyn Iterator<Item = &(Table, ChainName)>,
        visit: &mut dyn FnMut(Seen),
    ) -> Result<(), Error> {
        let started = Instant::now();
        let result = self.kernel.read_chains(family, chains, visit);
        self.times.kernel += started.elapsed();
        result
    }

    fn commit(&mut self, transaction: &Transaction) -> Result<Committed, Error> {
        let began = Instant::now();
        let (encoding, encoded) = self.beside(transaction);
        self.turns += 1;
        let twin_first = self.turns.is_multiple_of(2);
        if twin_first {
            self.commit_to_twin(encoded.as_ref());
        }
        let started = Instant::now();
        let result = self.kernel.commit(transaction);
        let took = started.elapsed();
        if !twin_first {
            self.commit_to_twin(encoded.as_ref());
        }
        self.times.kernel += took;
        self.times.encoding += encoding;
        self.times.aside += began.elapsed().saturating_sub(took);
        result
    }
}

fn open() -> NftKernel {
    NftKernel::open().expect("nf_tables; run as root")
}

/// The smallest things one can ask of a table.
pub struct Floor {
    kernel: NftKernel,
    chain: ChainName,
}

impl Floor {
    /// Makes a chain that nothing leads to.
    pub fn new() -> Self {
        let mut floor = Self { kernel: open(), chain: "BENCH-FLOOR".into() };
        let chain = Op::AddChain { table: Table::Nat, chain: floor.chain.clone() };
        floor.commit(chain);
        floor
    }

    /// One rule with a verdict more, and the same rule deleted: how long each takes.
    pub fn add_and_delete(&mut self) -> (Duration, Duration) {
        self.add_to_and_delete_from(self.chain.clone())
    }

    /// The deletion of a rule by its handle in the chain that each Service has a rule in.
    pub fn delete_dispatch(&mut self) -> Duration {
        self.add_to_and_delete_from("KUBE-SERVICES".into()).1
    }

    fn add_to_and_delete_from(&mut self, chain: ChainName) -> (Duration, Duration) {
        let rule = Rule::new().then(Target::Accept);
        let table = Table::Nat;
        let (added, committed) = self.commit(Op::AddRule { table, chain: chain.clone(), place: Place::Head, rule });
        let (deleted, _) = self.commit(Op::DeleteRule { table, chain, handle: committed.handles[0] });
        settle();
        (added, deleted)
    }

    /// A dump of all rules that nobody looks at.
    pub fn dump(&mut self) -> Duration {
        let started = Instant::now();
        self.kernel.dump_unread(Family::Ipv4).expect("a dump");
        started.elapsed()
    }

    fn commit(&mut self, op: Op) -> (Duration, Committed) {
        let transaction = Transaction { family: Family::Ipv4, ops: vec![op] };
        let encoded = self.kernel.encode_ahead(&transaction).expect("its sets exist");
        let started = Instant::now();
        let committed = self.kernel.commit_encoded(&encoded).expect("the smallest transaction");
        (started.elapsed(), committed)
    }
}

/// Waits until the kernel has finished what it does behind a commit.
pub fn settle() {
    std::thread::sleep(SETTLED);
}
