//! What acknowledged rows are checked with.

use walship::demo::{ClusterOptions, Workload, WorkloadOptions, digest};
use walship::pg::Lsn;

use crate::harness::{PATIENCE, Test, eventually};

async fn has_written(workload: &Workload, more: usize) {
    let from = workload.acknowledged();
    eventually("more is acknowledged", async || {
        let now = workload.acknowledged();
        anyhow::ensure!(now >= from + more, "{} of {more}", now - from);
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn what_was_acknowledged_survives_a_crash_and_is_found() {
    let test = Test::new();
    let cluster = test.cluster("db1", ClusterOptions::default()).await;
    let options = WorkloadOptions { seed: test.seed(), ..WorkloadOptions::default() };
    let workload = Workload::start(&cluster.conninfo(), &options).await.unwrap();
    has_written(&workload, 100).await;
    cluster.kill().await.unwrap();
    cluster.start().await.unwrap();
    has_written(&workload, 100).await;
    let ledger = workload.stop().await;
    let verified = ledger.verify(&cluster.conninfo(), None).await.unwrap();
    assert_eq!((verified.present, verified.lost_beyond), (ledger.notes().len(), 0));
    let end = cluster.value("SELECT pg_current_wal_insert_lsn()").await.unwrap();
    assert!(ledger.end_lsn() <= end.parse().unwrap());
}

#[tokio::test]
async fn a_lost_row_and_a_changed_one_are_noticed() {
    let test = Test::new();
    let cluster = test.cluster("db1", ClusterOptions::default()).await;
    let options = WorkloadOptions { clients: 1, ..WorkloadOptions::default() };
    let workload = Workload::start(&cluster.conninfo(), &options).await.unwrap();
    has_written(&workload, 10).await;
    let ledger = workload.stop().await;
    let last = *ledger.notes().last().unwrap();

    cluster.sql(&format!("DELETE FROM walship_ledger WHERE serial = {}", last.serial)).await.unwrap();
    let error = ledger.verify(&cluster.conninfo(), None).await.unwrap_err().to_string();
    assert!(
        error.contains("1 of ") && error.contains(&format!("(0, {}, {:?}", last.serial, last.lsn)),
        "{error}"
    );
    let before = last.lsn.map(|lsn| Lsn(lsn.0 - 1));
    let verified = ledger.verify(&cluster.conninfo(), before).await.unwrap();
    assert_eq!((verified.present, verified.lost_beyond), (ledger.notes().len() - 1, 1));

    cluster.sql("UPDATE walship_ledger SET payload = 'other' WHERE serial = 3").await.unwrap();
    let error = ledger.verify(&cluster.conninfo(), before).await.unwrap_err().to_string();
    assert!(error.contains("row 3 of client 0 is \"other\""), "{error}");
}

#[tokio::test]
async fn equal_servers_compare_equal_and_a_difference_has_a_name() {
    let test = Test::new();
    let one = test.cluster("db1", ClusterOptions::default()).await;
    let two = test.cluster("db2", ClusterOptions::default()).await;
    let rows = "CREATE SCHEMA s; CREATE TABLE s.\"Odd name\" (a int, b text); CREATE UNLOGGED TABLE u (a int); \
                INSERT INTO s.\"Odd name\" SELECT i, 'row ' || i FROM generate_series(1, 1000) AS i";
    for cluster in [&one, &two] {
        cluster.sql(rows).await.unwrap();
    }
    two.sql("INSERT INTO u VALUES (1); UPDATE s.\"Odd name\" SET a = a WHERE a < 10").await.unwrap();
    two.wait_until("SELECT count(*) = 1 FROM u", PATIENCE).await.unwrap();
    assert_eq!(digest::compare(&one.conninfo(), &two.conninfo()).await.unwrap(), 1000);

    two.sql("UPDATE s.\"Odd name\" SET b = 'other' WHERE a = 500; CREATE TABLE extra ()").await.unwrap();
    let error = digest::compare(&one.conninfo(), &two.conninfo()).await.unwrap_err().to_string();
    assert!(
        error.contains("s.\"Odd name\": 1000 rows") && error.contains("extra: not there expected"),
        "{error}"
    );
}
