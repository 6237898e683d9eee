//! A base backup within one host and one process: from a running PostgreSQL's data directory, without a sidecar.
//!
//! The same two stages as between hosts, over pipes instead of TLS. The WAL comes from PostgreSQL itself, which a
//! temporary slot keeps from letting go of it.

use std::path::{Path, PathBuf};
use std::process;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use tokio::io::DuplexStream;
use tokio::task::JoinSet;
use tokio::time::interval;
use tracing::debug;

use crate::backup::{Backups, Source, serve_control, serve_files};
use crate::clock::WallTime;
use crate::fault::Fault;
use crate::link::Conn;
use crate::link::message::Purpose;
use crate::pg::message::copy::{FromClient, Status};
use crate::pg::replication::{Event, Incoming, Outgoing, Replication, Started};
use crate::pg::sql::Sql;
use crate::pg::{Conninfo, Lsn, TimelineId};
use crate::restore::{Options, Progress, Report, WalSink, WalSource, take_backup};
use crate::vitals::{Cell, Vitals};

/// Name of the temporary slot, before the process number.
const SLOT_PREFIX: &str = "walship_copy_";

/// What the replication connection calls itself. It never counts as a synchronous standby: it reports no flush.
const APPLICATION_NAME: &str = "walship basebackup";

/// How much one end of a pipe may write ahead of the other.
const PIPE_BYTES: usize = 256 << 10;

/// How often PostgreSQL hears of us, well below any sensible `wal_sender_timeout`.
const STATUS_EVERY: Duration = Duration::from_secs(5);

/// A PostgreSQL on this host.
#[derive(Clone, Debug)]
pub struct Local {
    /// How to reach it.
    pub conninfo: Conninfo,
    /// Its data directory.
    pub data_directory: PathBuf,
    /// Whether the copy is to have the WAL that it needs.
    pub with_wal: bool,
}

/// Copies a running PostgreSQL of this host.
pub async fn copy(
    local: &Local,
    options: Options,
    vitals: Arc<Vitals>,
    progress: Arc<Cell<Progress>>,
) -> anyhow::Result<Report> {
    let sql = Sql::connect(&local.conninfo).await?;
    let data_directory = tokio::fs::canonicalize(&local.data_directory).await;
    let data_directory =
        data_directory.with_context(|| format!("find {}", local.data_directory.display()))?;
    if resolved(&options.target).await.starts_with(&data_directory) {
        return Err(Fault::usage(
            format!("{} is inside the data directory that is to be copied", options.target.display()),
            "Name another folder with -D.",
        ));
    }
    if local.with_wal {
        sql.hold_wal(&format!("{SLOT_PREFIX}{}", process::id())).await?;
    }
    let source = Source { sql, data_directory, client: "walship basebackup on this host".to_owned() };
    let server = Server {
        backups: Backups::new(vitals),
        source: Mutex::new(Some(source)),
        tasks: Mutex::new(JoinSet::new()),
    };
    let connect = |purpose| std::future::ready(server.connect(purpose));
    let wal = local.with_wal.then(|| wal_source(local.conninfo.clone()));
    take_backup(options, connect, wal, progress).await
}

/// A path with the links in that part of it resolved that exists.
async fn resolved(path: &Path) -> PathBuf {
    for above in path.ancestors() {
        if let (Ok(real), Ok(below)) = (tokio::fs::canonicalize(above).await, path.strip_prefix(above)) {
            return real.join(below);
        }
    }
    path.to_owned()
}

/// The serving end of the pipes.
struct Server {
    backups: Arc<Backups>,
    source: Mutex<Option<Source>>,
    /// Ends with the server, and with it the backup.
    tasks: Mutex<JoinSet<()>>,
}

impl Server {
    fn connect(&self, purpose: Purpose) -> anyhow::Result<Conn<DuplexStream>> {
        let (here, there) = tokio::io::duplex(PIPE_BYTES);
        let there = Conn::new(there);
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        match purpose {
            Purpose::Backup => {
                let source = self.source.lock().unwrap_or_else(PoisonError::into_inner).take();
                let source = source.context("begin one backup only")?;
                let backups = Arc::clone(&self.backups);
                tasks.spawn(async move { tell(serve_control(there, source, &backups).await) });
            }
            Purpose::Files { backup } => {
                let session = self.backups.find(backup).context("find the backup")?;
                tasks.spawn(async move { tell(serve_files(there, session).await) });
            }
            other => bail!("a copy within one host has no use for {other:?}"),
        }
        Ok(Conn::new(here))
    }
}

/// The taking end hears of it too, and fails.
fn tell(result: anyhow::Result<()>) {
    if let Err(error) = result {
        debug!("the serving end of the copy: {error:#}");
    }
}

/// Brings the WAL from the server itself.
fn wal_source(conninfo: Conninfo) -> WalSource {
    Box::new(move |sink| Box::pin(async move { bring_wal(&conninfo, &sink).await }))
}

async fn bring_wal(conninfo: &Conninfo, sink: &WalSink) -> anyhow::Result<()> {
    let mut connection = Replication::connect(conninfo, APPLICATION_NAME).await?;
    let identity = connection.identify_system().await?;
    ensure!(
        identity.system_identifier == sink.system_identifier,
        "the replication connection leads to cluster {}, not {}",
        identity.system_identifier,
        sink.system_identifier
    );
    if sink.timeline > TimelineId::FIRST {
        let history = connection.timeline_history(sink.timeline).await?;
        sink.write_history(sink.timeline, history).await?;
    }
    match connection.start(sink.timeline, sink.start_lsn).await? {
        Started::Streaming(incoming, outgoing) => stream_wal(incoming, outgoing, sink).await,
        Started::AtEndOfTimeline { next, lsn, .. } => {
            bail!("timeline {next} began at {lsn}: take the copy anew")
        }
    }
}

async fn stream_wal(mut incoming: Incoming, mut outgoing: Outgoing, sink: &WalSink) -> anyhow::Result<()> {
    let mut written_lsn = sink.start_lsn;
    let mut ticker = interval(STATUS_EVERY);
    loop {
        // Cancel-safe: an event stays in the reader's buffer until it is whole, a tick comes again.
        let tells = tokio::select! {
            event = incoming.next() => match event? {
                Event::Wal(wal) => {
                    written_lsn = wal.start_lsn + wal.data.len() as u64;
                    sink.write(wal.start_lsn, wal.data).await?;
                    false
                }
                Event::Keepalive(keepalive) => keepalive.reply_requested,
                Event::EndOfTimeline => bail!("the server changed its timeline: take the copy anew"),
                Event::ServerClosed => bail!("PostgreSQL is shutting down"),
            },
            _ = ticker.tick() => true,
        };
        if tells && !outgoing.is_pending() {
            outgoing.queue(&FromClient::Status(status(written_lsn)));
            outgoing.flush().await?;
        }
    }
}

/// Written only: a flush position would make a synchronous standby of us.
fn status(written_lsn: Lsn) -> Status {
    Status {
        written_lsn,
        flushed_lsn: Lsn::INVALID,
        replayed_lsn: Lsn::INVALID,
        sent_micros: WallTime::now().postgres_micros(),
        reply_requested: false,
    }
}
