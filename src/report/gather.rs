//! A [`Status`] from the numbers that the stages write and what the daemon knows besides.

use std::time::Instant;

use super::{
    Ancestor, Backup, Certificate, Commits, Downstream, Feed, Member, Node, PrimaryEnd, Progress, Promotion,
    Role, Seeding, Status, StoreFacts, Traffic, Upstream, catch_up, samples,
};
use crate::clock::WallTime;
use crate::pg::{Lsn, TimelineId};
use crate::vitals::{CaptureVitals, Contact, FeedVitals, ReceiveVitals, Vitals};

/// What is not in the vitals.
#[derive(Clone, Debug)]
pub struct About {
    /// This node.
    pub node: Node,
    /// Its log.
    pub store: StoreFacts,
    /// What one segment holds: a standby that lacks no more is in step.
    pub segment_bytes: u64,
    /// Where the timelines before the newest ended.
    pub ancestors: Vec<Ancestor>,
    /// The way of the WAL to this node, from this node up, and whether it begins at a primary.
    pub route: (Vec<String>, bool),
    /// The member list.
    pub members: Vec<Member>,
    /// What commits wait for.
    pub commits: Option<Commits>,
    /// The copy that is being taken.
    pub seeding: Option<Seeding>,
    /// This node's certificate.
    pub certificate: Option<Certificate>,
    /// The newest promotion whose record is here.
    pub last_promotion: Option<Promotion>,
    /// What the daemon found that a person must act on now.
    pub alarms: Vec<String>,
    /// What the daemon found wrong.
    pub warnings: Vec<String>,
}

/// The status of this moment.
pub fn status(about: About, vitals: &Vitals) -> Status {
    let now = Now { wall: WallTime::now(), instant: Instant::now() };
    let role = about.node.role;
    let standby = role == Role::Standby;
    let segment_bytes = about.segment_bytes;
    let mut status = Status {
        taken_at: now.wall,
        primary: now.primary_end(&about, vitals),
        upstream: standby.then(|| now.upstream(vitals.receive.get(), about.route)),
        feed: standby.then(|| now.feed(vitals.feed.get())),
        downstreams: now.downstreams(vitals),
        catching_up: Vec::new(),
        backups: backups(vitals),
        seeding: about.seeding,
        node: about.node,
        store: about.store,
        members: about.members,
        commits: about.commits,
        certificate: about.certificate,
        last_promotion: about.last_promotion,
        alarms: about.alarms,
        warnings: about.warnings,
        samples: Vec::new(),
    };
    if standby {
        forget_those_elsewhere(&mut status);
    }
    status.samples = samples::telling(&vitals.samples.all(), positions(&status));
    status.catching_up = catch_up::of(&status, &vitals.trails.get(), segment_bytes);
    status
}

/// A node that left a standby for another upstream is not missed there: the primary knows better how it is.
fn forget_those_elsewhere(status: &mut Status) {
    let members = &status.members;
    let is_elsewhere = |peer: &Downstream| {
        let member = members.iter().find(|member| member.name == peer.name);
        member.is_some_and(|member| member.last_contact > peer.last_contact)
    };
    status.downstreams.retain(|peer| matches!(peer.contact, Contact::Up { .. }) || !is_elsewhere(peer));
}

/// Every position that a standby may be measured by. One past a fork is measured by the fork.
fn positions(status: &Status) -> Vec<Lsn> {
    let own = std::iter::once(status.own_progress());
    let downstreams = status.downstreams.iter().map(|peer| peer.progress);
    let members = status.members.iter().map(|member| member.progress);
    let reached = own
        .chain(downstreams)
        .chain(members)
        .flat_map(|progress| [progress.shipped, progress.flushed, progress.replayed])
        .flatten();
    reached.chain(status.primary.ancestors.iter().map(|ancestor| ancestor.end_lsn)).collect()
}

/// One moment, by both clocks.
struct Now {
    wall: WallTime,
    instant: Instant,
}

impl Now {
    /// When an instant was, by the wall clock of this moment: so an age stays right when that clock is set.
    fn wall(&self, instant: Instant) -> WallTime {
        let ago = self.instant.saturating_duration_since(instant).as_micros();
        let ago = i64::try_from(ago).unwrap_or(i64::MAX);
        WallTime { unix_micros: self.wall.unix_micros.saturating_sub(ago) }
    }

    fn primary_end(&self, about: &About, vitals: &Vitals) -> PrimaryEnd {
        match about.node.role {
            Role::Primary | Role::Superseded => self.local_primary(about, vitals.capture.get()),
            Role::Standby | Role::Reader => self.remote_primary(about, vitals.receive.get()),
        }
    }

    fn local_primary(&self, about: &About, capture: CaptureVitals) -> PrimaryEnd {
        PrimaryEnd {
            contact: capture.contact,
            last_contact: capture.last_heard.map(|heard| self.wall(heard)),
            timeline: about.node.timeline,
            ancestors: about.ancestors.clone(),
            flush_lsn: known(capture.server_flush_lsn),
            clock: Some(self.wall),
        }
    }

    /// A standby hears of the primary by heartbeats: the last one's arrival is the last contact, and its time plus
    /// what has passed since is the primary's clock.
    fn remote_primary(&self, about: &About, receive: ReceiveVitals) -> PrimaryEnd {
        let clock = receive.server_time.map(|(time, arrived)| {
            let since = self.instant.saturating_duration_since(arrived).as_micros();
            let since = i64::try_from(since).unwrap_or(i64::MAX);
            WallTime { unix_micros: time.unix_micros.saturating_add(since) }
        });
        PrimaryEnd {
            contact: receive.contact,
            last_contact: receive.server_time.map(|(_, arrived)| self.wall(arrived)),
            timeline: about.node.timeline,
            ancestors: about.ancestors.clone(),
            flush_lsn: known(receive.server_flush_lsn),
            clock,
        }
    }

