//! What a status shows to be wrong by itself: one sentence each, with the next step where there is one.
//!
//! An alarm is what a person must act on now, as it does not mend itself or every second of it costs safety; every
//! report is critical while there is one. A warning is what someone should look at.

use super::lag::{self, Link};
use super::units;
use super::{Progress, Role, Status, commits};
use crate::vitals::Contact;

/// A certificate is named this long before it ends.
pub const CERTIFICATE_NOTICE_SECONDS: f64 = 30.0 * 86_400.0;

/// The store is named when it holds more than this share of what it may.
const STORE_NOTICE_PERCENT: u64 = 90;

/// The daemon's own alarms, and those that the facts show.
pub fn alarms(status: &Status) -> Vec<String> {
    let mut alarms = status.alarms.clone();
    alarms.extend(stopped(status));
    alarms.extend(forks(status));
    alarms.extend(commits::alarms(status));
    alarms
}

/// The daemon's own warnings, and those that the facts show.
pub fn of(status: &Status) -> Vec<String> {
    let mut warnings = status.warnings.clone();
    warnings.extend(primary(status));
    warnings.extend(feed(status));
    warnings.extend(way(status));
    warnings.extend(silent(status));
    warnings.extend(superseded(status));
    warnings.extend(commits::warnings(status));
    warnings.extend(store(status));
    warnings.extend(certificate(status));
    warnings
}

fn primary(status: &Status) -> Option<String> {
    let primary = &status.primary;
    let who = match status.node.role {
        Role::Primary | Role::Superseded => "the local PostgreSQL",
        Role::Standby | Role::Reader => "the primary",
    };
    match lag::link(&primary.contact, primary.last_contact, status.taken_at) {
        // That is an alarm.
        _ if matches!(primary.contact, Contact::Stopped { .. }) => None,
        Link::Up(_) => None,
        Link::Cut(None) => Some(format!("{who} was never heard{}", reason(&primary.contact))),
        Link::Cut(Some(age)) => {
            Some(format!("{who} is not heard for {}{}", units::duration(age), reason(&primary.contact)))
        }
    }
}

/// A standby's PostgreSQL that takes no WAL, which on an idle primary no lag tells.
fn feed(status: &Status) -> Option<String> {
    let since = match &status.feed.as_ref()?.contact {
        Contact::Up { .. } | Contact::Stopped { .. } => return None,
        Contact::Never => "yet".to_owned(),
        Contact::Trying { since, .. } => {
            format!("for {}", units::duration(lag::age(*since, status.taken_at)))
        }
    };
    Some(format!("the local PostgreSQL has taken no WAL {since}: is it running?"))
}

/// Following somebody who has no primary is better than nothing, and not what one wants.
fn way(status: &Status) -> Option<String> {
    let upstream = status.upstream.as_ref().filter(|upstream| !upstream.from_primary)?;
    let is_up = matches!(upstream.contact, Contact::Up { .. });
    is_up.then(|| {
        format!("{} is followed, and has no way to a primary: {}", upstream.name, upstream.route.join(" <- "))
    })
}

fn reason(contact: &Contact) -> String {
    match contact {
        Contact::Trying { error: Some(error), .. } => format!(": {error}"),
        _ => String::new(),
    }
}

/// Connections that wait for a person.
fn stopped(status: &Status) -> impl Iterator<Item = String> {
    let primary = match status.node.role {
        Role::Primary | Role::Superseded => capture_stopped(&status.primary.contact),
        Role::Standby | Role::Reader => when_stopped("this node follows no more", &status.primary.contact),
    };
    let feed = status.feed.iter().filter_map(|feed| when_stopped("PostgreSQL is not fed", &feed.contact));
    let downstreams = status
        .downstreams
        .iter()
        .filter_map(|peer| when_stopped(&format!("{} follows no more", peer.name), &peer.contact));
    primary.into_iter().chain(feed).chain(downstreams)
}

/// What is said of a primary's connection to its PostgreSQL that waits for a person.
pub fn capture_stopped(contact: &Contact) -> Option<String> {
    when_stopped("capture has stopped, and nothing new is shipped", contact)
}

fn when_stopped(what: &str, contact: &Contact) -> Option<String> {
    match contact {
        Contact::Stopped { reason, .. } => Some(format!("{what}: {reason}")),
        _ => None,
    }
}

/// Standbys that are not heard; this node's own silence is the primary's above.
fn silent(status: &Status) -> impl Iterator<Item = String> {
    lag::of(status).standbys.into_iter().filter(|standby| standby.name != status.node.name).filter_map(
        |standby| match standby.link {
            Link::Up(_) => None,
            Link::Cut(None) => Some(format!("{} was never heard", standby.name)),
            Link::Cut(Some(age)) => {
                Some(format!("{} is not heard for {}", standby.name, units::duration(age)))
            }
        },
    )
}

