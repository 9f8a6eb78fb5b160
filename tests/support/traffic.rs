//! Real packets: a backend that answers each line or datagram with its own name and the address it came from, and a
//! client that reports what became of its question. SCTP goes the way of TCP where the kernel has it.

use std::fmt;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{OnceLock, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_linger, set_socket_timeout};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, ipproto, listen, socket_with};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _};
use tokio::sync::oneshot;

use super::netns::Namespace;
use super::slowness;

/// Where backends listen, another port by protocol: a datagram sent to the wrong one is not answered.
pub const TCP_PORT: u16 = 8080;
pub const UDP_PORT: u16 = 5353;
pub const SCTP_PORT: u16 = 9090;

/// How long a question that ought to be answered may take.
const ANSWER: Duration = Duration::from_secs(3);
/// How long no answer must come before a packet counts as dropped.
pub const SILENCE: Duration = Duration::from_millis(250);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }

    pub fn backend_port(self) -> u16 {
        match self {
            Self::Tcp => TCP_PORT,
            Self::Udp => UDP_PORT,
            Self::Sctp => SCTP_PORT,
        }
    }

    fn number(self) -> rustix::net::Protocol {
        match self {
            Self::Tcp => ipproto::TCP,
            Self::Udp => ipproto::UDP,
            Self::Sctp => ipproto::SCTP,
        }
    }
}

/// The protocols this kernel has sockets for; says why one is left out.
pub fn protocols() -> &'static [Protocol] {
    static KNOWN: OnceLock<Vec<Protocol>> = OnceLock::new();
    KNOWN.get_or_init(|| match stream_socket(AddressFamily::INET, Protocol::Sctp) {
        Ok(_) => vec![Protocol::Tcp, Protocol::Udp, Protocol::Sctp],
        Err(error) => {
            eprintln!("SCTP not tried: this kernel gives no SCTP socket ({error})");
            vec![Protocol::Tcp, Protocol::Udp]
        }
    })
}

/// Programs that are started have no part in it, as they would keep it open.
fn stream_socket(family: AddressFamily, protocol: Protocol) -> rustix::io::Result<OwnedFd> {
    socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, Some(protocol.number()))
}

/// What became of a question.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// The pod that answered and the address it saw as the client's.
    Answered { pod: String, seen: IpAddr },
    /// Turned away at once: a reset or an ICMP error.
    Refused,
    /// No answer while it was waited for.
    Silent,
    /// Something no rule should lead to.
    Broken(String),
}

impl fmt::Display for Fate {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered { pod, seen } => write!(out, "{pod} saw {seen}"),
            Self::Refused => out.write_str("refused"),
            Self::Silent => out.write_str("silence"),
            Self::Broken(cause) => write!(out, "broken: {cause}"),
        }
    }
}

/// Asks from the calling thread's namespace with a socket of its own, patiently.
pub fn ask(protocol: Protocol, to: SocketAddr) -> Fate {
    ask_within(protocol, to, ANSWER)
}

pub fn ask_within(protocol: Protocol, to: SocketAddr, patience: Duration) -> Fate {
    let answer = match protocol {
        Protocol::Tcp | Protocol::Sctp => Session::open(protocol, to, patience).and_then(|mut session| session.ask()),
        Protocol::Udp => Datagrams::new(to, patience).and_then(|socket| socket.ask()),
    };
    fate(answer)
}

fn fate(answer: io::Result<String>) -> Fate {
    let error = match answer {
        Ok(line) => return parse(&line).unwrap_or_else(|| Fate::Broken(format!("answered {line:?}"))),
        Err(error) => error,
    };
    match Errno::from_io_error(&error) {
        Some(Errno::AGAIN | Errno::INPROGRESS | Errno::TIMEDOUT) => Fate::Silent,
        Some(Errno::CONNREFUSED) => Fate::Refused,
        _ => Fate::Broken(error.to_string()),
    }
}

fn parse(line: &str) -> Option<Fate> {
    let (pod, seen) = line.trim_end().split_once(' ')?;
    Some(Fate::Answered { pod: pod.to_owned(), seen: seen.parse().ok()? })
}

/// A connection that may ask more than once.
#[derive(Debug)]
pub struct Session(BufReader<TcpStream>);

impl Session {
    pub fn open(protocol: Protocol, to: SocketAddr, patience: Duration) -> io::Result<Self> {
        let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let fd = stream_socket(family, protocol)?;
        let patience = patience * slowness();
        // The time to send also bounds connect.
        set_socket_timeout(&fd, Timeout::Send, Some(patience))?;
        set_socket_timeout(&fd, Timeout::Recv, Some(patience))?;
        connect(&fd, &to)?;
        Ok(Self(BufReader::new(TcpStream::from(fd))))
    }

