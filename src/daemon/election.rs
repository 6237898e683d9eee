//! A candidate's part in an election: asks everybody, raises its own promise, asks for votes, and takes them back when
//! nothing comes of it.
//!
//! Each answer is waited for only so long, and all are asked at once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::ask::{ANSWER_WITHIN, ask_within, converse};
use super::node::Node;
use super::request::Promotion;
use super::{members, upstreams, votes};
use crate::clock::WallTime;
use crate::failpoint;
use crate::fault::Fault;
use crate::link::message::{Answer, PostgresAnswer, Role, Standing, Vote, VoteRequest, Why, Withdrawal};
use crate::link::{LinkError, Message};
use crate::pg::Lsn;
use crate::policy::Policy;
use crate::promote::{Contact, Facts, Heard, Part, Replay, Said, Seen, Server, Stage, Stake, Waited};
use crate::store::{Member, MemberRole, Promise, State};

/// A standby that lacks no more is taken to be in step.
pub const IN_STEP_BYTES: u64 = 1 << 20;

/// Patience with a vote: the voter looks whether it reaches the primary, and fsyncs what it has.
const VOTE_WITHIN: Duration = Duration::from_secs(15);

/// Patience with the vote of a primary, which stops its PostgreSQL for it.
const STOP_WITHIN: Duration = Duration::from_secs(150);

/// A connection that has broken is noticed in so long.
const NOTICED_WITHIN: Duration = Duration::from_secs(2);

/// A candidate that gives way takes its promise back in so long.
const RIVAL_GIVES_WAY_WITHIN: Duration = Duration::from_secs(10);
const RETRY_EVERY: Duration = Duration::from_millis(500);

/// Patience with those who are told that nothing came of it; they ask by themselves later.
const WITHDRAW_WITHIN: Duration = Duration::from_secs(5);

/// Who said what: by node, with the address at which it was reached.
pub type Answers = BTreeMap<String, (String, Answer)>;

/// Asks at every address where a node may be, not only those of the members that were noted: a standby that has just
/// joined knows no member yet, and must not take that for a primary's silence.
pub async fn ask_everyone(node: &Arc<Node>) -> Answers {
    let mut addresses: BTreeSet<String> = upstreams::addresses(node).into_iter().collect();
    addresses.extend(members::others(node).into_iter().map(|member| member.advertise));
    let mut asked = JoinSet::new();
    for address in addresses.into_iter().filter(|address| !address.is_empty()) {
        let node = Arc::clone(node);
        asked.spawn(async move {
            let answer = ask_within(&node, &address, ANSWER_WITHIN).await;
            (address, answer)
        });
    }
    let answers = asked.join_all().await.into_iter();
    let answers = answers.filter_map(|(address, asked)| Some((address, asked.ok()?.1)));
    let state = node.store.state();
    answers
        .map(|(address, answer)| (answer.node.clone(), (address, answer)))
        .filter(|(name, _)| *name != node.config.name && !state.has_forgotten_name(name))
        .collect()
}

/// A primary that does not answer, and whose WAL seems to come, has ended at this moment perhaps: that is noticed soon.
pub async fn notice_the_primarys_end(node: &Arc<Node>, answers: &Answers) {
    let mut standing = node.standing.subscribe();
    let Some(primary) = standing.borrow().route.primary().map(str::to_owned) else { return };
    if answers.contains_key(&primary) {
        return;
    }
    let is_gone = |standing: &Standing| standing.route.primary() != Some(&primary);
    // In vain, it is taken to be there.
    let _ = timeout(NOTICED_WITHIN, standing.wait_for(is_gone)).await;
}

