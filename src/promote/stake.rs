//! What may be lost with a promotion.

use std::fmt;

use super::facts::{Facts, Server};
use super::plan;
use crate::pg::Lsn;

/// What may be lost with a promotion, once what can be pulled has been.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Stake {
    /// Nothing: the old primary's own log is here to its end, and it writes no more.
    Nothing {
        /// That end.
        end: Lsn,
    },
    /// No commit that was acknowledged at `on` or `remote_apply` and not cancelled: so many standbys stand still that one
    /// of them has each.
    NothingAcknowledged {
        /// The end of the log that is promoted.
        end: Lsn,
        /// The policy that promised it.
        policy: String,
    },
    /// Nothing that anyone ever heard of beyond this position.
    NothingKnown {
        /// The end of the log that is promoted.
        from: Lsn,
        /// How long ago the primary was last heard of; `None` when never by this process.
        silent_seconds: Option<u64>,
    },
    /// What was written since a promotion that this log has nothing of, wherever it ends: positions of two branches
    /// can't be compared.
    Since {
        /// The epoch that was committed then.
        epoch: u64,
    },
    /// WAL in this range is known to exist elsewhere, and perhaps more.
    AtLeast {
        /// The end of the log that is promoted.
        from: Lsn,
        /// The furthest end that anyone reported.
        to: Lsn,
    },
}

impl Stake {
    /// Bytes that are known to be lost; `None` where even that is unknown.
    pub fn known_bytes(&self) -> Option<u64> {
        match self {
            Stake::Nothing { .. } | Stake::NothingAcknowledged { .. } => Some(0),
            Stake::NothingKnown { silent_seconds, .. } => silent_seconds.map(|_| 0),
            Stake::Since { .. } => None,
            Stake::AtLeast { from, to } => Some(to.bytes_since(*from)),
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
            Stake::Nothing { end } => {
                write!(f, "nothing: all that the old primary wrote, up to {end}, is here or can be had")
            }
            Stake::NothingAcknowledged { end, policy } => write!(
                f,
                "0 acknowledged bytes: commits waited for {policy}, and what it released is here, up to {end} (commits at \
                 `on` or `remote_apply` that nobody cancelled)"
            ),
            Stake::NothingKnown { from, silent_seconds: Some(seconds) } => write!(
                f,
                "no WAL beyond {from} is known; what the primary wrote in the {seconds} s since it was last heard is unknown"
            ),
            Stake::NothingKnown { from, silent_seconds: None } => {
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
            Stake::AtLeast { from, to } => write!(
                f,
                "WAL from {from} to at least {to} ({} bytes) is not here and will be lost",
                to.bytes_since(*from)
            ),
        }
    }
}

/// What would be lost with these facts, `end` being where the log ends that is promoted.
pub(super) fn of(facts: &Facts, end: Lsn) -> Stake {
    let (epoch, _) = facts.own_position();
    if facts.committed_epoch > epoch {
        return Stake::Since { epoch: facts.committed_epoch };
    }
    if let Some((_, (its_epoch, its_end))) = facts.log_of_the_primary()
        // What another branch holds beyond the fork is not here, wherever it ends.
        && its_epoch == epoch
        && its_end <= end
    {
        return Stake::Nothing { end: its_end };
    }
    if let Some(waited) = &facts.waited
        && waited.for_ever
        && waited.is_armed
        && plan::shortfall(facts).is_none()
        && !plan::someone_has_more(facts, end)
    {
        return Stake::NothingAcknowledged { end, policy: waited.policy.clone() };
    }
    let comparable = facts.members.iter().filter_map(|member| member.position);
    let known = comparable.filter(|(its_epoch, _)| *its_epoch == epoch).map(|(_, lsn)| lsn);
    let writing = facts.primary().and_then(|(_, server)| match server {
        Server::Writing { lsn } => Some(lsn),
        Server::Down | Server::Unsure => None,
    });
    let furthest = known.chain(writing).chain(facts.last_heard.map(|(lsn, _)| lsn)).max();
    match furthest.filter(|to| *to > end) {
        Some(to) => Stake::AtLeast { from: end, to },
        None => {
            Stake::NothingKnown { from: end, silent_seconds: facts.last_heard.map(|(_, seconds)| seconds) }
        }
    }
}
