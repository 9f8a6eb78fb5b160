//! Big loads and changes go out in pieces, on the fake kernel: whatever piece is the last to arrive, each chain that a
//! packet can reach is as it was or as it is to be.

mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sluice::model::{Event, State};
use sluice::net::Family;
use sluice::netlink::fake::FakeKernel;
use sluice::netlink::{Committed, Errno, Error, Kernel, Seen};
use sluice::ruleset::{ChainName, Table, Transaction};
use sluice::serve::Metrics;
use sluice::sync::{FamilySync, Inputs, Summary};
use world::{config, endpoint, facts, key, service, slice};

const FAMILY: Family = Family::Ipv4;
const SERVICES: u32 = 3500;
/// No transaction of a big change has more operations (ruleset/diff.rs), but for one owner's worth: what is new and what
/// changes.
const LARGEST: usize = 2 * 12_000 + 20;

/// The fake kernel, and what it held after each commit.
struct Watched {
    kernel: FakeKernel,
    moments: Vec<String>,
    largest: usize,
}

impl Kernel for Watched {
    fn read(&mut self, family: Family, visit: &mut dyn FnMut(Seen)) -> Result<(), Error> {
        self.kernel.read(family, visit)
    }

    fn read_chains(
        &mut self,
        family: Family,
        chains: &mut dyn Iterator<Item = &(Table, ChainName)>,
        visit: &mut dyn FnMut(Seen),
    ) -> Result<(), Error> {
        self.kernel.read_chains(family, chains, visit)
    }

    fn commit(&mut self, transaction: &Transaction) -> Result<Committed, Error> {
        let committed = self.kernel.commit(transaction)?;
        self.largest = self.largest.max(transaction.len());
        self.moments.push(self.kernel.save(FAMILY));
        Ok(committed)
    }
}

struct Bench {
    kernel: Watched,
    state: State,
    sync: FamilySync,
}

impl Bench {
    fn new() -> Self {
        let kernel = Watched { kernel: FakeKernel::new(), moments: Vec::new(), largest: 0 };
        Self { kernel, state: State::new("node-a"), sync: FamilySync::new(FAMILY, Arc::new(Metrics::new())) }
    }

    /// Syncs once and checks every moment on the way. Gives also what packets of the kinds in `dispatch` met.
    fn sync(&mut self, events: impl IntoIterator<Item = Event>) -> Summary {
        for event in events {
            self.sync.note(&self.state.apply(event));
        }
        let before = chains(&self.kernel.kernel.save(FAMILY));
        self.kernel.moments.clear();
        let config = config();
        let inputs = Inputs { config: &config, facts: facts(), state: &self.state };
        let summary = self.sync.sync(&mut self.kernel, inputs).expect("a sync");
        let after = chains(&self.kernel.kernel.save(FAMILY));
        for (number, moment) in self.kernel.moments.iter().enumerate() {
            let now = chains(moment);
            for chain in reachable(&now).iter().filter(|chain| !is_dispatch(chain)) {
                let is = |then: &Chains| then.get(chain) == now.get(chain);
                assert!(is(&before) || is(&after), "after commit {number}: {chain} is {:?}", now.get(chain));
            }
        }
        assert!(self.kernel.largest <= LARGEST, "{} operations in one transaction", self.kernel.largest);
        summary
    }
}

/// Rules of the nat table by chain.
type Chains = BTreeMap<String, Vec<String>>;

fn chains(saved: &str) -> Chains {
    let nat = saved.split("*nat\n").nth(1).unwrap_or_default();
    let mut chains: Chains = nat.lines().filter_map(|line| Some((name(line.strip_prefix(':')?), Vec::new()))).collect();
    for line in nat.lines().filter_map(|line| line.strip_prefix("-A ")) {
        chains.get_mut(&name(line)).expect("a chain").push(line.to_owned());
    }
    chains
}

fn name(line: &str) -> String {
    line.split(' ').next().expect("a name").to_owned()
}

fn is_dispatch(chain: &str) -> bool {
    ["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING", "KUBE-SERVICES", "KUBE-NODEPORTS"].contains(&chain)
}

fn reachable(chains: &Chains) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut open: Vec<&str> = vec!["PREROUTING", "OUTPUT", "POSTROUTING"];
    while let Some(chain) = open.pop() {
        if found.insert(chain.to_owned()) {
            let rules = chains.get(chain).into_iter().flatten();
            open.extend(rules.filter_map(|rule| rule.split(" -j ").nth(1)?.split(' ').next()));
        }
    }
    found
}

fn web(i: u32, endpoints: u32) -> [Event; 2] {
    let name = format!("web-{i}");
    let address = |k| std::net::Ipv4Addr::from(0x0a80_0000 + i * 8 + k).into();
    let slice = slice(&key("shop", &name), (0..endpoints).map(|k| endpoint(address(k))).collect());
    let service = service(std::net::Ipv4Addr::from(0x0a60_0000 + i).into());
    [Event::Slice(key("shop", &format!("{name}-x")), Some(slice)), Event::Service(key("shop", &name), Some(service))]
}

#[test]
fn whatever_piece_comes_last_no_packet_meets_half_a_service() {
    let mut bench = Bench::new();
    let load = bench.sync((0..SERVICES).flat_map(|i| web(i, 2)));
    assert!(load.transactions >= 4, "{load:?}");
    // The first load is reachable with its last piece alone.
    let hooked = bench.kernel.moments.iter().filter(|moment| moment.contains("-A PREROUTING")).count();
    assert_eq!(hooked, 1);

    let change = bench.sync((0..SERVICES).map(|i| web(i, 3)[0].clone()));
    assert!(change.transactions >= 2, "{change:?}");
    let less = bench.sync((0..SERVICES).map(|i| web(i, 1)[0].clone()));
    assert!(less.transactions >= 2, "{less:?}");

    // A relist that lacks all but ten of them, and has others in their place.
    let kept = (0..10).chain(SERVICES..2 * SERVICES);
    let (slices, services): (Vec<_>, Vec<_>) = kept.map(|i| web(i, 2)).map(|[slice, service]| (slice, service)).unzip();
    let slices =
        slices.into_iter().filter_map(|event| if let Event::Slice(key, Some(slice)) = event { Some((key, slice)) } else { None });
    let services = services
        .into_iter()
        .filter_map(|event| if let Event::Service(key, Some(service)) = event { Some((key, service)) } else { None });
    let relist = bench.sync([Event::Slices(slices.collect()), Event::Services(services.collect())]);
    assert!(relist.transactions >= 5, "{relist:?}");
    let (want, have) = (world::rendered(&bench.state, FAMILY), world::canonical(&bench.kernel.kernel.save(FAMILY)));
    assert!(want == have, "{}", world::difference(&want, &have));
}

/// What the pieces before a refused one made superfluous goes all the same.
#[test]
fn a_refused_piece_leaves_nothing_of_the_others_behind() {
    let mut bench = Bench::new();
    bench.sync((0..SERVICES).flat_map(|i| web(i, 4)));
    bench.kernel.kernel.fail_commit_after(1, Error::RefusedWhole { errno: Errno::EINVAL, said: None });
    let change = bench.sync((0..SERVICES).map(|i| web(i, 3)[0].clone()));
    assert!(change.transactions >= 4, "{change:?}");
    let (want, have) = (world::rendered(&bench.state, FAMILY), world::canonical(&bench.kernel.kernel.save(FAMILY)));
    assert!(want == have, "{}", world::difference(&want, &have));
}
