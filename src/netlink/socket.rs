//! A netlink socket: bytes to the kernel, bytes back. The only place of this crate that makes system
//! calls by hand, and the only one with unsafe code. It knows no message but the length of a datagram.

#![expect(unsafe_code, reason = "the standard library has no netlink sockets")]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use super::errno::Errno;
use super::error::{Error, Step};

/// Which part of the kernel is at the other end.
#[derive(Clone, Copy, Debug)]
pub(super) enum Peer {
    Route,
    Netfilter,
    Generic,
}

/// What `SO_SNDBUF` and `SO_RCVBUF` are unless set (`net.core.wmem_default`, usually 212,992): assumed
/// at first, so that small messages cost no system call more.
const DEFAULT_BUFFER: usize = 128 << 10;
/// A sender's queue counts the buffers' management too; this much on top of the bytes is ample.
const BUFFER_SLACK: usize = 64 << 10;
/// Dumps come in pieces of up to 32 KiB when the reader's buffer has room (`netlink_dump`).
const RECEIVE_CAPACITY: usize = 64 << 10;

/// Where `nlmsg_pid` stands in a message, and so in a datagram.
const PORT_OFFSET: u32 = 12;

#[derive(Debug)]
pub(super) struct Socket {
    fd: OwnedFd,
    receive_limit: usize,
    received: Vec<u8>,
    send_limit: usize,
}

