//! `sluice render`: what would be programmed for the manifests' state, printed in the form of the tools that list it.

use std::collections::BTreeSet;
use std::fmt::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use clap::ArgMatches;

use crate::config::{Config, Mode, RuleConfig, Source};
use crate::model::{Event, State};
use crate::net::Family;
use crate::render::ipvs::SetId;
use crate::render::{self, Context, Desired, KernelFacts};
use crate::ruleset::{Member, SetSpec, node_text, text};
use crate::source::manifests;

/// What would be printed, or why nothing can be.
pub(super) fn run(matches: &ArgMatches, config: &Config) -> anyhow::Result<String> {
    let Source::Manifests(path) = &config.source else { anyhow::bail!("render: --manifests is missing") };
    let loaded = manifests::load(path)?;
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    let mut state = State::new(config.node_name.clone());
    loaded.into_events().into_iter().for_each(|event| drop(state.apply(event)));
    let addresses = known_addresses(config, &state);
    state.apply(Event::Addresses(addresses));

    let facts = KernelFacts { nfacct: true, tcp_be_liberal: config.conntrack.tcp_be_liberal };
    let family = matches.get_one::<String>("family").map(String::as_str);
    let wanted = Family::ALL.into_iter().filter(|f| family.is_none_or(|name| f.as_str().eq_ignore_ascii_case(name)));
    let desired = |family| (family, render::all(&Context::new(&config.rules, facts, &state, family)));
    let wanted: Vec<_> = wanted.map(desired).collect();
    let mut out = String::new();
    match config.rules.mode {
        Mode::Iptables => iptables_text(&mut out, &config.rules, &wanted)?,
        Mode::Ipvs => ipvs_text(&mut out, &config.rules, &wanted)?,
    }
    Ok(out)
}

/// What the kernel would tell of the node's interfaces, as far as it is known without asking it.
fn known_addresses(config: &Config, state: &State) -> Vec<IpAddr> {
    let loopback = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    let of_node = state.node().map(|node| node.addresses.clone()).unwrap_or_default();
    loopback.into_iter().chain(of_node).chain(config.node_ips.iter().copied()).collect()
}

fn iptables_text(out: &mut String, config: &RuleConfig, wanted: &[(Family, Desired)]) -> fmt::Result {
    for (family, desired) in wanted {
        writeln!(out, "# {family}, as {} would print it", save_tool(*family))?;
        rules_text(out, config, desired)?;
    }
    Ok(())
}

/// Each text behind the name of the file that it is in the golden dumps.
fn ipvs_text(out: &mut String, config: &RuleConfig, wanted: &[(Family, Desired)]) -> fmt::Result {
    writeln!(out, "# ipvs-services.txt: as ipvsadm -Sn would print it, sorted")?;
    let servers = wanted.iter().flat_map(|(_, desired)| &desired.balanced.servers);
    node_text::services(out, servers.map(|wanted| (&wanted.at, &wanted.server, wanted.real_servers.as_slice())))?;
    writeln!(out, "# ipvs-ipset.txt: as ipset save would print it, sorted")?;
    node_text::sets(out, wanted.iter().flat_map(|(family, desired)| sets(*family, desired)))?;
    for (family, desired) in wanted {
        let version = match family {
            Family::Ipv4 => "v4",
            Family::Ipv6 => "v6",
        };
        writeln!(out, "# ipvs-iptables-{version}.save: as {} would print it", save_tool(*family))?;
        rules_text(out, config, desired)?;
    }
    writeln!(out, "# ipvs-addresses.txt: as ip address would tell of kube-ipvs0")?;
    let addresses: Vec<_> = wanted.iter().flat_map(|(_, desired)| &desired.balanced.addresses).copied().collect();
    node_text::addresses(out, &addresses)
}

/// All sets of a family with what they are to hold.
fn sets(family: Family, desired: &Desired) -> impl Iterator<Item = (SetSpec, BTreeSet<Member>)> {
    SetId::ALL.into_iter().map(move |set| {
        let members = desired.balanced.members.iter().filter(|(of, _)| *of == set);
        let members: BTreeSet<_> = members.map(|&(_, member)| member).collect();
        (set.spec(family, members.len()), members)
    })
}

fn rules_text(out: &mut String, config: &RuleConfig, desired: &Desired) -> fmt::Result {
    let blocks: Vec<_> = desired.rules.iter().map(|(_, block)| block).collect();
    text::save(out, render::layout(config), &blocks)
}

fn save_tool(family: Family) -> &'static str {
    match family {
        Family::Ipv4 => "iptables-save",
        Family::Ipv6 => "ip6tables-save",
    }
}
