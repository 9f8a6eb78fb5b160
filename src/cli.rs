//! The command line: flags as data, from text to [`Raw`], and which command to run.
//!
//! The flags are kube-proxy's (behaviour.md §1.2) with a few of our own. Values are checked in
//! [`crate::config`]; this file only reads them.

mod flags;
mod render;
mod usage;

use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{ArgMatches, Command};

use crate::config::{Config, Invalid, Raw, RawIpvs, feature_gates};
use crate::{agent, logging};

/// Runs the command that `arguments` ask for. Errors are one line on stderr; the exit code is 0 for
/// done, 1 for failed, 2 for arguments that cannot be used.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments = arguments.into_iter().map(flags::normalized);
    let matches = match command().try_get_matches_from(arguments) {
        Ok(matches) => matches,
        Err(error) if error.use_stderr() => return unusable(&usage::line(&error)),
        Err(help) => {
            // A reader that went away (`| head`) has seen enough.
            _ = help.print();
            return ExitCode::SUCCESS;
        }
    };
    if flags::wants_version(innermost(&matches)) {
        return ending(&write_out(concat!("sluice ", env!("CARGO_PKG_VERSION"), "\n")), Form::Text);
    }
    let form = if flags::text(innermost(&matches), "logging-format") == "json" { Form::Json } else { Form::Text };
    match configure(&matches) {
        Ok(config) => ending(&execute(&matches, config), form),
        Err(error) if error.is::<NotBuilt>() || error.is::<Invalid>() => unusable(&format!("{error:#}")),
        Err(error) => ending(&Err(error), form),
    }
}

/// How the last line is written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Text,
    /// Whoever asked for JSON on stderr reads all of it as that.
    Json,
}

fn unusable(line: &str) -> ExitCode {
    eprintln!("error: {line}");
    ExitCode::from(2)
}

fn ending(outcome: &anyhow::Result<()>, form: Form) -> ExitCode {
    match (outcome, form) {
        (Ok(()), _) => return ExitCode::SUCCESS,
        (Err(error), Form::Text) => eprintln!("error: {}", chain(error)),
        (Err(error), Form::Json) => tracing::error!("{}", chain(error)),
    }
    ExitCode::FAILURE
}

/// An error and its causes in one line. Some libraries repeat the cause in their own text: it is said once.
fn chain(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if line.is_empty() {
            line = cause;
        } else if !line.contains(&cause) {
            line = format!("{line}: {cause}");
        }
    }
    line
}

fn command() -> Command {
    let flags = || flags::args().into_iter().chain(flags::run_args());
    let render = Command::new("render")
        .about("Print what would be programmed, as iptables-save and the like print it; needs no privilege")
        .args(flags())
        .arg(flags::family())
        .after_help(flags::afterword());
    Command::new("sluice")
        .about("A Kubernetes service proxy for Linux nodes: a drop-in replacement for kube-proxy that programs the kernel through netlink alone")
        .args(flags())
        .after_help(flags::afterword())
        .subcommand(render)
        .disable_help_subcommand(true)
        .args_conflicts_with_subcommands(true)
}

/// The flags of the command that was asked for.
fn innermost(matches: &ArgMatches) -> &ArgMatches {
    matches.subcommand().map_or(matches, |(_, matches)| matches)
}

/// A flag that this version cannot honour.
#[derive(Debug, thiserror::Error)]
#[error("--{flag}: not built into this version yet; {hint}")]
struct NotBuilt {
    flag: &'static str,
    hint: &'static str,
}

/// Checks all flags, sets logging up, and says which flags do nothing.
fn configure(matches: &ArgMatches) -> anyhow::Result<Config> {
    let renders = matches.subcommand().is_some();
    let matches = innermost(matches);
    if let Some(flag) = flags::not_built(matches) {
        return Err(NotBuilt { flag: flag.name, hint: flag.hint }.into());
    }
    let config = Config::resolve(raw(matches)?)?;
    let cleanup = flags::is_set(matches, "cleanup");
    if cleanup && renders {
        return Err(Invalid { flag: "--cleanup", cause: "render prints what would be made, and removes nothing".into() }.into());
    }
    logging::init(flags::verbosity(matches), &flags::text(matches, "logging-format"))?;
    let gates = feature_gates(&flags::text(matches, "feature-gates"))?.without_effect;
    let gates = gates.into_iter().map(|gate| format!("--feature-gates={gate}"));
    let idle: Vec<_> = flags::without_effect(matches).map(|flag| format!("--{flag}")).chain(gates).collect();
    if !idle.is_empty() {
        tracing::warn!("accepted, but without effect in this version: {}", idle.join(" "));
    }
    let mode = config.rules.mode;
    let idle: Vec<_> = flags::of_other_modes(matches, mode).map(|flag| format!("--{flag}")).collect();
    if !idle.is_empty() && !cleanup {
        tracing::warn!("accepted, but without effect with --proxy-mode={mode}: {}", idle.join(" "));
    }
    Ok(config)
}

