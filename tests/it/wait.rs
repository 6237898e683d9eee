//! Read your writes: a wait for a position, how it ends, and who may wait.

use std::time::{Duration, Instant};

use anyhow::ensure;
use walship::daemon::control::Client;
use walship::demo::cluster::rows_of;
use walship::fault::{Fault, Outcome};
use walship::pg::{Lsn, TimelineId};
use walship::report::wait::{Timeout, Wait};

use crate::harness::{Node, PATIENCE, PROMOTE, Test, eventually};

/// More than a row needs to get across on a busy machine.
const LONG: Timeout = Timeout(PATIENCE);
const SHORT: Timeout = Timeout(Duration::from_millis(300));

async fn wait(node: &Node, lsn: Lsn, timeline: Option<u32>, timeout: Timeout) -> anyhow::Result<String> {
    let timeline = timeline.map(TimelineId);
    Client::connect(&node.store()).await?.wait(&Wait { lsn, timeline, timeout }).await
}

fn outcome(waited: anyhow::Result<String>) -> (Outcome, String) {
    let error = waited.unwrap_err();
    (Fault::outcome_of(&error), format!("{error:#}"))
}

async fn insert_lsn(node: &Node) -> Lsn {
    node.cluster.value("SELECT pg_current_wal_insert_lsn()").await.unwrap().parse().unwrap()
}

/// Commits something; the position that an application would wait for.
async fn commit(node: &Node) -> Lsn {
    node.cluster.sql("CREATE TABLE IF NOT EXISTS t (a int); INSERT INTO t VALUES (0)").await.unwrap();
    insert_lsn(node).await
}

#[tokio::test]
async fn what_was_committed_is_seen_200_times() {
    let test = Test::new();
    let db1 = test.primary("db1").await;
    let db2 = test.standby("db2", &db1).await;
    commit(&db1).await;
    db2.follows(&db1).await;
    // Of itself it then tells nothing but what it flushes.
    db2.cluster.sql("ALTER SYSTEM SET wal_receiver_status_interval = 0").await.unwrap();
    db2.cluster.sql("SELECT pg_reload_conf()").await.unwrap();
    let (primary, standby) = (db1.cluster.connect().await.unwrap(), db2.cluster.connect().await.unwrap());
    let mut waits = Vec::new();
    for round in 1..=200 {
        let insert = format!("INSERT INTO t VALUES ({round}); SELECT pg_current_wal_insert_lsn()");
        let lsn: Lsn = rows_of(&primary, &insert).await.unwrap()[0].parse().unwrap();
        let begun = Instant::now();
        wait(&db2, lsn, Some(1), LONG).await.unwrap();
        waits.push(begun.elapsed());
        let seen = rows_of(&standby, &format!("SELECT count(*) FROM t WHERE a = {round}")).await.unwrap();
        assert_eq!(seen, ["1"], "round {round}, at {lsn}");
    }
    waits.sort();
    println!("waited {:?} in the middle, {:?} at most", waits[100], waits[199]);
    // It is asked, not left to speak every ten seconds.
    assert!(waits[100] < Duration::from_secs(1), "{waits:?}");
    let lsn = commit(&db1).await.to_string();
    let said = db2.walship(&["wait", "--lsn", &lsn, "--timeout", "30s"]).await.succeeded();
    assert!(said.starts_with("db2 has replayed "), "{said}");
    let said = db1.walship(&["wait", "--lsn", &lsn]).await.succeeded();
    assert!(said.starts_with("db1 has flushed "), "{said}");
}

/// Commits until the next record would begin behind a page's header: how far a page is filled is up to the message.
async fn commit_to_the_end_of_a_page(node: &Node) -> Lsn {
    const PAGE_BYTES: u64 = 8192;
    let client = node.cluster.connect().await.unwrap();
    let mut padding = 512;
    for _ in 0..500 {
        let emit = format!(
            "SELECT pg_current_wal_insert_lsn();
             SELECT pg_logical_emit_message(true, '', repeat('x', {padding}));
             SELECT pg_current_wal_insert_lsn()"
        );
        let rows = rows_of(&client, "SELECT pg_current_wal_insert_lsn()").await.unwrap();
        let before: Lsn = rows[0].parse().unwrap();
        let rows = rows_of(&client, &emit).await.unwrap();
        // The statements are one transaction, whose commit comes last.
        let after: Lsn =
            rows_of(&client, "SELECT pg_current_wal_insert_lsn()").await.unwrap()[0].parse().unwrap();
        assert!(rows.len() == 3 && after > before, "{rows:?}");
        if matches!(after.0 % PAGE_BYTES, 24 | 40) {
            return after;
        }
        let rest = PAGE_BYTES - after.0 % PAGE_BYTES;
        let used = after - before - padding;
        padding = if rest > used + 512 { rest - used } else { 512 };
    }
    panic!("no record ended with a page");
}

