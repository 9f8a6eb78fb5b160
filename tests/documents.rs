//! The documents say what is so: every flag, field and log line has its place in them, and what they refer to is there.
//! Metrics: tests/metrics.rs.

#![allow(clippy::unwrap_used, reason = "test code: a panic is a failed test")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const BINARY: &str = env!("CARGO_BIN_EXE_sluice");

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// All files below the root with this ending, but for what is built.
fn files(ending: &str) -> Vec<PathBuf> {
    let mut folders = vec![root().to_owned()];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let (path, name) = (entry.path(), entry.file_name().into_string().unwrap());
            if entry.file_type().unwrap().is_dir() {
                if name != "target" && !name.starts_with('.') {
                    folders.push(path);
                }
            } else if name.ends_with(ending) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// The cells of the tables of a document, by row; those of heads and rules are left out.
fn rows(document: &str) -> Vec<Vec<String>> {
    let lines: Vec<_> = document.lines().collect();
    let is_head = |n: usize| lines.get(n + 1).is_some_and(|next| next.starts_with("|---"));
    let body = |n: &usize| lines[*n].starts_with("| ") && !is_head(*n);
    let cells = |line: &str| line.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect();
    (0..lines.len()).filter(body).map(|n| cells(lines[n])).collect()
}

/// What stands between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

fn run(arguments: &[&str]) -> String {
    let output = Command::new(BINARY).args(arguments).env("COLUMNS", "1000").output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The flags of `--help` with their defaults; empty: it tells none. On so wide a screen each has one line.
fn flags() -> BTreeMap<String, String> {
    let mut flags = BTreeMap::new();
    for line in run(&["--help"]).lines().filter(|line| line.trim_start().starts_with('-')) {
        let (_, rest) = line.split_once("--").unwrap();
        let name = rest.split(|c: char| !c.is_ascii_lowercase() && c != '-').next().unwrap();
        let between = |start, end| line.split_once(start).and_then(|(_, rest)| rest.split(end).next()).unwrap_or_default();
        flags.insert(name.to_owned(), between("[default: ", ']').to_owned());
        flags.extend(
            Some(between("[alias: --", ']').to_owned()).filter(|alias| !alias.is_empty()).map(|alias| (alias, String::new())),
        );
    }
    flags
}

/// The values of a file that `--write-config-to` wrote, by the path of their field.
fn fields(mode: &str) -> BTreeMap<String, String> {
    let path = std::env::temp_dir().join(format!("sluice-documents-{}-{mode}.yaml", std::process::id()));
    run(&[&format!("--mode={mode}"), &format!("--write-config-to={}", path.display())]);
    let text = fs::read_to_string(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let mut above: Vec<&str> = Vec::new();
    let mut fields = BTreeMap::new();
    for line in text.lines() {
        let (key, value) = line.trim_start().split_once(':').unwrap();
        above.truncate((line.len() - line.trim_start().len()) / 2);
        above.push(key);
        if !value.is_empty() {
            fields.insert(above.join("."), value.trim().trim_matches('"').to_owned());
        }
    }
    fields.remove("kind");
    fields.remove("apiVersion");
    fields
}

/// Go writes `24h` as `24h0m0s`.
fn short(duration: &str) -> &str {
    let text = duration.strip_suffix("m0s").map_or(duration, |_| &duration[..duration.len() - 2]);
    text.strip_suffix("h0m").map_or(text, |_| &text[..text.len() - 2])
}

/// The rows of docs/configuration.md: flags, fields, default.
fn documented() -> Vec<[String; 3]> {
    let rows = rows(&read("docs/configuration.md"));
    rows.into_iter()
        .map(|row| <[String; 5]>::try_from(row).unwrap())
        .map(|[flag, field, default, ..]| [flag, field, default])
        .collect()
}

/// The same value, where both tell one.
fn agree(told: &str, cell: &str) -> bool {
    let cell = cell.trim_matches('`');
    told.is_empty() || told == "null" || cell == short(told) || told == "all" && cell == "–"
}

#[test]
fn every_flag_stands_in_the_configuration_with_its_default() {
    let (flags, documented) = (flags(), documented());
    let named: BTreeSet<_> =
        documented.iter().flat_map(|[flag, ..]| quoted(flag)).filter_map(|name| name.strip_prefix("--")).collect();
    assert_eq!(named, flags.keys().map(String::as_str).collect());
    for [flag, _, default] in &documented {
        for name in quoted(flag).filter_map(|name| name.strip_prefix("--")) {
            let told = &flags[name];
            assert!(agree(told, default) || told == "the host's name", "--{name}: {told} is documented as {default}");
        }
    }
}

#[test]
fn every_field_stands_in_the_configuration_with_its_default() {
    let documented = documented();
    let cells = documented.iter().filter(|[_, field, _]| field != "–");
    let defaults: BTreeMap<_, _> = cells.map(|[_, field, default]| (field.trim_matches('`'), default)).collect();
    // What is written only where it is not as by default.
    let unwritten = [
        "featureGates",
        "logging.vmodule",
        "logging.options.json.splitStream",
        "logging.options.text.splitStream",
        "windowsRunAsService",
    ];
    let written = fields("iptables");
    let known: BTreeSet<_> = written.keys().map(String::as_str).chain(unwritten).collect();
    assert_eq!(defaults.keys().copied().collect::<BTreeSet<_>>(), known);
    // Of ipvs mode the periods count, and are told, in that mode alone.
    for (field, value) in fields("ipvs").iter().filter(|(field, _)| field.starts_with("ipvs.")).chain(&written) {
        let other_mode = field.starts_with("ipvs.") && written[field] == *value;
        assert!(agree(value, defaults[&**field]) || other_mode, "{field}: {value} is documented as {}", defaults[&**field]);
    }
}

#[test]
fn what_differs_names_a_test_that_exists() {
    let sources: String = files(".rs").iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    let mut named = 0;
    for row in rows(&read("docs/differences.md")) {
        let [behaviour, _, _, _, test] = <[String; 5]>::try_from(row).unwrap_or_else(|row| panic!("five cells: {row:?}"));
        let tests: Vec<_> = quoted(&test).collect();
        assert!(!tests.is_empty(), "{behaviour}: no test is named");
        for test in tests {
            let exists = if test.contains('/') { root().join(test).exists() } else { sources.contains(&format!("fn {test}(")) };
            assert!(exists, "{behaviour}: there is no {test}");
            named += 1;
        }
    }
    assert!(named > 60, "the table was read: {named}");
}

/// As GitHub makes them.
fn anchor(heading: &str) -> String {
    let plain = heading.trim_start_matches('#').trim().to_lowercase();
    plain.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).map(|c| if c == ' ' { '-' } else { c }).collect()
}

fn anchors(document: &str) -> BTreeSet<String> {
    document.lines().filter(|line| line.starts_with('#')).map(anchor).collect()
}

/// The targets of a document's links and pictures; those of code are none.
fn links(document: &str) -> Vec<String> {
    let prose = document.lines().filter(|line| !line.starts_with("    "));
    let text: String = prose.flat_map(|line| line.split('`').step_by(2).chain(["\n"])).collect();
    let inline = text.split("](").skip(1).filter_map(|rest| rest.split([')', ' ']).next());
    let html = ["src=\"", "href=\"", "srcset=\""].into_iter().flat_map(|attribute| text.split(attribute).skip(1));
    inline.chain(html.filter_map(|rest| rest.split('"').next())).map(Into::into).collect()
}

#[test]
fn every_link_leads_somewhere() {
    let mut broken = Vec::new();
    let mut count = 0;
    for path in files(".md") {
        let text = fs::read_to_string(&path).unwrap();
        for link in links(&text).into_iter().filter(|link| !link.contains("://") && !link.starts_with("mailto:")) {
            count += 1;
            let (file, section) = link.split_once('#').unwrap_or((&link, ""));
            let target = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            let there = target.exists()
                && (section.is_empty() || fs::read_to_string(&target).is_ok_and(|text| anchors(&text).contains(section)));
            if !there {
                broken.push(format!("{}: {link}", path.strip_prefix(root()).unwrap().display()));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    assert!(count > 20, "links were found: {count}");
}

/// The text of the first literal behind a macro's name, with what lines are broken by taken out.
fn literal(code: &str) -> String {
    let mut text = String::new();
    let mut chars = code[code.find('"').unwrap() + 1..].chars().peekable();
    loop {
        match chars.next().unwrap() {
            '"' => return text,
            '\\' if chars.peek() == Some(&'\n') => while chars.next_if(|c| c.is_whitespace()).is_some() {},
            '\\' => text.extend(chars.next()),
            c => text.push(c),
        }
    }
}

/// What is the same in each line that a format string makes, in pieces.
fn pieces(format: &str) -> Vec<&str> {
    let pieces = format.split('{').enumerate();
    pieces.map(|(n, piece)| if n == 0 { piece } else { piece.split_once('}').unwrap().1 }).collect()
}

/// Where a line says nothing but what is put into it, its parts are told of elsewhere.
#[test]
fn every_log_line_stands_in_the_operations() {
    let operations = read("docs/operations.md").replace('`', "");
    let mut missing = Vec::new();
    let mut count = 0;
    for path in files(".rs").iter().filter(|path| path.starts_with(root().join("src"))) {
        let text = fs::read_to_string(path).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap();
        for name in ["error!(", "warn!(", "info!("] {
            for (at, _) in code.match_indices(name) {
                let format = literal(&code[at..]).replace('`', "");
                let longest = pieces(&format).into_iter().max_by_key(|piece| piece.len()).unwrap();
                if longest.trim().len() > 3 {
                    count += 1;
                    if !operations.contains(longest.trim()) {
                        missing.push(format!("{}: {longest}", path.strip_prefix(root()).unwrap().display()));
                    }
                }
            }
        }
    }
    assert!(missing.is_empty(), "not in docs/operations.md:\n{}", missing.join("\n"));
    assert!(count > 50, "log lines were found: {count}");
}

/// The other way round: what is said to stand in the log does, or did stand in an error.
#[test]
fn no_log_line_is_made_up() {
    let sources: String = files(".rs")
        .iter()
        .filter(|path| path.starts_with(root().join("src")))
        .map(|path| fs::read_to_string(path).unwrap())
        .flat_map(|text| text.lines().map(|line| format!("{}\n", line.trim_start())).collect::<Vec<_>>())
        .collect();
    let sources = sources.replace("\\\n", "").replace("\\\"", "\"").replace('`', "");
    for document in ["docs/operations.md", "docs/troubleshooting.md"] {
        for row in rows(&read(document)).iter().filter(|row| row[0].starts_with('`') && row[0].contains(' ')) {
            for line in quoted(&row[0]) {
                let pieces = line.split('…').map(|piece| piece.trim_matches([' ', ':', ';', ',']));
                for piece in pieces.filter(|piece| piece.len() > 3) {
                    assert!(sources.contains(piece), "{document}: no line says {piece:?}");
                }
            }
        }
    }
}
