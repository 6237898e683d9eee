//! A replication connection to a PostgreSQL server: the few commands, and the stream of WAL.
//!
//! Our own code on the messages of [`super::message`], because tokio-postgres has no CopyBoth (pg-facts, A). Connecting
//! and commands have time limits; the stream has none, its user sees silence and decides.

mod authentication;
mod channel_binding;
mod error;
mod session;
mod socket;
mod stream;

use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;

use super::message::backend::Backend;
use super::message::frontend::{Frontend, Startup};
use super::message::{MessageReader, MessageWriter};
use super::party::Party;
use super::{Conninfo, Lsn, TimelineId};
pub use error::ReplicationError;
use error::{protocol, sort, sort_message_error};
pub use session::Session;
use socket::{ReadHalf, WriteHalf};
pub use stream::{Event, Incoming, Outgoing, Started};

/// Long enough for any command on a server that swaps: each of them only looks something up.
const COMMAND_TIME_MAX: Duration = Duration::from_secs(15);

type Result<T> = std::result::Result<T, ReplicationError>;

/// An idle replication connection.
pub struct Replication {
    reader: MessageReader<ReadHalf>,
    writer: MessageWriter<WriteHalf>,
    party: Party,
}

/// The answer to `IDENTIFY_SYSTEM`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// The cluster's identity.
    pub system_identifier: u64,
    /// The server's timeline.
    pub timeline: TimelineId,
    /// Its flush position; on a standby, the position replayed.
    pub flushed: Lsn,
}

impl Replication {
    /// Connects for physical replication under an application name, the one of `synchronous_standby_names`.
    pub async fn connect(conninfo: &Conninfo, application_name: &str) -> Result<Replication> {
        let party = Party::for_replication(conninfo);
        let limit = conninfo.connect_time_max();
        match timeout(limit, Replication::open(conninfo, application_name, party.clone())).await {
            Ok(result) => result,
            Err(_) => Err(party.unreachable(format!("no answer within {} s", limit.as_secs())).into()),
        }
    }

    async fn open(conninfo: &Conninfo, application_name: &str, party: Party) -> Result<Replication> {
        let kind = ("replication", "true");
        let mut replication = Replication::log_in(conninfo, kind, application_name, party).await?;
        loop {
            match replication.read().await? {
                Backend::ReadyForQuery { .. } => return Ok(replication),
                Backend::BackendKeyData { .. } => {}
                Backend::ErrorResponse(error) => return Err(sort(&replication.party, error)),
                _ => {
                    return Err(protocol(
                        &replication.party,
                        "an unexpected message before the first command",
                    ));
                }
            }
        }
    }

    /// Begins a session of a kind, up to where the server has found that we are who we say.
    async fn log_in(
        conninfo: &Conninfo,
        kind: (&str, &str),
        application_name: &str,
        party: Party,
    ) -> Result<Replication> {
        let socket = socket::open(conninfo).await.map_err(|error| party.unreachable(error.to_string()))?;
        let (reader, writer) = (MessageReader::new(socket.reader), MessageWriter::new(socket.writer));
        let mut replication = Replication { reader, writer, party };
        let parameters = [
            ("user", conninfo.user()),
            kind,
            ("application_name", application_name),
            ("options", conninfo.options()),
        ];
        let parameters = parameters.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        Startup::Session { minor: 0, parameters }.encode(replication.writer.buffer());
        replication.flush().await?;
        replication.authenticate(conninfo, socket.server_end_point).await?;
        Ok(replication)
    }

    /// `IDENTIFY_SYSTEM`: who the server is and how far.
    pub async fn identify_system(&mut self) -> Result<Identity> {
        let row = self.row("IDENTIFY_SYSTEM").await?;
        let text = |index| row.get(index).and_then(text_of);
        let identity = text(0).and_then(|id| id.parse().ok()).zip(text(1).and_then(|tli| tli.parse().ok()));
        match (identity, text(2).and_then(|lsn| lsn.parse().ok())) {
            (Some((system_identifier, timeline)), Some(flushed)) => {
                Ok(Identity { system_identifier, timeline: TimelineId(timeline), flushed })
            }
            _ => Err(protocol(&self.party, "IDENTIFY_SYSTEM gave no identity")),
        }
    }

    /// `SHOW`: a setting as text, with its unit.
    pub async fn show(&mut self, name: &str) -> Result<String> {
        let row = self.row(&format!("SHOW {name}")).await?;
        row.first().and_then(text_of).ok_or_else(|| protocol(&self.party, "SHOW gave no text"))
    }

    /// `TIMELINE_HISTORY`: the content of a history file, byte for byte.
    pub async fn timeline_history(&mut self, timeline: TimelineId) -> Result<Bytes> {
        let row = self.row(&format!("TIMELINE_HISTORY {timeline}")).await?;
        let content = row.into_iter().nth(1).flatten();
        content.ok_or_else(|| protocol(&self.party, "TIMELINE_HISTORY gave no content"))
    }