#[tokio::test]
async fn a_position_behind_a_page_header_is_reached_without_more_wal() {
    let test = Test::new();
    let db1 = test.primary("db1").await;
    let db2 = test.standby("db2", &db1).await;
    for _ in 0..5 {
        let lsn = commit_to_the_end_of_a_page(&db1).await;
        for node in [&db1, &db2] {
            wait(node, lsn, None, LONG).await.unwrap();
        }
        let flushed = db1.cluster.value("SELECT pg_current_wal_flush_lsn()").await.unwrap();
        if flushed.parse::<Lsn>().unwrap() < lsn {
            return;
        }
    }
    panic!("it was reached only because somebody wrote more");
}

#[tokio::test]
async fn the_walreceiver_is_asked_while_somebody_waits_and_not_too_often() {
    let test = Test::new();
    let db1 = test.primary("db1").await;
    let db2 = test.standby("db2", &db1).await;
    // At this level it logs each position that it tells.
    for statement in ["ALTER SYSTEM SET log_min_messages = debug2", "SELECT pg_reload_conf()"] {
        db2.cluster.sql(statement).await.unwrap();
    }
    let told = || {
        let log = std::fs::read_to_string(db2.store().join("postgresql.log")).unwrap();
        log.lines().filter(|line| line.contains("sending write ")).count()
    };
    wait(&db2, commit(&db1).await, None, LONG).await.unwrap();
    let before = eventually("it logs what it tells", async || {
        ensure!(told() > 0, "nothing yet");
        Ok(told())
    })
    .await;
    let end = insert_lsn(&db1).await + (1 << 30);
    let second = Timeout(Duration::from_secs(1));
    assert_eq!(outcome(wait(&db2, end, None, second).await).0, Outcome::Failed);
    let times = told() - before;
    assert!((5..40).contains(&times), "asked {times} times in a second");
}

#[tokio::test]
async fn a_cut_link_times_it_out_and_a_healed_one_ends_it() {
    let test = Test::new();
    let (db1, link) = test.primary_behind_a_link("db1").await;
    let db2 = test.standby("db2", &db1).await;
    link.cut();
    let lsn = commit(&db1).await;
    let (found, said) = outcome(wait(&db2, lsn, None, SHORT).await);
    assert!(found == Outcome::Failed && said.contains("db2 has replayed "), "{found:?} {said}");
    let arguments = ["wait", "--lsn", &lsn.to_string(), "--timeout", "100ms"];
    db2.walship(&arguments).await.failed(1, &[&format!("not {lsn} after 0.1s")]);
    let waiting = wait(&db2, lsn, None, LONG);
    let healing = async {
        tokio::time::sleep(SHORT.0).await;
        link.heal();
    };
    tokio::join!(waiting, healing).0.unwrap();
}

