//! A command's request for a promotion, on its way from the control socket to the standby's life.

use tokio::sync::{mpsc, oneshot};

/// A request for a promotion.
pub struct Request {
    /// Accept what would be refused.
    pub force: bool,
    /// Only say what would be done.
    pub dry_run: bool,
    /// Where progress is told, line by line.
    pub say: mpsc::Sender<String>,
    /// The outcome.
    pub done: oneshot::Sender<anyhow::Result<String>>,
}

impl Request {
    /// Tells the outcome. Whoever asked may have gone; it is in the log, too.
    pub fn answer(self, outcome: anyhow::Result<String>) {
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
