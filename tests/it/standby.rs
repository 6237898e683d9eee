//! A standby: joining, following, and what it survives.

use std::time::{Duration, Instant};

use anyhow::ensure;
use walship::demo::{ClusterOptions, digest};
use walship::pg::Lsn;
use walship::vitals::Contact;

use crate::cascade::{all_are_equal, writers, written};
use crate::harness::{Node, Test, eventually};

#[tokio::test]
async fn one_command_from_an_empty_directory_to_a_standby_that_follows() {
    let test = Test::new();
    let db1 = test.primary("db1").await;
    let workload = writers(&db1).await;
    let db2 = test.standby("db2", &db1).await;
    written(&workload, 500).await;
    all_are_equal(workload, &db1, &[&db2]).await;
    db2.walship(&["lag", "--warn", "64MiB,30s", "--crit", "1GiB,5m"]).await.succeeded();
    let table = db1.walship(&["status"]).await.succeeded();
    assert!(table.contains("db2") && table.contains("to db2"), "{table}");
}

#[tokio::test]
async fn killed_right_after_the_copy_it_goes_on_as_a_standby() {
    let test = Test::new();
    let db1 = test.primary("db1").await;
    let mut db2 = Node::empty(&test, "db2");
    db2.sidecar.set("WALSHIP_FAILPOINTS", "join-copied=abort");
    db2.join(&db1.invite("db2").await, &[]);
    db2.sidecar.ended().await;
    db2.runs_with("").await;
    db2.equals(&db1).await;
}

#[tokio::test]
async fn sidecars_and_postgresql_restart_apart() {
    let test = Test::new();
    let mut db1 = test.primary("db1").await;
    let mut db2 = test.standby("db2", &db1).await;
    let workload = writers(&db1).await;
    let (postmaster, begun) = (db2.postmaster(), db2.status().await.unwrap().store.start);
    assert!(db2.sidecar.terminate().await.success());
    written(&workload, 200).await;
    db2.run().await;
    db2.follows(&db1).await;
    assert_eq!(db2.postmaster(), postmaster, "PostgreSQL stayed up");
    assert_eq!(db2.status().await.unwrap().store.start, begun, "it went on where it was");

    db2.cluster.restart().await.unwrap();
    db2.follows(&db1).await;
    assert!(db1.sidecar.terminate().await.success());
    written(&workload, 200).await;
    db1.run().await;
    db2.follows(&db1).await;

    // `run` starts a standby's PostgreSQL that is down, and so does `standby`.
    db2.sidecar.terminate().await;
    db2.stops().await;
    db2.run().await;
    all_are_equal(workload, &db1, &[&db2]).await;
}

#[tokio::test]
async fn a_cut_link_is_said_and_heals() {
    let test = Test::new();
    let (db1, link) = test.primary_behind_a_link("db1").await;
    let db2 = test.standby("db2", &db1).await;
    let workload = writers(&db1).await;
    db2.follows(&db1).await;
    link.cut();
    written(&workload, 500).await;
    eventually("the cut is noticed at both ends", async || {
        let (ours, theirs) = (db2.status().await?, db1.status().await?);
        ensure!(matches!(ours.upstream.unwrap().contact, Contact::Trying { .. }), "not at the standby");
        ensure!(matches!(theirs.downstreams[0].contact, Contact::Trying { .. }), "not at the primary");
        Ok(())
    })
    .await;
    // Nobody knows what the primary wrote since; that time passes is certain.
    let said = db2.walship(&["lag"]).await.exited_with(3).stdout;
    assert!(said.contains("UNKNOWN") && said.contains("not heard for") && said.contains(">="), "{said}");
    eventually("a second has passed", async || {
        db2.walship(&["lag", "--warn", "1s"]).await.exits(1).map(drop)
    })
    .await;
    let said = db1.walship(&["lag", "--warn", "1B", "--crit", "1GiB"]).await.exited_with(1).stdout;
    assert!(said.contains("db2 WARNING: not heard for"), "{said}");
    let table = db2.walship(&["status"]).await.succeeded();
    assert!(table.contains("warning: the primary is not heard for"), "{table}");
    db2.cluster.value("SELECT count(*) FROM walship_ledger").await.unwrap();

    link.heal();
    db2.follows(&db1).await;
    all_are_equal(workload, &db1, &[&db2]).await;
    db2.walship(&["lag", "--warn", "64MiB,30s"]).await.succeeded();
}

