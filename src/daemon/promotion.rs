//! Promoting this node: an election, and what the planner says.
//!
//! Order: ask everyone, plan, stop receiving, promise, votes, plan again, fence, pull, drain, reserve the slot, commit the
//! epoch, promote. Up to the commit the node goes on as a standby whatever fails, and takes its promise back; from it on,
//! running the command again finishes.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::time::{Instant, sleep};

use super::election::{self, Answers};
use super::node::Node;
use super::request::{Done, Request};
use super::{by_hand, certificate, fence, hooks, members, pull, setting};
use crate::capture;
use crate::clock::WallTime;
use crate::failpoint;
use crate::fault::{Fault, Outcome, WithFault};
use crate::link::message::{Route, Why};
use crate::pg::sql::promotion as sql;
use crate::pg::sql::{Grant, Sql};
use crate::pg::{Lsn, TimelineId};
use crate::policy::Policy;
use crate::promote::{
    self, Certificate, Course, Facts, Fence, Fenced, Plan, Replay, Salvage, Salvaged, Server,
};
use crate::store::{Branch, Duty, MemberRole, NodeRole, State, Store};
use crate::vitals::FeedVitals;

/// Patience with PostgreSQL while it takes what the store has, as long as it gets on; each advance begins it anew.
const DRAIN_STALL: Duration = Duration::from_secs(60);
const DRAIN_LOOK_EVERY: Duration = Duration::from_millis(50);

/// Patience with `pg_promote`.
const PROMOTE_WITHIN: Duration = Duration::from_secs(60);

/// What was found out and planned before anybody votes.
pub struct Prepared {
    answers: Answers,
    facts: Facts,
    /// Where its PostgreSQL left the log, when it was promoted by hand.
    left_at: Option<Lsn>,
    plan: Plan,
}

impl Prepared {
    /// What would be done.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }
}

/// How a look at the facts ends.
pub enum Outlook {
    /// This node can be promoted.
    Here(Box<Prepared>),
    /// Another one is the right one: its name and its address.
    Elsewhere(String, String),
}

/// Asks all nodes and plans, without a vote.
pub async fn look(node: &Arc<Node>, request: &Request) -> anyhow::Result<Outlook> {
    let replay = look_at_replay(node).await?;
    let answers = election::ask_everyone(node).await;
    election::notice_the_primarys_end(node, &answers).await;
    let left_at = node.blocking("look at a promotion by hand", by_hand::left_at).await??;
    let earlier = node.blocking("look at an interrupted promotion", certificate::interrupted).await??;
    let facts = election::facts(node, &answers, replay, left_at, earlier, &request.promotion);
    if request.promotion.elect
        && let Some(best) = promote::best(&facts).filter(|best| best.node != node.config.name)
        && let Some((address, _)) = answers.get(&best.node)
    {
        return Ok(Outlook::Elsewhere(best.node.clone(), address.clone()));
    }
    let plan = decide(&facts, request)?;
    tell(&plan, request).await;
    Ok(Outlook::Here(Box::new(Prepared { answers, facts, left_at, plan })))
}

fn decide(facts: &Facts, request: &Request) -> anyhow::Result<Plan> {
    let plan = promote::plan(facts, &request.promotion.wish());
    plan.map_err(|refusal| Fault::refused(&refusal.reason, refusal.hint.clone()))
}

