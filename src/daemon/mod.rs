//! Which stages run in which role, and the change between them.
//!
//! One process per node. It opens the store, listens, and then lives as a primary or as a standby; a promotion ends the
//! one life and begins the other, in the same process on the same store. SIGTERM ends it and leaves PostgreSQL running.

mod accept;
mod ack;
mod ask;
mod attempts;
mod by_hand;
mod certificate;
mod commits;
pub mod control;
mod door;
mod election;
mod entrant;
mod epochs;
mod fence;
mod fitness;
mod follow;
mod forget;
mod fork;
mod hooks;
mod http;
mod join;
mod life;
pub mod local_copy;
mod members;
mod node;
mod order;
mod policy;
mod postgres;
mod primary;
mod promotion;
mod pull;
mod rejoin;
mod relay;
pub mod remote_copy;
mod request;
mod reseed;
mod retention;
mod rewind;
mod samples;
mod seed;
mod setting;
mod shell;
mod signals;
mod slot;
mod standby;
mod status;
mod switchover;
mod trails;
mod trouble;
mod tunnel;
mod upstreams;
mod votes;
mod wait;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::mpsc;

use crate::config::Config;
use crate::fault::{Advised, Fault, WithFault};
use crate::pg::control::{CONTROL_FILE, ControlFile};
use crate::pg::sql::Sql;
use crate::pg::version;
use crate::restore::Progress;
use crate::restore::target::{self, Marker, Standing};
use crate::store::{EXPOSURES_FILE, Exposures, NewStore, NodeRole, Store, StoreError};
use crate::vitals::Cell;

pub use join::{Join, look};
use life::Life;
pub use node::conninfo;
use node::{Inlets, Node};
pub use postgres::binaries;
pub use seed::{CONNECTIONS, Seed};
use standby::Requests;

/// What still runs when the process ends is given so long.
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// Requests for a promotion that may wait for the one before; two that come at once are both answered.
const PROMOTIONS_WAITING_MAX: usize = 8;

/// Runs the node as its role has it, until it is told to stop; a primary's log begins anew where that is asked for.
/// `progress` shows the copies that it takes.
pub async fn run(
    config: Config,
    role: NodeRole,
    new_log: bool,
    progress: Arc<Cell<Progress>>,
) -> anyhow::Result<()> {
    if let (NodeRole::Standby, Standing::Incomplete(marker)) = (role, standing(&config).await?) {
        return go_on(config, &marker, progress).await;
    }
    let data_directory = config.postgres.data_directory.clone();
    let checked = tokio::task::spawn_blocking(move || check_role(&data_directory, role));
    checked.await.context("look at the data directory")??;
    let store = open_store(&config).await?;
    refuse_promoted_by_hand(&config, &store, role)?;
    if new_log {
        tracing::info!(
            "all WAL in the store goes, and the log begins anew: every standby must be seeded anew"
        );
        let forgetting = store.clone();
        tokio::task::spawn_blocking(move || forgetting.forget_log()).await.context("forget the log")??;
    }
    serve(config, store, Life::of(role), progress).await
}

/// What stands in the data directory.
async fn standing(config: &Config) -> anyhow::Result<Standing> {
    let data_directory = config.postgres.data_directory.clone();
    let looked = tokio::task::spawn_blocking(move || {
        target::settle(&data_directory)?;
        Standing::at(&data_directory)
    });
    Ok(looked.await.context("look at the data directory")??)
}

/// Goes on with a copy that was cut off, as it was begun.
async fn go_on(config: Config, marker: &Marker, progress: Arc<Cell<Progress>>) -> anyhow::Result<()> {
    let data_directory = config.postgres.data_directory.display().to_string();
    let refuse = |what: String| {
        Err(Fault::refused(
            format!("{data_directory} holds a copy that was cut off, {what}"),
            "Complete it with the command that began it, or remove it.",
        ))
    };
    let Some(seed) = Seed::resumed(marker) else {
        return refuse("which was to be no standby of walship's".to_owned());
    };
    let store = open_kept_store(&config).await?;
    let ours = store.identity().system_identifier;
    if marker.system_identifier != ours.to_string() {
        return refuse(format!("of cluster {}, and the store is of {ours}", marker.system_identifier));
    }
    tracing::info!("the data directory is not complete: going on with the copy");
    serve(config, store, Life::Seeding(seed), progress).await
}

/// Refuses a role that PostgreSQL does not have: a store with two histories helps nobody. PostgreSQL itself removes
/// `standby.signal` when it is promoted. Blocks.
fn check_role(data_directory: &Path, role: NodeRole) -> anyhow::Result<()> {
    let is_standby = is_standby(data_directory);
    match role {
        NodeRole::Primary if is_standby => Err(Fault::refused(
            format!("PostgreSQL is a standby: {} holds standby.signal", data_directory.display()),
            "`walship run` lets it follow; `walship promote` makes it the primary.",
        )),
        NodeRole::Standby if !is_standby && data_directory.join(CONTROL_FILE).exists() => {
            Err(Fault::refused(
                format!("PostgreSQL is a primary: {} holds no standby.signal", data_directory.display()),
                "`walship run` goes on as what this node was; a new standby joins with `walship standby --join FILE`.",
            ))
        }
        NodeRole::Primary | NodeRole::Standby => Ok(()),
    }
}

