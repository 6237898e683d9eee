//! The record of a promotion: who was asked and what each said, who was stopped and how, what was pulled, and what it cost.
//!
//! What is known before the commit is kept with it; the new timeline is added when PostgreSQL has begun it.

mod text;

pub(super) use text::wrapped;

use serde::{Deserialize, Serialize};

use super::facts::{Contact, Facts, Part, Reported, Said, Seen, Server, Wish};
use super::plan::{Fence, Plan};
use super::verdict::{Verdict, verdict};
use crate::clock::{Time, WallTime};
use crate::pg::{Lsn, TimelineId};

/// A promotion. Fields that a newer walship adds are ignored.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Certificate {
    /// The node that was promoted.
    pub node: String,
    /// The epoch that was committed.
    pub epoch: u64,
    /// The database cluster; as text, because it does not fit the numbers of every JSON reader.
    pub system_identifier: String,
    /// The old primary handed over; else it was lost.
    pub switchover: bool,
    /// PostgreSQL was promoted by hand before.
    pub by_hand: bool,
    /// The primary before, if one is known.
    pub old_primary: Option<String>,
    /// When it was asked for, by the clock of the promoted node, as all times are that are not said to be others.
    pub began_at: Time,
    /// When the epoch was committed.
    pub committed_at: Time,
    /// When PostgreSQL was a primary; `None` when that was never seen.
    pub completed_at: Option<Time>,
    /// It was forced: a person accepted what stood against it.
    pub forced: bool,
    /// What was warned of, and went on all the same.
    pub accepted: Vec<String>,
    /// The most that was allowed to be lost.
    pub max_loss_bytes: Option<u64>,
    /// How it was made sure that the old primary accepts nothing more.
    pub fence: Fenced,
    /// What was pulled before.
    pub salvage: Option<Salvaged>,
    /// What commits waited for; `None` when for nobody.
    pub policy: Option<PolicyOfCommits>,
    /// Every member.
    pub members: Vec<MemberThen>,
    /// The timeline that ended.
    pub old_timeline: TimelineId,
    /// Where the log ended that was promoted.
    pub end_lsn: Lsn,
    /// The timeline that began; `None` when that was never seen.
    pub new_timeline: Option<TimelineId>,
    /// Where it branched off.
    pub switch_lsn: Option<Lsn>,
    /// What it cost.
    pub verdict: Verdict,
}

/// How the old primary was stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Fenced {
    /// By whom.
    pub by: Fence,
    /// When it stood still for sure.
    pub at: Option<Time>,
}

/// WAL that was pulled.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Salvaged {
    /// From whom.
    pub node: String,
    /// From where.
    pub from: Lsn,
    /// Up to where.
    pub to: Lsn,
}

/// What commits waited for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PolicyOfCommits {
    /// The policy.
    pub ack: String,
    /// How long they waited, or `never` for as long as it took.
    pub stall_limit: String,
    /// N: whose positions counted.
    pub seats: Vec<String>,
    /// K: how many of them had to have a commit.
    pub needed: usize,
    /// N-K+1: so many of them have all that was acknowledged between them.
    pub enough: usize,
    /// How many of them stood still.
    pub frozen: usize,
    /// What the primary last reported, by its clock; `None` when nothing that was known here.
    pub reported: Option<Reported>,
    /// Somebody knew of a newer policy, or this one was about to give way to a weaker one.
    pub is_outdated: bool,
}

/// A member as it was then.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MemberThen {
    /// Its name.
    pub node: String,
    /// What it was.
    pub part: PartThen,
    /// Whether it voted.
    pub vote: VoteThen,
    /// Why it refused, in its own words.
    pub refusal: Option<String>,
    /// The highest epoch that it had promised.
    pub promised_epoch: Option<u64>,
    /// The highest that it knew to be committed.
    pub committed_epoch: Option<u64>,
    /// The timeline of its position.
    pub timeline: Option<TimelineId>,
    /// The epoch of its last WAL.
    pub wal_epoch: Option<u64>,
    /// What was durable there: frozen when it voted, else what was last known.
    pub lsn: Option<Lsn>,
    /// When that was so.
    pub at: Option<Time>,
    /// How old that was at the commit; `None` also when it is of later than that, so of a clock that differs.
    pub age_seconds: Option<u64>,
}

/// What a member was.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PartThen {
    /// The primary; whether its PostgreSQL ran is not known.
    Primary,
    /// The primary, whose PostgreSQL was seen to write.
    PrimaryWriting,
    /// The primary, whose PostgreSQL was down.
    PrimaryStopped,
    /// A standby.
    Standby,
    /// A primary before that.
    Superseded,
}

/// What became of a member's vote.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VoteThen {
    /// It was promoted itself.
    Candidate,
    /// It promised, and its position stood still.
    Voted,
    /// It refused.
    Refused,
    /// It was not heard.
    Silent,
}

