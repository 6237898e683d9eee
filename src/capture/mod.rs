//! The local primary's WAL into the store.
//!
//! A replication connection streams the WAL, without naming the slot; the slot holds what is not yet durable here and
//! is advanced over SQL. What always holds:
//!
//! * The slot exists and reserves WAL before anything is streamed.
//! * PostgreSQL is told of no more than is released, and of nothing that did not come over this connection.
//! * WAL of a server whose past is not the store's is never appended.
//! * A PostgreSQL that is being stopped is never kept waiting for longer than the store takes.

mod error;
mod overlap;
mod pipeline;
pub mod salvage;
pub mod slot;
mod status;
mod stream;
mod timeline;

use std::time::Duration;

use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use crate::clock::WallTime;
use crate::pg::replication::{Incoming, Outgoing, Replication, ReplicationError, Started};
use crate::pg::sql::Sql;
use crate::pg::{Conninfo, Levels, Lsn, TimelineId};
use crate::store::{Branch, Store};
use crate::vitals::{Contact, Sample, StandbyFeedback, Vitals};
pub use error::CaptureError;
use overlap::Absorber;
use stream::{End, Stream};
use timeline::Course;

/// The application name of the stream, for `synchronous_standby_names`.
pub const APPLICATION_NAME: &str = "walship";

/// The wait after the first failure; it doubles up to the longest.
const RETRY_DELAY_MIN: Duration = Duration::from_millis(100);
const RETRY_DELAY_MAX: Duration = Duration::from_secs(5);

/// How to capture.
#[derive(Clone, Debug)]
pub struct Options {
    /// The local PostgreSQL.
    pub conninfo: Conninfo,
    /// The physical slot.
    pub slot: String,
    /// A timeline newer than the store's that may be followed, and the promotion it stands on. Others stop capture.
    pub adopted: Option<(TimelineId, Branch)>,
}

/// What goes back to PostgreSQL.
#[derive(Clone, Debug)]
pub struct Back {
    /// Hot-standby feedback.
    pub feedback: watch::Receiver<Option<StandbyFeedback>>,
    /// How far commits are released at each level. Told as far as it was received, and never taken back.
    pub released: watch::Receiver<Levels<Lsn>>,
}

/// Captures until it is cancelled, reconnecting as often as it takes. Returns an error only for what a person must
/// mend; `vitals.capture.contact` says so too.
pub async fn run(
    options: Options,
    store: Store,
    vitals: &Vitals,
    back: Back,
    cancel: CancellationToken,
) -> Result<(), CaptureError> {
    let mut reasons = Reasons::new("capture WAL from PostgreSQL");
    let mut delay = RETRY_DELAY_MIN;
    let mut since = WallTime::now();
    let trying = |since, error| {
        vitals.capture.update(|capture| capture.contact = Contact::Trying { since, error });
    };
    let mut capture =
        Capture { options: &options, store: &store, vitals, back, cancel: &cancel, skips_overlap: false };
    trying(since, None);
    loop {
        let ended = capture.connect_and_stream().await;
        // One that the store could not take was none, or it would be asked for again at once.
        let is_of_store = ended.as_ref().is_err_and(CaptureError::is_of_store);
        if matches!(vitals.capture.get().contact, Contact::Up { .. }) && !is_of_store {
            (delay, since) = (RETRY_DELAY_MIN, WallTime::now());
            reasons.clear();
        }
        match ended {
            Ok(End::Cancelled) => return Ok(()),
            Ok(End::ServerClosed) => {
                tracing::info!("PostgreSQL is stopping; all its WAL is in the store");
                trying(since, Some("PostgreSQL was stopped".to_owned()));
            }
            Ok(End::Timeline { next, lsn }) => {
                tracing::info!(%next, %lsn, "PostgreSQL went on to another timeline");
                trying(since, None);
            }
            Err(error) if error.is_final() => {
                let (since, reason) = (WallTime::now(), error.to_string());
                vitals.capture.update(|capture| capture.contact = Contact::Stopped { since, reason });
                return Err(error);
            }
            Err(error) => {
                reasons.note(&error);
                trying(since, Some(error.to_string()));
            }
        }
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            () = tokio::time::sleep(delay) => delay = (delay * 2).min(RETRY_DELAY_MAX),
        }
    }
}

/// What every connection works with.
struct Capture<'a> {
    options: &'a Options,
    store: &'a Store,
    vitals: &'a Vitals,
    back: Back,
    cancel: &'a CancellationToken,
    /// The server no longer has the segment before the store's end, so nothing can be compared.
    skips_overlap: bool,
}

/// A stream that has begun.
struct Begun {
    incoming: Incoming,
    outgoing: Outgoing,
    timeline: TimelineId,
    /// What was asked for.
    start: Lsn,
    /// The store's end: what lies before it is compared.
    end: Lsn,
    absorber: Absorber,
}

