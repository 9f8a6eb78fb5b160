//! The fake kernel against the real one: random transactions, good and bad, must have the same result in
//! both (handles, or the refused operations and their errors) and leave the same rules.

#![allow(clippy::unwrap_used, reason = "where a test cannot go on it has failed")]

mod netns;

use std::collections::BTreeMap;

use netns::in_namespace;
use sluice::net::{Family, Protocol};
use sluice::netlink::fake::FakeKernel;
use sluice::netlink::ipset::SetKernel;
use sluice::netlink::{Errno, Error, Kernel, NftKernel, Seen, Sent};
use sluice::ruleset::{
    AddrType, ChainName, Comment, Direction, Handle, Match, Negatable, NodeOp, Op, Place, RejectWith, Rule, SetSpec, SetType,
    Table, Target, Transaction,
};

/// Xorshift64*: the same numbers for the same seed, everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33;
        usize::try_from(number).unwrap() % limit
    }

    /// True in so many of a hundred cases.
    fn percent(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> Option<T> {
        if from.is_empty() { None } else { Some(from[self.below(from.len())].clone()) }
    }
}

/// Enough chains for jumps that are too deep (16), few enough that they meet.
const CHAINS: usize = 20;

/// The fake kernel takes all sets to exist: in the real one this does.
const SET: &str = "SET";

fn make_set() {
    let spec = SetSpec { name: SET.into(), kind: SetType::HashIp, family: Family::Ipv4, max_members: 9 };
    let mut sent = Sent::default();
    SetKernel::open().unwrap().apply(&[NodeOp::CreateSet(spec)], 0, &mut sent).unwrap();
    assert_eq!(sent.refused, []);
}

fn chain(number: usize) -> ChainName {
    ChainName::new(format!("C{number}"))
}

/// Makes transactions that are mostly, not always, sensible for what is there.
struct Generator<'a> {
    family: Family,
    random: &'a mut Random,
    rules: Vec<(Table, ChainName, Handle)>,
    chains: Vec<(Table, ChainName)>,
}

