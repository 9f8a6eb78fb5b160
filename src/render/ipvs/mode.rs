//! The mode's own chains (behaviour.md §4.6): IPVS does the balancing, and these rules say, set by set, what is
//! masqueraded, who may come in, and what is refused. A rule stands there only while its set holds something, but for
//! those that every packet to the node's own services has to pass.

use super::{
    FORWARD, IPVS_FILTER, IPVS_OUT_FILTER, LOAD_BALANCER, MARK_MASQ, NODE_PORT, POSTROUTING, PROXY_FIREWALL, SERVICES,
    SOURCE_RANGES_FIREWALL, SetId,
};
use crate::net::{Family, Protocol};
use crate::render::Context;
use crate::render::common::{accept_forwarded, chain, loopback_net, mark_masq, masquerade_marked};
use crate::ruleset::{AddrType, Block, CtStates, Direction, Group, Match, Negatable, RejectWith, Rule, Side, Table, Target};

/// Everything that is there whatever Services exist, as far as sets hold something.
pub fn mode_block(context: &Context<'_>) -> Block {
    let mut groups = hooks();
    groups.extend(source_ranges_entry(context));
    let chains = vec![
        chain(Table::Nat, MARK_MASQ, mark_masq(context)),
        chain(Table::Nat, LOAD_BALANCER, load_balancer(context)),
        chain(Table::Nat, NODE_PORT, node_port(context)),
        chain(Table::Nat, POSTROUTING, postrouting(context)),
        chain(Table::Nat, SERVICES, services(context)),
        chain(Table::Filter, FORWARD, accept_forwarded(context).into()),
        chain(Table::Filter, IPVS_FILTER, ipvs_filter(context)),
        chain(Table::Filter, NODE_PORT, health_checks(context)),
        chain(Table::Filter, SOURCE_RANGES_FIREWALL, source_ranges(context)),
    ];
    without_unusable(context, Block { chains, groups })
}

/// Leaves out the rules that name a set which is not ours to use.
fn without_unusable(context: &Context<'_>, mut block: Block) -> Block {
    let unusable: Vec<_> = SetId::ALL.into_iter().filter(|set| context.unusable.contains(*set)).collect();
    let unusable: Vec<_> = unusable.into_iter().map(|set| set.name(context.family)).collect();
    let names_none = |rule: &Rule| !rule.matches.iter().any(|m| matches!(m, Match::Set { set, .. } if unusable.contains(set)));
    block.chains.iter_mut().for_each(|chain| chain.rules.retain(names_none));
    block.groups.iter_mut().for_each(|group| group.rules.retain(names_none));
    block.groups.retain(|group| !group.rules.is_empty());
    block
}

/// The jumps out of the built-in chains: table, chain, target, comment. In the order they have in their chain on a
/// clean host.
const HOOKS: [(Table, &str, &str, &str); 9] = [
    (Table::Filter, "INPUT", IPVS_FILTER, "kubernetes ipvs access filter"),
    (Table::Filter, "INPUT", PROXY_FIREWALL, "kube-proxy firewall rules"),
    (Table::Filter, "INPUT", NODE_PORT, "kubernetes health check rules"),
    (Table::Filter, "FORWARD", PROXY_FIREWALL, "kube-proxy firewall rules"),
    (Table::Filter, "FORWARD", FORWARD, "kubernetes forwarding rules"),
    (Table::Filter, "OUTPUT", IPVS_OUT_FILTER, "kubernetes ipvs access filter"),
    (Table::Nat, "PREROUTING", SERVICES, "kubernetes service portals"),
    (Table::Nat, "OUTPUT", SERVICES, "kubernetes service portals"),
    (Table::Nat, "POSTROUTING", POSTROUTING, "kubernetes postrouting rules"),
];

