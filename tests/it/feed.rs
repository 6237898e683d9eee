//! Real standbys, and PostgreSQL's own tools, on the walsender of our own.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio_util::sync::CancellationToken;
use walship::demo::{Account, Binaries, Cluster, ClusterOptions, StopMode};
use walship::feed::{self, ReplyRequests, ServerVersion};
use walship::pg::message::copy::{FromClient, Status};
use walship::pg::replication::{Event, Replication, Started};
use walship::pg::{Conninfo, History, Lsn, SegmentNumber, SegmentSize, TimelineId};
use walship::store::{NewStore, Store, StoreError, TimelineIdentity, Writer};
use walship::vitals::Vitals;

use crate::harness::tools;

const SEGMENT_BYTES: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(30);

/// A primary, cold copies of it, a store that gets its WAL, and a feed.
struct Scene {
    folder: TempDir,
    binaries: Binaries,
    account: Account,
    primary: Cluster,
    copies: Vec<Cluster>,
    store: Store,
    vitals: Arc<Vitals>,
    replies: ReplyRequests,
}

/// A task and the way to end it.
struct Running<T> {
    token: CancellationToken,
    task: JoinHandle<T>,
}

impl<T> Running<T> {
    fn start<F: Future<Output = T> + Send + 'static>(run: impl FnOnce(CancellationToken) -> F) -> Running<T>
    where
        T: Send + 'static,
    {
        let token = CancellationToken::new();
        Running { task: tokio::spawn(run(token.clone())), token }
    }

    async fn stop(self) -> T {
        self.token.cancel();
        self.task.await.unwrap()
    }
}

impl Scene {
    async fn new(copies: usize) -> (Scene, Writer) {
        let (binaries, account) = (Binaries::find().unwrap(), Account::for_postgres().unwrap());
        let folder = tempfile::tempdir().unwrap();
        account.own(folder.path()).unwrap();
        let options = ClusterOptions::default()
            .set("wal_keep_size", "64MB")
            .set("wal_retrieve_retry_interval", "100ms")
            .set("hot_standby_feedback", "on");
        let primary =
            Cluster::create(&folder.path().join("primary"), &binaries, &account, &options).await.unwrap();
        primary.start().await.unwrap();
        primary.sql("CREATE TABLE t (n bigint, filler text)").await.unwrap();
        let start = lsn(&primary, "pg_current_wal_lsn()").await.align_down(SEGMENT_BYTES);
        primary.stop(StopMode::Fast).await.unwrap();

        let feed_folder = folder.path().join("feed");
        let copies = (1..=copies).map(|number| {
            let to = folder.path().join(format!("standby{number}"));
            cold_copy(&primary, &to, &feed::primary_conninfo(&feed_folder))
        });
        let copies = copies.collect();
        primary.start().await.unwrap();

        let identity = replication(&primary).await.identify_system().await.unwrap();
        let segment_size = SegmentSize::new(SEGMENT_BYTES).unwrap();
        let system_identifier = identity.system_identifier;
        let store = Store::create(&folder.path().join("store"), NewStore { system_identifier, segment_size });
        let store = store.unwrap();
        let mut writer = store.writer().unwrap();
        let first = TimelineIdentity { timeline: TimelineId(1), parent: None, branch: None };
        writer.begin_timeline(first, None, start).unwrap();
        let (vitals, replies) = (Arc::default(), ReplyRequests::default());
        (Scene { folder, binaries, account, primary, copies, store, vitals, replies }, writer)
    }

    fn feed_folder(&self) -> PathBuf {
        self.folder.path().join("feed")
    }

    fn feed(&self) -> Running<anyhow::Result<()>> {
        let options = feed::Options {
            folder: self.feed_folder(),
            client_uid: std::fs::metadata(self.primary.data_directory()).unwrap().uid(),
            server_version: ServerVersion::new(format!("{}.0", self.binaries.major())),
        };
        let (store, vitals, replies) = (self.store.clone(), self.vitals.clone(), self.replies.clone());
        Running::start(move |token| feed::run(options, store, vitals, replies, token))
    }

