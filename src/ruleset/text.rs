//! The text of rules and tables, as `iptables-save` 1.8.9 prints them.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter, Write as _};

use super::block::{Block, Layout, Side};
use super::rule::{AddrType, CtStates, Match, Negatable, RecentAction, RejectWith, Rule, Table, Target};
use crate::net::Family;

/// Writes what `iptables-save` would print of tables that hold these blocks and nothing else.
pub fn save(out: &mut impl fmt::Write, layout: &Layout, blocks: &[&Block]) -> fmt::Result {
    Table::ALL.into_iter().try_for_each(|table| save_table(out, table, layout, blocks))
}

fn save_table(out: &mut impl fmt::Write, table: Table, layout: &Layout, blocks: &[&Block]) -> fmt::Result {
    let mut chains: BTreeMap<&str, Vec<&Rule>> = BTreeMap::new();
    let shared = layout.dispatch.iter().chain(layout.common).filter(|(t, _)| *t == table);
    chains.extend(shared.map(|&(_, name)| (name, Vec::new())));
    for chain in blocks.iter().flat_map(|b| &b.chains).filter(|c| c.table == table) {
        chains.insert(chain.name.as_str(), chain.rules.iter().collect());
    }
    for side in [Side::Head, Side::Tail] {
        for group in blocks.iter().flat_map(|b| &b.groups).filter(|g| g.table == table && g.side == side) {
            chains.entry(group.chain.as_str()).or_default().extend(&group.rules);
        }
    }
    // iptables makes a table when something is put into it, and saves no other.
    if chains.is_empty() {
        return Ok(());
    }
    writeln!(out, "*{table}")?;
    let builtin = table.builtin_chains();
    builtin.iter().try_for_each(|chain| writeln!(out, ":{chain} ACCEPT [0:0]"))?;
    let own: Vec<_> = chains.keys().copied().filter(|chain| !builtin.contains(chain)).collect();
    own.iter().try_for_each(|chain| writeln!(out, ":{chain} - [0:0]"))?;
    for chain in builtin.iter().chain(&own) {
        let rules = chains.get(chain).map(Vec::as_slice).unwrap_or_default();
        rules.iter().try_for_each(|rule| writeln!(out, "-A {chain} {}", RuleText(rule)))?;
    }
    writeln!(out, "COMMIT")
}

/// Displays a rule without its `-A CHAIN`.
#[derive(Debug)]
pub struct RuleText<'a>(pub &'a Rule);

impl Display for RuleText<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let rule = self.0;
        let mut words = Words { out: f, first: true };
        if let Some(source) = &rule.source {
            words.negatable("-s", source.not, &source.value)?;
        }
        if let Some(destination) = &rule.destination {
            words.negatable("-d", destination.not, &destination.value)?;
        }
        if let Some(interface) = &rule.in_interface {
            words.negatable("-i", interface.not, &interface.value.0)?;
        }
        if let Some(protocol) = rule.protocol {
            words.word(format_args!("-p {protocol}"))?;
        }
        rule.matches.iter().try_for_each(|m| words.word(format_args!("{}", MatchText(m))))?;
        rule.target.iter().try_for_each(|t| words.word(format_args!("-j {}", TargetText(t))))
    }
}

/// Writes words with one blank between them.
struct Words<'a, 'f> {
    out: &'a mut Formatter<'f>,
    first: bool,
}

impl Words<'_, '_> {
    fn word(&mut self, word: fmt::Arguments<'_>) -> fmt::Result {
        if !std::mem::take(&mut self.first) {
            self.out.write_char(' ')?;
        }
        self.out.write_fmt(word)
    }

    fn negatable(&mut self, flag: &str, not: bool, value: &dyn Display) -> fmt::Result {
        self.word(format_args!("{}{flag} {value}", bang(not)))
    }
}

fn bang(not: bool) -> &'static str {
    if not { "! " } else { "" }
}

struct MatchText<'a>(&'a Match);

