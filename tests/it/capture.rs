//! The primary's WAL into the store: equal to pg_wal, through restarts, stops, and servers that are not what they were.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use walship::capture::{self, Back, CaptureError, Options};
use walship::demo::ledger::{Workload, WorkloadOptions};
use walship::demo::{Cluster, ClusterOptions, StopMode};
use walship::pg::control::{ClusterState, ControlFile};
use walship::pg::sql::Sql;
use walship::pg::{Conninfo, Levels, Lsn, SegmentNumber, TimelineId};
use walship::store::{Branch, NewStore, RawStep, Store, Visibility};
use walship::vitals::{Contact, StandbyFeedback, Vitals};

use crate::harness::{PATIENCE, Test, eventually, tools};

const SLOT: &str = "walship";

/// A cluster, and a place for stores.
struct Fixture {
    cluster: Cluster,
    test: Test,
}

/// A capture at work.
struct Capture {
    store: Store,
    vitals: Arc<Vitals>,
    feedback: watch::Sender<Option<StandbyFeedback>>,
    /// Never anything: a server that stops all the same was told by its shutdown checkpoint alone.
    _released: watch::Sender<Levels<Lsn>>,
    cancel: CancellationToken,
    task: JoinHandle<Result<(), CaptureError>>,
}

impl Fixture {
    async fn new(options: ClusterOptions) -> Fixture {
        let test = Test::new();
        Fixture { cluster: test.cluster("db1", options).await, test }
    }

    fn conninfo(&self) -> Conninfo {
        Conninfo::parse(&self.cluster.conninfo()).unwrap()
    }

    async fn store(&self, name: &str) -> Store {
        let facts = Sql::connect(&self.conninfo()).await.unwrap().facts().await.unwrap();
        let (system_identifier, segment_size) = (facts.system_identifier, facts.segment_size);
        Store::create(&self.test.folder().join(name), NewStore { system_identifier, segment_size }).unwrap()
    }

    fn capture(&self, store: &Store, adopted: Option<(TimelineId, Branch)>) -> Capture {
        let options = Options { conninfo: self.conninfo(), slot: SLOT.to_owned(), adopted };
        let (vitals, cancel) = (Arc::new(Vitals::default()), CancellationToken::new());
        let (feedback, given) = watch::channel(None);
        let released = watch::Sender::new(Levels::default());
        let back = Back { feedback: given, released: released.subscribe() };
        let task = {
            let (store, vitals, cancel) = (store.clone(), vitals.clone(), cancel.clone());
            tokio::spawn(async move { capture::run(options, store, &vitals, back, cancel).await })
        };
        Capture { store: store.clone(), vitals, feedback, _released: released, cancel, task }
    }

    async fn flushed(&self) -> Lsn {
        self.cluster.value("SELECT pg_current_wal_flush_lsn()").await.unwrap().parse().unwrap()
    }

    async fn slot_lsn(&self) -> Lsn {
        let query = format!("SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = '{SLOT}'");
        self.cluster.value(&query).await.unwrap().parse().unwrap()
    }

    /// A copy of the stopped server's data directory beside it, or back.
    async fn copy(&self, from: &Path, to: &Path) {
        let mut remove = self.cluster.account().command("rm");
        remove.arg("-rf").arg(to);
        self.cluster.run(remove).await.unwrap();
        let mut copy = self.cluster.account().command("cp");
        copy.arg("-a").arg(from).arg(to);
        self.cluster.run(copy).await.unwrap();
    }
}

impl Capture {
    /// Waits until the store is durable up to a position.
    async fn reaches(&self, lsn: Lsn) {
        let mut positions = self.store.positions();
        let reached = positions.wait_for(|now| now.durable >= lsn);
        let result = tokio::time::timeout(PATIENCE, reached).await;
        assert!(result.is_ok(), "{lsn} within {PATIENCE:?}: {:?}", self.vitals.capture.get());
    }

    async fn cancelled(self) {
        self.cancel.cancel();
        self.task.await.unwrap().unwrap();
    }

    /// Waits until it gives up for good.
    async fn stopped(self) -> CaptureError {
        let error = tokio::time::timeout(PATIENCE, self.task).await.expect("it stops").unwrap().unwrap_err();
        let contact = self.vitals.capture.get().contact;
        let Contact::Stopped { reason, .. } = contact else { panic!("{contact:?}") };
        assert_eq!(reason, error.to_string());
        error
    }
}

/// Everything that the store has of a timeline.
fn content(store: &Store, timeline: TimelineId) -> (Lsn, Vec<u8>) {
    let from = store.start_of(timeline).unwrap();
    let mut cursor = store.raw_cursor(timeline, from, Visibility::Durable).unwrap();
    let mut raw = Vec::new();
    while let RawStep::Bytes { start, data } = cursor.next().unwrap() {
        assert_eq!(start, from + raw.len() as u64);
        raw.extend_from_slice(&data);
    }
    (from, raw)
}

