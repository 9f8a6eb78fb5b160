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
use sluice::model::{Event, State};
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
        Self { random, kernel, state, flags, syncs, fault: None, fault_after: 0, metrics, families, story, counts }
    }

    /// One thing or several happen, and the sync does what is due then.
    fn step(&mut self) {
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
                    "seed {seed}, step {step} (SLUICE_WALK={seed} replays it):\n{}\nafter:\n{:#?}",
                    wrong.join("\n"),
                    self.story
                );
            }
        }
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
        walk.walk(seed, steps, 1);
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
