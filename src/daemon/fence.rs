//! Making sure that there is no second primary: stopping this node's PostgreSQL, and the command for another's.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::time::{Instant, sleep};

use super::node::Node;
use super::{postgres, shell};
use crate::capture::salvage;
use crate::durable;
use crate::failpoint;
use crate::fault::Fault;
use crate::pg::control::{ClusterState, ControlFile};
use crate::restore::standby::SIGNAL_FILE;
use crate::vitals::Contact;

/// Patience with the command, and with what is left to capture once PostgreSQL has stopped.
const COMMAND_WITHIN: Duration = Duration::from_secs(60);
const CAPTURED_WITHIN: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How often it is looked whether somebody has started what is to stay down.
const KEPT_DOWN_EVERY: Duration = Duration::from_secs(2);
const RETRY_STOP_EVERY: Duration = Duration::from_secs(10);

/// What became of a primary that was stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stopped {
    /// Its WAL ends in a shutdown checkpoint, and all of it is in the store.
    pub ended_cleanly: bool,
}

/// Stops this node's PostgreSQL, takes the last of its WAL into the store, and leaves `standby.signal`: whoever starts it
/// by hand gets a server that writes nothing.
pub async fn stop_for_vote(node: &Arc<Node>) -> anyhow::Result<Stopped> {
    postgres::stop(&node.config).await?;
    failpoint::hit("vote-stopped");
    // It streams to its end by itself; only then may nobody else take the store's writer.
    let begun = Instant::now();
    while matches!(node.vitals.capture.get().contact, Contact::Up { .. }) && begun.elapsed() < CAPTURED_WITHIN
    {
        sleep(LOOK_EVERY).await;
    }
    node.stays_down.send_replace(true);
    let salvaged = complete_log(node).await;
    let signalled = node.blocking("leave standby.signal", leave_signal).await?;
    signalled?;
    failpoint::hit("vote-signalled");
    let end = salvaged?;
    let control =
        node.blocking("read pg_control", |node| ControlFile::read(&node.config.postgres.data_directory));
    let control = control.await?.context("read pg_control")?;
    let ended_cleanly = control.state == ClusterState::ShutDown && end > control.checkpoint_lsn;
    Ok(Stopped { ended_cleanly })
}

/// Takes what a stopped PostgreSQL has in its pg_wal beyond the store; where the WAL ends. Nobody captures.
pub async fn complete_log(node: &Arc<Node>) -> anyhow::Result<crate::pg::Lsn> {
    let begun = Instant::now();
    loop {
        let salvaged = node.blocking("take what pg_wal has beyond the store", |node| {
            salvage::from_pg_wal(&node.store, &node.config.postgres.data_directory.join("pg_wal"))
        });
        match salvaged.await? {
            // Capture lets go of it in a moment.
            Err(salvage::SalvageError::Store(crate::store::StoreError::WriterTaken))
                if begun.elapsed() < CAPTURED_WITHIN =>
            {
                sleep(LOOK_EVERY).await;
            }
            salvaged => return Ok(salvaged?),
        }
    }
}

/// Blocks.
fn leave_signal(node: &Node) -> anyhow::Result<()> {
    let path = node.config.postgres.data_directory.join(SIGNAL_FILE);
    if !path.exists() {
        durable::write(&path, b"")?;
    }
    Ok(())
}

/// Lets PostgreSQL be the primary that it was again, for an election that came to nothing: takes the signal back, and
/// starts it unless it was down before.
pub async fn release(node: &Arc<Node>, was_down: bool) -> anyhow::Result<()> {
    let removed = node.blocking("remove standby.signal", |node| {
        durable::remove(&node.config.postgres.data_directory.join(SIGNAL_FILE))
    });
    removed.await??;
    if !was_down && !postgres::runs(node).await? {
        postgres::start(&node.config).await?;
    }
    node.stays_down.send_replace(false);
    Ok(())
}

/// Stops the PostgreSQL of a primary that was left behind, and leaves `standby.signal`. What it still accepted is lost to
/// the others, so it is not waited for that anything of it is shipped.
async fn stop_superseded(node: &Arc<Node>) -> anyhow::Result<()> {
    node.stays_down.send_replace(true);
    let signalled = node.blocking("leave standby.signal", leave_signal).await?;
    signalled?;
    failpoint::hit("superseded-signalled");
    postgres::stop(&node.config).await
}

/// Keeps the PostgreSQL of a primary that was left behind down: whoever starts it again is stopped again. Runs until it is
/// cancelled.
pub async fn keep_down(node: Arc<Node>) {
    let mut newer_primary = node.newer_primary.subscribe();
    loop {
        // Its sender is never gone before the node is.
        let _ = newer_primary.wait_for(Option::is_some).await;
        match stop_superseded(&node).await {
            Ok(()) => sleep(KEPT_DOWN_EVERY).await,
            Err(error) => {
                tracing::error!(
                    "a superseded PostgreSQL can't be stopped, and accepts what is lost: {error:#}"
                );
                sleep(RETRY_STOP_EVERY).await;
            }
        }
    }
}

/// Runs the command that makes sure that another node's PostgreSQL is down, and stays so.
pub async fn run_command(command: &str, name: &str, address: &str) -> anyhow::Result<()> {
    let facts = [("WALSHIP_FENCE_NODE", name.to_owned()), ("WALSHIP_FENCE_ADDRESS", address.to_owned())];
    shell::run(command, &facts, COMMAND_WITHIN).await.map_err(|error| {
        Fault::refused(
            format!("the fence command did not stop {name}: {error}"),
            format!(
                "Make sure that {name} is down, and run this again; --force goes on without a fence, and what {name} still \
                 accepts is lost."
            ),
        )
    })
}
