//! What a step that failed or was interrupted leaves behind.

use super::*;
use crate::pg::wal_fixture::{RandomWal, SEGMENT_BYTES};
use crate::store::tests::{TIMELINE, files, new_store, open_file, read_all};
use crate::store::{Branch, Hold, RawStep, Step, Visibility};
use bytes::Bytes;
use std::path::Path;

/// A store that ends with its first segment, and has the next one only as an empty file: a write to it failed.
fn full_segment_and_an_empty_one(folder: &Path, wal: &RandomWal) -> (Store, Writer) {
    let (store, mut writer) = new_store(folder, wal.start);
    let end = wal.start + SEGMENT_BYTES;
    writer.append(wal.start, &wal.bytes[..SEGMENT_BYTES as usize]).unwrap();
    let nonsense = Chunk { timeline: TIMELINE, start: end, end, opens_frame: false, bytes: Bytes::new() };
    assert!(writer.append_chunk(&nonsense).is_err());
    drop(writer);
    let writer = store.writer().unwrap();
    assert!(open_file(folder).is_some());
    (store, writer)
}

fn second_timeline(switch: Lsn) -> TimelineIdentity {
    let branch = Some(Branch { epoch: 1, node: "db2".into() });
    TimelineIdentity { timeline: TimelineId(2), parent: Some((TIMELINE, switch)), branch }
}

#[test]
fn a_timeline_that_ends_where_an_empty_segment_begins_leaves_a_store_that_opens() {
    let folder = tempfile::tempdir().unwrap();
    let wal = RandomWal::new(10, 1_500);
    let (store, mut writer) = full_segment_and_an_empty_one(folder.path(), &wal);
    let switch = wal.start + SEGMENT_BYTES;
    writer.end_timeline(switch).unwrap();
    writer.begin_timeline(second_timeline(switch), None, switch).unwrap();
    drop((store, writer));
    let store = Store::open(folder.path()).unwrap();
    assert_eq!(store.end_of(TIMELINE), Some(switch));
    let mut cursor = store.raw_cursor(TIMELINE, switch, Visibility::Durable).unwrap();
    assert_eq!(cursor.next().unwrap(), RawStep::Switched { next: TimelineId(2), lsn: switch });
}

#[test]
fn who_stands_at_the_end_of_a_timeline_of_which_nothing_is_kept_is_led_to_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let wal = RandomWal::new(11, 1_500);
    let (store, mut writer) = new_store(folder.path(), wal.start);
    let switch = wal.start + SEGMENT_BYTES;
    writer.append(wal.start, &wal.bytes[..SEGMENT_BYTES as usize]).unwrap();
    writer.end_timeline(switch).unwrap();
    writer.begin_timeline(second_timeline(switch), None, switch).unwrap();
    writer.append(switch, &wal.bytes[SEGMENT_BYTES as usize..]).unwrap();
    // Everybody has all of the old timeline.
    let hold = Hold { holder: "db3".into(), lsn: switch, may_be_let_go: true };
    assert_eq!(store.retain(&[hold], u64::MAX).unwrap().removed, 1);
    let mut cursor = store.cursor(TIMELINE, switch, Visibility::Appended).unwrap();
    assert_eq!(cursor.next().unwrap(), Step::Switched { next: TimelineId(2), lsn: switch });
    let below = store.cursor(TIMELINE, wal.start, Visibility::Appended);
    assert!(matches!(below.err(), Some(StoreError::Removed { .. })));
}

#[test]
fn a_timeline_whose_beginning_failed_begins_at_the_next_try() {
    let folder = tempfile::tempdir().unwrap();
    let wal = RandomWal::new(12, 20);
    let (store, mut writer) = new_store(folder.path(), wal.start);
    writer.append(wal.start, &wal.bytes).unwrap();
    let (switch, start) = (wal.end(), wal.start);
    writer.end_timeline(switch).unwrap();
    // The disk has no room for the state.
    let in_the_way = folder.path().join("walship.state.tmp");
    std::fs::create_dir(&in_the_way).unwrap();
    assert!(writer.begin_timeline(second_timeline(switch), None, start).is_err());
    drop(writer);
    std::fs::remove_dir(&in_the_way).unwrap();
    let mut writer = store.writer().unwrap();
    writer.end_timeline(switch).unwrap();
    writer.begin_timeline(second_timeline(switch), None, start).unwrap();
    writer.append(start, &wal.bytes).unwrap();
    assert_eq!(store.newest_timeline(), Some(TimelineId(2)));
}

