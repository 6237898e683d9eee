//! Votes: who may be promoted, what a vote binds, and what is done with what others have.

use anyhow::ensure;
use walship::demo::{StopMode, digest};

use crate::harness::{Node, PROMOTE, Test, eventually};
use crate::promotion::{ships_at, three, write, write_much};

/// Waits until a status names an election that it voted in.
async fn is_bound(node: &Node, epoch: u64) {
    eventually(&format!("{} has promised epoch {epoch}", node.name()), async || {
        let status = node.status().await?.node;
        ensure!(status.promised_epoch == epoch && status.committed_epoch < epoch, "{status:?}");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn with_two_nodes_a_lost_primary_needs_a_fence_or_a_word() {
    let test = Test::new();
    let mut db1 = test.primary("db1").await;
    let db2 = test.standby("db2", &db1).await;
    db2.knows(&["db1", "db2"]).await;
    db1.dies().await;
    let texts = [
        "1 of 2 members answer, and 2 must: db1 may follow another primary",
        "hint: If db1 is down for sure, say so with --fence-command",
    ];
    db2.walship(&["promote"]).await.failed(3, &texts);
    let refused = ["promote", "--fence-command", "echo no power switch >&2; exit 7"];
    db2.sidecar.expect_log("the promotion failed, going on as a standby");
    db2.walship(&refused).await.failed(3, &["did not stop db1", "no power switch", "--force goes on"]);
    let loss = [PROMOTE.as_slice(), &["--max-loss", "0"]].concat();
    db2.walship(&loss).await.failed(3, &["more may be lost than the 0 bytes that --max-loss allows"]);
    let fenced = "test \"$WALSHIP_FENCE_NODE\" = db1 && test -n \"$WALSHIP_FENCE_ADDRESS\"";
    let done = db2.walship(&["promote", "--fence-command", fenced]).await.exited_with(0);
    assert!(done.stderr.contains("db1 is down, by the fence command"), "{done:?}");
    write(&db2, "after").await;
}

#[tokio::test]
async fn what_a_dead_primary_had_flushed_and_not_shipped_is_taken_from_its_pg_wal() {
    let test = Test::new();
    let (mut db1, db2, mut db3) = three(&test).await;
    db1.sidecar.kill().await;
    // It would follow db1 again, and may get what that takes from its pg_wal before it votes: then it is the further one.
    assert!(db3.sidecar.terminate().await.success());
    write(&db1, "nobody_has_it").await;
    let rows = digest::digest(&db1.cluster.conninfo()).await.unwrap();
    db1.cluster.stop(StopMode::Immediate).await.unwrap();
    db1.run().await;
    // Its vote stops it for good: the log is there to its end, and nothing is lost.
    let loss = ["promote", "--max-loss", "0"];
    let done = db2.walship(&loss).await.exited_with(0);
    for text in ["to be pulled from db1 first", "at stake: nothing: all that the old primary wrote"] {
        assert!(done.stderr.contains(text), "{done:?}");
    }
    assert_eq!(digest::digest(&db2.cluster.conninfo()).await.unwrap(), rows);
    assert!(db1.cluster.data_directory().join("standby.signal").exists());
    db1.sidecar.expect_log("this node was superseded");
    db3.run().await;
    write(&db2, "after").await;
    for standby in [&db1, &db3] {
        standby.equals(&db2).await;
    }
}

#[tokio::test]
async fn forced_a_primary_that_writes_is_stopped_by_its_own_sidecar_and_nothing_is_lost() {
    let test = Test::new();
    let (db1, db2, db3) = three(&test).await;
    db1.sidecar.expect_log("this node was superseded");
    let done = db2.walship(&["promote", "--force"]).await.exited_with(0);
    for text in
        ["warning: PostgreSQL on db1 still answers", "at stake: nothing: all that the old primary wrote"]
    {
        assert!(done.stderr.contains(text), "{done:?}");
    }
    assert!(!db1.cluster.is_ready().await, "it still takes writes");
    write(&db2, "after").await;
    db3.equals(&db2).await;
    // It gave its vote, and had nothing more: it follows.
    db1.equals(&db2).await;
}

#[tokio::test]
async fn an_election_whose_candidate_dies_harms_nobody_once_that_is_back() {
    let test = Test::new();
    let (mut db1, mut db2, db3) = three(&test).await;
    db2.sidecar.terminate().await;
    db2.runs_with("promote-voted=abort").await;
    db1.dies().await;
    db2.walship(&["promote"]).await.failed(4, &["the sidecar ended without an answer"]);
    db2.sidecar.ended().await;
    // Nobody knows whether it was committed: db3 takes nothing more from db1, which comes back.
    is_bound(&db3, 1).await;
    db1.cluster.start().await.unwrap();
    db1.run().await;
    write(&db1, "meanwhile").await;
    db2.runs_with("").await;
    for standby in [&db2, &db3] {
        standby.equals(&db1).await;
    }
    let status = db3.status().await.unwrap().node;
    assert_eq!(
        (status.promised_epoch, status.committed_epoch),
        (1, 0),
        "a promise is never taken back lower"
    );
    // The next one takes a higher epoch.
    db1.dies().await;
    let done = db2.walship(&["promote"]).await.succeeded();
    assert!(done.contains("of epoch 2"), "{done}");
    write(&db2, "after").await;
    db3.equals(&db2).await;
}

#[tokio::test]
async fn of_two_promotions_at_once_one_wins_and_the_other_is_told() {
    let test = Test::new();
    let (mut db1, db2, db3) = three(&test).await;
    db1.dies().await;
    db3.sidecar.expect_log("the promotion failed, going on as a standby");
    db2.sidecar.expect_log("the promotion failed, going on as a standby");
    let (one, two) = tokio::join!(db2.walship(&PROMOTE), db3.walship(&PROMOTE));
    let told = [one.stderr.clone(), two.stderr.clone()];
    let (winner, other, told) = match (one.exits(0), two.exits(0)) {
        (Ok(_), Err(_)) => (&db2, &db3, &told[1]),
        (Err(_), Ok(_)) => (&db3, &db2, &told[0]),
        both => panic!("{both:?}"),
    };
    assert!(told.contains("promot") && told.contains(winner.name()), "{told}");
    write(winner, "after").await;
    other.equals(winner).await;
    let primaries = "SELECT NOT pg_is_in_recovery()";
    assert_eq!(other.cluster.value(primaries).await.unwrap(), "f");
}

#[tokio::test]
async fn run_on_another_node_the_right_one_is_promoted_with_elect() {
    let test = Test::new();
    let (mut db1, mut db2, mut db3) = three(&test).await;
    ships_at(&mut db3, "1KiB").await;
    db2.sidecar.terminate().await;
    write_much(&db1, "not_on_db2").await;
    db3.follows(&db1).await;
    db1.dies().await;
    db2.run().await;
    let dry = db2.walship(&["promote", "--elect", "--dry-run"]).await.succeeded();
    assert!(dry.contains("db3 would be promoted"), "{dry}");
    let done = db2.walship(&["promote", "--elect"]).await.succeeded();
    assert!(done.contains("db3 is the primary of epoch 1"), "{done}");
    assert_eq!(db3.cluster.value("SELECT count(*) FROM not_on_db2").await.unwrap(), "30000");
    write(&db3, "after").await;
}