/// How a promotion went up to its commit, besides what was planned.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Course {
    /// The cluster.
    pub system_identifier: u64,
    /// The timeline that ends.
    pub old_timeline: TimelineId,
    /// When it was asked for.
    pub began_at: WallTime,
    /// When the epoch is committed.
    pub committed_at: WallTime,
    /// Whoever stops the old primary, and when it stood still.
    pub fence: Fenced,
    /// What was pulled.
    pub salvage: Option<Salvaged>,
}

impl Certificate {
    /// The record of a promotion that is about to be committed.
    pub fn of(facts: &Facts, plan: &Plan, wish: &Wish, course: Course) -> Certificate {
        let Course { system_identifier, old_timeline, began_at, committed_at, fence, salvage } = course;
        let old_primary = facts.primary().map(|(primary, _)| primary.node.clone());
        let verdict = verdict(&plan.stake, old_primary.as_deref(), fence.at);
        Certificate {
            node: plan.node.clone(),
            epoch: plan.epoch,
            system_identifier: system_identifier.to_string(),
            switchover: wish.switchover,
            by_hand: facts.is_promoted,
            old_primary,
            began_at: began_at.into(),
            committed_at: committed_at.into(),
            completed_at: None,
            forced: wish.force,
            accepted: plan.warnings.clone(),
            max_loss_bytes: wish.max_loss_bytes,
            fence,
            end_lsn: salvage.as_ref().map_or(facts.own_position().1, |pulled| pulled.to),
            salvage,
            policy: policy(facts),
            members: facts.members.iter().map(|member| then(member, facts, committed_at)).collect(),
            old_timeline,
            new_timeline: None,
            switch_lsn: None,
            verdict,
        }
    }
}

fn policy(facts: &Facts) -> Option<PolicyOfCommits> {
    let waited = facts.waited.as_ref()?;
    let stands = |name: &&String| {
        facts.member(name).is_some_and(|seat| seat.contact == Contact::Voted && seat.position.is_some())
    };
    Some(PolicyOfCommits {
        ack: waited.policy.clone(),
        stall_limit: waited.stall_limit.to_string(),
        frozen: waited.seats.iter().filter(stands).count(),
        seats: waited.seats.clone(),
        needed: waited.needed,
        enough: waited.enough(),
        reported: waited.reported,
        is_outdated: waited.is_outdated,
    })
}

fn then(member: &Seen, facts: &Facts, committed_at: WallTime) -> MemberThen {
    let Said { promised_epoch, committed_epoch, timeline, at } = member.said.clone();
    let refusal = match &member.contact {
        Contact::Refused { why } => Some(why.clone()),
        Contact::Silent | Contact::Answered | Contact::Voted => None,
    };
    MemberThen {
        node: member.node.clone(),
        part: match member.part {
            Part::Primary(Server::Writing { .. }) => PartThen::PrimaryWriting,
            Part::Primary(Server::Down) => PartThen::PrimaryStopped,
            Part::Primary(Server::Unsure) => PartThen::Primary,
            Part::Standby => PartThen::Standby,
            Part::Superseded => PartThen::Superseded,
        },
        vote: match &member.contact {
            Contact::Voted if member.node == facts.node => VoteThen::Candidate,
            Contact::Voted => VoteThen::Voted,
            Contact::Refused { .. } => VoteThen::Refused,
            // One that answered and was not heard when it was asked for its vote.
            Contact::Silent | Contact::Answered => VoteThen::Silent,
        },
        refusal,
        promised_epoch,
        committed_epoch,
        timeline,
        wal_epoch: member.position.map(|(epoch, _)| epoch),
        lsn: member.position.map(|(_, lsn)| lsn),
        at,
        age_seconds: at.and_then(|at| age_seconds(at, committed_at)),
    }
}

/// A silent member was last heard by the clock of the old primary: what is of later is not young, but of an unknown age.
fn age_seconds(at: Time, committed_at: WallTime) -> Option<u64> {
    let at = WallTime::from(at);
    (at <= committed_at).then(|| committed_at.seconds_since(at) as u64)
}

#[cfg(test)]
mod tests {
    use super::super::tests::at;
    use super::*;

    #[test]
    fn what_is_of_later_than_the_commit_has_no_age() {
        let committed_at = at(100).into();
        assert_eq!(age_seconds(at(93), committed_at), Some(7));
        assert_eq!(age_seconds(at(100), committed_at), Some(0));
        assert_eq!(age_seconds(at(101), committed_at), None);
        assert_eq!(age_seconds(at(1 << 30), committed_at), None);
        let first = WallTime { unix_micros: i64::MIN };
        assert!(age_seconds(first.into(), WallTime { unix_micros: i64::MAX }).is_some());
    }
}
