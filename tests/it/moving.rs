//! Standbys that move: on when their upstream is lost, back when it returns, along when somebody is promoted.

use std::time::{Duration, Instant};

use anyhow::ensure;
use rustix::process::Signal;
use walship::demo::digest;
use walship::report::Status;

use crate::cascade::{all_are_equal, hears_of, standby_of, takes, writers, written};
use crate::harness::{Node, PROMOTE, Test, eventually};

/// What a standby received since its sidecar started, and where its store ends.
#[derive(Clone, Copy)]
pub struct Received {
    raw_bytes: u64,
    wire_bytes: u64,
    end: u64,
}

pub async fn received(node: &Node) -> Received {
    let Status { upstream, store, .. } = node.status().await.unwrap();
    let traffic = upstream.unwrap().traffic;
    Received { raw_bytes: traffic.raw_bytes, wire_bytes: traffic.wire_bytes, end: store.appended.0 }
}

/// Checks that no byte of WAL came twice: what came is as long as what is there now and was not before.
pub async fn nothing_came_twice(node: &Node, since: Received) {
    let now = received(node).await;
    assert_eq!(now.raw_bytes - since.raw_bytes, now.end - since.end, "{} got WAL twice", node.name());
}

/// Writes a few mebibytes that don't compress well.
async fn write_much(node: &Node, table: &str) {
    let statement = format!(
        "CREATE TABLE {table} AS SELECT md5(a::text) || md5((a + 1)::text) FROM generate_series(1, 40000) AS a"
    );
    node.cluster.sql(&statement).await.unwrap();
}

#[tokio::test]
async fn a_dead_middle_is_bridged_and_taken_again_and_nothing_is_sent_twice() {
    let test = Test::new();
    let (db1, link) = test.primary_behind_a_link("db1").await;
    let mut db2 = test.standby("db2", &db1).await;
    let db3 = standby_of(&test, "db3", &db1, &[&db2]).await;
    takes(&db3, &["db3", "db2", "db1"]).await;
    write_much(&db1, "one").await;
    db3.follows(&db1).await;
    db2.knows(&["db1", "db2", "db3"]).await;
    let (begun, before) = (received(&db3).await, link.traffic());

    db2.dies().await;
    let died = Instant::now();
    takes(&db3, &["db3", "db1"]).await;
    let took = died.elapsed();
    assert!(took < Duration::from_secs(8), "{took:?}");
    write_much(&db1, "two").await;
    db3.follows(&db1).await;
    nothing_came_twice(&db3, begun).await;
    // Over the link came what this node took in as new, and handshakes.
    let passed = link.traffic().from_target_bytes - before.from_target_bytes;
    let new = received(&db3).await.wire_bytes - begun.wire_bytes;
    assert!((new..new + (256 << 10)).contains(&passed), "{passed} bytes passed, {new} of them WAL");

    let workload = writers(&db1).await;
    db2.run().await;
    takes(&db3, &["db3", "db2", "db1"]).await;
    written(&workload, 300).await;
    nothing_came_twice(&db3, begun).await;
    hears_of(&db1, "db3", Some("db2"), &db1).await;
    all_are_equal(workload, &db1, &[&db2, &db3]).await;
}

#[tokio::test]
async fn a_middle_that_falls_silent_is_bridged_in_seconds() {
    let test = Test::new();
    let db1 = test.primary("db1").await;
    let mut db2 = test.standby("db2", &db1).await;
    let db3 = standby_of(&test, "db3", &db1, &[&db2]).await;
    takes(&db3, &["db3", "db2", "db1"]).await;
    let workload = writers(&db1).await;
    let begun = received(&db3).await;
    db2.sidecar.signal(Signal::STOP);
    let stopped = Instant::now();
    takes(&db3, &["db3", "db1"]).await;
    // Silence is noticed after ten seconds; the one that is silent is asked in vain, and the next is there.
    let took = stopped.elapsed();
    assert!(took < Duration::from_secs(18), "{took:?}");
    hears_of(&db1, "db3", None, &db1).await;
    db2.sidecar.signal(Signal::CONT);
    takes(&db3, &["db3", "db2", "db1"]).await;
    hears_of(&db1, "db3", Some("db2"), &db1).await;
    nothing_came_twice(&db3, begun).await;
    all_are_equal(workload, &db1, &[&db2, &db3]).await;
    assert!(db2.sidecar.terminate().await.success());
}

