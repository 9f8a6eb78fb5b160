//! Virtual and real servers: what is written is what is there, also to ipvsadm, and what ipvsadm wrote is read.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use sluice::net::{Family, Protocol, Scheduler};
use sluice::netlink::ipvs::{Timeouts, VirtualServers};
use sluice::netlink::{Errno, Error, Sent};
use sluice::ruleset::{NodeOp, Persistence, RealServer, ServerFlags, VirtualAddress, VirtualServer};

use super::netns::in_namespace;
use super::{refusals, shell};

const ERANGE: Errno = Errno(34);

fn at(address: &str) -> VirtualAddress {
    VirtualAddress { protocol: Protocol::Tcp, address: address.parse().unwrap() }
}

fn plain(scheduler: Scheduler) -> VirtualServer {
    VirtualServer { scheduler, flags: ServerFlags::NONE, persistence: None }
}

fn add(at: VirtualAddress, server: VirtualServer) -> NodeOp {
    NodeOp::AddServer { at, server }
}

fn add_real(at: VirtualAddress, real: &str, weight: u32) -> NodeOp {
    NodeOp::AddReal { at, real: real.parse().unwrap(), weight }
}

fn real(address: &str, weight: u32) -> RealServer {
    RealServer { address: address.parse().unwrap(), weight, masquerades: true, active: 0, inactive: 0 }
}

/// IPVS takes real servers only where the kernel can tell what kind of address they have: with a table of local routes,
/// which the first address makes.
fn open() -> VirtualServers {
    shell("ip link set lo up");
    VirtualServers::open().unwrap()
}

/// Does what must not be refused.
fn apply(ipvs: &mut VirtualServers, ops: &[NodeOp]) -> Sent {
    let mut sent = Sent::default();
    ipvs.apply(ops, 0, &mut sent).unwrap();
    assert_eq!(sent.refused, []);
    sent
}

fn sorted(mut servers: Vec<(VirtualAddress, VirtualServer)>) -> Vec<(VirtualAddress, VirtualServer)> {
    servers.sort_unstable_by_key(|(at, _)| *at);
    servers
}

fn real_servers(ipvs: &mut VirtualServers, of: &VirtualAddress) -> Vec<RealServer> {
    let mut found = ipvs.real_servers(of).unwrap();
    found.sort_unstable_by_key(|real| real.address);
    found
}

/// One of each: scheduler, protocol, family, with and without persistence.
fn samples() -> Vec<(VirtualAddress, VirtualServer)> {
    let mut samples = Vec::new();
    for ip in ["10.96.0.1", "fd00::1"] {
        let ip: IpAddr = ip.parse().unwrap();
        let mut port = 0;
        for scheduler in Scheduler::ALL {
            for protocol in Protocol::ALL {
                for seconds in [None, Some(10_800)] {
                    port += 1;
                    let flags = if scheduler == Scheduler::Mh { ServerFlags::MH_PORT } else { ServerFlags::NONE };
                    let persistence = seconds.map(|seconds| Persistence { seconds, prefix: Family::of(ip).host_prefix() });
                    let at = VirtualAddress { protocol, address: SocketAddr::new(ip, port) };
                    samples.push((at, VirtualServer { scheduler, flags, persistence }));
                }
            }
        }
    }
    samples
}

/// The line that `ipvsadm -Sn` has for a virtual server.
fn line((at, server): &(VirtualAddress, VirtualServer)) -> String {
    let option = match at.protocol {
        Protocol::Tcp => "-t",
        Protocol::Udp => "-u",
        Protocol::Sctp => "--sctp-service",
    };
    let persistence = server.persistence.map(|it| format!(" -p {}", it.seconds)).unwrap_or_default();
    let flags = if server.flags == ServerFlags::MH_PORT { " -b mh-port" } else { "" };
    format!("-A {option} {} -s {}{persistence}{flags}", at.address, server.scheduler)
}

