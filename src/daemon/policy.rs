//! Setting the acknowledgement policy: from the configuration where a primary begins, and by command while it runs.
//!
//! Each change is one durable write of the state, which the stream passes on and the evaluation follows.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::control::NewPolicy;
use super::node::Node;
use crate::ack::change::{self, Change, Quorum};
use crate::fault::{Fault, WithFault};
use crate::policy::{Kept, PolicyError, Resolved};
use crate::store::{Configured, State, StoreError};

/// How long a command waits for the quorum that a weaker policy takes.
const QUORUM_WITHIN: Duration = Duration::from_secs(5);

/// Takes over the configuration's policy where this node begins as the primary: the first one, and whenever the file has
/// another one than before. A node that was promoted goes on with what it was told. Blocks.
pub fn begin(node: &Node) -> Result<(), StoreError> {
    let wanted = Configured { ack: node.config.ack.clone(), stall_limit: node.config.stall_limit };
    node.store.update_state(|state| match (&state.configured, &state.policy.effective) {
        (Some(noted), _) if *noted == wanted => {}
        (None, Some(_)) => state.configured = Some(wanted),
        _ => configure(state, wanted, &node.config.name),
    })
}

/// A `*` that means too few is left for later: members may be on the way. Until then the old policy stays, or, without
/// one, nothing is released.
fn configure(state: &mut State, wanted: Configured, primary: &str) {
    let serial = state.policy.serial() + 1;
    let policy = Resolved::new(serial, wanted.ack.clone(), wanted.stall_limit, &known(state, primary));
    if !policy.is_out_of_reach(primary) {
        set(&mut state.policy, policy, primary);
        state.configured = Some(wanted);
    }
}

/// Why the configuration's policy was not taken over, if it was not.
pub fn not_taken_over(node: &Node) -> Option<PolicyError> {
    let state = node.store.state();
    let wanted = Configured { ack: node.config.ack.clone(), stall_limit: node.config.stall_limit };
    if state.configured.as_ref() == Some(&wanted) {
        return None;
    }
    let known = known(&state, &node.config.name);
    let policy = Resolved::new(0, wanted.ack, wanted.stall_limit, &known);
    policy.check(&node.config.name, &known).err()
}

/// Every member that is known, the primary among them.
fn known(state: &State, primary: &str) -> Vec<String> {
    let others = state.members.iter().map(|member| member.name.clone()).filter(|name| name != primary);
    let mut known: Vec<String> = others.chain([primary.to_owned()]).collect();
    known.sort_unstable();
    known
}

/// Puts a policy where it belongs by the rule of [`change`].
fn set(kept: &mut Kept, policy: Resolved, primary: &str) {
    match change::to(&policy, kept, primary) {
        Change::AtOnce => *kept = Kept { effective: Some(policy), pending: None },
        Change::WithQuorum => kept.pending = Some(policy),
    }
}

/// Changes the policy; returns when it is in effect, or refuses. One that still waits for its quorum stays pending.
pub async fn change(node: &Arc<Node>, wanted: NewPolicy) -> anyhow::Result<Resolved> {
    let set = node.blocking("set the policy", move |node| request(node, wanted)).await??;
    let mut kept = node.store.policy();
    let in_effect = kept.wait_for(|kept| is_in_effect(kept, &set));
    match timeout(QUORUM_WITHIN, in_effect).await {
        Ok(_) => Ok(set),
        Err(_) => Err(still_pending(node, &set)),
    }
}

fn is_in_effect(kept: &Kept, policy: &Resolved) -> bool {
    kept.effective.as_ref().is_some_and(|effective| effective.serial >= policy.serial)
}

/// Sets it, unless the same is there or under way.
fn request(node: &Node, wanted: NewPolicy) -> anyhow::Result<Resolved> {
    let primary = &node.config.name;
    let mut outcome = None;
    node.store.update_state(|state| {
        let known = known(state, primary);
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
    let (effective, pending) = kept.effective.as_ref().zip(kept.pending.as_ref())?;
    let heard = node.vitals.downstreams.get();
    let stored: BTreeMap<String, u64> =
        heard.into_iter().map(|(name, member)| (name, member.policy_serial)).collect();
    Some(Quorum::of(effective, pending, &node.config.name, &stored))
}

/// Lets the pending policy take effect once its quorum is there. Blocks.
pub fn take_effect(node: &Node) -> anyhow::Result<()> {
    let mut taken = None;
    node.store.update_state(|state| {
        if quorum(node, &state.policy).is_some_and(|quorum| quorum.is_there()) {
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
    let hint = "It stays pending until then: run this again to wait on, or bring those nodes back.";
    match Err::<(), _>(error).outcome(crate::fault::Outcome::Unknown).hint(hint) {
        Err(error) => error,
        Ok(()) => unreachable!("an error stays one"),
    }
}
