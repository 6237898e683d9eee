//! One run of START_REPLICATION: WAL into the store, positions and feedback back.

use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::CaptureError;
use super::overlap::Absorber;
use super::pipeline::Pipeline;
use super::status::StatusClock;
use crate::clock::WallTime;
use crate::pg::message::copy::{Feedback, FromClient, Status};
use crate::pg::replication::{Event, Incoming, Outgoing};
use crate::pg::{Levels, Lsn, TimelineId};
use crate::store::Store;
use crate::vitals::{Sample, StandbyFeedback, Vitals};

/// PostgreSQL answers our question once a second; one that stays silent for this long is gone.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// A store that hangs for this long costs the connection: PostgreSQL must be able to stop.
const STORE_TIME_MAX: Duration = Duration::from_secs(30);

/// While WAL passes, samples of how far the server is are no closer than this.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(100);

/// How a run ended that did not fail.
#[derive(Debug)]
pub(super) enum End {
    /// We were told to stop.
    Cancelled,
    /// The server is stopping, and has sent all it had.
    ServerClosed,
    /// The timeline ended.
    Timeline {
        /// The one that follows.
        next: TimelineId,
        /// Where it begins.
        lsn: Lsn,
    },
}

/// What a run works with.
pub(super) struct Stream<'a> {
    pub store: &'a Store,
    pub vitals: &'a Vitals,
    /// Hot-standby feedback to pass on.
    pub feedback: watch::Receiver<Option<StandbyFeedback>>,
    /// What PostgreSQL may be told at each level.
    pub released: watch::Receiver<Levels<Lsn>>,
    pub cancel: &'a CancellationToken,
}

/// The state of a run.
struct Run<'a> {
    stream: Stream<'a>,
    pipeline: Pipeline,
    status: StatusClock,
    last_heard: Instant,
    last_sample: Option<Instant>,
    /// The feedback that PostgreSQL has; a withdrawal is told once, as zeros.
    told_feedback: Option<StandbyFeedback>,
}

impl Stream<'_> {
    /// Streams until the end. When this returns, whatever was received is durable, also after an error, unless it is
    /// the store's.
    pub async fn run(
        self,
        mut incoming: Incoming,
        mut outgoing: Outgoing,
        start: Lsn,
        absorber: Absorber,
    ) -> Result<End, CaptureError> {
        let now = Instant::now();
        let pipeline = Pipeline::new(self.store.clone(), absorber, start);
        let status = StatusClock::new(now);
        let mut run =
            Run { stream: self, pipeline, status, last_heard: now, last_sample: None, told_feedback: None };
        run.queue_feedback(&mut outgoing);
        let ended = run.pump(&mut incoming, &mut outgoing).await;
        let drained = match &ended {
            Err(error) if error.is_of_store() => Ok(()),
            _ => run.pipeline.drain(STORE_TIME_MAX).await,
        };
        let ended = ended?;
        drained?;
        if !matches!(ended, End::Timeline { .. }) {
            run.queue_status(&mut outgoing, Instant::now());
            // Of no use to a server that is gone, and then nobody waits for it.
            let _ = tokio::time::timeout(Duration::from_secs(1), outgoing.flush()).await;
            return Ok(ended);
        }
        let (next, lsn, _) = incoming.end_of_timeline(outgoing).await?;
        Ok(End::Timeline { next, lsn })
    }
}

