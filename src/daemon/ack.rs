//! On a primary: from what the members say to what capture may tell PostgreSQL.
//!
//! Follows the members' positions, the policy and the store, and publishes what is released at each level. The exposure
//! log is written beside that, so that a disk that hangs keeps no commit waiting that others have.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::task::JoinSet;

use super::node::Node;
use super::{policy, trouble};
use crate::ack::probe::{Look, Probe, Waited, Waiter};
use crate::ack::stall::{Facts, Opening, Stall, Write};
use crate::ack::{Seat, Standing, released};
use crate::clock::WallTime;
use crate::failpoint;
use crate::pg::sql::sync::{SyncSetting, SyncWaiters};
use crate::pg::sql::{Sql, SqlError};
use crate::pg::{Level, Levels, Lsn, TimelineId};
use crate::policy::{Policy, Resolved};
use crate::store::{Exposure, Positions};
use crate::vitals::Contact;

/// Into how many looks the stall limit is divided when it matters who waits, and how close and how far these are.
const LOOKS: u32 = 4;
const LOOK_EVERY_MIN: Duration = Duration::from_millis(100);
const LOOK_EVERY_MAX: Duration = Duration::from_secs(1);

/// Runs until it is cancelled.
pub async fn run(node: Arc<Node>) -> anyhow::Result<()> {
    let mut downstreams = node.vitals.downstreams.watch();
    let mut positions = node.store.positions();
    let mut kept = node.store.policy();
    let mut setting = node.setting.subscribe();
    let mut members = node.members.subscribe();
    let mut newer_primary = node.newer_primary.subscribe();
    // Where the disk takes no change it is tried again with the next list of members, a second later.
    trouble::unless_of_disk(node.blocking("take the configuration's policy over", policy::begin).await?)?;
    let mut guard = Guard::new(&node);
    loop {
        let at = *positions.borrow_and_update();
        let (released, is_due) = {
            let policy = kept.borrow_and_update();
            let protected = {
                let mut tracker = node.tracker();
                tracker.hear(&downstreams.borrow_and_update(), at.timeline, at.durable);
                policy.effective.as_ref().map(|policy| tracker.release(policy, at.durable))
            };
            let released = guard.step(policy.effective.as_ref(), at, protected.unwrap_or_default());
            (released, policy::is_due(&node, &policy))
        };
        // What a superseded primary still lets go would be lost to the others.
        if newer_primary.borrow_and_update().is_none() {
            node.released.send_if_modified(|known| std::mem::replace(known, released) != released);
        }
        if is_due {
            trouble::unless_of_disk(node.blocking("let the policy take effect", policy::take_effect).await?)?;
        }
        // All branches are cancellation-safe: they only wait for a change, and what the guard awaits goes on by itself.
        tokio::select! {
            changed = downstreams.changed() => changed.context("the downstreams are no longer followed")?,
            changed = positions.changed() => changed.context("the store was closed")?,
            changed = kept.changed() => changed.context("the store was closed")?,
            changed = setting.changed() => changed.context("PostgreSQL's setting is no longer followed")?,
            changed = newer_primary.changed() => changed.context("promotions are no longer heard of")?,
            changed = members.changed() => {
                changed.context("the members are no longer kept")?;
                let begun = node.blocking("take the configuration's policy over", policy::begin).await?;
                trouble::unless_of_disk(begun)?;
            }
            changed = guard.changed() => changed?,
        }
    }
}

/// The stall limit at work: the state machine, what it writes, and what it wants to know.
struct Guard {
    node: Arc<Node>,
    stall: Stall,
    /// The facts of the last step.
    facts: Facts,
    /// Writes of the exposure log; one at a time.
    writes: JoinSet<bool>,
    /// Looks at who waits; one at a time.
    looks: JoinSet<Result<SyncWaiters, SqlError>>,
    probe: Probe,
    /// What was known when the last look began.
    looked: Option<Facts>,
    /// How far the WAL was before a look that showed nobody.
    idle_at: Lsn,
    waited: Waited,
}

