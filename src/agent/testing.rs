//! What the tests of several parts need.

use crate::config::{Config, Raw, RuleConfig};

/// That of somebody who gave no flags.
pub fn rule_config() -> RuleConfig {
    Config::resolve(Raw::of_defaults("node-a")).expect("defaults are sound").rules
}