/// Compares the store with the files in pg_wal, as far as the store goes.
fn assert_equals_pg_wal(store: &Store, timeline: TimelineId, pg_wal: &Path) {
    let size = store.identity().segment_size;
    let (start, raw) = content(store, timeline);
    let SegmentNumber(first) = size.segment_of(start);
    for (index, ours) in raw.chunks(size.bytes() as usize).enumerate() {
        let name = size.file_name(timeline, SegmentNumber(first + index as u64));
        let theirs = std::fs::read(pg_wal.join(&name)).unwrap();
        let differs = ours.iter().zip(&theirs).position(|(ours, theirs)| ours != theirs);
        assert_eq!(differs, None, "byte of {name}");
    }
}

fn load() -> WorkloadOptions {
    WorkloadOptions { payload_bytes: 2000, ..WorkloadOptions::default() }
}

#[tokio::test]
async fn what_is_captured_under_load_and_restarts_is_what_pg_wal_holds() {
    let fixture = Fixture::new(ClusterOptions::default().set("wal_keep_size", "1GB")).await;
    let store = fixture.store("store").await;
    let capture = fixture.capture(&store, None);
    capture.reaches(fixture.flushed().await).await;
    let slot_lsn = fixture.slot_lsn().await;

    let workload = Workload::start(&fixture.cluster.conninfo(), &load()).await.unwrap();
    for stop_mode in [Some(StopMode::Fast), Some(StopMode::Immediate), None] {
        let before = workload.acknowledged();
        eventually("500 more commits", async || {
            let more = workload.acknowledged() - before;
            ensure!(more >= 500, "only {more}");
            Ok(())
        })
        .await;
        match stop_mode {
            Some(mode) => fixture.cluster.stop(mode).await.unwrap(),
            None => fixture.cluster.kill().await.unwrap(),
        }
        fixture.cluster.start().await.unwrap();
    }
    let ledger = workload.stop().await;
    let flushed = fixture.flushed().await;
    assert!(flushed >= ledger.end_lsn());
    capture.reaches(flushed).await;
    assert_equals_pg_wal(&store, TimelineId(1), &fixture.cluster.data_directory().join("pg_wal"));

    let size = store.identity().segment_size;
    eventually("the slot follows", async || {
        let now = fixture.slot_lsn().await;
        ensure!(now > slot_lsn && size.segment_of(now).0 + 2 >= size.segment_of(flushed).0, "{now}");
        Ok(())
    })
    .await;
    let vitals = capture.vitals.capture.get();
    assert!(matches!(vitals.contact, Contact::Up { .. }) && vitals.server_flush_lsn >= flushed);
    eventually("the samples tell how far it is", async || {
        let samples = capture.vitals.samples.all();
        ensure!(samples.len() > 3 && samples.last().is_some_and(|last| last.lsn >= flushed), "{samples:?}");
        Ok(())
    })
    .await;
    capture.cancelled().await;
}

#[tokio::test]
async fn a_server_stops_at_once_and_its_last_record_is_in_the_store() {
    let fixture = Fixture::new(ClusterOptions::default()).await;
    let store = fixture.store("store").await;
    let capture = fixture.capture(&store, None);
    for round in 0..3 {
        capture.reaches(fixture.flushed().await).await;
        let workload = Workload::start(&fixture.cluster.conninfo(), &load()).await.unwrap();
        eventually("commits", async || {
            ensure!(workload.acknowledged() >= 200);
            Ok(())
        })
        .await;
        let begun = Instant::now();
        fixture.cluster.stop(StopMode::Fast).await.unwrap();
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(15), "round {round}: {took:?}");
        workload.stop().await;

        let control = ControlFile::read(&fixture.cluster.data_directory()).unwrap();
        let (state, checkpoint) = (control.state, control.checkpoint_lsn);
        assert_eq!(state, ClusterState::ShutDown);
        let durable = store.positions().borrow().durable;
        assert!(durable > checkpoint, "{durable} is not past the shutdown checkpoint at {checkpoint}");
        assert_eq!(store.last_record_end(TimelineId(1)).unwrap(), Some(durable));
        fixture.cluster.start().await.unwrap();
    }
    // Neither does a smart stop wait for us, whose SQL sessions are short.
    capture.reaches(fixture.flushed().await).await;
    let mut stop = fixture.cluster.account().command(fixture.cluster.binaries().program("pg_ctl"));
    stop.args(["stop", "-m", "smart", "-t", "15", "-D"]).arg(fixture.cluster.data_directory());
    fixture.cluster.run(stop).await.unwrap();
    capture.cancelled().await;
}