/// Refuses to take a standby whose PostgreSQL was promoted by hand for the primary: nobody has agreed to that.
fn refuse_promoted_by_hand(config: &Config, store: &Store, role: NodeRole) -> anyhow::Result<()> {
    let state = store.state();
    if role == NodeRole::Primary && state.role == Some(NodeRole::Standby) && state.promoting.is_none() {
        return Err(Fault::refused(
            format!("{} was a standby, and its PostgreSQL was promoted by hand", config.name),
            "Start `walship run`; then `walship promote` adopts that promotion where no other stands against it.",
        ));
    }
    Ok(())
}

fn is_standby(data_directory: &Path) -> bool {
    data_directory.join("standby.signal").exists() && data_directory.join(CONTROL_FILE).exists()
}

/// Runs whatever role the node had last, or goes on with what it was becoming.
pub async fn resume(config: Config, progress: Arc<Cell<Progress>>) -> anyhow::Result<()> {
    let folder = config.store.clone();
    if !Store::exists(&folder) {
        return Err(Fault::usage(
            format!("this node has no role yet: {} holds no store", folder.display()),
            "Start it as what it is: `walship primary`, or `walship standby --join FILE`.",
        ));
    }
    if let Standing::Incomplete(marker) = standing(&config).await? {
        return go_on(config, &marker, progress).await;
    }
    let store = open_store(&config).await?;
    let state = store.state();
    // A join may have ended between the copy's last act and the first of the standby's life.
    let data_directory = config.postgres.data_directory.clone();
    let looked = tokio::task::spawn_blocking(move || is_standby(&data_directory));
    let joined = looked.await.context("look at the data directory")?.then_some(NodeRole::Standby);
    let Some(mut role) = state.role.or(joined) else {
        return Err(Fault::usage(
            "this node has no role yet",
            "Start it as what it is: `walship primary`, or `walship standby --join FILE`.",
        ));
    };
    if role == NodeRole::Standby {
        // It may be down, and has taken its signal away with the promotion.
        let promoted = state.promoting.is_some() && (joined.is_none() || is_primary(&config).await);
        if promoted {
            tracing::info!(
                "a promotion was interrupted after PostgreSQL was promoted: this node is the primary"
            );
            role = NodeRole::Primary;
        }
    }
    serve(config, store, Life::of(role), progress).await
}

/// Makes this node a standby: a base backup into an empty data directory, then a standby's life. Where the copy is
/// complete already it goes on. `found` is what [`look`] found.
pub async fn join(
    config: Config,
    join: Join,
    found: Option<NewStore>,
    progress: Arc<Cell<Progress>>,
) -> anyhow::Result<()> {
    let Some(new) = found else { return resume(config, progress).await };
    let store = join::open_store(&config, &join, new).await?;
    serve(config, store, Life::Seeding(join.seed), progress).await
}

/// Makes this standby's data directory anew of what is there, then lives as a standby. PostgreSQL is stopped for that, and
/// nothing is changed before all that can be refused was looked at.
pub async fn reseed(config: Config, seed: Seed, progress: Arc<Cell<Progress>>) -> anyhow::Result<()> {
    let state = reseed::state_of(&config).await?;
    let plan = reseed::look(&config, &state).await?;
    let store = open_kept_store(&config).await?;
    serve(config, store, Life::Seeding(Seed { kind: plan.kind, ..seed }), progress).await
}

/// What [`reseed`] would do, line by line.
pub async fn plan_reseed(config: &Config) -> anyhow::Result<Vec<String>> {
    let state = reseed::state_of(config).await?;
    Ok(reseed::look(config, &state).await?.lines)
}

/// Opens the store that is there, whatever stands in the data directory.
async fn open_kept_store(config: &Config) -> anyhow::Result<Store> {
    let folder = config.store.clone();
    let opened = tokio::task::spawn_blocking(move || Store::open(&folder));
    opened.await.context("open the store")?.map_err(|error| explain(error.into()))
}

async fn is_primary(config: &Config) -> bool {
    let asked = async {
        Ok::<_, anyhow::Error>(!Sql::connect(&node::conninfo(config)?).await?.is_in_recovery().await?)
    };
    asked.await.unwrap_or_else(|error| {
        tracing::debug!("PostgreSQL can't be asked: {error:#}");
        false
    })
}

