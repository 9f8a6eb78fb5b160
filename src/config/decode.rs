//! From a [`Tree`] to typed values: what a field expects, and where the tree has something else.
//!
//! Reading goes on where something is wrong, so that everything is named at once; what is not known is passed over and
//! noted.

use std::collections::BTreeMap;

use super::duration::GoDuration;
use super::tree::Tree;
use super::{Invalid, Problems};

/// Where the reader is in the tree, and what it found.
#[derive(Debug, Default)]
pub(super) struct Reader {
    /// The path, as it is written: `conntrack.maxPerCore`, `nodePortAddresses[1]`.
    path: String,
    pub unknown: Vec<String>,
    pub duplicate: Vec<String>,
    pub problems: Problems,
}

impl Reader {
    /// Has `field` read what stands below `key`.
    pub fn below(&mut self, key: &str, field: &mut dyn Field, tree: &Tree) {
        let parent = self.path.len();
        if parent > 0 && !key.starts_with('[') {
            self.path.push('.');
        }
        self.path.push_str(key);
        if *tree != Tree::Null {
            field.take(tree, self);
        }
        self.path.truncate(parent);
    }

    fn at(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// Reads a mapping: `known` reads the value of a key, or says that there is no such field.
    pub fn section(&mut self, tree: &Tree, known: &mut dyn FnMut(&mut Self, &str, &Tree) -> bool) {
        let Tree::Map(entries) = tree else { return self.wrong(tree, "a mapping") };
        for (index, (key, value)) in entries.iter().enumerate() {
            if entries[..index].iter().any(|(earlier, _)| earlier == key) {
                self.duplicate.push(self.at(key));
            }
            if !known(self, key, value) {
                self.unknown.push(self.at(key));
            }
        }
    }

    pub fn wrong(&mut self, found: &Tree, expected: &str) {
        self.refuse(format!("{found} is not {expected}"));
    }

    fn refuse(&mut self, cause: String) {
        self.problems.0.push(Invalid { field: self.path.clone(), cause });
    }
}

/// Something that a tree can say a value of.
pub(super) trait Field {
    /// Takes over what the tree says; it is not null.
    fn take(&mut self, tree: &Tree, reader: &mut Reader);
}

impl Field for bool {
    fn take(&mut self, tree: &Tree, reader: &mut Reader) {
        match tree {
            Tree::Bool(value) => *self = *value,
            // YAML 1.1, which kube-proxy reads, has more words for it.
            Tree::Text(text) if ["yes", "on"].contains(&text.to_lowercase().as_str()) => *self = true,
            Tree::Text(text) if ["no", "off"].contains(&text.to_lowercase().as_str()) => *self = false,
            _ => reader.wrong(tree, "true or false"),
        }
    }
}

/// Reads a whole number that the type can hold.
fn whole<T: TryFrom<i64>>(field: &mut T, tree: &Tree, reader: &mut Reader) {
    match tree {
        Tree::Whole(value) => match T::try_from(*value) {
            Ok(value) => *field = value,
            Err(_) => reader.wrong(tree, "within the range of this number"),
        },
        _ => reader.wrong(tree, "a whole number"),
    }
}

impl Field for i32 {
    fn take(&mut self, tree: &Tree, reader: &mut Reader) {
        whole(self, tree, reader);
    }
}

impl Field for u32 {
    fn take(&mut self, tree: &Tree, reader: &mut Reader) {
        whole(self, tree, reader);
    }
}

impl Field for f32 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "the field is no finer than that")]
    fn take(&mut self, tree: &Tree, reader: &mut Reader) {
        match tree {
            Tree::Whole(value) => *self = *value as Self,
            Tree::Decimal(value) if (*value as Self).is_finite() => *self = *value as Self,
            _ => reader.wrong(tree, "a number"),
        }
    }
}

impl Field for String {
    fn take(&mut self, tree: &Tree, reader: &mut Reader) {
        match tree {
            Tree::Text(text) => self.clone_from(text),
            _ => reader.wrong(tree, "text (a number, true or false needs quotes)"),
        }
    }
}

impl Field for GoDuration {
    fn take(&mut self, tree: &Tree, reader: &mut Reader) {
        match tree {
            Tree::Text(text) => match Self::parse(text) {
                Ok(duration) => *self = duration,
                Err(cause) => reader.refuse(cause),
            },
            _ => reader.wrong(tree, "a duration such as 30s, 1m30s or 100ms"),
        }
    }
}

impl<T: Field + Default> Field for Option<T> {
    fn take(&mut self, tree: &Tree, reader: &mut Reader) {
        self.get_or_insert_default().take(tree, reader);
    }
}

impl<T: Field + Default> Field for Vec<T> {
    fn take(&mut self, tree: &Tree, reader: &mut Reader) {
        let Tree::List(items) = tree else { return reader.wrong(tree, "a list") };
        self.clear();
        for (index, item) in items.iter().enumerate() {
            let mut value = T::default();
            reader.below(&format!("[{index}]"), &mut value, item);
            self.push(value);
        }
    }
}

impl Field for BTreeMap<String, bool> {
    fn take(&mut self, tree: &Tree, reader: &mut Reader) {
        let Tree::Map(entries) = tree else { return reader.wrong(tree, "a mapping of names to true or false") };
        for (key, value) in entries {
            if self.contains_key(key) {
                reader.duplicate.push(reader.at(key));
            }
            let mut enabled = false;
            reader.below(key, &mut enabled, value);
            self.insert(key.clone(), enabled);
        }
    }
}
