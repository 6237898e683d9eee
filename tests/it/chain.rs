//! `chain (m, t)`: commits wait for the tail, whatever way leads to it.
//!
//! The middle reports itself as far as it is, and the tail's own position is passed up beside it: the head counts the
//! tail's alone, and keeps WAL for both.

use anyhow::ensure;
use rustix::process::Signal;
use tokio::task::JoinHandle;
use walship::pg::Lsn;

use crate::cascade::{hears_of, standby_of, takes, writers, written};
use crate::harness::{Node, PATIENCE, PROMOTE, Test, eventually};
use crate::moving::{nothing_came_twice, received};

/// A head, a middle and a tail, and commits that wait for the tail.
async fn chain(test: &Test) -> (Node, Node, Node) {
    let db1 = test.primary("db1").await;
    let db2 = test.standby("db2", &db1).await;
    let db3 = standby_of(test, "db3", &db1, &[&db2]).await;
    takes(&db3, &["db3", "db2", "db1"]).await;
    hears_of(&db1, "db3", Some("db2"), &db1).await;
    db1.cluster.sql("CREATE TABLE t (a int)").await.unwrap();
    db1.walship(&["sync", "chain (db2, db3)"]).await.succeeded();
    for standby in [&db2, &db3] {
        standby.knows(&["db1", "db2", "db3"]).await;
    }
    (db1, db2, db3)
}

/// Begins a commit, and waits until it waits.
async fn waiting(head: &Node) -> JoinHandle<()> {
    let client = head.cluster.connect().await.unwrap();
    let commit = tokio::spawn(async move { client.batch_execute("INSERT INTO t VALUES (1)").await.unwrap() });
    let waits = "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    head.cluster.wait_until(waits, PATIENCE).await.unwrap();
    commit
}

/// Waits until the head knows that a member has all that the head has written so far.
async fn has_all(head: &Node, member: &Node) {
    let written: Lsn =
        head.cluster.value("SELECT pg_current_wal_flush_lsn()").await.unwrap().parse().unwrap();
    eventually(&format!("{} has {written}", member.name()), async || {
        let downstreams = head.status().await?.downstreams;
        let found = downstreams.into_iter().find(|peer| peer.name == member.name());
        let found = found.ok_or_else(|| anyhow::anyhow!("it is not heard"))?;
        ensure!(found.progress.flushed >= Some(written), "{:?}", found.progress);
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_dead_middle_is_bridged_under_load_and_the_tail_has_all_that_was_acknowledged() {
    let test = Test::new();
    let (mut db1, mut db2, db3) = chain(&test).await;
    has_all(&db1, &db3).await;
    let begun = received(&db3).await;
    let workload = writers(&db1).await;
    db2.sidecar.kill().await;
    takes(&db3, &["db3", "db1"]).await;
    written(&workload, 300).await;
    db2.run().await;
    takes(&db3, &["db3", "db2", "db1"]).await;
    written(&workload, 300).await;
    db2.dies().await;
    takes(&db3, &["db3", "db1"]).await;
    written(&workload, 300).await;

    db1.dies().await;
    for folder in [db1.store(), db1.cluster.data_directory()] {
        std::fs::remove_dir_all(folder).unwrap();
    }
    nothing_came_twice(&db3, begun).await;
    // The middle need not be asked for what was acknowledged, which is at the tail; but it may follow somebody else.
    let why = "db2 may follow another primary";
    let refused = db3.walship(&PROMOTE).await.failed(3, &[why]);
    assert!(refused.contains("0 acknowledged bytes: commits waited for chain (db2, db3)"), "{refused}");
    let said = db3.walship(&[&PROMOTE[..], &["--force"]].concat()).await.exited_with(0);
    assert!(said.stderr.contains("db2 does not answer"), "{said:?}");
    let ledger = workload.ledger();
    let verified = ledger.verify(&db3.cluster.conninfo(), None).await.unwrap();
    assert_eq!(verified.present, ledger.notes().len());
}

#[tokio::test]
async fn a_tail_that_is_away_holds_commits_and_wal_whatever_the_middle_has() {
    let test = Test::new();
    let (mut db1, mut db2, db3) = chain(&test).await;
    has_all(&db1, &db3).await;
    db3.sidecar.signal(Signal::STOP);
    let stopped_at = db3_flushed(&db1).await;
    let commit = waiting(&db1).await;
    has_all(&db1, &db2).await;
    // Nor does a head that begins anew take the middle for the tail, nor a middle that does.
    db1.sidecar.kill().await;
    db1.run().await;
    db2.sidecar.kill().await;
    db2.run().await;
    has_all(&db1, &db2).await;
    assert!(!commit.is_finished());

    // Segments upon segments, all of which the middle has.
    let much = "SET synchronous_commit = local; \
                CREATE TABLE much AS SELECT md5(a::text) || md5((a + 1)::text) FROM generate_series(1, 60000) AS a";
    let client = db1.cluster.connect().await.unwrap();
    for statement in much.split("; ") {
        client.batch_execute(statement).await.unwrap();
    }
    has_all(&db1, &db2).await;
    for node in [&db1, &db2] {
        eventually(&format!("{} keeps what the tail lacks", node.name()), async || {
            let holds = node.status().await?.store.holds;
            let held = holds.iter().find(|hold| hold.who == "db3");
            let held = held.ok_or_else(|| anyhow::anyhow!("it holds nothing: {holds:?}"))?;
            ensure!(held.lsn <= stopped_at, "{held:?}, it is at {stopped_at}");
            Ok(())
        })
        .await;
    }
    assert!(!commit.is_finished());

    // The middle is lost with what it had, and the tail goes on from the head's store.
    db2.dies().await;
    db3.sidecar.signal(Signal::CONT);
    takes(&db3, &["db3", "db1"]).await;
    tokio::time::timeout(PATIENCE, commit).await.unwrap().unwrap();
    db3.equals(&db1).await;
}

/// How far the tail is, by the head's knowledge.
async fn db3_flushed(head: &Node) -> Lsn {
    let downstreams = head.status().await.unwrap().downstreams;
    downstreams.into_iter().find(|peer| peer.name == "db3").unwrap().progress.flushed.unwrap()
}
