//! A bare HTTP client, the captures, and checks of the metrics text. It shares no code with the server.
#![allow(dead_code, reason = "each test crate uses the part it needs")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tokio::net::TcpStream;

const DEADLINE: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: String,
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

impl Answer {
    fn parse(head: &str, body: &str) -> Self {
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap().into();
        let headers = lines.filter_map(|line| line.split_once(": ")).map(|(name, value)| (name.into(), value.into()));
        Self { status, headers: headers.collect(), body: body.into() }
    }

    /// The same answer at any time: no date, and `T` for each timestamp. The length then counts `T`s.
    pub fn timeless(mut self) -> Self {
        let date = self.headers.remove("Date").expect("a Date");
        assert!(date.len() == 29 && date.ends_with(" GMT"), "{date}");
        let length = self.headers.insert("Content-Length".into(), String::new()).expect("a Content-Length");
        assert_eq!(length, self.body.len().to_string());
        let mut quoted: Vec<&str> = self.body.split('"').collect();
        for text in &mut quoted {
            if text.len() > 19 && text.as_bytes()[10] == b'T' && text.ends_with('Z') {
                *text = "T";
            }
        }
        self.body = quoted.join("\"");
        self.headers.insert("Content-Length".into(), self.body.len().to_string());
        self
    }
}

/// An answer of kube-proxy's.
pub fn captured(name: &str) -> Answer {
    let path = format!("{}/tests/serve/{name}.txt", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).expect(&path);
    let (head, body) = text.split_once("\r\n\r\n").expect("a head");
    Answer::parse(head, body)
}

/// What the future gives, before the deadline.
pub async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("done in time")
}

pub async fn connect(address: SocketAddr) -> TcpStream {
    in_time(TcpStream::connect(address)).await.unwrap()
}

pub async fn get(address: SocketAddr, path: &str) -> Answer {
    request(address, path, "").await
}

/// `None` when nobody listens, or the connection ends before the answer.
pub async fn try_get(address: SocketAddr, path: &str) -> Option<Answer> {
    in_time(exchange(address, path, "")).await.ok()
}

/// A GET with more header lines.
pub async fn request(address: SocketAddr, path: &str, more: &str) -> Answer {
    in_time(exchange(address, path, more)).await.unwrap()
}

/// A PUT of this body.
pub async fn put(address: SocketAddr, path: &str, body: &str) -> Answer {
    let mut stream = connect(address).await;
    let length = body.len();
    let request = format!("PUT {path} HTTP/1.1\r\nHost: node\r\nContent-Length: {length}\r\n\r\n{body}");
    in_time(send(&mut stream, &request)).await.unwrap();
    read_answer(&mut stream).await
}

async fn exchange(address: SocketAddr, path: &str, more: &str) -> io::Result<Answer> {
    let mut stream = TcpStream::connect(address).await?;
    send(&mut stream, &format!("GET {path} HTTP/1.1\r\nHost: node\r\n{more}\r\n")).await?;
    read(&mut stream).await
}

/// One answer of a connection that stays open.
pub async fn read_answer(stream: &mut TcpStream) -> Answer {
    in_time(read(stream)).await.unwrap()
}

async fn read(stream: &mut TcpStream) -> io::Result<Answer> {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let answer = Answer::parse(head, body);
            let length: usize = answer.headers.get("Content-Length").expect("a length").parse().unwrap();
            if body.len() >= length {
                return Ok(answer);
            }
        }
        if !receive(stream, &mut bytes).await? {
            return Err(ErrorKind::UnexpectedEof.into());
        }
    }
}

pub async fn send(stream: &mut TcpStream, text: &str) -> io::Result<()> {
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        stream.writable().await?;
        match stream.try_write(rest) {
            Ok(sent) => rest = &rest[sent..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Appends what comes next; false at the end.
pub async fn receive(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> io::Result<bool> {
    let mut piece = [0; 4096];
    loop {
        stream.readable().await?;
        match stream.try_read(&mut piece) {
            Ok(length) => {
                bytes.extend_from_slice(&piece[..length]);
                return Ok(length > 0);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

/// Whether the server closes the connection without another word.
pub async fn is_hung_up(stream: &mut TcpStream) -> bool {
    let mut bytes = Vec::new();
    let end = in_time(receive(stream, &mut bytes)).await;
    bytes.is_empty() && !end.unwrap_or(false)
}

/// Tries until `holds`, and fails after the deadline.
pub async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds().await {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The rules of the text format a scraper relies on.
pub fn check_exposition(text: &str) {
    let (mut families, mut series) = (BTreeSet::new(), BTreeSet::new());
    let mut family = ("", "");
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            family = rest.split_once(' ').expect("name and type");
            assert!(["counter", "gauge", "histogram"].contains(&family.1), "{line}");
            assert!(families.insert(family.0), "announced twice: {line}");
        } else if !line.starts_with("# HELP ") {
            let (sample, value) = line.rsplit_once(' ').expect("sample and value");
            assert!(value.parse::<f64>().is_ok(), "{line}");
            assert!(series.insert(sample), "twice: {line}");
            let name = sample.split('{').next().unwrap();
            let suffixes: &[&str] = if family.1 == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
            assert!(suffixes.iter().any(|suffix| name == format!("{}{suffix}", family.0)), "{line} under {family:?}");
        }
    }
    assert!(series.len() > 100, "{} series", series.len());
}

/// Names that kube-proxy's metrics have, against the custom that only counters end so.
const THEIRS: [&str; 2] = ["kubeproxy_sync_proxy_rules_iptables_total", "kubeproxy_sync_proxy_rules_no_local_endpoints_total"];

/// Prometheus's own check. Without the program a run in CI fails.
pub fn promtool(text: &str) {
    use std::io::Write;
    let mut command = Command::new("promtool");
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let Ok(mut child) = command.spawn() else {
        let in_ci = std::env::var("CI").is_ok_and(|value| value == "true");
        assert!(!in_ci, "promtool is missing, and CI must not skip it: e2e/install.sh --machine");
        return;
    };
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let known = THEIRS.map(|name| format!("{name} non-counter metrics should not have \"_total\" suffix"));
    let faults: Vec<_> = said.lines().filter(|line| !known.iter().any(|known| known == line)).collect();
    assert_eq!(faults, Vec::<&str>::new());
}
