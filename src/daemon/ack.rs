//! On a primary: from what the members say to what capture may tell PostgreSQL.
//!
//! Follows the members' positions, the policy and the store, and publishes what is released at each level.

use std::sync::{Arc, PoisonError};

use anyhow::Context;
use tokio::sync::watch;

use super::node::Node;
use super::{policy, trouble};
use crate::capture::APPLICATION_NAME;
use crate::pg::{Levels, Lsn};
use crate::policy::{Policy, Resolved};
use crate::report::commits::{Commits, PendingPolicy, Seat, SetPolicy, Setting};
use crate::store::NodeRole;

/// Runs until it is cancelled.
pub async fn run(node: Arc<Node>, release: watch::Sender<Levels<Lsn>>) -> anyhow::Result<()> {
    let mut downstreams = node.vitals.downstreams.watch();
    let mut positions = node.store.positions();
    let mut kept = node.store.policy();
    let mut setting = node.setting.subscribe();
    let mut members = node.members.subscribe();
    // Where the disk takes no change it is tried again with the next list of members, a second later.
    trouble::unless_of_disk(node.blocking("take the configuration's policy over", policy::begin).await?)?;
    let lock = || node.tracker.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        let at = *positions.borrow_and_update();
        let (released, is_due) = {
            let policy = kept.borrow_and_update();
            let mut tracker = lock();
            tracker.hear(&downstreams.borrow_and_update(), at.timeline, at.durable);
            let released = policy.effective.as_ref().map(|policy| tracker.release(policy, at.durable));
            (released, policy::is_due(&node, &policy))
        };
        release.send_if_modified(|known| {
            let released = released.unwrap_or_default();
            std::mem::replace(known, released) != released
        });
        if is_due {
            trouble::unless_of_disk(node.blocking("let the policy take effect", policy::take_effect).await?)?;
        }
        // All branches are cancellation-safe: they only wait for a change.
        tokio::select! {
            changed = downstreams.changed() => changed.context("the downstreams are no longer followed")?,
            changed = positions.changed() => changed.context("the store was closed")?,
            changed = kept.changed() => changed.context("the store was closed")?,
            changed = setting.changed() => changed.context("PostgreSQL's setting is no longer followed")?,
            changed = members.changed() => {
                changed.context("the members are no longer kept")?;
                let begun = node.blocking("take the configuration's policy over", policy::begin).await?;
                trouble::unless_of_disk(begun)?;
            }
        }
    }
}

/// What commits wait for, as this node knows it.
pub fn report(node: &Node) -> Option<Commits> {
    let kept = node.store.state().policy;
    if kept.serial() == 0 && node.role() == NodeRole::Standby {
        return None;
    }
    let primary = &node.config.name;
    let set = |policy: &Resolved| SetPolicy {
        serial: policy.serial,
        text: policy.policy.to_string(),
        names: policy.names.clone(),
        stall_limit: policy.stall_limit.to_string(),
        is_async: policy.policy == Policy::Async,
        needed: policy.needed(primary),
    };
    let pending =
        kept.pending.as_ref().zip(policy::quorum(node, &kept)).map(|(policy, quorum)| PendingPolicy {
            policy: set(policy),
            stored_by: quorum.stored_by,
            lacking: quorum.lacking,
            needed: quorum.needed,
        });
    let mut commits = Commits {
        policy: kept.effective.as_ref().map(set),
        pending,
        seats: Vec::new(),
        released: None,
        setting: None,
    };
    if node.role() == NodeRole::Primary {
        commits.setting = node.setting.borrow().as_ref().map(|setting| Setting {
            standby_names: setting.standby_names.clone(),
            commit: setting.commit.clone(),
            names_us: setting.names().names(APPLICATION_NAME),
        });
        let heard = node.vitals.downstreams.get();
        let tracker = node.tracker.lock().unwrap_or_else(PoisonError::into_inner);
        let known = |at: Levels<Lsn>| Levels::of(|level| Some(*at.get(level)).filter(|lsn| lsn.is_valid()));
        commits.released = Some(known(tracker.released()));
        let seats = kept.effective.as_ref().map_or_else(Vec::new, |policy| tracker.seats(policy));
        commits.seats = seats
            .into_iter()
            .map(|seat| Seat {
                policy_serial: heard.get(&seat.name).map_or(0, |member| member.policy_serial),
                name: seat.name,
                part: seat.part.name().to_owned(),
                is_connected: seat.standing.is_connected,
                at: known(seat.standing.at),
            })
            .collect();
    }
    Some(commits)
}
