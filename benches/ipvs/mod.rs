//! What ipvs mode costs. On the machine itself, with a fake for the kernel: user space alone. In the virtual machine, whose
//! kernel has IPVS: how many messages go in how many sends, and how much is added to what the kernel takes anyway. It is
//! emulated, ten to twenty times slower than a machine: its times count for their ratio alone.

mod clock;

use std::net::Ipv4Addr;
use std::process::Command;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use sluice::config::{Mode, RuleConfig};
use sluice::model::{Event, State};
use sluice::netlink::link::Style;
use sluice::netlink::{Balancer as _, NodeBalancer};
use sluice::ruleset::NodeOp;
use sluice::sync::{FamilySync, Inputs, Summary};

use crate::clock::settle;
use crate::process::Sample;
use crate::world::{config, facts, service, slice};
use crate::{cluster_ip, fresh_sync, name, netns, process, slice_key, some_endpoints, some_slice};
use clock::{Machine, Times, set_loopback_up};

/// Services, with two endpoints each.
const SIZES: [u32; 3] = [100, 10_000, 20_000];
/// Local addresses alone.
const ADDRESSES: [u32; 4] = [1_000, 5_000, 10_000, 20_000];
const ENDPOINTS: u32 = 2;
/// Repeated measurements give their median.
const REPEATS: u32 = 9;
/// Services with load balancers whose source ranges fill one set, and the ranges of each; so many before it grows.
const RANGED: (u32, u32) = (70, 1_000);
const BEFORE: u32 = 65;

/// Of the binary, with audits in the time that it is watched.
const MEMORY: [Sample; 3] = [Sample { services: 1_000, ..LARGE }, LARGE, Sample { dual_stack: true, ..LARGE }];
const LARGE: Sample = Sample {
    services: 20_000,
    endpoints: ENDPOINTS,
    dual_stack: false,
    arguments: &["--mode", "ipvs", "--ipvs-local-addresses", "routes"],
    idle: Duration::from_mins(1),
};

/// How the binary runs itself in the virtual machine.
pub const IN_MACHINE: &str = "in-machine";
/// What vmrun ends with where there is no machine to start.
const NO_MACHINE: i32 = 125;

struct Bench {
    machine: Machine,
    config: RuleConfig,
    state: State,
    sync: FamilySync,
    label: String,
}

#[derive(Clone, Copy)]
struct Measured {
    elapsed: Duration,
    times: Times,
    summary: Summary,
}

impl Measured {
    fn whole(&self) -> Duration {
        self.times.whole(self.elapsed)
    }

    fn ours(&self) -> Duration {
        self.times.ours(self.elapsed)
    }
}

impl Bench {
    fn new(machine: Machine, label: String) -> Self {
        let sync = fresh_sync().with_servers(Box::new(machine.clone()));
        let config = RuleConfig { mode: Mode::Ipvs, ..config() };
        Self { machine, config, state: State::new("node-a"), sync, label }
    }

    /// From events, already decoded, to what they ask for in force.
    fn measure(&mut self, events: Vec<Event>) -> Measured {
        self.machine.take_times();
        let started = Instant::now();
        for event in events {
            let changes = self.state.apply(event);
            self.sync.note(&changes);
        }
        let inputs = Inputs { config: &self.config, facts: facts(), state: &self.state };
        let summary = self.sync.sync(&mut self.machine, inputs).expect("a sync");
        assert_eq!(self.sync.servers().and_then(|servers| servers.refusals().next()), None, "the kernel takes everything");
        Measured { elapsed: started.elapsed(), times: self.machine.take_times(), summary }
    }

    fn run(&mut self, what: &str, events: Vec<Event>) -> Measured {
        let measured = self.measure(events);
        self.print(what, &mut [measured]);
        measured
    }