#[test]
fn a_timeline_that_was_ended_and_is_not_followed_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let wal = RandomWal::new(13, 300);
    let (store, mut writer) = new_store(folder.path(), wal.start);
    let middle = wal.record_ends[100];
    writer.append(wal.start, &wal.bytes[..(middle - wal.start) as usize]).unwrap();
    writer.end_timeline(middle).unwrap();
    // The process ends before the next one is begun, and whom it followed then is lost, too.
    drop((store, writer));
    let store = Store::open(folder.path()).unwrap();
    let mut writer = store.writer().unwrap();
    assert_eq!(writer.end(), Some((TIMELINE, middle)));
    writer.append(middle, &wal.bytes[(middle - wal.start) as usize..]).unwrap();
    assert!(read_all(&store, wal.start, Visibility::Appended) == wal.bytes);
    writer.end_timeline(wal.end()).unwrap();
    drop((store, writer));
    assert!(read_all(&Store::open(folder.path()).unwrap(), wal.start, Visibility::Durable) == wal.bytes);
}

#[test]
fn after_a_failed_fsync_nothing_is_promised_until_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let wal = RandomWal::new(14, 20);
    let (store, mut writer) = new_store(folder.path(), wal.start);
    writer.append(wal.start, &wal.bytes).unwrap();
    drop(writer);
    // A device that takes everything and cannot be fsynced.
    let path = open_file(folder.path()).unwrap();
    let aside = folder.path().join("aside");
    std::fs::rename(&path, &aside).unwrap();
    std::os::unix::fs::symlink("/dev/null", &path).unwrap();
    assert!(matches!(store.writer().err(), Some(StoreError::File(_))));
    // A later fsync succeeds on pages that the failed one gave up: that proves nothing.
    std::fs::rename(&aside, &path).unwrap();
    assert!(matches!(store.writer().err(), Some(StoreError::Failed)));
    assert!(matches!(store.sync().err(), Some(StoreError::Failed)));
    drop(store);
    assert!(read_all(&Store::open(folder.path()).unwrap(), wal.start, Visibility::Durable) == wal.bytes);
}

#[test]
fn an_open_frame_of_any_length_is_no_reason_to_panic() {
    let folder = tempfile::tempdir().unwrap();
    let wal = RandomWal::new(15, 20);
    let (store, mut writer) = new_store(folder.path(), wal.start);
    let end = wal.record_ends[10];
    let middle = wal.record_ends[5];
    writer.append(wal.start, &wal.bytes[..(middle - wal.start) as usize]).unwrap();
    drop(writer);
    // The second frame of its file.
    store
        .writer()
        .unwrap()
        .append(middle, &wal.bytes[(middle - wal.start) as usize..][..(end - middle) as usize])
        .unwrap();
    for bytes in [1 << 40, u64::MAX - 3, u64::MAX] {
        let frame = OpenFrame { start: middle, bytes, sha256: [0; 32] };
        let mut cursor = store.cursor(TIMELINE, end, Visibility::Appended).unwrap().resume(&frame).unwrap();
        assert_eq!(cursor.next().unwrap(), Step::AtEnd);
    }
}

#[test]
fn a_segment_that_cannot_be_removed_leaves_no_gap() {
    let folder = tempfile::tempdir().unwrap();
    let wal = RandomWal::new(16, 2_500);
    let (store, mut writer) = new_store(folder.path(), wal.start);
    writer.append(wal.start, &wal.bytes).unwrap();
    let (first, content) = files(folder.path()).remove(0);
    let path = folder.path().join(first);
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    // Tried twice, as the daemon does.
    assert!(store.retain(&[], u64::MAX).is_err());
    assert!(store.retain(&[], u64::MAX).is_err());
    drop((store, writer));
    std::fs::remove_dir(&path).unwrap();
    std::fs::write(&path, content).unwrap();
    assert!(read_all(&Store::open(folder.path()).unwrap(), wal.start, Visibility::Durable) == wal.bytes);
}

#[test]
fn an_fsync_that_ends_after_a_cut_says_nothing_of_the_file_that_took_the_place() {
    let folder = tempfile::tempdir().unwrap();
    let wal = RandomWal::new(17, 60);
    let (store, mut writer) = new_store(folder.path(), wal.start);
    writer.append(wal.start, &wal.bytes).unwrap();
    // A sync has begun, of all that is there …
    let (file, _, key, mark) = store.index().open_file().unwrap();
    // … when the timeline is cut.
    let open = cut::cut(&store, TIMELINE, wal.record_ends[20]).unwrap().unwrap();
    store.index().mark_durable(key, &file, mark);
    store.publish();
    assert!(store.positions().borrow().durable <= open.end().lsn);
}
