//! Following the best source there is, for as long as this node is a standby.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::fitness::{Fitness, Supply};
use super::fork;
use super::node::Node;
use super::trouble;
use super::upstreams::{self, Gone, Search, Source};
use crate::clock::WallTime;
use crate::failpoint;
use crate::fault::Fault;
use crate::link::LinkError;
use crate::link::handshake::Mismatch;
use crate::link::message::{Code, Route, Standing};
use crate::pg::{Lsn, TimelineId};
use crate::receive::{self, Diverged, Receiving};
use crate::store::Log;
use crate::vitals::Contact;

/// Where a copy that is being made begins: a store that is empty, or does not lead there, begins there, too.
type Start = Option<(TimelineId, Lsn)>;

const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(2);

/// A stream that lasted for this long was one; the next try follows soon.
const STREAM_HOLDS_AFTER: Duration = Duration::from_secs(2);

/// How following ends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum End {
    /// It was told to.
    Stopped,
    /// This node has to go back to where its timeline was left, as it has noted.
    PastFork,
    /// What follows is kept nowhere any more, or not for one that went past it, and this node may be seeded anew by itself.
    LogGone {
        /// What each node that was asked has.
        reason: String,
    },
}

/// Follows whichever source is best, until `token` is cancelled.
pub async fn run(node: Arc<Node>, start: Start, token: CancellationToken) -> End {
    let mut search = Search::new(&node, start);
    let mut delay = RETRY_MIN;
    let mut was_emptied = false;
    let mut reasons = Reasons::default();
    let mut since = WallTime::now();
    loop {
        // Not dropped at the token but ended by it, so that the store's writer is free when this returns.
        let begun = Instant::now();
        let ended = attempt(&mut search, &node, start, &token).await;
        if token.is_cancelled() {
            return End::Stopped;
        }
        let was_up = matches!(node.vitals.receive.get().contact, Contact::Up { .. });
        if was_up {
            since = WallTime::now();
        }
        // An upstream that lets us in and refuses us then is not asked at full speed.
        if was_up && begun.elapsed() >= STREAM_HOLDS_AFTER {
            (delay, reasons) = (RETRY_MIN, Reasons::default());
        }
        let mut error = ended.err().unwrap_or_else(|| anyhow::anyhow!("the upstream ended the stream"));
        let mut needs_seed = Lost::of(&error) == Some(Lost::Gone);
        if let Some(past) = fork::of(&error).filter(|_| start.is_none()) {
            match fork::note(&node, past).await {
                Ok(Ok(())) => return End::PastFork,
                Ok(Err(mixed)) => (error, needs_seed) = (error.context(mixed), true),
                Err(failed) => {
                    error = failed.context("see whether this node can go back to where its timeline was left")
                }
            }
        }
        if start.is_none() && needs_seed && node.may_reseed_now() {
            return End::LogGone { reason: format!("{error:#}") };
        }
        if let Some(lost) = Lost::of(&error).filter(|_| start.is_some() && !was_emptied) {
            match empty(&node, lost, &error).await {
                Ok(()) => was_emptied = true,
                Err(error) => tracing::warn!("the store can't be emptied: {error:#}"),
            }
            continue;
        }
        reasons.note(&error);
        let contact = Contact::Trying { since, error: Some(in_words(&error)) };
        node.vitals.receive.update(|vitals| vitals.contact = contact);
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            () = token.cancelled() => return End::Stopped,
        }
        delay = (delay * 2).min(RETRY_MAX);
    }
}

/// Empties the store, which does not lead to where the copy begins.
async fn empty(node: &Arc<Node>, lost: Lost, reason: &anyhow::Error) -> anyhow::Result<()> {
    let (log, becomes) = match lost {
        Lost::Gone => (Log::Remove, "it is removed"),
        Lost::Diverged => (Log::SetAside, "it is set aside in the store's folder `capsules`"),
    };
    tracing::warn!("the log that is here does not lead to where the copy begins ({reason:#}): {becomes}");
    node.blocking("empty the store", move |node| node.store.reset(log)).await??;
    // The positions of the log that is gone are nobody's any more.
    node.vitals.feed.update(|feed| *feed = Default::default());
    Ok(())
}

/// Finds the best source and follows it, and whatever is better, until the stream ends.
async fn attempt(
    search: &mut Search,
    node: &Arc<Node>,
    start: Start,
    token: &CancellationToken,
) -> anyhow::Result<()> {
    // An upstream that is asked for what can't be kept here sends it in vain.
    node.blocking("look for room in the store", |node| node.store.check_room()).await??;
    // Dropping a connection that is being made loses nothing.
    let found = tokio::select! {
        found = search.best() => found,
        () = token.cancelled() => return Ok(()),
    };
    let mut source = found?;
    while let Some(better) = follow(node, source, start, token).await? {
        source = better;
    }
    Ok(())
}