    fn store_end(&self) -> Lsn {
        self.store.positions().borrow().durable
    }

    /// Waits until a standby has replayed all that `primary` has flushed.
    async fn follows(&self, standby: &Cluster, primary: &Cluster) {
        let end = lsn(primary, "pg_current_wal_flush_lsn()").await;
        let query = format!("SELECT pg_last_wal_replay_lsn() >= '{end}'");
        standby.wait_until(&query, PATIENCE).await.unwrap();
        let rows = "SELECT count(*), sum(n), sum(length(filler)) FROM t";
        assert_eq!(standby.value(rows).await.unwrap(), primary.value(rows).await.unwrap());
    }
}

/// Copies a stopped server and makes the copy a standby.
fn cold_copy(from: &Cluster, folder: &Path, primary_conninfo: &str) -> Cluster {
    let copy = Cluster::at(folder, from.binaries(), from.account()).unwrap();
    let mut cp = from.account().command("cp");
    cp.arg("-a").arg(from.data_directory()).arg(copy.data_directory());
    assert!(cp.status().unwrap().success());
    let signal = copy.data_directory().join("standby.signal");
    std::fs::write(&signal, "").unwrap();
    from.account().own(&signal).unwrap();
    let settings = format!(
        "unix_socket_directories = '{}'\nprimary_conninfo = '{}'\n",
        copy.socket_folder().display(),
        primary_conninfo.replace('\'', "''")
    );
    copy.append_to("postgresql.conf", &settings).unwrap();
    copy
}

async fn lsn(cluster: &Cluster, function: &str) -> Lsn {
    cluster.value(&format!("SELECT {function}")).await.unwrap().parse().unwrap()
}

async fn replication(cluster: &Cluster) -> Replication {
    Replication::connect(&Conninfo::parse(&cluster.conninfo()).unwrap(), "pump").await.unwrap()
}

/// Writes to the store on a blocking thread.
async fn write(
    mut writer: Writer,
    change: impl FnOnce(&mut Writer) -> Result<(), StoreError> + Send + 'static,
) -> Writer {
    let written = spawn_blocking(move || change(&mut writer).map(|()| writer));
    written.await.unwrap().unwrap()
}

/// Moves WAL from a server into the store, until the server stops or the token is cancelled.
fn pump(connection: Replication, mut writer: Writer) -> Running<Writer> {
    Running::start(move |token| async move {
        let (timeline, end) = writer.end().unwrap();
        let Started::Streaming(mut incoming, mut outgoing) = connection.start(timeline, end).await.unwrap()
        else {
            panic!("{end} is the end of timeline {timeline}");
        };
        loop {
            // Cancellation-safe: an event that was not taken stays in the reader.
            let event = tokio::select! {
                () = token.cancelled() => return writer,
                event = incoming.next() => event.unwrap(),
            };
            match event {
                Event::Wal(wal) => {
                    let write = write(writer, move |writer| {
                        writer.append(wal.start_lsn, &wal.data)?;
                        writer.sync().map(drop)
                    });
                    writer = write.await;
                }
                Event::Keepalive(_) => {}
                Event::ServerClosed => return writer,
                Event::EndOfTimeline => panic!("a primary does not end its timeline"),
            }
            let (_, end) = writer.end().unwrap();
            let (written_lsn, flushed_lsn, replayed_lsn) = (end, end, Lsn::INVALID);
            let status =
                Status { written_lsn, flushed_lsn, replayed_lsn, sent_micros: 0, reply_requested: false };
            outgoing.queue(&FromClient::Status(status));
            // A server that has just ended reads no more; what it sent before is still to be taken.
            let _ = outgoing.flush().await;
        }
    })
}

