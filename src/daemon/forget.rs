//! Taking a member off the list for good: out of retention, policy and promotions.
//!
//! One durable write removes it, notes its certificate as one that lets nobody in, and shrinks the policy. The list, which
//! travels to every node, ends its streams wherever they are. Before that write nothing is let go by its having it, and
//! those who stay have what was: so whoever is promoted later, and asks only them, misses no acknowledged byte.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::control::Forget;
use super::node::Node;
use super::{members, retention};
use crate::ack::change;
use crate::clock::WallTime;
use crate::fault::Fault;
use crate::pg::Lsn;
use crate::policy::{Kept, Policy, PolicyError, Resolved};
use crate::report::units;
use crate::store::{Forgotten, Member, NodeRole, State};
use crate::vitals::Contact;

/// How long those who stay may take to get what was acknowledged.
const CATCH_UP_WITHIN: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What forgetting somebody comes to.
pub struct Plan {
    /// What a person is told before.
    pub lines: Vec<String>,
    /// `None` for one that was forgotten already.
    member: Option<Member>,
}

/// Looks at what would be done, and refuses what must not be.
pub fn plan(node: &Node, wanted: &Forget) -> anyhow::Result<Plan> {
    let (own, name) = (&node.config.name, &wanted.name);
    if node.role() != NodeRole::Primary || node.superseded_by().is_some() {
        return Err(Fault::refused(
            format!("{own} is {}, and the list of members is the primary's", node.link_role().name()),
            "Run this on the primary: `walship status` shows which node that is.",
        ));
    }
    let state = node.store.state();
    let Some(member) = state.member(name).filter(|member| member.name != *own) else {
        if state.has_forgotten_name(name) {
            return Ok(Plan { lines: Vec::new(), member: None });
        }
        return Err(stranger(&state, own, name));
    };
    if !wanted.force
        && let Some(how) = presence(node, name)
    {
        return Err(Fault::refused(
            format!("{name} {how}"),
            format!("Stop its sidecar first. --force forgets {name} all the same, and ends that."),
        ));
    }
    let left = change::without(&state.policy, name, own).map_err(refused)?;
    let mut lines = vec![held_back(node, name)];
    if let Some(policy) = shrunk(&state.policy, &left, name) {
        let others = policy.others(own).join(", ");
        lines.push(format!("commits wait for `{}` of {others} from then on", policy.policy));
    }
    lines.push(format!("to come back, {name} needs a new invitation"));
    Ok(Plan { lines, member: Some(member.clone()) })
}

fn stranger(state: &State, own: &str, name: &str) -> anyhow::Error {
    if name == own {
        let hint = "Promote another node first; this one can be forgotten there.";
        return Fault::refused(format!("{own} is this node, the primary"), hint);
    }
    let others = state.members.iter().map(|member| member.name.as_str()).filter(|member| *member != own);
    let known = others.collect::<Vec<_>>().join(", ");
    let hint =
        if known.is_empty() { "There is none.".to_owned() } else { format!("The members are {known}.") };
    Fault::refused(format!("no member is called {name}"), hint)
}

fn refused(error: PolicyError) -> anyhow::Error {
    let hint = match &error {
        PolicyError::TooFew { .. } => {
            "Let commits wait for fewer first, or for nobody: `walship sync async`."
        }
        other => other.hint(),
    };
    Fault::refused(&error, hint)
}

/// What a node does here now; `None` when it is away.
fn presence(node: &Node, name: &str) -> Option<&'static str> {
    let is_up = |contact: &Contact| matches!(contact, Contact::Up { .. });
    if node.vitals.downstreams.get().get(name).is_some_and(|heard| is_up(&heard.contact)) {
        return Some("is connected");
    }
    let backs_up = node.vitals.backups.get().values().any(|backup| backup.client == name);
    backs_up.then_some("takes a base backup")
}

