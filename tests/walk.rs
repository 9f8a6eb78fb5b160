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
#[path = "support/random.rs"]
mod random;

use std::sync::Arc;
use std::time::Instant;

use faults::{Fault, Faulty};
use foreign::Act;
use judge::Flags;
use random::Random;
use sluice::model::State;
use sluice::net::{Family, PerFamily};
use sluice::netlink::Kernel;
use sluice::netlink::fake::FakeKernel;
use sluice::ruleset::Touched;
use sluice::serve::Metrics;
use sluice::sync::{FamilySync, Inputs};

/// So many tries in a row fail only where something is wrong that no try mends.
const TRIES: u32 = 8;

/// A node, and what the proxy on it knows.
struct Walk<K> {
    random: Random,
    kernel: K,
    state: State,
    flags: Flags,
    syncs: PerFamily<FamilySync>,
    fault: Option<Fault>,
    fault_after: u8,
    metrics: Arc<Metrics>,
    /// What was done in this step, to be told when it fails.
    story: Vec<String>,
    /// How often each thing happened, so that a walk that avoids them is noticed.
    counts: Counts,
}

#[derive(Debug, Default)]
struct Counts {
    acts: u32,
    faults: u32,
    restarts: u32,
}

impl<K: Kernel> Walk<K> {
    fn new(seed: u64, kernel: K) -> Self {
        let mut random = Random::new(seed);
        let flags = history::config(&mut random);
        let metrics = Arc::new(Metrics::new());
        let syncs = PerFamily::from_fn(|family| FamilySync::new(family, Arc::clone(&metrics)));
        let state = State::new(history::NODE);
        let (story, counts) = (Vec::new(), Counts::default());
        Self { random, kernel, state, flags, syncs, fault: None, fault_after: 0, metrics, story, counts }
    }

    /// One thing or several happen, and the sync does what is due then.
    fn step(&mut self) {
        self.story.clear();
        if self.random.chance(60) {
            self.flags = history::config(&mut self.random);
            self.story.push(format!("other flags: {:?}", self.flags));
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
            self.story.push(format!("fault {:?} after {} commits", self.fault, self.fault_after));
        }
        if self.random.chance(6) {
            let family = if self.random.chance(2) { Family::Ipv4 } else { Family::Ipv6 };
            self.interfere(family);
        }
        for family in Family::ALL {
            self.settle(family);
        }
        self.fault = None;
    }

    fn restart(&mut self) {
        self.story.push("restart".to_owned());
        self.syncs = PerFamily::from_fn(|family| FamilySync::new(family, Arc::clone(&self.metrics)));
        self.counts.restarts += 1;
    }

    fn change(&mut self) {
        for event in history::events(&mut self.random) {
            self.story.push(format!("{event:?}"));
            let changes = self.state.apply(event);
            Family::ALL.into_iter().for_each(|family| self.syncs[family].note(&changes));
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
        self.story.push(format!("others in {family}, told {}: {}", if late { "late" } else { "at once" }, text(&act)));
        if late && self.syncs[family].is_due() {
            let outcome = self.sync(family);
            self.story.push(format!("before it was told: {outcome:?}"));
        }
        let touched = if self.random.chance(4) { Touched::everything() } else { act.touched };
        self.syncs[family].drifted(&touched);
    }

    fn sync(&mut self, family: Family) -> Result<(), String> {
        let inputs = Inputs { config: &self.flags.0, facts: self.flags.1, state: &self.state };
        let mut kernel = Faulty { kernel: &mut self.kernel, fault: &mut self.fault, after: &mut self.fault_after };
        self.syncs[family].sync(&mut kernel, inputs).map(drop).map_err(|error| error.to_string())
    }

    /// Syncs until nothing is due. What went wrong once does not go wrong for ever.
    fn settle(&mut self, family: Family) {
        for _ in 0..TRIES {
            if !self.syncs[family].is_due() {
                return;
            }
            if let Err(error) = self.sync(family) {
                self.story.push(format!("{family}: {error}"));
            }
        }
        self.story.push(format!("{family}: still due after {TRIES} tries"));
    }

    fn wrong(&mut self) -> Vec<String> {
        let mut wrong = Vec::new();
        for family in Family::ALL {
            let have = judge::read(&mut self.kernel, family);
            let of_family = judge::differences(&self.flags, &self.state, family, &have);
            wrong.extend(of_family.into_iter().map(|difference| format!("{family}: {difference}")));
            if self.syncs[family].is_due() {
                wrong.push(format!("{family}: something is still due"));
            }
        }
        wrong
    }

    /// Walks, looking at the result every so many steps.
    fn walk(&mut self, seed: u64, steps: u32, look_every: u32) {
        for step in 1..=steps {
            self.step();
            if step % look_every == 0 {
                let wrong = self.wrong();
                assert!(
                    wrong.is_empty(),
                    "seed {seed}, step {step} (SLUICE_WALK={seed} replays it):\n{}\nafter:\n{}",
                    wrong.join("\n"),
                    self.story.join("\n")
                );
            }
        }
    }
}

fn text(act: &Act) -> String {
    act.ops.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// The seeds of a test, or the one to replay.
fn seeds(range: std::ops::Range<u64>) -> Vec<u64> {
    let one = std::env::var("SLUICE_WALK").ok().and_then(|seed| seed.parse().ok());
    one.map_or_else(|| range.collect(), |seed| vec![seed])
}

fn steps(usual: u32) -> u32 {
    std::env::var("SLUICE_WALK_STEPS").ok().and_then(|steps| steps.parse().ok()).unwrap_or(usual)
}

fn walk_in_the_fake(range: std::ops::Range<u64>) {
    let start = Instant::now();
    let mut total = 0;
    for seed in seeds(range) {
        let mut walk = Walk::new(seed, FakeKernel::new());
        let steps = steps(500);
        walk.walk(seed, steps, std::env::var("LOOK").ok().and_then(|l| l.parse().ok()).unwrap_or(1));
        total += steps;
        let Counts { acts, faults, restarts } = walk.counts;
        assert!(steps < 500 || (acts > 30 && faults > 30 && restarts > 10), "seed {seed}: {:?}", walk.counts);
    }
    println!("{total} steps in {:.1?}", start.elapsed());
}

#[test]
fn a_walk_in_the_fake_is_always_as_rendered() {
    walk_in_the_fake(1..21);
}

#[test]
fn another_walk_in_the_fake_is_always_as_rendered() {
    walk_in_the_fake(1001..1021);
}