#[test]
#[ignore = "run in the virtual machine of on_linux_6_1"]
fn what_is_written_is_read_and_seen_by_ipvsadm() {
    in_namespace(|| {
        let mut ipvs = open();
        let samples = samples();
        let ops: Vec<_> = samples.iter().map(|(at, server)| add(*at, *server)).collect();
        let sent = apply(&mut ipvs, &ops);
        assert_eq!((sent.messages, sent.sends), (samples.len(), 1));
        assert!(sent.bytes > 60 * samples.len(), "{sent:?}");
        for family in Family::ALL {
            let wanted = samples.iter().copied().filter(|(at, _)| at.family() == family).collect();
            assert_eq!(sorted(ipvs.servers(family).unwrap()), sorted(wanted));
        }
        let saved = shell("ipvsadm -Sn");
        let mut saved: Vec<_> = saved.lines().map(str::trim_end).collect();
        let mut lines: Vec<_> = samples.iter().map(line).collect();
        saved.sort_unstable();
        lines.sort_unstable();
        assert_eq!(saved, lines);
    });
}

#[test]
#[ignore = "run in the virtual machine of on_linux_6_1"]
fn real_servers_come_change_and_go() {
    in_namespace(|| {
        let mut ipvs = open();
        for (address, one, other) in
            [("10.96.0.1:80", "10.244.1.2:8080", "127.0.0.1:8080"), ("[fd00::1]:80", "[fd00:1::2]:8080", "[::1]:8080")]
        {
            let at = at(address);
            apply(&mut ipvs, &[add(at, plain(Scheduler::Wrr)), add_real(at, one, 1), add_real(at, other, 0)]);
            // One on this very node is masqueraded to like others.
            let both = if at.family() == Family::Ipv4 { [real(one, 1), real(other, 0)] } else { [real(other, 0), real(one, 1)] };
            assert_eq!(real_servers(&mut ipvs, &at), both);
            let one_address = one.parse().unwrap();
            apply(&mut ipvs, &[NodeOp::EditReal { at, real: one_address, weight: 100 }]);
            assert!(shell("ipvsadm -Sn").contains(&format!("-a -t {address} -r {one} -m -w 100")));
            apply(&mut ipvs, &[NodeOp::DeleteReal { at, real: one_address }]);
            assert_eq!(ipvs.real_servers(&at).unwrap(), [real(other, 0)]);
            apply(&mut ipvs, &[NodeOp::DeleteServer { at }]);
            assert_eq!(ipvs.real_servers(&at).unwrap(), [], "nothing is there, and that is no error");
        }
        assert_eq!(shell("ipvsadm -Sn"), "");
    });
}

#[test]
#[ignore = "run in the virtual machine of on_linux_6_1"]
fn a_virtual_server_is_changed_in_place() {
    in_namespace(|| {
        let mut ipvs = open();
        for address in ["10.96.0.1:80", "[fd00::1]:80"] {
            let at = at(address);
            let persistence = Some(Persistence { seconds: 60, prefix: at.family().host_prefix() });
            let sticky = VirtualServer { scheduler: Scheduler::Mh, flags: ServerFlags::MH_PORT, persistence };
            let reals = if at.family() == Family::Ipv4 { "10.244.1.2:80" } else { "[fd00:1::2]:80" };
            apply(&mut ipvs, &[add(at, plain(Scheduler::Rr)), add_real(at, reals, 1)]);
            for server in [sticky, plain(Scheduler::Lc), sticky] {
                apply(&mut ipvs, &[NodeOp::EditServer { at, server }]);
                assert_eq!(ipvs.servers(at.family()).unwrap(), [(at, server)]);
                assert_eq!(ipvs.real_servers(&at).unwrap(), [real(reals, 1)], "they stay");
            }
        }
    });
}