#[tokio::test]
async fn a_stalled_link_is_noticed_in_seconds() {
    let test = Test::new();
    let (db1, link) = test.primary_behind_a_link("db1").await;
    let db2 = test.standby("db2", &db1).await;
    let workload = writers(&db1).await;
    link.stall();
    let stalled = Instant::now();
    eventually("the standby gives the connection up", async || {
        let contact = db2.status().await?.upstream.unwrap().contact;
        ensure!(matches!(contact, Contact::Trying { .. }), "{contact:?}");
        Ok(())
    })
    .await;
    assert!(stalled.elapsed() < Duration::from_secs(15), "{:?}", stalled.elapsed());
    link.heal();
    all_are_equal(workload, &db1, &[&db2]).await;
}

#[tokio::test]
async fn the_primarys_postgresql_restarts_and_stops() {
    let test = Test::new();
    let db1 = test.primary("db1").await;
    let db2 = test.standby("db2", &db1).await;
    let workload = writers(&db1).await;
    db1.cluster.restart().await.unwrap();
    written(&workload, 200).await;
    db1.cluster.kill().await.unwrap();
    db1.cluster.start().await.unwrap();
    written(&workload, 200).await;
    db2.follows(&db1).await;
    let ledger = workload.stop().await;

    let expected = digest::digest(&db1.cluster.conninfo()).await.unwrap();
    let stopping = Instant::now();
    db1.stops().await;
    assert!(stopping.elapsed() < Duration::from_secs(5), "it hung for {:?}", stopping.elapsed());
    let checkpoint = db1.control().checkpoint_lsn;
    eventually("the standby has replayed the shutdown checkpoint", async || {
        let replayed: Lsn = db2.cluster.value("SELECT pg_last_wal_replay_lsn()").await?.parse()?;
        ensure!(replayed > checkpoint, "{replayed} of {checkpoint}");
        Ok(())
    })
    .await;
    assert_eq!(digest::digest(&db2.cluster.conninfo()).await.unwrap(), expected);
    ledger.verify(&db2.cluster.conninfo(), None).await.unwrap();
    let table = db1.walship(&["status"]).await.succeeded();
    assert!(table.contains("warning: the local PostgreSQL is not heard"), "{table}");
}

#[tokio::test]
async fn killed_sidecars_lose_nothing() {
    let test = Test::new();
    let mut db1 = test.primary("db1").await;
    let mut db2 = test.standby("db2", &db1).await;
    let workload = writers(&db1).await;
    for _ in 0..3 {
        db1.sidecar.kill().await;
        written(&workload, 200).await;
        db1.run().await;
        db2.sidecar.kill().await;
        written(&workload, 200).await;
        db2.run().await;
        db2.follows(&db1).await;
    }
    all_are_equal(workload, &db1, &[&db2]).await;
}

#[tokio::test]
async fn segments_of_16_mib_and_a_tablespace_elsewhere() {
    let test = Test::new();
    let options = ClusterOptions { wal_segment_mib: 16, ..ClusterOptions::default() };
    let mut db1 = Node::new(&test, "db1", options).await;
    let (here, there) = (test.folder().join("space"), test.folder().join("other-space"));
    test.account.create_folder(&here).unwrap();
    db1.cluster.sql(&format!("CREATE TABLESPACE s LOCATION '{}'", here.display())).await.unwrap();
    db1.cluster.sql("CREATE TABLE t (a int) TABLESPACE s").await.unwrap();
    db1.init().await;
    db1.start_primary().await;
    let workload = writers(&db1).await;

    let mut db2 = Node::empty(&test, "db2");
    let mapping = format!("{}={}", here.display(), there.display());
    db2.join(&db1.invite("db2").await, &["-T", &mapping]);
    db2.follows(&db1).await;
    db1.cluster.sql("INSERT INTO t SELECT generate_series(1, 500000)").await.unwrap();
    all_are_equal(workload, &db1, &[&db2]).await;
    let location =
        db2.cluster.value("SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 's'");
    assert_eq!(location.await.unwrap(), there.display().to_string());
    assert_eq!(db2.cluster.value("SHOW wal_segment_size").await.unwrap(), "16MB");
}

/// Makes the WAL of a few segments, and lets the primary's PostgreSQL forget it.
async fn several_segments(db1: &Node) -> Lsn {
    for _ in 0..4 {
        db1.cluster.sql("CREATE TABLE IF NOT EXISTS big (t text)").await.unwrap();
        db1.cluster
            .sql("INSERT INTO big SELECT md5(i::text) FROM generate_series(1, 10000) AS i")
            .await
            .unwrap();
    }
    db1.cluster.sql("CHECKPOINT").await.unwrap();
    db1.captures().await;
    db1.cluster.value("SELECT pg_current_wal_flush_lsn()").await.unwrap().parse().unwrap()
}

