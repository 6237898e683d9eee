//! A standby whose PostgreSQL received what the new primary never had: it goes back to the fork and follows, or says that
//! it can't.

use anyhow::ensure;
use walship::demo::ClusterOptions;
use walship::pg::Lsn;

use crate::cascade::{prefers, takes};
use crate::harness::{Node, Test, eventually};
use crate::promotion::{ships_at, write_much};

/// What the sidecar says when it goes back.
const GOES_BACK: &str = "what lies past that is kept";

/// A primary and two standbys, whose PostgreSQL writes a page to its files only when it is told to.
async fn three(test: &Test) -> (Node, Node, Node) {
    let options = ClusterOptions::default()
        .set("bgwriter_lru_maxpages", "0")
        .set("checkpoint_timeout", "1h")
        .set("autovacuum", "off");
    let mut db1 = Node::new(test, "db1", options).await;
    db1.init().await;
    db1.start_primary().await;
    let (db2, mut db3) = (test.standby("db2", &db1).await, test.standby("db3", &db1).await);
    write_much(&db1, "much").await;
    db3.follows(&db1).await;
    // It keeps the files of old WAL for WAL to come.
    restartpoint(&db1, &db3).await;
    db1.cluster.sql("CREATE TABLE before AS SELECT generate_series(1, 1000) AS a").await.unwrap();
    for standby in [&db2, &db3] {
        standby.equals(&db1).await;
        standby.knows(&["db1", "db2", "db3"]).await;
    }
    // Nobody gets from it in a hurry what it alone has.
    ships_at(&mut db3, "1KiB").await;
    // What the looks at the rows wrote is flushed by a commit, not by them.
    db1.cluster.sql("UPDATE before SET a = a WHERE a = 1").await.unwrap();
    db3.follows(&db1).await;
    (db1, db2, db3)
}

/// The standby's files have all that it has replayed.
async fn restartpoint(primary: &Node, standby: &Node) {
    primary.cluster.sql("CHECKPOINT").await.unwrap();
    standby.follows(primary).await;
    standby.cluster.sql("CHECKPOINT").await.unwrap();
}

/// Only db3 gets much WAL.
async fn only_db3_gets(db1: &Node, db2: &mut Node, db3: &Node) {
    db2.sidecar.terminate().await;
    write_much(db1, "lost").await;
    db1.cluster.sql("UPDATE before SET a = -a; DELETE FROM before WHERE a % 2 = 0").await.unwrap();
    received(db1, db3).await;
}

/// The standby's PostgreSQL has received all that was written, replayed or not.
async fn received(primary: &Node, standby: &Node) {
    let written = primary.cluster.value("SELECT pg_current_wal_flush_lsn()").await.unwrap();
    let query = format!("SELECT pg_last_wal_receive_lsn() >= '{written}'");
    eventually("PostgreSQL has received it", async || {
        ensure!(standby.cluster.value(&query).await? == "t", "not yet");
        Ok(())
    })
    .await;
}

/// The primary is lost, and db2 is promoted without what db3 has.
async fn lost(mut db1: Node, db2: &mut Node) {
    db1.dies().await;
    // Otherwise it would have it.
    db2.runs_with("promote-pulling=fail").await;
    db2.walship(&["promote", "--force"]).await.exited_with(0);
    db2.cluster.sql("CREATE TABLE after AS SELECT generate_series(1, 1000) AS a").await.unwrap();
}

/// It shows what was written since the promotion. Its position alone says nothing: it was further along.
async fn shows_what_came_after(node: &Node) {
    eventually("it shows what was written since", async || {
        ensure!(node.cluster.value("SELECT to_regclass('after') IS NOT NULL").await? == "t", "not yet");
        Ok(())
    })
    .await;
}

/// It follows, with the rows and the log of the new primary, and what was lost is a capsule.
async fn came_back(db3: &Node, db2: &Node) {
    shows_what_came_after(db3).await;
    db3.equals(db2).await;
    assert_eq!(db3.cluster.value("SELECT to_regclass('lost') IS NULL").await.unwrap(), "t");
    assert!(db3.same_content_as(db2) > 0);
    let capsules: Vec<_> = std::fs::read_dir(db3.store().join("capsules")).unwrap().collect();
    assert!(!capsules.is_empty());
    eventually("nothing is wrong any more", async || {
        let status = db3.status().await?;
        ensure!(status.alarms.is_empty() && status.node.timeline.0 == 2, "{status:?}");
        Ok(())
    })
    .await;
    // It serves like one that was never away: its files are the primary's, also when it starts anew.
    db3.cluster.restart().await.unwrap();
    db2.cluster.sql("INSERT INTO after SELECT generate_series(1, 1000)").await.unwrap();
    db3.equals(db2).await;
}

