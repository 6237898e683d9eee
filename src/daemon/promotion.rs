//! Promoting this node: gathers the facts, and carries out what the planner says.
//!
//! Order: ask everyone, plan, stop receiving, drain, reserve the slot, commit the epoch, promote. Up to the commit the
//! node goes on as a standby whatever fails; from it on, running the command again finishes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::ask::{ANSWER_WITHIN, ask};
use super::node::Node;
use super::request::Request;
use super::{by_hand, members, setting, upstreams};
use crate::capture;
use crate::failpoint;
use crate::fault::{Fault, Outcome, WithFault};
use crate::link::message::{Answer, PostgresAnswer, Purpose, Role, Route};
use crate::pg::sql::promotion as sql;
use crate::pg::sql::{Grant, Sql};
use crate::pg::{Lsn, TimelineId};
use crate::policy::Policy;
use crate::promote::{self, Facts, Other, Plan, Primary, Replay, Waited};
use crate::store::{Branch, MemberRole, NodeRole, State, Store};
use crate::vitals::FeedVitals;

/// Patience with PostgreSQL while it takes what the store has, as long as it gets on; each advance begins it anew.
const DRAIN_STALL: Duration = Duration::from_secs(60);
const DRAIN_LOOK_EVERY: Duration = Duration::from_millis(50);

/// Patience with `pg_promote`.
const PROMOTE_WITHIN: Duration = Duration::from_secs(60);

/// Asks all nodes and plans.
pub async fn plan(node: &Arc<Node>, request: &Request) -> anyhow::Result<Plan> {
    let facts = gather(node).await?;
    let plan = promote::plan(&facts, request.force);
    let plan = plan.map_err(|refusal| Fault::refused(&refusal.reason, refusal.hint.clone()))?;
    for warning in &plan.warnings {
        request.say(format!("warning: {warning}")).await;
    }
    request.say(format!("at stake: {}", plan.stake)).await;
    Ok(plan)
}

async fn gather(node: &Arc<Node>) -> anyhow::Result<Facts> {
    let replay = look_at_replay(node).await?;
    let left_at = node.blocking("look at a promotion by hand", by_hand::left_at).await??;
    let durable_lsn = node.store.positions().borrow().durable;
    let state = node.store.state();
    let answers = ask_everyone(node).await;
    let receive = node.vitals.receive.get();
    let heard =
        receive.server_time.map(|(_, arrived)| (receive.server_flush_lsn, arrived.elapsed().as_secs()));
    let mut facts = Facts {
        node: node.config.name.clone(),
        epoch: state.epoch_of_wal(),
        committed_epoch: state.committed_epoch,
        highest_epoch: state.promised_epoch.max(state.committed_epoch),
        durable_lsn: left_at.map_or(durable_lsn, |left_at| left_at.min(durable_lsn)),
        replay,
        last_heard: heard,
        primary: Primary::Unreachable,
        others: Vec::new(),
        waited: waited(node, &state),
    };
    // The primary whose WAL comes at this moment is there, even if it did not answer in time.
    if let Some(primary) = node.standing.borrow().route.primary() {
        facts.primary = Primary::Unsure { node: primary.to_owned() };
    }
    for answer in answers.values() {
        facts.committed_epoch = answer.committed_epoch.max(facts.committed_epoch);
        facts.highest_epoch = answer.promised_epoch.max(answer.committed_epoch).max(facts.highest_epoch);
        if answer.role == Role::Standby {
            let made = answer.timeline.as_ref().and_then(|identity| identity.branch.as_ref());
            let epoch = made.map_or(0, |branch| branch.epoch);
            let position = answer.positions.map(|at| (epoch, at.flushed_lsn));
            facts.others.push(Other { node: answer.node.clone(), position, answered: true });
        } else if answer.role == Role::Primary && answer.committed_epoch >= state.committed_epoch {
            // One that was left behind by a later promotion is no primary to wait for, also before it knows.
            facts.primary = primary_of(answer);
        }
    }
    for member in members::others(node) {
        if member.role == MemberRole::Standby && !answers.contains_key(&member.name) {
            let position = member.flushed_lsn.is_valid().then_some((facts.epoch, member.flushed_lsn));
            facts.others.push(Other { node: member.name, position, answered: false });
        }
    }
    Ok(facts)
}

