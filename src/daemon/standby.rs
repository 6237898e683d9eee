//! The stages of a standby: receive, feed, and the promotion that ends it.

use std::sync::Arc;

use anyhow::Context;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::node::Node;
use super::promotion;
use super::request::{Done, Request};
use super::{by_hand, follow, members, order, postgres, rejoin, reseed, retention, samples, trouble, votes};
use crate::clock::WallTime;
use crate::feed::{self, ServerVersion};
use crate::link::message::Route;
use crate::pg::{postmaster, sql};
use crate::store::{NodeRole, State, StoreError};

/// How the life of a standby ends.
pub enum End {
    /// The node ends.
    Stopped,
    /// It is the primary now.
    Promoted,
    /// Somebody asks for its data directory to be made anew of what is there.
    Reseed(reseed::Request),
    /// It has to go back to where its timeline was left, as it has noted.
    PastFork,
    /// It can't follow any more, and seeds itself anew.
    LogGone {
        /// In the primary's words.
        reason: String,
    },
}

/// What may be asked of a standby.
pub struct Requests {
    /// Promotions.
    pub promotions: mpsc::Receiver<Request>,
    /// Re-seeds.
    pub reseeds: mpsc::Receiver<reseed::Request>,
    /// Votes.
    pub freezes: votes::Freezes,
    /// What only a primary that was left behind is asked.
    pub rejoins: mpsc::Receiver<rejoin::Request>,
}

/// Runs until the node ends, is promoted, or is to be seeded anew.
pub async fn run(node: Arc<Node>, requests: &mut Requests) -> anyhow::Result<End> {
    let noting = async {
        trouble::until_noted(&node, "note the role", become_standby).await?;
        let taken = node.blocking("take an own promise back", |node| {
            node.store.update_state(|state| votes::take_own_back(state, &node.config.name))
        });
        trouble::unless_of_disk(taken.await?)?;
        let closed = node.blocking("close an exposure", close_exposure).await?;
        trouble::unless_of_disk(closed)?;
        std::future::pending().await
    };
    node.stand_on(Route::alone(&node.config.name));
    node.role.send_replace(NodeRole::Standby);
    node.stays_down.send_replace(false);
    let token = node.token.child_token();
    let mut feeding = node.tasks.spawn(serve_feed(Arc::clone(&node), token.clone()));
    // The first that ends by itself has failed: each of them runs as long as the standby.
    let ended = tokio::select! {
        failed = noting => failed,
        ended = follow_until_asked(&node, requests) => ended,
        ended = members::mirror(Arc::clone(&node)) => ended.map(|()| End::Stopped),
        ended = retention::run(Arc::clone(&node)) => ended.map(|()| End::Stopped),
        ended = samples::keep(Arc::clone(&node)) => ended.map(|()| End::Stopped),
        ended = postgres::watch_restartpoint(Arc::clone(&node)) => ended.map(|()| End::Stopped),
        failed = start_postgres(&node) => failed,
        failed = feed_failed(&mut feeding) => failed,
        () = node.token.cancelled() => Ok(End::Stopped),
    };
    token.cancel();
    if !feeding.is_finished() {
        // Its socket is free when this returns.
        feeding.await.context("stop feeding PostgreSQL")??;
    }
    if let Ok(End::Stopped) = ended {
        // Whom it heard of last, a promotion after the next start must ask.
        trouble::unless_of_disk(node.blocking("keep the members", members::note).await?)?;
    }
    ended
}

/// Starts PostgreSQL when it is down, and would start as a standby. It may replay for long, and it is fed and can be asked
/// about meanwhile.
async fn start_postgres(node: &Arc<Node>) -> anyhow::Result<End> {
    let looked = node.blocking("look for PostgreSQL", |node| {
        Ok(postmaster::is_running(&node.config.postgres.data_directory)? || by_hand::is_promoted(node))
    });
    let leave: std::io::Result<bool> = looked.await?;
    if !leave.context("look for PostgreSQL")? {
        tracing::info!("starting PostgreSQL");
        postgres::start(&node.config).await?;
    }
    std::future::pending().await
}

/// What a primary left open is over: no commit is released here any more, and none beyond the end of the WAL was.
fn close_exposure(node: &Node) -> Result<(), StoreError> {
    let end = node.store.positions().borrow().appended;
    node.store.update_exposures(|log| log.close(end, WallTime::now(), "this node is a standby now"))
}

/// What a standby's state says of it. Promoted, it goes on with what it was told.
fn become_standby(state: &mut State) {
    state.role = Some(NodeRole::Standby);
    state.configured = None;
    // Where this node was the primary, that is over; a vote that stopped it has come to its end.
    if let Some(superseded) = state.superseded.take() {
        state.learn(superseded.epoch);
    }
    state.rewind = None;
    state.promise.take_if(|promise| promise.stops_primary);
}

