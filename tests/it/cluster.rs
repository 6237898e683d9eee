//! A PostgreSQL server alone: starting, stopping, killing and asking it.

use walship::demo::{Cluster, ClusterOptions, StopMode};

use crate::harness::{PATIENCE, Test};

#[tokio::test]
async fn a_cluster_lives_dies_and_recovers() {
    let test = Test::new();
    let cluster = test.cluster("db1", ClusterOptions::default().set("application_name", "it's quoted")).await;
    assert!(cluster.is_running() && cluster.is_ready().await);
    let rows = cluster
        .sql("CREATE TABLE t (a int); INSERT INTO t VALUES (1), (2); SELECT a, NULL, a FROM t ORDER BY a");
    assert_eq!(rows.await.unwrap(), ["1||1", "2||2"]);
    assert_eq!(cluster.value("SHOW wal_segment_size").await.unwrap(), "1MB");
    assert_eq!(cluster.value("SHOW data_checksums").await.unwrap(), "on");
    assert_eq!(cluster.value("SHOW application_name").await.unwrap(), "it's quoted");
    assert_eq!(cluster.value("SHOW listen_addresses").await.unwrap(), "");

    cluster.kill().await.unwrap();
    assert!(!cluster.is_running() && !cluster.is_ready().await);
    cluster.start().await.unwrap();
    cluster.wait_until("SELECT count(*) = 2 FROM t", PATIENCE).await.unwrap();

    cluster.stop(StopMode::Fast).await.unwrap();
    assert!(!cluster.is_running());
    cluster.start().await.unwrap();
    let data_directory = cluster.data_directory();
    drop(cluster);
    assert!(!data_directory.join("postmaster.pid").exists(), "a dropped cluster left its server running");
}

#[tokio::test]
async fn segments_of_16_mib_and_no_checksums() {
    let test = Test::new();
    let options = ClusterOptions { wal_segment_mib: 16, data_checksums: false, ..ClusterOptions::default() };
    let cluster = test.cluster("db1", options).await;
    assert_eq!(cluster.value("SHOW wal_segment_size").await.unwrap(), "16MB");
    assert_eq!(cluster.value("SHOW data_checksums").await.unwrap(), "off");
}

#[tokio::test]
async fn a_server_that_does_not_start_says_why() {
    let test = Test::new();
    let cluster = test.cluster("db1", ClusterOptions::default()).await;
    cluster.stop(StopMode::Immediate).await.unwrap();
    cluster.append_to("postgresql.conf", "no_such_setting = 1\n").unwrap();
    let error = format!("{:#}", cluster.start().await.unwrap_err());
    assert!(error.contains("no_such_setting"), "{error}");
}

#[tokio::test]
async fn a_path_too_long_for_a_socket_is_refused() {
    let test = Test::new();
    let folder = test.folder().join("long".repeat(25));
    let error = Cluster::at(&folder, &test.binaries, &test.account).unwrap_err().to_string();
    assert!(error.contains("longer than the 107 bytes"), "{error}");
}