/// The facts as they were answered, before anybody has voted.
pub fn facts(
    node: &Arc<Node>,
    answers: &Answers,
    replay: Replay,
    left_at: Option<Lsn>,
    earlier: Option<Stake>,
    asked: &Promotion,
) -> Facts {
    let state = node.store.state();
    let receive = node.vitals.receive.get();
    let heard = receive.server_time.map(|(at, arrived)| Heard {
        lsn: receive.server_flush_lsn,
        at: at.into(),
        seconds: arrived.elapsed().as_secs(),
    });
    let mut facts = Facts {
        node: node.config.name.clone(),
        members: Vec::new(),
        committed_epoch: state.committed_epoch,
        highest_epoch: state.promised_epoch.max(state.committed_epoch),
        is_promoted: left_at.is_some(),
        replay,
        log_end: Lsn::INVALID,
        last_heard: heard,
        ended_cleanly: false,
        waited: waited(node, &state),
        earlier,
        can_fence: asked.fence_command.as_ref().or(node.config.fence_command.as_ref()).is_some(),
        stage: Stage::Facts,
    };
    take_own(node, &mut facts, Contact::Answered, left_at);
    for (_, answer) in answers.values() {
        facts.committed_epoch = answer.committed_epoch.max(facts.committed_epoch);
        facts.highest_epoch = answer.promised_epoch.max(answer.committed_epoch).max(facts.highest_epoch);
        facts.members.push(seen(answer, state.committed_epoch));
        note_policy(node, &mut facts, answer);
    }
    for member in members::others(node) {
        if !answers.contains_key(&member.name) {
            facts.members.push(silent(member, &state));
        }
    }
    // The primary whose WAL comes at this moment is there, even if it did not answer in time.
    if let Some(primary) = node.standing.borrow().route.primary()
        && let Some(seen) = facts.member_mut(primary)
        && seen.contact == Contact::Silent
    {
        (seen.part, seen.contact) = (Part::Primary(Server::Unsure), Contact::Answered);
    }
    facts.members.sort_by(|one, other| one.node.cmp(&other.node));
    facts
}

/// A member that does not answer, as it is known from the primary's list.
fn silent(member: Member, state: &State) -> Seen {
    let part = match member.role {
        MemberRole::Primary => Part::Primary(Server::Unsure),
        MemberRole::Standby => Part::Standby,
        MemberRole::Superseded => Part::Superseded,
    };
    // What the primary itself has is not known from its own list.
    let is_known = member.flushed_lsn.is_valid() && part == Part::Standby;
    let said = Said {
        timeline: member.timeline.filter(|_| is_known),
        at: member.last_heard.map(Into::into),
        ..Said::default()
    };
    let position = is_known.then(|| (state.epoch_of_wal(), member.flushed_lsn));
    let priority = crate::config::PRIORITY;
    Seen { node: member.name, part, contact: Contact::Silent, priority, position, said }
}

/// Takes this node itself into the facts; what its PostgreSQL lacked when it was promoted by hand does not count.
fn take_own(node: &Node, facts: &mut Facts, contact: Contact, left_at: Option<Lsn>) {
    let state = node.store.state();
    let durable = node.store.positions().borrow().durable;
    facts.log_end = durable;
    let own = Seen {
        node: node.config.name.clone(),
        part: Part::Standby,
        contact,
        priority: node.config.priority,
        position: Some((state.epoch_of_wal(), left_at.map_or(durable, |left_at| left_at.min(durable)))),
        said: Said {
            promised_epoch: Some(state.promised_epoch),
            committed_epoch: Some(state.committed_epoch),
            timeline: state.newest_timeline(),
            at: Some(WallTime::now().into()),
        },
    };
    match facts.member_mut(&node.config.name) {
        Some(member) => *member = own,
        None => facts.members.push(own),
    }
}

/// A node that knows of a newer policy may know one that went on with less than the one that is known here.
fn note_policy(node: &Node, facts: &mut Facts, answer: &Answer) {
    let known = node.store.state().policy.effective.map_or(0, |policy| policy.serial);
    if let Some(waited) = &mut facts.waited {
        waited.is_outdated |= answer.policy_serial > known;
    }
}

/// A member by its own account. A primary that was left behind by a later promotion is none to wait for, also before it
/// knows.
fn seen(answer: &Answer, committed_epoch: u64) -> Seen {
    let made = answer.timeline.as_ref().and_then(|identity| identity.branch.as_ref());
    let epoch = made.map_or(0, |branch| branch.epoch);
    let part = match answer.role {
        Role::Primary if answer.committed_epoch >= committed_epoch => Part::Primary(server(answer)),
        Role::Primary | Role::Superseded => Part::Superseded,
        Role::Standby | Role::Reader => Part::Standby,
    };
    Seen {
        node: answer.node.clone(),
        part,
        contact: Contact::Answered,
        priority: answer.priority,
        position: answer.positions.map(|at| (epoch, at.flushed_lsn)),
        said: Said {
            promised_epoch: Some(answer.promised_epoch),
            committed_epoch: Some(answer.committed_epoch),
            timeline: answer.positions.map(|at| at.timeline),
            at: Some(WallTime::now().into()),
        },
    }
}

