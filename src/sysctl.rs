//! Kernel settings under `/proc/sys`: read, and set where they differ.

use std::fs;
use std::io;

/// A setting and why the proxy wants it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// As sysctl(8) writes it, with dots: `net.ipv4.conf.all.route_localnet`.
    pub name: &'static str,
    pub value: &'static str,
    /// What does not work without it, for the operator.
    pub purpose: &'static str,
}

/// A setting that is not as it should be and could not be made so.
#[derive(Debug, thiserror::Error)]
#[error("sysctl {} = {}: cannot {step} it; without it {}", setting.name, setting.value, setting.purpose)]
pub struct Error {
    setting: Setting,
    step: &'static str,
    source: io::Error,
}

impl Setting {
    /// Sets it unless it is set already, so that a read-only `/proc/sys` does no harm where somebody
    /// prepared the node.
    pub fn ensure(self) -> Result<(), Error> {
        let failed = |step| move |source| Error { setting: self, step, source };
        if read(self.name).map_err(failed("read"))? == self.value {
            return Ok(());
        }
        fs::write(path(self.name), self.value).map_err(failed("set"))?;
        tracing::info!(sysctl = self.name, value = self.value, "set");
        Ok(())
    }
}

/// The value of a setting, without the line's end.
pub fn read(name: &str) -> io::Result<String> {
    fs::read_to_string(path(name)).map(|text| text.trim_end().to_owned())
}

fn path(name: &str) -> String {
    format!("/proc/sys/{}", name.replace('.', "/"))
}
