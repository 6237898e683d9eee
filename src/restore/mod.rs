//! Link → PGDATA: compare, parallel write, verify, fsync, standby settings.
//!
//! [`take_backup`] is the taker's side of a base backup: one control connection, several that carry files, and the
//! WAL beside them. Only what is not there already is sent, whatever the origin of what is there: an attempt that was cut
//! off, or a standby whose log is gone or whose files were damaged. Everything is verified before it is believed, and
//! nothing half-made can start: what stands there is disarmed before its first byte changes ([`site`]), and
//! `global/pg_control` gets its name as the very last act ([`finish`]).
//!
//! Files are read and written on blocking threads.

mod ask;
mod asked;
pub mod file;
pub mod finish;
mod layout;
mod listing;
pub mod outlook;
mod own;
pub mod progress;
mod prune;
mod site;
mod source;
pub mod standby;
mod stream;
pub mod surplus;
pub mod tablespace;
pub mod target;
pub mod wal;
pub mod wal_stream;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, ensure};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::{JoinSet, spawn_blocking};
use tokio_util::sync::CancellationToken;

use crate::fault::{Fault, WithFault};
use crate::link::Conn;
use crate::link::message::{BackupStart, BackupStarted, BackupStopped, Purpose};
use crate::pg::control::ControlFile;
use crate::pg::label::{BackupLabel, Tablespace};
use crate::pg::manifest::WalRange;
use crate::pg::{Lsn, SegmentSize, TimelineId};
use crate::vitals::Cell;
use ask::Work;
use file::{BadPages, Written};
use finish::Ending;
use listing::Listing;
pub use progress::{Phase, Progress};
pub use site::configuration_in;
use site::{Site, Wanted};
use source::Source;
use standby::StandbySettings;
use stream::{Shared, receive_files};
use tablespace::Mapping;
use target::{Kind, StandbyPlace};
use wal_stream::{Needed, WalStream};
pub use wal_stream::{WalFuture, WalSink, WalSource};

/// From this major version on a manifest names the system.
const FIRST_MAJOR_WITH_SYSTEM_IN_MANIFEST: u32 = 17;

/// What copy to take, and where to.
#[derive(Clone, Debug)]
pub struct Options {
    /// The data directory to make; absolute.
    pub target: PathBuf,
    /// What may stand there.
    pub kind: Kind,
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
    /// Those of them that were here already.
    pub equal_bytes: u64,
    /// Files whose pages had wrong checksums at the source already.
    pub bad_pages: Vec<BadPages>,
}

/// Takes a base backup, and sends for what of it is not there already. `connect` makes connections to the source, as many
/// as it is asked for; `wal` brings the WAL that the copy needs, or the copy is made without. After an error nothing is
/// written any more.
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
    let (target, kind) = (options.target.clone(), options.kind);
    let looked = spawn_blocking(move || {
        target::settle(&target)?;
        target::require_free(&target, kind, None)
    });
    looked.await??;
    progress.update(|progress| {
        let attempts = progress.attempts + 1;
        *progress = Progress { phase: Phase::Connecting, attempts, ..Progress::default() };
    });
    let start = BackupStart {
        label: options.label.clone(),
        fast_checkpoint: options.fast_checkpoint,
        max_rate_bytes_per_second: options.max_rate_bytes_per_second,
        compression: options.compression,
    };
    let mut source = Source::new(connect(Purpose::Backup).await?, Arc::clone(&progress));
    let started = source.begin(start).await?;
    let listing = source.listing(&started).await?;
    let copy = source.meanwhile(Copy::prepare(&options, started, listing)).await??;
    let result = copy.take(&options, connect, wal, &mut source, &progress).await;
    if result.is_ok() {
        progress.update(|progress| progress.phase = Phase::Done);
    }
    match result {
        Err(error) if Fault::hint_of(&error).is_none() => Err(error)
            .hint("What is there cannot start. The same command, run again, goes on with what is there."),
        result => result,
    }
}

