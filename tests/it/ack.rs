//! What commits wait for: each policy at each level, and its changes.
//!
//! What a standby must not have yet is held back at one of three gates: its sidecar is stopped (nothing is written), its
//! fsync waits for a file to go (nothing is flushed), its replay is paused (nothing is applied). No assertion rests on
//! time: that a commit still waits is looked at when PostgreSQL was told of positions after the event in question.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::ensure;
use rustix::process::Signal;
use tokio::task::JoinHandle;
use walship::demo::cluster::connect;
use walship::pg::{Level, Lsn};
use walship::report::commits::Seat;

use crate::harness::{Node, PATIENCE, Test, eventually};

/// A primary and two standbys, with PostgreSQL set to wait for walship.
pub struct Three {
    pub db1: Node,
    pub db2: Node,
    pub db3: Node,
    next_commit: u32,
    _test: Test,
}

/// A transaction that is being committed.
pub struct Commit {
    name: String,
    task: JoinHandle<()>,
}

impl Three {
    pub async fn new() -> Three {
        let test = Test::new();
        let db1 = test.primary("db1").await;
        let mut standbys = Vec::new();
        for name in ["db2", "db3"] {
            let mut standby = Node::empty(&test, name);
            let hold = format!("store.sync=hold:{}", gate(&standby).display());
            standby.sidecar.set("WALSHIP_FAILPOINTS", &hold);
            standby.join(&db1.invite(name).await, &[]);
            standby.follows(&db1).await;
            standbys.push(standby);
        }
        let (db3, db2) = (standbys.pop().unwrap(), standbys.pop().unwrap());
        db1.cluster.sql("CREATE TABLE t (a text)").await.unwrap();
        db1.cluster.sql("ALTER SYSTEM SET synchronous_standby_names = 'walship'").await.unwrap();
        db1.cluster.sql("SELECT pg_reload_conf()").await.unwrap();
        Three { db1, db2, db3, next_commit: 0, _test: test }
    }

    pub async fn sync(&self, policy: &str) -> String {
        self.db1.walship(&["sync", policy]).await.succeeded()
    }

    /// Begins a commit.
    pub async fn commit(&mut self, level: &str) -> Commit {
        self.next_commit += 1;
        let name = format!("commit-{}", self.next_commit);
        let client = connect(&self.db1.cluster.conninfo()).await.unwrap();
        let prepare = format!("SET application_name = '{name}'; SET synchronous_commit = {level}");
        client.batch_execute(&prepare).await.unwrap();
        let insert = format!("INSERT INTO t VALUES ('{name}')");
        let task = tokio::spawn(async move { client.batch_execute(&insert).await.unwrap() });
        Commit { name, task }
    }

    /// Waits until a commit waits; a position at or after its end.
    pub async fn waits(&self, commit: &Commit) -> Lsn {
        self.eventually_waits(commit).await;
        self.db1.cluster.value("SELECT pg_current_wal_flush_lsn()").await.unwrap().parse().unwrap()
    }

    async fn eventually_waits(&self, commit: &Commit) {
        let query = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = '{}' AND wait_event = 'SyncRep'",
            commit.name
        );
        eventually(&format!("{} waits", commit.name), async || {
            ensure!(!commit.task.is_finished(), "it is released");
            ensure!(self.db1.cluster.value(&query).await? == "1", "it does not wait");
            Ok(())
        })
        .await;
    }

    /// Checks that a commit waits after all that happened so far has been told to PostgreSQL.
    pub async fn still_waits(&self, commit: &Commit, when: &str) {
        let now = self.db1.cluster.value("SELECT clock_timestamp()").await.unwrap();
        // What is told at that moment may be a little older than that moment, so the one after it counts.
        for _ in 0..2 {
            let told = format!(
                "SELECT count(*) = 1 FROM pg_stat_replication WHERE application_name = 'walship' AND reply_time > '{now}'"
            );
            self.db1.cluster.wait_until(&told, PATIENCE).await.unwrap();
        }
        assert!(!commit.task.is_finished(), "{} is released {when}", commit.name);
        self.eventually_waits(commit).await;
    }

    /// What the primary knows of a member.
    async fn seat(&self, name: &str) -> anyhow::Result<Seat> {
        let commits = self.db1.status().await?.commits;
        let seat = commits.and_then(|commits| commits.seats.into_iter().find(|seat| seat.name == name));
        seat.ok_or_else(|| anyhow::anyhow!("{name} has no seat"))
    }

    /// Waits until the primary knows that a member has reached a position.
    pub async fn reaches(&self, name: &str, level: Level, lsn: Lsn) {
        eventually(&format!("{name} has {lsn} at {level:?}"), async || {
            let seat = self.seat(name).await?;
            ensure!(*seat.at.get(level) >= Some(lsn), "{seat:?}");
            Ok(())
        })
        .await;
    }

    pub fn standby(&self, name: &str) -> &Node {
        if name == "db2" { &self.db2 } else { &self.db3 }
    }

    /// Holds a standby back at a level.
    pub async fn hold(&self, name: &str, level: Level) {
        let standby = self.standby(name);
        match level {
            Level::Write => standby.sidecar.signal(Signal::STOP),
            Level::Flush => std::fs::write(gate(standby), "").unwrap(),
            Level::Apply => standby.cluster.sql("SELECT pg_wal_replay_pause()").await.map(drop).unwrap(),
        }
    }

    /// Lets it go on.
    pub async fn let_go(&self, name: &str, level: Level) {
        let standby = self.standby(name);
        match level {
            Level::Write => standby.sidecar.signal(Signal::CONT),
            Level::Flush => std::fs::remove_file(gate(standby)).unwrap(),
            Level::Apply => standby.cluster.sql("SELECT pg_wal_replay_resume()").await.map(drop).unwrap(),
        }
    }
}