fn held_back(node: &Node, name: &str) -> String {
    let own_end = node.store.positions().borrow().durable;
    let restartpoint = format!("{name}'s restartpoint");
    let holds = retention::holds(node).into_iter();
    let held = holds.filter(|hold| hold.holder == name || hold.holder == restartpoint);
    match held.map(|hold| hold.lsn).min() {
        Some(lsn) if lsn > Lsn(1) => {
            format!("{name} holds back {} of WAL, from {lsn}", units::size(own_end.bytes_since(lsn)))
        }
        Some(_) => format!("{name} holds back all WAL that is here"),
        None => format!("{name} holds back no WAL"),
    }
}

/// The policy that counts on fewer from then on: what commits wait for, or are about to.
fn shrunk<'a>(before: &Kept, left: &'a Kept, name: &str) -> Option<&'a Resolved> {
    let policies = [&before.effective, &before.pending];
    let is_meant =
        policies.into_iter().flatten().any(|policy| policy.names.iter().any(|known| known == name));
    left.pending
        .as_ref()
        .or(left.effective.as_ref())
        .filter(|policy| is_meant && policy.policy != Policy::Async)
}

/// Does it. Returns what was done.
pub async fn carry_out(node: &Arc<Node>, plan: Plan, wanted: &Forget) -> anyhow::Result<String> {
    let name = wanted.name.clone();
    let Some(member) = plan.member else { return Ok(format!("{name} was forgotten before")) };
    let _leaving = Leaving::begin(node, &name)?;
    if !wanted.force {
        await_the_others(node, &name).await?;
    }
    let forgetting = node.blocking("forget the member", move |node| {
        forget(node, &member)?;
        members::drop_vitals(node, std::slice::from_ref(&member.name));
        members::publish(node);
        anyhow::Ok(())
    });
    forgetting.await??;
    tracing::info!(member = %name, "forgotten: nothing is kept for it, and its certificate lets it in nowhere");
    Ok(format!("{name} is forgotten"))
}

/// Waits until those who stay have what was acknowledged, as the shrunk policy promises it.
async fn await_the_others(node: &Arc<Node>, name: &str) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        let before = node.store.state().policy;
        let left = change::without(&before, name, &node.config.name).map_err(refused)?;
        let durable = node.store.positions().borrow().durable;
        let is_met = shrunk(&before, &left, name).is_none_or(|policy| node.tracker().is_met(policy, durable));
        if is_met {
            return Ok(());
        }
        if begun.elapsed() > CATCH_UP_WITHIN {
            let released = node.tracker().released().flush;
            return Err(Fault::refused(
                format!("what was acknowledged up to {released} too few have without {name}"),
                format!(
                    "Let the other standbys catch up and run this again. --force forgets {name} all the same: then a \
                     promotion may miss some of it."
                ),
            ));
        }
        sleep(LOOK_EVERY).await;
    }
}

/// The one durable write. Blocks.
fn forget(node: &Node, member: &Member) -> anyhow::Result<()> {
    let primary = &node.config.name;
    let mut outcome = Ok(());
    node.store.update_state(|state| match change::without(&state.policy, &member.name, primary) {
        Ok(left) => {
            // It may have come with a newer certificate meanwhile.
            let known = state.member(&member.name).unwrap_or(member).certificate_serial;
            state.policy = left;
            state.members.retain(|known| known.name != member.name);
            state.forgotten.retain(|known| known.name != member.name);
            state.forgotten.push(Forgotten {
                name: member.name.clone(),
                certificate_serial: known,
                at: WallTime::now(),
            });
        }
        Err(error) => outcome = Err(refused(error)),
    })?;
    outcome
}

/// While this lasts a member releases nothing.
struct Leaving(Arc<Node>);

impl Leaving {
    fn begin(node: &Arc<Node>, name: &str) -> anyhow::Result<Leaving> {
        if !node.tracker().let_leave(name) {
            return Err(Fault::refused("another member is being forgotten", "Run this again after that."));
        }
        Ok(Leaving(Arc::clone(node)))
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.tracker().nobody_leaves();
    }
}
