//! Random walks: histories of Services, slices, the node and the configuration, with refused transactions, lost answers,
//! restarts and others' changes mixed in. After each step the rules are what a full render says.
//!
//! `SLUICE_WALK=seed` walks that seed alone; `SLUICE_WALK_STEPS` says how far.

#[path = "walk/faults.rs"]
mod faults;
#[path = "walk/foreign.rs"]
mod foreign;
#[path = "walk/history.rs"]
mod history;
#[path = "walk/judge.rs"]
mod judge;
mod netns;
#[path = "support/random.rs"]
mod random;

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use faults::{Fault, Faulty};
use foreign::Act;
use judge::{ChainKey, Flags};
use random::Random;
use sluice::model::{Event, ObjectKey, State};
use sluice::net::{Family, PerFamily};
use sluice::netlink::fake::FakeKernel;
use sluice::netlink::nfacct::Counters;
use sluice::netlink::{Errno, Kernel, NftKernel};
use sluice::render::names::{NFACCT_INVALID, NFACCT_LOCALHOST};
use sluice::ruleset::Touched;
use sluice::serve::Metrics;
use sluice::sync::{FamilySync, Inputs};

/// So many tries in a row fail only where something is wrong that no try mends.
const TRIES: u32 = 8;

/// A node, and what the proxy on it knows.
struct Walk<K> {
    seed: u64,
    steps: u32,
    random: Random,
    kernel: K,
    state: State,
    flags: Flags,
    syncs: PerFamily<FamilySync>,
    fault: Option<Fault>,
    fault_after: u8,
    metrics: Arc<Metrics>,
    families: &'static [Family],
    /// What was done in this step, to be told when it fails.
    story: Vec<Did>,
    /// How often each thing happened, so that a walk that avoids them is noticed.
    counts: Counts,
}

/// Something that happened. Put into words only when it has to be told.
#[derive(Debug)]
#[expect(dead_code, reason = "told by its Debug")]
enum Did {
    Restart,
    Flags(Flags),
    Change(Event),
    Fault { fault: Option<Fault>, after_commits: u8 },
    Others { family: Family, told_late: bool, act: Act },
    Failed(Family, String),
}

#[derive(Debug, Default)]
struct Counts {
    acts: u32,
    faults: u32,
    restarts: u32,
}

impl<K: Kernel> Walk<K> {
    fn new(seed: u64, families: &'static [Family], kernel: K) -> Self {
        let mut random = Random::new(seed);
        let flags = history::config(&mut random);
        let metrics = Arc::new(Metrics::new());
        let syncs = PerFamily::from_fn(|family| FamilySync::new(family, Arc::clone(&metrics)));
        let state = State::new(history::NODE);
        let (story, counts) = (Vec::new(), Counts::default());
        Self {
            seed,
            steps: 0,
            random,
            kernel,
            state,
            flags,
            syncs,
            fault: None,
            fault_after: 0,
            metrics,
            families,
            story,
            counts,
        }
    }

    /// One thing or several happen, and the sync does what is due then.
    fn step(&mut self) {
        self.steps += 1;
        self.story.clear();
        if self.random.chance(60) {
            self.flags = history::config(&mut self.random);
            self.story.push(Did::Flags(self.flags.clone()));
            self.restart();
        } else if self.random.chance(20) {
            self.restart();
        }
        if !self.random.chance(10) {
            self.change();
        }
        if self.random.chance(8) {
            self.fault = Some(Fault::any(&mut self.random));
            self.fault_after = u8::from(self.random.chance(2));
            self.counts.faults += 1;
            self.story.push(Did::Fault { fault: self.fault, after_commits: self.fault_after });
        }
        if self.random.chance(6) {
            let of = if self.random.chance(2) { self.families.first() } else { self.families.last() };
            self.interfere(*of.expect("a family"));
        }
        for &family in self.families {
            self.settle(family);
        }
        self.fault = None;
    }

    fn restart(&mut self) {
        self.story.push(Did::Restart);
        self.syncs = PerFamily::from_fn(|family| FamilySync::new(family, Arc::clone(&self.metrics)));
        self.counts.restarts += 1;
    }

    fn change(&mut self) {
        for event in history::events(&mut self.random) {
            self.story.push(Did::Change(event.clone()));
            let changes = self.state.apply(event);
            for family in Family::ALL {
                self.syncs[family].note(&changes);
            }
        }
    }

    /// Somebody changes our rules. The notification may come after a sync, which then meets what it does not expect.
    fn interfere(&mut self, family: Family) {
        let have = judge::read(&mut self.kernel, family);
        let Some(act) = foreign::act(&have, &mut self.random) else { return };
        if act.commit(family, &mut self.kernel).is_err() {
            return; // somebody's mistake, refused
        }
        self.counts.acts += 1;
        let late = self.random.chance(3);
        if late && self.syncs[family].is_due() {
            self.sync(family);
        }
        let touched = if self.random.chance(4) { Touched::everything() } else { act.touched.clone() };
        self.syncs[family].drifted(&touched);
        self.story.push(Did::Others { family, told_late: late, act });
    }

