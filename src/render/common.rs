//! The rules that iptables and ipvs mode have alike: the mark that asks for masquerading, and what is forwarded.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;

use super::Context;
use crate::net::Family;
use crate::ruleset::{CtStates, Match, Negatable, OwnedChain, Rule, Table, Target};

pub(super) fn chain(table: Table, name: &str, rules: Vec<Rule>) -> OwnedChain {
    OwnedChain { table, name: name.into(), rules }
}

pub(super) fn loopback_net(family: Family) -> IpNet {
    match family {
        Family::Ipv4 => IpNet::new_assert(IpAddr::from([127, 0, 0, 0]), 8),
        Family::Ipv6 => IpNet::new_assert(Ipv6Addr::LOCALHOST.into(), 128),
    }
}

pub(super) fn mark_masq(context: &Context<'_>) -> Vec<Rule> {
    let mark = context.config.masquerade_mark;
    vec![Rule::new().then(Target::Mark { value: mark, mask: mark })]
}

/// The mark is cleared before masquerading, lest the packet be masqueraded again when it comes through
/// another time (as with some VPN and overlay devices).
pub(super) fn masquerade_marked(context: &Context<'_>) -> Vec<Rule> {
    let mark = context.config.masquerade_mark;
    vec![
        Rule::new().matching(Match::Mark(Negatable::is_not((mark, mark)))).then(Target::Return),
        Rule::new().then(Target::Mark { value: mark, mask: 0 }),
        Rule::new().comment("kubernetes service traffic requiring SNAT").then(Target::Masquerade { random_fully: true }),
    ]
}

/// Traffic of Services is forwarded whatever else the host's firewall says.
pub(super) fn accept_forwarded(context: &Context<'_>) -> [Rule; 2] {
    let mark = context.config.masquerade_mark;
    let marked = Match::Mark(Negatable::is((mark, mark)));
    let known = Match::Conntrack(Negatable::is(CtStates::RELATED.or(CtStates::ESTABLISHED)));
    [
        Rule::new().comment("kubernetes forwarding rules").matching(marked).then(Target::Accept),
        Rule::new().comment("kubernetes forwarding conntrack rule").matching(known).then(Target::Accept),
    ]
}
