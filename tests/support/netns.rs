//! A named network namespace that lives as long as its value: made with `ip netns`, so that a person can look inside
//! while a test runs, and removed in `Drop`, a panic included. Threads enter it to use sockets there; programs are
//! started in it. What a killed run left behind is removed by the next one.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Once;
use std::thread::{self, JoinHandle};

use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

const FOLDER: &str = "/run/netns";

/// Every interface made later takes these; a fresh namespace's own may come from the machine's.
const SYSCTLS: [(&str, &str); 8] = [
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
    // Duplicate address detection would leave addresses unusable for a second.
    ("ipv6/conf/all/accept_dad", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
    // A router that sends a packet back out where it came from offers a short cut; taken, it leads past the rules.
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/default/send_redirects", "0"),
    ("ipv6/conf/all/accept_redirects", "0"),
    ("ipv6/conf/default/accept_redirects", "0"),
];

/// The node of the golden dumps (tests/golden/README.md, "How it was measured"). A veth end has a carrier once its
/// peer is up, and the peer must not add an address of its own.
const GOLDEN_LINKS: &str = "\
link add name eth0 address 02:31:00:00:00:0b type veth peer name wire0
link set wire0 addrgenmode none
link set wire0 up
link set eth0 up
address add 172.31.0.11/24 dev eth0
address add fd31::b/64 dev eth0 nodad
link add name cni0 type bridge
link set cni0 addrgenmode none
link set cni0 up
address add 10.244.11.1/24 dev cni0
address add fd00:10:244:b::1/64 dev cni0 nodad
";

#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// An empty namespace with `lo` up; `test` and `role` go into its name.
    ///
    /// # Panics
    /// When the kernel or `ip` refuses.
    pub fn new(test: &str, role: &str) -> Self {
        static SWEEP: Once = Once::new();
        SWEEP.call_once(sweep);
        let name = format!("sluice-{test}-{role}-{}", std::process::id());
        succeed(Command::new("ip").args(["netns", "add", &name]));
        let namespace = Self { name };
        namespace.run(|| {
            for (path, value) in SYSCTLS {
                set_sysctl(path, value);
            }
        });
        namespace.links("link set lo up\n");
        namespace
    }

    /// A namespace with the interfaces and addresses of the golden node.
    ///
    /// # Panics
    /// When the kernel or `ip` refuses.
    pub fn golden(test: &str) -> Self {
        let namespace = Self::new(test, "node");
        namespace.links(GOLDEN_LINKS);
        namespace
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn path(&self) -> PathBuf {
        Path::new(FOLDER).join(&self.name)
    }

    /// Runs lines of `ip` commands here.
    ///
    /// # Panics
    /// When one of them fails.
    pub fn links(&self, batch: &str) {
        feed(Command::new("ip").args(["-n", &self.name, "-batch", "-"]), batch);
    }

    /// A command that will run here, its output yet to be decided.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Runs a program here to its end.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn exec(&self, words: &[&str]) -> Output {
        self.command(words[0]).args(&words[1..]).output().expect("a program to run")
    }

    /// What a program that must succeed prints here.
    ///
    /// # Panics
    /// When it fails.
    pub fn output(&self, words: &[&str]) -> String {
        succeed(self.command(words[0]).args(&words[1..]))
    }

    /// Runs a program here with `input`.
    ///
    /// # Panics
    /// When it fails.
    pub fn feed(&self, words: &[&str], input: &str) {
        feed(self.command(words[0]).args(&words[1..]), input);
    }

    /// Starts a program here; it is killed when the returned value goes.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn spawn(&self, words: &[&str]) -> Process {
        Process::start(self.command(words[0]).args(&words[1..]))
    }

    /// Runs `work` on a thread in this namespace: the sockets it makes belong here.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let path = self.path();
        thread::scope(|scope| {
            let thread = scope.spawn(move || {
                enter(&path);
                work()
            });
            thread.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// As `run`, beside the caller.
    pub fn run_beside<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let path = self.path();
        thread::spawn(move || {
            enter(&path);
            work()
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// A started program, killed and waited for in `Drop`.
#[derive(Debug)]
pub struct Process(Child);

impl Process {
    /// # Panics
    /// When the program cannot be started.
    pub fn start(command: &mut Command) -> Self {
        Self(command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}")))
    }

    pub fn child(&mut self) -> &mut Child {
        &mut self.0
    }

    /// `ip netns exec` becomes the program it was given, so this is the program's own id.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.0)
    }

    /// # Panics
    /// When the process is gone.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("the process to be there");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Sets a sysctl under net/ of the calling thread's namespace.
///
/// # Panics
/// When it cannot be written.
pub fn set_sysctl(path: &str, value: &str) {
    let file = format!("/proc/sys/net/{path}");
    fs::write(&file, value).unwrap_or_else(|error| panic!("cannot write {value} to {file}: {error}"));
}

/// Runs a command that must succeed and returns what it printed.
///
/// # Panics
/// When it fails.
pub fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn feed(command: &mut Command, input: &str) {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
    // A program that stops reading early says why on stderr, below.
    let _ = child.stdin.take().expect("a pipe").write_all(input.as_bytes());
    let output = child.wait_with_output().expect("a child to wait for");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn enter(path: &Path) {
    let file = File::open(path).unwrap_or_else(|error| panic!("cannot open {}: {error}", path.display()));
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).expect("to enter the namespace");
}

fn remove(name: &str) {
    let pids = Command::new("ip").args(["netns", "pids", name]).output();
    let pids = pids.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    for pid in pids.lines().filter_map(|line| line.trim().parse().ok()).filter_map(Pid::from_raw) {
        let _ = kill_process(pid, Signal::KILL);
    }
    let _ = Command::new("ip").args(["netns", "del", name]).output();
}

/// Removes namespaces whose test process is no more: it was killed and could not clean up.
fn sweep() {
    let names = fs::read_dir(FOLDER).into_iter().flatten().flatten().map(|entry| entry.file_name());
    for name in names.filter_map(|name| name.into_string().ok()).filter(|name| name.starts_with("sluice-")) {
        let owner = name.rsplit('-').next().filter(|pid| pid.parse::<u32>().is_ok());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            remove(&name);
        }
    }
}
