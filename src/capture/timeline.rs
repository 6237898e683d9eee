//! Which timeline to capture: the store's newest, and no other than the server's, unless it was adopted.

use bytes::Bytes;
use tokio::task::spawn_blocking;

use super::{CaptureError, Options};
use crate::pg::replication::{Identity, Replication, ReplicationError};
use crate::pg::{History, Lsn, TimelineId};
use crate::store::{Branch, TimelineIdentity, Writer};

/// The timeline to ask for, and the writer that is ready for it.
pub(super) struct Course {
    pub writer: Writer,
    pub timeline: TimelineId,
    /// The store's end.
    pub end: Lsn,
}

/// Decides what to stream. An empty store begins on the server's timeline, with the segment that the slot reserves. A
/// newer timeline that was adopted is begun as soon as the store has all of the one before.
pub(super) async fn settle(
    connection: &mut Replication,
    server: Identity,
    slot_restart_lsn: Lsn,
    mut writer: Writer,
    options: &Options,
) -> Result<Course, CaptureError> {
    loop {
        let theirs = server.timeline;
        let Some((ours, end)) = writer.end() else {
            writer = begin(connection, theirs, None, slot_restart_lsn, writer).await?;
            continue;
        };
        if ours == theirs {
            if server.flushed < end {
                return Err(CaptureError::PastIsShorter { flushed: server.flushed, durable: end });
            }
            return Ok(Course { writer, timeline: ours, end });
        }
        if ours > theirs {
            return Err(CaptureError::OldTimeline { ours, theirs });
        }
        let Some((_, branch)) = options.adopted.as_ref().filter(|(timeline, _)| *timeline == theirs) else {
            return Err(CaptureError::UnknownTimeline { ours, theirs });
        };
        let (_, history) = read_history(connection, theirs).await?;
        let switch = history.switch_of(ours).ok_or(CaptureError::Unrelated { ours, theirs })?;
        if end < switch.lsn {
            return Ok(Course { writer, timeline: ours, end }); // the rest of it comes first
        }
        let left_at = switch.lsn;
        let after = history.switches.iter().map(|switch| switch.timeline).find(|timeline| *timeline > ours);
        writer = blocking(writer, move |writer| writer.end_timeline(left_at)).await?;
        writer = begin(connection, after.unwrap_or(theirs), Some(branch.clone()), left_at, writer).await?;
    }
}

/// Begins a timeline in the store, its history and its ancestors' first.
async fn begin(
    connection: &mut Replication,
    timeline: TimelineId,
    branch: Option<Branch>,
    wanted: Lsn,
    mut writer: Writer,
) -> Result<Writer, CaptureError> {
    let size = writer.store().identity().segment_size;
    if timeline == TimelineId::FIRST {
        let identity = TimelineIdentity { timeline, parent: None, branch };
        let start = size.start_of(wanted);
        return blocking(writer, move |writer| writer.begin_timeline(identity, None, start)).await;
    }
    let (text, history) = read_history(connection, timeline).await?;
    for ancestor in history.switches.iter().map(|switch| switch.timeline).filter(|t| *t > TimelineId::FIRST) {
        // PostgreSQL may have lost an old one; a standby that is past it does not ask.
        match connection.timeline_history(ancestor).await {
            Ok(text) => writer = blocking(writer, move |writer| writer.add_history(ancestor, &text)).await?,
            Err(ReplicationError::WalRemoved { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let parent = history.parent().map(|switch| (switch.timeline, switch.lsn));
    let identity = TimelineIdentity { timeline, parent, branch };
    // Below the switch there is no file of this timeline.
    let start = size.start_of(wanted.max(identity.switch_lsn()));
    blocking(writer, move |writer| writer.begin_timeline(identity, Some(&text), start)).await
}

async fn read_history(
    connection: &mut Replication,
    timeline: TimelineId,
) -> Result<(Bytes, History), CaptureError> {
    let text = connection.timeline_history(timeline).await?;
    let history = History::parse(&text)
        .map_err(|error| CaptureError::BadHistory { timeline, reason: error.to_string() })?;
    Ok((text, history))
}

/// Lends the writer to a blocking thread.
async fn blocking<E>(
    mut writer: Writer,
    work: impl FnOnce(&mut Writer) -> Result<(), E> + Send + 'static,
) -> Result<Writer, CaptureError>
where
    E: Into<CaptureError> + Send + 'static,
{
    spawn_blocking(move || work(&mut writer).map(|()| writer)).await?.map_err(Into::into)
}