    fn sync(&mut self, family: Family) {
        let inputs = Inputs { config: &self.flags.0, facts: self.flags.1, state: &self.state };
        let mut kernel = Faulty { kernel: &mut self.kernel, fault: &mut self.fault, after: &mut self.fault_after };
        if let Err(error) = self.syncs[family].sync(&mut kernel, inputs) {
            self.story.push(Did::Failed(family, error.to_string()));
        }
    }

    /// Syncs until nothing is due. What went wrong once does not go wrong for ever.
    fn settle(&mut self, family: Family) {
        for _ in 0..TRIES {
            if self.syncs[family].is_due() {
                self.sync(family);
            }
        }
    }

    fn wrong(&mut self) -> Vec<String> {
        let mut wrong = Vec::new();
        for &family in self.families {
            let have = judge::read(&mut self.kernel, family);
            let of_family = judge::differences(&self.flags, (&self.state, family), &have, &[]);
            wrong.extend(of_family.into_iter().map(|difference| format!("{family}: {difference}")));
            if self.syncs[family].is_due() {
                wrong.push(format!("{family}: something is still due"));
            }
        }
        wrong
    }

    /// Walks, looking at the result every so many steps.
    fn walk(&mut self, steps: u32, look_every: u32) {
        for _ in 0..steps {
            self.step();
            if self.steps.is_multiple_of(look_every) {
                self.assert_as_rendered();
            }
        }
    }

    fn assert_as_rendered(&mut self) {
        let wrong = self.wrong();
        assert!(wrong.is_empty(), "{}:\n{}\nafter:\n{:#?}", self.place(), wrong.join("\n"), self.story);
    }

    fn place(&self) -> String {
        format!("seed {seed}, step {} (SLUICE_WALK={seed} replays it)", self.steps, seed = self.seed)
    }
}

/// The seeds of a test, or the one to replay.
fn seeds(range: std::ops::Range<u64>) -> Vec<u64> {
    let one = std::env::var("SLUICE_WALK").ok().and_then(|seed| seed.parse().ok());
    one.map_or_else(|| range.collect(), |seed| vec![seed])
}

fn steps(usual: u32) -> u32 {
    std::env::var("SLUICE_WALK_STEPS").ok().and_then(|steps| steps.parse().ok()).unwrap_or(usual)
}

/// Families are synced apart: most walks have one of them, and get further.
const FAMILIES: [&[Family]; 3] = [&[Family::Ipv4], &[Family::Ipv6], &Family::ALL];

fn walk_in_the_fake(range: std::ops::Range<u64>) {
    let start = Instant::now();
    let mut total = 0;
    for seed in seeds(range) {
        let mut walk = Walk::new(seed, FAMILIES[usize::try_from(seed % 3).expect("below 3")], FakeKernel::new());
        let steps = steps(1000);
        walk.walk(steps, 1);
        total += steps;
        let Counts { acts, faults, restarts } = walk.counts;
        assert!(steps < 1000 || (acts > 80 && faults > 80 && restarts > 30), "seed {seed}: {:?}", walk.counts);
    }
    println!("{total} steps in {:.1?}", start.elapsed());
}

#[test]
fn a_walk_in_the_fake_is_always_as_rendered() {
    walk_in_the_fake(1..31);
}

#[test]
fn another_walk_in_the_fake_is_always_as_rendered() {
    walk_in_the_fake(1001..1031);
}

/// While the kernel takes no rule of one Service, all others are as rendered, and that one is left as it was, or has
/// nothing at all where nobody knows what it was: never a half.
#[test]
fn a_service_that_the_kernel_refuses_keeps_what_it_had() {
    let mut left_out = 0;
    for seed in seeds(2001..2013) {
        let mut poisoned = Poisoned::new(seed);
        for _ in 0..steps(250) {
            poisoned.step();
            left_out += usize::from(poisoned.walk.syncs[poisoned.family].left_out().next().is_some());
        }
    }
    assert!(left_out > 100 || std::env::var("SLUICE_WALK").is_ok(), "a Service was left out {left_out} times");
}

/// A walk during which the kernel comes to refuse a Service, and to take it again.
struct Poisoned {
    walk: Walk<FakeKernel>,
    family: Family,
    refused: Option<ObjectKey>,
    /// What each Service had when it was last as rendered.
    good: BTreeMap<ObjectKey, BTreeMap<ChainKey, Vec<String>>>,
}

impl Poisoned {
    fn new(seed: u64) -> Self {
        let families = FAMILIES[usize::try_from(seed % 2).expect("below 2")];
        let walk = Walk::new(seed, families, FakeKernel::new());
        Self { walk, family: families[0], refused: None, good: BTreeMap::new() }
    }

