//! A restore from sources that lie, fail or go away: nothing of it may start, and nothing outside may change.

use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncWriteExt, DuplexStream};

use super::target::{MARKER_FILE, PENDING_CONTROL_FILE};
use super::*;
use crate::fault::Outcome;
use crate::link::Message;
use crate::link::frame::Frame;
use crate::link::message::{self, Code, Digest, EntryKind, FileBegin, FileChunk, FileEnd, Reject, WirePath};

const LABEL: &str = "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\n\
    CHECKPOINT LOCATION: 0/2000060\nBACKUP METHOD: streamed\nBACKUP FROM: primary\n\
    START TIME: 2026-11-23 05:47:07 UTC\nLABEL: x\nSTART TIMELINE: 1\n";

/// What the made-up source does.
#[derive(Clone)]
struct Script {
    tablespaces: Vec<message::Tablespace>,
    /// Sent on the first file connection.
    files: Vec<Message>,
    /// Sent raw after them, as bytes that no honest source can make.
    raw: Option<Frame>,
    /// Files and bytes that it claims to have sent.
    claims: (u64, u64),
    label: String,
    control_file: Vec<u8>,
    /// Says this instead of copying.
    reject: Option<Reject>,
    /// WAL that is there.
    wal_bytes: usize,
}

impl Script {
    /// A whole and honest backup of one file.
    fn honest() -> Script {
        Script {
            tablespaces: Vec::new(),
            files: file("PG_VERSION", b"15\n"),
            raw: None,
            claims: (1, 3),
            label: LABEL.to_owned(),
            control_file: control_file(),
            reject: None,
            wal_bytes: 0x200,
        }
    }

    fn started(&self) -> BackupStarted {
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
            tablespaces: self.tablespaces.clone(),
            total_bytes: 3,
            files: 1,
            standby_settings: Default::default(),
        }
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

    async fn control(self, stream: DuplexStream) -> anyhow::Result<()> {
        let mut conn = Conn::new(stream);
        wait_for(&mut conn, "BackupStart").await?;
        conn.write(Message::BackupStarted(Box::new(self.started()))).await?;
        if let Some(reject) = self.reject {
            return Ok(conn.write(Message::Reject(reject)).await?);
        }
        wait_for(&mut conn, "BackupStop").await?;
        conn.write(Message::BackupStopped(Box::new(self.stopped()))).await?;
        for message in file("global/pg_control", &self.control_file) {
            conn.write(message).await?;
        }
        wait_for(&mut conn, "the end").await
    }

    async fn files(self, mut stream: DuplexStream) -> anyhow::Result<()> {
        if let Some(raw) = self.raw {
            stream.write_all(&[raw.head()?, raw.body].concat()).await?;
        }
        let mut conn = Conn::new(stream);
        wait_for(&mut conn, "SendFiles").await?;
        let (path, kind) = (WirePath::new("global")?, EntryKind::Folder);
        let global = FileBegin { path, kind, size: 0, mode: 0o700, modified_unix_seconds: 0 };
        conn.write(Message::FileBegin(global)).await?;
        for message in self.files {
            conn.write(message).await?;
        }
        Ok(conn.write(Message::NoMoreFiles).await?)
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

fn file(path: &str, content: &[u8]) -> Vec<Message> {
    let (size, path) = (content.len() as u64, WirePath::new(path).unwrap());
    let begin = FileBegin { path, kind: EntryKind::File, size, mode: 0o600, modified_unix_seconds: 0 };
    let data = Bytes::copy_from_slice(content);
    let sha256 = Digest(Sha256::digest(content).into());
    let end = FileEnd { size, sha256, modified_unix_seconds: 0, bad_pages: 0, first_bad_page: None };
    vec![
        Message::FileBegin(begin),
        Message::FileChunk(FileChunk { offset: 0, compressed: false, data }),
        Message::FileEnd(end),
    ]
}

fn options(target: &Path) -> Options {
    Options {
        target: target.to_owned(),
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
        let body = serde_json::json!({
            "path": path, "kind": "file", "size": 0, "mode": 384, "modified_unix_seconds": 0
        });
        let raw = Frame { kind: 0x24, body: body.to_string().into(), ..Frame::default() };
        let error = fail(Script { raw: Some(raw), ..Script::honest() }).await;
        assert!(format!("{error:#}").contains("not a path inside a data directory"), "{error:#}");
    }
}

#[tokio::test]
async fn files_that_are_the_takers_own_or_damaged_are_refused() {
    for path in ["global/pg_control", "backup_label", "walship.incomplete", "pg_wal/000000010000000000000002"]
    {
        let error = fail(Script { files: file(path, b"x"), ..Script::honest() }).await;
        assert!(format!("{error:#}").contains("the taker's own"), "{error:#}");
    }
    let mut damaged = file("PG_VERSION", b"15\n");
    damaged[1] = file("PG_VERSION", b"16\n").swap_remove(1);
    let error = fail(Script { files: damaged, ..Script::honest() }).await;
    assert!(format!("{error:#}").contains("arrived damaged"), "{error:#}");
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
    let error = fail(Script { reject: Some(reject), ..Script::honest() }).await;
    assert!(format!("{error:#}").contains("the disk is on fire"), "{error:#}");
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
