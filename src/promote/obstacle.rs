//! What stands against a promotion.

use super::facts::{Contact, Facts, Part, Replay, Seen, Server, Stage};
use super::plan;
use super::stake::Stake;
use crate::pg::Lsn;

/// How much a standby may lack that takes over: some seconds of transfer.
const SWITCHOVER_LAG_BYTES_MAX: u64 = 64 << 20;

/// Which obstacle it is, for programs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The primary's PostgreSQL answers.
    PrimaryWrites,
    /// Whether it runs is unknown, though its sidecar answers.
    PrimaryUnsure,
    /// Others reach the primary, or are bound otherwise.
    VotesRefused,
    /// Fewer than a majority take part.
    NoMajority,
    /// So few take part that those who do not may alone have acknowledged commits.
    MayLackAcknowledged,
    /// Another node is further along.
    Behind,
    /// A promotion was committed that this node has nothing of.
    LeftBehind,
    /// Somebody paused the replay here.
    ReplayPaused,
    /// The replay here is delayed.
    ReplayDelayed,
    /// The primary that is to hand over does not answer.
    NobodyHandsOver,
    /// More may be lost than was allowed.
    LossBeyondLimit,
}

/// Why nothing was done, and what would accept the consequence.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{reason}")]
pub struct Refusal {
    /// Which it is.
    pub kind: Kind,
    /// What stands against it.
    pub reason: String,
    /// What to do instead.
    pub hint: String,
}

/// All obstacles, those first that a person can do most about; `end` is where the log ends that is promoted.
pub(super) fn all(facts: &Facts, stake: &Stake, end: Lsn) -> Vec<Refusal> {
    let found = [
        primary(facts, stake),
        left_behind(facts, stake),
        behind(facts, stake, end),
        refused(facts, stake),
        unheard(facts, stake),
        no_majority(facts, stake),
        replay(facts),
    ];
    found.into_iter().flatten().collect()
}

/// The same for a primary that hands over: it is to write until it is asked to stop, and by then has all.
pub(super) fn of_switchover(facts: &Facts, stake: &Stake) -> Vec<Refusal> {
    let found = [
        hands_over(facts),
        left_behind(facts, stake),
        too_far_behind(facts),
        refused(facts, stake),
        no_majority(facts, stake),
        replay(facts),
    ];
    found.into_iter().flatten().collect()
}

fn hands_over(facts: &Facts) -> Option<Refusal> {
    let hint = "If it is lost, `walship promote` makes a standby the primary.".to_owned();
    let refusal = |reason| Some(Refusal { kind: Kind::NobodyHandsOver, reason, hint });
    match facts.primary() {
        None => refusal("no primary is known that could hand over".to_owned()),
        Some((primary, _)) if !primary.counts(facts.stage) => {
            refusal(format!("{} does not answer, and can't hand over", primary.node))
        }
        Some((primary, Server::Unsure)) => {
            refusal(format!("whether PostgreSQL on {} runs is unknown", primary.node))
        }
        Some((primary, Server::Down)) if facts.stage == Stage::Facts => {
            refusal(format!("PostgreSQL on {} does not run, and can't hand over", primary.node))
        }
        Some(_) => None,
    }
}

/// What is missing when the primary stops is pulled while nobody can write.
fn too_far_behind(facts: &Facts) -> Option<Refusal> {
    let (primary, Server::Writing { lsn }) = facts.primary()? else { return None };
    let behind_bytes = lsn.bytes_since(facts.own_position().1);
    (behind_bytes > SWITCHOVER_LAG_BYTES_MAX).then(|| Refusal {
        kind: Kind::Behind,
        reason: format!(
            "{} is {behind_bytes} bytes behind {}, and writes would have to wait for that",
            facts.node, primary.node
        ),
        hint: format!(
            "Wait until it has caught up (`walship lag`): {SWITCHOVER_LAG_BYTES_MAX} bytes are fine."
        ),
    })
}

/// What may be lost goes beyond what was allowed.
pub(super) fn beyond(limit: u64, stake: &Stake) -> Refusal {
    Refusal {
        kind: Kind::LossBeyondLimit,
        reason: format!("more may be lost than the {limit} bytes that --max-loss allows: {stake}"),
        hint: "Bring back a node that has more, or the old primary's sidecar, and run this again; a higher --max-loss \
               accepts the loss."
            .to_owned(),
    }
}

/// Stopped by its own vote it is no obstacle any more.
fn primary(facts: &Facts, stake: &Stake) -> Option<Refusal> {
    let (primary, server) = facts.primary()?;
    let node = &primary.node;
    match (server, &primary.contact) {
        (_, Contact::Voted) | (Server::Down, _) => None,
        (Server::Unsure, Contact::Silent) => None,
        (Server::Writing { .. }, _) => Some(Refusal {
            kind: Kind::PrimaryWrites,
            reason: format!(
                "PostgreSQL on {node} still answers as the primary: two primaries would part the data"
            ),
            hint: format!(
                "`walship switchover` hands over without a loss. Or stop PostgreSQL on {node} first (pg_ctl stop -m \
                 fast), and run this again; --force has its sidecar stop it, or goes on regardless: {stake}."
            ),
        }),
        (Server::Unsure, _) => Some(Refusal {
            kind: Kind::PrimaryUnsure,
            reason: format!("the sidecar of {node} answers, but whether its PostgreSQL runs is unknown"),
            hint: format!(
                "Make sure that PostgreSQL on {node} is stopped; --force has its sidecar stop it, or goes on \
                 regardless: {stake}."
            ),
        }),
    }
}