    fn upstream(&self, receive: ReceiveVitals, (route, from_primary): (Vec<String>, bool)) -> Upstream {
        Upstream {
            name: receive.upstream,
            address: receive.upstream_address,
            contact: receive.contact,
            last_contact: receive.last_heard.map(|heard| self.wall(heard)),
            traffic: Traffic { raw_bytes: receive.raw_bytes, wire_bytes: receive.wire_bytes },
            route,
            from_primary,
        }
    }

    fn feed(&self, feed: FeedVitals) -> Feed {
        let is_up = matches!(feed.contact, Contact::Up { .. });
        Feed {
            contact: feed.contact,
            last_contact: feed.last_heard.map(|heard| self.wall(heard)),
            sent: known(feed.sent_lsn),
            flushed: known(feed.flushed_lsn),
            replayed: known(feed.replayed_lsn).filter(|_| is_up),
        }
    }

    fn downstreams(&self, vitals: &Vitals) -> Vec<Downstream> {
        let of = |(name, peer): (String, crate::vitals::DownstreamVitals)| Downstream {
            name,
            address: peer.address,
            via: peer.via.map(|via| via.upstream),
            contact: peer.contact,
            last_contact: peer.last_heard.map(|heard| self.wall(heard)).or(peer.last_heard_at),
            progress: progress(peer.timeline, peer.shipped_lsn, peer.flushed_lsn, peer.replayed_lsn),
            traffic: Traffic { raw_bytes: peer.raw_bytes, wire_bytes: peer.wire_bytes },
        };
        vitals.downstreams.get().into_iter().map(of).collect()
    }
}

fn backups(vitals: &Vitals) -> Vec<Backup> {
    let of = |backup: crate::vitals::BackupVitals| Backup {
        client: backup.client,
        phase: backup.phase.to_owned(),
        start_lsn: backup.start_lsn,
        done_bytes: backup.done_bytes,
        equal_bytes: backup.equal_bytes,
        total_bytes: backup.total_bytes,
    };
    vitals.backups.get().into_values().map(of).collect()
}

/// Positions as a stage has them, where zero means that nothing is known.
pub fn progress(timeline: Option<TimelineId>, shipped: Lsn, flushed: Lsn, replayed: Lsn) -> Progress {
    Progress { timeline, shipped: known(shipped), flushed: known(flushed), replayed: known(replayed) }
}

fn known(lsn: Lsn) -> Option<Lsn> {
    lsn.is_valid().then_some(lsn)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::Duration;

    use super::*;
    use crate::report::lag::{self, Behind, Link};
    use crate::report::threshold::Amount;
    use crate::vitals::Sample;

    fn about(role: Role) -> About {
        About {
            node: Node {
                name: "db2".to_owned(),
                role,
                advertise: String::new(),
                walship_version: String::new(),
                system_identifier: 7,
                postgres_version: String::new(),
                promised_epoch: 0,
                committed_epoch: 0,
                timeline: TimelineId(1),
            },
            segment_bytes: 1 << 20,
            store: StoreFacts {
                directory: PathBuf::new(),
                start: Lsn(0),
                appended: Lsn(300),
                durable: Lsn(200),
                sealed: Lsn(0),
                disk_bytes: 0,
                max_bytes: 0,
                holds: Vec::new(),
            },
            ancestors: Vec::new(),
            route: (Vec::new(), true),
            members: Vec::new(),
            seeding: None,
            commits: None,
            certificate: None,
            last_promotion: None,
            alarms: Vec::new(),
            warnings: Vec::new(),
        }
    }

    #[test]
    fn a_standby_measures_by_the_primarys_clock() {
        let vitals = Vitals::default();
        // The primary's clock is a year away from ours; nothing may depend on ours.
        let primary_now = WallTime { unix_micros: WallTime::now().unix_micros - 31_536_000_000_000 };
        let at =
            |seconds_ago: i64| WallTime { unix_micros: primary_now.unix_micros - seconds_ago * 1_000_000 };
        for (lsn, seconds_ago) in [(100, 90), (150, 60), (250, 20), (300, 5)] {
            vitals.samples.push(Sample { lsn: Lsn(lsn), time: at(seconds_ago), after_gap: false });
        }
        let now = Instant::now();
        vitals.receive.update(|receive| {
            receive.contact = Contact::Up { since: WallTime::now() };
            receive.server_flush_lsn = Lsn(300);
            receive.server_time = Some((primary_now, now));
        });
        vitals.feed.update(|feed| {
            feed.contact = Contact::Up { since: WallTime::now() };
            feed.replayed_lsn = Lsn(100);
        });
        let status = status(about(Role::Standby), &vitals);
        let lag = &lag::of(&status).standbys[0];
        assert!(matches!(lag.link, Link::Up(_)));
        assert_eq!(lag.ship, Behind { bytes: Amount::Known(0), time: Amount::Known(Duration::ZERO) });
        let seconds = |behind: Behind| match behind.time {
            Amount::Known(time) => time.as_secs(),
            other => panic!("{other:?}"),
        };
        assert_eq!((lag.flush.bytes, seconds(lag.flush)), (Amount::Known(100), 20));
        assert_eq!((lag.replay.bytes, seconds(lag.replay)), (Amount::Known(200), 60));
    }
}
