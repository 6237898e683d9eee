//! The control connection of a backup: begin, tell what there is, end, and the control file at last.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::spawn_blocking;
use tracing::info;

use super::file::Reading;
use super::pace::Pace;
use super::plan::{Cluster, Plan};
use super::session::{Announced, Answered, Backups, Session};
use super::taker::Taker;
use crate::fault::{Fault, WithFault};
use crate::link::message::{
    BackupStart, BackupStarted, BackupStopped, ControlFileContent, Listed, Phase, Tablespace, WirePath,
};
use crate::link::{Conn, Heard, LinkError, Message};
use crate::pg::control::{CONTROL_FILE, ControlFile};
use crate::pg::label::BackupLabel;
use crate::pg::sql::Sql;
use crate::pg::{Lsn, TimelineId};

/// Settings that a hot standby must have at least as high as its primary (pg-facts, C.9).
const STANDBY_SETTINGS: [&str; 5] = [
    "max_connections",
    "max_worker_processes",
    "max_wal_senders",
    "max_prepared_transactions",
    "max_locks_per_transaction",
];

/// PostgreSQL writes the control file in one go, so two reads agree soon.
const CONTROL_READS_MAX: u32 = 100;

/// What is backed up, and for whom.
#[derive(Debug)]
pub struct Source {
    /// An SQL connection of this backup's own: when it ends, PostgreSQL ends the backup.
    pub sql: Sql,
    /// The data directory of that server.
    pub data_directory: PathBuf,
    /// Who takes the backup, for reports.
    pub client: String,
}

/// Serves one base backup from its begin to its end, or until the taker goes.
pub async fn serve_control<S>(conn: Conn<S>, source: Source, backups: &Arc<Backups>) -> anyhow::Result<()>
where
    S: AsyncRead + AsyncWrite,
{
    let mut taker = Taker::new(conn);
    match serve(&mut taker, &source, backups).await {
        Err(error) => {
            taker.reject(&error).await;
            Err(error)
        }
        done => done,
    }
}

async fn serve<S>(taker: &mut Taker<S>, source: &Source, backups: &Arc<Backups>) -> anyhow::Result<()>
where
    S: AsyncRead + AsyncWrite,
{
    let start = match taker.hear().await? {
        Message::BackupStart(start) => start,
        other => return Err(LinkError::unexpected("BackupStart", other).into()),
    };
    // Replay begins at this redo position or after it: until the start is known, WAL from here has to stay.
    let before = read_control(&source.data_directory).await?;
    check_same_cluster(source, &before).await?;
    let mut announced = backups.announce(&source.client, before.redo_lsn);
    let begun = begin(taker, source, &start, &mut announced).await?;
    info!(client = %source.client, start_lsn = %begun.start_lsn, "base backup begins");
    copy(taker, source, &begun.session).await?;
    let (answered, label) = stop(taker, source, &begun, &announced).await?;
    info!(client = %source.client, files = answered.files, bytes = answered.bytes, start_lsn = %label.start_lsn, "base backup ends");
    announced.update(|vitals| vitals.phase = "waiting for the taker to have its WAL");
    hold_wal(taker).await
}

/// The server that answers must be the one whose files are read.
async fn check_same_cluster(source: &Source, control: &ControlFile) -> anyhow::Result<()> {
    let facts = source.sql.facts().await?;
    if facts.system_identifier == control.system_identifier {
        return Ok(());
    }
    Err(Fault::refused(
        format!(
            "{} is cluster {}, but the server at {} is cluster {}",
            source.data_directory.display(),
            control.system_identifier,
            source.sql.server(),
            facts.system_identifier
        ),
        "Make data_directory and conninfo in the configuration name the same PostgreSQL.",
    ))
}

/// A backup that PostgreSQL knows of.
struct Begun {
    session: Arc<Session>,
    start_lsn: Lsn,
    timeline: TimelineId,
    system_identifier: u64,
}

