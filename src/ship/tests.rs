//! Shipping and receiving together, over a pipe that breaks.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{Counted, Downstream, Shipping};
use crate::link::message::{Ack, Code, MemberList, Resume, Standing};
use crate::link::{Conn, LinkError, Message};
use crate::pg::wal_fixture::{RandomWal, SEGMENT_BYTES, SYSTEM_IDENTIFIER};
use crate::pg::{Lsn, SegmentSize, TimelineId, WAL_PAGE_BYTES};
use crate::receive::{self, Receiving};
use crate::store::{Branch, NewStore, RawStep, Store, TimelineIdentity, Visibility, Writer};
use crate::vitals::Vitals;

const PATIENCE: Duration = Duration::from_secs(30);

fn new_store(folder: &Path) -> Store {
    let segment_size = SegmentSize::new(SEGMENT_BYTES).unwrap();
    Store::create(folder, NewStore { system_identifier: SYSTEM_IDENTIFIER, segment_size }).unwrap()
}

fn begin(writer: &mut Writer, start: Lsn) {
    let identity = TimelineIdentity { timeline: TimelineId(1), parent: None, branch: None };
    writer.begin_timeline(identity, None, start).unwrap();
}

/// Ends timeline 1 at `switch` and begins 2, which has the rest of the WAL; where that begins.
fn go_on(writer: &mut Writer, switch: Lsn, wal: &RandomWal) -> Lsn {
    writer.end_timeline(switch).unwrap();
    let identity = TimelineIdentity {
        timeline: TimelineId(2),
        parent: Some((TimelineId(1), switch)),
        branch: Some(Branch { epoch: 1, node: "db1".into() }),
    };
    let start = writer.store().identity().segment_size.start_of(switch);
    writer.begin_timeline(identity, Some(b"1\t0/300000\tx\n"), start).unwrap();
    writer.append(start, &wal.bytes[(start - wal.start) as usize..]).unwrap();
    start
}

/// A link between two stores, up to the moment it is dropped.
struct Connected {
    token: CancellationToken,
    ship: tokio::task::JoinHandle<anyhow::Result<()>>,
    receive: tokio::task::JoinHandle<anyhow::Result<()>>,
    target_vitals: Arc<Vitals>,
    _members: watch::Sender<MemberList>,
    _standing: watch::Sender<Standing>,
    _restartpoint: watch::Sender<Lsn>,
}

impl Connected {
    fn new(source: &Store, target: &Store, start: Lsn, pipe_bytes: usize) -> Connected {
        let token = CancellationToken::new();
        let (one, two) = tokio::io::duplex(pipe_bytes);
        let (members, restartpoint) =
            (watch::Sender::new(MemberList::default()), watch::Sender::new(Lsn::INVALID));
        let standing = watch::Sender::new(Standing::default());
        let shipping = Shipping {
            store: source.clone(),
            vitals: Arc::new(Vitals::default()),
            members: members.subscribe(),
            standing: standing.subscribe(),
            max_rate_bytes_per_second: None,
        };
        let target_vitals = Arc::new(Vitals::default());
        let receiving = Receiving {
            node: "db2".into(),
            store: target.clone(),
            start: Some((TimelineId(1), start)),
            vitals: Arc::clone(&target_vitals),
            restartpoint: restartpoint.subscribe(),
            members: watch::Sender::new(MemberList::default()),
            standing: watch::Sender::new(None),
            leave: watch::Sender::new(None).subscribe(),
        };
        let counted = Counted { downstream: downstream(), relayed: mpsc::channel(1).0 };
        Connected {
            ship: tokio::spawn(super::run(Conn::new(one), shipping, Some(counted), token.clone())),
            receive: tokio::spawn(receive::run(Conn::new(two), receiving, token.clone())),
            target_vitals,
            _members: members,
            _standing: standing,
            _restartpoint: restartpoint,
            token,
        }
    }

    /// The target's PostgreSQL says that it has WAL up to `lsn`.
    fn fed(&self, lsn: Lsn) {
        self.target_vitals.feed.update(|feed| {
            (feed.sent_lsn, feed.written_lsn, feed.flushed_lsn) = (lsn, lsn, lsn);
            feed.last_heard = Some(std::time::Instant::now());
        });
    }

    /// Ends both stages; whichever notices the other one's going first may say so.
    async fn cut(self) {
        self.token.cancel();
        for ended in [self.ship.await.unwrap(), self.receive.await.unwrap()] {
            let gone = |error: &anyhow::Error| error.downcast_ref().is_some_and(LinkError::is_gone);
            assert!(ended.as_ref().err().is_none_or(gone), "{ended:?}");
        }
    }
}

async fn reaches(store: &Store, timeline: TimelineId, lsn: Lsn) {
    let mut positions = store.positions();
    let reached = positions.wait_for(|p| p.timeline == Some(timeline) && p.durable >= lsn);
    let in_time = tokio::time::timeout(PATIENCE, reached).await.is_ok();
    assert!(in_time, "the target is at {:?}, not at {lsn}", *store.positions().borrow());
}

