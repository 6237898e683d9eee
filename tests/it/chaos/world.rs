//! What a cluster looks like to somebody who draws what happens next.

use walship::report::Role;

/// How a process is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Life {
    Runs,
    Frozen,
    Down,
}

/// A node from outside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seen {
    pub sidecar: Life,
    pub postgres: Life,
    /// What it takes itself for; `None` when it does not say.
    pub role: Option<Role>,
}

/// The whole cluster; nodes go by their number.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct World {
    pub nodes: Vec<Seen>,
    /// Some link is cut.
    pub is_cut: bool,
    /// Commands that have not ended.
    pub commands: usize,
    /// One of them may switch off a node, which must stay off until it has ended.
    pub may_fence: bool,
}

impl Seen {
    /// Everything of it runs.
    pub fn is_well(&self) -> bool {
        self.sidecar == Life::Runs && self.postgres == Life::Runs
    }

    /// It answers as the primary, and its PostgreSQL runs.
    pub fn leads(&self) -> bool {
        self.is_well() && self.role == Some(Role::Primary)
    }
}

impl World {
    /// How many things are wrong.
    pub fn ills(&self) -> usize {
        self.nodes.iter().filter(|node| !node.is_well()).count() + usize::from(self.is_cut)
    }

    /// Some node answers as the primary.
    pub fn has_primary(&self) -> bool {
        self.nodes.iter().any(Seen::leads)
    }
}
