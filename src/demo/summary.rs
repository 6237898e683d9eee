//! What the demo measured and checked, in a few lines.

use std::fmt;
use std::time::Duration;

use super::latency::Latencies;
use crate::report::units;

/// All of it.
#[derive(Clone, Default, Debug)]
pub struct Summary {
    /// The base backups, in the order in which they were taken.
    pub backups: Vec<Copied>,
    /// WAL that went over the links while rows were written, before compression.
    pub raw_bytes: u64,
    /// The same as it went over the wire.
    pub wire_bytes: u64,
    /// From a commit on the primary to its row on a standby.
    pub latencies: Latencies,
    /// From the start of `walship promote` to the first commit on the new primary.
    pub first_write_after: Duration,
    /// Rows acknowledged before the primary was lost and shipped: each is there.
    pub shipped_rows: usize,
    /// Rows acknowledged that were not shipped when it was lost.
    pub unshipped_rows: usize,
    /// Rows that the new primary and its follower have in common, which is all.
    pub equal_rows: u64,
    /// The primary in the end.
    pub primary: &'static str,
    /// The standby that follows it.
    pub follower: &'static str,
    /// How long the demo took.
    pub took: Duration,
}

/// One base backup.
#[derive(Clone, Debug)]
pub struct Copied {
    /// For whom.
    pub node: &'static str,
    /// How much.
    pub bytes: u64,
    /// How long its files took.
    pub took: Duration,
}

impl Copied {
    /// Bytes in a second.
    fn rate(&self) -> u64 {
        (self.bytes as f64 / self.took.as_secs_f64().max(0.001)) as u64
    }
}

impl fmt::Display for Copied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (size, rate) = (units::size(self.bytes), units::size(self.rate()));
        write!(f, "{}: {size} in {:.1} s, {rate}/s", self.node, self.took.as_secs_f64())
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut fact = |name: &str, value: String| writeln!(f, "   {name:<18} {value}");
        for (index, copied) in self.backups.iter().enumerate() {
            fact(if index == 0 { "base backups" } else { "" }, copied.to_string())?;
        }
        let (raw, wire) = (units::size(self.raw_bytes), units::size(self.wire_bytes));
        let ratio = units::ratio(self.raw_bytes as f64 / self.wire_bytes.max(1) as f64);
        fact("WAL on the links", format!("{raw} raw, {wire} on the wire, ratio {ratio}"))?;
        let latency = |percent| milliseconds(self.latencies.percentile(percent));
        let of = grouped(self.latencies.count() as u64);
        fact("commit to visible", format!("p50 {}, p99 {}, of {of} commits", latency(50), latency(99)))?;
        let seconds = self.first_write_after.as_secs_f64();
        fact("promote", format!("first write after {seconds:.1} s"))?;
        let (shipped, unshipped) = (grouped(self.shipped_rows as u64), grouped(self.unshipped_rows as u64));
        fact("rows acknowledged", format!("{shipped} shipped, and all are there"))?;
        fact("", format!("{unshipped} not yet shipped when the primary was lost"))?;
        let (primary, follower) = (self.primary, self.follower);
        let equal = grouped(self.equal_rows);
        fact("rows compared", format!("{equal}, the same on {primary} and {follower}"))?;
        fact("all of it took", format!("{} s", self.took.as_secs()))
    }
}

fn milliseconds(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1000.0)
}

/// A number with its thousands apart: `1,234,567`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_stand_apart() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }

    #[test]
    fn a_summary_is_narrow() {
        let copied = |node| Copied { node, bytes: 260 << 20, took: Duration::from_millis(2600) };
        let summary = Summary {
            backups: vec![copied("db2"), copied("db3")],
            raw_bytes: 90 << 20,
            wire_bytes: 20 << 20,
            first_write_after: Duration::from_millis(840),
            shipped_rows: 12_345,
            unshipped_rows: 3,
            equal_rows: 2_012_345,
            primary: "db2",
            follower: "db3",
            took: Duration::from_secs(55),
            ..Summary::default()
        };
        insta::assert_snapshot!(summary.to_string(), @r"
        base backups       db2: 260.0 MiB in 2.6 s, 100.0 MiB/s
                           db3: 260.0 MiB in 2.6 s, 100.0 MiB/s
        WAL on the links   90.0 MiB raw, 20.0 MiB on the wire, ratio 4.5 : 1
        commit to visible  p50 0.0 ms, p99 0.0 ms, of 0 commits
        promote            first write after 0.8 s
        rows acknowledged  12,345 shipped, and all are there
                           3 not yet shipped when the primary was lost
        rows compared      2,012,345, the same on db2 and db3
        all of it took     55 s
        ");
    }
}
