//! Setting the acknowledgement policy: from the configuration where a primary begins, and by command while it runs.
//!
//! Each change is one durable write of the state, which the stream passes on and the evaluation follows.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::control::NewPolicy;
use super::node::Node;
use super::{ack, setting};
use crate::ack::change::{self, Change, Quorum};
use crate::clock::WallTime;
use crate::fault::{Fault, Outcome, WithFault};
use crate::pg::TimelineId;
use crate::policy::{Kept, Policy, PolicyError, Resolved};
use crate::store::{Configured, Exposure, MemberRole, State, StoreError};
use crate::vitals::DownstreamVitals;

/// How long a command waits for the quorum that a weaker policy takes.
const QUORUM_WITHIN: Duration = Duration::from_secs(5);

/// Takes over the configuration's policy where this node begins as the primary: the first one, and whenever the file has
/// another one than before. A node that was promoted goes on with what it was told. Blocks.
pub fn begin(node: &Node) -> Result<(), StoreError> {
    let wanted = configured(node);
    node.store.update_state(|state| match (&state.configured, &state.policy.effective) {
        (Some(noted), _) if *noted == wanted => {}
        (None, Some(_)) => state.configured = Some(wanted),
        _ => configure(state, wanted, &node.config.name),
    })
}

fn configured(node: &Node) -> Configured {
    Configured { ack: node.config.ack.clone(), stall_limit: node.config.stall_limit }
}

/// A `*` that means too few is left for later: members may be on the way. Until then the old policy stays, or, without
/// one, nothing is released.
fn configure(state: &mut State, wanted: Configured, primary: &str) {
    let serial = state.policy.serial() + 1;
    let policy = Resolved::new(serial, wanted.ack.clone(), wanted.stall_limit, &members(state, primary));
    if !policy.is_out_of_reach(primary) {
        set(&mut state.policy, policy, primary);
        state.configured = Some(wanted);
    }
}

/// Why the configuration's policy was not taken over, if it was not.
pub fn not_taken_over(node: &Node) -> Option<PolicyError> {
    let state = node.store.state();
    let wanted = configured(node);
    if state.configured.as_ref() == Some(&wanted) {
        return None;
    }
    let known = members(&state, &node.config.name);
    let policy = Resolved::new(0, wanted.ack, wanted.stall_limit, &known);
    policy.check(&node.config.name, &known).err()
}

/// Whom `*` and `all` mean: every member that follows or may, and the primary. One that was left behind by a promotion
/// does not until it is seeded anew.
fn members(state: &State, primary: &str) -> Vec<String> {
    let others = state.members.iter().filter(|member| member.role != MemberRole::Superseded);
    let others = others.map(|member| member.name.clone()).filter(|name| name != primary);
    let mut members: Vec<String> = others.chain([primary.to_owned()]).collect();
    members.sort_unstable();
    members
}

/// Puts a policy where it belongs by the rule of [`change`].
fn set(kept: &mut Kept, policy: Resolved, primary: &str) {
    match change::to(&policy, kept, primary) {
        Change::AtOnce => *kept = Kept { effective: Some(policy), pending: None },
        Change::WithQuorum => kept.pending = Some(policy),
    }
}

