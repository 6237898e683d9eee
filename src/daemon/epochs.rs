//! Telling the others of a promotion, and hearing of one.
//!
//! A new primary dials every member that does not follow it, again and again, so that nobody goes on following a sidecar
//! whose PostgreSQL was left behind, however the network was at the time of the promotion. Who hears of a higher
//! committed epoch leaves its upstream, or, a primary itself, ships nothing any more and says so.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval, timeout};

use super::ask;
use super::node::Node;
use crate::failpoint;
use crate::link::message::{Hello, Purpose, Role};
use crate::store::{NodeRole, Superseded};
use crate::tls::{Identity, Kind};
use crate::vitals::Contact;

const TELL_EVERY: Duration = Duration::from_secs(2);
const TELL_WITHIN: Duration = Duration::from_secs(4);

/// Tells every member that is not connected who the primary is, until it is cancelled.
pub async fn tell(node: Arc<Node>) -> anyhow::Result<()> {
    let mut tick = interval(TELL_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        // Without a promotion there is no news: who does not follow yet looks for its primary by itself.
        if node.store.state().committed_epoch == 0 {
            continue;
        }
        let following = node.vitals.downstreams.get();
        for member in node.store.state().members {
            let follows =
                following.get(&member.name).is_some_and(|at| matches!(at.contact, Contact::Up { .. }));
            if follows || member.name == node.config.name || member.advertise.is_empty() {
                continue;
            }
            let (telling, tasks) = (Arc::clone(&node), node.tasks.clone());
            tasks.spawn(async move {
                let told = timeout(TELL_WITHIN, greet(&telling, &member.advertise)).await;
                tracing::debug!(member = %member.name, ?told, "told of the promotion");
            });
        }
    }
}

/// The Hello of any connection says it all.
async fn greet(node: &Arc<Node>, address: &str) -> anyhow::Result<()> {
    let (mut link, _) = ask::open(node, address, Purpose::Ask).await?;
    Ok(link.conn.close().await?)
}

/// Takes note of a primary whose committed epoch is above this node's.
pub async fn hear(node: &Arc<Node>, hello: &Hello, identity: Option<&Identity>) -> anyhow::Result<()> {
    let is_node = identity.is_some_and(|identity| identity.kind == Kind::Node);
    let (epoch, name) = (hello.committed_epoch, hello.node.clone());
    if !is_node || hello.role != Role::Primary || epoch <= node.store.state().committed_epoch {
        return Ok(());
    }
    match node.role() {
        NodeRole::Standby => {
            let noted = node.blocking("note the new epoch", move |node| {
                node.store.update_state(|state| state.learn(epoch))
            });
            noted.await??;
            tracing::info!(primary = %name, epoch, "heard of a new primary");
        }
        NodeRole::Primary if node.newer_primary.borrow().as_ref().map(|(known, _)| *known) != Some(epoch) => {
            supersede(node, epoch, &name).await?;
        }
        NodeRole::Primary => {}
    }
    node.newer_primary.send_replace(Some((epoch, name)));
    Ok(())
}

/// This node is the primary no more. Its own epoch stays what it is: a higher one would make others follow it.
async fn supersede(node: &Arc<Node>, epoch: u64, name: &str) -> anyhow::Result<()> {
    let superseded = Superseded { epoch, by: name.to_owned() };
    let noted = node.blocking("note who was promoted", move |node| {
        failpoint::hit("superseded-heard");
        node.store.update_state(|state| state.superseded = Some(superseded))
    });
    noted.await??;
    if node.store.state().promise.is_some_and(|promise| promise.stops_primary && promise.epoch == epoch) {
        tracing::info!(primary = %name, epoch, "handed over: PostgreSQL here stays down until this node has rejoined");
        return Ok(());
    }
    tracing::error!(
        primary = %name, epoch,
        "this node was superseded: it ships nothing any more, and its PostgreSQL is stopped; what that accepted since is lost \
         to the others; `walship rejoin` makes it a standby"
    );
    Ok(())
}
