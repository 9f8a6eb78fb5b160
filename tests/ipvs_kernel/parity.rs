//! The fake balancer against the real one: random operations, good and bad, must be refused alike in both and leave the
//! same virtual servers, sets and addresses.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::str::FromStr;

use sluice::net::{Family, Protocol, Scheduler};
use sluice::netlink::fake::balancer::FakeBalancer;
use sluice::netlink::link::Style;
use sluice::netlink::{Balancer, Errno, Kernel as _, NftKernel, NodeBalancer};
use sluice::ruleset::{
    Direction, Match, Member, NodeOp, Op, Persistence, Place, Rule, ServerFlags, SetName, SetSpec, SetType, Table, Transaction,
    VirtualAddress, VirtualServer,
};

use super::netns::in_namespace;
use super::world::servers::Contents;
use super::world::{Random, difference};
use super::{refusals, shell};

// Few of everything, so that operations meet. What is unusual comes last, and seldom.
const SERVERS: [&str; 4] = ["10.96.0.1:80", "10.96.0.1:53", "[fd00::1]:80", "[fd00::1]:53"];
const REALS: [[&str; 6]; 2] = [
    ["10.244.1.1:8080", "10.244.1.2:8080", "127.0.0.1:80", "224.0.0.1:80", "255.255.255.255:80", "0.0.0.0:80"],
    ["[fd00:1::1]:8080", "[fd00:1::2]:8080", "[::1]:80", "[ff02::1]:80", "[fe80::1]:80", "[::]:80"],
];
const WEIGHTS: [u32; 6] = [0, 1, 1, 100, 0x7fff_ffff, 0x8000_0000];
const SETS: [&str; 6] = ["A", "B", "C", "D", "E", "F"];
const MEMBERS: [[&str; 3]; 2] = [["10.96.0.1", "10.96.0.2", "0.0.0.0"], ["fd00::1", "fd00::2", "::"]];
const NETS: [[&str; 4]; 2] =
    [["10.0.0.0/8", "10.96.0.1/32", "172.31.7.7/16", "0.0.0.0/0"], ["fd00::/8", "fd00::1/128", "fd00:1::7:7/64", "::/0"]];
const ADDRESSES: [&str; 9] =
    ["10.96.0.1", "10.96.0.2", "127.0.0.2", "fd00::1", "fd00::2", "fe80::7", "224.0.0.1", "::1", "ff02::1"];

const ERANGE: Errno = Errno(34);
const EXIST_SETNAME2: Errno = Errno(4101);
const INVALID_CIDR: Errno = Errno(4104);

fn parsed<T: FromStr<Err: Debug>>(text: &str) -> T {
    text.parse().unwrap()
}

/// Makes operations that are mostly, not always, sensible for what is there.
struct Generator<'a> {
    random: &'a mut Random,
    /// The sets that there were before, and what they take.
    sets: BTreeMap<SetName, (SetType, Option<Family>)>,
}

