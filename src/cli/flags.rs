//! How clap is told of the flags, and how values are read off it.

use std::ffi::OsString;

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, builder::PossibleValuesParser};

use super::table::{Effect, FLAGS, Flag, Kind, Origin};
use crate::config::{GoDuration, Mode, Tree, parse_bool};

/// The flags of every command.
pub(super) fn args() -> Vec<Arg> {
    FLAGS.iter().map(arg).collect()
}

/// `render --family`.
pub(super) fn family() -> Arg {
    let arg = Arg::new("family").long("family").help("Print one family only [default: both]");
    arg.value_parser(PossibleValuesParser::new(["ipv4", "ipv6"]))
}

fn arg(flag: &'static Flag) -> Arg {
    let arg = Arg::new(flag.name).long(flag.name).help_heading(flag.heading).help(flag.help);
    let arg = match flag.kind {
        Kind::Bool => arg.num_args(0..=1).require_equals(true).default_missing_value("true").value_name("true|false"),
        Kind::Version => arg.num_args(0..=1).require_equals(true).default_missing_value("true").value_name("true|raw").short('V'),
        Kind::Text => arg.value_name("TEXT"),
        // A value that begins with a minus is a bad value and no other flag.
        Kind::Whole | Kind::Decimal => arg.value_name("N").allow_hyphen_values(true),
        Kind::Duration => arg.value_name("DURATION").allow_hyphen_values(true),
        Kind::Level => arg.value_name("LEVEL").allow_hyphen_values(true).short('v'),
        Kind::List => arg.value_name("LIST"),
        Kind::Gates => arg.value_name("GATE=true|false"),
        Kind::Modules => arg.value_name("MODULE=LEVEL"),
    };
    let kind = flag.kind;
    let arg = arg.value_parser(move |text: &str| read(kind, text));
    // pflag lets the last one count where a flag is repeated; lists grow.
    let arg = if is_list(kind) { arg.value_delimiter(',').action(ArgAction::Append) } else { arg.overrides_with(flag.name) };
    let arg = if flag.default.is_empty() { arg } else { arg.default_value(flag.default) };
    let arg = arg.hide_default_value(kind == Kind::Version);
    let arg = if flag.name == "proxy-mode" { arg.visible_alias("mode") } else { arg };
    arg.hide(flag.effect == Effect::None)
}

fn is_list(kind: Kind) -> bool {
    matches!(kind, Kind::List | Kind::Gates | Kind::Modules)
}

/// A value of a flag, or one of those of a list.
fn read(kind: Kind, text: &str) -> Result<Tree, String> {
    match kind {
        Kind::Bool => parse_bool(text).map(Tree::Bool),
        Kind::Whole => whole(text, of_go).map(Tree::Whole),
        Kind::Level => level(text).map(Tree::Whole),
        Kind::Decimal => decimal(text).map(Tree::Decimal),
        Kind::Duration => GoDuration::parse(text).map(|duration| Tree::Text(duration.to_string())),
        Kind::Text | Kind::List | Kind::Version => Ok(Tree::Text(text.to_owned())),
        Kind::Gates => pair(text, "Gate=true or Gate=false", parse_bool).map(|gate| of_pair(gate, Tree::Bool)),
        Kind::Modules => pair(text, "module=4", level).map(|module| of_pair(module, Tree::Whole)),
    }
}

fn whole(text: &str, read: fn(&str) -> Option<i64>) -> Result<i64, String> {
    read(text).ok_or_else(|| format!("{text:?} is not a whole number"))
}

/// Beginnings of numbers that are not decimal.
const BASES: [(&str, u32); 4] = [("0x", 16), ("0o", 8), ("0b", 2), ("0", 8)];

/// A number as Go writes it in its own source: `14`, `0xe`, `0o16`, `0b1110`, and `016` is the same.
fn of_go(text: &str) -> Option<i64> {
    let digits = text.trim_start_matches(['+', '-']);
    let sign = match &text[..text.len() - digits.len()] {
        "" | "+" => 1,
        "-" => -1,
        _ => return None,
    };
    let lower = digits.to_ascii_lowercase();
    let based = BASES.iter().find_map(|(prefix, base)| lower.strip_prefix(prefix).map(|rest| (rest, *base)));
    let (rest, base) = based.filter(|_| lower != "0").unwrap_or((&lower, 10));
    let number = rest.starts_with(|c: char| c.is_ascii_alphanumeric()).then(|| i64::from_str_radix(rest, base).ok())??;
    Some(sign * number)
}

