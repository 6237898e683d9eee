//! Standbys that are made whole of what is there: let go, damaged, diverged; by a command, and by themselves.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::ensure;
use walship::demo::Proxy;
use walship::restore::target::MARKER_FILE;

use crate::delta::{primary_behind_a_link, verify};
use crate::harness::{Node, PROMOTE, Test, eventually};
use crate::promotion::{ships_at, write_much};

/// A standby beside a primary that is reached through a proxy, both with rows that do not compress.
async fn pair(test: &Test) -> (Node, Node, Proxy) {
    let (db1, link) = primary_behind_a_link(test).await;
    let db2 = test.standby("db2", &db1).await;
    db2.equals(&db1).await;
    (db1, db2, link)
}

/// Has the primary keep nothing for the standby that is away, and write more than that.
async fn let_go(db1: &mut Node, db2: &mut Node) {
    db2.sidecar.terminate().await;
    db1.sidecar.terminate().await;
    db1.sidecar.set("WALSHIP_STORE_MAX_BYTES", "1MiB");
    db1.sidecar.expect_log("the store is full: the WAL for this standby is no longer kept");
    db1.sidecar.expect_log("the store is larger than it may be");
    db1.run().await;
    db1.cluster.sql("CREATE TABLE few (t text)").await.unwrap();
    for _ in 0..12 {
        db1.cluster
            .sql("INSERT INTO few SELECT md5(g::text) FROM generate_series(1, 9000) AS g")
            .await
            .unwrap();
        for sql in ["DELETE FROM few", "VACUUM few", "CHECKPOINT"] {
            db1.cluster.sql(sql).await.unwrap();
        }
        db1.captures().await;
    }
    db1.sidecar.wait_log("the store is full").await;
}

/// The identity of a node's store and those that it had before, as they are on disk.
fn uuids(node: &Node) -> (String, Vec<String>) {
    let state = walship::store::Store::state_in(&node.store()).unwrap().unwrap();
    (state.store_uuid, state.former_store_uuids)
}

#[tokio::test]
async fn a_standby_that_was_let_go_is_made_whole_by_one_command_and_little_is_sent() {
    let test = Test::new();
    let (mut db1, mut db2, link) = pair(&test).await;
    let came = || link.traffic().from_target_bytes;
    let clean = came();
    let (before, _) = uuids(&db2);
    let_go(&mut db1, &mut db2).await;
    db1.cluster.sql("UPDATE noise SET g = -g WHERE g = 20000").await.unwrap();
    db2.sidecar.expect_log("this standby can't follow");
    db2.sidecar.expect_log("the log that is here does not lead to where the copy begins");
    db2.run().await;
    db2.sidecar.wait_log("it must be seeded anew: `walship standby --reseed`").await;

    let dry = db2.walship(&["standby", "--reseed", "--dry-run"]).await.exited_with(0);
    for line in ["db2 would be seeded anew from db1", "  stop PostgreSQL\n", "postgresql.conf"] {
        assert!(dry.stderr.contains(line), "{line:?} in {}", dry.stderr);
    }
    assert_eq!(dry.stdout, "nothing was changed\n");
    let postmaster = db2.postmaster();

    let begun = came();
    let told = db2.walship(&["standby", "--reseed"]).await.exited_with(0);
    let sent = came() - begun;
    println!("{}{}{sent} bytes over the link, {clean} for the whole", told.stderr, told.stdout);
    assert!(told.stdout.starts_with("db2 is whole: ") && told.stderr.contains("copying"), "{told:?}");
    assert!(sent < clean / 8, "{sent} bytes were sent, where the whole was {clean}: {told:?}");
    db2.follows(&db1).await;
    db2.equals(&db1).await;
    assert_ne!(db2.postmaster(), postmaster);
    let (after, former) = uuids(&db2);
    assert!(after != before && former == [before], "its log begins anew: it is another store");
    // It is a member like any other again.
    eventually("nobody is let go", async || {
        let status = db1.status().await?;
        ensure!(status.alarms.is_empty(), "{:?}", status.alarms);
        ensure!(status.store.holds.iter().any(|hold| hold.who == "db2"), "{:?}", status.store.holds);
        Ok(())
    })
    .await;
    db2.sidecar.terminate().await;
    db2.run().await;
    db2.equals(&db1).await;
}

