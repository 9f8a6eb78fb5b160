//! Setting up the node before anything is programmed: what was changed is told in one line, and what could not be in one
//! for each cause, with what that means for the operator and what to do about it.

use std::fmt::{self, Write as _};

use anyhow::bail;

use crate::config::Mode;
use crate::netlink::Errno;
use crate::sysctl::{self, Change, Root, Setting};

/// What was set, and what could not be.
#[derive(Debug, Default)]
pub struct Preparation {
    pub root: Root,
    changed: Vec<String>,
    failed: Vec<sysctl::Error>,
    /// Without these there is no going on.
    essential: Vec<sysctl::Error>,
    /// What is no sysctl, in words.
    others: Vec<String>,
}

/// Why settings cannot be made. Those with the same cause share a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    ReadOnly,
    /// It counts for all network namespaces, and this is not the host's.
    NotTheHost,
    NotAllowed,
    NotTracking,
    Other,
}

impl Preparation {
    pub fn new(root: Root) -> Self {
        Self { root, ..Self::default() }
    }

    /// Makes a setting that the proxy can do without; true when it is made.
    pub fn ensure(&mut self, setting: Setting) -> bool {
        let failure = self.set(setting);
        let done = failure.is_none();
        self.failed.extend(failure);
        done
    }

    /// Makes one that it cannot do without.
    pub fn require(&mut self, setting: Setting) {
        let failure = self.set(setting);
        self.essential.extend(failure);
    }

    /// Something else could not be done.
    pub fn complain(&mut self, what: String) {
        self.others.push(what);
    }

    fn set(&mut self, setting: Setting) -> Option<sysctl::Error> {
        let text = format!("{}={}", setting.name, setting.value);
        match self.root.ensure(setting) {
            Ok(None) => None,
            Ok(Some(Change { before })) => {
                self.changed.push(format!("{text} (it was {before})"));
                None
            }
            Err(error) => Some(error),
        }
    }

    /// What was set, with what it was.
    #[cfg(test)]
    pub fn changed(&self) -> &[String] {
        &self.changed
    }

    /// Says what became of it. It is a failure when something is missing without which the mode does not work, and with
    /// `--init-only`, which is there to set things up, when anything is.
    pub fn conclude(&self, mode: Mode, init_only: bool) -> anyhow::Result<()> {
        if !self.changed.is_empty() {
            tracing::info!("set on this node: {}", self.changed.join(", "));
        }
        let (essential, dispensable) = (complaints(&self.essential), self.dispensable());
        if !essential.is_empty() || init_only && !dispensable.is_empty() {
            let all: Vec<_> = essential.into_iter().chain(dispensable).collect();
            bail!("prepare the node for {mode} mode: {}", all.join("; and: "));
        }
        for complaint in dispensable {
            tracing::warn!("{complaint}; going on without");
        }
        Ok(())
    }

    fn dispensable(&self) -> Vec<String> {
        complaints(&self.failed).into_iter().chain(self.others.iter().cloned()).collect()
    }
}

/// One for each cause.
fn complaints(failed: &[sysctl::Error]) -> Vec<String> {
    let mut causes: Vec<_> = Vec::new();
    for error in failed {
        let cause = (Cause::of(error), error.errno());
        if !causes.contains(&cause) {
            causes.push(cause);
        }
    }
    let of = |cause| failed.iter().filter(move |error| (Cause::of(error), error.errno()) == cause);
    causes.into_iter().map(|cause| complaint(cause, of(cause))).collect()
}

/// What could not be set, what that means, why it could not, and what to do.
fn complaint<'a>((cause, errno): (Cause, Option<i32>), failed: impl Iterator<Item = &'a sysctl::Error>) -> String {
    let settings: Vec<_> = failed.map(describe).collect();
    let mut text = format!("cannot set sysctl {}", settings.join(", "));
    if let Some(errno) = errno {
        _ = write!(text, ": {}", Errno(errno));
    }
    format!("{text}{cause}")
}