/// What commits waited for under the last primary, as this node was told.
fn waited(node: &Node, state: &State) -> Option<Waited> {
    let policy = state.policy.effective.as_ref().filter(|policy| policy.policy != Policy::Async)?;
    let (primary, _) = node.primary()?;
    Some(Waited {
        policy: policy.policy.to_string(),
        seats: policy.others(&primary).into_iter().map(str::to_owned).collect(),
        needed: policy.needed(&primary),
    })
}

/// Asks this node's PostgreSQL, without which there is no promotion, forced or not.
async fn look_at_replay(node: &Arc<Node>) -> anyhow::Result<Replay> {
    let asked = async { Sql::connect(&node.conninfo).await?.replay().await };
    let replay = asked.await.map_err(|error| {
        Fault::refused(
            format!("this node's PostgreSQL can't be promoted now: {error}"),
            "It has to run and to let walship in: `walship check` looks, and `walship run` starts it when it is down.",
        )
    })?;
    // It is a primary already, where a promotion was interrupted.
    let Some(replay) = replay else { return Ok(Replay::Free) };
    let lacks = last_record(node).await? > replay.replayed_lsn;
    Ok(match replay {
        sql::Replay { is_paused: true, .. } => Replay::Paused,
        sql::Replay { delay, .. } if lacks && !delay.is_zero() => {
            Replay::Delayed { seconds: delay.as_millis().div_ceil(1000) as u64 }
        }
        sql::Replay { .. } => Replay::Free,
    })
}

/// Where the last whole record of the store ends.
async fn last_record(node: &Arc<Node>) -> anyhow::Result<Option<Lsn>> {
    let timeline = node.store.newest_timeline().context("the store is empty")?;
    Ok(node.blocking("find the last record", move |node| node.store.last_record_end(timeline)).await??)
}

/// Asks at every address where a node may be, not only those of the members that were noted: a standby that has just
/// joined knows no member yet, and must not take that for a primary's silence. By node.
async fn ask_everyone(node: &Arc<Node>) -> BTreeMap<String, Answer> {
    let mut addresses: BTreeSet<String> = upstreams::addresses(node).into_iter().collect();
    addresses.extend(members::others(node).into_iter().map(|member| member.advertise));
    let mut asked = JoinSet::new();
    for address in addresses.into_iter().filter(|address| !address.is_empty()) {
        let node = Arc::clone(node);
        asked.spawn(async move {
            let (security, ours) = (node.security(), node.hello(Purpose::Ask));
            timeout(ANSWER_WITHIN, ask(&address, &security, &ours)).await
        });
    }
    let answers = asked.join_all().await.into_iter().filter_map(|asked| asked.ok()?.ok());
    let state = node.store.state();
    answers
        .map(|(_, answer)| (answer.node.clone(), answer))
        .filter(|(name, _)| *name != node.config.name && !state.has_forgotten_name(name))
        .collect()
}

fn primary_of(answer: &Answer) -> Primary {
    let node = answer.node.clone();
    match answer.postgres {
        PostgresAnswer::Up { in_recovery: false, lsn } => Primary::Writing { node, lsn },
        PostgresAnswer::Up { in_recovery: true, .. } | PostgresAnswer::Unknown => Primary::Unsure { node },
        PostgresAnswer::Down { .. } => {
            let stored_lsn = answer.positions.map_or(Lsn::INVALID, |at| at.flushed_lsn);
            Primary::Down { node, stored_lsn }
        }
    }
}