/// Why a stream is left.
enum Left {
    /// There is a better source, connected to.
    ForBetter(Box<Source>),
    /// A promotion that the upstream does not know of.
    Superseded { by: String },
    /// The upstream's own WAL comes from here.
    Loop(Mismatch),
}

/// Follows one source until the stream ends, or a better one is found: then that one.
async fn follow(
    node: &Arc<Node>,
    source: Source,
    start: Start,
    token: &CancellationToken,
) -> anyhow::Result<Option<Source>> {
    let Source { conn, hello, address, fitness } = source;
    let version = hello.postgres_version;
    let mut upstream = Upstream { node: hello.node.clone(), epoch: 0, fitness: watch::Sender::new(fitness) };
    let said = Standing { route: hello.route.clone(), committed_epoch: hello.committed_epoch };
    if let Some(mismatch) = upstream.take(node, said, version).await? {
        return Err(LinkError::from(Box::new(mismatch)).into());
    }
    begin(node, &upstream.node, &address);
    let (leave, leaving) = watch::channel(None);
    let receiving = Receiving {
        node: node.config.name.clone(),
        store: node.store.clone(),
        start,
        vitals: Arc::clone(&node.vitals),
        restartpoint: node.restartpoint.subscribe(),
        members: node.members.clone(),
        standing: watch::Sender::new(None),
        leave: leaving,
    };
    let mut standing = receiving.standing.subscribe();
    let stream = token.child_token();
    let mut receiving = std::pin::pin!(receive::run(conn, receiving, stream.clone()));
    let mut better =
        std::pin::pin!(upstreams::better(Arc::clone(node), address, upstream.fitness.subscribe()));
    let left = loop {
        // All branches are cancellation-safe: the stream and the search are pinned outside, the others only wait.
        tokio::select! {
            ended = &mut receiving => {
                node.stand_on(Route::alone(&node.config.name));
                return ended.map(|()| None);
            }
            by = superseded(node, upstream.epoch) => break Left::Superseded { by },
            source = &mut better => break Left::ForBetter(Box::new(source)),
            Ok(()) = standing.changed() => {
                let Some(said) = standing.borrow_and_update().clone() else { continue };
                if let Some(mismatch) = upstream.take(node, said, version).await? {
                    break Left::Loop(mismatch);
                }
            }
        }
    };
    match &left {
        // It ends the stream once the upstream has been told.
        Left::Loop(mismatch) => drop(leave.send_replace(Some(mismatch.reject()))),
        Left::ForBetter(_) | Left::Superseded { .. } => stream.cancel(),
    }
    let ended = receiving.await;
    conclude(node, upstream.node, left, ended)
}

/// Says whose WAL comes from now on.
fn begin(node: &Node, upstream: &str, address: &str) {
    tracing::info!(%upstream, %address, "following");
    node.vitals.receive.update(|vitals| {
        vitals.contact = Contact::Up { since: WallTime::now() };
        vitals.upstream = upstream.to_owned();
        vitals.upstream_address = address.to_owned();
    });
}

/// What follows from leaving a stream that `ended` so.
fn conclude(
    node: &Node,
    upstream: String,
    left: Left,
    ended: anyhow::Result<()>,
) -> anyhow::Result<Option<Source>> {
    match left {
        // Those below need not hear of the moment in between.
        Left::ForBetter(source) => {
            ended?;
            tracing::info!(from = %upstream, to = %source.hello.node, "moving to a better upstream");
            Ok(Some(*source))
        }
        Left::Superseded { by } => {
            node.stand_on(Route::alone(&node.config.name));
            ended?;
            Err(Superseded { node: upstream, by }.into())
        }
        Left::Loop(mismatch) => {
            node.stand_on(Route::alone(&node.config.name));
            Err(LinkError::from(Box::new(mismatch)).into())
        }
    }
}

/// The node that is followed, as it last said what it stands on.
struct Upstream {
    node: String,
    /// The highest epoch that it knew to be committed.
    epoch: u64,
    fitness: watch::Sender<Fitness>,
}

impl Upstream {
    /// Notes what the upstream stands on, durably, and stands on it. A way that leads through this node is a loop: the
    /// one of it that is to leave gets the reason, and the others go on, for the loop is about to end.
    async fn take(
        &mut self,
        node: &Arc<Node>,
        said: Standing,
        version: Option<u32>,
    ) -> anyhow::Result<Option<Mismatch>> {
        let Standing { route, committed_epoch } = said;
        self.epoch = self.epoch.max(committed_epoch);
        let noted = node.blocking("note the upstream's epoch", move |node| {
            failpoint::hit("follow-stand");
            node.store.update_state(|state| {
                state.learn(committed_epoch);
                state.server_version = version.unwrap_or(state.server_version);
            })
        });
        noted.await?.context("note the upstream's epoch")?;
        let below = match route.below(&node.config.name) {
            Ok(below) => below,
            Err(found) if found.is_ours_to_break => {
                let (source_node, target_node) = (self.node.clone(), node.config.name.clone());
                return Ok(Some(Mismatch::Loop { source_node, target_node, route }));
            }
            Err(found) => found.cut,
        };
        let supply = if below.from_primary { Supply::Flowing } else { Supply::Dry };
        self.fitness.send_if_modified(|fitness| std::mem::replace(&mut fitness.supply, supply) != supply);
        node.stand_on(below);
        Ok(None)
    }
}

