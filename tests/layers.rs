//! The direction of the data (ARCHITECTURE.md) as a test: which module may import which of ours, and which outside
//! words the pure middle must not know.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Module and what it may use of ours. `agent`, `cli` and `main` join everything and may use all.
const MAY_USE: &[(&str, &[&str])] = &[
    ("net", &[]),
    ("config", &["net"]),
    ("sysctl", &[]),
    ("logging", &["config"]),
    ("files", &[]),
    ("ruleset", &["net"]),
    ("model", &["config", "net"]),
    ("render", &["config", "model", "net", "ruleset"]),
    ("netlink", &["net", "ruleset"]),
    ("source", &["files", "model", "net"]),
    ("serve", &["model", "net"]),
    ("sync", &["config", "model", "net", "netlink", "render", "ruleset", "serve"]),
];

/// Modules without clock, socket, log, metric or lock, and the words that would let one in.
const PURE: [&str; 5] = ["config", "model", "net", "render", "ruleset"];
const IMPURE: [&str; 11] = [
    "tokio",
    "tracing",
    "prometheus_client",
    "std::fs",
    "std::thread",
    "std::sync::Mutex",
    "std::time::Instant",
    "std::time::SystemTime",
    "std::env",
    "println!",
    "libc",
];

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("src") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// The files of each module of src/, by module.
fn modules() -> BTreeMap<String, Vec<PathBuf>> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    rust_files(&src, &mut files);
    let mut modules: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for file in files {
        let below = file.strip_prefix(&src).expect("below src").to_owned();
        let first = below.components().next().expect("a name").as_os_str().to_string_lossy().into_owned();
        modules.entry(first.trim_end_matches(".rs").to_owned()).or_default().push(file);
    }
    modules
}

/// The code of a file, without comments.
fn code(file: &Path) -> String {
    let text = fs::read_to_string(file).expect("a source file");
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// What stands behind `crate::` in `code`.
fn imports(code: &str) -> BTreeSet<&str> {
    let end = |rest: &str| rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
    code.split("crate::").skip(1).map(|rest| &rest[..end(rest)]).filter(|name| !name.is_empty()).collect()
}

#[test]
fn every_module_uses_only_what_it_may() {
    let modules = modules();
    let mut wrong = Vec::new();
    for (module, may) in MAY_USE {
        for file in modules.get(*module).unwrap_or_else(|| panic!("no module {module}")) {
            let code = code(file);
            let others = imports(&code).into_iter().filter(|used| used != module && !may.contains(used));
            wrong.extend(others.filter(|used| modules.contains_key(*used)).map(|used| format!("{} uses {used}", file.display())));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_module_has_its_place_in_the_table() {
    let free = ["agent", "cli", "lib", "main"];
    let known = |module: &str| free.contains(&module) || MAY_USE.iter().any(|(name, _)| *name == module);
    let unknown: Vec<_> = modules().into_keys().filter(|module| !known(module)).collect();
    assert!(unknown.is_empty(), "not in the table of tests/layers.rs: {unknown:?}");
}

#[test]
fn the_middle_knows_no_clock_socket_log_or_lock() {
    let modules = modules();
    let files = PURE.iter().flat_map(|module| &modules[*module]);
    let words = files.flat_map(|file| {
        let code = code(file);
        IMPURE.iter().filter(move |word| code.contains(**word)).map(move |word| format!("{} says {word}", file.display()))
    });
    let words: Vec<_> = words.collect();
    assert!(words.is_empty(), "{}", words.join("\n"));
}

#[test]
fn unsafe_code_stands_in_one_file() {
    let files = modules().into_values().flatten();
    let with_unsafe: Vec<_> = files.filter(|file| code(file).contains("unsafe ")).collect();
    assert!(
        matches!(with_unsafe.as_slice(), [one] if one.ends_with("netlink/socket.rs")),
        "only netlink/socket.rs may hold unsafe code: {with_unsafe:?}"
    );
}
