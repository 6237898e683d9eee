//! WAL that PostgreSQL removed before it was captured: named, critical everywhere, and the way out.

use anyhow::ensure;
use walship::demo::ClusterOptions;
use walship::pg::Lsn;

use crate::harness::{Node, Test, eventually};

const DROP_SLOT: &str = "SELECT pg_drop_replication_slot('walship')";

/// A primary whose PostgreSQL keeps no more WAL than it must.
async fn primary(test: &Test, options: ClusterOptions) -> Node {
    let mut db1 = Node::new(test, "db1", options.set("min_wal_size", "2MB")).await;
    db1.init().await;
    db1.start_primary().await;
    db1
}

/// Writes some segments, and lets PostgreSQL remove what nothing holds.
async fn write_and_forget(db1: &Node) {
    for _ in 0..6 {
        db1.cluster.sql("CREATE TABLE IF NOT EXISTS t (a int); INSERT INTO t VALUES (1)").await.unwrap();
        db1.cluster.sql("SELECT pg_switch_wal(); CHECKPOINT").await.unwrap();
    }
}

/// Checks that every report of the node is critical and says `text`.
async fn is_critical(node: &Node, text: &str) {
    eventually(&format!("{} says {text:?}", node.name()), async || {
        let table = node.walship(&["status"]).await.exits(0)?.stdout;
        ensure!(table.contains("critical: ") && table.contains(text), "{table}");
        Ok(())
    })
    .await;
    let lag = node.walship(&["lag", "--crit", "64GiB,30m"]).await.exited_with(2).stdout;
    assert!(lag.contains(text), "{lag}");
    let check = node.walship(&["check"]).await.exited_with(2).stdout;
    assert!(check.contains(text), "{check}");
}

#[tokio::test]
async fn a_gap_is_named_and_a_new_log_begins_behind_it() {
    let test = Test::new();
    let mut db1 = primary(&test, ClusterOptions::default()).await;
    let db2 = test.standby("db2", &db1).await;
    let end: Lsn = db1.status().await.unwrap().store.durable;
    db1.sidecar.terminate().await;
    db1.cluster.sql(DROP_SLOT).await.unwrap();
    write_and_forget(&db1).await;
    let restart = db1.cluster.value("SELECT redo_lsn FROM pg_control_checkpoint()").await.unwrap();

    db1.sidecar.expect_log("capture has stopped, and nothing new is shipped until a person acts");
    db1.run().await;
    let gap = format!("WAL from {end} on, at most to {restart}, on timeline 1 is missing");
    db1.sidecar.wait_log(&gap).await;
    is_critical(&db1, &gap).await;
    is_critical(&db2, &format!("db1: capture has stopped, and nothing new is shipped: {}", "PostgreSQL"))
        .await;
    // It stays so, whatever comes next.
    write_and_forget(&db1).await;
    db1.sidecar.terminate().await;
    db1.run().await;
    is_critical(&db1, &gap).await;

    db1.sidecar.terminate().await;
    db2.sidecar.expect_log("can't follow");
    db1.sidecar.start(&["primary", "--new-log"]);
    db1.captures().await;
    db2.sidecar.wait_log("this standby can't follow").await;
    eventually("its status says what to do", async || {
        let said = db2.walship(&["status"]).await.said();
        ensure!(said.contains("it must be seeded anew: `walship standby --reseed`"), "{said}");
        Ok(())
    })
    .await;
    is_critical(&db1, "db2 was let go, and WAL that it needs is no longer kept").await;
    let db3 = test.standby("db3", &db1).await;
    db1.cluster.sql("INSERT INTO t VALUES (2)").await.unwrap();
    db3.equals(&db1).await;
    assert!(db3.same_content_as(&db1) > 0);
}

#[tokio::test]
async fn a_slot_that_lost_its_wal_while_the_sidecar_was_down() {
    let test = Test::new();
    let options = ClusterOptions::default().set("max_slot_wal_keep_size", "1MB");
    let mut db1 = primary(&test, options).await;
    db1.sidecar.terminate().await;
    write_and_forget(&db1).await;
    let check = db1.walship(&["check"]).await.exited_with(2).stdout;
    assert!(check.contains("walship has lost its WAL") && check.contains("it does not run"), "{check}");

    db1.sidecar.expect_log("PostgreSQL let the slot's WAL go; making the slot anew");
    db1.sidecar.expect_log("capture has stopped, and nothing new is shipped until a person acts");
    db1.run().await;
    is_critical(&db1, "is missing, which nobody can follow over").await;
    let slot = "SELECT wal_status FROM pg_replication_slots";
    assert_eq!(db1.cluster.value(slot).await.unwrap(), "reserved");
}

#[tokio::test]
async fn a_slot_that_is_gone_harms_nobody_while_the_wal_is_there() {
    let test = Test::new();
    let mut db1 = primary(&test, ClusterOptions::default().set("wal_keep_size", "1GB")).await;
    let db2 = test.standby("db2", &db1).await;
    db1.sidecar.terminate().await;
    db1.cluster.sql(DROP_SLOT).await.unwrap();
    write_and_forget(&db1).await;
    db1.run().await;
    db2.equals(&db1).await;
    // Nor does it while walship runs.
    db1.cluster.sql(DROP_SLOT).await.unwrap();
    write_and_forget(&db1).await;
    db2.equals(&db1).await;
    assert_eq!(db1.status().await.unwrap().alarms, Vec::<String>::new());
    eventually("the slot is there again", async || {
        let slots = db1.cluster.value("SELECT count(*) FROM pg_replication_slots").await?;
        ensure!(slots == "1", "{slots}");
        Ok(())
    })
    .await;
}
