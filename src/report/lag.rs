//! How far each standby is behind, in bytes and in time; pure.
//!
//! Behind in bytes is the primary's flush position minus the standby's. Behind in time is the age of the oldest
//! position that the standby lacks, so an idle primary's standby is zero behind. When the primary is not heard any
//! more, time is at least the age of its last word, and bytes at least what was lacking then, unknown if nothing was.
//! Nothing in here turns "not known" into zero.

use std::time::Duration;

use super::samples::{self, Since};
use super::threshold::{Amount, Level, Limits};
use super::{Member, PrimaryEnd, Progress, Role, Status, warnings};
use crate::clock::WallTime;
use crate::pg::{Lsn, TimelineId};
use crate::vitals::{Contact, Sample};

/// Without a word for this long a link is taken for cut, whatever its socket says. Everybody who is alive says
/// something once a second.
pub const SILENCE_LIMIT: Duration = Duration::from_secs(10);

/// What of a standby's work is behind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// Getting WAL across.
    Ship,
    /// Having it on the standby's disk.
    Flush,
    /// Showing it to the standby's readers.
    Replay,
}

/// How far behind one stage is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Behind {
    /// In bytes of WAL.
    pub bytes: Amount<u64>,
    /// In time.
    pub time: Amount<Duration>,
}

/// Whether a standby, or the primary as a standby sees it, is heard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Link {
    /// Heard this long ago; `None` when it is connected and nobody tells when it last spoke.
    Up(Option<Duration>),
    /// Not heard any more for this long; `None` when never heard.
    Cut(Option<Duration>),
}

/// How far one standby is behind.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StandbyLag {
    /// Its name.
    pub name: String,
    /// Whether it is heard. While it is not, the stages stand as it last told them.
    pub link: Link,
    /// Getting WAL across.
    pub ship: Behind,
    /// Having it on disk.
    pub flush: Behind,
    /// Showing it to readers.
    pub replay: Behind,
}

/// How far all standbys are behind that somebody could speak for.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LagReport {
    /// One by one.
    pub standbys: Vec<StandbyLag>,
    /// What a person must act on now, whatever the standbys look like: lag that is small while nothing is captured
    /// any more is no good news.
    pub alarms: Vec<String>,
    /// What kept more from being known, with what mends it.
    pub notes: Vec<String>,
}

impl Stage {
    /// In the order of the data.
    pub const ALL: [Stage; 3] = [Stage::Ship, Stage::Flush, Stage::Replay];

    /// In one word.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Ship => "ship",
            Stage::Flush => "flush",
            Stage::Replay => "replay",
        }
    }
}

impl Behind {
    /// Nothing is known.
    pub const UNKNOWN: Behind = Behind { bytes: Amount::Unknown, time: Amount::Unknown };
}

impl StandbyLag {
    /// How far behind a stage is.
    pub fn stage(&self, stage: Stage) -> Behind {
        match stage {
            Stage::Ship => self.ship,
            Stage::Flush => self.flush,
            Stage::Replay => self.replay,
        }
    }

    /// The worst of its stages and its link.
    pub fn level(&self, limits: &Limits) -> Level {
        let silence = match self.link {
            Link::Up(_) => Level::Ok,
            Link::Cut(age) => limits.judge_silence(age),
        };
        Stage::ALL.into_iter().map(|stage| self.stage(stage)).fold(silence, |worst, behind| {
            worst.max(limits.judge_bytes(behind.bytes)).max(limits.judge_time(behind.time))
        })
    }
}

impl LagReport {
    /// The worst of the standbys, or critical while there is an alarm; without any standby it is unknown, for a check
    /// that has nothing to look at proves nothing.
    pub fn level(&self, limits: &Limits) -> Level {
        if !self.alarms.is_empty() {
            return Level::Critical;
        }
        self.standbys.iter().map(|standby| standby.level(limits)).max().unwrap_or(Level::Unknown)
    }
}

/// Every standby that this node can speak for: on a primary all members, on a standby itself and those it ships to.
pub fn of(status: &Status) -> LagReport {
    let alarms = warnings::alarms(status);
    if status.node.role == Role::Superseded {
        // Who followed it follows another, or is on the way there.
        let note = "this node was superseded and has no standbys any more: ask the new primary".to_owned();
        return LagReport { standbys: Vec::new(), alarms, notes: vec![note] };
    }
    let end = End::of(status);
    let mut standbys = Vec::new();
    if status.node.role == Role::Standby {
        let link = link(&status.primary.contact, status.primary.last_contact, status.taken_at);
        standbys.push(end.standby(&status.node.name, link, &status.own_progress()));
    }
    for downstream in &status.downstreams {
        let link = link(&downstream.contact, downstream.last_contact, status.taken_at);
        standbys.push(end.standby(&downstream.name, link, &downstream.progress));
    }
    if status.node.role == Role::Primary {
        for member in absent_standbys(status) {
            standbys.push(end.standby(&member.name, member_link(member, status.taken_at), &member.progress));
        }
    }
    LagReport { standbys, alarms, notes: Vec::new() }
}

