//! The replication protocol, client side: logging in, streaming, and how streams end.

use std::sync::Arc;
use std::time::Duration;

use tokio_rustls::rustls::ClientConfig;
use walship::demo::{Cluster, ClusterOptions, StopMode};
use walship::pg::AccessError;
use walship::pg::replication::{Event, Incoming, Outgoing, Replication, ReplicationError, Started};
use walship::pg::sql::Sql;
use walship::pg::{Conninfo, Lsn, TimelineId};

use crate::harness::Test;

async fn connect(cluster: &Cluster) -> Replication {
    let info = Conninfo::parse(&cluster.conninfo()).unwrap();
    Replication::connect(&info, "walship").await.unwrap()
}

async fn start(connection: Replication, timeline: u32, lsn: Lsn) -> (Incoming, Outgoing) {
    match connection.start(TimelineId(timeline), lsn).await.unwrap() {
        Started::Streaming(incoming, outgoing) => (incoming, outgoing),
        Started::AtEndOfTimeline { lsn, .. } => panic!("at the end of the timeline, {lsn}"),
    }
}

async fn next(incoming: &mut Incoming) -> Result<Event, ReplicationError> {
    tokio::time::timeout(Duration::from_secs(20), incoming.next()).await.expect("an event within 20 s")
}

#[tokio::test]
async fn wal_flows_from_the_position_asked_for_until_the_server_stops() {
    let test = Test::new();
    let cluster = test.cluster("db1", ClusterOptions::default()).await;
    let mut connection = connect(&cluster).await;
    let identity = connection.identify_system().await.unwrap();
    let sql = Sql::connect(&Conninfo::parse(&cluster.conninfo()).unwrap()).await.unwrap();
    assert_eq!(identity.system_identifier, sql.facts().await.unwrap().system_identifier);
    assert_eq!(connection.show("wal_segment_size").await.unwrap(), "1MB");

    let segment_start = identity.flushed.align_down(1 << 20);
    let (mut incoming, _outgoing) = start(connection, 1, segment_start).await;
    cluster.sql("CREATE TABLE t AS SELECT generate_series(1, 100000)").await.unwrap();
    let end: Lsn = cluster.value("SELECT pg_current_wal_flush_lsn()").await.unwrap().parse().unwrap();
    let mut at = segment_start;
    let mut streamed = Vec::new();
    while at < end {
        if let Event::Wal(wal) = next(&mut incoming).await.unwrap() {
            assert_eq!(wal.start_lsn, at);
            streamed.extend_from_slice(&wal.data);
            at = wal.end_lsn();
        }
    }
    let file =
        cluster.value(&format!("SELECT pg_walfile_name('{segment_start}'::pg_lsn + 1)")).await.unwrap();
    let on_disk = std::fs::read(cluster.data_directory().join("pg_wal").join(file)).unwrap();
    assert!(streamed[..1 << 20] == on_disk[..]);

    // Nothing was ever reported as flushed, so a stop would wait; a lost connection ends that wait.
    drop((incoming, _outgoing));
    cluster.stop(StopMode::Fast).await.unwrap();
}

