//! What a node knows of itself and of the others, as plain facts; lag from them; one file per rendering.
//!
//! [`Status`] holds facts only: positions, times, names. What they mean (how far a standby is behind, whether that
//! is too far) is computed from a `Status` by [`lag`] and [`warnings`], which read no clock and do no I/O, so that
//! every rendering ([`table`], [`json`], [`nagios`], [`prometheus`]) says the same. What is not known is `None`
//! here and unknown there, never zero.

pub mod bare;
pub mod catch_up;
pub mod check;
pub mod commits;
pub mod gather;
pub mod http;
pub mod json;
pub mod lag;
pub mod nagios;
pub mod prometheus;
pub mod samples;
pub mod table;
pub mod threshold;
pub mod units;
pub mod wait;
pub mod warnings;

use std::path::PathBuf;

use crate::clock::WallTime;
use crate::pg::{Lsn, TimelineId};
use crate::vitals::{Contact, Sample};
pub use catch_up::CatchUp;
pub use commits::Commits;

/// All that a node knows at one moment, of itself and of the topology.
#[derive(Clone, PartialEq, Debug)]
pub struct Status {
    /// When, by this host's clock; every other time but those of [`Status::samples`] is by the same clock.
    pub taken_at: WallTime,
    /// This node.
    pub node: Node,
    /// Its log.
    pub store: StoreFacts,
    /// The primary's end of the WAL, as known here.
    pub primary: PrimaryEnd,
    /// The link to the upstream sidecar: a standby's.
    pub upstream: Option<Upstream>,
    /// The local PostgreSQL as it replays: a standby's.
    pub feed: Option<Feed>,
    /// The sidecars that are or were connected to this one.
    pub downstreams: Vec<Downstream>,
    /// Every node that the primary knows, as it last told; this node among them.
    pub members: Vec<Member>,
    /// The standbys that are heard and more than a segment behind: on the way to the end.
    pub catching_up: Vec<CatchUp>,
    /// Base backups that are running here.
    pub backups: Vec<Backup>,
    /// The copy of the primary that this node is being made of; `None` when it is whole.
    pub seeding: Option<Seeding>,
    /// What commits wait for; `None` before a policy is known here.
    pub commits: Option<Commits>,
    /// This node's certificate, when it has one.
    pub certificate: Option<Certificate>,
    /// The newest promotion whose record is here.
    pub last_promotion: Option<Promotion>,
    /// What the daemon found that a person must act on now; [`warnings::alarms`] adds what these facts show by
    /// themselves. While there is one, every report is critical.
    pub alarms: Vec<String>,
    /// What the daemon found wrong; [`warnings::of`] adds what these facts show by themselves.
    pub warnings: Vec<String>,
    /// When the WAL reached which position, by the primary's clock: as many as tell since when each position in
    /// here is behind ([`samples::telling`]).
    pub samples: Vec<Sample>,
}

/// Who a node is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// Its name, unique among the members.
    pub name: String,
    /// The part it plays.
    pub role: Role,
    /// Where peers reach it; empty when it listens nowhere.
    pub advertise: String,
    /// The version of walship.
    pub walship_version: String,
    /// The cluster's identity.
    pub system_identifier: u64,
    /// As PostgreSQL says it, such as `15.18`; empty before it was ever reached.
    pub postgres_version: String,
    /// The epoch it promised to.
    pub promised_epoch: u64,
    /// The epoch it last saw committed.
    pub committed_epoch: u64,
    /// The newest timeline in its store.
    pub timeline: TimelineId,
}

/// The part a node plays.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Its PostgreSQL writes the WAL.
    Primary,
    /// Its PostgreSQL replays it.
    Standby,
    /// It may ask and back up, and holds nothing.
    Reader,
    /// It was the primary until another was promoted, and follows nobody.
    Superseded,
}

/// The log of a node: what there is and what keeps it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoreFacts {
    /// Where it lies.
    pub directory: PathBuf,
    /// The first position kept.
    pub start: Lsn,
    /// The end of what was written.
    pub appended: Lsn,
    /// The end of what is fsynced.
    pub durable: Lsn,
    /// The end of the last complete segment.
    pub sealed: Lsn,
    /// What it takes on disk.
    pub disk_bytes: u64,
    /// What it may take.
    pub max_bytes: u64,
    /// Who keeps WAL from going, from which position.
    pub holds: Vec<Hold>,
}

