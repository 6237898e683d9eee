//! Who belongs to the cluster, and how far each one is.
//!
//! The primary makes the list, which a node enters with its first connection ([`super::entrant`]). Standbys keep what
//! the primary passes on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use super::node::Node;
use super::{status, trouble};
use crate::capture::APPLICATION_NAME;
use crate::clock::WallTime;
use crate::failpoint;
use crate::link::message::{self, MemberList, Protection, Role};
use crate::pg::Lsn;
use crate::policy::Policy;
use crate::promote::Reported;
use crate::store::{Forgotten, Member, MemberRole, NodeRole, State};
use crate::vitals::{Contact, DownstreamVitals};

/// How often the list is made anew for those who follow.
const PUBLISH_EVERY: Duration = Duration::from_secs(1);

/// How many publications there are to one write of the positions: what is kept on disk may be older than what is
/// known, which only keeps more WAL.
const PUBLICATIONS_A_WRITE: u32 = 15;

/// Keeps the list up to date while this node is the primary, until it is cancelled.
pub async fn keep(node: Arc<Node>) -> anyhow::Result<()> {
    let mut tick = interval(PUBLISH_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut published: u32 = 0;
    loop {
        tick.tick().await;
        node.blocking("make the list of members", publish).await?;
        published = published.wrapping_add(1);
        if published.is_multiple_of(PUBLICATIONS_A_WRITE) || is_news(&node) {
            trouble::unless_of_disk(node.blocking("keep the members' positions", note_positions).await?)?;
        }
    }
}

/// Whether someone told a first position: until it is on disk, a restart would forget that WAL is held for it.
fn is_news(node: &Node) -> bool {
    let downstreams = node.vitals.downstreams.get();
    let told = |member: &Member| heard(&downstreams, member).is_some();
    node.store.state().members.iter().any(|member| !member.flushed_lsn.is_valid() && told(member))
}

/// What a member said of where it is: of the store that it has now, not of one that it had before.
pub fn heard<'a>(
    downstreams: &'a BTreeMap<String, DownstreamVitals>,
    member: &Member,
) -> Option<&'a DownstreamVitals> {
    let heard = downstreams.get(&member.name)?;
    (heard.flushed_lsn.is_valid() && heard.store_uuid.as_ref() == Some(&member.store_uuid)).then_some(heard)
}

/// Puts what the downstreams said into the state.
pub fn note_positions(node: &Node) -> anyhow::Result<()> {
    let downstreams = node.vitals.downstreams.get();
    let start = node.store.positions().borrow().start;
    node.store.update_state(|state| {
        for member in &mut state.members {
            if let Some(heard) = heard(&downstreams, member) {
                member.timeline = heard.timeline;
                member.flushed_lsn = heard.flushed_lsn;
                member.restartpoint_lsn = heard.restartpoint_lsn;
                member.last_heard = heard.last_heard_at;
                // It got over the gap before the WAL was gone, or there was none.
                member.let_go &= heard.flushed_lsn < start;
            }
        }
    })?;
    Ok(())
}

/// Makes the list anew: this node first, then the others by name. Blocks.
pub fn publish(node: &Node) {
    let downstreams = node.vitals.downstreams.get();
    let newer = node.superseded_by();
    let State { members: mut others, forgotten, .. } = node.store.state();
    others.sort_by(|one, two| one.name.cmp(&two.name));
    let others = others.into_iter().filter(|member| member.name != node.config.name).map(|member| {
        let live = heard(&downstreams, &member);
        let positions = live.and_then(|live| {
            Some(message::Positions {
                timeline: live.timeline?,
                written_lsn: live.written_lsn,
                flushed_lsn: live.flushed_lsn,
                replayed_lsn: live.replayed_lsn,
                restartpoint_lsn: live.restartpoint_lsn,
            })
        });
        let is_newer_primary = newer.as_ref().is_some_and(|(_, newer)| *newer == member.name);
        let known = link_member(&member);
        message::Member {
            role: if is_newer_primary { Role::Primary } else { known.role },
            last_seen: live.and_then(|live| live.last_heard_at).or(member.last_heard),
            positions: positions.or(known.positions),
            upstream: downstreams.get(&member.name).and_then(|heard| upstream(node, heard)),
            ..known
        }
    });
    let members = std::iter::once(own(node)).chain(others).collect();
    let forgotten = forgotten.iter().map(link_forgotten).collect();
    node.members.send_replace(MemberList { members, protection: protection(node), forgotten });
}

/// This node among the members.
fn own(node: &Node) -> message::Member {
    message::Member {
        name: node.config.name.clone(),
        store_uuid: Some(node.store.identity().store_uuid.clone()),
        certificate_serial: node.credentials().identity().serial,
        advertise: Some(node.config.advertise.to_string()),
        role: node.link_role(),
        positions: node.positions(),
        last_seen: Some(WallTime::now()),
        alarms: status::alarms(node),
        upstream: None,
    }
}

