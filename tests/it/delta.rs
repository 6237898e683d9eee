//! Copies that were cut off: what is there already is not sent again, and nothing half-made starts.

use std::path::Path;
use std::time::Duration;

use anyhow::ensure;
use walship::demo::{Cluster, ClusterOptions, Proxy, StopMode};
use walship::restore::target::MARKER_FILE;

use crate::harness::{Finished, Node, PATIENCE, Sidecar, Test, eventually};

/// A unit on the wire, of which one may be under way on each connection, and what TLS has around it.
const OPEN_CHUNK_BYTES: u64 = (256 << 10) + (1 << 10);

/// How many carry files.
const CONNECTIONS: u64 = 2;

/// What comes for a file that is here already: its name in the list, its beginning, its end.
const ANSWER_BYTES: u64 = 250;

/// What an attempt brings besides: handshakes, and the WAL of its own backup.
const BEGINNING_BYTES: u64 = 512 << 10;

/// A primary whose rows do not compress, reached only through a proxy.
pub async fn primary_behind_a_link(test: &Test) -> (Node, Proxy) {
    let mut db1 = Node::new(test, "db1", ClusterOptions::default()).await;
    let link = Proxy::start(db1.listen()).await.unwrap();
    db1.advertise = link.address();
    db1.init().await;
    db1.start_primary().await;
    let random = "string_agg(decode(md5(random()::text || n::text), 'hex'), NULL)";
    let rows = format!(
        "CREATE TABLE noise AS SELECT g, (SELECT {random} FROM generate_series(1, 60) AS n WHERE g > 0) AS bytes \
         FROM generate_series(1, 40000) AS g"
    );
    db1.cluster.sql(&rows).await.unwrap();
    // Frozen, the pages are the same on a standby; hint bits that a reader sets are not shipped, and would differ.
    for sql in ["VACUUM (FREEZE) noise", "CHECKPOINT"] {
        db1.cluster.sql(sql).await.unwrap();
    }
    (db1, link)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A reader's bundle.
async fn reader(test: &Test, db1: &Node) -> String {
    let bundle = text(&test.folder().join("reports.bundle")).to_owned();
    let address = db1.advertise.to_string();
    db1.walship(&["invite", "reports", "--reader", "-o", &bundle, "--address", &address]).await.succeeded();
    bundle
}

async fn base_backup(test: &Test, bundle: &str, target: &str) -> Finished {
    let jobs = CONNECTIONS.to_string();
    let arguments = ["basebackup", "--bundle", bundle, "-D", target, "-j", &jobs, "-P"];
    test.walship_within(PATIENCE * 3, &arguments).await
}

/// Runs PostgreSQL's own verification of a copy.
pub async fn verify(cluster: &Cluster, copy: &Path) {
    let mut verify = cluster.account().command(cluster.binaries().program("pg_verifybackup"));
    verify.arg(copy);
    cluster.run(verify).await.unwrap();
}

#[tokio::test]
async fn a_link_that_is_cut_twenty_times_costs_the_open_chunks_and_the_digests() {
    const CUTS: u64 = 20;
    let test = Test::new();
    let mut random = test.random();
    let (db1, link) = primary_behind_a_link(&test).await;
    let bundle = reader(&test, &db1).await;
    let came = || link.traffic().from_target_bytes;

    let before = came();
    let stdout = base_backup(&test, &bundle, "clean").await.exited_with(0).stdout;
    let clean = came() - before;
    let files: u64 = stdout.split(" files;").next().unwrap().rsplit(' ').next().unwrap().parse().unwrap();

    let begun = came();
    let mut copying = std::pin::pin!(base_backup(&test, &bundle, "cut"));
    for cut in 0..CUTS {
        // From the last cut on, so that each of them hits an attempt, some before its first file.
        let point = came() + random.below(clean / CUTS);
        let reached = eventually("the next point is reached", async || {
            tokio::time::sleep(Duration::from_millis(2)).await;
            ensure!(came() > point, "{} of {point}", came());
            Ok(())
        });
        tokio::select! {
            () = reached => link.reset(),
            finished = &mut copying => panic!("it ended before cut {cut}: {finished:?}"),
        }
    }
    let finished = copying.await.exited_with(0);
    let excess = (came() - begun).saturating_sub(clean);
    println!("clean: {clean} bytes in {files} files; with {CUTS} cuts {excess} more");
    // One that hits while nothing is connected yet again cuts nothing off.
    let attempts = finished.stderr.matches("the copy was cut off").count() as u64;
    assert!((CUTS / 2..=CUTS).contains(&attempts), "{}", finished.stderr);
    let most = (CUTS + 1) * (CONNECTIONS * OPEN_CHUNK_BYTES + files * ANSWER_BYTES + BEGINNING_BYTES);
    assert!(excess < most && most < clean, "{excess} bytes more than {clean} were sent, {most} at the most");
    assert!(finished.stderr.contains(" of them here already"), "{}", finished.stderr);
    verify(&db1.cluster, &test.folder().join("cut")).await;
}

#[tokio::test]
async fn a_join_goes_on_over_a_cut_link_and_over_a_restart() {
    let test = Test::new();
    let (mut db1, link) = primary_behind_a_link(&test).await;
    let mut db2 = Node::empty(&test, "db2");
    let bundle = db1.invite("db2").await;
    db2.sidecar.expect_log("the copy was cut off");
    db2.join(&bundle, &["-r", "20MiB"]);
    let copied = async |node: &Node, bytes: u64| {
        eventually("some of it is copied", async || {
            let seeding = node.status().await?.seeding;
            let done = seeding.as_ref().map_or(0, |seeding| seeding.done_bytes);
            ensure!(done > bytes && done < seeding.unwrap().total_bytes, "{done} of {bytes}");
            Ok(())
        })
        .await;
    };
    copied(&db2, 8 << 20).await;
    let refused = db2.walship(&["promote"]).await;
    refused.failed(3, &["is being seeded", "hint: Promote another standby"]);
    link.cut();
    db2.sidecar.wait_log("the copy was cut off").await;
    db1.sidecar.terminate().await;
    db1.run().await;
    link.heal();
    copied(&db2, 12 << 20).await;

    db2.sidecar.kill().await;
    assert!(db2.cluster.data_directory().join(MARKER_FILE).exists());
    assert!(db2.cluster.start().await.is_err(), "nothing half-made starts");
    // What `standby` was told is not forgotten: its port and its socket.
    db2.run().await;
    db2.follows(&db1).await;
    let log = db2.sidecar.log().entries().join("\n");
    assert!(log.contains("going on with the copy") && log.contains("equal_bytes="), "{log}");
    db2.equals(&db1).await;
    assert!(db2.status().await.unwrap().seeding.is_none());
}

/// A handle on the copy in `FOLDER/data`, with a socket of its own.
fn copy_in(test: &Test, folder: &str) -> Cluster {
    Cluster::at(&test.folder().join(folder), &test.binaries, &test.account).unwrap()
}

/// Whether PostgreSQL starts on what is there; stopped again if so.
async fn starts(cluster: &Cluster) -> bool {
    let line = format!("unix_socket_directories = '{}'\n", cluster.socket_folder().display());
    if cluster.data_directory().join("postgresql.auto.conf").exists() {
        cluster.append_to("postgresql.auto.conf", &line).unwrap();
    }
    let started = cluster.start().await.is_ok();
    if started {
        cluster.stop(StopMode::Fast).await.unwrap();
    }
    started
}

#[tokio::test]
async fn a_copy_that_is_killed_at_any_point_cannot_start_until_the_same_command_completes_it() {
    let test = Test::new();
    let mut random = test.random();
    let (db1, _link) = primary_behind_a_link(&test).await;
    let bundle = reader(&test, &db1).await;
    let copy = copy_in(&test, "copy");
    let mut copying = Sidecar::new("the copy", test.folder(), &test.account);
    let arguments = ["basebackup", "--bundle", &bundle, "-D", "copy/data", "-P"];
    let points = ["restore.marked", "restore.disarmed", "restore.labelled", "restore.pending"];
    for point in points {
        copying.set("WALSHIP_FAILPOINTS", &format!("{point}=abort"));
        copying.start(&arguments);
        assert!(!copying.ended().await.success());
        assert!(copy.data_directory().join(MARKER_FILE).exists(), "{point}");
        assert!(!starts(&copy).await, "after {point}");
    }
    copying.set("WALSHIP_FAILPOINTS", "");
    for round in 0..6 {
        copying.start(&[&arguments[..], &["-r", "100MiB"]].concat());
        tokio::time::sleep(Duration::from_millis(random.below(700))).await;
        if !copying.is_running() {
            copying.ended().await;
            break;
        }
        copying.kill().await;
        // As its last act it becomes one that can start.
        let is_complete = copy.data_directory().join("global/pg_control").exists();
        assert_eq!(starts(&copy).await, is_complete, "round {round}");
        if is_complete {
            return;
        }
    }
    if !copy.data_directory().join("global/pg_control").exists() {
        let stderr = test.walship(&arguments).await.exited_with(0).stderr;
        assert!(stderr.contains(" of them here already"), "{stderr}");
    }
    verify(&db1.cluster, &copy.data_directory()).await;
    assert!(starts(&copy).await);
}

#[tokio::test]
async fn a_copy_that_is_killed_right_after_it_got_its_control_file_is_complete() {
    let test = Test::new();
    let (db1, _link) = primary_behind_a_link(&test).await;
    let bundle = reader(&test, &db1).await;
    let mut copying = Sidecar::new("the copy", test.folder(), &test.account);
    copying.set("WALSHIP_FAILPOINTS", "restore.named=abort");
    copying.start(&["basebackup", "--bundle", &bundle, "-D", "copy/data"]);
    assert!(!copying.ended().await.success());
    let copy = copy_in(&test, "copy");
    assert!(copy.data_directory().join(MARKER_FILE).exists());
    let again = base_backup(&test, &bundle, "copy/data").await;
    again.failed(3, &["it holds the database cluster"]);
    assert!(!copy.data_directory().join(MARKER_FILE).exists());
    verify(&db1.cluster, &copy.data_directory()).await;
    assert!(starts(&copy).await);
}
