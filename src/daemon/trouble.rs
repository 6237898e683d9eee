//! A disk that does not take what is written to the store: told once, and nobody ends of it.
//!
//! The store knows what it could not write ([`Troubles`]). What works in the background tries again at its next round
//! and says nothing, because this does.

use std::sync::Arc;
use std::time::Duration;

use super::node::Node;
use crate::fault::Fault;
use crate::store::{NodeRole, Part, State, StoreError, Troubles};

const RETRY: Duration = Duration::from_secs(1);

/// What was said last; more is said only of worse.
#[derive(PartialEq, PartialOrd)]
enum Said {
    Nothing,
    Warning,
    Alarm,
}

/// Says when trouble begins and when it is over. Ends only when the store needs a restart.
pub async fn tell(node: Arc<Node>) -> anyhow::Result<()> {
    let mut troubles = node.store.troubles();
    let mut said = Said::Nothing;
    loop {
        // Cancellation-safe: a change that was not seen stays unseen.
        let now = troubles.borrow_and_update().clone();
        if now.is_empty() && said > Said::Nothing {
            tracing::info!("everything can be written to the store again");
            said = Said::Nothing;
        }
        if let Some(alarm) = alarm(&node, &now).filter(|_| said < Said::Alarm) {
            tracing::error!("{alarm}");
            said = Said::Alarm;
        }
        if let Some(warning) = warning(&now).filter(|_| said < Said::Warning) {
            tracing::warn!("{warning}");
            said = Said::Warning;
        }
        if node.store.has_failed() {
            return Err(Fault::advise(StoreError::Failed, "Look at the disk, then start walship again."));
        }
        troubles.changed().await?;
    }
}

/// What a person must act on now: the node's own task is not done.
pub fn alarm(node: &Node, troubles: &Troubles) -> Option<String> {
    let (part, trouble) = troubles.iter().find(|(part, _)| **part != Part::Other)?;
    let suffers = match (part, node.role()) {
        (Part::Log, NodeRole::Primary) => {
            "no WAL is captured, and PostgreSQL keeps it in pg_wal, up to max_slot_wal_keep_size"
        }
        (Part::Log, NodeRole::Standby) => "no WAL is received",
        (Part::State | Part::Other, _) => "what this node must not forget can't be noted",
    };
    let folder = node.store.folder().display();
    let mend = if trouble.is_full { "free some room there" } else { "see to that disk" };
    Some(format!(
        "the store {folder} can't be written, so {suffers}: {}; {mend}, and walship goes on by itself",
        trouble.reason
    ))
}

/// What is worth a look: something of convenience can't be kept.
pub fn warning(troubles: &Troubles) -> Option<String> {
    let trouble = troubles.get(&Part::Other)?;
    Some(format!("a file beside the log can't be written: {}", trouble.reason))
}

/// Changes the state durably, however long the disk takes no change; what waits for none of it goes on meanwhile.
pub async fn until_noted(
    node: &Arc<Node>,
    doing: &'static str,
    change: impl Fn(&mut State) + Copy + Send + 'static,
) -> anyhow::Result<()> {
    loop {
        let noted = node.blocking(doing, move |node| node.store.update_state(change)).await?;
        if unless_of_disk(noted)?.is_some() {
            return Ok(());
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// The outcome of a round of work in the background; `None` where only the disk failed it, so that the next round tries
/// again.
pub fn unless_of_disk<T>(done: Result<T, impl Into<anyhow::Error>>) -> anyhow::Result<Option<T>> {
    match done.map_err(Into::into) {
        Ok(done) => Ok(Some(done)),
        Err(error) if is_of_disk(&error) => {
            tracing::debug!("put off: {error:#}");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// True when the disk under the store failed it.
pub fn is_of_disk(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.downcast_ref::<StoreError>().is_some_and(StoreError::is_of_disk))
}
