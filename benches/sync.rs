//! What the rules of N Services cost: a first load, one change, a restart, each with the part of the time that is the
//! kernel's (and the codec's, which turns the operations into messages). Run with `make bench`; needs root. Prints a
//! table and asserts nothing: machines are noisy, so compare the ratios within one run.

#[path = "../tests/netns/mod.rs"]
mod netns;
#[path = "../tests/world/mod.rs"]
mod world;

use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice::model::endpoint::SliceEndpoint;
use sluice::model::{Event, ObjectKey, State};
use sluice::net::Family;
use sluice::netlink::{Committed, Error, Kernel, NftKernel, Seen};
use sluice::render::KernelFacts;
use sluice::ruleset::{ChainName, Table, Transaction};
use sluice::serve::Metrics;
use sluice::sync::{FamilySync, Inputs, Summary};
use world::{config, endpoint, facts, key, service, slice};

const SIZES: [u32; 4] = [1_000, 5_000, 10_000, 20_000];
const ENDPOINTS: u32 = 2;
/// Repeated measurements give their median.
const REPEATS: usize = 15;

/// The real kernel with a stop-watch.
struct Timed {
    kernel: NftKernel,
    spent: Duration,
}

impl Timed {
    fn clocked<T>(&mut self, work: impl FnOnce(&mut NftKernel) -> T) -> T {
        let started = Instant::now();
        let result = work(&mut self.kernel);
        self.spent += started.elapsed();
        result
    }
}

impl Kernel for Timed {
    fn read(&mut self, family: Family, visit: &mut dyn FnMut(Seen)) -> Result<(), Error> {
        self.clocked(|kernel| kernel.read(family, visit))
    }

    fn read_chains(
        &mut self,
        family: Family,
        chains: &mut dyn Iterator<Item = &(Table, ChainName)>,
        visit: &mut dyn FnMut(Seen),
    ) -> Result<(), Error> {
        self.clocked(|kernel| kernel.read_chains(family, chains, visit))
    }

    fn commit(&mut self, transaction: &Transaction) -> Result<Committed, Error> {
        self.clocked(|kernel| kernel.commit(transaction))
    }
}

struct Bench {
    kernel: Timed,
    state: State,
    sync: FamilySync,
}

/// One measurement.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Spent {
    whole: Duration,
    kernel: Duration,
}

impl Bench {
    fn new() -> Self {
        let kernel = Timed { kernel: NftKernel::open().expect("nf_tables; run as root"), spent: Duration::ZERO };
        Self { kernel, state: State::new("node-a"), sync: fresh_sync() }
    }

    /// From events, already decoded, to rules in force.
    fn measure(&mut self, events: Vec<Event>) -> (Spent, Summary) {
        self.kernel.spent = Duration::ZERO;
        let started = Instant::now();
        for event in events {
            let changes = self.state.apply(event);
            self.sync.note(&changes);
        }
        let config = config();
        // The namespace has no nfacct objects, and a rule more or less does not matter.
        let facts = KernelFacts { nfacct: false, ..facts() };
        let inputs = Inputs { config: &config, facts, state: &self.state };
        let summary = self.sync.sync(&mut self.kernel, inputs).expect("a sync");
        (Spent { whole: started.elapsed(), kernel: self.kernel.spent }, summary)
    }

    fn median(&mut self, mut events: impl FnMut(usize) -> Vec<Event>) -> (Spent, Summary) {
        let mut runs: Vec<_> = (0..REPEATS).map(|run| self.measure(events(run))).collect();
        runs.sort_by_key(|(spent, _)| *spent);
        runs[REPEATS / 2]
    }
}

fn fresh_sync() -> FamilySync {
    FamilySync::new(Family::Ipv4, Arc::new(Metrics::new()))
}

fn name(i: u32) -> ObjectKey {
    key("bench", &format!("web-{i}"))
}

fn endpoints(i: u32, count: u32) -> Vec<SliceEndpoint> {
    (0..count).map(|k| endpoint(std::net::Ipv4Addr::from(0x0a80_0000 + i * 8 + k).into())).collect()
}

fn slice_event(i: u32, count: u32) -> Event {
    Event::Slice(key("bench", &format!("web-{i}-x")), Some(slice(&name(i), endpoints(i, count))))
}

fn service_event(i: u32) -> Event {
    Event::Service(name(i), Some(service(std::net::Ipv4Addr::from(0x0a60_0000 + i).into())))
}

fn print(size: u32, what: &str, (spent, summary): (Spent, Summary)) {
    let millis = |d: Duration| d.as_secs_f64() * 1e3;
    let ours = spent.whole.saturating_sub(spent.kernel);
    println!(
        "{size:>6} {what:<22} {:>9.2} {:>9.2} {:>9.3} {:>7.2} {:>7} {:>4} {:>9}",
        millis(spent.whole),
        millis(spent.kernel),
        millis(ours),
        spent.whole.as_secs_f64() / spent.kernel.as_secs_f64().max(1e-9),
        summary.operations,
        summary.transactions,
        summary.bytes / 1024,
    );
}

fn peak_memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.unwrap_or_default().trim().to_owned()
}

fn run(size: u32) {
    let mut bench = Bench::new();
    let mut events: Vec<_> = (0..size).map(|i| slice_event(i, ENDPOINTS)).collect();
    events.extend((0..size).map(service_event));
    print(size, "first load", bench.measure(events));
    print(size, "one endpoint more", bench.median(|run| vec![slice_event(size / 2 + u32::try_from(run).expect("small"), 3)]));
    print(size, "one endpoint less", bench.median(|run| vec![slice_event(size / 2 + u32::try_from(run).expect("small"), 2)]));
    let fresh = |run: usize| size + u32::try_from(run).expect("small");
    print(size, "a service added", bench.median(|run| vec![slice_event(fresh(run), 2), service_event(fresh(run))]));
    print(size, "a service deleted", bench.median(|run| vec![Event::Service(name(fresh(run)), None)]));
    bench.sync = fresh_sync();
    print(size, "restart, all right", bench.measure(Vec::new()));
}

fn main() {
    println!("times in ms; kernel: with encoding; ours: the rest; ops, transactions, KiB sent");
    println!(
        "{:>6} {:<22} {:>9} {:>9} {:>9} {:>7} {:>7} {:>4} {:>9}",
        "size", "what", "whole", "kernel", "ours", "ratio", "ops", "tx", "KiB"
    );
    for size in SIZES {
        netns::in_namespace(move || run(size));
        println!("{size:>6} peak memory of this process so far: {}", peak_memory());
    }
}
