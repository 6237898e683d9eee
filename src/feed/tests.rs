//! A scripted client against a session on a real store. How PostgreSQL itself gets on with it: `tests/it/feed.rs`.

use tempfile::TempDir;
use tokio::io::{DuplexStream, ReadHalf, WriteHalf};
use tokio::task::JoinHandle;

use super::*;
use crate::pg::message::backend::{Authentication, Backend};
use crate::pg::message::copy::{Feedback, FromClient, FromServer, Keepalive, Status, WalData};
use crate::pg::message::frontend::{Frontend, Startup};
use crate::pg::message::{MessageReader, MessageWriter};
use crate::pg::{Lsn, SegmentSize, TimelineId};
use crate::store::{NewStore, TimelineIdentity, Writer};
use crate::vitals::Replay;

const MIB: u64 = 1 << 20;
/// Where the store of these tests begins.
const START: Lsn = Lsn(2 * MIB);
const TIMELINE_2: &[u8] = b"1\t0/380000\tno recovery target specified\n";
/// As [`TIMELINE_2`] says.
const FORK: Lsn = Lsn(0x380000);

struct Bench {
    folder: TempDir,
    shared: Shared,
    writer: Writer,
}

impl Bench {
    fn new() -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let segment_size = SegmentSize::new(MIB).unwrap();
        let store = Store::create(folder.path(), NewStore { system_identifier: 77, segment_size }).unwrap();
        let mut writer = store.writer().unwrap();
        writer.begin_timeline(identity(1, None), None, START).unwrap();
        let shared = Shared {
            store,
            vitals: Arc::default(),
            replies: ReplyRequests::default(),
            server_version: ServerVersion::new("15.18 (Debian)"),
            current: Arc::default(),
            tasks: TaskTracker::new(),
        };
        Bench { folder, shared, writer }
    }

    /// Appends WAL up to `end`; the bytes tell their position.
    fn append(&mut self, end: Lsn) {
        let (_, start) = self.writer.end().unwrap();
        self.writer.append(start, &wal(start, end)).unwrap();
    }

    fn fill(&mut self, end: Lsn) {
        self.append(end);
        self.writer.sync().unwrap();
    }

    fn begin_timeline_2(&mut self) {
        self.writer.end_timeline(FORK).unwrap();
        let parent = Some((TimelineId(1), FORK));
        self.writer.begin_timeline(identity(2, parent), Some(TIMELINE_2), Lsn(3 * MIB)).unwrap();
    }

    async fn connect(&self, number: u64) -> Client {
        let mut client = self.connect_raw(number);
        client.start(&[("replication", "true"), ("application_name", STANDBY_NAME)]).await;
        client
    }

    fn connect_raw(&self, number: u64) -> Client {
        let (near, far) = tokio::io::duplex(64 << 10);
        let (reader, writer) = tokio::io::split(far);
        let session = Session::new(reader, writer, self.shared.clone(), number);
        let session = tokio::spawn(session.serve(Ok(())));
        let (reader, writer) = tokio::io::split(near);
        Client { reader: MessageReader::new(reader), writer: MessageWriter::new(writer), session }
    }

    fn feed(&self) -> crate::vitals::FeedVitals {
        self.shared.vitals.feed.get()
    }
}

struct Client {
    reader: MessageReader<ReadHalf<DuplexStream>>,
    writer: MessageWriter<WriteHalf<DuplexStream>>,
    session: JoinHandle<anyhow::Result<()>>,
}

impl Client {
    async fn start(&mut self, parameters: &[(&str, &str)]) {
        let parameters = parameters.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect();
        self.start_with(0, parameters).await;
        assert_eq!(self.next().await, Backend::Authentication(Authentication::Ok));
        self.until_ready().await;
    }

    async fn start_with(&mut self, minor: u16, parameters: Vec<(String, String)>) {
        Startup::Session { minor, parameters }.encode(self.writer.buffer());
        self.writer.flush().await.unwrap();
    }

    async fn send(&mut self, message: Frontend) {
        message.encode(self.writer.buffer());
        self.writer.flush().await.unwrap();
    }

