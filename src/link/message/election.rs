//! Messages of an election: votes, what became of it, and orders to another node's sidecar.

use serde::{Deserialize, Serialize};

use super::{Answer, text_u64};

/// A candidate asks for a vote.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VoteRequest {
    /// The epoch that it wants to commit; above all that it knows of.
    #[serde(with = "text_u64")]
    pub epoch: u64,
    /// Who is to be promoted.
    pub candidate: String,
    /// Where it is asked later what became of it, `host:port`.
    pub address: String,
    /// Why.
    pub why: Why,
}

/// Why there is an election.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// The primary is lost: whoever still reaches it refuses.
    Loss,
    /// A person insists: a primary that is there is to stop.
    Forced,
    /// The primary is to hand over.
    Switchover,
    /// Something that a newer version wants.
    #[serde(other)]
    Unknown,
}

/// A promise, or why there is none.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Vote {
    /// Why not; `None` when it is promised.
    pub refusal: Option<String>,
    /// Who else is being promoted, when it refuses for that.
    #[serde(default)]
    pub rival: Option<String>,
    /// A primary: its PostgreSQL is stopped, and does not start as one before this is over.
    #[serde(default)]
    pub is_stopped: bool,
    /// A primary: its PostgreSQL ended with a shutdown checkpoint, and its store has all WAL up to that.
    #[serde(default)]
    pub ended_cleanly: bool,
    /// How the voter is after the promise: its position stands still from there on.
    pub answer: Answer,
}

/// An election that did not come to its commit. Its candidate will never commit that epoch.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Withdrawal {
    /// The epoch.
    #[serde(with = "text_u64")]
    pub epoch: u64,
    /// Who wanted it.
    pub candidate: String,
}

/// A command that another node's sidecar carries out.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Order {
    /// `walship promote` there.
    Promote {
        /// Accept what would be refused.
        force: bool,
        /// The most bytes that may be lost.
        max_loss_bytes: Option<u64>,
        /// Makes sure that the old primary is down.
        fence_command: Option<String>,
    },
    /// `walship switchover` there.
    Switchover {
        /// Only say what would be done.
        dry_run: bool,
    },
    /// Something that a newer version wants.
    #[serde(other)]
    Unknown,
}

/// A line of what is done, or the outcome.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "told", rename_all = "snake_case")]
pub enum Told {
    /// What is being done.
    Progress {
        /// For a person.
        line: String,
    },
    /// It is done.
    Done {
        /// For a person.
        line: String,
        /// The whole of it for programs: a certificate, or a plan.
        #[serde(default)]
        json: Option<String>,
    },
    /// It is not.
    Failed {
        /// Why.
        message: String,
        /// What to do.
        hint: Option<String>,
        /// `refused`, `usage` or `unknown`; `None` when it failed.
        outcome: Option<String>,
    },
}

/// The certificate of a promotion.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct KeptCertificate {
    /// As it is kept, with its checksum; `None` where it is not.
    pub text: Option<String>,
}
