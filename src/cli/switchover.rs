//! `walship switchover`: the primary hands over to a standby.

use super::exit::{self, Exit};
use super::outcome::{self, Format};
use super::{only_with_long_help, say};
use crate::config::Overrides;
use crate::daemon::control::Switchover;

/// Hand over from the primary to a standby, without a loss
///
/// The sidecar of the old primary stops its PostgreSQL cleanly and ships all of its WAL, the shutdown checkpoint included;
/// the standby takes all that, is promoted, and the others follow it. Clients of the old primary are disconnected, and
/// writes are refused from the stop to the promotion. When it can't be done the old primary is started again. May be run
/// on any node.
#[derive(clap::Args, Debug)]
#[command(mut_args(only_with_long_help))]
#[command(after_long_help = exit::explained(&[
    (0, "the standby is the primary"),
    (1, "it failed, and the old primary goes on"),
    (2, "wrong usage"),
    (3, "refused and nothing changed: it says why"),
    (4, "the outcome is unknown: run it again, or look at `walship status`"),
], &[
    ("See who would take over, and whether it can:", "walship switchover --dry-run"),
    ("Hand over to db2:", "walship switchover --to db2"),
]))]
pub struct Args {
    /// The standby that takes over, else the one that is in step with the highest priority
    #[arg(long, value_name = "NAME")]
    to: Option<String>,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
    /// How to print the outcome
    ///
    /// json: the certificate as it is kept, with --dry-run the plan, or why it was refused; nothing else is on standard
    /// output.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    #[command(flatten)]
    overrides: Overrides,
}

/// Asks the sidecar of this node.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let wanted = Switchover { to: args.to.clone(), dry_run: args.dry_run };
    outcome::print_of(args.format, &args.overrides, async |client| client.switchover(wanted, say).await)
}
