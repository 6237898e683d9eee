//! Standbys that follow standbys: chains, loops, what happens when a part of one is lost, and who is promoted then.

use std::time::{Duration, Instant};

use anyhow::ensure;
use rustix::process::Signal;
use walship::demo::{Workload, WorkloadOptions};
use walship::pg::Lsn;
use walship::report::{Downstream, Upstream};
use walship::vitals::Contact;

use crate::harness::{Node, PATIENCE, Test, eventually};

/// A standby that prefers these nodes as its sources.
pub async fn standby_of(test: &Test, name: &str, primary: &Node, upstream: &[&Node]) -> Node {
    let bundle = primary.invite(name).await;
    let mut node = Node::empty(test, name);
    prefers(&mut node, upstream);
    node.join(&bundle, &[]);
    node.follows(primary).await;
    node
}

/// Sets the order of preference for later starts.
pub fn prefers(node: &mut Node, upstream: &[&Node]) {
    let addresses: Vec<String> = upstream.iter().map(|node| node.advertise.to_string()).collect();
    node.sidecar.set("WALSHIP_UPSTREAM", &addresses.join(","));
}

async fn upstream(node: &Node) -> anyhow::Result<Upstream> {
    let status = node.status().await?;
    status.upstream.ok_or_else(|| anyhow::anyhow!("{} is no standby", node.name()))
}

/// Waits until a node's WAL takes this way.
pub async fn takes(node: &Node, route: &[&str]) {
    eventually(&format!("{} follows {route:?}", node.name()), async || {
        let upstream = upstream(node).await?;
        let is_up = matches!(upstream.contact, Contact::Up { .. });
        ensure!(is_up && upstream.from_primary && upstream.route == route, "{upstream:?}");
        Ok(())
    })
    .await;
}

pub async fn writers(primary: &Node) -> Workload {
    let workload = Workload::start(&primary.cluster.conninfo(), &WorkloadOptions::default()).await.unwrap();
    written(&workload, 200).await;
    workload
}

pub async fn written(workload: &Workload, more: usize) {
    let from = workload.acknowledged();
    eventually("more is acknowledged", async || {
        let now = workload.acknowledged();
        ensure!(now >= from + more, "{} of {more}", now - from);
        Ok(())
    })
    .await;
}

/// Checks rows and stores once the writers have ended.
pub async fn all_are_equal(workload: Workload, primary: &Node, standbys: &[&Node]) {
    let ledger = workload.stop().await;
    for standby in standbys {
        assert!(standby.equals(primary).await >= ledger.notes().len() as u64);
        ledger.verify(&standby.cluster.conninfo(), None).await.unwrap();
        assert!(standby.same_content_as(primary) > 0);
    }
}

#[tokio::test]
async fn a_chain_of_three_has_the_same_wal_at_each_end() {
    let test = Test::new();
    let db1 = test.primary("db1").await;
    let workload = writers(&db1).await;
    let mut db2 = test.standby("db2", &db1).await;
    let db3 = standby_of(&test, "db3", &db1, &[&db2]).await;
    takes(&db3, &["db3", "db2", "db1"]).await;
    written(&workload, 500).await;
    db3.follows(&db1).await;
    let table = db3.walship(&["status"]).await.succeeded();
    assert!(table.contains("db3 <- db2 <- db1") && table.contains("from db2"), "{table}");
    db3.walship(&["lag", "--warn", "64MiB,30s"]).await.succeeded();
    // What is copied comes from the primary, and whoever asks elsewhere is told where that is.
    let copy = test.folder().join("copy");
    let from = db2.advertise.to_string();
    let arguments = ["basebackup", "--from", &from, "-D", copy.to_str().unwrap()];
    db3.walship(&arguments).await.failed(3, &["db2", "is a standby", &db1.advertise.to_string()]);

    // A restart in the middle is nothing but a pause.
    assert!(db2.sidecar.terminate().await.success());
    written(&workload, 200).await;
    db2.run().await;
    takes(&db3, &["db3", "db2", "db1"]).await;
    all_are_equal(workload, &db1, &[&db2, &db3]).await;
}

