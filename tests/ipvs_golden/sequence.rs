//! Step by step with one running process, and a client whose connections stay open while endpoints come and go.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_linger;

use super::support::Scratch;
use super::support::golden::{GOLDEN, Objects, flags_of, name, steps};
use super::support::ipvs::{self, CONNECTIONS, Origin};
use super::support::machine::leave;
use super::support::netns::{Namespace, Process};
use super::support::proxy::BINARY as SLUICE;

pub const SEQUENCE: &str = "sequences-ipvs/scale-endpoints";

/// A step's state is reached by then. IPVS knows a connection for 10 s after its reset, and a real server goes with its last
/// one: kube-proxy looks at that once a minute.
const PATIENCE: Duration = Duration::from_secs(40);
/// No answer comes any more from a connection that is silent for so long.
const ANSWER: Duration = Duration::from_secs(3);

/// The other host has the endpoints 10.244.12.20 and 10.244.13.20; the client is a pod of the node.
const HOST_LINKS: &str = "\
link set wire0 addrgenmode none
link set wire0 up
address add 172.31.0.12/24 dev wire0
address add 10.244.12.20/32 dev lo
address add 10.244.13.20/32 dev lo
route add 10.244.11.0/24 via 172.31.0.11
";
const NODE_LINKS: &str = "\
link set client0 addrgenmode none
link set client0 master cni0
link set client0 up
route add 10.244.12.0/24 via 172.31.0.12
route add 10.244.13.0/24 via 172.31.0.12
";
const CLIENT_LINKS: &str = "\
link set eth0 up
address add 10.244.11.30/24 dev eth0
route add default via 10.244.11.1
";

/// The node with its pod network.
struct Net {
    node: Namespace,
    client: Namespace,
    _host: Namespace,
}

impl Net {
    fn new() -> Self {
        let node = Namespace::golden("ipvs-sequence");
        let (client, host) = (Namespace::new("ipvs-sequence", "client"), Namespace::new("ipvs-sequence", "host"));
        node.links(&format!(
            "link set wire0 netns {}\nlink add name client0 type veth peer name eth0 netns {}\n{NODE_LINKS}",
            host.name(),
            client.name()
        ));
        client.links(CLIENT_LINKS);
        host.links(HOST_LINKS);
        let listener = host.run(|| TcpListener::bind("0.0.0.0:8080").expect("to listen"));
        thread::spawn(move || listener.incoming().flatten().for_each(|stream| drop(thread::spawn(|| answer(stream)))));
        Self { node, client, _host: host }
    }
}

/// Answers each line with the address that it came to.
fn answer(stream: TcpStream) -> Option<()> {
    let own = stream.local_addr().ok()?.ip();
    let mut lines = BufReader::new(stream);
    let mut line = String::new();
    while lines.read_line(&mut line).ok()? > 0 {
        lines.get_mut().write_all(format!("{own}\n").as_bytes()).ok()?;
        line.clear();
    }
    Some(())
}

/// The client's connections that are open, by number.
#[derive(Default)]
struct Connections(BTreeMap<String, BufReader<TcpStream>>);

impl Connections {
    fn open(&mut self, from: &Namespace, number: &str, to: SocketAddr) {
        let stream = from.run(|| TcpStream::connect_timeout(&to, PATIENCE).expect("to connect"));
        stream.set_read_timeout(Some(ANSWER)).expect("a timeout");
        self.0.insert(number.to_owned(), BufReader::new(stream));
    }

    /// Ends one with a RST: nobody waits for what is still to be sent.
    fn reset(&mut self, number: &str) {
        let stream = self.0.remove(number).expect("an open connection");
        set_socket_linger(stream.get_ref(), Some(Duration::ZERO)).expect("no lingering");
    }

    /// What each answers when it is asked, as the dump says it.
    fn answers(&mut self) -> String {
        self.0
            .iter_mut()
            .flat_map(|(number, stream)| ["connection ", number, ": ", &ask(stream), "\n"].map(String::from))
            .collect()
    }
}

fn ask(stream: &mut BufReader<TcpStream>) -> String {
    let mut line = String::new();
    let answered = stream.get_mut().write_all(b"who\n").and_then(|()| stream.read_line(&mut line));
    match answered {
        Ok(_) => line.trim_end().to_owned(),
        Err(error) => format!("no answer ({error})"),
    }
}

