//! IPVS over generic netlink: the virtual servers of a network namespace and their real servers, read and changed.
//!
//! The kernel loads `ip_vs` when its family is first asked for, and the module of a scheduler with the first virtual
//! server that wants it.

mod wire;

use std::net::Ipv4Addr;
use std::time::Duration;

use super::attr::{Head, Message, Writer};
use super::errno::Errno;
use super::error::{Error, Step};
use super::socket::Peer;
use super::talk::{self, MAX_TRIES, Talk, refusal};
use super::{NodeOp, RealServer, Sent, VirtualAddress, VirtualServer};
use crate::net::{Family, Protocol, Scheduler};
use crate::ruleset::ServerFlags;
use wire::{GENLMSG, command, header, read_real, read_server, write_op, write_server};

/// `GENL_ID_CTRL` of `linux/genetlink.h`: who knows the numbers of the other families.
const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
/// A message is some 100 bytes long: 10,000 in one send.
const PIECE: usize = 1 << 20;
/// Datagrams of a listing that the kernel made at one moment: what there is, and that this is all.
const IN_ONE_PIECE: usize = 2;
/// What a scheduler is tried out with, as kube-proxy does: the network of documentation TEST-NET-2.
const PROBE: (Ipv4Addr, u16) = (Ipv4Addr::new(198, 51, 100, 0), 20_000);

/// The virtual servers of the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct VirtualServers {
    talk: Talk,
    /// The number of the family `IPVS`.
    family: u16,
}

/// Idle time after which IPVS forgets connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    pub tcp: Duration,
    pub tcp_fin: Duration,
    pub udp: Duration,
}

impl VirtualServers {
    /// [`Error::Unsupported`] where the kernel has no IPVS and cannot load it, [`Error::NoPrivilege`] without the
    /// capability, which counts in the user namespace of the start of the machine alone.
    pub fn open() -> Result<Self, Error> {
        let mut talk = Talk::open(Peer::Generic, PIECE)?;
        let write = |w: &mut Writer, head| {
            let head = Head { kind: GENL_ID_CTRL, ..head };
            w.message(head, &[CTRL_CMD_GETFAMILY, 1, 0, 0], |w| w.text(CTRL_ATTR_FAMILY_NAME, "IPVS"));
        };
        let mut family = None;
        let asked = talk.ask(Step::FindIpvs, &write, &mut |message| {
            family = message.attributes(GENLMSG).get(CTRL_ATTR_FAMILY_ID).and_then(|id| id.ne16());
        });
        let missing = |errno| Error::Unsupported { what: "IPVS (module ip_vs)", errno };
        match asked {
            Err(error) if error.errno() == Some(Errno::ENOENT) => return Err(missing(Errno::ENOENT)),
            other => other?,
        }
        let mut this = Self { talk, family: family.ok_or_else(|| missing(Errno::ENOENT))? };
        this.ask(Step::FindIpvs, command::GET_INFO, &|_| {}, &mut |_| {})?;
        Ok(this)
    }

    /// Does operations on virtual and real servers one after the other, in few sends. What was refused goes into `sent`
    /// with its place, that of the first operation being `first`.
    pub fn apply(&mut self, ops: &[NodeOp], first: usize, sent: &mut Sent) -> Result<(), Error> {
        let family = self.family;
        let write = |w: &mut Writer, head, op: &NodeOp| write_op(w, Head { kind: family, ..head }, op);
        let refused = self.talk.send_many(ops, &write, sent)?;
        sent.refused.extend(refused.into_iter().map(|it| refusal(ops, first, it)));
        Ok(())
    }

    /// The virtual servers of a family, not those of firewall marks.
    pub fn servers(&mut self, family: Family) -> Result<Vec<(VirtualAddress, VirtualServer)>, Error> {
        let mut found = self.list(Step::ReadServers, command::GET_SERVICE, &|_| {}, &read_server)?;
        found.retain(|(at, _)| at.family() == family);
        Ok(found)
    }