    async fn status(&mut self, [written, flushed, replayed]: [Lsn; 3], reply_requested: bool) {
        let (written_lsn, flushed_lsn, replayed_lsn) = (written, flushed, replayed);
        let status = Status { written_lsn, flushed_lsn, replayed_lsn, sent_micros: 0, reply_requested };
        self.send(Frontend::CopyData(FromClient::Status(status).encode())).await;
    }

    async fn next(&mut self) -> Backend {
        Backend::decode(self.reader.read().await.unwrap().expect("the server went away")).unwrap()
    }

    async fn until_ready(&mut self) -> Vec<Backend> {
        let mut messages = Vec::new();
        loop {
            match self.next().await {
                Backend::ReadyForQuery { status: b'I' } => return messages,
                message => messages.push(message),
            }
        }
    }

    async fn ask(&mut self, command: &str) -> Vec<Backend> {
        self.send(Frontend::Query(command.to_owned())).await;
        self.until_ready().await
    }

    /// The values of the only row of a command's answer.
    async fn row(&mut self, command: &str) -> Vec<Option<String>> {
        let rows = self.ask(command).await.into_iter().filter_map(|message| match message {
            Backend::DataRow(values) => Some(values),
            _ => None,
        });
        let rows: Vec<_> = rows.collect();
        assert_eq!(rows.len(), 1, "{command}");
        rows[0].iter().map(|v| v.as_ref().map(|v| String::from_utf8(v.to_vec()).unwrap())).collect()
    }

    async fn begin(&mut self, command: &str) {
        self.send(Frontend::Query(command.to_owned())).await;
        assert_eq!(self.next().await, Backend::CopyBothResponse);
    }

    async fn wal(&mut self) -> WalData {
        loop {
            match self.copy_data().await {
                FromServer::Wal(wal) => return wal,
                FromServer::Keepalive(_) => {}
            }
        }
    }

    async fn keepalive(&mut self) -> Keepalive {
        match self.copy_data().await {
            FromServer::Keepalive(keepalive) => keepalive,
            FromServer::Wal(wal) => panic!("WAL at {}", wal.start_lsn),
        }
    }

