//! Lag, straight from a PostgreSQL and by a sidecar that was not always there.

use std::time::Duration;

use anyhow::ensure;
use walship::demo::{Cluster, ClusterOptions, StopMode};
use walship::pg::Conninfo;
use walship::pg::sql::Sql;
use walship::report::bare;
use walship::report::lag::{Behind, LagReport, Link};
use walship::report::threshold::{Amount, Level, Limits};

use crate::harness::{PATIENCE, Test, eventually};

const NOTHING: Behind = Behind { bytes: Amount::Known(0), time: Amount::Known(Duration::ZERO) };

async fn clusters(test: &Test) -> (Cluster, Cluster) {
    let primary = test.cluster("p", ClusterOptions::default()).await;
    let upstream = format!("{} application_name=db2", primary.conninfo());
    let standby = test.plain_standby("s", &primary, &upstream).await;
    (primary, standby)
}

async fn lag(conninfo: &str) -> LagReport {
    let sql = Sql::connect(&Conninfo::parse(conninfo).unwrap()).await.unwrap();
    bare::lag(&sql, "db2").await.unwrap()
}

/// Waits until the one standby lacks nothing.
async fn caught_up(conninfo: &str) -> LagReport {
    eventually("the standby has caught up", async || {
        let report = lag(conninfo).await;
        let standby = report.standbys.first().cloned();
        anyhow::ensure!(
            standby.is_some_and(|standby| standby.flush == NOTHING && standby.replay == NOTHING),
            "{report:?}"
        );
        Ok(report)
    })
    .await
}

#[tokio::test]
async fn lag_without_a_sidecar() {
    let test = Test::new();
    let (primary, standby) = clusters(&test).await;
    primary.sql("CREATE TABLE t (a text); CREATE ROLE plain LOGIN").await.unwrap();

    let report = caught_up(&primary.conninfo()).await;
    assert_eq!((report.standbys.len(), report.standbys[0].name.as_str()), (1, "db2"));
    assert_eq!((report.level(&Limits::default()), report.notes.len()), (Level::Ok, 0));
    let own = caught_up(&standby.conninfo()).await;
    assert!(matches!(own.standbys[0].link, Link::Up(Some(_))), "{own:?}");

    // A paused replay lags; both ends see it, and that nobody knows for how long.
    standby.sql("SELECT pg_wal_replay_pause()").await.unwrap();
    standby.wait_until("SELECT pg_get_wal_replay_pause_state() = 'paused'", PATIENCE).await.unwrap();
    primary.sql("INSERT INTO t SELECT repeat('x', 100) FROM generate_series(1, 5000)").await.unwrap();
    for conninfo in [primary.conninfo(), standby.conninfo()] {
        eventually("the lag is seen", async || {
            let standby = lag(&conninfo).await.standbys.remove(0);
            let Behind { bytes: Amount::Known(bytes), time: Amount::Unknown } = standby.replay else {
                anyhow::bail!("{standby:?}")
            };
            anyhow::ensure!(bytes > 500_000 && standby.flush == NOTHING, "{standby:?}");
            Ok(())
        })
        .await;
    }

    // Without the grant nothing is known but that there is a walsender, and the note's SQL mends it.
    let plain = primary.conninfo_as("plain");
    let blind = lag(&plain).await;
    assert_eq!((blind.standbys[0].flush, blind.standbys.len()), (Behind::UNKNOWN, 1));
    assert_eq!(blind.level(&Limits::default()), Level::Unknown);
    assert_eq!(lag(&standby.conninfo_as("plain")).await.level(&Limits::default()), Level::Unknown);
    let mend = blind.notes[0].split_once("it with: ").unwrap().1;
    primary.sql(mend).await.unwrap();
    eventually("the mended role sees", async || {
        let standby = lag(&plain).await.standbys.remove(0);
        anyhow::ensure!(standby.flush == NOTHING, "{standby:?}");
        Ok(())
    })
    .await;

    // With the primary gone the standby's lag is at least what it was.
    primary.stop(StopMode::Immediate).await.unwrap();
    standby.wait_until("SELECT count(*) = 0 FROM pg_stat_wal_receiver", PATIENCE).await.unwrap();
    let alone = lag(&standby.conninfo()).await.standbys.remove(0);
    assert_eq!((alone.link, alone.flush), (Link::Cut(None), Behind::UNKNOWN));
    assert!(matches!(alone.replay.bytes, Amount::AtLeast(500_000..)), "{alone:?}");
}

#[tokio::test]
async fn what_was_written_while_nobody_looked_is_marked() {
    let test = Test::new();
    let mut db1 = test.primary("db1").await;
    let samples = db1.store().join("walship.samples");
    let gaps = || std::fs::read_to_string(&samples).unwrap().matches("\"after_gap\":true").count();
    db1.sidecar.terminate().await;
    let before = gaps();
    db1.cluster.sql("CREATE TABLE unseen (a int)").await.unwrap();
    db1.run().await;
    db1.captures().await;
    db1.sidecar.terminate().await;
    assert_eq!(gaps(), before + 1);
}

#[tokio::test]
async fn after_a_restart_beside_an_idle_primary_nothing_is_unknown() {
    let test = Test::new();
    let mut db1 = test.primary("db1").await;
    let db2 = test.standby("db2", &db1).await;
    db1.sidecar.terminate().await;
    db1.run().await;
    eventually("the lag is known", async || {
        let said = db1.walship(&["lag"]).await.exits(0)?.stdout;
        ensure!(said.contains("db2 OK: ship 0 B (0s), flush 0 B (0s), replay 0 B (0s)"), "{said}");
        Ok(())
    })
    .await;
    db2.follows(&db1).await;
}

#[tokio::test]
async fn a_standby_whose_postgresql_is_down_is_no_good_news_on_an_idle_primary() {
    let test = Test::new();
    let db1 = test.primary("db1").await;
    let db2 = test.standby("db2", &db1).await;
    db1.walship(&["lag"]).await.succeeded();
    db2.cluster.kill().await.unwrap();
    eventually("the primary knows no replay", async || {
        let said = db1.walship(&["lag"]).await.exits(3)?.stdout;
        ensure!(said.contains("flush 0 B (0s), replay unknown"), "{said}");
        Ok(())
    })
    .await;
    let table = db2.walship(&["status"]).await.succeeded();
    assert!(table.contains("warning: the local PostgreSQL has taken no WAL for"), "{table}");
    db2.cluster.start().await.unwrap();
    eventually("it is good again", async || db1.walship(&["lag"]).await.exits(0).map(drop)).await;
}
