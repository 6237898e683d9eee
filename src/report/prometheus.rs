//! Status and lag in Prometheus' text format.
//!
//! Every metric carries its unit in its name: base units, and `_total` for what only grows. What is not known is
//! absent, so that a series never shows a value that nobody measured; `walship_lag_known` is always there to alert on.

use std::fmt::Write;

use super::commits::{Commits, Exposures, Seat, Window};
use super::lag::{self, Behind, LagReport, Link, Stage, StandbyLag};
use super::threshold::Amount;
use super::{Backup, CatchUp, Downstream, Role, Status, Traffic, Upstream, warnings};
use crate::pg::{Level, Lsn};
use crate::vitals::Contact;

/// The whole status: what `/metrics` serves.
pub fn status(status: &Status) -> String {
    let mut page = Page::default();
    node(&mut page, status);
    commits(&mut page, status);
    store(&mut page, status);
    lag_metrics(&mut page, &lag::of(status).standbys);
    catching_up(&mut page, status);
    traffic(&mut page, status);
    backups(&mut page, status);
    seeding(&mut page, status);
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
    page.gauge("walship_info", "What this node is.", [(labels, Some(1.0))]);
    page.one("walship_primary", "Whether this node is the primary.", flag(node.role == Role::Primary));
    page.one("walship_timeline", "The newest timeline in the store.", f64::from(node.timeline.0));
    page.one("walship_committed_epoch", "The epoch that was last committed.", node.committed_epoch as f64);
    let last = status
        .last_promotion
        .iter()
        .map(|last| (vec![("node", last.node.clone())], Some(last.committed_at.unix_micros as f64 / 1e6)));
    let help = "When the newest promotion was committed that is known here.";
    page.gauge("walship_last_promotion_timestamp_seconds", help, last);
    alarms(page, warnings::alarms(status).len());
    let warnings = warnings::of(status).len() as f64;
    page.one("walship_warnings", "How many warnings `walship status` shows.", warnings);
    let flush = primary.flush_lsn.map(|lsn| lsn.0 as f64);
    page.maybe("walship_primary_flush_lsn_bytes", "What the primary has flushed.", flush);
    let silence = primary.last_contact.map(|last| status.taken_at.seconds_since(last));
    page.maybe("walship_primary_last_contact_seconds", "Age of the last word from the primary.", silence);
    let local = status.feed.as_ref().map_or(&primary.contact, |feed| &feed.contact);
    let is_connected = flag(matches!(local, Contact::Up { .. }));
    page.one(
        "walship_postgres_connected",
        "Whether WAL flows from or to the local PostgreSQL.",
        is_connected,
    );
    let expiry = status.certificate.map(|certificate| certificate.expires.unix_micros as f64 / 1e6);
    let name = "walship_certificate_expiry_timestamp_seconds";
    page.maybe(name, "When this node's certificate ends.", expiry);
}

/// Commits that go on unprotected, now and so far.
fn exposures(page: &mut Page, status: &Status, commits: &Commits) {
    let open = commits.exposure.as_ref();
    page.one("walship_exposed", "Whether commits go on unprotected at this moment.", flag(open.is_some()));
    let seconds = open.map_or(0.0, |window| status.taken_at.seconds_since(window.opened_at));
    page.one("walship_exposed_seconds", "For how long they have done so; zero while they do not.", seconds);
    let so_far = |window: &Window| status.store.durable.0.saturating_sub(window.from_lsn.0);
    let bytes = open.map_or(0, so_far) as f64;
    page.one("walship_exposed_bytes", "The WAL since then; zero while they do not.", bytes);
    let Exposures { windows, closed_millis, closed_bytes } = commits.exposures;
    let one = |value| [(Labels::new(), Some(value))];
    page.counter("walship_exposures_total", "How often commits went on unprotected.", one(windows as f64));
    let help = "How long exposures lasted that are over.";
    page.counter("walship_exposures_seconds_total", help, one(closed_millis as f64 / 1e3));
    let help = "The WAL in exposures that are over.";
    page.counter("walship_exposures_bytes_total", help, one(closed_bytes as f64));
}

