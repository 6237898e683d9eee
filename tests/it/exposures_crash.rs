//! A primary's sidecar that dies or is restarted while commits are unprotected, or about to be.

use anyhow::{Context, ensure};
use walship::pg::Lsn;

use crate::exposures::{Fault, Pair};
use crate::harness::{Node, PATIENCE, eventually};

#[tokio::test]
async fn a_window_outlives_the_sidecar_and_runs_to_the_end_of_the_wal() {
    let mut pair = Pair::new(None).await;
    pair.db1.sidecar.expect_log("an exposure was open when this node ended");
    pair.break_it(Fault::Frozen).await;
    pair.commit("on").await;
    pair.db1.sidecar.kill().await;
    // What PostgreSQL writes now it keeps to itself; what was released is below the end that is found.
    let end =
        pair.db1.cluster.value("SELECT pg_current_wal_flush_lsn()").await.unwrap().parse::<Lsn>().unwrap();
    pair.db1.run().await;
    assert!(pair.log().open().is_some());
    says_unprotected(&pair.db1).await;
    pair.commit("on").await;
    pair.mend(Fault::Frozen).await;
    let window = pair.closed(1).await;
    assert!(window.closed.as_ref().unwrap().to_lsn >= end, "{window:?}, the WAL was at {end}");
    assert_eq!(pair.log().windows.len(), 1);
}

async fn says_unprotected(node: &Node) {
    eventually("the status says so", async || {
        let status = node.walship(&["status"]).await.exits(0)?.stdout;
        ensure!(status.contains("critical: commits are unprotected for "), "{status}");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_sidecar_that_dies_before_the_first_release_has_the_window_in_its_log() {
    let mut pair = Pair::new(None).await;
    pair.restart_with("exposures.opened=abort").await;
    pair.break_it(Fault::Frozen).await;
    let commit = pair.begin().await;
    pair.db1.sidecar.ended().await;
    assert!(!commit.is_finished(), "it is released by a sidecar that is dead");
    assert!(pair.log().open().is_some());
    pair.db1.sidecar.set("WALSHIP_FAILPOINTS", "");
    pair.db1.sidecar.expect_log("an exposure was open when this node ended");
    pair.db1.run().await;
    tokio::time::timeout(PATIENCE, commit).await.unwrap().unwrap();
    assert!(pair.log().open().is_some());
    pair.mend(Fault::Frozen).await;
    pair.closed(1).await;
}

#[tokio::test]
async fn a_sidecar_that_dies_before_the_close_is_noted_notes_it_when_it_is_back() {
    let mut pair = Pair::new(None).await;
    pair.restart_with("exposures.before_close=abort").await;
    pair.break_it(Fault::Frozen).await;
    pair.commit("on").await;
    pair.mend(Fault::Frozen).await;
    pair.db1.sidecar.ended().await;
    assert!(pair.log().open().is_some());
    pair.db1.sidecar.set("WALSHIP_FAILPOINTS", "");
    pair.db1.sidecar.expect_log("an exposure was open when this node ended");
    pair.db1.run().await;
    pair.closed(1).await;
    pair.commit("on").await;
    assert_eq!(pair.log().windows.len(), 1);
}

#[tokio::test]
async fn what_a_standby_had_before_a_restart_is_protected_though_it_is_not_heard_since() {
    let mut pair = Pair::new(None).await;
    pair.commit("on").await;
    let flushed = "SELECT pg_current_wal_flush_lsn()";
    let lsn: Lsn = pair.db1.cluster.value(flushed).await.unwrap().parse().unwrap();
    eventually("the primary knows that the standby has it", async || {
        let seats = pair.db1.status().await?.commits.context("no commits")?.seats;
        ensure!(seats.iter().any(|seat| seat.at.flush >= Some(lsn)), "{seats:?}");
        Ok(())
    })
    .await;
    pair.db2.dies().await;
    pair.restart_with("").await;
    pair.commit("on").await;
    let log = pair.log();
    let window = log.open().unwrap();
    assert!(window.from_lsn >= lsn, "{window:?}, though the standby had {lsn}");
    assert_eq!(window.missing, ["db2 (not connected)"]);
    pair.mend(Fault::Killed).await;
    pair.closed(1).await;
}
