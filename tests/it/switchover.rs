//! The primary hands over while it is there, and nothing is lost.

use anyhow::ensure;
use walship::demo::{Workload, WorkloadOptions};
use walship::report::Role;

use crate::harness::{Node, Test, eventually};
use crate::promotion::{three, write};

/// Waits until a node's PostgreSQL takes writes as the primary, and its sidecar says so.
async fn is_primary(node: &Node) {
    eventually(&format!("{} is the primary", node.name()), async || {
        let role = node.status().await?.node.role;
        ensure!(
            role == Role::Primary && node.cluster.value("SELECT pg_is_in_recovery()").await? == "f",
            "{role:?}"
        );
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn under_load_the_named_standby_takes_over_and_no_row_is_lost() {
    let test = Test::new();
    let (db1, db2, db3) = three(&test).await;
    db1.walship(&["sync", "any 1 (*)"]).await.succeeded();
    let workload = Workload::start(&db1.cluster.conninfo(), &WorkloadOptions::default()).await.unwrap();
    eventually("rows are written", async || {
        ensure!(workload.acknowledged() > 100, "{}", workload.acknowledged());
        Ok(())
    })
    .await;
    // From any node: here from one that neither hands nor takes over.
    let done = db3.walship(&["switchover", "--to", "db2"]).await.exited_with(0);
    assert!(done.stdout.contains("db2 is the primary of epoch 1"), "{done:?}");
    assert!(done.stderr.contains("at stake: nothing: all that the old primary wrote"), "{done:?}");
    workload.redirect(&db2.cluster.conninfo());
    is_primary(&db2).await;
    let ledger = workload.stop().await;
    let verified = ledger.verify(&db2.cluster.conninfo(), None).await.unwrap();
    assert!(verified.present > 100 && verified.lost_beyond == 0, "{verified:?}");
    assert!(
        !db1.cluster.is_ready().await
            || db1.cluster.value("SELECT pg_is_in_recovery()").await.unwrap() == "t"
    );
    write(&db2, "after").await;
    for standby in [&db1, &db3] {
        standby.equals(&db2).await;
    }
}

#[tokio::test]
async fn a_primary_that_handed_over_in_vain_is_started_again() {
    let test = Test::new();
    let (db1, mut db2, db3) = three(&test).await;
    db2.sidecar.terminate().await;
    db2.sidecar.set("WALSHIP_FAILPOINTS", "promote-pulling=fail");
    db2.sidecar.expect_log("the promotion failed, going on as a standby");
    db2.run().await;
    db2.follows(&db1).await;
    db1.walship(&["switchover", "--to", "db2"]).await.failed(1, &["pull WAL from db1"]);
    is_primary(&db1).await;
    write(&db1, "goes_on").await;
    for standby in [&db2, &db3] {
        standby.equals(&db1).await;
    }
    assert_eq!(db1.status().await.unwrap().node.committed_epoch, 0);
}

#[tokio::test]
async fn a_primary_whose_taker_dies_after_its_vote_stays_down_until_that_has_taken_it_back() {
    let test = Test::new();
    let (db1, mut db2, db3) = three(&test).await;
    db2.sidecar.terminate().await;
    db2.runs_with("promote-voted=abort").await;
    db2.follows(&db1).await;
    db1.walship(&["switchover", "--to", "db2"]).await.failed(4, &["`walship status` on db2"]);
    db2.sidecar.ended().await;
    assert!(!db1.cluster.is_ready().await, "it may not write: nobody knows what became of the commit");
    let table = db1.walship(&["status"]).await.succeeded();
    assert!(table.contains("epoch 1 was promised to db2"), "{table}");
    db2.runs_with("").await;
    is_primary(&db1).await;
    write(&db1, "goes_on").await;
    db3.equals(&db1).await;
}

#[tokio::test]
async fn what_can_not_be_done_is_refused_and_the_primary_never_stops() {
    let test = Test::new();
    let (db1, mut db2, db3) = three(&test).await;
    let postmaster = db1.postmaster();
    db1.walship(&["switchover", "--to", "db9"]).await.failed(3, &["db9 does not answer"]);
    let done = db1.walship(&["switchover", "--to", "db1"]).await.succeeded();
    assert!(done.contains("db1 is the primary already"), "{done}");
    let dry = db1.walship(&["switchover", "--dry-run"]).await.succeeded();
    assert!(dry.contains("nothing was changed"), "{dry}");
    db2.cluster.sql("SELECT pg_wal_replay_pause()").await.unwrap();
    db1.walship(&["switchover", "--to", "db2"]).await.failed(3, &["somebody paused the replay on db2"]);
    db2.sidecar.terminate().await;
    db1.walship(&["switchover", "--to", "db2"]).await.failed(3, &["db2 does not answer"]);
    assert_eq!(db1.postmaster(), postmaster);
    db1.stops().await;
    db3.walship(&["switchover"]).await.failed(3, &["PostgreSQL on db1 does not run, and can't hand over"]);
}
