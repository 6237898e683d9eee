//! The answers to a client's commands (pg-facts, B.3 and the first cases of B.5).

use anyhow::Context;
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};

use super::command::Command;
use super::progress::Beginning;
use super::session::{Done, Session};
use super::source::Source;
use super::stream::{Ending, Stream};
use crate::pg::message::backend::{Backend, Column, ServerMessage};
use crate::pg::{Lsn, TimelineId};
use crate::store::{Store, StoreError};

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Session<R, W> {
    /// Answers a command, but for the last two messages.
    pub(super) async fn execute(&mut self, command: Command) -> anyhow::Result<Done> {
        match command {
            Command::IdentifySystem => self.identify_system().await,
            Command::Show(name) => Ok(self.show(&name)),
            Command::TimelineHistory(timeline) => self.timeline_history(timeline).await,
            Command::StartReplication { start_lsn, timeline } => {
                self.start_replication(start_lsn, timeline).await
            }
            Command::CreateTemporarySlot(name) => {
                let columns = ["slot_name", "consistent_point", "snapshot_name", "output_plugin"];
                let values = vec![Some(name.into()), Some(Bytes::from_static(b"0/0")), None, None];
                self.put_row(columns.map(Column::text).to_vec(), values);
                Ok(Done::Complete("CREATE_REPLICATION_SLOT"))
            }
            Command::ReadSlot => {
                // What PostgreSQL answers for a slot that does not exist.
                let columns =
                    vec![Column::text("slot_type"), Column::text("restart_lsn"), Column::int8("restart_tli")];
                self.put_row(columns, vec![None; 3]);
                Ok(Done::Complete("READ_REPLICATION_SLOT"))
            }
        }
    }

    async fn identify_system(&mut self) -> anyhow::Result<Done> {
        let Some(timeline) = self.ask(newest_announced).await? else {
            // The walreceiver comes again, as with a server that starts up.
            return Ok(Done::Refused(ServerMessage::error("57P03", "the store holds no WAL yet")));
        };
        let durable_lsn = self.shared.store.positions().borrow().durable;
        let timeline_column =
            if self.shared.server_version.major() < 16 { Column::int4 } else { Column::int8 };
        let columns = vec![
            Column::text("systemid"),
            timeline_column("timeline"),
            Column::text("xlogpos"),
            Column::text("dbname"),
        ];
        let system = self.shared.store.identity().system_identifier;
        self.put_row(columns, vec![text(system), text(timeline), text(durable_lsn), None]);
        Ok(Done::Complete("IDENTIFY_SYSTEM"))
    }

    fn show(&mut self, name: &str) -> Done {
        let value = match name {
            "wal_segment_size" => show_size(self.shared.store.identity().segment_size.bytes()),
            "wal_block_size" => crate::pg::WAL_PAGE_BYTES.to_string(),
            "server_version" => self.shared.server_version.to_string(),
            "data_directory_mode" => "0700".to_owned(),
            _ => {
                let message = format!("unrecognized configuration parameter \"{name}\"");
                return Done::Refused(ServerMessage::error("42704", message));
            }
        };
        self.put_row(vec![Column::text(name)], vec![text(value)]);
        Done::Complete("SHOW")
    }

    async fn timeline_history(&mut self, timeline: TimelineId) -> anyhow::Result<Done> {
        let Some(content) = self.ask(move |store| store.history(timeline)).await? else {
            let message = format!("could not open file \"pg_wal/{}\"", timeline.history_file_name());
            return Ok(Done::Refused(ServerMessage::error("58P01", message)));
        };
        let columns = vec![Column::text("filename"), Column::text("content")];
        self.put_row(columns, vec![text(timeline.history_file_name()), Some(content)]);
        Ok(Done::Complete("TIMELINE_HISTORY"))
    }

    async fn start_replication(
        &mut self,
        start_lsn: Lsn,
        timeline: Option<TimelineId>,
    ) -> anyhow::Result<Done> {
        let asked = self.shared.replies.listen();
        let previous = self.shared.vitals.feed.get().timeline;
        let found = self.ask(move |store| Ok(find(store, start_lsn, timeline, previous))).await?;
        let (timeline, fork) = match found {
            Start::Stream { timeline, fork } => (timeline, fork),
            Start::Over { next, lsn } => return Ok(self.next_timeline(next, lsn)),
            Start::Refused(error) => return Ok(Done::Refused(error)),
        };
        let segment_size = self.shared.store.identity().segment_size;
        self.reporter.begins(&Beginning { timeline, start_lsn, fork, segment_size });
        tracing::info!(%timeline, %start_lsn, "streaming");
        let (store, tasks) = (self.shared.store.clone(), self.shared.tasks.clone());
        let source = Source::new(store, tasks, timeline, start_lsn);
        let ending = Stream::new(self, source, timeline).run(asked).await?;
        Ok(match ending {
            Ending::Switched { next, lsn } => self.next_timeline(next, lsn),
            Ending::Stopped => {
                self.put(Backend::CommandComplete("START_STREAMING".to_owned()));
                Done::Complete("START_REPLICATION")
            }
            Ending::Failed(error) => Done::Refused(error),
            Ending::Gone => Done::Gone,
        })
    }

    /// Where to go on. The first of two CommandCompletes is needed by libpqwalreceiver (pg-facts, B.5).
    fn next_timeline(&mut self, next: TimelineId, lsn: Lsn) -> Done {
        let columns = vec![Column::int8("next_tli"), Column::text("next_tli_startpos")];
        self.put_row(columns, vec![text(next), text(lsn)]);
        self.put(Backend::CommandComplete("START_STREAMING".to_owned()));
        Done::Complete("START_REPLICATION")
    }

    fn put_row(&mut self, columns: Vec<Column>, values: Vec<Option<Bytes>>) {
        self.put(Backend::RowDescription(columns));
        self.put(Backend::DataRow(values));
    }

    /// Asks the store on a blocking thread: even its memory is locked while it writes its state.
    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
    ) -> anyhow::Result<T> {
        let store = self.shared.store.clone();
        let answer = self.shared.tasks.spawn_blocking(move || question(&store)).await;
        answer.context("ask the store")?.context("read the store")
    }
}

