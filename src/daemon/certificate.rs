//! Keeping the certificate of a promotion: what is known before the commit is on disk before it, the rest is added when
//! PostgreSQL has begun its timeline, by the promotion itself or, where that was interrupted, by the primary's life.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::time::{Instant, sleep};

use super::ask::converse;
use super::node::Node;
use super::{by_hand, members};
use crate::clock::WallTime;
use crate::failpoint;
use crate::link::Message;
use crate::link::message::{self, KeptCertificate};
use crate::pg::{Lsn, TimelineId};
use crate::promote::{Certificate, Known, Stake, kept};
use crate::report::Promotion;
use crate::ship::wire_branch;
use crate::store::{Branch, MemberRole};

const RETRY_EVERY: Duration = Duration::from_secs(1);

/// How often it is looked for what others have, and patience with each of them.
const GATHER_EVERY: Duration = Duration::from_secs(5);
const GATHER_EVERY_MAX: Duration = Duration::from_secs(3600);
const FETCH_WITHIN: Duration = Duration::from_secs(4);

/// What is passed on, within a message: far less than that may have. A longer certificate is where it is kept.
pub const PASSED_ON_BYTES_MAX: usize = 256 << 10;

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
    let state = node.store.state();
    // Where another one was committed since, this log may have gone on under that.
    if state.promoting.is_none_or(|branch| branch.epoch < state.committed_epoch) {
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

/// Fetches the certificates of others' promotions that this node's WAL has come through: the disk of one that was promoted
/// may be lost. What nobody has is asked for ever more seldom. Goes on for ever.
pub async fn gather(node: Arc<Node>) -> Infallible {
    let (mut known, mut pause, mut due) = (None, GATHER_EVERY, Instant::now());
    loop {
        sleep(GATHER_EVERY).await;
        let timelines = node.store.state().timelines;
        if known.as_ref() != Some(&timelines) {
            (pause, due) = (GATHER_EVERY, Instant::now());
        }
        if Instant::now() < due {
            continue;
        }
        for branch in timelines.iter().filter_map(|timeline| timeline.branch.as_ref()) {
            if let Err(error) = fetch(&node, branch).await {
                let Branch { epoch, node: of } = branch;
                tracing::debug!(epoch, %of, "the certificate of a promotion is not here yet: {error:#}");
            }
        }
        pause = (pause * 2).min(GATHER_EVERY_MAX);
        (known, due) = (Some(timelines), Instant::now() + pause);
    }
}

/// From the node that was promoted, else from the primary, unless it is here.
async fn fetch(node: &Arc<Node>, branch: &Branch) -> anyhow::Result<()> {
    let Branch { epoch, node: of } = branch.clone();
    if of == node.config.name || find(node, branch.clone()).await?.is_some() {
        return Ok(());
    }
    let known = members::others(node).into_iter().filter(|member| !member.advertise.is_empty());
    let (promoted, primary): (Vec<_>, Vec<_>) = known
        .filter(|member| member.name == of || member.role == MemberRole::Primary)
        .partition(|member| member.name == of);
    for member in promoted.into_iter().chain(primary) {
        let want = Message::WantCertificate(wire_branch(branch));
        let text = match converse(node, &member.advertise, want, FETCH_WITHIN).await {
            Ok(Message::KeptCertificate(KeptCertificate { text: Some(text) })) => text,
            other => {
                tracing::debug!(member = %member.name, ?other, "it gave no certificate");
                continue;
            }
        };
        let of = of.clone();
        let kept = node.blocking("keep the certificate", move |node| {
            kept::keep_of_another(node.store.folder(), epoch, &of, &text)
        });
        return kept.await?;
    }
    anyhow::bail!("nobody who is asked has it")
}

/// What another node is given that asks for a certificate.
pub async fn give(node: &Arc<Node>, of: message::Branch) -> anyhow::Result<KeptCertificate> {
    let text = find(node, Branch { epoch: of.epoch, node: of.node }).await?;
    // A longer one is not passed on.
    Ok(KeptCertificate { text: text.filter(|text| text.len() <= PASSED_ON_BYTES_MAX) })
}

/// The newest promotion whose certificate is here, for a report; one that can't be read is none. Blocks.
pub fn newest(node: &Node) -> Option<Promotion> {
    let certificate = kept::newest(node.store.folder())?;
    Some(Promotion {
        epoch: certificate.epoch,
        node: certificate.node,
        committed_at: certificate.committed_at.into(),
        verdict: certificate.verdict.text,
    })
}

async fn find(node: &Arc<Node>, of: Branch) -> anyhow::Result<Option<String>> {
    let found = node.blocking("look for the certificate", move |node| {
        kept::find(node.store.folder(), of.epoch, &of.node)
    });
    Ok(found.await??)
}

/// The certificate of this node's promotion to an epoch, as it is kept; `None` where there is none.
pub async fn of_epoch(node: &Arc<Node>, epoch: u64) -> anyhow::Result<Option<String>> {
    find(node, Branch { epoch, node: node.config.name.clone() }).await
}
