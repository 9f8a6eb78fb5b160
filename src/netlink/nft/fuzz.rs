//! See [`super::super::fuzz`].

use std::collections::BTreeMap;

use super::super::attr::{Attributes, Head, Message, Messages, Writer};
use super::decode::read_rule;
use super::expression::write_rule;
use super::monitor;
use super::names::Names;
use super::wire::{NFGENMSG, NFTA_RULE_EXPRESSIONS};
use crate::net::Family;
use crate::ruleset::Rule;
use crate::ruleset::text::RuleText;

/// The one set there is.
const SET: (u16, &str) = (7, "KUBE-SET");

pub fn message(message: &Message<'_>) {
    let Some(expressions) = message.attributes(NFGENMSG).get(NFTA_RULE_EXPRESSIONS) else { return };
    for family in Family::ALL {
        if let Some(rule) = read(family, expressions.nested()) {
            round_trip(family, &rule);
        }
    }
}

pub fn round_trip(family: Family, rule: &Rule) {
    let written = write(family, rule);
    let again = Messages(&written).next().and_then(|message| {
        let expressions = message.attributes(NFGENMSG).get(NFTA_RULE_EXPRESSIONS)?.nested();
        read(family, expressions)
    });
    assert_eq!(again.as_ref(), Some(rule), "{family}: {}", RuleText(rule));
}

pub fn notification(data: &[u8]) {
    monitor::fuzz(data);
}

fn read(family: Family, expressions: Attributes<'_>) -> Option<Rule> {
    let mut names = Names::default();
    names.know_sets(BTreeMap::from([(SET.0, SET.1.into())]));
    read_rule(family, expressions, &mut names)
}

fn write(family: Family, rule: &Rule) -> Vec<u8> {
    let mut writer = Writer::default();
    let mut sets = Vec::new();
    writer.message(Head::default(), &[0; NFGENMSG], |w| write_rule(w, family, rule, &mut sets));
    for (place, _) in sets {
        writer.overwrite(place, &SET.0.to_ne_bytes());
    }
    writer.as_bytes().to_vec()
}
