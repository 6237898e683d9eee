//! Joining: from an empty directory to a standby.
//!
//! The store follows the primary from the start of the base backup on, while the files are copied; the WAL that the
//! copy needs comes from the store, so it crosses the link once.

use std::fmt::Display;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use tokio_util::sync::CancellationToken;

use super::ask::ask;
use super::follow;
use super::node::Node;
use super::postgres::{self, CONFIGURATION_FILE};
use crate::config::Config;
use crate::fault::{Advised, Fault, Outcome, WithFault};
use crate::feed;
use crate::link::message::{Answer, Hello, Purpose, Role};
use crate::link::{Conn, Link, LinkError, Listener, Security, Socket, dial, handshake};
use crate::pg::sql::ServerVersion;
use crate::pg::{SegmentSize, TimelineId};
use crate::restore::standby::StandbySettings;
use crate::restore::tablespace::Mapping;
use crate::restore::target::{self, Kind, Standing};
use crate::restore::{self, Options, Progress, Report, WalSink, WalSource};
use crate::store::{Identity, NewStore, RawStep, Store, Visibility};
use crate::tls::Credentials;
use crate::vitals::Cell;

/// What a new standby is told.
pub struct Join {
    /// Where the primary may be.
    pub addresses: Vec<String>,
    /// What this node shows when it asks there.
    pub credentials: Arc<Credentials>,
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

/// Looks whether this node may join, and changes nothing: what is refused, is refused here. The store that it begins
/// with; `None` where it has joined already and only goes on.
pub async fn look(config: &Config, join: &Join) -> anyhow::Result<Option<NewStore>> {
    let (data_directory, store) = (config.postgres.data_directory.clone(), config.store.clone());
    let expected = join.system_identifier;
    let looked = tokio::task::spawn_blocking(move || {
        let store = Store::identity_in(&store)?;
        if store.is_some() && Standing::at(&data_directory)?.is_complete_and_of(expected) {
            return anyhow::Ok(None);
        }
        target::require_free(&data_directory, Kind::Copy, expected)?;
        Ok(Some(store))
    });
    let Some(store) = looked.await.context("look at what is here")?? else { return Ok(None) };
    drop(Listener::bind(&config.listen.to_string()).await.advised().outcome(Outcome::Refused)?);
    let (hello, answer) = ask_primary(config, join, store).await?;
    let version = hello.postgres_version.map(ServerVersion);
    if let Some(version) = version {
        version.require_supported(format!("beside {}", hello.node)).advised()?;
    }
    if !join.has_own_configuration {
        if answer.holds_configuration == Some(false) {
            return Err(no_configuration(&format!("a copy of {} would have no postgresql.conf", hello.node)));
        }
        if let Some(version) = version {
            postgres::binaries_of(config, version.major()).await?;
        }
    }
    let segment_size = hello.segment_size.context("the primary did not say its segment size")?;
    Ok(Some(NewStore {
        system_identifier: hello.system_identifier.context("the primary did not say which cluster it is")?,
        segment_size: SegmentSize::new(segment_size)?,
    }))
}

fn no_configuration(what: &str) -> anyhow::Error {
    Fault::refused(
        format!("{what}: the primary keeps its configuration outside its data directory"),
        "Name this host's own folder with postgresql.conf and pg_hba.conf: --config-directory DIR, on Debian \
         /etc/postgresql/VERSION/main.",
    )
}

/// Opens the store, or makes it.
pub async fn open_store(config: &Config, join: &Join, new: NewStore) -> anyhow::Result<Store> {
    let (folder, addresses) = (config.store.clone(), join.addresses.clone());
    let opened = tokio::task::spawn_blocking(move || {
        let store = if Store::exists(&folder) { Store::open(&folder)? } else { Store::create(&folder, new)? };
        store.update_state(|state| state.join_addresses = addresses)?;
        anyhow::Ok(store)
    });
    opened.await.context("open the store")?
}

/// Asks at each address who is there. Nothing was changed yet, so what speaks against this node is a refusal.
async fn ask_primary(
    config: &Config,
    join: &Join,
    store: Option<Identity>,
) -> anyhow::Result<(Hello, Answer)> {
    let security = Security::Tls(Arc::clone(&join.credentials));
    let system_identifier = store.as_ref().map(|store| store.system_identifier).or(join.system_identifier);
    let ours = Hello {
        system_identifier,
        store_uuid: store.map(|store| store.store_uuid),
        advertise: Some(config.advertise.to_string()),
        ..Hello::of_stranger(config.name.clone(), Role::Standby, Purpose::Ask)
    };
    let mut failures = Vec::new();
    for address in &join.addresses {
        match ask(address, &security, &ours).await {
            Ok((hello, answer)) if hello.role == Role::Primary => return Ok((hello, answer)),
            Ok((hello, _)) => {
                failures.push((address, anyhow::anyhow!("{} is {}", hello.node, hello.role.name())))
            }
            Err(error) => failures.push((address, error)),
        }
    }
    let refused = failures.iter().any(|(_, error)| refusal(error).is_some());
    Err(no_primary(&failures)).outcome(if refused { Outcome::Refused } else { Outcome::Failed })
}

/// What speaks against this node, unless it is only that nobody is there.
fn refusal(error: &anyhow::Error) -> Option<&LinkError> {
    error.downcast_ref::<LinkError>().filter(|error| !error.is_gone())
}

/// What each address had to say. A refusal says more than silence, and brings its own hint.
fn no_primary(failures: &[(impl Display, anyhow::Error)]) -> anyhow::Error {
    let refused = failures.iter().find_map(|(address, error)| Some((address, refusal(error)?)));
    if let Some((address, refusal)) = refused {
        let said = anyhow::anyhow!("{address}: {refusal}");
        return match refusal.hint() {
            Some(hint) => Fault::advise(said, hint),
            None => said,
        };
    }
    let hint = "Is `walship primary` running there, and can this host reach it? `advertise` in its walship.toml is the \
                address in the bundle.";
    let told: Vec<String> = failures.iter().map(|(address, error)| format!("{address}: {error:#}")).collect();
    Fault::advise(anyhow::anyhow!("no primary answers ({})", told.join("; ")), hint)
}

/// Copies the data directory, following the primary at the same time.
pub async fn copy(node: &Arc<Node>, join: &Join) -> anyhow::Result<Report> {
    let options = Options {
        target: node.config.postgres.data_directory.clone(),
        kind: Kind::Copy,
        label: format!("walship standby {}", node.config.name),
        fast_checkpoint: true,
        max_rate_bytes_per_second: join.max_rate_bytes_per_second,
        compression: Some(crate::store::COMPRESSION_LEVEL),
        connections: join.connections,
        tablespaces: join.tablespaces.clone(),
        standby: Some(StandbySettings {
            primary_conninfo: feed::primary_conninfo(&node.config.feed_folder()),
            is_fed: true,
            port: join.port,
            socket_directory: join.socket_directory.clone(),
            others: Vec::new(),
        }),
    };
    let following = node.token.child_token();
    let connect = |purpose| connect(node, purpose);
    let wal = wal_source(Arc::clone(node), following.clone());
    let copied = restore::take_backup(options, connect, Some(wal), Arc::clone(&join.progress)).await;
    following.cancel();
    let report = copied?;
    let configuration = node.config.postgres.data_directory.join(CONFIGURATION_FILE);
    if !join.has_own_configuration && !configuration.exists() {
        return Err(Fault::usage(
            "the copy is complete, but it came without postgresql.conf",
            "Set start_command in walship.toml, as in \"pg_ctl start -D PGDATA -o '-c config_file=FOLDER/postgresql.conf'\", \
             and go on with `walship run`.",
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
            anyhow::ensure!(hello.role == Role::Primary, "{} is {}", hello.node, hello.role.name());
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
