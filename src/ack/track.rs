//! What is remembered between one evaluation and the next: who is in step since when, and what was released.

use std::collections::BTreeMap;

use super::release::{first, released};
use crate::clock::WallTime;
use crate::pg::{Levels, Lsn, TimelineId};
use crate::policy::{Policy, Resolved};
use crate::vitals::{Contact, DownstreamVitals};

/// What is known of a member at this moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Standing {
    /// How far it is on the primary's timeline; zero where that is not known.
    pub at: Levels<Lsn>,
    /// Its connection is up.
    pub is_connected: bool,
    /// It has reached, on this connection, where the primary was when that began.
    pub is_in_step: bool,
    /// Its base backup is not complete.
    pub is_copying: bool,
}

/// A member that a policy names, and what it does for it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seat {
    /// Its name.
    pub name: String,
    /// The part that it plays.
    pub part: Part,
    /// How far it is.
    pub standing: Standing,
}

/// What a member does for a policy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// Its positions count.
    Counts,
    /// Of a `first` policy: it takes the place of one that drops out.
    Spare,
    /// Of a `chain`: it is on the way to the tail.
    Passes,
    /// Not yet: its base backup is not complete, or, of a `first` policy, it has not caught up on this connection.
    CatchesUp,
    /// Of a `first` policy: it is not connected.
    Away,
    /// It was never heard, or is on another timeline.
    Unknown,
}

impl Part {
    /// In a word or two.
    pub fn name(self) -> &'static str {
        match self {
            Part::Counts => "yes",
            Part::Spare => "spare",
            Part::Passes => "passes on",
            Part::CatchesUp => "catching up",
            Part::Away => "not connected",
            Part::Unknown => "unknown",
        }
    }
}

/// Follows the positions of the members for a primary.
#[derive(Debug)]
pub struct Tracker {
    primary: String,
    timeline: Option<TimelineId>,
    members: BTreeMap<String, Member>,
    /// One that is about to be forgotten.
    leaving: Option<String>,
    released: Levels<Lsn>,
}

/// What is remembered of one member.
#[derive(Clone, Copy, Debug, Default)]
struct Member {
    /// Since when its connection is up, and where the primary was when that was first seen.
    connection: Option<(WallTime, Lsn)>,
    standing: Standing,
}

impl Tracker {
    /// For the primary of that name.
    pub fn new(primary: &str) -> Tracker {
        Tracker {
            primary: primary.to_owned(),
            timeline: None,
            members: BTreeMap::new(),
            leaving: None,
            released: Levels::default(),
        }
    }

    /// Takes in what the downstreams said, given where the primary's own store is.
    pub fn hear(
        &mut self,
        heard: &BTreeMap<String, DownstreamVitals>,
        timeline: Option<TimelineId>,
        durable: Lsn,
    ) {
        if timeline != self.timeline {
            // Past a fork the same numbers mean other WAL.
            (self.timeline, self.released) = (timeline, Levels::default());
        }
        self.members.retain(|name, _| heard.contains_key(name));
        for (name, vitals) in heard {
            match self.members.get_mut(name) {
                Some(member) => member.hear(vitals, timeline, durable),
                None => {
                    let mut member = Member::default();
                    member.hear(vitals, timeline, durable);
                    self.members.insert(name.clone(), member);
                }
            }
        }
    }

    fn standing(&self, name: &str) -> Option<Standing> {
        let member = self.members.get(name).filter(|_| self.leaving.as_deref() != Some(name));
        member.map(|member| member.standing)
    }

    /// From now on nothing is released by this member's having it, for it is about to be forgotten. False when that holds
    /// for another already.
    pub fn let_leave(&mut self, name: &str) -> bool {
        let is_free = self.leaving.is_none();
        self.leaving.get_or_insert_with(|| name.to_owned());
        is_free
    }

    /// Ends that: it was forgotten, or stays.
    pub fn nobody_leaves(&mut self) {
        self.leaving = None;
    }

    /// Whether those who count for a policy have what was released so far, as it promises from now on.
    pub fn is_met(&self, policy: &Resolved, durable: Lsn) -> bool {
        let met = released(policy, &self.primary, durable, |name| self.standing(name)).unwrap_or_default();
        met.write >= self.released.write && met.flush >= self.released.flush
    }

    /// What is released under a policy, given what the primary itself has fsynced. It never goes back.
    pub fn release(&mut self, policy: &Resolved, durable: Lsn) -> Levels<Lsn> {
        if let Some(released) = released(policy, &self.primary, durable, |name| self.standing(name)) {
            self.released = self.released.max(released);
        }
        self.released
    }

    /// What was released last.
    pub fn released(&self) -> Levels<Lsn> {
        self.released
    }