/// Ends the store's first timeline where a promoted server left it, and moves the second one's WAL.
async fn go_on_with(promoted: &Cluster, writer: Writer) -> (Lsn, Running<Writer>) {
    let mut connection = replication(promoted).await;
    let history = connection.timeline_history(TimelineId(2)).await.unwrap();
    let fork = History::parse(&history).unwrap().parent().unwrap().lsn;
    let parent = Some((TimelineId(1), fork));
    let second = TimelineIdentity { timeline: TimelineId(2), parent, branch: None };
    let writer = write(writer, move |writer| {
        writer.end_timeline(fork)?;
        writer.begin_timeline(second, Some(&history), fork.align_down(SEGMENT_BYTES))
    });
    (fork, pump(connection, writer.await))
}

/// Moves WAL into the store up to a segment's end that falls into a record: PostgreSQL flushes there, wherever in a
/// record that is, so that a primary may be lost just then.
async fn pump_to_the_middle_of_a_record(primary: &Cluster, mut writer: Writer) -> Writer {
    let (timeline, end) = writer.end().unwrap();
    let started = replication(primary).await.start(timeline, end).await.unwrap();
    let Started::Streaming(mut incoming, _outgoing) = started else { panic!("{end} is an end") };
    let long = "SELECT pg_logical_emit_message(true, 'long', repeat('x', 900000))";
    let boundary = loop {
        let begun = lsn(primary, "pg_current_wal_lsn()").await;
        let boundary = begun.next_multiple(SEGMENT_BYTES);
        if boundary - begun < 800_000 {
            break boundary;
        }
        primary.sql("SELECT pg_logical_emit_message(true, 'short', repeat('x', 100000))").await.unwrap();
    };
    primary.sql(long).await.unwrap();
    loop {
        let event = tokio::time::timeout(PATIENCE, incoming.next()).await.unwrap().unwrap();
        let Event::Wal(wal) = event else { continue };
        let room = (boundary - wal.start_lsn) as usize;
        let data = wal.data.slice(..wal.data.len().min(room));
        let is_full = data.len() == room;
        let append = write(writer, move |writer| {
            writer.append(wal.start_lsn, &data)?;
            writer.sync().map(drop)
        });
        writer = append.await;
        if is_full {
            return writer;
        }
    }
}

async fn insert(cluster: &Cluster, rows: u32) {
    let statement =
        format!("INSERT INTO t SELECT n, repeat(n::text, n % 300) FROM generate_series(1, {rows}) AS n");
    cluster.sql(&statement).await.unwrap();
}