    pub fn ask(&mut self) -> io::Result<String> {
        self.0.get_mut().write_all(b"who\n")?;
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        Ok(line)
    }

    pub fn fate(&mut self) -> Fate {
        fate(self.ask())
    }

    /// Ends the connection with a RST: nobody on the way has to remember it.
    pub fn reset(self) -> io::Result<()> {
        Ok(set_socket_linger(self.0.get_ref(), Some(Duration::ZERO))?)
    }
}

/// A UDP socket on a port that no other of this test had: a datagram from a port used before belongs to the flow that
/// conntrack still knows, and goes where that went.
fn bind_fresh(ipv4: bool) -> io::Result<UdpSocket> {
    static USED: AtomicU16 = AtomicU16::new(0);
    const FIRST: u16 = 10_000;
    loop {
        let port = FIRST + USED.fetch_add(1, Ordering::Relaxed) % 20_000;
        let any: IpAddr = if ipv4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        match UdpSocket::bind((any, port)) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            bound => return bound,
        }
    }
}

/// A UDP socket that keeps its own port, as a long-lived client does.
#[derive(Debug)]
pub struct Datagrams(UdpSocket);

impl Datagrams {
    pub fn new(to: SocketAddr, patience: Duration) -> io::Result<Self> {
        let socket = bind_fresh(to.is_ipv4())?;
        socket.set_read_timeout(Some(patience * slowness()))?;
        socket.connect(to)?;
        Ok(Self(socket))
    }

    pub fn ask(&self) -> io::Result<String> {
        // A rule that takes the packet on its way out makes send fail; whether it also sent an error, recv tells.
        self.0.send(b"who\n").map(drop).or_else(|error| match Errno::from_io_error(&error) {
            Some(Errno::PERM) => Ok(()),
            _ => Err(error),
        })?;
        let mut buffer = [0; 256];
        let length = self.0.recv(&mut buffer)?;
        Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
    }

    pub fn fate(&self) -> Fate {
        fate(self.ask())
    }
}

/// Answers on every protocol, both families, until dropped.
#[derive(Debug)]
pub struct Backend {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Backend {
    /// Listening when this returns.
    ///
    /// # Panics
    /// When it cannot listen.
    pub fn start(namespace: &Namespace, name: &'static str) -> Self {
        let (stop, stopped) = oneshot::channel();
        let (ready, listening) = mpsc::channel();
        let thread = namespace.run_beside(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                serve(name).expect("to listen in a pod");
                let _ = ready.send(());
                let _ = stopped.await;
            });
        });
        listening.recv().expect("a listening backend");
        Self { stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        drop(self.stop.take());
        // The runtime went with its thread and closed what the tasks held.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Listens on the wildcard address of both families at once and leaves the answering to tasks of the runtime.
fn serve(name: &'static str) -> io::Result<()> {
    for protocol in protocols().iter().copied().filter(|protocol| *protocol != Protocol::Udp) {
        let fd = stream_socket(AddressFamily::INET6, protocol)?;
        bind(&fd, &SocketAddr::from((Ipv6Addr::UNSPECIFIED, protocol.backend_port())))?;
        listen(&fd, 128)?;
        let listener = TcpListener::from(fd);
        listener.set_nonblocking(true)?;
        tokio::spawn(answer_streams(tokio::net::TcpListener::from_std(listener)?, name));
    }
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, UDP_PORT))?;
    socket.set_nonblocking(true)?;
    tokio::spawn(answer_datagrams(tokio::net::UdpSocket::from_std(socket)?, name));
    Ok(())
}

async fn answer_streams(listener: tokio::net::TcpListener, name: &'static str) {
    while let Ok((stream, client)) = listener.accept().await {
        let answer = answer(name, client);
        tokio::spawn(async move {
            let (reader, mut writer) = stream.into_split();
            let mut lines = tokio::io::BufReader::new(reader).lines();
            while let Ok(Some(_)) = lines.next_line().await {
                if writer.write_all(answer.as_bytes()).await.is_err() {
                    break;
                }
            }
        });
    }
}

async fn answer_datagrams(socket: tokio::net::UdpSocket, name: &'static str) {
    let mut buffer = [0; 64];
    while let Ok((_, client)) = socket.recv_from(&mut buffer).await {
        let _ = socket.send_to(answer(name, client).as_bytes(), client).await;
    }
}

fn answer(name: &str, client: SocketAddr) -> String {
    format!("{name} {}\n", client.ip().to_canonical())
}
