//! `walship rejoin`: an old primary becomes a standby.

use super::exit::{self, Exit};
use super::{have_done, only_with_long_help, say};
use crate::config::Overrides;

/// Make this old primary a standby of the one that took its place
///
/// Its PostgreSQL is stopped. If the new primary has all that was written here, it follows as it is. If not, what the new
/// primary never had is first kept in the store's folder `capsules`; then the data directory is compared with the new
/// primary's, and what differs is taken. After a switchover, or with auto_rejoin, an old primary does this by itself.
#[derive(clap::Args, Debug)]
#[command(mut_args(only_with_long_help))]
#[command(after_long_help = exit::explained(&[
    (0, "it follows, or is being made equal and follows then"),
    (1, "it failed: run it again"),
    (2, "wrong usage"),
    (3, "refused and nothing changed"),
    (4, "the outcome is unknown: run it again"),
], &[
    ("See whether anything would be lost:", "walship rejoin --dry-run"),
    ("Do it:", "walship rejoin"),
]))]
pub struct Args {
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    overrides: Overrides,
}

/// Asks the sidecar of this node.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    have_done(&args.overrides, async |client| client.rejoin(args.dry_run, say).await)
}
