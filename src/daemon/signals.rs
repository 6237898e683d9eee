//! Signals, and what the service manager is told.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

use super::node::Node;

/// Ends the node at TERM or INT, at the second of them at once; reads the certificates anew at HUP. PostgreSQL is left
/// running.
pub async fn run(node: Arc<Node>) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let mut hang_up = signal(SignalKind::hangup()).context("listen for SIGHUP")?;
    loop {
        // Cancellation-safe: a signal that was not taken stays pending.
        tokio::select! {
            _ = terminate.recv() => stop(&node, "SIGTERM")?,
            _ = interrupt.recv() => stop(&node, "SIGINT")?,
            _ = hang_up.recv() => {
                let reloaded = node.blocking("read the certificates", Node::reload_credentials).await?;
                match reloaded {
                    Ok(()) => tracing::info!("certificates were read anew"),
                    Err(error) => tracing::error!("the old certificates stay in use: {error:#}"),
                }
            }
        }
    }
}

fn stop(node: &Node, name: &str) -> anyhow::Result<()> {
    anyhow::ensure!(!node.token.is_cancelled(), "a second signal, {name}, ended it at once");
    tracing::info!("{name}: stopping; PostgreSQL goes on");
    notify(&[sd_notify::NotifyState::Stopping]);
    node.token.cancel();
    Ok(())
}

/// Tells the service manager, where there is one.
pub fn notify(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!("the service manager can't be told: {error}");
    }
}

/// Feeds the service manager's watchdog from the runtime, so that a stuck runtime is noticed; never ends.
pub async fn feed_watchdog_for_ever() {
    let Some(period) = sd_notify::watchdog_enabled() else { return std::future::pending().await };
    let half = (period / 2).max(Duration::from_millis(100));
    loop {
        tokio::time::sleep(half).await;
        notify(&[sd_notify::NotifyState::Watchdog]);
    }
}
