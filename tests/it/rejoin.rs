//! An old primary comes back as a standby.

use anyhow::ensure;
use walship::report::Role;

use crate::harness::{Node, PROMOTE, Test, eventually};
use crate::promotion::{three, write};

fn capsules(node: &Node) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(node.store().join("capsules")) else { return Vec::new() };
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// db1 is lost and comes back with rows that db2, the new primary, never had.
async fn diverged(test: &Test) -> (Node, Node, Node) {
    let (mut db1, db2, db3) = three(test).await;
    db1.dies().await;
    db2.walship(&PROMOTE).await.exited_with(0);
    write(&db2, "after").await;
    db1.cluster.start().await.unwrap();
    write(&db1, "only_here").await;
    db1.sidecar.expect_log("this node was superseded");
    db1.sidecar.expect_log("the log that is here does not lead to where the copy begins");
    (db1, db2, db3)
}

#[tokio::test]
async fn after_a_switchover_the_old_primary_follows_by_itself_and_can_take_over_again() {
    let test = Test::new();
    let (db1, db2, db3) = three(&test).await;
    db1.walship(&["rejoin"]).await.failed(3, &["db1 is the primary: nobody was promoted in its place"]);
    db2.walship(&["rejoin"]).await.failed(3, &["db2 is a standby already"]);
    db1.walship(&["switchover", "--to", "db2"]).await.succeeded();
    db1.is(Role::Standby).await;
    write(&db2, "after").await;
    for standby in [&db1, &db3] {
        standby.equals(&db2).await;
    }
    assert!(capsules(&db1).is_empty(), "it had nothing that db2 did not have");
    eventually("its slot is dropped", async || {
        let slots = db1.cluster.value("SELECT count(*) FROM pg_replication_slots").await?;
        ensure!(slots == "0", "{slots}");
        Ok(())
    })
    .await;
    let done = db3.walship(&["switchover", "--to", "db1"]).await.succeeded();
    assert!(done.contains("db1 is the primary of epoch 2"), "{done}");
    db2.is(Role::Standby).await;
    write(&db1, "back").await;
    for standby in [&db2, &db3] {
        standby.equals(&db1).await;
    }
}

#[tokio::test]
async fn what_only_the_old_primary_had_is_kept_before_it_is_made_equal() {
    let test = Test::new();
    let (mut db1, db2, db3) = diverged(&test).await;
    let table = db1
        .cluster
        .value("SELECT '  1663/' || oid || '/' FROM pg_database WHERE datname = current_database()");
    let table =
        table.await.unwrap() + &db1.cluster.value("SELECT pg_relation_filenode('only_here')").await.unwrap();
    db1.cluster.sql("BEGIN; INSERT INTO only_here VALUES (0); ROLLBACK").await.unwrap();
    let history =
        std::fs::read_to_string(db2.cluster.data_directory().join("pg_wal/00000002.history")).unwrap();
    let fork = history.split_whitespace().nth(1).unwrap();
    db1.run().await;
    db1.sidecar.wait_log("this node was superseded").await;
    let dry = db1.walship(&["rejoin", "--dry-run"]).await.succeeded();
    assert!(dry.contains("that db2 never had") && dry.contains("nothing was changed"), "{dry}");
    // It stopped PostgreSQL. Without checksums pg_rewind can't know which pages changed.
    let mut checksums = db1.cluster.account().command(db1.cluster.binaries().program("pg_checksums"));
    checksums.arg("--disable").arg("-D").arg(db1.cluster.data_directory());
    db1.cluster.run(checksums).await.unwrap();
    let dry = db1.walship(&["rejoin", "--dry-run"]).await.succeeded();
    let why = "by a copy of what differs, not by pg_rewind: without data checksums and wal_log_hints";
    assert!(dry.contains(why), "{dry}");
    let refused =
        ["pg_rewind can't work: without data checksums", "hint: Without --method it is done by a copy"];
    db1.walship(&["rejoin", "--method", "rewind"]).await.failed(3, &refused);
    let done = db1.walship(&["rejoin"]).await.exited_with(0);
    assert!(done.stderr.contains("that db2 never had") && done.stderr.contains("is kept in"), "{done:?}");
    assert!(done.stderr.contains("pg_rewind can't work"), "{done:?}");
    assert!(done.stdout.contains("db1 is being made equal to db2"), "{done:?}");
    db1.is(Role::Standby).await;
    db1.equals(&db2).await;
    assert_eq!(db1.cluster.value("SELECT to_regclass('only_here') IS NULL").await.unwrap(), "t");
    let capsules = capsules(&db1);
    let capsule = capsules.iter().find(|name| name.ends_with(".wal.zst"));
    let capsule = capsule.unwrap_or_else(|| panic!("no capsule: {capsules:?}"));
    let summary = db1.store().join("capsules").join(capsule.replace(".wal.zst", ".txt"));
    let summary = std::fs::read_to_string(summary).unwrap();
    for text in [
        "WAL of db1 that db2, the new primary, never had",
        &format!("Timeline 1, from {fork} to "),
        ", the first at 20",
        " UTC, the last at 20",
        "Transactions that were rolled back: 1\n",
        &table,
        "  Transaction ",
    ] {
        assert!(summary.contains(text), "{text:?} in {summary}");
    }
    assert!(!capsules.iter().any(|name| name.ends_with("segments")), "{capsules:?}");
    write(&db2, "later").await;
    for standby in [&db1, &db3] {
        standby.equals(&db2).await;
    }
}

