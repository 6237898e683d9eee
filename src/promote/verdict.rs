//! What a promotion cost, for the record: the account of the plan, when the old primary stopped, and all that in words.
//!
//! "0 acknowledged bytes lost" is said only of [`Stake::NothingAcknowledged`]; what is not known is said to be unknown.

use serde::{Deserialize, Serialize};

use super::stake::{Known, Stake};
use crate::clock::Time;
use crate::pg::Lsn;

/// What a promotion cost.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Verdict {
    /// The account.
    #[serde(flatten)]
    pub stake: Stake,
    /// When commits may have been acknowledged that are lost; `None` when that is at no time, or at any.
    pub window: Option<Window>,
    /// The same in words.
    pub text: String,
}

/// A stretch of time. The two ends are of two clocks: where these differ much, it seems to end before it begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Window {
    /// By the old primary's clock; `None` when nothing is known of before.
    pub from: Option<Time>,
    /// When the old primary stood still for sure, by the clock of the node that was promoted; `None` when nothing made sure.
    pub to: Option<Time>,
}

/// The verdict on a promotion whose old primary, if one is known, stood still at a moment, if anything made sure of that.
pub fn verdict(stake: &Stake, old_primary: Option<&str>, stopped_at: Option<Time>) -> Verdict {
    let old = old_primary.unwrap_or("the old primary");
    let window = match stake {
        Stake::Nothing { .. } | Stake::NothingAcknowledged { .. } | Stake::Since { .. } => None,
        Stake::NothingKnown { from, known } | Stake::AtLeast { from, known, .. } => {
            Some(Window { from: known.up_to(*from), to: stopped_at })
        }
    };
    let text = match stake {
        Stake::Nothing { end, ended_cleanly: true } => format!(
            "nothing is lost: {old} ended with a shutdown checkpoint, and all of its WAL is here, up to {end}"
        ),
        Stake::Nothing { end, ended_cleanly: false } => format!(
            "nothing is lost that {old} had on disk: its log is here to the last whole record, up to {end}"
        ),
        Stake::NothingAcknowledged { end, policy, armed_at } => format!(
            "0 acknowledged bytes lost: commits waited for {policy} without a limit, {old} last reported itself armed at \
             {armed_at}, and all that it acknowledged is here, up to {end}; this covers commits at `on` or `remote_apply` that \
             were not cancelled, and no policy that was forced on {old} since"
        ),
        Stake::NothingKnown { from, known } => {
            format!(
                "none up to {from}{}; unknown after: {}",
                basis(*from, known),
                unknown(old, *from, known, stopped_at)
            )
        }
        Stake::AtLeast { from, to, known } => format!(
            "lost: WAL from {from} to at least {to} ({} bytes); none up to {from}{}; unknown after {to}: {}",
            to.bytes_since(*from),
            basis(*from, known),
            unknown(old, *from, known, stopped_at)
        ),
        Stake::Since { epoch } => format!(
            "lost: all that was written since the promotion of epoch {epoch}; how much that is, is unknown"
        ),
    };
    Verdict { stake: stake.clone(), window, text }
}

/// Why nothing is lost up to the end of the log.
fn basis(end: Lsn, known: &Known) -> String {
    match (known.armed, known.heard) {
        (Some(armed), _) => format!(", reported armed at {}", armed.at),
        (None, Some(heard)) if heard.lsn <= end => {
            format!(", all that there was by its last word, of {}", heard.at)
        }
        (None, _) => String::new(),
    }
}

/// What is not known, and of when.
fn unknown(old: &str, end: Lsn, known: &Known, stopped_at: Option<Time>) -> String {
    let heard = match known.heard {
        Some(heard) => format!("{old} was last heard at {}, then at {}", heard.at, heard.lsn),
        None => format!("{old} was not heard since walship started here"),
    };
    let since = known.up_to(end);
    let from = since.map_or("at any time".to_owned(), |from| format!("from {from}"));
    let to = match stopped_at {
        Some(at) if since.is_some_and(|since| since > at) => {
            format!(
                "until it stood still, which was at {at} by the clock of the promoted node: the two clocks differ"
            )
        }
        Some(at) => format!("until {at}, when it stood still"),
        None => format!("until it is stopped: nothing made sure that {old} is"),
    };
    format!("{heard}; what it acknowledged {from} {to}")
}

#[cfg(test)]
mod tests;
