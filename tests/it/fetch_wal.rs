//! `walship fetch-wal` as PostgreSQL's restore_command.

use anyhow::ensure;
use walship::demo::digest;
use walship::pg::{Lsn, TimelineId};

use crate::harness::{Node, PROMOTE, Test, eventually};

/// Ends the segment that PostgreSQL writes to, and waits until the store has sealed it.
async fn seal(node: &Node) -> Lsn {
    let switched: Lsn = node.cluster.value("SELECT pg_switch_wal()").await.unwrap().parse().unwrap();
    node.cluster.sql("CHECKPOINT").await.unwrap();
    eventually("the segment is sealed", async || {
        let sealed = node.status().await?.store.sealed;
        ensure!(sealed >= switched, "up to {sealed}, not {switched}");
        Ok(())
    })
    .await;
    switched
}

#[tokio::test]
async fn a_postgresql_that_has_nothing_but_the_store_replays_all_that_is_sealed() {
    let test = Test::new();
    let mut db1 = test.primary("db1").await;
    let copy = test.plain_standby("copy", &db1.cluster, &db1.cluster.conninfo()).await;
    copy.stop(walship::demo::StopMode::Fast).await.unwrap();
    let statement = "CREATE TABLE of_the_store AS SELECT a, md5(a::text) FROM generate_series(1, 50000) AS a";
    db1.cluster.sql(statement).await.unwrap();
    let switched = seal(&db1).await;
    // Neither the primary nor its sidecar is there any more.
    db1.dies().await;
    let fetch =
        format!("{} fetch-wal --config {} %f %p", env!("CARGO_BIN_EXE_walship"), db1.config_file().display());
    let only_the_store = format!("primary_conninfo = ''\nrestore_command = '{fetch}'\n");
    copy.append_to("postgresql.auto.conf", &only_the_store).unwrap();
    copy.start().await.unwrap();
    let replayed = format!("SELECT pg_last_wal_replay_lsn() >= '{switched}'");
    copy.wait_until(&replayed, crate::harness::PATIENCE).await.unwrap();
    db1.cluster.start().await.unwrap();
    digest::compare(&db1.cluster.conninfo(), &copy.conninfo()).await.unwrap();
}

#[tokio::test]
async fn beside_a_running_sidecar_it_gives_what_a_promotion_left_and_what_it_began() {
    let test = Test::new();
    let mut db1 = test.primary("db1").await;
    let db2 = test.standby("db2", &db1).await;
    db1.cluster.sql("CREATE TABLE before AS SELECT generate_series(1, 1000) AS a").await.unwrap();
    db2.follows(&db1).await;
    db2.knows(&["db1", "db2"]).await;
    db1.dies().await;
    db2.walship(&PROMOTE).await.succeeded();
    db2.captures().await;
    seal(&db2).await;

    let data = db2.cluster.data_directory();
    let target = db2.folder().join("fetched");
    let fetch = async |name: &str| {
        let fetched = db2.walship(&["fetch-wal", name, target.to_str().unwrap()]).await;
        fetched.succeeded();
        std::fs::read(&target).unwrap()
    };
    let history = TimelineId(2).history_file_name();
    assert_eq!(fetch(&history).await, std::fs::read(data.join("pg_wal").join(&history)).unwrap());

    let fork: Lsn = String::from_utf8(fetch(&history).await)
        .unwrap()
        .split('\t')
        .nth(1)
        .and_then(|lsn| lsn.parse().ok())
        .unwrap();
    let size = db2.control().segment_size;
    let of = |timeline| size.file_name(TimelineId(timeline), size.segment_of(fork));
    let (old, new) = (fetch(&of(1)).await, fetch(&of(2)).await);
    assert_eq!((old.len() as u64, new.len() as u64), (size.bytes(), size.bytes()));
    let kept = (fork - size.start_of(fork)) as usize;
    assert!(kept > 0 && old[..kept] == new[..kept], "both have what lies below the fork");
    assert!(old[kept..].iter().all(|byte| *byte == 0), "the old one has nothing behind it");
    assert!(new == std::fs::read(data.join("pg_wal").join(of(2))).unwrap(), "as PostgreSQL has it");

    // What PostgreSQL takes for "not there": at most 125, and no file.
    std::fs::remove_file(&target).unwrap();
    for name in ["00000003.history", "0000000900000000000000FF"] {
        let refused = db2.walship(&["fetch-wal", name, target.to_str().unwrap()]).await;
        refused.failed(1, &["does not have", name]);
        assert!(!target.exists());
    }
}
