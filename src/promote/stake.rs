//! What may be lost with a promotion: the one account of it, before it is done and for the record.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::facts::{Facts, Heard, Reported, Server};
use super::plan;
use crate::clock::Time;
use crate::pg::Lsn;

/// What may be lost with a promotion, once what can be pulled has been.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "claim", rename_all = "snake_case")]
pub enum Stake {
    /// Nothing: the old primary's own log is here to its end, and it writes no more.
    Nothing {
        /// That end.
        end: Lsn,
        /// It is a shutdown checkpoint; else the last whole record that was on disk.
        ended_cleanly: bool,
    },
    /// No commit that was acknowledged at `on` or `remote_apply` and not cancelled: so many standbys stand still that one
    /// of them has each.
    NothingAcknowledged {
        /// The end of the log that is promoted.
        end: Lsn,
        /// The policy that promised it.
        policy: String,
        /// When the primary last said that commits do wait.
        armed_at: Time,
    },
    /// Nothing that anyone ever heard of beyond this position.
    NothingKnown {
        /// The end of the log that is promoted.
        from: Lsn,
        /// Up to when it is known that nothing acknowledged is beyond.
        #[serde(flatten)]
        known: Known,
    },
    /// WAL in this range is known to exist elsewhere, and perhaps more.
    AtLeast {
        /// The end of the log that is promoted.
        from: Lsn,
        /// The furthest end that anyone reported.
        to: Lsn,
        /// Up to when it is known that nothing acknowledged is beyond the end.
        #[serde(flatten)]
        known: Known,
    },
    /// What was written since a promotion that this log has nothing of, wherever it ends: positions of two branches
    /// can't be compared.
    Since {
        /// The epoch that was committed then.
        epoch: u64,
    },
}

/// What was last heard of a primary that can't be asked any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Known {
    /// The end of its log; `None` when it was not heard since walship started.
    pub heard: Option<Heard>,
    /// Commits waited for a policy then, and what it had released was no further than the log that is promoted.
    pub armed: Option<Reported>,
}

impl Known {
    /// Up to when nothing was acknowledged beyond the end of a log: it was all that there was, or all that was released.
    pub fn up_to(&self, end: Lsn) -> Option<Time> {
        let all_there_was = self.heard.filter(|heard| heard.lsn <= end).map(|heard| heard.at);
        all_there_was.max(self.armed.map(|armed| armed.at))
    }
}

impl Stake {
    /// Bytes that are known to be lost; `None` where even that is unknown.
    pub fn known_bytes(&self) -> Option<u64> {
        match self {
            Stake::Nothing { .. } | Stake::NothingAcknowledged { .. } => Some(0),
            Stake::NothingKnown { known, .. } => known.heard.map(|_| 0),
            Stake::Since { .. } => None,
            Stake::AtLeast { from, to, .. } => Some(to.bytes_since(*from)),
        }
    }

    /// Whether that is proven to be no acknowledged commit.
    pub fn is_nothing(&self) -> bool {
        matches!(self, Stake::Nothing { .. } | Stake::NothingAcknowledged { .. })
    }

    /// Whether it may not go beyond a limit: none at all for zero, and no more than that is known of for more.
    pub fn is_within(&self, max_loss_bytes: u64) -> bool {
        self.is_nothing()
            || max_loss_bytes > 0 && self.known_bytes().is_some_and(|bytes| bytes <= max_loss_bytes)
    }
}

impl fmt::Display for Stake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stake::Nothing { end, .. } => {
                write!(f, "nothing: all that the old primary wrote, up to {end}, is here or can be had")
            }
            Stake::NothingAcknowledged { end, policy, .. } => write!(
                f,
                "0 acknowledged bytes: commits waited for {policy}, and what it released is here, up to {end} (commits at \
                 `on` or `remote_apply` that nobody cancelled)"
            ),
            Stake::NothingKnown { from, known: Known { heard: Some(heard), .. } } => write!(
                f,
                "no WAL beyond {from} is known; what the primary wrote in the {} s since it was last heard is unknown",
                heard.seconds
            ),
            Stake::NothingKnown { from, known: Known { heard: None, .. } } => {
                write!(
                    f,
                    "what the primary wrote beyond {from} is unknown: it was not heard since walship started"
                )
            }
            Stake::Since { epoch } => {
                write!(
                    f,
                    "all that was written since the promotion of epoch {epoch} is not here and will be lost"
                )
            }
            Stake::AtLeast { from, to, .. } => write!(
                f,
                "WAL from {from} to at least {to} ({} bytes) is not here and will be lost",
                to.bytes_since(*from)
            ),
        }
    }
}

/// What would be lost with these facts, `end` being where the log ends that is promoted.
pub(super) fn of(facts: &Facts, end: Lsn) -> Stake {
    match (by_these(facts, end), &facts.earlier) {
        // It is the same log, and what was found of it before it was committed holds: only a promotion since adds to it.
        (now @ Stake::Since { .. }, _) | (now, None) => now,
        (_, Some(earlier)) => earlier.clone(),
    }
}

fn by_these(facts: &Facts, end: Lsn) -> Stake {
    let (epoch, _) = facts.own_position();
    if facts.committed_epoch > epoch {
        return Stake::Since { epoch: facts.committed_epoch };
    }
    if let Some((_, (its_epoch, its_end))) = facts.log_of_the_primary()
        // What another branch holds beyond the fork is not here, wherever it ends.
        && its_epoch == epoch
        && its_end <= end
    {
        return Stake::Nothing { end: its_end, ended_cleanly: facts.ended_cleanly };
    }
    let waited = facts.waited.as_ref();
    if let Some((waited, armed)) = waited.and_then(|waited| Some((waited, waited.always()?)))
        && plan::shortfall(facts).is_none()
        && !plan::someone_has_more(facts, end)
        // It was acknowledged from here, or is no more where it was acknowledged from.
        && facts.log_end <= end
        && armed.released_lsn <= end
    {
        return Stake::NothingAcknowledged { end, policy: waited.policy.clone(), armed_at: armed.at };
    }
    let reported = waited.and_then(|waited| waited.reported);
    let comparable = facts.members.iter().filter_map(|member| member.position);
    let known = comparable.filter(|(its_epoch, _)| *its_epoch == epoch).map(|(_, lsn)| lsn);
    let writing = facts.primary().and_then(|(_, server)| match server {
        Server::Writing { lsn } => Some(lsn),
        Server::Down | Server::Unsure => None,
    });
    let heard = facts.last_heard.map(|heard| heard.lsn);
    let released = reported.map(|reported| reported.released_lsn);
    let furthest = known.chain(writing).chain(heard).chain(released).chain([facts.log_end]).max();
    let armed = reported.filter(|reported| reported.is_armed && reported.released_lsn <= end);
    let known = Known { heard: facts.last_heard, armed };
    match furthest.filter(|to| *to > end) {
        Some(to) => Stake::AtLeast { from: end, to, known },
        None => Stake::NothingKnown { from: end, known },
    }
}