/// Carries a plan out. Nothing is received any more when this is called. An error leaves a standby.
pub async fn carry_out(node: &Arc<Node>, plan: &Plan, request: &Request) -> anyhow::Result<String> {
    let started = Instant::now();
    let sql = Sql::connect(&node.conninfo).await.context("ask this node's PostgreSQL")?;
    let already = !sql.is_in_recovery().await?;
    node.blocking("fsync the store", |node| node.store.sync()).await??;
    if !already {
        drain(node, &sql, request).await?;
        failpoint::hit("promote-drained");
        let slot = &node.config.slot;
        capture::slot::hold(&sql, slot).await.with_context(|| format!("reserve the slot {slot}"))?;
        may_promote(&sql).await?;
    }
    let branch = Branch { epoch: plan.epoch, node: node.config.name.clone() };
    request.say(format!("committing epoch {}", plan.epoch)).await;
    let committed = node.blocking("commit the epoch", move |node| {
        // Whom the new primary is to tell and to keep WAL for it knows from the old one alone.
        members::note(node)?;
        commit(&node.store, branch)
    });
    committed.await??;
    failpoint::hit("promote-committed");
    have_commits_wait(node, request).await;
    if !already {
        let promoted = sql.promote(PROMOTE_WITHIN).await.outcome(Outcome::Unknown)?;
        if !promoted {
            return Err(anyhow::anyhow!(
                "PostgreSQL did not end its recovery within {} s",
                PROMOTE_WITHIN.as_secs()
            ))
            .hint("Look at PostgreSQL's log; `walship promote` goes on from here.")
            .outcome(Outcome::Unknown);
        }
    }
    failpoint::hit("promote-promoted");
    // From here on there is no way back, only the same command again.
    become_primary(node).await.outcome(Outcome::Unknown)?;
    Ok(format!(
        "{} is the primary of epoch {} after {:.1} s",
        node.config.name,
        plan.epoch,
        started.elapsed().as_secs_f64()
    ))
}

/// Refuses what would fail behind the commit, when there is no way back. PostgreSQL has all by now.
async fn may_promote(sql: &Sql) -> anyhow::Result<()> {
    if sql.has(Grant::Promote).await? {
        return Ok(());
    }
    let mend = Grant::Promote.sql_that_mends(sql.role(), sql.version());
    Err(Fault::refused(
        format!("the role {} may not promote this PostgreSQL", sql.role()),
        format!(
            "A superuser grants it on the primary: {mend} Where there is none, run `pg_ctl promote` on this node and then \
             `walship promote` again."
        ),
    ))
}

/// Commits the epoch of a promotion durably, unless this node was told of another one since that was planned.
fn commit(store: &Store, branch: Branch) -> anyhow::Result<()> {
    let mut told = None;
    store.update_state(|state| {
        let known = state.promised_epoch.max(state.committed_epoch);
        if known >= branch.epoch {
            told = Some(known);
            return;
        }
        (state.promised_epoch, state.committed_epoch) = (branch.epoch, branch.epoch);
        state.promoting = Some(branch);
    })?;
    match told {
        None => Ok(()),
        Some(epoch) => Err(Fault::refused(
            format!("another node was promoted with epoch {epoch} meanwhile"),
            "This node goes on as its standby; `walship status` shows it.",
        )),
    }
}

/// The policy goes on as this node was told it, so its PostgreSQL is to wait for it from its first commit on. Where that
/// can't be had it is said: commits of a new primary are worth more than none.
async fn have_commits_wait(node: &Arc<Node>, request: &Request) {
    let Some(policy) = node.store.state().policy.effective.filter(|policy| policy.policy != Policy::Async)
    else {
        return;
    };
    match setting::turn(node, true).await {
        Ok(_) => request.say(format!("commits will wait for {}", policy.policy)).await,
        Err(error) => {
            let hint = Fault::hint_of(&error).unwrap_or_default();
            let text = format!("warning: commits will not wait for {}: {error:#}. {hint}", policy.policy);
            request.say(text).await;
        }
    }
}

/// From now on this node is the primary, and nobody else.
pub async fn become_primary(node: &Arc<Node>) -> anyhow::Result<()> {
    node.blocking("note the role", |node| node.store.update_state(note_primary)).await??;
    act_as_primary(node);
    Ok(())
}

/// What a primary's state says of it and of the others.
pub fn note_primary(state: &mut State) {
    state.role = Some(NodeRole::Primary);
    for member in state.members.iter_mut().filter(|member| member.role == MemberRole::Primary) {
        member.role = MemberRole::Superseded;
    }
}

/// What everything that runs here looks at.
pub fn act_as_primary(node: &Node) {
    node.newer_primary.send_replace(None);
    node.stand_on(Route::of_primary(&node.config.name));
    node.role.send_replace(NodeRole::Primary);
}

