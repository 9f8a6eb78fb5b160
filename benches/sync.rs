//! What the rules of many Services cost: a first load, one change, a restart, memory; beside each the floor, which
//! is what the kernel alone takes for it. Run with `make bench`; needs root. Prints tables and asserts nothing:
//! machines are noisy, so whole and floor are measured in turns and their ratio counts.
//!
//! Floors: of a first load, the same bytes encoded ahead and sent to another namespace, piece by piece in turns; of
//! a change, one rule with a verdict put into a chain that nothing leads to, in the same table (a change that
//! deletes adds the deletion of that rule); of a deletion, that of one rule of KUBE-SERVICES; of a restart, a dump that nobody looks at.

#[path = "clock/mod.rs"]
mod clock;
#[path = "ipvs/mod.rs"]
mod ipvs;
#[path = "../tests/netns/mod.rs"]
mod netns;
#[path = "process/mod.rs"]
mod process;
#[path = "../tests/world/mod.rs"]
mod world;

use std::sync::Arc;
use std::time::{Duration, Instant};

use clock::{Clocked, Floor, Times, settle};
use sluice::model::endpoint::SliceEndpoint;
use sluice::model::{Event, ObjectKey, State};
use sluice::net::Family;
use sluice::render::KernelFacts;
use sluice::serve::Metrics;
use sluice::sync::{FamilySync, Inputs, Summary};
use world::{config, endpoint, facts, key, service, slice};

/// As in the binary.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Services, and endpoints of each.
const SIZES: [(u32, u32); 5] = [(1_000, 2), (5_000, 2), (10_000, 2), (20_000, 2), (5_000, 50)];
const MEMORY: [(u32, u32); 3] = [(1_000, 2), (20_000, 2), (5_000, 50)];
/// How long the binary is watched doing nothing.
const IDLE: Duration = Duration::from_secs(5);
/// Repeated measurements give their median.
const REPEATS: u32 = 9;

struct Bench {
    kernel: Clocked,
    state: State,
    sync: FamilySync,
    size: (u32, u32),
}

/// One measurement.
#[derive(Clone, Copy)]
struct Measured {
    whole: Duration,
    floor: Duration,
    ours: Duration,
    summary: Summary,
}

impl Measured {
    fn ratio(&self) -> f64 {
        self.whole.as_secs_f64() / self.floor.as_secs_f64().max(1e-9)
    }
}

impl Bench {
    fn new(size: (u32, u32)) -> Self {
        Self { kernel: Clocked::open(), state: State::new("node-a"), sync: fresh_sync(), size }
    }

    /// From events, already decoded, to rules in force.
    fn measure(&mut self, events: Vec<Event>) -> Measured {
        self.kernel.times = Times::default();
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
        let (elapsed, times) = (started.elapsed(), self.kernel.times);
        Measured { whole: times.whole(elapsed), floor: times.floor, ours: times.ours(elapsed), summary }
    }

    /// The median of both, each taken in turns with the other.
    fn change(&mut self, what: &str, floor: &mut dyn FnMut() -> Duration, events: &dyn Fn(u32) -> Vec<Event>) {
        let (mut runs, mut floors) = (Vec::new(), Vec::new());
        for run in 0..REPEATS {
            settle();
            floors.push(floor());
            settle();
            runs.push(self.measure(events(run)));
        }
        runs.sort_by_key(|measured| measured.whole);
        floors.sort();
        let middle = REPEATS as usize / 2;
        let mut ours: Vec<_> = runs.iter().map(|measured| measured.ours).collect();
        ours.sort();
        self.print(what, Measured { floor: floors[middle], ours: ours[middle], ..runs[middle] });
    }

    fn print(&self, what: &str, measured: Measured) {
        let millis = |d: Duration| d.as_secs_f64() * 1e3;
        let Summary { operations, transactions, bytes, .. } = measured.summary;
        println!(
            "| {} × {} | {what} | {:.2} | {:.2} | **{:.2}** | {:.3} | {operations} | {transactions} | {} |",
            self.size.0,
            self.size.1,
            millis(measured.whole),
            millis(measured.floor),
            measured.ratio(),
            millis(measured.ours),
            bytes / 1024,
        );
    }

    fn first_load(&mut self) -> Measured {
        let (services, endpoints) = self.size;
        let slices = (0..services).map(|i| (slice_key(i), slice(&name(i), some_endpoints(i, endpoints))));
        let services = (0..services).map(|i| (name(i), service(cluster_ip(i))));
        let events = vec![Event::Slices(slices.collect()), Event::Services(services.collect())];
        self.kernel.with_twin();
        let measured = self.measure(events);
        self.kernel.without_twin();
        measured
    }

