//! Base backups of a real server, over pipes: what is copied, what is verified, and what must not come to life.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use walship::daemon::local_copy::{Local, copy};
use walship::demo::{
    Account, Binaries, Cluster, ClusterOptions, StopMode, Workload, WorkloadOptions, digest, wait,
};
use walship::fault::{Fault, Outcome};
use walship::pg::checksum::PAGE_BYTES;
use walship::pg::manifest::Manifest;
use walship::pg::{Conninfo, Lsn};
use walship::restore::standby::{self, StandbySettings};
use walship::restore::target::{Kind, MARKER_FILE, PENDING_CONTROL_FILE};
use walship::restore::{Options, Phase, Progress, Report};
use walship::vitals::{Cell, Vitals};

use crate::harness::tools::{self, verify_backup};

const SOON: Duration = Duration::from_secs(30);

/// A folder that PostgreSQL's account can use.
fn folder_for_postgres() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    Account::for_postgres().unwrap().own(folder.path()).unwrap();
    folder
}

/// A running server below `folder`, with rows, a tablespace and an unlogged table.
async fn source_in(folder: &Path) -> Cluster {
    let (binaries, account) = (Binaries::find().unwrap(), Account::for_postgres().unwrap());
    // One test follows it without a slot.
    let options = ClusterOptions::default().set("wal_keep_size", "1GB");
    let cluster = Cluster::create(&folder.join("source"), &binaries, &account, &options).await.unwrap();
    cluster.start().await.unwrap();
    let space = folder.join("space");
    account.create_folder(&space).unwrap();
    let space = space.display();
    cluster.sql(&format!("CREATE TABLESPACE fast LOCATION '{space}'")).await.unwrap();
    let rows = "SELECT n, repeat(md5(n::text), 5) AS text FROM generate_series(1, 20000) AS n";
    let statements = format!(
        "CREATE TABLE plain AS {rows}; CREATE INDEX ON plain (text); \
         CREATE TABLE elsewhere TABLESPACE fast AS {rows}; \
         CREATE UNLOGGED TABLE unlogged AS {rows}; CREATE INDEX ON unlogged (n);"
    );
    cluster.sql(&statements).await.unwrap();
    cluster
}

fn options(target: &Path, tablespaces: &[(&Path, &Path)]) -> Options {
    let mapping =
        |(old, new): &(&Path, &Path)| format!("{}={}", old.display(), new.display()).parse().unwrap();
    Options {
        target: target.to_owned(),
        kind: Kind::Copy,
        label: "walship: it's a test".to_owned(),
        fast_checkpoint: true,
        max_rate_bytes_per_second: None,
        compression: Some(1),
        connections: 3,
        tablespaces: tablespaces.iter().map(mapping).collect(),
        standby: None,
    }
}

fn local(cluster: &Cluster, with_wal: bool) -> Local {
    let conninfo = Conninfo::parse(&cluster.conninfo()).unwrap();
    Local { conninfo, data_directory: cluster.data_directory(), with_wal }
}

async fn take(cluster: &Cluster, options: Options, with_wal: bool) -> anyhow::Result<Report> {
    copy(&local(cluster, with_wal), options, Arc::default(), Arc::default()).await
}

/// Hands a copy to PostgreSQL's account, as walship does by running as it.
fn give_to_postgres(folder: &Path) {
    let account = Account::for_postgres().unwrap();
    for entry in walkdir::WalkDir::new(folder) {
        account.own(entry.unwrap().path()).unwrap();
    }
}

/// A handle on a copy, with a socket of its own.
fn cluster_of_copy(folder: &Path) -> Cluster {
    let (binaries, account) = (Binaries::find().unwrap(), Account::for_postgres().unwrap());
    let cluster = Cluster::at(folder, &binaries, &account).unwrap();
    let socket = cluster.socket_folder().display().to_string();
    cluster.append_to("postgresql.auto.conf", &format!("unix_socket_directories = '{socket}'\n")).unwrap();
    cluster
}