impl Capture<'_> {
    async fn connect_and_stream(&mut self) -> Result<End, CaptureError> {
        let begun = tokio::select! {
            // Nothing is half done when this is given up: a slot is made or not, a timeline is begun or not.
            () = self.cancel.cancelled() => return Ok(End::Cancelled),
            begun = self.begin() => begun?,
        };
        let Begun { incoming, outgoing, timeline, start, end, absorber } = begun;
        let since = WallTime::now();
        self.vitals.capture.update(|capture| capture.contact = Contact::Up { since });
        tracing::info!(from = %end, "capturing WAL of {}", self.options.conninfo);
        let stream = Stream {
            store: self.store,
            vitals: self.vitals,
            feedback: self.back.feedback.clone(),
            released: self.back.released.clone(),
            cancel: self.cancel,
        };
        let ended = tokio::select! {
            ended = stream.run(incoming, outgoing, start, absorber) => ended,
            never = slot::follow(self.options, self.store, self.vitals) => match never {},
        };
        let is_removed = matches!(ended, Err(CaptureError::Replication(ReplicationError::WalRemoved { .. })));
        if is_removed && start < self.store.identity().segment_size.start_of(end) {
            // The store ends with a segment, and only what was to be compared is gone: no harm done.
            self.skips_overlap = true;
            return Err(CaptureError::NothingToCompare { end });
        }
        self.skips_overlap = false;
        if is_removed {
            let to = self.vitals.capture.get().slot_restart_lsn;
            return Err(CaptureError::WalLost { timeline, from: end, to });
        }
        ended
    }

    /// Checks the server, holds the slot, and asks for WAL.
    async fn begin(&self) -> Result<Begun, CaptureError> {
        let slot_restart_lsn = self.check_server().await?;
        self.vitals.capture.update(|capture| capture.slot_restart_lsn = slot_restart_lsn);
        let store = self.store.clone();
        // Nothing is asked for that can't be kept.
        let writer = spawn_blocking(move || store.check_room().and_then(|()| store.writer())).await??;
        let mut connection = Replication::connect(&self.options.conninfo, APPLICATION_NAME).await?;
        let server = connection.identify_system().await?;
        self.check_system(server.system_identifier)?;
        // What was written before, since the last stream, nobody saw.
        let seen = Sample { lsn: server.flushed, time: WallTime::now(), after_gap: true };
        self.vitals.samples.push(seen);
        let course = timeline::settle(&mut connection, server, slot_restart_lsn, writer, self.options);
        let Course { writer, timeline, end } = course.await?;
        let oldest = self.store.start_of(timeline).unwrap_or(end);
        let overlap_start = slot::target(end, self.store.identity().segment_size).max(oldest);
        let start = if self.skips_overlap { end } else { overlap_start };
        match connection.start(timeline, start).await? {
            Started::Streaming(incoming, outgoing) => {
                let absorber = spawn_blocking(move || Absorber::new(writer, timeline, start)).await??;
                Ok(Begun { incoming, outgoing, timeline, start, end, absorber })
            }
            Started::AtEndOfTimeline { lsn, .. } => Err(CaptureError::TimelineEnded { timeline, lsn }),
        }
    }

    fn check_system(&self, theirs: u64) -> Result<(), CaptureError> {
        let ours = self.store.identity().system_identifier;
        if ours == theirs { Ok(()) } else { Err(CaptureError::WrongSystem { ours, theirs }) }
    }

    async fn check_server(&self) -> Result<Lsn, CaptureError> {
        let sql = Sql::connect(&self.options.conninfo).await?;
        let server = sql.facts().await?;
        self.check_system(server.system_identifier)?;
        let (ours, theirs) = (self.store.identity().segment_size, server.segment_size);
        if ours != theirs {
            return Err(CaptureError::WrongSegmentSize { ours, theirs });
        }
        if server.in_recovery {
            return Err(CaptureError::IsStandby);
        }
        slot::hold(&sql, &self.options.slot).await
    }
}

/// Logs why something does not work, once per reason.
struct Reasons {
    task: &'static str,
    last: Option<String>,
}

impl Reasons {
    fn new(task: &'static str) -> Reasons {
        Reasons { task, last: None }
    }

    /// It failed. What mends itself is no more than worth knowing; for the rest a person must look.
    fn note(&mut self, error: &CaptureError) {
        let text = error.to_string();
        if self.last.as_ref() == Some(&text) {
            return;
        }
        if error.is_passing() {
            tracing::info!("cannot {}, trying again: {text}", self.task);
        } else {
            tracing::error!("cannot {}, trying again: {text}", self.task);
        }
        self.last = Some(text);
    }

    /// It works.
    fn clear(&mut self) {
        self.last = None;
    }
}
