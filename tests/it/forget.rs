//! Members that are gone for good: what is still held, waited for and let in once one is forgotten.

use anyhow::ensure;
use rustix::process::Signal;
use walship::pg::Lsn;
use walship::report::Status;

use crate::ack::Three;
use crate::cascade::{hears_of, standby_of, takes};
use crate::harness::{Node, PROMOTE, Test, eventually};

const REFUSED: &str = "was taken off the list of members with `walship forget`";

/// Waits until a node no longer lists a member.
async fn no_longer_knows(node: &Node, name: &str) {
    eventually(&format!("{} knows {name} no more", node.name()), async || {
        let status = node.status().await?;
        ensure!(!mentions(&status, name), "{status:?}");
        Ok(())
    })
    .await;
}

/// Whether a status lists somebody as a member, as one who follows, or as one WAL is held for.
fn mentions(status: &Status, name: &str) -> bool {
    status.members.iter().any(|member| member.name == name)
        || status.downstreams.iter().any(|peer| peer.name == name)
        || status.store.holds.iter().any(|hold| hold.who.starts_with(name))
}

/// Whom the policy in effect means.
async fn names(node: &Node) -> anyhow::Result<(u64, Vec<String>)> {
    let commits = node.status().await?.commits;
    let policy = commits.and_then(|commits| commits.policy);
    let policy = policy.ok_or_else(|| anyhow::anyhow!("{} knows no policy", node.name()))?;
    Ok((policy.serial, policy.names))
}

async fn several_segments(node: &Node) -> Lsn {
    for _ in 0..3 {
        node.cluster.sql("CREATE TABLE IF NOT EXISTS much (a text)").await.unwrap();
        node.cluster
            .sql("INSERT INTO much SELECT md5(n::text) FROM generate_series(1, 8000) AS n")
            .await
            .unwrap();
        node.cluster.sql("SELECT pg_switch_wal()").await.unwrap();
    }
    node.cluster.value("SELECT pg_current_wal_flush_lsn()").await.unwrap().parse().unwrap()
}

fn wipe(node: &Node) {
    for folder in [node.store(), node.cluster.data_directory()] {
        std::fs::remove_dir_all(folder).unwrap();
    }
}

#[tokio::test]
async fn a_scrapped_member_holds_nothing_counts_for_nothing_and_comes_back_by_invitation_only() {
    let test = Test::new();
    let mut db1 = test.primary("db1").await;
    let mut db2 = test.standby("db2", &db1).await;
    let mut db3 = test.standby("db3", &db1).await;
    db1.walship(&["sync", "any 1 (*)"]).await.succeeded();
    for (name, says) in [("db9", "The members are db2, db3."), ("db1", "db1 is this node, the primary")] {
        db1.walship(&["forget", name]).await.failed(3, &[says]);
    }
    db2.walship(&["forget", "db3"]).await.failed(3, &["db2 is a standby", "Run this on the primary"]);
    db1.walship(&["forget", "db3"])
        .await
        .failed(3, &["db3 is connected", "--force forgets db3 all the same"]);

    db3.dies().await;
    let written = several_segments(&db1).await;
    db2.follows(&db1).await;
    eventually("db3 is away", async || {
        let dry = db1.walship(&["forget", "db3", "--dry-run"]).await.exits(0)?;
        ensure!(dry.stdout.contains("nothing was changed"), "{}", dry.stdout);
        for part in ["holds back ", "wait for `any 1 (*)` of db2", "to come back, db3 needs a new invitation"]
        {
            ensure!(dry.stderr.contains(part), "{part}: {}", dry.stderr);
        }
        Ok(())
    })
    .await;
    let before = db1.status().await.unwrap();
    assert!(mentions(&before, "db3"));
    let table = db1.walship(&["status"]).await.succeeded();
    assert!(table.contains("held by      db3 from "), "{table}");
    assert!(before.store.start < written, "WAL is held for db3: {:?}", before.store);

    let done = db1.walship(&["forget", "db3"]).await.succeeded();
    assert_eq!(done, "db3 is forgotten\n");
    assert!(db1.walship(&["forget", "db3"]).await.succeeded().contains("was forgotten before"));
    for node in [&db1, &db2] {
        no_longer_knows(node, "db3").await;
        eventually("the policy means the others", async || {
            let (serial, names) = names(node).await?;
            ensure!(serial == 3 && names == ["db1", "db2"], "{serial} {names:?}");
            Ok(())
        })
        .await;
    }
    // The restartpoint of db2 may lag: its PostgreSQL takes one when it is asked to.
    db1.cluster.sql("CHECKPOINT").await.unwrap();
    db2.follows(&db1).await;
    db2.cluster.sql("CHECKPOINT").await.unwrap();
    eventually("the WAL that was held is gone", async || {
        let start = db1.status().await?.store.start;
        ensure!(start > before.store.start + (2 << 20), "it begins at {start}");
        Ok(())
    })
    .await;

    // Back as if nothing had been, it is refused by whoever it asks, also after restarts.
    assert!(db1.sidecar.terminate().await.success());
    db1.run().await;
    db3.sidecar.expect_log("not following");
    db3.run().await;
    db3.sidecar.wait_log(REFUSED).await;
    no_longer_knows(&db1, "db3").await;
    db3.dies().await;

    // So it is after a promotion.
    db2.follows(&db1).await;
    db1.dies().await;
    assert!(db2.sidecar.terminate().await.success());
    db2.run().await;
    db2.walship(&PROMOTE).await.succeeded();
    db3.run().await;
    eventually("db2 refuses db3, too", async || {
        let status = db3.walship(&["status"]).await.exits(0)?.stdout;
        ensure!(status.contains(REFUSED) && status.contains("needs a new invitation"), "{status}");
        Ok(())
    })
    .await;
    no_longer_knows(&db2, "db3").await;

    // A new invitation makes it a new member.
    db3.dies().await;
    wipe(&db3);
    std::fs::remove_file(db1.folder().join("db3.join")).unwrap();
    let bundle = db1.invite_to("db3", &db2).await;
    db3.join(&bundle, &[]);
    db3.equals(&db2).await;
    db2.knows(&["db3"]).await;
}