/// Each jump is a group of its own: where one stands among other programs' rules is not ours to change.
pub fn hooks() -> Vec<Group> {
    let hook = |(slot, &(table, chain, target, comment)): (u8, &(Table, &str, &str, &str))| {
        let rules = vec![Rule::new().comment(comment).jump(target)];
        Group { table, chain: chain.into(), slot, side: Side::Head, rules }
    };
    (0..).zip(&HOOKS).map(hook).collect()
}

/// The dimension of a bitmap, or the first of a hash.
const DESTINATION: &[Direction] = &[Direction::Destination];
/// Address and port that the packet goes to.
const DESTINATIONS: &[Direction] = &[Direction::Destination, Direction::Destination];
/// And the address it comes from.
const WITH_SOURCE: &[Direction] = &[Direction::Destination, Direction::Destination, Direction::Source];
/// The address it comes from with the port it goes to.
const SOURCE_AND_PORT: &[Direction] = &[Direction::Source, Direction::Destination];

/// `-m set --match-set SET DIRECTIONS`
fn member(context: &Context<'_>, set: SetId, directions: &[Direction]) -> Match {
    Match::Set { set: set.name(context.family), directions: directions.into() }
}

/// `-m comment --comment "what SET is for" -m set --match-set SET DIRECTIONS`
fn said(context: &Context<'_>, set: SetId, directions: &[Direction]) -> Rule {
    Rule::new().comment(set.comment()).matching(member(context, set, directions))
}

/// The rule, where the set holds something.
fn filled(context: &Context<'_>, set: SetId, rule: Rule) -> Option<Rule> {
    context.filled.contains(set).then_some(rule)
}

/// What is sent to Services, before its destination is changed: who must be masqueraded for the answers to come back.
fn services(context: &Context<'_>) -> Vec<Rule> {
    let to = |set| Rule::new().matching(member(context, set, DESTINATIONS)).then(Target::Accept);
    let mut rules = vec![Rule::new().from(Negatable::is(loopback_net(context.family))).then(Target::Return)];
    let balancers = said(context, SetId::LoadBalancer, DESTINATIONS).jump(LOAD_BALANCER);
    rules.extend(filled(context, SetId::LoadBalancer, balancers));
    rules.extend(filled(context, SetId::ClusterIp, masquerade_cluster_ips(context)));
    let external = said(context, SetId::ExternalIp, DESTINATIONS).jump(MARK_MASQ);
    rules.extend(filled(context, SetId::ExternalIp, external));
    for set in [SetId::ExternalIp, SetId::ExternalIpLocal] {
        rules.extend(accept_external(context, set).into_iter().filter_map(|rule| filled(context, set, rule)));
    }
    rules.push(Rule::new().matching(Match::AddrType(AddrType::DestinationLocal)).jump(NODE_PORT));
    rules.extend([SetId::ClusterIp, SetId::LoadBalancer].into_iter().filter_map(|set| filled(context, set, to(set))));
    rules
}

/// Without a way to tell pods, only what comes from a Service's own address is masqueraded: a node that reaches
/// a ClusterIP of its own takes that for its source.
fn masquerade_cluster_ips(context: &Context<'_>) -> Rule {
    let set = SetId::ClusterIp;
    let rule = match &context.local {
        _ if context.config.masquerade_all => said(context, set, DESTINATIONS),
        Some(local) => local.narrow(said(context, set, DESTINATIONS), true),
        None => said(context, set, SOURCE_AND_PORT),
    };
    rule.jump(MARK_MASQ)
}

/// What comes from outside, or goes to an address of this node, is for the Service. The rest, from pods on bridges, goes
/// on to that address's host.
fn accept_external(context: &Context<'_>, set: SetId) -> [Rule; 2] {
    let rule = || said(context, set, DESTINATIONS);
    let from_outside = rule().matching(Match::NotFromBridge).matching(Match::AddrType(AddrType::SourceNotLocal));
    [from_outside, rule().matching(Match::AddrType(AddrType::DestinationLocal))].map(|rule| rule.then(Target::Accept))
}