#[tokio::test]
async fn a_server_put_back_to_an_earlier_state_is_refused() {
    let fixture = Fixture::new(ClusterOptions::default()).await;
    let store = fixture.store("store").await;
    let (data, old) = (fixture.cluster.data_directory(), fixture.test.folder().join("old"));
    let capture = fixture.capture(&store, None);
    fixture.cluster.sql("CREATE TABLE t AS SELECT 1 AS a").await.unwrap();
    capture.reaches(fixture.flushed().await).await;
    fixture.cluster.stop(StopMode::Fast).await.unwrap();
    fixture.copy(&data, &old).await;
    fixture.cluster.start().await.unwrap();
    fixture.cluster.sql("INSERT INTO t SELECT generate_series(1, 20000)").await.unwrap();
    let end = fixture.flushed().await;
    capture.reaches(end).await;
    fixture.cluster.stop(StopMode::Immediate).await.unwrap();

    // The capture that was there all the time meets it first.
    fixture.copy(&old, &data).await;
    fixture.cluster.start().await.unwrap();
    let error = capture.stopped().await;
    assert!(matches!(error, CaptureError::PastIsShorter { .. }), "{error}");

    // When it has written on, its end says nothing any more, but its content does.
    fixture.cluster.sql("INSERT INTO t SELECT -a FROM generate_series(1, 60000) AS a").await.unwrap();
    assert!(fixture.flushed().await > end);
    let before = content(&store, TimelineId(1));
    let error = fixture.capture(&store, None).stopped().await;
    assert!(matches!(error, CaptureError::PastDiffers { .. }), "{error}");
    assert!(content(&store, TimelineId(1)) == before, "nothing was appended");
}

#[tokio::test]
async fn feedback_reaches_the_primary_and_is_withdrawn() {
    let fixture = Fixture::new(ClusterOptions::default()).await;
    let store = fixture.store("store").await;
    let capture = fixture.capture(&store, None);
    let xmin: u32 = fixture.cluster.value("SELECT txid_current()").await.unwrap().parse().unwrap();
    let feedback = StandbyFeedback { xmin, ..StandbyFeedback::default() };
    capture.feedback.send_replace(Some(feedback));
    let query = format!(
        "SELECT count(*) = 1 FROM pg_stat_replication WHERE application_name = 'walship' AND backend_xmin = '{xmin}'"
    );
    fixture.cluster.wait_until(&query, PATIENCE).await.unwrap();
    // A new connection is told, too.
    fixture.cluster.restart().await.unwrap();
    fixture.cluster.wait_until(&query, PATIENCE).await.unwrap();
    capture.feedback.send_replace(None);
    let query = "SELECT count(*) = 1 FROM pg_stat_replication WHERE backend_xmin IS NULL";
    fixture.cluster.wait_until(query, PATIENCE).await.unwrap();
    capture.cancelled().await;
}

#[tokio::test]
async fn removed_wal_matters_only_where_the_store_lacks_it() {
    let fixture = Fixture::new(ClusterOptions::default().set("min_wal_size", "2MB")).await;
    let store = fixture.store("store").await;
    let size = store.identity().segment_size;
    let capture = fixture.capture(&store, None);
    capture.reaches(fixture.flushed().await).await;
    // The store ends exactly with a segment, as the server does after a switch; unless it then writes on by itself.
    let end = loop {
        fixture.cluster.sql("CREATE TABLE IF NOT EXISTS t (a int); SELECT pg_switch_wal()").await.unwrap();
        let end = fixture.flushed().await;
        if end == size.start_of(end) {
            break end;
        }
    };
    capture.reaches(end).await;
    capture.cancelled().await;

    // The slot goes on by itself, so the last segment in the store is gone there.
    fixture.cluster.sql(&format!("SELECT pg_replication_slot_advance('{SLOT}', '{end}')")).await.unwrap();
    for _ in 0..3 {
        fixture.cluster.sql("INSERT INTO t VALUES (2); SELECT pg_switch_wal(); CHECKPOINT").await.unwrap();
    }
    let file = size.file_name(TimelineId(1), size.segment_of(Lsn(end.0 - 1)));
    assert!(!fixture.cluster.data_directory().join("pg_wal").join(file).exists());
    let capture = fixture.capture(&store, None);
    capture.reaches(fixture.flushed().await).await;
    capture.cancelled().await;

    // Without a slot the server removes what the store lacks. The slot is made anew all the same.
    fixture.cluster.sql(&format!("SELECT pg_drop_replication_slot('{SLOT}')")).await.unwrap();
    for _ in 0..6 {
        fixture.cluster.sql("INSERT INTO t VALUES (3); SELECT pg_switch_wal(); CHECKPOINT").await.unwrap();
    }
    let error = fixture.capture(&store, None).stopped().await;
    assert!(matches!(error, CaptureError::WalLost { .. }), "{error}");
    assert!(fixture.slot_lsn().await > end);
}