    async fn copy_data(&mut self) -> FromServer {
        match self.next().await {
            Backend::CopyData(body) => FromServer::decode(body).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    /// Reads WAL from `start` to `end`, checking every byte and every cut.
    async fn stream(&mut self, start: Lsn, end: Lsn) {
        let mut at = start;
        while at < end {
            let piece = self.wal().await;
            assert_eq!(piece.start_lsn, at);
            at = piece.end_lsn();
            assert!(at == end || at.is_page_boundary(), "cut at {at}");
            assert_eq!(piece.data, wal(piece.start_lsn, at));
        }
        assert_eq!(at, end);
    }

    async fn until_copy_done(&mut self) {
        loop {
            match self.next().await {
                Backend::CopyDone => return,
                Backend::CopyData(body) => {
                    assert!(matches!(FromServer::decode(body), Ok(FromServer::Keepalive(_))))
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

fn identity(number: u32, parent: Option<(TimelineId, Lsn)>) -> TimelineIdentity {
    TimelineIdentity { timeline: TimelineId(number), parent, branch: None }
}

fn wal(start: Lsn, end: Lsn) -> Vec<u8> {
    (start.0..end.0).map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8).collect()
}

fn error_code(messages: &[Backend]) -> &str {
    match messages {
        [Backend::ErrorResponse(error)] => &error.code,
        other => panic!("{other:?}"),
    }
}

fn assert_next_timeline(messages: &[Backend]) {
    let complete = |tag: &str| Backend::CommandComplete(tag.to_owned());
    let row = Backend::DataRow(vec![Some("2".into()), Some("0/380000".into())]);
    let [Backend::RowDescription(columns), rest @ ..] = messages else { panic!("{messages:?}") };
    assert_eq!(columns.len(), 2);
    assert_eq!(rest, [row, complete("START_STREAMING"), complete("START_REPLICATION")]);
}

#[tokio::test]
async fn a_session_starts_as_libpq_wants_it() {
    let mut bench = Bench::new();
    bench.fill(START + 100);
    let mut client = bench.connect_raw(1);
    for request in [Startup::Ssl, Startup::Gss] {
        request.encode(client.writer.buffer());
        client.writer.flush().await.unwrap();
        assert_eq!(client.reader.read_byte().await.unwrap(), Some(b'N'));
    }
    let parameters = [("replication", "true"), ("_pq_.new", "1")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    client.start_with(2, parameters.to_vec()).await;
    let unknown_options = vec!["_pq_.new".to_owned()];
    assert_eq!(client.next().await, Backend::NegotiateProtocolVersion { newest: 0x3_0000, unknown_options });
    let version = Backend::ParameterStatus { name: "server_version".into(), value: "15.18 (Debian)".into() };
    assert!(client.until_ready().await.contains(&version));
    let system = client.row("IDENTIFY_SYSTEM").await;
    assert_eq!(system, [Some("77".into()), Some("1".into()), Some("0/200064".into()), None]);
    assert_eq!(client.row("SHOW wal_segment_size").await, [Some("1MB".into())]);
    assert_eq!(error_code(&client.ask("SHOW work_mem").await), "42704");
    assert_eq!(error_code(&client.ask("TIMELINE_HISTORY 2").await), "58P01");
    assert_eq!(error_code(&client.ask("START_REPLICATION 0/200000 TIMELINE 2").await), "XX000");
    let slot = "CREATE_REPLICATION_SLOT \"pg_walreceiver_1\" TEMPORARY PHYSICAL (RESERVE_WAL)";
    assert_eq!(client.row(slot).await, [Some("pg_walreceiver_1".into()), Some("0/0".into()), None, None]);
    client.send(Frontend::CopyDone).await; // left over from a stream that an error ended
    client.send(Frontend::Terminate).await;
    client.session.await.unwrap().unwrap();
}

#[tokio::test]
async fn whoever_speaks_something_else_is_told_so() {
    let bench = Bench::new();
    let mut client = bench.connect_raw(1);
    client.start_with(0, vec![("user".into(), "u".into())]).await;
    assert!(
        matches!(client.next().await, Backend::ErrorResponse(e) if e.severity == "FATAL" && e.hint.is_some())
    );
    let mut client = bench.connect_raw(2);
    client.writer.buffer().extend_from_slice(b"GET / HTTP/1.1\r\n\r\n");
    client.writer.flush().await.unwrap();
    assert!(matches!(client.next().await, Backend::ErrorResponse(e) if e.code == "08P01"));
    assert!(client.session.await.unwrap().is_err());
    let mut client = bench.connect(3).await;
    client.writer.buffer().extend_from_slice(b"P\0\0\0\x08\0\0\0\0");
    client.writer.flush().await.unwrap();
    assert!(matches!(client.next().await, Backend::ErrorResponse(e) if e.code == "08P01"));
}

#[tokio::test]
async fn only_durable_wal_is_sent_and_what_may_still_come_is_waited_for() {
    let mut bench = Bench::new();
    bench.fill(START + MIB);
    let mut client = bench.connect(1).await;
    client.begin("START_REPLICATION SLOT \"x\" 0/300000 TIMELINE 1").await;
    let keepalive = client.keepalive().await;
    assert!(keepalive.reply_requested, "a new stream asks where the client is");
    bench.append(START + MIB + 1000);
    client.status([Lsn(0); 3], true).await;
    assert_eq!(client.keepalive().await.server_lsn, START + MIB, "appended is not durable");
    bench.writer.sync().unwrap();
    client.stream(START + MIB, START + MIB + 1000).await;
    bench.fill(START + 3 * MIB + 5001);
    client.stream(START + MIB + 1000, START + 3 * MIB + 5001).await;
    assert_eq!(bench.feed().sent_lsn, START + 3 * MIB + 5001);

    // A standby that is ahead of us.
    let mut ahead = bench.connect(2).await;
    ahead.begin("START_REPLICATION 0/700000 TIMELINE 1").await;
    assert_eq!(ahead.keepalive().await.server_lsn, Lsn(7 * MIB));
    bench.fill(Lsn(7 * MIB + 8192));
    ahead.stream(Lsn(7 * MIB), Lsn(7 * MIB + 8192)).await;
    ahead.send(Frontend::CopyDone).await;
    ahead.until_copy_done().await;
    let complete = |tag: &str| Backend::CommandComplete(tag.to_owned());
    assert_eq!(ahead.until_ready().await, [complete("START_STREAMING"), complete("START_REPLICATION")]);
}

#[tokio::test]
async fn removed_wal_is_an_error_that_the_session_survives() {
    let mut bench = Bench::new();
    bench.fill(START + 100);
    let mut client = bench.connect(1).await;
    client.begin("START_REPLICATION 0/100000 TIMELINE 1").await;
    let mut answer = client.until_ready().await;
    answer.retain(|message| !matches!(message, Backend::CopyData(_)));
    assert_eq!(error_code(&answer), "58P01");
    let reason = bench.feed().contact;
    assert!(
        matches!(&reason, Contact::Trying { error: Some(e), .. } if e.contains("000000010000000000000001"))
    );
    client.begin("START_REPLICATION 0/200000 TIMELINE 1").await;
    client.stream(START, START + 100).await;
}

#[tokio::test]
async fn a_timeline_ends_within_the_session() {
    let mut bench = Bench::new();
    bench.fill(FORK);
    let mut client = bench.connect(1).await;
    client.begin("START_REPLICATION 0/200000 TIMELINE 1").await;
    client.stream(START, FORK).await;
    client.status([FORK, FORK, FORK], false).await;
    bench.begin_timeline_2();
    client.until_copy_done().await;
    client.status([FORK, FORK, FORK], true).await; // still in flight when the timeline ended
    client.send(Frontend::CopyDone).await;
    assert_next_timeline(&client.until_ready().await);

    let history = [Some("00000002.history".to_owned()), Some(String::from_utf8(TIMELINE_2.into()).unwrap())];
    assert_eq!(client.row("TIMELINE_HISTORY 2").await, history);
    assert_eq!(client.row("IDENTIFY_SYSTEM").await[1], Some("2".into()));
    bench.fill(FORK + MIB);
    client.begin("START_REPLICATION 0/300000 TIMELINE 2").await;
    client.stream(Lsn(3 * MIB), FORK + MIB).await;
    let feed = bench.feed();
    assert_eq!((feed.timeline, feed.flushed_lsn), (Some(TimelineId(2)), FORK));

    // Exactly at the fork there is nothing to stream; beyond it, nothing that this server knows.
    let mut client = bench.connect(2).await;
    assert_next_timeline(&client.ask("START_REPLICATION 0/380000 TIMELINE 1").await);
    assert_eq!(error_code(&client.ask("START_REPLICATION 0/400000 TIMELINE 1").await), "XX000");
    // Below it, the old timeline is streamed to its end.
    client.begin("START_REPLICATION 0/300000 TIMELINE 1").await;
    client.stream(Lsn(3 * MIB), FORK).await;
    client.until_copy_done().await;
    client.send(Frontend::CopyDone).await;
    assert_next_timeline(&client.until_ready().await);
}

#[tokio::test]
async fn a_client_that_waits_beyond_the_end_is_led_to_the_next_timeline() {
    let mut bench = Bench::new();
    bench.fill(FORK);
    let mut client = bench.connect(1).await;
    client.begin("START_REPLICATION 0/200000 TIMELINE 1").await;
    client.stream(START, FORK).await;
    // Part of a record that the new timeline does not have; it was not replayed.
    bench.fill(FORK + 8192);
    client.stream(FORK, FORK + 8192).await;
    client.status([FORK + 8192, FORK + 8192, FORK], false).await;
    bench.begin_timeline_2();
    client.until_copy_done().await;
    client.send(Frontend::CopyDone).await;
    assert_next_timeline(&client.until_ready().await);
}

#[tokio::test]
async fn a_client_that_replayed_past_the_fork_is_held() {
    let mut bench = Bench::new();
    bench.fill(FORK + 8192);
    let mut client = bench.connect(1).await;
    client.begin("START_REPLICATION 0/200000 TIMELINE 1").await;
    client.stream(START, FORK + 8192).await;
    client.status([FORK + 8192; 3], true).await;
    while client.keepalive().await.reply_requested {}
    bench.begin_timeline_2();
    let mut contact = bench.shared.vitals.feed.watch();
    contact.wait_for(|feed| matches!(feed.contact, Contact::Stopped { .. })).await.unwrap();
    client.status([FORK + 8192; 3], true).await;
    client.keepalive().await;
    assert_eq!(bench.shared.vitals.replay.get(), None, "what it replayed is another history");
}

#[tokio::test]
async fn the_vitals_hear_the_standby_and_nobody_else() {
    let mut bench = Bench::new();
    bench.fill(START + 9000);
    let mut client = bench.connect(1).await;
    client.begin("START_REPLICATION 0/200000 TIMELINE 1").await;
    client.stream(START, START + 9000).await;
    client.status([START + 9000, START + 8192, START + 100], false).await;
    let feedback =
        Feedback { sent_micros: 0, xmin: 7, xmin_epoch: 1, catalog_xmin: 0, catalog_xmin_epoch: 0 };
    client.send(Frontend::CopyData(FromClient::Feedback(feedback).encode())).await;
    let mut vitals = bench.shared.vitals.feed.watch();
    vitals.wait_for(|feed| feed.feedback.is_some_and(|feedback| feedback.xmin == 7)).await.unwrap();
    assert!(matches!(bench.feed().contact, Contact::Up { .. }));
    let replay = Replay { timeline: TimelineId(1), flushed_lsn: START + 8192, replayed_lsn: START + 100 };
    assert_eq!(bench.shared.vitals.replay.get(), Some(replay));

    // Somebody's pg_receivewal is served, and changes nothing.
    let mut other = bench.connect_raw(2);
    other.start(&[("replication", "true"), ("application_name", "pg_receivewal")]).await;
    other.begin("START_REPLICATION 0/200000 TIMELINE 1").await;
    other.stream(START, START + 9000).await;
    other.status([START + 9000, START + 9000, Lsn(0)], true).await;
    while other.keepalive().await.reply_requested {}
    let feed = bench.feed();
    let positions = (feed.written_lsn, feed.flushed_lsn, feed.replayed_lsn, feed.sent_lsn);
    assert_eq!(positions, (START + 9000, START + 8192, START + 100, START + 9000));
    assert_eq!(bench.shared.vitals.replay.get(), Some(replay));

    // Once it has replayed all it is not asked for positions, unless the daemon wants them at once.
    client.status([START + 9000, START + 9000, START + 9000], true).await;
    while client.keepalive().await.reply_requested {}
    bench.shared.replies.ask();
    assert!(client.keepalive().await.reply_requested);
    drop(client);
    vitals.wait_for(|feed| matches!(feed.contact, Contact::Trying { .. })).await.unwrap();
    assert_eq!(bench.feed().flushed_lsn, START + 9000, "a maximum outlives the connection");
    let mut replay = bench.shared.vitals.replay.watch();
    replay.wait_for(Option::is_none).await.unwrap();
}

#[tokio::test]
async fn run_leaves_no_socket_and_no_use_of_the_store_behind() {
    let mut bench = Bench::new();
    bench.fill(START + 100);
    let Bench { folder, shared, writer } = bench;
    let Shared { store, vitals, replies, server_version, .. } = shared;
    let client_uid = rustix::process::geteuid().as_raw();
    let options = Options { folder: folder.path().join("socket"), client_uid, server_version };
    let path = listen::socket_path(&options.folder);
    std::fs::create_dir(&options.folder).unwrap();
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap()); // a stale socket
    let token = CancellationToken::new();
    let running = tokio::spawn(run(options.clone(), store, vitals.clone(), replies, token.clone()));
    let stream = crate::demo::wait::until("the feed listens", Duration::from_secs(10), async || {
        Ok(UnixStream::connect(&path).await?)
    });
    let (reader, writer_half) = stream.await.unwrap().into_split();
    let (mut reader, mut client) = (MessageReader::new(reader), MessageWriter::new(writer_half));
    let parameters = vec![("replication".to_owned(), "on".to_owned())];
    Startup::Session { minor: 0, parameters }.encode(client.buffer());
    Frontend::Query("START_REPLICATION 0/200000 TIMELINE 1".to_owned()).encode(client.buffer());
    client.flush().await.unwrap();
    while Backend::decode(reader.read().await.unwrap().unwrap()).unwrap() != Backend::CopyBothResponse {}

    let other_store = Bench::new().shared.store;
    let second = run(options, other_store, vitals, ReplyRequests::default(), token.clone()).await;
    assert!(second.unwrap_err().to_string().starts_with("another process listens on"));
    token.cancel();
    running.await.unwrap().unwrap();
    assert!(!path.exists());
    drop(writer);
    Store::open(folder.path()).expect("the last handle is gone");
}
