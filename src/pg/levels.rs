//! The levels of `synchronous_commit` that wait for a standby, and one value for each of them.

/// What a commit waits for on a standby.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Level {
    /// `remote_write`: the standby has written it.
    Write,
    /// `on`: the standby has fsynced it.
    Flush,
    /// `remote_apply`: the standby has replayed it.
    Apply,
}

impl Level {
    /// All of them, the weakest first.
    pub const ALL: [Level; 3] = [Level::Write, Level::Flush, Level::Apply];

    /// The value of `synchronous_commit`.
    pub fn name(self) -> &'static str {
        match self {
            Level::Write => "remote_write",
            Level::Flush => "on",
            Level::Apply => "remote_apply",
        }
    }
}

/// One value for each level.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Levels<T> {
    /// Of [`Level::Write`].
    pub write: T,
    /// Of [`Level::Flush`].
    pub flush: T,
    /// Of [`Level::Apply`].
    pub apply: T,
}

impl<T> Levels<T> {
    /// A value for each level.
    pub fn of(value: impl Fn(Level) -> T) -> Levels<T> {
        Levels { write: value(Level::Write), flush: value(Level::Flush), apply: value(Level::Apply) }
    }

    /// The value of a level.
    pub fn get(&self, level: Level) -> &T {
        match level {
            Level::Write => &self.write,
            Level::Flush => &self.flush,
            Level::Apply => &self.apply,
        }
    }
}

impl<T: Copy> Levels<T> {
    /// The same value for every level.
    pub fn all(value: T) -> Levels<T> {
        Levels { write: value, flush: value, apply: value }
    }
}

impl<T: Copy + Ord> Levels<T> {
    /// The greater of both, level by level.
    pub fn max(self, other: Levels<T>) -> Levels<T> {
        Levels::of(|level| *self.get(level).max(other.get(level)))
    }

    /// The lesser of both, level by level.
    pub fn min(self, other: Levels<T>) -> Levels<T> {
        Levels::of(|level| *self.get(level).min(other.get(level)))
    }
}