/// Changes the policy, and PostgreSQL's own setting with it: that is turned on after a policy takes effect, and off before
/// there is none. Returns what was done. A weaker policy whose quorum does not come stays pending, unless it is forced.
pub async fn change(node: &Arc<Node>, wanted: NewPolicy) -> anyhow::Result<String> {
    let (is_async, is_forced) = (wanted.policy == Policy::Async, wanted.force);
    if is_async {
        setting::check(node, false).await?;
    }
    let set = node.blocking("set the policy", move |node| request(node, wanted)).await??;
    let cost = if is_forced { force(node, &set).await? } else { String::new() };
    if is_async {
        await_quorum(node, &set).await?;
        let turned = setting::turn(node, false).await.outcome(Outcome::Failed)?;
        await_effect(node, &set).await?;
        let then = if turned { "PostgreSQL waits for walship no longer, and " } else { "" };
        return Ok(format!("{then}commits wait for nobody: policy {} is in effect{cost}", set.serial));
    }
    await_effect(node, &set).await?;
    let done = format!("commits wait for {}: policy {} is in effect", set.policy, set.serial);
    match setting::turn(node, true).await {
        Ok(true) => Ok(format!("{done}, and PostgreSQL waits for walship now{cost}")),
        Ok(false) => Ok(done + &cost),
        Err(error) => {
            let what =
                format!("policy {} is in effect, but PostgreSQL does not wait for walship", set.serial);
            Err(error.context(what)).outcome(Outcome::Failed)
        }
    }
}

/// Lets a weaker policy take effect now, unless it has, and says what that costs.
async fn force(node: &Arc<Node>, set: &Resolved) -> anyhow::Result<String> {
    if is_in_effect(&node.store.state().policy, set) {
        return Ok(String::new());
    }
    if set.policy == Policy::Async {
        setting::turn(node, false).await.outcome(Outcome::Failed)?;
    }
    let serial = set.serial;
    node.blocking("force the policy", move |node| force_pending(node, serial)).await?
}

/// Lets a pending policy take effect without its quorum, and says what that costs. The record of it comes first. Blocks.
fn force_pending(node: &Node, serial: u64) -> anyhow::Result<String> {
    let kept = node.store.state().policy;
    let (Some(before), Some(quorum)) = (kept.effective.clone(), quorum(node, &kept)) else {
        return Ok(String::new());
    };
    let released = node.tracker().released();
    let at = *node.store.positions().borrow();
    let now = WallTime::now();
    let window = Exposure {
        number: 0,
        policy: before.policy.to_string(),
        reason: format!(
            "`walship sync --force`: policy {serial} took effect without a quorum of policy {}",
            before.serial
        ),
        missing: quorum
            .lacking
            .iter()
            .map(|name| format!("{name} (does not know of policy {serial})"))
            .collect(),
        timeline: at.timeline.unwrap_or(TimelineId::FIRST),
        from_lsn: ack::protected(node, &before, released.flush, false),
        opened_at: now,
        apply_is_used: false,
        closed: None,
    };
    let window = window.until(at.durable, now, "what waited for the policy before went on");
    node.store.update_exposures(|log| log.add(window))?;
    node.store.update_state(|state| {
        if state.policy.pending.as_ref().is_some_and(|pending| pending.serial == serial) {
            state.policy = Kept { effective: state.policy.pending.take(), pending: None };
        }
    })?;
    tracing::error!(serial, lacking = %quorum.lacking.join(", "), "a weaker policy was forced without a quorum");
    let number = node.store.exposures().borrow().windows.last().map_or(0, |window| window.number);
    Ok(format!(
        ". It is not known to {}, whose promotion may miss commits that are acknowledged from now on. Recorded as exposure {number}: \
         `walship exposures` shows it",
        quorum.lacking.join(", ")
    ))
}

/// Waits until a pending policy's quorum is there, or it is in effect already.
async fn await_quorum(node: &Arc<Node>, set: &Resolved) -> anyhow::Result<()> {
    let mut heard = node.vitals.downstreams.watch();
    let there = heard.wait_for(|heard| {
        let kept = node.store.state().policy;
        is_in_effect(&kept, set) || quorum_of(node, &kept, heard).is_none_or(|quorum| quorum.is_there())
    });
    let came = timeout(QUORUM_WITHIN, there).await.is_ok();
    if came { Ok(()) } else { Err(still_pending(node, set)) }
}

async fn await_effect(node: &Arc<Node>, set: &Resolved) -> anyhow::Result<()> {
    let mut kept = node.store.policy();
    let came = timeout(QUORUM_WITHIN, kept.wait_for(|kept| is_in_effect(kept, set))).await.is_ok();
    if came { Ok(()) } else { Err(still_pending(node, set)) }
}

