//! `walship promote`: this standby becomes the primary.

use super::exit::{self, Exit};
use super::{only_with_long_help, output, runtime, store_of};
use crate::config::Overrides;
use crate::daemon::control::Client;

/// Make this standby the primary
///
/// Asks every known node first. Refuses while the primary's PostgreSQL still answers, when another standby is further
/// along, when so many are silent that one of them may alone have commits that a policy acknowledged, and while the
/// replay here is paused or delayed; says which WAL may be lost. Then it stops receiving, has PostgreSQL replay all that
/// is here, commits a new epoch and promotes. The other standbys follow by themselves. A PostgreSQL that was promoted by hand is adopted.
#[derive(clap::Args, Debug)]
#[command(mut_args(only_with_long_help))]
#[command(after_long_help = exit::explained(&[
    (0, "this node is the primary"),
    (1, "it failed, and this node is a standby still"),
    (2, "wrong usage"),
    (3, "refused and nothing changed: it says why, and which WAL is at stake"),
    (4, "the outcome is unknown: run it again"),
], &[
    ("See what it would do, and what would be lost:", "walship promote --dry-run"),
    ("Do it:", "walship promote"),
]))]
pub struct Args {
    /// Go on where it would be refused, and accept what that costs
    #[arg(long)]
    force: bool,
    /// Only say what would be done and what it would cost
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    overrides: Overrides,
}

/// Asks the sidecar of this node.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let store = store_of(&args.overrides)?;
    let done = runtime()?.block_on(async {
        let client = Client::connect(&store).await?;
        client.promote(args.force, args.dry_run, |line| eprintln!("{line}")).await
    })?;
    output::print(&format!("{done}\n"))?;
    Ok(Exit::Done)
}