impl Generator<'_> {
    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[usize::from(self.random.below(u8::try_from(from.len()).unwrap()))].clone()
    }

    /// Mostly one of the first.
    fn pick_usual<T: Clone>(&mut self, from: &[T], usual: usize) -> T {
        let any = self.random.chance(8);
        self.pick(if any { from } else { &from[..usual] })
    }

    fn op(&mut self) -> NodeOp {
        let at = VirtualAddress { protocol: self.pick(&Protocol::ALL), address: parsed(self.pick(&SERVERS)) };
        let of = if self.random.chance(20) { Family::Ipv4 } else { at.family() };
        let real = parsed(self.pick_usual(&REALS[of as usize], 3));
        let weight = self.pick_usual(&WEIGHTS, 5);
        let set = SetName::from(self.pick(&SETS));
        match self.random.below(100) {
            0..8 => NodeOp::AddServer { at, server: self.server(at.family()) },
            8..14 => NodeOp::EditServer { at, server: self.server(at.family()) },
            14..17 => NodeOp::DeleteServer { at },
            17..28 => NodeOp::AddReal { at, real, weight },
            28..34 => NodeOp::EditReal { at, real, weight },
            34..38 => NodeOp::DeleteReal { at, real },
            38..44 => NodeOp::CreateSet(self.spec(set)),
            44..64 => NodeOp::AddMember { member: self.member(&set), set },
            64..76 => NodeOp::DeleteMember { member: self.member(&set), set },
            76..80 => NodeOp::SwapSets { one: set, other: self.pick(&SETS).into() },
            80..82 => NodeOp::DestroySet(set),
            82..85 => NodeOp::MakeDevice,
            85 => NodeOp::RemoveDevice,
            86..95 => NodeOp::AddAddress(parsed(self.pick_usual(&ADDRESSES, 6))),
            _ => NodeOp::DeleteAddress(parsed(self.pick_usual(&ADDRESSES, 6))),
        }
    }

    fn server(&mut self, family: Family) -> VirtualServer {
        let scheduler = if self.random.chance(12) { Scheduler::Other } else { self.pick(&Scheduler::ALL) };
        let flags = self.pick(&[ServerFlags::NONE, ServerFlags::NONE, ServerFlags::MH_PORT, ServerFlags(0x8)]);
        let prefix = match family {
            Family::Ipv4 => self.pick(&[32, 32, 24, 0]),
            Family::Ipv6 => self.pick_usual(&[128, 64, 0, 129], 2),
        };
        let persistence = Persistence { seconds: self.pick(&[1, 10_800]), prefix };
        VirtualServer { scheduler, flags, persistence: self.random.chance(2).then_some(persistence) }
    }

    /// With more room than there are members: how many more a set takes depends on its hash.
    fn spec(&mut self, name: SetName) -> SetSpec {
        let (kind, max_members) = (self.pick(&SetType::ALL), self.pick(&[1000, 65_536]));
        SetSpec { name, kind, family: self.pick(&Family::ALL), max_members }
    }

    /// Mostly one that the set takes.
    fn member(&mut self, set: &SetName) -> Member {
        let known = self.sets.get(set).copied().filter(|_| !self.random.chance(10));
        let (kind, family) = known.unwrap_or_else(|| (self.pick(&SetType::ALL), Some(self.pick(&Family::ALL))));
        let of = family.unwrap_or(Family::Ipv4) as usize;
        let ip = parsed(self.pick_usual(&MEMBERS[of], 2));
        let of_other = if self.random.chance(20) { 0 } else { of };
        let other = parsed(self.pick_usual(&MEMBERS[of_other], 2));
        let (protocol, port) = (self.pick(&Protocol::ALL), self.pick(&[53, 80, 0, u16::MAX]));
        match kind {
            SetType::HashIp => Member::Ip(ip),
            SetType::HashIpPort => Member::IpPort(ip, protocol, port),
            SetType::HashIpPortIp => Member::IpPortIp(ip, protocol, port, other),
            SetType::HashIpPortNet => Member::IpPortNet(ip, protocol, port, parsed(self.pick_usual(&NETS[of], 3))),
            SetType::BitmapPort => Member::Port(port),
        }
    }
}

/// How often what came about: a test that only ever sees one outcome proves little.
#[derive(Debug, Default)]
struct Tally {
    ops: usize,
    /// By kind of operation, how many were done.
    done: BTreeMap<String, usize>,
    errnos: BTreeMap<Errno, usize>,
}

impl Tally {
    fn add(&mut self, ops: &[NodeOp], refused: &[(usize, Errno)]) {
        self.ops += ops.len();
        for (_, errno) in refused {
            *self.errnos.entry(*errno).or_default() += 1;
        }
        for (number, op) in ops.iter().enumerate() {
            if refused.iter().all(|(refused, _)| *refused != number) {
                let kind = format!("{op:?}").split([' ', '(']).next().unwrap_or_default().to_owned();
                *self.done.entry(kind).or_default() += 1;
            }
        }
    }
}

/// Both balancers, and what has been done with them.
struct Pair {
    fake: FakeBalancer,
    real: NodeBalancer,
    title: String,
    tally: Tally,
}

impl Pair {
    /// In the namespace of the caller.
    fn open(title: String) -> Self {
        // Without a table of local routes IPVS cannot tell what kind of address a real server has.
        shell("ip link set lo up");
        Self { fake: FakeBalancer::new(), real: NodeBalancer::open(Style::Device).unwrap(), title, tally: Tally::default() }
    }

    /// Gives what was refused, by both.
    fn apply(&mut self, ops: &[NodeOp]) -> Vec<(usize, Errno)> {
        let before = Contents::of(&mut self.fake);
        let applied = |balancer: &mut dyn Balancer| refusals(&balancer.apply(ops).unwrap());
        let (mut expected, mut found) = (applied(&mut self.fake), applied(&mut self.real));
        expected.sort_unstable();
        found.sort_unstable();
        if expected != found {
            let answers =
                |of: &[(usize, Errno)], number| of.iter().filter(|it| it.0 == number).map(|it| it.1).collect::<Vec<_>>();
            let both = |(number, op)| {
                let (fake, real) = (answers(&expected, number), answers(&found, number));
                let sign = if fake == real { "" } else { " <--" };
                format!("{number}: {op:?}: fake {fake:?}, real {real:?}{sign}")
            };
            let lines: Vec<_> = ops.iter().enumerate().map(both).collect();
            panic!("{}, before:\n{}\nthen:\n{}", self.title, before.lines(), lines.join("\n"));
        }
        self.tally.add(ops, &found);
        found
    }

    fn compare(&mut self, ops: &[NodeOp]) {
        let (expected, found) = (Contents::of(&mut self.fake), Contents::of(&mut self.real));
        assert!(
            expected == found,
            "{}, the fake has (-) and the real one (+):\n{}\nafter {ops:#?}",
            self.title,
            difference(&expected.lines(), &found.lines())
        );
    }
}

