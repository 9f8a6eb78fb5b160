//! The golden dumps of ipvs mode (tests/golden/README.md): which scenarios have them, how the same is had of a node, and
//! what may differ.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use super::Scratch;
use super::golden::{GOLDEN, differences, folders};
use super::netns::Namespace;

/// The five dumps of a scenario.
pub const DUMPS: [&str; 5] =
    ["ipvs-services.txt", "ipvs-ipset.txt", "ipvs-iptables-v4.save", "ipvs-iptables-v6.save", "ipvs-addresses.txt"];

/// What the steps of a sequence have beside these.
pub const LIST: &str = "ipvs-list.txt";
pub const CONNECTIONS: &str = "ipvs-connections.txt";

/// Every deliberate difference from the dumps, line by line.
const TABLE: &str = include_str!("ipvs-differences.txt");

pub fn scenarios() -> Vec<PathBuf> {
    folders(Path::new(GOLDEN), |path| path.join(DUMPS[0]).exists())
}

/// Where the text to be judged is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Rendered,
    /// Printed by the tools of what is in a kernel.
    Programmed,
}

/// What the table says of one dump.
#[derive(Debug, Default)]
struct Deliberate {
    /// Lines that only the dump has.
    lacking: Vec<&'static str>,
    /// Lines that only ours has.
    more: Vec<&'static str>,
}

/// Reads the table. Every scenario and file in it must be one that is judged, so that no row outlives its reason.
fn deliberate(scenario: &Path, dump: &str, origin: Origin) -> Deliberate {
    let scenario = scenario.strip_prefix(GOLDEN).ok().and_then(Path::to_str).expect("a folder of the goldens");
    let mut found = Deliberate::default();
    let mut about = false;
    for line in TABLE.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        match line.split_at(1) {
            ("=", header) => {
                let mut words = header.split(' ');
                let counts = match words.next() {
                    Some("") => true,
                    Some("rendered") => origin == Origin::Rendered,
                    other => panic!("{other:?} in the table of differences: {line}"),
                };
                let file = words.next().unwrap_or_default();
                assert!(DUMPS.contains(&file) || [LIST, CONNECTIONS].contains(&file), "no such dump: {line}");
                let scenarios: Vec<_> = words.collect();
                let known = scenarios.iter().all(|scenario| Path::new(GOLDEN).join(scenario).join(file).exists());
                assert!(known && !scenarios.is_empty(), "no such scenario: {line}");
                about = counts && file == dump && scenarios.contains(&scenario);
            }
            ("-", lacking) if about => found.lacking.push(lacking.trim_start()),
            ("+", more) if about => found.more.push(more.trim_start()),
            ("-" | "+", _) => (),
            _ => panic!("neither = nor - nor + in the table of differences: {line}"),
        }
    }
    found
}

/// `text` without each of `lines`, taken out once; those that are not in it go to `missing`.
fn without(text: &str, lines: &[&str], missing: &mut Vec<String>) -> String {
    let mut rest: Vec<_> = text.lines().collect();
    for line in lines {
        match rest.iter().position(|other| other == line) {
            Some(place) => drop(rest.remove(place)),
            None => missing.push(format!("the table of differences counts on this line: {line}\n")),
        }
    }
    rest.iter().flat_map(|line| [line, "\n"]).collect()
}

/// What differs between a dump of `scenario` and `have`, apart from what the table says; empty when nothing does.
pub fn undeliberate(scratch: &Scratch, scenario: &Path, dump: &str, have: &str, origin: Origin) -> String {
    let table = deliberate(scenario, dump, origin);
    let mut found = Vec::new();
    let want = without(&golden(scenario, dump), &table.lacking, &mut found);
    let have = without(have, &table.more, &mut found);
    found.push(judge(scratch, dump, &want, &have));
    found.concat()
}

/// As `undeliberate`, where nothing is deliberate.
pub fn any_difference(scratch: &Scratch, scenario: &Path, dump: &str, have: &str) -> String {
    judge(scratch, dump, &golden(scenario, dump), have)
}

fn golden(scenario: &Path, dump: &str) -> String {
    let text = fs::read_to_string(scenario.join(dump)).expect("a dump");
    match dump {
        LIST => list(&text),
        CONNECTIONS => without_numbers(&text),
        _ => text,
    }
}

fn judge(scratch: &Scratch, dump: &str, want: &str, have: &str) -> String {
    if want == have {
        return String::new();
    }
    if !dump.contains("iptables") {
        return lines_differ(want, have);
    }
    let thread = format!("{:?}", thread::current().id());
    let file = scratch.file(&format!("want-{}", thread.replace(|c: char| !c.is_ascii_digit(), "")));
    fs::write(&file, want).expect("a file");
    differences(scratch, &file, have)
}

fn lines_differ(want: &str, have: &str) -> String {
    let mut found = String::new();
    for (a, b, sign) in [(want, have, '-'), (have, want, '+')] {
        let b: HashSet<_> = b.lines().collect();
        a.lines().filter(|line| !b.contains(line)).for_each(|line| found.extend(["  ", &sign.to_string(), " ", line, "\n"]));
    }
    if found.is_empty() { "  the same lines, in another order or number\n".into() } else { found }
}

