//! What is answered over HTTP: from a [`Status`], and from facts that need no look at the store; pure.
//!
//! Who may be routed to (`/primary`, `/standby`) is decided by the facts alone, as they are at that moment: a load
//! balancer must not wait for a disk. Only how far a standby is behind comes from a [`Status`]. Whatever is not known
//! sends nobody there.

mod ask;

use std::fmt::Display;

pub use ask::Ask;

use super::json::{self, StatusError};
use super::lag::{self, Behind};
use super::threshold::{Amount, Threshold};
use super::wait::{Wait, Waited};
use super::{Role, Status, prometheus, units};
use crate::vitals::Contact;

/// An answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// The status code.
    pub code: u16,
    /// What the body is.
    pub content_type: &'static str,
    /// The body.
    pub body: String,
}

/// What is known of the node at this moment without a look at the store.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Its name.
    pub node: String,
    /// The part it plays.
    pub role: Role,
    /// Whoever was promoted instead of a primary that was left behind.
    pub superseded_by: Option<String>,
    /// The connection to the local PostgreSQL: capture's or the feed's.
    pub postgres: Contact,
    /// Whether a primary's PostgreSQL runs, as its pid file says.
    pub postgres_runs: bool,
    /// A standby's link to its upstream.
    pub upstream: Contact,
    /// What the store can't do, if anything.
    pub store_trouble: Option<String>,
}

impl Answer {
    /// One of plain text; a line end is added.
    pub fn text(code: u16, body: impl Display) -> Answer {
        Answer { code, content_type: "text/plain; charset=utf-8", body: format!("{body}\n") }
    }

    fn ok(body: impl Display) -> Answer {
        Answer::text(200, body)
    }

    fn unavailable(body: impl Display) -> Answer {
        Answer::text(503, body)
    }
}

/// `/metrics`
pub fn metrics(status: &Status) -> Answer {
    let content_type = "text/plain; version=0.0.4; charset=utf-8";
    Answer { code: 200, content_type, body: prometheus::status(status) }
}

/// `/status`
pub fn status(status: &Status) -> Result<Answer, StatusError> {
    Ok(Answer { code: 200, content_type: "application/json", body: json::render(status)? })
}

/// `/health`: whether this node does its part. A primary's WAL gets into the store; a standby gets WAL and gives it to
/// its PostgreSQL.
pub fn health(facts: &Facts) -> Answer {
    match ailment(facts) {
        Some(ailment) => Answer::unavailable(ailment),
        None => Answer::ok(facts.what_it_is()),
    }
}

fn ailment(facts: &Facts) -> Option<String> {
    if let Some(trouble) = &facts.store_trouble {
        return Some(trouble.clone());
    }
    match facts.role {
        Role::Primary => facts.postgres_is_cut_off(),
        Role::Standby => facts.postgres_is_cut_off().or_else(|| {
            let why = cut_off(&facts.upstream)?;
            Some(format!("{} follows no primary{why}", facts.node))
        }),
        Role::Superseded | Role::Reader => Some(facts.what_it_is()),
    }
}

/// `/primary`: whether writes go here. A PostgreSQL that runs is written to also while the sidecar can't reach it: that
/// is no reason to take the database away from its users.
pub fn primary(facts: &Facts) -> Answer {
    match facts.role {
        Role::Primary if is_up(&facts.postgres) => Answer::ok(facts.what_it_is()),
        Role::Primary if facts.postgres_runs => {
            let what = facts.postgres_is_cut_off().unwrap_or_default();
            Answer::ok(format!("{}, but {what}", facts.what_it_is()))
        }
        Role::Primary => Answer::unavailable(format!("PostgreSQL of {} is down", facts.node)),
        Role::Standby | Role::Superseded | Role::Reader => Answer::unavailable(facts.what_it_is()),
    }
}

/// `/standby`: whether reads go here. `status` is needed for a limit only.
pub fn standby(facts: &Facts, max_lag: &Threshold, status: Option<&Status>) -> Answer {
    if facts.role != Role::Standby {
        return Answer::unavailable(facts.what_it_is());
    }
    if let Some(cut_off) = facts.postgres_is_cut_off() {
        return Answer::unavailable(cut_off);
    }
    match status.map(|status| within(status, max_lag)) {
        None if *max_lag == Threshold::default() => Answer::ok(facts.what_it_is()),
        None => Answer::unavailable("it is not known how far it is behind"),
        Some(Ok(lag)) => Answer::ok(format!("{}, {lag}", facts.what_it_is())),
        Some(Err(lag)) => Answer::unavailable(format!("{}, {lag}", facts.what_it_is())),
    }
}