#[tokio::test]
async fn with_auto_reseed_a_standby_that_was_let_go_comes_back_by_itself() {
    let test = Test::new();
    let (mut db1, mut db2, _link) = pair(&test).await;
    let_go(&mut db1, &mut db2).await;
    let config = std::fs::read_to_string(db2.config_file()).unwrap();
    assert!(config.contains("# auto_reseed = false"), "{config}");
    std::fs::write(db2.config_file(), config.replace("# auto_reseed = false", "auto_reseed = true")).unwrap();
    db2.sidecar.expect_log("it seeds itself anew");
    db2.sidecar.expect_log("the log that is here does not lead to where the copy begins");
    db2.run().await;
    db2.follows(&db1).await;
    db2.equals(&db1).await;
    let log = db2.sidecar.log().entries().join("\n");
    assert!(log.contains("stopping PostgreSQL") && log.contains("the base backup is complete"), "{log}");
    eventually("it is a member like any other", async || {
        let alarms = db1.status().await?.alarms;
        ensure!(alarms.is_empty(), "{alarms:?}");
        Ok(())
    })
    .await;
    // Promoted, it serves like one that never was away.
    db1.dies().await;
    db2.walship(&PROMOTE).await.exited_with(0);
    db2.cluster.sql("INSERT INTO noise SELECT 0, 'later'").await.unwrap();
}

/// Every file below a folder with its content.
fn tree(folder: &Path) -> std::collections::BTreeMap<PathBuf, Vec<u8>> {
    let files = walkdir::WalkDir::new(folder).into_iter().map(Result::unwrap);
    let files = files.filter(|entry| entry.file_type().is_file());
    files.map(|entry| (entry.path().to_owned(), std::fs::read(entry.path()).unwrap())).collect()
}

fn own(test: &Test, path: &Path) {
    test.account.own(path).unwrap();
}

/// Damages a stopped standby in every way that a disk, or a person, can.
async fn damage(test: &Test, db1: &Node, db2: &Node) {
    let data = db2.cluster.data_directory();
    let path = async |name: &str| {
        let query = format!("SELECT pg_relation_filepath('{name}')");
        data.join(db1.cluster.value(&query).await.unwrap())
    };
    let noise = path("noise").await;
    let mut content = std::fs::read(&noise).unwrap();
    content[100_000] ^= 1;
    content[3_000_000..3_000_100].fill(0);
    std::fs::write(&noise, content).unwrap();
    let attributes = path("pg_attribute").await;
    File::options().write(true).open(attributes).unwrap().set_len(8192).unwrap();
    std::fs::remove_file(path("pg_class_oid_index").await).unwrap();
    std::fs::remove_dir_all(data.join("pg_xact")).unwrap();
    std::fs::remove_file(data.join("PG_VERSION")).unwrap();
    std::fs::write(data.join("global/pg_control"), "rot").unwrap();
    for extra in ["base/999/1", "junk/a/b", "base/5/99999"] {
        let extra = data.join(extra);
        std::fs::create_dir_all(extra.parent().unwrap()).unwrap();
        std::fs::write(&extra, "extra").unwrap();
    }
    std::fs::write(data.join("server.key"), "this host's").unwrap();
    for entry in walkdir::WalkDir::new(&data) {
        own(test, entry.unwrap().path());
    }
}

