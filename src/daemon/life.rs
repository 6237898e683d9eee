//! One life after another: a node's roles, and what makes its data directory fit for the next.

use std::convert::Infallible;
use std::sync::Arc;

use super::node::Node;
use super::seed::{self, Seed};
use super::standby::{self, Requests};
use super::{fork, postgres, primary, rejoin, reseed, rewind};
use crate::failpoint;
use crate::fault::Fault;
use crate::restore::target::Standing;
use crate::store::NodeRole;

/// So often a PostgreSQL that is started while its files are to be made anew is stopped again.
const STARTS_MAX: u32 = 3;

/// How a node's life in this process begins.
pub enum Life {
    /// A primary's.
    Primary,
    /// A standby's.
    Standby,
    /// That of a node whose data directory is made a standby's first.
    Seeding(Seed),
    /// The same by pg_rewind, of a primary that was left behind.
    Rewinding(rewind::Plan),
}

impl Life {
    /// In a role.
    pub fn of(role: NodeRole) -> Life {
        match role {
            NodeRole::Primary => Life::Primary,
            NodeRole::Standby => Life::Standby,
        }
    }

    /// The role that it begins in.
    pub fn role(&self) -> NodeRole {
        match self {
            Life::Primary | Life::Rewinding(_) => NodeRole::Primary,
            Life::Standby | Life::Seeding(_) => NodeRole::Standby,
        }
    }
}

/// One role after another.
pub async fn live(node: &Arc<Node>, life: Life, requests: &mut Requests) -> anyhow::Result<()> {
    let mut life = Some(life);
    while let Some(now) = life {
        life = match now {
            Life::Primary => match primary::run(Arc::clone(node), requests).await? {
                primary::End::Stopped => None,
                primary::End::Rejoined(rejoin::Way::AsItIs) => Some(Life::Standby),
                primary::End::Rejoined(rejoin::Way::Anew(seed)) => Some(Life::Seeding(seed)),
                primary::End::Rejoined(rejoin::Way::Rewind(plan)) => Some(Life::Rewinding(plan)),
            },
            Life::Rewinding(plan) => {
                // Cancel-safe: a request is refused as soon as it is taken, and a pg_rewind that is dropped is ended.
                tokio::select! {
                    way = rewind::run(node, plan) => match way? {
                        rejoin::Way::Anew(seed) => Some(Life::Seeding(seed)),
                        _ => Some(Life::Standby),
                    },
                    never = refuse(node, requests) => match never {},
                }
            }
            Life::Standby => live_as_standby(node, None, requests).await?,
            Life::Seeding(seed) => live_as_standby(node, Some(seed), requests).await?,
        };
    }
    Ok(())
}

/// A standby's life, through every re-seed, to its end or its promotion.
async fn live_as_standby(
    node: &Arc<Node>,
    mut wanted: Option<Seed>,
    requests: &mut Requests,
) -> anyhow::Result<Option<Life>> {
    let mut asker: Option<reseed::Asker> = None;
    let mut was_whole = false;
    loop {
        if let Some(seed) = wanted.take() {
            let seeded = seed_anew(node, &seed, requests).await;
            let (answer, seeded) = reseed::outcome(node, seeded);
            if let Some(asker) = asker.take() {
                // Whoever asked may have gone.
                let _ = asker.send(answer);
            }
            match seeded {
                // Nothing was changed, and it is what it was.
                Err(error)
                    if was_whole
                        && matches!(super::standing(&node.config).await?, Standing::Cluster { .. }) =>
                {
                    tracing::error!("not seeded anew: {error:#}");
                }
                seeded => seeded?,
            }
        }
        was_whole = true;
        tokio::select! {
            () = fork::go_back(node) => {}
            never = refuse(node, requests) => match never {},
        }
        match standby::run(Arc::clone(node), requests).await? {
            standby::End::Stopped => return Ok(None),
            // Whoever asked for a promotion meanwhile is answered by the primary's life.
            standby::End::Promoted => return Ok(Some(Life::Primary)),
            standby::End::Reseed(request) => (wanted, asker) = (Some(request.seed), Some(request.done)),
            standby::End::PastFork => {}
            standby::End::LogGone { reason } => wanted = reseed::by_itself(node, &reason).await,
        }
    }
}

/// Makes the data directory a standby's; PostgreSQL is stopped for that.
async fn seed_anew(node: &Arc<Node>, seed: &Seed, requests: &mut Requests) -> anyhow::Result<()> {
    let mut starts = 0;
    loop {
        postgres::stop(&node.config).await?;
        // It may have been a primary, that was left behind.
        node.role.send_replace(NodeRole::Standby);
        // Its positions were those of what is made anew.
        node.vitals.feed.update(|feed| *feed = Default::default());
        // Cancel-safe: a request is refused as soon as it is taken.
        let seeded = tokio::select! {
            seeded = seed::run(node, seed) => seeded,
            never = refuse(node, requests) => match never {},
        };
        match seeded {
            // A service manager, as when the host boots, or a person. Nothing was changed yet, or it could not run.
            Err(error) if starts < STARTS_MAX && postgres::runs(node).await? => {
                starts += 1;
                tracing::warn!(
                    "PostgreSQL was started while it is to be seeded, and is stopped again: {error:#}"
                );
            }
            seeded => {
                seeded?;
                break;
            }
        }
    }
    failpoint::hit("join-copied");
    Ok(())
}

/// A data directory that is not complete, or that is being brought back to a fork, cannot become a primary's, and is seen
/// to already.
async fn refuse(node: &Node, requests: &mut Requests) -> Infallible {
    let refusal = || {
        if let Some(fork) = node.store.state().past_fork {
            return fork::refusal(node, fork);
        }
        Fault::refused(
            format!("{} is being seeded: its data directory is not complete", node.config.name),
            "Promote another standby, or wait until `walship status` shows no seeding here any more.",
        )
    };
    loop {
        // Whoever asked may have gone.
        tokio::select! {
            Some(request) = requests.promotions.recv() => request.answer(Err(refusal())),
            Some(request) = requests.reseeds.recv() => drop(request.done.send(Err(refusal()))),
            Some(request) = requests.rejoins.recv() => request.answer_as_standby(node),
            Some(freeze) = requests.freezes.recv() => drop(freeze.done.send(Err(refusal()))),
            else => std::future::pending().await,
        }
    }
}
