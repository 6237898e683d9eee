//! Who hears every acknowledgement, and judges.
//!
//! A reign is a node on a timeline. When a commit of one reign was acknowledged, no commit may be begun under an earlier
//! reign and be acknowledged. It is the beginning that counts: an old primary that was frozen while it had the standbys'
//! acknowledgement already may pass that on later, and the commit is where it has to be.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::ensure;
use walship::demo::Cluster;

/// Rows that are named; the rest is counted.
const NAMED_ROWS_MAX: usize = 5;

/// A commit that a client was told of.
#[derive(Clone, Copy, Debug)]
pub struct Note {
    /// The number of the node that acknowledged it.
    pub writer: i32,
    pub serial: i64,
    pub timeline: u32,
    /// Its PostgreSQL waited for walship.
    pub is_protected: bool,
    /// Before the statement was sent.
    pub begun: Instant,
    pub acknowledged: Instant,
}

/// From its first acknowledged commit on.
#[derive(Clone, Copy, Debug)]
struct Reign {
    writer: i32,
    timeline: u32,
    since: Instant,
}

#[derive(Default)]
struct Heard {
    notes: Vec<Note>,
    /// The earliest first.
    reigns: Vec<Reign>,
    /// What must not be, in words.
    wrongs: Vec<String>,
    /// Acknowledged under an earlier reign, and begun before the later one's first.
    late: usize,
    /// What a writer met with last.
    failures: BTreeMap<i32, String>,
}

/// All that was acknowledged.
pub struct Witness {
    begun: Instant,
    heard: Mutex<Heard>,
}

impl Witness {
    pub fn new(begun: Instant) -> Witness {
        Witness { begun, heard: Mutex::default() }
    }

    /// Takes an acknowledgement, and judges it by those before.
    pub fn note(&self, note: Note) {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.notes.push(note);
        if !note.is_protected {
            let said = self.said(&note);
            heard.wrongs.push(format!("{said}, and PostgreSQL waited for nobody"));
        }
        let is_its = |reign: &Reign| (reign.writer, reign.timeline) == (note.writer, note.timeline);
        let Some(at) = heard.reigns.iter().position(is_its) else {
            let Note { writer, timeline, acknowledged: since, .. } = note;
            heard.reigns.push(Reign { writer, timeline, since });
            return;
        };
        let Some(later) = heard.reigns.get(at + 1).copied() else { return };
        heard.late += 1;
        if note.begun > later.since {
            let (said, since) = (self.said(&note), self.seconds(later.since));
            heard.wrongs.push(format!(
                "{said}, and node {} had commits acknowledged on timeline {} since {since:.3} s",
                later.writer, later.timeline
            ));
        }
    }

    fn seconds(&self, moment: Instant) -> f64 {
        moment.duration_since(self.begun).as_secs_f64()
    }

    fn said(&self, note: &Note) -> String {
        let Note { writer, serial, timeline, begun, acknowledged, .. } = *note;
        format!(
            "row {serial} of node {writer} on timeline {timeline} was begun at {:.3} s and acknowledged at {:.3} s",
            self.seconds(begun),
            self.seconds(acknowledged)
        )
    }