impl Display for MatchText<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            Match::AddrType(AddrType::SourceLocal) => f.write_str("-m addrtype --src-type LOCAL"),
            Match::AddrType(AddrType::SourceNotLocal) => f.write_str("-m addrtype ! --src-type LOCAL"),
            Match::AddrType(AddrType::DestinationLocal) => f.write_str("-m addrtype --dst-type LOCAL"),
            Match::Comment(comment) => {
                f.write_str("-m comment --comment ")?;
                write_quoted(f, comment.as_str())
            }
            Match::Conntrack(Negatable { not, value }) => {
                write!(f, "-m conntrack {}--ctstate ", bang(*not))?;
                write_states(f, *value)
            }
            Match::Ipvs { protocol, address, port } => {
                write!(f, "-m ipvs --vproto {} --vaddr {address} --vport {port}", protocol.number())
            }
            Match::Mark(Negatable { not, value: (value, mask) }) => {
                write!(f, "-m mark {}--mark {value:#x}/{mask:#x}", bang(*not))
            }
            // The two blanks are iptables 1.8.9's own.
            Match::NfAcct(name) => write!(f, "-m nfacct --nfacct-name  {name}"),
            Match::NotFromBridge => f.write_str("-m physdev ! --physdev-is-in"),
            Match::Port { protocol, destination: None } => write!(f, "-m {protocol}"),
            Match::Port { protocol, destination: Some(port) } => write!(f, "-m {protocol} --dport {port}"),
            Match::Recent { family, list, action } => write_recent(f, *family, list.as_str(), *action),
            Match::Set { set, directions } => {
                let words: Vec<_> = directions.iter().map(|direction| direction.as_str()).collect();
                write!(f, "-m set --match-set {set} {}", words.join(","))
            }
            Match::Statistic { probability } => {
                let share = f64::from(*probability) / f64::from(1u32 << 31);
                write!(f, "-m statistic --mode random --probability {share:.11}")
            }
        }
    }
}

fn write_recent(f: &mut Formatter<'_>, family: Family, list: &str, action: RecentAction) -> fmt::Result {
    match action {
        RecentAction::Set => f.write_str("-m recent --set")?,
        RecentAction::Check { seconds } => write!(f, "-m recent --rcheck --seconds {seconds} --reap")?,
    }
    let mask = match family {
        Family::Ipv4 => "255.255.255.255",
        Family::Ipv6 => "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    };
    write!(f, " --name {list} --mask {mask} --rsource")
}

/// iptables prints states in this order, whatever order they were given in.
const STATES: [(CtStates, &str); 7] = [
    (CtStates::INVALID, "INVALID"),
    (CtStates::NEW, "NEW"),
    (CtStates::RELATED, "RELATED"),
    (CtStates::ESTABLISHED, "ESTABLISHED"),
    (CtStates::UNTRACKED, "UNTRACKED"),
    (CtStates::SNAT, "SNAT"),
    (CtStates::DNAT, "DNAT"),
];

fn write_states(f: &mut Formatter<'_>, states: CtStates) -> fmt::Result {
    let mut separator = "";
    for (state, name) in STATES {
        if states.contains(state) {
            write!(f, "{separator}{name}")?;
            separator = ",";
        }
    }
    Ok(())
}

struct TargetText<'a>(&'a Target);

impl Display for TargetText<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            Target::Accept => f.write_str("ACCEPT"),
            Target::Dnat(to) => write!(f, "DNAT --to-destination {to}"),
            Target::Drop => f.write_str("DROP"),
            Target::Jump(chain) => write!(f, "{chain}"),
            Target::Mark { value, mask } => write!(f, "MARK --set-xmark {value:#x}/{mask:#x}"),
            Target::Masquerade { random_fully: true } => f.write_str("MASQUERADE --random-fully"),
            Target::Masquerade { random_fully: false } => f.write_str("MASQUERADE"),
            Target::Reject(RejectWith::IcmpPortUnreachable) => f.write_str("REJECT --reject-with icmp-port-unreachable"),
            Target::Reject(RejectWith::Icmp6PortUnreachable) => f.write_str("REJECT --reject-with icmp6-port-unreachable"),
            Target::Return => f.write_str("RETURN"),
        }
    }
}

/// Quotes as iptables does: only where a character other than letters, digits, `_` and `-` stands.
fn write_quoted(f: &mut Formatter<'_>, text: &str) -> fmt::Result {
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-') {
        return f.write_str(text);
    }
    f.write_char('"')?;
    for c in text.chars() {
        if matches!(c, '"' | '\\' | '\'') {
            f.write_char('\\')?;
        }
        f.write_char(c)?;
    }
    f.write_char('"')
}