    /// The members that a policy names, in its order, but for the primary.
    pub fn seats(&self, policy: &Resolved) -> Vec<Seat> {
        let others = policy.others(&self.primary);
        let chosen = first(&others, policy.needed(&self.primary), |name| self.standing(name));
        let named = policy.names.iter().filter(|name| **name != self.primary);
        let seat = |name: &String| {
            let standing = self.standing(name).unwrap_or_default();
            let part = match policy.policy {
                Policy::Chain { .. } if !others.contains(&name.as_str()) => Part::Passes,
                _ if standing.is_copying => Part::CatchesUp,
                _ if !standing.at.write.is_valid() => Part::Unknown,
                Policy::First { .. } if chosen.contains(&name.as_str()) => Part::Counts,
                Policy::First { .. } if !standing.is_connected => Part::Away,
                Policy::First { .. } if !standing.is_in_step => Part::CatchesUp,
                Policy::First { .. } => Part::Spare,
                _ => Part::Counts,
            };
            Seat { name: name.clone(), part, standing }
        };
        named.map(seat).collect()
    }
}

impl Member {
    fn hear(&mut self, vitals: &DownstreamVitals, timeline: Option<TimelineId>, durable: Lsn) {
        let known = timeline.is_some() && vitals.timeline == timeline;
        let at = Levels { write: vitals.written_lsn, flush: vitals.flushed_lsn, apply: vitals.replayed_lsn };
        // Without the base backup that it belongs to, WAL is of no use.
        let at = if known && !vitals.is_copying { at } else { Levels::default() };
        let is_copying = vitals.is_copying;
        let Contact::Up { since } = vitals.contact else {
            self.connection = None;
            self.standing = Standing { at, is_connected: false, is_in_step: false, is_copying };
            return;
        };
        let same = self.connection.filter(|(known, _)| *known == since);
        let (_, target) = *self.connection.insert(same.unwrap_or((since, durable)));
        let was_in_step = same.is_some() && self.standing.is_in_step;
        let is_in_step = was_in_step || (known && at.write >= target);
        self.standing = Standing { at, is_connected: true, is_in_step, is_copying };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::StallLimit;

    const TIMELINE: TimelineId = TimelineId(3);

    fn policy(text: &str) -> Resolved {
        let known = ["db1", "db2", "db3"].map(str::to_owned);
        Resolved::new(1, text.parse().unwrap(), StallLimit(None), &known)
    }

    fn member(lsn: u64, since: i64) -> DownstreamVitals {
        DownstreamVitals {
            contact: Contact::Up { since: WallTime { unix_micros: since } },
            timeline: Some(TIMELINE),
            written_lsn: Lsn(lsn),
            flushed_lsn: Lsn(lsn),
            replayed_lsn: Lsn(lsn),
            ..DownstreamVitals::default()
        }
    }

    fn heard(members: &[(&str, &DownstreamVitals)]) -> BTreeMap<String, DownstreamVitals> {
        members.iter().map(|(name, member)| ((*name).to_owned(), (*member).clone())).collect()
    }

    #[test]
    fn what_was_released_stays_so_and_no_more_is_without_cause() {
        let mut tracker = Tracker::new("db1");
        let any = policy("any 1 (*)");
        tracker.hear(&heard(&[("db2", &member(50, 1))]), Some(TIMELINE), Lsn(60));
        assert_eq!(tracker.release(&any, Lsn(60)), Levels::all(Lsn(50)));
        // A standby that was put back says less now.
        tracker.hear(&heard(&[("db2", &member(20, 2))]), Some(TIMELINE), Lsn(60));
        assert_eq!(tracker.release(&any, Lsn(60)), Levels::all(Lsn(50)));
        tracker.hear(&heard(&[]), Some(TIMELINE), Lsn(70));
        assert_eq!(tracker.release(&any, Lsn(70)), Levels::all(Lsn(50)));
        assert_eq!(tracker.release(&policy("async"), Lsn(70)), Levels::all(Lsn(70)));
    }

    #[test]
    fn what_was_released_is_had_by_those_who_stay_before_one_goes() {
        let mut tracker = Tracker::new("db1");
        let (any, left) = (policy("any 1 (*)"), policy("any 1 (db3)"));
        let hear = |tracker: &mut Tracker, db2, db3| {
            let heard = heard(&[("db2", &member(db2, 1)), ("db3", &member(db3, 1))]);
            tracker.hear(&heard, Some(TIMELINE), Lsn(90));
            tracker.release(&any, Lsn(90)).flush.0
        };
        assert_eq!(hear(&mut tracker, 50, 40), 50);
        assert!(!tracker.is_met(&left, Lsn(90)));
        // From here on db2 lets nothing more go.
        assert!(tracker.let_leave("db2") && !tracker.let_leave("db3"));
        assert_eq!(hear(&mut tracker, 60, 49), 50);
        assert!(!tracker.is_met(&left, Lsn(90)));
        assert_eq!(hear(&mut tracker, 70, 55), 55);
        assert!(tracker.is_met(&left, Lsn(90)));
        tracker.nobody_leaves();
        assert_eq!(hear(&mut tracker, 70, 55), 70);
        assert!(tracker.is_met(&policy("async"), Lsn(90)));
    }

    #[test]
    fn only_the_primarys_timeline_counts() {
        let mut tracker = Tracker::new("db1");
        let any = policy("any 1 (*)");
        let old = DownstreamVitals { timeline: Some(TimelineId(2)), ..member(90, 1) };
        tracker.hear(&heard(&[("db2", &old)]), Some(TIMELINE), Lsn(60));
        assert_eq!(tracker.release(&any, Lsn(60)), Levels::default());
        assert_eq!(tracker.seats(&any)[0].part, Part::Unknown);
        tracker.hear(&heard(&[("db2", &old)]), Some(TimelineId(2)), Lsn(60));
        assert_eq!(tracker.release(&any, Lsn(60)), Levels::all(Lsn(90)));
        tracker.hear(&heard(&[("db2", &old)]), Some(TIMELINE), Lsn(60));
        assert_eq!(tracker.release(&any, Lsn(60)), Levels::default(), "the same number means other WAL now");
    }

    #[test]
    fn a_connection_counts_for_first_once_it_has_caught_up() {
        let mut tracker = Tracker::new("db1");
        let first = policy("first 1 (db2, db3)");
        let parts =
            |tracker: &Tracker| tracker.seats(&first).iter().map(|seat| seat.part).collect::<Vec<_>>();
        let hear = |tracker: &mut Tracker, db2: &DownstreamVitals, db3: &DownstreamVitals, durable| {
            tracker.hear(&heard(&[("db2", db2), ("db3", db3)]), Some(TIMELINE), Lsn(durable));
            tracker.release(&first, Lsn(durable)).flush.0
        };
        assert_eq!(hear(&mut tracker, &member(40, 1), &member(60, 1), 60), 60);
        assert_eq!(parts(&tracker), [Part::CatchesUp, Part::Counts]);
        // Beyond where the primary was when it connected: in step, although behind by now.
        assert_eq!(hear(&mut tracker, &member(61, 1), &member(90, 1), 95), 61);
        assert_eq!(parts(&tracker), [Part::Counts, Part::Spare]);
        let gone = DownstreamVitals { contact: Contact::Never, ..member(91, 1) };
        assert_eq!(hear(&mut tracker, &gone, &member(93, 1), 95), 93);
        assert_eq!(parts(&tracker), [Part::Away, Part::Counts]);
        // Back on another connection it has to catch up again.
        assert_eq!(hear(&mut tracker, &member(91, 2), &member(97, 1), 99), 97);
        assert_eq!(parts(&tracker), [Part::CatchesUp, Part::Counts]);
        assert_eq!(hear(&mut tracker, &member(99, 2), &member(98, 1), 99), 99);
        // Nobody is left: nothing beyond what was.
        assert_eq!(hear(&mut tracker, &gone, &gone, 200), 99);
    }

    #[test]
    fn a_base_backup_that_is_not_complete_is_of_no_use() {
        let mut tracker = Tracker::new("db1");
        let any = policy("any 1 (*)");
        let copying = DownstreamVitals { is_copying: true, ..member(50, 1) };
        tracker.hear(&heard(&[("db2", &copying)]), Some(TIMELINE), Lsn(60));
        assert_eq!(tracker.release(&any, Lsn(60)), Levels::default());
        assert_eq!(tracker.seats(&any)[0].part, Part::CatchesUp);
        tracker.hear(&heard(&[("db2", &member(50, 1))]), Some(TIMELINE), Lsn(60));
        assert_eq!(tracker.release(&any, Lsn(60)), Levels::all(Lsn(50)));
    }

    #[test]
    fn in_a_chain_the_tail_counts_alone() {
        let mut tracker = Tracker::new("db1");
        let chain = policy("chain (db2, db3)");
        tracker.hear(&heard(&[("db2", &member(80, 1)), ("db3", &member(60, 1))]), Some(TIMELINE), Lsn(90));
        assert_eq!(tracker.release(&chain, Lsn(90)), Levels::all(Lsn(60)));
        let parts: Vec<_> = tracker.seats(&chain).into_iter().map(|seat| (seat.name, seat.part)).collect();
        assert_eq!(parts, [("db2".to_owned(), Part::Passes), ("db3".to_owned(), Part::Counts)]);
    }
}