    fn step(&mut self) {
        self.walk.steps += 1;
        self.walk.story.clear();
        if self.walk.random.chance(12) {
            self.toggle();
        }
        if self.walk.random.chance(40) {
            self.walk.flags = history::config(&mut self.walk.random);
            self.walk.restart();
        } else if self.walk.random.chance(25) {
            self.walk.restart();
        }
        self.walk.change();
        self.walk.settle(self.family);
        self.check();
    }

    fn toggle(&mut self) {
        if self.refused.take().is_some() {
            self.walk.kernel.like_everything();
            self.walk.syncs[self.family].drifted(&Touched::everything());
            return;
        }
        let key = history::any_service(&mut self.walk.random);
        let errno = if self.walk.random.chance(2) { Errno::EINVAL } else { Errno::ENOENT };
        let named = !self.walk.random.chance(3);
        self.walk.kernel.dislike(&key.to_string(), errno, named);
        self.refused = Some(key);
    }

    fn check(&mut self) {
        let Walk { kernel, syncs, state, flags, .. } = &mut self.walk;
        let mut have = judge::read(kernel, self.family);
        let left_out: Vec<_> = syncs[self.family].left_out().map(|(key, _)| key.clone()).collect();
        let mut wrong = Vec::new();
        if syncs[self.family].is_due() || left_out.iter().any(|key| Some(key) != self.refused.as_ref()) {
            wrong.push(format!("left out: {left_out:?}, and something may be due"));
        }
        for key in &left_out {
            let has = judge::take_out(&mut have, key);
            let had = self.good.entry(key.clone()).or_default();
            if !has.is_empty() && has != *had {
                wrong.push(format!("{key} had {had:#?} and has {has:#?}"));
            }
            *had = has;
        }
        wrong.extend(judge::differences(flags, (state, self.family), &have, &left_out));
        for key in state.services().map(|(key, _)| key).filter(|key| !left_out.contains(key)) {
            self.good.insert(key.clone(), judge::take_out(&mut have, key));
        }
        let refused = &self.refused;
        assert!(
            wrong.is_empty(),
            "{}, {refused:?} refused:\n{}\nafter {:#?}",
            self.walk.place(),
            wrong.join("\n"),
            self.walk.story
        );
    }
}

/// The same in a namespace, with the real tools' changes among the others'. Looked at every few steps, since each look
/// reads everything.
#[test]
fn a_walk_in_the_kernel_is_as_rendered() {
    for seed in seeds(3001..3005) {
        netns::in_namespace(move || {
            let mut counters = Counters::open().expect("nfacct");
            for name in [NFACCT_INVALID, NFACCT_LOCALHOST] {
                counters.ensure(name).expect("a counter");
            }
            let mut walk = Walk::new(seed, &Family::ALL, NftKernel::open().expect("nf_tables"));
            for _ in 0..steps(500) / 50 {
                walk.walk(50, 10);
                compare_with_iptables(&mut walk.kernel);
                disturb(&mut walk);
            }
        });
    }
}

/// What others do by hand.
const BY_HAND: [&str; 6] = [
    "nft flush ruleset",
    "iptables -F",
    "iptables -t nat -F; ip6tables -t nat -F",
    "iptables -t nat -D PREROUTING 1",
    "ip6tables -t nat -F KUBE-SERVICES; iptables -t nat -I KUBE-SERVICES -j LOG",
    "nft delete table ip nat; nft delete table ip6 filter",
];

/// Whoever sees the change is told of everything, as after lost notifications.
fn disturb(walk: &mut Walk<NftKernel>) {
    walk.story.clear();
    let index = usize::try_from(walk.random.below(6)).expect("below 6");
    // It may find nothing to change.
    drop(Command::new("sh").args(["-c", BY_HAND[index]]).output().expect("sh"));
    for family in Family::ALL {
        walk.syncs[family].drifted(&Touched::everything());
        walk.settle(family);
    }
    let wrong = walk.wrong();
    assert!(wrong.is_empty(), "{}, after {}:\n{}", walk.place(), BY_HAND[index], wrong.join("\n"));
}

/// What we read is what iptables reads.
fn compare_with_iptables(kernel: &mut NftKernel) {
    for (family, tool) in [(Family::Ipv4, "iptables-save"), (Family::Ipv6, "ip6tables-save")] {
        let saved = Command::new(tool).output().expect("iptables").stdout;
        let saved = String::from_utf8(saved).expect("text");
        let mut lines: Vec<_> =
            saved.lines().filter(|line| line.starts_with("-A ")).map(|line| line.trim_end().to_owned()).collect();
        lines.sort();
        assert_eq!(lines, judge::lines(&judge::read(kernel, family)));
    }
}
