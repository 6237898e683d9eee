//! Keeping the certificate of a promotion: what is known before the commit is on disk before it, the rest is added when
//! PostgreSQL has begun its timeline, by the promotion itself or, where that was interrupted, by the primary's life.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::time::sleep;

use super::by_hand;
use super::node::Node;
use crate::clock::WallTime;
use crate::failpoint;
use crate::pg::{Lsn, TimelineId};
use crate::promote::{Certificate, Known, Stake, kept};
use crate::store::Branch;

const RETRY_EVERY: Duration = Duration::from_secs(1);

/// Keeps what is known before a commit. One that was committed and did not come to its end stays as it is. Blocks.
pub fn draft(node: &Node, certificate: &Certificate) -> anyhow::Result<()> {
    let store = node.store.folder();
    if let Some(interrupted) = committed_draft(node)? {
        kept::keep(store, &interrupted)?;
    }
    kept::keep_draft(store, certificate)
}

/// What a promotion of this node put at stake, that was committed and has not come to its end. Blocks.
pub fn interrupted(node: &Node) -> anyhow::Result<Option<Stake>> {
    if node.store.state().promoting.is_none() {
        return Ok(None);
    }
    // Of one that is lost nothing is known.
    let from = node.store.positions().borrow().durable;
    let unknown = Stake::NothingKnown { from, known: Known::default() };
    Ok(Some(committed_draft(node)?.map_or(unknown, |certificate| certificate.verdict.stake)))
}

/// The draft, unless its epoch came to no commit. A damaged one keeps nobody from being promoted.
fn committed_draft(node: &Node) -> anyhow::Result<Option<Certificate>> {
    match kept::draft(node.store.folder())? {
        Some(Ok(certificate)) => Ok(Some(certificate).filter(|certificate| is_committed(node, certificate))),
        Some(Err(error)) => {
            tracing::error!("what was kept of an interrupted promotion is lost: {error}");
            Ok(None)
        }
        None => Ok(None),
    }
}

fn is_committed(node: &Node, certificate: &Certificate) -> bool {
    let branch = Some(Branch { epoch: certificate.epoch, node: certificate.node.clone() });
    let state = node.store.state();
    state.promoting == branch || state.timelines.iter().any(|timeline| timeline.branch == branch)
}

/// Completes the certificate of this node's promotion, once PostgreSQL has begun its timeline; how it is kept. `None` when
/// there is none to complete.
pub async fn complete(node: &Arc<Node>) -> anyhow::Result<Option<String>> {
    node.blocking("complete the certificate", |node| {
        let store = node.store.folder();
        let Some(mut certificate) = committed_draft(node)? else {
            kept::drop_draft(store)?;
            return Ok(None);
        };
        let (new, lsn) = begun(node, &certificate)?.context("PostgreSQL has not begun its timeline yet")?;
        (certificate.new_timeline, certificate.switch_lsn) = (Some(new), Some(lsn));
        certificate.completed_at = Some(WallTime::now().into());
        kept::keep(store, &certificate)?;
        failpoint::hit("certificate-kept");
        kept::drop_draft(store)?;
        Ok(Some(kept::text(&certificate)?))
    })
    .await?
}

/// The timeline that a promotion began, and where: as the store has it, else as PostgreSQL does.
fn begun(node: &Node, certificate: &Certificate) -> anyhow::Result<Option<(TimelineId, Lsn)>> {
    let branch = Some(Branch { epoch: certificate.epoch, node: certificate.node.clone() });
    let state = node.store.state();
    if let Some(ours) = state.timelines.iter().find(|timeline| timeline.branch == branch) {
        return Ok(ours.parent.map(|(_, lsn)| (ours.timeline, lsn)));
    }
    let data_directory = &node.config.postgres.data_directory;
    let (newest, history) =
        (by_hand::newest_timeline(data_directory)?, by_hand::newest_history(data_directory)?);
    let Some((newest, history)) = newest.zip(history) else { return Ok(None) };
    let Some(left) = history.switch_of(certificate.old_timeline) else { return Ok(None) };
    let later = history.switches.iter().map(|switch| switch.timeline);
    let next = later.filter(|timeline| *timeline > certificate.old_timeline).min().unwrap_or(newest);
    Ok(Some((next, left.lsn)))
}

/// Completes what a promotion left, as a primary; goes on for ever.
pub async fn finish(node: Arc<Node>) -> Infallible {
    loop {
        match complete(&node).await {
            Ok(None) => break,
            Ok(Some(_)) => {
                tracing::info!("the certificate of the promotion is kept: `walship history` shows it");
                break;
            }
            Err(error) => tracing::debug!("the certificate is not complete yet: {error:#}"),
        }
        sleep(RETRY_EVERY).await;
    }
    std::future::pending().await
}

/// The certificate of this node's promotion to an epoch, as it is kept; `None` where there is none.
pub async fn of_epoch(node: &Arc<Node>, epoch: u64) -> anyhow::Result<Option<String>> {
    let found = node.blocking("look for the certificate", move |node| {
        kept::find(node.store.folder(), epoch, &node.config.name)
    });
    Ok(found.await??)
}