fn decimal(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|value: &f64| value.is_finite()).ok_or_else(|| format!("{text:?} is not a number"))
}

/// Levels above the highest are the highest, as in klog.
fn level(text: &str) -> Result<i64, String> {
    let level = whole(text, |text| text.parse().ok())?.min(i32::MAX.into());
    if level < 0 { Err(format!("{level} is below 0")) } else { Ok(level) }
}

/// Reads `name=value`. Nothing is no pair, as in `--feature-gates=`, and no error either.
fn pair<T>(text: &str, form: &str, read: fn(&str) -> Result<T, String>) -> Result<Option<(String, T)>, String> {
    if text.trim().is_empty() {
        return Ok(None);
    }
    let (name, value) = text.split_once('=').ok_or_else(|| format!("{text:?} is not of the form {form}"))?;
    let value = read(value.trim()).map_err(|cause| format!("{}: {cause}", name.trim()))?;
    Ok(Some((name.trim().to_owned(), value)))
}

fn of_pair<T>(pair: Option<(String, T)>, value: fn(T) -> Tree) -> Tree {
    pair.map_or(Tree::Null, |(name, given)| Tree::Map(vec![(name, value(given))]))
}

/// kube-proxy takes `_` for `-` in the names of flags.
pub(super) fn normalized(argument: OsString) -> OsString {
    let Some(flag) = argument.to_str().and_then(|text| text.strip_prefix("--")) else { return argument };
    let name = flag.split('=').next().unwrap_or_default();
    if !name.contains('_') {
        return argument;
    }
    format!("--{}{}", name.replace('_', "-"), &flag[name.len()..]).into()
}

/// The long names of all flags.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    FLAGS.iter().map(|flag| flag.name).chain(["mode", "help"])
}

/// What `--help` says below the flags.
pub(super) fn afterword() -> String {
    let idle = FLAGS.iter().filter(|flag| flag.effect == Effect::None);
    let idle: Vec<_> = idle.map(|flag| format!("  --{}: {}", flag.name, flag.help)).collect();
    let idle = idle.join("\n");
    format!(
        "Accepted for kube-proxy's sake, without effect (a use is named in the log), and why:\n{idle}\n\n\
         Not built into this version yet: --proxy-mode=nftables\n\n\
         Exit codes: 0 done, 1 failed, 2 arguments that cannot be used."
    )
}

pub(super) fn is_given(matches: &ArgMatches, name: &str) -> bool {
    matches.value_source(name) == Some(ValueSource::CommandLine)
}

/// The value of a flag, given or by default, as its field in the configuration takes it.
pub(super) fn value(matches: &ArgMatches, flag: &Flag) -> Tree {
    let items = || matches.get_many::<Tree>(flag.name).into_iter().flatten();
    match flag.kind {
        Kind::List => Tree::List(items().filter(|item| **item != Tree::Text(String::new())).cloned().collect()),
        Kind::Gates => {
            // The last word on a gate counts.
            let mut gates = Tree::Map(Vec::new());
            pairs(items()).for_each(|(name, enabled)| put_gate(&mut gates, name, enabled));
            gates
        }
        Kind::Modules => Tree::List(pairs(items()).map(|(name, level)| module(name, level)).collect()),
        _ => matches.get_one::<Tree>(flag.name).cloned().unwrap_or(Tree::Text(String::new())),
    }
}

fn pairs<'a>(items: impl Iterator<Item = &'a Tree>) -> impl Iterator<Item = (&'a String, &'a Tree)> {
    items.filter_map(|item| match item {
        Tree::Map(entries) => entries.first().map(|(name, value)| (name, value)),
        _ => None,
    })
}

fn put_gate(gates: &mut Tree, name: &str, enabled: &Tree) {
    let Tree::Map(entries) = gates else { return };
    entries.retain(|(known, _)| known != name);
    entries.push((name.to_owned(), enabled.clone()));
}

fn module(name: &str, level: &Tree) -> Tree {
    Tree::Map(vec![("filePattern".into(), Tree::Text(name.to_owned())), ("verbosity".into(), level.clone())])
}

fn find(name: &str) -> Option<&'static Flag> {
    FLAGS.iter().find(|flag| flag.name == name)
}

pub(super) fn text(matches: &ArgMatches, name: &str) -> String {
    match find(name).map(|flag| value(matches, flag)) {
        Some(Tree::Text(text)) => text,
        _ => String::new(),
    }
}

