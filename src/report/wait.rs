//! Waiting for a position: what is asked and how the answer reads; pure.
//!
//! A position alone does not say which history it is of. Without a timeline it is taken as one of this node's own; with
//! one, a position that lies past the end of that timeline is known to be one that a promotion left behind.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::{Role, units};
use crate::pg::{Lsn, TimelineId};

/// What is waited for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct Wait {
    /// Until this is replayed; on a primary, until it is flushed.
    pub lsn: Lsn,
    /// The timeline that it is of, when the caller knows.
    pub timeline: Option<TimelineId>,
    /// For so long.
    pub timeout: Timeout,
}

/// How long somebody waits: from `0s` to [`Timeout::MAX`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Timeout(pub Duration);

/// How a wait ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Waited {
    /// The position is there.
    Reached {
        /// How far the node is.
        at: Lsn,
    },
    /// It is not, and time is over.
    TimedOut {
        /// How far the node is.
        at: Lsn,
    },
    /// It never will be: a promotion left that part of its timeline behind.
    LeftBehind {
        /// Where its timeline ended in this node's history; `None` when it never was in it.
        end: Option<Lsn>,
    },
    /// Nobody knows how far the node is.
    Unknown {
        /// Why.
        reason: String,
    },
}

impl Waited {
    /// In one sentence about a node in a role.
    pub fn sentence(&self, node: &str, role: Role, wait: &Wait) -> String {
        let lsn = wait.lsn;
        let done = if role == Role::Standby { "replayed" } else { "flushed" };
        match self {
            Waited::Reached { at } => format!("{node} has {done} {at}"),
            Waited::TimedOut { at } => {
                format!("{node} has {done} {at} and not {lsn} after {}", units::duration(wait.timeout.0))
            }
            Waited::LeftBehind { end: Some(end) } => {
                format!("{lsn} is not in the history of {node}: a promotion ended its timeline at {end}")
            }
            Waited::LeftBehind { end: None } => {
                format!("{lsn} is not in the history of {node}, and neither is its timeline")
            }
            Waited::Unknown { reason } => format!("it is not known how far {node} is: {reason}"),
        }
    }
}

impl Timeout {
    /// The longest.
    pub const MAX: Duration = Duration::from_secs(3600);
    /// When nobody says.
    pub const DEFAULT: Timeout = Timeout(Duration::from_secs(5));
}

/// A text that is no [`Timeout`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{text}` is not a time to wait: write it like 5s or 500ms, at most 1h")]
pub struct TimeoutError {
    text: String,
}

impl FromStr for Timeout {
    type Err = TimeoutError;

    fn from_str(text: &str) -> Result<Timeout, TimeoutError> {
        let parsed = text.parse::<jiff::SignedDuration>().ok().and_then(|time| Duration::try_from(time).ok());
        let allowed = parsed.filter(|time| *time <= Timeout::MAX);
        allowed.map(Timeout).ok_or_else(|| TimeoutError { text: text.to_owned() })
    }
}

impl fmt::Display for Timeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&units::duration(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_has_a_unit_and_a_limit() {
        let millis = |text: &str| text.parse::<Timeout>().map(|timeout| timeout.0.as_millis());
        assert_eq!(
            ["5s", "500ms", "0s", "1h", "1m30s"].map(|text| millis(text).unwrap()),
            [5_000, 500, 0, 3_600_000, 90_000]
        );
        for text in ["", "5", "-5s", "61m", "s", "5 apples", "99999999999999999999h"] {
            assert!(millis(text).is_err(), "{text}");
        }
        assert_eq!(Timeout::DEFAULT.to_string().parse(), Ok(Timeout::DEFAULT));
    }

    #[test]
    fn sentences() {
        let wait = Wait { lsn: Lsn(0x200), timeline: None, timeout: Timeout::DEFAULT };
        let said = |waited: Waited, role| waited.sentence("db2", role, &wait);
        assert_eq!(said(Waited::Reached { at: Lsn(0x208) }, Role::Primary), "db2 has flushed 0/208");
        let late = Waited::TimedOut { at: Lsn(0x108) };
        assert_eq!(said(late, Role::Standby), "db2 has replayed 0/108 and not 0/200 after 5s");
        let lost = said(Waited::LeftBehind { end: Some(Lsn(0x180)) }, Role::Standby);
        assert_eq!(lost, "0/200 is not in the history of db2: a promotion ended its timeline at 0/180");
    }
}
