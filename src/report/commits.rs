//! What commits wait for, and what these facts show to be wrong with it.

use super::{Role, Status};
use crate::pg::{Levels, Lsn};

/// What commits wait for, as one node knows it: a primary does it, a standby was told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Commits {
    /// The policy in effect; `None` before there is one: then nothing is released.
    pub policy: Option<SetPolicy>,
    /// A weaker one on its way.
    pub pending: Option<PendingPolicy>,
    /// The members that the policy names, but for the primary; a primary's.
    pub seats: Vec<Seat>,
    /// How far each level is released; a primary's.
    pub released: Option<Levels<Option<Lsn>>>,
}

/// A policy that was set.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SetPolicy {
    /// Its number.
    pub serial: u64,
    /// As it is written.
    pub text: String,
    /// Whom it means, the primary of the time when it was set among them.
    pub names: Vec<String>,
    /// Past this a commit goes on unprotected, as it is written.
    pub stall_limit: String,
    /// Whether nobody is waited for.
    pub is_async: bool,
    /// How many must have a commit while this node is the primary.
    pub needed: usize,
}

/// A policy that takes effect when a quorum of the one in effect has stored it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PendingPolicy {
    /// The policy.
    pub policy: SetPolicy,
    /// Who has stored it.
    pub stored_by: Vec<String>,
    /// Who has not.
    pub lacking: Vec<String>,
    /// How many must have.
    pub needed: usize,
}

/// A member that the policy names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seat {
    /// Its name.
    pub name: String,
    /// Whether its positions count, in a word or two.
    pub part: String,
    /// Whether it is connected.
    pub is_connected: bool,
    /// How far it is at each level.
    pub at: Levels<Option<Lsn>>,
    /// The highest serial of a policy that it has stored.
    pub policy_serial: u64,
}

/// What someone should look at.
pub(super) fn warnings(status: &Status) -> impl Iterator<Item = String> {
    let commits = status.commits.iter().filter(|_| status.node.role == Role::Primary);
    commits.flat_map(|commits| [pending(commits), unmet(commits), uncounted(status, commits)]).flatten()
}

fn pending(commits: &Commits) -> Option<String> {
    let PendingPolicy { policy, stored_by, lacking, needed } = commits.pending.as_ref()?;
    Some(format!(
        "policy `{}` is pending until {needed} members have stored it: {} did, {} did not",
        policy.text,
        listed(stored_by),
        listed(lacking)
    ))
}

/// A policy that can't be met by those who are there.
fn unmet(commits: &Commits) -> Option<String> {
    let policy = commits.policy.as_ref().filter(|policy| !policy.is_async)?;
    let there = commits.seats.iter().filter(|seat| seat.is_connected && seat.part != "passes on").count();
    let away: Vec<String> =
        commits.seats.iter().filter(|seat| !seat.is_connected).map(|seat| seat.name.clone()).collect();
    let missing = (there < policy.needed).then(|| match away.is_empty() {
        true => "there are no more".to_owned(),
        false => format!("{} not", listed(&away)),
    })?;
    Some(format!(
        "commits wait for `{}`, and {there} of {} are connected: {missing}",
        policy.text, policy.needed
    ))
}

/// Members that came after `*` or `all` was set.
fn uncounted(status: &Status, commits: &Commits) -> Option<String> {
    let policy = commits.policy.as_ref()?;
    if policy.text != "all" && !policy.text.ends_with("(*)") {
        return None;
    }
    let standbys = status.members.iter().filter(|member| member.role == Role::Standby);
    let names = standbys.map(|member| member.name.clone()).filter(|name| !policy.names.contains(name));
    let names: Vec<String> = names.collect();
    (!names.is_empty()).then(|| {
        format!(
            "{} joined after `{}` was set, and does not count: `walship sync \"{}\"` takes it in",
            listed(&names),
            policy.text,
            policy.text
        )
    })
}

pub(super) fn listed(names: &[String]) -> String {
    if names.is_empty() { "nobody".to_owned() } else { names.join(", ") }
}
