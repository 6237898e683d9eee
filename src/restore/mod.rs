//! Link → PGDATA: parallel write, verify, fsync, standby settings.
//!
//! [`take_backup`] is the taker's side of a base backup: one control connection, several that carry files, and the
//! WAL beside them. Everything that arrives is verified before it is believed, and nothing half-made can start:
//! `global/pg_control` gets its name as the very last act ([`finish`]).
//!
//! Files are written on blocking threads.

pub mod file;
pub mod finish;
pub mod progress;
mod source;
pub mod standby;
mod stream;
pub mod tablespace;
pub mod target;
pub mod wal;
pub mod wal_stream;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, ensure};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::{JoinSet, spawn_blocking};
use tracing::info;

use crate::fault::{Fault, WithFault};
use crate::link::Conn;
use crate::link::message::{BackupStart, BackupStarted, BackupStopped, Purpose};
use crate::pg::control::ControlFile;
use crate::pg::label::{BackupLabel, Tablespace};
use crate::pg::manifest::WalRange;
use crate::pg::{Lsn, SegmentSize, TimelineId};
use crate::vitals::Cell;
use file::{BadPages, Layout, Written};
use finish::Ending;
pub use progress::{Phase, Progress};
use source::Source;
use standby::StandbySettings;
use stream::receive_files;
use tablespace::Mapping;
use target::{Marker, Standing};
use wal_stream::{Needed, WalStream};
pub use wal_stream::{WalFuture, WalSink, WalSource};

/// From this major version on a manifest names the system.
const FIRST_MAJOR_WITH_SYSTEM_IN_MANIFEST: u32 = 17;

/// What copy to take, and where to.
#[derive(Clone, Debug)]
pub struct Options {
    /// The data directory to make; absolute.
    pub target: PathBuf,
    /// The label of the backup.
    pub label: String,
    /// Do not let the source spread its checkpoint.
    pub fast_checkpoint: bool,
    /// For all connections together.
    pub max_rate_bytes_per_second: Option<u64>,
    /// The level of zstd on the wire; `None` for none.
    pub compression: Option<i32>,
    /// How many connections carry files; at least one.
    pub connections: usize,
    /// Tablespaces that go elsewhere than at the source.
    pub tablespaces: Vec<Mapping>,
    /// Makes the copy a standby.
    pub standby: Option<StandbySettings>,
}

/// What was copied.
#[derive(Clone, Debug)]
pub struct Report {
    /// The cluster.
    pub system_identifier: u64,
    /// Such as 15.
    pub postgres_major: u32,
    /// Size of its WAL segments.
    pub segment_size: SegmentSize,
    /// The timeline of the backup.
    pub timeline: TimelineId,
    /// WAL from here is needed to start the copy …
    pub start_lsn: Lsn,
    /// … up to here.
    pub stop_lsn: Lsn,
    /// How many files were copied.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Files whose pages had wrong checksums at the source already.
    pub bad_pages: Vec<BadPages>,
}

/// Takes a base backup into an empty place. `connect` makes connections to the source, as many as it is asked for;
/// `wal` brings the WAL that the copy needs, or the copy is made without.
pub async fn take_backup<S, C, F>(
    options: Options,
    connect: C,
    wal: Option<WalSource>,
    progress: Arc<Cell<Progress>>,
) -> anyhow::Result<Report>
where
    S: AsyncRead + AsyncWrite + Send + 'static,
    C: Fn(Purpose) -> F,
    F: Future<Output = anyhow::Result<Conn<S>>>,
{
    let target = options.target.clone();
    let standing = spawn_blocking(move || target::require_free(&target, None)).await??;
    let start = BackupStart {
        label: options.label.clone(),
        fast_checkpoint: options.fast_checkpoint,
        max_rate_bytes_per_second: options.max_rate_bytes_per_second,
        compression: options.compression,
    };
    let mut source = Source::new(connect(Purpose::Backup).await?, Arc::clone(&progress));
    let started = source.begin(start).await?;
    progress.update(|progress| {
        (progress.total_bytes, progress.total_files) = (started.total_bytes, started.files);
        progress.phase = Phase::Copying;
    });
    let copy = Copy::prepare(&options, started, standing).await?;
    let result = copy.take(&options, connect, wal, &mut source, &progress).await;
    if result.is_ok() {
        progress.update(|progress| progress.phase = Phase::Done);
    }
    match result {
        Err(error) if Fault::hint_of(&error).is_none() => Err(error)
            .hint("What is there cannot start. The same command, run again, clears it away and starts over."),
        result => result,
    }
}

/// A copy that has its place.
struct Copy {
    started: BackupStarted,
    segment_size: SegmentSize,
    layout: Layout,
}

impl Copy {
    /// Makes the target, with the marker that says that it is not complete; refuses places that are taken.
    async fn prepare(options: &Options, started: BackupStarted, standing: Standing) -> anyhow::Result<Copy> {
        let segment_size = SegmentSize::new(started.segment_size)?;
        let spaces = started.tablespaces.iter();
        let spaces: Vec<Tablespace> =
            spaces.map(|space| Tablespace { oid: space.oid, path: PathBuf::from(&space.path) }).collect();
        let folder_name = format!("PG_{}_{}", started.postgres_major, started.catalog_version);
        let placements = tablespace::place(&spaces, &options.tablespaces, &folder_name)?;
        let layout = Layout { target: options.target.clone(), placements };
        let (places, system_identifier) = (layout.clone(), started.system_identifier);
        spawn_blocking(move || make_places(&places, &standing, system_identifier)).await??;
        Ok(Copy { started, segment_size, layout })
    }