/// The texts that `sluice render --mode=ipvs` prints, by the name of their dump.
pub fn sections(rendered: &str) -> BTreeMap<&str, String> {
    let mut sections: BTreeMap<&str, String> = BTreeMap::new();
    let mut current = "";
    for line in rendered.lines() {
        match line.strip_prefix("# ") {
            Some(header) => {
                current = header.split(": ").next().unwrap_or_default();
                sections.entry(current).or_default();
            }
            None => sections.entry(current).or_default().extend([line, "\n"]),
        }
    }
    sections
}

/// Prints all of a node, with one shell: in the machine, to start a program takes long.
const LOOK: &str = "ipvsadm -Sn; echo @; ipset save; echo @; iptables-save; echo @; ip6tables-save; echo @; \
                    ip address show dev kube-ipvs0 || true; echo @; ipvsadm -Ln; echo @; ipvsadm -Lnc";

/// What a node has, by the name of the dump that has the like: the five, and those of a sequence's steps.
///
/// # Panics
/// When one of the tools fails.
pub fn dumps(node: &Namespace) -> BTreeMap<&'static str, String> {
    let printed = node.output(&["sh", "-ec", LOOK]);
    let texts: Vec<_> = printed.split("@\n").collect();
    let [servers, sets, v4, v6, device, listed, connected] = texts[..] else { panic!("not seven texts: {printed}") };
    let all = [
        (DUMPS[0], services(servers)),
        (DUMPS[1], sets_and_members(sets)),
        (DUMPS[2], v4.to_owned()),
        (DUMPS[3], v6.to_owned()),
        (DUMPS[4], addresses(device)),
        (LIST, list(listed)),
        (CONNECTIONS, connections(connected)),
    ];
    all.into()
}

/// `ipvsadm -Sn`, sorted.
pub fn services(printed: &str) -> String {
    let mut services: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let mut current = "";
    for line in printed.lines().map(str::trim_end) {
        if line.starts_with("-A ") {
            current = line;
            services.entry(line).or_default();
        } else {
            services.entry(current).or_default().insert(line);
        }
    }
    lines(services.into_iter().flat_map(|(service, servers)| [service].into_iter().chain(servers)))
}

/// `ipset save`, sorted, without what the tool and the kernel choose.
pub fn sets_and_members(printed: &str) -> String {
    let mut sets: BTreeMap<&str, (&str, BTreeSet<&str>)> = BTreeMap::new();
    for line in printed.lines() {
        let set = sets.entry(line.split(' ').nth(1).unwrap_or_default()).or_default();
        match line.strip_prefix("create ") {
            Some(_) => set.0 = line.split(" bucketsize ").next().unwrap_or_default(),
            None => drop(set.1.insert(line)),
        }
    }
    lines(sets.into_values().flat_map(|(create, members)| [create].into_iter().chain(members)))
}

/// `ip address` of the one device, if there is one: its name, state and the flag that matters, then its addresses.
fn addresses(printed: &str) -> String {
    let Some(header) = printed.lines().next() else { return String::new() };
    let name = header.split(": ").nth(1).unwrap_or_default();
    let state = header.split_once(" state ").and_then(|(_, rest)| rest.split(' ').next()).unwrap_or_default();
    let noarp = if header.contains("NOARP") { " noarp" } else { "" };
    let of_address = |line: &str| line.split(' ').take(4).collect::<Vec<_>>().join(" ");
    let found = printed.lines().map(str::trim).filter(|line| line.starts_with("inet"));
    let found: BTreeSet<_> = found.map(of_address).collect();
    format!("{name} {state}{noarp}\n") + &lines(found.iter().map(String::as_str))
}

/// `ipvsadm -Ln`, sorted, each real server on a line with its virtual server.
fn list(printed: &str) -> String {
    let mut found = BTreeSet::new();
    let mut current = String::new();
    for line in printed.lines().skip(3) {
        let words = line.split_whitespace().collect::<Vec<_>>().join(" ");
        if words.starts_with("->") {
            found.insert(format!("{current} {words}"));
        } else {
            current.clone_from(&words);
            found.insert(words);
        }
    }
    lines(found.iter().map(String::as_str))
}

/// `ipvsadm -Lnc`, sorted, without what differs from time to time: how long each still lives, and the client's port.
fn connections(printed: &str) -> String {
    let of_line = |line: &str| match line.split_whitespace().collect::<Vec<_>>()[..] {
        [protocol, _, state, client, at, real] => {
            let client = client.rsplit_once(':').map_or(client, |(address, _)| address);
            format!("{protocol} {state} {at} from {client} to {real}")
        }
        _ => line.to_owned(),
    };
    let mut found: Vec<_> = printed.lines().skip(2).map(of_line).collect();
    found.sort();
    lines(found.iter().map(String::as_str))
}

/// The text of a connections dump, sorted; which of the real servers each connection has is as it happens to be.
pub fn without_numbers(text: &str) -> String {
    let of_line = |line: &str| match line.strip_prefix("connection ").and_then(|rest| rest.split_once(": ")) {
        Some((_, answer)) => format!("connection: {answer}"),
        None => line.to_owned(),
    };
    let mut found: Vec<_> = text.lines().map(of_line).collect();
    found.sort();
    lines(found.iter().map(String::as_str))
}

fn lines<'a>(all: impl Iterator<Item = &'a str>) -> String {
    all.flat_map(|line| [line, "\n"]).collect()
}