    /// The same from one listing: while others change virtual servers, also in other network namespaces, some may be missing.
    pub fn servers_at_a_glance(&mut self, family: Family) -> Result<Vec<(VirtualAddress, VirtualServer)>, Error> {
        let number = self.family;
        let request = |w: &mut Writer, head| {
            w.message(Head { kind: number, ..head }, &header(command::GET_SERVICE), |_| {});
        };
        let of_family = |message: &Message<'_>| read_server(message).filter(|(at, _)| at.family() == family);
        self.talk.list(Step::ReadServers, &request, &of_family)
    }

    /// The real servers of a virtual server; none where it does not exist.
    pub fn real_servers(&mut self, of: &VirtualAddress) -> Result<Vec<RealServer>, Error> {
        let read = |message: &Message<'_>| read_real(of, message).map(|real| (real.address, real));
        match self.list(Step::ReadRealServers, command::GET_DEST, &|w| write_server(w, of, None), &read) {
            Err(Error::Failed { errno: Errno::ESRCH | Errno::ENOENT, .. }) => Ok(Vec::new()),
            Err(Error::Failed { step: step @ Step::ReadRealServers, errno, .. }) => {
                Err(Error::said(step, errno, Some(of.to_string())))
            }
            other => Ok(other?.into_iter().map(|(_, real)| real).collect()),
        }
    }

    /// Sets timeouts, in whole seconds. `None` and zero leave one as it is.
    pub fn set_timeouts(&mut self, tcp: Option<Duration>, tcp_fin: Option<Duration>, udp: Option<Duration>) -> Result<(), Error> {
        let values = [
            (wire::IPVS_CMD_ATTR_TIMEOUT_TCP, tcp),
            (wire::IPVS_CMD_ATTR_TIMEOUT_TCP_FIN, tcp_fin),
            (wire::IPVS_CMD_ATTR_TIMEOUT_UDP, udp),
        ];
        let write = |w: &mut Writer| {
            for (kind, value) in values {
                // More seconds than a number holds are too many for the kernel too, which says so.
                if let Some(value) = value {
                    w.ne32(kind, value.as_secs().try_into().unwrap_or(u32::MAX));
                }
            }
        };
        self.ask(Step::SetTimeouts, command::SET_CONFIG, &write, &mut |_| {})
    }

    pub fn timeouts(&mut self) -> Result<Timeouts, Error> {
        let (mut tcp, mut tcp_fin, mut udp) = (None, None, None);
        self.ask(Step::ReadTimeouts, command::GET_CONFIG, &|_| {}, &mut |message| {
            let attributes = message.attributes(GENLMSG);
            let seconds = |kind| attributes.get(kind)?.ne32().map(|seconds| Duration::from_secs(seconds.into()));
            tcp = seconds(wire::IPVS_CMD_ATTR_TIMEOUT_TCP);
            tcp_fin = seconds(wire::IPVS_CMD_ATTR_TIMEOUT_TCP_FIN);
            udp = seconds(wire::IPVS_CMD_ATTR_TIMEOUT_UDP);
        })?;
        match (tcp, tcp_fin, udp) {
            (Some(tcp), Some(tcp_fin), Some(udp)) => Ok(Timeouts { tcp, tcp_fin, udp }),
            _ => Err(Error::said(Step::ReadTimeouts, Errno::ENODATA, Some("the answer lacks one".to_owned()))),
        }
    }