#[tokio::test]
async fn a_copy_taken_under_load_is_verified_starts_and_has_every_row() {
    let folder = folder_for_postgres();
    let source = source_in(folder.path()).await;
    let (space, moved) = (folder.path().join("space"), folder.path().join("moved"));
    let workload = Workload::start(&source.conninfo(), &WorkloadOptions::default()).await.unwrap();
    wait::until("the load writes", SOON, async || {
        anyhow::ensure!(workload.acknowledged() > 100);
        Ok(())
    })
    .await
    .unwrap();
    let target = folder.path().join("copy/data");
    let (vitals, progress) = (Arc::new(Vitals::default()), Arc::new(Cell::<Progress>::default()));
    let options = options(&target, &[(&space, &moved)]);
    let report =
        copy(&local(&source, true), options, Arc::clone(&vitals), Arc::clone(&progress)).await.unwrap();
    let ledger = workload.stop().await;
    assert!(report.bad_pages.is_empty() && report.stop_lsn > report.start_lsn, "{report:?}");
    assert!(
        ledger
            .notes()
            .iter()
            .any(|note| note.lsn.is_some_and(|lsn| lsn > report.start_lsn && lsn < report.stop_lsn))
    );
    let seen = progress.get();
    assert_eq!((seen.phase, seen.files, seen.done_bytes), (Phase::Done, report.files, report.bytes));
    assert!(seen.wire_bytes > 0 && seen.wire_bytes < seen.done_bytes, "compressed: {seen:?}");
    wait::until("the source is done with it", SOON, async || {
        anyhow::ensure!(vitals.backups.get().is_empty());
        Ok(())
    })
    .await
    .unwrap();

    give_to_postgres(folder.path());
    verify_backup(&source, &target, &[]).await;
    let manifest = std::fs::read(target.join("backup_manifest")).unwrap();
    let parsed = Manifest::parse(&manifest).unwrap();
    assert_eq!(parsed.to_bytes(), manifest);
    assert_eq!(parsed.files.len() as u64, report.files + 3, "label, map and control file come on top");
    let no_leftovers = [MARKER_FILE, PENDING_CONTROL_FILE].iter().all(|name| !target.join(name).exists());
    assert!(no_leftovers && !target.join("postmaster.pid").exists());

    let copied = cluster_of_copy(&folder.path().join("copy"));
    copied.start().await.unwrap();
    let verified = ledger.verify(&copied.conninfo(), Some(report.stop_lsn)).await.unwrap();
    assert!(verified.present > 100, "{verified:?}");
    let equal = "SELECT count(*) || ' ' || sum(hashtext(text)) FROM";
    for table in ["plain", "elsewhere"] {
        let query = format!("{equal} {table}");
        assert_eq!(copied.value(&query).await.unwrap(), source.value(&query).await.unwrap(), "{table}");
    }
    assert_eq!(copied.value("SELECT count(*) FROM unlogged").await.unwrap(), "0");
    let location = "SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'fast'";
    assert_eq!(PathBuf::from(copied.value(location).await.unwrap()), moved.canonicalize().unwrap());
    copied.stop(StopMode::Fast).await.unwrap();
    if let Some(mut checksums) = tools::reader(&copied, "pg_checksums") {
        checksums.arg("--check").arg(&target);
        copied.run(checksums).await.unwrap();
    }
}

