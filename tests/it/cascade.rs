//! Standbys that follow standbys: chains, loops, what happens when a part of one is lost, and who is promoted then.

use anyhow::ensure;
use walship::demo::{Workload, WorkloadOptions};
use walship::report::Upstream;
use walship::vitals::Contact;

use crate::harness::{Node, Test, eventually};

/// A standby that prefers these nodes as its sources.
async fn standby_of(test: &Test, name: &str, primary: &Node, upstream: &[&Node]) -> Node {
    let bundle = primary.invite(name).await;
    let mut node = Node::empty(test, name);
    prefers(&mut node, upstream);
    node.join(&bundle, &[]);
    node.follows(primary).await;
    node
}

/// Sets the order of preference for later starts.
fn prefers(node: &mut Node, upstream: &[&Node]) {
    let addresses: Vec<String> = upstream.iter().map(|node| node.advertise.to_string()).collect();
    node.sidecar.set("WALSHIP_UPSTREAM", &addresses.join(","));
}

async fn upstream(node: &Node) -> anyhow::Result<Upstream> {
    let status = node.status().await?;
    status.upstream.ok_or_else(|| anyhow::anyhow!("{} is no standby", node.name()))
}

/// Waits until a node's WAL takes this way.
async fn takes(node: &Node, route: &[&str]) {
    eventually(&format!("{} follows {route:?}", node.name()), async || {
        let upstream = upstream(node).await?;
        let is_up = matches!(upstream.contact, Contact::Up { .. });
        ensure!(is_up && upstream.from_primary && upstream.route == route, "{upstream:?}");
        Ok(())
    })
    .await;
}

async fn writers(primary: &Node) -> Workload {
    let workload = Workload::start(&primary.cluster.conninfo(), &WorkloadOptions::default()).await.unwrap();
    written(&workload, 200).await;
    workload
}

async fn written(workload: &Workload, more: usize) {
    let from = workload.acknowledged();
    eventually("more is acknowledged", async || {
        let now = workload.acknowledged();
        ensure!(now >= from + more, "{} of {more}", now - from);
        Ok(())
    })
    .await;
}

/// Checks rows and stores once the writers have ended.
async fn all_are_equal(workload: Workload, primary: &Node, standbys: &[&Node]) {
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
