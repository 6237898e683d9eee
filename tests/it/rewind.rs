//! A primary that diverged comes back by its own pg_rewind, and what becomes of it when that is interrupted.

use std::path::PathBuf;

use walship::pg::sql::{Grant, ServerVersion};
use walship::report::Role;

use crate::harness::{Node, PROMOTE, Test, eventually, tools};
use crate::promotion::{three, write, write_much};

/// `old` is lost, `new` is promoted, and `old` comes back with rows that `new` never had.
async fn diverge(old: &mut Node, new: &Node, round: u32) {
    // Nobody is further along than it.
    new.follows(old).await;
    old.dies().await;
    new.walship(&PROMOTE).await.exited_with(0);
    write(new, &format!("after_{round}")).await;
    old.cluster.start().await.unwrap();
    write(old, &format!("only_here_{round}")).await;
    // Pages that both had, changed on one side or both.
    old.cluster.sql("UPDATE before SET a = -a").await.unwrap();
    new.cluster.sql("DELETE FROM before WHERE a % 3 = 0").await.unwrap();
    if round == 1 {
        // Nothing keeps old WAL in pg_wal any more.
        let drop = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots";
        old.cluster.sql(drop).await.unwrap();
    }
    old.cluster.sql("CHECKPOINT").await.unwrap();
    old.sidecar.expect_log("this node was superseded");
}

/// Has a node's sidecar log in as a role that is no superuser's, and that may do all but be read from by pg_rewind.
async fn asks_as_walship(node: &mut Node, primary: &Node) {
    let mut sql = "CREATE ROLE walship LOGIN; ".to_owned();
    let version = ServerVersion(node.cluster.binaries().major() * 10_000);
    for grant in Grant::of(version).filter(|grant| *grant != Grant::ReadFiles) {
        sql += &grant.sql_that_mends("walship", version);
    }
    primary.cluster.sql(&sql).await.unwrap();
    node.follows(primary).await;
    let config = std::fs::read_to_string(node.config_file()).unwrap();
    assert!(config.contains("user=postgres"), "{config}");
    std::fs::write(node.config_file(), config.replace("user=postgres", "user=walship")).unwrap();
    assert!(node.sidecar.terminate().await.success());
    node.run().await;
}

/// Where PostgreSQL's last checkpoint begins.
async fn checkpoint_file(node: &Node) -> PathBuf {
    node.cluster.sql("CHECKPOINT").await.unwrap();
    let name = node.cluster.value("SELECT pg_walfile_name(redo_lsn) FROM pg_control_checkpoint()");
    node.cluster.data_directory().join("pg_wal").join(name.await.unwrap())
}

/// All rows are the primary's, and every page is what its checksum says.
async fn is_sound(node: &mut Node, primary: &Node) {
    node.equals(primary).await;
    // It might still wait for the start of what is stopped.
    assert!(node.sidecar.terminate().await.success());
    node.stops().await;
    if let Some(mut check) = tools::reader(&node.cluster, "pg_checksums") {
        check.arg("--check").arg("-D").arg(node.cluster.data_directory());
        node.cluster.run(check).await.unwrap();
    }
    node.cluster.start().await.unwrap();
    node.runs_with("").await;
}

