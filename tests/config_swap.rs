//! A configuration that changes under a running proxy: as Kubernetes swaps a mounted `ConfigMap`, as an editor writes a
//! file, and as nobody should. What is sound is in force within two seconds, and no connection notices.

mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use support::lab::{A1, B1, CLIENT, FAMILIES, Lab};
use support::objects::{Door, Service};
use support::proxy::{BINARY, Sluice, family_rules, get};
use support::traffic::{Fate, Protocol, Session, ask};
use support::{PATIENCE, require_root, wait_until};

const DOORS: [Door; 2] = [Door::ClusterIp, Door::NodePort];
/// How soon a change is to be in force.
const SOON: Duration = Duration::from_secs(2);

#[test]
fn a_changed_configuration_is_taken_up_and_no_connection_notices() {
    if !require_root("a changed configuration") {
        return;
    }
    let lab = Lab::new("swap");
    let mounted = Mounted::new(&lab, &configuration("masqueradeBit: 14"));
    let service = Service::new("web", 1, &[A1, B1]);
    let mut sluice = mounted.start(&lab, &service);
    let asked = Asked::default();
    let mut open = Asked::sessions(&lab, &service);
    thread::scope(|scope| {
        for client in [lab.pod(CLIENT), &lab.outside] {
            scope.spawn(|| client.run(|| asked.ask(&service)));
        }
        let _enough = asked.ends_when_dropped();
        asked.wait_for_more();

        let swapped = Instant::now();
        mounted.swap(&configuration("masqueradeBit: 15"));
        wait_until("the other bit is in the rules", PATIENCE, || masquerades_with(&lab, "0x8000/0x8000"));
        let taken = swapped.elapsed();
        assert!(taken < SOON, "the swap was taken up after {taken:.1?}");
        let told = "--iptables-masquerade-bit=15 instead of --iptables-masquerade-bit=14; starting anew with it, the rules stay";
        assert!(sluice.log().contains(told), "{}", sluice.log());
        wait_until("the servers are back", PATIENCE, || sluice.is_healthy());
        asked.wait_for_more();

        mounted.swap(&configuration("masqueradeBit: 32"));
        let refused = "iptables.masqueradeBit: 32 is not within the range [0, 31]; the configuration in force stays";
        wait_until("what cannot be is refused", PATIENCE, || sluice.log().contains(refused));
        mounted.swap(&configuration("masqueradeBit: fifteen"));
        wait_until("what is no number is refused", PATIENCE, || sluice.log().matches("stays until this is mended").count() == 2);
        mounted.swap(&configuration("masqueradeBit: 15 # again"));
        wait_until("the same again is none", PATIENCE, || sluice.log().contains("is as before again"));
        assert!(sluice.is_running() && masquerades_with(&lab, "0x8000/0x8000"));

        let quiet = configuration("masqueradeBit: 15");
        mounted.swap(&(quiet + "logging: {verbosity: 4}\n"));
        wait_until("more is logged", PATIENCE, || sluice.log().contains("nothing changes but for what is logged, at once"));
        assert_eq!(sluice.log().matches("starting anew").count(), 1, "for that nothing is started anew");
        let shown = lab.node_a.run(|| get("127.0.0.1:10249", "/configz")).expect("an answer");
        assert!(shown.contains("\"verbosity\":4") && shown.contains("\"masqueradeBit\":15"), "{shown}");

        sluice.change(&[service.clone(), Service::new("other", 2, &[A1])], |rules| rules.contains("/other"));
        wait_until("a step is logged", PATIENCE, || sluice.log().contains("DEBUG rules programmed"));

        fs::write(mounted.current(), configuration("masqueradeBit: 13")).expect("a file written in place");
        wait_until("what an editor wrote is taken up", PATIENCE, || masquerades_with(&lab, "0x2000/0x2000"));
        wait_until("the servers are back again", PATIENCE, || sluice.is_healthy());
        asked.wait_for_more();
    });
    for (session, pod) in &mut open {
        assert_eq!(session.fate(), *pod, "a connection that was open all the time");
    }
    asked.assert_all_answered();
    sluice.stop();
}

/// With `setting` in the section of iptables mode.
fn configuration(setting: &str) -> String {
    format!(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: iptables\n\
         clusterCIDR: 10.244.0.0/16,fd00:10:244::/56\nhealthzBindAddress: 127.0.0.1:10256\n\
         metricsBindAddress: 127.0.0.1:10249\nconntrack: {{maxPerCore: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}}\n\
         iptables:\n  {setting}\n"
    )
}