#[tokio::test]
async fn a_slot_that_was_idle_for_too_long_is_made_anew() {
    let fixture = Fixture::new(ClusterOptions::default()).await;
    if !tools::has_version(fixture.cluster.binaries(), 18, "idle_replication_slot_timeout") {
        return;
    }
    let store = fixture.store("store").await;
    let capture = fixture.capture(&store, None);
    capture.reaches(fixture.flushed().await).await;
    let first = fixture.slot_lsn().await;
    capture.cancelled().await;
    fixture.cluster.sql("ALTER SYSTEM SET idle_replication_slot_timeout = '1s'").await.unwrap();
    fixture.cluster.sql("SELECT pg_reload_conf()").await.unwrap();
    eventually("the slot is let go", async || {
        fixture.cluster.sql("CREATE TABLE IF NOT EXISTS t (a int); CHECKPOINT").await?;
        let reason = fixture.cluster.value("SELECT invalidation_reason FROM pg_replication_slots").await?;
        ensure!(reason == "idle_timeout", "{reason:?}");
        Ok(())
    })
    .await;
    let capture = fixture.capture(&store, None);
    capture.reaches(fixture.flushed().await).await;
    assert!(fixture.slot_lsn().await > first);
    capture.cancelled().await;
}

#[tokio::test]
async fn another_timeline_is_followed_only_when_it_was_adopted() {
    let fixture = Fixture::new(ClusterOptions::default().set("wal_keep_size", "1GB")).await;
    let store = fixture.store("store").await;
    let capture = fixture.capture(&store, None);
    fixture.cluster.sql("CREATE TABLE t AS SELECT generate_series(1, 20000)").await.unwrap();
    capture.reaches(fixture.flushed().await).await;
    capture.cancelled().await;
    // Written while nobody captures: it must come before the new timeline does.
    fixture.cluster.sql("INSERT INTO t SELECT generate_series(1, 20000)").await.unwrap();

    fixture.cluster.stop(StopMode::Fast).await.unwrap();
    let signal: PathBuf = fixture.cluster.data_directory().join("standby.signal");
    std::fs::write(&signal, "").unwrap();
    fixture.cluster.account().own(&signal).unwrap();
    fixture.cluster.start().await.unwrap();
    let capture = fixture.capture(&store, None);
    eventually("it waits for a primary", async || match capture.vitals.capture.get().contact {
        Contact::Trying { error: Some(error), .. } if error.contains("standby") => Ok(()),
        other => bail!("{other:?}"),
    })
    .await;
    fixture.cluster.promote().await.unwrap();
    let error = capture.stopped().await;
    assert!(matches!(error, CaptureError::UnknownTimeline { .. }), "{error}");

    let branch = Branch { epoch: 7, node: "db1".to_owned() };
    let capture = fixture.capture(&store, Some((TimelineId(2), branch.clone())));
    fixture.cluster.sql("INSERT INTO t SELECT generate_series(1, 20000)").await.unwrap();
    let end = fixture.flushed().await;
    let mut positions = store.positions();
    let followed = positions.wait_for(|now| now.timeline == Some(TimelineId(2)) && now.durable >= end);
    tokio::time::timeout(PATIENCE, followed).await.unwrap().unwrap();
    capture.cancelled().await;

    let pg_wal = fixture.cluster.data_directory().join("pg_wal");
    assert_equals_pg_wal(&store, TimelineId(2), &pg_wal);
    let (next, switch_lsn) = store.switch_of(TimelineId(1)).unwrap();
    assert_eq!((next, store.end_of(TimelineId(1))), (TimelineId(2), Some(switch_lsn)));
    let history = std::fs::read(pg_wal.join("00000002.history")).unwrap();
    assert_eq!(store.history(TimelineId(2)).unwrap().unwrap(), history);
    let identity = store.state().identity_of(TimelineId(2)).cloned().unwrap();
    assert_eq!((identity.branch, identity.parent), (Some(branch), Some((TimelineId(1), switch_lsn))));

    // A store that is new takes the timeline as it finds it.
    let fresh = fixture.store("fresh").await;
    let capture = fixture.capture(&fresh, None);
    capture.reaches(fixture.flushed().await).await;
    assert_eq!(fresh.newest_timeline(), Some(TimelineId(2)));
    assert_equals_pg_wal(&fresh, TimelineId(2), &pg_wal);
    capture.cancelled().await;
}
