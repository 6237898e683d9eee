//! Joining: from an empty directory to a standby.
//!
//! The store follows the primary from the start of the base backup on, while the files are copied; the WAL that the
//! copy needs comes from the store, so it crosses the link once.

use std::fmt::Display;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use tokio_util::sync::CancellationToken;

use super::follow;
use super::node::Node;
use crate::config::Config;
use crate::fault::Fault;
use crate::feed;
use crate::link::message::{Hello, Purpose, Role};
use crate::link::{Conn, Link, LinkError, Security, Socket, dial, handshake};
use crate::pg::{SegmentSize, TimelineId};
use crate::restore::standby::StandbySettings;
use crate::restore::tablespace::Mapping;
use crate::restore::{self, Options, Progress, Report, WalSink, WalSource};
use crate::store::{NewStore, RawStep, Store, Visibility};
use crate::vitals::Cell;

/// What a new standby is told.
pub struct Join {
    /// Where the primary may be.
    pub addresses: Vec<String>,
    /// The cluster that the bundle is for.
    pub system_identifier: Option<u64>,
    /// The port of the new PostgreSQL; `None` for the configuration's.
    pub port: Option<u16>,
    /// The folder of its socket; `None` for the configuration's.
    pub socket_directory: Option<PathBuf>,
    /// Its configuration need not come with the copy.
    pub has_own_configuration: bool,
    /// Tablespaces that go elsewhere.
    pub tablespaces: Vec<Mapping>,
    /// Connections that carry files.
    pub connections: usize,
    /// For all of them together.
    pub max_rate_bytes_per_second: Option<u64>,
    /// Where the copy says how far it is.
    pub progress: Arc<Cell<Progress>>,
}

/// Opens the store, or makes it for the cluster that the primary serves.
pub async fn open_store(config: &Config, join: &Join) -> anyhow::Result<Store> {
    let addresses = join.addresses.clone();
    let folder = config.store.clone();
    let store = if Store::exists(&folder) {
        tokio::task::spawn_blocking(move || Store::open(&folder)).await.context("open the store")??
    } else {
        let theirs = first_primary(config, join).await?;
        let new = NewStore {
            system_identifier: theirs
                .system_identifier
                .context("the primary did not say which cluster it is")?,
            segment_size: SegmentSize::new(
                theirs.segment_size.context("the primary did not say its segment size")?,
            )?,
        };
        tokio::task::spawn_blocking(move || Store::create(&folder, new)).await.context("make the store")??
    };
    let noted = store.clone();
    tokio::task::spawn_blocking(move || noted.update_state(|state| state.join_addresses = addresses))
        .await
        .context("note the addresses")??;
    Ok(store)
}

/// Asks at each address who is there, before this node is anybody.
async fn first_primary(config: &Config, join: &Join) -> anyhow::Result<Hello> {
    let security = Security::Tls(super::node::load_credentials(config)?);
    let ours = Hello {
        system_identifier: join.system_identifier,
        advertise: Some(config.advertise.to_string()),
        ..Hello::of_stranger(config.name.clone(), Role::Standby, Purpose::Ask)
    };
    let mut failures = Vec::new();
    for address in &join.addresses {
        let asked = async {
            let mut link = dial::dial(address, &security).await?;
            handshake::greet(&mut link.conn, &ours, link.identity.as_ref()).await
        };
        match asked.await {
            Ok(hello) if hello.role == Role::Primary => return Ok(hello),
            Ok(hello) => failures.push((address, anyhow::anyhow!("{} is a standby", hello.node))),
            Err(error) => failures.push((address, error.into())),
        }
    }
    Err(no_primary(&failures))
}

/// What each address had to say. A refusal brings its own hint.
fn no_primary(failures: &[(impl Display, anyhow::Error)]) -> anyhow::Error {
    let refusal = |error: &anyhow::Error| {
        error.downcast_ref::<LinkError>().filter(|error| !error.is_gone()).and_then(LinkError::hint)
    };
    let hint = failures.iter().find_map(|(_, error)| refusal(error)).unwrap_or_else(|| {
        "Is `walship primary` running there, and can this host reach it? `advertise` in its walship.toml is the \
         address in the bundle."
            .to_owned()
    });
    let told: Vec<String> = failures.iter().map(|(address, error)| format!("{address}: {error:#}")).collect();
    Fault::advise(anyhow::anyhow!("no primary answers ({})", told.join("; ")), hint)
}

/// Copies the data directory, following the primary at the same time.
pub async fn copy(node: &Arc<Node>, join: &Join) -> anyhow::Result<Report> {
    let options = Options {
        target: node.config.postgres.data_directory.clone(),
        label: format!("walship standby {}", node.config.name),
        fast_checkpoint: true,
        max_rate_bytes_per_second: join.max_rate_bytes_per_second,
        compression: Some(crate::store::COMPRESSION_LEVEL),
        connections: join.connections,
        tablespaces: join.tablespaces.clone(),
        standby: Some(StandbySettings {
            feed_directory: node.config.feed_folder(),
            feed_port: feed::PORT,
            node: feed::STANDBY_NAME.to_owned(),
            port: join.port,
            socket_directory: join.socket_directory.clone(),
            primary_conninfo: None,
            others: Vec::new(),
        }),
    };
    let following = node.token.child_token();
    let connect = |purpose| connect(node, purpose);
    let wal = wal_source(Arc::clone(node), following.clone());
    let copied = restore::take_backup(options, connect, Some(wal), Arc::clone(&join.progress)).await;
    following.cancel();
    let report = copied?;
    let configuration = node.config.postgres.data_directory.join("postgresql.conf");
    if !join.has_own_configuration && !configuration.exists() {
        return Err(Fault::usage(
            format!(
                "the copy is complete, but {} holds no postgresql.conf: the primary keeps its configuration elsewhere",
                node.config.postgres.data_directory.display()
            ),
            "Put the configuration into a folder of this host, set start_command in walship.toml, as in \
             \"pg_ctl start -D PGDATA -o '-c config_file=FOLDER/postgresql.conf'\", and go on with `walship run`. \
             (`walship standby --config-directory FOLDER` says it from the beginning.)",
        ));
    }
    Ok(report)
}

/// A connection to the primary for a part of the backup.
async fn connect(node: &Arc<Node>, purpose: Purpose) -> anyhow::Result<Conn<Socket>> {
    let mut failures = Vec::new();
    for address in follow::addresses(node) {
        let tried = async {
            let Link { mut conn, identity, .. } = dial::dial(&address, &node.security()).await?;
            let hello = handshake::greet(&mut conn, &node.hello(purpose), identity.as_ref()).await?;
            anyhow::ensure!(hello.role == Role::Primary, "{} is a standby", hello.node);
            Ok(conn)
        };
        match tried.await {
            Ok(conn) => return Ok(conn),
            Err(error) => failures.push((address, error)),
        }
    }
    Err(no_primary(&failures))
}

/// Follows the primary into the store from the start of the backup on, and hands the same WAL to the copy.
fn wal_source(node: Arc<Node>, following: CancellationToken) -> WalSource {
    Box::new(move |sink| {
        Box::pin(async move {
            let start = (sink.timeline, sink.start_lsn);
            let follower = follow::run(Arc::clone(&node), Some(start), following);
            // The copy ends both when it has enough; until then neither ends but by an error.
            tokio::select! {
                () = follower => anyhow::bail!("the node is stopping"),
                result = hand_on(&node.store, &sink) => result,
            }
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
            RawStep::Switched { .. } => anyhow::bail!("the primary changed during the copy: run it again"),
        }
    }
}
