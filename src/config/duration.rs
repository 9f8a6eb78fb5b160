//! Durations as Go reads and writes them.

use std::fmt::{self, Display, Formatter};
use std::time::Duration;

use serde::{Serialize, Serializer};

/// A duration as kube-proxy's configuration has them: in nanoseconds, and below zero where somebody wrote that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct GoDuration(i64);

const SECOND: i64 = 1_000_000_000;

/// Go's units with their nanoseconds; longer spellings before their own beginnings.
const UNITS: [(&str, i64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000), // the Greek letter, which Go takes for the sign above
    ("ms", 1_000_000),
    ("s", SECOND),
    ("m", 60 * SECOND),
    ("h", 3600 * SECOND),
];

impl GoDuration {
    pub const fn from_nanos(nanos: i64) -> Self {
        Self(nanos)
    }

    pub const fn from_secs(seconds: i64) -> Self {
        Self(seconds * SECOND)
    }

    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    pub const fn is_negative(self) -> bool {
        self.0 < 0
    }

    /// Below zero: zero.
    pub fn or_zero(self) -> Duration {
        Duration::from_nanos(u64::try_from(self.0).unwrap_or_default())
    }

    /// Reads `30s`, `1m30s`, `1.5h`, `100ms`, `-1s`, `0`.
    pub fn parse(text: &str) -> Result<Self, String> {
        read(text).map(Self).ok_or_else(|| format!("{text:?} is not a duration such as 30s, 1m30s or 100ms"))
    }
}

/// Nanoseconds, if that is a duration which fits.
fn read(text: &str) -> Option<i64> {
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut sum = 0_i64;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(end);
        let (unit, nanos) = UNITS.into_iter().find(|(unit, _)| after.starts_with(unit))?;
        sum = sum.checked_add(times(number, nanos)?)?;
        rest = &after[unit.len()..];
    }
    Some(sign * sum)
}

/// `1.5` times so many nanoseconds; what is smaller than one is cut off.
fn times(number: &str, nanos: i64) -> Option<i64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return None;
    }
    let whole: i64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    // An hour has 13 digits of nanoseconds.
    let digits = &fraction[..fraction.len().min(15)];
    let part: i64 = if digits.is_empty() { 0 } else { digits.parse().ok()? };
    let part = i128::from(part) * i128::from(nanos) / 10_i128.pow(u32::try_from(digits.len()).ok()?);
    whole.checked_mul(nanos)?.checked_add(i64::try_from(part).ok()?)
}

impl From<Duration> for GoDuration {
    /// What is longer than Go can tell (292 years) is that.
    fn from(duration: Duration) -> Self {
        Self(i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX))
    }
}

/// `24h0m0s`, `1m30s`, `1.5s`, `100ms`, `0s`.
impl Display for GoDuration {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let nanos = self.0.unsigned_abs();
        if self.is_negative() {
            f.write_str("-")?;
        }
        let second = SECOND.unsigned_abs();
        match nanos {
            0 => f.write_str("0s"),
            1..1_000 => write!(f, "{nanos}ns"),
            1_000..1_000_000 => write!(f, "{}µs", Decimal(nanos, 1_000)),
            1_000_000..1_000_000_000 => write!(f, "{}ms", Decimal(nanos, 1_000_000)),
            _ => {
                let (minutes, rest) = (nanos / second / 60, nanos % (60 * second));
                match (minutes / 60, minutes % 60) {
                    (0, 0) => {}
                    (0, minutes) => write!(f, "{minutes}m")?,
                    (hours, minutes) => write!(f, "{hours}h{minutes}m")?,
                }
                write!(f, "{}s", Decimal(rest, second))
            }
        }
    }
}

/// A number of units, each of so many parts, without zeros at the end.
struct Decimal(u64, u64);

impl Display for Decimal {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self(value, unit) = self;
        let digits = usize::try_from(unit.ilog10()).unwrap_or_default();
        let fraction = format!("{:0digits$}", value % unit);
        match fraction.trim_end_matches('0') {
            "" => write!(f, "{}", value / unit),
            fraction => write!(f, "{}.{fraction}", value / unit),
        }
    }
}

impl Serialize for GoDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        let table = [
            ("30s", 30 * SECOND),
            ("1m30s", 90 * SECOND),
            ("1.5h", 5400 * SECOND),
            (".5s", SECOND / 2),
            ("2.s", 2 * SECOND),
            ("100ms", SECOND / 10),
            ("1µs1us1ns", 2_001),
            ("-1m", -60 * SECOND),
            ("+2s", 2 * SECOND),
            ("0", 0),
            ("-0", 0),
            ("0s", 0),
            ("0.000000001s", 1),
            ("0.00000000099999999999999999999999999999s", 0),
            ("2562047h47m16.854775807s", i64::MAX),
        ];
        for (text, nanos) in table {
            assert_eq!(GoDuration::parse(text), Ok(GoDuration(nanos)), "{text}");
        }
        for bad in ["", "30", "s", "1x", "1..5s", "1s ", ".s", "-", "--1s", "9999999h", "99999999999999999999s"] {
            assert!(GoDuration::parse(bad).is_err_and(|cause| cause.contains("is not a duration such as 30s")), "{bad}");
        }
    }

    #[test]
    fn durations_are_written_as_go_writes_them() {
        let table = [
            ("24h", "24h0m0s"),
            ("15m", "15m0s"),
            ("90s", "1m30s"),
            ("1500ms", "1.5s"),
            ("100ms", "100ms"),
            ("1500us", "1.5ms"),
            ("10ns", "10ns"),
            ("1h0.25s", "1h0m0.25s"),
            ("-90s", "-1m30s"),
            ("0", "0s"),
        ];
        for (text, written) in table {
            let duration = GoDuration::parse(text).unwrap();
            assert_eq!(duration.to_string(), written);
            assert_eq!(GoDuration::parse(written), Ok(duration));
        }
    }
}
