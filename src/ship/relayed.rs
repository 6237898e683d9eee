//! What a relay says of the nodes behind it, among what is known of the downstreams. Pure.
//!
//! There is one entry a name, so nothing is counted twice. A node that moves from one path to another is told of by
//! both for a while: the newest word of its store wins.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::clock::WallTime;
use crate::link::message::{Ack, Relayed};
use crate::vitals::{Contact, DownstreamVitals, Via};

/// A node that is connected says something every second. One that did not for this long, and is told of by a relay
/// meanwhile, has moved there, whether its connection here was seen to end or not.
const MOVED_AFTER: Duration = Duration::from_millis(1500);

/// Entries at most; a cluster of so many nodes is none.
const NODES_MAX: usize = 4096;

/// The same moment by both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// For ages.
    pub instant: Instant,
    /// For people.
    pub wall: WallTime,
}

impl Now {
    /// This moment.
    pub fn is() -> Now {
        Now { instant: Instant::now(), wall: WallTime::now() }
    }

    fn before(self, age: Duration) -> (Option<Instant>, WallTime) {
        let micros = i64::try_from(age.as_micros()).unwrap_or(i64::MAX);
        let wall = WallTime { unix_micros: self.wall.unix_micros.saturating_sub(micros) };
        (self.instant.checked_sub(age), wall)
    }
}

/// Takes in a word that `relay` passed on.
pub fn note(all: &mut BTreeMap<String, DownstreamVitals>, relay: &str, word: &Relayed, now: Now) {
    let age = Duration::from_millis(word.silent_millis);
    let (heard, heard_at) = now.before(age);
    if !all.contains_key(&word.node) && all.len() >= NODES_MAX {
        return;
    }
    let known = all.entry(word.node.clone()).or_default();
    if !is_news(known, relay, word, heard, age) {
        return;
    }
    if known.store_uuid.as_ref() != Some(&word.store_uuid) {
        *known =
            DownstreamVitals { store_uuid: Some(word.store_uuid.clone()), ..DownstreamVitals::default() };
    }
    known.via = Some(Via { relay: relay.to_owned(), upstream: word.upstream.clone() });
    known.contact = match word.is_connected {
        true => Contact::Up { since: word.since },
        false => Contact::Trying { since: word.since, error: None },
    };
    known.address = word.advertise.clone().unwrap_or_default();
    known.advertise = word.advertise.clone().unwrap_or_default();
    known.certificate_serial = word.certificate_serial;
    known.former_store_uuids.clone_from(&word.former_store_uuids);
    // A relay passes its feedback on as its own.
    known.feedback = None;
    (known.last_heard, known.last_heard_at) = (heard, Some(heard_at));
    if let Some(ack) = &word.ack {
        advance(known, ack);
    }
}

/// Whether a word says more than what is known.
fn is_news(
    known: &DownstreamVitals,
    relay: &str,
    word: &Relayed,
    heard: Option<Instant>,
    age: Duration,
) -> bool {
    let Some(last) = known.last_heard else { return true };
    if known.store_uuid.as_ref() != Some(&word.store_uuid) {
        // One certificate has one store, so the later certificate is the later store; but for one that was emptied.
        let was_emptied =
            known.store_uuid.as_ref().is_some_and(|uuid| word.former_store_uuids.contains(uuid));
        return was_emptied || word.certificate_serial > known.certificate_serial;
    }
    match &known.via {
        None if matches!(known.contact, Contact::Up { .. }) => {
            word.is_connected
                && age < MOVED_AFTER
                && heard.is_some_and(|heard| heard.saturating_duration_since(last) >= MOVED_AFTER)
        }
        // The words of one relay come in order.
        Some(via) if via.relay == relay => true,
        _ => heard.is_some_and(|heard| heard >= last),
    }
}

/// Positions of one store never go back on a timeline, whatever way they came.
fn advance(known: &mut DownstreamVitals, ack: &Ack) {
    let on = Some(ack.timeline);
    if known.timeline > on {
        return;
    }
    let is_new = known.timeline < on;
    let further = |known: &mut crate::pg::Lsn, said| *known = if is_new { said } else { said.max(*known) };
    further(&mut known.written_lsn, ack.written_lsn);
    further(&mut known.flushed_lsn, ack.flushed_lsn);
    further(&mut known.replayed_lsn, ack.replayed_lsn);
    known.timeline = on;
    known.shipped_lsn = known.written_lsn;
    known.restartpoint_lsn = ack.restartpoint_lsn;
    known.policy_serial = ack.policy_serial;
    known.is_copying = ack.is_copying;
}

