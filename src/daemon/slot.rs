//! The replication slot of a node that is no primary any more: it would keep WAL that nobody asks for, for ever.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use super::node::Node;
use crate::pg::sql::{Sql, SqlError};

const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Drops the slot that walship made when this node was the primary, as soon as its PostgreSQL answers as a standby; then
/// waits for ever. One of another kind is somebody else's, and one that is in use is looked at again.
pub async fn let_go(node: &Arc<Node>) -> Infallible {
    let mut said = None;
    loop {
        match attempt(node).await {
            Ok(true) => return std::future::pending().await,
            Ok(false) => {}
            Err(error) => {
                let text = error.to_string();
                if said.as_ref() != Some(&text) {
                    tracing::debug!("the slot of a former primary can't be looked at: {text}");
                    said = Some(text);
                }
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// True when there is nothing to drop any more.
async fn attempt(node: &Node) -> Result<bool, SqlError> {
    let name = &node.config.slot;
    let sql = Sql::connect(&node.conninfo).await?;
    if !sql.is_in_recovery().await? {
        return Ok(false);
    }
    match sql.slot(name).await? {
        Some(slot) if slot.is_physical && slot.is_active => Ok(false),
        Some(slot) if slot.is_physical => {
            sql.drop_slot(name).await?;
            tracing::info!(slot = %name, "dropped the replication slot, which would keep WAL for nobody: this node is a standby");
            Ok(true)
        }
        _ => Ok(true),
    }
}
