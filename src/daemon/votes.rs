//! A voter's part in an election: whether it promises, the promise, and what became of it.
//!
//! A promise is one durable write. It is made when nothing is received any more and all that was is on disk, so the
//! position that goes with it stands still. From then on this node takes WAL only from those who know that epoch to be
//! committed, or, when the candidate has taken it back, again from the primary that it had.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;

use super::ask::ask_within;
use super::node::Node;
use super::{accept, fence, hooks, postgres};
use crate::clock::WallTime;
use crate::failpoint;
use crate::fault::Fault;
use crate::link::message::{PostgresAnswer, Role, Vote, VoteRequest, Why, Withdrawal};
use crate::store::{Duty, NodeRole, Promise, State};

/// How long the primary has to answer, as long as it is looked for before a promise.
const PRIMARY_ANSWERS_WITHIN: Duration = Duration::from_secs(3);

/// How often a candidate is asked what became of its election.
const FOLLOW_UP_EVERY: Duration = Duration::from_secs(1);

/// Votes that may wait for the one before.
pub const VOTES_WAITING_MAX: usize = 8;

/// A promise to be made by a standby's life, which alone can stop receiving.
pub struct Freeze {
    /// What is promised.
    pub promise: Promise,
    /// Whether that is on disk.
    pub done: oneshot::Sender<anyhow::Result<()>>,
}

/// Where a standby's life takes its votes from.
pub type Freezes = mpsc::Receiver<Freeze>;

/// Votes, or says why not.
pub async fn vote(node: &Arc<Node>, request: VoteRequest) -> anyhow::Result<Vote> {
    let (epoch, candidate) = (request.epoch, request.candidate.clone());
    let given = match refusal(node, &request).await {
        Some(error) => Err(error),
        None => give(node, &request).await,
    };
    match &given {
        Ok(_) => {
            tracing::info!(%candidate, epoch, "voted: nothing is received and acknowledged until that election is over")
        }
        Err(why) => tracing::info!(%candidate, epoch, "did not vote: {why:#}"),
    }
    let answer = accept::account(node).await?;
    let stopped = given.as_ref().ok().copied().flatten();
    Ok(Vote {
        rival: given.as_ref().err().and_then(Fault::find::<Busy>).map(|busy| busy.candidate.clone()),
        refusal: given.err().map(|error| format!("{error:#}")),
        is_stopped: stopped.is_some(),
        ended_cleanly: stopped.is_some_and(|stopped| stopped.ended_cleanly),
        answer,
    })
}

/// Another node is being promoted.
#[derive(Debug, thiserror::Error)]
#[error("{candidate} is being promoted at this moment")]
pub struct Busy {
    /// Which.
    pub candidate: String,
}

/// Why this node does not vote.
async fn refusal(node: &Arc<Node>, request: &VoteRequest) -> Option<anyhow::Error> {
    let because = |why: String| Some(anyhow::anyhow!(why));
    let VoteRequest { epoch, candidate, why, .. } = request;
    let state = node.store.state();
    if *why == Why::Unknown {
        return because("it is asked for a reason that this version of walship does not know".to_owned());
    }
    if state.has_forgotten_name(candidate) {
        return because(format!("{candidate} was taken off the list of members"));
    }
    if state.known_epoch() >= *epoch {
        return because(format!("it knows of epoch {}, which was committed", state.known_epoch()));
    }
    match &state.promise {
        // The answer to the first time was lost, or it is asked together with the others now.
        Some(promise) if promise.epoch == *epoch && promise.candidate == *candidate => return None,
        Some(promise) if *why != Why::Forced && is_under_way(node, promise).await => {
            return Some(Busy { candidate: promise.candidate.clone() }.into());
        }
        _ => {}
    }
    if state.promised_epoch >= *epoch {
        return because(format!("it promised epoch {} before", state.promised_epoch));
    }
    if *why != Why::Loss {
        return None;
    }
    match node.role() {
        NodeRole::Primary if node.superseded_by().is_some() => None,
        NodeRole::Primary => match accept::ask_postgres(node).await {
            PostgresAnswer::Down { .. } => None,
            _ => because("its PostgreSQL is the primary, and runs".to_owned()),
        },
        NodeRole::Standby => because(primary_answers(node).await?),
    }
}

/// Whether the candidate of an election is at it.
async fn is_under_way(node: &Arc<Node>, promise: &Promise) -> bool {
    if promise.candidate == node.config.name {
        return true;
    }
    let asked = ask_within(node, &promise.address, PRIMARY_ANSWERS_WITHIN).await;
    let Ok((_, answer)) = asked else { return false };
    answer.promise.is_some_and(|theirs| theirs.epoch == promise.epoch)
}

/// That the primary answers here, in words.
async fn primary_answers(node: &Arc<Node>) -> Option<String> {
    let (name, address) = node.primary()?;
    if address.is_empty() {
        return None;
    }
    let (_, answer) = ask_within(node, &address, PRIMARY_ANSWERS_WITHIN).await.ok()?;
    let writes = matches!(answer.postgres, PostgresAnswer::Up { in_recovery: false, .. });
    (answer.role == Role::Primary && writes).then(|| format!("{name} answers it, and writes"))
}

