//! Lists in manifests (`kind: List`, `ServiceList`), item by item: only one is in memory as an object.
//!
//! Knows that a list has `items` and nothing of what they are.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::manifests::{Mistake, Text};

/// Calls `take` with each item and its place in the list, until it refuses one.
pub(crate) fn each_item(text: Text<'_>, take: impl FnMut(Value, usize) -> Result<(), String>) -> Result<(), Mistake> {
    match text {
        Text::Yaml(text) => Ok(List(take).deserialize(serde_norway::Deserializer::from_str(text))?),
        Text::Json(text) => {
            let mut deserializer = serde_json::Deserializer::from_str(text);
            List(take).deserialize(&mut deserializer)?;
            Ok(deserializer.end()?)
        }
    }
}

/// The list itself.
struct List<F>(F);

impl<'de, F: FnMut(Value, usize) -> Result<(), String>> DeserializeSeed<'de> for List<F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, F: FnMut(Value, usize) -> Result<(), String>> Visitor<'de> for List<F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            if key == "items" {
                map.next_value_seed(Items(&mut self.0))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

/// What stands under `items`.
struct Items<'a, F>(&'a mut F);

impl<'de, F: FnMut(Value, usize) -> Result<(), String>> DeserializeSeed<'de> for Items<'_, F> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, F: FnMut(Value, usize) -> Result<(), String>> Visitor<'de> for Items<'_, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a sequence of objects")
    }

    /// Go writes an empty list as null.
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let mut number = 0;
        while let Some(item) = items.next_element::<Value>()? {
            (self.0)(item, number).map_err(A::Error::custom)?;
            number += 1;
        }
        Ok(())
    }
}
