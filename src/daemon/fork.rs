//! A standby that went past the point where its timeline was left: another node was promoted without what this one has.
//!
//! Its log is cut there, the surplus kept as a capsule. So is what its PostgreSQL received, where that can be: it is stopped
//! at once, and where nothing of the surplus is in its files yet, the WAL is taken away that it would replay, and it follows
//! like any other. Where something is, only a new seed helps. What was found is noted before anything is done and until all
//! is done, and PostgreSQL is not started in between; so whoever is killed anywhere does all of it again.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;

use super::node::Node;
use super::postgres;
use crate::failpoint;
use crate::fault::Fault;
use crate::pg::postmaster;
use crate::pg::sql::{Sql, SqlError};
use crate::receive::Diverged;
use crate::restore::surplus::{self, Mixed};
use crate::store::Fork;

const RETRY: Duration = Duration::from_secs(2);

/// What this node went past, if that is why it can't follow.
pub fn of(error: &anyhow::Error) -> Option<Fork> {
    match Fault::find::<Diverged>(error) {
        Some(&Diverged::Past { timeline, end, switch_lsn }) => Some(Fork { timeline, lsn: switch_lsn, end }),
        _ => None,
    }
}

/// Notes durably that this node has to go back to a fork, unless it can be seen by now that it can't. PostgreSQL goes on.
pub async fn note(node: &Arc<Node>, fork: Fork) -> anyhow::Result<Result<(), Mixed>> {
    if let Some(command) = restore_command(node).await.context("ask PostgreSQL for its restore_command")? {
        return Ok(Err(Mixed::Archive(command)));
    }
    let noted = node.blocking("note a fork", move |node| {
        if let Err(mixed) = surplus::judge(&node.config.postgres.data_directory, fork.lsn) {
            return Ok(Err(mixed));
        }
        node.store.update_state(|state| state.past_fork = Some(fork))?;
        anyhow::Ok(Ok(()))
    });
    let noted = noted.await??;
    failpoint::hit("fork-noted");
    Ok(noted)
}

/// Where PostgreSQL would have WAL from before it asks here for it; `None` where only from here.
async fn restore_command(node: &Node) -> Result<Option<String>, SqlError> {
    let settings = Sql::connect(&node.conninfo).await?.settings(&["restore_command"]).await?;
    let command = settings.into_iter().next().map_or("not known".to_owned(), |setting| setting.value);
    Ok(Some(command).filter(|command| !command.is_empty()))
}

/// Why nothing else is done with this node meanwhile.
pub fn refusal(node: &Node, fork: Fork) -> anyhow::Error {
    let (name, Fork { timeline, lsn, .. }) = (&node.config.name, fork);
    Fault::refused(
        format!("{name} goes back to {lsn}, where timeline {timeline} was left"),
        "That takes moments: run this again. If it does not end, its log says what is in the way.",
    )
}

/// Goes back to the fork that was noted, if one was. Ends when that is done, or found to be impossible, or when the node
/// ends.
pub async fn go_back(node: &Arc<Node>) {
    let mut said = String::new();
    while let Some(fork) = node.store.state().past_fork {
        let failed = match attempt(node, fork).await {
            Ok(()) => return,
            Err(error) => format!("{error:#}"),
        };
        if said != failed {
            tracing::error!(
                "this standby can't go back to where timeline {} was left: {failed}",
                fork.timeline
            );
            said = failed;
        }
        // Cancellation-safe: both only wait.
        tokio::select! {
            () = tokio::time::sleep(RETRY) => {}
            () = node.token.cancelled() => return,
        }
    }
}

async fn attempt(node: &Arc<Node>, fork: Fork) -> anyhow::Result<()> {
    let Fork { timeline, lsn, end } = fork;
    if node.store.newest_timeline() == Some(timeline) {
        tracing::warn!(
            "this node has WAL up to {end} of timeline {timeline}, which was left at {lsn}: what lies past that is kept in the \
             store's folder `capsules`, and PostgreSQL goes back there"
        );
        postgres::stop_at_once(&node.config).await?;
        failpoint::hit("fork-stopped");
        let judged = node.blocking("look at what lies past the fork", move |node| keep(node, fork)).await??;
        match judged {
            Err(mixed) => tracing::warn!("PostgreSQL has gone past {lsn} for good: {mixed}"),
            Ok(()) => node.blocking("remove what lies past the fork", move |node| cut(node, fork)).await??,
        }
        // Its positions were those of what is gone now.
        node.vitals.feed.update(|feed| *feed = Default::default());
    }
    node.blocking("note that it is done", |node| node.store.update_state(|state| state.past_fork = None))
        .await??;
    Ok(())
}

/// Keeps what PostgreSQL has past the fork and this node's log has not: usually nothing, as it is fed from there. Whether
/// its files can be brought back.
fn keep(node: &Node, fork: Fork) -> anyhow::Result<Result<(), Mixed>> {
    let data_directory = &node.config.postgres.data_directory;
    let size = node.store.identity().segment_size;
    let take = |from: crate::pg::Lsn, raw: &[u8]| {
        let known = fork.end.bytes_since(from).min(raw.len() as u64);
        match &raw[known as usize..] {
            [] => Ok(()),
            unknown => Ok(node.store.keep_aside(fork.timeline, from + known, unknown)?),
        }
    };
    let files = surplus::read(data_directory, size, fork.timeline, fork.lsn, take)?;
    failpoint::hit("fork-kept");
    Ok(files.and_then(|()| surplus::judge(data_directory, fork.lsn)))
}

/// Cuts the log, which keeps its surplus, then what PostgreSQL would replay.
fn cut(node: &Node, fork: Fork) -> anyhow::Result<()> {
    let data_directory = &node.config.postgres.data_directory;
    cut_log(node, fork)?;
    failpoint::hit("fork-log-cut");
    surplus::cut(data_directory, node.store.identity().segment_size, fork.timeline, fork.lsn)?;
    failpoint::hit("fork-cut");
    anyhow::ensure!(
        !postmaster::is_running(data_directory).context("look for PostgreSQL")?,
        "somebody started PostgreSQL meanwhile"
    );
    Ok(())
}

/// Cuts this node's log at a fork, where it is still on that timeline; what lies past that is kept. Blocks.
pub fn cut_log(node: &Node, fork: Fork) -> anyhow::Result<()> {
    let mut writer = node.store.writer()?;
    if writer.end().is_some_and(|(timeline, end)| timeline == fork.timeline && end > fork.lsn) {
        writer.end_timeline(fork.lsn).context("cut the log")?;
    }
    Ok(())
}
