//! A restore from sources that lie, fail or go away: nothing of it may start, and nothing outside may change.

use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncWriteExt, DuplexStream};

use super::target::{MARKER_FILE, PENDING_CONTROL_FILE};
use super::*;
use crate::fault::Outcome;
use crate::link::Message;
use crate::link::frame::Frame;
use crate::link::message::{
    self, BLOCK_BYTES, Code, ControlFileContent, Digest, FileBegin, FileChunk, FileEnd, Listed, Reject,
    WantFile, WirePath,
};

const LABEL: &str = "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\n\
    CHECKPOINT LOCATION: 0/2000060\nBACKUP METHOD: streamed\nBACKUP FROM: primary\n\
    START TIME: 2026-11-23 05:47:07 UTC\nLABEL: x\nSTART TIMELINE: 1\n";

/// What the made-up source does.
#[derive(Clone)]
struct Script {
    tablespaces: Vec<message::Tablespace>,
    /// Beside the folders `base` and `global`.
    files: Vec<(&'static str, Vec<u8>)>,
    /// What it says when a file is wanted, instead of what that needs.
    answer: Option<Vec<Message>>,
    /// Sent raw instead of the listing, as bytes that no honest source can make.
    raw: Option<Frame>,
    /// Files and bytes that it claims to have sent.
    claims: (u64, u64),
    label: String,
    control_file: Vec<u8>,
    /// Says this instead of copying.
    reject: Option<Reject>,
    /// Hangs up on every connection when so many files were wanted on one.
    leaves_after: usize,
    /// WAL that is there.
    wal_bytes: usize,
}

/// A whole beginning of a backup.
pub(super) fn started() -> BackupStarted {
    let control = ControlFile::parse(&control_file()).unwrap();
    BackupStarted {
        backup: 1,
        start_lsn: Lsn(0x2000028),
        timeline: TimelineId(1),
        system_identifier: control.system_identifier,
        segment_size: 16 << 20,
        postgres_major: 15,
        catalog_version: control.catalog_version,
        data_checksums: true,
        tablespaces: Vec::new(),
        total_bytes: 3,
        files: 1,
        folders: 2,
        standby_settings: Default::default(),
    }
}

impl Script {
    /// A whole and honest backup of one file.
    fn honest() -> Script {
        Script::of(vec![("PG_VERSION", b"15\n".to_vec())])
    }