/// Opens the store, or makes it for the cluster in the data directory.
async fn open_store(config: &Config) -> anyhow::Result<Store> {
    let (folder, data_directory) = (config.store.clone(), config.postgres.data_directory.clone());
    let opened = tokio::task::spawn_blocking(move || {
        version::require_supported_in(&data_directory).advised()?;
        let control = ControlFile::read(&data_directory)
            .hint("`data_directory` in [postgres] must be this node's PostgreSQL data directory.")?;
        if !Store::exists(&folder) {
            let new =
                NewStore { system_identifier: control.system_identifier, segment_size: control.segment_size };
            return Ok(Store::create(&folder, new)?);
        }
        let store = Store::open(&folder)?;
        let ours = store.identity().system_identifier;
        if ours != control.system_identifier {
            return Err(Fault::refused(
                format!(
                    "the store {} belongs to the cluster {ours}, and {} to {}",
                    folder.display(),
                    data_directory.display(),
                    control.system_identifier
                ),
                "Name another store in walship.toml, or the data directory that the store belongs to.",
            ));
        }
        Ok(store)
    });
    opened.await.context("open the store")?.map_err(explain)
}

/// Adds what to do to an error of opening a store.
fn explain(error: anyhow::Error) -> anyhow::Error {
    let hint = match error.downcast_ref::<StoreError>() {
        Some(StoreError::Locked { .. }) => "This node's sidecar runs already: `walship status` asks it.",
        Some(StoreError::Corrupt { path, .. }) if path.ends_with(EXPOSURES_FILE) => Exposures::IF_DAMAGED,
        Some(StoreError::Corrupt { .. }) => {
            "What is damaged can't be repaired: move the store away and seed this node anew."
        }
        _ => return error,
    };
    match Err::<(), _>(error).hint(hint) {
        Err(error) => error,
        Ok(()) => unreachable!("an error stays one"),
    }
}

/// Listens, and lives.
async fn serve(
    config: Config,
    store: Store,
    life: Life,
    progress: Arc<Cell<Progress>>,
) -> anyhow::Result<()> {
    let role = life.role();
    let (promotions, asked_promotions) = mpsc::channel(PROMOTIONS_WAITING_MAX);
    let (reseeds, asked_reseeds) = mpsc::channel(1);
    let (freezes, asked_freezes) = mpsc::channel(votes::VOTES_WAITING_MAX);
    let (rejoins, asked_rejoins) = mpsc::channel(1);
    let mut requests = Requests {
        promotions: asked_promotions,
        reseeds: asked_reseeds,
        freezes: asked_freezes,
        rejoins: asked_rejoins,
    };
    let made = tokio::task::spawn_blocking(move || {
        let node =
            Node::new(config, store, role, Inlets { promotions, reseeds, freezes, rejoins }, progress)?;
        samples::restore(node.store.folder(), &node.vitals.samples);
        members::restore(&node);
        anyhow::Ok(node)
    });
    let node = made.await.context("set the node up")??;
    let listener = accept::bind(&node).await?;
    let address = listener.local_address()?;
    let control = control::bind(node.store.folder())?;
    let http = http::bind(&node).await?;
    tracing::info!(node = %node.config.name, %address, role = ?role, "walship {} is running", env!("CARGO_PKG_VERSION"));
    let accepting = node.tasks.spawn(accept::run(Arc::clone(&node), listener));
    let controlling = node.tasks.spawn(control::run(Arc::clone(&node), control));
    if let Some(http) = http {
        node.tasks.spawn(http::run(Arc::clone(&node), http));
    }
    signals::notify(&[sd_notify::NotifyState::Ready]);
    // The first that ends decides: the role's stages by themselves or at the token, the rest only by failing.
    let ended = tokio::select! {
        ended = life::live(&node, life, &mut requests) => ended,
        ended = signals::run(Arc::clone(&node)) => ended,
        ended = trouble::tell(Arc::clone(&node)) => ended,
        never = trails::keep(Arc::clone(&node)) => match never {},
        never = votes::follow_up(Arc::clone(&node)) => match never {},
        never = hooks::keep(Arc::clone(&node)) => match never {},
        never = certificate::gather(Arc::clone(&node)) => match never {},
        () = signals::feed_watchdog_for_ever() => Ok(()),
        () = failed(accepting, &node) => Err(anyhow::anyhow!("connections are no longer accepted")),
        () = failed(controlling, &node) => Err(anyhow::anyhow!("the control socket is no longer served")),
    };
    let asked_to = node.token.is_cancelled();
    node.token.cancel();
    node.blocking("keep the samples", samples::write).await?.unwrap_or_else(|error| {
        tracing::warn!("lag in seconds begins anew at the next start: {error:#}");
    });
    node.tasks.close();
    if tokio::time::timeout(STOP_WITHIN, node.tasks.wait()).await.is_err() {
        tracing::warn!("some tasks did not end within {} s", STOP_WITHIN.as_secs());
    }
    if asked_to { Ok(()) } else { ended }
}

/// Waits until a task ends that is to run as long as the node. At the token it ends like all others, and must not cut off
/// what the role still notes.
async fn failed(task: tokio::task::JoinHandle<()>, node: &Node) {
    let _ = task.await;
    if node.token.is_cancelled() {
        std::future::pending::<()>().await;
    }
}