pub(super) fn is_set(matches: &ArgMatches, name: &str) -> bool {
    find(name).map(|flag| value(matches, flag)) == Some(Tree::Bool(true))
}

pub(super) fn number(matches: &ArgMatches, name: &str) -> i64 {
    match find(name).map(|flag| value(matches, flag)) {
        Some(Tree::Whole(number)) => number,
        _ => 0,
    }
}

pub(super) fn list(matches: &ArgMatches, name: &str) -> Vec<String> {
    let Some(Tree::List(items)) = find(name).map(|flag| value(matches, flag)) else { return Vec::new() };
    items.into_iter().filter_map(|item| if let Tree::Text(text) = item { Some(text) } else { None }).collect()
}

/// Of a flag that takes durations only.
pub(super) fn duration(matches: &ArgMatches, name: &str) -> GoDuration {
    GoDuration::parse(&text(matches, name)).unwrap_or_default()
}

/// Is the version asked for?
pub(super) fn wants_version(matches: &ArgMatches) -> bool {
    // `--version=v1.36.2` has kube-proxy call itself that, and run.
    let text = text(matches, "version");
    text == "raw" || parse_bool(&text) == Ok(true)
}

/// Other words than those for a version.
pub(super) fn bad_version(matches: &ArgMatches) -> Option<String> {
    let text = text(matches, "version");
    let known = text == "raw" || parse_bool(&text).is_ok() || text.starts_with('v');
    (!known).then(|| format!("--version: {text:?} is not true, false, raw, or a version such as v1.36.2"))
}

/// The flags that were given and do nothing in any mode.
pub(super) fn without_effect(matches: &ArgMatches) -> impl Iterator<Item = &'static str> + '_ {
    let idle = FLAGS.iter().filter(|flag| flag.effect == Effect::None).map(|flag| flag.name);
    let version = ["version"].into_iter().filter(|name| text(matches, name).starts_with('v'));
    idle.filter(|name| is_given(matches, name)).chain(version)
}

/// The flags that were given and do nothing in this mode.
pub(super) fn of_other_modes(matches: &ArgMatches, mode: Mode) -> impl Iterator<Item = &'static Flag> + '_ {
    let others = FLAGS.iter().filter(move |flag| matches!(flag.effect, Effect::In(other) if other != mode));
    others.filter(|flag| is_given(matches, flag.name))
}

/// The flags that were given and do nothing because there is a file.
pub(super) fn replaced_by_file(matches: &ArgMatches) -> impl Iterator<Item = &'static str> + '_ {
    let replaced = FLAGS.iter().filter(|flag| flag.origin == Origin::KubeProxy);
    replaced.map(|flag| flag.name).filter(|name| is_given(matches, name))
}

/// All flags with their values as Go writes them, sorted by name.
pub(super) fn shown(matches: &ArgMatches) -> Vec<(String, String)> {
    let shown = FLAGS.iter().map(|flag| {
        let value = go_form(&value(matches, flag));
        (flag.name.to_owned(), if flag.kind == Kind::List { format!("[{value}]") } else { value })
    });
    let mut shown: Vec<_> = shown.chain([("help".to_owned(), "false".to_owned())]).collect();
    shown.sort();
    shown
}

fn go_form(value: &Tree) -> String {
    match value {
        Tree::Text(text) => text.clone(),
        Tree::Map(gates) => {
            let mut gates: Vec<_> = gates.iter().map(|(name, enabled)| format!("{name}={enabled}")).collect();
            gates.sort();
            gates.join(",")
        }
        Tree::List(items) => {
            let item = |item: &Tree| match item {
                Tree::Map(module) => module.iter().map(|(_, value)| go_form(value)).collect::<Vec<_>>().join("="),
                other => go_form(other),
            };
            items.iter().map(item).collect::<Vec<_>>().join(",")
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_go_reads_them() {
        for (text, number) in [
            ("14", 14),
            ("0", 0),
            ("-0", 0),
            ("+7", 7),
            ("-998", -998),
            ("0xE", 14),
            ("0o16", 14),
            ("0b1110", 14),
            ("016", 14),
            ("-0x1", -1),
        ] {
            assert_eq!(of_go(text), Some(number), "{text}");
        }
        for bad in ["", "-", "--1", "x", "1.5", "08", "0x", "0x-1", "1 ", "99999999999999999999"] {
            assert_eq!(of_go(bad), None, "{bad}");
        }
        assert_eq!((level("010"), level("99999999999")), (Ok(10), Ok(i32::MAX.into())), "levels are decimal");
    }
}