fn behind(facts: &Facts, stake: &Stake, end: Lsn) -> Option<Refusal> {
    let own = facts.own_position();
    // Whoever got more while the votes were asked for has it pulled: it was this node's turn.
    let reach = if facts.stage == Stage::Votes { (own.0, end) } else { own };
    let others = facts.members.iter().filter(|member| member.part == Part::Standby);
    let ahead = others.filter_map(|other| Some((other, other.position?))).filter(|(_, at)| *at > reach);
    let (other, (epoch, lsn)) = ahead.max_by_key(|(_, at)| *at)?;
    let seen = if other.contact == Contact::Silent { "was last seen" } else { "is" };
    let (theirs, ours) = if epoch > own.0 {
        (format!("in epoch {epoch} at {lsn}"), format!("in epoch {} at {}", own.0, own.1))
    } else {
        (format!("at {lsn}"), format!("at {}", own.1))
    };
    let hint = match other.contact {
        Contact::Silent => format!("Start walship on {} and run this again", other.node),
        _ => format!("Run `walship promote` on {}, or here with --elect", other.node),
    };
    Some(Refusal {
        kind: Kind::Behind,
        reason: format!("{} {seen} further along, {theirs}; {} is {ours}", other.node, facts.node),
        hint: format!("{hint}, or accept with --force that {} is promoted: {stake}.", facts.node),
    })
}

fn refused(facts: &Facts, stake: &Stake) -> Option<Refusal> {
    let why = facts.members.iter().find_map(|member| match &member.contact {
        Contact::Refused { why } => Some((member, why)),
        _ => None,
    });
    let (member, why) = why?;
    Some(Refusal {
        kind: Kind::VotesRefused,
        reason: format!("{} refused its vote: {why}", member.node),
        hint: format!(
            "If the primary is lost, stop it there; --force asks again without regard to that: {stake}."
        ),
    })
}

fn unheard(facts: &Facts, stake: &Stake) -> Option<Refusal> {
    let waited = facts.waited.as_ref()?;
    if matches!(stake, Stake::Nothing { .. }) {
        return None;
    }
    let plan::Shortfall { silent, enough, heard } = plan::shortfall(facts)?;
    let silent = silent.join(", ");
    Some(Refusal {
        kind: Kind::MayLackAcknowledged,
        reason: format!(
            "commits waited for {}, and {silent} may alone have some that were acknowledged: {enough} of them must answer, and \
             {heard} did",
            waited.policy
        ),
        hint: format!("Start walship on {silent} and run this again; --force goes on without: {stake}."),
    })
}

fn no_majority(facts: &Facts, stake: &Stake) -> Option<Refusal> {
    let plan::Majority { of, needed, votes, without } = plan::majority(facts);
    if votes >= needed {
        return None;
    }
    let missing = |member: &&Seen| !member.counts(facts.stage) && without.as_ref() != Some(&member.node);
    let missing: Vec<&str> =
        facts.members.iter().filter(missing).map(|member| member.node.as_str()).collect();
    let missing = missing.join(", ");
    let beside = without.as_ref().map_or(String::new(), |fenced| format!(" beside {fenced}"));
    let verb = if facts.stage == Stage::Facts { "answer" } else { "vote" };
    let fence = match facts.primary() {
        // Where that would do: the others are a majority of themselves.
        Some((primary, _)) if !primary.counts(facts.stage) && without.is_none() && 2 * votes >= of => {
            format!(
                "If {0} is down for sure, say so with --fence-command (a command that makes sure of it, and exits with 0), or \
             start the sidecar of {0}. ",
                primary.node
            )
        }
        _ => String::new(),
    };
    Some(Refusal {
        kind: Kind::NoMajority,
        reason: format!(
            "{votes} of {of} members{beside} {verb}, and {needed} must: {missing} may follow another primary"
        ),
        hint: format!(
            "{fence}Start walship on {missing} and run this again; --force goes on without: {stake}."
        ),
    })
}

fn left_behind(facts: &Facts, stake: &Stake) -> Option<Refusal> {
    (facts.committed_epoch > facts.own_position().0).then(|| Refusal {
        kind: Kind::LeftBehind,
        reason: format!(
            "a promotion committed epoch {}, and {} has no WAL of it",
            facts.committed_epoch, facts.node
        ),
        hint: format!(
            "Promote the node that was promoted then, or one that followed it; --force goes on regardless: {stake}."
        ),
    })
}

fn replay(facts: &Facts) -> Option<Refusal> {
    match facts.replay {
        Replay::Free => None,
        Replay::Paused => Some(Refusal {
            kind: Kind::ReplayPaused,
            reason: format!("somebody paused the replay on {}", facts.node),
            hint: "Run `SELECT pg_wal_replay_resume()` on this node, then promote again; --force resumes it.".to_owned(),
        }),
        Replay::Delayed { seconds } => Some(Refusal {
            kind: Kind::ReplayDelayed,
            reason: format!("{} replays with a delay of {seconds} s (recovery_min_apply_delay)", facts.node),
            hint: "Run `ALTER SYSTEM SET recovery_min_apply_delay = 0` and `SELECT pg_reload_conf()` on this node, then \
                   promote again; --force waits for the delay, up to a minute without progress."
                .to_owned(),
        }),
    }
}
