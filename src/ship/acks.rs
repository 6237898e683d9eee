//! What comes back up: positions and hot-standby feedback.

use std::time::Instant;

use tokio::io::AsyncRead;
use tokio::sync::mpsc;

use super::Entry;
use crate::clock::WallTime;
use crate::link::message::RelayedList;
use crate::link::{LinkError, Message, PEER_DEAD_AFTER, Reader};

/// Reads acknowledgements until the downstream goes or falls silent; it says something every second, so silence
/// means that it is dead or cut off.
///
/// What it says of those behind it goes to `relayed`, whose other end decides who counts.
pub(super) async fn read<S: AsyncRead>(
    mut reader: Reader<S>,
    entry: &Entry,
    relayed: Option<mpsc::Sender<RelayedList>>,
) -> anyhow::Result<()> {
    loop {
        match reader.read_within(PEER_DEAD_AFTER).await? {
            Message::Ack(ack) => entry.update(|vitals| {
                vitals.timeline = Some(ack.timeline);
                vitals.written_lsn = ack.written_lsn;
                vitals.flushed_lsn = ack.flushed_lsn;
                vitals.replayed_lsn = ack.replayed_lsn;
                vitals.restartpoint_lsn = ack.restartpoint_lsn;
                vitals.policy_serial = ack.policy_serial;
                vitals.is_copying = ack.is_copying;
                vitals.last_heard = Some(Instant::now());
                vitals.last_heard_at = Some(WallTime::now());
            }),
            Message::Feedback(feedback) => entry.update(|vitals| vitals.feedback = Some(feedback)),
            Message::Heartbeat(_) => entry.update(|vitals| vitals.last_heard = Some(Instant::now())),
            Message::Relayed(list) => {
                // Without the other end nobody is to know.
                if let Some(relayed) = &relayed {
                    let _ = relayed.send(list).await;
                }
            }
            other => return Err(LinkError::unexpected("Ack", other).into()),
        }
    }
}