#[tokio::test]
async fn a_standby_whose_files_were_damaged_is_made_whole_and_keeps_what_is_its_own() {
    let test = Test::new();
    let (db1, mut db2, link) = pair(&test).await;
    let clean = link.traffic().from_target_bytes;
    let (store, _) = uuids(&db2);
    db2.cluster.append_to("postgresql.conf", "work_mem = '7MB'\n").unwrap();
    db2.sidecar.terminate().await;
    db2.stops().await;
    damage(&test, &db1, &db2).await;
    db1.cluster.sql("INSERT INTO noise SELECT -1, 'later'").await.unwrap();

    let before = tree(&db2.cluster.data_directory());
    let dry = db2.walship(&["standby", "--reseed", "--dry-run"]).await.exited_with(0);
    assert!(dry.stderr.contains("server.key") && !dry.stderr.contains("stop PostgreSQL"), "{}", dry.stderr);
    assert!(tree(&db2.cluster.data_directory()) == before, "a dry run changes nothing");

    let begun = link.traffic().from_target_bytes;
    db2.sidecar.set("WALSHIP_FAILPOINTS", "join-copied=abort");
    db2.sidecar.start(&["standby", "--reseed"]);
    db2.sidecar.ended().await;
    let sent = link.traffic().from_target_bytes - begun;
    assert!(sent < clean / 8, "{sent} bytes were sent, where the whole was {clean}");
    // Before PostgreSQL writes to it: every file is as the primary has it, and nothing else is there.
    verify(&db1.cluster, &db2.cluster.data_directory()).await;
    db2.runs_with("").await;
    db2.equals(&db1).await;
    assert_eq!(db2.cluster.value("SHOW work_mem").await.unwrap(), "7MB");
    assert!(!db2.cluster.data_directory().join("junk").exists());
    assert_eq!(uuids(&db2).0, store, "its log was whole, and what it acknowledged still stands");
    db2.sidecar.terminate().await;
    db2.stops().await;
    let mut checksums = db2.cluster.account().command(db2.cluster.binaries().program("pg_checksums"));
    checksums.arg("--check").arg(db2.cluster.data_directory());
    db2.cluster.run(checksums).await.unwrap();
}

#[tokio::test]
async fn a_reseed_that_is_killed_at_any_point_leaves_what_was_or_nothing_that_starts() {
    let test = Test::new();
    let mut random = test.random();
    let (db1, mut db2, _link) = pair(&test).await;
    let control = db2.cluster.data_directory().join("global/pg_control");
    let points = ["marked", "disarmed", "aside", "pruned", "labelled", "pending", "named"];
    for point in points {
        db2.sidecar.terminate().await;
        db1.cluster.sql("UPDATE noise SET g = -g WHERE g % 1000 = 7").await.unwrap();
        db2.sidecar.set("WALSHIP_FAILPOINTS", &format!("restore.{point}=abort"));
        db2.sidecar.start(&["standby", "--reseed"]);
        db2.sidecar.ended().await;
        // It is what it was before, or what it is to be, or nothing.
        assert_eq!(control.exists(), ["marked", "named"].contains(&point), "{point}");
        assert_eq!(db2.cluster.start().await.is_ok(), control.exists(), "{point}");
        db2.runs_with("").await;
        db2.equals(&db1).await;
        assert!(!db2.cluster.data_directory().join(MARKER_FILE).exists(), "{point}");
    }
    db2.sidecar.terminate().await;
    for round in 0..3 {
        db2.sidecar.start(&["standby", "--reseed", "-r", "100MiB"]);
        tokio::time::sleep(Duration::from_millis(random.below(900))).await;
        db2.sidecar.kill().await;
        if control.exists() {
            // Before its first byte changed, or after its last.
            let _ = db2.cluster.start().await;
            eventually("what is there is whole", async || db2.cluster.sql("SELECT 1").await.map(drop)).await;
        } else {
            assert!(db2.cluster.start().await.is_err(), "round {round}");
        }
    }
    db2.run().await;
    db2.equals(&db1).await;
}

#[tokio::test]
async fn what_must_not_be_seeded_anew_is_refused_and_left_alone() {
    let test = Test::new();
    let (mut db1, mut db2, link) = pair(&test).await;
    let reseed = ["standby", "--reseed"];
    db1.walship(&reseed).await.failed(3, &["db1 is the primary", "hint: Run this on the standby"]);
    db1.walship(&["standby", "--dry-run"]).await.failed(2, &["--reseed"]);
    // Nobody to copy from: PostgreSQL goes on.
    let postmaster = db2.postmaster();
    link.cut();
    db2.walship(&reseed).await.failed(1, &["no primary answers"]);
    assert_eq!(db2.postmaster(), postmaster);
    link.heal();
    db2.follows(&db1).await;
    // Without a sidecar it is the same.
    db2.sidecar.terminate().await;
    db1.sidecar.terminate().await;
    db2.walship(&reseed).await.failed(1, &["no primary answers"]);
    db1.run().await;
    // A standby that was promoted by hand has what nobody else has.
    db2.cluster.sql("SELECT pg_promote()").await.unwrap();
    db2.walship(&reseed).await.failed(3, &["was promoted", "hint: Save what matters"]);
    assert_eq!(db2.postmaster(), postmaster);
    db2.stops().await;
    db2.walship(&reseed).await.failed(3, &["was promoted"]);
}