async fn begin<S>(
    taker: &mut Taker<S>,
    source: &Source,
    start: &BackupStart,
    announced: &mut Announced,
) -> anyhow::Result<Begun>
where
    S: AsyncRead + AsyncWrite,
{
    announced.update(|vitals| vitals.phase = "waiting for the checkpoint");
    let begin = source.sql.begin_backup(&start.label, start.fast_checkpoint);
    let start_lsn = taker.wait(Phase::Checkpoint, begin).await??;
    announced.update(|vitals| (vitals.start_lsn, vitals.phase) = (start_lsn, "looking for files"));
    let control = read_control(&source.data_directory).await?;
    let major = source.sql.version().major();
    let plan = taker.wait(Phase::Planning, walk(source.data_directory.clone(), major, control)).await??;
    let settings = source.sql.settings(&STANDBY_SETTINGS).await?;
    let started = BackupStarted {
        backup: 0,
        start_lsn,
        timeline: control.timeline,
        system_identifier: control.system_identifier,
        segment_size: control.segment_size.bytes(),
        postgres_major: major,
        catalog_version: control.catalog_version,
        data_checksums: control.has_data_checksums(),
        tablespaces: tablespaces_of(&plan)?,
        total_bytes: plan.bytes(),
        files: plan.files.len() as u64,
        folders: plan.folders.len() as u64,
        standby_settings: settings.into_iter().map(|setting| (setting.name, setting.value)).collect(),
    };
    announced.update(|vitals| (vitals.total_bytes, vitals.phase) = (started.total_bytes, "copying"));
    let reading = Reading {
        data_directory: source.data_directory.clone(),
        start_lsn,
        data_checksums: control.has_data_checksums(),
        compression: start.compression,
    };
    let parts = listing(&plan)?;
    let session = announced.open(reading, Pace::new(start.max_rate_bytes_per_second), plan);
    let started = BackupStarted { backup: session.number(), ..started };
    taker.say(Message::BackupStarted(Box::new(started))).await?;
    for part in parts {
        taker.say(Message::Listing(part)).await?;
    }
    let ControlFile { timeline, system_identifier, .. } = control;
    Ok(Begun { session, start_lsn, timeline, system_identifier })
}

async fn walk(data_directory: PathBuf, major: u32, control: ControlFile) -> anyhow::Result<Plan> {
    let walk = spawn_blocking(move || {
        let catalog_version = control.catalog_version;
        Cluster { data_directory: &data_directory, major, catalog_version }.plan()
    });
    walk.await?.hint("Run walship as the owner of the data directory.")
}

fn tablespaces_of(plan: &Plan) -> anyhow::Result<Vec<Tablespace>> {
    let text = |path: &Path| {
        let path = path.to_str().map(str::to_owned);
        path.context("a tablespace has a path that is not UTF-8, which walship cannot back up")
    };
    plan.tablespaces.iter().map(|space| Ok(Tablespace { oid: space.oid, path: text(&space.path)? })).collect()
}

/// All folders and files in parts that fit a message.
fn listing(plan: &Plan) -> anyhow::Result<Vec<Vec<Listed>>> {
    let folders = plan.folders.iter().map(|path| (path, None));
    let files = plan.files.iter().map(|(path, bytes)| (path, Some(*bytes)));
    let mut parts = vec![Vec::new()];
    let mut room = Listed::PART_BYTES;
    for (path, size) in folders.chain(files) {
        let path = WirePath::new(path).context("send the name of a file")?;
        let listed = Listed { path, size };
        let bytes = listed.bytes_max();
        if bytes > room {
            parts.push(Vec::new());
            room = Listed::PART_BYTES;
        }
        room = room.saturating_sub(bytes);
        parts.last_mut().context("a listing has a part")?.push(listed);
    }
    Ok(parts)
}

