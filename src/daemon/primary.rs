//! The stages of a primary: capture, and what serves those who follow.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::node::Node;
use super::standby::Requests;
use super::{
    ack, certificate, epochs, fence, members, promotion, rejoin, retention, samples, setting, trouble,
};
use crate::capture::{self, Back, Options};
use crate::pg::TimelineId;
use crate::pg::sql::Sql;
use crate::pg::sql::server::WalPositions;
use crate::store::Branch;
use crate::vitals::{StandbyFeedback, Vitals};

const RETRY: Duration = Duration::from_millis(500);

/// How the life of a primary ends.
pub enum End {
    /// The node ends.
    Stopped,
    /// It was left behind, and becomes a standby.
    Rejoined(rejoin::Way),
}

/// Runs until the node ends or rejoins. An error is one that a person must mend; what is in the store is shipped
/// meanwhile.
pub async fn run(node: Arc<Node>, requests: &mut Requests) -> anyhow::Result<End> {
    // A disk that takes no change keeps nothing from being captured.
    let noting = async {
        trouble::until_noted(&node, "note the role", promotion::note_primary).await?;
        std::future::pending().await
    };
    promotion::act_as_primary(&node);
    let token = node.token.child_token();
    let (feedback, wanted) = watch::channel(None);
    let back = Back { feedback: wanted, released: node.released.subscribe() };
    // The first that ends by itself has failed: each of them runs as long as the node.
    let ended = tokio::select! {
        failed = noting => failed,
        rejoined = rejoin::until_rejoined(&node, requests) => rejoined.map(End::Rejoined),
        ended = capture_while_up(&node, back, &token) => ended.map(|()| End::Stopped),
        never = certificate::finish(Arc::clone(&node)) => match never {},
        () = fence::keep_down(Arc::clone(&node)) => Ok(End::Stopped),
        ended = ack::run(Arc::clone(&node)) => ended.map(|()| End::Stopped),
        ended = setting::watch(Arc::clone(&node)) => ended.map(|()| End::Stopped),
        ended = members::keep(Arc::clone(&node)) => ended.map(|()| End::Stopped),
        ended = retention::run(Arc::clone(&node)) => ended.map(|()| End::Stopped),
        ended = epochs::tell(Arc::clone(&node)) => ended.map(|()| End::Stopped),
        ended = samples::keep(Arc::clone(&node)) => ended.map(|()| End::Stopped),
        () = pass_feedback(&node.vitals, feedback) => Ok(End::Stopped),
        () = node.token.cancelled() => Ok(End::Stopped),
    };
    token.cancel();
    let noted = node.blocking("keep the members' positions", members::note_positions).await?;
    let ended = ended?;
    trouble::unless_of_disk(noted)?;
    Ok(ended)
}

/// Captures, but not from a PostgreSQL that was stopped and is to stay down.
async fn capture_while_up(node: &Arc<Node>, back: Back, token: &CancellationToken) -> anyhow::Result<()> {
    let mut stays_down = node.stays_down.subscribe();
    loop {
        stays_down.wait_for(|down| !down).await.context("nobody tells whether it stays down")?;
        let capturing = token.child_token();
        let mut ended = std::pin::pin!(capture_all(node, back.clone(), &capturing));
        // Capture is not dropped but ended by its token, so that the store's writer is free then.
        tokio::select! {
            ended = &mut ended => return ended,
            _ = stays_down.wait_for(|down| *down) => capturing.cancel(),
        }
        ended.await?;
    }
}

/// Captures; when that is stopped for good, the rest goes on, and every report says so.
async fn capture_all(node: &Arc<Node>, back: Back, token: &CancellationToken) -> anyhow::Result<()> {
    let noted = note_version(node, token).await?;
    let adopted = adopted(node, token).await?;
    let options =
        Options { conninfo: node.conninfo.clone(), slot: node.config.slot.clone(), adopted: adopted.clone() };
    let adopting = async {
        if let Some((timeline, _)) = adopted {
            settle(node, timeline).await?;
        }
        std::future::pending::<anyhow::Result<()>>().await
    };
    let noting = async {
        let mut noted = noted;
        while !noted {
            tokio::time::sleep(RETRY).await;
            noted = note_version(node, token).await?;
        }
        std::future::pending::<anyhow::Result<()>>().await
    };
    let capturing = capture::run(options, node.store.clone(), &node.vitals, back, token.clone());
    let ended = tokio::select! {
        ended = capturing => ended,
        failed = adopting => return failed,
        failed = noting => return failed,
    };
    if let Err(error) = ended {
        tracing::error!("capture has stopped, and nothing new is shipped until a person acts: {error}");
        token.cancelled().await;
    }
    Ok(())
}

/// Keeps the server's version, which standbys and their walreceivers are told; false when it does not answer.
async fn note_version(node: &Arc<Node>, token: &CancellationToken) -> anyhow::Result<bool> {
    let connected = tokio::select! {
        connected = Sql::connect(&node.conninfo) => connected,
        () = token.cancelled() => return Ok(false),
    };
    let Ok(sql) = connected else { return Ok(false) };
    let version = sql.version().0;
    let noted = node.blocking("note the version", move |node| {
        node.store.update_state(|state| state.server_version = version)
    });
    Ok(trouble::unless_of_disk(noted.await?)?.is_some())
}

/// The timeline that a promotion of this node made, when the store does not have it yet.
async fn adopted(
    node: &Arc<Node>,
    token: &CancellationToken,
) -> anyhow::Result<Option<(TimelineId, Branch)>> {
    let Some(branch) = node.store.state().promoting else { return Ok(None) };
    loop {
        let asked = async { Sql::connect(&node.conninfo).await?.wal_positions().await };
        let wait = match asked.await {
            Ok(WalPositions::Primary { timeline, .. }) => return Ok(Some((timeline, branch))),
            Ok(WalPositions::Standby { .. }) => "PostgreSQL is still a standby".to_owned(),
            Err(error) => error.to_string(),
        };
        tracing::debug!("the new timeline is not known yet: {wait}");
        tokio::select! {
            () = tokio::time::sleep(RETRY) => {}
            () = token.cancelled() => return Ok(None),
        }
    }
}

/// The promotion is complete once its timeline is in the store.
async fn settle(node: &Arc<Node>, timeline: TimelineId) -> anyhow::Result<()> {
    let mut positions = node.store.positions();
    positions.wait_for(|at| at.timeline == Some(timeline)).await.context("the store was closed")?;
    trouble::until_noted(node, "complete the promotion", |state| state.promoting = None).await
}

/// What the standbys' feedback comes to: the least of each, as PostgreSQL itself would take it from several.
async fn pass_feedback(vitals: &Vitals, feedback: watch::Sender<Option<StandbyFeedback>>) {
    let mut downstreams = vitals.downstreams.watch();
    loop {
        let least = downstreams
            .borrow_and_update()
            .values()
            .filter_map(|down| down.feedback)
            .reduce(StandbyFeedback::least);
        feedback.send_if_modified(|current| std::mem::replace(current, least) != least);
        if downstreams.changed().await.is_err() {
            return;
        }
    }
}
