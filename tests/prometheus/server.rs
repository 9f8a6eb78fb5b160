//! Debian's Prometheus, running in a namespace: it scrapes what is asked, evaluates `rules.yaml`, and is asked for
//! the results.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::netns::{Namespace, Process};
use crate::support::{PATIENCE, Scratch, wait_until};

const RULES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/prometheus/rules.yaml");
const ADDRESS: &str = "127.0.0.1:9090";

/// Is the program there? A run in CI fails without it.
pub fn is_there(program: &str) -> bool {
    let there = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    let in_ci = std::env::var("CI").is_ok_and(|value| value == "true");
    assert!(there || !in_ci, "{program} is missing, and CI must not skip it: e2e/install.sh --machine");
    if !there {
        eprintln!("not run: {program} is missing (e2e/install.sh --machine)");
    }
    there
}

/// A running Prometheus.
pub struct Prometheus<'a> {
    node: &'a Namespace,
    _process: Process,
    log: PathBuf,
}

impl<'a> Prometheus<'a> {
    /// Scrapes these addresses under the name of their job, a few times a second.
    pub fn start(node: &'a Namespace, scratch: &Scratch, jobs: &[(&str, &str)]) -> Self {
        let scrapes: Vec<_> = jobs
            .iter()
            .map(|(job, address)| format!("  - job_name: {job}\n    static_configs: [{{targets: ['{address}']}}]\n"))
            .collect();
        let config = format!(
            "global: {{scrape_interval: 300ms, scrape_timeout: 300ms}}\nrule_files: ['{RULES}']\nscrape_configs:\n{}",
            scrapes.concat()
        );
        let (file, log) = (scratch.file("prometheus.yaml"), scratch.file("prometheus.log"));
        fs::write(&file, config).unwrap();
        let mut command = node.command("prometheus");
        command.arg(format!("--config.file={}", file.display())).arg(format!("--web.listen-address={ADDRESS}"));
        command.arg(format!("--storage.tsdb.path={}", scratch.file("tsdb").display())).stderr(File::create(&log).unwrap());
        let this = Self { node, _process: Process::start(&mut command), log };
        wait_until("Prometheus is ready", PATIENCE, || this.ask("/-/ready").is_some());
        this
    }

    /// The answer's body; `None` when there is none or it is no good one. HTTP/1.0, so that it comes in one piece.
    fn ask(&self, path: &str) -> Option<String> {
        self.node.run(|| {
            let mut stream = TcpStream::connect(ADDRESS).ok()?;
            stream.set_read_timeout(Some(PATIENCE)).ok()?;
            write!(stream, "GET {path} HTTP/1.0\r\nHost: {ADDRESS}\r\n\r\n").ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).ok()?;
            let (head, body) = answer.split_once("\r\n\r\n")?;
            head.starts_with("HTTP/1.0 200 ").then(|| body.to_owned())
        })
    }

    fn data(&self, path: &str) -> Value {
        let body = self.ask(path).unwrap_or_else(|| panic!("no answer to {path}:\n{}", self.log()));
        serde_json::from_str::<Value>(&body).unwrap()["data"].take()
    }

    /// The series that the expression gives now, with their values.
    pub fn query(&self, expression: &str) -> Vec<(Value, f64)> {
        let mut data = self.data(&format!("/api/v1/query?query={}", escaped(expression)));
        let series = data["result"].as_array_mut().unwrap().iter_mut();
        series.map(|series| (series["metric"].take(), series["value"][1].as_str().unwrap().parse().unwrap())).collect()
    }

    /// Waits until the expression gives one value of which `holds`.
    pub fn wait_for(&self, expression: &str, holds: impl Fn(f64) -> bool) -> f64 {
        let mut last = Vec::new();
        let begun = std::time::Instant::now();
        loop {
            if let [(_, value)] = last.as_slice()
                && holds(*value)
            {
                return *value;
            }
            assert!(begun.elapsed() < PATIENCE * 2, "{expression} gave {last:?}");
            std::thread::sleep(std::time::Duration::from_millis(50));
            last = self.query(expression);
        }
    }

    /// Waits until the alert fires, or no longer does.
    pub fn wait_for_alert(&self, alert: &str, fires: bool) {
        let firing = format!("ALERTS{{alertname=\"{alert}\", alertstate=\"firing\"}}");
        wait_until(&format!("{alert} fires: {fires}"), PATIENCE * 2, || self.query(&firing).is_empty() != fires);
    }

    /// The alerts that fire, by name.
    pub fn firing(&self) -> Vec<String> {
        let alerts = self.query("ALERTS{alertstate=\"firing\"}");
        alerts.iter().map(|(labels, _)| labels["alertname"].as_str().unwrap().to_owned()).collect()
    }

    /// What is wrong with a rule or a target.
    pub fn faults(&self) -> Vec<String> {
        let (rules, targets) = (self.data("/api/v1/rules"), self.data("/api/v1/targets"));
        let rules = rules["groups"].as_array().unwrap().iter().flat_map(|group| group["rules"].as_array().unwrap());
        let bad_rules =
            rules.filter(|rule| rule["health"] != "ok").map(|rule| format!("{}: {}", rule["name"], rule["lastError"]));
        let targets = targets["activeTargets"].as_array().unwrap().iter();
        let bad_targets = targets.filter(|target| target["lastError"] != "").map(ToString::to_string);
        bad_rules.chain(bad_targets).collect()
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

fn escaped(text: &str) -> String {
    text.bytes()
        .map(|byte| if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}