impl Guard {
    fn new(node: &Arc<Node>) -> Guard {
        let positions = *node.store.positions().borrow();
        let open = node.store.exposures().borrow().open().cloned();
        if let Some(window) = &open {
            tracing::warn!(
                from = %window.from_lsn, end = %positions.appended,
                "an exposure was open when this node ended: commits up to the end of the WAL may be unprotected"
            );
        }
        let facts = Facts {
            now: Instant::now(),
            timeline: None,
            durable: Lsn::INVALID,
            protected: Levels::default(),
            limit: None,
            waited: Waited::default(),
            apply_is_default: false,
        };
        Guard {
            node: Arc::clone(node),
            stall: Stall::new(open.map(|window| window.apply_is_used), positions.appended),
            facts,
            writes: JoinSet::new(),
            looks: JoinSet::new(),
            probe: Probe::default(),
            looked: None,
            idle_at: Lsn::INVALID,
            waited: Waited::default(),
        }
    }

    /// What is released, given what the policy releases.
    fn step(&mut self, policy: Option<&Resolved>, at: Positions, protected: Levels<Lsn>) -> Levels<Lsn> {
        // A superseded primary releases nothing, so nothing of it goes on unprotected.
        let is_superseded = self.node.newer_primary.borrow().is_some();
        let limits = |policy: &&Resolved| policy.policy != Policy::Async && !is_superseded;
        let limit = policy.filter(limits).and_then(|policy| policy.stall_limit.0);
        let is_apply = |setting: &SyncSetting| setting.commit == Level::Apply.name();
        self.facts = Facts {
            now: Instant::now(),
            timeline: at.timeline,
            durable: at.durable,
            protected,
            limit,
            waited: self.waited,
            // What is not known may be so.
            apply_is_default: self.node.setting.borrow().as_ref().is_none_or(is_apply),
        };
        let (released, write) = self.stall.step(&self.facts);
        if let Some(write) = write {
            self.write(write, policy);
        }
        self.look_if_due();
        released
    }

    /// Writes the exposure log on a thread of its own.
    fn write(&mut self, write: Write, policy: Option<&Resolved>) {
        let node = Arc::clone(&self.node);
        let now = WallTime::now();
        match (write, policy) {
            (Write::Open(_), None) => unreachable!("without a policy there is no stall limit"),
            (Write::Open(opening), Some(policy)) => {
                let window = self.window(opening, policy, now);
                self.writes.spawn_blocking(move || open(&node, window));
            }
            (Write::Close { to }, policy) => {
                let is_async = policy.is_some_and(|policy| policy.policy == Policy::Async);
                let reason = if is_async { "the policy is async now" } else { "all have caught up" };
                self.writes.spawn_blocking(move || close(&node, to, now, reason));
            }
        }
    }

    fn window(&self, opening: Opening, policy: &Resolved, now: WallTime) -> Exposure {
        let Opening { from, apply_is_used, stalled, wanted } = opening;
        let tracker = self.node.tracker();
        let seats = tracker.seats(policy).into_iter();
        let missing = seats.filter(|seat| *seat.standing.at.get(stalled) < wanted).map(|seat| match seat {
            Seat { name, standing, .. } if standing.is_connected => {
                format!("{name} (has {} of {wanted})", standing.at.get(stalled))
            }
            Seat { name, .. } => format!("{name} (not connected)"),
        });
        Exposure {
            number: 0,
            policy: policy.policy.to_string(),
            reason: format!("a commit waited for {}, and too few had {}", policy.stall_limit, what(stalled)),
            missing: missing.collect(),
            timeline: self.facts.timeline.unwrap_or(TimelineId::FIRST),
            from_lsn: protected(&self.node, policy, from, apply_is_used),
            opened_at: now,
            apply_is_used,
            closed: None,
        }
    }

    /// Looks who waits, while that matters. What PostgreSQL does not send here can't be let go either.
    fn look_if_due(&mut self) {
        let asks = self.stall.asks_from(&self.facts).is_some_and(|from| from <= self.facts.now);
        if !asks || !self.is_captured() {
            self.probe.clear();
            (self.waited, self.looked, self.idle_at) = (Waited::default(), None, Lsn::INVALID);
            return;
        }
        if self.looks.is_empty() && self.look_at().is_some_and(|at| at <= self.facts.now) {
            self.looked = Some(self.facts);
            let node = Arc::clone(&self.node);
            // A session each time: a smart stop waits for one that is kept.
            self.looks.spawn(async move { Sql::connect(&node.conninfo).await?.sync_waiters().await });
        }
    }