/// So many operations in a namespace of their own, with another seed for each.
const WORLDS: u64 = 4;
const BATCHES: usize = 50;

fn compare_world(seed: u64) -> Tally {
    let mut random = Random::new(seed);
    let mut pair = Pair::open(String::new());
    for batch in 0..BATCHES {
        pair.title = format!("seed {seed}, batch {batch}");
        let headers = pair.fake.sets().unwrap();
        let sets = headers.into_iter().filter_map(|header| Some((header.name, (header.kind?, header.family)))).collect();
        let mut generator = Generator { random: &mut random, sets };
        let count = 1 + generator.random.below(40);
        let ops: Vec<_> = (0..count).map(|_| generator.op()).collect();
        pair.apply(&ops);
        pair.compare(&ops);
    }
    pair.tally
}

#[test]
#[ignore = "run in the virtual machine of on_linux_6_1"]
fn the_fake_answers_as_the_kernel_does() {
    let mut total = Tally::default();
    for seed in 0..WORLDS {
        in_namespace(|| {
            let tally = compare_world(seed);
            total.ops += tally.ops;
            tally.done.into_iter().for_each(|(kind, times)| *total.done.entry(kind).or_default() += times);
            tally.errnos.into_iter().for_each(|(errno, times)| *total.errnos.entry(errno).or_default() += times);
        });
    }
    println!("{total:?}");
    assert!(total.ops > 3000 && total.done.len() == 15, "{total:?}");
    let usual = [Errno::ENOENT, Errno::ESRCH, Errno::EEXIST, Errno::ENODEV, Errno::EINVAL, ERANGE, Errno::EADDRNOTAVAIL];
    let of_sets = [Errno::IPSET_ERR_PROTOCOL, EXIST_SETNAME2, Errno::IPSET_ERR_TYPE_MISMATCH, INVALID_CIDR];
    for errno in usual.iter().chain(&of_sets).chain(&[Errno::IPSET_ERR_HASH_ELEM]) {
        assert!(total.errnos.contains_key(errno), "{errno} never came: {total:?}");
    }
}

fn create(name: &str, max_members: u32) -> NodeOp {
    let (name, kind, family) = (name.into(), SetType::HashIp, Family::Ipv4);
    NodeOp::CreateSet(SetSpec { name, kind, family, max_members })
}

fn add(set: &str, host: u8) -> NodeOp {
    NodeOp::AddMember { set: set.into(), member: Member::Ip([10, 96, 0, host].into()) }
}

/// Without deletions a set takes as many as it says. Where a member was, another may have room though it is full.
#[test]
#[ignore = "run in the virtual machine of on_linux_6_1"]
fn full_sets_are_full() {
    in_namespace(|| {
        let mut pair = Pair::open("full sets".into());
        let ops = [create("A", 3), create("B", 0), create("C", 9)];
        let ops: Vec<_> = ops.into_iter().chain([1, 2, 2, 3, 4, 3, 5].map(|host| add("A", host))).chain([add("B", 1)]).collect();
        let full = [7, 9, 10].map(|number| (number, Errno::IPSET_ERR_HASH_FULL));
        assert_eq!(pair.apply(&ops), full);
        pair.compare(&ops);
        let swapped = [NodeOp::SwapSets { one: "A".into(), other: "C".into() }, add("A", 4), add("C", 5)];
        assert_eq!(pair.apply(&swapped), [(2, Errno::IPSET_ERR_HASH_FULL)]);
        pair.compare(&swapped);
    });
}

/// A rule refers to a set by its place among the sets, and a swap exchanges the places.
#[test]
#[ignore = "run in the virtual machine of on_linux_6_1"]
fn sets_in_use_stay() {
    in_namespace(|| {
        let mut pair = Pair::open("sets in use".into());
        let ops = [create("A", 9), create("B", 9), add("B", 1)];
        pair.apply(&ops);
        let mut transaction = Transaction::new(Family::Ipv4);
        let matches = vec![Match::Set { set: "A".into(), directions: [Direction::Source].into() }];
        let (table, chain, place) = (Table::Filter, "C".into(), Place::Tail);
        let rule = Rule { matches, ..Rule::default() };
        let new_chain = Op::AddChain { table, chain: "C".into() };
        transaction.ops = vec![Op::AddTable(table), new_chain, Op::AddRule { table, chain, place, rule }];
        NftKernel::open().unwrap().commit(&transaction).unwrap();
        pair.fake.refer_to("A", 1);
        let destroy = |name: &str| NodeOp::DestroySet(name.into());
        let ops = [destroy("A"), NodeOp::SwapSets { one: "A".into(), other: "B".into() }, destroy("A")];
        assert_eq!(pair.apply(&ops), [(0, Errno::IPSET_ERR_BUSY), (2, Errno::IPSET_ERR_BUSY)]);
        pair.compare(&ops);
        let ops = [destroy("B")];
        assert_eq!(pair.apply(&ops), []);
        pair.compare(&ops);
    });
}