impl Socket {
    pub fn open(peer: Peer) -> Result<Self, Error> {
        let protocol = match peer {
            Peer::Route => libc::NETLINK_ROUTE,
            Peer::Netfilter => libc::NETLINK_NETFILTER,
            Peer::Generic => libc::NETLINK_GENERIC,
        };
        // SAFETY: no memory is passed.
        let fd = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol) };
        if fd < 0 {
            return Err(Error::at(Step::OpenSocket, Errno::last()));
        }
        // SAFETY: the descriptor is new and nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let (receive_limit, send_limit) = (DEFAULT_BUFFER, DEFAULT_BUFFER);
        let socket = Self { fd, receive_limit, received: vec![0; RECEIVE_CAPACITY], send_limit };
        socket.bind()?;
        // Error texts, and errors that don't repeat a request of 100 MB. Kernels before 4.12 lack the
        // first, which costs only the text.
        socket.set_option(libc::SOL_NETLINK, libc::NETLINK_EXT_ACK, 1).ok();
        socket.set_option(libc::SOL_NETLINK, libc::NETLINK_CAP_ACK, 1).ok();
        Ok(socket)
    }

    /// Receives the notifications of a multicast group from now on.
    pub fn join(&self, group: i32) -> Result<(), Error> {
        self.set_option(libc::SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP, group).map_err(|errno| Error::at(Step::JoinGroup, errno))
    }

    /// Receives no notifications of a multicast group any more; those that wait already still come.
    pub fn leave(&self, group: i32) -> Result<(), Error> {
        self.set_option(libc::SOL_NETLINK, libc::NETLINK_DROP_MEMBERSHIP, group)
            .map_err(|errno| Error::at(Step::JoinGroup, errno))
    }

    /// The same socket once more, for who sets its options while another receives.
    pub fn second_hand(&self) -> Result<Self, Error> {
        let copy = self.fd.try_clone().map_err(|error| Error::at(Step::OpenSocket, Errno(error.raw_os_error().unwrap_or(0))))?;
        let (receive_limit, send_limit) = (self.receive_limit, self.send_limit);
        Ok(Self { fd: copy, receive_limit, received: Vec::new(), send_limit })
    }

    /// Lets the kernel throw away, before they are queued, the datagrams whose first message carries `port`: what that
    /// socket did. A later call replaces the port.
    pub fn ignore(&self, port: u32) -> Result<(), Error> {
        let instruction = |code: u32, jt, jf, k| libc::sock_filter {
            code: u16::try_from(code).expect("codes of classic BPF have 16 bits"),
            jt,
            jf,
            k,
        };
        // The load gives a big-endian number of what stands there in the order of this machine.
        let port = u32::from_be_bytes(port.to_ne_bytes());
        let mut program = [
            instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, PORT_OFFSET),
            instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, port),
            instruction(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
            instruction(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
        ];
        let length = u16::try_from(program.len()).expect("four instructions");
        let filter = libc::sock_fprog { len: length, filter: program.as_mut_ptr() };
        self.set_value(libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &filter).map_err(|errno| Error::at(Step::SetOption, errno))
    }

    /// Sends one datagram; the kernel has processed it when this returns.
    pub fn send(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let needed = bytes.len() + BUFFER_SLACK;
        if needed > self.send_limit {
            self.raise(libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, needed)?;
            self.send_limit = needed;
        }
        loop {
            // SAFETY: the pointer and length are those of a live slice.
            let sent = unsafe { libc::send(self.fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
            if sent >= 0 {
                return Ok(());
            }
            match Errno::last() {
                Errno::EINTR => {}
                errno => return Err(Error::at(Step::Send, errno)),
            }
        }
    }

    /// Makes room for `bytes` of answers that pile up before the first is received.
    pub fn reserve_receive(&mut self, bytes: usize) -> Result<(), Error> {
        if bytes > self.receive_limit {
            self.raise(libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, bytes)?;
            self.receive_limit = bytes;
        }
        Ok(())
    }

    /// Receives one datagram; `None` when none comes within `timeout`.
    pub fn receive(&mut self, timeout: Duration) -> Result<Option<&[u8]>, Error> {
        let deadline = Instant::now() + timeout;
        loop {
            // Asking for the length first (it copies nothing) means that no datagram is ever cut.
            let Some(length) = self.pending_length().map_err(|errno| Error::at(Step::Receive, errno))? else {
                if !self.wait(deadline)? {
                    return Ok(None);
                }
                continue;
            };
            if length > self.received.len() {
                self.received.resize(length, 0);
            }
            match self.receive_call(libc::MSG_DONTWAIT) {
                Ok(length) => return Ok(Some(&self.received[..length])),
                Err(Errno::EINTR | Errno::EAGAIN) => {}
                Err(errno) => return Err(Error::at(Step::Receive, errno)),
            }
        }
    }

    /// Length of the next datagram, without taking it.
    fn pending_length(&self) -> Result<Option<usize>, Errno> {
        let flags = libc::MSG_PEEK | libc::MSG_TRUNC | libc::MSG_DONTWAIT;
        // SAFETY: of a buffer of length zero nothing is written.
        let length = unsafe { libc::recv(self.fd.as_raw_fd(), std::ptr::null_mut(), 0, flags) };
        match usize::try_from(length) {
            Ok(length) => Ok(Some(length)),
            Err(_) => match Errno::last() {
                Errno::EAGAIN | Errno::EINTR => Ok(None),
                errno => Err(errno),
            },
        }
    }

    fn receive_call(&mut self, flags: i32) -> Result<usize, Errno> {
        let (pointer, length) = (self.received.as_mut_ptr(), self.received.len());
        // SAFETY: the pointer and length are those of our own buffer, which nobody else touches.
        let received = unsafe { libc::recv(self.fd.as_raw_fd(), pointer.cast(), length, flags) };
        usize::try_from(received).map_err(|_| Errno::last())
    }

    /// Waits until there is something to receive; false when the deadline passes.
    fn wait(&self, deadline: Instant) -> Result<bool, Error> {
        let left = deadline.saturating_duration_since(Instant::now());
        // Rounded up: with 0 ms left of 0.4 ms this would spin.
        let milliseconds = i32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
        let mut poll = libc::pollfd { fd: self.fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one live pollfd.
        let ready = unsafe { libc::poll(&raw mut poll, 1, milliseconds) };
        match ready {
            0 => Ok(Instant::now() < deadline),
            1.. => Ok(true),
            _ => match Errno::last() {
                Errno::EINTR => Ok(true),
                errno => Err(Error::at(Step::Receive, errno)),
            },
        }
    }

    fn bind(&self) -> Result<(), Error> {
        // SAFETY: all zeros is a valid sockaddr_nl: any port, no groups.
        let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        address.nl_family = libc::sa_family_t::try_from(libc::AF_NETLINK).expect("AF_NETLINK is 16");
        let length = socklen::<libc::sockaddr_nl>();
        // SAFETY: the pointer and length are those of a live sockaddr_nl.
        let result = unsafe { libc::bind(self.fd.as_raw_fd(), (&raw const address).cast(), length) };
        if result == 0 { Ok(()) } else { Err(Error::at(Step::BindSocket, Errno::last())) }
    }

    /// The port id the kernel gave us: notifications of our own changes carry it.
    pub fn port(&self) -> Result<u32, Error> {
        // SAFETY: all zeros is a valid sockaddr_nl.
        let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        let mut length = socklen::<libc::sockaddr_nl>();
        // SAFETY: both pointers are to live values of ours, the length is the address's.
        let result = unsafe { libc::getsockname(self.fd.as_raw_fd(), (&raw mut address).cast(), &raw mut length) };
        if result == 0 { Ok(address.nl_pid) } else { Err(Error::at(Step::BindSocket, Errno::last())) }
    }

    /// Raises a buffer's size above the system's limit, or without privilege up to it.
    fn raise(&self, forced: i32, allowed: i32, bytes: usize) -> Result<(), Error> {
        // The kernel doubles the value, and refuses none: it takes what it can.
        let value = i32::try_from(bytes).unwrap_or(i32::MAX);
        self.set_option(libc::SOL_SOCKET, forced, value)
            .or_else(|_| self.set_option(libc::SOL_SOCKET, allowed, value))
            .map_err(|errno| Error::at(Step::SetOption, errno))
    }

    fn set_option(&self, level: i32, name: i32, value: i32) -> Result<(), Errno> {
        self.set_value(level, name, &value)
    }

    fn set_value<T>(&self, level: i32, name: i32, value: &T) -> Result<(), Errno> {
        let length = socklen::<T>();
        // SAFETY: the pointer and length are those of a live value, and what a filter points to lives as long as it.
        let result = unsafe { libc::setsockopt(self.fd.as_raw_fd(), level, name, (&raw const *value).cast(), length) };
        if result == 0 { Ok(()) } else { Err(Errno::last()) }
    }
}

fn socklen<T>() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<T>()).expect("socket structures are small")
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_kernel_is_not_waited_for_longer_than_said() {
        let mut socket = Socket::open(Peer::Route).unwrap();
        let start = Instant::now();
        assert_eq!(socket.receive(Duration::from_millis(30)).unwrap(), None);
        assert!(start.elapsed() >= Duration::from_millis(30));
        assert_eq!(socket.receive(Duration::ZERO).unwrap(), None);
    }

    #[test]
    fn each_socket_has_a_port_of_its_own() {
        let (one, other) = (Socket::open(Peer::Route).unwrap(), Socket::open(Peer::Route).unwrap());
        assert_ne!(one.port().unwrap(), other.port().unwrap());
    }
}
