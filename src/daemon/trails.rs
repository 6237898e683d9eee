//! Notes once a second where everybody is, for how fast a standby catches up.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::{MissedTickBehavior, interval};

use super::node::Node;
use crate::pg::Lsn;
use crate::store::NodeRole;
use crate::vitals::{Contact, Trails};

const MARK_EVERY: Duration = Duration::from_secs(1);

/// Follows the positions until it is dropped.
pub async fn keep(node: Arc<Node>) -> Infallible {
    let mut tick = interval(MARK_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        node.vitals.trails.update(|trails| mark(&node, trails));
    }
}

fn mark(node: &Node, trails: &mut Trails) {
    let now = Instant::now();
    let at = *node.store.positions().borrow();
    let downstreams = node.vitals.downstreams.get();
    let heard = downstreams.iter().filter(|(_, peer)| {
        matches!(peer.contact, Contact::Up { .. })
            && peer.timeline == at.timeline
            && peer.flushed_lsn.is_valid()
    });
    let mut positions: Vec<(&str, Lsn)> =
        heard.map(|(name, peer)| (name.as_str(), peer.flushed_lsn)).collect();
    let end = match node.role() {
        NodeRole::Primary => node.vitals.capture.get().server_flush_lsn,
        NodeRole::Standby => {
            let receive = node.vitals.receive.get();
            if matches!(receive.contact, Contact::Up { .. }) {
                positions.push((&node.config.name, at.durable));
            }
            receive.server_flush_lsn
        }
    };
    if end.is_valid() {
        trails.end.mark(now, end);
    }
    // What it did before a break says nothing of what it does now.
    trails.nodes.retain(|name, _| positions.iter().any(|(known, _)| known == name));
    for (name, lsn) in positions {
        trails.nodes.entry(name.to_owned()).or_default().mark(now, lsn);
    }
}
