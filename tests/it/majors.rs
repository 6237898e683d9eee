//! What is different from one major version of PostgreSQL to the next: each that is here lives through a short life, and
//! what came with a version is used where it is.

use std::path::Path;

use walship::demo::{Binaries, ClusterOptions};
use walship::pg::sql::ServerVersion;

use crate::harness::tools::{has_version, not_run};
use crate::harness::{Node, PROMOTE, Test, eventually};

/// Names folders with servers of more versions, with `:` between them: those that Debian did not install.
const FOLDERS_VARIABLE: &str = "WALSHIP_PG_BINS";

/// One server of each major version but `tested`.
fn others(tested: u32) -> Vec<Binaries> {
    let named = std::env::var_os(FOLDERS_VARIABLE).unwrap_or_default();
    let folders = std::env::split_paths(&named).filter(|folder| !folder.as_os_str().is_empty());
    let named = folders.map(|folder| Binaries::at(&folder).unwrap_or_else(|error| panic!("{error}")));
    let mut found: Vec<Binaries> = named.chain(Binaries::of_debian()).collect();
    found.sort_by_key(Binaries::major);
    found.dedup_by_key(|found| found.major());
    found.retain(|found| found.major() != tested && ServerVersion::SUPPORTED.contains(&found.major()));
    found
}

/// From `init` to a row on a promoted standby.
async fn short_life(binaries: Binaries) {
    let test = Test::on(binaries);
    let mut db1 = test.primary("db1").await;
    db1.cluster.sql("CREATE TABLE t AS SELECT generate_series(1, 10000) AS a").await.unwrap();
    let db2 = test.standby("db2", &db1).await;
    db1.cluster.sql("INSERT INTO t SELECT generate_series(1, 10000)").await.unwrap();
    db2.follows(&db1).await;
    db1.dies().await;
    db2.walship(&PROMOTE).await.succeeded();
    db2.cluster.sql("INSERT INTO t VALUES (0)").await.unwrap();
    assert_eq!(db2.cluster.value("SELECT count(*) FROM t").await.unwrap(), "20001");
    db2.captures().await;
}

#[tokio::test]
async fn every_version_that_is_here_lives_through_a_short_life() {
    let tested = Binaries::find().unwrap();
    let others = others(tested.major());
    for major in ServerVersion::SUPPORTED {
        if major != tested.major() && !others.iter().any(|other| other.major() == major) {
            let what = format!(
                "a short life on PostgreSQL {major}, which is not here: {FOLDERS_VARIABLE} names folders"
            );
            not_run(&tested, &what);
        }
    }
    for other in others {
        short_life(other).await;
    }
}

/// Adds to what PostgreSQL was told last, which it reads when it starts or is told to.
fn set(node: &Node, lines: &str) {
    node.cluster.append_to("postgresql.auto.conf", lines).unwrap();
}

#[tokio::test]
async fn summaries_of_wal_and_synchronised_slots_are_in_nobodys_way() {
    let test = Test::new();
    if !has_version(&test.binaries, 17, "summarize_wal and sync_replication_slots") {
        return;
    }
    let options = ClusterOptions::default().set("summarize_wal", "on").set("wal_level", "logical");
    let mut db1 = Node::new(&test, "db1", options).await;
    db1.init().await;
    db1.start_primary().await;
    let db2 = test.standby("db2", &db1).await;

    // The worker asks the feed for SQL, is told what the feed is, and asks again once a minute. The standby follows.
    let conninfo = db2.cluster.value("SHOW primary_conninfo").await.unwrap();
    let conninfo = format!("{conninfo} dbname=postgres").replace('\'', "''");
    set(&db2, &format!("primary_conninfo = '{conninfo}'\nprimary_slot_name = 'any'\n"));
    set(&db2, "hot_standby_feedback = on\nsync_replication_slots = on\n");
    db2.cluster.sql("SELECT pg_reload_conf()").await.unwrap();
    db2.sidecar.wait_log("this is walship's feed: it serves physical replication and nothing else").await;
    db1.cluster.sql("CREATE TABLE t AS SELECT generate_series(1, 10000) AS a; CHECKPOINT").await.unwrap();
    db2.equals(&db1).await;
    db2.cluster.sql("CHECKPOINT").await.unwrap();
    for node in [&db1, &db2] {
        let folder = node.cluster.data_directory().join("pg_wal/summaries");
        eventually("the WAL is summarised", async || has_files(&folder)).await;
    }
    db1.dies().await;
    db2.walship(&PROMOTE).await.succeeded();
    db2.cluster.sql("INSERT INTO t VALUES (0)").await.unwrap();
}

fn has_files(folder: &Path) -> anyhow::Result<()> {
    anyhow::ensure!(std::fs::read_dir(folder)?.next().is_some(), "{} is empty", folder.display());
    Ok(())
}
