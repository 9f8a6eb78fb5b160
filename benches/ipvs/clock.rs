//! The kernel's rules, virtual servers, sets and addresses with a stop-watch, and beside them a twin in a namespace of
//! its own, which is sent and asked the same in the same moments: what it takes is the floor.

use std::net::IpAddr;
use std::process::Command;
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use sluice::net::Family;
use sluice::netlink::fake::FakeKernel;
use sluice::netlink::fake::balancer::FakeBalancer;
use sluice::netlink::link::Style;
use sluice::netlink::{self, Balancer, Committed, Error, Kernel, NftKernel, NodeBalancer, Seen, Sent};
use sluice::ruleset::{
    ChainName, Member, NodeOp, RealServer, SetHeader, SetName, Table, Transaction, VirtualAddress, VirtualServer,
};

use crate::netns::in_namespace;

/// What a measurement took, in parts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Times {
    /// The kernel's, for what it was asked by us; with our encoding, and our reading of its answers.
    kernel: Duration,
    /// Turning operations into bytes, which is part of `kernel`; of the few rules it is not told apart.
    encoding: Duration,
    /// The twin's, without the encoding. What it answers is read and dropped.
    pub floor: Duration,
    /// What measuring itself took, to be left out of the whole.
    aside: Duration,
    pub messages: usize,
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

/// What is programmed, shared by the sync and whoever measures it.
#[derive(Clone)]
pub struct Machine(Arc<Mutex<Inner>>);

struct Inner {
    own: Side,
    twin: Option<Side>,
    style: Style,
    turns: usize,
    times: Times,
}

struct Side {
    rules: Box<dyn Kernel>,
    balancer: Box<dyn Balancer>,
}

impl Side {
    /// Those of the thread's namespace.
    fn real(style: Style) -> Self {
        set_loopback_up();
        let mut balancer = NodeBalancer::open(style).expect("ipset; run as root");
        balancer.servers(Family::Ipv4).expect("IPVS, whose socket is opened here, in this namespace");
        Self { rules: Box::new(NftKernel::open().expect("nf_tables; run as root")), balancer: Box::new(balancer) }
    }
}

/// In the thread's namespace. Where no address is local, the kernel takes no real servers (EINVAL).
pub fn set_loopback_up() {
    let status = Command::new("ip").args(["link", "set", "lo", "up"]).status();
    assert!(status.is_ok_and(|status| status.success()), "iproute2");
}

impl Machine {
    /// The kernel of the thread's namespace, and one of another namespace beside it.
    pub fn real(style: Style) -> Self {
        let (give, take) = mpsc::channel();
        // The namespace lives as long as the sockets in it.
        in_namespace(move || give.send(Side::real(style)).expect("somebody waits"));
        Self::of(Side::real(style), take.recv().ok(), style)
    }

    /// No kernel at all: for what user space takes.
    pub fn fake() -> Self {
        let side = Side { rules: Box::new(FakeKernel::new()), balancer: Box::new(FakeBalancer::new()) };
        Self::of(side, None, Style::Device)
    }

    fn of(own: Side, twin: Option<Side>, style: Style) -> Self {
        Self(Arc::new(Mutex::new(Inner { own, twin, style, turns: 0, times: Times::default() })))
    }

    /// What was measured since this was last asked.
    pub fn take_times(&self) -> Times {
        std::mem::take(&mut self.lock().times)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("nobody panics inside")
    }
}

impl Inner {
    /// The same on both sides, the twin's turn before or after. `encoding` is what a part of it takes that is ours.
    fn both<T>(&mut self, encoding: Duration, act: &mut dyn FnMut(&mut Side) -> T) -> T {
        let began = Instant::now();
        self.turns += 1;
        let twin_first = self.turns.is_multiple_of(2);
        if twin_first {
            self.on_twin(encoding, act);
        }
        let started = Instant::now();
        let result = act(&mut self.own);
        let took = started.elapsed();
        if !twin_first {
            self.on_twin(encoding, act);
        }
        self.times.kernel += took;
        self.times.encoding += encoding;
        self.times.aside += began.elapsed().saturating_sub(took);
        result
    }

    fn on_twin<T>(&mut self, encoding: Duration, act: &mut dyn FnMut(&mut Side) -> T) {
        if let Some(twin) = &mut self.twin {
            let started = Instant::now();
            act(twin);
            self.times.floor += started.elapsed().saturating_sub(encoding);
        }
    }
}

impl Kernel for Machine {
    fn read(&mut self, family: Family, visit: &mut dyn FnMut(Seen)) -> Result<(), Error> {
        let mut inner = self.lock();
        let started = Instant::now();
        let result = inner.own.rules.read(family, visit);
        let took = started.elapsed();
        inner.times.kernel += took;
        inner.on_twin(Duration::ZERO, &mut |side| side.rules.read(family, &mut drop).is_ok());
        inner.times.aside += started.elapsed().saturating_sub(took);
        result
    }

    fn read_chains(
        &mut self,
        family: Family,
        chains: &mut dyn Iterator<Item = &(Table, ChainName)>,
        visit: &mut dyn FnMut(Seen),
    ) -> Result<(), Error> {
        self.lock().own.rules.read_chains(family, chains, visit)
    }

    fn commit(&mut self, transaction: &Transaction) -> Result<Committed, Error> {
        let mut inner = self.lock();
        inner.times.messages += transaction.len();
        inner.both(Duration::ZERO, &mut |side| side.rules.commit(transaction))
    }
}

impl Balancer for Machine {
    fn apply(&mut self, ops: &[NodeOp]) -> Result<Sent, Error> {
        let mut inner = self.lock();
        let started = Instant::now();
        netlink::encode(ops, inner.style);
        let encoding = started.elapsed();
        inner.times.aside += encoding;
        let sent = inner.both(encoding, &mut |side| side.balancer.apply(ops))?;
        inner.times.messages += sent.messages;
        Ok(sent)
    }

    fn servers(&mut self, family: Family) -> Result<Vec<(VirtualAddress, VirtualServer)>, Error> {
        self.lock().both(Duration::ZERO, &mut |side| side.balancer.servers(family))
    }

    fn servers_at_a_glance(&mut self, family: Family) -> Result<Vec<(VirtualAddress, VirtualServer)>, Error> {
        self.lock().both(Duration::ZERO, &mut |side| side.balancer.servers_at_a_glance(family))
    }

    fn real_servers(&mut self, of: &VirtualAddress) -> Result<Vec<RealServer>, Error> {
        self.lock().both(Duration::ZERO, &mut |side| side.balancer.real_servers(of))
    }

    fn sets(&mut self) -> Result<Vec<SetHeader>, Error> {
        self.lock().both(Duration::ZERO, &mut |side| side.balancer.sets())
    }

    fn members(&mut self, set: &SetName) -> Result<Vec<Member>, Error> {
        self.lock().both(Duration::ZERO, &mut |side| side.balancer.members(set))
    }

    fn addresses(&mut self, family: Family) -> Result<Option<Vec<IpAddr>>, Error> {
        self.lock().both(Duration::ZERO, &mut |side| side.balancer.addresses(family))
    }
}