#[tokio::test]
async fn a_standby_that_diverged_is_made_whole_and_its_log_is_set_aside() {
    let test = Test::new();
    let db1 = test.primary("db1").await;
    let mut db2 = test.standby("db2", &db1).await;
    let mut db3 = test.standby("db3", &db1).await;
    db2.knows(&["db1", "db3"]).await;
    ships_at(&mut db3, "1KiB").await;
    db2.sidecar.terminate().await;
    write_much(&db1, "not_on_db2").await;
    // Its files have what db2 never will.
    db1.cluster.sql("CHECKPOINT").await.unwrap();
    db3.follows(&db1).await;
    db3.cluster.sql("CHECKPOINT").await.unwrap();
    let mut db1 = db1;
    db1.dies().await;
    db2.run().await;
    db3.sidecar.expect_log("can't follow");
    db3.sidecar.expect_log("it is set aside");
    db2.walship(&["promote", "--force"]).await.exited_with(0);
    db3.sidecar.wait_log("`walship standby --reseed`").await;
    db2.cluster.sql("CREATE TABLE after_it AS SELECT generate_series(1, 1000)").await.unwrap();
    let (before, _) = uuids(&db3);
    db3.walship(&["standby", "--reseed"]).await.exited_with(0);
    db3.equals(&db2).await;
    let aside = db3.store().join("capsules").join(&before);
    assert!(std::fs::read_dir(aside).unwrap().count() > 0, "what db1 wrote and db2 never had is kept");
    db3.sidecar.terminate().await;
    db3.run().await;
    db3.equals(&db2).await;
}

#[tokio::test]
async fn tablespaces_stay_where_they_are_come_and_go() {
    let test = Test::new();
    let space = |name: &str| test.folder().join(name);
    let create = async |db1: &Node, name: &str| {
        test.account.create_folder(&space(name)).unwrap();
        let location = space(name).display().to_string();
        db1.cluster.sql(&format!("CREATE TABLESPACE {name} LOCATION '{location}'")).await.unwrap();
        db1.cluster.sql(&format!("CREATE TABLE in_{name} TABLESPACE {name} AS SELECT 1 AS a")).await.unwrap();
    };
    let mut db1 = Node::new(&test, "db1", walship::demo::ClusterOptions::default()).await;
    db1.init().await;
    create(&db1, "stays").await;
    create(&db1, "goes").await;
    db1.start_primary().await;
    let mapping = |name: &str| format!("{}={}", space(name).display(), space(&format!("{name}-2")).display());
    let mut db2 = Node::empty(&test, "db2");
    db2.join(&db1.invite("db2").await, &["-T", &mapping("stays"), "-T", &mapping("goes")]);
    db2.follows(&db1).await;
    db2.sidecar.terminate().await;
    db2.stops().await;

    db1.cluster.sql("DROP TABLE in_goes").await.unwrap();
    db1.cluster.sql("DROP TABLESPACE goes").await.unwrap();
    create(&db1, "comes").await;
    db1.cluster.sql("INSERT INTO in_stays SELECT generate_series(1, 1000)").await.unwrap();
    // On this host its place is taken: by the primary's.
    let refused = db2.walship(&["standby", "--reseed"]).await;
    refused.failed(3, &["is not empty", "hint: Put the tablespace elsewhere with -T"]);
    assert!(db2.cluster.data_directory().join("global/pg_control").exists());
    db2.sidecar.start(&["standby", "--reseed", "-T", &mapping("comes")]);
    db2.follows(&db1).await;
    db2.equals(&db1).await;
    let locations = "SELECT string_agg(pg_tablespace_location(oid), ',' ORDER BY spcname) FROM pg_tablespace \
                     WHERE spcname IN ('comes', 'goes', 'stays')";
    let expected = [space("comes-2"), space("stays-2")].map(|path| path.display().to_string()).join(",");
    assert_eq!(db2.cluster.value(locations).await.unwrap(), expected);
    assert_eq!(std::fs::read_dir(space("goes-2")).unwrap().count(), 0);
}
