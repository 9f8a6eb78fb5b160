//! A DNS server for tests: addresses of IPv4 by name, over UDP. What it does not know does not exist.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::support::netns::Namespace;

const TYPE_A: [u8; 2] = [0, 1];
const NO_SUCH_NAME: u8 = 3;
/// Header of a message: id, flags, four counts.
const HEADER: usize = 12;

#[derive(Debug, Default)]
struct Shared {
    known: Mutex<BTreeMap<String, Ipv4Addr>>,
    asked: Mutex<Vec<String>>,
    over: AtomicBool,
}

#[derive(Debug)]
pub struct DnsServer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl DnsServer {
    /// At 127.0.0.1 of a namespace.
    pub fn start(namespace: &Namespace) -> Self {
        Self::start_at(namespace, "127.0.0.1")
    }

    pub fn start_at(namespace: &Namespace, address: &str) -> Self {
        let socket = namespace.run(|| UdpSocket::bind((address, 53)).unwrap());
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let shared = Arc::<Shared>::default();
        let thread = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || serve(&socket, &shared)
        });
        Self { shared, thread: Some(thread) }
    }

    /// From now on this is the name's address.
    pub fn knows(&self, name: &str, address: Ipv4Addr) {
        self.shared.known.lock().unwrap().insert(name.into(), address);
    }

    /// The names that were asked for.
    pub fn asked(&self) -> Vec<String> {
        self.shared.asked.lock().unwrap().clone()
    }
}

impl Drop for DnsServer {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
        // A test that is failing already must not panic again here.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn serve(socket: &UdpSocket, shared: &Shared) {
    let mut buffer = [0; 1500];
    while !shared.over.load(Ordering::Relaxed) {
        let Ok((length, client)) = socket.recv_from(&mut buffer) else { continue };
        socket.send_to(&answer(&buffer[..length], shared), client).unwrap();
    }
}

fn answer(query: &[u8], shared: &Shared) -> Vec<u8> {
    let (name, end) = question(query);
    let wants_ipv4 = query[end..end + 2] == TYPE_A;
    let known = shared.known.lock().unwrap().get(&name).copied();
    shared.asked.lock().unwrap().push(name);
    let address = known.filter(|_| wants_ipv4);
    let code = if known.is_some() { 0 } else { NO_SUCH_NAME };
    let mut message = query[..2].to_vec();
    // An answer, with recursion desired and available; one question and perhaps one record.
    message.extend([0x81, 0x80 | code, 0, 1, 0, address.is_some().into(), 0, 0, 0, 0]);
    message.extend(&query[HEADER..end + 4]);
    if let Some(address) = address {
        // The name of the question, type A, class IN, for a day: nobody may keep it.
        message.extend([0xc0, 12, 0, 1, 0, 1, 0, 1, 0x51, 0x80, 0, 4]);
        message.extend(address.octets());
    }
    message
}

/// The name of a query and where it ends.
fn question(query: &[u8]) -> (String, usize) {
    let (mut labels, mut at) = (Vec::new(), HEADER);
    while query[at] != 0 {
        let next = at + 1 + usize::from(query[at]);
        labels.push(String::from_utf8_lossy(&query[at + 1..next]).to_lowercase());
        at = next;
    }
    (labels.join("."), at + 1)
}