/// Members that follow this primary, directly or not, and that no downstream speaks for.
fn absent_standbys(status: &Status) -> impl Iterator<Item = &Member> {
    let is_downstream = |name: &str| status.downstreams.iter().any(|downstream| downstream.name == name);
    status.members.iter().filter(move |member| {
        member.role == Role::Standby && member.name != status.node.name && !is_downstream(&member.name)
    })
}

/// Whether a member without a connection to this node is heard, through others: by its last word alone.
pub fn member_link(member: &Member, now: WallTime) -> Link {
    match member.last_contact.map(|last| age(last, now)) {
        Some(age) if age <= SILENCE_LIMIT => Link::Up(Some(age)),
        age => Link::Cut(age),
    }
}

/// How old at most is what this standby shows. Also while the primary is out of hearing: what it lacks was written
/// after the primary's last word, unless it lacked something already then. `None` when nobody knows.
pub fn shown_age_at_most(status: &Status) -> Option<Duration> {
    let end = End::of(status);
    let own = status.own_progress();
    let position = end.common(own.timeline?, own.replayed?)?;
    match (position >= end.lsn?, end.link) {
        (true, Link::Up(_)) => Some(Duration::ZERO),
        (true, Link::Cut(age)) => age,
        (false, _) => match end.age_of_lack(position) {
            Amount::Known(age) => Some(age),
            Amount::AtLeast(_) | Amount::Unknown => None,
        },
    }
}

/// Whether a peer is heard: its connection is up and it spoke within [`SILENCE_LIMIT`].
pub fn link(contact: &Contact, last_contact: Option<WallTime>, now: WallTime) -> Link {
    let Some(age) = last_contact.map(|last| age(last, now)) else { return Link::Cut(None) };
    match contact {
        Contact::Up { .. } if age <= SILENCE_LIMIT => Link::Up(Some(age)),
        _ => Link::Cut(Some(age)),
    }
}

/// How long ago something was; zero when a clock was set back in between.
pub fn age(then: WallTime, now: WallTime) -> Duration {
    Duration::from_micros(u64::try_from(now.unix_micros.saturating_sub(then.unix_micros)).unwrap_or(0))
}

/// The end of the WAL that standbys are measured against.
struct End<'a> {
    primary: &'a PrimaryEnd,
    link: Link,
    /// The newest position known of the primary.
    lsn: Option<Lsn>,
    samples: Vec<Sample>,
}

