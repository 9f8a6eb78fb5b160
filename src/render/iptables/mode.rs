//! The mode's own chains: those every service port jumps to, the hooks in the built-in chains, and the
//! rules that end the dispatch chains.

use std::net::IpAddr;

use super::{EXTERNAL_SERVICES, FIREWALL, FORWARD, MARK_MASQ, NODE_PORTS, POSTROUTING, PROXY_CANARY, PROXY_FIREWALL, SERVICES};
use crate::net::Family;
use crate::render::common::{accept_forwarded, chain, loopback_net, mark_masq, masquerade_marked};
use crate::render::names::NFACCT_INVALID;
use crate::render::{Context, NodePorts};
use crate::ruleset::{AddrType, Block, CtStates, Group, Match, Negatable, Rule, Side, Table, Target};

/// Everything that is there whatever Services exist.
pub fn mode_block(context: &Context<'_>) -> Block {
    let mut groups = hooks();
    groups.extend(local_net_guard(context));
    groups.push(node_port_dispatch(context));
    let mut chains: Vec<_> = Table::ALL.into_iter().map(|table| chain(table, PROXY_CANARY, Vec::new())).collect();
    chains.push(chain(Table::Nat, MARK_MASQ, mark_masq(context)));
    chains.push(chain(Table::Nat, POSTROUTING, masquerade_marked(context)));
    chains.push(chain(Table::Filter, FORWARD, forward(context)));
    Block { chains, groups }
}

/// The jumps out of the built-in chains: table, chain, target, new connections only?, comment. In the
/// order they have in their chain on a clean host (behaviour.md §3.1).
const HOOKS: [(Table, &str, &str, bool, &str); 14] = [
    (Table::Filter, "INPUT", FIREWALL, false, ""),
    (Table::Filter, "INPUT", PROXY_FIREWALL, true, "kubernetes load balancer firewall"),
    (Table::Filter, "INPUT", NODE_PORTS, false, "kubernetes health check service ports"),
    (Table::Filter, "INPUT", EXTERNAL_SERVICES, true, "kubernetes externally-visible service portals"),
    (Table::Filter, "FORWARD", PROXY_FIREWALL, true, "kubernetes load balancer firewall"),
    (Table::Filter, "FORWARD", FORWARD, false, "kubernetes forwarding rules"),
    (Table::Filter, "FORWARD", SERVICES, true, "kubernetes service portals"),
    (Table::Filter, "FORWARD", EXTERNAL_SERVICES, true, "kubernetes externally-visible service portals"),
    (Table::Filter, "OUTPUT", FIREWALL, false, ""),
    (Table::Filter, "OUTPUT", PROXY_FIREWALL, true, "kubernetes load balancer firewall"),
    (Table::Filter, "OUTPUT", SERVICES, true, "kubernetes service portals"),
    (Table::Nat, "PREROUTING", SERVICES, false, "kubernetes service portals"),
    (Table::Nat, "OUTPUT", SERVICES, false, "kubernetes service portals"),
    (Table::Nat, "POSTROUTING", POSTROUTING, false, "kubernetes postrouting rules"),
];

/// Each jump is a group of its own: where one stands among other programs' rules is not ours to change.
pub fn hooks() -> Vec<Group> {
    let hook = |(slot, &(table, chain, target, new, comment)): (u8, &(Table, &str, &str, bool, &str))| {
        let mut rule = Rule::new();
        if new {
            rule = rule.matching(Match::Conntrack(Negatable::is(CtStates::NEW)));
        }
        if !comment.is_empty() {
            rule = rule.comment(comment);
        }
        Group { table, chain: chain.into(), slot, side: Side::Head, rules: vec![rule.jump(target)] }
    };
    (0..).zip(&HOOKS).map(hook).collect()
}

/// `route_localnet` would let neighbours reach services bound to loopback (CVE-2020-8558): drop what
/// comes from outside and was not translated by us.
fn local_net_guard(context: &Context<'_>) -> Option<Group> {
    let loopback = loopback_net(Family::Ipv4);
    let states = CtStates::RELATED.or(CtStates::ESTABLISHED).or(CtStates::DNAT);
    let rule = Rule::new()
        .from(Negatable::is_not(loopback))
        .to(Negatable::is(loopback))
        .comment("block incoming localnet connections")
        .matching(Match::Conntrack(Negatable::is_not(states)))
        .then(Target::Drop);
    let group = Group { table: Table::Filter, chain: FIREWALL.into(), slot: 0, side: Side::Tail, rules: vec![rule] };
    context.localhost_node_ports.then_some(group)
}

/// Packets that conntrack finds INVALID would leave untranslated and make the client reset a good
/// connection, so they are dropped, unless conntrack is liberal and never finds any.
fn forward(context: &Context<'_>) -> Vec<Rule> {
    let mut rules = Vec::new();
    if !context.facts.tcp_be_liberal {
        let mut rule = Rule::new().matching(Match::Conntrack(Negatable::is(CtStates::INVALID)));
        if context.facts.nfacct {
            rule = rule.matching(Match::NfAcct(NFACCT_INVALID.into()));
        }
        rules.push(rule.then(Target::Drop));
    }
    rules.extend(accept_forwarded(context));
    rules
}

const LAST_RULE: &str = "kubernetes service nodeports; NOTE: this must be the last rule in this chain";

/// The end of nat KUBE-SERVICES: what goes to an address of the node may be for a node port.
fn node_port_dispatch(context: &Context<'_>) -> Group {
    let rules = match &context.node_ports {
        NodePorts::Any => {
            let mut rule = Rule::new();
            if !context.localhost_node_ports {
                rule = rule.to(Negatable::is_not(loopback_net(context.family)));
            }
            vec![rule.comment(LAST_RULE).matching(Match::AddrType(AddrType::DestinationLocal)).jump(NODE_PORTS)]
        }
        NodePorts::Only(addresses) => {
            let usable = addresses.iter().filter(|a| !a.is_loopback() || context.localhost_node_ports);
            let rule = |&a: &IpAddr| Rule::new().to(Negatable::is(a.into())).comment(LAST_RULE).jump(NODE_PORTS);
            usable.map(rule).collect()
        }
    };
    Group { table: Table::Nat, chain: SERVICES.into(), slot: 0, side: Side::Tail, rules }
}
