//! What commits wait for, as a report.

use super::node::Node;
use super::policy;
use crate::capture::APPLICATION_NAME;
use crate::pg::{Levels, Lsn};
use crate::policy::{Policy, Resolved};
use crate::report::commits::{Commits, Exposures, PendingPolicy, Seat, SetPolicy, Setting, Window};
use crate::store::NodeRole;

/// What commits wait for, as this node knows it.
pub fn of(node: &Node) -> Option<Commits> {
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
    let log = node.store.exposures();
    let log = log.borrow();
    let totals = log.totals();
    let mut commits = Commits {
        policy: kept.effective.as_ref().map(set),
        pending,
        seats: Vec::new(),
        released: None,
        setting: None,
        exposure: None,
        exposures: Exposures {
            windows: totals.windows,
            closed_millis: totals.micros / 1000,
            closed_bytes: totals.bytes,
        },
    };
    if node.role() == NodeRole::Primary {
        commits.exposure = log.open().map(|window| Window {
            number: window.number,
            opened_at: window.opened_at,
            from_lsn: window.from_lsn,
            missing: window.missing.clone(),
            reason: window.reason.clone(),
        });
        commits.setting = node.setting.borrow().as_ref().map(|setting| Setting {
            standby_names: setting.standby_names.clone(),
            commit: setting.commit.clone(),
            names_us: setting.names().names(APPLICATION_NAME),
        });
        let heard = node.vitals.downstreams.get();
        let tracker = node.tracker();
        let known = |at: Levels<Lsn>| Levels::of(|level| Some(*at.get(level)).filter(|lsn| lsn.is_valid()));
        commits.released = Some(known(*node.released.borrow()));
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
