//! The golden dumps of ipvs mode (tests/golden/README.md): which scenarios have them, and what may differ from them.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use super::Scratch;
use super::golden::{GOLDEN, differences, folders, name};

/// The five dumps of a scenario.
pub const DUMPS: [&str; 5] =
    ["ipvs-services.txt", "ipvs-ipset.txt", "ipvs-iptables-v4.save", "ipvs-iptables-v6.save", "ipvs-addresses.txt"];

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
fn deliberate(scenario: &str, dump: &str, origin: Origin) -> Deliberate {
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
                assert!(DUMPS.contains(&file), "no such dump: {line}");
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
    let table = deliberate(name(scenario), dump, origin);
    let golden = fs::read_to_string(scenario.join(dump)).expect("a dump");
    let mut found = Vec::new();
    let want = without(&golden, &table.lacking, &mut found);
    let have = without(have, &table.more, &mut found);
    if dump.contains("iptables") {
        let thread = format!("{:?}", thread::current().id());
        let file = scratch.file(&format!("want-{}", thread.replace(|c: char| !c.is_ascii_digit(), "")));
        fs::write(&file, want).expect("a file");
        found.push(differences(scratch, &file, &have));
    } else if want != have {
        found.push(lines_differ(&want, &have));
    }
    found.concat()
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
