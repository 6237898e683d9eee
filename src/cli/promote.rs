//! `walship promote`: this standby becomes the primary.

use super::exit::{self, Exit};
use super::outcome::{self, Format};
use super::{only_with_long_help, say};
use crate::config::{Overrides, Size};
use crate::daemon::control::Promotion;

/// Make this standby the primary
///
/// Asks every known node first. Refuses while the primary's PostgreSQL still answers, when another standby is further
/// along, when less than a majority of the members answer or so few that a silent one may alone have commits that a policy
/// acknowledged, and while the replay here is paused or delayed; says which WAL may be lost. Then it stops receiving and
/// has the others vote, which stops them, too; makes sure that the old primary is down, pulls what others have, has
/// PostgreSQL replay all that, commits a new epoch and promotes. Up to the commit a failure takes everything back. The
/// other standbys follow by themselves. A PostgreSQL that was promoted by hand is adopted.
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
    ("Promote whichever standby is the furthest:", "walship promote --elect"),
    (
        "With two nodes, when the lost one can be switched off from here:",
        "walship promote --fence-command 'ipmitool -H db1-bmc power off'",
    ),
]))]
pub struct Args {
    /// Go on where it would be refused, and accept what that costs
    #[arg(long)]
    force: bool,
    /// Only say what would be done and what it would cost
    #[arg(long)]
    dry_run: bool,
    /// Promote whichever standby is the right one: the furthest, then the highest priority
    #[arg(long)]
    elect: bool,
    /// Refuse when more may be lost than this, 0 or a size like 16MiB
    ///
    /// 0: unless it is proven that nothing is lost that was acknowledged. A size: when more than that is known to be lost;
    /// what a primary wrote after it was last heard is known to nobody.
    #[arg(long, value_name = "BYTES", value_parser = loss)]
    max_loss: Option<u64>,
    /// Make sure with this command that the old primary is down, else what fence_command in walship.toml says
    ///
    /// Run by a shell, with WALSHIP_FENCE_NODE and WALSHIP_FENCE_ADDRESS, when the old primary's sidecar does not answer.
    /// It exits with 0 only when PostgreSQL there is down and stays down.
    #[arg(long, value_name = "COMMAND")]
    fence_command: Option<String>,
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
    let promotion = Promotion {
        force: args.force,
        dry_run: args.dry_run,
        elect: args.elect,
        switchover: false,
        max_loss_bytes: args.max_loss,
        fence_command: args.fence_command.clone(),
    };
    outcome::print_of(args.format, &args.overrides, async |client| client.promote(promotion, say).await)
}

/// Zero, or a size.
fn loss(text: &str) -> Result<u64, String> {
    match text {
        "0" => Ok(0),
        _ => text.parse::<Size>().map(|size| size.0).map_err(|error| error.to_string()),
    }
}