/// Something that keeps WAL in the store.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hold {
    /// A member's name, or a backup in words.
    pub who: String,
    /// Everything from here is kept for it.
    pub lsn: Lsn,
}

/// The primary's end of the WAL: on the primary's node from its PostgreSQL, elsewhere from upstream.
#[derive(Clone, PartialEq, Debug)]
pub struct PrimaryEnd {
    /// The connection over which it is told.
    pub contact: Contact,
    /// When it was last told.
    pub last_contact: Option<WallTime>,
    /// The primary's timeline.
    pub timeline: TimelineId,
    /// Where the timelines before that one ended.
    pub ancestors: Vec<Ancestor>,
    /// What its PostgreSQL has flushed.
    pub flush_lsn: Option<Lsn>,
    /// The primary's clock at [`Status::taken_at`]: estimated from the last heartbeat when it is another host.
    pub clock: Option<WallTime>,
}

/// A timeline that was left for a later one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ancestor {
    /// Which.
    pub timeline: TimelineId,
    /// Where it ended.
    pub end_lsn: Lsn,
}

/// How far a node is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Progress {
    /// The timeline that the positions are on.
    pub timeline: Option<TimelineId>,
    /// Sent to it, or received by it, whoever tells.
    pub shipped: Option<Lsn>,
    /// Fsynced in its store.
    pub flushed: Option<Lsn>,
    /// Replayed by its PostgreSQL.
    pub replayed: Option<Lsn>,
}

/// WAL bytes that passed over a link.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Traffic {
    /// Before compression.
    pub raw_bytes: u64,
    /// As they went over the wire.
    pub wire_bytes: u64,
}

/// The link to the upstream sidecar.
#[derive(Clone, PartialEq, Debug)]
pub struct Upstream {
    /// Its node's name; empty before it was ever reached.
    pub name: String,
    /// Its address.
    pub address: String,
    /// How the link is doing.
    pub contact: Contact,
    /// When anything last arrived.
    pub last_contact: Option<WallTime>,
    /// What came over it.
    pub traffic: Traffic,
    /// The way of the WAL: this node, the upstream, the one that it follows, and so on, as far as it is known.
    pub route: Vec<String>,
    /// The last of them is the primary.
    pub from_primary: bool,
}

/// The local standby as it follows this sidecar.
#[derive(Clone, PartialEq, Debug)]
pub struct Feed {
    /// Its walreceiver's connection.
    pub contact: Contact,
    /// When it last sent a status message.
    pub last_contact: Option<WallTime>,
    /// Sent to it.
    pub sent: Option<Lsn>,
    /// Flushed by it.
    pub flushed: Option<Lsn>,
    /// Replayed by it.
    pub replayed: Option<Lsn>,
}

/// One downstream sidecar.
#[derive(Clone, PartialEq, Debug)]
pub struct Downstream {
    /// Its node's name.
    pub name: String,
    /// Where it connected from, or, behind a relay, where it is reached.
    pub address: String,
    /// Whom it follows, when that is a relay between this node and it.
    pub via: Option<String>,
    /// How the link is doing.
    pub contact: Contact,
    /// When it last said anything.
    pub last_contact: Option<WallTime>,
    /// How far it is.
    pub progress: Progress,
    /// What went over the link.
    pub traffic: Traffic,
}

/// A node as the primary knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// The part it plays.
    pub role: Role,
    /// Where peers reach it.
    pub advertise: String,
    /// Whom it follows, as the primary knows; `None` when nobody, or it is not known.
    pub upstream: Option<String>,
    /// How far it is.
    pub progress: Progress,
    /// When the primary, or this node, last heard from it.
    pub last_contact: Option<WallTime>,
}

/// A running base backup.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Backup {
    /// Who takes it.
    pub client: String,
    /// What it is doing, in words.
    pub phase: String,
    /// WAL from here stays for it.
    pub start_lsn: Lsn,
    /// Bytes read so far.
    pub done_bytes: u64,
    /// Those of them that were not sent: the client had them already.
    pub equal_bytes: u64,
    /// Bytes to read.
    pub total_bytes: u64,
}

