//! An old primary becomes a standby of the one that took its place.
//!
//! Its PostgreSQL is stopped, and its log complete to the last whole record: then it is known whether it went past the
//! point where the new primary left it. If not, it follows as it is. If so, what lies past that is kept as a capsule, and
//! the data directory is made equal to the new primary's. Every step can be repeated: until this node lives as a standby it
//! is the superseded primary that it was, and the same command goes on.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until};

use super::ask::{ANSWER_WITHIN, ask_within};
use super::node::Node;
use super::request::Done;
use super::seed::{self, Seed};
use super::standby::Requests;
use super::{by_hand, fence, postgres, rewind, upstreams};
use crate::capsule::{self, Kept};
use crate::failpoint;
use crate::fault::{Fault, WithFault};
use crate::link::message::{Hello, Role, TimelineIdentity};
use crate::pg::control::ControlFile;
use crate::pg::{CONFIGURATION_FILE, Lsn, TimelineId};
use crate::report::units;
use crate::restore::surplus;
use crate::restore::target::{Kind, StandbyPlace};
use crate::store::{Fork, NodeRole, Rewind};

/// Between two tries to rejoin by itself: at first, as what is waited for is usually a matter of moments, and at most.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MOST: Duration = Duration::from_secs(300);

/// A new primary begins to capture so soon after its promotion.
const TIMELINE_WITHIN: Duration = Duration::from_secs(15);
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// How a node that diverged is brought back.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// By pg_rewind where that can work, else by a copy of what differs.
    #[default]
    Auto,
    /// By pg_rewind; refused where that can't work, and a copy where it has failed.
    Rewind,
    /// By a copy of what differs.
    Delta,
}

/// A request to rejoin.
pub struct Request {
    /// How.
    pub method: Method,
    /// Only say what would be done.
    pub dry_run: bool,
    /// Where progress is told, line by line.
    pub say: mpsc::Sender<String>,
    /// The outcome.
    pub done: oneshot::Sender<anyhow::Result<String>>,
}

impl Request {
    /// Answers one that was waiting while this node rejoined by itself, or does so at the moment.
    pub fn answer_as_standby(self, node: &Node) {
        let name = &node.config.name;
        let answer = match node.role() {
            NodeRole::Standby => Ok(format!("{name} is a standby already: it rejoined by itself")),
            NodeRole::Primary => Err(Fault::refused(
                format!("{name} is being rewound already"),
                "Its log says how far that is; run this again to see that it has ended.",
            )),
        };
        // Whoever asked may have gone.
        let _ = self.done.send(answer);
    }
}

/// What becomes of this node.
pub enum Way {
    /// It follows as it is.
    AsItIs,
    /// Its data directory is made equal to the new primary's first.
    Anew(Seed),
    /// The same by pg_rewind.
    Rewind(rewind::Plan),
}

/// What was found out.
struct Found {
    /// The new primary.
    primary: String,
    timeline: TimelineId,
    /// Where this node's log ends: behind the last whole record.
    end: Lsn,
    /// Where the new primary's history left it; `None` when that has nothing of it.
    fork: Option<Lsn>,
    /// PostgreSQL's last checkpoint, where that lies past the end of the log: what leads there is gone from pg_wal.
    beyond: Option<Checkpoint>,
    /// Where the new primary's store begins.
    kept_from: Option<Lsn>,
}

/// A checkpoint, as the control file has it.
#[derive(Clone, Copy)]
struct Checkpoint {
    lsn: Lsn,
    redo: Lsn,
}

impl Found {
    fn has_diverged(&self) -> bool {
        self.fork.is_none_or(|fork| self.end > fork || self.beyond.is_some_and(|beyond| beyond.lsn >= fork))
    }

    /// That this node was away for longer than WAL is kept for it.
    fn gone(&self) -> Option<String> {
        let need = self.fork.map_or(self.end, |fork| fork.min(self.end));
        let start = self.kept_from.filter(|start| *start > need)?;
        Some(format!(
            "WAL from {need} on is no longer in the store of {}, which begins at {start}",
            self.primary
        ))
    }

    fn sentence(&self, own: &str) -> String {
        let Found { primary, timeline, fork, .. } = self;
        let end = &self.beyond.map_or(self.end, |beyond| beyond.lsn.max(self.end));
        match fork {
            None => format!("{primary} knows nothing of the timeline {timeline} that {own} is on"),
            Some(fork) if self.has_diverged() => format!(
                "{own} has {} that {primary} never had: timeline {timeline} from {fork} to {end}",
                units::size(end.bytes_since(*fork))
            ),
            Some(fork) => {
                format!("{primary} has all that {own} wrote: it left timeline {timeline} at {fork}")
            }
        }
    }
}