/// Waits until the node's store begins at or after a position.
async fn begins_after(node: &Node, lsn: Lsn) {
    eventually(&format!("the store of {} begins after {lsn}", node.name()), async || {
        let start = node.status().await?.store.start;
        ensure!(start >= lsn.align_down(1 << 20), "it begins at {start}");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn sealed_segments_stay_for_a_standby_that_is_away_and_go_when_it_has_them() {
    let test = Test::new();
    let mut db1 = test.primary("db1").await;
    let mut db2 = test.standby("db2", &db1).await;
    db2.sidecar.terminate().await;
    let has = db2.cluster.value("SELECT pg_last_wal_receive_lsn()").await.unwrap().parse().unwrap();
    let written = several_segments(&db1).await;
    // Also a restart forgets nobody. Retention looks every five seconds; a hold says for whom it leaves the WAL alone.
    db1.sidecar.terminate().await;
    db1.run().await;
    let status = db1.status().await.unwrap();
    assert!(status.store.holds.iter().any(|hold| hold.who == "db2" && hold.lsn <= has), "{status:?}");
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert!(db1.status().await.unwrap().store.start <= has);

    db2.run().await;
    db2.follows(&db1).await;
    db2.cluster.sql("CHECKPOINT").await.unwrap();
    begins_after(&db1, written).await;
    begins_after(&db2, written).await;
    db2.equals(&db1).await;
}

#[tokio::test]
async fn a_full_store_lets_the_absent_standby_go_and_says_so() {
    let test = Test::new();
    let mut db1 = test.primary("db1").await;
    let mut db2 = test.standby("db2", &db1).await;
    let mut db3 = test.standby("db3", &db1).await;
    db2.sidecar.terminate().await;
    let has = db2.cluster.value("SELECT pg_last_wal_receive_lsn()").await.unwrap();
    let has: Lsn = has.parse().unwrap();
    db1.sidecar.expect_log("the store is full: the WAL for this standby is no longer kept");
    db3.sidecar.expect_log("the store is larger than it may be");
    // The other standby keeps it, too, and would have it otherwise.
    for node in [&mut db1, &mut db3] {
        node.sidecar.terminate().await;
        node.sidecar.set("WALSHIP_STORE_MAX_BYTES", "1MiB");
        node.run().await;
    }
    for _ in 0..6 {
        several_segments(&db1).await;
    }
    db1.sidecar.wait_log("the store is full").await;
    let table = db1.walship(&["status"]).await.succeeded();
    assert!(
        table.contains(
            "critical: db2 was let go, and WAL that it needs is no longer kept: `walship standby --reseed`"
        ),
        "{table}"
    );
    db3.follows(&db1).await;
    db3.cluster.sql("CHECKPOINT").await.unwrap();
    begins_after(&db3, has + (1 << 20)).await;
    db2.sidecar.expect_log("can't follow");
    db2.run().await;
    db2.sidecar.wait_log("this standby can't follow").await;
    let table = db2.walship(&["status"]).await.succeeded();
    for name in ["db1", "db3"] {
        let text = format!("is no longer in the store of {name}, which begins at");
        assert!(table.contains(&text), "{table}");
    }
    db3.equals(&db1).await;
}

#[tokio::test]
async fn what_the_primary_no_longer_has_comes_from_another_standby() {
    let test = Test::new();
    let mut db1 = test.primary("db1").await;
    let mut db2 = test.standby("db2", &db1).await;
    let _db3 = test.standby("db3", &db1).await;
    db2.knows(&["db1", "db3"]).await;
    db2.sidecar.terminate().await;
    let has = db2.cluster.value("SELECT pg_last_wal_receive_lsn()").await.unwrap();
    let has: Lsn = has.parse().unwrap();
    db1.sidecar.expect_log("the store is full: the WAL for this standby is no longer kept");
    db1.sidecar.terminate().await;
    db1.sidecar.set("WALSHIP_STORE_MAX_BYTES", "1MiB");
    db1.run().await;
    for _ in 0..6 {
        several_segments(&db1).await;
    }
    db1.sidecar.wait_log("the store is full").await;
    begins_after(&db1, has + (1 << 20)).await;
    db2.run().await;
    db2.sidecar.wait_log("following upstream=db3").await;
    db2.equals(&db1).await;
    // It is one of those who need no WAL that is gone again, and goes on from the primary.
    db2.sidecar.wait_log("moving to a better upstream from=db3 to=db1").await;
    eventually("nobody has been let go any more", async || {
        let table = db1.walship(&["status"]).await.exits(0)?.stdout;
        ensure!(!table.contains("was let go"), "{table}");
        Ok(())
    })
    .await;
}