/// Whom a node follows, while it does.
fn upstream(node: &Node, heard: &DownstreamVitals) -> Option<String> {
    let is_up = matches!(heard.contact, Contact::Up { .. });
    let upstream = heard.via.as_ref().map_or(&node.config.name, |via| &via.upstream);
    is_up.then(|| upstream.clone())
}

/// What is said of the commits here, a primary's.
fn protection(node: &Node) -> Option<Protection> {
    let policy = node.store.policy().borrow().effective.clone()?;
    if policy.policy == Policy::Async {
        return None;
    }
    // First: what is released and goes unprotected while this is looked at is not of before.
    let at = WallTime::now();
    let waits = node.setting.borrow().as_ref().is_some_and(|setting| setting.names().names(APPLICATION_NAME));
    let is_exposed = node.store.exposures().borrow().open().is_some();
    let released_lsn = node.released.borrow().flush;
    Some(Protection { is_armed: waits && !is_exposed, released_lsn, at })
}

/// What the primary said last of its commits.
pub fn reported(node: &Node) -> Option<Reported> {
    let Protection { is_armed, released_lsn, at } = node.members.borrow().protection?;
    Some(Reported { is_armed, released_lsn, at: at.into() })
}

/// Keeps the list that the primary passes on, while this node is a standby.
pub async fn mirror(node: Arc<Node>) -> anyhow::Result<()> {
    let mut members = node.members.subscribe();
    // One may have come already, during the copy.
    members.mark_changed();
    loop {
        // Cancellation-safe: the list is in the channel until it was noted.
        members.changed().await?;
        // At once, and only what is new: a standby that is stopped or lost now must know later whom to ask.
        members.mark_unchanged();
        let noted = node.blocking("keep the members", |node| {
            failpoint::hit("members-note");
            note_news(node)
        });
        trouble::unless_of_disk(noted.await?)?;
    }
}

/// Keeps the list as it is known now, unless this node has become the primary, which makes it. Blocks.
pub fn note(node: &Node) -> anyhow::Result<()> {
    let (fresh, told) = (others(node), node.members.borrow().forgotten.clone());
    let mut forgotten = Vec::new();
    node.store.update_state(|state| {
        if state.role != Some(NodeRole::Primary) {
            state.forgotten = still_forgotten(&state.forgotten, &told, &fresh);
            forgotten = state.forgotten.iter().map(|gone| gone.name.clone()).collect();
            state.members = fresh;
            let State { members, forgotten, .. } = state;
            members.retain(|member| forgotten.iter().all(|gone| gone.name != member.name));
        }
    })?;
    drop_vitals(node, &forgotten);
    Ok(())
}

/// Those who were known to be forgotten and those who are told to be, but for whoever was invited again since. A list that
/// comes late, from a node that had not heard of it, brings nobody back.
fn still_forgotten(known: &[Forgotten], told: &[message::Forgotten], members: &[Member]) -> Vec<Forgotten> {
    let mut all: BTreeMap<String, Forgotten> = BTreeMap::new();
    for gone in known.iter().cloned().chain(told.iter().map(state_forgotten)) {
        match all.get_mut(&gone.name) {
            Some(other) if other.certificate_serial >= gone.certificate_serial => {}
            _ => drop(all.insert(gone.name.clone(), gone)),
        }
    }
    for member in members {
        if all.get(&member.name).is_some_and(|gone| gone.certificate_serial < member.certificate_serial) {
            all.remove(&member.name);
        }
    }
    all.into_values().collect()
}

/// Nothing that these nodes said counts any more, nor is shown.
pub fn drop_vitals(node: &Node, forgotten: &[String]) {
    if forgotten.iter().any(|name| node.vitals.downstreams.get().contains_key(name)) {
        node.vitals.downstreams.update(|all| all.retain(|name, _| !forgotten.contains(name)));
    }
}

/// The same when it is worth a write: somebody came, went or changed, or got on by a segment.
fn note_news(node: &Node) -> anyhow::Result<()> {
    let (fresh, noted) = (others(node), node.store.state().members);
    let told = node.members.borrow().forgotten.clone();
    let is_known = {
        let state = node.store.state();
        told.iter().all(|gone| state.has_forgotten(&gone.name, gone.certificate_serial))
    };
    let segment_bytes = node.store.identity().segment_size.bytes();
    let same = fresh.len() == noted.len()
        && fresh.iter().zip(&noted).all(|(new, old)| {
            (&new.name, &new.store_uuid, &new.advertise, new.role, new.certificate_serial)
                == (&old.name, &old.store_uuid, &old.advertise, old.role, old.certificate_serial)
                && new.flushed_lsn.bytes_since(old.flushed_lsn) < segment_bytes
        });
    if same && is_known { Ok(()) } else { note(node) }
}

/// The other members as they are known now, which may be more than what was noted.
pub fn others(node: &Node) -> Vec<Member> {
    let list = node.members.borrow();
    list.members.iter().filter(|member| member.name != node.config.name).filter_map(state_member).collect()
}