fn describe(error: &sysctl::Error) -> String {
    let Setting { name, value, purpose } = &error.setting;
    match &error.found {
        Some(found) => format!("{name}={value} (it is {found}: {purpose})"),
        None => format!("{name}={value} (without it {purpose})"),
    }
}

impl Cause {
    fn of(error: &sysctl::Error) -> Self {
        match error.errno().map(Errno) {
            Some(Errno::EROFS) => Self::ReadOnly,
            _ if error.for_nobody => Self::NotTheHost,
            Some(Errno::EACCES | Errno::EPERM) => Self::NotAllowed,
            Some(Errno::ENOENT) if error.setting.name.starts_with("net.netfilter.nf_conntrack_") => Self::NotTracking,
            _ => Self::Other,
        }
    }
}

/// What an operator can do, behind the number of the error.
impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ReadOnly => {
                "; /proc/sys is mounted read-only: it takes a privileged container, such as an init container with \
                 sluice --init-only and the same flags"
            }
            Self::NotTheHost => "; only the host's network namespace may set it: --conntrack-max-per-core=0 leaves it as it is",
            Self::NotAllowed => {
                "; this process may not: it takes a privileged container, such as an init container with sluice \
                 --init-only and the same flags"
            }
            Self::NotTracking => "; the module nf_conntrack is not loaded, or its settings are hidden from this user namespace",
            Self::Other => "",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sysctl::fake::FakeRoot;

    fn setting(name: &'static str) -> Setting {
        Setting { name, value: "1".into(), purpose: "something does not work" }
    }

    #[test]
    fn what_cannot_be_set_is_told_by_cause_and_not_one_by_one() {
        // A folder in the place of the file is an error even for root.
        let root =
            FakeRoot::new("causes", &[("proc/sys/net/a/file", ""), ("proc/sys/net/b/file", ""), ("proc/sys/net/c", "0\n")]);
        let mut preparation = Preparation::new(root.root());
        for name in ["net.a", "net.b", "net.netfilter.nf_conntrack_max", "net.netfilter.nf_conntrack_udp_timeout"] {
            assert!(!preparation.ensure(setting(name)));
        }
        assert!(preparation.ensure(setting("net.c")));
        let complaints = preparation.dispensable();
        let without = "(without it something does not work)";
        assert_eq!(
            complaints,
            [
                format!("cannot set sysctl net.a=1 {without}, net.b=1 {without}: EISDIR (Is a directory)"),
                format!(
                    "cannot set sysctl net.netfilter.nf_conntrack_max=1 {without}, net.netfilter.nf_conntrack_udp_timeout=1 \
                     {without}: ENOENT (No such file or directory); the module nf_conntrack is not loaded, or its settings \
                     are hidden from this user namespace"
                ),
            ]
        );
        assert_eq!(preparation.changed, ["net.c=1 (it was 0)"]);
        preparation.conclude(Mode::Iptables, false).unwrap();
        let error = preparation.conclude(Mode::Iptables, true).unwrap_err().to_string();
        assert_eq!(error, format!("prepare the node for iptables mode: {}", complaints.join("; and: ")));
    }

    #[test]
    fn what_is_essential_is_fatal_and_names_the_rest_too() {
        let root = FakeRoot::new("essential", &[]);
        let mut preparation = Preparation::new(root.root());
        preparation.conclude(Mode::Ipvs, true).unwrap();
        preparation.complain("cannot do that either".into());
        preparation.conclude(Mode::Ipvs, false).unwrap();
        preparation.require(setting("net.ipv4.vs.conntrack"));
        let error = preparation.conclude(Mode::Ipvs, false).unwrap_err().to_string();
        assert!(error.starts_with("prepare the node for ipvs mode: cannot set sysctl net.ipv4.vs.conntrack=1 ("), "{error}");
        assert!(error.ends_with("; and: cannot do that either"), "{error}");
    }
}