#[tokio::test]
async fn what_was_replayed_past_the_fork_and_is_in_no_file_is_undone() {
    let test = Test::new();
    let (db1, mut db2, db3) = three(&test).await;
    db3.sidecar.expect_log(GOES_BACK);
    only_db3_gets(&db1, &mut db2, &db3).await;
    lost(db1, &mut db2).await;
    came_back(&db3, &db2).await;
}

#[tokio::test]
async fn what_a_paused_or_delayed_replay_has_not_replayed_never_is() {
    for statement in ["SELECT pg_wal_replay_pause()", "ALTER SYSTEM SET recovery_min_apply_delay = '4s'"] {
        let test = Test::new();
        let (db1, mut db2, db3) = three(&test).await;
        db3.sidecar.expect_log(GOES_BACK);
        db3.cluster.sql(statement).await.unwrap();
        db3.cluster.sql("SELECT pg_reload_conf()").await.unwrap();
        only_db3_gets(&db1, &mut db2, &db3).await;
        lost(db1, &mut db2).await;
        came_back(&db3, &db2).await;
    }
}

/// One after the other on the same standby: each start begins with what the one before left.
#[tokio::test]
async fn killed_at_any_step_it_begins_again() {
    let points = ["noted", "stopped", "kept", "log-cut", "segment-cut", "cut"];
    let test = Test::new();
    let (db1, mut db2, mut db3) = three(&test).await;
    db3.sidecar.expect_log(GOES_BACK);
    db3.sidecar.terminate().await;
    db3.runs_with("fork-noted=abort").await;
    only_db3_gets(&db1, &mut db2, &db3).await;
    lost(db1, &mut db2).await;
    for (number, point) in points.into_iter().enumerate() {
        db3.sidecar.ended().await;
        println!("killed at {point}");
        // Also when somebody has PostgreSQL run meanwhile.
        if number % 2 == 1 && !db3.cluster.is_running() {
            db3.cluster.start().await.unwrap();
        }
        let next = points.get(number + 1).map(|next| format!("fork-{next}=abort"));
        db3.sidecar.set("WALSHIP_FAILPOINTS", &next.unwrap_or_default());
        db3.sidecar.start(&["run"]);
    }
    came_back(&db3, &db2).await;
}

#[tokio::test]
async fn what_is_in_its_files_is_said_and_the_command_that_is_named_mends_it() {
    let test = Test::new();
    let (db1, mut db2, db3) = three(&test).await;
    db3.sidecar.expect_log("can't follow");
    let postmaster = db3.postmaster();
    only_db3_gets(&db1, &mut db2, &db3).await;
    restartpoint(&db1, &db3).await;
    lost(db1, &mut db2).await;
    db3.sidecar.wait_log("it must be seeded anew: `walship standby --reseed`").await;
    db3.sidecar.log().contains("its files hold changes up to").unwrap();
    // Whoever reads there goes on reading, and every report says what is wrong.
    assert_eq!(db3.postmaster(), postmaster);
    assert_eq!(db3.cluster.value("SELECT count(*) FROM lost").await.unwrap(), "30000");
    assert!(db3.walship(&["status"]).await.succeeded().contains("its files hold changes up to"));
    db3.sidecar.expect_log("the log that is here does not lead to where the copy begins");
    db3.walship(&["standby", "--reseed"]).await.exited_with(0);
    shows_what_came_after(&db3).await;
    db3.equals(&db2).await;
}

