//! Facts about the nodes → a plan, or a refusal with its reason; pure.
//!
//! The planner knows nothing of links and servers: it is told what was seen, and says what follows from it. The daemon
//! gathers the facts and carries the plan out.

use std::fmt;

use crate::pg::Lsn;

/// What was seen of the primary.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Primary {
    /// Its PostgreSQL answers and writes, by its sidecar's word.
    Writing {
        /// Its node.
        node: String,
        /// Its flush position.
        lsn: Lsn,
    },
    /// Its sidecar says that its PostgreSQL does not run.
    Down {
        /// Its node.
        node: String,
        /// The end of its sidecar's store: what could still be had from it.
        stored_lsn: Lsn,
    },
    /// Its sidecar answers, but nobody knows whether its PostgreSQL runs.
    Unsure {
        /// Its node.
        node: String,
    },
    /// Nobody answers.
    Unreachable,
}

/// What was seen of another standby.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Other {
    /// Its node.
    pub node: String,
    /// How far it is: the epoch of its last WAL, and what is durable there.
    pub position: Option<(u64, Lsn)>,
    /// It was asked just now; otherwise this is what the primary last said of it.
    pub answered: bool,
}

/// How this node's PostgreSQL takes what the store has, all of which it is to replay first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Replay {
    /// Nothing holds it back.
    Free,
    /// Somebody paused it; promotion would end it where it stands.
    Paused,
    /// It lacks something and waits for this long with every commit.
    Delayed {
        /// In whole seconds, rounded up.
        seconds: u64,
    },
}

/// What commits waited for under the primary that is to be replaced.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Waited {
    /// The policy, as it was told last.
    pub policy: String,
    /// Whose positions counted.
    pub seats: Vec<String>,
    /// How many of them had to have a commit.
    pub needed: usize,
}

/// All that is known before a promotion.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Facts {
    /// The node that is to be promoted.
    pub node: String,
    /// The epoch of its last WAL.
    pub epoch: u64,
    /// The highest epoch that anyone knows to be committed.
    pub committed_epoch: u64,
    /// The highest epoch that any node has promised or committed.
    pub highest_epoch: u64,
    /// The end of what is durable here.
    pub durable_lsn: Lsn,
    /// How it is replayed here.
    pub replay: Replay,
    /// The primary's flush position as it was last heard of, and how long ago in seconds.
    pub last_heard: Option<(Lsn, u64)>,
    /// The primary now.
    pub primary: Primary,
    /// The other standbys.
    pub others: Vec<Other>,
    /// What commits waited for; `None` when for nobody.
    pub waited: Option<Waited>,
}

/// What will be done, and what it costs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// The epoch that will be committed.
    pub epoch: u64,
    /// What may be lost.
    pub stake: Stake,
    /// What a person should know besides.
    pub warnings: Vec<String>,
}

/// What may be lost with a promotion.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stake {
    /// Nothing that anyone ever heard of beyond this position.
    NothingKnown {
        /// The end of the log that is promoted.
        from: Lsn,
        /// How long ago the primary was last heard of; `None` when never by this process.
        silent_seconds: Option<u64>,
    },
    /// What was written since a promotion that this log has nothing of, wherever it ends: positions of two branches
    /// can't be compared.
    Since {
        /// The epoch that was committed then.
        epoch: u64,
    },
    /// WAL in this range is known to exist elsewhere, and perhaps more.
    AtLeast {
        /// The end of the log that is promoted.
        from: Lsn,
        /// The furthest end that anyone reported.
        to: Lsn,
    },
}

/// Why nothing was done, and what would accept the consequence.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{reason}")]
pub struct Refusal {
    /// What stands against it.
    pub reason: String,
    /// What to do instead.
    pub hint: String,
}

impl fmt::Display for Stake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stake::NothingKnown { from, silent_seconds: Some(seconds) } => write!(
                f,
                "no WAL beyond {from} is known; what the primary wrote in the {seconds} s since it was last heard is unknown"
            ),
            Stake::NothingKnown { from, silent_seconds: None } => {
                write!(
                    f,
                    "what the primary wrote beyond {from} is unknown: it was not heard since walship started"
                )
            }
            Stake::Since { epoch } => {
                write!(
                    f,
                    "all that was written since the promotion of epoch {epoch} is not here and will be lost"
                )
            }
            Stake::AtLeast { from, to } => write!(
                f,
                "WAL from {from} to at least {to} ({} bytes) is not here and will be lost",
                to.bytes_since(*from)
            ),
        }
    }
}