    fn change(&mut self, what: &str, events: &dyn Fn(u32) -> Vec<Event>) {
        let measure = |run| {
            settle();
            self.measure(events(run))
        };
        let mut runs: Vec<_> = (0..REPEATS).map(measure).collect();
        self.print(what, &mut runs);
    }

    /// The median of each.
    fn print(&self, what: &str, runs: &mut [Measured]) {
        let mut median = |pick: &dyn Fn(&Measured) -> Duration| {
            runs.sort_by_key(|run| pick(run));
            pick(&runs[runs.len() / 2]).as_secs_f64() * 1e3
        };
        let (whole, floor, ours) = (median(&Measured::whole), median(&|run| run.times.floor), median(&Measured::ours));
        let Summary { operations, transactions, bytes, .. } = runs[0].summary;
        let label = &self.label;
        let messages = runs[0].times.messages;
        if floor > 0.0 {
            let ratio = whole / floor;
            println!(
                "| {label} | {what} | {whole:.2} | {floor:.2} | **{ratio:.2}** | {ours:.3} | {operations} | {messages} | \
                 {transactions} | {bytes} |"
            );
        } else {
            println!("| {label} | {what} | {ours:.3} | {operations} |");
        }
    }

    /// Everything from empty, changes, a restart and an audit.
    fn all(&mut self, services: u32) {
        self.first_load(services);
        self.changes(services);
        self.restart();
        self.audit();
    }

    fn first_load(&mut self, services: u32) {
        let slices = (0..services).map(|i| (slice_key(i), slice(&name(i), some_endpoints(i, ENDPOINTS))));
        let all = (0..services).map(|i| (name(i), service(cluster_ip(i))));
        self.run("from empty", vec![Event::Slices(slices.collect()), Event::Services(all.collect())]);
    }

    fn changes(&mut self, services: u32) {
        let one =
            move |run: u32, count| vec![Event::Slice(slice_key(services / 2 + run), Some(some_slice(services / 2 + run, count)))];
        self.change("one endpoint more", &|run| one(run, ENDPOINTS + 1));
        self.change("one endpoint less", &|run| one(run, ENDPOINTS));
        self.change("a Service added", &|run| {
            let i = services + run;
            vec![
                Event::Slice(slice_key(i), Some(some_slice(i, ENDPOINTS))),
                Event::Service(name(i), Some(service(cluster_ip(i)))),
            ]
        });
        self.change("a Service deleted", &|run| vec![Event::Service(name(services + run), None)]);
    }

    fn restart(&mut self) {
        self.sync = fresh_sync().with_servers(Box::new(self.machine.clone()));
        self.run("restart, all right", Vec::new());
    }

    fn audit(&mut self) {
        let config = self.config.clone();
        let mut runs = Vec::new();
        for _ in 0..REPEATS {
            self.machine.take_times();
            let started = Instant::now();
            let found = self.sync.servers_mut().expect("ipvs mode").audit(&config).expect("an audit");
            let elapsed = started.elapsed();
            assert_eq!(found, 0, "nobody changed anything");
            runs.push(Measured { elapsed, times: self.machine.take_times(), summary: Summary::default() });
        }
        self.print("an audit", &mut runs);
    }
}

/// Measures all there is to measure in this mode.
pub fn run() {
    println!("\n## ipvs mode\n\nUser space alone, on {}; times in ms\n", crate::machine());
    println!("| Services × endpoints | what | ours, event to message | operations |\n|---|---|---:|---:|");
    for services in SIZES {
        Bench::new(Machine::fake(), format!("{services} × {ENDPOINTS}")).all(services);
    }
    run_in_machine();
}

