//! `walship primary` and `walship run`: the sidecar in the foreground.

use super::exit::Exit;
use super::{privilege, runtime};
use crate::config::{Config, Overrides};
use crate::daemon;
use crate::store::NodeRole;

/// Run the sidecar beside the primary: hold a slot, capture the WAL, serve standbys and base backups
///
/// Stays in the foreground, for a service manager. SIGTERM ends it and leaves PostgreSQL running; SIGHUP reads the
/// certificates anew.
#[derive(clap::Args, Debug)]
pub struct PrimaryArgs {
    #[command(flatten)]
    overrides: Overrides,
}

/// Go on in whatever role this node last had: what a service unit starts
///
/// A standby's PostgreSQL is started when it is down; a primary's is the service manager's business.
#[derive(clap::Args, Debug)]
pub struct RunArgs {
    #[command(flatten)]
    overrides: Overrides,
}

/// `walship primary`.
pub fn primary(args: &PrimaryArgs) -> anyhow::Result<Exit> {
    let config = Config::load(&args.overrides)?;
    privilege::become_owner_of(&config.postgres.data_directory)?;
    runtime()?.block_on(daemon::run(config, NodeRole::Primary))?;
    Ok(Exit::Done)
}

/// `walship run`.
pub fn resume(args: &RunArgs) -> anyhow::Result<Exit> {
    let config = Config::load(&args.overrides)?;
    privilege::become_owner_of(&config.postgres.data_directory)?;
    runtime()?.block_on(daemon::resume(config))?;
    Ok(Exit::Done)
}
