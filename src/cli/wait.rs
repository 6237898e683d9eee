//! `walship wait`: until this node shows a position.

use super::exit::{self, Exit};
use super::{output, runtime, store_of};
use crate::config::Overrides;
use crate::daemon::control::Client;
use crate::fault::{Outcome, WithFault};
use crate::pg::{Lsn, TimelineId};
use crate::report::wait::{Timeout, Wait};

/// Wait until this standby has replayed a position: read your own writes
///
/// After a commit, `SELECT pg_current_wal_insert_lsn()` on the primary gives a position that the commit is not beyond. Once
/// a standby has replayed it, the standby's readers see the commit. On a primary it is waited for until it is flushed.
///
/// A position alone does not say which history it is of. After a promotion, one that the old primary gave last may be
/// past the fork, where the new history has other WAL. With --timeline that is noticed; without, it is not.
#[derive(clap::Args, Debug)]
#[command(after_long_help = exit::explained(&[
    (0, "the position is replayed"),
    (1, "it was not in time"),
    (2, "wrong usage"),
    (3, "it never will be: a promotion left it behind (with --timeline)"),
    (4, "unknown: PostgreSQL or the sidecar does not answer"),
], &[
    ("With a position from the primary, on the standby's host:",
     "walship wait --lsn 16/B374D848 --timeout 2s"),
    ("With its timeline, the first 8 digits of pg_walfile_name(LSN):",
     "walship wait --lsn 16/B374D848 --timeline 3"),
]))]
pub struct Args {
    /// Wait for this position, such as 16/B374D848
    #[arg(long, value_name = "LSN")]
    lsn: Lsn,
    /// Wait no longer than this, such as 500ms or 5s; at most 1h
    #[arg(long, value_name = "TIME", default_value_t = Timeout::DEFAULT)]
    timeout: Timeout,
    /// The timeline that the position is of, in decimal
    #[arg(long, value_name = "NUMBER", value_parser = timeline)]
    timeline: Option<TimelineId>,
    #[command(flatten)]
    overrides: Overrides,
}

fn timeline(text: &str) -> Result<TimelineId, String> {
    let number = text.parse().ok().filter(|number| *number > 0);
    number.map(TimelineId).ok_or_else(|| "a timeline is a whole number from 1".to_owned())
}

/// Asks the sidecar of this node.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let store = store_of(&args.overrides)?;
    let wait = Wait { lsn: args.lsn, timeline: args.timeline, timeout: args.timeout };
    let done = runtime()?.block_on(async {
        // Where there is no sidecar to ask, nothing is known.
        Client::connect(&store).await.outcome(Outcome::Unknown)?.wait(&wait).await
    })?;
    output::print(&format!("{done}\n"))?;
    Ok(Exit::Done)
}