#[tokio::test]
async fn refusals_are_sorted() {
    let test = Test::new();
    let options = ClusterOptions::default().set("min_wal_size", "2MB").set("max_wal_size", "2MB");
    let cluster = test.cluster("db1", options).await;
    let flushed = connect(&cluster).await.identify_system().await.unwrap().flushed;
    let first = flushed.align_down(1 << 20);
    for _ in 0..6 {
        cluster.sql("SELECT pg_switch_wal(); CHECKPOINT").await.unwrap();
    }
    // These two come after the stream has begun (pg-facts, rule 6) …
    let (mut incoming, _outgoing) = start(connect(&cluster).await, 1, first).await;
    let error = next(&mut incoming).await.unwrap_err();
    assert!(matches!(&error, ReplicationError::WalRemoved { .. }), "{error}");
    let (mut incoming, _outgoing) = start(connect(&cluster).await, 1, Lsn(1 << 40)).await;
    let error = next(&mut incoming).await.unwrap_err();
    assert!(matches!(&error, ReplicationError::NotInHistory { .. }), "{error}");
    // … and these before.
    let error = connect(&cluster).await.start(TimelineId(7), first).await.err().unwrap();
    assert!(matches!(&error, ReplicationError::NotInHistory { .. }), "{error}");
    let mut connection = connect(&cluster).await;
    let error = connection.timeline_history(TimelineId(7)).await.unwrap_err();
    assert!(matches!(&error, ReplicationError::WalRemoved { .. }), "{error}"); // 58P01: no such file
    assert!(connection.show("a typo").await.is_err());
    connection.identify_system().await.expect("a connection that takes the next command");

    cluster.sql("CREATE ROLE nobody LOGIN").await.unwrap();
    let nobody = Conninfo::parse(&cluster.conninfo_as("nobody")).unwrap();
    let error = Replication::connect(&nobody, "walship").await.err().unwrap();
    let ReplicationError::Access(AccessError::MissingGrant { sql_that_mends, .. }) = &error else {
        panic!("{error}")
    };
    assert_eq!(sql_that_mends, "ALTER ROLE nobody REPLICATION;");

    let flushed = connect(&cluster).await.identify_system().await.unwrap().flushed;
    let (mut incoming, _outgoing) = start(connect(&cluster).await, 1, flushed.align_down(1 << 20)).await;
    cluster.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_replication").await.unwrap();
    let error = loop {
        match next(&mut incoming).await {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(&error, ReplicationError::Terminating { .. }) && error.is_transient(), "{error}");
}

#[tokio::test]
async fn the_end_of_a_timeline_names_the_next_one() {
    let test = Test::new();
    let primary = test.cluster("db1", ClusterOptions::default()).await;
    let standby = test.plain_standby("db2", &primary, &primary.conninfo()).await;
    let mut connection = connect(&standby).await;
    let replayed = connection.identify_system().await.unwrap().flushed;
    let mut received = replayed.align_down(1 << 20);
    let (mut incoming, outgoing) = start(connection, 1, received).await;
    standby.promote().await.unwrap();
    loop {
        match next(&mut incoming).await.unwrap() {
            Event::Wal(wal) => received = wal.end_lsn(),
            Event::Keepalive(_) => {}
            Event::EndOfTimeline => break,
            Event::ServerClosed => panic!("closed"),
        }
    }
    let (timeline, switch_lsn, mut connection) = incoming.end_of_timeline(outgoing).await.unwrap();
    assert_eq!((timeline, switch_lsn), (TimelineId(2), received));
    let history = connection.timeline_history(timeline).await.unwrap();
    assert!(history.starts_with(format!("1\t{switch_lsn}\t").as_bytes()), "{history:?}");
    assert_eq!(connection.identify_system().await.unwrap().timeline, timeline);
    // Asked for the old timeline from exactly its end, there is no stream at all.
    let Started::AtEndOfTimeline { next, lsn, connection } =
        connection.start(TimelineId(1), switch_lsn).await.unwrap()
    else {
        panic!("streaming")
    };
    assert_eq!((next, lsn), (timeline, switch_lsn));
    start(connection, 2, switch_lsn.align_down(1 << 20)).await;
}

#[tokio::test]
async fn passwords_and_channel_binding() {
    let test = Test::new();
    let port = test.port();
    let options =
        ClusterOptions::default().set("listen_addresses", "127.0.0.1").set("port", &port.to_string());
    let folder = test.folder().join("db1");
    let cluster = Cluster::create(&folder, &test.binaries, &test.account, &options).await.unwrap();
    let tls = serve_tls(&cluster);
    let hba = "local all all trust\nhost all scram 127.0.0.1/32 scram-sha-256\n\
               host replication scram 127.0.0.1/32 scram-sha-256\nhost replication md5 127.0.0.1/32 md5\n\
               host replication plain 127.0.0.1/32 password\n";
    std::fs::write(cluster.data_directory().join("pg_hba.conf"), hba).unwrap();
    cluster.start().await.unwrap();
    let socket = format!("host={} port={port} user=postgres", cluster.socket_folder().display());
    let admin = walship::demo::cluster::connect(&(socket + " dbname=postgres")).await.unwrap();
    let roles = "CREATE ROLE scram LOGIN REPLICATION PASSWORD 'secret'; \
                 CREATE ROLE plain LOGIN REPLICATION PASSWORD 'secret'; \
                 SET password_encryption = md5; CREATE ROLE md5 LOGIN REPLICATION PASSWORD 'secret'";
    admin.batch_execute(roles).await.unwrap();

    let info = |rest: &str| {
        let text = format!("host=localhost hostaddr=127.0.0.1 port={port} dbname=postgres {rest}");
        Conninfo::parse(&text).unwrap().with_tls(tls.clone())
    };
    for (rest, fits) in [
        ("user=scram password=secret sslmode=disable", true),
        ("user=scram password=secret options='-c wal_sender_timeout=7s'", true),
        ("user=scram password=secret sslmode=require channel_binding=require", true),
        ("user=scram password=secret sslmode=disable channel_binding=require", false),
        ("user=scram password=wrong", false),
        ("user=scram", false),
        ("user=md5 password=secret", true),
        ("user=md5 password=secret channel_binding=require", false),
        ("user=md5 password=wrong", false),
        ("user=plain password=secret", true),
        ("user=nobody password=secret", false),
    ] {
        let mut result = Replication::connect(&info(rest), "walship").await;
        if let Ok(connection) = &mut result {
            connection.identify_system().await.unwrap();
            let expected = if rest.contains("7s") { "7s" } else { "1min" };
            assert_eq!(connection.show("wal_sender_timeout").await.unwrap(), expected);
        }
        let refused =
            matches!(&result, Err(ReplicationError::Access(AccessError::AuthenticationFailed { .. })));
        assert!(result.is_ok() == fits && refused != fits, "{rest}: {:?}", result.err());
    }
    let sql = Sql::connect(&info("user=scram password=secret sslmode=require channel_binding=require"))
        .await
        .unwrap();
    assert!(sql.facts().await.is_ok());
}

/// Gives the server a certificate; returns what accepts it.
fn serve_tls(cluster: &Cluster) -> Arc<ClientConfig> {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate =
        rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
    for (name, text) in [("server.key", key.serialize_pem()), ("server.crt", certificate.pem())] {
        let path = cluster.data_directory().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        cluster.account().own(&path).unwrap();
    }
    cluster.append_to("postgresql.conf", "ssl = on\n").unwrap();
    Arc::new(walship::tls::for_postgres().unwrap())
}
