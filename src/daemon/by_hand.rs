//! A standby whose PostgreSQL was promoted without walship.
//!
//! What it writes from then on is shipped to nobody, and nobody is shown its timeline: no promotion was committed. It
//! receives nothing any more, as its PostgreSQL will not replay it. A person has it adopted (`walship promote`) or made a
//! standby again. It is known by the files of PostgreSQL, so also when that is down, and after a restart.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio_util::sync::CancellationToken;

use super::node::Node;
use super::{follow, slot};
use crate::clock::WallTime;
use crate::durable::FileError;
use crate::fault::Fault;
use crate::pg::control::{CONTROL_FILE, ClusterState, ControlFile};
use crate::pg::{History, Lsn, TimelineId, postmaster};
use crate::restore::standby::is_standby;
use crate::store::NodeRole;
use crate::vitals::Contact;

const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Said of it wherever this node is reported.
const REASON: &str = "it was promoted by hand, and nothing that it writes is shipped: `walship promote` adopts that, and \
                      `walship standby --reseed` says how to make it a standby again";

/// Whether this standby's PostgreSQL was promoted, or would start as a primary, and walship has not promoted it. What
/// can't be read says nothing. Blocks.
pub fn is_promoted(node: &Node) -> bool {
    let data_directory = &node.config.postgres.data_directory;
    let is_ours = node.role() == NodeRole::Primary || node.store.state().promoting.is_some();
    if is_ours || is_standby(data_directory) || !data_directory.join(CONTROL_FILE).exists() {
        return false;
    }
    match ControlFile::read(data_directory).map(|control| control.state) {
        Ok(ClusterState::InProduction | ClusterState::ShutDown | ClusterState::ShuttingDown) => true,
        Err(_) => false,
        // One that still replays ends that with its next word to the control file, or somebody only took its signal away.
        Ok(_) => matches!(postmaster::is_running(data_directory), Ok(false)),
    }
}

/// Follows, and drops a slot that a standby has no use for, for as long as PostgreSQL is a standby's; ends like
/// [`follow::run`], and not by itself while it is not.
pub async fn follow_unless(node: Arc<Node>, token: CancellationToken) -> anyhow::Result<follow::End> {
    loop {
        // All waits in here are cancellation-safe: they keep nothing.
        if node.blocking("look at PostgreSQL's role", is_promoted).await? {
            tracing::error!("PostgreSQL is not fed: {REASON}");
            let since = WallTime::now();
            node.vitals.feed.update(|feed| {
                feed.contact = Contact::Stopped { since, reason: REASON.to_owned() };
            });
            node.vitals.receive.update(|receive| {
                receive.contact = Contact::Trying { since, error: Some("PostgreSQL is not fed".to_owned()) };
            });
            tokio::select! {
                looked = until(&node, false) => looked?,
                () = token.cancelled() => return Ok(follow::End::Stopped),
            }
            tracing::info!("no PostgreSQL that was promoted by hand is here any more: following again");
            node.vitals.feed.update(|feed| *feed = Default::default());
        }
        let stream = token.child_token();
        let mut following = node.tasks.spawn(follow::run(Arc::clone(&node), None, stream.clone()));
        tokio::select! {
            ended = &mut following => return ended.context("follow the primary"),
            looked = until(&node, true) => looked?,
            never = slot::let_go(&node) => match never {},
        }
        stream.cancel();
        following.await.context("stop receiving")?;
    }
}

/// Waits until PostgreSQL was promoted by hand, or is a standby's again.
async fn until(node: &Arc<Node>, promoted: bool) -> anyhow::Result<()> {
    while node.blocking("look at PostgreSQL's role", is_promoted).await? != promoted {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}

/// Where a PostgreSQL that was promoted by hand left the timeline of this node's log, so how much of the log it has;
/// `None` for a standby's. Refused when it does not continue this log. Blocks.
pub fn left_at(node: &Node) -> anyhow::Result<Option<Lsn>> {
    if !is_promoted(node) {
        return Ok(None);
    }
    let timeline = node.store.newest_timeline().context("the store is empty")?;
    let history = newest_history(&node.config.postgres.data_directory)?;
    match history.as_ref().and_then(|history| history.switch_of(timeline)) {
        Some(switch) => Ok(Some(switch.lsn)),
        None => Err(Fault::refused(
            format!(
                "PostgreSQL was promoted by hand, and its timeline does not continue timeline {timeline} of this node's log"
            ),
            "`walship promote` another node. What this PostgreSQL wrote is nowhere else: save what matters of it.",
        )),
    }
}

/// The newest timeline that PostgreSQL has a history of; `None` for one that is on the first. Blocks.
pub fn newest_timeline(data_directory: &Path) -> Result<Option<TimelineId>, FileError> {
    let folder = wal_folder(data_directory);
    let failed = |e| FileError::new("list", &folder, e);
    let mut newest = None;
    for entry in fs::read_dir(&folder).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        newest = newest.max(name.to_str().and_then(TimelineId::parse_history_file_name));
    }
    Ok(newest)
}

fn wal_folder(data_directory: &Path) -> PathBuf {
    data_directory.join("pg_wal")
}

/// The history of the newest timeline that PostgreSQL knows. Blocks.
pub fn newest_history(data_directory: &Path) -> anyhow::Result<Option<History>> {
    let Some(newest) = newest_timeline(data_directory)? else { return Ok(None) };
    let path = wal_folder(data_directory).join(newest.history_file_name());
    let text = fs::read(&path).map_err(|e| FileError::new("read", &path, e))?;
    Ok(Some(History::parse(&text).with_context(|| format!("read {}", path.display()))?))
}
