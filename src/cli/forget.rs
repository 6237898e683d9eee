//! `walship forget`: a member that is gone for good.

use super::exit::{self, Exit};
use super::{have_done, only_with_long_help, say};
use crate::config::Overrides;
use crate::daemon::control::Forget;

/// Take a member that is gone for good off the list
///
/// Run on the primary. No WAL is held for it any more, `*` and `all` no longer mean it, no promotion asks for it, and its
/// certificate lets it in nowhere: to come back, it needs a new invitation. A standby that does not hear of this, because
/// it is down, does when it follows again.
///
/// Refused while that node is connected, and while commits wait for a policy that names it: set another first. A policy
/// written with * or all goes on over the others, once they have what was acknowledged to clients so far; nothing is
/// changed when that takes longer than some seconds. One that would then wait for more than there are is refused: for the
/// only standby of a pair, `walship sync async` comes first.
#[derive(clap::Args, Debug)]
#[command(mut_args(only_with_long_help))]
#[command(after_long_help = exit::explained(&[
    (0, "it is off the list"),
    (1, "it failed"),
    (2, "wrong usage"),
    (3, "refused and nothing changed"),
    (4, "the outcome is unknown: run it again"),
], &[
    ("See what it holds back, and what would change:", "walship forget db3 --dry-run"),
    ("Do it:", "walship forget db3"),
]))]
pub struct Args {
    /// The member's name
    #[arg(value_name = "NAME")]
    member: String,
    /// Also when it is connected, which ends that, or when it alone may have commits that were acknowledged
    #[arg(long)]
    force: bool,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    overrides: Overrides,
}

/// Asks the sidecar of this node.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let wanted = Forget { name: args.member.clone(), force: args.force, dry_run: args.dry_run };
    have_done(&args.overrides, async |client| client.forget(wanted, say).await)
}
