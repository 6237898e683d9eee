//! `walship basebackup` as a person runs it: what it makes, what it says, and how it ends.

use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::process::Signal;
use walship::demo::{Cluster, ClusterOptions, Workload, WorkloadOptions, digest};
use walship::pg::Lsn;
use walship::pg::checksum::PAGE_BYTES;
use walship::restore::target::MARKER_FILE;

use crate::harness::tools::verify_backup;
use crate::harness::{Finished, Node, PATIENCE, Sidecar, Test, eventually};

/// A running server with some rows.
async fn source(test: &Test) -> Cluster {
    let cluster = test.cluster("source", ClusterOptions::default()).await;
    let rows = "SELECT n, repeat(md5(n::text), 5) AS text FROM generate_series(1, 20000) AS n";
    cluster.sql(&format!("CREATE TABLE plain AS {rows}; CREATE INDEX ON plain (text)")).await.unwrap();
    cluster
}

/// Starts a copy in `FOLDER/data`, with a socket of its own.
async fn start(test: &Test, folder: &Path) -> Cluster {
    let cluster = Cluster::at(folder, &test.binaries, &test.account).unwrap();
    let socket = cluster.socket_folder();
    let line = format!("unix_socket_directories = '{}'\n", socket.display());
    cluster.append_to("postgresql.auto.conf", &line).unwrap();
    cluster.start().await.unwrap();
    cluster
}