impl Generator<'_> {
    fn transaction(&mut self) -> Transaction {
        let mut transaction = Transaction::new(self.family);
        if self.chains.is_empty() {
            let tables = Table::ALL.into_iter().filter(|_| self.random.percent(70));
            transaction.ops.extend(tables.map(Op::AddTable));
        }
        for _ in 0..=self.random.below(8) {
            let op = self.op();
            if let Op::AddChain { table, chain } = &op {
                self.chains.push((*table, chain.clone()));
            }
            transaction.ops.push(op);
        }
        transaction
    }

    fn table(&mut self) -> Table {
        self.random.pick(&[Table::Nat, Table::Nat, Table::Nat, Table::Filter, Table::Filter, Table::Mangle]).unwrap()
    }

    /// Mostly a chain that is there.
    fn chain(&mut self) -> (Table, ChainName) {
        let known = if self.random.percent(93) { self.random.pick(&self.chains) } else { None };
        known.unwrap_or_else(|| {
            let table = self.table();
            let builtin = self.random.pick(table.builtin_chains()).unwrap();
            let name = if self.random.percent(20) { ChainName::from(builtin) } else { chain(self.random.below(CHAINS)) };
            (table, name)
        })
    }

    fn existing_rule(&mut self) -> (Table, ChainName, Handle) {
        let known = if self.random.percent(90) { self.random.pick(&self.rules) } else { None };
        known.unwrap_or_else(|| {
            let (table, chain) = self.chain();
            (table, chain, Handle(self.random.below(300) as u64))
        })
    }

    fn op(&mut self) -> Op {
        match self.random.below(100) {
            0..2 => Op::AddTable(self.table()),
            2..22 => {
                let table = self.table();
                let number = (0..CHAINS).map(chain).find(|c| !self.chains.contains(&(table, c.clone())));
                let chain = if self.random.percent(85) { number } else { Some(self.chain().1) };
                Op::AddChain { table, chain: chain.unwrap_or_else(|| ChainName::from("FULL")) }
            }
            22..24 => {
                let (table, chain) = self.chain();
                Op::FlushChain { table, chain }
            }
            24..30 => {
                let (table, chain) = self.chain();
                Op::DeleteChain { table, chain }
            }
            30..50 => {
                let (table, chain, handle) = self.existing_rule();
                Op::DeleteRule { table, chain, handle }
            }
            50..65 => {
                let (table, chain, handle) = self.existing_rule();
                let place = if self.random.percent(50) { Place::After(handle) } else { Place::Before(handle) };
                Op::AddRule { rule: self.rule(table, &chain), table, chain, place }
            }
            _ => {
                let (table, chain) = self.chain();
                let place = if self.random.percent(50) { Place::Head } else { Place::Tail };
                Op::AddRule { rule: self.rule(table, &chain), table, chain, place }
            }
        }
    }

    fn rule(&mut self, table: Table, chain: &ChainName) -> Rule {
        let mut rule = Rule { target: self.target(table, chain), ..Rule::default() };
        let protocol = self.random.pick(&Protocol::ALL).unwrap();
        match self.random.below(12) {
            0 => rule.matches.push(Match::Comment(Comment::new("a comment"))),
            1 => rule.matches.push(Match::Mark(Negatable::is((0x4000, 0x4000)))),
            2 => rule.matches.push(Match::AddrType(AddrType::DestinationLocal)),
            3 => {
                rule.protocol = Some(protocol);
                let destination = self.random.percent(50).then_some(80);
                rule.matches.push(Match::Port { protocol, destination });
            }
            4 if self.random.percent(20) => {
                // Wrong: the extension asks for its protocol.
                rule.matches.push(Match::Port { protocol, destination: None });
            }
            5 => rule.matches.push(Match::NotFromBridge),
            6 => rule.matches.push(Match::Set { set: SET.into(), directions: [Direction::Destination].into() }),
            _ => {}
        }
        rule
    }

    fn target(&mut self, table: Table, from: &ChainName) -> Option<Target> {
        let address = if self.family == Family::Ipv4 { "10.0.0.1:80" } else { "[fd00::1]:80" };
        let reject = if self.family == Family::Ipv4 { RejectWith::IcmpPortUnreachable } else { RejectWith::Icmp6PortUnreachable };
        match self.random.below(24) {
            0..3 => None,
            3 => Some(Target::Accept),
            4 => Some(Target::Return),
            5 => Some(Target::Drop),
            6 => Some(Target::Mark { value: 1, mask: 1 }),
            7 if self.random.percent(30) => Some(Target::Dnat(address.parse().unwrap())),
            8 if self.random.percent(30) => Some(Target::Masquerade { random_fully: true }),
            9 if self.random.percent(30) => Some(Target::Reject(reject)),
            10 => Some(Target::Jump(self.chain().1)),
            _ => Some(Target::Jump(self.deeper(table, from))),
        }
    }

    /// Mostly a chain of a higher number, so that few loops and many deep paths come about.
    fn deeper(&mut self, table: Table, from: &ChainName) -> ChainName {
        let number = from.as_str().strip_prefix('C').and_then(|n| n.parse::<usize>().ok());
        let later = |(t, c): &&(Table, ChainName)| {
            let other = c.as_str().strip_prefix('C').and_then(|n| n.parse::<usize>().ok());
            *t == table && other.is_some() && other > number
        };
        let mut next: Vec<_> = self.chains.iter().filter(later).cloned().collect();
        next.sort_by_key(|(_, chain)| chain.as_str().len());
        match next.first() {
            Some((_, chain)) if self.random.percent(60) => chain.clone(),
            _ => self.random.pick(&next).map_or_else(|| chain(0), |(_, chain)| chain),
        }
    }
}

/// What a commit gave, in a form that both kernels can share.
#[derive(Debug, PartialEq)]
enum Outcome {
    Done(Vec<Handle>),
    Refused(Vec<(usize, Errno)>),
    Other(String),
}

fn commit(kernel: &mut dyn Kernel, transaction: &Transaction) -> Outcome {
    match kernel.commit(transaction) {
        Ok(committed) => Outcome::Done(committed.handles),
        Err(Error::Refused(refusals)) => Outcome::Refused(refusals.iter().map(|r| (r.op, r.errno)).collect()),
        Err(error) => Outcome::Other(error.to_string()),
    }
}

