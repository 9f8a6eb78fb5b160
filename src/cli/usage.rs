//! Arguments that cannot be used, told in one line: `error: what: cause`.
//!
//! clap's own messages take several lines and speak of its types; this says the same in the words of all
//! other errors.

use std::error::Error as _;

use clap::error::{ContextKind, ContextValue, ErrorKind};

/// The line for `error`, without `error: ` before it.
pub(super) fn line(error: &clap::Error) -> String {
    let flag = context(error, ContextKind::InvalidArg).map(|text| flag_name(&text));
    let value = context(error, ContextKind::InvalidValue).unwrap_or_default();
    match (error.kind(), flag) {
        (ErrorKind::UnknownArgument, Some(flag)) if flag.starts_with('-') => {
            let near = near(&flag).map(|near| format!("; did you mean --{near}?")).unwrap_or_default();
            format!("{flag}: there is no such flag{near} (sluice --help lists them)")
        }
        (ErrorKind::UnknownArgument, Some(word)) => stray(&word),
        (ErrorKind::InvalidSubcommand | ErrorKind::ArgumentConflict, _) => match context(error, ContextKind::InvalidSubcommand) {
            Some(word) if word == "render" => "render: a command stands before its flags".into(),
            Some(word) => stray(&word),
            None => first_line(error),
        },
        (ErrorKind::InvalidValue, Some(flag)) if value.is_empty() => format!("{flag}: a value is missing"),
        (ErrorKind::InvalidValue, Some(flag)) => {
            let allowed = context(error, ContextKind::ValidValue).unwrap_or_default();
            format!("{flag}: {value:?} is not one of {allowed}")
        }
        (ErrorKind::ValueValidation, Some(flag)) => {
            let cause = error.source().map_or_else(|| format!("{value:?} cannot be used"), ToString::to_string);
            format!("{flag}: {cause}")
        }
        _ => first_line(error),
    }
}

/// A flag that is a slip of the finger or two away.
fn near(flag: &str) -> Option<&'static str> {
    let typed = flag.trim_start_matches('-');
    let distances = super::flags::names().map(|name| (distance(typed, name), name));
    distances.filter(|(distance, _)| *distance <= 2).min().map(|(_, name)| name)
}

/// How many letters have to be put in, taken out or changed (Levenshtein).
fn distance(from: &str, to: &str) -> usize {
    let mut row: Vec<_> = (0..=to.len()).collect();
    for (i, a) in from.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in to.bytes().enumerate() {
            let changed = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[to.len()]
}

fn stray(word: &str) -> String {
    format!("{word:?}: sluice takes flags, and one command: render (sluice --help lists them)")
}

fn context(error: &clap::Error, kind: ContextKind) -> Option<String> {
    match error.get(kind)? {
        ContextValue::String(text) => Some(text.clone()),
        ContextValue::Strings(texts) => Some(texts.join(", ")),
        _ => None,
    }
}

/// clap calls a flag `--name <VALUE>`, `--name[=<VALUE>]` or `--name=value`.
fn flag_name(text: &str) -> String {
    text.split([' ', '[', '=']).next().unwrap_or_default().into()
}

fn first_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let first = text.lines().next().unwrap_or_default();
    first.strip_prefix("error: ").unwrap_or(first).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_of_the_finger_are_recognised() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(near("--cluster-cird"), Some("cluster-cidr"));
        assert_eq!(near("--bogus"), None);
    }
}