    /// The same of these files.
    fn of(files: Vec<(&'static str, Vec<u8>)>) -> Script {
        let bytes = files.iter().map(|(_, content)| content.len() as u64).sum();
        Script {
            tablespaces: Vec::new(),
            claims: (files.len() as u64, bytes),
            files,
            answer: None,
            raw: None,
            label: LABEL.to_owned(),
            control_file: control_file(),
            reject: None,
            leaves_after: usize::MAX,
            wal_bytes: 0x200,
        }
    }

    fn started(&self) -> BackupStarted {
        BackupStarted { tablespaces: self.tablespaces.clone(), files: self.files.len() as u64, ..started() }
    }

    fn listing(&self) -> Message {
        let listed = |path: &str, size| Listed { path: WirePath::new(path).unwrap(), size };
        let folders = ["base", "global"].map(|path| listed(path, None)).into_iter();
        let files = self.files.iter().map(|(path, content)| listed(path, Some(content.len() as u64)));
        Message::Listing(folders.chain(files).collect())
    }

    fn stopped(&self) -> BackupStopped {
        BackupStopped {
            stop_lsn: Lsn(0x2000100),
            timeline: TimelineId(1),
            backup_label: self.label.clone(),
            tablespace_map: String::new(),
            system_identifier: self.started().system_identifier,
            files: self.claims.0,
            bytes: self.claims.1,
        }
    }

    async fn control(self, mut stream: DuplexStream) -> anyhow::Result<()> {
        if let Some(raw) = self.raw {
            // Read by nobody before the other end has what it waits for.
            let started = Message::BackupStarted(Box::new(started())).encode()?;
            let bytes = [started.head()?, started.body, raw.head()?, raw.body].concat();
            stream.write_all(&bytes).await?;
            return wait_for(&mut Conn::new(stream), "the end").await;
        }
        let mut conn = Conn::new(stream);
        wait_for(&mut conn, "BackupStart").await?;
        conn.write(Message::BackupStarted(Box::new(self.started()))).await?;
        conn.write(self.listing()).await?;
        if let Some(reject) = self.reject {
            return Ok(conn.write(Message::Reject(reject)).await?);
        }
        wait_for(&mut conn, "BackupStop").await?;
        conn.write(Message::BackupStopped(Box::new(self.stopped()))).await?;
        conn.write(Message::ControlFile(ControlFileContent(self.control_file.into()))).await?;
        wait_for(&mut conn, "the end").await
    }

    async fn files(self, stream: DuplexStream) -> anyhow::Result<()> {
        let mut conn = Conn::new(stream);
        for _ in 0..self.leaves_after {
            let want = loop {
                match conn.read().await? {
                    Message::WantFile(want) => break Some(want),
                    Message::NoMoreFiles => break None,
                    _ => {}
                }
            };
            let Some(want) = want else { return Ok(conn.write(Message::NoMoreFiles).await?) };
            let messages = match &self.answer {
                Some(messages) => messages.clone(),
                None => answer(&want, &self.files[want.index as usize].1),
            };
            for message in messages {
                conn.write(message).await?;
            }
        }
        Ok(())
    }
}

async fn wait_for(conn: &mut Conn<DuplexStream>, name: &str) -> anyhow::Result<()> {
    while conn.read().await?.name() != name {}
    Ok(())
}

fn control_file() -> Vec<u8> {
    let mut content =
        fs::read(format!("{}/fixtures/control/15/pg_control", env!("CARGO_MANIFEST_DIR"))).unwrap();
    content.resize(8192, 0);
    content
}

/// What an honest source says of a file that is smaller than the digests of one message.
fn answer(want: &WantFile, content: &[u8]) -> Vec<Message> {
    let (size, index) = (content.len() as u64, want.index);
    let mut messages = vec![Message::FileBegin(FileBegin { index, size })];
    let theirs: Vec<&[u8]> = want.digests.chunks(Digest::BYTES).collect();
    for (number, block) in content.chunks(BLOCK_BYTES).enumerate() {
        if theirs.get(number).is_none_or(|theirs| **theirs != Digest::of(block).0) {
            let (offset, data) = ((number * BLOCK_BYTES) as u64, Bytes::copy_from_slice(block));
            messages.push(Message::FileChunk(FileChunk { offset, compressed: false, data }));
        }
    }
    let sha256 = Digest::of(content);
    let end = FileEnd { size, sha256, modified_unix_seconds: 0, bad_pages: 0, first_bad_page: None };
    messages.push(Message::FileEnd(end));
    messages
}

fn options(target: &Path) -> Options {
    Options {
        target: target.to_owned(),
        kind: Kind::Copy,
        label: "x".to_owned(),
        fast_checkpoint: true,
        max_rate_bytes_per_second: None,
        compression: None,
        connections: 1,
        tablespaces: Vec::new(),
        standby: None,
    }
}

/// Takes a backup from a source with a script.
async fn take(script: Script, options: Options) -> anyhow::Result<Report> {
    let wal_bytes = script.wal_bytes;
    let wal: WalSource = Box::new(move |sink| {
        Box::pin(async move {
            sink.write(sink.start_lsn, vec![7; wal_bytes].into()).await?;
            std::future::pending().await
        })
    });
    take_with_wal(script, options, wal).await
}

async fn take_with_wal(script: Script, options: Options, wal: WalSource) -> anyhow::Result<Report> {
    let tasks = Mutex::new(JoinSet::new());
    let connect = |purpose| {
        let (here, there) = tokio::io::duplex(1 << 16);
        let script = script.clone();
        // What becomes of the source shows at the taker.
        match purpose {
            Purpose::Backup => tasks.lock().unwrap().spawn(async { drop(script.control(there).await) }),
            _ => tasks.lock().unwrap().spawn(async { drop(script.files(there).await) }),
        };
        std::future::ready(Ok(Conn::new(here)))
    };
    let taking = take_backup(options, connect, Some(wal), Arc::default());
    tokio::time::timeout(Duration::from_secs(20), taking).await.expect("an end within 20 s")
}

/// Takes a backup that has to fail, and looks at what is left.
async fn fail(script: Script) -> anyhow::Error {
    let root = tempfile::tempdir().unwrap();
    let target = root.path().join("data");
    let error = take(script, options(&target)).await.unwrap_err();
    assert!(target.join(MARKER_FILE).exists(), "{error:#}");
    let startable = ["global/pg_control", PENDING_CONTROL_FILE].iter().any(|name| target.join(name).exists());
    assert!(!startable, "{error:#}");
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1, "nothing beside the target");
    assert!(Fault::hint_of(&error).is_some(), "{error:#}");
    // The same command with a source that works makes good.
    take(Script::honest(), options(&target)).await.unwrap();
    assert!(target.join("global/pg_control").exists() && !target.join(MARKER_FILE).exists());
    error
}

#[tokio::test]
async fn an_honest_source_makes_a_data_directory() {
    let root = tempfile::tempdir().unwrap();
    let target = root.path().join("data");
    let report = take(Script::honest(), options(&target)).await.unwrap();
    assert_eq!((report.files, report.bytes, report.stop_lsn), (1, 3, Lsn(0x2000100)));
    assert_eq!(fs::read(target.join("backup_label")).unwrap(), LABEL.as_bytes());
    assert_eq!(fs::read(target.join("global/pg_control")).unwrap(), control_file());
    let wal = fs::read(target.join("pg_wal/000000010000000000000002")).unwrap();
    assert_eq!((wal.len(), wal[0x1ff], wal[0x200]), (16 << 20, 7, 0));
}

#[tokio::test]
async fn a_path_that_leaves_the_target_is_refused() {
    for path in ["../evil", "/tmp/evil", "base/../../evil", "base//evil"] {
        let body = serde_json::json!([{ "path": path, "size": 0 }]);
        let raw = Frame { kind: 0x23, body: body.to_string().into(), ..Frame::default() };
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("data");
        let error = take(Script { raw: Some(raw), ..Script::honest() }, options(&target)).await.unwrap_err();
        assert!(format!("{error:#}").contains("not a path inside a data directory"), "{error:#}");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0, "nothing was made");
    }
}

