//! YAML or JSON as a tree that keeps what a typed reader would lose: keys in their order, and each time they are given.

use std::fmt::{self, Display, Formatter};

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// A value of a configuration file, or of a flag.
#[derive(Clone, Debug, PartialEq)]
pub enum Tree {
    Null,
    Bool(bool),
    Whole(i64),
    Decimal(f64),
    Text(String),
    List(Vec<Tree>),
    /// In the order of the text; a key may be there twice.
    Map(Vec<(String, Tree)>),
}

impl Tree {
    /// Puts a value at a path of keys with dots between, and makes what is missing on the way.
    pub fn put(&mut self, path: &str, value: Self) {
        let (first, rest) = path.split_once('.').map_or((path, None), |(first, rest)| (first, Some(rest)));
        if !matches!(self, Self::Map(_)) {
            *self = Self::Map(Vec::new());
        }
        let Self::Map(entries) = self else { return };
        let position = entries.iter().position(|(key, _)| key == first).unwrap_or(entries.len());
        if position == entries.len() {
            entries.push((first.to_owned(), Self::Null));
        }
        match rest {
            Some(rest) => entries[position].1.put(rest, value),
            None => entries[position].1 = value,
        }
    }

    /// What `<<` of YAML 1.1 brings in counts where the mapping itself says nothing.
    fn merge(entries: &mut Vec<(String, Self)>) {
        let Some(position) = entries.iter().position(|(key, _)| key == "<<") else { return };
        let sources = match entries.remove(position).1 {
            Self::List(sources) => sources,
            source => vec![source],
        };
        for source in sources {
            let Self::Map(source) = source else { continue };
            let new = source.into_iter().filter(|(key, _)| entries.iter().all(|(known, _)| known != key)).collect::<Vec<_>>();
            entries.extend(new);
        }
    }
}

/// As a message names it.
impl Display for Tree {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Whole(value) => write!(f, "{value}"),
            Self::Decimal(value) => write!(f, "{value}"),
            Self::Text(text) => write!(f, "{text:?}"),
            Self::List(_) => f.write_str("a list"),
            Self::Map(_) => f.write_str("a mapping"),
        }
    }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyTree)
    }
}

struct AnyTree;

impl<'de> Visitor<'de> for AnyTree {
    type Value = Tree;

    fn expecting(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("text, a number, true or false, a list or a mapping")
    }

    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree::Null)
    }

    fn visit_none<E>(self) -> Result<Tree, E> {
        Ok(Tree::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Tree, D::Error> {
        Tree::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Tree, E> {
        Ok(Tree::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Tree, E> {
        Ok(Tree::Whole(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Tree, E> {
        #[expect(clippy::cast_precision_loss, reason = "no field takes a number of this size")]
        Ok(i64::try_from(value).map_or(Tree::Decimal(value as f64), Tree::Whole))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Tree, E> {
        Ok(Tree::Decimal(value))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Tree, E> {
        Ok(Tree::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Tree, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Tree::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tree, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Tree::merge(&mut entries);
        Ok(Tree::Map(entries))
    }
}

/// A text as a tree: the first document of YAML, or JSON; and whether there are more documents.
pub(super) fn parse(text: &str) -> Result<(Tree, bool), String> {
    if text.trim_start().starts_with('{')
        && let Ok(tree) = serde_json::from_str(text)
    {
        return Ok((tree, false));
    }
    let mut documents = serde_norway::Deserializer::from_str(text);
    let first = documents.next().map_or(Ok(Tree::Null), Tree::deserialize);
    let tree = first.map_err(|cause| format!("cannot be read as YAML: {cause}"))?;
    Ok((tree, documents.next().is_some()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map<const N: usize>(entries: [(&str, Tree); N]) -> Tree {
        Tree::Map(entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
    }

    #[test]
    fn keys_keep_their_order_and_may_come_twice() {
        let wanted = map([("b", Tree::Whole(1)), ("a", Tree::Null), ("b", Tree::Text("x".into()))]);
        assert_eq!(parse("b: 1\na: ~\nb: x\n"), Ok((wanted.clone(), false)));
        assert_eq!(parse(r#"{"b": 1, "a": null, "b": "x"}"#), Ok((wanted, false)));
    }

    #[test]
    fn the_first_document_counts() {
        assert_eq!(parse("---\na: 1.5\n---\nb: 1\n"), Ok((map([("a", Tree::Decimal(1.5))]), true)));
        assert_eq!(parse(""), Ok((Tree::Null, false)));
        assert!(parse("a: [").is_err_and(|cause| cause.starts_with("cannot be read as YAML: ") && cause.contains("line 2")));
    }

    #[test]
    fn aliases_and_merges_are_followed() {
        let text = "x: &x {a: 1, b: 2}\ny: {<<: *x, b: 3}\n";
        let x = map([("a", Tree::Whole(1)), ("b", Tree::Whole(2))]);
        let y = map([("b", Tree::Whole(3)), ("a", Tree::Whole(1))]);
        assert_eq!(parse(text), Ok((map([("x", x), ("y", y)]), false)));
    }

    #[test]
    fn values_are_put_at_paths() {
        let mut tree = Tree::Null;
        tree.put("a.b", Tree::Whole(1));
        tree.put("a.c", Tree::Whole(2));
        tree.put("a.b", Tree::Whole(3));
        assert_eq!(tree, map([("a", map([("b", Tree::Whole(3)), ("c", Tree::Whole(2))]))]));
    }
}
