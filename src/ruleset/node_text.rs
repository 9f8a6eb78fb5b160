//! The text of virtual servers, sets and local addresses, as `ipvsadm -Sn`, `ipset save` and `ip` tell of them, sorted as
//! text.

use std::collections::BTreeSet;
use std::fmt::{self, Write};
use std::net::{IpAddr, SocketAddr};

use super::set::{Member, SetSpec, SetType};
use super::virtual_server::{ServerFlags, VirtualAddress, VirtualServer};
use crate::net::{Family, Protocol};

/// Writes virtual servers with their real servers, all of weight 1. Of two at one address the first counts.
pub fn services<'a>(
    out: &mut impl Write,
    servers: impl IntoIterator<Item = (&'a VirtualAddress, &'a VirtualServer, &'a [SocketAddr])>,
) -> fmt::Result {
    let mut servers: Vec<_> = servers.into_iter().collect();
    servers.sort_by_key(|(at, ..)| *at);
    servers.dedup_by_key(|(at, ..)| *at);
    let text = |(at, server, real): (&VirtualAddress, &VirtualServer, &[SocketAddr])| {
        let name = format!("{} {}", protocol_flag(at.protocol), at.address);
        let real = real.iter().map(|real| format!("-a {name} -r {real} -m -w 1")).collect();
        (format!("-A {name} {}", server_text(server)), sorted(real))
    };
    let mut lines: Vec<_> = servers.into_iter().map(text).collect();
    lines.sort();
    lines.iter().flat_map(|(server, real)| [server].into_iter().chain(real)).try_for_each(|line| writeln!(out, "{line}"))
}

fn protocol_flag(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "-t",
        Protocol::Udp => "-u",
        Protocol::Sctp => "--sctp-service",
    }
}

fn server_text(server: &VirtualServer) -> String {
    let persistence = server.persistence.map(|persistence| format!(" -p {}", persistence.seconds)).unwrap_or_default();
    let flags = if server.flags == ServerFlags::MH_PORT { " -b mh-port" } else { "" };
    format!("-s {}{persistence}{flags}", server.scheduler)
}

/// Writes sets with their members.
pub fn sets(out: &mut impl Write, sets: impl IntoIterator<Item = (SetSpec, BTreeSet<Member>)>) -> fmt::Result {
    let mut sets: Vec<_> = sets.into_iter().collect();
    sets.sort_by(|(a, _), (b, _)| a.name.cmp(&b.name));
    for (set, members) in sets {
        writeln!(out, "create {} {} {}", set.name, set.kind.as_str(), options(&set))?;
        let lines = sorted(members.iter().map(|member| format!("add {} {member}", set.name)).collect());
        lines.iter().try_for_each(|line| writeln!(out, "{line}"))?;
    }
    Ok(())
}

fn options(set: &SetSpec) -> String {
    let family = match set.family {
        Family::Ipv4 => "inet",
        Family::Ipv6 => "inet6",
    };
    match set.kind {
        SetType::BitmapPort => "range 0-65535".into(),
        _ => format!("family {family} hashsize 1024 maxelem {}", set.max_members),
    }
}

/// Writes the device that makes addresses local, and these, each once.
pub fn addresses(out: &mut impl Write, addresses: &[IpAddr]) -> fmt::Result {
    let line = |&address: &IpAddr| {
        let family = Family::of(address);
        let word = if family == Family::Ipv4 { "inet" } else { "inet6" };
        format!("{word} {address}/{} scope global", family.host_prefix())
    };
    writeln!(out, "kube-ipvs0 DOWN noarp")?;
    sorted(addresses.iter().map(line).collect()).iter().try_for_each(|line| writeln!(out, "{line}"))
}

fn sorted(mut lines: Vec<String>) -> Vec<String> {
    lines.sort();
    lines.dedup();
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Scheduler;

    const SERVER: VirtualServer = VirtualServer { scheduler: Scheduler::Rr, flags: ServerFlags::NONE, persistence: None };

    fn text(write: impl Fn(&mut String) -> fmt::Result) -> String {
        let mut out = String::new();
        write(&mut out).unwrap();
        out
    }

    #[test]
    fn services_are_sorted_as_text_and_the_first_of_two_at_one_address_counts() {
        let at = |protocol, address: &str| VirtualAddress { protocol, address: address.parse().unwrap() };
        let places = [
            at(Protocol::Udp, "10.0.0.1:53"),
            at(Protocol::Tcp, "10.0.0.1:9"),
            at(Protocol::Tcp, "10.0.0.1:10"),
            at(Protocol::Tcp, "[fd00::1]:80"),
            at(Protocol::Tcp, "10.0.0.1:9"),
        ];
        let real = ["10.1.0.9:80", "10.1.0.10:80"].map(|real| real.parse().unwrap());
        let servers =
            places.iter().enumerate().map(|(i, at)| (at, &SERVER, if i == 4 { &real[..1] } else { &real[..i / 2 * 2] }));
        let want = "-A -t 10.0.0.1:10 -s rr\n\
            -a -t 10.0.0.1:10 -r 10.1.0.10:80 -m -w 1\n\
            -a -t 10.0.0.1:10 -r 10.1.0.9:80 -m -w 1\n\
            -A -t 10.0.0.1:9 -s rr\n\
            -A -t [fd00::1]:80 -s rr\n\
            -a -t [fd00::1]:80 -r 10.1.0.10:80 -m -w 1\n\
            -a -t [fd00::1]:80 -r 10.1.0.9:80 -m -w 1\n\
            -A -u 10.0.0.1:53 -s rr\n";
        assert_eq!(text(|out| services(out, servers.clone())), want);
    }

    #[test]
    fn sets_tell_how_much_they_take() {
        let set = |kind, max_members| SetSpec { name: "A".into(), kind, family: Family::Ipv6, max_members };
        let member = Member::Ip("fd00::1".parse().unwrap());
        let large = text(|out| sets(out, [(set(SetType::HashIp, 1 << 17), BTreeSet::from([member]))]));
        assert_eq!(large, "create A hash:ip family inet6 hashsize 1024 maxelem 131072\nadd A fd00::1\n");
        let bitmap =
            text(|out| sets(out, [(set(SetType::BitmapPort, 1 << 16), BTreeSet::from([Member::Port(9), Member::Port(80)]))]));
        assert_eq!(bitmap, "create A bitmap:port range 0-65535\nadd A 80\nadd A 9\n");
    }
}
