//! A disk that is full: said at once, nothing harmed, and it goes on when there is room.

use anyhow::ensure;
use walship::demo::ClusterOptions;
use walship::pg::Lsn;

use crate::harness::{Disk, Node, PROMOTE, Test, eventually, ran_with_own_mounts};

const DISK_BYTES: u64 = 32 << 20;

/// Writes more WAL than slack in the last page of a file could take.
async fn write(primary: &Node, table: &str) {
    let statement = format!("CREATE TABLE {table} AS SELECT generate_series(1, 50000) AS a");
    primary.cluster.sql(&statement).await.unwrap();
}

/// Waits until the node says what is wrong, everywhere.
async fn says(node: &Node, alarm: &str) {
    let critical = format!("critical: {alarm}");
    eventually(&format!("the status of {} says {critical:?}", node.name()), async || {
        let table = node.walship(&["status"]).await.exits(0)?.stdout;
        ensure!(table.contains(&critical) && table.contains("No space left on device"), "{table}");
        Ok(())
    })
    .await;
    // Neither is a lag that is small nor a link that is up any comfort.
    let lag = node.walship(&["lag", "--warn", "64GiB,30m"]).await.exited_with(2).stdout;
    assert!(lag.starts_with("WALSHIP CRITICAL - ") && lag.contains(alarm), "{lag}");
    let check = node.walship(&["check"]).await.exited_with(2).stdout;
    assert!(check.contains(alarm), "{check}");
}

/// Waits until nothing must be acted on any more.
async fn is_well(node: &Node) {
    eventually(&format!("{} says no more", node.name()), async || {
        let status = node.status().await?;
        ensure!(status.alarms.is_empty(), "{:?}", status.alarms);
        Ok(())
    })
    .await;
}

/// How often the log says something.
fn count(node: &Node, text: &str) -> usize {
    node.sidecar.log().entries().iter().filter(|entry| entry.contains(text)).count()
}

#[tokio::test]
async fn under_the_store_of_a_primary() {
    if ran_with_own_mounts() {
        return;
    }
    let test = Test::new();
    let disk = Disk::mount(&test.folder().join("db1/store"), DISK_BYTES, &test.account);
    let mut db1 = Node::new(&test, "db1", ClusterOptions::default()).await;
    db1.init().await;
    db1.sidecar.set("WALSHIP_LOG", "info,walship::daemon::trouble=debug");
    db1.start_primary().await;
    let db2 = test.standby("db2", &db1).await;
    disk.fill();
    db1.sidecar.expect_log("can't be written");
    db1.sidecar.expect_log("lag in seconds begins anew at the next start");
    write(&db1, "while_full").await;
    says(&db1, "the store").await;
    says(&db2, "db1: the store").await;
    let durable = db1.status().await.unwrap().store.durable;
    for (position, view) in [("flush_lsn", "pg_stat_replication"), ("restart_lsn", "pg_replication_slots")] {
        let told = db1.cluster.value(&format!("SELECT coalesce(max({position}), '0/0') FROM {view}")).await;
        assert!(told.unwrap().parse::<Lsn>().unwrap() <= durable, "{position} is past {durable}");
    }
    // Also what is kept in the background can't be, every 15 seconds; and PostgreSQL can be stopped.
    db1.sidecar.wait_log("put off").await;
    db1.stops().await;
    db1.cluster.start().await.unwrap();
    assert!(db1.sidecar.terminate().await.success());
    db1.run().await;
    says(&db1, "the store").await;
    assert!(count(&db1, "ERROR") <= 2, "once in each life of the process");

    disk.free();
    db2.equals(&db1).await;
    is_well(&db1).await;
    db1.walship(&["lag", "--crit", "64GiB,30m"]).await.succeeded();
    assert!(db2.same_content_as(&db1) > 0);
}

#[tokio::test]
async fn under_the_store_of_a_standby() {
    if ran_with_own_mounts() {
        return;
    }
    let test = Test::new();
    let mut db1 = test.primary("db1").await;
    let disk = Disk::mount(&test.folder().join("db2/store"), DISK_BYTES, &test.account);
    let mut db2 = test.standby("db2", &db1).await;
    disk.fill();
    db2.sidecar.expect_log("can't be written");
    db2.sidecar.expect_log("lag in seconds begins anew at the next start");
    write(&db1, "while_full").await;
    says(&db2, "the store").await;
    // Its member list changes, and can't be noted.
    let db3 = test.standby("db3", &db1).await;
    db2.sidecar.terminate().await;
    db2.run().await;
    says(&db2, "the store").await;
    let status = db1.status().await.unwrap();
    let told = status.downstreams.iter().find(|peer| peer.name == "db2").unwrap().progress.flushed;
    assert!(told <= Some(db2.status().await.unwrap().store.durable));
    assert!(count(&db2, "ERROR") <= 2 && count(&db1, "shipping standby=db2") < 10);

    disk.free();
    db2.equals(&db1).await;
    is_well(&db2).await;
    db1.dies().await;
    drop(db3);
}

