//! Another program that commits to `nf_tables` 100 times a second, as some network plugins do: a first load, changes and
//! a restart come to their end all the same, and leave its rules alone.

mod netns;
mod world;

#[allow(dead_code, reason = "the walk's, of which a part is used")]
#[path = "walk/judge.rs"]
mod judge;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use judge::Flags;
use netns::in_namespace;
use sluice::model::{Event, ObjectKey, State};
use sluice::net::Family;
use sluice::netlink::nfacct::Counters;
use sluice::netlink::{Error, Kernel, NftKernel};
use sluice::render::names::{NFACCT_INVALID, NFACCT_LOCALHOST};
use sluice::ruleset::{Op, Place, Rule, Table, Target, Transaction};
use sluice::serve::Metrics;
use sluice::sync::{FamilySync, Inputs, Summary};
use world::{config, endpoint, facts, key, service, slice};

const FAMILY: Family = Family::Ipv4;
const SERVICES: u16 = 2000;
const CHANGES: u16 = 30;
/// Between two commits of the other program.
const PAUSE: Duration = Duration::from_millis(1);
/// A sync that fails so often in a row does not converge.
const TRIES: u32 = 5;

/// The other program, in the namespace of the thread that starts it.
struct Other {
    enough: Arc<AtomicBool>,
    commits: Arc<AtomicU32>,
    thread: JoinHandle<()>,
}

impl Other {
    fn start() -> Self {
        let (enough, commits) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let (stop, count) = (Arc::clone(&enough), Arc::clone(&commits));
        let mut kernel = NftKernel::open().expect("nf_tables");
        let (table, chain) = (Table::Mangle, "OTHER");
        let mut commit = move |ops| kernel.commit(&Transaction { family: FAMILY, ops }).expect("the other's commit");
        commit(vec![Op::AddTable(table), Op::AddChain { table, chain: chain.into() }]);
        let thread = thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let rule = Rule::new().comment("other").then(Target::Return);
                let added = commit(vec![Op::AddRule { table, chain: chain.into(), place: Place::Tail, rule }]);
                thread::sleep(PAUSE);
                commit(vec![Op::DeleteRule { table, chain: chain.into(), handle: added.handles[0] }]);
                thread::sleep(PAUSE);
                count.fetch_add(2, Ordering::Relaxed);
            }
        });
        Self { enough, commits, thread }
    }

    fn commits(&self) -> u32 {
        self.commits.load(Ordering::Relaxed)
    }

    /// Ends it and fails if it failed.
    fn end(self) {
        self.enough.store(true, Ordering::Relaxed);
        self.thread.join().expect("the other program");
    }
}

struct Node {
    kernel: NftKernel,
    flags: Flags,
    state: State,
    sync: FamilySync,
    other: Other,
}

impl Node {
    fn new() -> Self {
        let mut counters = Counters::open().expect("nfacct");
        for name in [NFACCT_INVALID, NFACCT_LOCALHOST] {
            counters.ensure(name).expect("a counter");
        }
        let kernel = NftKernel::open().expect("nf_tables");
        Self { kernel, flags: (config(), facts()), state: State::new("node-a"), sync: fresh(), other: Other::start() }
    }

    fn note(&mut self, events: impl IntoIterator<Item = Event>) {
        for event in events {
            let changes = self.state.apply(event);
            self.sync.note(&changes);
        }
    }

    /// Syncs as the agent does, less its waits between the tries.
    fn converge(&mut self, what: &str) -> Summary {
        let mut errors = Vec::new();
        while errors.len() < TRIES as usize {
            let inputs = Inputs { config: &self.flags.0, facts: self.flags.1, state: &self.state };
            match self.sync.sync(&mut self.kernel, inputs) {
                Ok(summary) => return summary,
                Err(error) => errors.push(error.to_string()),
            }
        }
        panic!("{what} does not converge: {errors:#?}");
    }

    fn assert_as_rendered(&mut self, what: &str) {
        assert!(!self.sync.is_due(), "{what}: something is still due");
        let mut have = judge::Contents::new();
        // The other's changes interrupt it; each chain of ours is read whole all the same.
        match judge::read_into(&mut self.kernel, FAMILY, &mut have) {
            Ok(()) | Err(Error::Interrupted) => {}
            Err(error) => panic!("{what}: {error}"),
        }
        let wrong = judge::differences(&self.flags, (&self.state, FAMILY), &have, &[]);
        assert!(wrong.is_empty(), "{what}:\n{}", wrong.join("\n"));
    }
}

fn fresh() -> FamilySync {
    FamilySync::new(FAMILY, Arc::new(Metrics::new()))
}

fn name(i: u16) -> ObjectKey {
    key("crowd", &format!("web-{i}"))
}

fn web(i: u16, endpoints: u8) -> [Event; 2] {
    let [high, low] = i.to_be_bytes();
    let hosts = (1..=endpoints).map(|host| endpoint(IpAddr::from([10, 240 + high, low, host]))).collect();
    let service = service([10, 96 + high, low, 1].into());
    [Event::Slice(key("crowd", &format!("web-{i}-x")), Some(slice(&name(i), hosts))), Event::Service(name(i), Some(service))]
}

#[test]
fn syncs_converge_beside_a_program_that_commits_all_the_time() {
    in_namespace(|| {
        let mut node = Node::new();
        let start = Instant::now();
        node.note((0..SERVICES).flat_map(|i| web(i, 2)));
        node.converge("the first load");
        node.assert_as_rendered("the first load");
        let loaded = (start.elapsed(), node.other.commits());

        for round in 0..CHANGES {
            node.note(web(round * 31 % SERVICES, 1 + u8::try_from(round % 3).expect("below 3")));
            if round.is_multiple_of(7) {
                node.note([Event::Service(name(round), None)]);
            }
            let summary = node.converge("a change");
            assert!(summary.services <= 2, "a change stays one: {summary:?}");
        }
        node.assert_as_rendered("changes");

        node.sync = fresh();
        let again = node.converge("a restart");
        assert_eq!(again.operations, 0, "a restart finds everything as it is to be");
        node.assert_as_rendered("a restart");
        let commits = node.other.commits();
        println!(
            "first load and a look in {:.1?} with {} commits beside, all in {:.1?} with {commits}",
            loaded.0,
            loaded.1,
            start.elapsed()
        );
        assert!(commits > 50, "the other program committed {commits} times");
        node.other.end();
    });
}
