//! What is refused: a message, a hint, an exit code, and nothing harmed.

use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use walship::clock::WallTime;
use walship::demo::ClusterOptions;
use walship::tls::{Authority, Kind, Pem};

use crate::harness::{Node, Test, everything_below};

/// A new primary whose sidecar does not run yet.
async fn prepared(test: &Test) -> Node {
    let node = Node::new(test, "db1", ClusterOptions::default()).await;
    node.init().await;
    node
}

/// Adds lines to a node's configuration.
fn configure(node: &Node, lines: &str) {
    let text = std::fs::read_to_string(node.config_file()).unwrap();
    std::fs::write(node.config_file(), text + lines).unwrap();
}

#[tokio::test]
async fn flags_and_configurations_that_are_wrong() {
    let test = Test::new();
    let node = prepared(&test).await;
    node.walship(&["promote", "--bogus"]).await.failed(2, &["--bogus"]);
    node.walship(&["lag", "--warn", "64M"]).await.failed(3, &["say `64MiB`"]);
    let text = std::fs::read_to_string(node.config_file()).unwrap();
    let line = text.lines().count() + 1;
    configure(&node, "  store_max_byte = \"1GiB\"\n");
    let place = format!("walship.toml:{line}:3: ");
    node.walship(&["primary"]).await.failed(2, &[&place, "store_max_byte", "hint: "]);
    node.walship(&["lag"]).await.exited_with(3);
    let missing = ["status", "--config", "/nonexistent/walship.toml"];
    node.walship(&missing)
        .await
        .failed(2, &["/nonexistent/walship.toml", "hint: Name the file with `--config"]);
    test.walship(&["status"]).await.failed(2, &["`name` is not set", "hint: "]);
}

#[tokio::test]
async fn what_needs_a_store_or_a_sidecar_says_so() {
    let test = Test::new();
    let mut node = prepared(&test).await;
    node.walship(&["run"]).await.failed(2, &["this node has no role yet", "hint: Start it as what it is"]);
    node.walship(&["status"]).await.failed(1, &["reach the sidecar", "hint: Is it running? `walship run`"]);
    node.walship(&["promote"]).await.failed(1, &["reach the sidecar"]);
    let said = node.walship(&["lag"]).await.exited_with(3).stdout;
    assert!(said.starts_with("WALSHIP UNKNOWN - reach the sidecar"), "{said}");
    node.start_primary().await;
    node.walship(&["primary"])
        .await
        .failed(1, &["is in use by another walship process", "hint: This node's sidecar runs already"]);
    node.walship(&["run"])
        .await
        .failed(1, &["is in use by another walship process", "hint: This node's sidecar runs already"]);
    node.captures().await;
}

#[tokio::test]
async fn a_port_in_use() {
    let test = Test::new();
    let mut node = prepared(&test).await;
    let taken = TcpListener::bind(node.listen()).unwrap();
    let address = node.listen().to_string();
    node.walship(&["primary"]).await.failed(1, &[&address, "hint: Another process has"]);
    drop(taken);
    node.start_primary().await;
}

#[tokio::test]
async fn a_postgresql_that_is_down_or_withholds_a_grant_is_waited_for() {
    let test = Test::new();
    let mut node = prepared(&test).await;
    node.stops().await;
    node.sidecar.start(&["primary"]);
    node.sidecar.wait_log("cannot capture WAL from PostgreSQL, trying again").await;
    let table = node.walship(&["status"]).await.succeeded();
    assert!(table.contains("warning: the local PostgreSQL was never heard"), "{table}");
    node.cluster.start().await.unwrap();
    node.captures().await;
    node.sidecar.terminate().await;

    node.cluster.sql("CREATE ROLE walship LOGIN").await.unwrap();
    node.sidecar.set("WALSHIP_CONNINFO", &node.cluster.conninfo_as("walship"));
    node.sidecar.expect_log("cannot capture WAL from PostgreSQL, trying again");
    node.sidecar.start(&["run"]);
    node.sidecar.wait_log("ERROR").await;
    node.cluster.sql("ALTER ROLE walship REPLICATION; GRANT pg_monitor TO walship").await.unwrap();
    node.captures().await;
}

