//! Seeding: from whatever is in the data directory to a standby's.
//!
//! The store follows the primary from the start of the base backup on, while the files are compared and copied; the WAL
//! that the copy needs comes from the store, so it crosses the link once.

use std::sync::Arc;

use anyhow::Context;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::attempts::{PrimaryChanged, until_copied};
use super::node::Node;
use super::{ask, follow, join, upstreams};
use crate::config::Config;
use crate::fault::Fault;
use crate::feed;
use crate::link::message::{Code, Purpose, Role};
use crate::link::{Conn, LinkError, Socket};
use crate::pg::{CONFIGURATION_FILE, TimelineId};
use crate::restore::standby::StandbySettings;
use crate::restore::tablespace::Mapping;
use crate::restore::target::{Kind, Marker, StandbyPlace};
use crate::restore::{self, Options, Report, WalSink, WalSource};
use crate::store::{RawStep, Store, Visibility};

/// How many connections carry files when nobody says.
pub const CONNECTIONS: u8 = 4;

/// What is to be made of the data directory, and how.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Seed {
    /// A copy where nothing was, or a standby made whole.
    pub kind: Kind,
    /// Where the standby is to listen.
    pub place: StandbyPlace,
    /// Tablespaces that go elsewhere.
    pub tablespaces: Vec<Mapping>,
    /// Connections that carry files.
    pub connections: usize,
    /// For all of them together.
    pub max_rate_bytes_per_second: Option<u64>,
}

impl Seed {
    /// What a standby does by itself.
    pub fn automatic(config: &Config, kind: Kind) -> Seed {
        Seed {
            kind,
            place: StandbyPlace::default(),
            tablespaces: Vec::new(),
            connections: usize::from(CONNECTIONS),
            max_rate_bytes_per_second: config.max_rate_bytes_per_second,
        }
    }

    /// As it was begun, by what the marker says; `None` for a copy that is none of a standby of ours.
    pub fn resumed(marker: &Marker) -> Option<Seed> {
        Some(Seed {
            kind: marker.kind,
            place: marker.standby.clone()?,
            tablespaces: Vec::new(),
            connections: usize::from(CONNECTIONS),
            max_rate_bytes_per_second: None,
        })
    }
}

/// Makes the data directory a standby's, whatever it takes: a link that is cut, or a source that goes away, is waited
/// for. PostgreSQL is not running.
pub async fn run(node: &Arc<Node>, seed: &Seed) -> anyhow::Result<()> {
    let report = until_copied(None, &node.progress, async || attempt(node, seed).await).await?;
    tracing::info!(
        files = report.files, bytes = report.bytes, equal_bytes = report.equal_bytes, start = %report.start_lsn,
        end = %report.stop_lsn, "the base backup is complete"
    );
    for bad in &report.bad_pages {
        tracing::error!(path = %bad.path.display(), pages = bad.count, "pages have wrong checksums on the primary");
    }
    let data_directory = &node.config.postgres.data_directory;
    if node.config.postgres.start_command.is_none() && !data_directory.join(CONFIGURATION_FILE).exists() {
        return Err(Fault::usage(
            "the copy is complete, but it came without postgresql.conf",
            "Set start_command in walship.toml, as in \"pg_ctl start -D PGDATA -o '-c config_file=FOLDER/postgresql.conf'\", \
             and go on with `walship run`.",
        ));
    }
    Ok(())
}

/// What makes PostgreSQL a standby that this node's sidecar feeds, and that listens at a place.
pub fn settings_of(config: &Config, place: StandbyPlace) -> StandbySettings {
    let StandbyPlace { port, socket_directory } = place;
    StandbySettings {
        primary_conninfo: feed::primary_conninfo(&config.feed_folder()),
        is_fed: true,
        port,
        socket_directory,
        others: Vec::new(),
    }
}

