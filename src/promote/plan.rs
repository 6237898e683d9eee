//! What will be done, and what it costs.

use std::cmp::Reverse;

use super::facts::{Contact, Facts, Part, Seen, Server, Stage, Wish};
use super::obstacle::{self, Refusal};
use super::stake::{self, Stake};
use crate::pg::Lsn;

/// How it is made sure that the old primary accepts nothing more.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fence {
    /// There is none to stop: it was replaced before, or is not known.
    Needless,
    /// Its own sidecar stops it, or has.
    Sidecar,
    /// The command does.
    Command,
    /// Nobody does: it may go on to accept writes that are lost.
    Nobody,
}

/// WAL that is pulled before the promotion.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct Salvage {
    /// Who has it.
    pub node: String,
    /// Up to where.
    pub to: Lsn,
}

/// What will be done, and what it costs.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct Plan {
    /// Who will be promoted.
    pub node: String,
    /// The epoch that will be committed.
    pub epoch: u64,
    /// How the old primary is stopped.
    pub fence: Fence,
    /// What is pulled first.
    pub salvage: Option<Salvage>,
    /// What may be lost.
    pub stake: Stake,
    /// What a person should know besides.
    pub warnings: Vec<String>,
}

impl Plan {
    /// For programs, with what is at stake in words besides.
    pub fn json(&self) -> Result<String, serde_json::Error> {
        let all = serde_json::json!({ "plan": self, "at_stake": self.stake.to_string() });
        serde_json::to_string_pretty(&all).map(|text| text + "\n")
    }
}

/// Decides. What is forced is among the warnings.
pub fn plan(facts: &Facts, wish: &Wish) -> Result<Plan, Refusal> {
    let salvage = salvage(facts);
    let end = salvage.as_ref().map_or(facts.own_position().1, |salvage| salvage.to);
    let stake = match facts.primary() {
        // It is the first to vote, and without its last WAL nothing goes on.
        Some((_, Server::Writing { lsn })) if wish.switchover && facts.stage == Stage::Facts => {
            Stake::Nothing { end: lsn.max(end), ended_cleanly: true }
        }
        _ => stake::of(facts, end),
    };
    let mut warnings = Vec::new();
    let obstacles = if wish.switchover {
        obstacle::of_switchover(facts, &stake)
    } else {
        obstacle::all(facts, &stake, end)
    };
    for refusal in obstacles {
        if !wish.force {
            return Err(refusal);
        }
        warnings.push(refusal.reason);
    }
    if let Some(limit) = wish.max_loss_bytes.filter(|limit| !stake.is_within(*limit)) {
        return Err(obstacle::beyond(limit, &stake));
    }
    let silent = |member: &&Seen| member.contact == Contact::Silent && member.part == Part::Standby;
    for member in facts.members.iter().filter(silent) {
        warnings.push(format!("{} does not answer, so how far it is now is not known", member.node));
    }
    let fence = fence(facts);
    if fence == Fence::Nobody {
        let name = facts.primary().map_or("the old primary", |(primary, _)| primary.node.as_str());
        warnings.push(format!(
            "{name} can't be reached and nothing makes sure that it is down: what it still accepts is lost"
        ));
    }
    Ok(Plan { node: facts.node.clone(), epoch: facts.next_epoch(), fence, salvage, stake, warnings })
}

fn fence(facts: &Facts) -> Fence {
    match facts.primary() {
        None => Fence::Needless,
        Some((primary, _)) if primary.counts(facts.stage) => Fence::Sidecar,
        Some(_) if facts.can_fence => Fence::Command,
        Some(_) => Fence::Nobody,
    }
}

/// The furthest of those whose log continues this node's, when that is further than this node.
fn salvage(facts: &Facts) -> Option<Salvage> {
    if facts.is_promoted {
        return None;
    }
    let own = facts.own_position();
    let (epoch, _) = own;
    let is_source = |member: &&Seen| {
        let stands = match member.part {
            Part::Primary(Server::Writing { .. } | Server::Unsure) => facts.stage == Stage::Votes,
            Part::Primary(Server::Down) | Part::Standby => true,
            // What it wrote after it was left is nobody's.
            Part::Superseded => false,
        };
        stands && member.counts(facts.stage)
    };
    let sources = facts.members.iter().filter(is_source);
    let further = sources.filter_map(|member| {
        member.position.filter(|at| at.0 == epoch && *at > own).map(|(_, to)| (to, member))
    });
    let (to, member) = further.max_by_key(|(to, member)| (*to, Reverse(member.node.clone())))?;
    Some(Salvage { node: member.node.clone(), to })
}

/// Whom to promote of those who can be: the furthest, then the highest priority, then the first name.
pub fn best(facts: &Facts) -> Option<&Seen> {
    let fit =
        |member: &&Seen| member.part == Part::Standby && member.counts(facts.stage) && member.priority > 0;
    let with_position =
        facts.members.iter().filter(fit).filter_map(|member| Some((member.position?, member)));
    let best = with_position.max_by_key(|(at, member)| (*at, member.priority, Reverse(member.node.clone())));
    best.map(|(_, member)| member)
}

/// Whether somebody who takes part has WAL of a later epoch, or more of the same, than `end` of this node's.
pub(super) fn someone_has_more(facts: &Facts, end: Lsn) -> bool {
    let (epoch, _) = facts.own_position();
    let part = facts.members.iter().filter(|member| member.counts(facts.stage));
    part.filter_map(|member| member.position).any(|at| at > (epoch, end))
}

/// Whose votes count, how many are a majority of them, and how many there are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Majority {
    pub of: usize,
    pub needed: usize,
    pub votes: usize,
    /// The old primary, where a command stops it: it is neither waited for nor counted. A vote in its place would be worth
    /// nothing, for it remembers none: two standbys that don't reach each other could both have it, and a third could ask
    /// for it once more after the old primary has come back. A majority of the others meets every other majority.
    pub without: Option<String>,
}

/// The votes as they stand.
pub(super) fn majority(facts: &Facts) -> Majority {
    let fenced = facts.primary().filter(|_| fence(facts) == Fence::Command);
    let without = fenced.map(|(primary, _)| primary.node.clone());
    let counted = facts.members.iter().filter(|member| without.as_ref() != Some(&member.node));
    let (of, votes) =
        counted.fold((0, 0), |(of, votes), member| (of + 1, votes + usize::from(member.counts(facts.stage))));
    Majority { of, needed: of / 2 + 1, votes, without }
}

/// Too few of those whose positions counted are heard: who is not, and how many would have to be and are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Shortfall {
    pub silent: Vec<String>,
    pub enough: usize,
    pub heard: usize,
}

/// Of N standbys that K must have a commit of, any N-K+1 have all commits between them; with fewer, those who are silent
/// may alone have one that was acknowledged.
pub(super) fn shortfall(facts: &Facts) -> Option<Shortfall> {
    let waited = facts.waited.as_ref()?;
    let heard = |name: &String| {
        facts.member(name).is_some_and(|seat| seat.counts(facts.stage) && seat.position.is_some())
    };
    let (heard, silent): (Vec<_>, Vec<_>) = waited.seats.iter().cloned().partition(heard);
    let enough = waited.enough();
    (heard.len() < enough).then_some(Shortfall { silent, enough, heard: heard.len() })
}

#[cfg(test)]
mod tests;