async fn serve_feed(node: Arc<Node>, token: CancellationToken) -> anyhow::Result<()> {
    // The version comes from the primary with the first Hello; before it nothing is in the store to feed.
    let mut positions = node.store.positions();
    let known = tokio::select! {
        known = positions.wait_for(|at| at.timeline.is_some()) => known.is_ok(),
        () = token.cancelled() => false,
    };
    if !known {
        return Ok(());
    }
    let options = feed::Options {
        folder: node.config.feed_folder(),
        client_uid: rustix::process::getuid().as_raw(),
        server_version: ServerVersion::new(sql::ServerVersion(node.store.state().server_version).to_string()),
    };
    feed::run(options, node.store.clone(), Arc::clone(&node.vitals), node.replies.clone(), token).await
}

async fn feed_failed(feeding: &mut tokio::task::JoinHandle<anyhow::Result<()>>) -> anyhow::Result<End> {
    feeding.await.context("feed PostgreSQL")??;
    std::future::pending().await
}

/// Follows, and votes and promotes when that is asked for; a promotion that fails before it is committed leaves a standby.
async fn follow_until_asked(node: &Arc<Node>, requests: &mut Requests) -> anyhow::Result<End> {
    loop {
        let following = node.token.child_token();
        let mut follower = node.tasks.spawn(by_hand::follow_unless(Arc::clone(node), following.clone()));
        let asked = loop {
            // Cancellation-safe: a request is taken whole or stays in its channel.
            let request = tokio::select! {
                ended = &mut follower => match ended.context("follow the primary")?? {
                    follow::End::Stopped => return Ok(End::Stopped),
                    follow::End::PastFork => return Ok(End::PastFork),
                    follow::End::LogGone { reason } => return Ok(End::LogGone { reason }),
                },
                Some(freeze) = requests.freezes.recv() => break Asked::Freeze(freeze),
                Some(request) = requests.reseeds.recv() => break Asked::Reseed(request),
                Some(request) = requests.rejoins.recv() => {
                    request.answer_as_standby(node);
                    continue;
                }
                request = requests.promotions.recv() => request,
            };
            let Some(request) = request else { return Ok(End::Stopped) };
            if let Some((prepared, request)) = prepare(node, request).await {
                break Asked::Promotion(prepared, request);
            }
        };
        following.cancel();
        follower.await.context("stop receiving")??;
        match asked {
            Asked::Reseed(request) => return Ok(End::Reseed(request)),
            Asked::Freeze(freeze) => votes::freeze(node, freeze).await,
            Asked::Promotion(prepared, request) => {
                if promote(node, *prepared, request, requests).await {
                    return Ok(End::Promoted);
                }
            }
        }
    }
}

/// For what receiving ends.
enum Asked {
    Promotion(Box<promotion::Prepared>, Request),
    Freeze(votes::Freeze),
    Reseed(reseed::Request),
}

/// Looks at what a promotion would be. Whoever asked is answered when there is nothing to carry out here.
async fn prepare(node: &Arc<Node>, request: Request) -> Option<(Box<promotion::Prepared>, Request)> {
    match promotion::look(node, &request).await {
        Ok(promotion::Outlook::Here(prepared)) if !request.promotion.dry_run => {
            return Some((prepared, request));
        }
        Ok(promotion::Outlook::Here(prepared)) => {
            let plan = prepared.plan();
            let line = format!("epoch {} would be committed; nothing was changed", plan.epoch);
            request.answer(plan.json().map(|json| Done { line, json: Some(json) }).map_err(Into::into));
        }
        Ok(promotion::Outlook::Elsewhere(name, _)) if request.promotion.dry_run => {
            request.answer(Ok(Done::line(format!(
                "{name} would be promoted, the furthest of those who answer; nothing was changed"
            ))));
        }
        Ok(promotion::Outlook::Elsewhere(name, address)) => {
            let (node, tasks) = (Arc::clone(node), node.tasks.clone());
            tasks.spawn(async move {
                request.say(format!("{name} is the right one: promoting it")).await;
                let done = order::promote(&node, &address, &request).await;
                request.answer(done);
            });
        }
        Err(error) => request.answer(Err(error)),
    }
    None
}

/// Promotes this node; whether it is the primary now. Votes that are asked for meanwhile are refused: it stands itself.
async fn promote(
    node: &Arc<Node>,
    prepared: promotion::Prepared,
    request: Request,
    requests: &mut Requests,
) -> bool {
    let mut carried_out = Box::pin(promotion::carry_out(node, prepared, &request));
    let done = loop {
        // Cancellation-safe: the promotion is pinned outside, and a vote that is taken is answered at once.
        tokio::select! {
            done = &mut carried_out => break done,
            Some(freeze) = requests.freezes.recv() => {
                let busy = votes::Busy { candidate: node.config.name.clone() };
                // A candidate that has gone asks again.
                let _ = freeze.done.send(Err(busy.into()));
            }
        }
    };
    drop(carried_out);
    let is_promoted = done.is_ok();
    if let Err(error) = &done {
        tracing::warn!("the promotion failed, going on as a standby: {error:#}");
    }
    request.answer(done);
    is_promoted
}