impl Commit {
    /// Waits until it is released.
    pub async fn ends(self, when: &str) {
        match tokio::time::timeout(PATIENCE, self.task).await {
            Ok(ended) => ended.unwrap(),
            Err(_) => panic!("{} is not released {when}", self.name),
        }
    }
}

/// The file that keeps a standby's store from being fsynced.
pub fn gate(standby: &Node) -> PathBuf {
    standby.folder().join("held")
}

#[tokio::test]
async fn each_policy_releases_each_level_exactly_when_it_must() {
    let mut three = Three::new().await;
    // Whether it is released when so many, and which, have it.
    let policies: [(&str, [bool; 2]); 5] = [
        ("any 1 (*)", [true, true]),
        ("first 1 (db2, db3)", [true, false]),
        ("chain (db2, db3)", [false, true]),
        ("all", [false, false]),
        ("any 2 (db2, db3)", [false, false]),
    ];
    for (policy, expected) in policies {
        three.sync(policy).await;
        for level in Level::ALL {
            for (order, alone) in [["db2", "db3"], ["db3", "db2"]].into_iter().zip(expected) {
                for name in order {
                    three.hold(name, level).await;
                }
                let commit = three.commit(level.name()).await;
                let lsn = three.waits(&commit).await;
                let when = format!("of {policy} at {} when {} has it", level.name(), order[0]);
                three.let_go(order[0], level).await;
                three.reaches(order[0], level, lsn).await;
                if alone {
                    commit.ends(&when).await;
                    three.let_go(order[1], level).await;
                } else {
                    three.still_waits(&commit, &when).await;
                    three.let_go(order[1], level).await;
                    commit.ends("when both have it").await;
                }
                for name in order {
                    three.reaches(name, Level::Apply, lsn).await;
                }
            }
        }
    }
}

#[tokio::test]
async fn each_level_is_released_by_itself() {
    let mut three = Three::new().await;
    three.sync("all").await;
    three.hold("db2", Level::Flush).await;
    three.commit("remote_write").await.ends("written by both").await;
    let on = three.commit("on").await;
    let lsn = three.waits(&on).await;
    three.reaches("db2", Level::Write, lsn).await;
    three.still_waits(&on, "before db2 has fsynced it").await;
    three.hold("db3", Level::Apply).await;
    three.let_go("db2", Level::Flush).await;
    on.ends("fsynced by both").await;
    let apply = three.commit("remote_apply").await;
    let lsn = three.waits(&apply).await;
    three.reaches("db3", Level::Flush, lsn).await;
    three.commit("on").await.ends("fsynced by both").await;
    three.still_waits(&apply, "before db3 has replayed it").await;
    // What is waiting is released by the standbys that come back to a sidecar that knows of nothing.
    three.db1.sidecar.kill().await;
    three.db1.run().await;
    three.let_go("db3", Level::Apply).await;
    apply.ends("replayed by both").await;
}

/// PostgreSQL's walreceiver replies every ten seconds unless it is asked to, or a remote_apply commit was replayed.
#[tokio::test]
async fn remote_apply_takes_no_seconds() {
    let mut three = Three::new().await;
    three.sync("all").await;
    let begun = Instant::now();
    for _ in 0..20 {
        three.commit("remote_apply").await.ends("at once").await;
    }
    assert!(begun.elapsed().as_secs() < 10, "20 commits took {:?}", begun.elapsed());
}

#[tokio::test]
async fn a_store_that_was_wiped_gets_no_credit_for_what_it_had() {
    let mut three = Three::new().await;
    three.sync("all").await;
    three.hold("db3", Level::Flush).await;
    let commit = three.commit("on").await;
    let lsn = three.waits(&commit).await;
    three.reaches("db2", Level::Flush, lsn).await;

    // It comes back under its name with nothing, and its new store is not fsynced for now.
    three.db2.sidecar.kill().await;
    three.db2.cluster.kill().await.unwrap();
    for folder in [three.db2.store(), three.db2.cluster.data_directory()] {
        std::fs::remove_dir_all(folder).unwrap();
    }
    three.hold("db2", Level::Flush).await;
    std::fs::remove_file(three.db1.folder().join("db2.join")).unwrap();
    let bundle = three.db1.invite("db2").await;
    three.db2.join(&bundle, &[]);
    // Nor does it for what its base backup will have once that is complete.
    eventually("db2 is another one, which copies", async || {
        let seat = three.seat("db2").await?;
        ensure!(seat.is_connected && seat.part == "catching up" && seat.at.flush.is_none(), "{seat:?}");
        Ok(())
    })
    .await;
    three.let_go("db3", Level::Flush).await;
    three.reaches("db3", Level::Flush, lsn).await;
    three.still_waits(&commit, "by a store that is gone").await;
    three.let_go("db2", Level::Flush).await;
    commit.ends("when the new store has it").await;
}