#[tokio::test]
async fn behind_a_relay_one_is_cut_off_and_kept_out_also_while_the_primary_is_gone() {
    let test = Test::new();
    let mut db1 = test.primary("db1").await;
    let mut db2 = test.standby("db2", &db1).await;
    let db3 = standby_of(&test, "db3", &db1, &[&db2]).await;
    takes(&db3, &["db3", "db2", "db1"]).await;
    hears_of(&db1, "db3", Some("db2"), &db1).await;
    db1.walship(&["forget", "db3"]).await.failed(3, &["db3 is connected"]);
    db3.sidecar.expect_log("not following");
    db1.walship(&["forget", "db3", "--force"]).await.succeeded();
    db3.sidecar.wait_log(REFUSED).await;
    db2.sidecar.wait_log("it was taken off the list of members").await;
    for node in [&db1, &db2] {
        no_longer_knows(node, "db3").await;
    }
    // The relay alone, after a restart, knows it.
    db1.dies().await;
    assert!(db2.sidecar.terminate().await.success());
    db2.run().await;
    eventually("db2 itself refuses db3", async || {
        let status = db3.walship(&["status"]).await.exits(0)?.stdout;
        ensure!(status.contains(REFUSED), "{status}");
        Ok(())
    })
    .await;
    let downstreams = db2.status().await.unwrap().downstreams;
    assert!(downstreams.is_empty(), "{downstreams:?}");
}

#[tokio::test]
async fn who_stays_has_what_was_acknowledged_before_another_goes() {
    let mut three = Three::new().await;
    three.sync("any 1 (db2, db3)").await;
    three.db3.sidecar.signal(Signal::STOP);
    let commit = three.commit("on").await;
    commit.ends("db2 has it").await;
    three.db2.dies().await;
    eventually("db2 is away, and named by a person", async || {
        let refused = three.db1.walship(&["forget", "db2"]).await.exits(3)?;
        ensure!(refused.stderr.contains("which names db2"), "{}", refused.stderr);
        ensure!(refused.stderr.contains("`walship sync POLICY`"), "{}", refused.stderr);
        Ok(())
    })
    .await;
    // The same two, by `*`: their number may shrink, but db3 has not got yet what db2 alone had.
    three.db1.walship(&["sync", "any 1 (*)"]).await.succeeded();
    three.db1.walship(&["forget", "db2"]).await.failed(3, &["too few have without db2", "--force"]);
    assert!(three.db1.status().await.unwrap().members.iter().any(|member| member.name == "db2"));
    three.db3.sidecar.signal(Signal::CONT);
    three.db3.follows(&three.db1).await;
    three.db1.walship(&["forget", "db2"]).await.succeeded();
    three.commit("on").await.ends("db3 has it").await;
}

#[tokio::test]
async fn a_primary_whose_only_standby_is_lost_goes_on() {
    let mut three = Three::new().await;
    three.db3.dies().await;
    three.db1.walship(&["forget", "db3", "--force"]).await.succeeded();
    three.sync("any 1 (*)").await;
    three.db2.dies().await;
    let commit = three.commit("on").await;
    let lsn = three.waits(&commit).await;
    let refused = three.db1.walship(&["forget", "db2", "--force"]).await;
    refused.failed(3, &["waits for 1, and no member beside the primary counts", "`walship sync async`"]);
    let pending = three.db1.walship(&["sync", "async"]).await;
    pending.failed(4, &["db2 not yet", "`walship forget`"]);
    three.db1.walship(&["forget", "db2", "--force"]).await.succeeded();
    let done = three.sync("async").await;
    assert!(done.contains("commits wait for nobody"), "{done}");
    commit.ends("when nobody is waited for").await;
    assert!(three.db1.status().await.unwrap().store.durable >= lsn);
}

#[tokio::test]
async fn all_means_the_others_once_they_have_stored_that() {
    let mut three = Three::new().await;
    three.sync("all").await;
    three.db3.dies().await;
    let commit = three.commit("on").await;
    three.waits(&commit).await;
    // What it never got was never acknowledged, so db2 has all that was.
    three.db1.walship(&["forget", "db3", "--force"]).await.succeeded();
    commit.ends("when db2 has it, and the policy that means it alone").await;
    eventually("the policy means db2", async || {
        let (serial, names) = names(&three.db1).await?;
        ensure!(serial == 3 && names == ["db1", "db2"], "{serial} {names:?}");
        Ok(())
    })
    .await;
}