#[tokio::test]
async fn files_that_are_the_takers_own_or_damaged_are_refused() {
    for path in ["global/pg_control", "backup_label", "walship.incomplete", "pg_wal/000000010000000000000002"]
    {
        let root = tempfile::tempdir().unwrap();
        let error = take(Script::of(vec![(path, b"x".to_vec())]), options(&root.path().join("data"))).await;
        let error = error.unwrap_err();
        assert!(format!("{error:#}").contains("the taker's own"), "{error:#}");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0, "nothing was made");
    }
    let nothing = WantFile { index: 0, continues: false, digests: Bytes::new() };
    let mut damaged = answer(&nothing, b"15\n");
    damaged[1] = answer(&nothing, b"16\n").swap_remove(1);
    let error = fail(Script { answer: Some(damaged), ..Script::honest() }).await;
    assert!(format!("{error:#}").contains("arrived damaged"), "{error:#}");
    // A part that was left out although nothing is here.
    let mut holed = answer(&nothing, b"15\n");
    holed.remove(1);
    let error = fail(Script { answer: Some(holed), ..Script::honest() }).await;
    assert!(format!("{error:#}").contains("arrived damaged"), "{error:#}");
}

/// Three files: one of many blocks, one of one, one that is empty.
fn three_files() -> Vec<(&'static str, Vec<u8>)> {
    let large = (0..5 * BLOCK_BYTES + 100).map(|n| (n / 1000) as u8).collect();
    vec![("base/large", large), ("PG_VERSION", b"15\n".to_vec()), ("base/empty", Vec::new())]
}

