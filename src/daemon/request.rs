//! A command's request for a promotion, on its way from the control socket to the standby's life.

use tokio::sync::{mpsc, oneshot};

use crate::promote::Wish;

/// What is asked for.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Promotion {
    /// Accept what would be refused.
    pub force: bool,
    /// Only say what would be done.
    pub dry_run: bool,
    /// Promote whoever is the right one.
    pub elect: bool,
    /// The primary hands over; it is not lost.
    pub switchover: bool,
    /// The most bytes that may be lost.
    pub max_loss_bytes: Option<u64>,
    /// Makes sure that the old primary is down; `None` for what the configuration says.
    pub fence_command: Option<String>,
}

impl Promotion {
    /// What the planner is told of it.
    pub fn wish(&self) -> Wish {
        Wish { force: self.force, max_loss_bytes: self.max_loss_bytes, switchover: self.switchover }
    }
}

/// What came of it.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct Done {
    /// For a person.
    pub line: String,
    /// The whole of it for programs: the certificate as it is kept, or the plan.
    pub json: Option<String>,
}

impl Done {
    /// What only a line says.
    pub fn line(line: impl Into<String>) -> Done {
        Done { line: line.into(), json: None }
    }
}

/// A request for a promotion.
pub struct Request {
    /// What is asked for.
    pub promotion: Promotion,
    /// Where progress is told, line by line.
    pub say: mpsc::Sender<String>,
    /// The outcome.
    pub done: oneshot::Sender<anyhow::Result<Done>>,
}

impl Request {
    /// Tells the outcome. Whoever asked may have gone; it is in the log, too.
    pub fn answer(self, outcome: anyhow::Result<Done>) {
        let _ = self.done.send(outcome);
    }

    /// Tells one line.
    pub async fn say(&self, line: impl Into<String>) {
        let line = line.into();
        tracing::info!("promotion: {line}");
        // Whoever asked may have gone; the promotion goes on.
        let _ = self.say.send(line).await;
    }
}
