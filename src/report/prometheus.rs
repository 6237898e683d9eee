//! Status and lag in Prometheus' text format.
//!
//! Every metric carries its unit in its name. What is not known is `NaN`, so that a series never shows a zero that
//! nobody measured; `walship_lag_known` is there to alert on, because no comparison with `NaN` is true.

use std::fmt::Write;

use super::commits::Seat;
use super::lag::{self, Behind, LagReport, Link, Stage, StandbyLag};
use super::threshold::Amount;
use super::{Backup, Downstream, Role, Status, Traffic, Upstream, warnings};
use crate::pg::{Level, Lsn};

/// The whole status: what `/metrics` serves.
pub fn status(status: &Status) -> String {
    let mut page = Page::default();
    node(&mut page, status);
    commits(&mut page, status);
    store(&mut page, status);
    lag_metrics(&mut page, &lag::of(status).standbys);
    traffic(&mut page, status);
    backups(&mut page, status);
    page.text
}

/// Lag alone: what `walship lag --format prometheus` prints, for a textfile collector.
pub fn lag(report: &LagReport) -> String {
    let mut page = Page::default();
    alarms(&mut page, report.alarms.len());
    lag_metrics(&mut page, &report.standbys);
    page.text
}

fn alarms(page: &mut Page, count: usize) {
    page.one(
        "walship_alarms",
        "How many things a person must act on now: critical above zero.",
        count as f64,
    );
}

fn node(page: &mut Page, status: &Status) {
    let (node, primary) = (&status.node, &status.primary);
    let labels = vec![
        ("node", node.name.clone()),
        ("role", node.role.name().to_owned()),
        ("version", node.walship_version.clone()),
        ("postgres_version", node.postgres_version.clone()),
        ("system_identifier", node.system_identifier.to_string()),
    ];
    page.gauge("walship_info", "What this node is.", [(labels, 1.0)]);
    page.one("walship_primary", "Whether this node is the primary.", flag(node.role == Role::Primary));
    page.one("walship_timeline", "The newest timeline in the store.", f64::from(node.timeline.0));
    page.one("walship_committed_epoch", "The epoch that was last committed.", node.committed_epoch as f64);
    alarms(page, warnings::alarms(status).len());
    let warnings = warnings::of(status).len() as f64;
    page.one("walship_warnings", "How many warnings `walship status` shows.", warnings);
    let flush = primary.flush_lsn.map_or(f64::NAN, |lsn| lsn.0 as f64);
    page.one("walship_primary_flush_lsn_bytes", "What the primary has flushed.", flush);
    let silence = primary.last_contact.map_or(f64::NAN, |last| status.taken_at.seconds_since(last));
    page.one("walship_primary_last_contact_seconds", "Age of the last word from the primary.", silence);
    if let Some(certificate) = status.certificate {
        let name = "walship_certificate_expiry_timestamp_seconds";
        page.one(name, "When this node's certificate ends.", certificate.expires.unix_micros as f64 / 1e6);
    }
}

fn commits(page: &mut Page, status: &Status) {
    let Some(commits) = &status.commits else { return };
    let lsn = |lsn: Option<Lsn>| lsn.map_or(f64::NAN, |lsn| lsn.0 as f64);
    let policy = commits.policy.iter().map(|policy| {
        let labels = vec![("policy", policy.text.clone()), ("stall_limit", policy.stall_limit.clone())];
        (labels, policy.serial as f64)
    });
    page.gauge("walship_policy_serial", "The acknowledgement policy in effect, by its number.", policy);
    let pending = flag(commits.pending.is_some());
    page.one(
        "walship_policy_pending",
        "Whether a weaker policy waits until a quorum has stored it.",
        pending,
    );
    let counts =
        commits.seats.iter().map(|seat| (vec![("member", seat.name.clone())], flag(seat.part == "yes")));
    page.gauge("walship_member_counts", "Whether a member's positions count for commits.", counts);
    let of = |seat: &Seat| {
        Level::ALL.map(|level| {
            let labels = vec![("member", seat.name.clone()), ("level", level.name().to_owned())];
            (labels, lsn(*seat.at.get(level)))
        })
    };
    let positions = commits.seats.iter().flat_map(of);
    page.gauge(
        "walship_member_lsn_bytes",
        "How far a member is at each level of synchronous_commit.",
        positions,
    );
    let released = commits.released.iter().flat_map(|released| {
        Level::ALL.map(|level| (vec![("level", level.name().to_owned())], lsn(*released.get(level))))
    });
    page.gauge("walship_released_lsn_bytes", "How far commits are released at each level.", released);
}

fn store(page: &mut Page, status: &Status) {
    let store = &status.store;
    page.one("walship_store_bytes", "What the store takes on disk.", store.disk_bytes as f64);
    page.one("walship_store_max_bytes", "What the store may take.", store.max_bytes as f64);
    let positions = [
        ("start", store.start),
        ("appended", store.appended),
        ("durable", store.durable),
        ("sealed", store.sealed),
    ];
    let positions = positions.map(|(name, lsn)| (vec![("position", name.to_owned())], lsn.0 as f64));
    page.gauge("walship_store_lsn_bytes", "Positions of the store.", positions);
    let holds = store.holds.iter().map(|hold| (vec![("holder", hold.who.clone())], hold.lsn.0 as f64));
    page.gauge("walship_store_hold_lsn_bytes", "From where somebody keeps WAL in the store.", holds);
}