/// Decides. `force` accepts what would otherwise be refused; it is then among the warnings.
pub fn plan(facts: &Facts, force: bool) -> Result<Plan, Refusal> {
    let mut warnings = Vec::new();
    for refusal in obstacles(facts) {
        if !force {
            return Err(refusal);
        }
        warnings.push(refusal.reason);
    }
    for other in facts.others.iter().filter(|other| !other.answered) {
        warnings.push(format!("{} does not answer, so how far it is now is not known", other.node));
    }
    Ok(Plan { epoch: facts.highest_epoch.max(facts.epoch) + 1, stake: stake(facts), warnings })
}

fn obstacles(facts: &Facts) -> Vec<Refusal> {
    let mut obstacles = Vec::new();
    let stake = stake(facts);
    match &facts.primary {
        Primary::Writing { node, .. } => obstacles.push(Refusal {
            reason: format!("PostgreSQL on {node} still answers as the primary: two primaries would part the data"),
            hint: format!("Stop PostgreSQL on {node} first (pg_ctl stop -m fast), and run this again; --force goes on regardless: {stake}."),
        }),
        Primary::Unsure { node } => obstacles.push(Refusal {
            reason: format!("the sidecar of {node} answers, but whether its PostgreSQL runs is unknown"),
            hint: format!("Make sure that PostgreSQL on {node} is stopped; --force then goes on: {stake}."),
        }),
        Primary::Down { node, stored_lsn } if *stored_lsn > facts.durable_lsn => obstacles.push(Refusal {
            reason: format!("{node}'s sidecar has WAL up to {stored_lsn}, and this node only up to {}", facts.durable_lsn),
            hint: format!("Leave that sidecar running until this node has caught up, or accept the loss with --force: {stake}."),
        }),
        Primary::Down { .. } | Primary::Unreachable => {}
    }
    let ours = (facts.epoch, facts.durable_lsn);
    let ahead =
        facts.others.iter().filter_map(|other| Some((other, other.position?))).filter(|(_, at)| *at > ours);
    if let Some((other, (epoch, lsn))) = ahead.max_by_key(|(_, at)| *at) {
        let seen = if other.answered { "is" } else { "was last seen" };
        let (theirs, ours) = if epoch > facts.epoch {
            (
                format!("in epoch {epoch} at {lsn}"),
                format!("in epoch {} at {}", facts.epoch, facts.durable_lsn),
            )
        } else {
            (format!("at {lsn}"), format!("at {}", facts.durable_lsn))
        };
        obstacles.push(Refusal {
            reason: format!("{} {seen} further along, {theirs}; {} is {ours}", other.node, facts.node),
            hint: format!(
                "Run `walship promote` on {}, or accept the loss with --force: {stake}.",
                other.node
            ),
        });
    }
    obstacles.extend(unheard(facts, &stake));
    if facts.committed_epoch > facts.epoch {
        obstacles.push(Refusal {
            reason: format!(
                "a promotion committed epoch {}, and {} has no WAL of it",
                facts.committed_epoch, facts.node
            ),
            hint: format!("Promote the node that was promoted then, or one that followed it; --force goes on regardless: {stake}."),
        });
    }
    match facts.replay {
        Replay::Free => {}
        Replay::Paused => obstacles.push(Refusal {
            reason: format!("somebody paused the replay on {}", facts.node),
            hint: "Run `SELECT pg_wal_replay_resume()` on this node, then promote again; --force resumes it.".to_owned(),
        }),
        Replay::Delayed { seconds } => obstacles.push(Refusal {
            reason: format!("{} replays with a delay of {seconds} s (recovery_min_apply_delay)", facts.node),
            hint: "Run `ALTER SYSTEM SET recovery_min_apply_delay = 0` and `SELECT pg_reload_conf()` on this node, then \
                   promote again; --force waits for the delay, up to a minute without progress."
                .to_owned(),
        }),
    }
    obstacles
}