fn commits(page: &mut Page, status: &Status) {
    let Some(commits) = &status.commits else { return };
    let lsn = |lsn: Option<Lsn>| lsn.map(|lsn| lsn.0 as f64);
    let policy = commits.policy.iter().map(|policy| {
        let labels = vec![("policy", policy.text.clone()), ("stall_limit", policy.stall_limit.clone())];
        (labels, Some(policy.serial as f64))
    });
    page.gauge("walship_policy_serial", "The acknowledgement policy in effect, by its number.", policy);
    if let Some(setting) = &commits.setting {
        let help = "Whether PostgreSQL's synchronous_standby_names names walship.";
        page.one("walship_postgres_waits", help, flag(setting.names_us));
    }
    exposures(page, status, commits);
    let pending = flag(commits.pending.is_some());
    page.one(
        "walship_policy_pending",
        "Whether a weaker policy waits until a quorum has stored it.",
        pending,
    );
    let counts = commits
        .seats
        .iter()
        .map(|seat| (vec![("member", seat.name.clone())], Some(flag(seat.part == "yes"))));
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
    let max_bytes = (store.max_bytes > 0).then_some(store.max_bytes as f64);
    page.maybe("walship_store_max_bytes", "What the store may take.", max_bytes);
    let positions = [
        ("start", store.start),
        ("appended", store.appended),
        ("durable", store.durable),
        ("sealed", store.sealed),
    ];
    let known = |lsn: Lsn| lsn.is_valid().then_some(lsn.0 as f64);
    let positions = positions.map(|(name, lsn)| (vec![("position", name.to_owned())], known(lsn)));
    page.gauge("walship_store_lsn_bytes", "Positions of the store.", positions);
    let holds = store.holds.iter().map(|hold| (vec![("holder", hold.who.clone())], Some(hold.lsn.0 as f64)));
    page.gauge("walship_store_hold_lsn_bytes", "From where somebody keeps WAL in the store.", holds);
}