impl Run<'_> {
    async fn pump(&mut self, incoming: &mut Incoming, outgoing: &mut Outgoing) -> Result<End, CaptureError> {
        loop {
            self.pipeline.start();
            let now = Instant::now();
            self.check_patience(now)?;
            // One status at a time: a server that does not read is not told more.
            if !outgoing.is_pending() && self.status_due_at(now) <= now {
                self.queue_status(outgoing, now);
            }
            let wake_at = self.wake_at(now, outgoing.is_pending());
            tokio::select! {
                () = self.stream.cancel.cancelled() => return Ok(End::Cancelled),
                // Cancel-safe: a message is taken out of the read buffer whole or not at all.
                event = incoming.next(), if self.pipeline.has_room() => {
                    if let Some(end) = self.take(event?)? {
                        return Ok(end);
                    }
                }
                // Cancel-safe: what was sent has left the queue.
                sent = outgoing.flush(), if outgoing.is_pending() => sent?,
                // Cancel-safe, as it says.
                step = self.pipeline.progress() => step?,
                // Cancel-safe: a change not seen stays unseen. A sender that is gone changes nothing any more.
                Ok(()) = self.stream.feedback.changed() => self.queue_feedback(outgoing),
                // The same; what there is now is looked at above.
                Ok(()) = self.stream.released.changed() => {}
                () = tokio::time::sleep_until(wake_at.into()) => {}
            }
        }
    }

    fn take(&mut self, event: Event) -> Result<Option<End>, CaptureError> {
        self.last_heard = Instant::now();
        match event {
            Event::Wal(wal) => {
                let (server_lsn, bytes) = (wal.server_lsn.max(wal.end_lsn()), wal.data.len());
                self.pipeline.push(wal.start_lsn, wal.data)?;
                self.note_server(server_lsn, bytes);
                Ok(None)
            }
            Event::Keepalive(keepalive) => {
                if keepalive.reply_requested {
                    self.status.asked();
                }
                self.note_server(keepalive.server_lsn, 0);
                Ok(None)
            }
            Event::ServerClosed => Ok(Some(End::ServerClosed)),
            // Which one follows is asked for when everything is stored.
            Event::EndOfTimeline => {
                Ok(Some(End::Timeline { next: TimelineId::FIRST, lsn: self.pipeline.end() }))
            }
        }
    }

    /// Writes down how far the server is, and when.
    fn note_server(&mut self, server_lsn: Lsn, received_bytes: usize) {
        let now = self.last_heard;
        self.stream.vitals.capture.update(|capture| {
            capture.server_flush_lsn = capture.server_flush_lsn.max(server_lsn);
            capture.last_heard = Some(now);
            capture.raw_bytes += received_bytes as u64;
        });
        let is_idle = received_bytes == 0;
        if is_idle || self.last_sample.is_none_or(|last| now.duration_since(last) >= SAMPLE_INTERVAL) {
            self.last_sample = Some(now);
            let sample = Sample { lsn: server_lsn, time: WallTime::now(), after_gap: false };
            self.stream.vitals.samples.push(sample);
        }
    }

    fn positions(&self) -> Levels<Lsn> {
        let shutdown = self.pipeline.ends_in_shutdown().then(|| self.pipeline.durable());
        self.status.positions(*self.stream.released.borrow(), self.pipeline.end(), shutdown)
    }

    fn status_due_at(&self, now: Instant) -> Instant {
        self.status.due_at(self.positions(), now)
    }

    fn queue_status(&mut self, outgoing: &mut Outgoing, now: Instant) {
        let positions = self.positions();
        let reply_requested = self.status.send(positions, now);
        outgoing.queue(&FromClient::Status(Status {
            written_lsn: positions.write,
            flushed_lsn: positions.flush,
            replayed_lsn: positions.apply,
            sent_micros: WallTime::now().postgres_micros(),
            reply_requested,
        }));
    }

    fn queue_feedback(&mut self, outgoing: &mut Outgoing) {
        let feedback = *self.stream.feedback.borrow_and_update();
        if feedback == self.told_feedback {
            return;
        }
        self.told_feedback = feedback;
        let StandbyFeedback { xmin, xmin_epoch, catalog_xmin, catalog_xmin_epoch } =
            feedback.unwrap_or_default();
        let sent_micros = WallTime::now().postgres_micros();
        let message = Feedback { sent_micros, xmin, xmin_epoch, catalog_xmin, catalog_xmin_epoch };
        outgoing.queue(&FromClient::Feedback(message));
    }

    /// The next time that something is due by the clock.
    fn wake_at(&self, now: Instant, is_sending: bool) -> Instant {
        let silence = self.last_heard + SILENCE_MAX;
        let store = self.pipeline.busy_since().map(|since| since + STORE_TIME_MAX);
        let status = (!is_sending).then(|| self.status_due_at(now));
        store.into_iter().chain(status).fold(silence.max(now + Duration::from_secs(1)), Instant::min)
    }

    fn check_patience(&self, now: Instant) -> Result<(), CaptureError> {
        if self.pipeline.busy_since().is_some_and(|since| now.duration_since(since) >= STORE_TIME_MAX) {
            return Err(CaptureError::StoreHangs(STORE_TIME_MAX));
        }
        // While reading pauses, nothing can be heard.
        if self.pipeline.has_room() && now.duration_since(self.last_heard) >= SILENCE_MAX {
            return Err(CaptureError::Silent(SILENCE_MAX));
        }
        Ok(())
    }
}
