//! Finding the primary and following it, for as long as this node is a standby.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio_util::sync::CancellationToken;

use super::node::Node;
use super::trouble;
use crate::clock::WallTime;
use crate::config::Config;
use crate::fault::Fault;
use crate::link::message::{Code, Hello, Purpose, Role};
use crate::link::{Conn, LinkError, Socket, dial, handshake};
use crate::pg::{Lsn, TimelineId};
use crate::receive::{self, Diverged, Receiving};
use crate::store::{Log, State};
use crate::vitals::Contact;

const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(2);

/// A stream that lasted for this long was one; the next try follows soon.
const STREAM_HOLDS_AFTER: Duration = Duration::from_secs(2);

/// How following ends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum End {
    /// It was told to.
    Stopped,
    /// What follows is kept nowhere any more, and this node may be seeded anew by itself.
    LogGone {
        /// In the primary's words.
        reason: String,
    },
}

/// Follows whichever node is the primary, until `token` is cancelled. `start` is where a copy that is being made begins:
/// a store that is empty, or does not lead there, begins there, too.
pub async fn run(node: Arc<Node>, start: Option<(TimelineId, Lsn)>, token: CancellationToken) -> End {
    let mut delay = RETRY_MIN;
    let mut was_emptied = false;
    let mut reasons = Reasons::default();
    let mut since = WallTime::now();
    loop {
        // Not dropped at the token but ended by it, so that the store's writer is free when this returns.
        let begun = Instant::now();
        let ended = attempt(&node, start, &token).await;
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
        let error = ended.err().unwrap_or_else(|| anyhow::anyhow!("the upstream ended the stream"));
        let lost = Lost::of(&error);
        if start.is_none() && lost == Some(Lost::Gone) && node.may_reseed_now() {
            return End::LogGone { reason: format!("{error:#}") };
        }
        if let Some(lost) = lost.filter(|_| start.is_some() && !was_emptied) {
            match empty(&node, lost, &error).await {
                Ok(()) => was_emptied = true,
                Err(error) => tracing::warn!("the store can't be emptied: {error:#}"),
            }
            continue;
        }
        reasons.note(&error);
        let contact = Contact::Trying { since, error: Some(format!("{error:#}")) };
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

/// Tries each address once; follows the first that is a primary.
async fn attempt(
    node: &Arc<Node>,
    start: Option<(TimelineId, Lsn)>,
    token: &CancellationToken,
) -> anyhow::Result<()> {
    // An upstream that is asked for what can't be kept here sends it in vain.
    node.blocking("look for room in the store", |node| node.store.check_room()).await??;
    let mut failures = Vec::new();
    for address in addresses(node) {
        // Dropping a connection that is being made loses nothing.
        let connected = tokio::select! {
            connected = connect(node, &address) => connected,
            () = token.cancelled() => return Ok(()),
        };
        match connected {
            Ok((conn, hello)) => return follow(node, conn, hello, address, start, token).await,
            Err(error) => failures.push((address, error)),
        }
    }
    // The reason that a person can do most about comes last in the chain of attempts: a refusal says more than silence.
    let refusal = failures.iter().position(|(_, error)| {
        matches!(error.downcast_ref(), Some(LinkError::Rejected(reject)) if reject.code != Code::NotReady)
    });
    let told: Vec<String> = failures.iter().map(|(address, error)| format!("{address}: {error:#}")).collect();
    match refusal {
        Some(at) => Err(failures.swap_remove(at).1),
        None if told.is_empty() => Err(Fault::usage(
            "nobody to follow: there is no upstream and no member is known",
            "Set `upstream` in walship.toml to the primary's address.",
        )),
        None => Err(anyhow::anyhow!("no primary answers ({})", told.join("; "))),
    }
}

/// Where a primary may be: as configured, then as joined, then wherever a member is.
pub fn addresses(node: &Node) -> Vec<String> {
    addresses_of(&node.config, &node.store.state())
}

/// The same for a node that is not running.
pub fn addresses_of(config: &Config, state: &State) -> Vec<String> {
    let members = state.members.iter().filter(|m| m.name != config.name).map(|m| m.advertise.clone());
    let all = config
        .upstream
        .iter()
        .map(ToString::to_string)
        .chain(state.join_addresses.iter().cloned())
        .chain(members);
    let own = config.advertise.to_string();
    let mut unique: Vec<String> = Vec::new();
    for address in all.filter(|address| !address.is_empty() && *address != own) {
        if !unique.contains(&address) {
            unique.push(address);
        }
    }
    unique
}

/// Dials a node and shakes hands for a stream.
async fn connect(node: &Arc<Node>, address: &str) -> anyhow::Result<(Conn<Socket>, Hello)> {
    let mut link = dial::dial(address, &node.security()).await?;
    let ours = node.hello(Purpose::Stream);
    let hello = handshake::greet(&mut link.conn, &ours, link.identity.as_ref()).await?;
    anyhow::ensure!(hello.role == Role::Primary, "{} is {}", hello.node, hello.role.name());
    Ok((link.conn, hello))
}

async fn follow(
    node: &Arc<Node>,
    conn: Conn<Socket>,
    hello: Hello,
    address: String,
    start: Option<(TimelineId, Lsn)>,
    token: &CancellationToken,
) -> anyhow::Result<()> {
    let (epoch, version) = (hello.committed_epoch, hello.postgres_version);
    let noted = node.blocking("note the upstream's epoch", move |node| {
        node.store.update_state(|state| {
            state.committed_epoch = state.committed_epoch.max(epoch);
            state.promised_epoch = state.promised_epoch.max(state.committed_epoch);
            state.server_version = version.unwrap_or(state.server_version);
        })
    });
    noted.await?.context("note the upstream's epoch")?;
    tracing::info!(upstream = %hello.node, %address, "following");
    node.vitals.receive.update(|vitals| {
        vitals.contact = Contact::Up { since: WallTime::now() };
        vitals.upstream = hello.node.clone();
        vitals.upstream_address = address;
    });
    let receiving = Receiving {
        store: node.store.clone(),
        start,
        vitals: Arc::clone(&node.vitals),
        restartpoint: node.restartpoint.subscribe(),
        members: node.members.clone(),
    };
    let stream = token.child_token();
    let mut newer_primary = node.newer_primary.subscribe();
    let mut receiving = std::pin::pin!(receive::run(conn, receiving, stream.clone()));
    // Both branches are cancellation-safe: the stream is pinned outside and goes on below.
    let newer = tokio::select! {
        ended = &mut receiving => return ended,
        newer = newer_primary.wait_for(|newer| newer.as_ref().is_some_and(|(newer, _)| *newer > epoch)) => {
            newer.ok().and_then(|newer| newer.as_ref().map(|(_, name)| name.clone())).unwrap_or_default()
        }
    };
    stream.cancel();
    receiving.await?;
    Err(Superseded { node: hello.node, by: newer }.into())
}

/// The upstream is the primary no more.
#[derive(Debug, thiserror::Error)]
#[error("{node} was superseded by {by}")]
struct Superseded {
    node: String,
    by: String,
}

/// Why a standby that reaches its primary still can't go on where its log ends: it must be seeded anew.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lost {
    /// What follows is kept nowhere any more.
    Gone,
    /// It holds what the primary never had, or is on another branch.
    Diverged,
}

impl Lost {
    fn of(error: &anyhow::Error) -> Option<Lost> {
        let code = match Fault::find(error) {
            Some(LinkError::Rejected(reject)) => Some(reject.code),
            Some(LinkError::Mismatch(mismatch)) => Some(mismatch.code()),
            _ => None,
        };
        match code {
            Some(Code::Removed) => Some(Lost::Gone),
            Some(Code::Diverged | Code::TimelineIdentity) => Some(Lost::Diverged),
            _ => Fault::find::<Diverged>(error).map(|_| Lost::Diverged),
        }
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
        let passing = error.downcast_ref::<LinkError>().is_some_and(LinkError::is_gone)
            || error.downcast_ref::<Superseded>().is_some()
            // The store itself tells of its disk.
            || trouble::is_of_disk(error)
            || reason.starts_with("no primary");
        // The words of a refusal change with the positions in them.
        let key = rejected.map_or_else(|| reason.clone(), |code| format!("{code:?}"));
        if self.0.replace(key.clone()) == Some(key) {
            return;
        }
        if Lost::of(error).is_some() {
            tracing::error!(
                "this standby can't follow: {reason}; it must be seeded anew: `walship standby --reseed`"
            );
        } else if passing {
            tracing::info!("not following: {reason}");
        } else {
            tracing::warn!("not following: {reason}");
        }
    }
}
