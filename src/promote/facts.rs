//! What was seen of the nodes, and what is wished.

use super::stake::Stake;
use crate::clock::Time;
use crate::pg::{Lsn, TimelineId};
use crate::policy::StallLimit;

/// What a member is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// The primary that is to be replaced, and what is known of its PostgreSQL.
    Primary(Server),
    /// It follows.
    Standby,
    /// It was the primary until an earlier promotion, and has not come back.
    Superseded,
}

/// What is known of the primary's PostgreSQL.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Server {
    /// It answers and writes, by its sidecar's word.
    Writing {
        /// Its flush position.
        lsn: Lsn,
    },
    /// It does not run, by its sidecar's word.
    Down,
    /// Whether it runs nobody knows.
    Unsure,
}

/// How a member was met.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Contact {
    /// It does not answer; what is known of it is what the primary last said.
    Silent,
    /// It answered, and its position may move on.
    Answered,
    /// It promised: its position stands still, and it acknowledges nothing to the old primary.
    Voted,
    /// It answered, and refused its vote.
    Refused {
        /// In its own words.
        why: String,
    },
}

/// A member as it was seen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seen {
    /// Its name.
    pub node: String,
    /// What it is.
    pub part: Part,
    /// How it was met.
    pub contact: Contact,
    /// Of several that are equally far the highest is promoted; zero for never.
    pub priority: u32,
    /// How far it is: the epoch of its last WAL, and what is durable there.
    pub position: Option<(u64, Lsn)>,
    /// What else it said, for the record: no plan depends on it.
    pub said: Said,
}

/// What a member said of itself; what it never said is unknown.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Said {
    /// The highest epoch that it has promised.
    pub promised_epoch: Option<u64>,
    /// The highest that it knows to be committed.
    pub committed_epoch: Option<u64>,
    /// The timeline of its position.
    pub timeline: Option<TimelineId>,
    /// When its position was that.
    pub at: Option<Time>,
}

/// How this node's PostgreSQL takes what the store has, all of which it is to replay first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Replay {
    /// Nothing holds it back.
    Free,
    /// Somebody paused it; promotion would end it where it stands.
    Paused,
    /// It lacks something and waits for this long with every commit.
    Delayed {
        /// In whole seconds, rounded up.
        seconds: u64,
    },
}

/// What commits waited for under the primary that is to be replaced.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Waited {
    /// The policy, as it was told last.
    pub policy: String,
    /// Whose positions counted.
    pub seats: Vec<String>,
    /// How many of them had to have a commit.
    pub needed: usize,
    /// How long they waited before they went on without.
    pub stall_limit: StallLimit,
    /// What the primary said last of its commits; `None` when nothing that is known here.
    pub reported: Option<Reported>,
    /// A newer policy is known to somebody, or this one is about to give way to a weaker one.
    pub is_outdated: bool,
}

/// What a primary said of its commits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct Reported {
    /// They do wait, and none goes on unprotected.
    pub is_armed: bool,
    /// What was released by then.
    pub released_lsn: Lsn,
    /// When that was so, by the primary's clock.
    pub at: Time,
}

/// Where the primary's log ended when it was last heard of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct Heard {
    /// Its flush position.
    pub lsn: Lsn,
    /// When that was so, by the primary's clock.
    pub at: Time,
    /// How long ago that was when the question was asked.
    pub seconds: u64,
}

impl Waited {
    /// Whether no commit was acknowledged without those whom it waited for, as far as it was told here: the primary said
    /// last that commits do wait, and they did so without a limit.
    pub fn always(&self) -> Option<Reported> {
        self.reported
            .filter(|reported| reported.is_armed && self.stall_limit.0.is_none() && !self.is_outdated)
    }

    /// Of these seats so many have between them all that was acknowledged.
    pub fn enough(&self) -> usize {
        (self.seats.len() + 1).saturating_sub(self.needed)
    }
}

/// Which question is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// Of facts: whoever answers is taken to vote.
    Facts,
    /// Of votes: only they count.
    Votes,
}

/// What the person wants.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Wish {
    /// Go on where it would be refused, and accept what that costs.
    pub force: bool,
    /// Refuse where more may be lost than this.
    pub max_loss_bytes: Option<u64>,
    /// The primary is there, and hands over.
    pub switchover: bool,
}

/// All that is known before a promotion.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Facts {
    /// The node that is to be promoted, one of the members.
    pub node: String,
    /// All members, this node and the primary among them.
    pub members: Vec<Seen>,
    /// The highest epoch that anyone knows to be committed.
    pub committed_epoch: u64,
    /// The highest epoch that any node has promised or committed before this election.
    pub highest_epoch: u64,
    /// Its PostgreSQL left the log already, as after a promotion by hand: it takes no WAL that is pulled.
    pub is_promoted: bool,
    /// How what is here is replayed.
    pub replay: Replay,
    /// Where this node's log ends, all of which a PostgreSQL that was promoted by hand need not have.
    pub log_end: Lsn,
    /// The primary as it was last heard of.
    pub last_heard: Option<Heard>,
    /// The primary's PostgreSQL ended with a shutdown checkpoint, by its vote.
    pub ended_cleanly: bool,
    /// What commits waited for; `None` when for nobody.
    pub waited: Option<Waited>,
    /// What an earlier promotion of this node put at stake, that was committed and did not come to its end.
    pub earlier: Option<Stake>,
    /// There is a command that makes sure that the old primary is down.
    pub can_fence: bool,
    /// Which question this is.
    pub stage: Stage,
}

impl Seen {
    /// Whether it takes part in this question: it promised, or answered while nothing more is asked.
    pub fn counts(&self, stage: Stage) -> bool {
        match self.contact {
            Contact::Voted => true,
            Contact::Answered => stage == Stage::Facts,
            Contact::Silent | Contact::Refused { .. } => false,
        }
    }
}

impl Facts {
    /// The member of that name.
    pub fn member(&self, name: &str) -> Option<&Seen> {
        self.members.iter().find(|member| member.node == name)
    }

    /// The same, to note what became of it.
    pub fn member_mut(&mut self, name: &str) -> Option<&mut Seen> {
        self.members.iter_mut().find(|member| member.node == name)
    }

    /// The node that is to be promoted: the epoch of its last WAL, and what is durable there.
    pub fn own_position(&self) -> (u64, Lsn) {
        self.member(&self.node).and_then(|own| own.position).unwrap_or_default()
    }

    /// The epoch of an election: above every one that anybody is known to have.
    pub fn next_epoch(&self) -> u64 {
        let of_wal = self.members.iter().filter_map(|member| member.position.map(|(epoch, _)| epoch));
        of_wal.chain([self.highest_epoch, self.committed_epoch]).max().unwrap_or_default().saturating_add(1)
    }

    /// A member that was counted on does not answer any more.
    pub fn lose(&mut self, name: &str) {
        if let Some(member) = self.member_mut(name) {
            member.contact = Contact::Silent;
        }
    }

    /// The primary that is to be replaced.
    pub fn primary(&self) -> Option<(&Seen, Server)> {
        self.members.iter().find_map(|member| match member.part {
            Part::Primary(server) => Some((member, server)),
            Part::Standby | Part::Superseded => None,
        })
    }

    /// The primary's own log, which nobody adds to any more, where that can be asked for: its end.
    pub fn log_of_the_primary(&self) -> Option<(&Seen, (u64, Lsn))> {
        let (primary, server) = self.primary()?;
        // With its vote alone it may go on: it votes, too, when it is only about to be stopped.
        let stands = server == Server::Down && primary.counts(self.stage);
        primary.position.filter(|_| stands).map(|position| (primary, position))
    }
}