/// How far this standby's readers are behind, as an error when that is too far or not known.
fn within(status: &Status, max_lag: &Threshold) -> Result<String, String> {
    let report = lag::of(status);
    let own = report.standbys.iter().find(|standby| standby.name == status.node.name);
    let replay = own.map_or(Behind::UNKNOWN, |standby| standby.replay);
    let mut said = Vec::new();
    if let Some(limit) = max_lag.bytes {
        let more_than = |bytes| format!("{} behind, more than {}", units::size(bytes), units::size(limit));
        match replay.bytes {
            Amount::Known(bytes) if bytes <= limit => said.push(units::size(bytes)),
            Amount::Known(bytes) => return Err(more_than(bytes)),
            Amount::AtLeast(bytes) if bytes > limit => return Err(format!("at least {}", more_than(bytes))),
            Amount::AtLeast(_) | Amount::Unknown => {
                return Err("and it is not known how many bytes behind".to_owned());
            }
        }
    }
    if let Some(limit) = max_lag.time {
        match lag::shown_age_at_most(status) {
            Some(age) if age <= limit => said.push(units::duration(age)),
            Some(age) => {
                let (age, limit) = (units::duration(age), units::duration(limit));
                return Err(format!("{age} behind, more than {limit}"));
            }
            None => return Err("and it is not known for how long behind".to_owned()),
        }
    }
    Ok(format!("{} behind", said.join(" and ")))
}

/// `/wait`
pub fn waited(facts: &Facts, wait: &Wait, waited: &Waited) -> Answer {
    let code = match waited {
        Waited::Reached { .. } => 200,
        Waited::TimedOut { .. } => 504,
        Waited::LeftBehind { .. } => 409,
        Waited::Unknown { .. } => 503,
    };
    Answer::text(code, waited.sentence(&facts.node, facts.role, wait))
}

impl Facts {
    fn what_it_is(&self) -> String {
        match (&self.superseded_by, self.role) {
            (Some(newer), Role::Superseded) => format!("{} was superseded by {newer}", self.node),
            (_, Role::Superseded) => format!("{} was superseded", self.node),
            (_, Role::Primary) => format!("{} is the primary", self.node),
            (_, role) => format!("{} is a {}", self.node, role.name()),
        }
    }

    /// Said when no WAL flows between the sidecar and its PostgreSQL.
    fn postgres_is_cut_off(&self) -> Option<String> {
        let why = cut_off(&self.postgres)?;
        Some(format!("the sidecar of {} is not connected to its PostgreSQL{why}", self.node))
    }
}

fn is_up(contact: &Contact) -> bool {
    matches!(contact, Contact::Up { .. })
}