#[test]
#[ignore = "run in the virtual machine of on_linux_6_1"]
fn each_refusal_has_its_number_and_its_place() {
    in_namespace(|| {
        let mut ipvs = open();
        let (here, nowhere, six) = (at("10.96.0.1:80"), at("10.96.0.2:80"), at("[fd00::1]:80"));
        let rr = plain(Scheduler::Rr);
        let no_prefix = VirtualServer { persistence: Some(Persistence { seconds: 1, prefix: 0 }), ..rr };
        let gone: SocketAddr = "10.244.9.9:80".parse().unwrap();
        let refused = [
            (add(here, rr), Errno::EEXIST),
            (NodeOp::EditServer { at: nowhere, server: rr }, Errno::ESRCH),
            (NodeOp::DeleteServer { at: nowhere }, Errno::ESRCH),
            (add(nowhere, plain(Scheduler::Other)), Errno::ENOENT),
            (NodeOp::EditServer { at: here, server: plain(Scheduler::Other) }, Errno::ENOENT),
            (add(six, no_prefix), Errno::EINVAL),
            (add_real(nowhere, "10.244.1.2:80", 1), Errno::ESRCH),
            (add_real(here, "10.244.1.2:80", 1), Errno::EEXIST),
            (add_real(here, "[fd00::2]:80", 1), Errno::EINVAL),
            (add_real(here, "10.244.1.3:80", u32::MAX), ERANGE),
            (NodeOp::EditReal { at: here, real: gone, weight: 1 }, Errno::ENOENT),
            (NodeOp::DeleteReal { at: here, real: gone }, Errno::ENOENT),
            (NodeOp::EditReal { at: nowhere, real: gone, weight: 1 }, Errno::ESRCH),
            (NodeOp::DeleteReal { at: nowhere, real: gone }, Errno::ESRCH),
            (NodeOp::MakeDevice, Errno::EOPNOTSUPP),
        ];
        apply(&mut ipvs, &[add(here, rr), add_real(here, "10.244.1.2:80", 1)]);
        let ops: Vec<_> = refused.iter().map(|(op, _)| op.clone()).collect();
        let mut sent = Sent::default();
        ipvs.apply(&ops, 100, &mut sent).unwrap();
        let errors: Vec<_> = sent.refused.iter().map(|it| (it.op - 100, it.errno, it.text.clone())).collect();
        let mut wanted: Vec<_> = refused.iter().enumerate().map(|(i, (op, errno))| (i, *errno, op.to_string())).collect();
        // What is not sent is known before the answers.
        wanted.rotate_right(1);
        assert_eq!(errors, wanted);
        assert_eq!(ipvs.servers(Family::Ipv4).unwrap(), [(here, rr)]);
        assert_eq!(ipvs.real_servers(&here).unwrap(), [real("10.244.1.2:80", 1)]);
    });
}

/// 10,000 virtual servers with two real ones each, several sends, every hundredth of one kind refused.
#[test]
#[ignore = "run in the virtual machine of on_linux_6_1"]
fn thousands_go_in_few_sends() {
    in_namespace(|| {
        let mut ipvs = open();
        let mut ops = Vec::new();
        let mut wanted = Vec::new();
        for i in 0..10_000_u32 {
            let address = SocketAddr::new(Ipv4Addr::from(0x0a60_0000 + i).into(), 80);
            let at = VirtualAddress { protocol: Protocol::Tcp, address };
            ops.push(add(at, plain(Scheduler::Rr)));
            ops.push(add_real(at, "10.244.1.2:80", 1));
            if i % 100 == 99 {
                wanted.push((ops.len(), Errno::EEXIST));
            }
            ops.push(add_real(at, if i % 100 == 99 { "10.244.1.2:80" } else { "10.244.1.3:80" }, 1));
        }
        let mut sent = Sent::default();
        ipvs.apply(&ops, 0, &mut sent).unwrap();
        assert_eq!(sent.refused.len(), wanted.len(), "the first: {:?}", sent.refused.first());
        assert_eq!(refusals(&sent), wanted);
        assert_eq!(sent.messages, 30_000);
        assert_eq!(sent.sends, sent.bytes.div_ceil(1 << 20));
        assert!(sent.sends <= 4, "{} sends", sent.sends);
        let servers = ipvs.servers(Family::Ipv4).unwrap();
        assert_eq!(servers.len(), 10_000);
        let reals: usize = servers.iter().map(|(at, _)| ipvs.real_servers(at).unwrap().len()).sum();
        assert_eq!(reals, 20_000 - wanted.len());
        // All refused: an answer to each.
        let mut again = Sent::default();
        ipvs.apply(&ops, 0, &mut again).unwrap();
        assert_eq!(again.refused.len(), 30_000);
    });
}

