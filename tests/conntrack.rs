//! Tracked flows in the real kernel: which are listed, what a deletion hits. Each test is in a network namespace of
//! its own; those of `kernel` run once more on Linux 6.1, in a virtual machine.

#![allow(clippy::unwrap_used, reason = "where a test cannot go on it has failed")]

mod netns;

use std::fs;
use std::path::Path;
use std::process::Command;

/// Runs a shell command line, which must succeed, and returns what it prints.
fn shell(line: &str) -> String {
    let output = Command::new("sh").args(["-ec", line]).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

mod kernel {
    use std::net::{SocketAddr, UdpSocket};

    use sluice::net::Family;
    use sluice::netlink::conntrack::{Conntrack, Flow, Flows as _, Query, Tuple};

    use super::netns::in_namespace;
    use super::shell;

    fn flow(source: &str, asked: &str, answers: &str) -> Flow {
        let end = |text: &str| text.parse().unwrap();
        let original = Tuple { source: end(source), destination: end(asked) };
        Flow { original, reply: Tuple { source: end(answers), destination: end(source) }, id: 0 }
    }

    /// Makes the kernel track a flow; `more` are options of conntrack(8).
    fn track(flow: &Flow, more: &str) {
        let Flow { original: Tuple { source, destination }, reply, .. } = flow;
        shell(&format!(
            "conntrack -I -p udp -t 300 -s {} --sport {} -d {} --dport {} -r {} --reply-port-src {} -q {} --reply-port-dst {} {more}",
            source.ip(),
            source.port(),
            destination.ip(),
            destination.port(),
            reply.source.ip(),
            reply.source.port(),
            reply.destination.ip(),
            reply.destination.port(),
        ));
    }

    fn translated() -> Flow {
        flow("10.244.0.9:4000", "10.96.0.10:53", "10.244.1.2:5353")
    }

    fn plain() -> Flow {
        flow("10.244.0.9:4000", "192.0.2.1:53", "192.0.2.1:53")
    }

    fn v6() -> Flow {
        flow("[fd00::9]:4000", "[fd00::a]:53", "[fd00::b]:5353")
    }

    /// All flows that are `wanted`.
    fn all(family: Family, wanted: &dyn Fn(&Flow) -> bool) -> Query<'_> {
        Query { family, address: None, port: None, wanted }
    }

    /// What is listed, sorted, without ids.
    fn listed(kernel: &mut Conntrack, family: Family) -> Vec<Flow> {
        let mut flows = kernel.udp(&all(family, &|_| true)).unwrap();
        for flow in &mut flows {
            flow.id = 0;
        }
        flows.sort_unstable();
        flows
    }

    /// The one flow that is listed like this.
    fn find(kernel: &mut Conntrack, like: &Flow) -> Flow {
        let family = Family::of(like.original.source.ip());
        let is_like = |flow: &Flow| (flow.original, flow.reply) == (like.original, like.reply);
        let found = kernel.udp(&all(family, &is_like)).unwrap();
        assert_eq!(found.len(), 1, "{found:?}");
        found[0]
    }

    /// Flows of every kind that must not be listed, between the very ends of one that is.
    fn track_others() {
        track(&translated(), "-w 7");
        track(&flow("10.244.0.9:4001", "10.96.0.10:53", "10.244.1.2:5353"), "--orig-zone 8");
        track(&flow("10.244.0.9:4002", "10.96.0.10:53", "10.244.1.2:5353"), "--reply-zone 9");
        let ends = "-t 300 -s 10.244.0.9 --sport 4000 -d 10.96.0.10 --dport 53";
        shell(&format!("conntrack -I -p tcp --state ESTABLISHED {ends}"));
        shell(&format!("conntrack -I -p sctp --state ESTABLISHED --orig-vtag 1 --reply-vtag 2 {ends}"));
        shell("conntrack -I -p icmp -t 300 -s 10.244.0.9 -d 10.96.0.10 --icmp-type 8 --icmp-code 0 --icmp-id 53");
    }

    fn count() -> usize {
        ["ipv4", "ipv6"].iter().map(|family| shell(&format!("conntrack -L -f {family}")).lines().count()).sum()
    }

    #[test]
    fn flows_of_udp_in_zone_0_are_listed() {
        in_namespace(|| {
            let mut kernel = Conntrack::default();
            assert_eq!(listed(&mut kernel, Family::Ipv4), []);
            for flow in [translated(), plain(), v6()] {
                track(&flow, "");
            }
            track_others();
            assert_eq!(listed(&mut kernel, Family::Ipv4), [translated(), plain()]);
            assert_eq!(listed(&mut kernel, Family::Ipv6), [v6()]);
            assert!(kernel.filtered, "the kernel refused the filter");
            let mut unfiltered = Conntrack { filtered: false };
            assert_eq!(listed(&mut unfiltered, Family::Ipv4), [translated(), plain()]);
        });
    }

    /// Whether the kernel leaves others out is seen by letting everything pass that comes.
    #[test]
    fn the_kernel_leaves_out_other_destinations() {
        in_namespace(|| {
            let mut kernel = Conntrack::default();
            let other_port = flow("10.244.0.9:4001", "10.96.0.10:54", "10.244.1.2:5353");
            for flow in [translated(), other_port, plain(), v6()] {
                track(&flow, "");
            }
            let mut asked = |address: Option<&str>, port| {
                let address = address.map(|text| text.parse().unwrap());
                let family = address.map_or(Family::Ipv4, Family::of);
                let query = Query { family, address, port, wanted: &|_| true };
                let mut flows = kernel.udp(&query).unwrap();
                for flow in &mut flows {
                    flow.id = 0;
                }
                flows.sort_unstable();
                flows
            };
            assert_eq!(asked(Some("10.96.0.10"), Some(53)), [translated()]);
            assert_eq!(asked(Some("10.96.0.10"), None), [translated(), other_port]);
            assert_eq!(asked(None, Some(53)), [translated(), plain()]);
            assert_eq!(asked(Some("192.0.2.1"), Some(54)), []);
            assert_eq!(asked(Some("fd00::a"), Some(53)), [v6()]);
            assert_eq!(asked(Some("fd00::a"), Some(54)), []);
            assert_eq!(asked(Some("fd00::b"), Some(53)), [v6()], "of IPv6 only the port can be compared");
            assert!(kernel.filtered, "the kernel refused the filter");
        });
    }

    #[test]
    fn a_deletion_hits_its_flow_alone() {
        in_namespace(|| {
            let mut kernel = Conntrack::default();
            for flow in [translated(), plain(), v6()] {
                track(&flow, "");
            }
            track_others();
            let all = count();
            let (one, six) = (find(&mut kernel, &translated()), find(&mut kernel, &v6()));
            assert_eq!(kernel.delete(Family::Ipv4, &[]).unwrap(), 0);
            assert_eq!(count(), all, "nothing to delete, nothing deleted");
            assert_eq!(kernel.delete(Family::Ipv4, &[one]).unwrap(), 1);
            assert_eq!(listed(&mut kernel, Family::Ipv4), [plain()]);
            assert_eq!(kernel.delete(Family::Ipv6, &[six]).unwrap(), 1);
            assert_eq!(count(), all - 2);
            assert_eq!(kernel.delete(Family::Ipv4, &[one, one]).unwrap(), 0, "gone already is no error");
        });
    }

    #[test]
    fn a_flow_that_took_anothers_place_stays() {
        in_namespace(|| {
            let mut kernel = Conntrack::default();
            track(&translated(), "");
            let earlier = find(&mut kernel, &translated());
            shell("conntrack -D -p udp --orig-port-src 4000");
            // Memory that is free again would be used again for the next.
            track(&plain(), "");
            track(&translated(), "");
            let later = find(&mut kernel, &translated());
            assert_ne!(earlier.id, later.id);
            assert_eq!(kernel.delete(Family::Ipv4, &[earlier]).unwrap(), 0);
            assert_eq!(find(&mut kernel, &translated()), later);
        });
    }

    /// Several sends, answers to each of which may be an error; flows of real packets through a real translation.
    #[test]
    fn thousands_are_deleted_in_few_sends() {
        in_namespace(|| {
            shell(
                "ip link set lo up; ip address add 10.244.0.9/32 dev lo; ip route add 10.96.0.10/32 dev lo
                 iptables -t nat -A OUTPUT -p udp -d 10.96.0.10 -j DNAT --to-destination 127.0.0.1:5353",
            );
            let server: SocketAddr = "127.0.0.1:5353".parse().unwrap();
            let client = UdpSocket::bind("10.244.0.9:4000").unwrap();
            let _server = UdpSocket::bind(server).unwrap();
            for port in 10_000_u16..13_000 {
                client.send_to(b"x", ("10.96.0.10", port)).unwrap();
            }
            let mut kernel = Conntrack::default();
            let flows = kernel.udp(&all(Family::Ipv4, &|flow| flow.reply.source == server)).unwrap();
            assert_eq!(flows.len(), 3000);
            let half: Vec<_> = flows.iter().copied().step_by(2).collect();
            assert_eq!(kernel.delete(Family::Ipv4, &half).unwrap(), 1500);
            assert_eq!(listed(&mut kernel, Family::Ipv4).len(), 1500);
            assert_eq!(kernel.delete(Family::Ipv4, &flows).unwrap(), 1500, "every other one is gone");
            assert_eq!(listed(&mut kernel, Family::Ipv4), []);
        });
    }
}