impl<'a> End<'a> {
    fn of(status: &'a Status) -> End<'a> {
        let primary = &status.primary;
        let link = link(&primary.contact, primary.last_contact, status.taken_at);
        let mut samples = status.samples.clone();
        // The end itself is the newest sample: told when the primary last spoke.
        if let (Some(lsn), Some(clock), Link::Up(Some(age)) | Link::Cut(Some(age))) =
            (primary.flush_lsn, primary.clock, link)
            && samples.last().is_none_or(|newest| newest.lsn < lsn)
        {
            let micros = i64::try_from(age.as_micros()).unwrap_or(i64::MAX);
            let time = WallTime { unix_micros: clock.unix_micros.saturating_sub(micros) };
            samples.push(Sample { lsn, time, after_gap: false });
        }
        let lsn = primary.flush_lsn.max(samples.last().map(|sample| sample.lsn));
        End { primary, link, lsn, samples }
    }

    fn standby(&self, name: &str, link: Link, progress: &Progress) -> StandbyLag {
        let behind = |lsn| self.behind(progress.timeline, lsn);
        StandbyLag {
            name: name.to_owned(),
            link,
            ship: behind(progress.shipped),
            flush: behind(progress.flushed),
            replay: behind(progress.replayed),
        }
    }

    fn behind(&self, timeline: Option<TimelineId>, lsn: Option<Lsn>) -> Behind {
        let position = timeline.zip(lsn).and_then(|(timeline, lsn)| self.common(timeline, lsn));
        let (Some(position), Some(end)) = (position, self.lsn) else {
            return Behind { time: self.silence(Duration::ZERO), ..Behind::UNKNOWN };
        };
        let bytes = end.bytes_since(position);
        let lacking = if bytes == 0 { Amount::Known(Duration::ZERO) } else { self.age_of_lack(position) };
        match self.link {
            Link::Up(_) => Behind { bytes: Amount::Known(bytes), time: lacking },
            Link::Cut(_) => Behind {
                bytes: if bytes == 0 { Amount::Unknown } else { Amount::AtLeast(bytes) },
                time: self.silence(match lacking {
                    Amount::Known(age) | Amount::AtLeast(age) => age,
                    Amount::Unknown => Duration::ZERO,
                }),
            },
        }
    }

    /// Since when something beyond `position` exists.
    fn age_of_lack(&self, position: Lsn) -> Amount<Duration> {
        let Some(clock) = self.primary.clock else { return Amount::Unknown };
        match samples::lacking_since(&self.samples, position) {
            Since::Exactly(time) => Amount::Known(age(time, clock)),
            Since::AtLatest(time) => Amount::AtLeast(age(time, clock)),
            Since::Unknown => Amount::Unknown,
        }
    }

    /// With the primary out of hearing: at least as long as that lasts, and as `lacking`.
    fn silence(&self, lacking: Duration) -> Amount<Duration> {
        match self.link {
            Link::Cut(Some(age)) => Amount::AtLeast(age.max(lacking)),
            Link::Cut(None) | Link::Up(_) => Amount::Unknown,
        }
    }

    /// The part of a node's log that is also the primary's: what lies past a fork does not count. `None` when its
    /// timeline is none that the primary came from.
    fn common(&self, timeline: TimelineId, lsn: Lsn) -> Option<Lsn> {
        if timeline == self.primary.timeline {
            return Some(lsn);
        }
        let ancestor = self.primary.ancestors.iter().find(|ancestor| ancestor.timeline == timeline)?;
        Some(lsn.min(ancestor.end_lsn))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::report::tests::status;
    use crate::report::threshold::Threshold;
    use crate::report::{Ancestor, Downstream, Traffic};

    const SECOND: i64 = 1_000_000;

    /// A moment in seconds; the tests' "now" is 1000.
    fn at(seconds: i64) -> WallTime {
        WallTime { unix_micros: seconds * SECOND }
    }

    fn up() -> Contact {
        Contact::Up { since: at(0) }
    }

    /// A primary whose WAL reached 100 at 100 s, 200 at 200 s, and so on to 900, and one standby.
    fn primary_with(progress: Progress, contact: Contact, last_contact: Option<WallTime>) -> Status {
        let downstream = Downstream {
            name: "db2".to_owned(),
            address: String::new(),
            via: None,
            contact,
            last_contact,
            progress,
            traffic: Traffic::default(),
        };
        Status {
            taken_at: at(1000),
            primary: PrimaryEnd {
                contact: up(),
                last_contact: Some(at(999)),
                timeline: TimelineId(1),
                ancestors: Vec::new(),
                flush_lsn: Some(Lsn(900)),
                clock: Some(at(1000)),
            },
            upstream: None,
            feed: None,
            downstreams: vec![downstream],
            members: Vec::new(),
            samples: (1..10)
                .map(|n| Sample { lsn: Lsn(n * 100), time: at(n as i64 * 100), after_gap: false })
                .collect(),
            ..status()
        }
    }

    fn progress(lsn: u64) -> Progress {
        let lsn = Some(Lsn(lsn));
        Progress { timeline: Some(TimelineId(1)), shipped: lsn, flushed: lsn, replayed: lsn }
    }

    fn only(status: &Status) -> StandbyLag {
        let mut all = of(status).standbys;
        assert_eq!(all.len(), 1);
        all.remove(0)
    }

    fn known(bytes: u64, seconds: u64) -> Behind {
        Behind { bytes: Amount::Known(bytes), time: Amount::Known(Duration::from_secs(seconds)) }
    }

    #[test]
    fn each_stage_by_itself() {
        let mut progress = progress(900);
        progress.flushed = Some(Lsn(850));
        progress.replayed = Some(Lsn(250));
        let lag = only(&primary_with(progress, up(), Some(at(1000))));
        assert_eq!((lag.ship, lag.flush, lag.replay), (known(0, 0), known(50, 100), known(650, 700)));
        assert_eq!(lag.link, Link::Up(Some(Duration::ZERO)));
    }

    #[test]
    fn an_idle_primary_ages_nobody() {
        let mut status = primary_with(progress(900), up(), Some(at(1000)));
        status.taken_at = at(100_000);
        status.primary.clock = Some(at(100_000));
        status.primary.last_contact = Some(at(99_999));
        status.downstreams[0].last_contact = Some(at(99_998));
        assert_eq!(only(&status).replay, known(0, 0));
    }

    #[test]
    fn wal_newer_than_the_last_sample_is_as_old_as_the_primarys_last_word() {
        let mut status = primary_with(progress(900), up(), Some(at(1000)));
        status.primary.flush_lsn = Some(Lsn(950));
        assert_eq!(only(&status).ship, known(50, 1));
    }

    #[test]
    fn samples_that_do_not_reach_back_give_a_lower_bound() {
        let lag = only(&primary_with(progress(50), up(), Some(at(1000))));
        let expected = Behind { bytes: Amount::Known(850), time: Amount::AtLeast(Duration::from_secs(900)) };
        assert_eq!(lag.ship, expected);
        let mut status = primary_with(progress(50), up(), Some(at(1000)));
        status.samples.clear();
        assert_eq!(only(&status).ship.time, Amount::AtLeast(Duration::from_secs(1)));
    }

    #[test]
    fn a_silent_standby_keeps_its_positions_and_is_never_fine() {
        for contact in [up(), Contact::Trying { since: at(900), error: None }] {
            let lag = only(&primary_with(progress(900), contact, Some(at(900))));
            assert_eq!((lag.link, lag.flush), (Link::Cut(Some(Duration::from_secs(100))), known(0, 0)));
            let level = |warn, crit| {
                let limit = |seconds| Threshold { bytes: None, time: Some(Duration::from_secs(seconds)) };
                lag.level(&Limits { warn: limit(warn), crit: limit(crit) })
            };
            assert_eq!(lag.level(&Limits::default()), Level::Unknown);
            assert_eq!(
                (level(200, 300), level(50, 300), level(50, 60)),
                (Level::Unknown, Level::Warning, Level::Critical)
            );
        }
    }

    #[test]
    fn a_standby_cut_off_says_at_least() {
        let mut status = primary_with(progress(900), up(), Some(at(1000)));
        status.downstreams.clear();
        status.node.role = Role::Standby;
        status.node.timeline = TimelineId(1);
        (status.store.appended, status.store.durable) = (Lsn(900), Lsn(650));
        status.primary.last_contact = Some(at(700));
        status.primary.clock = Some(at(1000));
        let lag = only(&status);
        assert_eq!(lag.link, Link::Cut(Some(Duration::from_secs(300))));
        // Nothing was lacking when the primary was last heard; since then, nobody knows.
        let silent = Amount::AtLeast(Duration::from_secs(300));
        assert_eq!(lag.ship, Behind { bytes: Amount::Unknown, time: silent });
        assert_eq!(lag.flush, Behind { bytes: Amount::AtLeast(250), time: silent });
        assert_eq!(lag.replay, Behind { bytes: Amount::Unknown, time: silent });
    }

    #[test]
    fn what_lies_past_a_fork_does_not_count() {
        let mut status = primary_with(progress(800), up(), Some(at(1000)));
        status.primary.timeline = TimelineId(2);
        assert_eq!(only(&status).ship, Behind::UNKNOWN, "a timeline nobody knows");
        status.primary.ancestors = vec![Ancestor { timeline: TimelineId(1), end_lsn: Lsn(500) }];
        assert_eq!(only(&status).ship, known(400, 400));
    }

    #[test]
    fn a_member_that_never_came_and_a_check_without_standbys_are_unknown() {
        let mut status = primary_with(Progress::default(), Contact::Never, None);
        assert_eq!(only(&status).replay, Behind::UNKNOWN);
        assert_eq!(of(&status).level(&Limits::default()), Level::Unknown);
        status.downstreams.clear();
        assert_eq!(of(&status).level(&Limits::default()), Level::Unknown);
    }

    #[test]
    fn members_without_a_connection_count_on_a_primary_alone() {
        let mut status = primary_with(progress(900), up(), Some(at(1000)));
        let member = |name: &str, role| Member {
            name: name.to_owned(),
            role,
            advertise: String::new(),
            upstream: None,
            progress: progress(850),
            last_contact: Some(at(500)),
        };
        let own = status.node.name.clone();
        status.members = vec![
            member(&own, Role::Primary),
            member("db2", Role::Standby),
            member("db3", Role::Standby),
            member("laptop", Role::Reader),
            member("db0", Role::Superseded),
        ];
        let names = |status: &Status| of(status).standbys.into_iter().map(|lag| lag.name).collect::<Vec<_>>();
        assert_eq!(names(&status), ["db2", "db3"]);
        assert_eq!(of(&status).standbys[1].link, Link::Cut(Some(Duration::from_secs(500))));
        status.node.role = Role::Standby;
        assert_eq!(names(&status), [own.as_str(), "db2"]);
        status.node.role = Role::Superseded;
        assert_eq!(names(&status), [""; 0]);
        assert_eq!(of(&status).level(&Limits::default()), Level::Unknown);
    }

    fn contacts() -> impl Strategy<Value = (Contact, Option<WallTime>)> {
        let contact = prop_oneof![
            Just(up()),
            Just(Contact::Never),
            Just(Contact::Trying { since: at(1), error: None })
        ];
        (contact, proptest::option::of((0i64..1100).prop_map(at)))
    }

    fn progresses() -> impl Strategy<Value = Progress> {
        let lsn = || proptest::option::of((1u64..1200).prop_map(Lsn));
        let timeline = proptest::option::of((1u32..4).prop_map(TimelineId));
        (timeline, lsn(), lsn(), lsn()).prop_map(|(timeline, shipped, flushed, replayed)| Progress {
            timeline,
            shipped,
            flushed,
            replayed,
        })
    }

    proptest! {
        #[test]
        fn never_zero_when_unknown(
            progress in progresses(),
            (contact, last_contact) in contacts(),
            (primary_contact, primary_last) in contacts(),
            flush in proptest::option::of((1u64..1200).prop_map(Lsn)),
            clock in proptest::option::of((0i64..1100).prop_map(at)),
            kept in 0usize..9,
        ) {
            let mut status = primary_with(progress, contact, last_contact);
            status.primary.timeline = TimelineId(2);
            status.primary.ancestors = vec![Ancestor { timeline: TimelineId(1), end_lsn: Lsn(500) }];
            status.primary.contact = primary_contact;
            status.primary.last_contact = primary_last;
            status.primary.flush_lsn = flush;
            status.primary.clock = clock;
            status.samples.drain(..kept);
            let heard = matches!(
                link(&status.primary.contact, status.primary.last_contact, status.taken_at), Link::Up(_));
            let lag = only(&status);
            for (stage, position) in
                [(lag.ship, progress.shipped), (lag.flush, progress.flushed), (lag.replay, progress.replayed)]
            {
                let position = position.filter(|_| matches!(progress.timeline, Some(TimelineId(1 | 2))));
                if position.is_none() || !heard {
                    prop_assert!(!matches!(stage.bytes, Amount::Known(_) | Amount::AtLeast(0)), "{stage:?}");
                    prop_assert!(!matches!(stage.time, Amount::Known(_)), "{stage:?}");
                }
                if stage.bytes == Amount::Known(0) {
                    let end = flush.max(status.samples.last().map(|sample| sample.lsn));
                    prop_assert!(position >= end && end.is_some(), "{stage:?} at {position:?} of {end:?}");
                }
            }
        }

        #[test]
        fn a_further_standby_is_never_more_behind(low in 1u64..1000, more in 0u64..500) {
            let lag = |lsn| only(&primary_with(progress(lsn), up(), Some(at(1000)))).flush;
            let value = |behind: Behind| match (behind.bytes, behind.time) {
                (Amount::Known(bytes), Amount::Known(time) | Amount::AtLeast(time)) => (bytes, time),
                other => panic!("{other:?}"),
            };
            let (near, far) = (value(lag(low + more)), value(lag(low)));
            prop_assert!(near.0 <= far.0 && near.1 <= far.1);
        }

        #[test]
        fn higher_limits_never_give_a_worse_level(
            progress in progresses(),
            (contact, last_contact) in contacts(),
            bytes in proptest::option::of(0u64..1000),
            seconds in proptest::option::of(0u64..1000),
            more in 0u64..500,
        ) {
            let lag = only(&primary_with(progress, contact, last_contact));
            let limit = |bytes: Option<u64>, seconds: Option<u64>| {
                Threshold { bytes, time: seconds.map(Duration::from_secs) }
            };
            let level = |warn, crit| lag.level(&Limits { warn, crit });
            let low = limit(bytes, seconds);
            let high = limit(bytes.map(|b| b + more), seconds.map(|s| s + more));
            for raised in [high, limit(None, seconds), limit(bytes, None), limit(None, None)] {
                prop_assert!(level(raised, high) <= level(low, high));
                prop_assert!(level(low, raised) <= level(low, low));
            }
        }
    }
}
