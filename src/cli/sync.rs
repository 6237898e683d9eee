//! `walship sync`: what commits wait for, shown and changed.

use super::exit::{self, Exit};
use super::{output, runtime, store_of};
use crate::config::Overrides;
use crate::daemon::control::{Client, NewPolicy};
use crate::policy::{Policy, StallLimit};
use crate::report::table;

/// Show what commits wait for, or change it
///
/// Without a policy it shows the one in effect, who counts for it, and how far each level of synchronous_commit is
/// released. With one it changes it on the primary, at once and without a reconnect: a stricter policy takes effect
/// immediately, a weaker one when a quorum of the one before has stored it, so that no promotion can miss it.
///
/// A policy is async (nobody is waited for), any 1 (*) or any 2 (db2, db3, db4) (any so many of them), first 1 (db2, db3)
/// (the first of the list that are in step; when one drops the next takes its place), all, or chain (db2, db3) (the last
/// one, through whom it gets there). * and all mean the members that are known now.
///
/// With a stall limit commits go on without those who do not answer in time. Every report is critical meanwhile, and
/// `walship exposures` lists the WAL that is concerned.
#[derive(clap::Args, Debug)]
#[command(after_long_help = exit::explained(&[
    (0, "it is shown, or in effect"),
    (1, "it failed"),
    (2, "wrong usage"),
    (3, "refused and nothing changed"),
    (4, "set, but not known to be in effect: run it again"),
], &[
    ("See what commits wait for:", "walship sync"),
    ("Wait for one standby, whichever is first:", "walship sync 'any 1 (*)'"),
    ("The same, but no longer than two seconds:", "walship sync 'any 1 (*)' --stall-limit 2s"),
    ("Wait for nobody:", "walship sync async"),
]))]
pub struct Args {
    /// What commits are to wait for
    #[arg(value_name = "POLICY")]
    policy: Option<Policy>,
    /// How long they wait before they go on unprotected, such as 2s, or never; else as it was
    #[arg(long, value_name = "TIME", requires = "policy")]
    stall_limit: Option<StallLimit>,
    /// Take a weaker policy at once, without the quorum, and accept that a promotion may then miss commits
    #[arg(long, requires = "policy")]
    force: bool,
    #[command(flatten)]
    overrides: Overrides,
}

/// Asks the sidecar of this node.
pub fn run(args: &Args) -> anyhow::Result<Exit> {
    let store = store_of(&args.overrides)?;
    let said = runtime()?.block_on(async {
        let client = Client::connect(&store).await?;
        let Some(policy) = args.policy.clone() else {
            return Ok(table::commits(&client.status().await?));
        };
        let wanted = NewPolicy { policy, stall_limit: args.stall_limit, force: args.force };
        anyhow::Ok(client.sync(wanted, |line| eprintln!("{line}")).await? + "\n")
    })?;
    output::print(&said)?;
    Ok(Exit::Done)
}