/// Waits until this primary, which was left behind, is a standby's to be: when a person asks for it, or by itself where it
/// handed over or is configured so. What is asked of a standby meanwhile is refused.
pub async fn until_rejoined(node: &Arc<Node>, requests: &mut Requests) -> anyhow::Result<Way> {
    // Before this it is not tried again without being asked.
    let (mut retry_at, mut pause) = (Instant::now(), RETRY_FIRST);
    node.rejoin_waits.send_replace(None);
    loop {
        // Cancellation-safe: a request is taken whole, and the wait keeps nothing.
        tokio::select! {
            Some(request) = requests.rejoins.recv() => {
                if let Some(way) = answer(node, request).await {
                    return Ok(way);
                }
            }
            Some(request) = requests.promotions.recv() => {
                request.answer(Ok(Done::line(format!("{} was promoted meanwhile", node.config.name))));
            }
            Some(request) = requests.reseeds.recv() => drop(request.done.send(Err(no_standby(node)))),
            Some(freeze) = requests.freezes.recv() => drop(freeze.done.send(Err(no_standby(node)))),
            () = until_left_behind(node, retry_at) => match rejoin(node, Method::Auto, |_| {}).await {
                Ok((way, done)) => {
                    tracing::info!("rejoining: {done}");
                    return Ok(way);
                }
                Err(error) => {
                    // At first the node that it was handed over to may be on its way still.
                    match pause {
                        RETRY_FIRST => tracing::info!("not rejoined yet: {error:#}"),
                        _ => say_why_not(node, &error),
                    }
                    (retry_at, pause) = (Instant::now() + pause, RETRY_MOST.min(2 * pause));
                }
            },
        }
    }
}

/// Has the status say why this node has not rejoined by itself; the log says it when it is another reason than before.
fn say_why_not(node: &Node, error: &anyhow::Error) {
    let reason = Some(format!("{error:#}"));
    if node.rejoin_waits.send_replace(reason.clone()) != reason {
        tracing::warn!("not rejoined, trying again, every {} s at last: {error:#}", RETRY_MOST.as_secs());
    }
}

fn no_standby(node: &Node) -> anyhow::Error {
    Fault::refused(format!("{} is no standby", node.config.name), "`walship status` shows which nodes are.")
}

/// Waits until this node is to rejoin without being asked.
async fn until_left_behind(node: &Arc<Node>, not_before: Instant) {
    let mut newer_primary = node.newer_primary.subscribe();
    loop {
        // Its sender is never gone before the node is.
        let _ = newer_primary.wait_for(Option::is_some).await;
        sleep_until(not_before).await;
        let state = node.store.state();
        if state.superseded.is_some_and(|gone| gone.handed_over || node.config.auto_rejoin) {
            return;
        }
        sleep(RETRY_FIRST).await;
    }
}

/// Does what a person asks for, and says how it went; `None` when this node stays what it is.
async fn answer(node: &Arc<Node>, request: Request) -> Option<Way> {
    let Request { method, dry_run, say, done } = request;
    let tell = |line: String| drop(say.try_send(line));
    let outcome = if dry_run {
        would(node, method).await.map(|line| (None, line))
    } else {
        rejoin(node, method, tell).await.map(|(way, line)| (Some(way), line))
    };
    // Whoever asked may have gone; it is in the log, too.
    match outcome {
        // That takes as long as it takes, and the outcome is told when it is known.
        Ok((Some(Way::Rewind(plan)), line)) => {
            tell(line);
            Some(Way::Rewind(rewind::Plan { say: Some(say), done: Some(done), ..plan }))
        }
        Ok((way, line)) => {
            let _ = done.send(Ok(line));
            way
        }
        Err(error) => {
            let _ = done.send(Err(error));
            None
        }
    }
}

async fn would(node: &Arc<Node>, method: Method) -> anyhow::Result<String> {
    if let Some(Rewind { has_ended: false, .. }) = node.store.state().rewind {
        return Ok("a pg_rewind was begun here and did not end: the data directory would be compared with the new primary's, \
                   and what differs taken; nothing was changed"
            .to_owned());
    }
    let found = look(node).await?;
    let (what, primary) = (found.sentence(&node.config.name), &found.primary);
    if !found.has_diverged() {
        let would = match found.gone() {
            Some(gone) => format!("The data directory would be made equal to {primary}'s: {gone}"),
            None => "It would follow as it is".to_owned(),
        };
        return Ok(format!("{what}. {would}; nothing was changed"));
    }
    let way = match unfit(node, &found, method).await? {
        None => "the data directory rewound by pg_rewind".to_owned(),
        Some(why) => format!(
            "the data directory made equal to {primary}'s by a copy of what differs, not by pg_rewind: {why}"
        ),
    };
    Ok(format!("{what}. It would be kept as a capsule, and {way}; nothing was changed"))
}