#[tokio::test]
async fn with_auto_reseed_it_is_mended_by_itself() {
    let test = Test::new();
    let (db1, mut db2, mut db3) = three(&test).await;
    // That is what it takes itself, too.
    ships_at(&mut db3, "2MiB").await;
    db3.sidecar.terminate().await;
    let config = std::fs::read_to_string(db3.config_file()).unwrap();
    std::fs::write(db3.config_file(), config.replace("# auto_reseed = false", "auto_reseed = true")).unwrap();
    db3.sidecar.expect_log("it seeds itself anew");
    db3.sidecar.expect_log("the log that is here does not lead to where the copy begins");
    db3.run().await;
    only_db3_gets(&db1, &mut db2, &db3).await;
    restartpoint(&db1, &db3).await;
    lost(db1, &mut db2).await;
    shows_what_came_after(&db3).await;
    db3.equals(&db2).await;
    db3.sidecar.log().contains("its files hold changes up to").unwrap();
}

#[tokio::test]
async fn whole_files_that_were_changed_past_the_fork_are_not_taken_for_unchanged() {
    let test = Test::new();
    let (db1, mut db2, db3) = three(&test).await;
    for said in [GOES_BACK, "PostgreSQL has gone past", "can't follow"] {
        db3.sidecar.expect_log(said);
    }
    only_db3_gets(&db1, &mut db2, &db3).await;
    db1.cluster.sql("CREATE DATABASE another STRATEGY file_copy").await.unwrap();
    received(&db1, &db3).await;
    lost(db1, &mut db2).await;
    db3.sidecar.wait_log("it must be seeded anew").await;
}

#[tokio::test]
async fn what_an_archive_may_have_again_is_not_taken_away() {
    let test = Test::new();
    let (db1, mut db2, db3) = three(&test).await;
    db3.sidecar.expect_log("can't follow: PostgreSQL has a restore_command (false)");
    db3.cluster.sql("ALTER SYSTEM SET restore_command = 'false'").await.unwrap();
    db3.cluster.sql("SELECT pg_reload_conf()").await.unwrap();
    only_db3_gets(&db1, &mut db2, &db3).await;
    lost(db1, &mut db2).await;
    db3.sidecar.wait_log("it must be seeded anew: `walship standby --reseed`").await;
}

#[tokio::test]
async fn from_the_end_of_a_segment_it_goes_back_also_with_a_sidecar_that_was_away() {
    let test = Test::new();
    let (mut db1, mut db2, mut db3) = three(&test).await;
    db1.cluster.sql("SELECT pg_switch_wal()").await.unwrap();
    db2.follows(&db1).await;
    only_db3_gets(&db1, &mut db2, &db3).await;
    db3.sidecar.terminate().await;
    db1.dies().await;
    // Otherwise it would have it.
    db2.runs_with("promote-pulling=fail").await;
    db2.walship(&["promote", "--force"]).await.exited_with(0);
    db2.cluster.sql("CREATE TABLE after AS SELECT generate_series(1, 1000) AS a").await.unwrap();
    db3.sidecar.expect_log(GOES_BACK);
    db3.run().await;
    came_back(&db3, &db2).await;
    let history = std::fs::read_to_string(db3.store().join("00000002.history")).unwrap();
    let fork: Lsn = history.split_whitespace().nth(1).unwrap().parse().unwrap();
    println!("the fork is at {fork}");
    assert!(fork.0 % (1 << 20) <= 40, "{fork}");
}

#[tokio::test]
async fn a_relay_and_the_one_behind_it_both_go_back() {
    let test = Test::new();
    let (mut db1, mut db2, mut db3) = three(&test).await;
    let mut db4 = test.standby("db4", &db1).await;
    only_db3_gets(&db1, &mut db2, &db3).await;
    received(&db1, &db4).await;
    for node in [&mut db3, &mut db4] {
        node.sidecar.terminate().await;
        node.sidecar.set("WALSHIP_MAX_RATE", "");
        node.sidecar.expect_log(GOES_BACK);
    }
    prefers(&mut db4, &[&db3]);
    db1.dies().await;
    // Otherwise it would have it.
    db2.runs_with("promote-pulling=fail").await;
    db2.walship(&["promote", "--force"]).await.exited_with(0);
    db2.cluster.sql("CREATE TABLE after AS SELECT generate_series(1, 1000) AS a").await.unwrap();
    db4.run().await;
    db3.run().await;
    came_back(&db3, &db2).await;
    came_back(&db4, &db2).await;
    takes(&db4, &["db4", "db3", "db2"]).await;
}
