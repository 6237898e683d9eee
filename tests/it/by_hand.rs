//! A standby whose PostgreSQL somebody promoted without walship; and a slot that a standby has no use for.

use std::net::SocketAddr;

use anyhow::ensure;
use walship::report::Role;

use crate::harness::{Node, PATIENCE, PROMOTE, Test, eventually};
use crate::http::{get, serves_http};

/// What is said of it in the log and in every report.
const SAID: &str =
    "it was promoted by hand, and nothing that it writes is shipped: `walship promote` adopts that";

async fn write(node: &Node, table: &str) {
    let statement = format!("CREATE TABLE {table} AS SELECT generate_series(1, 1000) AS a");
    node.cluster.sql(&statement).await.unwrap();
}

/// What this node says of itself while PostgreSQL was promoted by hand, and to whom nobody is sent.
async fn says_so(node: &Node, http: SocketAddr) {
    eventually("every report says so", async || {
        let status = node.status().await?;
        ensure!(status.node.role == Role::Standby && status.node.timeline.0 == 1, "{status:?}");
        let table = node.walship(&["status"]).await.exits(0)?.stdout;
        ensure!(table.contains(SAID), "{table}");
        let lag = node.walship(&["lag", "--warn", "1GiB,1h"]).await.exits(2)?.stdout;
        ensure!(lag.contains(SAID), "{lag}");
        for path in ["/primary", "/standby", "/health"] {
            let (code, body) = get(http, path).await;
            ensure!(code == 503, "{path}: {code} {body}");
        }
        let metrics = get(http, "/metrics").await.1;
        ensure!(metrics.contains("walship_primary 0") && metrics.contains("walship_alarms 1"), "{metrics}");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn promoted_by_hand_beside_a_primary_it_ships_nothing_and_says_so_also_after_a_restart() {
    let test = Test::new();
    let db1 = test.primary("db1").await;
    let mut db2 = test.standby("db2", &db1).await;
    let db3 = test.standby("db3", &db1).await;
    db3.knows(&["db1", "db2", "db3"]).await;
    db2.sidecar.terminate().await;
    let http = serves_http(&test, &mut db2);
    db2.sidecar.expect_log(SAID);
    db2.run().await;
    db2.cluster.promote().await.unwrap();
    db2.sidecar.wait_log(SAID).await;
    write(&db2, "elsewhere").await;
    says_so(&db2, http).await;
    db2.walship(&["promote"]).await.failed(3, &["PostgreSQL on db1 still answers as the primary"]);

    for is_down in [false, true] {
        db2.sidecar.terminate().await;
        db2.walship(&["primary"]).await.failed(3, &["promoted by hand", "hint: Start `walship run`"]);
        if is_down {
            db2.stops().await;
        }
        db2.run().await;
        says_so(&db2, http).await;
        assert_eq!(db2.cluster.is_running(), !is_down, "walship does not start it");
    }
    let said = db2.sidecar.log().entries().iter().filter(|entry| entry.contains(SAID)).count();
    assert_eq!(said, 3, "once in each of its lives");
    // The others never heard of it.
    write(&db1, "goes_on").await;
    db3.equals(&db1).await;
    for node in [&db1, &db2, &db3] {
        assert!(!node.store().join("00000002.history").exists(), "{}", node.name());
    }
    db2.walship(&["standby", "--reseed"]).await.failed(3, &["was promoted", "hint: Save what matters"]);
}

#[tokio::test]
async fn promoted_by_hand_it_is_adopted_and_the_others_follow() {
    let test = Test::new();
    let mut db1 = test.primary("db1").await;
    let mut db2 = test.standby("db2", &db1).await;
    let db3 = test.standby("db3", &db1).await;
    for standby in [&db2, &db3] {
        standby.knows(&["db1", "db2", "db3"]).await;
        standby.follows(&db1).await;
    }
    db1.dies().await;
    db2.sidecar.expect_log(SAID);
    db2.cluster.promote().await.unwrap();
    write(&db2, "by_hand").await;
    db2.sidecar.wait_log(SAID).await;
    // Also by one that did not see it happen.
    db2.sidecar.terminate().await;
    db2.run().await;
    db2.walship(&["promote"]).await.succeeded();
    write(&db2, "adopted").await;
    db2.captures().await;
    eventually("db3 has both tables", async || {
        let both = "SELECT to_regclass('by_hand') IS NOT NULL AND to_regclass('adopted') IS NOT NULL";
        ensure!(db3.cluster.value(both).await? == "t", "not yet");
        Ok(())
    })
    .await;
    db3.equals(&db2).await;
    let alarms = db2.status().await.unwrap().alarms;
    assert!(alarms.is_empty(), "{alarms:?}");
}

#[tokio::test]
async fn what_its_postgresql_lacked_when_it_was_promoted_by_hand_counts_as_missing() {
    let test = Test::new();
    let mut db1 = test.primary("db1").await;
    let db2 = test.standby("db2", &db1).await;
    let db3 = test.standby("db3", &db1).await;
    for standby in [&db2, &db3] {
        standby.knows(&["db1", "db2", "db3"]).await;
        standby.follows(&db1).await;
    }
    db2.cluster.sql("ALTER SYSTEM SET primary_conninfo = ''").await.unwrap();
    db2.cluster.sql("SELECT pg_reload_conf()").await.unwrap();
    db2.cluster.wait_until("SELECT count(*) = 0 FROM pg_stat_wal_receiver", PATIENCE).await.unwrap();
    write(&db1, "late").await;
    db3.follows(&db1).await;
    db1.captures().await;
    let end = db1.status().await.unwrap().store.durable;
    eventually("db2's store has it", async || {
        let durable = db2.status().await?.store.durable;
        ensure!(durable >= end, "{durable} of {end}");
        Ok(())
    })
    .await;
    db1.dies().await;
    db2.sidecar.expect_log(SAID);
    db2.cluster.promote().await.unwrap();
    db2.sidecar.wait_log(SAID).await;
    db2.walship(&["promote"])
        .await
        .failed(3, &["db3 is further along", "hint: Run `walship promote` on db3"]);
    // Adopted all the same, that is lost, and whoever has it goes back.
    let forced = db2.walship(&["promote", "--force"]).await.exited_with(0);
    assert!(forced.stderr.contains("and will be lost"), "{forced:?}");
    db3.sidecar.expect_log("what lies past that is kept");
    write(&db2, "adopted").await;
    eventually("db3 follows", async || {
        ensure!(db3.cluster.value("SELECT to_regclass('adopted') IS NOT NULL").await? == "t", "not yet");
        Ok(())
    })
    .await;
    db3.equals(&db2).await;
    assert_eq!(db3.cluster.value("SELECT to_regclass('late') IS NULL").await.unwrap(), "t");
}

#[tokio::test]
async fn a_standby_drops_the_slot_that_it_had_as_a_primary_and_no_other() {
    let test = Test::new();
    let mut db1 = test.primary("db1").await;
    let mut db2 = test.standby("db2", &db1).await;
    for slot in ["walship", "somebodys"] {
        let make = format!("SELECT pg_create_physical_replication_slot('{slot}', true)");
        db2.cluster.sql(&make).await.unwrap();
    }
    db2.sidecar.terminate().await;
    db2.run().await;
    let slots = "SELECT string_agg(slot_name, ',') FROM pg_replication_slots";
    eventually("the slot is dropped", async || {
        let slots = db2.cluster.value(slots).await?;
        ensure!(slots == "somebodys", "{slots}");
        Ok(())
    })
    .await;
    db2.sidecar.wait_log("dropped the replication slot").await;
    // Promoted it has one again.
    db2.knows(&["db1", "db2"]).await;
    db2.follows(&db1).await;
    db1.dies().await;
    db2.walship(&PROMOTE).await.succeeded();
    write(&db2, "after").await;
    db2.captures().await;
    let has =
        db2.cluster.value("SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'walship'").await;
    assert_eq!(has.unwrap(), "1");
}
