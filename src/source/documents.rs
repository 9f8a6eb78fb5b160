//! A manifest file, cut into documents at its `---` lines, so that an error can name the one it is in.
//!
//! Knows where documents begin and end and nothing of what is in them.

/// One document of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Document<'a> {
    /// From 1, blank ones counted, as a reader of the file would.
    pub number: usize,
    /// Line of the file on which `text` begins, from 1.
    pub line: usize,
    pub text: &'a str,
}

impl Document<'_> {
    /// Nothing but blank lines, comments and directives.
    pub(crate) fn is_blank(&self) -> bool {
        let mut lines = self.text.lines().map(str::trim);
        lines.all(|line| line.is_empty() || line.starts_with('#') || line.starts_with('%') || line == "...")
    }

    /// A JSON document, which is read faster as that.
    pub(crate) fn is_json(&self) -> bool {
        self.text.trim_start().starts_with('{')
    }

    /// The value of a key at the left margin, where it is plain to see: in block style such a line cannot
    /// be anything else. It saves reading each document twice.
    pub(crate) fn top_level(&self, key: &str) -> Option<&str> {
        self.text.lines().find_map(|line| {
            let value = line.strip_prefix(key)?.strip_prefix(':')?;
            let value = value.split(" #").next().unwrap_or_default().trim().trim_matches(['"', '\'']);
            let plain = value.bytes().all(|b| b.is_ascii_alphanumeric() || b"./-".contains(&b));
            (plain && !value.is_empty()).then_some(value)
        })
    }
}

/// The documents of `file`, blank ones left out.
///
/// What stands before the first `---` is a document too; `--- text` begins one with that text.
pub(crate) fn split(file: &str) -> impl Iterator<Item = Document<'_>> {
    let mut rest = Some(file.strip_prefix('\u{feff}').unwrap_or(file));
    let (mut number, mut line) = (0, 1);
    std::iter::from_fn(move || {
        loop {
            let (text, after, lines) = cut(rest?);
            rest = after;
            let document = Document { number: number + 1, line, text };
            line += lines;
            let blank = document.is_blank();
            // Blank text above the first separator is no document that anybody would count.
            number += usize::from(number > 0 || !blank || after.is_none());
            if !blank {
                return Some(document);
            }
        }
    })
}

/// Text up to the next separator, what follows the separator's three dashes, and how many lines before it.
fn cut(text: &str) -> (&str, Option<&str>, usize) {
    let mut offset = 0;
    for (count, line) in text.split_inclusive('\n').enumerate() {
        if is_separator(line) {
            return (&text[..offset], Some(&text[offset + 3..]), count);
        }
        offset += line.len();
    }
    (text, None, 0)
}

fn is_separator(line: &str) -> bool {
    line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn documents(file: &str) -> Vec<(usize, usize, &str)> {
        split(file).map(|d| (d.number, d.line, d.text.trim())).collect()
    }

    #[test]
    fn documents_are_numbered_and_know_their_line() {
        let file = "---\na: 1\n---\n# nothing\n--- # third\nb: 2\n---\nc: |\n  --- not here\n----\n";
        let expected = vec![(1, 1, "a: 1"), (3, 5, "# third\nb: 2"), (4, 7, "c: |\n  --- not here\n----")];
        assert_eq!(documents(file), expected);
        assert_eq!(documents("a: 1\n---\nb: 2"), [(1, 1, "a: 1"), (2, 2, "b: 2")]);
        assert_eq!(documents("# head\n\n---\r\na: 1\r\n---\r\n"), [(1, 3, "a: 1")]);
        assert_eq!(documents(""), []);
        assert_eq!(documents("---"), []);
    }

    #[test]
    fn kinds_are_seen_without_reading_the_document() {
        let document = Document { number: 1, line: 1, text: "apiVersion: v1 # core\n  kind: Nested\nkind: \"Service\"\n" };
        assert_eq!(document.top_level("kind"), Some("Service"));
        assert_eq!(document.top_level("apiVersion"), Some("v1"));
        assert_eq!(document.top_level("metadata"), None);
        let unclear = Document { text: "kind: [Service\n", ..document };
        assert_eq!(unclear.top_level("kind"), None);
    }
}
