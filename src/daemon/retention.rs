//! Keeps the store within bounds: what every known member has, and no backup needs, goes.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use super::node::Node;
use super::{members, trouble};
use crate::fault::Fault;
use crate::pg::Lsn;
use crate::store::{Hold, MemberRole, NodeRole, State};
use crate::vitals::Contact;

const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The share of the file system that the store may take when nothing is configured.
const SHARE: u64 = 4;

/// Applies retention until it is cancelled.
pub async fn run(node: Arc<Node>) -> anyhow::Result<()> {
    let mut tick = interval(LOOK_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut was_over = false;
    loop {
        tick.tick().await;
        let looked = node.blocking("remove old WAL", apply).await?;
        let Some(is_over) = trouble::unless_of_disk(looked)? else { continue };
        // Said once each time it begins, not at every look.
        if is_over && !was_over {
            tracing::warn!(
                disk_bytes = node.store.disk_bytes(),
                "the store is larger than it may be, and what is in it is needed here"
            );
        }
        was_over = is_over;
    }
}

/// Removes what may go and lets go of whom must be; says whether the store is still too large.
fn apply(node: &Node) -> anyhow::Result<bool> {
    let holds = holds(node);
    if !may_remove(&node.store.state(), &holds) {
        return Ok(false);
    }
    let max_bytes = max_bytes(node)?;
    let done = node.store.retain(&holds, max_bytes)?;
    for hold in &done.let_go {
        let_go(node, hold, max_bytes)?;
    }
    Ok(done.over_limit)
}

/// Whether it is known what is needed. A standby that does not know yet where its PostgreSQL begins keeps everything,
/// and so does a new primary until its timeline has begun: the old one may have to be cut further back than anyone is.
fn may_remove(state: &State, holds: &[Hold]) -> bool {
    state.promoting.is_none() && holds.iter().all(|hold| hold.lsn.is_valid())
}

fn let_go(node: &Node, hold: &Hold, max_bytes: u64) -> anyhow::Result<()> {
    let mut is_member = false;
    let noted = node.store.update_state(|state| {
        for member in state.members.iter_mut().filter(|member| member.name == hold.holder) {
            (is_member, member.let_go) = (true, true);
        }
    });
    // What a standby has in its own store, and what a standby would only ship after a promotion, nobody misses yet.
    if is_member && node.role() == NodeRole::Primary {
        tracing::error!(
            member = %hold.holder, needs = %hold.lsn, store_max_bytes = max_bytes,
            "the store is full: the WAL for this standby is no longer kept, and it must be seeded anew \
             (`walship standby --reseed` there, or auto_reseed in its walship.toml; raise store_max_bytes in [retention] here)"
        );
    }
    Ok(noted?)
}

/// Who needs what; `status` shows the same list.
pub fn holds(node: &Node) -> Vec<Hold> {
    let hold = |holder: &str, lsn: Lsn, may_be_let_go| Hold { holder: holder.to_owned(), lsn, may_be_let_go };
    let state = node.store.state();
    let heard = node.vitals.downstreams.get();
    let backups = node.vitals.backups.get();
    let is_seeded = |name: &str| backups.values().any(|backup| backup.client == name);
    let mut holds = Vec::new();
    // A primary has what it wrote, and one that was superseded comes back as a copy: nobody keeps WAL for them.
    let others = state.members.iter().filter(|m| m.name != node.config.name && m.role == MemberRole::Standby);
    for member in others.filter(|member| !member.let_go) {
        let live = members::heard(&heard, member);
        let (flushed, restart) = live.map_or((member.flushed_lsn, member.restartpoint_lsn), |live| {
            (live.flushed_lsn, live.restartpoint_lsn)
        });
        // One that takes its base backup now needs what that needs.
        if flushed.is_valid() || !is_seeded(&member.name) {
            holds.push(hold(&member.name, need(flushed), true));
        }
        // It has the WAL from there to its position in its own store: when room is short, this goes first.
        let restartpoint = format!("{}'s restartpoint", member.name);
        holds.extend(restart.is_valid().then(|| hold(&restartpoint, restart, true)));
    }
    // A relay's list comes from the primary, which may not have heard of a node that follows here.
    let is_new = |name: &str| state.member(name).is_none() && name != node.config.name;
    for (name, live) in heard.iter().filter(|(name, _)| is_new(name)) {
        if matches!(live.contact, Contact::Up { .. }) && live.flushed_lsn.is_valid() {
            holds.push(hold(name, live.flushed_lsn, true));
        }
    }
    for backup in backups.into_values().filter(|backup| backup.start_lsn.is_valid()) {
        holds.push(hold(&format!("base backup by {}", backup.client), backup.start_lsn, false));
    }
    if node.role() == NodeRole::Standby {
        holds.push(hold("this node's PostgreSQL", *node.restartpoint.borrow(), false));
    }
    holds
}

/// The first position that a member needs. One that never said where it is may need all there is: its base backup, and
/// the hold that went with that, may have ended just before a restart here.
fn need(flushed_lsn: Lsn) -> Lsn {
    if flushed_lsn.is_valid() { flushed_lsn } else { Lsn(1) }
}

/// How large the store may be.
pub fn max_bytes(node: &Node) -> anyhow::Result<u64> {
    if let Some(bytes) = node.config.store_max_bytes {
        return Ok(bytes);
    }
    let folder = node.store.folder();
    let system = rustix::fs::statvfs(folder).map_err(|e| {
        Fault::usage(format!("look at the file system of {}: {e}", folder.display()), "Check the folder.")
    })?;
    Ok(system.f_blocks * system.f_frsize / SHARE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_goes_before_a_promotion_is_complete() {
        use crate::pg::SegmentSize;
        use crate::store::{Branch, NewStore, Store};
        let folder = tempfile::tempdir().unwrap();
        let segment_size = SegmentSize::new(1 << 20).unwrap();
        let store = Store::create(folder.path(), NewStore { system_identifier: 7, segment_size }).unwrap();
        let hold = |lsn| Hold { holder: "db1".into(), lsn: Lsn(lsn), may_be_let_go: true };
        assert!(may_remove(&store.state(), &[hold(1)]) && !may_remove(&store.state(), &[hold(1), hold(0)]));
        let branch = Some(Branch { epoch: 1, node: "db2".into() });
        store.update_state(|state| state.promoting = branch).unwrap();
        assert!(!may_remove(&store.state(), &[hold(1)]) && !may_remove(&store.state(), &[]));
    }

    #[test]
    fn a_member_that_never_said_where_it_is_holds_everything() {
        assert_eq!(need(Lsn::INVALID), Lsn(1));
        assert_eq!(need(Lsn(70)), Lsn(70));
    }
}
