//! The feature gates of kube-proxy 1.36 that have to do with what is built here.
//!
//! Kubernetes has some 250, which every component takes; those that are not in the table are not kube-proxy's business.

use std::collections::BTreeMap;

use super::{Config, Problems};

/// How far a feature has come, as Kubernetes has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Alpha,
    Beta,
    Stable,
}

impl Stage {
    /// As the label of a metric has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Alpha => "ALPHA",
            Self::Beta => "BETA",
            Self::Stable => "",
        }
    }
}

/// A switch of the configuration's `featureGates`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gate {
    pub name: &'static str,
    pub default: bool,
    pub stage: Stage,
    /// Must stay as it is by default.
    pub locked: bool,
    /// Does another value change anything here?
    pub has_effect: bool,
}

const fn alpha(name: &'static str) -> Gate {
    Gate { name, default: false, stage: Stage::Alpha, locked: false, has_effect: false }
}

const fn beta(name: &'static str) -> Gate {
    Gate { name, default: true, stage: Stage::Beta, locked: false, has_effect: false }
}

const fn stable(name: &'static str) -> Gate {
    Gate { name, default: true, stage: Stage::Stable, locked: false, has_effect: false }
}

/// What is so, and cannot be switched off.
const fn locked(name: &'static str) -> Gate {
    Gate { locked: true, ..stable(name) }
}

const fn effective(gate: Gate) -> Gate {
    Gate { has_effect: true, ..gate }
}

const ALL_ALPHA: &str = "AllAlpha";
const ALL_BETA: &str = "AllBeta";
pub(super) const EXTERNAL_IPS: &str = "AllowServiceExternalIPs";
pub(super) const FLAGZ: &str = "ComponentFlagz";
pub(super) const STATUSZ: &str = "ComponentStatusz";
/// Streams may be split, and buffers have sizes.
pub(super) const LOGGING_ALPHA: &str = "LoggingAlphaOptions";
/// Lines may be JSON.
pub(super) const LOGGING_BETA: &str = "LoggingBetaOptions";

/// Sorted by name.
const GATES: [Gate; 16] = [
    effective(alpha(ALL_ALPHA)),
    // "All beta features that are off": off itself, and no more than that.
    effective(Gate { default: false, ..beta(ALL_BETA) }),
    effective(stable(EXTERNAL_IPS)),
    effective(beta(FLAGZ)),
    effective(beta(STATUSZ)),
    beta("ContextualLogging"),  // lines always have their fields
    stable("InOrderInformers"), // changes are always taken in their order
    beta("InOrderInformersBatchProcess"),
    stable("InformerResourceVersion"),
    effective(alpha(LOGGING_ALPHA)),
    effective(beta(LOGGING_BETA)),
    locked("MultiCIDRServiceAllocator"),
    locked("NFTablesProxyMode"),
    alpha("NativeHistograms"),
    locked("PreferSameTrafficDistribution"),
    beta("WatchListClient"), // used where the API server has it
];

/// What the gate is set to: by its own name, by that of its stage, or by default.
fn enabled(set: &BTreeMap<String, bool>, gate: &Gate) -> bool {
    if let Some(&enabled) = set.get(gate.name) {
        return enabled;
    }
    let of_stage = match gate.stage {
        Stage::Alpha => set.get(ALL_ALPHA),
        Stage::Beta => set.get(ALL_BETA),
        Stage::Stable => None,
    };
    let of_stage = of_stage.filter(|_| !gate.locked && gate.name != ALL_ALPHA && gate.name != ALL_BETA);
    of_stage.copied().unwrap_or(gate.default)
}

/// Is this gate of the table on?
pub(super) fn is_enabled(set: &BTreeMap<String, bool>, name: &str) -> bool {
    GATES.iter().find(|gate| gate.name == name).is_some_and(|gate| enabled(set, gate))
}

