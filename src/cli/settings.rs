//! From the command line, and the file it names, to the checked configuration.
//!
//! Done again when the file changes: with the same command line, and the file as it is then.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::ArgMatches;

use super::flags;
use super::table::{FLAGS, Flag, Origin};
use crate::config::{
    self, Config, Decoded, Invalid, KubeProxyConfiguration, NOT_SERVED, Problems, Raw, gates_without_effect, with_port,
};
use crate::netlink::IoCause;
use crate::sysctl::Root;

/// What was asked for, and what the user should know of it.
#[derive(Debug)]
pub(super) struct Settings {
    pub config: Config,
    /// Lines for the log, which is set up later.
    pub warnings: Vec<String>,
}

/// What cannot be used, in one line.
#[derive(Debug, thiserror::Error)]
#[error("{line}")]
pub(super) struct Unusable {
    pub line: String,
    /// Is it only about flags?
    pub flags_only: bool,
}

/// Reads the flags, and the file if there is one.
pub(super) fn resolve(matches: &ArgMatches) -> anyhow::Result<Settings> {
    let file = file(matches);
    let (mut configuration, mut warnings) = match &file {
        Some(path) => read(path)?,
        None => (KubeProxyConfiguration::of_defaults(), Vec::new()),
    };
    let counting: Vec<_> = FLAGS.iter().filter(|flag| counts(matches, flag, file.is_some())).collect();
    let naming = Naming { file: file.as_deref(), counting: &counting };
    overlay(&mut configuration, matches, &counting).map_err(|problems| naming.line(&problems))?;
    let config = Config::resolve(raw(matches, configuration)?).map_err(|problems| naming.line(&problems))?;
    if file.is_some() {
        let replaced = dashed(flags::replaced_by_file(matches));
        warnings.extend(replaced.map(|flags| format!("accepted, but without effect beside --config: {flags}")));
    }
    warnings.extend(without_effect(matches, &config));
    Ok(Settings { config, warnings })
}

/// The file with the configuration, if one is named.
pub(super) fn file(matches: &ArgMatches) -> Option<PathBuf> {
    Some(flags::text(matches, "config")).filter(|path| !path.is_empty()).map(PathBuf::from)
}

fn read(path: &Path) -> anyhow::Result<(KubeProxyConfiguration, Vec<String>)> {
    let text = std::fs::read_to_string(path).map_err(|cause| Unusable {
        line: format!("--config: {} cannot be read: {}", path.display(), IoCause(&cause)),
        flags_only: false,
    })?;
    let decoded = KubeProxyConfiguration::decode(&text);
    let Decoded { configuration, lenient } =
        decoded.map_err(|problems| Naming { file: Some(path), counting: &[] }.line(&problems))?;
    let warning = format!("Using lenient decoding as strict decoding failed: {}: {}", path.display(), lenient.join("; "));
    Ok((configuration, if lenient.is_empty() { Vec::new() } else { vec![warning] }))
}

/// Is the configuration to say what this flag says?
fn counts(matches: &ArgMatches, flag: &Flag, beside_file: bool) -> bool {
    let given = flags::is_given(matches, flag.name);
    let empty_name = flag.name == "hostname-override" && flags::text(matches, flag.name).is_empty();
    !flag.field.is_empty() && (!beside_file || given && flag.origin == Origin::BesideFile && !empty_name)
}