/// The kernel holds the virtual servers of all network namespaces in one table, and counts where a listing is in it.
#[test]
#[ignore = "run in the virtual machine of on_linux_6_1"]
fn a_listing_tells_nothing_twice_though_others_add() {
    in_namespace(|| {
        let wanted: Vec<_> = (1..500).map(|port| (at(&format!("10.96.0.1:{port}")), plain(Scheduler::Rr))).collect();
        let mut ipvs = open();
        apply(&mut ipvs, &wanted.iter().map(|(at, server)| add(*at, *server)).collect::<Vec<_>>());
        let over = Arc::new(AtomicBool::new(false));
        let listing_is_over = Arc::clone(&over);
        let other = thread::spawn(move || {
            in_namespace(move || {
                let mut ipvs = open();
                let mut ports = 1..=u16::MAX;
                while let Some(port) = ports.next().filter(|_| !listing_is_over.load(Ordering::Relaxed)) {
                    apply(&mut ipvs, &[add(at(&format!("10.97.0.1:{port}")), plain(Scheduler::Rr))]);
                    thread::sleep(Duration::from_millis(1));
                }
            });
        });
        let mut whole = 0;
        for _ in 0..100 {
            match ipvs.servers(Family::Ipv4) {
                Ok(found) => {
                    assert_eq!(found.len(), wanted.len());
                    assert_eq!(sorted(found), wanted);
                    whole += 1;
                }
                Err(error) => assert!(matches!(error, Error::Interrupted), "{error}"),
            }
        }
        over.store(true, Ordering::Relaxed);
        other.join().unwrap();
        println!("{whole} of 100 listings came through");
        assert_eq!(sorted(ipvs.servers(Family::Ipv4).unwrap()), wanted);
    });
}

#[test]
#[ignore = "run in the virtual machine of on_linux_6_1"]
fn what_others_wrote_is_read() {
    in_namespace(|| {
        shell(
            "ip link set lo up
             ipvsadm -A -t 10.96.0.1:80 -s lblc
             ipvsadm -A -u 10.96.0.2:53 -s sh -p 77 -M 255.255.255.0
             ipvsadm -A -t [fd00::1]:80 -s wlc -p 78 -M 64
             ipvsadm -A -f 7 -s rr; ipvsadm -A -f 8 -6 -s rr
             ipvsadm -a -t 10.96.0.1:80 -r 10.244.1.2:80 -g -w 7; ipvsadm -a -t 10.96.0.1:80 -r 10.244.1.3:8080 -m -w 0 -x 9 -y 5
             ipvsadm -A -t 10.96.0.3:80 -s sh -b sh-fallback,sh-port",
        );
        let mut ipvs = open();
        let udp = VirtualAddress { protocol: Protocol::Udp, ..at("10.96.0.2:53") };
        let sticky = |scheduler, seconds, prefix| {
            let persistence = Some(Persistence { seconds, prefix });
            VirtualServer { persistence, ..plain(scheduler) }
        };
        // sh-fallback and sh-port.
        let flagged = VirtualServer { flags: ServerFlags(0x8 | 0x10), ..plain(Scheduler::Sh) };
        let four =
            [(at("10.96.0.1:80"), plain(Scheduler::Other)), (at("10.96.0.3:80"), flagged), (udp, sticky(Scheduler::Sh, 77, 24))];
        assert_eq!(sorted(ipvs.servers(Family::Ipv4).unwrap()), four);
        assert_eq!(ipvs.servers(Family::Ipv6).unwrap(), [(at("[fd00::1]:80"), sticky(Scheduler::Wlc, 78, 64))]);
        let routed = RealServer { masquerades: false, ..real("10.244.1.2:80", 7) };
        assert_eq!(real_servers(&mut ipvs, &at("10.96.0.1:80")), [routed, real("10.244.1.3:8080", 0)]);
        // Ours from now on, thresholds and way included.
        let here = at("10.96.0.1:80");
        let edit = |address: &str| NodeOp::EditReal { at: here, real: address.parse().unwrap(), weight: 1 };
        let rr = NodeOp::EditServer { at: here, server: plain(Scheduler::Rr) };
        apply(&mut ipvs, &[rr, edit("10.244.1.2:80"), edit("10.244.1.3:8080")]);
        let saved = shell("ipvsadm -Sn | grep 10.96.0.1:80 | sort");
        let lines = [
            "-A -t 10.96.0.1:80 -s rr",
            "-a -t 10.96.0.1:80 -r 10.244.1.2:80 -m -w 1",
            "-a -t 10.96.0.1:80 -r 10.244.1.3:8080 -m -w 1",
        ];
        assert_eq!(saved.lines().map(str::trim_end).collect::<Vec<_>>(), lines);
    });
}

