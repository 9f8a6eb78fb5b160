//! Manifests of any content: read, put into a State and rendered in each mode. What is rendered can be written for the
//! kernel, and read back as the same.
#![no_main]

use sluice::config::{Config, DetectLocal, Mode, Raw, RuleConfig};
use sluice::model::State;
use sluice::net::{Family, PerFamily};
use sluice::netlink::fuzz;
use sluice::render::{self, Context, KernelFacts};
use sluice::source::manifests;

fn config(mode: Mode) -> RuleConfig {
    let defaults = Config::resolve(Raw::of_defaults("node-a")).expect("defaults are sound").rules;
    let cidrs = PerFamily { v4: "10.244.0.0/16".parse().ok(), v6: "fd00:10:244::/56".parse().ok() };
    RuleConfig { mode, detect_local: DetectLocal::ClusterCidr(cidrs), ..defaults }
}

libfuzzer_sys::fuzz_target!(|text: &str| {
    let Ok(loaded) = manifests::parse("manifest.yaml", text) else { return };
    let mut state = State::new("node-a");
    loaded.into_events().into_iter().for_each(|event| drop(state.apply(event)));
    let facts = KernelFacts { nfacct: true, tcp_be_liberal: false };
    for family in Family::ALL {
        let _ = render::all(&Context::new(&config(Mode::Ipvs), facts, &state, family));
        let desired = render::all(&Context::new(&config(Mode::Iptables), facts, &state, family));
        for (_, block) in &desired.rules {
            let rules = block.chains.iter().flat_map(|chain| &chain.rules);
            rules.chain(block.groups.iter().flat_map(|group| &group.rules)).for_each(|rule| fuzz::rule(family, rule));
        }
    }
});