/// A data directory that is being made, or made whole.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seeding {
    /// What is being done, in words.
    pub phase: String,
    /// Bytes of files that are as at the source.
    pub done_bytes: u64,
    /// Those of them that were here already.
    pub equal_bytes: u64,
    /// Bytes of files in all; zero when not yet known.
    pub total_bytes: u64,
    /// Bytes that came over the wire for the others.
    pub wire_bytes: u64,
    /// How often it was begun.
    pub attempts: u32,
}

/// A node's own certificate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Certificate {
    /// When it ends.
    pub expires: WallTime,
}

/// A promotion that was committed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Promotion {
    /// Its epoch.
    pub epoch: u64,
    /// Who was promoted.
    pub node: String,
    /// When.
    pub committed_at: WallTime,
    /// What it cost, in words.
    pub verdict: String,
}

impl Status {
    /// How far this node itself is.
    pub fn own_progress(&self) -> Progress {
        let known = |lsn: Lsn| lsn.is_valid().then_some(lsn);
        Progress {
            timeline: Some(self.node.timeline),
            shipped: known(self.store.appended),
            flushed: known(self.store.durable),
            replayed: self.feed.as_ref().and_then(|feed| feed.replayed),
        }
    }

    /// All WAL that left this node for others.
    pub fn shipped_traffic(&self) -> Traffic {
        self.downstreams.iter().fold(Traffic::default(), |sum, downstream| Traffic {
            raw_bytes: sum.raw_bytes + downstream.traffic.raw_bytes,
            wire_bytes: sum.wire_bytes + downstream.traffic.wire_bytes,
        })
    }
}

impl Traffic {
    /// How many raw bytes one byte on the wire carried; `None` before the first.
    pub fn ratio(self) -> Option<f64> {
        (self.wire_bytes > 0).then(|| self.raw_bytes as f64 / self.wire_bytes as f64)
    }
}

impl Role {
    /// In one word.
    pub fn name(self) -> &'static str {
        match self {
            Role::Primary => "primary",
            Role::Standby => "standby",
            Role::Reader => "reader",
            Role::Superseded => "superseded",
        }
    }
}

#[cfg(test)]
mod tests {
    //! One status and its renderings, as files: `fixtures/status/`. `UPDATE=1 cargo test --lib report` rewrites them.

    use std::path::PathBuf;

    use super::threshold::Limits;
    use super::{Status, json, lag, nagios, prometheus, table};

    fn fixture(name: &str) -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/status").join(name)
    }

    fn read(name: &str) -> Status {
        json::decode(&std::fs::read(fixture(name)).unwrap()).unwrap()
    }

    /// The status that the fixtures show: a primary with a standby that follows, one that is cut off, and a reader.
    pub(super) fn status() -> Status {
        read("status.json")
    }

    /// A standby that is cut off.
    pub(super) fn standby() -> Status {
        read("standby.json")
    }

    fn compare(name: &str, rendered: &str) {
        if std::env::var_os("UPDATE").is_some() {
            // At once, for other tests read them meanwhile.
            crate::durable::write(&fixture(name), rendered.as_bytes()).unwrap();
        }
        let expected = std::fs::read_to_string(fixture(name)).unwrap_or_default();
        assert_eq!(rendered, expected, "{name} differs; UPDATE=1 rewrites it");
    }

    fn limits() -> Limits {
        Limits::new(Some("64MiB,30s".parse().unwrap()), Some("1GiB,5m".parse().unwrap())).unwrap()
    }

    #[test]
    fn one_status_and_its_renderings() {
        let status = status();
        let report = lag::of(&status);
        compare("status.json", &json::render(&status).unwrap());
        compare("status.txt", &table::status(&status));
        compare("metrics.prom", &prometheus::status(&status));
        compare("lag.txt", &table::lag(&report, &limits()));
        compare("lag.json", &json::lag(&report, &limits()).unwrap());
        compare("lag.nagios", &nagios::render(&report, &limits()));
    }

    #[test]
    fn a_standby_that_is_cut_off_says_at_least() {
        let status = standby();
        compare("standby.json", &json::render(&status).unwrap());
        compare("standby.txt", &table::status(&status));
    }

    #[test]
    fn tables_fit_a_hundred_columns() {
        let status = status();
        let cut_off = table::status(&standby());
        for text in [table::status(&status), cut_off, table::lag(&lag::of(&status), &limits())] {
            let wide: Vec<&str> = text.lines().filter(|line| line.chars().count() > 100).collect();
            assert!(wide.is_empty() && text.is_ascii(), "{wide:#?}");
        }
    }
}