/// Promises, durably; what became of a primary that was stopped for it.
async fn give(node: &Arc<Node>, request: &VoteRequest) -> anyhow::Result<Option<fence::Stopped>> {
    let stops = node.role() == NodeRole::Primary && node.superseded_by().is_none();
    // One that is asked again was stopped by the first time.
    let before = node.store.state().promise.filter(|promise| promise.stops_primary);
    let was_down = match before {
        Some(promise) => promise.was_down,
        None => stops && !postgres::runs(node).await?,
    };
    let promise = Promise {
        epoch: request.epoch,
        candidate: request.candidate.clone(),
        address: request.address.clone(),
        at: WallTime::now(),
        stops_primary: stops,
        was_down,
    };
    if node.role() == NodeRole::Standby {
        let (done, frozen) = oneshot::channel();
        node.freezes.try_send(Freeze { promise, done }).ok().context("it is busy with another election")?;
        frozen.await.context("it changes its role, or is being seeded")??;
        failpoint::hit("vote-promised");
        return Ok(None);
    }
    note(node, promise).await?;
    failpoint::hit("vote-promised");
    if !stops {
        return Ok(None);
    }
    let stopped = async {
        match hooks::before(node, Duty::Down).await {
            Err(error) if was_down || request.why == Why::Forced => {
                tracing::warn!("going on all the same: {error:#}");
            }
            ready => ready?,
        }
        fence::stop_for_vote(node).await
    };
    match stopped.await {
        Ok(stopped) => Ok(Some(stopped)),
        Err(error) => {
            settle_withdrawn(node).await?;
            Err(error)
        }
    }
}

/// Makes the promise of a standby whose receiving has stopped.
pub async fn freeze(node: &Arc<Node>, freeze: Freeze) {
    let noted = note(node, freeze.promise).await;
    // A candidate that has gone asks again, or is asked.
    let _ = freeze.done.send(noted);
}

async fn note(node: &Arc<Node>, promise: Promise) -> anyhow::Result<()> {
    let noted = node.blocking("promise the epoch", move |node| {
        node.store.sync()?;
        let mut outbid = None;
        node.store.update_state(|state| {
            let known = state.promised_epoch.max(state.known_epoch());
            let again = state.promise.as_ref().is_some_and(|given| given.epoch == promise.epoch);
            if known >= promise.epoch && !(again && known == promise.epoch) {
                outbid = Some(known);
                return;
            }
            state.promised_epoch = promise.epoch;
            state.promise = Some(promise);
        })?;
        match outbid {
            None => Ok(()),
            Some(epoch) => anyhow::bail!("it promised epoch {epoch} meanwhile"),
        }
    });
    noted.await?
}

/// Takes a candidate's word that its election is over, and nothing was committed.
pub async fn withdrawn(node: &Arc<Node>, withdrawal: &Withdrawal) -> anyhow::Result<()> {
    let is_ours =
        |promise: &Promise| promise.epoch == withdrawal.epoch && promise.candidate == withdrawal.candidate;
    if node.store.state().promise.as_ref().is_some_and(is_ours) {
        settle_withdrawn(node).await?;
    }
    Ok(())
}

/// The promise binds no more; a primary goes on as it was before.
async fn settle_withdrawn(node: &Arc<Node>) -> anyhow::Result<()> {
    let State { promise: Some(promise), superseded, .. } = node.store.state() else { return Ok(()) };
    // One that was left behind by another promotion meanwhile stays down.
    if promise.stops_primary && superseded.is_none() {
        fence::release(node, promise.was_down).await?;
    }
    let noted = node.blocking("note that an election is over", move |node| {
        let mut taken = None;
        node.store.update_state(|state| taken = state.promise.take_if(|given| *given == promise))?;
        if let Some(Promise { epoch, candidate, .. }) = taken {
            tracing::info!(%candidate, epoch, "the election was withdrawn: going on as before");
        }
        anyhow::Ok(())
    });
    noted.await?
}

/// A candidate that was stopped before its commit, which takes the promise with it, takes it back: it will not commit that
/// epoch.
pub fn take_own_back(state: &mut State, own: &str) {
    state.promise.take_if(|promise| promise.candidate == own);
}

/// What a person must know while this node is bound by its vote.
pub fn alarm(node: &Node) -> Option<String> {
    let state = node.store.state();
    let Promise { epoch, candidate, stops_primary, .. } = state.promise?;
    if candidate == node.config.name || state.superseded.is_some() {
        return None;
    }
    let waits = if stops_primary { "PostgreSQL stays down" } else { "no WAL is taken" };
    Some(format!(
        "epoch {epoch} was promised to {candidate}, and what became of that is not known: {waits} until {candidate} answers, or \
         another promotion is committed"
    ))
}

/// Asks the candidate what became of the election, as long as this node is bound by its vote, whatever it does meanwhile.
/// Runs until it is dropped.
pub async fn follow_up(node: Arc<Node>) -> Infallible {
    loop {
        sleep(FOLLOW_UP_EVERY).await;
        let Some(promise) = node.store.state().promise else { continue };
        if promise.candidate == node.config.name {
            continue;
        }
        if let Err(error) = look(&node, &promise).await {
            tracing::debug!(candidate = %promise.candidate, "what became of its election is not known: {error:#}");
        }
    }
}

/// Its Hello tells of a commit; without a promise of that epoch it will never come to one.
async fn look(node: &Arc<Node>, promise: &Promise) -> anyhow::Result<()> {
    let (_, answer) = ask_within(node, &promise.address, PRIMARY_ANSWERS_WITHIN).await?;
    let is_it = answer.node == promise.candidate;
    let goes_on = answer.promise.as_ref().is_some_and(|theirs| theirs.epoch == promise.epoch);
    if is_it && !goes_on && answer.committed_epoch < promise.epoch {
        let Promise { epoch, candidate, .. } = promise.clone();
        withdrawn(node, &Withdrawal { epoch, candidate }).await?;
    }
    Ok(())
}
