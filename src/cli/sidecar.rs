//! `walship primary` and `walship run`: the sidecar in the foreground.

use std::sync::Arc;

use super::exit::{self, Exit};
use super::{configuration, privilege, progress, runtime};
use crate::config::Overrides;
use crate::daemon;
use crate::store::NodeRole;

/// Run the sidecar beside the primary
///
/// It holds a replication slot, captures the WAL into the store, and serves it and base backups to the standbys. It
/// stays in the foreground, for a service manager. SIGTERM ends it and leaves PostgreSQL running; SIGHUP reads the
/// certificates anew.
///
/// A service unit is better off with `walship run`, which knows the node's role also after a promotion.
#[derive(clap::Args, Debug)]
#[command(after_long_help = exit::explained(&[
    (0, "it was told to end"),
    (1, "it failed; the reason is the last thing it says"),
    (2, "wrong usage or configuration"),
    (3, "refused and nothing changed"),
], &[
    ("After `walship init` and `walship check`:", "walship primary"),
    ("After PostgreSQL removed WAL that was not captured:", "walship primary --new-log"),
]))]
pub struct PrimaryArgs {
    /// Let all WAL in the store go, and begin the log anew where PostgreSQL's WAL still reaches
    ///
    /// This is the way out when `walship status` says that WAL is missing, or that PostgreSQL was put back to an earlier
    /// state. Every standby must be seeded anew afterwards.
    #[arg(long)]
    new_log: bool,
    #[command(flatten)]
    overrides: Overrides,
}

/// Go on in whatever role this node last had: what a service unit starts
///
/// A standby's PostgreSQL is started when it is down; a primary's is the service manager's business. A standby whose copy
/// is not complete goes on with that first. It stays in the foreground. SIGTERM ends it and leaves PostgreSQL running; SIGHUP reads the certificates anew.
#[derive(clap::Args, Debug)]
#[command(after_long_help = exit::explained(&[
    (0, "it was told to end"),
    (1, "it failed; the reason is the last thing it says"),
    (2, "wrong usage or configuration, or the node has no role yet"),
    (3, "refused and nothing changed"),
], &[
    ("In a service unit of systemd:",
     "[Service]\n    Type=notify\n    ExecStart=/usr/bin/walship run\n    ExecReload=/bin/kill -HUP $MAINPID\n    User=postgres"),
]))]
pub struct RunArgs {
    #[command(flatten)]
    overrides: Overrides,
}

/// `walship primary`.
pub fn primary(args: &PrimaryArgs) -> anyhow::Result<Exit> {
    let config = configuration(&args.overrides)?;
    privilege::become_owner_of(&config.postgres.data_directory)?;
    runtime()?.block_on(daemon::run(config, NodeRole::Primary, args.new_log, Arc::default()))?;
    Ok(Exit::Done)
}

/// `walship run`.
pub fn resume(args: &RunArgs) -> anyhow::Result<Exit> {
    let config = configuration(&args.overrides)?;
    privilege::become_owner_of(&config.postgres.data_directory)?;
    runtime()?.block_on(progress::beside(|progress| daemon::resume(config, progress)))?;
    Ok(Exit::Done)
}
