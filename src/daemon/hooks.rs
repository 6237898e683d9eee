//! Commands of the site's own around a change of role: to move an address, to update a pool.
//!
//! What this node is to those who use it is looked at, and compared with what the command was last told, durably: so it is
//! told of a change also when the sidecar was killed in between, perhaps twice. A change that was announced and did not
//! come is told, too: the command is run for the role that stayed.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::node::Node;
use super::{postgres, shell};
use crate::fault::Fault;
use crate::store::{Announced, Duty, NodeRole, State, Superseded};

/// Patience with a command.
const HOOK_WITHIN: Duration = Duration::from_secs(30);

const LOOK_EVERY: Duration = Duration::from_millis(250);

/// One that failed is run again so often, with a pause; then a person must.
const ATTEMPTS: u32 = 3;
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// What became of the command after the last change.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Outcome {
    /// What it was told, as far as this process knows.
    pub told: Option<Duty>,
    /// Why it is not told what it should be.
    pub failure: Option<String>,
}

/// What this node is now to those who use it.
fn duty(node: &Node) -> Duty {
    match node.role() {
        NodeRole::Standby => Duty::Standby,
        NodeRole::Primary if *node.stays_down.borrow() || node.superseded_by().is_some() => Duty::Down,
        NodeRole::Primary => Duty::Primary,
    }
}

/// Runs the command that comes before a change of role; its failure is one of the change.
pub async fn before(node: &Arc<Node>, to: Duty) -> anyhow::Result<()> {
    let from = duty(node);
    let Some(command) = node.config.before_role_change.as_ref().filter(|_| from != to) else {
        return Ok(());
    };
    if node.config.after_role_change.is_some() {
        note(node, Announced { duty: from, is_due: true }).await?;
    }
    tracing::info!(from = from.name(), to = to.name(), "running before_role_change");
    let ran = shell::run(command, &facts(node, "before", from, to), HOOK_WITHIN).await;
    ran.map_err(|error| {
        Fault::refused(
            format!("before_role_change, told of {} after {}, failed: {error}", to.name(), from.name()),
            "It is a command in walship.toml: mend what it complains of, and run this again.",
        )
    })
}

/// Sees to it that the command that comes after a change of role is run. Runs until it is dropped.
pub async fn keep(node: Arc<Node>) -> Infallible {
    let mut failed: Option<(Duty, u32)> = None;
    // The first tick comes at once: what a node begins as is to be known when it changes a moment later.
    let mut tick = interval(LOOK_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let now = duty(&node);
        let attempts = failed.filter(|(duty, _)| *duty == now).map_or(0, |(_, attempts)| attempts);
        if attempts >= ATTEMPTS {
            continue;
        }
        match after(&node, now).await {
            Ok(told) => {
                failed = None;
                node.hooks.send_if_modified(|outcome| {
                    let fresh = Outcome { told, failure: None };
                    std::mem::replace(outcome, fresh.clone()) != fresh
                });
            }
            Err(error) => {
                tracing::error!(role = now.name(), "after_role_change failed: {error:#}");
                failed = Some((now, attempts + 1));
                let failure = Some(format!("after_role_change, told of {}, failed: {error:#}", now.name()));
                node.hooks.send_modify(|outcome| outcome.failure = failure);
                sleep(RETRY_AFTER).await;
            }
        }
    }
}

/// Runs the command where there is something to tell; what it knows then.
async fn after(node: &Arc<Node>, now: Duty) -> anyhow::Result<Option<Duty>> {
    let Some(command) = &node.config.after_role_change else { return Ok(None) };
    let Some(announced) = node.store.state().announced else {
        // What a node begins as is no change.
        note(node, Announced { duty: now, is_due: false }).await?;
        return Ok(Some(now));
    };
    let is_told = announced.duty == now && !announced.is_due;
    if is_told || !is_settled(node, now).await? {
        return Ok(Some(announced.duty));
    }
    tracing::info!(from = announced.duty.name(), to = now.name(), "running after_role_change");
    shell::run(command, &facts(node, "after", announced.duty, now), HOOK_WITHIN).await?;
    note(node, Announced { duty: now, is_due: false }).await?;
    Ok(Some(now))
}

/// Whether the change has come to its end: PostgreSQL is what it is to be, and no election stands in between.
async fn is_settled(node: &Arc<Node>, now: Duty) -> anyhow::Result<bool> {
    let state = node.store.state();
    let is_elected = state.promoting.is_some() && node.role() == NodeRole::Standby;
    if is_elected || state.promise.is_some() && now != Duty::Down {
        return Ok(false);
    }
    Ok(postgres::runs(node).await? == (now != Duty::Down))
}

async fn note(node: &Arc<Node>, announced: Announced) -> anyhow::Result<()> {
    if node.store.state().announced == Some(announced) {
        return Ok(());
    }
    let noted = node.blocking("note the role that was announced", move |node| {
        node.store.update_state(|state| state.announced = Some(announced))
    });
    noted.await?.context("note the role that was announced")
}

fn facts(node: &Node, moment: &str, from: Duty, to: Duty) -> Vec<(&'static str, String)> {
    let state = node.store.state();
    let (primary, address) = match (to, &state.superseded, &state.promise) {
        (Duty::Primary, ..) => (node.config.name.clone(), node.config.advertise.to_string()),
        (Duty::Down, Some(Superseded { by, .. }), _) => (by.clone(), address_of(&state, by)),
        (Duty::Down, None, Some(promise)) => (promise.candidate.clone(), promise.address.clone()),
        (Duty::Down | Duty::Standby, ..) => node.primary().unwrap_or_default(),
    };
    let left_by = state.superseded.as_ref().map_or(0, |superseded| superseded.epoch);
    let epoch = state.promised_epoch.max(state.committed_epoch).max(left_by);
    let timeline = state.newest_timeline().map(|timeline| timeline.to_string()).unwrap_or_default();
    vec![
        ("WALSHIP_HOOK", moment.to_owned()),
        ("WALSHIP_NODE", node.config.name.clone()),
        ("WALSHIP_ROLE", to.name().to_owned()),
        ("WALSHIP_ROLE_BEFORE", from.name().to_owned()),
        ("WALSHIP_PRIMARY", primary),
        ("WALSHIP_PRIMARY_ADDRESS", address),
        ("WALSHIP_EPOCH", epoch.to_string()),
        ("WALSHIP_TIMELINE", timeline),
        ("WALSHIP_DATA_DIRECTORY", node.config.postgres.data_directory.display().to_string()),
    ]
}

fn address_of(state: &State, name: &str) -> String {
    state.member(name).map(|member| member.advertise.clone()).unwrap_or_default()
}

/// Waits until the command was told that this node is the primary, or has failed once; why it failed. Cancellation-safe.
pub async fn told_of_primary(node: &Node) -> Option<String> {
    node.config.after_role_change.as_ref()?;
    let mut outcome = node.hooks.subscribe();
    let is_over = |outcome: &Outcome| outcome.told == Some(Duty::Primary) || outcome.failure.is_some();
    match timeout(HOOK_WITHIN + RETRY_AFTER, outcome.wait_for(is_over)).await {
        Ok(Ok(outcome)) => outcome.failure.clone(),
        _ => Some("after_role_change has not ended yet".to_owned()),
    }
}

/// What a person must act on.
pub fn alarm(node: &Node) -> Option<String> {
    let failure = node.hooks.borrow().failure.clone()?;
    Some(format!("{failure}; do by hand what it is for, or restart walship, which runs it again"))
}