/// What a standby logs when WAL is cut where it must not be, or is not the WAL that it should be.
fn assert_wal_was_sound(standby: &Cluster) {
    let log = std::fs::read_to_string(standby.log_file()).unwrap();
    for sign in ["checksum in record", "PANIC", "unexpected pageaddr", "contrecord", "forked off"] {
        assert!(!log.contains(sign), "{sign}:\n{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_follows_through_the_store() {
    let (scene, writer) = Scene::new(1).await;
    let (primary, standby) = (&scene.primary, &scene.copies[0]);
    let pumping = pump(replication(primary).await, writer);
    let feeding = scene.feed();
    standby.start().await.unwrap();
    insert(primary, 50_000).await;
    scene.follows(standby, primary).await;

    // The vitals know what the standby has, and that it has replayed it, without being asked for it.
    let end = lsn(primary, "pg_current_wal_flush_lsn()").await;
    let mut vitals = scene.vitals.feed.watch();
    let caught_up = vitals.wait_for(|feed| feed.flushed_lsn >= end && feed.replayed_lsn >= end);
    tokio::time::timeout(PATIENCE, caught_up).await.unwrap().unwrap();
    let feedback = vitals.wait_for(|feed| feed.feedback.is_some_and(|feedback| feedback.xmin > 0));
    tokio::time::timeout(PATIENCE, feedback).await.unwrap().unwrap();

    // The sidecar goes away and comes back; the standby reads on meanwhile, and follows again.
    assert!(feeding.stop().await.is_ok());
    insert(primary, 20_000).await;
    assert!(standby.is_ready().await);
    let feeding = scene.feed();
    scene.follows(standby, primary).await;

    // With the upstream gone the standby stays connected: nothing is answered by an error.
    let started = standby.value("SELECT pid FROM pg_stat_wal_receiver").await.unwrap();
    let writer = pumping.stop().await;
    primary.kill().await.unwrap();
    primary.start().await.unwrap();
    let pumping = pump(replication(primary).await, writer);
    insert(primary, 20_000).await;
    scene.follows(standby, primary).await;
    assert_eq!(standby.value("SELECT pid FROM pg_stat_wal_receiver").await.unwrap(), started);

    primary.stop(StopMode::Fast).await.unwrap();
    pumping.task.await.unwrap();
    standby.stop(StopMode::Fast).await.unwrap();
    assert!(feeding.stop().await.is_ok());
    assert_wal_was_sound(standby);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_that_asks_for_a_newer_protocol_is_told_what_there_is() {
    let (scene, writer) = Scene::new(1).await;
    let standby = &scene.copies[0];
    if !tools::has_version(&scene.binaries, 18, "max_protocol_version") {
        return;
    }
    let newest = format!("{} max_protocol_version=latest", feed::primary_conninfo(&scene.feed_folder()));
    let setting = format!("primary_conninfo = '{}'\n", newest.replace('\'', "''"));
    standby.append_to("postgresql.conf", &setting).unwrap();
    let pumping = pump(replication(&scene.primary).await, writer);
    let feeding = scene.feed();
    standby.start().await.unwrap();
    insert(&scene.primary, 1_000).await;
    scene.follows(standby, &scene.primary).await;
    pumping.stop().await;
    assert!(feeding.stop().await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn standbys_follow_a_promotion_without_a_restart() {
    let (scene, writer) = Scene::new(3).await;
    let [winner, follower, late] = &scene.copies[..] else { panic!("three copies") };
    let other_name = format!("{} application_name=winner", feed::primary_conninfo(&scene.feed_folder()));
    let setting = format!("primary_conninfo = '{}'\n", other_name.replace('\'', "''"));
    winner.append_to("postgresql.conf", &setting).unwrap();
    follower.append_to("postgresql.conf", "wal_receiver_create_temp_slot = on\n").unwrap();
    let pumping = pump(replication(&scene.primary).await, writer);
    let feeding = scene.feed();
    winner.start().await.unwrap();
    follower.start().await.unwrap();
    insert(&scene.primary, 20_000).await;
    scene.follows(follower, &scene.primary).await;
    let receiver = follower.value("SELECT pid FROM pg_stat_wal_receiver").await.unwrap();

    // A clean switchover: both have all of the old timeline.
    scene.primary.stop(StopMode::Fast).await.unwrap();
    let writer = pumping.task.await.unwrap();
    let end = scene.store_end();
    winner.wait_until(&format!("SELECT pg_last_wal_replay_lsn() >= '{end}'"), PATIENCE).await.unwrap();
    scene.replies.ask();
    let mut vitals = scene.vitals.feed.watch();
    let drained = vitals.wait_for(|feed| feed.flushed_lsn >= end && feed.replayed_lsn >= end);
    tokio::time::timeout(PATIENCE, drained).await.unwrap().unwrap();
    winner.promote().await.unwrap();

    let (fork, pumping) = go_on_with(winner, writer).await;
    assert_eq!(fork, end);
    insert(winner, 20_000).await;
    scene.follows(follower, winner).await;
    assert_eq!(follower.value("SELECT pid FROM pg_stat_wal_receiver").await.unwrap(), receiver);
    let feed = scene.vitals.feed.get();
    assert_eq!(feed.timeline, Some(TimelineId(2)));
    assert!(feed.flushed_lsn > fork, "{feed:?}");

    // One that was away since before the promotion streams the old timeline to its end first.
    late.start().await.unwrap();
    scene.follows(late, winner).await;
    pumping.stop().await;
    for standby in [follower, late] {
        standby.stop(StopMode::Fast).await.unwrap();
        assert_wal_was_sound(standby);
    }
    assert!(feeding.stop().await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_was_cut_off_with_the_primary_harms_nobody() {
    let (scene, writer) = Scene::new(2).await;
    let [winner, follower] = &scene.copies[..] else { panic!("two copies") };
    let pumping = pump(replication(&scene.primary).await, writer);
    let feeding = scene.feed();
    winner.start().await.unwrap();
    follower.start().await.unwrap();
    insert(&scene.primary, 1_000).await;
    scene.follows(winner, &scene.primary).await;
    scene.follows(follower, &scene.primary).await;
    let receiver = follower.value("SELECT pid FROM pg_stat_wal_receiver").await.unwrap();

    let writer = pump_to_the_middle_of_a_record(&scene.primary, pumping.stop().await).await;
    scene.primary.kill().await.unwrap();
    let (end, last) = (scene.store_end(), scene.store.last_record_end(TimelineId(1)).unwrap().unwrap());
    assert!(last < end && end == end.align_down(SEGMENT_BYTES), "{last} {end}");
    for standby in [winner, follower] {
        let received = format!("SELECT flushed_lsn = '{last}' FROM pg_stat_wal_receiver");
        standby.wait_until(&received, PATIENCE).await.unwrap();
    }
    winner.promote().await.unwrap();
    let (fork, pumping) = go_on_with(winner, writer).await;
    assert_eq!(fork, last);
    insert(winner, 5_000).await;
    scene.follows(follower, winner).await;
    assert_eq!(follower.value("SELECT pid FROM pg_stat_wal_receiver").await.unwrap(), receiver);
    assert_wal_was_sound(follower);
    pumping.stop().await;
    assert!(feeding.stop().await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn pg_receivewal_gets_the_segments_of_the_primary() {
    let (scene, writer) = Scene::new(0).await;
    let Some(mut receive) = tools::client(&scene.primary, "pg_receivewal") else { return };
    let start = scene.store.positions().borrow().start;
    let pumping = pump(replication(&scene.primary).await, writer);
    let feeding = scene.feed();
    insert(&scene.primary, 20_000).await;
    // The tool stops when it gets something that lies beyond the end.
    scene.primary.sql("SELECT pg_switch_wal(); INSERT INTO t VALUES (1, '')").await.unwrap();
    let end = lsn(&scene.primary, "pg_current_wal_flush_lsn()").await.align_down(SEGMENT_BYTES);
    let mut stored = scene.store.positions();
    tokio::time::timeout(PATIENCE, stored.wait_for(|store| store.durable > end)).await.unwrap().unwrap();

    let target = scene.folder.path().join("received");
    scene.account.create_folder(&target).unwrap();
    // It goes on after the last segment that it finds; with none it would begin at the server's end.
    let size = scene.store.identity().segment_size;
    let first = size.segment_of(start).0;
    let before = target.join(size.file_name(TimelineId(1), SegmentNumber(first - 1)));
    std::fs::write(&before, vec![0; SEGMENT_BYTES as usize]).unwrap();
    scene.account.own(&before).unwrap();
    receive.arg("-D").arg(&target).arg("-h").arg(scene.feed_folder());
    receive.args(["-p", "5432", "-U", "anyone", "--no-loop", "--endpos", &end.to_string()]);
    scene.primary.run(receive).await.unwrap();
    let mut segments = 0;
    for number in first..size.segment_of(end).0 {
        let name = size.file_name(TimelineId(1), SegmentNumber(number));
        let ours = std::fs::read(target.join(&name)).unwrap();
        let theirs = std::fs::read(scene.primary.data_directory().join("pg_wal").join(&name)).unwrap();
        assert!(ours == theirs, "{name} differs");
        segments += 1;
    }
    assert!(segments >= 2, "only {segments} segments were compared");
    pumping.stop().await;
    assert!(feeding.stop().await.is_ok());
}
