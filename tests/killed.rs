//! SIGKILL at random moments, 200 times in all: whatever a process had done by then, the next one brings the rules to
//! what is wanted, nothing missing and nothing left over.

mod support;
mod world;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use sluice::netlink::NftKernel;
use support::crowd::Crowd;
use support::golden::{FAMILIES, NODE_IPS, differences};
use support::lab::{A1, A2, B1};
use support::netns::{Namespace, Process};
use support::objects::Service;
use support::proxy::{BINARY, Sluice, common_flags};
use support::random::Random;
use support::{PATIENCE, Scratch, require_root, wait_until};

/// Kills of a process that starts, and of one that follows a change.
const AT_START: u32 = 140;
const IN_A_CHANGE: u32 = 60;

/// Between noticing a change and reading the file the process waits this long for writers to finish (source/follow.rs).
const QUIET: Duration = Duration::from_millis(75);

/// Two sets of objects that have half of their Services in common, and those with other endpoints.
const CROWDS: [Crowd; 2] = [Crowd { services: 20, endpoints: 3 }, Crowd { services: 60, endpoints: 2 }];

/// A set of objects and the rules that a node without any is given for it.
struct Wanted {
    manifest: PathBuf,
    rules: [String; 2],
}

struct Node {
    namespace: Namespace,
    scratch: Scratch,
    wanted: Vec<Wanted>,
    kernel: NftKernel,
    /// How many kills left the rules neither as they were nor as they were to be.
    half_way: u32,
}

impl Node {
    fn new(test: &str) -> Self {
        let (namespace, scratch) = (Namespace::golden(test), Scratch::new(test));
        let wanted = (0..CROWDS.len()).map(|set| Wanted::new(&scratch, set)).collect();
        let kernel = namespace.run(NftKernel::open).expect("nf_tables");
        Self { namespace, scratch, wanted, kernel, half_way: 0 }
    }

    /// To be started by a thread in the namespace: `ip netns exec` takes as long as the proxy's own start.
    fn command(manifest: &PathBuf) -> Command {
        let mut command = Command::new(BINARY);
        command.args(common_flags()).arg("--manifests").arg(manifest).stderr(Stdio::null()).stdout(Stdio::null());
        command
    }

    /// One run to the end; how long it took.
    fn complete(&self, set: usize) -> Duration {
        let start = Instant::now();
        let mut command = Self::command(&self.wanted[set].manifest);
        let ended = self.namespace.run(|| command.arg("--once").status()).expect("sluice");
        assert!(ended.success(), "a run that nobody kills: {ended}");
        start.elapsed()
    }

    fn rules(&self) -> [String; 2] {
        let saved = |tool| Command::new(tool).output().expect("iptables").stdout;
        let saved = self.namespace.run(|| FAMILIES.map(|(_, tool, _)| saved(tool)));
        saved.map(|saved| comparable(&String::from_utf8_lossy(&saved)))
    }

    #[track_caller]
    fn assert_as_wanted(&self, set: usize, what: &str) {
        for (want, have) in self.wanted[set].rules.iter().zip(&self.rules()) {
            assert!(want == have, "{what}:\n{}", world::difference(want, have));
        }
    }

    /// Both sets as `e2e/same-rules` judges them, so that what is compared below is what is meant; the longest run.
    fn check_once(&self) -> Duration {
        let mut longest = Duration::ZERO;
        for (set, wanted) in self.wanted.iter().enumerate() {
            longest = longest.max(self.complete(set));
            self.assert_as_wanted(set, "without a kill");
            for ((family, tool, _), rendered) in FAMILIES.into_iter().zip(render(&wanted.manifest)) {
                let want = self.scratch.file(&format!("want-{family}"));
                fs::write(&want, rendered).expect("a file");
                assert_eq!(differences(&self.scratch, &want, &self.namespace.output(&[tool])), "", "{family}");
            }
        }
        longest
    }

    fn generation(&mut self) -> u32 {
        self.kernel.generation().expect("a generation")
    }

    /// Notes whether rules changed and are not yet what they were to be.
    fn note(&mut self, before: u32, set: usize) {
        if self.generation() != before && self.wanted[set].rules != self.rules() {
            self.half_way += 1;
        }
    }
}