    /// `START_REPLICATION`, without a slot: WAL of `timeline` from `lsn` on.
    pub async fn start(mut self, timeline: TimelineId, lsn: Lsn) -> Result<Started> {
        self.send(&Frontend::Query(format!("START_REPLICATION PHYSICAL {lsn} TIMELINE {timeline}"))).await?;
        match self.read_in_time().await? {
            Backend::CopyBothResponse => {
                let outgoing = Outgoing::new(self.writer, self.party.clone());
                Ok(Started::Streaming(Incoming::new(self.reader, self.party), outgoing))
            }
            Backend::ErrorResponse(error) => Err(sort(&self.party, error)),
            // A timeline that ended right there: the row of the next one, and no stream.
            Backend::RowDescription(_) => {
                let rows = self.rows_to_ready().await?;
                let (next, lsn) = self.next_timeline(rows.first())?;
                Ok(Started::AtEndOfTimeline { next, lsn, connection: self })
            }
            _ => Err(protocol(&self.party, "an unexpected answer to START_REPLICATION")),
        }
    }

    /// Reads the row that ends a timeline.
    fn next_timeline(&self, row: Option<&Row>) -> Result<(TimelineId, Lsn)> {
        let text = |index: usize| row.and_then(|row| row.get(index)).and_then(text_of);
        let next = text(0).and_then(|text| text.parse().ok()).map(TimelineId);
        let lsn = text(1).and_then(|text| text.parse().ok());
        next.zip(lsn).ok_or_else(|| protocol(&self.party, "the end of a timeline names no next one"))
    }

    /// Runs a command that yields one row.
    async fn row(&mut self, command: &str) -> Result<Row> {
        self.send(&Frontend::Query(command.to_owned())).await?;
        let mut rows = self.rows_to_ready().await?;
        match (rows.pop(), rows.is_empty()) {
            (Some(row), true) => Ok(row),
            _ => Err(protocol(&self.party, format!("{command} did not give one row"))),
        }
    }

    /// Collects rows until the server is ready for the next command, as it is after a plain error, too.
    async fn rows_to_ready(&mut self) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        let mut refused = None;
        loop {
            match self.read_in_time().await? {
                Backend::DataRow(row) if rows.len() < ROWS_MAX => rows.push(row),
                Backend::RowDescription(_) | Backend::CommandComplete(_) => {}
                Backend::ReadyForQuery { .. } => return refused.map_or(Ok(rows), Err),
                Backend::ErrorResponse(error) if error.severity == "ERROR" => {
                    refused = Some(sort(&self.party, error));
                }
                Backend::ErrorResponse(error) => return Err(sort(&self.party, error)),
                _ => return Err(protocol(&self.party, "an unexpected message in the answer to a command")),
            }
        }
    }

    async fn read_in_time(&mut self) -> Result<Backend> {
        match timeout(COMMAND_TIME_MAX, self.read()).await {
            Ok(result) => result,
            Err(_) => Err(self
                .party
                .unreachable(format!("no answer within {} s", COMMAND_TIME_MAX.as_secs()))
                .into()),
        }
    }

    /// The next message that matters. Cancel-safe.
    async fn read(&mut self) -> Result<Backend> {
        read(&mut self.reader, &self.party).await
    }

    async fn send(&mut self, message: &Frontend) -> Result<()> {
        message.encode(self.writer.buffer());
        self.flush().await
    }

    async fn flush(&mut self) -> Result<()> {
        self.writer.flush().await.map_err(|error| sort_message_error(&self.party, error))
    }
}

/// No command of ours yields more rows.
const ROWS_MAX: usize = 16;

type Row = Vec<Option<Bytes>>;

fn text_of(value: &Option<Bytes>) -> Option<String> {
    String::from_utf8(value.as_ref()?.to_vec()).ok()
}

/// The next message but notices and settings, which may come at any time. Cancel-safe: a message is taken out of the
/// reader's buffer whole or not at all.
async fn read(reader: &mut MessageReader<ReadHalf>, party: &Party) -> Result<Backend> {
    loop {
        let raw = reader.read().await.map_err(|error| sort_message_error(party, error))?;
        let raw = raw.ok_or_else(|| party.unreachable("the server closed the connection"))?;
        match Backend::decode(raw).map_err(|error| sort_message_error(party, error))? {
            Backend::NoticeResponse(notice) => tracing::debug!("PostgreSQL says: {notice}"),
            Backend::ParameterStatus { .. } | Backend::NegotiateProtocolVersion { .. } => {}
            message => return Ok(message),
        }
    }
}
