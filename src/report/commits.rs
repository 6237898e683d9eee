//! What commits wait for, and what these facts show to be wrong with it.

use super::{Role, Status, lag, units};
use crate::clock::WallTime;
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
    /// PostgreSQL's own side; a primary's, `None` while it does not answer.
    pub setting: Option<Setting>,
    /// The exposure that is open; a primary's.
    pub exposure: Option<Window>,
    /// What the exposures of this node come to.
    pub exposures: Exposures,
}

/// What the exposures of a node come to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Exposures {
    /// How many there were.
    pub windows: u64,
    /// For how long those were open that are closed.
    pub closed_millis: u64,
    /// How much WAL they hold.
    pub closed_bytes: u64,
}

/// An exposure that is open: commits go on unprotected.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Window {
    /// Its number.
    pub number: u64,
    /// Since when.
    pub opened_at: WallTime,
    /// Commits up to here are protected.
    pub from_lsn: Lsn,
    /// Who is missing.
    pub missing: Vec<String>,
    /// Why commits go on.
    pub reason: String,
}

/// Whether PostgreSQL waits for walship.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Setting {
    /// `synchronous_standby_names`.
    pub standby_names: String,
    /// `synchronous_commit`, where a transaction sets nothing else.
    pub commit: String,
    /// Whether it waits for us.
    pub names_us: bool,
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

/// What a person must act on now.
pub(super) fn alarms(status: &Status) -> impl Iterator<Item = String> {
    let commits = status.commits.iter().filter(|_| status.node.role == Role::Primary);
    commits.flat_map(|commits| [exposure(status, commits), pretence(commits)]).flatten()
}

/// Commits go on unprotected at this moment.
fn exposure(status: &Status, commits: &Commits) -> Option<String> {
    let Window { number, opened_at, from_lsn, missing, reason } = commits.exposure.as_ref()?;
    let age = units::duration(lag::age(*opened_at, status.taken_at));
    Some(format!(
        "commits are unprotected for {age}, beyond {from_lsn} (exposure {number}): {reason}; missing {}",
        listed(missing)
    ))
}

/// PostgreSQL waits for us, and we for nobody.
fn pretence(commits: &Commits) -> Option<String> {
    let setting = commits.setting.as_ref().filter(|setting| setting.names_us)?;
    commits.policy.as_ref().filter(|policy| policy.is_async)?;
    Some(format!(
        "commits look synchronous and are not: synchronous_standby_names = '{}', and the policy is async; \
         `walship sync \"any 1 (*)\"` or `walship sync async` makes both the same",
        setting.standby_names
    ))
}

/// What someone should look at.
pub(super) fn warnings(status: &Status) -> impl Iterator<Item = String> {
    let commits = status.commits.iter().filter(|_| status.node.role == Role::Primary);
    commits
        .flat_map(|commits| {
            [unwaited(commits), local(commits), pending(commits), unmet(commits), uncounted(status, commits)]
        })
        .flatten()
}

/// A policy that PostgreSQL knows nothing of.
fn unwaited(commits: &Commits) -> Option<String> {
    let policy = commits.policy.as_ref().filter(|policy| !policy.is_async)?;
    let setting = commits.setting.as_ref().filter(|setting| !setting.names_us)?;
    Some(format!(
        "the policy is `{}`, but PostgreSQL does not wait for it: synchronous_standby_names = '{}'; \
         `walship sync \"{}\"` sets it",
        policy.text, setting.standby_names, policy.text
    ))
}

/// A default that waits for no standby.
fn local(commits: &Commits) -> Option<String> {
    let setting = commits.setting.as_ref().filter(|setting| setting.names_us)?;
    let waits = ["on", "remote_write", "remote_apply"].contains(&setting.commit.as_str());
    (!waits).then(|| {
        format!(
            "synchronous_commit = {}: a commit waits for no standby unless its transaction sets that",
            setting.commit
        )
    })
}

fn pending(commits: &Commits) -> Option<String> {
    let PendingPolicy { policy, stored_by, lacking, needed } = commits.pending.as_ref()?;
    let text = &policy.text;
    if stored_by.len() >= *needed {
        return Some(format!(
            "policy `{text}` is pending until synchronous_standby_names no longer names walship"
        ));
    }
    let (did, did_not) = (listed(stored_by), listed(lacking));
    Some(format!(
        "policy `{text}` is pending until {needed} members have stored it: {did} did, {did_not} did not"
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::status;
    use crate::report::warnings;

    /// What is said about commits when the policy and PostgreSQL's settings are these.
    fn said(policy: &str, standby_names: &str, names_us: bool, commit: &str) -> (Vec<String>, Vec<String>) {
        let mut status = status();
        let commits = status.commits.as_mut().unwrap();
        commits.pending = None;
        let set = commits.policy.as_mut().unwrap();
        (set.text, set.is_async) = (policy.to_owned(), policy == "async");
        set.needed = usize::from(policy != "async");
        let (standby_names, commit) = (standby_names.to_owned(), commit.to_owned());
        commits.setting = Some(Setting { standby_names, commit, names_us });
        (alarms(&status).collect(), super::warnings(&status).collect())
    }

    #[test]
    fn policy_and_setting_must_fit() {
        assert_eq!(said("async", "", false, "on"), Default::default());
        assert_eq!(said("any 1 (*)", "walship", true, "remote_apply"), Default::default());
        let (alarms, warnings) = said("async", "walship", true, "on");
        assert!(alarms[0].contains("look synchronous and are not") && warnings.is_empty(), "{alarms:?}");
        let (alarms, warnings) = said("any 1 (*)", "other", false, "on");
        assert!(alarms.is_empty() && warnings[0].contains("does not wait for it"), "{warnings:?}");
        let (alarms, warnings) = said("any 1 (*)", "walship", true, "local");
        assert!(alarms.is_empty() && warnings[0].contains("synchronous_commit = local"), "{warnings:?}");
    }

    #[test]
    fn an_exposure_is_an_alarm_while_it_is_open() {
        let mut status = status();
        assert_eq!(warnings::alarms(&status), Vec::<String>::new());
        let opened_at = WallTime { unix_micros: status.taken_at.unix_micros - 15_000_000 };
        let (missing, reason) = (vec!["db3 (not connected)".to_owned()], "commits waited for 2s".to_owned());
        let window = Window { number: 3, opened_at, from_lsn: Lsn(0x3000000), missing, reason };
        status.commits.as_mut().unwrap().exposure = Some(window);
        let expected = "commits are unprotected for 15s, beyond 0/3000000 (exposure 3): commits waited for 2s; \
                        missing db3 (not connected)";
        assert_eq!(warnings::alarms(&status), [expected]);
    }

    #[test]
    fn a_policy_that_cannot_be_met_and_members_that_do_not_count_are_named() {
        let mut status = status();
        let all = |status: &Status| warnings::of(status).join("; ");
        assert!(all(&status).contains("1 of 2 are connected: db3 not"), "{}", all(&status));
        status.commits.as_mut().unwrap().policy.as_mut().unwrap().names.retain(|name| name != "db3");
        let taken_in = "db3 joined after `any 2 (*)` was set, and does not count: `walship sync \"any 2 (*)\"` takes it in";
        assert!(all(&status).contains(taken_in), "{}", all(&status));
        status.node.role = Role::Standby;
        assert!(!all(&status).contains("any 2"), "a standby was only told");
    }
}
