//! YAML as kube-proxy writes it: sorted by key, lists not indented, and quotes where Go puts them.

use std::fmt::Write as _;

use serde_json::Value;

/// The text of a mapping.
pub(super) fn sorted(value: &Value) -> String {
    let mut out = String::new();
    write(&mut out, value, 0);
    out
}

/// Writes a mapping or a list, each entry on lines of its own.
fn write(out: &mut String, value: &Value, indent: usize) {
    match value {
        Value::Object(map) => {
            // Some features of serde_json keep the order of insertion.
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by_key(|(key, _)| *key);
            for (index, (key, value)) in entries.into_iter().enumerate() {
                // The first key of a mapping in a list stands behind the dash.
                let behind_a_dash = index == 0 && out.ends_with("- ");
                let margin = if behind_a_dash { 0 } else { indent };
                _ = write!(out, "{:margin$}{}:", "", scalar(&Value::from(key.as_str())));
                below(out, value, indent);
            }
        }
        Value::Array(items) => {
            for item in items {
                _ = write!(out, "{:indent$}- ", "");
                match item {
                    Value::Object(map) if !map.is_empty() => write(out, item, indent + 2),
                    _ => _ = writeln!(out, "{}", scalar(item)),
                }
            }
        }
        _ => {}
    }
}

/// Writes what stands behind a key's colon.
fn below(out: &mut String, value: &Value, indent: usize) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            out.push('\n');
            write(out, value, indent + 2);
        }
        Value::Array(items) if !items.is_empty() => {
            out.push('\n');
            write(out, value, indent);
        }
        _ => _ = writeln!(out, " {}", scalar(value)),
    }
}

/// A value on one line. JSON is YAML too, so that it serves where plain text does not.
fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => quoted(text),
        other => other.to_string(),
    }
}

fn quoted(text: &str) -> String {
    // Words that a reader of YAML 1.1, such as Go's, takes for true and false.
    const WORDS: [&str; 6] = ["y", "n", "yes", "no", "on", "off"];
    let same = serde_norway::from_str::<serde_norway::Value>(text).is_ok_and(|read| read.as_str() == Some(text));
    let special = |c: char| c.is_control() || "\u{feff}\u{2028}\u{2029}".contains(c);
    let number = text.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c))
        && text.chars().all(|c| c.is_ascii_hexdigit() || "+-._:xo".contains(c))
        && !text.contains('.');
    if text.is_empty() || text.contains(special) || WORDS.contains(&text.to_lowercase().as_str()) || number {
        return Value::from(text).to_string();
    }
    // What serde reads back as the same text needs no quotes but where it is no plain scalar to begin with.
    let plain = text.chars().all(|c| c.is_ascii_alphanumeric() || "-_./:,@+= ".contains(c)) && !text.contains(": ");
    match (same, plain) {
        (true, true) => text.to_owned(),
        (false, true) => Value::from(text).to_string(),
        (_, false) => format!("'{}'", text.replace('\'', "''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_sorted_and_lists_are_not_indented() {
        let value = serde_json::json!({
            "b": {"y": 1, "x": null}, "a": ["one", "two"], "c": [], "d": {}, "e": [{"k": 1, "l": true}],
        });
        assert_eq!(sorted(&value), "a:\n- one\n- two\nb:\n  x: null\n  \"y\": 1\nc: []\nd: {}\ne:\n- k: 1\n  l: true\n");
    }

    #[test]
    fn text_is_quoted_where_it_would_be_read_as_something_else() {
        let table = [
            ("", r#""""#),
            ("0", r#""0""#),
            ("5.5", r#""5.5""#),
            ("true", r#""true""#),
            ("null", r#""null""#),
            ("off", r#""off""#),
            ("1m0s", "1m0s"),
            ("12:30", r#""12:30""#),
            ("0.0.0.0:10256", "0.0.0.0:10256"),
            ("[::]:10256", "'[::]:10256'"),
            ("::", r#""::""#),
            ("it's {odd}", "'it''s {odd}'"),
            ("two\nlines", r#""two\nlines""#),
            ("/etc/kube-proxy/kubeconfig", "/etc/kube-proxy/kubeconfig"),
            ("10.244.0.0/16,fd00:244::/64", "10.244.0.0/16,fd00:244::/64"),
        ];
        for (text, written) in table {
            let line = sorted(&serde_json::json!({ "k": text }));
            let read: Value = serde_norway::from_str(&line).unwrap();
            assert_eq!((read["k"].as_str(), line.as_str()), (Some(text), format!("k: {written}\n").as_str()));
        }
    }
}