/// Why a node that diverged can't be rewound.
async fn unfit(node: &Arc<Node>, found: &Found, method: Method) -> anyhow::Result<Option<String>> {
    let why = match found.fork {
        None => Some(format!("{} does not say where it left timeline {}", found.primary, found.timeline)),
        Some(_) if found.beyond.is_some() => Some(format!("WAL from {} on is gone from pg_wal", found.end)),
        Some(_) => match found.gone() {
            None => rewind::unfit(node, method).await?,
            gone => gone,
        },
    };
    match why {
        Some(why) if method == Method::Rewind => Err(Fault::refused(
            format!("pg_rewind can't work: {why}"),
            "Without --method it is done by a copy.",
        )),
        why => Ok(why),
    }
}

/// Looks, and changes nothing but what a superseded primary does anyway.
async fn look(node: &Arc<Node>) -> anyhow::Result<Found> {
    if node.superseded_by().is_none() {
        return Err(Fault::refused(
            format!("{} is the primary: nobody was promoted in its place", node.config.name),
            "`walship switchover` hands over to a standby, and this node follows it.",
        ));
    }
    let data_directory = &node.config.postgres.data_directory;
    let configuration = data_directory.join(CONFIGURATION_FILE);
    if node.config.postgres.start_command.is_none() && !configuration.exists() {
        return Err(Fault::refused(
            format!(
                "walship does not know how to start PostgreSQL here: {} is not there",
                configuration.display()
            ),
            "Set start_command in walship.toml, as in \"pg_ctlcluster 15 main start\", restart walship, and run this again.",
        ));
    }
    let hello = new_primary_with_its_timeline(node).await?;
    postgres::stop(&node.config).await?;
    failpoint::hit("rejoin-stopped");
    let end = fence::complete_log(node).await?;
    failpoint::hit("rejoin-completed");
    if let Some(timeline) = node.blocking("look at PostgreSQL's timelines", uncaptured).await?? {
        return Err(Fault::refused(
            format!(
                "PostgreSQL here began timeline {timeline}, of which nothing was captured: what it wrote there is in pg_wal only"
            ),
            "Save what matters of it, move the data directory and the store away, and join this host anew as a standby.",
        ));
    }
    let timeline = node.store.newest_timeline().context("the store is empty")?;
    let ours = node.store.state().identity_of(timeline).map(crate::ship::wire_identity);
    let fork = ours.and_then(|ours| fork_of(&ours, &hello.timelines));
    let record = node.blocking("find the last record", move |node| node.store.last_record_end(timeline));
    let end = record.await??.unwrap_or(end);
    let read =
        node.blocking("read pg_control", |node| ControlFile::read(&node.config.postgres.data_directory));
    let control = read.await?.context("read pg_control")?;
    // A slot that was dropped, or a limit of it, lets WAL go that nobody has captured.
    let is_beyond = control.timeline == timeline && control.checkpoint_lsn >= end;
    let beyond = is_beyond.then_some(Checkpoint { lsn: control.checkpoint_lsn, redo: control.redo_lsn });
    let kept_from = hello.kept.map(|kept| kept.start_lsn);
    Ok(Found { primary: hello.node, timeline, end, fork, beyond, kept_from })
}

/// Where a history left a timeline. One of the same number is another one: it is known by its identity. Where the history
/// begins after it, only the number of what came before is told, which is enough for the first timeline of a cluster alone.
fn fork_of(ours: &TimelineIdentity, history: &[TimelineIdentity]) -> Option<Lsn> {
    let next = history.iter().find(|next| next.parent == Some(ours.timeline))?;
    let begins_after = history.first() == Some(next);
    let is_known = history.contains(ours) || begins_after && ours.timeline == TimelineId::FIRST;
    is_known.then_some(next.switch_lsn)
}