/// What the guest runs: these tests, and the one about a kernel without ctnetlink once it is one.
const IN_GUEST: &str = r#"
uname -r
"$0" kernel::
echo /bin/false >/proc/sys/kernel/modprobe
/run/vmrun/busybox rmmod nf_conntrack_netlink
"$0" --ignored without_ctnetlink::
"#;

#[test]
fn the_same_on_linux_6_1() {
    let machine = Path::new(env!("CARGO_MANIFEST_DIR")).join("e2e/vmrun");
    let tests = std::env::current_exe().unwrap();
    // On a machine of two cores, with other tests beside it, the boot takes some 10 s.
    let run = Command::new(machine).args(["--timeout", "200", "--", "sh", "-ec", IN_GUEST]).arg(tests).output().unwrap();
    let (out, log) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    if run.status.code() == Some(125) && std::env::var_os("CI").is_none() {
        eprintln!("not run on Linux 6.1, there is no virtual machine here (e2e/vmrun --setup makes one ready): {log}");
        return;
    }
    assert!(run.status.success(), "{}\n{out}\n{log}", run.status);
    assert!(out.starts_with("6.1."), "another kernel: {out}");
    assert!(out.contains("test result: ok. 5 passed") && out.contains("test result: ok. 2 passed"), "{out}");
}