#[tokio::test]
async fn configured_so_an_old_primary_rejoins_by_itself() {
    let test = Test::new();
    let (mut db1, db2, _db3) = diverged(&test).await;
    let config = std::fs::read_to_string(db1.config_file()).unwrap();
    assert!(config.contains("# auto_rejoin = false"), "{config}");
    std::fs::write(db1.config_file(), config.replace("# auto_rejoin = false", "auto_rejoin = true")).unwrap();
    db1.run().await;
    db1.is(Role::Standby).await;
    db1.equals(&db2).await;
}

#[tokio::test]
async fn killed_once_it_was_settled_as_a_standby_it_goes_on() {
    let test = Test::new();
    let (mut db1, db2, db3) = three(&test).await;
    assert!(db1.sidecar.terminate().await.success());
    db1.runs_with("rejoin-settled=abort").await;
    db2.follows(&db1).await;
    db2.walship(&["switchover", "--to", "db2"]).await.succeeded();
    db1.sidecar.ended().await;
    db1.runs_with("").await;
    db1.is(Role::Standby).await;
    write(&db2, "after").await;
    for standby in [&db1, &db3] {
        standby.equals(&db2).await;
    }
}

#[tokio::test]
async fn one_whose_own_promotion_nobody_captured_is_not_fed_a_timeline_of_the_same_number() {
    let test = Test::new();
    let (mut db1, mut db2, db3) = three(&test).await;
    db2.sidecar.terminate().await;
    db2.runs_with("promote-promoted=abort").await;
    db2.follows(&db1).await;
    db1.dies().await;
    db2.walship(&PROMOTE).await.exits(4).unwrap();
    db2.sidecar.ended().await;
    db2.cluster.kill().await.unwrap();
    db3.walship(&[&PROMOTE[..], &["--force"]].concat()).await.exited_with(0);
    db2.sidecar.set("WALSHIP_FAILPOINTS", "");
    db2.sidecar.expect_log("this node was superseded");
    db2.run().await;
    db2.sidecar.wait_log("this node was superseded").await;
    let texts =
        ["PostgreSQL here began timeline 2, of which nothing was captured", "hint: Save what matters"];
    db2.walship(&["rejoin"]).await.failed(3, &texts);
}