fn is_in_effect(kept: &Kept, policy: &Resolved) -> bool {
    kept.effective.as_ref().is_some_and(|effective| effective.serial >= policy.serial)
}

/// Sets it, unless the same is there or under way.
fn request(node: &Node, wanted: NewPolicy) -> anyhow::Result<Resolved> {
    let primary = &node.config.name;
    let mut outcome = None;
    node.store.update_state(|state| {
        let known = members(state, primary);
        let limit =
            state.policy.effective.as_ref().map_or(node.config.stall_limit, |policy| policy.stall_limit);
        let limit = wanted.stall_limit.unwrap_or(limit);
        let policy = Resolved::new(state.policy.serial() + 1, wanted.policy, limit, &known);
        let same = |known: &&Resolved| Resolved { serial: policy.serial, ..(*known).clone() } == policy;
        let latest = state.policy.pending.as_ref().or(state.policy.effective.as_ref());
        outcome = Some(match (latest.filter(same), policy.check(primary, &known)) {
            (Some(same), _) => Ok(same.clone()),
            (None, Err(error)) => Err(error),
            (None, Ok(())) => {
                set(&mut state.policy, policy.clone(), primary);
                Ok(policy)
            }
        });
    })?;
    match outcome {
        Some(Ok(policy)) => Ok(policy),
        Some(Err(error)) => Err(Fault::refused(&error, error.hint())),
        None => anyhow::bail!("the state was not looked at"),
    }
}

/// Who has stored the pending policy, and who has not.
pub fn quorum(node: &Node, kept: &Kept) -> Option<Quorum> {
    quorum_of(node, kept, &node.vitals.downstreams.get())
}

fn quorum_of(node: &Node, kept: &Kept, heard: &BTreeMap<String, DownstreamVitals>) -> Option<Quorum> {
    let (effective, pending) = kept.effective.as_ref().zip(kept.pending.as_ref())?;
    let stored = heard.iter().map(|(name, member)| (name.clone(), member.policy_serial)).collect();
    let state = node.store.state();
    Some(Quorum::of(effective, pending, &node.config.name, &stored, |name| state.has_forgotten_name(name)))
}

/// Whether the pending policy may take effect: its quorum is there, and if it is to wait for nobody PostgreSQL waits no
/// more. Asked at every acknowledgement, when there is seldom one.
pub fn is_due(node: &Node, kept: &Kept) -> bool {
    let Some(pending) = &kept.pending else { return false };
    let quorum = quorum(node, kept).is_some_and(|quorum| quorum.is_there());
    quorum && !(pending.policy == Policy::Async && setting::may_wait_for_us(node))
}

/// Lets the pending policy take effect when it is due. Blocks.
pub fn take_effect(node: &Node) -> anyhow::Result<()> {
    let mut taken = None;
    node.store.update_state(|state| {
        if is_due(node, &state.policy) {
            taken = state.policy.pending.clone();
            state.policy = Kept { effective: state.policy.pending.take(), pending: None };
        }
    })?;
    if let Some(policy) = taken {
        tracing::info!(policy = %policy.policy, serial = policy.serial, "a quorum has stored the weaker policy: it is in effect");
    }
    Ok(())
}

fn still_pending(node: &Node, policy: &Resolved) -> anyhow::Error {
    let lacking = quorum(node, &node.store.state().policy).map_or_else(Vec::new, |quorum| quorum.lacking);
    let error = anyhow::anyhow!(
        "`{}` is weaker than the policy before, and takes effect once enough of that one's members have stored it: {} not yet",
        policy.policy,
        lacking.join(", ")
    );
    let hint = "It stays pending until then: run this again to wait on, bring those nodes back, `walship forget` those that \
                are gone for good, or take it at once with --force, which may cost commits.";
    Fault::with(error, hint, Outcome::Unknown)
}