fn state_member(member: &message::Member) -> Option<Member> {
    Some(Member {
        name: member.name.clone(),
        store_uuid: member.store_uuid.clone()?,
        advertise: member.advertise.clone().unwrap_or_default(),
        role: match member.role {
            Role::Primary => MemberRole::Primary,
            Role::Standby => MemberRole::Standby,
            Role::Superseded => MemberRole::Superseded,
            Role::Reader => return None,
        },
        certificate_serial: member.certificate_serial,
        timeline: member.positions.map(|positions| positions.timeline),
        flushed_lsn: member.positions.map_or(Lsn::INVALID, |positions| positions.flushed_lsn),
        restartpoint_lsn: member.positions.map_or(Lsn::INVALID, |positions| positions.restartpoint_lsn),
        last_heard: member.last_seen,
        let_go: false,
    })
}

/// Puts the list in place as it was when the process ended. This node is in it: whoever follows it before anybody else
/// tells of it is not to forget where it is.
pub fn restore(node: &Node) {
    let state = node.store.state();
    let members = std::iter::once(own(node)).chain(state.members.iter().map(link_member)).collect();
    let forgotten = state.forgotten.iter().map(link_forgotten).collect();
    node.members.send_replace(MemberList { members, protection: None, forgotten });
}

/// What was noted of a member; the rest is not known any more.
fn link_member(member: &Member) -> message::Member {
    message::Member {
        name: member.name.clone(),
        store_uuid: Some(member.store_uuid.clone()),
        certificate_serial: member.certificate_serial,
        advertise: Some(member.advertise.clone()).filter(|address| !address.is_empty()),
        role: match member.role {
            MemberRole::Primary => Role::Primary,
            MemberRole::Standby => Role::Standby,
            MemberRole::Superseded => Role::Superseded,
        },
        positions: member.timeline.filter(|_| member.flushed_lsn.is_valid()).map(|timeline| {
            message::Positions {
                timeline,
                written_lsn: Lsn::INVALID,
                flushed_lsn: member.flushed_lsn,
                replayed_lsn: Lsn::INVALID,
                restartpoint_lsn: member.restartpoint_lsn,
            }
        }),
        upstream: None,
        last_seen: member.last_heard,
        alarms: Vec::new(),
    }
}

fn link_forgotten(gone: &Forgotten) -> message::Forgotten {
    let Forgotten { name, certificate_serial, at } = gone.clone();
    message::Forgotten { name, certificate_serial, at }
}

fn state_forgotten(gone: &message::Forgotten) -> Forgotten {
    let message::Forgotten { name, certificate_serial, at } = gone.clone();
    Forgotten { name, certificate_serial, at }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::TimelineId;

    #[test]
    fn only_a_newer_invitation_brings_a_forgotten_node_back() {
        let at = WallTime { unix_micros: 1 };
        let gone = |name: &str, certificate_serial| Forgotten { name: name.into(), certificate_serial, at };
        let told = |name: &str, serial| link_forgotten(&gone(name, serial));
        let member = |name: &str, certificate_serial| Member {
            name: name.into(),
            store_uuid: "u".into(),
            advertise: String::new(),
            role: MemberRole::Standby,
            certificate_serial,
            timeline: None,
            flushed_lsn: Lsn::INVALID,
            restartpoint_lsn: Lsn::INVALID,
            last_heard: None,
            let_go: false,
        };
        let still = still_forgotten(&[gone("db2", 5)], &[told("db3", 7)], &[]);
        assert_eq!(still, [gone("db2", 5), gone("db3", 7)]);
        // A list from before, with the member in it and nothing forgotten.
        assert_eq!(still_forgotten(&still, &[], &[member("db2", 5)]), still);
        assert_eq!(still_forgotten(&still, &[], &[member("db2", 6)]), [gone("db3", 7)]);
        // Twice forgotten, the later one stands, whoever says it.
        assert_eq!(
            still_forgotten(&[gone("db2", 9)], &[told("db2", 5)], &[member("db2", 6)]),
            [gone("db2", 9)]
        );
        assert_eq!(
            still_forgotten(&[gone("db2", 5)], &[told("db2", 9)], &[member("db2", 6)]),
            [gone("db2", 9)]
        );
    }

    #[test]
    fn what_was_not_noted_is_not_known() {
        let noted = Member {
            name: "db2".into(),
            store_uuid: "u".into(),
            advertise: String::new(),
            role: MemberRole::Standby,
            certificate_serial: 1,
            timeline: Some(TimelineId(1)),
            flushed_lsn: Lsn(5),
            restartpoint_lsn: Lsn(4),
            last_heard: None,
            let_go: false,
        };
        let positions = link_member(&noted).positions.unwrap();
        assert_eq!((positions.timeline, positions.flushed_lsn), (TimelineId(1), Lsn(5)));
        assert!(!positions.written_lsn.is_valid() && !positions.replayed_lsn.is_valid());
        let silent = Member { timeline: None, flushed_lsn: Lsn::INVALID, ..noted.clone() };
        assert_eq!(link_member(&silent).positions, None);
        assert_eq!(link_member(&Member { timeline: None, ..noted }).positions, None);
    }
}