/// Replaces a node's certificate by one of another authority, or of another time.
fn install(node: &Node, authority: &Authority, issued_at: WallTime) {
    let issued = authority.issue(node.name(), Kind::Node, issued_at).unwrap();
    let folder = node.store().join("tls");
    std::fs::write(folder.join("node.pem"), issued.certificate).unwrap();
    std::fs::write(folder.join("node.key"), issued.key).unwrap();
}

fn authority(node: &Node) -> Authority {
    let folder = node.store().join("tls");
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let certificate = Pem::read(&folder.join("ca.pem")).unwrap();
    Authority::from_pem(certificate, &Pem::new("ca.key", read("ca.key"))).unwrap()
}

#[tokio::test]
async fn certificates_that_are_missing_expired_or_of_someone_else() {
    let test = Test::new();
    let mut db1 = test.primary("db1").await;
    let mut db2 = test.standby("db2", &db1).await;
    db2.sidecar.terminate().await;
    let own = db2.store().join("tls/node.pem");
    let good = std::fs::read(&own).unwrap();
    let good_key = std::fs::read(db2.store().join("tls/node.key")).unwrap();

    std::fs::rename(&own, own.with_extension("away")).unwrap();
    db2.walship(&["run"]).await.failed(1, &["tls/node.pem", "hint: "]);
    let long_ago = WallTime { unix_micros: WallTime::now().unix_micros - 3 * 366 * 86_400_000_000 };
    install(&db2, &authority(&db1), long_ago);
    db2.walship(&["run"]).await.failed(1, &["expired", "hint: "]);

    // Its own authority, so that it starts; the primary wants to know nothing of it.
    let ca = db2.store().join("tls/ca.pem");
    let good_ca = std::fs::read(&ca).unwrap();
    let stranger = Authority::create("stranger", WallTime::now()).unwrap();
    std::fs::write(&ca, stranger.certificate_pem()).unwrap();
    install(&db2, &stranger, WallTime::now());
    db2.sidecar.expect_log("not following");
    db2.run().await;
    db2.sidecar.wait_log("not following").await;
    let table = db2.walship(&["status"]).await.succeeded();
    assert!(table.contains("certificate"), "{table}");

    // Put right and told so, it goes on by itself.
    std::fs::write(&ca, good_ca).unwrap();
    std::fs::write(&own, good).unwrap();
    std::fs::write(db2.store().join("tls/node.key"), good_key).unwrap();
    db2.sidecar.signal(rustix::process::Signal::HUP);
    db2.sidecar.wait_log("certificates were read anew").await;
    db2.follows(&db1).await;
    db1.sidecar.terminate().await;
}