fn read(target: &Path, files: &[(&'static str, Vec<u8>)]) {
    for (path, content) in files {
        assert!(fs::read(target.join(path)).unwrap() == *content, "{path}");
    }
}

#[tokio::test]
async fn a_copy_that_was_cut_off_goes_on_with_what_is_there() {
    let root = tempfile::tempdir().unwrap();
    let target = root.path().join("data");
    let cut_off = Script { leaves_after: 1, ..Script::of(three_files()) };
    let error = take(cut_off.clone(), options(&target)).await.unwrap_err();
    assert!(Fault::hint_of(&error).unwrap().contains("goes on"), "{error:#}");
    assert!(target.join(MARKER_FILE).exists() && target.join("base/large").exists());
    // What an earlier attempt left, and the source does not have, goes; so does what is in the way.
    fs::write(target.join("base/gone"), "x").unwrap();
    fs::create_dir_all(target.join("PG_VERSION/in/the/way")).unwrap();
    fs::write(target.join("pg_wal/000000010000000000000001"), "old").unwrap();
    fs::write(target.join(PENDING_CONTROL_FILE), control_file()).unwrap();
    // A byte that is wrong costs its block.
    let mut large = three_files().remove(0).1;
    large[BLOCK_BYTES + 5] ^= 1;
    fs::write(target.join("base/large"), &large).unwrap();
    let report = take(Script::of(three_files()), options(&target)).await.unwrap();
    assert_eq!((report.files, report.bytes), (3, large.len() as u64 + 3));
    assert_eq!(report.equal_bytes, (large.len() - BLOCK_BYTES) as u64);
    read(&target, &three_files());
    let left = ["base/gone", MARKER_FILE, PENDING_CONTROL_FILE, "pg_wal/000000010000000000000001"];
    assert!(left.iter().all(|path| !target.join(path).exists()));
}

#[tokio::test]
async fn one_copy_at_a_time_writes_into_a_folder() {
    let root = tempfile::tempdir().unwrap();
    let target = root.path().join("data");
    fs::create_dir(&target).unwrap();
    let held = fs::File::open(&target).unwrap();
    held.lock().unwrap();
    let waiting = take(Script::honest(), options(&target));
    let error = waiting.await.unwrap_err();
    assert!(error.to_string().contains("another walship is copying into"), "{error:#}");
    assert_eq!(fs::read_dir(&target).unwrap().count(), 0);
    drop(held);
    take(Script::honest(), options(&target)).await.unwrap();
}

/// A standby of the cluster that the scripts are of, with this and that in it.
fn standby_in(target: &Path) {
    take_standby_files(target, &three_files());
    for (path, content) in [
        ("global/pg_control", &control_file()[..]),
        ("postgresql.conf", b"port = 5433"),
        ("server.key", b"own"),
        ("log/today.log", b"own"),
        ("base/stray", b"x"),
        ("standby.signal", b""),
        ("backup_label.old", b"x"),
        ("pg_wal/000000010000000000000001", b"old"),
        ("pg_replslot/x/state", b"x"),
    ] {
        fs::create_dir_all(target.join(path).parent().unwrap()).unwrap();
        fs::write(target.join(path), content).unwrap();
    }
}

fn take_standby_files(target: &Path, files: &[(&'static str, Vec<u8>)]) {
    for (path, content) in files {
        fs::create_dir_all(target.join(path).parent().unwrap()).unwrap();
        fs::write(target.join(path), content).unwrap();
    }
}

#[tokio::test]
async fn a_standby_is_made_whole_of_what_is_there_and_keeps_what_is_its_own() {
    let root = tempfile::tempdir().unwrap();
    let target = root.path().join("data");
    standby_in(&target);
    let mut files = three_files();
    files.push(("postgresql.conf", b"port = 5432".to_vec()));
    files.push(("log/theirs.log", b"theirs".to_vec()));
    let mut damaged = files[0].1.clone();
    damaged.truncate(2 * BLOCK_BYTES);
    damaged[3] ^= 1;
    fs::write(target.join("base/large"), damaged).unwrap();
    let mut script = Script::of(files);
    script.claims = (3, files_bytes(&three_files()));
    // Nobody takes a cluster for the remains of a copy.
    assert!(take(script.clone(), options(&target)).await.is_err());
    read(&target, &three_files()[1..]);
    let report = take(script, Options { kind: Kind::Reseed, ..options(&target) }).await.unwrap();
    assert_eq!(report.equal_bytes, BLOCK_BYTES as u64 + 3);
    read(&target, &three_files());
    assert_eq!(fs::read(target.join("postgresql.conf")).unwrap(), b"port = 5433");
    assert!(target.join("server.key").exists() && target.join("log/today.log").exists());
    let gone = ["log/theirs.log", "base/stray", "standby.signal", "backup_label.old", "pg_replslot/x"];
    assert!(gone.iter().all(|path| !target.join(path).exists()));
    let wal: Vec<_> = fs::read_dir(target.join("pg_wal")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(wal.len(), 2, "a segment and archive_status: {wal:?}");
    let manifest = fs::read_to_string(target.join("backup_manifest")).unwrap();
    assert!(manifest.contains("postgresql.conf") && manifest.contains("server.key"));
}

fn files_bytes(files: &[(&'static str, Vec<u8>)]) -> u64 {
    files.iter().map(|(_, content)| content.len() as u64).sum()
}

#[tokio::test]
async fn an_end_that_does_not_fit_is_refused() {
    let error = fail(Script { claims: (2, 3), ..Script::honest() }).await;
    assert!(error.to_string().contains("1 files with 3 bytes arrived"), "{error:#}");
    let other_backup = LABEL.replace("0/2000028", "0/3000028");
    fail(Script { label: other_backup, ..Script::honest() }).await;
    fail(Script { label: String::new(), ..Script::honest() }).await;
    let other_cluster = fs::read(format!("{}/fixtures/control/16/pg_control", env!("CARGO_MANIFEST_DIR")));
    let mut other_cluster = other_cluster.unwrap();
    other_cluster.resize(8192, 0);
    fail(Script { control_file: other_cluster, ..Script::honest() }).await;
    fail(Script { control_file: control_file()[..512].to_vec(), ..Script::honest() }).await;
    let mut torn = control_file();
    torn[100] ^= 1;
    fail(Script { control_file: torn, ..Script::honest() }).await;
}

#[tokio::test]
async fn the_sources_own_reason_is_told_and_its_advice() {
    let reject = Reject {
        code: Code::Failed,
        message: "the disk is on fire".to_owned(),
        hint: "Put it out.".to_owned(),
    };
    let root = tempfile::tempdir().unwrap();
    let target = root.path().join("data");
    let error =
        take(Script { reject: Some(reject), ..Script::honest() }, options(&target)).await.unwrap_err();
    assert!(format!("{error:#}").contains("the disk is on fire"), "{error:#}");
    assert!(!target.join("global/pg_control").exists());
    assert_eq!(Fault::hint_of(&error), Some("Put it out."));
}

#[tokio::test]
async fn a_tablespace_of_the_source_never_touches_what_is_here() {
    let root = tempfile::tempdir().unwrap();
    let taken = root.path().join("taken");
    fs::create_dir(&taken).unwrap();
    fs::write(taken.join("file"), "keep").unwrap();
    let space = |path: &Path| message::Tablespace { oid: 16500, path: path.to_str().unwrap().to_owned() };
    let script = Script { tablespaces: vec![space(&taken)], ..Script::honest() };
    let error = take(script, options(&root.path().join("data"))).await.unwrap_err();
    assert_eq!(Fault::outcome_of(&error), Outcome::Refused, "{error:#}");
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1, "nothing was made");

    let relative = Script { tablespaces: vec![space(Path::new("etc"))], ..Script::honest() };
    let error = take(relative, options(&root.path().join("data"))).await.unwrap_err();
    assert!(error.to_string().contains("not absolute"), "{error:#}");
}

#[tokio::test]
async fn a_wal_writer_that_fails_says_why() {
    let root = tempfile::tempdir().unwrap();
    let target = root.path().join("data");
    let broken: WalSource = Box::new(|sink| {
        Box::pin(async move {
            sink.write(sink.start_lsn + 1, Bytes::from_static(b"x")).await?;
            std::future::pending().await
        })
    });
    let error = take_with_wal(Script::honest(), options(&target), broken).await.unwrap_err();
    assert!(format!("{error:#}").contains("the WAL has a gap"), "{error:#}");
}
