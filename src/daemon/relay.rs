//! What downstreams say of the nodes behind them: who counts, and who is a member by it.
//!
//! The primary enters those nodes as members, by the same rules as if they had come themselves. A relay goes by the list
//! that it mirrors, and passes the words on.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::entrant::{self, Entrant};
use super::node::Node;
use super::trouble;
use crate::clock::WallTime;
use crate::link::message::{Relayed, RelayedList};
use crate::ship::relayed::{self, Now};
use crate::store::NodeRole;

/// Messages that may wait; one is taken in microseconds, but for the first word of a new member.
pub const QUEUE: usize = 8;

/// Takes the words of one relay in, for as long as they come. Dropped, those behind it are no longer heard.
pub async fn take(
    node: &Arc<Node>,
    relay: &str,
    mut words: mpsc::Receiver<RelayedList>,
) -> anyhow::Result<()> {
    let _lost = Lost { node: Arc::clone(node), relay: relay.to_owned() };
    let mut refused = BTreeSet::new();
    while let Some(RelayedList(list)) = words.recv().await {
        let mut counted = Vec::with_capacity(list.len());
        for word in list {
            if word.node == node.config.name || word.node == relay {
                continue;
            }
            match may_count(node, &word).await? {
                Ok(()) => counted.push(word),
                Err(why) if refused.insert((word.node.clone(), word.store_uuid.clone())) => {
                    tracing::info!(%relay, node = %word.node, "not counted: {why}");
                }
                Err(_) => {}
            }
        }
        let now = Now::is();
        node.vitals.downstreams.update(|all| {
            for word in &counted {
                relayed::note(all, relay, word, now);
            }
        });
    }
    Ok(())
}

/// Whether the words of a node count; the reason when not. On a primary it is a member afterwards, durably.
async fn may_count(node: &Arc<Node>, word: &Relayed) -> anyhow::Result<Result<(), String>> {
    let entrant = Entrant::relayed(word);
    let state = node.store.state();
    if let Err(reject) = entrant.admit(&state) {
        return Ok(Err(reject.message));
    }
    let known = state.member(&word.node);
    if node.role() == NodeRole::Standby || known.is_some_and(|known| entrant.is(known)) {
        return Ok(Ok(()));
    }
    let entered = node.blocking("note the member", move |node| entrant::enter(node, entrant)).await?;
    // Whoever can't be noted is not held WAL for, and does not count.
    Ok(trouble::unless_of_disk(entered)?.ok_or_else(|| "it can't be noted as a member".to_owned()))
}

/// Marks those behind a relay when its words end.
struct Lost {
    node: Arc<Node>,
    relay: String,
}

impl Drop for Lost {
    fn drop(&mut self) {
        let since = WallTime::now();
        self.node.vitals.downstreams.update(|all| relayed::lose(all, &self.relay, since));
    }
}