#[tokio::test]
async fn a_copy_becomes_a_standby_and_a_damaged_page_is_reported() {
    let folder = folder_for_postgres();
    let source = source_in(folder.path()).await;
    let (space, moved) = (folder.path().join("space"), folder.path().join("moved"));
    let target = folder.path().join("copy/data");
    // A page that is bad on disk alone: PostgreSQL has a good one in memory, and wrote it before.
    source.sql("CHECKPOINT").await.unwrap();
    let relation = source.value("SELECT pg_relation_filepath('plain')").await.unwrap();
    let damaged = std::fs::File::options().write(true).open(source.data_directory().join(&relation)).unwrap();
    damaged.write_all_at(b"rot", 3 * PAGE_BYTES as u64 + 5000).unwrap();
    let standby = StandbySettings {
        primary_conninfo: source.conninfo(),
        is_fed: true,
        socket_directory: Some(folder.path().join("copy/socket")),
        ..StandbySettings::default()
    };
    let as_standby = Options { standby: Some(standby), ..options(&target, &[(&space, &moved)]) };
    let report = take(&source, as_standby, false).await.unwrap();
    let bad = &report.bad_pages[..];
    assert_eq!(bad.len(), 1, "{bad:?}");
    assert_eq!((bad[0].path.as_path(), bad[0].count, bad[0].first), (Path::new(&relation), 1, Some(3)));

    give_to_postgres(folder.path());
    verify_backup(&source, &target, &["--no-parse-wal"]).await;
    // Full-page images mend the copy, so that the rows can be compared.
    source.sql("UPDATE plain SET n = n").await.unwrap();
    let standby = Cluster::at(&folder.path().join("copy"), source.binaries(), source.account()).unwrap();
    standby.start().await.unwrap();
    source.sql("INSERT INTO elsewhere SELECT -1, 'later'").await.unwrap();
    let end: Lsn = source.value("SELECT pg_current_wal_lsn()").await.unwrap().parse().unwrap();
    standby.wait_until(&format!("SELECT pg_last_wal_replay_lsn() >= '{end}'"), SOON).await.unwrap();
    let differences = digest::compare(&source.conninfo(), &standby.conninfo()).await;
    assert!(differences.is_ok(), "{differences:?}");
    assert_eq!(standby.value("SHOW wal_retrieve_retry_interval").await.unwrap(), "200ms");
    assert_eq!(standby.value("SELECT pg_is_in_recovery()").await.unwrap(), "t");

    // A standby can be copied too; its control file says where the copy becomes consistent.
    let (again, moved_again) = (folder.path().join("again"), folder.path().join("moved again"));
    let options = options(&again, &[(&moved, &moved_again)]);
    take(&standby, options, true).await.unwrap();
    give_to_postgres(folder.path());
    verify_backup(&standby, &again, &[]).await;

    standby.stop(StopMode::Fast).await.unwrap();
    standby::remove_for_primary(&target).unwrap();
    give_to_postgres(folder.path());
    standby.start().await.unwrap();
    assert_eq!(standby.value("SELECT pg_is_in_recovery()").await.unwrap(), "f");
    assert_eq!(standby.value("SHOW primary_conninfo").await.unwrap(), "");
}