/// All that there is to a step: what happens, and what is then to be seen.
struct Play {
    net: Net,
    scratch: Scratch,
    objects: Objects,
    connections: Connections,
}

impl Play {
    /// Does what a client's step says. Before it waits, what was done is to be seen.
    fn act(&mut self, file: &Path) {
        for line in fs::read_to_string(file).expect("a step").lines() {
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["open", number, to] => self.connections.open(&self.net.client, number, to.parse().expect("an address")),
                ["reset", number] => self.connections.reset(number),
                // What is waited for is what the step's dump says.
                ["wait"] => self.expect(&file.with_file_name("step-09-at-once"), but_for_the_table),
                _ => panic!("{line} in {}", file.display()),
            }
        }
    }

    /// Waits until all is as in a step's dump, its rules aside: these are left for the machine's host to judge.
    fn expect(&mut self, step: &Path, judge: Judge) {
        let end = Instant::now() + PATIENCE;
        loop {
            let mut seen = ipvs::dumps(&self.net.node);
            let connected = seen.remove(CONNECTIONS).expect("a text") + &self.connections.answers();
            seen.insert(CONNECTIONS, ipvs::without_numbers(&connected));
            let (rules, rest): (Vec<_>, Vec<_>) = seen.into_iter().partition(|(dump, _)| dump.contains("iptables"));
            let judged = rest.iter().filter(|(dump, _)| step.join(dump).exists());
            let found = judged.map(|(dump, text)| (dump, judge(&self.scratch, step, dump, text)));
            let found: Vec<_> = found.filter(|(_, found)| !found.is_empty()).collect();
            if found.is_empty() {
                for (dump, text) in &rules {
                    leave(&format!("sequence/{}/{dump}", name(step)), text);
                }
                return;
            }
            let found: Vec<_> = found.iter().map(|(dump, found)| format!("{dump}:\n{found}")).collect();
            let found = found.concat();
            assert!(Instant::now() < end, "not within {PATIENCE:?} as in {}:\n{found}", step.display());
        }
    }
}

/// What differs from a dump of a step: a folder for files, the step, the dump's name, and what is there.
type Judge = fn(&Scratch, &Path, &str, &str) -> String;

fn but_for_the_table(scratch: &Scratch, step: &Path, dump: &str, text: &str) -> String {
    ipvs::undeliberate(scratch, step, dump, text, Origin::Programmed)
}

/// Once no connection is left, none can tell kube-proxy's way from ours.
fn without_connections(scratch: &Scratch, step: &Path, dump: &str, text: &str) -> String {
    if dump == CONNECTIONS { text.to_owned() } else { ipvs::any_difference(scratch, step, dump, text) }
}

#[test]
#[ignore = "run in the virtual machine of what_is_programmed_is_kube_proxys"]
fn each_step_is_kube_proxys() {
    let sequence = Path::new(GOLDEN).join(SEQUENCE);
    let scratch = Scratch::new("ipvs-sequence");
    let objects = Objects::new(scratch.file("objects.json"));
    let mut play = Play { net: Net::new(), objects, connections: Connections::default(), scratch };
    let log = play.scratch.file("log");
    let mut process: Option<Process> = None;
    for (step, file) in steps(&sequence) {
        if name(&file).ends_with(".client") {
            play.act(&file);
        } else {
            play.objects.take(&file);
        }
        process.get_or_insert_with(|| {
            let mut command = play.net.node.command(SLUICE);
            command.args(flags_of("--mode=ipvs", &sequence)).arg("--manifests").arg(play.objects.manifest());
            Process::start(command.stderr(File::create(&log).expect("a log")))
        });
        let expected =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| play.expect(&sequence.join(&step), but_for_the_table)));
        if let Err(panic) = expected {
            eprintln!("the proxy's log:\n{}", fs::read_to_string(&log).unwrap_or_default());
            std::panic::resume_unwind(panic);
        }
    }
    // The last step removes a Service: with kube-proxy its connections end at once, here when they do by themselves.
    let last = sequence.join("step-13");
    play.connections.reset("3");
    play.expect(&last, without_connections);
}