/// No backup runs on the server, and nothing of one is left.
async fn is_done_with_it(source: &Cluster) {
    let sessions = "SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name LIKE 'walship%'";
    source.wait_until(sessions, PATIENCE).await.unwrap();
    source.wait_until("SELECT count(*) = 0 FROM pg_replication_slots", PATIENCE).await.unwrap();
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_copy_of_this_hosts_postgresql_needs_no_sidecar() {
    let test = Test::new();
    let source = source(&test).await;
    let space = test.folder().join("space");
    test.account.create_folder(&space).unwrap();
    source.sql(&format!("CREATE TABLESPACE fast LOCATION '{}'", space.display())).await.unwrap();
    source.sql("CREATE TABLE elsewhere TABLESPACE fast AS SELECT * FROM plain").await.unwrap();
    let (pgdata, target) = (text(&source.data_directory()), test.folder().join("copy/data"));
    let mapping = format!("{}={}", space.display(), test.folder().join("moved").display());
    // Where the server listens is in its postmaster.pid.
    let arguments =
        ["basebackup", "--pgdata", &pgdata, "-D", "copy/data", "-T", &mapping, "-l", "it's", "-P"];
    let finished = test.walship(&arguments).await.exited_with(0);
    assert!(
        finished.stdout.starts_with(&format!("{} is complete: PostgreSQL ", target.display())),
        "{finished:?}"
    );
    let phases = ["base backup: connecting", "base backup: copying", " files in "];
    assert!(phases.iter().all(|phase| finished.stderr.contains(phase)), "{}", finished.stderr);
    assert!(!finished.stderr.contains('\x1b') && !finished.stderr.contains("hint:"), "{}", finished.stderr);
    verify_backup(&source, &target, &[]).await;
    let label = std::fs::read_to_string(target.join("backup_label")).unwrap();
    assert!(label.contains("LABEL: it's\n"), "{label}");
    is_done_with_it(&source).await;

    let copy = start(&test, &test.folder().join("copy")).await;
    digest::compare(&source.conninfo(), &copy.conninfo()).await.unwrap();
    assert_eq!(copy.value("SELECT pg_is_in_recovery()").await.unwrap(), "f");

    // Again: what is there is a cluster now, and nothing happens to it.
    let stderr =
        test.walship(&arguments).await.failed(3, &["it holds the database cluster", "hint: Name another"]);
    assert!(!stderr.contains("seen"), "{stderr}");
}

#[tokio::test]
async fn with_a_configuration_no_flag_is_needed_and_the_copy_can_be_a_standby_of_the_server() {
    let test = Test::new();
    let source = source(&test).await;
    let config = format!(
        "name = \"db1\"\nstore = {:?}\n[postgres]\ndata_directory = {:?}\nconninfo = {:?}\n",
        test.folder().join("store"),
        source.data_directory(),
        source.conninfo(),
    );
    let file = test.folder().join("walship.toml");
    std::fs::write(&file, config).unwrap();
    test.account.own(&file).unwrap();
    let conninfo = format!("{} application_name=copy", source.conninfo());
    let plain = ["basebackup", "-D", "copy/data", "-R"];
    test.walship(&plain).await.failed(2, &["-R needs to know", "--primary-conninfo", "walship standby"]);
    assert!(!test.folder().join("copy").exists());
    let finished = test.walship(&[&plain[..], &["--primary-conninfo", &conninfo, "-j", "1"]].concat()).await;
    assert_eq!(finished.exited_with(0).stderr, "", "without -P and a terminal there is nothing to say");
    verify_backup(&source, &test.folder().join("copy/data"), &[]).await;
    let copy = start(&test, &test.folder().join("copy")).await;
    source.sql("INSERT INTO plain VALUES (-1, 'later')").await.unwrap();
    copy.wait_until("SELECT count(*) = 1 FROM plain WHERE n = -1", PATIENCE).await.unwrap();
    assert_eq!(copy.value("SELECT pg_is_in_recovery()").await.unwrap(), "t");
    assert_eq!(copy.value("SHOW wal_retrieve_retry_interval").await.unwrap(), "5s");

    let without = ["basebackup", "-D", "without", "--no-wal", "-c", "fast"];
    let stdout = test.walship(&without).await.succeeded();
    assert!(stdout.contains("needs WAL from"), "{stdout}");
    verify_backup(&source, &test.folder().join("without"), &["--no-parse-wal"]).await;
}

#[tokio::test]
async fn damaged_pages_are_named_and_the_copy_is_complete() {
    let test = Test::new();
    let source = source(&test).await;
    source.sql("CHECKPOINT").await.unwrap();
    let relation = source.value("SELECT pg_relation_filepath('plain')").await.unwrap();
    let damaged = std::fs::File::options().write(true).open(source.data_directory().join(&relation)).unwrap();
    damaged.write_all_at(b"rot", 3 * PAGE_BYTES as u64 + 5000).unwrap();
    let pgdata = text(&source.data_directory());
    let finished = test.walship(&["basebackup", "--pgdata", &pgdata, "-D", "copy"]).await.exited_with(1);
    let named = format!(
        "walship: {relation}: pages with wrong checksums at the source: 1, the first is page 3\nhint: "
    );
    assert!(finished.stderr.contains(&named), "{}", finished.stderr);
    assert!(finished.stdout.contains("is complete"), "{}", finished.stdout);
    verify_backup(&source, &test.folder().join("copy"), &[]).await;
}

#[tokio::test]
async fn a_cancelled_copy_ends_the_backup_and_cannot_start() {
    let test = Test::new();
    let source = source(&test).await;
    let pgdata = text(&source.data_directory());
    let arguments = ["basebackup", "--pgdata", &pgdata, "-D", "copy/data", "-P"];
    let mut copying = Sidecar::new("the copy", test.folder(), &test.account);
    copying.start(&[&arguments[..], &["-r", "1MiB"]].concat());
    copying.wait_log("base backup: copying").await;
    let copy = test.folder().join("copy/data");
    copying.signal(Signal::INT);
    assert_eq!(copying.ended().await.code(), Some(1));
    let log = std::fs::read_to_string(test.folder().join("walship.log")).unwrap();
    assert!(log.contains("walship: cancelled by SIGINT\nhint: What is there cannot start."), "{log}");
    is_done_with_it(&source).await;
    assert!(copy.join(MARKER_FILE).exists() && !copy.join("global/pg_control").exists());
    let half = Cluster::at(&test.folder().join("copy"), &test.binaries, &test.account).unwrap();
    assert!(half.start().await.is_err());

    test.walship(&arguments).await.succeeded();
    verify_backup(&source, &copy, &[]).await;
}

#[tokio::test]
async fn what_cannot_be_meant_is_refused_with_a_way_out() {
    let test = Test::new();
    let source = source(&test).await;
    let pgdata = text(&source.data_directory());
    let run =
        async |arguments: &[&str]| -> Finished { test.walship(&[&["basebackup"], arguments].concat()).await };

    run(&[]).await.failed(2, &["--directory <DIR>"]);
    run(&["-D", "copy"])
        .await
        .failed(2, &["`name` is not set", "hint: Name the data directory", "--pgdata DIR"]);
    run(&["-D", "copy", "--from", "db1:7432"]).await.failed(2, &["walship invite --reader"]);
    run(&["-D", "copy", "--from", "db1"]).await.failed(2, &["db1.example:7432"]);
    run(&["-D", "copy", "--from", "db1:7432", "--pgdata", &pgdata]).await.failed(2, &["cannot be used with"]);
    run(&["-D", "copy", "--bundle", "nowhere"]).await.failed(2, &["nowhere", "walship invite NAME"]);
    run(&["-D", "copy", "--pgdata", &pgdata, "-T", "a=b"]).await.failed(2, &["OLDDIR=NEWDIR"]);
    run(&["-D", "copy", "--pgdata", &pgdata, "-r", "fast"]).await.failed(2, &["64MiB"]);
    run(&["-D", "copy", "--pgdata", &pgdata, "-c", "slow"]).await.failed(2, &["fast, spread"]);
    let inside = format!("{pgdata}/copy");
    run(&["-D", &inside, "--pgdata", &pgdata]).await.failed(2, &["is inside the data directory"]);
    assert!(!test.folder().join("copy").exists() && !Path::new(&inside).exists());

    let taken = test.folder().join("taken");
    test.account.create_folder(&taken).unwrap();
    std::fs::write(taken.join("notes.txt"), "keep").unwrap();
    run(&["-D", "taken", "--pgdata", &pgdata])
        .await
        .failed(3, &["it holds `notes.txt`", "hint: Name another folder"]);
    assert_eq!(std::fs::read_dir(&taken).unwrap().count(), 1);

    let conninfo = "host=/nowhere dbname=postgres";
    let down = run(&["-D", "copy", "--pgdata", &pgdata, "--conninfo", conninfo]).await;
    down.failed(1, &["cannot be reached", "hint: Is it running"]);
    // Nobody says where: the default place, where nobody of ours is.
    let nowhere = run(&["-D", "copy", "--pgdata", &pgdata, "--conninfo", "port=1 dbname=postgres"]).await;
    nowhere.failed(1, &["/var/run/postgresql/.s.PGSQL.1 cannot be reached", "hint: Is it running"]);
    let stranger = source.conninfo_as("stranger");
    let refused = run(&["-D", "copy", "--pgdata", &pgdata, "--conninfo", &stranger]).await;
    refused.failed(1, &["stranger", "hint: "]);
    assert!(!test.folder().join("copy").exists());
}

/// A primary with its sidecar, as `walship init` made it.
async fn primary(test: &Test) -> Node {
    let mut node = Node::new(test, "db1", ClusterOptions::default()).await;
    let (data, listen) = (text(&node.cluster.data_directory()), node.listen().to_string());
    let init = ["init", "--name", "db1", "-D", &data, "--store", "store", "--listen", &listen];
    node.walship(&init).await.succeeded();
    node.sidecar.start(&["primary"]);
    let rows = "SELECT n, repeat(md5(n::text), 5) AS text FROM generate_series(1, 20000) AS n";
    node.cluster.sql(&format!("CREATE TABLE plain AS {rows}; CREATE INDEX ON plain (text)")).await.unwrap();
    eventually("the sidecar answers", async || {
        let status = node.walship(&["status"]).await;
        anyhow::ensure!(!status.stdout.is_empty(), "{status:?}");
        Ok(())
    })
    .await;
    node
}

#[tokio::test]
async fn a_reader_copies_from_the_primarys_sidecar_under_load() {
    let test = Test::new();
    let node = primary(&test).await;
    let bundle = text(&test.folder().join("reports.bundle"));
    node.walship(&["invite", "reports", "--reader", "-o", &bundle]).await.succeeded();
    let workload = Workload::start(&node.cluster.conninfo(), &WorkloadOptions::default()).await.unwrap();
    eventually("the load writes", async || {
        anyhow::ensure!(workload.acknowledged() > 100);
        Ok(())
    })
    .await;
    let finished =
        test.walship(&["basebackup", "--bundle", &bundle, "-D", "copy/data", "-P"]).await.exited_with(0);
    assert!(finished.stderr.contains(" over the wire\n"), "{}", finished.stderr);
    let ledger = workload.stop().await;
    verify_backup(&node.cluster, &test.folder().join("copy/data"), &[]).await;
    serves_no_backup(&node).await;
    let copy = start(&test, &test.folder().join("copy")).await;
    let end = stop_lsn(&finished.stdout);
    assert!(ledger.verify(&copy.conninfo(), Some(end)).await.unwrap().present > 100);

    // The node's own certificate will do too, and a copy makes nobody a member.
    let (listen, config) = (node.listen().to_string(), text(&node.config_file()));
    let own = ["basebackup", "--from", &listen, "--config", &config, "-D", "again"];
    test.walship(&own).await.succeeded();
    verify_backup(&node.cluster, &test.folder().join("again"), &[]).await;
    let status = node.walship(&["status", "--format", "json"]).await.succeeded();
    assert!(!status.contains("reports"), "{status}");
}

/// The sidecar's backup sessions have ended.
async fn serves_no_backup(node: &Node) {
    eventually("the primary is done with the backup", async || {
        let status = node.walship(&["status", "--format", "json"]).await.succeeded();
        anyhow::ensure!(status.contains("\"backups\": []"), "{status}");
        Ok(())
    })
    .await;
}

/// Where the copy's WAL ends, as walship says.
fn stop_lsn(stdout: &str) -> Lsn {
    let (_, after) = stdout.split_once(" to ").unwrap();
    after.split(' ').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_copy_that_is_cut_off_at_either_end_cannot_start_and_is_taken_again() {
    let test = Test::new();
    let mut node = primary(&test).await;
    let bundle = text(&test.folder().join("reports.bundle"));
    node.walship(&["invite", "reports", "--reader", "-o", &bundle]).await.succeeded();
    let copy = async |arguments: &[&str]| -> Finished {
        test.walship(&[&["basebackup", "--bundle", &bundle, "-D", "copy/data"], arguments].concat()).await
    };
    let nobody = format!("127.0.0.1:{}", test.port());
    copy(&["--from", &nobody]).await.failed(1, &["connect", &nobody, "hint: Is the sidecar running there"]);

    // Cancelled, the session at the primary ends.
    let mut copying = Sidecar::new("the copy", test.folder(), &test.account);
    copying.start(&["basebackup", "--bundle", &bundle, "-D", "copy/data", "-P", "-r", "1MiB"]);
    copying.wait_log("base backup: copying").await;
    copying.signal(Signal::TERM);
    assert_eq!(copying.ended().await.code(), Some(1));
    serves_no_backup(&node).await;
    assert!(!test.folder().join("copy/data/global/pg_control").exists());

    // The sidecar dies in the middle.
    copying.start(&["basebackup", "--bundle", &bundle, "-D", "copy/data", "-P", "-r", "1MiB"]);
    copying.wait_log("base backup: copying").await;
    node.sidecar.kill().await;
    assert_eq!(copying.ended().await.code(), Some(1));
    assert!(!test.folder().join("copy/data/global/pg_control").exists());
    node.sidecar.start(&["run"]);
    eventually("the same command copies", async || {
        let finished = copy(&[]).await;
        anyhow::ensure!(finished.stdout.contains("is complete"), "{finished:?}");
        Ok(())
    })
    .await;
    verify_backup(&node.cluster, &test.folder().join("copy/data"), &[]).await;
}