fn server(answer: &Answer) -> Server {
    match answer.postgres {
        PostgresAnswer::Up { in_recovery: false, lsn } => Server::Writing { lsn },
        PostgresAnswer::Up { in_recovery: true, .. } | PostgresAnswer::Unknown => Server::Unsure,
        PostgresAnswer::Down { .. } => Server::Down,
    }
}

/// What commits waited for under the last primary, as this node was told.
fn waited(node: &Node, state: &State) -> Option<Waited> {
    let policy = state.policy.effective.as_ref().filter(|policy| policy.policy != Policy::Async)?;
    let (primary, _) = node.primary()?;
    Some(Waited {
        policy: policy.policy.to_string(),
        seats: policy.others(&primary).into_iter().map(str::to_owned).collect(),
        needed: policy.needed(&primary),
        stall_limit: policy.stall_limit,
        reported: members::reported(node),
        is_outdated: state.policy.pending.is_some(),
    })
}

/// Raises this node's own promise to an epoch, durably: from then on it takes no WAL under a lower one.
async fn stand(node: &Arc<Node>, epoch: u64) -> anyhow::Result<()> {
    node.blocking("promise the epoch", move |node| {
        node.store.sync()?;
        node.store.update_state(|state| {
            state.promised_epoch = state.promised_epoch.max(epoch);
            state.promise = Some(Promise {
                epoch,
                candidate: node.config.name.clone(),
                address: node.config.advertise.to_string(),
                at: WallTime::now(),
                stops_primary: false,
                was_down: false,
            });
        })
    })
    .await?
    .context("promise the epoch")?;
    failpoint::hit("promote-promised");
    Ok(())
}

/// Stands for an epoch above all that are known and has the others vote, until it is clear who wins: of two candidates at
/// the same time the one with the first name goes on, and the other gives way. Takes the votes into the facts.
pub async fn run(
    node: &Arc<Node>,
    answers: &Answers,
    facts: &mut Facts,
    left_at: Option<Lsn>,
    why: Why,
) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        let epoch = facts.next_epoch();
        stand(node, epoch).await?;
        if why == Why::Switchover {
            have_the_primary_stop(node, answers, facts, epoch).await?;
        }
        let Rivals { first, highest_epoch } = call(node, answers, facts, epoch, why).await;
        take_own(node, facts, Contact::Voted, left_at);
        let is_over = begun.elapsed() > RIVAL_GIVES_WAY_WITHIN;
        match first {
            Some(rival) if rival < node.config.name || is_over => {
                let hint = format!(
                    "Nothing was changed here. `walship status` shows whether {rival} is the primary now."
                );
                return Err(Fault::refused(votes::Busy { candidate: rival }, hint));
            }
            None if highest_epoch == epoch || is_over => return Ok(()),
            // It gives way, or has: those who promised it an epoch want a higher one.
            Some(_) | None => {}
        }
        sleep(RETRY_EVERY).await;
        facts.highest_epoch = facts.highest_epoch.max(highest_epoch);
    }
}

/// Has the primary vote alone and first: nobody else is kept from receiving while it ships its last WAL.
async fn have_the_primary_stop(
    node: &Arc<Node>,
    answers: &Answers,
    facts: &mut Facts,
    epoch: u64,
) -> anyhow::Result<()> {
    let Some(name) = facts.primary().map(|(primary, _)| primary.node.clone()) else { return Ok(()) };
    let (address, _) = answers.get(&name).context("it has answered")?;
    let request = vote_request(node, epoch, Why::Switchover);
    let voted = request_vote(node, address, request, STOP_WITHIN).await;
    let refused = |what: String| {
        Err(Fault::refused(
            what,
            format!("{name} goes on as the primary. Look at its log, and run this again."),
        ))
    };
    match voted {
        Err(error) => refused(format!("{name} did not stop: {error:#}")),
        Ok(Vote { refusal: Some(why), .. }) => refused(format!("{name} did not stop: {why}")),
        Ok(vote) if !vote.ended_cleanly => {
            refused(format!("{name} was stopped, but its WAL does not end in a shutdown checkpoint"))
        }
        Ok(_) => Ok(()),
    }
}

