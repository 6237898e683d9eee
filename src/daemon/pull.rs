//! Pulling the WAL that this node lacks from another node's store before it is promoted.
//!
//! The other one has voted, or is a primary that was stopped: its log stands still. It must know this node's timelines as
//! they are known here, and what it sends must continue this node's log byte for byte; the rest is as in any stream.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::ask;
use super::node::Node;
use crate::failpoint;
use crate::fault::WithFault;
use crate::link::message::Purpose;
use crate::pg::Lsn;
use crate::receive::{self, Receiving};

/// Patience as long as nothing comes; each advance begins it anew.
const STALL: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Pulls up to `to` from the node at an address; what came is on disk when this returns.
pub async fn pull(node: &Arc<Node>, name: &str, address: &str, to: Lsn) -> anyhow::Result<()> {
    let (link, _) = ask::open(node, address, Purpose::Salvage).await?;
    if let Some(error) = failpoint::error("promote-pulling") {
        return Err(error).with_context(|| format!("pull WAL from {name}"));
    }
    let (_, leave) = watch::channel(None);
    let receiving = Receiving {
        node: node.config.name.clone(),
        store: node.store.clone(),
        start: None,
        vitals: Arc::clone(&node.vitals),
        restartpoint: node.restartpoint.subscribe(),
        // Whom it knows and where it stands changes nothing here.
        members: watch::Sender::default(),
        standing: watch::Sender::new(None),
        leave,
    };
    let token = node.token.child_token();
    // It ends by its token, so that the store's writer is free when this returns.
    let (received, arrived) = tokio::join!(receive::run(link.conn, receiving, token.clone()), async {
        let arrived = until_durable(node, to).await;
        token.cancel();
        arrived
    });
    let durable = node.store.positions().borrow().durable;
    if durable >= to {
        return Ok(());
    }
    received.with_context(|| format!("pull WAL from {name}"))?;
    arrived.with_context(|| format!("pull WAL up to {to} from {name}"))
}

async fn until_durable(node: &Arc<Node>, to: Lsn) -> anyhow::Result<()> {
    let positions = node.store.positions();
    let (mut last, mut advanced_at) = (Lsn::INVALID, Instant::now());
    loop {
        let durable = positions.borrow().durable;
        if durable >= to {
            return Ok(());
        }
        if durable != last {
            (last, advanced_at) = (durable, Instant::now());
        }
        if advanced_at.elapsed() > STALL {
            let seconds = STALL.as_secs();
            return Err(anyhow::anyhow!("nothing came for {seconds} s, and this node is at {durable}"))
                .hint("Run this again; --force promotes without what is missing.");
        }
        sleep(LOOK_EVERY).await;
    }
}
