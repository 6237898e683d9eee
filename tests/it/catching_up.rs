//! A standby that was away comes back to much WAL: how it gets it, what is shown meanwhile, and what others notice of it.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::ensure;
use walship::demo::Proxy;
use walship::pg::Lsn;
use walship::report::CatchUp;

use crate::harness::{Node, Test, eventually};

/// Many segments that compress badly.
async fn write_much(primary: &Node, table: &str) -> Lsn {
    let rows = "SELECT md5(random()::text) || md5(random()::text) FROM generate_series(1, 150000)";
    primary.cluster.sql(&format!("CREATE TABLE {table} AS {rows}")).await.unwrap();
    primary.cluster.value("SELECT pg_current_wal_flush_lsn()").await.unwrap().parse().unwrap()
}

async fn catching_up(node: &Node) -> anyhow::Result<Vec<CatchUp>> {
    Ok(node.status().await?.catching_up)
}

/// A standby whose WAL comes from here.
async fn standby_through(test: &Test, name: &str, primary: &Node, upstream: SocketAddr) -> Node {
    let bundle = primary.invite(name).await;
    let mut node = Node::empty(test, name);
    node.sidecar.set("WALSHIP_UPSTREAM", &upstream.to_string());
    node.join(&bundle, &[]);
    node.follows(primary).await;
    node
}

#[tokio::test]
async fn one_that_was_away_catches_up_with_progress_while_another_stays_in_step() {
    let test = Test::new();
    let db1 = test.primary("db1").await;
    let db2 = test.standby("db2", &db1).await;
    let link = Proxy::start(db1.listen()).await.unwrap();
    let mut db3 = standby_through(&test, "db3", &db1, link.address()).await;
    assert!(db3.sidecar.terminate().await.success());
    let written = write_much(&db1, "much").await;
    db2.follows(&db1).await;
    // Out of hearing it is not on its way.
    assert_eq!(catching_up(&db1).await.unwrap(), []);

    link.slow(100 << 10);
    db3.run().await;
    let mut seen = Vec::new();
    for node in [&db1, &db3] {
        let way = eventually(&format!("{} shows how far db3 is", node.name()), async || {
            let mut ways = catching_up(node).await?;
            let way = ways.pop().ok_or_else(|| anyhow::anyhow!("nobody catches up"))?;
            ensure!(ways.is_empty() && way.standby == "db3", "{ways:?} {way:?}");
            ensure!(way.bytes_per_second.is_some_and(|rate| rate > 0) && way.left.is_some(), "{way:?}");
            Ok(way)
        })
        .await;
        seen.push(way);
    }
    let (behind, rate) = (seen[0].behind_bytes, seen[0].bytes_per_second.unwrap());
    let naive = Duration::from_secs(behind / rate);
    assert!(seen[0].left >= Some(naive), "the primary rests, so it takes {naive:?}: {seen:?}");
    let table = db1.walship(&["status"]).await.succeeded();
    assert!(table.contains("catching up  db3 lacks ") && table.contains("/s, and is there in "), "{table}");

    // Each commit reaches db2 at once, and db3 is behind before the first and after the last of them.
    db1.cluster.sql("CREATE TABLE t (a int)").await.unwrap();
    for round in 1..=10 {
        db1.cluster.sql(&format!("INSERT INTO t VALUES ({round})")).await.unwrap();
        db2.follows(&db1).await;
    }
    let after = catching_up(&db1).await.unwrap();
    assert!(after.len() == 1 && after[0].standby == "db3", "{after:?}");
    let durable = db3.status().await.unwrap().store.durable;
    assert!(durable < written, "db3 has {durable} of what was written before the commits: {written}");

    eventually("db3 gets on", async || {
        let way = catching_up(&db1).await?;
        ensure!(way.first().is_some_and(|way| way.behind_bytes < behind), "{way:?} after {behind}");
        Ok(())
    })
    .await;
    link.heal();
    eventually("db3 is in step", async || {
        for node in [&db1, &db3] {
            let ways = catching_up(node).await?;
            ensure!(ways.is_empty(), "{ways:?}");
        }
        Ok(())
    })
    .await;
    assert!(!db1.walship(&["status"]).await.succeeded().contains("catching up"));
    db3.equals(&db1).await;
    assert!(db3.same_content_as(&db1) > 0);
}