fn lag_metrics(page: &mut Page, standbys: &[StandbyLag]) {
    let stages = |value: fn(Behind) -> f64| {
        let of = move |standby: &StandbyLag, stage: Stage| {
            let labels = vec![("standby", standby.name.clone()), ("stage", stage.name().to_owned())];
            (labels, value(standby.stage(stage)))
        };
        standbys.iter().flat_map(move |standby| Stage::ALL.map(|stage| of(standby, stage)))
    };
    let bytes = stages(|behind| number(behind.bytes, |bytes| bytes as f64));
    page.gauge("walship_lag_bytes", "How far a standby is behind; a lower bound while it is cut off.", bytes);
    let seconds = stages(|behind| number(behind.time, |time| time.as_secs_f64()));
    let help = "Age of the oldest WAL a standby lacks; a lower bound while it is cut off.";
    page.gauge("walship_lag_seconds", help, seconds);
    let known =
        stages(|behind| flag(matches!((behind.bytes, behind.time), (Amount::Known(_), Amount::Known(_)))));
    page.gauge("walship_lag_known", "Whether lag in bytes and in seconds are both exact.", known);
    let each = |value: fn(Link) -> f64| {
        standbys.iter().map(move |standby| (vec![("standby", standby.name.clone())], value(standby.link)))
    };
    let connected = each(|link| flag(matches!(link, Link::Up(_))));
    page.gauge("walship_standby_connected", "Whether a standby is heard.", connected);
    let silence = each(|link| match link {
        Link::Up(Some(age)) | Link::Cut(Some(age)) => age.as_secs_f64(),
        Link::Up(None) | Link::Cut(None) => f64::NAN,
    });
    page.gauge("walship_standby_last_contact_seconds", "Age of the last word.", silence);
}

fn traffic(page: &mut Page, status: &Status) {
    let peers = |value: fn(Traffic) -> u64| {
        let of = move |peer: &Downstream| (vec![("peer", peer.name.clone())], value(peer.traffic) as f64);
        status.downstreams.iter().map(of)
    };
    let (raw, wire) = (peers(|traffic| traffic.raw_bytes), peers(|traffic| traffic.wire_bytes));
    page.counter("walship_shipped_raw_bytes_total", "WAL shipped, before compression.", raw);
    page.counter("walship_shipped_wire_bytes_total", "WAL shipped, as it went over the wire.", wire);
    let upstream = |value: fn(Traffic) -> u64| {
        let of = move |up: &Upstream| (vec![("peer", up.name.clone())], value(up.traffic) as f64);
        status.upstream.iter().map(of)
    };
    let (raw, wire) = (upstream(|traffic| traffic.raw_bytes), upstream(|traffic| traffic.wire_bytes));
    page.counter("walship_received_raw_bytes_total", "WAL received, decompressed.", raw);
    page.counter("walship_received_wire_bytes_total", "WAL received, as it came over the wire.", wire);
}

fn backups(page: &mut Page, status: &Status) {
    let backups = |value: fn(&Backup) -> u64| {
        let of = move |(number, backup): (usize, &Backup)| {
            (vec![("client", backup.client.clone()), ("number", number.to_string())], value(backup) as f64)
        };
        status.backups.iter().enumerate().map(of)
    };
    let (done, total) = (backups(|backup| backup.done_bytes), backups(|backup| backup.total_bytes));
    let equal = backups(|backup| backup.equal_bytes);
    page.gauge("walship_backup_done_bytes", "Bytes that a running base backup has read.", done);
    page.gauge("walship_backup_equal_bytes", "Those of them that its client had already.", equal);
    page.gauge("walship_backup_total_bytes", "Bytes that a running base backup has to read.", total);
}

fn flag(value: bool) -> f64 {
    f64::from(u8::from(value))
}

fn number<T>(amount: Amount<T>, as_f64: impl Fn(T) -> f64) -> f64 {
    match amount {
        Amount::Known(value) | Amount::AtLeast(value) => as_f64(value),
        Amount::Unknown => f64::NAN,
    }
}

type Labels = Vec<(&'static str, String)>;

/// The page under construction: each metric once, with HELP and TYPE before its samples.
#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    fn one(&mut self, name: &str, help: &str, value: f64) {
        self.gauge(name, help, [(Labels::new(), value)]);
    }

    fn gauge(&mut self, name: &str, help: &str, samples: impl IntoIterator<Item = (Labels, f64)>) {
        self.metric(name, "gauge", help, samples);
    }

    fn counter(&mut self, name: &str, help: &str, samples: impl IntoIterator<Item = (Labels, f64)>) {
        self.metric(name, "counter", help, samples);
    }

    /// A metric without samples is left out altogether.
    fn metric(
        &mut self,
        name: &str,
        kind: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels, f64)>,
    ) {
        let mut declared = false;
        for (labels, value) in samples {
            if !std::mem::replace(&mut declared, true) {
                let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
            }
            let labels: Vec<String> =
                labels.iter().map(|(label, value)| format!("{label}=\"{}\"", escaped(value))).collect();
            let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
            let _ = writeln!(self.text, "{name}{labels} {value}");
        }
    }
}

/// A label's value: backslash, quote and line end are escaped.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_values_are_escaped_and_empty_metrics_left_out() {
        let mut page = Page::default();
        page.gauge("a_bytes", "Some.", [(vec![("who", "a\\b\"c\nd".to_owned())], f64::NAN)]);
        page.counter("b_total", "None.", []);
        assert_eq!(
            page.text,
            "# HELP a_bytes Some.\n# TYPE a_bytes gauge\na_bytes{who=\"a\\\\b\\\"c\\nd\"} NaN\n"
        );
    }

    #[test]
    fn every_metric_is_declared_once() {
        let text = status(&super::super::tests::status());
        let mut declared: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
        let samples = text.lines().filter(|line| !line.starts_with('#')).count();
        assert!(samples >= declared.len());
        let count = declared.len();
        declared.sort_unstable();
        declared.dedup();
        assert_eq!(declared.len(), count);
    }
}