#[tokio::test]
async fn a_paused_replay_holds_it_up() {
    let test = Test::new();
    let db1 = test.primary("db1").await;
    let db2 = test.standby("db2", &db1).await;
    // A server that is paused before it has begun to stream does not begin.
    wait(&db2, commit(&db1).await, None, LONG).await.unwrap();
    db2.cluster.sql("SELECT pg_wal_replay_pause()").await.unwrap();
    let lsn = commit(&db1).await;
    assert_eq!(outcome(wait(&db2, lsn, None, SHORT).await).0, Outcome::Failed);
    let resuming = async {
        tokio::time::sleep(SHORT.0).await;
        db2.cluster.sql("SELECT pg_wal_replay_resume()").await.unwrap();
    };
    let begun = Instant::now();
    tokio::join!(wait(&db2, lsn, None, LONG), resuming).0.unwrap();
    assert!(begun.elapsed() < PATIENCE / 2, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn what_is_not_known_is_neither_reached_nor_late() {
    let test = Test::new();
    let db1 = test.primary("db1").await;
    let mut db2 = test.standby("db2", &db1).await;
    let lsn = commit(&db1).await;
    wait(&db2, lsn, None, LONG).await.unwrap();
    let arguments = ["wait", "--lsn", &lsn.to_string(), "--timeout", "0s"];
    db2.walship(&arguments).await.succeeded();

    // A sidecar that is still starting PostgreSQL takes its end for a failed start.
    db2.sidecar.terminate().await;
    db2.run().await;
    wait(&db2, lsn, None, LONG).await.unwrap();
    // What the server had replayed before it went is no answer: the next one may show less at first.
    db2.cluster.kill().await.unwrap();
    eventually("the sidecar notices", async || {
        let said = db2.walship(&arguments).await.exits(4)?.stderr;
        ensure!(said.contains("its PostgreSQL is not connected to the sidecar"), "{said}");
        Ok(())
    })
    .await;
    db2.cluster.start().await.unwrap();
    wait(&db2, lsn, None, LONG).await.unwrap();

    db2.sidecar.signal(rustix::process::Signal::STOP);
    db2.walship(&arguments).await.failed(4, &["the sidecar does not answer"]);
    db2.sidecar.signal(rustix::process::Signal::CONT);
    db2.sidecar.terminate().await;
    db2.walship(&arguments).await.failed(4, &["reach the sidecar", "hint: Is it running?"]);
    db2.run().await;

    let end = insert_lsn(&db1).await + (1 << 30);
    let (found, said) = outcome(wait(&db1, end, None, SHORT).await);
    assert!(found == Outcome::Failed && said.starts_with("db1 has flushed "), "{found:?} {said}");
    for wrong in
        [&["--lsn", "16"][..], &[], &["--lsn", "0/1", "--timeout", "5"], &["--lsn", "0/1", "--timeline", "0"]]
    {
        db1.walship(&[&["wait"], wrong].concat()).await.exited_with(2);
    }
}

#[tokio::test]
async fn a_promotion_leaves_positions_behind_and_those_who_name_the_timeline_are_told() {
    let test = Test::new();
    let (mut db1, link) = test.primary_behind_a_link("db1").await;
    let (db2, db3) = (test.standby("db2", &db1).await, test.standby("db3", &db1).await);
    let shipped = commit(&db1).await;
    for standby in [&db2, &db3] {
        standby.follows(&db1).await;
        standby.knows(&["db1", "db2", "db3"]).await;
    }
    link.cut();
    let lost = commit(&db1).await;
    db1.dies().await;
    let waiting = tokio::spawn({
        let wait = Wait { lsn: lost, timeline: Some(TimelineId(1)), timeout: LONG };
        let client = Client::connect(&db3.store()).await.unwrap();
        async move { client.wait(&wait).await }
    });
    db2.walship(&PROMOTE).await.succeeded();
    let (found, said) = outcome(waiting.await.unwrap());
    assert!(found == Outcome::Refused && said.contains("a promotion ended its timeline at"), "{said}");

    // The new primary passes the position that was lost, with other WAL.
    let rows = "INSERT INTO t SELECT 0 FROM generate_series(1, 10000)";
    db2.cluster.sql(rows).await.unwrap();
    let new = commit(&db2).await;
    assert!(new > lost);
    for node in [&db2, &db3] {
        wait(node, new, Some(2), LONG).await.unwrap();
        wait(node, shipped, Some(1), LONG).await.unwrap();
        wait(node, lost, None, LONG).await.unwrap();
        let arguments = ["wait", "--lsn", &lost.to_string(), "--timeline", "1"];
        node.walship(&arguments).await.failed(3, &["is not in the history of db"]);
        let later = outcome(wait(node, shipped, Some(3), SHORT).await);
        assert_eq!(later.0, Outcome::Failed, "{}", later.1);
    }
}

#[tokio::test]
async fn places_to_wait_are_bounded_and_free_again_when_somebody_leaves() {
    const PLACES: usize = 256;
    const TOO_MANY: usize = 32;
    let test = Test::new();
    let db1 = test.primary("db1").await;
    let db2 = test.standby("db2", &db1).await;
    let end = insert_lsn(&db1).await + (1 << 30);
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..PLACES + TOO_MANY {
        let client = Client::connect(&db2.store()).await.unwrap();
        let wait = Wait { lsn: end, timeline: None, timeout: LONG };
        waiting.spawn(async move { client.wait(&wait).await });
    }
    for _ in 0..TOO_MANY {
        let (found, said) = outcome(waiting.join_next().await.unwrap().unwrap());
        assert!(found == Outcome::Unknown && said.contains("256 are waiting here already"), "{said}");
    }
    // Nobody else is kept from asking, and the node works on.
    let lsn = commit(&db1).await;
    db2.follows(&db1).await;
    db2.status().await.unwrap();
    assert_eq!(outcome(wait(&db2, lsn, None, SHORT).await).0, Outcome::Unknown);
    assert_eq!(waiting.len(), PLACES);
    drop(waiting);
    eventually("their places are free", async || wait(&db2, lsn, None, SHORT).await).await;
}