#[tokio::test]
async fn bundles_that_were_used_before_or_are_for_another_cluster() {
    let test = Test::new();
    let db1 = test.primary("db1").await;
    let bundle = db1.invite("db2").await;
    let mut db2 = Node::empty(&test, "db2");
    db2.join(&bundle, &[]);
    db2.follows(&db1).await;
    let twin = Node::empty(&test, "twin");
    let untouched = everything_below(twin.folder());
    let texts = [
        "the invitation of db2 was used before, by another store",
        "hint: On the primary run `walship invite db2`",
    ];
    twin.joins_in_vain(&bundle, &[]).await.failed(3, &texts);
    assert_eq!(everything_below(twin.folder()), untouched);
    db2.follows(&db1).await;

    // A new invitation is taken in place of the old one, and its node in place of the other.
    std::fs::remove_file(&bundle).unwrap();
    db1.invite("db2").await;
    let mut twin = twin;
    twin.join(&bundle, &[]);
    twin.follows(&db1).await;
    db2.sidecar.expect_log("not following");
    db2.sidecar.wait_log("the certificate of db2 was replaced by a newer invitation").await;

    // Signed by the same authority, but of another cluster.
    let mut other = Node::new(&test, "other", ClusterOptions::default()).await;
    let tls = db1.store().join("tls");
    other
        .init_with(&[
            "--ca-cert",
            tls.join("ca.pem").to_str().unwrap(),
            "--ca-key",
            tls.join("ca.key").to_str().unwrap(),
        ])
        .await;
    other.start_primary().await;
    let astray = Node::empty(&test, "astray");
    let bundle = db1.invite_to("astray", &other).await;
    let texts = ["are of different database clusters: system identifiers", "hint: "];
    let untouched = everything_below(astray.folder());
    astray.joins_in_vain(&bundle, &[]).await.failed(3, &texts);
    assert_eq!(everything_below(astray.folder()), untouched);
    let reader = db1.folder().join("reader.bundle");
    db1.walship(&["invite", "reports", "--reader", "-o", reader.to_str().unwrap()]).await.succeeded();
    astray.joins_in_vain(&reader, &[]).await.failed(2, &["the bundle of reports is a reader's", "hint: "]);
    assert_eq!(everything_below(astray.folder()), untouched);

    // A data directory is never overwritten, whatever is in it.
    let bundle = db1.invite("db3").await;
    let db3 = Node::new(&test, "db3", ClusterOptions::default()).await;
    db3.joins_in_vain(&bundle, &[])
        .await
        .failed(3, &["is not empty: it holds", "hint: Name another folder with -D"]);
    assert!(db3.cluster.is_ready().await);
    let junk = Node::empty(&test, "db4");
    test.account.create_folder(&junk.cluster.data_directory()).unwrap();
    std::fs::write(junk.cluster.data_directory().join("thesis.txt"), "all I have").unwrap();
    let bundle = db1.invite("db4").await;
    let untouched = everything_below(junk.folder());
    junk.joins_in_vain(&bundle, &[]).await.failed(3, &["is not empty", "thesis.txt", "hint: "]);
    assert_eq!(everything_below(junk.folder()), untouched);

    std::fs::write(&bundle, "{\"walship_join_bundle\": 1, \"na").unwrap();
    junk.joins_in_vain(&bundle, &[])
        .await
        .failed(2, &["db4.join is not a usable join bundle", "hint: Make a new one"]);
}

#[tokio::test]
async fn a_standby_is_not_run_as_a_primary_nor_the_other_way_round() {
    let test = Test::new();
    let mut db1 = test.primary("db1").await;
    let mut db2 = test.standby("db2", &db1).await;
    db2.sidecar.terminate().await;
    db2.walship(&["primary"]).await.failed(3, &["PostgreSQL is a standby", "hint: "]);
    db2.run().await;
    db2.follows(&db1).await;
    db1.sidecar.terminate().await;
    db1.walship(&["standby"]).await.failed(3, &["PostgreSQL is a primary", "hint: "]);
    db1.run().await;
    db1.captures().await;
    db2.follows(&db1).await;
}

/// Sends something and reads until the other end closes or says nothing for a while.
async fn talk(mut stream: impl AsyncReadExt + AsyncWriteExt + Unpin, bytes: &[u8]) {
    // Whether it takes all of it is its own business.
    let _ = stream.write_all(bytes).await;
    let _ = tokio::time::timeout(Duration::from_millis(300), stream.read_to_end(&mut Vec::new())).await;
}

async fn on_control_socket(store: &Path) -> UnixStream {
    UnixStream::connect(store.join("control.sock")).await.unwrap()
}

#[tokio::test]
async fn garbage_and_silence_on_the_sockets_harm_nobody() {
    let test = Test::new();
    let db1 = test.primary("db1").await;
    let db2 = test.standby("db2", &db1).await;
    let mut random = test.random();
    let garbage: Vec<u8> = (0..200_000).map(|_| random.number() as u8).collect();
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(TcpStream::connect(db1.listen()).await.unwrap());
    }
    silent.push(TcpStream::connect(db2.listen()).await.unwrap());
    let quiet = on_control_socket(&db1.store()).await;
    let http = b"GET /metrics HTTP/1.1\r\nHost: db1\r\n\r\n";
    for bytes in [&garbage[..], &http[..], b"\n\n", b"{\"ask\":\"fly\"}\n", b""] {
        for node in [&db1, &db2] {
            talk(TcpStream::connect(node.listen()).await.unwrap(), bytes).await;
            talk(on_control_socket(&node.store()).await, bytes).await;
        }
    }
    db2.follows(&db1).await;
    let _ = (db1.status().await.unwrap(), db2.status().await.unwrap());
    drop((silent, quiet));
}