#[tokio::test]
async fn a_copy_that_was_cut_off_leaves_nothing_that_starts_and_can_be_taken_again() {
    let folder = folder_for_postgres();
    let source = source_in(folder.path()).await;
    let (space, moved) = (folder.path().join("space"), folder.path().join("moved"));
    let target = folder.path().join("copy/data");
    let progress = Arc::new(Cell::<Progress>::default());
    let slow = Options { max_rate_bytes_per_second: Some(2 << 20), ..options(&target, &[(&space, &moved)]) };
    let (taken, cell) = (local(&source, true), Arc::clone(&progress));
    let copying = tokio::spawn(async move { copy(&taken, slow, Arc::default(), cell).await });
    let mut watch = progress.watch();
    let half_way = watch.wait_for(|progress| progress.files > 10 && progress.done_bytes > 1 << 20);
    tokio::time::timeout(SOON, half_way).await.unwrap().unwrap();
    let sessions = "SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name LIKE 'walship%'";
    assert_eq!(source.value(sessions).await.unwrap(), "f");
    copying.abort();
    assert!(copying.await.unwrap_err().is_cancelled());

    source.wait_until(sessions, SOON).await.unwrap();
    source.wait_until("SELECT count(*) = 0 FROM pg_replication_slots", SOON).await.unwrap();
    assert!(target.join(MARKER_FILE).exists() && target.join("base").exists());
    assert!(!target.join("global/pg_control").exists() && !target.join("backup_label").exists());
    give_to_postgres(folder.path());
    let half = Cluster::at(&folder.path().join("copy"), source.binaries(), source.account()).unwrap();
    let refused = half.start().await.unwrap_err();
    assert!(format!("{refused:#}").contains("database cluster"), "{refused:#}");

    // Cut off while PostgreSQL spreads its checkpoint, the backup ends with that. The table is a new one: reading one that
    // was copied would set hint bits in it.
    source.sql("CREATE TABLE later AS SELECT generate_series(1, 10000)").await.unwrap();
    let spread =
        Options { fast_checkpoint: false, ..options(&folder.path().join("never"), &[(&space, &moved)]) };
    let (taken, cell) = (local(&source, true), Arc::new(Cell::<Progress>::default()));
    let mut watch = cell.watch();
    let copying = tokio::spawn(async move { copy(&taken, spread, Arc::default(), cell).await });
    let waiting = watch.wait_for(|progress| progress.phase == Phase::WaitingForCheckpoint);
    tokio::time::timeout(SOON, waiting).await.unwrap().unwrap();
    copying.abort();
    assert!(copying.await.unwrap_err().is_cancelled());
    source.sql("CHECKPOINT").await.unwrap();
    source.wait_until(sessions, SOON).await.unwrap();
    assert!(!folder.path().join("never").exists());

    // The same command again goes on with what is there, its tablespace too.
    let options = options(&target, &[(&space, &moved)]);
    let had = progress.get().done_bytes;
    let report = take(&source, options.clone(), true).await.unwrap();
    // What was under way on the three connections comes again, and some blocks of the catalogs that changed since.
    let again = had.saturating_sub(report.equal_bytes);
    assert!(again <= 1 << 20 && report.equal_bytes < report.bytes, "{report:?}, {had} bytes were here");
    give_to_postgres(folder.path());
    verify_backup(&source, &target, &[]).await;

    // And once more it is refused: there is a cluster now.
    let refused = take(&source, options, true).await.unwrap_err();
    assert_eq!(Fault::outcome_of(&refused), Outcome::Refused);
    assert!(refused.to_string().contains("the database cluster"), "{refused:#}");
}

#[tokio::test]
async fn places_that_are_taken_and_the_wrong_server_are_refused() {
    let folder = folder_for_postgres();
    let source = source_in(folder.path()).await;
    let refused = |error: anyhow::Error| {
        assert_eq!(Fault::outcome_of(&error), Outcome::Refused, "{error:#}");
        (error.to_string(), Fault::hint_of(&error).unwrap_or_default().to_owned())
    };
    let target = folder.path().join("copy");
    // Its tablespace would land on the source's own.
    let (_, hint) = refused(take(&source, options(&target, &[]), true).await.unwrap_err());
    assert!(hint.contains("-T"), "{hint}");
    assert!(!target.exists(), "refused means that nothing was changed");
    let nowhere = [(Path::new("/nowhere"), Path::new("/elsewhere"))];
    let error = take(&source, options(&target, &nowhere), true).await.unwrap_err();
    assert_eq!(Fault::outcome_of(&error), Outcome::Usage, "{error:#}");
    // A folder of someone else, the source itself, and a folder in it.
    std::fs::create_dir(&target).unwrap();
    std::fs::write(target.join("notes.txt"), "keep").unwrap();
    let (what, _) = refused(take(&source, options(&target, &[]), true).await.unwrap_err());
    assert!(what.contains("notes.txt"), "{what}");
    let data = source.data_directory();
    for inside in [data.clone(), data.join("copy")] {
        let error = take(&source, options(&inside, &[]), true).await.unwrap_err();
        assert_eq!(Fault::outcome_of(&error), Outcome::Usage, "{error:#}");
    }
    // The data directory of another server than the one that answers.
    let (folder_of_other, options_of_other) = (folder.path().join("other"), ClusterOptions::default());
    let other = Cluster::create(&folder_of_other, source.binaries(), source.account(), &options_of_other);
    let other = other.await.unwrap();
    let local = Local { data_directory: other.data_directory(), ..local(&source, false) };
    let copied = copy(&local, options(&folder.path().join("new"), &[]), Arc::default(), Arc::default()).await;
    let error = copied.unwrap_err();
    assert!(error.to_string().contains("but the server at"), "{error:#}");
    assert!(Fault::hint_of(&error).unwrap().contains("data_directory"));
    assert!(!folder.path().join("new").exists());
}
