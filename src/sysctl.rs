//! Kernel settings and facts under `/proc` and `/sys`: read, and set where they differ.

use std::borrow::Cow;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::thread;

/// A setting and why the proxy wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// As sysctl(8) writes it, with dots: `net.ipv4.conf.all.route_localnet`.
    pub name: &'static str,
    pub value: Cow<'static, str>,
    /// What does not work without it, for the operator.
    pub purpose: &'static str,
}

/// What was changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub before: String,
}

/// A setting that is not as it should be and could not be made so.
#[derive(Debug, thiserror::Error)]
#[error("sysctl {}={}: {source}", setting.name, setting.value)]
pub struct Error {
    pub setting: Setting,
    /// What it is instead; `None`: that could not be read either.
    pub found: Option<String>,
    /// Is it the kernel that lets nobody here set it? So it does with what counts for all network namespaces, in those
    /// that are not the host's.
    pub for_nobody: bool,
    source: io::Error,
}

impl Error {
    /// The number of the error, where the kernel gave one.
    pub fn errno(&self) -> Option<i32> {
        self.source.raw_os_error()
    }
}

/// Where `/proc` and `/sys` are: at the root of the file system, except in tests.
#[derive(Clone, Debug)]
pub struct Root(PathBuf);

impl Default for Root {
    fn default() -> Self {
        Self("/".into())
    }
}

impl Root {
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        Self(folder.into())
    }

    /// The value of a sysctl, without the line's end.
    pub fn sysctl(&self, name: &str) -> io::Result<String> {
        self.read(&path(name))
    }

    /// The content of a file, without the line's end.
    pub fn read(&self, file: &str) -> io::Result<String> {
        fs::read_to_string(self.0.join(file)).map(|text| text.trim_end().to_owned())
    }

    pub fn write(&self, file: &str, value: &str) -> io::Result<()> {
        fs::write(self.0.join(file), value)
    }

    pub fn exists(&self, file: &str) -> bool {
        self.0.join(file).exists()
    }

    /// Sets it unless it is set already, so that a read-only `/proc/sys` does no harm where somebody prepared the node.
    pub fn ensure(&self, setting: Setting) -> Result<Option<Change>, Error> {
        let file = path(setting.name);
        let before = match self.read(&file) {
            Ok(value) if value == setting.value => return Ok(None),
            Ok(value) => value,
            Err(source) => return Err(Error { setting, found: None, for_nobody: false, source }),
        };
        match self.write(&file, &setting.value) {
            Ok(()) => Ok(Some(Change { before })),
            Err(source) => {
                let mode = fs::metadata(self.0.join(&file)).map(|found| found.permissions().mode());
                let for_nobody = mode.is_ok_and(|mode| mode & 0o222 == 0);
                Err(Error { setting, found: Some(before), for_nobody, source })
            }
        }
    }

    /// The processors that are in use. `/sys` knows them all; what the process itself may use is less where its container
    /// is limited, and counts only where `/sys` does not say.
    pub fn processors(&self) -> usize {
        let listed = self.read("sys/devices/system/cpu/online").ok().and_then(|list| count_listed(&list));
        listed.or_else(|| thread::available_parallelism().ok().map(Into::into)).unwrap_or(1)
    }
}

fn path(name: &str) -> String {
    format!("proc/sys/{}", name.replace('.', "/"))
}

/// How many numbers a list such as `0-3,8` has.
fn count_listed(ranges: &str) -> Option<usize> {
    let count = |part: &str| -> Option<usize> {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        Some(last.checked_sub(first)? + 1)
    };
    ranges.split(',').map(count).sum()
}

/// A `/proc` and `/sys` of a test's own.
#[cfg(test)]
#[allow(clippy::missing_panics_doc, reason = "test code: a panic is a failed test")]
pub mod fake {
    use super::{PathBuf, Root, fs};

    #[derive(Debug)]
    pub struct FakeRoot(PathBuf);

    impl FakeRoot {
        pub fn new(test: &str, files: &[(&str, &str)]) -> Self {
            let fake = Self(std::env::temp_dir().join(format!("sluice-root-{test}-{}", std::process::id())));
            for (file, text) in files {
                fake.put(file, text);
            }
            fake
        }

        pub fn put(&self, file: &str, text: &str) {
            let file = self.0.join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }

        /// The whole text of a file, with its line's end.
        pub fn text(&self, file: &str) -> String {
            fs::read_to_string(self.0.join(file)).unwrap()
        }

        pub fn root(&self) -> Root {
            Root::at(&self.0)
        }
    }

    impl Drop for FakeRoot {
        fn drop(&mut self) {
            _ = fs::remove_dir_all(&self.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::fake::FakeRoot;
    use super::*;

    const FILE: &str = "proc/sys/net/ipv4/ip_forward";

    fn setting() -> Setting {
        Setting { name: "net.ipv4.ip_forward", value: "1".into(), purpose: "nothing is forwarded" }
    }

    #[test]
    fn what_differs_is_written_and_nothing_else() {
        let fake = FakeRoot::new("differs", &[(FILE, "0\n")]);
        let change = fake.root().ensure(setting()).unwrap();
        assert_eq!(change, Some(Change { before: "0".into() }));
        assert_eq!(fake.root().sysctl("net.ipv4.ip_forward").unwrap(), "1");
        // With a line's end as the kernel has it, and not written again.
        fake.put(FILE, "1\n");
        assert_eq!(fake.root().ensure(setting()).unwrap(), None);
        assert_eq!(fake.text(FILE), "1\n");
    }

    #[test]
    fn what_is_not_there_is_told_with_the_number_of_the_error() {
        let fake = FakeRoot::new("missing", &[]);
        let error = fake.root().ensure(setting()).unwrap_err();
        assert_eq!((error.errno(), &error.found, error.for_nobody), (Some(2), &None, false));
        assert!(error.to_string().starts_with("sysctl net.ipv4.ip_forward=1: "), "{error}");
    }

    #[test]
    fn processors_are_those_that_are_online() {
        for (online, count) in [("0\n", 1), ("0-3\n", 4), ("0-3,8,10-11\n", 7), ("0-1023\n", 1024)] {
            let fake = FakeRoot::new("processors", &[("sys/devices/system/cpu/online", online)]);
            assert_eq!(fake.root().processors(), count, "{online}");
        }
        let own = thread::available_parallelism().unwrap().get();
        for nonsense in ["", "3-1", "0-", "a"] {
            let fake = FakeRoot::new("no-processors", &[("sys/devices/system/cpu/online", nonsense)]);
            assert_eq!(fake.root().processors(), own, "{nonsense}");
        }
        assert_eq!(FakeRoot::new("nothing", &[]).root().processors(), own);
    }
}