/// What needs IPVS in the virtual machine, where there is one.
fn run_in_machine() {
    let vmrun = concat!(env!("CARGO_MANIFEST_DIR"), "/e2e/vmrun");
    let scratch = std::env::temp_dir().join(format!("sluice-bench-{}", std::process::id()));
    std::fs::create_dir_all(scratch.join("share")).expect("a temporary folder");
    let program = std::env::current_exe().expect("it runs");
    let mut command = Command::new(vmrun);
    command.args(["--timeout", "900", "--memory", "4096"]).arg("--share").arg(scratch.join("share"));
    command.arg("--log").arg(scratch.join("console.log")).arg("--").arg(program).arg(IN_MACHINE);
    let status = command.status().expect("a shell script");
    std::fs::remove_dir_all(&scratch).expect("our own folder");
    if status.code() == Some(NO_MACHINE) {
        println!("\nno virtual machine here, so what the kernel takes is not measured (make install makes one ready)");
    } else if !status.success() {
        println!("\nin the virtual machine: {status}");
    }
}

/// What is measured in there.
pub fn in_machine() {
    println!("\nIn a virtual machine, {}, emulated; times in ms\n", crate::machine());
    println!(
        "| Services × endpoints | what | whole | floor | whole / floor | ours, event to message | operations | messages | sends | bytes |"
    );
    println!("|---|---|---:|---:|---:|---:|---:|---:|---:|---:|");
    for services in SIZES {
        netns::in_namespace(move || Bench::new(Machine::real(Style::Routes), format!("{services} × {ENDPOINTS}")).all(services));
    }
    netns::in_namespace(one_set);
    addresses();
    memory();
}

/// One set with more members than sets take by default.
fn one_set() {
    let (services, nets) = RANGED;
    let restricted = |i: u32| {
        let mut service = service(cluster_ip(i));
        let addresses = service.families.v4.as_mut().expect("it has IPv4");
        addresses.load_balancer_vips = vec![Ipv4Addr::from(0xc633_6400 + i).into()];
        let range = |k| IpNet::new(Ipv4Addr::from(0x1400_0000 + k * 256).into(), 24).expect("a length of IPv4");
        addresses.source_ranges = (0..nets).map(range).collect();
        (name(i), Some(service))
    };
    let all = |range: std::ops::Range<u32>| range.map(restricted).map(|(key, service)| Event::Service(key, service)).collect();
    let mut bench = Bench::new(Machine::real(Style::Routes), format!("{} members of one set", services * nets));
    bench.run(&format!("the first {}", BEFORE * nets), all(0..BEFORE));
    bench.run("the rest, the set replaced", all(BEFORE..services));
    bench.restart();
}

/// What it takes to make so many addresses local, by either style.
fn addresses() {
    println!("\n| local addresses | on kube-ipvs0 | as routes |\n|---|---:|---:|");
    for count in ADDRESSES {
        netns::in_namespace(move || {
            let [device, routes] = [Style::Device, Style::Routes].map(|style| make_local(count, style).as_secs_f64() * 1e3);
            println!("| {count} | {device:.0} | {routes:.0} |");
        });
    }
}

fn make_local(count: u32, style: Style) -> Duration {
    let mut balancer = NodeBalancer::open(style).expect("ipset");
    balancer.apply(&[NodeOp::MakeDevice]).expect("the module dummy");
    // Of either style its own: an address that is local already is no work.
    let first = if style == Style::Device { 0x0a60_0000 } else { 0x0a70_0000 };
    let ops: Vec<_> = (0..count).map(|i| NodeOp::AddAddress(Ipv4Addr::from(first + i).into())).collect();
    let started = Instant::now();
    let sent = balancer.apply(&ops).expect("addresses");
    let took = started.elapsed();
    assert!(sent.refused.is_empty(), "all of them: {:?}", sent.refused.first());
    took
}

/// Of the binary, which does not depend on how fast a machine is, and what it does when idle, which does.
fn memory() {
    println!("\n| Services × endpoints, families | steady memory, MB | peak, MB | CPU when idle, % |\n|---|---:|---:|---:|");
    for sample in MEMORY {
        netns::in_namespace(move || {
            set_loopback_up();
            println!("| {sample} | {} |", process::run(&sample));
        });
    }
}