    /// Whether the kernel has a scheduler: unless a virtual server uses it already, one is made with it and deleted
    /// again in the same send. [`Error::Unsupported`] names its module where it has not.
    pub fn probe_scheduler(&mut self, scheduler: Scheduler) -> Result<(), Error> {
        let mut servers = self.servers(Family::Ipv4)?;
        servers.extend(self.servers(Family::Ipv6)?);
        if servers.iter().any(|(_, server)| server.scheduler == scheduler) {
            return Ok(());
        }
        let probe = |port| VirtualAddress { protocol: Protocol::Tcp, address: (PROBE.0, port).into() };
        // One left behind by a proxy that was killed while it tried a scheduler out is in nobody's way.
        let is_free = |at: &VirtualAddress| servers.iter().all(|(other, _)| other != at);
        let at = (PROBE.1..=u16::MAX).map(probe).find(is_free).unwrap_or(probe(PROBE.1));
        let server = VirtualServer { scheduler, flags: ServerFlags::NONE, persistence: None };
        let mut sent = Sent::default();
        self.apply(&[NodeOp::AddServer { at, server }, NodeOp::DeleteServer { at }], 0, &mut sent)?;
        match sent.refused.first() {
            None => Ok(()),
            Some(refusal) if refusal.errno == Errno::ENOENT => {
                Err(Error::Unsupported { what: scheduler_module(scheduler), errno: refusal.errno })
            }
            Some(refusal) => Err(Error::said(Step::ProbeScheduler, refusal.errno, Some(refusal.text.clone()))),
        }
    }

    fn ask(
        &mut self,
        step: Step,
        command: u8,
        body: &dyn Fn(&mut Writer),
        visit: &mut dyn FnMut(&Message<'_>),
    ) -> Result<(), Error> {
        let family = self.family;
        self.talk.ask(step, &|w, head| w.message(Head { kind: family, ..head }, &header(command), body), visit)
    }

    /// The kernel goes on with a listing by counting what it has shown already, also in other network namespaces (their
    /// virtual servers are in one table with ours), and does not say when others came in between. So what does not come
    /// in one piece is right when it comes the same twice, and tells nothing twice.
    fn list<K: Clone + Ord, T>(
        &mut self,
        step: Step,
        command: u8,
        body: &dyn Fn(&mut Writer),
        read: &dyn Fn(&Message<'_>) -> Option<(K, T)>,
    ) -> Result<Vec<(K, T)>, Error> {
        let family = self.family;
        let write = |w: &mut Writer, head| w.message(Head { kind: family, ..head }, &header(command), body);
        let mut before: Option<Vec<K>> = None;
        for _ in 0..MAX_TRIES {
            let (found, how) = self.talk.list_once(step, &write, read)?;
            let mut keys: Vec<_> = found.iter().map(|(key, _)| key.clone()).collect();
            keys.sort_unstable();
            let is_sound = !how.interrupted && keys.is_sorted_by(|one, next| one < next);
            if is_sound && (how.datagrams <= IN_ONE_PIECE || before.as_ref() == Some(&keys)) {
                return Ok(found);
            }
            before = is_sound.then_some(keys);
        }
        Err(Error::Interrupted)
    }
}

/// For benchmarks: the length of what [`VirtualServers::apply`] would send, once it is encoded.
pub(super) fn encode(ops: &[NodeOp]) -> usize {
    talk::encode(ops, PIECE, &write_op)
}

/// What the kernel lacks where it does not know a scheduler.
fn scheduler_module(scheduler: Scheduler) -> &'static str {
    match scheduler {
        Scheduler::Rr => "IPVS scheduler rr (module ip_vs_rr)",
        Scheduler::Wrr => "IPVS scheduler wrr (module ip_vs_wrr)",
        Scheduler::Lc => "IPVS scheduler lc (module ip_vs_lc)",
        Scheduler::Wlc => "IPVS scheduler wlc (module ip_vs_wlc)",
        Scheduler::Sh => "IPVS scheduler sh (module ip_vs_sh)",
        Scheduler::Dh => "IPVS scheduler dh (module ip_vs_dh)",
        Scheduler::Sed => "IPVS scheduler sed (module ip_vs_sed)",
        Scheduler::Nq => "IPVS scheduler nq (module ip_vs_nq)",
        Scheduler::Mh => "IPVS scheduler mh (module ip_vs_mh)",
        Scheduler::Other => "IPVS scheduler of a name unknown here",
    }
}

#[cfg(fuzzing)]
pub(super) fn fuzz(message: &Message<'_>) {
    if let Some((address, _)) = read_server(message) {
        let _ = read_real(&address, message);
    }
}