    /// When it is to be looked for the next time; seldom while nobody waits and no commit came since.
    fn look_at(&self) -> Option<Instant> {
        let every = (self.facts.limit? / LOOKS).clamp(LOOK_EVERY_MIN, LOOK_EVERY_MAX);
        let every = if self.facts.durable <= self.idle_at { LOOK_EVERY_MAX } else { every };
        let from = self.stall.asks_from(&self.facts)?;
        if !self.is_captured() {
            return Some(self.facts.now + LOOK_EVERY_MAX);
        }
        Some(self.looked.map_or(from, |looked| from.max(looked.now + every)))
    }

    fn is_captured(&self) -> bool {
        matches!(self.node.vitals.capture.get().contact, Contact::Up { .. })
    }

    /// Waits until another step is due for what happened here. Cancellation-safe: results stay where they are until they
    /// are taken.
    async fn changed(&mut self) -> anyhow::Result<()> {
        let look_at = self.look_at().filter(|_| self.looks.is_empty());
        let wake_at = self.stall.wake_at(&self.facts).into_iter().chain(look_at).min();
        let wake = async {
            match wake_at {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(written) = self.writes.join_next() => {
                self.stall.written(written.context("write the exposure log")?, Instant::now());
            }
            Some(look) = self.looks.join_next() => self.take(look.context("see who waits")?),
            () = wake => {}
        }
        Ok(())
    }

    /// Takes in who waits.
    fn take(&mut self, look: Result<SyncWaiters, SqlError>) {
        let (Some(limit), Some(looked)) = (self.facts.limit, self.looked) else { return };
        let ended = Instant::now();
        self.waited = match look {
            Ok(SyncWaiters { flushed, waiters }) => {
                let waiter = |(process, transaction)| Waiter { process, transaction };
                let waiters = waiters.into_iter().map(waiter).collect();
                self.probe.look(Look { began: looked.now, ended, flushed, waiters }, looked.protected, limit)
            }
            Err(error) => {
                tracing::debug!("who waits is not known: {error}");
                self.probe.look_failed(ended, limit)
            }
        };
        self.idle_at = if self.probe.saw_nobody() { looked.durable } else { Lsn::INVALID };
    }
}

/// Up to where commits are protected, given what was heard since this process began. Those who are missing may not have been
/// heard yet; then what they had before counts, and without that everything that the store holds may be unprotected.
pub fn protected(node: &Node, policy: &Resolved, heard: Lsn, with_apply: bool) -> Lsn {
    let at = *node.store.positions().borrow();
    let state = node.store.state();
    let noted = |name: &str| {
        let member = state.members.iter().find(|member| member.name == name)?;
        let (flush, apply) = (member.flushed_lsn, member.restartpoint_lsn);
        let levels = Levels { write: flush, flush, apply };
        let is_known = member.timeline.is_some() && member.timeline == at.timeline;
        is_known.then_some(Standing { at: levels, is_connected: true, is_in_step: true, is_copying: false })
    };
    let before = released(policy, &node.config.name, at.durable, noted).unwrap_or_default();
    let before = if with_apply { before.flush.min(before.apply) } else { before.flush };
    heard.max(before).max(at.start)
}

/// What too few had done.
fn what(level: Level) -> &'static str {
    match level {
        Level::Write => "written it",
        Level::Flush => "fsynced it",
        Level::Apply => "replayed it",
    }
}

/// Opens a window in the log; false when that can't be written. Blocks.
fn open(node: &Node, window: Exposure) -> bool {
    let (from, missing, reason) = (window.from_lsn, window.missing.join(", "), window.reason.clone());
    failpoint::hit("exposures.before_open");
    let opened = node.store.update_exposures(|log| log.add(window));
    failpoint::hit("exposures.opened");
    match &opened {
        Ok(()) => tracing::error!(%from, %missing, "commits go on unprotected: {reason}"),
        Err(error) => {
            tracing::error!(%missing, "commits wait on, as the exposure log can't be written: {error}")
        }
    }
    opened.is_ok()
}

/// Closes it. Blocks.
fn close(node: &Node, to: Lsn, now: WallTime, reason: &str) -> bool {
    failpoint::hit("exposures.before_close");
    let closed = node.store.update_exposures(|log| log.close(to, now, reason));
    match &closed {
        Ok(()) => tracing::info!(%to, "commits are protected again: {reason}"),
        Err(error) => tracing::error!("the exposure's end can't be noted: {error}"),
    }
    closed.is_ok()
}