#[tokio::test]
async fn a_diverged_primary_is_rewound_through_the_link_and_what_was_interrupted_is_finished() {
    let test = Test::new();
    let (mut db1, mut db2, db3) = three(&test).await;
    asks_as_walship(&mut db2, &db1).await;
    let common = checkpoint_file(&db1).await;
    let segments = "CREATE TABLE much AS SELECT repeat(md5(a::text), 10) FROM generate_series(1, 8000) AS a";
    db1.cluster.sql(segments).await.unwrap();
    db1.captures().await;
    for standby in [&db2, &db3] {
        standby.follows(&db1).await;
    }
    diverge(&mut db1, &db2, 1).await;
    db1.cluster.append_to("postgresql.conf", "work_mem = '7MB'\n").unwrap();
    std::fs::write(db1.cluster.data_directory().join("server.key"), "db1's").unwrap();
    db1.run().await;
    db1.is(Role::Superseded).await;
    // Its role lacks one privilege, and what grants it is said.
    let dry = db1.walship(&["rejoin", "--dry-run"]).await.succeeded();
    let lack = "by a copy of what differs, not by pg_rewind: PostgreSQL beside db2 serves no pg_rewind: the role may not read files";
    assert!(dry.contains(lack), "{dry}");
    let grant = &dry[dry.find("GRANT").unwrap()..dry.find(" TO walship").unwrap()];
    db2.cluster.sql(&format!("{grant} TO walship")).await.unwrap();
    let dry = db1.walship(&["rejoin", "--dry-run"]).await.succeeded();
    assert!(dry.contains("the data directory rewound by pg_rewind; nothing was changed"), "{dry}");
    assert!(!common.exists(), "what pg_rewind begins with is in the store alone: {}", common.display());
    let done = db1.walship(&["rejoin"]).await.exited_with(0);
    assert!(done.stdout.contains("db1 was rewound to") && done.stderr.contains("need to copy"), "{done:?}");
    db1.is(Role::Standby).await;
    is_sound(&mut db1, &db2).await;
    assert_eq!(db1.cluster.value("SHOW work_mem").await.unwrap(), "7MB");
    assert_eq!(db1.cluster.value("SHOW restore_command").await.unwrap(), "");
    let key = db1.cluster.data_directory().join("server.key");
    assert_eq!(std::fs::read_to_string(key).unwrap(), "db1's");

    // In the middle: what is there is no cluster any more, and is never started as one.
    diverge(&mut db2, &db1, 2).await;
    db2.sidecar.expect_log("the log that is here does not lead to where the copy begins");
    db2.runs_with("rewind-changing=abort").await;
    db2.is(Role::Superseded).await;
    db2.walship(&["rejoin"]).await.exits(4).unwrap();
    db2.sidecar.ended().await;
    assert!(db2.cluster.start().await.is_err(), "by hand, or at boot, it would come up as a primary");
    db2.runs_with("").await;
    assert!(!db2.cluster.is_running());
    let dry = db2.walship(&["rejoin", "--dry-run"]).await.succeeded();
    assert!(dry.contains("a pg_rewind was begun here and did not end"), "{dry}");
    let done = db2.walship(&["rejoin"]).await.exited_with(0);
    assert!(done.stdout.contains("db2 is being made equal to db1"), "{done:?}");
    db2.is(Role::Standby).await;
    is_sound(&mut db2, &db1).await;

    // After its end: nothing of it is done again. PostgreSQL had crashed, too, and recovers first.
    diverge(&mut db1, &db2, 3).await;
    db1.cluster.kill().await.unwrap();
    db1.runs_with("rewind-settled=abort").await;
    db1.is(Role::Superseded).await;
    db1.walship(&["rejoin"]).await.exits(4).unwrap();
    db1.sidecar.ended().await;
    db1.runs_with("").await;
    let done = db1.walship(&["rejoin"]).await.exited_with(0);
    assert!(done.stdout.contains("db1 was rewound to"), "{done:?}");
    db1.is(Role::Standby).await;
    is_sound(&mut db1, &db2).await;
    assert_eq!(db1.cluster.value("SHOW work_mem").await.unwrap(), "7MB");
    write(&db2, "at_last").await;
    for standby in [&db1, &db3] {
        standby.equals(&db2).await;
    }
}

#[tokio::test]
async fn what_is_rewound_replays_nothing_of_its_own_past_the_fork() {
    let test = Test::new();
    let (mut db1, db2, _db3) = three(&test).await;
    db1.dies().await;
    db2.walship(&PROMOTE).await.exited_with(0);
    db1.cluster.start().await.unwrap();
    db1.sidecar.expect_log("this node was superseded");
    // The segment with the fork is written to its end by both, and gone from the new primary's pg_wal.
    let forked = db2.cluster.value("SELECT pg_walfile_name(pg_current_wal_lsn())").await.unwrap();
    let forked = db2.cluster.data_directory().join("pg_wal").join(forked);
    for node in [&db1, &db2] {
        write_much(node, &format!("on_{}", node.name())).await;
    }
    eventually("the new primary needs the segment with the fork no longer", async || {
        db2.captures().await;
        db2.cluster.sql("CHECKPOINT").await?;
        anyhow::ensure!(!forked.exists(), "{} is there", forked.display());
        Ok(())
    })
    .await;
    db1.run().await;
    db1.is(Role::Superseded).await;
    let done = db1.walship(&["rejoin"]).await.exited_with(0);
    assert!(done.stdout.contains("db1 was rewound to"), "{done:?}");
    db1.is(Role::Standby).await;
    is_sound(&mut db1, &db2).await;
}