#[tokio::test]
async fn under_the_data_directory_of_a_standby_that_joins() {
    if ran_with_own_mounts() {
        return;
    }
    let test = Test::new();
    let db1 = test.primary("db1").await;
    write(&db1, "before").await;
    let mut db2 = Node::empty(&test, "db2");
    let data = db2.cluster.data_directory();
    let disk = Disk::mount(&data, 8 << 20, &test.account);
    let bundle = db1.invite("db2").await;
    let texts = ["No space left on device", "hint: "];
    let said = db2.joins_in_vain(&bundle, &[]).await.failed(1, &texts);
    assert!(said.contains(data.to_str().unwrap()), "{said}");
    assert!(!data.join("global/pg_control").exists(), "it can't be started");
    eventually("the backup session has ended", async || {
        let status = db1.status().await?;
        ensure!(status.backups.is_empty() && status.alarms.is_empty(), "{status:?}");
        Ok(())
    })
    .await;

    disk.resize(128 << 20);
    db2.join(&bundle, &[]);
    db2.equals(&db1).await;
    // It may still be waiting for its pg_ctl, for which a server that stops again is one that did not start.
    db2.sidecar.terminate().await;
    db2.stops().await;
}

/// Makes every write of the state fail, and nothing else.
fn spoil_state(node: &Node) -> std::path::PathBuf {
    let in_the_way = node.store().join("walship.state.tmp");
    node.cluster.account().create_folder(&in_the_way).unwrap();
    in_the_way
}

#[tokio::test]
async fn a_state_that_cannot_be_written_lets_nobody_in_and_promotes_nobody() {
    let test = Test::new();
    let mut db1 = test.primary("db1").await;
    let db2 = test.standby("db2", &db1).await;
    let in_the_way = spoil_state(&db1);
    db1.sidecar.expect_log("can't be written");
    let bundle = db1.invite("db3").await;
    let mut db3 = Node::empty(&test, "db3");
    db3.sidecar.expect_log("the copy was cut off");
    db3.join(&bundle, &[]);
    // It waits for a source that can note it.
    db3.sidecar.wait_log("db1 can't note who follows it: ").await;
    let lag = db1.walship(&["lag"]).await.exited_with(2).stdout;
    assert!(lag.contains("what this node must not forget can't be noted"), "{lag}");
    write(&db1, "meanwhile").await;
    db2.equals(&db1).await;
    std::fs::remove_dir(in_the_way).unwrap();
    db3.follows(&db1).await;
    is_well(&db1).await;

    let in_the_way = spoil_state(&db2);
    db2.sidecar.expect_log("can't be written");
    db2.sidecar.expect_log("the promotion failed, going on as a standby");
    db2.knows(&["db1", "db2", "db3"]).await;
    db1.dies().await;
    db2.walship(&["promote"]).await.failed(1, &["walship.state.tmp"]);
    assert_eq!(db2.cluster.value("SELECT pg_is_in_recovery()").await.unwrap(), "t");
    std::fs::remove_dir(in_the_way).unwrap();
    db2.walship(&PROMOTE).await.succeeded();
    write(&db2, "after").await;
    db3.equals(&db2).await;
    is_well(&db2).await;
}

#[tokio::test]
async fn an_fsync_that_fails_ends_the_sidecar_before_anything_is_called_durable() {
    let test = Test::new();
    let mut db1 = test.primary("db1").await;
    let db2 = test.standby("db2", &db1).await;
    db1.sidecar.terminate().await;
    // Up to here it may be durable; nothing that follows is.
    let end = db1.cluster.value("SELECT pg_current_wal_insert_lsn()").await.unwrap();
    write(&db1, "not_durable").await;
    db1.sidecar.set("WALSHIP_FAILPOINTS", "store.fsync=fail");
    db1.sidecar.expect_log("can't be written");
    db1.sidecar.start(&["run"]);
    assert_eq!(db1.sidecar.ended().await.code(), Some(1));
    db1.sidecar.log().contains("hint: Look at the disk, then start walship again.").unwrap();
    let slot = format!("SELECT restart_lsn <= '{end}' FROM pg_replication_slots");
    assert_eq!(db1.cluster.value(&slot).await.unwrap(), "t");

    db1.runs_with("").await;
    db2.equals(&db1).await;
    assert!(db2.same_content_as(&db1) > 0);
}
