//! `walship rejoin`: an old primary becomes a standby.

use super::exit::{self, Exit};
use super::{have_done, only_with_long_help, say};
use crate::config::Overrides;
use crate::daemon::control::Method;

/// Make this old primary a standby of the one that took its place
///
/// Its PostgreSQL is stopped. If the new primary has all that was written here, it follows as it is. If not, what the new
/// primary never had is first kept in the store's folder `capsules`. Then this host's pg_rewind takes the data directory
/// back: what it reads at the new primary comes through the sidecars, and WAL that PostgreSQL no longer has from the store.
/// Where that can't work, the data directory is compared with the new primary's, and what differs is taken. The
/// configuration of this host stays. After a switchover, or with auto_rejoin, an old primary does this by itself.
///
/// Until it has ended, PostgreSQL refuses to be started by hand: the data directory's permissions are 0720 meanwhile.
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
    /// How a data directory is brought back that went past the new primary's
    #[arg(long, value_enum, default_value_t, value_name = "METHOD")]
    method: Method,
    #[command(flatten)]
    overrides: Overrides,
}

/// Asks the sidecar of this node.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    have_done(&args.overrides, async |client| client.rejoin(args.method, args.dry_run, say).await)
}