impl Wanted {
    fn new(scratch: &Scratch, set: usize) -> Self {
        let manifest = scratch.file(&format!("objects-{set}.json"));
        let lab =
            [Service::new("web", 1, &[A1, A2, B1]), Service { external_local: true, ..Service::new("local", 2, &[A1, B1]) }];
        CROWDS[set].write(&manifest, &lab[..=set], &(0..10 * set));
        let rules = render(&manifest).map(|rules| comparable(&rules));
        Self { manifest, rules }
    }
}

fn render(manifest: &PathBuf) -> [String; 2] {
    FAMILIES.map(|(family, _, _)| {
        let flags = ["render", "--mode=iptables", "--hostname-override=node-a", NODE_IPS, "--family", family];
        let cidr = "--cluster-cidr=10.244.0.0/16,fd00:10:244::/56";
        let output = Command::new(BINARY).args(flags).arg(cidr).arg("--manifests").arg(manifest).output().expect("sluice");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    })
}

/// Tables in one order, without remarks and counters, and with what may stand in any order sorted.
fn comparable(dump: &str) -> String {
    let lines = dump.lines().filter(|line| !line.starts_with('#')).map(|line| line.split(" [").next().unwrap_or_default());
    let text = lines.fold(String::new(), |all, line| all + line + "\n");
    let mut tables: Vec<_> = text.split("COMMIT\n").map(world::canonical).collect();
    tables.sort();
    tables.join("\n")
}

#[test]
fn a_process_killed_at_its_start_is_made_up_for() {
    if !require_root("a_process_killed_at_its_start_is_made_up_for") {
        return;
    }
    let mut node = Node::new("killed-start");
    let longest = node.check_once();
    let mut random = Random::new(4);
    for kill in 0..AT_START {
        let set = usize::from(kill % 2 == 0);
        let before = node.generation();
        let mut command = Node::command(&node.wanted[set].manifest);
        let process = node.namespace.run(|| Process::start(command.arg("--once")));
        let after = random_part(longest, &mut random);
        thread::sleep(after);
        drop(process); // with SIGKILL
        node.note(before, set);
        node.complete(set);
        node.assert_as_wanted(set, &format!("kill {kill}, after {after:?} of {longest:?}"));
    }
    println!("{} of {AT_START} kills were in the midst; a start takes {longest:.0?}", node.half_way);
    assert!(node.half_way > 0, "no kill was in the midst of a load");
}

#[test]
fn a_process_killed_in_a_change_is_made_up_for() {
    if !require_root("a_process_killed_in_a_change_is_made_up_for") {
        return;
    }
    let mut node = Node::new("killed-change");
    let longest = node.check_once();
    let followed = node.scratch.file("followed.json");
    let replace = |node: &Node, set: usize| {
        let draft = followed.with_extension("draft");
        fs::copy(&node.wanted[set].manifest, &draft).expect("a copy");
        fs::rename(&draft, &followed).expect("a manifest");
    };
    let mut random = Random::new(5);
    for kill in 0..IN_A_CHANGE {
        let set = usize::from(kill % 2 == 0);
        // What is there already, so that nothing is done before the change.
        replace(&node, 1 - set);
        let sluice = node.namespace.run(|| Sluice::spawn(&node.namespace, &node.scratch, Node::command(&followed)));
        wait_until("the process follows", PATIENCE, || sluice.log().matches(" rules are in force").count() == 2);
        let before = node.kernel.generation().expect("a generation");
        replace(&node, set);
        thread::sleep(QUIET + random_part(longest, &mut random));
        sluice.kill();
        node.note(before, set);
        node.complete(set);
        node.assert_as_wanted(set, &format!("kill {kill}"));
    }
    println!("{} of {IN_A_CHANGE} kills were in the midst", node.half_way);
    assert!(node.half_way > 0, "no kill was in the midst of a change");
}

/// A random part of `whole`, and a little more than all of it at most.
fn random_part(whole: Duration, random: &mut Random) -> Duration {
    let percent = u32::try_from(random.below(110)).expect("below 110");
    whole * percent / 100
}