#[tokio::test]
async fn the_list_is_gone_down_and_up_again() {
    let test = Test::new();
    let db1 = test.primary("db1").await;
    let mut db2 = test.standby("db2", &db1).await;
    let mut db3 = test.standby("db3", &db1).await;
    let db4 = standby_of(&test, "db4", &db1, &[&db2, &db3]).await;
    let workload = writers(&db1).await;
    takes(&db4, &["db4", "db2", "db1"]).await;
    let begun = received(&db4).await;
    assert!(db2.sidecar.terminate().await.success());
    takes(&db4, &["db4", "db3", "db1"]).await;
    assert!(db3.sidecar.terminate().await.success());
    takes(&db4, &["db4", "db1"]).await;
    db3.run().await;
    takes(&db4, &["db4", "db3", "db1"]).await;
    // One that is back but far behind is not taken before it has caught up.
    db2.run().await;
    takes(&db4, &["db4", "db2", "db1"]).await;
    nothing_came_twice(&db4, begun).await;
    all_are_equal(workload, &db1, &[&db2, &db3, &db4]).await;
}

/// A head, a chain of two behind it, and another child: all equal, all known to each other.
async fn tree(test: &Test) -> [Node; 4] {
    let db1 = test.primary("db1").await;
    let db2 = test.standby("db2", &db1).await;
    let db3 = standby_of(test, "db3", &db1, &[&db2]).await;
    let db4 = test.standby("db4", &db1).await;
    takes(&db3, &["db3", "db2", "db1"]).await;
    write_much(&db1, "before").await;
    for standby in [&db2, &db3, &db4] {
        standby.follows(&db1).await;
        standby.knows(&["db1", "db2", "db3", "db4"]).await;
    }
    [db1, db2, db3, db4]
}

/// Checks that everybody is on the new primary's timeline, and equal.
async fn all_came_along(primary: &Node, others: &[&Node]) {
    write_much(primary, "after").await;
    let rows = digest::digest(&primary.cluster.conninfo()).await.unwrap();
    for node in others {
        node.follows(primary).await;
        let status = node.status().await.unwrap();
        assert_eq!((status.node.timeline.0, status.node.committed_epoch), (2, 1), "{}", node.name());
        assert_eq!(digest::digest(&node.cluster.conninfo()).await.unwrap(), rows, "{}", node.name());
        node.same_content_as(primary);
    }
}

#[tokio::test]
async fn a_promoted_relay_keeps_those_behind_it() {
    let test = Test::new();
    let [mut db1, db2, mut db3, db4] = tree(&test).await;
    let postmasters = [&db2, &db3, &db4].map(Node::postmaster);
    db1.dies().await;
    // One that was only ever heard of through this node is asked like the others.
    assert!(db3.sidecar.terminate().await.success());
    let plan = db2.walship(&[PROMOTE.as_slice(), &["--dry-run"]].concat()).await.exited_with(0);
    assert!(plan.stderr.contains("db3 does not answer") && !plan.stderr.contains("db4 does not"), "{plan:?}");
    db3.run().await;
    let done = db2.walship(&PROMOTE).await.succeeded();
    assert!(done.contains("db2 is the primary of epoch 1"), "{done}");
    takes(&db3, &["db3", "db2"]).await;
    takes(&db4, &["db4", "db2"]).await;
    all_came_along(&db2, &[&db3, &db4]).await;
    hears_of(&db2, "db3", None, &db2).await;
    assert_eq!([&db2, &db3, &db4].map(Node::postmaster), postmasters);
}

#[tokio::test]
async fn a_promoted_tail_is_followed_by_the_relay_that_it_followed() {
    let test = Test::new();
    let [mut db1, db2, db3, db4] = tree(&test).await;
    db1.dies().await;
    db3.walship(&PROMOTE).await.succeeded();
    takes(&db2, &["db2", "db3"]).await;
    takes(&db4, &["db4", "db3"]).await;
    all_came_along(&db3, &[&db2, &db4]).await;
    hears_of(&db3, "db2", None, &db3).await;
    // The old tail is no downstream of its follower any more.
    eventually("db2 ships to nobody", async || {
        let downstreams = db2.status().await?.downstreams;
        ensure!(downstreams.is_empty(), "{downstreams:?}");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn behind_another_childs_promotion_the_whole_cascade_comes_along() {
    let test = Test::new();
    let [mut db1, db2, db3, db4] = tree(&test).await;
    let begun = received(&db3).await;
    db1.dies().await;
    db4.walship(&PROMOTE).await.succeeded();
    takes(&db2, &["db2", "db4"]).await;
    takes(&db3, &["db3", "db2", "db4"]).await;
    all_came_along(&db4, &[&db2, &db3]).await;
    hears_of(&db4, "db3", Some("db2"), &db4).await;
    let now = received(&db3).await;
    let again = (now.raw_bytes - begun.raw_bytes) - (now.end - begun.end);
    assert!(
        again <= 1 << 20,
        "{again} bytes came twice, and a new timeline repeats a part of a segment at most"
    );

    // A superseded primary that comes back is followed by nobody.
    db1.sidecar.expect_log("this node was superseded");
    db1.cluster.start().await.unwrap();
    db1.run().await;
    db1.sidecar.wait_log("this node was superseded").await;
    takes(&db3, &["db3", "db2", "db4"]).await;
}