fn contents(kernel: &mut dyn Kernel, family: Family) -> Vec<Seen> {
    let mut seen = Vec::new();
    kernel.read(family, &mut |s| seen.push(s)).unwrap();
    seen
}

/// How often what came about: a test that only ever sees one outcome proves little.
#[derive(Debug, Default)]
struct Tally {
    applied: usize,
    errnos: BTreeMap<Errno, usize>,
    ops: usize,
}

fn compare(seed: u64, family: Family, transactions: usize, tally: &mut Tally) {
    make_set();
    let mut random = Random(seed);
    let (mut fake, mut real) = (FakeKernel::new(), NftKernel::open().unwrap());
    for round in 0..transactions {
        let mut generator = Generator { family, random: &mut random, rules: Vec::new(), chains: Vec::new() };
        for seen in contents(&mut fake, family) {
            match seen {
                Seen::Rule { table, chain, handle, .. } => generator.rules.push((table, chain, handle)),
                Seen::Chain { table, chain } => generator.chains.push((table, chain)),
                Seen::Table(_) => {}
            }
        }
        let before = fake.save(family);
        let transaction = generator.transaction();
        let (expected, found) = (commit(&mut fake, &transaction), commit(&mut real, &transaction));
        assert_eq!(expected, found, "fake, real: seed {seed}, round {round}\n{before}\n{transaction}");
        assert_eq!(
            contents(&mut fake, family),
            contents(&mut real, family),
            "seed {seed}, round {round}\n{before}\n{transaction}"
        );
        if std::env::var_os("TRACE").is_some() {
            eprintln!("--- {round}: {found:?}\n{transaction}");
        }
        tally.ops += transaction.len();
        match found {
            Outcome::Done(_) => tally.applied += 1,
            Outcome::Refused(refused) => {
                for (_, errno) in refused {
                    *tally.errnos.entry(errno).or_default() += 1;
                }
            }
            Outcome::Other(error) => panic!("seed {seed}, round {round}: {error}\n{transaction}"),
        }
    }
}

/// Namespaces side by side, as most of the time is the kernel's waiting, and another seed for each.
const WORLDS: std::ops::RangeInclusive<u64> = 1..=12;
const TRANSACTIONS: usize = 150;

fn compare_world(world: u64) -> Tally {
    let family = if world.is_multiple_of(2) { Family::Ipv6 } else { Family::Ipv4 };
    let mut tally = Tally::default();
    // An odd factor spreads the small numbers over all bits; zero would stay zero.
    compare(world.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1, family, TRANSACTIONS, &mut tally);
    tally
}

#[test]
fn the_fake_answers_as_the_kernel_does() {
    let (sender, tallies) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        for world in WORLDS {
            let sender = sender.clone();
            scope.spawn(move || in_namespace(move || sender.send(compare_world(world)).unwrap()));
        }
    });
    drop(sender);
    let mut total = Tally::default();
    for tally in tallies {
        total.applied += tally.applied;
        total.ops += tally.ops;
        for (errno, times) in tally.errnos {
            *total.errnos.entry(errno).or_default() += times;
        }
    }
    println!("{total:?}");
    if total.ops > 0 {
        // Otherwise the tests were skipped, which in_namespace decides.
        assert!(total.ops > 5000 && total.applied > 500, "{total:?}");
        for errno in [Errno::EBUSY, Errno::EEXIST, Errno::EINVAL, Errno::EMLINK, Errno::ENOENT, Errno::EOPNOTSUPP] {
            assert!(total.errnos.contains_key(&errno), "{errno} never came: {total:?}");
        }
    }
}

fn jump(table: Table, from: &str, to: &str) -> Op {
    let rule = Rule { target: Some(Target::Jump(to.into())), ..Rule::default() };
    Op::AddRule { table, chain: from.into(), place: Place::Tail, rule }
}

fn new_chain(table: Table, chain: &str) -> Op {
    Op::AddChain { table, chain: chain.into() }
}