/// All gates that are known here, as the configuration has them.
pub fn gates(config: &Config) -> impl Iterator<Item = (&'static str, Stage, bool)> + '_ {
    let set = &config.effective.feature_gates;
    GATES.iter().map(move |gate| (gate.name, gate.stage, enabled(set, gate)))
}

/// Those that are set and change nothing here: of other components, unknown, or of what is done anyway.
pub fn gates_without_effect(config: &Config) -> impl Iterator<Item = &str> {
    let idle = |name: &str, value: bool| match GATES.iter().find(|gate| gate.name == name) {
        Some(gate) => !gate.has_effect && value != gate.default,
        None => true,
    };
    config.effective.feature_gates.iter().filter(move |(name, value)| idle(name, **value)).map(|(name, _)| name.as_str())
}

/// Notes the gates that cannot be set so.
pub(super) fn check(set: &BTreeMap<String, bool>, problems: &mut Problems) {
    for gate in GATES.iter().filter(|gate| gate.locked) {
        if let Some(value) = set.get(gate.name).filter(|value| **value != gate.default) {
            let cause = format!("cannot be set to {value}: the feature is locked to {}", gate.default);
            problems.add(&format!("featureGates.{}", gate.name), cause);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(gates: &[(&str, bool)]) -> BTreeMap<String, bool> {
        gates.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect()
    }

    #[test]
    fn a_stage_sets_its_gates_but_for_those_that_are_named() {
        assert!(is_enabled(&set(&[]), STATUSZ) && !is_enabled(&set(&[]), LOGGING_ALPHA));
        let none = set(&[(ALL_BETA, false), (FLAGZ, true)]);
        assert!(!is_enabled(&none, STATUSZ) && is_enabled(&none, FLAGZ) && is_enabled(&none, EXTERNAL_IPS));
        let all = set(&[(ALL_ALPHA, true), ("NativeHistograms", false)]);
        assert!(is_enabled(&all, LOGGING_ALPHA) && !is_enabled(&all, "NativeHistograms") && is_enabled(&all, STATUSZ));
        assert!(!is_enabled(&all, ALL_BETA) && !is_enabled(&all, "Unknown"));
    }

    #[test]
    fn what_is_locked_stays() {
        let mut problems = Problems::default();
        check(&set(&[("NFTablesProxyMode", false), ("MultiCIDRServiceAllocator", true), ("Other", false)]), &mut problems);
        assert_eq!(problems.to_string(), "featureGates.NFTablesProxyMode: cannot be set to false: the feature is locked to true");
    }

    /// What the metrics of the real kube-proxy 1.36.2 say of these.
    const TOLD: &str = r#"
{name="AllAlpha",stage="ALPHA"} 0
{name="AllBeta",stage="BETA"} 0
{name="AllowServiceExternalIPs",stage=""} 1
{name="ComponentFlagz",stage="BETA"} 1
{name="ComponentStatusz",stage="BETA"} 1
{name="ContextualLogging",stage="BETA"} 1
{name="InOrderInformers",stage=""} 1
{name="InOrderInformersBatchProcess",stage="BETA"} 1
{name="InformerResourceVersion",stage=""} 1
{name="LoggingAlphaOptions",stage="ALPHA"} 0
{name="LoggingBetaOptions",stage="BETA"} 1
{name="MultiCIDRServiceAllocator",stage=""} 1
{name="NFTablesProxyMode",stage=""} 1
{name="NativeHistograms",stage="ALPHA"} 0
{name="PreferSameTrafficDistribution",stage=""} 1
{name="WatchListClient",stage="BETA"} 1
"#;

    #[test]
    fn the_table_is_kube_proxys() {
        let line =
            |gate: &Gate| format!("{{name=\"{}\",stage=\"{}\"}} {}", gate.name, gate.stage.as_str(), u8::from(gate.default));
        assert_eq!(GATES.iter().map(line).collect::<Vec<_>>(), TOLD.trim().lines().collect::<Vec<_>>());
        let config = Config::resolve(crate::config::Raw::of_defaults("node")).unwrap();
        assert!(gates(&config).eq(GATES.iter().map(|gate| (gate.name, gate.stage, gate.default))));
    }
}
