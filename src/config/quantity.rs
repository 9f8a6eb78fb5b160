//! Kubernetes quantities, as far as the configuration has any: sizes in bytes, `0`, `512Ki`, `1.5M`.

use serde::Serialize;

use super::decode::{Field, Reader};
use super::tree::Tree;

/// A size in bytes, kept as it was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Quantity(String);

impl Default for Quantity {
    fn default() -> Self {
        Self("0".into())
    }
}

/// What multiplies the number before it: a factor of ten or of 1024 to some power.
const SUFFIXES: [(&str, f64); 16] = [
    ("", 1.0),
    ("n", 1e-9),
    ("u", 1e-6),
    ("m", 1e-3),
    ("k", 1e3),
    ("M", 1e6),
    ("G", 1e9),
    ("T", 1e12),
    ("P", 1e15),
    ("E", 1e18),
    ("Ki", 1024.0),
    ("Mi", 1_048_576.0),
    ("Gi", 1_073_741_824.0),
    ("Ti", 1_099_511_627_776.0),
    ("Pi", 1_125_899_906_842_624.0),
    ("Ei", 1_152_921_504_606_846_976.0),
];

impl Quantity {
    /// Reads one; fails on what is none.
    fn parse(text: &str) -> Option<Self> {
        bytes(text).map(|_| Self(text.to_owned()))
    }

    pub fn is_zero(&self) -> bool {
        bytes(&self.0) == Some(0.0)
    }

    pub fn is_negative(&self) -> bool {
        bytes(&self.0).is_some_and(|bytes| bytes < 0.0)
    }
}

fn bytes(text: &str) -> Option<f64> {
    let end = text.find(|c: char| !(c.is_ascii_digit() || "+-.".contains(c))).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let value: f64 = number.parse().ok()?;
    let exponent = |rest: &str| rest.parse::<i32>().ok().map(|exponent| 10_f64.powi(exponent));
    let named = SUFFIXES.iter().find(|(name, _)| *name == suffix).map(|(_, factor)| *factor);
    let factor = named.or_else(|| exponent(suffix.strip_prefix(['e', 'E'])?))?;
    Some(value * factor)
}

impl Field for Quantity {
    fn take(&mut self, tree: &Tree, reader: &mut Reader) {
        const EXPECTED: &str = "a size such as 0, 64Ki or 1M";
        let text = match tree {
            Tree::Text(text) => text.clone(),
            Tree::Whole(number) => number.to_string(),
            Tree::Decimal(number) => number.to_string(),
            _ => return reader.wrong(tree, EXPECTED),
        };
        match Self::parse(&text) {
            Some(quantity) => *self = quantity,
            None => reader.wrong(tree, EXPECTED),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_numbers_with_or_without_a_unit() {
        for (text, wanted) in [("0", 0.0), ("64Ki", 65536.0), ("1.5M", 1.5e6), ("12e2", 1200.0), ("-1k", -1000.0), ("+1E", 1e18)]
        {
            assert_eq!(bytes(text), Some(wanted), "{text}");
        }
        for bad in ["", "k", "1kb", "1 k", "1..5", "1e", "1-1", "x"] {
            assert_eq!(Quantity::parse(bad), None, "{bad}");
        }
        assert!(Quantity::default().is_zero() && Quantity::parse("0Mi").is_some_and(|zero| zero.is_zero()));
        assert!(Quantity::parse("-1").is_some_and(|size| size.is_negative()));
    }
}
