//! What a step that failed or was interrupted leaves behind.

use super::*;
use crate::pg::wal_fixture::{RandomWal, SEGMENT_BYTES};
use crate::store::tests::{TIMELINE, files, new_store, open_file, read_all};
use crate::store::{Branch, Hold, Step, Visibility};

fn second_timeline(switch: Lsn) -> TimelineIdentity {
    let branch = Some(Branch { epoch: 1, node: "db2".into() });
    TimelineIdentity { timeline: TimelineId(2), parent: Some((TIMELINE, switch)), branch }
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