/// Nothing for a connection that is up; else why it is not, to be added to a sentence.
fn cut_off(contact: &Contact) -> Option<String> {
    match contact {
        Contact::Up { .. } => None,
        Contact::Never | Contact::Trying { error: None, .. } => Some(String::new()),
        Contact::Trying { error: Some(reason), .. } | Contact::Stopped { reason, .. } => {
            Some(format!(": {reason}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock::WallTime;
    use crate::pg::Lsn;
    use crate::report::tests;
    use crate::report::wait::Timeout;

    fn up() -> Contact {
        Contact::Up { since: WallTime { unix_micros: 0 } }
    }

    fn trying(error: &str) -> Contact {
        Contact::Trying { since: WallTime { unix_micros: 0 }, error: Some(error.to_owned()) }
    }

    fn facts(role: Role) -> Facts {
        Facts {
            node: "db2".to_owned(),
            role,
            superseded_by: None,
            postgres: up(),
            postgres_runs: true,
            upstream: up(),
            store_trouble: None,
        }
    }

    fn said(answer: Answer) -> (u16, String) {
        (answer.code, answer.body.trim_end().to_owned())
    }

    fn codes(facts: &Facts) -> [u16; 3] {
        [health(facts).code, primary(facts).code, standby(facts, &Threshold::default(), None).code]
    }

    #[test]
    fn each_role_has_its_path() {
        assert_eq!(codes(&facts(Role::Primary)), [200, 200, 503]);
        assert_eq!(codes(&facts(Role::Standby)), [200, 503, 200]);
        let left = Facts { superseded_by: Some("db1".to_owned()), ..facts(Role::Superseded) };
        assert_eq!(codes(&left), [503, 503, 503]);
        assert_eq!(said(primary(&left)).1, "db2 was superseded by db1");
        assert_eq!(said(primary(&facts(Role::Standby))).1, "db2 is a standby");
        assert_eq!(said(primary(&facts(Role::Primary))).1, "db2 is the primary");
    }

    #[test]
    fn a_primary_that_the_sidecar_cannot_reach_is_written_to_as_long_as_it_runs() {
        let cut = Facts { postgres: trying("too many walsenders"), ..facts(Role::Primary) };
        assert_eq!(codes(&cut), [503, 200, 503]);
        let (_, why) = said(primary(&cut));
        assert!(why.ends_with("not connected to its PostgreSQL: too many walsenders"), "{why}");
        let down = Facts { postgres_runs: false, ..cut };
        assert_eq!(codes(&down), [503, 503, 503]);
        assert_eq!(said(primary(&down)).1, "PostgreSQL of db2 is down");
    }

    #[test]
    fn a_standby_without_upstream_is_read_from_and_not_healthy() {
        let alone = Facts { upstream: trying("no primary answers"), ..facts(Role::Standby) };
        assert_eq!(codes(&alone), [503, 503, 200]);
        assert_eq!(said(health(&alone)).1, "db2 follows no primary: no primary answers");
        assert_eq!(codes(&Facts { postgres: Contact::Never, ..facts(Role::Standby) }), [503, 503, 503]);
        let full = Facts { store_trouble: Some("the store is full".to_owned()), ..facts(Role::Standby) };
        assert_eq!((codes(&full), said(health(&full)).1.as_str()), ([503, 503, 200], "the store is full"));
    }

    /// A standby that is heard and lacks 500 bytes of WAL for 20 s; or one that was cut off 40 s ago.
    fn standby_status(lacking: u64, silent_seconds: i64) -> Status {
        let mut status = tests::standby();
        let now = status.taken_at;
        let ago = |seconds: i64| WallTime { unix_micros: now.unix_micros - seconds * 1_000_000 };
        status.primary.contact = if silent_seconds > 0 { trying("cut") } else { up() };
        status.primary.last_contact = Some(ago(silent_seconds));
        status.primary.clock = Some(now);
        status.primary.timeline = status.node.timeline;
        status.primary.flush_lsn = Some(Lsn(10_000));
        let sample =
            |lsn, seconds| crate::vitals::Sample { lsn: Lsn(lsn), time: ago(seconds), after_gap: false };
        status.samples = vec![sample(9_000, 90), sample(10_000, 20)];
        status.feed.as_mut().unwrap().replayed = Some(Lsn(10_000 - lacking));
        status
    }

    #[test]
    fn a_limit_lets_in_only_who_is_known_to_be_within() {
        let ask = |status: &Status, limit: &str| {
            said(standby(&facts(Role::Standby), &limit.parse().unwrap(), Some(status)))
        };
        let near = standby_status(500, 0);
        assert_eq!(ask(&near, "500B"), (200, "db2 is a standby, 500 B behind".to_owned()));
        assert_eq!(ask(&near, "499B"), (503, "db2 is a standby, 500 B behind, more than 499 B".to_owned()));
        assert_eq!(ask(&near, "20s"), (200, "db2 is a standby, 20s behind".to_owned()));
        assert_eq!(ask(&near, "19s"), (503, "db2 is a standby, 20s behind, more than 19s".to_owned()));
        assert_eq!(ask(&near, "1MiB,1m"), (200, "db2 is a standby, 500 B and 20s behind".to_owned()));
        assert_eq!(ask(&near, "1MiB,1s").0, 503);
        assert_eq!(ask(&standby_status(0, 0), "0B,0s").0, 200);
        // Cut off it may be any number of bytes behind; in time, no more than it is cut off.
        let cut = standby_status(0, 40);
        assert_eq!(
            ask(&cut, "1TiB"),
            (503, "db2 is a standby, and it is not known how many bytes behind".to_owned())
        );
        assert_eq!((ask(&cut, "40s").0, ask(&cut, "39s").0), (200, 503));
        assert_eq!(
            ask(&standby_status(500, 40), "400B").1,
            "db2 is a standby, at least 500 B behind, more than 400 B"
        );
        let mut unknown = near;
        unknown.feed.as_mut().unwrap().replayed = None;
        assert_eq!((ask(&unknown, "1TiB").0, ask(&unknown, "1h").0), (503, 503));
        let limit = Threshold { bytes: Some(1), time: None };
        assert_eq!(standby(&facts(Role::Standby), &limit, None).code, 503);
        assert_eq!(standby(&facts(Role::Primary), &limit, None).code, 503);
    }

    #[test]
    fn a_wait_has_a_code_for_each_end() {
        let wait = Wait { lsn: Lsn(0x200), timeline: None, timeout: Timeout(Duration::from_secs(1)) };
        let code = |end| waited(&facts(Role::Standby), &wait, &end).code;
        assert_eq!(code(Waited::Reached { at: Lsn(0x200) }), 200);
        assert_eq!(code(Waited::TimedOut { at: Lsn(1) }), 504);
        assert_eq!(code(Waited::LeftBehind { end: None }), 409);
        assert_eq!(code(Waited::Unknown { reason: String::new() }), 503);
    }

    #[test]
    fn a_status_is_what_the_command_prints() {
        let known = tests::status();
        assert_eq!(status(&known).unwrap().body, json::render(&known).unwrap());
        assert_eq!(metrics(&known).body, prometheus::status(&known));
    }
}