fn vote_request(node: &Node, epoch: u64, why: Why) -> VoteRequest {
    let (candidate, address) = (node.config.name.clone(), node.config.advertise.to_string());
    VoteRequest { epoch, candidate, address, why }
}

/// Who else stands.
struct Rivals {
    /// By name.
    first: Option<String>,
    /// The highest epoch that a voter has promised.
    highest_epoch: u64,
}

/// Asks all who answered for their votes, and takes these into the facts.
async fn call(node: &Arc<Node>, answers: &Answers, facts: &mut Facts, epoch: u64, why: Why) -> Rivals {
    let mut called = JoinSet::new();
    for (name, (address, answer)) in answers {
        let within = if answer.role == Role::Primary { STOP_WITHIN } else { VOTE_WITHIN };
        let request = vote_request(node, epoch, why);
        let (node, name, address) = (Arc::clone(node), name.clone(), address.clone());
        called.spawn(async move { (name, request_vote(&node, &address, request, within).await) });
    }
    facts.stage = Stage::Votes;
    facts.ended_cleanly = false;
    let mut rivals = Rivals { first: None, highest_epoch: epoch };
    for (name, voted) in called.join_all().await {
        if let Ok(Vote { answer, .. }) = &voted {
            // It may have heard of one since it was asked.
            facts.committed_epoch = facts.committed_epoch.max(answer.committed_epoch);
            note_policy(node, facts, answer);
        }
        if let Ok(Vote { refusal: Some(_), rival, answer, .. }) = &voted {
            // One that was outbid is asked again with more.
            let wanted = answer.promised_epoch + u64::from(answer.promised_epoch == epoch);
            rivals.highest_epoch = rivals.highest_epoch.max(wanted);
            let other = rival.clone().filter(|other| *other != node.config.name);
            rivals.first = rivals.first.into_iter().chain(other).min();
        }
        facts.ended_cleanly |= voted.as_ref().is_ok_and(|vote| vote.is_stopped && vote.ended_cleanly);
        if let Some(member) = facts.member_mut(&name) {
            take(member, voted);
        }
    }
    rivals
}

fn take(member: &mut Seen, voted: anyhow::Result<Vote>) {
    match voted {
        Ok(Vote { refusal: Some(why), .. }) => member.contact = Contact::Refused { why },
        Ok(vote) => {
            let fresh = seen(&vote.answer, 0);
            (member.contact, member.position, member.said) = (Contact::Voted, fresh.position, fresh.said);
            if matches!(member.part, Part::Primary(_)) && vote.is_stopped {
                member.part = Part::Primary(Server::Down);
            }
        }
        Err(error) => {
            tracing::info!(member = %member.node, "it did not vote: {error:#}");
            member.contact = Contact::Silent;
        }
    }
}

async fn request_vote(
    node: &Arc<Node>,
    address: &str,
    request: VoteRequest,
    within: Duration,
) -> anyhow::Result<Vote> {
    match converse(node, address, Message::VoteRequest(request), within).await? {
        Message::Vote(vote) => Ok(*vote),
        other => Err(LinkError::unexpected("Vote", other).into()),
    }
}

/// Takes the promise back, durably, and then tells those who may have voted. This node will not commit that epoch.
pub async fn withdraw(node: &Arc<Node>, answers: &Answers) -> anyhow::Result<()> {
    let Some(promise) = node.store.state().promise.filter(|promise| promise.candidate == node.config.name)
    else {
        return Ok(());
    };
    node.blocking("take the promise back", |node| node.store.update_state(|state| state.promise = None))
        .await?
        .context("take the promise back")?;
    failpoint::hit("promote-withdrawn");
    let mut told = JoinSet::new();
    for (address, _) in answers.values() {
        let withdrawal = Withdrawal { epoch: promise.epoch, candidate: promise.candidate.clone() };
        let (node, address) = (Arc::clone(node), address.clone());
        told.spawn(async move {
            let message = Message::Withdrawal(withdrawal);
            let told = converse(&node, &address, message, WITHDRAW_WITHIN).await;
            tracing::debug!(%address, ?told, "told that the election was withdrawn");
        });
    }
    told.join_all().await;
    Ok(())
}