async fn tell(plan: &Plan, request: &Request) {
    for warning in &plan.warnings {
        request.say(format!("warning: {warning}")).await;
    }
    if let Some(Salvage { node, to }) = &plan.salvage {
        request.say(format!("to be pulled from {node} first: WAL up to {to}")).await;
    }
    request.say(format!("at stake: {}", plan.stake)).await;
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

/// Has the others vote and carries out what follows. Nothing is received any more when this is called. An error leaves a
/// standby, with all promises taken back.
pub async fn carry_out(node: &Arc<Node>, prepared: Prepared, request: &Request) -> anyhow::Result<Done> {
    let answers = prepared.answers.clone();
    let done = elect(node, prepared, request).await;
    if done.is_err() {
        // The commit has taken the promise with it, and then there is nothing to take back.
        election::withdraw(node, &answers).await?;
    }
    done
}

async fn elect(node: &Arc<Node>, prepared: Prepared, request: &Request) -> anyhow::Result<Done> {
    let (started, began_at) = (Instant::now(), WallTime::now());
    let Prepared { answers, mut facts, left_at, plan: expected } = prepared;
    let sql = Sql::connect(&node.conninfo).await.context("ask this node's PostgreSQL")?;
    let already = !sql.is_in_recovery().await?;
    let why = match &request.promotion {
        asked if asked.switchover => Why::Switchover,
        asked if asked.force => Why::Forced,
        _ => Why::Loss,
    };
    request.say(format!("asking for votes of epoch {}", expected.epoch)).await;
    election::run(node, &answers, &mut facts, left_at, why).await?;
    let mut plan = decide(&facts, request)?;
    if (&plan.stake, &plan.warnings, &plan.salvage)
        != (&expected.stake, &expected.warnings, &expected.salvage)
    {
        tell(&plan, request).await;
    }
    failpoint::hit("promote-voted");
    let fence = fence(node, &facts, &plan, request).await?;
    let salvage = salvage(node, &answers, &mut facts, &mut plan, request).await?;
    let course = Course {
        system_identifier: node.store.identity().system_identifier,
        old_timeline: node.store.newest_timeline().context("the store is empty")?,
        began_at,
        committed_at: began_at,
        fence,
        salvage,
    };
    finish(node, &sql, already, &Decided { facts, plan, course }, request).await?;
    let json = match certificate::complete(node).await {
        Ok(json) => json,
        Err(error) => {
            request.say(format!("warning: the certificate is not complete yet: {error:#}")).await;
            None
        }
    };
    let epoch = node.store.state().committed_epoch;
    let line = format!(
        "{} is the primary of epoch {epoch} after {:.1} s",
        node.config.name,
        started.elapsed().as_secs_f64()
    );
    Ok(Done { line, json })
}

/// Pulls what the plan counts on. Forced, it goes on without what can't be had, by another plan.
async fn salvage(
    node: &Arc<Node>,
    answers: &Answers,
    facts: &mut Facts,
    plan: &mut Plan,
    request: &Request,
) -> anyhow::Result<Option<Salvaged>> {
    while let Some(salvage) = plan.salvage.take() {
        match salvage_from(node, answers, &salvage, request).await {
            Ok(()) => {
                let (_, from) = facts.own_position();
                return Ok(Some(Salvaged { node: salvage.node, from, to: salvage.to }));
            }
            Err(error) if request.promotion.force => {
                request.say(format!("warning: {error:#}")).await;
                // It is lost then, unless another one has it.
                facts.lose(&salvage.node);
                *plan = decide(facts, request)?;
                tell(plan, request).await;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// What is carried out, and on what grounds.
struct Decided {
    facts: Facts,
    plan: Plan,
    course: Course,
}

/// Has the command make sure that the old primary is down, where its own sidecar did not; who did, and when.
async fn fence(node: &Arc<Node>, facts: &Facts, plan: &Plan, request: &Request) -> anyhow::Result<Fenced> {
    let Some((primary, server)) = facts.primary() else { return Ok(Fenced { by: plan.fence, at: None }) };
    if plan.fence == Fence::Sidecar && server == Server::Down {
        return Ok(Fenced { by: plan.fence, at: primary.said.at });
    }
    let configured = node.config.fence_command.as_ref();
    let command = request.promotion.fence_command.as_ref().or(configured);
    let Some(command) = command.filter(|_| plan.fence == Fence::Command) else {
        return Ok(Fenced { by: plan.fence, at: None });
    };
    let address = members::others(node).into_iter().find(|member| member.name == primary.node);
    let address = address.map(|member| member.advertise).unwrap_or_default();
    request.say(format!("running the fence command for {}", primary.node)).await;
    let fenced = match fence::run_command(command, &primary.node, &address).await {
        Ok(()) => {
            request.say(format!("{} is down, by the fence command", primary.node)).await;
            Fenced { by: Fence::Command, at: Some(WallTime::now().into()) }
        }
        Err(error) if request.promotion.force => {
            request.say(format!("warning: {error:#}: {} may still accept writes", primary.node)).await;
            Fenced { by: Fence::Nobody, at: None }
        }
        Err(error) => return Err(error),
    };
    failpoint::hit("promote-fenced");
    Ok(fenced)
}

/// Pulls what the plan counts on.
async fn salvage_from(
    node: &Arc<Node>,
    answers: &Answers,
    salvage: &Salvage,
    request: &Request,
) -> anyhow::Result<()> {
    let Salvage { node: name, to } = salvage;
    let (address, _) = answers.get(name).context("it has answered")?;
    request.say(format!("pulling WAL up to {to} from {name}")).await;
    pull::pull(node, name, address, *to).await?;
    failpoint::hit("promote-pulled");
    Ok(())
}

/// From the end of the WAL that is promoted to a primary that captures. Up to the commit an error leaves a standby.
async fn finish(
    node: &Arc<Node>,
    sql: &Sql,
    already: bool,
    decided: &Decided,
    request: &Request,
) -> anyhow::Result<()> {
    let Decided { facts, plan, course } = decided;
    node.blocking("fsync the store", |node| node.store.sync()).await??;
    if !already {
        drain(node, sql, request).await?;
        failpoint::hit("promote-drained");
        let slot = &node.config.slot;
        capture::slot::hold(sql, slot).await.with_context(|| format!("reserve the slot {slot}"))?;
        may_promote(sql).await?;
    }
    match hooks::before(node, Duty::Primary).await {
        Err(error) if request.promotion.force => request.say(format!("warning: {error:#}")).await,
        ready => ready?,
    }
    let branch = Branch { epoch: plan.epoch, node: node.config.name.clone() };
    request.say(format!("committing epoch {}", plan.epoch)).await;
    let course = Course { committed_at: WallTime::now(), ..course.clone() };
    let record = Certificate::of(facts, plan, &request.promotion.wish(), course);
    let committed = node.blocking("commit the epoch", move |node| {
        certificate::draft(node, &record)?;
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
    if let Some(failure) = hooks::told_of_primary(node).await {
        request.say(format!("warning: {failure}")).await;
    }
    Ok(())
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

/// Commits the epoch that this node promised itself, durably, unless it was told of another one since.
fn commit(store: &Store, branch: Branch) -> anyhow::Result<()> {
    let mut told = None;
    store.update_state(|state| {
        let known = state.promised_epoch.max(state.committed_epoch);
        let promised = state.promise.as_ref().map(|promise| (promise.epoch, promise.candidate.as_str()));
        if known != branch.epoch || promised != Some((branch.epoch, branch.node.as_str())) {
            told = Some(known);
            return;
        }
        state.learn(branch.epoch);
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
    // What left it behind holds until it has rejoined, also after a restart.
    let superseded = node.store.state().superseded;
    node.newer_primary.send_replace(superseded.map(|superseded| (superseded.epoch, superseded.by)));
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
        if !request.promotion.force {
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
    use crate::clock::WallTime;
    use crate::pg::SegmentSize;
    use crate::store::{NewStore, Promise};

    #[test]
    fn nothing_is_committed_at_or_below_an_epoch_that_was_heard_of_meanwhile() {
        let folder = tempfile::tempdir().unwrap();
        let segment_size = SegmentSize::new(1 << 20).unwrap();
        let store = Store::create(folder.path(), NewStore { system_identifier: 7, segment_size }).unwrap();
        let branch = |epoch| Branch { epoch, node: "db2".into() };
        let promise = |epoch| Promise {
            epoch,
            candidate: "db2".into(),
            address: "db2:1".into(),
            at: WallTime { unix_micros: 1 },
            stops_primary: false,
            was_down: false,
        };
        store.update_state(|state| (state.promised_epoch, state.committed_epoch) = (3, 3)).unwrap();
        for epoch in [2, 3] {
            let error = commit(&store, branch(epoch)).unwrap_err();
            assert_eq!(Fault::outcome_of(&error), Outcome::Refused, "{error:#}");
        }
        assert_eq!((store.state().committed_epoch, store.state().promoting), (3, None));
        assert!(commit(&store, branch(4)).is_err(), "nothing was promised");
        store.update_state(|state| (state.promised_epoch, state.promise) = (5, Some(promise(4)))).unwrap();
        assert!(commit(&store, branch(4)).is_err(), "it has voted for another since");
        store.update_state(|state| (state.promised_epoch, state.promise) = (4, Some(promise(4)))).unwrap();
        commit(&store, branch(4)).unwrap();
        assert_eq!(store.state().promise, None);
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
