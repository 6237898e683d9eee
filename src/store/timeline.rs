//! What a timeline is: not its number alone.

use crate::pg::{Lsn, TimelineId};

/// The committed promotion that a timeline stands on.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Branch {
    /// The epoch that it committed.
    pub epoch: u64,
    /// The node that was promoted.
    pub node: String,
}

/// A timeline's identity, beside the system identifier: two promotions can take the same number from the same
/// parent at the same LSN (pg-facts, D2), so number and history do not tell them apart.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct TimelineIdentity {
    /// Its number.
    pub timeline: TimelineId,
    /// The timeline it left and where; `None` for the first.
    pub parent: Option<(TimelineId, Lsn)>,
    /// The promotion that made it; `None` for one that was there when walship came.
    pub branch: Option<Branch>,
}

impl TimelineIdentity {
    /// Where it begins; zero for the first timeline.
    pub fn switch_lsn(&self) -> Lsn {
        self.parent.map_or(Lsn::INVALID, |(_, lsn)| lsn)
    }
}

/// The end of a timeline which this node went past: there another node was promoted that did not have what follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Fork {
    /// The timeline that was left.
    pub timeline: TimelineId,
    /// Where.
    pub lsn: Lsn,
    /// How far this node's log of it reached when that was found.
    pub end: Lsn,
}