/// Lets the file connections work until the taker has everything.
async fn copy<S>(taker: &mut Taker<S>, source: &Source, session: &Session) -> anyhow::Result<()>
where
    S: AsyncRead + AsyncWrite,
{
    let failure = async {
        // Cancel-safe: both only wait.
        tokio::select! {
            () = session.over() => session.failure().unwrap_or_else(|| "it was ended".to_owned()),
            reason = source.sql.ended() => format!("the connection to PostgreSQL ended: {reason}"),
        }
    };
    match taker.listen(Phase::Copying, failure).await? {
        Heard::Message(Message::BackupStop) => Ok(()),
        Heard::Message(other) => Err(LinkError::unexpected("BackupStop", other).into()),
        Heard::Done(reason) => bail!("the backup failed: {reason}"),
    }
}

/// Ends the backup in PostgreSQL and sends what only then is known.
async fn stop<S>(
    taker: &mut Taker<S>,
    source: &Source,
    begun: &Begun,
    announced: &Announced,
) -> anyhow::Result<(Answered, BackupLabel)>
where
    S: AsyncRead + AsyncWrite,
{
    announced.update(|vitals| vitals.phase = "stopping");
    let answered = begun.session.completed().map_err(anyhow::Error::msg).context("end the backup")?;
    // After every other file, and before the stop: on a standby the stop position is the control file's
    // minRecoveryPoint, and a later one would need WAL beyond the stop.
    let control = stable_control(source.data_directory.clone()).await?;
    let end = taker.wait(Phase::Stopping, source.sql.end_backup()).await??;
    let label = BackupLabel::parse(end.backup_label.as_bytes())?;
    if (label.start_lsn, label.timeline) != (begun.start_lsn, begun.timeline) {
        bail!(
            "PostgreSQL ended a backup from {} on timeline {}, and {} on timeline {} was begun",
            label.start_lsn,
            label.timeline,
            begun.start_lsn,
            begun.timeline
        );
    }
    let stopped = BackupStopped {
        stop_lsn: end.stop_lsn,
        timeline: label.timeline,
        backup_label: end.backup_label,
        tablespace_map: end.tablespace_map.unwrap_or_default(),
        system_identifier: begun.system_identifier,
        files: answered.files,
        bytes: answered.bytes,
    };
    taker.say(Message::BackupStopped(Box::new(stopped))).await?;
    taker.say(Message::ControlFile(ControlFileContent(control))).await?;
    Ok((answered, label))
}

/// WAL from the start position on stays until the taker has what it needs of it: it hangs up then.
async fn hold_wal<S>(taker: &mut Taker<S>) -> anyhow::Result<()>
where
    S: AsyncRead + AsyncWrite,
{
    match taker.wait(Phase::WaitingForWal, std::future::pending::<()>()).await {
        Err(error) if !error.is_gone() => Err(error.into()),
        _ => Ok(()),
    }
}

async fn read_control(data_directory: &Path) -> anyhow::Result<ControlFile> {
    let content = stable_control(data_directory.to_owned()).await?;
    Ok(ControlFile::parse(&content)?)
}

/// The control file's content, read until two reads agree and the checksum is right: PostgreSQL may be writing it.
async fn stable_control(data_directory: PathBuf) -> anyhow::Result<Bytes> {
    let read = spawn_blocking(move || {
        let path = data_directory.join(CONTROL_FILE);
        let mut last = None;
        for _ in 0..CONTROL_READS_MAX {
            let content = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
            let is_whole = ControlFile::parse(&content).is_ok();
            if is_whole && last.as_ref() == Some(&content) {
                return Ok(Bytes::from(content));
            }
            last = Some(content);
            std::thread::sleep(Duration::from_millis(1));
        }
        ControlFile::parse(&last.unwrap_or_default())?;
        bail!("{} changes with every look at it", path.display())
    });
    read.await?.hint("Name the data directory of the running PostgreSQL, and run walship as its owner.")
}