/// Of N standbys that K must have a commit of, any N-K+1 have all commits between them; with fewer, those who are silent
/// may alone have one that was acknowledged.
fn unheard(facts: &Facts, stake: &Stake) -> Option<Refusal> {
    let waited = facts.waited.as_ref()?;
    // What the primary's own store has, is here.
    if matches!(facts.primary, Primary::Down { stored_lsn, .. } if stored_lsn <= facts.durable_lsn) {
        return None;
    }
    let answered = |name: &String| {
        let of = |other: &&Other| other.node == *name && other.answered && other.position.is_some();
        *name == facts.node || facts.others.iter().any(|other| of(&other))
    };
    let (heard, silent): (Vec<_>, Vec<_>) = waited.seats.iter().cloned().partition(answered);
    let enough = (waited.seats.len() + 1).saturating_sub(waited.needed);
    if heard.len() >= enough {
        return None;
    }
    let silent = silent.join(", ");
    Some(Refusal {
        reason: format!(
            "commits waited for {}, and {silent} may alone have some that were acknowledged: {} of them must answer, and {} did",
            waited.policy,
            enough,
            heard.len()
        ),
        hint: format!("Start walship on {silent} and run this again; --force goes on without: {stake}."),
    })
}

fn stake(facts: &Facts) -> Stake {
    let from = facts.durable_lsn;
    if facts.committed_epoch > facts.epoch {
        return Stake::Since { epoch: facts.committed_epoch };
    }
    let primary = match facts.primary {
        Primary::Writing { lsn, .. } => Some(lsn),
        Primary::Down { stored_lsn, .. } => Some(stored_lsn),
        Primary::Unsure { .. } | Primary::Unreachable => None,
    };
    let comparable = |other: &Other| other.position.filter(|(epoch, _)| *epoch == facts.epoch);
    let others = facts.others.iter().filter_map(|other| Some(comparable(other)?.1));
    let furthest = others.chain(primary).chain(facts.last_heard.map(|(lsn, _)| lsn)).max();
    match furthest.filter(|to| *to > from) {
        Some(to) => Stake::AtLeast { from, to },
        None => Stake::NothingKnown { from, silent_seconds: facts.last_heard.map(|(_, seconds)| seconds) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            node: "db2".into(),
            epoch: 1,
            committed_epoch: 1,
            highest_epoch: 1,
            durable_lsn: Lsn(1000),
            replay: Replay::Free,
            last_heard: Some((Lsn(1000), 7)),
            primary: Primary::Unreachable,
            others: Vec::new(),
            waited: None,
        }
    }

    fn other(epoch: u64, lsn: u64, answered: bool) -> Vec<Other> {
        vec![Other { node: "db3".into(), position: Some((epoch, Lsn(lsn))), answered }]
    }

    #[test]
    fn what_is_refused_and_what_is_at_stake() {
        let writing = Primary::Writing { node: "db1".into(), lsn: Lsn(1500) };
        let down = |lsn| Primary::Down { node: "db1".into(), stored_lsn: Lsn(lsn) };
        let cases: [(Facts, Option<&str>, &str); 13] = [
            (facts(), None, "no WAL beyond 0/3E8 is known; what the primary wrote in the 7 s"),
            (Facts { primary: writing, ..facts() }, Some("two primaries"), "at least 0/5DC (500 bytes)"),
            (Facts { primary: down(1000), ..facts() }, None, "no WAL beyond"),
            (Facts { primary: down(1001), ..facts() }, Some("sidecar has WAL"), "(1 bytes)"),
            (
                Facts { primary: Primary::Unsure { node: "db1".into() }, ..facts() },
                Some("unknown"),
                "no WAL beyond",
            ),
            (Facts { others: other(1, 1000, true), ..facts() }, None, "no WAL beyond"),
            (Facts { others: other(1, 1200, true), ..facts() }, Some("db3 is further along"), "(200 bytes)"),
            (Facts { others: other(1, 1200, false), ..facts() }, Some("db3 was last seen"), "(200 bytes)"),
            (Facts { last_heard: Some((Lsn(1300), 2)), ..facts() }, None, "at least 0/514 (300 bytes)"),
            // On a branch that was left it may be anywhere.
            (Facts { others: other(0, 1200, true), ..facts() }, None, "no WAL beyond"),
            (
                Facts { committed_epoch: 2, ..facts() },
                Some("has no WAL of it"),
                "all that was written since the promotion of epoch 2",
            ),
            (Facts { replay: Replay::Paused, ..facts() }, Some("somebody paused"), "pg_wal_replay_resume()"),
            (
                Facts { replay: Replay::Delayed { seconds: 60 }, ..facts() },
                Some("with a delay of 60 s"),
                "recovery_min_apply_delay = 0",
            ),
        ];
        for (facts, refused, stake) in cases {
            match (plan(&facts, false), refused) {
                (Ok(plan), None) => assert!(plan.stake.to_string().contains(stake), "{}", plan.stake),
                (Err(refusal), Some(why)) => {
                    assert!(refusal.reason.contains(why), "{refusal}");
                    assert!(refusal.hint.contains(stake), "{}", refusal.hint);
                    let forced = plan(&facts, true).unwrap();
                    assert!(forced.warnings.iter().any(|warning| warning.contains(why)), "{forced:?}");
                }
                (got, wanted) => panic!("{facts:?}: {got:?}, not {wanted:?}"),
            }
        }
    }

    #[test]
    fn those_who_answer_have_all_commits_between_them_or_it_is_refused() {
        let three = |policy: &str, needed| Waited {
            policy: policy.into(),
            seats: ["db2", "db3", "db4"].map(str::to_owned).into(),
            needed,
        };
        let of = |node: &str, answered| Other { node: node.into(), position: Some((1, Lsn(900))), answered };
        let down = |lsn| Primary::Down { node: "db1".into(), stored_lsn: Lsn(lsn) };
        let refused = |waited: Waited, primary, others: &[Other]| {
            let facts = Facts { waited: Some(waited), primary, others: others.to_vec(), ..facts() };
            plan(&facts, true).unwrap();
            plan(&facts, false).err()
        };
        let (both, one) = ([of("db3", true), of("db4", true)], [of("db3", true), of("db4", false)]);
        assert_eq!(refused(three("any 1 (*)", 1), Primary::Unreachable, &both), None);
        let refusal = refused(three("any 1 (*)", 1), Primary::Unreachable, &one).unwrap();
        let reason = "commits waited for any 1 (*), and db4 may alone have some that were acknowledged: 3 of them must answer, and 2 did";
        assert_eq!(refusal.reason, reason);
        assert!(refusal.hint.starts_with("Start walship on db4 and run this again"), "{}", refusal.hint);
        assert_eq!(refused(three("any 2 (*)", 2), Primary::Unreachable, &one), None);
        assert!(refused(three("any 2 (*)", 2), Primary::Unreachable, &[]).is_some());
        assert_eq!(refused(three("all", 3), Primary::Unreachable, &[]), None);
        assert_eq!(
            refused(three("any 1 (*)", 1), down(1000), &[]),
            None,
            "the primary's own store has no more"
        );
        let tail = Waited { policy: "chain (db2, db4)".into(), seats: vec!["db4".into()], needed: 1 };
        assert!(refused(tail.clone(), Primary::Unreachable, &one).is_some());
        assert_eq!(refused(tail, Primary::Unreachable, &both), None);
    }

    #[test]
    fn the_epoch_is_above_every_other_and_a_newer_epoch_is_further() {
        let facts = Facts { committed_epoch: 2, highest_epoch: 6, others: other(2, 10, true), ..facts() };
        let refusal = plan(&facts, false).unwrap_err();
        assert_eq!(refusal.reason, "db3 is further along, in epoch 2 at 0/A; db2 is in epoch 1 at 0/3E8");
        assert!(refusal.hint.contains("since the promotion of epoch 2 is not here"), "{}", refusal.hint);
        assert_eq!(plan(&facts, true).unwrap().epoch, 7);
    }
}
