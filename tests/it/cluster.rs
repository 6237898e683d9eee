//! The cluster itself, without walship.

use std::time::Duration;

use walship::demo::{Account, Binaries, Cluster, ClusterOptions, StopMode};

#[tokio::test]
async fn a_cluster_lives_dies_and_recovers() {
    let folder = tempfile::tempdir().unwrap();
    let (binaries, account) = (Binaries::find().unwrap(), Account::for_postgres().unwrap());
    account.own(folder.path()).unwrap();
    let options = ClusterOptions::default().set("application_name", "it's quoted");
    let cluster = Cluster::create(folder.path(), &binaries, &account, &options).await.unwrap();
    assert!(!cluster.is_running() && !cluster.is_ready().await);

    cluster.start().await.unwrap();
    assert!(cluster.is_running() && cluster.is_ready().await);
    let rows = cluster
        .sql("CREATE TABLE t (a int); INSERT INTO t VALUES (1), (2); SELECT a, NULL, a FROM t ORDER BY a");
    assert_eq!(rows.await.unwrap(), ["1||1", "2||2"]);
    assert_eq!(cluster.value("SHOW wal_segment_size").await.unwrap(), "1MB");
    assert_eq!(cluster.value("SHOW application_name").await.unwrap(), "it's quoted");

    cluster.kill().await.unwrap();
    assert!(!cluster.is_running() && !cluster.is_ready().await);
    cluster.start().await.unwrap();
    cluster.wait_until("SELECT count(*) = 2 FROM t", Duration::from_secs(10)).await.unwrap();

    cluster.stop(StopMode::Fast).await.unwrap();
    assert!(!cluster.is_running());
    cluster.start().await.unwrap();
    let data = cluster.data_directory();
    drop(cluster);
    assert!(!data.join("postmaster.pid").exists(), "a dropped cluster leaves nothing running");
}
