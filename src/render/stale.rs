//! What a mode leaves behind in iptables' tables when another one takes over, or when all is to go: kube-proxy leaves it
//! there. Chains are told by their names, jumps in built-in chains by what they say.
//!
//! What kubelet makes too stays: `KUBE-FIREWALL`, and the jumps to it.

use std::sync::LazyLock;

use super::{iptables, ipvs};
use crate::ruleset::{Group, Layout, StaleHooks, Target};

/// Left by ipvs mode for iptables mode to remove.
pub(super) static HOOKS_OF_IPVS: LazyLock<StaleHooks> = LazyLock::new(|| without(ipvs::hooks(), &hooks_of_iptables()));

/// Left by iptables mode for ipvs mode to remove.
pub(super) static HOOKS_OF_IPTABLES: LazyLock<StaleHooks> = LazyLock::new(|| without(hooks_of_iptables(), &ipvs::hooks()));

static ALL_HOOKS: LazyLock<StaleHooks> = LazyLock::new(|| hooks_of_iptables().into_iter().chain(ipvs::hooks()).collect());

/// To be had by nobody.
pub(super) static EVERYTHING: Layout = Layout {
    tables: &[],
    dispatch: &[],
    common: &[],
    prefixes: iptables::PER_SERVICE,
    stale_chains: &[iptables::OWN_CHAINS, ipvs::OWN_CHAINS, ipvs::COMMON_CHAINS],
    stale_hooks: &ALL_HOOKS,
};

fn hooks_of_iptables() -> Vec<Group> {
    let to_kubelets = Some(Target::Jump(iptables::FIREWALL.into()));
    iptables::hooks().into_iter().filter(|hook| hook.rules.iter().all(|rule| rule.target != to_kubelets)).collect()
}

/// Those that the other mode has not got as well.
fn without(hooks: Vec<Group>, others: &[Group]) -> StaleHooks {
    let place = |hook: &Group| (hook.table, hook.chain.clone(), hook.rules.clone());
    let others: Vec<_> = others.iter().map(place).collect();
    hooks.into_iter().filter(|hook| !others.contains(&place(hook))).collect()
}