/// Members that were left behind. They are no standbys: nobody waits for them, and nothing is lost with them.
fn superseded(status: &Status) -> impl Iterator<Item = String> {
    let members = status.members.iter().filter(|member| member.name != status.node.name);
    members.filter(|member| member.role == Role::Superseded).map(|member| {
        format!(
            "{} was superseded and does not follow: `walship rejoin` there makes it a standby",
            member.name
        )
    })
}

/// Standbys that hold WAL which the primary's timeline never had.
fn forks(status: &Status) -> impl Iterator<Item = String> {
    let own = (status.node.role == Role::Standby).then(|| (status.node.name.as_str(), status.own_progress()));
    let peers = status.downstreams.iter().map(|peer| (peer.name.as_str(), peer.progress));
    own.into_iter().chain(peers).filter_map(|(name, progress)| fork(status, name, &progress))
}

fn fork(status: &Status, name: &str, progress: &Progress) -> Option<String> {
    let (timeline, reached) = (progress.timeline?, progress.flushed.max(progress.replayed)?);
    let primary = &status.primary;
    if timeline == primary.timeline {
        return None;
    }
    match primary.ancestors.iter().find(|ancestor| ancestor.timeline == timeline) {
        Some(fork) if reached > fork.end_lsn => Some(format!(
            "{name} went on timeline {timeline} to {reached}, past the fork at {}: it must be rewound or seeded anew",
            fork.end_lsn
        )),
        Some(_) => None,
        None => Some(format!(
            "{name} is on timeline {timeline}, which is no ancestor of the primary's timeline {}",
            primary.timeline
        )),
    }
}

fn store(status: &Status) -> Option<String> {
    let store = &status.store;
    let nearly_full = store.max_bytes > 0
        && u128::from(store.disk_bytes) * 100
            > u128::from(store.max_bytes) * u128::from(STORE_NOTICE_PERCENT);
    let slowest = || store.holds.iter().min_by_key(|hold| hold.lsn);
    nearly_full.then(|| {
        let held =
            slowest().map_or_else(String::new, |hold| format!("; {} keeps it from {}", hold.who, hold.lsn));
        let (used, max) = (units::size(store.disk_bytes), units::size(store.max_bytes));
        format!("the store takes {used} of the {max} it may{held}")
    })
}

fn certificate(status: &Status) -> Option<String> {
    let expires = status.certificate?.expires;
    let left = expires.seconds_since(status.taken_at);
    if left == 0.0 {
        return Some(format!("the certificate ended on {}: no peer takes it any more", expires.rfc3339()));
    }
    (left < CERTIFICATE_NOTICE_SECONDS).then(|| {
        let days = (left / 86_400.0).floor();
        format!(
            "the certificate ends in {days} days, on {}: renew it where `walship init` ran",
            expires.rfc3339()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::WallTime;
    use crate::pg::{Lsn, TimelineId};
    use crate::report::tests::status;
    use crate::report::{Ancestor, Certificate};

    #[test]
    fn a_certificate_is_named_a_month_ahead() {
        let mut status = status();
        let in_days = |days: i64| {
            let unix_micros = status.taken_at.unix_micros + days * 86_400_000_000 + 1;
            Some(Certificate { expires: WallTime { unix_micros } })
        };
        let (far, near, past) = (in_days(31), in_days(12), in_days(-1));
        status.certificate = far;
        assert_eq!(certificate(&status), None);
        status.certificate = near;
        assert!(certificate(&status).unwrap().contains("ends in 12 days"));
        status.certificate = past;
        assert!(certificate(&status).unwrap().contains("no peer takes it"));
    }

    #[test]
    fn what_is_stopped_for_good_is_an_alarm_and_no_warning_beside_it() {
        let mut status = status();
        let before = of(&status);
        assert_eq!(alarms(&status), Vec::<String>::new());
        let stopped = Contact::Stopped { since: status.taken_at, reason: "no WAL".to_owned() };
        status.primary.contact = stopped.clone();
        status.downstreams[0].contact = stopped;
        let expected =
            ["capture has stopped, and nothing new is shipped: no WAL", "db2 follows no more: no WAL"];
        assert_eq!(alarms(&status), expected);
        assert_eq!(of(&status).len(), before.len() + 1, "db2 is not heard");
    }

    #[test]
    fn wal_past_a_fork_is_named() {
        let mut status = status();
        let timeline = status.primary.timeline;
        status.primary.timeline = TimelineId(timeline.0 + 1);
        let name = status.downstreams[0].name.clone();
        assert!(forks(&status).any(|warning| warning.contains(&name) && warning.contains("no ancestor")));
        status.primary.ancestors.push(Ancestor { timeline, end_lsn: Lsn(1) });
        assert!(forks(&status).any(|warning| warning.contains(&name) && warning.contains("past the fork")));
        status.primary.ancestors = vec![Ancestor { timeline, end_lsn: Lsn(u64::MAX) }];
        assert_eq!(forks(&status).count(), 0);
    }
}
