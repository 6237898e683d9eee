//! What goes back up: how far this node and those behind it are, and what their PostgreSQLs need kept.

use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::io::AsyncWrite;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use super::Receiving;
use super::relayed::Told;
use crate::link::message::{Ack, Reject};
use crate::link::{HEARTBEAT_EVERY, LinkError, Message, Writer};
use crate::pg::Lsn;
use crate::store::Store;
use crate::vitals::{Contact, StandbyFeedback};

/// How long an upstream that is left may take to hang up. Until then it is read from, or the kernel would reset the
/// connection and the reason would be lost with it.
const LEAVE_WITHIN: Duration = Duration::from_secs(2);

/// fsyncs whenever something was appended; one call covers all that arrived while the last one ran.
pub(super) async fn keep_durable(store: Store) -> anyhow::Result<()> {
    let mut positions = store.positions();
    loop {
        // Cancellation-safe: a dropped fsync runs to its end on its thread and is repeated harmlessly.
        positions.wait_for(|p| p.appended > p.durable).await.context("the store was closed")?;
        let store = store.clone();
        tokio::task::spawn_blocking(move || store.sync()).await.context("fsync the store")??;
    }
}

/// Sends an acknowledgement whenever a position moves and at least once a second, the words of those behind this node
/// just so, and feedback when it changes.
pub(super) async fn send<S: AsyncWrite>(
    mut up: Writer<S>,
    receiving: &Receiving,
    mut stored: watch::Receiver<u64>,
) -> anyhow::Result<()> {
    let mut positions = receiving.store.positions();
    let mut feed = receiving.vitals.feed.watch();
    let mut restartpoint = receiving.restartpoint.clone();
    let mut downstreams = receiving.vitals.downstreams.watch();
    let mut told = Told::new(&receiving.node);
    let mut leave = receiving.leave.clone();
    let mut tick = interval(HEARTBEAT_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut sent_ack, mut sent_feedback) = (None, None);
    loop {
        // All branches are cancellation-safe: they only wait for a change, and keep no state of their own.
        let due = tokio::select! {
            _ = tick.tick() => true,
            changed = positions.changed() => { changed.context("the store was closed")?; false }
            changed = feed.changed() => { changed.context("the feed's vitals are gone")?; false }
            changed = downstreams.changed() => { changed.context("the downstreams' vitals are gone")?; false }
            changed = stored.changed() => { changed.context("the stream is no longer read")?; false }
            changed = restartpoint.changed() => { changed.context("the restartpoint is no longer watched")?; false }
            reject = reason_to_leave(&mut leave) => {
                up.write(Message::Reject(reject.clone())).await?;
                up.close().await?;
                tokio::time::sleep(LEAVE_WITHIN).await;
                return Err(LinkError::Refused(Box::new(reject)).into());
            }
        };
        let at = *positions.borrow_and_update();
        let fed = feed.borrow_and_update().clone();
        let Some(timeline) = at.timeline else {
            up.write(Message::Heartbeat(crate::link::message::Heartbeat::BARE)).await?;
            continue;
        };
        // Once its walreceiver is gone, nobody knows what PostgreSQL shows to its readers, or whether it runs.
        let is_fed = matches!(fed.contact, Contact::Up { .. });
        let ack = Ack {
            timeline,
            written_lsn: at.appended,
            flushed_lsn: at.durable,
            replayed_lsn: if is_fed { fed.replayed_lsn } else { Lsn::INVALID },
            restartpoint_lsn: *restartpoint.borrow_and_update(),
            is_copying: receiving.start.is_some(),
            policy_serial: *stored.borrow_and_update(),
        };
        if due || sent_ack != Some(ack) {
            up.write(Message::Ack(ack)).await?;
            sent_ack = Some(ack);
        }
        let (relayed, feedback) = {
            let all = downstreams.borrow_and_update();
            let wanted = all.values().filter_map(|behind| behind.feedback).chain(fed.feedback);
            (told.news(&all, Instant::now(), due), wanted.reduce(StandbyFeedback::least))
        };
        for list in relayed {
            up.write(Message::Relayed(list)).await?;
        }
        if feedback != sent_feedback {
            up.write(Message::Feedback(feedback.unwrap_or_default())).await?;
            sent_feedback = feedback;
        }
    }
}

/// Waits until there is one. Cancellation-safe.
async fn reason_to_leave(leave: &mut watch::Receiver<Option<Reject>>) -> Reject {
    match leave.wait_for(Option::is_some).await.map(|reason| reason.clone()) {
        Ok(Some(reject)) => reject,
        // Nobody is left who could say so.
        _ => std::future::pending().await,
    }
}