/// How START_REPLICATION is to be answered.
enum Start {
    Stream { timeline: TimelineId, fork: Option<Lsn> },
    Over { next: TimelineId, lsn: Lsn },
    Refused(ServerMessage),
}

/// Cases 1 to 5 of pg-facts, B.5. `previous` is the timeline that the standby streamed last.
fn find(store: &Store, start_lsn: Lsn, asked: Option<TimelineId>, previous: Option<TimelineId>) -> Start {
    let newest = store.newest_timeline();
    let Some(timeline) = asked.or(newest) else {
        return Start::Refused(ServerMessage::error("57P03", "the store holds no WAL yet"));
    };
    let missing = |what: String| {
        Start::Refused(ServerMessage::error("XX000", what + " is not in this server's history"))
    };
    match store.switch_of(timeline) {
        None if Some(timeline) != newest => missing(format!("requested timeline {timeline}")),
        Some((_, lsn)) if start_lsn > lsn => {
            missing(format!("requested starting point {start_lsn} on timeline {timeline}"))
        }
        Some((next, lsn)) if start_lsn == lsn => Start::Over { next, lsn },
        _ => {
            let older =
                previous.filter(|&previous| previous != timeline).map(|previous| previous.min(timeline));
            Start::Stream {
                timeline,
                fork: older.and_then(|older| store.switch_of(older)).map(|(_, lsn)| lsn),
            }
        }
    }
}

/// The newest timeline, once its history can be served (pg-facts, E1).
fn newest_announced(store: &Store) -> Result<Option<TimelineId>, StoreError> {
    let Some(newest) = store.newest_timeline() else { return Ok(None) };
    let announced = newest == TimelineId::FIRST || store.history(newest)?.is_some();
    Ok(announced.then_some(newest))
}

/// A size as `SHOW` gives it: in the largest unit that divides it.
fn show_size(bytes: u64) -> String {
    if bytes.is_multiple_of(1 << 30) { format!("{}GB", bytes >> 30) } else { format!("{}MB", bytes >> 20) }
}

fn text(value: impl ToString) -> Option<Bytes> {
    Some(value.to_string().into())
}
