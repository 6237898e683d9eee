//! What this node knows, as a report.

use crate::clock::WallTime;
use crate::pg::sql::ServerVersion;
use crate::pg::{Lsn, TimelineId, postmaster};
use crate::report::{self, Ancestor, Certificate, Hold, Progress, Role, Status, StoreFacts, warnings};
use crate::store::NodeRole;

use super::node::Node;
use super::{certificate, commits, epochs, hooks, policy, retention, trouble, votes};
use crate::link::message;
use crate::vitals::Contact;

/// The status of this moment. Blocks: it looks at the file system.
pub fn of(node: &Node) -> Status {
    let state = node.store.state();
    let timeline = state.newest_timeline().unwrap_or(TimelineId::FIRST);
    let mut warnings = Vec::new();
    let max_bytes = retention::max_bytes(node).unwrap_or_else(|error| {
        warnings.push(format!("{error:#}"));
        0
    });
    if let Some(error) = (node.role() == NodeRole::Primary).then(|| policy::not_taken_over(node)).flatten() {
        warnings.push(format!("`ack` in walship.toml is not in effect: {error}"));
    }
    warnings.extend(superseded(node));
    warnings.extend(trouble::warning(&node.store.troubles().borrow()));
    let at = *node.store.positions().borrow();
    // Looked at for no longer than this: what is below looks again, and would wait for whoever waits to change the list.
    let members = node.members.borrow().members.iter().map(member_of).collect();
    let about = report::gather::About {
        node: report::Node {
            name: node.config.name.clone(),
            role: role_of(node.link_role()),
            advertise: node.config.advertise.to_string(),
            walship_version: env!("CARGO_PKG_VERSION").to_owned(),
            system_identifier: state.system_identifier,
            postgres_version: match state.server_version {
                0 => String::new(),
                version => ServerVersion(version).to_string(),
            },
            promised_epoch: state.promised_epoch,
            committed_epoch: state.committed_epoch,
            timeline,
        },
        store: StoreFacts {
            directory: node.store.folder().to_owned(),
            start: at.start,
            appended: at.appended,
            durable: at.durable,
            sealed: at.sealed,
            disk_bytes: node.store.disk_bytes(),
            max_bytes,
            holds: retention::holds(node)
                .into_iter()
                .map(|hold| Hold { who: hold.holder, lsn: hold.lsn })
                .collect(),
        },
        segment_bytes: state.segment_size.bytes(),
        ancestors: state
            .timelines
            .iter()
            .filter_map(|identity| identity.parent)
            .map(|(timeline, end_lsn)| Ancestor { timeline, end_lsn })
            .collect(),
        route: {
            let standing = node.standing.borrow();
            (standing.route.nodes.clone(), standing.route.from_primary)
        },
        members,
        commits: commits::of(node),
        seeding: seeding(node),
        certificate: Some(Certificate { expires: expiry(node) }),
        last_promotion: certificate::newest(node),
        alarms: [own_alarms(node), alarms_of_upstream(node)].concat(),
        warnings,
    };
    report::gather::status(about, &node.vitals)
}

/// That this node was left behind, and what it waits for to rejoin; while it may accept writes that is an alarm.
fn superseded(node: &Node) -> Option<String> {
    let (epoch, name) = node.superseded_by().filter(|_| !may_accept_writes(node))?;
    let next = match node.rejoin_waits.borrow().as_ref() {
        Some(wait) => format!("this node rejoins by itself, and waits: {wait}"),
        None => "`walship rejoin` makes this node a standby of it".to_owned(),
    };
    Some(format!("superseded: {name} was promoted with epoch {epoch}; {next}"))
}

/// What a person must act on here now, as those who follow this primary are told.
pub fn alarms(node: &Node) -> Vec<String> {
    let mut alarms = own_alarms(node);
    alarms.extend(warnings::capture_stopped(&node.vitals.capture.get().contact));
    alarms
}

/// What the numbers alone do not show.
fn own_alarms(node: &Node) -> Vec<String> {
    let mut alarms: Vec<String> = trouble::alarm(node, &node.store.troubles().borrow()).into_iter().collect();
    if let Some((epoch, name)) = node.superseded_by().filter(|_| may_accept_writes(node)) {
        alarms.push(format!("superseded: {name} was promoted with epoch {epoch}; stop PostgreSQL here"));
    }
    alarms.extend(epochs::rivalry(node));
    alarms.extend(votes::alarm(node));
    alarms.extend(hooks::alarm(node));
    for member in node.store.state().members.iter().filter(|member| member.let_go) {
        alarms.push(format!(
            "{} was let go, and WAL that it needs is no longer kept: `walship standby --reseed` there",
            member.name
        ));
    }
    alarms
}

/// Whether writes are accepted here that, of a superseded node, nobody will have.
fn may_accept_writes(node: &Node) -> bool {
    !matches!(postmaster::is_running(&node.config.postgres.data_directory), Ok(false))
}

/// What the primary last said of itself; while it is not heard, that alone is what is known.
fn alarms_of_upstream(node: &Node) -> Vec<String> {
    let upstream = node.vitals.receive.get();
    if node.role() != NodeRole::Standby || !matches!(upstream.contact, Contact::Up { .. }) {
        return Vec::new();
    }
    let list = node.members.borrow();
    let of = |member: &message::Member| {
        let named = |alarm: &String| format!("{}: {alarm}", member.name);
        member.alarms.iter().map(named).collect::<Vec<_>>()
    };
    list.members.iter().filter(|member| member.name == upstream.upstream).flat_map(of).collect()
}

fn seeding(node: &Node) -> Option<report::Seeding> {
    let progress = node.progress.get();
    progress.is_under_way().then(|| report::Seeding {
        phase: progress.phase.to_string(),
        done_bytes: progress.done_bytes,
        equal_bytes: progress.equal_bytes,
        total_bytes: progress.total_bytes,
        wire_bytes: progress.wire_bytes,
        attempts: progress.attempts,
    })
}

fn expiry(node: &Node) -> WallTime {
    let credentials = node.credentials();
    credentials.identity().expires.min(credentials.authority_expires())
}

fn member_of(member: &message::Member) -> report::Member {
    let known = |lsn: Lsn| lsn.is_valid().then_some(lsn);
    report::Member {
        name: member.name.clone(),
        role: role_of(member.role),
        advertise: member.advertise.clone().unwrap_or_default(),
        upstream: member.upstream.clone(),
        progress: member.positions.map_or_else(Progress::default, |at| Progress {
            timeline: Some(at.timeline),
            shipped: known(at.written_lsn),
            flushed: known(at.flushed_lsn),
            replayed: known(at.replayed_lsn),
        }),
        last_contact: member.last_seen,
    }
}

/// A role in the words of a report.
pub fn role_of(role: message::Role) -> Role {
    match role {
        message::Role::Primary => Role::Primary,
        message::Role::Standby => Role::Standby,
        message::Role::Reader => Role::Reader,
        message::Role::Superseded => Role::Superseded,
    }
}
