//! One START_REPLICATION: WAL out, positions in, both at once (pg-facts, B.4 and B.5).
//!
//! One task does both, over queues that remember where they stand: reading a status never waits for WAL being
//! written, or two full socket buffers would wait for each other.

use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Interval, MissedTickBehavior};

use super::reporter::Reporter;
use super::session::{Session, Wires};
use super::source::{Piece, Source};
use crate::clock::WallTime;
use crate::pg::message::backend::{Backend, ServerMessage};
use crate::pg::message::copy::{FromClient, Keepalive, Status, WalData};
use crate::pg::message::frontend::Frontend;
use crate::pg::{Lsn, SegmentSize, TimelineId};
use crate::store::StoreError;

/// How often the client hears from us when there is no WAL: far below any `wal_receiver_timeout`.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(2);

/// WAL in one message: what PostgreSQL itself sends at most. Cut at multiples of it, which are page boundaries.
const MESSAGE_BYTES: u64 = 128 << 10;

/// No more is read from the store while this much waits to be written; nor are keepalives queued.
const QUEUE_BYTES: usize = 1 << 20;

/// How a stream ended; the session goes on.
pub(super) enum Ending {
    /// The timeline is over, and both sides said so.
    Switched {
        /// The timeline that follows.
        next: TimelineId,
        /// Where it branched off.
        lsn: Lsn,
    },
    /// The client had enough.
    Stopped,
    /// There is no more to be had.
    Failed(ServerMessage),
    /// The client is gone.
    Gone,
}

/// What the stream is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Sending,
    /// The client replayed what the next timeline does not have: it must not be led there.
    Held,
    /// Our CopyDone is out, the client's is not in.
    Leaving {
        next: TimelineId,
        lsn: Lsn,
    },
}

/// A stream under way.
pub(super) struct Stream<'a, R, W> {
    wires: &'a mut Wires<R, W>,
    reporter: &'a Reporter,
    source: Source,
    timeline: TimelineId,
    segment_size: SegmentSize,
    phase: Phase,
    replayed_lsn: Lsn,
}