/// The same once it has begun the timeline of its promotion, which tells where it left this node's.
async fn new_primary_with_its_timeline(node: &Arc<Node>) -> anyhow::Result<Hello> {
    let begun = Instant::now();
    loop {
        let hello = new_primary(node).await?;
        let newest = hello.timelines.last().and_then(|identity| identity.branch.as_ref());
        if newest.is_some_and(|branch| branch.epoch == hello.committed_epoch) {
            return Ok(hello);
        }
        if begun.elapsed() > TIMELINE_WITHIN {
            return Err(anyhow::anyhow!(
                "{} was promoted and does not ship its new timeline yet",
                hello.node
            ))
            .hint("Look at its log, and run this again. Nothing was changed.");
        }
        sleep(LOOK_EVERY).await;
    }
}

/// The node that was promoted, or one promoted since, as it says of itself.
async fn new_primary(node: &Arc<Node>) -> anyhow::Result<Hello> {
    let least = node.newer_primary.borrow().as_ref().map_or(0, |(epoch, _)| *epoch);
    let mut failures = Vec::new();
    for address in upstreams::addresses(node) {
        match ask_within(node, &address, ANSWER_WITHIN).await {
            Ok((hello, _)) if hello.role == Role::Primary && hello.committed_epoch >= least => {
                return Ok(hello);
            }
            Ok((hello, _)) => failures.push(format!("{address}: {} is {}", hello.node, hello.role.name())),
            Err(error) => failures.push(format!("{address}: {error:#}")),
        }
    }
    Err(anyhow::anyhow!("the new primary does not answer ({})", failures.join("; ")))
        .hint("Once it does, run this again. Nothing was changed.")
}

/// Makes this node ready to live as a standby.
async fn rejoin(node: &Arc<Node>, method: Method, tell: impl Fn(String)) -> anyhow::Result<(Way, String)> {
    let name = node.config.name.clone();
    if let Some(begun) = node.store.state().rewind {
        let primary = node.superseded_by().map(|(_, name)| name).unwrap_or_default();
        let line = match begun.has_ended {
            true => format!("{name} was rewound to {} and follows {primary}", begun.fork.lsn),
            false => {
                tell("a pg_rewind was begun here and did not end".to_owned());
                rewind::being_made_equal(&name, &primary)
            }
        };
        return Ok((rewind::settle(node, begun).await?, line));
    }
    let found = look(node).await?;
    tell(found.sentence(&name));
    if !found.has_diverged() {
        if let Some(gone) = found.gone() {
            tell(gone);
            return Ok(anew(node, &found));
        }
        let settings = seed::settings_of(&node.config, StandbyPlace::default());
        let applied = node.blocking("make PostgreSQL a standby", move |node| {
            settings.apply(&node.config.postgres.data_directory)
        });
        applied.await??;
        failpoint::hit("rejoin-settled");
        return Ok((Way::AsItIs, format!("{name} follows {}, with all that it had", found.primary)));
    }
    let unfit = unfit(node, &found, method).await?;
    let kept = keep(node, &found).await?;
    failpoint::hit("rejoin-kept");
    tell(format!("what {} never had is kept in {}", found.primary, kept.display()));
    match summarise(node, &found, kept).await {
        Ok(summary) => tell(format!("what that is, in short, is in {}", summary.display())),
        // It would be worse to stay as it is for want of it.
        Err(error) => tracing::warn!("the capsule has no summary: {error:#}"),
    }
    failpoint::hit("rejoin-summarised");
    match (found.fork, unfit) {
        (Some(lsn), None) => {
            let fork = Fork { timeline: found.timeline, lsn, end: found.end };
            let plan = rewind::Plan { primary: found.primary, fork, say: None, done: None };
            Ok((Way::Rewind(plan), format!("{name} is being rewound to {lsn}")))
        }
        (_, why) => {
            tell(format!("pg_rewind can't work: {}", why.as_deref().unwrap_or("it is not known to where")));
            Ok(anew(node, &found))
        }
    }
}

fn anew(node: &Node, found: &Found) -> (Way, String) {
    let seed = Seed::automatic(&node.config, Kind::Reseed);
    (Way::Anew(seed), rewind::being_made_equal(&node.config.name, &found.primary))
}

/// A timeline that a promotion of this node made, and that its log never got. The new primary's may have the same number,
/// and a PostgreSQL that has been on the one must not be fed the other. Blocks.
fn uncaptured(node: &Node) -> anyhow::Result<Option<TimelineId>> {
    let newest = by_hand::newest_timeline(&node.config.postgres.data_directory)?;
    let known = node.store.newest_timeline();
    Ok(newest.filter(|_| known.is_some() && newest > known))
}