async fn attempt(node: &Arc<Node>, seed: &Seed) -> anyhow::Result<Report> {
    let options = Options {
        target: node.config.postgres.data_directory.clone(),
        kind: seed.kind,
        label: format!("walship standby {}", node.config.name),
        fast_checkpoint: true,
        max_rate_bytes_per_second: seed.max_rate_bytes_per_second,
        compression: Some(crate::store::COMPRESSION_LEVEL),
        connections: seed.connections,
        tablespaces: seed.tablespaces.clone(),
        standby: Some(settings_of(&node.config, seed.place.clone())),
    };
    let following = Following { token: node.token.child_token(), tasks: TaskTracker::new() };
    let connect = |purpose| connect(node, purpose);
    let wal = wal_source(Arc::clone(node), following.clone());
    let copied = restore::take_backup(options, connect, Some(wal), Arc::clone(&node.progress)).await;
    following.end().await;
    copied
}

/// The task that follows the primary during an attempt: the next one needs the store's writer.
#[derive(Clone)]
struct Following {
    token: CancellationToken,
    tasks: TaskTracker,
}

impl Following {
    async fn end(self) {
        self.token.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// A connection to the primary for one purpose.
pub async fn connect(node: &Arc<Node>, purpose: Purpose) -> anyhow::Result<Conn<Socket>> {
    let mut failures = Vec::new();
    for address in upstreams::addresses(node) {
        let tried = async {
            let (link, hello) = ask::open(node, &address, purpose).await?;
            anyhow::ensure!(hello.role == Role::Primary, "{} is {}", hello.node, hello.role.name());
            Ok(link.conn)
        };
        match tried.await {
            Ok(conn) => return Ok(conn),
            // It speaks against that one, not against this node: whoever knows the promotion may come back.
            Err(error) if has_missed_it(&error) => failures.push((address, anyhow::anyhow!("{error:#}"))),
            Err(error) => failures.push((address, error)),
        }
    }
    Err(join::no_primary(&failures))
}

/// Whether a node did not serve this one because it has missed a promotion that this one knows of.
fn has_missed_it(error: &anyhow::Error) -> bool {
    let code = match Fault::find::<LinkError>(error) {
        Some(LinkError::Rejected(reject) | LinkError::Refused(reject)) => reject.code,
        Some(LinkError::Mismatch(mismatch)) => mismatch.code(),
        _ => return false,
    };
    code == Code::Epoch
}

/// Follows the primary into the store from the start of the backup on, and hands the same WAL to the copy.
fn wal_source(node: Arc<Node>, following: Following) -> WalSource {
    Box::new(move |sink| {
        Box::pin(async move {
            let start = (sink.timeline, sink.start_lsn);
            let token = following.token.clone();
            following.tasks.spawn(follow::run(Arc::clone(&node), Some(start), token));
            // The copy ends this when it has enough.
            hand_on(&node.store, &sink).await
        })
    })
}

async fn hand_on(store: &Store, sink: &WalSink) -> anyhow::Result<()> {
    let mut positions = store.positions();
    positions
        .wait_for(|at| at.timeline >= Some(sink.timeline) && at.durable > sink.start_lsn)
        .await
        .context("the store was closed")?;
    if sink.timeline > TimelineId::FIRST {
        let (from, timeline) = (store.clone(), sink.timeline);
        let read = tokio::task::spawn_blocking(move || from.history(timeline));
        let history =
            read.await.context("read the history")??.context("the timeline's history is not here")?;
        sink.write_history(sink.timeline, history).await?;
    }
    let mut cursor = store.raw_cursor(sink.timeline, sink.start_lsn, Visibility::Durable)?;
    loop {
        positions.mark_unchanged();
        let read = tokio::task::spawn_blocking(move || {
            let step = cursor.next();
            (cursor, step)
        });
        let step;
        (cursor, step) = read.await.context("read the store")?;
        match step? {
            RawStep::Bytes { start, data } => sink.write(start, data).await?,
            RawStep::AtEnd => positions.changed().await.context("the store was closed")?,
            RawStep::Switched { .. } => return Err(PrimaryChanged.into()),
        }
    }
}