/// Waits until a promotion is heard of that is above an epoch; the node that was promoted. Cancellation-safe.
async fn superseded(node: &Node, epoch: u64) -> String {
    let mut newer_primary = node.newer_primary.subscribe();
    let newer = newer_primary.wait_for(|newer| newer.as_ref().is_some_and(|(newer, _)| *newer > epoch)).await;
    newer.ok().and_then(|newer| newer.as_ref().map(|(_, name)| name.clone())).unwrap_or_default()
}

/// The upstream is the primary no more.
#[derive(Debug, thiserror::Error)]
#[error("{node} was superseded by {by}")]
struct Superseded {
    node: String,
    by: String,
}

/// Why a standby that reaches others still can't go on where its log ends: it must be seeded anew.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lost {
    /// What follows is kept nowhere any more.
    Gone,
    /// It holds what the primary never had, or is on another branch.
    Diverged,
}

impl Lost {
    fn of(error: &anyhow::Error) -> Option<Lost> {
        if Fault::find::<Gone>(error).is_some() {
            return Some(Lost::Gone);
        }
        let code = match Fault::find(error) {
            Some(LinkError::Rejected(reject)) => Some(reject.code),
            Some(LinkError::Mismatch(mismatch)) => Some(mismatch.code()),
            _ => None,
        };
        let has_diverged = matches!(code, Some(Code::Diverged | Code::TimelineIdentity))
            || Fault::find::<Diverged>(error).is_some();
        has_diverged.then_some(Lost::Diverged)
    }
}

/// Why this node does not follow, with the next step where it does not pass by itself.
fn in_words(error: &anyhow::Error) -> String {
    match Lost::of(error) {
        Some(_) => format!("{error:#}; it must be seeded anew: `walship standby --reseed`"),
        None => format!("{error:#}"),
    }
}

/// Says each reason once while it lasts, at the level that fits it.
#[derive(Default)]
struct Reasons(Option<String>);

impl Reasons {
    fn note(&mut self, error: &anyhow::Error) {
        let reason = format!("{error:#}");
        let rejected = match error.downcast_ref() {
            Some(LinkError::Rejected(reject)) => Some(reject.code),
            _ => None,
        };
        let lost = Lost::of(error);
        // The words of a refusal change with the positions in them.
        let key = match (rejected, lost) {
            (Some(code), _) => format!("{code:?}"),
            (None, Some(lost)) => format!("{lost:?}"),
            (None, None) => reason.clone(),
        };
        if self.0.replace(key.clone()) == Some(key) {
            return;
        }
        if lost.is_some() {
            tracing::error!("this standby can't follow: {}", in_words(error));
        } else if is_passing(error) {
            tracing::info!("not following: {reason}");
        } else {
            tracing::warn!("not following: {reason}");
        }
    }
}

/// Whether what keeps this node from following is likely to be over without a person.
fn is_passing(error: &anyhow::Error) -> bool {
    let code = match error.downcast_ref() {
        Some(LinkError::Rejected(reject)) => Some(reject.code),
        Some(LinkError::Mismatch(mismatch)) => Some(mismatch.code()),
        _ => None,
    };
    // Of a promotion not everybody hears at the same moment.
    matches!(code, Some(Code::Route | Code::Removed | Code::Epoch))
        || error.downcast_ref::<LinkError>().is_some_and(LinkError::is_gone)
        || error.downcast_ref::<Superseded>().is_some()
        // The store itself tells of its disk.
        || trouble::is_of_disk(error)
        || error.to_string().starts_with("no primary")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::message::Reject;

    #[test]
    fn an_upstream_that_has_not_heard_of_a_promotion_yet_is_no_news_for_a_person() {
        let rejected = |code| {
            let reject = Reject {
                code,
                message: "db1 knows of promotions up to epoch 34".into(),
                hint: String::new(),
            };
            anyhow::Error::from(LinkError::Rejected(Box::new(reject)))
        };
        assert!(
            [Code::Epoch, Code::Route, Code::Removed].into_iter().all(|code| is_passing(&rejected(code)))
        );
        assert!(![Code::Diverged, Code::Certificate].into_iter().any(|code| is_passing(&rejected(code))));
    }
}