fn lag_metrics(page: &mut Page, standbys: &[StandbyLag]) {
    let stages = |value: fn(Behind) -> Option<f64>| {
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
    let known = stages(|behind| {
        Some(flag(matches!((behind.bytes, behind.time), (Amount::Known(_), Amount::Known(_)))))
    });
    page.gauge("walship_lag_known", "Whether lag in bytes and in seconds are both exact.", known);
    let each = |value: fn(Link) -> Option<f64>| {
        standbys.iter().map(move |standby| (vec![("standby", standby.name.clone())], value(standby.link)))
    };
    let connected = each(|link| Some(flag(matches!(link, Link::Up(_)))));
    page.gauge("walship_standby_connected", "Whether a standby is heard.", connected);
    let silence = each(|link| match link {
        Link::Up(age) | Link::Cut(age) => age.map(|age| age.as_secs_f64()),
    });
    page.gauge("walship_standby_last_contact_seconds", "Age of the last word.", silence);
}

fn catching_up(page: &mut Page, status: &Status) {
    let each = |value: fn(&CatchUp) -> Option<f64>| {
        let of = move |way: &CatchUp| (vec![("standby", way.standby.clone())], value(way));
        status.catching_up.iter().map(of)
    };
    let behind = each(|way| Some(way.behind_bytes as f64));
    page.gauge(
        "walship_catching_up_bytes",
        "What a standby lacks that is more than a segment behind.",
        behind,
    );
    let rate = each(|way| way.bytes_per_second.map(|rate| rate as f64));
    page.gauge("walship_catching_up_bytes_per_second", "How fast it gets WAL, over half a minute.", rate);
    let left = each(|way| way.left.map(|left| left.as_secs_f64()));
    page.gauge("walship_catching_up_seconds", "When it is in step if all goes on so; absent if not.", left);
}

fn traffic(page: &mut Page, status: &Status) {
    let follows = status.members.iter().filter_map(|member| {
        let labels = vec![("standby", member.name.clone()), ("upstream", member.upstream.clone()?)];
        Some((labels, Some(1.0)))
    });
    page.gauge("walship_standby_upstream_info", "Whom a standby follows, as the primary knows.", follows);
    let peers = |value: fn(Traffic) -> u64| {
        let of =
            move |peer: &Downstream| (vec![("peer", peer.name.clone())], Some(value(peer.traffic) as f64));
        // What one behind a relay gets was counted there.
        status.downstreams.iter().filter(|peer| peer.via.is_none()).map(of)
    };
    let (raw, wire) = (peers(|traffic| traffic.raw_bytes), peers(|traffic| traffic.wire_bytes));
    page.counter("walship_shipped_raw_bytes_total", "WAL shipped, before compression.", raw);
    page.counter("walship_shipped_wire_bytes_total", "WAL shipped, as it went over the wire.", wire);
    let upstream = |value: fn(Traffic) -> u64| {
        let of = move |up: &Upstream| (vec![("peer", up.name.clone())], Some(value(up.traffic) as f64));
        status.upstream.iter().map(of)
    };
    let (raw, wire) = (upstream(|traffic| traffic.raw_bytes), upstream(|traffic| traffic.wire_bytes));
    page.counter("walship_received_raw_bytes_total", "WAL received, decompressed.", raw);
    page.counter("walship_received_wire_bytes_total", "WAL received, as it came over the wire.", wire);
}

fn seeding(page: &mut Page, status: &Status) {
    let Some(seeding) = &status.seeding else { return };
    let bytes = [
        ("done", seeding.done_bytes),
        ("equal", seeding.equal_bytes),
        ("total", seeding.total_bytes),
        ("wire", seeding.wire_bytes),
    ];
    let bytes = bytes.map(|(what, bytes)| (vec![("what", what.to_owned())], Some(bytes as f64)));
    let help = "The copy that this node is being made of; absent when it is whole.";
    page.gauge("walship_seeding_bytes", help, bytes);
}

fn backups(page: &mut Page, status: &Status) {
    let backups = |value: fn(&Backup) -> u64| {
        let of = move |(number, backup): (usize, &Backup)| {
            let labels = vec![("client", backup.client.clone()), ("number", number.to_string())];
            (labels, Some(value(backup) as f64))
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

fn number<T>(amount: Amount<T>, as_f64: impl Fn(T) -> f64) -> Option<f64> {
    match amount {
        Amount::Known(value) | Amount::AtLeast(value) => Some(as_f64(value)),
        Amount::Unknown => None,
    }
}

type Labels = Vec<(&'static str, String)>;

/// The page under construction: each metric once, with HELP and TYPE before its samples.
#[derive(Default)]
struct Page {
    text: String,
}

/// A series' labels, and its value if that is known.
type Sample = (Labels, Option<f64>);

impl Page {
    fn one(&mut self, name: &str, help: &str, value: f64) {
        self.maybe(name, help, Some(value));
    }

    fn maybe(&mut self, name: &str, help: &str, value: Option<f64>) {
        self.gauge(name, help, [(Labels::new(), value)]);
    }

    fn gauge(&mut self, name: &str, help: &str, samples: impl IntoIterator<Item = Sample>) {
        self.metric(name, "gauge", help, samples);
    }

    fn counter(&mut self, name: &str, help: &str, samples: impl IntoIterator<Item = Sample>) {
        self.metric(name, "counter", help, samples);
    }

    /// A metric of which nothing is known is left out altogether.
    fn metric(&mut self, name: &str, kind: &str, help: &str, samples: impl IntoIterator<Item = Sample>) {
        let known = samples.into_iter().filter_map(|(labels, value)| Some((labels, value?)));
        for (index, (labels, value)) in known.enumerate() {
            if index == 0 {
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
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn label_values_are_escaped_and_what_is_not_known_is_left_out() {
        let mut page = Page::default();
        let labels = |who: &str| vec![("who", who.to_owned())];
        page.gauge("a_bytes", "Some.", [(labels("x"), None), (labels("a\\b\"c\nd"), Some(1.5))]);
        page.gauge("c_bytes", "Unknown.", [(Labels::new(), None)]);
        page.counter("b_total", "None.", []);
        assert_eq!(
            page.text,
            "# HELP a_bytes Some.\n# TYPE a_bytes gauge\na_bytes{who=\"a\\\\b\\\"c\\nd\"} 1.5\n"
        );
    }

    /// Checks a page as a scraper reads it, and the names by Prometheus' conventions; the kinds by name.
    fn kinds(text: &str) -> BTreeMap<&str, &str> {
        let mut kinds = BTreeMap::new();
        let mut lines = text.lines().peekable();
        while let Some(line) = lines.next() {
            let (name, help) = line.strip_prefix("# HELP ").unwrap().split_once(' ').unwrap();
            let declaration = lines.next().unwrap().strip_prefix("# TYPE ").unwrap();
            let (of, kind) = declaration.split_once(' ').unwrap();
            assert!(of == name && help.ends_with('.') && name.starts_with("walship_"), "{line}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{name} is a {kind}");
            assert!(kinds.insert(name, kind).is_none(), "{name} is declared twice");
            let mut samples = 0;
            while let Some(sample) = lines.next_if(|line| !line.starts_with('#')) {
                let (series, value) = sample.rsplit_once(' ').unwrap();
                assert_eq!(series.split('{').next(), Some(name), "{sample}");
                assert!(value.parse::<f64>().unwrap().is_finite(), "{sample}");
                samples += 1;
            }
            assert!(samples > 0, "{name} has no samples");
        }
        kinds
    }

    #[test]
    fn every_page_is_well_formed_and_every_unit_a_base_unit() {
        let primary = super::super::tests::status();
        let mut empty = primary.clone();
        (empty.primary.flush_lsn, empty.primary.last_contact, empty.certificate) = (None, None, None);
        (empty.store.appended, empty.store.max_bytes) = (Lsn::INVALID, 0);
        let standby = super::super::tests::standby();
        for (page, least) in [(status(&primary), 20), (status(&empty), 15), (status(&standby), 15)] {
            let kinds = kinds(&page);
            assert!(kinds.len() > least, "{kinds:?}");
            let other_units = ["ms", "millis", "minutes", "kb", "mb", "percent", "ratio"];
            let is_base = |name: &&str| !name.split('_').any(|word| other_units.contains(&word));
            assert!(kinds.keys().all(is_base), "{kinds:?}");
        }
        assert!(!status(&empty).contains("walship_primary_flush_lsn_bytes"));
        assert!(!status(&empty).contains("walship_store_max_bytes"));
        assert!(!status(&empty).contains("position=\"appended\""));
    }
}