/// Whether PostgreSQL has all of the store. One that streams an older timeline has not, wherever it is there: it would
/// branch off before the newest, and take its number.
fn is_drained(fed: &FeedVitals, replayed: Option<Lsn>, timeline: Option<TimelineId>, last: Lsn) -> bool {
    (fed.timeline.is_none() || fed.timeline == timeline) && replayed.is_some_and(|replayed| replayed >= last)
}

/// Waits until PostgreSQL has replayed the last whole record of the store: nothing that can be replayed lies past it.
/// PostgreSQL itself is asked, for it may have that record and stream nothing: from a base backup, whose WAL reaches
/// further than a store that was cut off, it waits for the store to come up to where it would go on (since 17.12, 18.6).
async fn drain(node: &Arc<Node>, sql: &Sql, request: &Request) -> anyhow::Result<()> {
    let last = last_record(node).await?.unwrap_or(Lsn::INVALID);
    if sql.replay().await?.is_some_and(|replay| replay.is_paused) {
        if !request.force {
            return Err(Fault::refused(
                "somebody paused the replay just now",
                "Promote again for what to do.",
            ));
        }
        request.say("resuming the replay that somebody paused").await;
        sql.resume_replay().await?;
    }
    let timeline = node.store.newest_timeline();
    request.say(format!("waiting until PostgreSQL has replayed up to {last}")).await;
    let (mut progress, mut advanced_at) = (None, Instant::now());
    loop {
        // Not needed for the position: so that `walship status` shows meanwhile how it gets on.
        node.replies.ask();
        let replayed = sql.replay().await?.and_then(|replay| replay.replayed_lsn);
        if is_drained(&node.vitals.feed.get(), replayed, timeline, last) {
            return Ok(());
        }
        if replayed != progress {
            (progress, advanced_at) = (replayed, Instant::now());
        }
        if advanced_at.elapsed() > DRAIN_STALL {
            let (seconds, replayed) = (DRAIN_STALL.as_secs(), progress.unwrap_or(Lsn::INVALID));
            return Err(anyhow::anyhow!(
                "PostgreSQL has not moved for {seconds} s: it replayed {replayed} of {last}"
            ))
            .hint("Look at its log, and whether its replay is paused or delayed; the node goes on as a standby.");
        }
        sleep(DRAIN_LOOK_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::SegmentSize;
    use crate::store::NewStore;

    #[test]
    fn nothing_is_committed_at_or_below_an_epoch_that_was_heard_of_meanwhile() {
        let folder = tempfile::tempdir().unwrap();
        let segment_size = SegmentSize::new(1 << 20).unwrap();
        let store = Store::create(folder.path(), NewStore { system_identifier: 7, segment_size }).unwrap();
        let branch = |epoch| Branch { epoch, node: "db2".into() };
        store.update_state(|state| (state.promised_epoch, state.committed_epoch) = (3, 3)).unwrap();
        for epoch in [2, 3] {
            let error = commit(&store, branch(epoch)).unwrap_err();
            assert_eq!(Fault::outcome_of(&error), Outcome::Refused, "{error:#}");
        }
        assert_eq!((store.state().committed_epoch, store.state().promoting), (3, None));
        commit(&store, branch(4)).unwrap();
        assert_eq!((store.state().committed_epoch, store.state().promoting), (4, Some(branch(4))));
    }

    #[test]
    fn who_is_on_an_older_timeline_is_not_drained() {
        let streams = |timeline: Option<u32>| FeedVitals {
            timeline: timeline.map(TimelineId),
            ..FeedVitals::default()
        };
        let drained = |fed: &FeedVitals, replayed| is_drained(fed, replayed, Some(TimelineId(2)), Lsn(90));
        assert!(
            !drained(&streams(Some(1)), Some(Lsn(120))),
            "the store goes on from before 120 on timeline 2"
        );
        assert!(drained(&streams(Some(2)), Some(Lsn(90))));
        assert!(!drained(&streams(Some(2)), Some(Lsn(89))));
        assert!(!drained(&streams(Some(2)), None));
        assert!(drained(&streams(None), Some(Lsn(90))), "it streams nothing, and has it all");
    }
}