#[test]
#[ignore = "run in the virtual machine of on_linux_6_1"]
fn connections_are_counted() {
    in_namespace(|| {
        shell("ip link set lo up; ip address add 10.96.0.1/32 dev lo");
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = server.local_addr().unwrap();
        let at = at("10.96.0.1:80");
        let mut ipvs = open();
        apply(&mut ipvs, &[add(at, plain(Scheduler::Rr)), NodeOp::AddReal { at, real: address, weight: 1 }]);
        let connected: Vec<_> = (0..3).map(|_| (TcpStream::connect(at.address).unwrap(), server.accept().unwrap())).collect();
        let count = |ipvs: &mut VirtualServers| ipvs.real_servers(&at).unwrap().first().map(|it| (it.active, it.inactive));
        assert_eq!(count(&mut ipvs), Some((3, 0)));
        drop(connected);
        assert_eq!(count(&mut ipvs), Some((0, 3)));
    });
}

#[test]
#[ignore = "run in the virtual machine of on_linux_6_1"]
fn timeouts_are_set_one_by_one() {
    in_namespace(|| {
        let seconds = Duration::from_secs;
        let mut ipvs = open();
        let before = ipvs.timeouts().unwrap();
        assert_eq!(before, Timeouts { tcp: seconds(900), tcp_fin: seconds(120), udp: seconds(300) });
        ipvs.set_timeouts(None, None, None).unwrap();
        ipvs.set_timeouts(Some(Duration::ZERO), None, Some(Duration::ZERO)).unwrap();
        assert_eq!(ipvs.timeouts().unwrap(), before);
        ipvs.set_timeouts(Some(seconds(1000)), None, Some(seconds(7))).unwrap();
        ipvs.set_timeouts(None, Some(seconds(33)), None).unwrap();
        assert_eq!(ipvs.timeouts().unwrap(), Timeouts { tcp: seconds(1000), tcp_fin: seconds(33), udp: seconds(7) });
        assert!(shell("ipvsadm -L --timeout").contains("1000 33 7"));
        let error = ipvs.set_timeouts(None, None, Some(Duration::from_secs(1 << 40))).unwrap_err();
        assert_eq!(error.to_string(), "cannot set the timeouts of IPVS: EINVAL (Invalid argument)");
    });
}

#[test]
#[ignore = "run in the virtual machine of on_linux_6_1"]
fn a_scheduler_is_tried_out_and_nothing_stays() {
    in_namespace(|| {
        let mut ipvs = open();
        for scheduler in Scheduler::ALL {
            ipvs.probe_scheduler(scheduler).unwrap();
            assert_eq!(shell("ipvsadm -Sn"), "");
        }
        assert_eq!(ipvs.probe_scheduler(Scheduler::Other).unwrap_err().errno(), Some(Errno::ENOENT));
        // What somebody left behind is in nobody's way, and stays.
        let probe = at("198.51.100.0:20000");
        apply(&mut ipvs, &[add(probe, plain(Scheduler::Sh))]);
        ipvs.probe_scheduler(Scheduler::Rr).unwrap();
        assert_eq!(ipvs.servers(Family::Ipv4).unwrap(), [(probe, plain(Scheduler::Sh))]);
    });
}