    fn changes(&mut self) {
        let (services, endpoints) = self.size;
        let mut floor = Floor::new();
        let one =
            move |run: u32, count| vec![Event::Slice(slice_key(services / 2 + run), Some(some_slice(services / 2 + run, count)))];
        self.change("one endpoint more", &mut || floor.add_and_delete().0, &|run| one(run, endpoints + 1));
        let both = |(added, deleted): (Duration, Duration)| added + deleted;
        self.change("one endpoint less", &mut || both(floor.add_and_delete()), &|run| one(run, endpoints));
        let new = |run: u32| {
            let i = services + run;
            vec![
                Event::Slice(slice_key(i), Some(some_slice(i, endpoints))),
                Event::Service(name(i), Some(service(cluster_ip(i)))),
            ]
        };
        self.change("a Service added", &mut || floor.add_and_delete().0, &new);
        let gone = |run: u32| vec![Event::Service(name(services + run), None)];
        self.change("a Service deleted", &mut || floor.delete_dispatch(), &gone);
        self.restart(&mut floor);
    }

    fn restart(&mut self, floor: &mut Floor) {
        let floor = floor.dump();
        self.sync = fresh_sync();
        let measured = self.measure(Vec::new());
        self.print("restart, all right", Measured { floor, ..measured });
    }
}

fn fresh_sync() -> FamilySync {
    FamilySync::new(Family::Ipv4, Arc::new(Metrics::new()))
}

fn name(i: u32) -> ObjectKey {
    key("bench", &format!("web-{i}"))
}

fn slice_key(i: u32) -> ObjectKey {
    key("bench", &format!("web-{i}-x"))
}

fn cluster_ip(i: u32) -> std::net::IpAddr {
    std::net::Ipv4Addr::from(0x0a60_0000 + i).into()
}

fn some_endpoints(i: u32, count: u32) -> Vec<SliceEndpoint> {
    (0..count).map(|k| endpoint(std::net::Ipv4Addr::from(0x0a80_0000 + i * 64 + k).into())).collect()
}

fn some_slice(i: u32, count: u32) -> sluice::model::EndpointSlice {
    slice(&name(i), some_endpoints(i, count))
}

/// Of the machine: what docs/performance.md says beside the figures.
fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!("Linux {}, {cores} × {}", read("/proc/sys/kernel/osrelease").trim(), model.trim_start_matches([' ', '\t', ':']))
}

/// Small first loads are repeated, each in a namespace of its own; the last one is worked on.
fn run(size: (u32, u32)) {
    let repeats = (40_000 / (size.0 * size.1)).clamp(1, 5) | 1;
    let (give, take) = std::sync::mpsc::channel();
    for _ in 1..repeats {
        let give = give.clone();
        netns::in_namespace(move || give.send(Bench::new(size).first_load()).expect("somebody waits"));
    }
    netns::in_namespace(move || {
        let mut bench = Bench::new(size);
        let last = bench.first_load();
        let mut loads: Vec<_> = take.try_iter().chain([last]).collect();
        loads.sort_by(|a, b| a.ratio().total_cmp(&b.ratio()));
        bench.print("from empty", loads[loads.len() / 2]);
        bench.changes();
    });
}

fn iptables() {
    println!("## iptables mode\n\n{}; times in ms\n", machine());
    println!(
        "| Services × endpoints | what | whole | floor | whole / floor | ours, event to message | operations | transactions | KiB |"
    );
    println!("|---|---|---:|---:|---:|---:|---:|---:|---:|");
    SIZES.into_iter().for_each(run);
    println!("\n| Services × endpoints | steady memory, MB | peak, MB | CPU when idle, % |\n|---|---:|---:|---:|");
    for (services, endpoints) in MEMORY {
        let sample = process::Sample { services, endpoints, dual_stack: false, arguments: &[], idle: IDLE };
        netns::in_namespace(move || println!("| {sample} | {} |", process::run(&sample)));
    }
}

/// Everything, or what is named: `cargo bench -- ipvs`.
fn main() {
    let named: Vec<_> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    if named.iter().any(|name| name == ipvs::IN_MACHINE) {
        return ipvs::in_machine();
    }
    let parts: [(&str, fn()); 2] = [("iptables", iptables), ("ipvs", ipvs::run)];
    for (_, part) in parts.iter().filter(|(name, _)| named.is_empty() || named.iter().any(|other| other == name)) {
        part();
    }
}
