//! Files as a source: what is read from them, what is said about broken ones, and how changes arrive.

#![allow(clippy::unwrap_used, reason = "test code: a panic is a failed test")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use sluice::model::{Event, ObjectKey};
use sluice::source::manifests::{self, FollowError};
use tokio::sync::mpsc::{Receiver, channel};
use tokio::task::JoinHandle;

const PATIENCE: Duration = Duration::from_secs(10);

/// A folder of this test, gone with it.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("sluice-manifests-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, text: impl AsRef<str>) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, text.as_ref()).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn service(name: &str, port: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\nspec:\n  clusterIP: 10.96.0.10\n  ports:\n  - port: {port}\n"
    )
}

const SLICE: &str = r#"{"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
 "metadata": {"name": "web-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
 "addressType": "IPv4", "ports": [{"port": 8080}], "endpoints": [{"addresses": ["10.244.0.5"]}]}"#;

fn names<T>(values: &[(ObjectKey, T)]) -> Vec<String> {
    values.iter().map(|(key, _)| key.to_string()).collect()
}

fn load_error(path: &Path) -> String {
    manifests::load(path).unwrap_err().to_string()
}

#[test]
fn all_kinds_of_a_folder_are_read() {
    let folder = Folder::new();
    let node = "apiVersion: v1\nkind: Node\nmetadata: {name: n1, namespace: odd}\nstatus:\n  addresses:\n  - {type: InternalIP, address: 192.0.2.1}\n";
    let cidr = "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {name: kubernetes}\n";
    let others = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n---\napiVersion: serving.knative.dev/v1\nkind: Service\n---\napiVersion: v1\nkind: Namespace\n";
    folder.write("a.yaml", format!("# head\n---\n{}---\n{node}---\n{cidr}---\n{others}", service("web", "80")));
    folder.write("b.json", SLICE);
    folder.write("c.yml", service("dns", "53"));
    folder.write(".hidden.yaml", "{");
    folder.write("README.md", "{");
    fs::create_dir(folder.0.join("sub.yaml")).unwrap();
    let loaded = manifests::load(&folder.0).unwrap();
    assert_eq!(names(&loaded.services), ["default/dns", "default/web"]);
    assert_eq!(names(&loaded.slices), ["shop/web-1"]);
    assert_eq!(names(&loaded.nodes), ["n1"]);
    assert_eq!(loaded.skipped, ["Namespace (v1)", "Service (serving.knative.dev/v1)"]);
    assert_eq!(loaded.warnings.len(), 2, "{:?}", loaded.warnings);
}

