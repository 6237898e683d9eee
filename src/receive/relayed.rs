//! What goes up of the nodes that follow this one.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::link::message::{Ack, Relayed, RelayedList};
use crate::pg::Lsn;
use crate::vitals::{Contact, DownstreamVitals};

/// One that has been silent for so long is no longer told of.
const FORGET_AFTER: Duration = Duration::from_secs(60);

/// What was told last of whom, ages aside.
pub(super) struct Told {
    node: String,
    told: BTreeMap<String, Relayed>,
}

impl Told {
    /// Nothing was told yet of those behind the node of that name.
    pub(super) fn new(node: &str) -> Told {
        Told { node: node.to_owned(), told: BTreeMap::new() }
    }

    /// What is to be told: what has changed, or all of it when that is due.
    pub(super) fn news(
        &mut self,
        downstreams: &BTreeMap<String, DownstreamVitals>,
        now: Instant,
        due: bool,
    ) -> Vec<RelayedList> {
        let mut news = Vec::new();
        self.told.retain(|name, _| downstreams.contains_key(name));
        for (name, known) in downstreams {
            let Some((word, silence)) = word(&self.node, name, known, now) else { continue };
            if due || self.told.get(name) != Some(&word) {
                news.push(Relayed {
                    silent_millis: u64::try_from(silence.as_millis()).unwrap_or(u64::MAX),
                    ..word.clone()
                });
                self.told.insert(name.clone(), word);
            }
        }
        news.chunks(RelayedList::NODES_MAX).map(|part| RelayedList(part.to_vec())).collect()
    }
}

/// What is to be said of one, but for its silence; `None` when there is nothing.
fn word(node: &str, name: &str, known: &DownstreamVitals, now: Instant) -> Option<(Relayed, Duration)> {
    let silence = now.saturating_duration_since(known.last_heard?);
    let (is_connected, since) = match known.contact {
        Contact::Up { since } => (true, since),
        Contact::Trying { since, .. } | Contact::Stopped { since, .. } => (false, since),
        Contact::Never => return None,
    };
    if silence > FORGET_AFTER {
        return None;
    }
    let is_known = |lsn: Lsn| lsn.is_valid();
    let ack = known.timeline.filter(|_| is_known(known.written_lsn)).map(|timeline| Ack {
        timeline,
        written_lsn: known.written_lsn,
        flushed_lsn: known.flushed_lsn,
        replayed_lsn: known.replayed_lsn,
        restartpoint_lsn: known.restartpoint_lsn,
        policy_serial: known.policy_serial,
        is_copying: known.is_copying,
    });
    let former = &known.former_store_uuids;
    let word = Relayed {
        node: name.to_owned(),
        upstream: known.via.as_ref().map_or(node, |via| via.upstream.as_str()).to_owned(),
        store_uuid: known.store_uuid.clone()?,
        former_store_uuids: former[former.len().saturating_sub(RelayedList::FORMER_MAX)..].to_vec(),
        certificate_serial: known.certificate_serial,
        advertise: Some(known.advertise.clone()).filter(|address| !address.is_empty()),
        is_connected,
        since,
        silent_millis: 0,
        ack,
    };
    Some((word, silence))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::WallTime;
    use crate::pg::TimelineId;
    use crate::vitals::Via;

    fn downstream(lsn: u64, heard: Instant) -> DownstreamVitals {
        DownstreamVitals {
            contact: Contact::Up { since: WallTime { unix_micros: 1 } },
            store_uuid: Some("x".into()),
            timeline: Some(TimelineId(1)),
            written_lsn: Lsn(lsn),
            flushed_lsn: Lsn(lsn),
            last_heard: Some(heard),
            ..DownstreamVitals::default()
        }
    }

    fn names(news: &[RelayedList]) -> Vec<(&str, &str)> {
        let all = news.iter().flat_map(|list| &list.0);
        all.map(|word| (word.node.as_str(), word.upstream.as_str())).collect()
    }

    #[test]
    fn changes_are_told_at_once_and_everything_when_due() {
        let (now, mut told) = (Instant::now(), Told::new("db2"));
        let via = Some(Via { relay: "db3".into(), upstream: "db3".into() });
        let mut all = BTreeMap::from([
            ("db3".to_owned(), downstream(10, now)),
            ("db4".to_owned(), DownstreamVitals { via, ..downstream(5, now) }),
            ("db5".to_owned(), DownstreamVitals { last_heard: None, ..downstream(0, now) }),
        ]);
        assert_eq!(names(&told.news(&all, now, false)), [("db3", "db2"), ("db4", "db3")]);
        let later = now + Duration::from_millis(400);
        // Another age is no news; neither is what was shipped.
        all.get_mut("db3").unwrap().raw_bytes = 9;
        assert!(told.news(&all, later, false).is_empty());
        all.insert("db4".into(), downstream(6, later));
        assert_eq!(names(&told.news(&all, later, false)), [("db4", "db2")]);
        let due = told.news(&all, later, true);
        assert_eq!(due[0].0.iter().map(|word| word.silent_millis).collect::<Vec<_>>(), [400, 0]);
        let much_later = now + FORGET_AFTER + Duration::from_secs(1);
        assert!(told.news(&all, much_later, true).is_empty());
    }

    #[test]
    fn many_go_in_several_messages() {
        let now = Instant::now();
        let all = (0..RelayedList::NODES_MAX + 1).map(|number| (format!("n{number}"), downstream(1, now)));
        let news = Told::new("db2").news(&all.collect(), now, true);
        assert_eq!(news.iter().map(|list| list.0.len()).collect::<Vec<_>>(), [RelayedList::NODES_MAX, 1]);
    }
}