fn execute(matches: &ArgMatches, config: Config) -> anyhow::Result<()> {
    if let Some(("render", matches)) = matches.subcommand() {
        return write_out(&render::run(matches, &config)?);
    }
    if flags::is_set(matches, "cleanup") {
        return write_out(&agent::clean_up(&config.rules.ipvs)?);
    }
    tracing::info!("sluice {} starts with {config}", env!("CARGO_PKG_VERSION"));
    agent::run(config)
}

fn raw(matches: &ArgMatches) -> anyhow::Result<Raw> {
    let text = |name| flags::text(matches, name);
    let path = |name| matches.get_one::<String>(name).filter(|p| !p.is_empty()).map(PathBuf::from);
    let list = |name| flags::list(matches, name);
    Ok(Raw {
        mode: text("proxy-mode"),
        hostname: match matches.get_one::<String>("hostname-override").filter(|name| !name.is_empty()) {
            Some(name) => name.clone(),
            None => host_name()?,
        },
        manifests: path("manifests"),
        kubeconfig: path("kubeconfig"),
        master: matches.get_one::<String>("master").filter(|m| !m.is_empty()).cloned(),
        once: flags::is_set(matches, "once"),
        cleanup: flags::is_set(matches, "cleanup"),
        node_ips: list("node-ip"),
        bind_address: text("bind-address"),
        healthz_bind_address: text("healthz-bind-address"),
        metrics_bind_address: text("metrics-bind-address"),
        bind_address_hard_fail: flags::is_set(matches, "bind-address-hard-fail"),
        detect_local_mode: text("detect-local-mode"),
        cluster_cidr: matches.get_one::<String>("cluster-cidr").cloned(),
        pod_bridge_interface: text("pod-bridge-interface"),
        pod_interface_name_prefix: text("pod-interface-name-prefix"),
        masquerade_all: flags::is_set(matches, "masquerade-all"),
        masquerade_bit: flags::number(matches, "iptables-masquerade-bit"),
        localhost_node_ports: flags::is_set(matches, "iptables-localhost-nodeports"),
        node_port_addresses: list("nodeport-addresses"),
        tcp_be_liberal: flags::is_set(matches, "conntrack-tcp-be-liberal"),
        feature_gates: text("feature-gates"),
        sync_period: flags::duration(matches, "iptables-sync-period"),
        min_sync_period: flags::duration(matches, "iptables-min-sync-period"),
        audit_period: flags::duration(matches, "audit-period"),
        ipvs: raw_ipvs(matches),
    })
}

fn raw_ipvs(matches: &ArgMatches) -> RawIpvs {
    let duration = |name| flags::duration(matches, name);
    RawIpvs {
        scheduler: flags::text(matches, "ipvs-scheduler"),
        exclude_cidrs: flags::list(matches, "ipvs-exclude-cidrs"),
        strict_arp: flags::is_set(matches, "ipvs-strict-arp"),
        sync_period: duration("ipvs-sync-period"),
        min_sync_period: duration("ipvs-min-sync-period"),
        tcp_timeout: duration("ipvs-tcp-timeout"),
        tcp_fin_timeout: duration("ipvs-tcpfin-timeout"),
        udp_timeout: duration("ipvs-udp-timeout"),
        local_addresses: flags::text(matches, "ipvs-local-addresses"),
        drain_timeout: duration("ipvs-drain-timeout"),
    }
}

/// The name the kernel has for this machine: what kubelet registers a node as by default.
fn host_name() -> anyhow::Result<String> {
    const PATH: &str = "/proc/sys/kernel/hostname";
    std::fs::read_to_string(PATH).with_context(|| format!("read the host name: {PATH}"))
}

/// A reader that went away (`| head`) is no failure.
fn write_out(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error).context("write to standard output"),
        _ => Ok(()),
    }
}