/// Puts the values of flags into the configuration.
fn overlay(configuration: &mut KubeProxyConfiguration, matches: &ArgMatches, counting: &[&Flag]) -> Result<(), Problems> {
    let nftables = flags::text(matches, "proxy-mode") == "nftables";
    let modules_of_file = std::mem::take(&mut configuration.logging.vmodule);
    let mut tree = config::Tree::Null;
    for flag in counting {
        let value = match flag.name {
            "healthz-bind-address" => config::Tree::Text(bind_address(matches, flag.name, "healthz-port")),
            "metrics-bind-address" => config::Tree::Text(bind_address(matches, flag.name, "metrics-port")),
            _ => flags::value(matches, flag),
        };
        // These say the same of either mode; the bit is of iptables alone.
        let shared = ["masquerade-all", "iptables-sync-period", "iptables-min-sync-period"].contains(&flag.name);
        match flag.field.strip_prefix("iptables.") {
            Some(field) if nftables && shared => tree.put(&format!("nftables.{field}"), value),
            _ => tree.put(flag.field, value),
        }
    }
    let outcome = if counting.is_empty() { Ok(()) } else { configuration.overlay(&tree) };
    configuration.logging.vmodule.extend(modules_of_file);
    outcome
}

/// Where a server is to listen: nowhere, if the address is empty or the deprecated flag says port 0.
fn bind_address(matches: &ArgMatches, flag: &str, port: &str) -> String {
    let (address, port) = (flags::text(matches, flag), flags::number(matches, port));
    if address.is_empty() || port == 0 { NOT_SERVED.to_owned() } else { with_port(&address, port) }
}

fn raw(matches: &ArgMatches, configuration: KubeProxyConfiguration) -> anyhow::Result<Raw> {
    let text = |name| Some(flags::text(matches, name)).filter(|text| !text.is_empty());
    Ok(Raw {
        configuration,
        host_name: host_name()?,
        manifests: text("manifests").map(PathBuf::from),
        master: text("master"),
        once: flags::is_set(matches, "once"),
        init_only: flags::is_set(matches, "init-only"),
        cleanup: flags::is_set(matches, "cleanup"),
        node_ips: flags::list(matches, "node-ip"),
        audit_period: flags::duration(matches, "audit-period"),
        ipvs_local_addresses: flags::text(matches, "ipvs-local-addresses"),
        ipvs_drain_timeout: flags::duration(matches, "ipvs-drain-timeout"),
    })
}

/// The name the kernel has for this machine: what kubelet registers a node as by default.
fn host_name() -> anyhow::Result<String> {
    Root::default().sysctl("kernel.hostname").context("read the host name: /proc/sys/kernel/hostname")
}

/// What was asked for and changes nothing.
fn without_effect(matches: &ArgMatches, config: &Config) -> Vec<String> {
    let mode = config.rules.mode;
    let beside_file = file(matches).is_some();
    let told = |name: &&str| beside_file && flags::replaced_by_file(matches).any(|replaced| replaced == *name);
    let idle = dashed(flags::without_effect(matches).filter(|name| !told(name)));
    let gates = gates_without_effect(config).map(|gate| format!("--feature-gates={gate}")).collect::<Vec<_>>();
    let gates =
        if beside_file { gates.iter().map(|gate| gate.replace("--feature-gates=", "featureGates.")).collect() } else { gates };
    let idle: Vec<_> = idle.into_iter().chain(gates).collect();
    let others = dashed(flags::of_other_modes(matches, mode).map(|flag| flag.name).filter(|name| !told(name)));
    let others = others.filter(|_| !flags::is_set(matches, "cleanup"));
    let idle = (!idle.is_empty()).then(|| format!("accepted, but without effect in this version: {}", idle.join(" ")));
    let others = others.map(|flags| format!("accepted, but without effect with --proxy-mode={mode}: {flags}"));
    idle.into_iter().chain(others).collect()
}

/// The names with their dashes, if there are any.
fn dashed(names: impl Iterator<Item = &'static str>) -> Option<String> {
    let names: Vec<_> = names.map(|name| format!("--{name}")).collect();
    (!names.is_empty()).then(|| names.join(" "))
}

/// How a field is called where the user said something of it.
struct Naming<'a> {
    file: Option<&'a Path>,
    /// The flags that the configuration says the values of.
    counting: &'a [&'a Flag],
}