/// Keeps what lies past the fork, or the whole newest timeline where the new primary has nothing of it.
async fn keep(node: &Arc<Node>, found: &Found) -> anyhow::Result<PathBuf> {
    let (timeline, fork) = (found.timeline, found.fork);
    let kept = node.blocking("keep what lies past the fork", move |node| {
        let start = node.store.start_of(timeline).unwrap_or(Lsn::INVALID);
        node.store.keep_from(timeline, fork.unwrap_or(start).max(start))
    });
    let kept = kept.await??;
    if let Some(beyond) = found.beyond {
        keep_beyond(node, found, beyond).await?;
    }
    Ok(kept)
}

/// Keeps what pg_wal still has where something is missing before it.
async fn keep_beyond(node: &Arc<Node>, found: &Found, beyond: Checkpoint) -> anyhow::Result<()> {
    let timeline = found.timeline;
    let kept = node.blocking("keep what pg_wal has", move |node| {
        let size = node.store.identity().segment_size;
        let from = size.start_of(beyond.redo);
        let take = |lsn: Lsn, raw: &[u8]| Ok(node.store.keep_aside(timeline, lsn, raw)?);
        let read = surplus::read(&node.config.postgres.data_directory, size, timeline, from, take)?;
        drop(read); // whether it changes files as a whole
        anyhow::Ok(from)
    });
    let from = kept.await??;
    tracing::warn!(
        "WAL of timeline {timeline} from {} to {from} is neither in pg_wal nor here: it is missing between the capsules",
        found.end
    );
    Ok(())
}

/// Says beside the capsule what is in it.
async fn summarise(node: &Arc<Node>, found: &Found, path: PathBuf) -> anyhow::Result<PathBuf> {
    let pg_waldump = postgres::binaries(&node.config).await?.program("pg_waldump");
    let &Found { timeline, end, fork, .. } = found;
    let (name, primary) = (node.config.name.clone(), found.primary.clone());
    let summarised = node.blocking("look through the capsule", move |node| {
        let start = node.store.start_of(timeline).unwrap_or(Lsn::INVALID);
        let from = fork.unwrap_or(start).max(start);
        let kept = Kept { path, node: name, primary, timeline, from, to: end };
        capsule::summarise(&node.store, &kept, &pg_waldump)
    });
    Ok(summarised.await??)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::message::Branch;

    /// Timeline `number`, branched from the one before it by a node.
    fn timeline(number: u32, by: &str) -> TimelineIdentity {
        let parent = Some(TimelineId(number - 1)).filter(|parent| parent.0 > 0);
        TimelineIdentity {
            timeline: TimelineId(number),
            parent,
            switch_lsn: parent.map_or(Lsn::INVALID, |parent| Lsn(u64::from(parent.0) * 100)),
            branch: parent.map(|_| Branch { epoch: u64::from(number) - 1, node: by.to_owned() }),
        }
    }

    #[test]
    fn a_fork_is_where_the_very_timeline_was_left_and_not_another_of_its_number() {
        let history = [timeline(1, ""), timeline(2, "db2"), timeline(3, "db3")];
        assert_eq!(fork_of(&timeline(1, ""), &history), Some(Lsn(100)));
        assert_eq!(fork_of(&timeline(2, "db2"), &history), Some(Lsn(200)));
        assert_eq!(fork_of(&timeline(2, "db1"), &history), None, "db1's own promotion");
        assert_eq!(fork_of(&timeline(3, "db3"), &history), None, "it was not left");
        // A store that begins after it tells the number alone.
        assert_eq!(fork_of(&timeline(2, "db2"), &history[2..]), None);
        assert_eq!(fork_of(&timeline(1, ""), &history[1..]), Some(Lsn(100)), "there is but one first");
        assert_eq!(fork_of(&timeline(1, ""), &history[2..]), None);
    }

    #[test]
    fn a_checkpoint_past_the_fork_tells_of_wal_that_nobody_captured() {
        let found = |end, checkpoint: Option<u64>| Found {
            primary: "db2".to_owned(),
            timeline: TimelineId::FIRST,
            end: Lsn(end),
            fork: Some(Lsn(100)),
            beyond: checkpoint.map(|lsn| Checkpoint { lsn: Lsn(lsn), redo: Lsn(lsn) }),
            kept_from: None,
        };
        assert!(!found(100, None).has_diverged() && found(101, None).has_diverged());
        // All that was captured ends at the fork, and what follows it is no longer in pg_wal.
        assert!(found(100, Some(100)).has_diverged() && !found(90, Some(95)).has_diverged());
        let sentence = found(100, Some(300)).sentence("db1");
        assert!(sentence.contains("db1 has 200 B that db2 never had"), "{sentence}");
    }
}
