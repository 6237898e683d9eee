//! The stream of WAL: two halves that never wait for each other, so that status messages leave while WAL arrives.

use super::error::{protocol, sort, sort_message_error};
use super::socket::{ReadHalf, WriteHalf};
use super::{Replication, Result, read};
use crate::pg::message::backend::Backend;
use crate::pg::message::copy::{FromClient, FromServer, Keepalive, WalData};
use crate::pg::message::frontend::Frontend;
use crate::pg::message::{MessageReader, MessageWriter};
use crate::pg::party::Party;
use crate::pg::{Lsn, TimelineId};

/// What START_REPLICATION led to.
pub enum Started {
    /// WAL flows.
    Streaming(Incoming, Outgoing),
    /// The timeline ended exactly at the position asked for; the connection takes the next command.
    AtEndOfTimeline {
        /// The timeline that follows.
        next: TimelineId,
        /// Where it begins.
        lsn: Lsn,
        /// For the next command.
        connection: Replication,
    },
}

/// What the server sent.
#[derive(Debug)]
pub enum Event {
    /// A stretch of WAL. Continuity is for the caller to check: nobody else does (pg-facts, rule 2).
    Wal(WalData),
    /// A sign of life, which may ask for a reply.
    Keepalive(Keepalive),
    /// The timeline ended; [`Incoming::end_of_timeline`] tells which follows.
    EndOfTimeline,
    /// The server is stopping, and has sent all it had.
    ServerClosed,
}

/// The reading half.
pub struct Incoming {
    reader: MessageReader<ReadHalf>,
    party: Party,
}

/// The writing half.
pub struct Outgoing {
    writer: MessageWriter<WriteHalf>,
    party: Party,
}

impl Incoming {
    pub(super) fn new(reader: MessageReader<ReadHalf>, party: Party) -> Incoming {
        Incoming { reader, party }
    }

    /// The next event. Cancel-safe: all state is in the reader's buffer.
    pub async fn next(&mut self) -> Result<Event> {
        match read(&mut self.reader, &self.party).await? {
            Backend::CopyData(body) => {
                match FromServer::decode(body).map_err(|error| sort_message_error(&self.party, error))? {
                    FromServer::Wal(wal) => Ok(Event::Wal(wal)),
                    FromServer::Keepalive(keepalive) => Ok(Event::Keepalive(keepalive)),
                }
            }
            Backend::CopyDone => Ok(Event::EndOfTimeline),
            // `COPY 0` without CopyDone, then the end of the connection: an orderly stop (pg-facts, A).
            Backend::CommandComplete(_) => Ok(Event::ServerClosed),
            Backend::ErrorResponse(error) => Err(sort(&self.party, error)),
            _ => Err(protocol(&self.party, "an unexpected message in the stream")),
        }
    }

    /// After [`Event::EndOfTimeline`]: ends our side too, and learns which timeline follows and from where.
    pub async fn end_of_timeline(self, outgoing: Outgoing) -> Result<(TimelineId, Lsn, Replication)> {
        let mut connection = Replication { reader: self.reader, writer: outgoing.writer, party: self.party };
        connection.send(&Frontend::CopyDone).await?;
        let rows = connection.rows_to_ready().await?;
        let (next, lsn) = connection.next_timeline(rows.first())?;
        Ok((next, lsn, connection))
    }
}

impl Outgoing {
    pub(super) fn new(writer: MessageWriter<WriteHalf>, party: Party) -> Outgoing {
        Outgoing { writer, party }
    }

    /// Queues a status or feedback message; [`Outgoing::flush`] sends it.
    pub fn queue(&mut self, message: &FromClient) {
        Frontend::CopyData(message.encode()).encode(self.writer.buffer());
    }

    /// True while something waits to be sent: a server that does not read is not told more.
    pub fn is_pending(&self) -> bool {
        self.writer.pending_bytes() > 0
    }

    /// Sends what is queued. Cancel-safe: what was sent has left the queue.
    pub async fn flush(&mut self) -> Result<()> {
        self.writer.flush().await.map_err(|error| sort_message_error(&self.party, error))
    }
}
