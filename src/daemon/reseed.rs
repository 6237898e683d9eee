//! Seeding a standby anew: what is looked at first, what would be done, and the request for it.

use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use anyhow::Context;
use tokio::sync::oneshot;

use super::join;
use super::node::{Node, load_credentials};
use super::seed::Seed;
use super::upstreams;
use crate::config::Config;
use crate::fault::{Fault, WithFault};
use crate::pg::control::{ClusterState, ControlFile};
use crate::pg::postmaster;
use crate::report::units;
use crate::restore::outlook::{self, Outlook};
use crate::restore::standby::is_standby;
use crate::restore::target::{Kind, Standing};
use crate::store::{NodeRole, State, Store};

/// Who waits for the outcome.
pub type Asker = oneshot::Sender<anyhow::Result<String>>;

/// A request to seed this node anew, on its way to the standby's life.
pub struct Request {
    /// How.
    pub seed: Seed,
    /// The outcome.
    pub done: Asker,
}

/// What would be done.
#[derive(Debug)]
pub struct Plan {
    /// What is to be made of what stands there.
    pub kind: Kind,
    /// The same in words, line by line.
    pub lines: Vec<String>,
}

/// The state of this node's store.
pub async fn state_of(config: &Config) -> anyhow::Result<State> {
    let folder = config.store.clone();
    let read = tokio::task::spawn_blocking(move || Store::state_in(&folder));
    read.await
        .context("read the store's state")??
        .with_context(|| format!("{} holds no store", config.store.display()))
        .hint("Only a standby is seeded anew. A new one joins with `walship standby --join FILE`.")
}

/// Looks whether this node may be seeded anew, and changes nothing: what is refused, is refused here.
pub async fn look(config: &Config, state: &State) -> anyhow::Result<Plan> {
    match state.role {
        Some(NodeRole::Standby) => {}
        Some(NodeRole::Primary) => {
            return Err(Fault::refused(
                format!("{} is the primary, which others are seeded from", config.name),
                "Run this on the standby that is to be made whole.",
            ));
        }
        None => {
            return Err(Fault::refused(
                format!("{} was never a standby", config.name),
                "A new one joins with `walship standby --join FILE`.",
            ));
        }
    }
    let (data_directory, system_identifier) =
        (config.postgres.data_directory.clone(), state.system_identifier);
    let looked = tokio::task::spawn_blocking(move || {
        let standing = Standing::at(&data_directory)?;
        let kind = kind_of(&data_directory, &standing, system_identifier)?;
        let is_running = postmaster::is_running(&data_directory).context("look for PostgreSQL")?;
        anyhow::Ok((kind, is_running, outlook::of(&data_directory)))
    });
    let (kind, is_running, outlook) = looked.await.context("look at the data directory")??;
    let addresses = upstreams::addresses_of(config, state);
    let asker = join::Asker {
        config,
        addresses: &addresses,
        credentials: &load_credentials(config)?,
        system_identifier: None,
        store: Some(state),
    };
    let (primary, _) = asker.ask_primary().await?;
    Ok(Plan { kind, lines: lines(config, &primary.node, is_running, &outlook) })
}

/// What is to be made of what stands there. Whatever is damaged beyond telling is taken for the standby that it was.
fn kind_of(data_directory: &Path, standing: &Standing, system_identifier: u64) -> anyhow::Result<Kind> {
    let at = data_directory.display();
    match standing {
        Standing::Absent | Standing::Empty => Ok(Kind::Copy),
        Standing::Incomplete(marker) => Ok(marker.kind),
        Standing::Broken { .. } => Ok(Kind::Reseed),
        Standing::Foreign { .. } => Err(Fault::refused(
            format!("{at} is no data directory: it holds {standing}"),
            "Name this node's data directory in walship.toml, or remove what is there.",
        )),
        Standing::Cluster { system_identifier: found, .. } if *found != system_identifier => {
            Err(Fault::refused(
                format!("{at} holds {standing}, and this node is of cluster {system_identifier}"),
                "Name this node's data directory in walship.toml.",
            ))
        }
        Standing::Cluster { .. } => {
            // One whose state cannot be read would be broken.
            let state = ControlFile::read(data_directory).map(|control| control.state);
            let was_primary = matches!(state, Ok(ClusterState::InProduction | ClusterState::ShutDown));
            if was_primary && !is_standby(data_directory) {
                return Err(Fault::refused(
                    format!("PostgreSQL in {at} was promoted: what it wrote since may be nowhere else"),
                    "Save what matters of it, move the data directory away, and run this again.",
                ));
            }
            Ok(Kind::Reseed)
        }
    }
}

fn lines(config: &Config, primary: &str, is_running: bool, outlook: &Outlook) -> Vec<String> {
    let at = config.postgres.data_directory.display();
    let mut lines = vec![format!("{} would be seeded anew from {primary}, which answers:", config.name)];
    if is_running {
        lines.push("  stop PostgreSQL".to_owned());
    }
    lines.push(format!(
        "  compare {at}, {} in {} files, with {primary}'s, and take what differs",
        units::size(outlook.bytes),
        outlook.files
    ));
    lines.push(format!("  remove what {primary} does not have"));
    if !outlook.own.is_empty() {
        let own: Vec<String> = outlook.own.iter().map(|path| path.display().to_string()).collect();
        lines.push(format!("  leave what is this host's own: {}", own.join(", ")));
    }
    let store = config.store.display();
    lines.push(format!("  keep the log in {store} if it leads to where the copy begins, else begin it anew"));
    lines.push("  start PostgreSQL, and follow".to_owned());
    lines
}

/// How this standby seeds itself anew, which can't follow any more; `None` when that is refused, which is said.
pub async fn by_itself(node: &Arc<Node>, reason: &str) -> Option<Seed> {
    *node.reseeded.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    tracing::warn!("this standby can't follow any more ({reason}): it seeds itself anew");
    match look(&node.config, &node.store.state()).await {
        Ok(plan) => Some(Seed::automatic(&node.config, plan.kind)),
        Err(error) => {
            tracing::error!("this standby can't seed itself anew: {error:#}");
            None
        }
    }
}

/// What whoever asked is told, and what this process goes on or ends with.
pub fn outcome(node: &Arc<Node>, seeded: anyhow::Result<()>) -> (anyhow::Result<String>, anyhow::Result<()>) {
    match seeded {
        Ok(()) => {
            let done = node.progress.get();
            let told = format!(
                "{} is whole: {} in {} files, {} of them were here already, {} came over the wire",
                node.config.name,
                units::size(done.done_bytes),
                done.files,
                units::size(done.equal_bytes),
                units::size(done.wire_bytes)
            );
            (Ok(told), Ok(()))
        }
        Err(error) => {
            let told = Err(anyhow::anyhow!("{error:#}")).outcome(Fault::outcome_of(&error));
            let told = match Fault::hint_of(&error) {
                Some(hint) => told.hint(hint),
                None => told,
            };
            (told, Err(error))
        }
    }
}
