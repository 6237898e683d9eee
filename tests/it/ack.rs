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

use crate::harness::{Node, PATIENCE, PROMOTE, Test, eventually};

/// A primary and two standbys.
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
        Three { db1, db2, db3, next_commit: 0, _test: test }
    }

    pub async fn sync(&self, policy: &str) -> String {
        let said = self.db1.walship(&["sync", policy]).await.succeeded();
        // PostgreSQL's checkpointer lets commits wait, once it has read the setting; it does so before a checkpoint.
        self.db1.cluster.sql("CHECKPOINT").await.unwrap();
        said
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

/// Changes a setting of the primary's PostgreSQL by hand.
async fn set_by_hand(node: &Node, standby_names: &str) {
    node.cluster
        .sql(&format!("ALTER SYSTEM SET synchronous_standby_names = '{standby_names}'"))
        .await
        .unwrap();
    node.cluster.sql("SELECT pg_reload_conf()").await.unwrap();
}

async fn standby_names(node: &Node) -> String {
    node.cluster.value("SHOW synchronous_standby_names").await.unwrap()
}

#[tokio::test]
async fn postgresqls_own_setting_goes_with_the_policy_and_what_does_not_fit_is_said() {
    let test = Test::new();
    let db1 = test.primary("db1").await;
    db1.walship(&["sync", "any 1 (*)"])
        .await
        .failed(3, &["waits for 1, and no member beside the primary counts"]);
    db1.walship(&["sync", "any 1 (db7)"]).await.failed(3, &["no member is called db7"]);
    db1.walship(&["sync", "some"]).await.failed(2, &["is no acknowledgement policy"]);
    let db2 = test.standby("db2", &db1).await;
    db2.walship(&["sync", "any 1 (*)"]).await.failed(3, &["db2 is a standby"]);
    assert_eq!(standby_names(&db1).await, "");

    let done = db1.walship(&["sync", "any 1 (*)"]).await.succeeded();
    assert!(done.contains("policy 2 is in effect, and PostgreSQL waits for walship now"), "{done}");
    assert_eq!(standby_names(&db1).await, "walship");
    let shown = db1.walship(&["sync"]).await.succeeded();
    for text in ["wait for any 1 (*), stall limit never, policy 2", "members db1, db2", "db2 ", "'walship'"] {
        assert!(shown.contains(text), "{text}: {shown}");
    }
    assert!(!shown.contains("warning") && !shown.contains("critical"), "{shown}");
    assert!(
        db1.walship(&["sync", "any 1 (*)"]).await.succeeded().contains("policy 2 is in effect"),
        "the same"
    );

    // Unset by hand, it is worth a warning.
    set_by_hand(&db1, "").await;
    says(&db1, "warning: the policy is `any 1 (*)`, but PostgreSQL does not wait for it").await;
    db1.walship(&["sync", "any 1 (*)"]).await.succeeded();
    let done = db1.walship(&["sync", "async"]).await.succeeded();
    assert!(done.contains("PostgreSQL waits for walship no longer"), "{done}");
    assert_eq!(standby_names(&db1).await, "");

    // Set by hand, it pretends: every report is critical.
    set_by_hand(&db1, "FIRST 1 (walship)").await;
    says(&db1, "critical: commits look synchronous and are not").await;
    let lag = db1.walship(&["lag"]).await.exited_with(2);
    assert!(lag.stdout.contains("CRITICAL") && lag.stdout.contains("commits look synchronous"), "{lag:?}");
    db1.walship(&["check"]).await.exited_with(2);
    db1.walship(&["sync", "async"]).await.succeeded();
    assert_eq!(standby_names(&db1).await, "");
    set_by_hand(&db1, "ANY 1 (archive, walship)").await;
    db1.walship(&["sync", "async"]).await.failed(3, &["names others, too", "Take walship out by hand"]);
    set_by_hand(&db1, "").await;
}

/// Waits until a node's status says something.
async fn says(node: &Node, text: &str) {
    eventually(&format!("{} says {text:?}", node.name()), async || {
        let status = node.walship(&["status"]).await.exits(0)?.stdout;
        ensure!(status.contains(text), "{status}");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn without_the_grant_the_sql_is_printed() {
    let test = Test::new();
    let mut db1 = test.primary("db1").await;
    let _db2 = test.standby("db2", &db1).await;
    db1.cluster
        .sql("CREATE ROLE walship LOGIN REPLICATION; GRANT pg_read_all_stats TO walship")
        .await
        .unwrap();
    let config = std::fs::read_to_string(db1.config_file()).unwrap();
    std::fs::write(db1.config_file(), config.replace("user=postgres", "user=walship")).unwrap();
    db1.sidecar.terminate().await;
    db1.run().await;
    let sql = "ALTER SYSTEM SET synchronous_standby_names = 'walship'; SELECT pg_reload_conf();";
    let texts = ["policy 2 is in effect, but PostgreSQL does not wait for walship", "may not change", sql];
    db1.walship(&["sync", "any 1 (*)"]).await.failed(1, &texts);
    set_by_hand(&db1, "walship").await;
    db1.walship(&["sync", "any 1 (*)"]).await.succeeded();
    let back = "ALTER SYSTEM SET synchronous_standby_names = ''; SELECT pg_reload_conf();";
    db1.walship(&["sync", "async"]).await.failed(3, &["may not change", back]);
    assert!(db1.walship(&["sync"]).await.succeeded().contains("wait for any 1 (*)"), "nothing was changed");
    set_by_hand(&db1, "").await;
    db1.walship(&["sync", "async"]).await.succeeded();
    // With the grants that `check` names it does it by itself.
    let grants = db1.walship(&["check"]).await.stdout;
    let grants: Vec<&str> =
        grants.lines().filter_map(|line| Some(&line[line.find("To let it: ")? + 11..])).collect();
    assert_eq!(grants.len(), 2, "{grants:?}");
    for grant in grants {
        db1.cluster.sql(grant).await.unwrap();
    }
    db1.walship(&["sync", "any 1 (*)"]).await.succeeded();
    assert_eq!(standby_names(&db1).await, "walship");
}

#[tokio::test]
async fn a_promoted_node_goes_on_with_the_policy_that_it_was_told() {
    let mut three = Three::new().await;
    three.db1.walship(&["sync", "any 1 (*)", "--stall-limit", "1h"]).await.succeeded();
    three.commit("on").await.ends("at once").await;
    let lsn: Lsn =
        three.db1.cluster.value("SELECT pg_current_wal_flush_lsn()").await.unwrap().parse().unwrap();
    for name in ["db2", "db3"] {
        three.reaches(name, Level::Flush, lsn).await;
    }
    three.db2.knows(&["db1", "db2", "db3"]).await;
    three.db1.dies().await;
    let said = three.db2.walship(&PROMOTE).await.exited_with(0);
    assert!(said.stderr.contains("commits will wait for any 1 (*)"), "{said:?}");
    assert_eq!(standby_names(&three.db2).await, "walship");
    // db3 alone is left of those that count.
    three.db2.cluster.sql("INSERT INTO t VALUES ('after')").await.unwrap();
    let status = three.db2.status().await.unwrap();
    let commits = status.commits.unwrap();
    let policy = commits.policy.unwrap();
    assert_eq!((policy.text.as_str(), policy.serial), ("any 1 (*)", 2), "not its own configuration's");
    assert_eq!(policy.stall_limit, "3600s");
    let counts: Vec<(&str, &str)> =
        commits.seats.iter().map(|seat| (seat.name.as_str(), seat.part.as_str())).collect();
    assert_eq!(counts, [("db1", "unknown"), ("db3", "yes")]);
    // Nor after a restart.
    three.db2.sidecar.terminate().await;
    three.db2.run().await;
    three.db2.cluster.sql("INSERT INTO t VALUES ('after')").await.unwrap();
    let policy = three.db2.status().await.unwrap().commits.unwrap().policy.unwrap();
    assert_eq!((policy.text.as_str(), policy.serial), ("any 1 (*)", 2));
}

#[tokio::test]
async fn a_weaker_policy_waits_for_a_quorum_of_the_one_before() {
    let mut three = Three::new().await;
    three.sync("all").await;
    three.hold("db3", Level::Write).await;
    let commit = three.commit("on").await;
    let lsn = three.waits(&commit).await;
    three.reaches("db2", Level::Flush, lsn).await;
    let texts = ["`any 1 (*)` is weaker than the policy before", "db3 not yet", "It stays pending"];
    three.db1.walship(&["sync", "any 1 (*)"]).await.failed(4, &texts);
    three.still_waits(&commit, "by a policy that is pending").await;
    let shown = three.db1.walship(&["sync"]).await.succeeded();
    assert!(shown.contains("wait for all") && shown.contains("pending: wait for any 1 (*)"), "{shown}");
    // It outlives the sidecar, and takes effect without the command once the last one has stored it.
    three.db1.sidecar.kill().await;
    three.db1.run().await;
    three.let_go("db3", Level::Write).await;
    commit.ends("when db3 is back").await;
    eventually("the weaker policy is in effect", async || {
        let commits = three.db1.status().await?.commits;
        ensure!(
            commits.and_then(|commits| commits.policy).is_some_and(|policy| policy.serial == 3),
            "not yet"
        );
        Ok(())
    })
    .await;
    three.hold("db3", Level::Write).await;
    three.commit("on").await.ends("by db2 alone").await;
    three.let_go("db3", Level::Write).await;
    // A stricter one needs nobody.
    three.hold("db2", Level::Write).await;
    three.hold("db3", Level::Write).await;
    assert!(three.sync("all").await.contains("policy 4 is in effect"));
    let commit = three.commit("on").await;
    three.waits(&commit).await;
    three.let_go("db2", Level::Write).await;
    three.let_go("db3", Level::Write).await;
    commit.ends("by both").await;
}