fn content(store: &Store, timeline: TimelineId, from: Lsn) -> Vec<u8> {
    let mut cursor = store.raw_cursor(timeline, from, Visibility::Durable).unwrap();
    let mut raw = Vec::new();
    while let RawStep::Bytes { data, .. } = cursor.next().unwrap() {
        raw.extend_from_slice(&data);
    }
    raw
}

fn downstream() -> Downstream {
    Downstream {
        name: "db2".into(),
        address: "pipe".into(),
        store_uuid: None,
        former_store_uuids: Vec::new(),
        certificate_serial: 0,
        advertise: String::new(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn positions_never_go_back_whatever_is_cut_when() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let wal = RandomWal::new(14, 600);
    let (source, target) = (new_store(one.path()), new_store(two.path()));
    let mut writer = source.writer().unwrap();
    begin(&mut writer, wal.start);
    let mut positions = target.positions();
    let watching = tokio::spawn(async move {
        let mut last = *positions.borrow();
        while positions.changed().await.is_ok() {
            let now = *positions.borrow_and_update();
            assert!(now.appended >= last.appended && now.durable >= last.durable, "{last:?} to {now:?}");
            last = now;
        }
    });
    let mut at = wal.start;
    for ends in wal.record_ends.chunks(30) {
        let connected = Connected::new(&source, &target, wal.start, 3_000);
        for &end in ends {
            writer.append(at, &wal.bytes[(at - wal.start) as usize..(end - wal.start) as usize]).unwrap();
            at = end;
            tokio::task::yield_now().await;
        }
        connected.cut().await;
        assert!(!watching.is_finished(), "a position went back");
    }
    watching.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_follows_through_cuts_and_ends_with_the_same_content() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let wal = RandomWal::new(11, 1_500);
    let (source, target) = (new_store(one.path()), new_store(two.path()));
    let mut writer = source.writer().unwrap();
    begin(&mut writer, wal.start);
    let mut at = wal.start;
    for (index, ends) in wal.record_ends.chunks(150).enumerate() {
        let connected = Connected::new(&source, &target, wal.start, 1_000 + index * 5_000);
        for &end in ends {
            writer.append(at, &wal.bytes[(at - wal.start) as usize..(end - wal.start) as usize]).unwrap();
            at = end;
        }
        // Every other link is cut in mid-flight.
        if index % 2 == 0 {
            reaches(&target, TimelineId(1), at).await;
        }
        connected.cut().await;
    }
    let connected = Connected::new(&source, &target, wal.start, 1 << 16);
    reaches(&target, TimelineId(1), at).await;
    connected.cut().await;
    assert!(content(&target, TimelineId(1), wal.start) == wal.bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_arrived_before_a_cut_is_durable_after_it() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let wal = RandomWal::new(13, 300);
    let (source, target) = (new_store(one.path()), new_store(two.path()));
    let mut writer = source.writer().unwrap();
    begin(&mut writer, wal.start);
    for (index, ends) in wal.record_ends.chunks(20).enumerate() {
        let at = source.end_of(TimelineId(1)).unwrap();
        let end = ends[ends.len() - 1];
        writer.append(at, &wal.bytes[(at - wal.start) as usize..(end - wal.start) as usize]).unwrap();
        let connected = Connected::new(&source, &target, wal.start, 1 << 16);
        let mut positions = target.positions();
        positions.wait_for(|p| p.appended >= end).await.unwrap();
        connected.cut().await;
        let at = *target.positions().borrow();
        assert_eq!(at.durable, at.appended, "cut {index}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_follows_to_the_next_timeline_and_a_diverged_one_is_told() {
    let (one, two, three) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let wal = RandomWal::new(12, 600);
    let (source, target, ahead) = (new_store(one.path()), new_store(two.path()), new_store(three.path()));
    let switch = wal.record_ends[300];
    let mut writer = source.writer().unwrap();
    begin(&mut writer, wal.start);
    writer.append(wal.start, &wal.bytes[..(switch - wal.start) as usize]).unwrap();
    let mut surplus = ahead.writer().unwrap();
    begin(&mut surplus, wal.start);
    surplus.append(wal.start, &wal.bytes).unwrap();
    drop(surplus);

    let connected = Connected::new(&source, &target, wal.start, 1 << 16);
    reaches(&target, TimelineId(1), switch).await;
    let start = go_on(&mut writer, switch, &wal);
    reaches(&target, TimelineId(2), wal.end()).await;
    connected.cut().await;
    assert!(content(&target, TimelineId(2), start) == wal.bytes[(start - wal.start) as usize..]);
    assert!(content(&target, TimelineId(1), wal.start) == wal.bytes[..(switch - wal.start) as usize]);
    assert_eq!(target.history(TimelineId(2)).unwrap().as_deref(), Some(&b"1\t0/300000\tx\n"[..]));

    let refused = Connected::new(&source, &ahead, wal.start, 1 << 16);
    let error = tokio::time::timeout(PATIENCE, refused.receive).await.unwrap().unwrap().unwrap_err();
    assert!(error.downcast_ref::<receive::Diverged>().is_some(), "{error:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_of_a_record_past_the_switch_is_no_reason_to_be_seeded_anew() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let wal = RandomWal::new(15, 600);
    let (source, target) = (new_store(one.path()), new_store(two.path()));
    // The primary died within a record that is longer than a page, of which the target has a page or more.
    let long = |ends: &[Lsn]| ends[1].align_down(WAL_PAGE_BYTES) > ends[0];
    let ends = wal.record_ends[200..].windows(2).find(|ends| long(ends)).unwrap();
    let (switch, cut) = (ends[0], ends[1].align_down(WAL_PAGE_BYTES));
    let upto = |end: Lsn| &wal.bytes[..(end - wal.start) as usize];
    let mut writer = source.writer().unwrap();
    begin(&mut writer, wal.start);
    writer.append(wal.start, upto(switch)).unwrap();
    let mut copy = target.writer().unwrap();
    begin(&mut copy, wal.start);
    copy.append(wal.start, upto(cut)).unwrap();
    drop(copy);

    let start = go_on(&mut writer, switch, &wal);

    let connected = Connected::new(&source, &target, wal.start, 1 << 16);
    // Its PostgreSQL received all that its store has.
    connected.fed(cut);
    reaches(&target, TimelineId(2), wal.end()).await;
    connected.cut().await;
    assert!(content(&target, TimelineId(1), wal.start) == upto(switch));
    assert!(content(&target, TimelineId(2), start) == wal.bytes[(start - wal.start) as usize..]);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_has_all_of_a_timeline_is_told_when_the_next_ones_beginning_is_gone() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let wal = RandomWal::new(16, 1_500);
    let (source, target) = (new_store(one.path()), new_store(two.path()));
    let switch = wal.record_ends[100];
    let upto_switch = &wal.bytes[..(switch - wal.start) as usize];
    let (mut writer, mut copy) = (source.writer().unwrap(), target.writer().unwrap());
    for writer in [&mut writer, &mut copy] {
        begin(writer, wal.start);
        writer.append(wal.start, upto_switch).unwrap();
    }
    drop(copy);
    go_on(&mut writer, switch, &wal);
    assert!(source.retain(&[], u64::MAX).unwrap().removed > 1);

    let refused = Connected::new(&source, &target, wal.start, 1 << 16);
    let error = tokio::time::timeout(PATIENCE, refused.receive).await.unwrap().unwrap().unwrap_err();
    let rejected = |error: &LinkError| matches!(error, LinkError::Rejected(why) if why.code == Code::Removed);
    assert!(error.downcast_ref().is_some_and(rejected), "{error:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_standby_acknowledged_on_the_old_timeline_does_not_count_on_the_new_one() {
    let folder = tempfile::tempdir().unwrap();
    let wal = RandomWal::new(17, 300);
    let source = new_store(folder.path());
    let switch = wal.record_ends[100];
    let mut writer = source.writer().unwrap();
    begin(&mut writer, wal.start);
    writer.append(wal.start, &wal.bytes[..(switch - wal.start) as usize]).unwrap();
    go_on(&mut writer, switch, &wal);

    // It holds WAL of timeline 1 past its end, and says so when it is led to the next one.
    let (one, two) = tokio::io::duplex(8 << 20);
    let vitals = Arc::new(Vitals::default());
    let (members, standing) =
        (watch::Sender::new(MemberList::default()), watch::Sender::new(Standing::default()));
    let shipping = Shipping {
        store: source,
        vitals: Arc::clone(&vitals),
        members: members.subscribe(),
        standing: standing.subscribe(),
        max_rate_bytes_per_second: None,
    };
    let counted = Some(Counted { downstream: downstream(), relayed: mpsc::channel(1).0 });
    let shipped = tokio::spawn(super::run(Conn::new(one), shipping, counted, CancellationToken::new()));
    let mut conn = Conn::new(two);
    let (timeline, lsn) = (TimelineId(1), wal.end() + 4096);
    conn.write(Message::Resume(Resume { timeline, lsn, frame: None })).await.unwrap();
    let ack = Ack {
        timeline,
        written_lsn: lsn,
        flushed_lsn: lsn,
        replayed_lsn: lsn,
        restartpoint_lsn: Lsn::INVALID,
        policy_serial: 0,
        is_copying: false,
    };
    conn.write(Message::Ack(ack)).await.unwrap();
    let mut downstreams = vitals.downstreams.watch();
    let both = downstreams.wait_for(|all| {
        all.get("db2").is_some_and(|db2| db2.flushed_lsn == lsn && db2.shipped_lsn.is_valid())
    });
    let db2 = tokio::time::timeout(PATIENCE, both).await.unwrap().unwrap()["db2"].clone();
    assert_eq!(db2.timeline, Some(timeline));
    drop(conn);
    assert!(shipped.await.unwrap().is_err());
}