    /// Takes note of why a writer's connection ended.
    pub fn failed(&self, writer: i32, why: String) {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).failures.insert(writer, why);
    }

    /// An error unless more than so many commits were acknowledged.
    pub fn has_more_than(&self, count: usize) -> anyhow::Result<()> {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let found = heard.notes.len();
        ensure!(found > count, "{found} of {count}; the writers met with {:?} last", heard.failures);
        Ok(())
    }

    /// How many commits were acknowledged.
    pub fn count(&self) -> usize {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).notes.len()
    }

    /// The reigns so far and what was late, for a person.
    pub fn story(&self) -> String {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let reigns = heard.reigns.iter().map(|reign| {
            let Reign { writer, timeline, since } = *reign;
            format!("node {writer} on timeline {timeline} since {:.1} s", self.seconds(since))
        });
        let reigns: Vec<String> = reigns.collect();
        let (count, late) = (heard.notes.len(), heard.late);
        format!("{count} commits acknowledged, {late} of them late; {}", reigns.join(", "))
    }

    /// An error when two nodes had commits acknowledged at once, or one had some that waited for nobody.
    pub fn judge(&self) -> anyhow::Result<()> {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        ensure!(
            heard.wrongs.is_empty(),
            "{} commits must not have been acknowledged, such as:\n{}",
            heard.wrongs.len(),
            heard.wrongs[..heard.wrongs.len().min(NAMED_ROWS_MAX)].join("\n")
        );
        Ok(())
    }

    /// An error when a server lacks a row that was acknowledged.
    pub async fn find_all_on(&self, cluster: &Cluster) -> anyhow::Result<()> {
        let notes = self.heard.lock().unwrap_or_else(PoisonError::into_inner).notes.clone();
        let there: BTreeSet<String> =
            cluster.sql("SELECT writer, serial FROM chaos").await?.into_iter().collect();
        let is_missing = |note: &&Note| !there.contains(&format!("{}|{}", note.writer, note.serial));
        let missing: Vec<String> = notes.iter().filter(is_missing).map(|note| self.said(note)).collect();
        ensure!(
            missing.is_empty(),
            "{} of {} acknowledged commits are lost, such as:\n{}",
            missing.len(),
            notes.len(),
            missing[..missing.len().min(NAMED_ROWS_MAX)].join("\n")
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use walship::demo::ClusterOptions;

    use super::super::clients::TABLE;
    use super::*;
    use crate::harness::Test;

    fn judged(notes: &[(i32, u32, u64, u64)]) -> anyhow::Result<()> {
        let origin = Instant::now();
        let at = |milliseconds| origin + Duration::from_millis(milliseconds);
        let witness = Witness::new(origin);
        for (serial, (writer, timeline, begun, acknowledged)) in (0..).zip(notes) {
            witness.note(Note {
                writer: *writer,
                serial,
                timeline: *timeline,
                is_protected: true,
                begun: at(*begun),
                acknowledged: at(*acknowledged),
            });
        }
        witness.judge()
    }

    #[test]
    fn two_at_once_are_noticed_and_an_answer_that_comes_late_is_none() {
        judged(&[(0, 1, 0, 5), (1, 2, 10, 15), (1, 2, 20, 25), (0, 3, 30, 35)]).unwrap();
        judged(&[(0, 1, 0, 5), (1, 2, 10, 15), (0, 1, 14, 40)]).unwrap();
        let said = judged(&[(0, 1, 0, 5), (1, 2, 10, 15), (0, 1, 16, 20)]).unwrap_err().to_string();
        assert!(said.contains("row 2 of node 0 on timeline 1"), "{said}");
        // The same node again is another reign.
        assert!(judged(&[(0, 1, 0, 5), (1, 2, 10, 15), (0, 3, 20, 25), (1, 2, 30, 35)]).is_err());
    }

    #[tokio::test]
    async fn a_lost_row_and_one_that_waited_for_nobody_are_noticed() {
        let test = Test::new();
        let cluster = test.cluster("db1", ClusterOptions::default()).await;
        cluster.sql(&format!("{TABLE}; INSERT INTO chaos VALUES (0, 7, 'there')")).await.unwrap();
        let (now, witness) = (Instant::now(), Witness::new(Instant::now()));
        let mut note =
            Note { writer: 0, serial: 7, timeline: 1, is_protected: true, begun: now, acknowledged: now };
        witness.note(note);
        witness.find_all_on(&cluster).await.unwrap();
        witness.judge().unwrap();
        (note.serial, note.is_protected) = (8, false);
        witness.note(note);
        let said = witness.find_all_on(&cluster).await.unwrap_err().to_string();
        assert!(said.contains("1 of 2 acknowledged commits are lost") && said.contains("row 8"), "{said}");
        let said = witness.judge().unwrap_err().to_string();
        assert!(said.contains("waited for nobody"), "{said}");
    }
}