/// Two standbys that each prefer the other, and no primary: one follows, the other is told why it can't.
async fn one_follows_the_other(one: &Node, other: &Node) {
    eventually("one of the two follows the other", async || {
        let mut up = Vec::new();
        for node in [one, other] {
            let upstream = upstream(node).await?;
            match upstream.contact {
                Contact::Up { .. } => up.push(upstream.route),
                Contact::Trying { error: Some(error), .. } => {
                    let expected = "whose own WAL comes through it: ";
                    ensure!(error.contains(expected) && error.contains(" <- "), "{error}");
                }
                contact => anyhow::bail!("{contact:?}"),
            }
        }
        ensure!(up.len() == 1 && up[0].len() == 2, "{up:?}");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn a_loop_is_refused_at_both_ends_and_a_race_for_one_is_broken() {
    let test = Test::new();
    let mut db1 = test.primary("db1").await;
    let mut db2 = test.standby("db2", &db1).await;
    let mut db3 = standby_of(&test, "db3", &db1, &[&db2]).await;
    takes(&db3, &["db3", "db2", "db1"]).await;
    db2.knows(&["db1", "db2", "db3"]).await;
    db1.dies().await;
    assert!(db2.sidecar.terminate().await.success());
    prefers(&mut db2, &[&db3]);
    db2.run().await;
    one_follows_the_other(&db2, &db3).await;
    db2.sidecar.wait_log("whose own WAL comes through it").await;
    db3.sidecar.wait_log("whose own WAL comes through it").await;
    let mut warned = false;
    for node in [&db2, &db3] {
        warned |= node.walship(&["status"]).await.succeeded().contains("has no way to a primary: ");
    }
    assert!(warned);

    // Each greets the other before either stands on it, so that both are let in.
    for node in [&mut db2, &mut db3] {
        assert!(node.sidecar.terminate().await.success());
        node.sidecar.set("WALSHIP_FAILPOINTS", "follow-stand=sleep:1s");
    }
    db2.sidecar.start(&["run"]);
    db3.sidecar.start(&["run"]);
    one_follows_the_other(&db2, &db3).await;
    for (node, follows) in [(&db2, "following upstream=db3"), (&db3, "following upstream=db2")] {
        let entries = node.sidecar.log().entries();
        let since = entries.iter().rposition(|entry| entry.contains("is running")).unwrap();
        assert!(entries[since..].iter().any(|entry| entry.contains(follows)), "{entries:#?}");
    }

    // The primary comes back, and everybody finds it.
    for node in [&mut db2, &mut db3] {
        assert!(node.sidecar.terminate().await.success());
        node.sidecar.set("WALSHIP_FAILPOINTS", "");
    }
    db1.cluster.start().await.unwrap();
    db1.run().await;
    db2.run().await;
    db3.run().await;
    takes(&db2, &["db2", "db1"]).await;
    takes(&db3, &["db3", "db2", "db1"]).await;
}

/// What a node says of another that gets its WAL through somebody.
async fn downstream(node: &Node, name: &str) -> anyhow::Result<Downstream> {
    let status = node.status().await?;
    let mut found: Vec<Downstream> =
        status.downstreams.into_iter().filter(|peer| peer.name == name).collect();
    ensure!(found.len() == 1, "{name} is there {} times", found.len());
    Ok(found.remove(0))
}

/// Waits until a node hears of another through a third, up to date.
pub async fn hears_of(node: &Node, name: &str, via: Option<&str>, primary: &Node) {
    let written = primary.cluster.value("SELECT pg_current_wal_flush_lsn()").await.unwrap();
    let written: Lsn = written.parse().unwrap();
    eventually(&format!("{} hears of {name} via {via:?}", node.name()), async || {
        let found = downstream(node, name).await?;
        let is_up = matches!(found.contact, Contact::Up { .. });
        ensure!(is_up && found.via.as_deref() == via, "{found:?}");
        ensure!(found.progress.replayed >= Some(written), "{:?} of {written}", found.progress);
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn the_head_knows_and_shows_who_follows_whom_and_how_far_each_is() {
    let test = Test::new();
    let (db1, link) = test.primary_behind_a_link("db1").await;
    let db2 = test.standby("db2", &db1).await;
    let db3 = standby_of(&test, "db3", &db1, &[&db2]).await;
    let db4 = standby_of(&test, "db4", &db1, &[&db3]).await;
    takes(&db4, &["db4", "db3", "db2", "db1"]).await;
    let workload = writers(&db1).await;
    hears_of(&db1, "db2", None, &db1).await;
    hears_of(&db1, "db3", Some("db2"), &db1).await;
    hears_of(&db1, "db4", Some("db3"), &db1).await;
    hears_of(&db2, "db4", Some("db3"), &db1).await;
    db2.knows(&["db1", "db2", "db3", "db4"]).await;
    for node in [&db1, &db4] {
        eventually("all of it is shown", async || {
            let members = node.status().await?.members;
            let from = |name: &str| members.iter().find(|member| member.name == name)?.upstream.as_deref();
            let found = ["db1", "db2", "db3", "db4"].map(from);
            ensure!(found == [None, Some("db1"), Some("db2"), Some("db3")], "{found:?}");
            Ok(())
        })
        .await;
    }
    let lag = db1.walship(&["lag", "--format", "table", "--warn", "64MiB,30s"]).await.succeeded();
    assert!(["db2", "db3", "db4"].iter().all(|name| lag.contains(name)), "{lag}");
    let held: Vec<String> =
        db1.status().await.unwrap().store.holds.into_iter().map(|hold| hold.who).collect();
    assert!(["db3", "db4"].iter().all(|name| held.contains(&(*name).to_owned())), "{held:?}");

    // What the tail's PostgreSQL still reads, the primary's keeps.
    db4.cluster.sql("ALTER SYSTEM SET hot_standby_feedback = on").await.unwrap();
    db4.cluster.sql("SELECT pg_reload_conf()").await.unwrap();
    let wanted = "SELECT bool_or(backend_xmin IS NOT NULL) FROM pg_stat_replication WHERE application_name = 'walship'";
    db1.cluster.wait_until(wanted, PATIENCE).await.unwrap();

    // Cut off together, they are missed together, and stay together.
    link.cut();
    written(&workload, 200).await;
    for name in ["db2", "db3", "db4"] {
        eventually(&format!("{name} is missed"), async || {
            let found = downstream(&db1, name).await?;
            ensure!(matches!(found.contact, Contact::Trying { .. }), "{found:?}");
            Ok(())
        })
        .await;
    }
    let said = db1.walship(&["lag", "--warn", "1B", "--crit", "1GiB"]).await.exited_with(1).stdout;
    assert!(["db2", "db3", "db4"].iter().all(|name| said.contains(&format!("{name} WARNING"))), "{said}");
    let released = "SELECT coalesce(bool_and(backend_xmin IS NULL), true) FROM pg_stat_replication \
                    WHERE application_name = 'walship'";
    db1.cluster.wait_until(released, PATIENCE).await.unwrap();
    let table = db4.walship(&["status"]).await.succeeded();
    assert!(table.contains("has no way to a primary: db4 <- db3 <- db2"), "{table}");
    link.heal();
    takes(&db4, &["db4", "db3", "db2", "db1"]).await;
    hears_of(&db1, "db4", Some("db3"), &db1).await;
    all_are_equal(workload, &db1, &[&db2, &db3, &db4]).await;
}

#[tokio::test]
async fn a_commit_that_waits_for_the_tail_takes_one_way_down_and_one_up() {
    let test = Test::new();
    let db1 = test.primary("db1").await;
    let db2 = test.standby("db2", &db1).await;
    let mut db3 = standby_of(&test, "db3", &db1, &[&db2]).await;
    takes(&db3, &["db3", "db2", "db1"]).await;
    db2.knows(&["db1", "db2", "db3"]).await;
    db1.cluster.sql("CREATE TABLE t (a int)").await.unwrap();
    db1.walship(&["sync", "chain (db2, db3)"]).await.succeeded();
    db1.cluster.sql("ALTER SYSTEM SET synchronous_standby_names = 'walship'").await.unwrap();
    db1.cluster.sql("SELECT pg_reload_conf()").await.unwrap();
    hears_of(&db1, "db3", Some("db2"), &db1).await;
    let client = db1.cluster.connect().await.unwrap();
    for level in ["remote_write", "on", "remote_apply"] {
        client.batch_execute(&format!("SET synchronous_commit = {level}")).await.unwrap();
        client.batch_execute("INSERT INTO t VALUES (1)").await.unwrap();
        let begun = Instant::now();
        for _ in 0..20 {
            client.batch_execute("INSERT INTO t VALUES (1)").await.unwrap();
        }
        // A timer of a second anywhere on the way would take twenty.
        assert!(begun.elapsed() < Duration::from_secs(6), "{level}: {:?}", begun.elapsed());
    }
    // Without the tail nothing is released, however well the middle is.
    db3.sidecar.signal(Signal::STOP);
    let committing = tokio::spawn(async move {
        client.batch_execute("SET synchronous_commit = on; INSERT INTO t VALUES (2)").await.unwrap();
    });
    let waits = "SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    db1.cluster.wait_until(waits, PATIENCE).await.unwrap();
    db2.follows(&db1).await;
    assert!(!committing.is_finished());
    db3.sidecar.signal(Signal::CONT);
    tokio::time::timeout(PATIENCE, committing).await.unwrap().unwrap();
    db3.equals(&db1).await;
    assert!(db3.sidecar.terminate().await.success());
}

#[tokio::test]
async fn a_wiped_node_behind_a_relay_is_a_new_one() {
    let test = Test::new();
    let db1 = test.primary("db1").await;
    let db2 = test.standby("db2", &db1).await;
    let mut db3 = standby_of(&test, "db3", &db1, &[&db2]).await;
    hears_of(&db1, "db3", Some("db2"), &db1).await;
    db2.knows(&["db3"]).await;
    assert!(db3.sidecar.terminate().await.success());
    db3.stops().await;
    let store = db3.store();
    let aside = test.folder().join("old-store");
    std::fs::rename(&store, &aside).unwrap();
    std::fs::remove_dir_all(db3.cluster.data_directory()).unwrap();
    std::fs::remove_file(db3.config_file()).unwrap();
    std::fs::remove_file(db1.folder().join("db3.join")).unwrap();

    db3.join(&db1.invite("db3").await, &[]);
    db3.follows(&db1).await;
    takes(&db3, &["db3", "db2", "db1"]).await;
    hears_of(&db1, "db3", Some("db2"), &db1).await;
    db2.knows(&["db3"]).await;
    // The old store under the same name is refused by the relay, which goes by the list that it mirrors.
    assert!(db3.sidecar.terminate().await.success());
    db3.stops().await;
    let new = test.folder().join("new-store");
    std::fs::rename(&store, &new).unwrap();
    std::fs::rename(&aside, &store).unwrap();
    db3.sidecar.expect_log("was replaced by a newer invitation");
    db3.run().await;
    db2.sidecar.wait_log("the certificate of db3 was replaced by a newer invitation").await;
    let table = db3.walship(&["status"]).await.succeeded();
    assert!(table.contains("was replaced by a newer invitation"), "{table}");
    assert!(db3.sidecar.terminate().await.success());
    std::fs::rename(&store, &aside).unwrap();
    std::fs::rename(&new, &store).unwrap();
    db3.run().await;
    db3.equals(&db1).await;
}