mod without_ctnetlink {
    use sluice::net::Family;
    use sluice::netlink::Error;
    use sluice::netlink::conntrack::{Conntrack, Flows as _, Query};

    use super::netns::in_namespace;
    use super::*;

    #[test]
    #[ignore = "run in the virtual machine of the_same_on_linux_6_1, when it has no ctnetlink any more"]
    fn its_absence_is_told_from_a_failure() {
        in_namespace(|| {
            let query = Query { family: Family::Ipv4, address: None, port: None, wanted: &|_| true };
            let error = Conntrack::default().udp(&query).unwrap_err();
            assert!(matches!(error, Error::Unsupported { what: "ctnetlink", .. }), "{error}");
        });
    }

    /// One warning, and the rules are programmed all the same.
    #[test]
    #[ignore = "run in the virtual machine of the_same_on_linux_6_1, when it has no ctnetlink any more"]
    fn the_proxy_does_without() {
        in_namespace(|| {
            shell("ip link set lo up");
            let manifest = std::env::temp_dir().join("dns.yaml");
            fs::write(&manifest, DNS).unwrap();
            let mut sluice = Command::new(env!("CARGO_BIN_EXE_sluice"));
            sluice.args(["--once", "--hostname-override=node-a", "--manifests"]).arg(&manifest);
            let output = sluice.output().unwrap();
            let log = String::from_utf8(output.stderr).unwrap();
            assert!(output.status.success(), "{log}");
            assert_eq!(log.matches("nf_conntrack_netlink").count(), 1, "{log}");
            assert!(shell("iptables-save").contains("--to-destination 10.244.1.2:5353"));
        });
    }

    const DNS: &str = r#"
{"apiVersion": "v1", "kind": "List", "items": [
  {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "dns", "namespace": "kube-system"},
   "spec": {"clusterIP": "10.96.0.10", "ports": [{"name": "dns", "protocol": "UDP", "port": 53}]}},
  {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
   "metadata": {"name": "dns-1", "namespace": "kube-system", "labels": {"kubernetes.io/service-name": "dns"}},
   "ports": [{"name": "dns", "protocol": "UDP", "port": 5353}], "endpoints": [{"addresses": ["10.244.1.2"]}]}]}
"#;
}