#[test]
fn lists_are_read_item_by_item() {
    let folder = Folder::new();
    let item =
        r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"x"},"spec":{"clusterIP":"10.96.0.1","ports":[{"port":1}]}}"#;
    let bare = r#"{"metadata":{"name":"y"},"spec":{"clusterIP":"10.96.0.2","ports":[{"port":1}]}}"#;
    folder.write("a.json", format!(r#"{{"apiVersion":"v1","items":[{item},{SLICE}],"kind":"List"}}"#));
    folder.write("b.json", format!(r#"{{"apiVersion":"v1","kind":"ServiceList","items":[{bare}]}}"#));
    folder.write("c.yaml", "apiVersion: v1\nitems:\n- apiVersion: v1\n  kind: Service\n  metadata:\n    name: z\n  spec:\n    clusterIP: 10.96.0.3\n    ports:\n    - port: 1\nkind: List\n");
    folder.write("d.yaml", "apiVersion: v1\nkind: List\nitems: null\n");
    let loaded = manifests::load(&folder.0).unwrap();
    assert_eq!(names(&loaded.services), ["default/x", "default/y", "default/z"]);
    assert_eq!(names(&loaded.slices), ["shop/web-1"]);
}

#[test]
fn errors_name_file_document_and_line() {
    let folder = Folder::new();
    let text = format!("{}---\n{}---\n{}", service("a", "80"), service("b", "81"), service("c", "abc"));
    let path = folder.write("services.yaml", text);
    let expected = format!("manifests: {}: document 3 (line 26): ", path.display());
    let error = load_error(&path);
    assert!(error.starts_with(&expected), "{error}");
    assert!(error.contains("spec.ports[0].port") && error.contains("abc") && !error.contains("column"), "{error}");

    let path = folder.write(
        "list.yaml",
        "kind: List\napiVersion: v1\nitems:\n- kind: Service\n  apiVersion: v1\n  metadata: {name: q}\n  spec: 7\n",
    );
    let error = load_error(&path);
    assert!(error.contains("list.yaml: document 1 (line ") && error.contains("items[0]"), "{error}");

    for (text, cause) in [
        ("a: [", "document 1"),
        ("metadata: {name: x}", "has no kind"),
        ("apiVersion: v1\nkind: Service\nspec: {}", "has no metadata.name"),
        ("just words", "document 1"),
    ] {
        let error = load_error(&folder.write("one.yaml", text));
        assert!(error.contains(cause), "{text}: {error}");
    }
    let gone = folder.0.join("gone");
    assert_eq!(load_error(&gone), format!("manifests: {} cannot be read", gone.display()));
}

#[test]
fn the_later_of_two_wins_with_a_warning() {
    let folder = Folder::new();
    let path = folder.write("a.yaml", format!("{}---\n{}", service("web", "80"), service("web", "81")));
    let loaded = manifests::load(&path).unwrap();
    assert_eq!(loaded.services.len(), 1);
    assert_eq!(loaded.services[0].1.ports[0].port, 81);
    assert!(loaded.warnings[0].contains("Service default/web: given more than once"), "{:?}", loaded.warnings);
}

#[test]
fn fields_that_cannot_be_used_are_warned_of() {
    let folder = Folder::new();
    let path = folder.write("a.yaml", format!("{}  externalIPs: [x]\n", service("web", "80")));
    let loaded = manifests::load(&path).unwrap();
    assert_eq!(loaded.services.len(), 1);
    assert_eq!(loaded.warnings, [r#"Service default/web: spec.externalIPs[0]: "x" cannot be used, left out"#]);
}

/// A path being followed, and what came of it.
struct Followed {
    events: Receiver<Event>,
    task: JoinHandle<FollowError>,
}

impl Followed {
    fn new(path: &Path) -> Self {
        let (sender, events) = channel(16);
        let path = path.to_owned();
        let task = tokio::spawn(async move { manifests::follow(&path, sender).await.unwrap_err() });
        Self { events, task }
    }

    /// The ports of the Services of the next load.
    async fn next(&mut self) -> Vec<u16> {
        let next = async {
            loop {
                match self.events.recv().await.expect("follow ended") {
                    Event::Services(services) => return services.iter().map(|(_, s)| s.ports[0].port).collect(),
                    Event::Slices(_) | Event::Nodes(_) => {}
                    other => panic!("{other:?}"),
                }
            }
        };
        tokio::time::timeout(PATIENCE, next).await.expect("no load came")
    }

    async fn until(&mut self, ports: &[u16]) {
        while self.next().await != ports {}
    }
}

#[tokio::test]
async fn the_first_load_must_succeed() {
    let folder = Folder::new();
    let followed = Followed::new(&folder.write("a.yaml", service("web", "abc")));
    let error = tokio::time::timeout(PATIENCE, followed.task).await.unwrap().unwrap();
    assert!(error.to_string().contains("a.yaml: document 1"), "{error}");
}

#[tokio::test]
async fn a_file_written_renamed_over_and_rewritten_is_followed() {
    let folder = Folder::new();
    let path = folder.write("a.yaml", service("web", "80"));
    let mut followed = Followed::new(&path);
    assert_eq!(followed.next().await, [80]);
    folder.write("a.yaml", service("web", "81"));
    followed.until(&[81]).await;
    for port in [82, 83] {
        let new = folder.write("a.yaml.new", service("web", &port.to_string()));
        fs::rename(new, &path).unwrap();
        followed.until(&[port]).await;
    }
}

#[tokio::test]
async fn files_come_and_go_in_a_folder() {
    let folder = Folder::new();
    let mut followed = Followed::new(&folder.0);
    assert_eq!(followed.next().await, [] as [u16; 0]);
    folder.write("a.yaml", service("a", "1"));
    followed.until(&[1]).await;
    folder.write("b.yaml", service("b", "2"));
    followed.until(&[1, 2]).await;
    fs::remove_file(folder.0.join("a.yaml")).unwrap();
    followed.until(&[2]).await;
}

#[tokio::test]
async fn a_file_that_a_link_leads_to_is_followed() {
    let (folder, elsewhere) = (Folder::new(), Folder::new());
    let target = elsewhere.write("real.yaml", service("web", "80"));
    std::os::unix::fs::symlink(&target, folder.0.join("web.yaml")).unwrap();
    let mut followed = Followed::new(&folder.0);
    followed.until(&[80]).await;
    fs::write(&target, service("web", "8080")).unwrap();
    followed.until(&[8080]).await;
}

#[tokio::test]
async fn a_mounted_config_map_is_swapped() {
    let folder = Folder::new();
    for (data, port) in [("..1", "1"), ("..2", "2")] {
        fs::create_dir(folder.0.join(data)).unwrap();
        folder.write(&format!("{data}/a.yaml"), service("a", port));
    }
    std::os::unix::fs::symlink("..1", folder.0.join("..data")).unwrap();
    std::os::unix::fs::symlink("..data/a.yaml", folder.0.join("a.yaml")).unwrap();
    let mut followed = Followed::new(&folder.0);
    assert_eq!(followed.next().await, [1]);
    std::os::unix::fs::symlink("..2", folder.0.join("..data_tmp")).unwrap();
    fs::rename(folder.0.join("..data_tmp"), folder.0.join("..data")).unwrap();
    assert_eq!(followed.next().await, [2]);
}

#[tokio::test]
async fn broken_and_half_written_files_change_nothing_until_whole() {
    let folder = Folder::new();
    let path = folder.write("a.yaml", service("web", "80"));
    let mut followed = Followed::new(&path);
    assert_eq!(followed.next().await, [80]);
    // Each of these stays long enough to be seen: nothing may come of it but the last.
    for broken in ["", "apiVersion: v1\nkind: Serv: [", &service("web", "abc")] {
        folder.write("a.yaml", broken);
        let early = tokio::time::timeout(Duration::from_millis(1300), followed.next()).await;
        assert!(early.is_err(), "{broken:?} gave {early:?}");
    }
    folder.write("a.yaml", service("web", "81"));
    assert_eq!(followed.next().await, [81]);
}

#[tokio::test]
async fn a_path_that_vanishes_and_returns_is_followed_again() {
    let folder = Folder::new();
    let inner = folder.0.join("inner");
    fs::create_dir(&inner).unwrap();
    folder.write("inner/a.yaml", service("web", "80"));
    let mut followed = Followed::new(&inner);
    assert_eq!(followed.next().await, [80]);
    fs::remove_dir_all(&inner).unwrap();
    fs::create_dir(&inner).unwrap();
    folder.write("inner/a.yaml", service("web", "81"));
    followed.until(&[81]).await;
    folder.write("inner/a.yaml", service("web", "82"));
    followed.until(&[82]).await;
    fs::rename(&inner, folder.0.join("away")).unwrap();
    let early = tokio::time::timeout(Duration::from_millis(500), followed.next()).await;
    assert!(early.is_err(), "{early:?}");
}

#[tokio::test]
async fn it_ends_when_nobody_listens() {
    let folder = Folder::new();
    let mut followed = Followed::new(&folder.write("a.yaml", service("web", "80")));
    assert_eq!(followed.next().await, [80]);
    drop(followed.events);
    let error = tokio::time::timeout(PATIENCE, followed.task).await.unwrap().unwrap();
    assert!(matches!(error, FollowError::Closed(_)), "{error}");
}