impl<'a, R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Stream<'a, R, W> {
    /// A stream over a session, from where `source` stands.
    pub(super) fn new(
        session: &'a mut Session<R, W>,
        source: Source,
        timeline: TimelineId,
    ) -> Stream<'a, R, W> {
        let segment_size = session.shared.store.identity().segment_size;
        let Session { wires, reporter, .. } = session;
        let (phase, replayed_lsn) = (Phase::Sending, Lsn::INVALID);
        Stream { wires, reporter, source, timeline, segment_size, phase, replayed_lsn }
    }

    /// Streams until the timeline, the WAL or the client comes to an end.
    pub(super) async fn run(mut self, mut asked: super::ReplyAsked) -> anyhow::Result<Ending> {
        Backend::CopyBothResponse.encode(self.wires.writer.buffer());
        let mut tick = ticker();
        loop {
            let pending_bytes = self.wires.writer.pending_bytes();
            let wants_wal = self.phase == Phase::Sending && pending_bytes < QUEUE_BYTES;
            // Every branch is cancellation-safe: reader, writer and source keep what they have begun in themselves,
            // and the others wait for an event without taking anything.
            let ending = tokio::select! {
                message = self.wires.reader.read() => match message? {
                    Some(message) => self.take(Frontend::decode(message)?)?,
                    None => Some(Ending::Gone),
                },
                written = self.wires.writer.flush(), if pending_bytes > 0 => {
                    written?;
                    None
                }
                piece = self.source.next(), if wants_wal => self.send(piece?),
                _ = tick.tick() => {
                    self.keepalive(self.replayed_lsn < self.source.lsn());
                    None
                }
                () = asked.next() => {
                    self.keepalive(true);
                    None
                }
            };
            if let Some(ending) = ending {
                return Ok(ending);
            }
        }
    }

    /// Queues what the source gave.
    fn send(&mut self, piece: Piece) -> Option<Ending> {
        match piece {
            Piece::Wal { start_lsn, data } => {
                self.send_wal(start_lsn, data);
                self.reporter.sent(self.source.lsn());
                None
            }
            Piece::Switched { lsn, .. } if self.replayed_lsn > lsn => {
                self.hold(lsn);
                None
            }
            Piece::Switched { next, lsn } => {
                tracing::info!(%next, %lsn, "timeline {} is streamed to its end", self.timeline);
                Backend::CopyDone.encode(self.wires.writer.buffer());
                self.phase = Phase::Leaving { next, lsn };
                None
            }
            Piece::Failed(error) => Some(Ending::Failed(self.failure(&error))),
        }
    }

    /// Queues WAL in messages of PostgreSQL's own size; every cut in between lies on a page boundary.
    fn send_wal(&mut self, mut start_lsn: Lsn, mut data: Bytes) {
        let (server_lsn, sent_micros) = (self.source.store_lsn(), WallTime::now().postgres_micros());
        while !data.is_empty() {
            let room = start_lsn.next_multiple(MESSAGE_BYTES) - start_lsn;
            let piece = data.split_to(data.len().min(room as usize));
            let message = WalData { start_lsn, server_lsn, sent_micros, data: piece };
            start_lsn = message.end_lsn();
            self.wires.writer.copy_data(&message.header(), message.data);
        }
    }

    fn keepalive(&mut self, reply_requested: bool) {
        // Behind a full queue the client is busy with WAL; a queue that a client does not read must not grow.
        if matches!(self.phase, Phase::Leaving { .. }) || self.wires.writer.pending_bytes() >= QUEUE_BYTES {
            return;
        }
        let sent_micros = WallTime::now().postgres_micros();
        let keepalive = Keepalive { server_lsn: self.source.lsn(), sent_micros, reply_requested };
        self.wires.writer.copy_data(&keepalive.encode(), Bytes::new());
    }

    /// Takes a message of the client in.
    fn take(&mut self, message: Frontend) -> anyhow::Result<Option<Ending>> {
        match message {
            Frontend::CopyData(body) => {
                match FromClient::decode(body)? {
                    FromClient::Status(status) => self.take_status(&status),
                    FromClient::Feedback(feedback) => self.reporter.feedback(&feedback),
                }
                Ok(None)
            }
            Frontend::CopyDone => Ok(Some(match self.phase {
                Phase::Leaving { next, lsn } => Ending::Switched { next, lsn },
                Phase::Sending | Phase::Held => {
                    Backend::CopyDone.encode(self.wires.writer.buffer());
                    Ending::Stopped
                }
            })),
            Frontend::CopyFail(reason) => {
                let message = format!("the client gave the stream up: {reason}");
                Ok(Some(Ending::Failed(ServerMessage::error("57014", message))))
            }
            Frontend::Terminate => Ok(Some(Ending::Gone)),
            Frontend::Query(_) | Frontend::Password(_) => {
                anyhow::bail!("a command came while WAL is streamed")
            }
        }
    }

    fn take_status(&mut self, status: &Status) {
        self.reporter.status(status);
        self.replayed_lsn = self.replayed_lsn.max(status.replayed_lsn);
        if status.reply_requested {
            self.keepalive(false);
        }
    }

    fn hold(&mut self, fork_lsn: Lsn) {
        let reason = format!(
            "the standby has replayed timeline {} to {}, past its end at {fork_lsn}: it has diverged, and must be \
             rewound or seeded anew before it can follow",
            self.timeline, self.replayed_lsn
        );
        tracing::error!("{reason}");
        self.reporter.stopped(reason);
        self.phase = Phase::Held;
    }

    /// What the client is told when the store can't go on; a person is told when it is more than WAL that is gone.
    fn failure(&self, error: &StoreError) -> ServerMessage {
        match error {
            StoreError::Removed { .. } | StoreError::UnknownTimeline { .. } => {
                let segment = self.segment_size.segment_of(self.source.lsn());
                let name = self.segment_size.file_name(self.timeline, segment);
                tracing::warn!(%error, "the client wants WAL that is gone");
                let message = format!("requested WAL segment {name} has already been removed");
                ServerMessage { detail: Some(error.to_string()), ..ServerMessage::error("58P01", message) }
            }
            error => {
                tracing::error!(%error, "the store can't be read");
                ServerMessage::error("XX001", format!("walship's store can't be read: {error}"))
            }
        }
    }
}

fn ticker() -> Interval {
    let mut tick = tokio::time::interval(KEEPALIVE_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tick
}
