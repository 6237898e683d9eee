//! The few queries, what they need, and how their errors are sorted.

use walship::demo::{Cluster, ClusterOptions, StopMode};
use walship::pg::AccessError;
use walship::pg::sql::server::WalPositions;
use walship::pg::sql::slot::WalStatus;
use walship::pg::sql::{Grant, Sql, SqlError};
use walship::pg::{Conninfo, TimelineId};

use crate::harness::{PATIENCE, Test};

async fn running_cluster(test: &Test) -> Cluster {
    let cluster = test.cluster("db1", ClusterOptions::default()).await;
    cluster.sql("CREATE ROLE walship LOGIN PASSWORD 'secret'").await.unwrap();
    cluster
}

fn conninfo(cluster: &Cluster) -> Conninfo {
    Conninfo::parse(&cluster.conninfo_as("walship")).unwrap()
}

#[tokio::test]
async fn every_privilege_is_missed_by_name_and_mended_by_its_sql() {
    let test = Test::new();
    let cluster = running_cluster(&test).await;
    let sql = Sql::connect(&conninfo(&cluster)).await.unwrap();

    let refusals = [
        sql.create_slot("walship").await.unwrap_err(),
        sql.begin_backup("walship", true).await.unwrap_err(),
        sql.promote(std::time::Duration::from_secs(1)).await.unwrap_err(),
        sql.resume_replay().await.unwrap_err(),
        sql.data_directory().await.unwrap_err(),
        sql.set_sync_names("walship").await.unwrap_err(),
        sql.checkpoint().await.unwrap_err(),
    ];
    for error in refusals {
        let SqlError::Access(AccessError::MissingGrant { sql_that_mends, .. }) = error else {
            panic!("{error}")
        };
        cluster.sql(&sql_that_mends).await.unwrap();
    }
    for grant in Grant::ALL {
        let mended = sql.has(grant).await.unwrap();
        let still_to_mend =
            [Grant::BackupStop, Grant::ReadAllStats, Grant::ReloadConfiguration, Grant::ReadFiles]
                .contains(&grant);
        assert_eq!(mended, !still_to_mend, "{grant:?}");
        cluster.sql(&grant.sql_that_mends(sql.role(), sql.version())).await.unwrap();
        assert!(sql.has(grant).await.unwrap(), "{grant:?}");
    }
    assert_eq!(sql.data_directory().await.unwrap(), cluster.data_directory());
}

#[tokio::test]
async fn facts_positions_slots_and_backups() {
    let test = Test::new();
    let cluster = running_cluster(&test).await;
    let sql = Sql::connect(&Conninfo::parse(&cluster.conninfo()).unwrap()).await.unwrap();

    let facts = sql.facts().await.unwrap();
    assert_eq!((facts.segment_size.bytes(), facts.in_recovery), (1 << 20, false));
    let identifier = cluster.value("SELECT system_identifier FROM pg_control_system()").await.unwrap();
    assert_eq!(facts.system_identifier.to_string(), identifier);
    let settings = sql.settings(&["wal_level", "wal_keep_size", "of_no_version"]).await.unwrap();
    let values: Vec<_> = settings.iter().map(|s| (&*s.name, &*s.value, s.unit.as_deref())).collect();
    assert_eq!(values, [("wal_keep_size", "0", Some("MB")), ("wal_level", "replica", None)]);

    assert_eq!(sql.slot("walship").await.unwrap(), None);
    let reserved = sql.create_slot("walship").await.unwrap();
    let slot = sql.slot("walship").await.unwrap().unwrap();
    assert_eq!((slot.restart_lsn, slot.wal_status), (Some(reserved), WalStatus::Reserved));
    assert!(slot.is_physical && !slot.is_active);

    let start_lsn = sql.begin_backup("it's one", true).await.unwrap();
    let end = sql.end_backup().await.unwrap();
    assert!(end.stop_lsn > start_lsn && end.backup_label.contains("LABEL: it's one\n"));
    assert_eq!(end.tablespace_map, None);

    let WalPositions::Primary { timeline, inserted, flushed } = sql.wal_positions().await.unwrap() else {
        panic!("not a primary")
    };
    assert!(timeline == TimelineId(1) && inserted >= flushed && flushed >= end.stop_lsn);
    assert_eq!(sql.advance_slot("walship", flushed).await.unwrap(), flushed);
    let back = sql.advance_slot("walship", reserved).await.unwrap_err();
    assert!(matches!(&back, SqlError::Refused { .. }), "{back}");
    sql.drop_slot("walship").await.unwrap();
    assert_eq!(sql.walsenders().await.unwrap(), []);
    assert!(!sql.is_in_recovery().await.unwrap());
}

#[tokio::test]
async fn what_cannot_be_reached_says_so_and_an_end_is_noticed() {
    let test = Test::new();
    let cluster = running_cluster(&test).await;
    let info = conninfo(&cluster);
    let sql = Sql::connect(&info).await.unwrap();
    cluster.stop(StopMode::Fast).await.unwrap();
    // Whether its last words, the end of the stream or a reset is seen first is chance.
    let ended = tokio::time::timeout(PATIENCE, sql.ended()).await.unwrap();
    let reasons = ["terminating connection", "closed", "error communicating with the server: "];
    assert!(reasons.iter().any(|reason| ended.contains(reason)), "{ended}");
    let error = sql.facts().await.unwrap_err();
    assert!(
        matches!(&error, SqlError::Access(AccessError::Unreachable { .. })) && error.is_transient(),
        "{error}"
    );
    let error = Sql::connect(&info).await.unwrap_err();
    assert!(matches!(&error, SqlError::Access(AccessError::Unreachable { .. })), "{error}");
    assert!(error.to_string().contains(".s.PGSQL.5432"), "{error}");

    let hba = "local all all scram-sha-256\n";
    std::fs::write(cluster.data_directory().join("pg_hba.conf"), hba).unwrap();
    cluster.start().await.unwrap();
    for (password, fits) in [("", false), (" password=wrong", false), (" password=secret", true)] {
        let text = cluster.conninfo_as("walship") + password;
        let result = Sql::connect(&Conninfo::parse(&text).unwrap()).await;
        let refused = matches!(&result, Err(SqlError::Access(AccessError::AuthenticationFailed { role, .. })) if role == "walship");
        assert!(result.is_ok() == fits && refused != fits, "{result:?}");
        assert!(!format!("{result:?}").contains("wrong"));
    }
}
