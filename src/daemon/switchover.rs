//! Handing over: which standby takes the primary's place, and having it do so.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::election::Answers;
use super::node::Node;
use super::request::{Done, Promotion};
use super::{accept, election, order};
use crate::fault::{Fault, Outcome, WithFault};
use crate::link::message::{Answer, Order, Role};
use crate::pg::Lsn;

/// What is asked for.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Switchover {
    /// Who is to be the primary; `None` for the best of the standbys.
    pub to: Option<String>,
    /// Only say what would be done.
    pub dry_run: bool,
}

/// Has the right standby take over, here or elsewhere; what is done is told line by line.
pub async fn carry_out(
    node: &Arc<Node>,
    wanted: &Switchover,
    say: mpsc::Sender<String>,
) -> anyhow::Result<Done> {
    let own = accept::account(node).await?;
    let answers = election::ask_everyone(node).await;
    let all: Vec<&Answer> = answers.values().map(|(_, answer)| answer).chain([&own]).collect();
    let primary = match primary(&all) {
        Ok(primary) => primary,
        Err(none) => {
            let begun = begun(&all, wanted)?.ok_or(none)?;
            if wanted.dry_run {
                let line = format!("the promotion of {begun} would be completed; nothing was changed");
                return Ok(Done::line(line));
            }
            // Whoever asked may have gone.
            let _ = say.send(format!("the promotion of {begun} was committed: completing it")).await;
            return promote(node, &answers, &begun, Promotion::default(), &say).await;
        }
    };
    let target = match &wanted.to {
        Some(to) if *to == primary => return Ok(Done::line(format!("{to} is the primary already"))),
        Some(to) => named(&all, to)?,
        None => best(&all)?,
    };
    let _ = say.send(format!("{target} takes over from {primary}")).await;
    let promotion = Promotion { switchover: true, dry_run: wanted.dry_run, ..Promotion::default() };
    promote(node, &answers, &target, promotion, &say).await
}

/// Has a standby promoted, this node or another.
async fn promote(
    node: &Arc<Node>,
    answers: &Answers,
    target: &str,
    promotion: Promotion,
    say: &mpsc::Sender<String>,
) -> anyhow::Result<Done> {
    if target == node.config.name {
        let (mut lines, outcome) = order::begin(node, promotion)?;
        while let Some(line) = lines.recv().await {
            // Whoever asked may have gone.
            let _ = say.send(line).await;
        }
        let ended = outcome.await;
        return ended.map_err(|_| Fault::ended("the sidecar ended before that did", Outcome::Unknown))?;
    }
    let (address, _) = answers.get(target).ok_or_else(|| silent(target))?;
    let Promotion { dry_run, switchover, .. } = promotion;
    let order = match switchover {
        true => Order::Switchover { dry_run },
        false => Order::Promote { force: false, max_loss_bytes: None, fence_command: None },
    };
    order::give(node, address, order, say)
        .await
        .hint(format!("`walship status` on {target} shows how far it came."))
}

/// Who took over, up to the commit, and did not come to the end; it is the one that was wanted.
fn begun(all: &[&Answer], wanted: &Switchover) -> anyhow::Result<Option<String>> {
    let newest =
        all.iter().filter(|answer| answer.is_being_promoted).max_by_key(|answer| answer.committed_epoch);
    let Some(begun) = newest.map(|answer| answer.node.clone()) else { return Ok(None) };
    match &wanted.to {
        Some(to) if *to != begun => Err(Fault::refused(
            format!("the promotion of {begun} was committed, and is not complete"),
            format!("`walship promote` on {begun} completes it; then {to} can take over from it."),
        )),
        _ => Ok(Some(begun)),
    }
}

/// The primary that answers.
fn primary(all: &[&Answer]) -> anyhow::Result<String> {
    let primaries = all.iter().filter(|answer| answer.role == Role::Primary);
    primaries.max_by_key(|answer| answer.committed_epoch).map(|answer| answer.node.clone()).ok_or_else(|| {
        Fault::refused(
            "no primary answers that could hand over",
            "If it is lost, `walship promote --elect` makes a standby the primary.",
        )
    })
}

fn named(all: &[&Answer], to: &str) -> anyhow::Result<String> {
    let found = all.iter().find(|answer| answer.node == to).ok_or_else(|| silent(to))?;
    match found.role {
        Role::Standby => Ok(to.to_owned()),
        other => Err(Fault::refused(
            format!("{to} is {}, and only a standby can take over", other.name()),
            "Name a standby that follows: `walship status` shows them.",
        )),
    }
}

fn silent(name: &str) -> anyhow::Error {
    Fault::refused(
        format!("{name} does not answer"),
        "Start walship there, or name another standby: `walship status` shows them.",
    )
}

/// The furthest, then the highest priority, then the first name.
fn best(all: &[&Answer]) -> anyhow::Result<String> {
    let standbys = all.iter().filter(|answer| answer.role == Role::Standby && answer.priority > 0);
    // A moment's lag is caught up with; the priority is what a person wanted.
    let key = |answer: &&&Answer| {
        let lsn = answer.positions.map_or(Lsn::INVALID, |at| at.flushed_lsn);
        (lsn.0 / election::IN_STEP_BYTES, answer.priority, std::cmp::Reverse(answer.node.clone()))
    };
    standbys.max_by_key(key).map(|answer| answer.node.clone()).ok_or_else(|| {
        Fault::refused(
            "no standby answers that could take over",
            "`walship status` shows who follows; one with priority 0 must be named with --to.",
        )
    })
}