impl Naming<'_> {
    /// Everything that is wrong in one line: what is in the file behind its name, and the flags.
    fn line(&self, problems: &Problems) -> Unusable {
        let (mut of_file, mut of_flags) = (Vec::new(), Vec::new());
        for invalid in &problems.0 {
            match self.flag(invalid) {
                Some(text) => of_flags.push(text),
                None => of_file.push(invalid.to_string()),
            }
        }
        let flags_only = of_file.is_empty();
        if let (Some(file), Some(first)) = (self.file, of_file.first_mut()) {
            *first = format!("{}: {first}", file.display());
        }
        of_file.append(&mut of_flags);
        Unusable { line: of_file.join("; "), flags_only }
    }

    /// What is wrong, by the flag that says so.
    fn flag(&self, invalid: &Invalid) -> Option<String> {
        if invalid.field.starts_with("--") {
            return Some(invalid.to_string());
        }
        let rest = |flag: &Flag| {
            let rest = invalid.field.strip_prefix(flag.field)?;
            (rest.is_empty() || rest.starts_with(['.', '['])).then(|| (flag.name, rest.to_owned()))
        };
        let (name, rest) = self.counting.iter().find_map(|flag| rest(flag))?;
        match rest.strip_prefix('.') {
            Some(key) => Some(format!("--{name}: {key}: {}", invalid.cause)),
            None => Some(format!("--{name}: {}", invalid.cause)),
        }
    }
}

/// Writes the configuration that is in effect, as a file for `--config`.
pub(super) fn write(config: &Config, path: &Path) -> anyhow::Result<()> {
    let written = std::fs::write(path, config.effective.to_yaml());
    written.map_err(|cause| anyhow::anyhow!("--write-config-to: {} cannot be written: {}", path.display(), IoCause(&cause)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::{LocalAddresses, Source};

    fn resolved(flags: &[&str]) -> Config {
        let command = clap::Command::new("sluice").args(flags::args());
        resolve(&command.get_matches_from([&["sluice"][..], flags].concat())).unwrap().config
    }

    /// Those that are no fields of the file.
    #[test]
    fn our_own_flags_count() {
        let none = resolved(&["--mode=ipvs"]);
        assert_eq!(none.source, Source::Api { kubeconfig: None, master: None });
        assert!(!none.once && !none.init_only && none.node_ips.is_empty());
        assert_eq!(none.audit_period, Some(Duration::from_mins(15)));
        let ipvs = &none.rules.ipvs;
        assert_eq!((ipvs.local_addresses, ipvs.drain_timeout), (LocalAddresses::Device, Duration::from_mins(15)));

        let all = resolved(&[
            "--mode=ipvs",
            "--manifests=/m",
            "--once",
            "--init-only",
            "--node-ip=192.0.2.1,fd00::1",
            "--audit-period=0",
            "--ipvs-local-addresses=routes",
            "--ipvs-drain-timeout=7s",
        ]);
        assert_eq!(all.source, Source::Manifests("/m".into()));
        assert!(all.once && all.init_only);
        assert_eq!(all.node_ips.iter().map(ToString::to_string).collect::<Vec<_>>(), ["192.0.2.1", "fd00::1"]);
        assert_eq!(all.audit_period, None);
        let ipvs = &all.rules.ipvs;
        assert_eq!((ipvs.local_addresses, ipvs.drain_timeout), (LocalAddresses::Routes, Duration::from_secs(7)));
        let master = resolved(&["--master=https://192.0.2.1", "--kubeconfig=/k"]);
        assert_eq!(master.source, Source::Api { kubeconfig: Some("/k".into()), master: Some("https://192.0.2.1".into()) });
    }

    /// As client-go has it.
    #[test]
    fn a_rate_of_zero_is_the_default() {
        let client = resolved(&["--kube-api-qps=0", "--kube-api-burst=0"]).client;
        assert_eq!((client.qps.to_string().as_str(), client.burst), ("5", 10));
        assert!(resolved(&["--kube-api-qps=-1"]).client.qps < 0.0);
    }
}
