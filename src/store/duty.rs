//! What the site's own commands around a change of role were told last.

/// What a node is to those who use it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Duty {
    /// It accepts writes.
    Primary,
    /// It can be read.
    Standby,
    /// It was the primary, and its PostgreSQL is to stay down.
    Down,
}

impl Duty {
    /// As the commands are told it.
    pub fn name(self) -> &'static str {
        match self {
            Duty::Primary => "primary",
            Duty::Standby => "standby",
            Duty::Down => "down",
        }
    }
}

/// What was told, and whether something has to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct Announced {
    /// The duty that the command after the last change knows.
    pub duty: Duty,
    /// Another one was announced by the command before a change: it must be told what came of that.
    pub is_due: bool,
}