/// `length` chains that jump to each other in a row, the first one reached from PREROUTING.
fn row(table: Table, length: usize) -> Vec<Op> {
    let names: Vec<String> = (0..length).map(|number| format!("R{number}")).collect();
    let mut ops: Vec<Op> = names.iter().map(|name| new_chain(table, name)).collect();
    ops.extend(names.windows(2).map(|pair| jump(table, &pair[0], &pair[1])));
    ops.push(jump(table, "PREROUTING", "R0"));
    ops
}

fn delete(table: Table, chain: &str) -> Op {
    Op::DeleteChain { table, chain: chain.into() }
}

fn flush(table: Table, chain: &str) -> Op {
    Op::FlushChain { table, chain: chain.into() }
}

/// What chance seldom makes: each list of transactions starts from an empty namespace.
fn hard_cases() -> Vec<Vec<Vec<Op>>> {
    let (nat, filter, mangle) = (Table::Nat, Table::Filter, Table::Mangle);
    let both = || vec![Op::AddTable(nat), Op::AddTable(mangle)];
    let self_loop = |table| vec![new_chain(table, "A"), jump(table, "A", "A")];
    let masquerade = Op::AddRule {
        table: nat,
        chain: "A".into(),
        place: Place::Tail,
        rule: Rule { target: Some(Target::Masquerade { random_fully: true }), ..Rule::default() },
    };
    vec![
        // Depth: 15 jumps from a built-in chain are fine, 16 are not.
        vec![both(), row(nat, 15), row(mangle, 16), row(mangle, 15)],
        // Bad from the beginning, in one table and in two.
        vec![[both(), self_loop(nat), vec![jump(nat, "OUTPUT", "A")]].concat(), both()],
        vec![[both(), row(nat, 17), row(mangle, 17)].concat(), both(), row(nat, 1)],
        vec![both(), [row(nat, 17), row(mangle, 17)].concat(), row(mangle, 3)],
        vec![vec![Op::AddTable(mangle)], [both(), row(nat, 17), row(mangle, 17)].concat(), both(), row(nat, 3)],
        // A loop nobody enters is fine, until somebody does.
        vec![both(), self_loop(nat), vec![jump(nat, "OUTPUT", "A")], vec![new_chain(nat, "B"), jump(nat, "A", "B")]],
        // A chain that jumps to itself cannot be deleted at once, after a flush it can.
        vec![both(), self_loop(nat), vec![delete(nat, "A")], vec![flush(nat, "A"), delete(nat, "A")]],
        // Bad in between, good in the end.
        vec![both(), self_loop(nat), vec![jump(nat, "OUTPUT", "A"), flush(nat, "OUTPUT")]],
        // A target that its hook cannot have, reached later.
        vec![
            both(),
            vec![new_chain(nat, "A"), masquerade.clone()],
            vec![jump(nat, "INPUT", "A")],
            vec![jump(nat, "POSTROUTING", "A")],
        ],
        // Deleted and made again in one transaction, also a built-in chain, which then is none.
        vec![both(), vec![new_chain(nat, "A"), delete(nat, "A"), new_chain(nat, "A"), jump(nat, "INPUT", "A")]],
        vec![both(), vec![delete(nat, "INPUT"), new_chain(nat, "INPUT"), jump(nat, "OUTPUT", "INPUT")], both(), row(nat, 2)],
        vec![vec![Op::AddTable(filter), delete(filter, "INPUT")], vec![Op::AddTable(filter), jump(filter, "INPUT", "B")]],
        vec![vec![], vec![flush(filter, "INPUT")], vec![delete(filter, "NONE")], vec![new_chain(filter, "A")]],
    ]
}

#[test]
fn hard_cases_too() {
    for (number, case) in hard_cases().into_iter().enumerate() {
        in_namespace(move || {
            let (mut fake, mut real) = (FakeKernel::new(), NftKernel::open().unwrap());
            for ops in case {
                let transaction = Transaction { family: Family::Ipv4, ops };
                let (expected, found) = (commit(&mut fake, &transaction), commit(&mut real, &transaction));
                assert_eq!(expected, found, "fake, real: case {number}\n{transaction}");
                let (expected, found) = (contents(&mut fake, Family::Ipv4), contents(&mut real, Family::Ipv4));
                assert_eq!(expected, found, "fake, real: case {number}\n{transaction}");
            }
        });
    }
}