/// A relay is gone, and with it the words of those behind it.
pub fn lose(all: &mut BTreeMap<String, DownstreamVitals>, relay: &str, since: WallTime) {
    let behind = |known: &&mut DownstreamVitals| known.via.as_ref().is_some_and(|via| via.relay == relay);
    for known in all.values_mut().filter(behind) {
        if let Contact::Up { .. } = known.contact {
            known.contact = Contact::Trying { since, error: None };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::{Lsn, TimelineId};

    type All = BTreeMap<String, DownstreamVitals>;

    fn word(lsn: u64, silent_millis: u64) -> Relayed {
        Relayed {
            node: "db3".into(),
            upstream: "db2".into(),
            store_uuid: "x".into(),
            former_store_uuids: Vec::new(),
            certificate_serial: 5,
            advertise: Some("db3:7432".into()),
            is_connected: true,
            since: WallTime { unix_micros: 1 },
            silent_millis,
            ack: Some(Ack {
                timeline: TimelineId(1),
                written_lsn: Lsn(lsn + 2),
                flushed_lsn: Lsn(lsn + 1),
                replayed_lsn: Lsn(lsn),
                restartpoint_lsn: Lsn(3),
                policy_serial: 1,
                is_copying: false,
            }),
        }
    }

    fn on(timeline: u32, word: Relayed) -> Relayed {
        let ack = word.ack.map(|ack| Ack { timeline: TimelineId(timeline), ..ack });
        Relayed { ack, ..word }
    }

    fn flushed(all: &All) -> u64 {
        all["db3"].flushed_lsn.0 - 1
    }

    fn later(now: Now, millis: u64) -> Now {
        Now { instant: now.instant + Duration::from_millis(millis), ..now }
    }

    #[test]
    fn a_node_behind_a_relay_is_known_until_the_relay_is_lost() {
        let (mut all, now) = (All::new(), Now::is());
        note(&mut all, "db2", &word(10, 300), now);
        let known = &all["db3"];
        let via = Via { relay: "db2".into(), upstream: "db2".into() };
        assert_eq!((known.via.as_ref(), known.shipped_lsn), (Some(&via), Lsn(12)));
        assert_eq!(known.last_heard, now.instant.checked_sub(Duration::from_millis(300)));
        assert!(matches!(known.contact, Contact::Up { .. }));
        note(&mut all, "db2", &word(20, 0), later(now, 500));
        lose(&mut all, "db9", now.wall);
        assert!(matches!(all["db3"].contact, Contact::Up { .. }));
        lose(&mut all, "db2", now.wall);
        assert!(matches!(all["db3"].contact, Contact::Trying { .. }));
        assert_eq!(flushed(&all), 20, "it has what it had");
    }

    #[test]
    fn positions_go_back_on_no_timeline_whatever_way_they_come() {
        let (mut all, now) = (All::new(), Now::is());
        note(&mut all, "db2", &word(20, 0), now);
        note(&mut all, "db2", &word(15, 0), later(now, 10));
        assert_eq!(flushed(&all), 20);
        // Past a promotion the numbers begin anew.
        note(&mut all, "db2", &on(2, word(18, 0)), later(now, 20));
        assert_eq!(flushed(&all), 18);
        note(&mut all, "db2", &on(1, word(30, 0)), later(now, 30));
        assert_eq!((flushed(&all), all["db3"].timeline), (18, Some(TimelineId(2))));
    }

    #[test]
    fn of_two_paths_the_newest_word_wins() {
        let (mut all, now) = (All::new(), Now::is());
        note(&mut all, "db2", &word(20, 0), now);
        let moved = Relayed { upstream: "db4".into(), ..word(25, 0) };
        note(&mut all, "db4", &moved, later(now, 100));
        // The first relay has not noticed that it left.
        note(&mut all, "db2", &Relayed { is_connected: false, ..word(20, 200) }, later(now, 200));
        assert_eq!(all["db3"].via.as_ref().map(|via| via.upstream.as_str()), Some("db4"));
        assert!(matches!(all["db3"].contact, Contact::Up { .. }) && flushed(&all) == 25);
    }

    /// The node is connected here, and says something at `now`.
    fn connected(now: Now) -> All {
        let mut all = All::new();
        let entry = all.entry("db3".into()).or_default();
        entry.connect(WallTime { unix_micros: 9 }, "1.2.3.4:5".into(), Some("x".into()));
        entry.certificate_serial = 5;
        entry.last_heard = Some(now.instant);
        all
    }

    #[test]
    fn a_node_that_is_connected_here_speaks_for_itself_until_it_is_silent_here_and_not_there() {
        let now = Now::is();
        let mut all = connected(now);
        for (word, when) in [(word(10, 0), 1000), (word(10, 1600), 3500)] {
            note(&mut all, "db2", &word, later(now, when));
            assert!(all["db3"].via.is_none() && all["db3"].flushed_lsn == Lsn::INVALID, "{when}");
        }
        note(&mut all, "db2", &Relayed { is_connected: false, ..word(10, 0) }, later(now, 4000));
        assert!(all["db3"].via.is_none());
        note(&mut all, "db2", &word(10, 100), later(now, 2000));
        assert!(all["db3"].via.is_some() && flushed(&all) == 10);
        // And back.
        let entry = all.get_mut("db3").unwrap();
        entry.connect(WallTime { unix_micros: 10 }, "1.2.3.4:5".into(), Some("x".into()));
        assert_eq!((entry.via.as_ref(), entry.flushed_lsn), (None, Lsn(11)));
    }

    #[test]
    fn another_store_counts_only_with_a_later_certificate() {
        let now = Now::is();
        let mut all = connected(now);
        let other = |serial| Relayed { store_uuid: "y".into(), certificate_serial: serial, ..word(3, 0) };
        for serial in [4, 5] {
            note(&mut all, "db2", &other(serial), later(now, 5000));
            assert_eq!(all["db3"].store_uuid.as_deref(), Some("x"));
        }
        all.get_mut("db3").unwrap().flushed_lsn = Lsn(99);
        note(&mut all, "db2", &other(6), later(now, 6000));
        assert_eq!((all["db3"].store_uuid.as_deref(), flushed(&all)), (Some("y"), 3));
    }

    #[test]
    fn there_is_a_limit_to_how_many_there_are() {
        let (mut all, now) = (All::new(), Now::is());
        for number in 0..NODES_MAX + 5 {
            note(&mut all, "db2", &Relayed { node: format!("n{number}"), ..word(1, 0) }, now);
        }
        assert_eq!(all.len(), NODES_MAX);
        note(&mut all, "db2", &Relayed { node: "n7".into(), ..word(50, 0) }, now);
        assert_eq!(all["n7"].flushed_lsn, Lsn(51));
    }
}