fn masquerades_with(lab: &Lab, mark: &str) -> bool {
    family_rules(&lab.node_a).iter().all(|rules| rules.contains(&format!("--set-xmark {mark}")))
}

/// A folder as kubelet mounts a `ConfigMap`: the file is a link through `..data`, which is a link to the version in force.
struct Mounted {
    folder: PathBuf,
    version: AtomicUsize,
}

impl Mounted {
    fn new(lab: &Lab, text: &str) -> Self {
        let mounted = Self { folder: lab.scratch.file("mounted"), version: AtomicUsize::new(0) };
        fs::create_dir_all(&mounted.folder).expect("a folder");
        mounted.swap(text);
        symlink("..data/config.conf", mounted.file()).expect("a link");
        mounted
    }

    fn file(&self) -> PathBuf {
        self.folder.join("config.conf")
    }

    /// The file in force itself.
    fn current(&self) -> PathBuf {
        self.file().canonicalize().expect("a file")
    }

    /// As kubelet's atomic writer does it: the new version beside the old one, the link renamed over, the old one removed.
    fn swap(&self, text: &str) {
        let version = self.version.fetch_add(1, Ordering::Relaxed);
        let name = |version: usize| format!("..2026_11_26.{version}");
        let (data, fresh) = (self.folder.join("..data"), self.folder.join("..data_tmp"));
        fs::create_dir(self.folder.join(name(version))).expect("a folder");
        fs::write(self.folder.join(name(version)).join("config.conf"), text).expect("a file");
        symlink(name(version), &fresh).expect("a link");
        fs::rename(&fresh, &data).expect("a link in place of another");
        if let Some(old) = version.checked_sub(1) {
            fs::remove_dir_all(self.folder.join(name(old))).expect("the old version goes");
        }
    }

    fn start<'lab>(&self, lab: &'lab Lab, service: &Service) -> Sluice<'lab> {
        let mut command = lab.node_a.command(BINARY);
        let manifest = format!("--manifests={}", lab.scratch.file("objects.json").display());
        command.args([&manifest, "--hostname-override=node-a", &format!("--config={}", self.file().display())]);
        support::objects::write_manifest(&lab.scratch.file("objects.json"), std::slice::from_ref(service));
        let mut sluice = Sluice::spawn(&lab.node_a, &lab.scratch, command);
        sluice.wait_in_force();
        sluice
    }
}

/// Requests made all the time, each by a connection of its own.
#[derive(Default)]
struct Asked {
    enough: AtomicBool,
    answers: Mutex<Vec<Fate>>,
}

impl Asked {
    /// Connections that are open already, and who answers on each.
    fn sessions(lab: &Lab, service: &Service) -> Vec<(Session, Fate)> {
        let open = |to| {
            let mut session = Session::open(Protocol::Tcp, to, PATIENCE).expect("a connection");
            let pod = session.fate();
            (session, pod)
        };
        let ways = FAMILIES.into_iter().flat_map(|family| DOORS.map(|door| service.at(family, door)));
        let ways: Vec<_> = ways.collect();
        [lab.pod(CLIENT), &lab.outside]
            .into_iter()
            .flat_map(|client| client.run(|| ways.iter().copied().map(open).collect::<Vec<_>>()))
            .collect()
    }

    fn ask(&self, service: &Service) {
        let ways: Vec<_> = FAMILIES.into_iter().flat_map(|family| DOORS.map(|door| service.at(family, door))).collect();
        for to in ways.into_iter().cycle().take_while(|_| !self.enough.load(Ordering::Relaxed)) {
            let fate = ask(Protocol::Tcp, to);
            self.answers.lock().expect("a lock").push(fate);
        }
    }

    fn wait_for_more(&self) {
        let count = || self.answers.lock().expect("a lock").len();
        let before = count();
        wait_until("many more requests", PATIENCE, || count() >= before + 200);
    }

    /// A panic must not leave those who ask asking.
    fn ends_when_dropped(&self) -> impl Drop {
        struct Enough<'a>(&'a AtomicBool);
        impl Drop for Enough<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        Enough(&self.enough)
    }

    fn assert_all_answered(self) {
        let answers = self.answers.into_inner().expect("a lock");
        let lost: Vec<_> = answers.iter().filter(|fate| !matches!(fate, Fate::Answered { .. })).collect();
        assert!(lost.is_empty(), "{} of {} requests were not answered: {lost:?}", lost.len(), answers.len());
    }
}