/// Policy Local keeps the client's address.
fn load_balancer(context: &Context<'_>) -> Vec<Rule> {
    let local = said(context, SetId::LoadBalancerLocal, DESTINATIONS).then(Target::Return);
    let mut rules: Vec<_> = filled(context, SetId::LoadBalancerLocal, local).into_iter().collect();
    rules.push(Rule::new().jump(MARK_MASQ));
    rules
}

/// Protocol, the set of all node ports, those of policy Local.
const NODE_PORT_SETS: [(Protocol, SetId, SetId, &[Direction]); 3] = [
    (Protocol::Tcp, SetId::NodePortTcp, SetId::NodePortLocalTcp, DESTINATION),
    (Protocol::Udp, SetId::NodePortUdp, SetId::NodePortLocalUdp, DESTINATION),
    (Protocol::Sctp, SetId::NodePortSctp, SetId::NodePortLocalSctp, DESTINATIONS),
];

fn node_port(context: &Context<'_>) -> Vec<Rule> {
    let rules = |(protocol, all, local, directions)| {
        let keep = said(context, local, directions).of(protocol).then(Target::Return);
        let masquerade = said(context, all, directions).of(protocol).jump(MARK_MASQ);
        [filled(context, local, keep), filled(context, all, masquerade)]
    };
    NODE_PORT_SETS.into_iter().flat_map(rules).flatten().collect()
}

/// A pod that reaches itself through a Service must see another's address, or it would answer itself.
fn postrouting(context: &Context<'_>) -> Vec<Rule> {
    let hairpin = said(context, SetId::LoopBack, WITH_SOURCE).then(Target::Masquerade { random_fully: false });
    let mut rules: Vec<_> = filled(context, SetId::LoopBack, hairpin).into_iter().collect();
    rules.extend(masquerade_marked(context));
    rules
}

/// Behind what service ports have in this chain: a packet that they drop need not be looked at here.
fn source_ranges_entry(context: &Context<'_>) -> Option<Group> {
    let rule = said(context, SetId::LoadBalancerFw, DESTINATIONS).jump(SOURCE_RANGES_FIREWALL);
    let rule = filled(context, SetId::LoadBalancerFw, rule)?;
    Some(Group { table: Table::Filter, chain: PROXY_FIREWALL.into(), slot: 0, side: Side::Tail, rules: vec![rule] })
}

fn source_ranges(context: &Context<'_>) -> Vec<Rule> {
    let allow = |set| filled(context, set, said(context, set, WITH_SOURCE).then(Target::Return));
    let allowed = [SetId::LoadBalancerSourceCidr, SetId::LoadBalancerSourceIp].into_iter().filter_map(allow);
    allowed.chain([Rule::new().then(Target::Drop)]).collect()
}

/// The addresses of Services are the node's own, so what listens on all of its addresses would answer on them too:
/// ports that are no Service's are refused.
fn ipvs_filter(context: &Context<'_>) -> Vec<Rule> {
    let reject = match context.family {
        Family::Ipv4 => RejectWith::IcmpPortUnreachable,
        Family::Ipv6 => RejectWith::Icmp6PortUnreachable,
    };
    let pass = |set, directions| Rule::new().matching(member(context, set, directions)).then(Target::Return);
    vec![
        pass(SetId::LoadBalancer, DESTINATIONS),
        pass(SetId::ClusterIp, DESTINATIONS),
        pass(SetId::ExternalIp, DESTINATIONS),
        pass(SetId::ExternalIpLocal, DESTINATIONS),
        pass(SetId::HealthCheckNodePort, DESTINATION),
        Rule::new()
            .matching(Match::Conntrack(Negatable::is(CtStates::NEW)))
            .matching(member(context, SetId::IpvsIps, DESTINATION))
            .then(Target::Reject(reject)),
    ]
}

fn health_checks(context: &Context<'_>) -> Vec<Rule> {
    vec![said(context, SetId::HealthCheckNodePort, DESTINATION).then(Target::Accept)]
}