/// A copy that has its place.
struct Copy {
    started: BackupStarted,
    segment_size: SegmentSize,
    site: Arc<Site>,
}

impl Copy {
    /// Makes the target ready, with the marker that says that it is not complete; refuses places that are taken.
    async fn prepare(options: &Options, started: BackupStarted, listing: Listing) -> anyhow::Result<Copy> {
        let segment_size = SegmentSize::new(started.segment_size)?;
        let spaces = started.tablespaces.iter();
        let spaces = spaces.map(|space| Tablespace { oid: space.oid, path: PathBuf::from(&space.path) });
        let wanted = Wanted {
            target: options.target.clone(),
            kind: options.kind,
            system_identifier: started.system_identifier,
            tablespaces: spaces.collect(),
            mappings: options.tablespaces.clone(),
            folder_name: format!("PG_{}_{}", started.postgres_major, started.catalog_version),
            standby: options.standby.as_ref().and_then(StandbyPlace::of),
            listing,
        };
        let site = Arc::new(spawn_blocking(move || Site::prepare(wanted)).await??);
        Ok(Copy { started, segment_size, site })
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
        let wanted = self.site.wanted();
        progress.update(|progress| {
            let sizes = wanted.iter().map(|index| self.site.listing.files[*index as usize].bytes);
            (progress.total_bytes, progress.total_files) = (sizes.sum(), wanted.len() as u64);
            progress.phase = Phase::Copying;
        });
        let mut wal = wal.map(|wal| WalStream::begin(wal, self.needed(), &self.site, Arc::clone(progress)));
        let stop = CancellationToken::new();
        let shared = Shared {
            site: Arc::clone(&self.site),
            work: Arc::new(Work::new(wanted)),
            progress: Arc::clone(progress),
            stop: stop.clone(),
        };
        let mut files = std::pin::pin!(self.receive_all(options.connections, connect, shared));
        let written = match source.meanwhile(beside(&mut wal, &mut files)).await {
            Ok(Ok(written)) => written,
            Ok(Err(error)) => {
                stop.cancel();
                return Err(source.reason_behind(error).await);
            }
            Err(error) => {
                // Whatever has arrived is written, so that it need not come again; and then nothing is written any more.
                stop.cancel();
                drop(files.await);
                return Err(error);
            }
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
        let report = self.report(&stopped, progress.get().equal_bytes, written.bad_pages);
        let ending = Ending {
            site: Arc::clone(&self.site),
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

    /// Takes all files, over several connections at once. When one fails the others end too, each with what has arrived
    /// on it; nothing is written any more when this returns.
    async fn receive_all<S, C, F>(
        &self,
        connections: usize,
        connect: C,
        shared: Shared,
    ) -> anyhow::Result<Written>
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
        C: Fn(Purpose) -> F,
        F: Future<Output = anyhow::Result<Conn<S>>>,
    {
        // Dropped early, the set aborts its tasks.
        let mut tasks = JoinSet::new();
        let mut result = Ok(Written::default());
        for _ in 0..connections.max(1) {
            // Cancel-safe: a connection that is being made carries nothing yet.
            let connected = tokio::select! {
                connected = connect(Purpose::Files { backup: self.started.backup }) => connected,
                () = shared.stop.cancelled() => break,
            };
            match connected {
                Ok(conn) => drop(tasks.spawn(receive_files(conn, shared.clone()))),
                Err(error) => {
                    result = Err(error);
                    shared.stop.cancel();
                }
            }
        }
        while let Some(finished) = tasks.join_next().await {
            match (finished.context("receive files").flatten(), &mut result) {
                (Ok(written), Ok(all)) => all.add(written),
                (Err(error), Ok(_)) => {
                    result = Err(error);
                    shared.stop.cancel();
                }
                (_, Err(_)) => {}
            }
        }
        result
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

    fn report(&self, stopped: &BackupStopped, equal_bytes: u64, bad_pages: Vec<BadPages>) -> Report {
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
            equal_bytes,
            bad_pages,
        }
    }
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