    async fn take<S, C, F>(
        &self,
        options: &Options,
        connect: C,
        wal: Option<WalSource>,
        source: &mut Source<S>,
        progress: &Arc<Cell<Progress>>,
    ) -> anyhow::Result<Report>
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
        C: Fn(Purpose) -> F,
        F: Future<Output = anyhow::Result<Conn<S>>>,
    {
        let mut wal =
            wal.map(|wal| WalStream::begin(wal, self.needed(), &options.target, Arc::clone(progress)));
        let files = self.receive_all(options.connections, connect, progress);
        let written = match source.meanwhile(beside(&mut wal, files)).await? {
            Ok(written) => written,
            Err(error) => return Err(source.reason_behind(error).await),
        };
        let (stopped, control_file) = beside(&mut wal, source.end()).await?;
        self.check(&stopped, &control_file, &written)?;
        if let Some(wal) = wal {
            progress.update(|progress| progress.phase = Phase::WaitingForWal);
            source.meanwhile(wal.finish(stopped.stop_lsn)).await??;
        }
        // From here on the source may let go of the WAL.
        source.close().await?;
        progress.update(|progress| progress.phase = Phase::Finishing);
        let report = self.report(&stopped, written.bad_pages);
        let ending = Ending {
            layout: self.layout.clone(),
            files: written.files,
            wal_range: WalRange {
                timeline: stopped.timeline,
                start_lsn: self.started.start_lsn,
                end_lsn: stopped.stop_lsn,
            },
            backup_label: stopped.backup_label,
            tablespace_map: stopped.tablespace_map,
            control_file,
            manifest_system_identifier: (self.started.postgres_major >= FIRST_MAJOR_WITH_SYSTEM_IN_MANIFEST)
                .then_some(self.started.system_identifier),
            standby: options.standby.clone(),
            primary_settings: self.started.standby_settings.clone(),
        };
        spawn_blocking(move || ending.write()).await??;
        Ok(report)
    }

    fn needed(&self) -> Needed {
        let BackupStarted { timeline, start_lsn, system_identifier, .. } = self.started;
        Needed { timeline, start_lsn, segment_size: self.segment_size, system_identifier }
    }

    /// Takes all files, over several connections at once.
    async fn receive_all<S, C, F>(
        &self,
        connections: usize,
        connect: C,
        progress: &Arc<Cell<Progress>>,
    ) -> anyhow::Result<Written>
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
        C: Fn(Purpose) -> F,
        F: Future<Output = anyhow::Result<Conn<S>>>,
    {
        // Dropped early, the set aborts its tasks.
        let mut tasks = JoinSet::new();
        for _ in 0..connections.max(1) {
            let conn = connect(Purpose::Files { backup: self.started.backup }).await?;
            tasks.spawn(receive_files(conn, self.layout.clone(), Arc::clone(progress)));
        }
        let mut written = Written::default();
        while let Some(finished) = tasks.join_next().await {
            written.add(finished.context("receive files")??);
        }
        Ok(written)
    }

    /// What arrived has to be what the source sent, and to belong together.
    fn check(&self, stopped: &BackupStopped, control_file: &[u8], written: &Written) -> anyhow::Result<()> {
        let bytes: u64 = written.files.iter().map(|file| file.size).sum();
        ensure!(
            (written.files.len() as u64, bytes) == (stopped.files, stopped.bytes),
            "{} files with {bytes} bytes arrived, and the source sent {} with {}",
            written.files.len(),
            stopped.files,
            stopped.bytes
        );
        let started = &self.started;
        let control = ControlFile::parse(control_file)?;
        let label = BackupLabel::parse(stopped.backup_label.as_bytes())?;
        let fits = control.system_identifier == started.system_identifier
            && stopped.system_identifier == started.system_identifier
            && control.segment_size == self.segment_size
            && (label.start_lsn, label.timeline) == (started.start_lsn, started.timeline)
            && stopped.timeline == started.timeline
            && stopped.stop_lsn >= started.start_lsn;
        ensure!(fits, "the end of the backup does not fit its beginning: {started:?}, {stopped:?}");
        Ok(())
    }

    fn report(&self, stopped: &BackupStopped, bad_pages: Vec<BadPages>) -> Report {
        let BackupStarted { system_identifier, postgres_major, start_lsn, .. } = self.started;
        Report {
            system_identifier,
            postgres_major,
            segment_size: self.segment_size,
            timeline: stopped.timeline,
            start_lsn,
            stop_lsn: stopped.stop_lsn,
            files: stopped.files,
            bytes: stopped.bytes,
            bad_pages,
        }
    }
}

/// Makes the folders of a copy and the marker in them. Blocks.
fn make_places(layout: &Layout, standing: &Standing, system_identifier: u64) -> anyhow::Result<()> {
    if let Standing::Incomplete(marker) = standing {
        info!(target = %layout.target.display(), "clearing away a copy that was cut off");
        target::clear_away(&layout.target, marker)?;
    }
    tablespace::require_empty(&layout.placements)?;
    target::make_private(&layout.target)?;
    let folders = layout.placements.iter().map(|placement| placement.folder.clone()).collect();
    Marker::new(system_identifier, folders).write(&layout.target)?;
    Ok(tablespace::create(&layout.target, &layout.placements)?)
}

/// Does `work` while WAL arrives, where any is wanted.
async fn beside<T>(
    wal: &mut Option<WalStream>,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    match wal {
        Some(wal) => wal.during(work).await?,
        None => work.await,
    }
}

#[cfg(test)]
mod tests;
