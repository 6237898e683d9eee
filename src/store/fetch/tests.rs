//! What is given out of a store, and what is not.

use std::path::PathBuf;

use super::*;
use crate::pg::Lsn;
use crate::pg::wal_fixture::{RandomWal, SEGMENT_BYTES};
use crate::store::tests::{TIMELINE, new_store};
use crate::store::{Branch, TimelineIdentity};

/// A store, open as it is with a running sidecar, whose second segment a promotion cut at the position given back.
fn cut_in_its_second_segment(folder: &Path, wal: &RandomWal) -> (Store, Lsn) {
    let (store, mut writer) = new_store(folder, wal.start);
    let past_one = |end: &&Lsn| **end > wal.start + SEGMENT_BYTES + 20_000;
    let switch = *wal.record_ends.iter().find(past_one).unwrap();
    assert!(switch < wal.start + 2 * SEGMENT_BYTES, "within the second segment");
    writer.append(wal.start, &wal.bytes[..(switch - wal.start) as usize]).unwrap();
    writer.end_timeline(switch).unwrap();
    let branch = Some(Branch { epoch: 1, node: "db2".into() });
    let next = TimelineIdentity { timeline: TimelineId(2), parent: Some((TIMELINE, switch)), branch };
    let start = wal.start + SEGMENT_BYTES;
    writer.begin_timeline(next, Some(b"1\t0/1\tx\n"), start).unwrap();
    writer.append(start, &wal.bytes[SEGMENT_BYTES as usize..][..20_000]).unwrap();
    (store, switch)
}

fn name_of(timeline: TimelineId, wal: &RandomWal, segments: u64) -> String {
    let size = SegmentSize::new(SEGMENT_BYTES).unwrap();
    size.file_name(timeline, size.segment_of(wal.start + segments * SEGMENT_BYTES))
}

fn sealed(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.zst"))
}

#[test]
fn a_segment_is_given_whole_and_one_that_a_promotion_cut_has_zeros_behind_it() {
    let (folder, wal) = (tempfile::tempdir().unwrap(), RandomWal::new(21, 2_000));
    let (_store, switch) = cut_in_its_second_segment(folder.path(), &wal);
    let target = folder.path().join("RECOVERYXLOG");
    // What a fetch that was killed left is no hindrance.
    std::fs::write(durable::temporary_name(&target), "half").unwrap();
    let fetched = Store::fetch(folder.path(), &name_of(TIMELINE, &wal, 0), &target).unwrap();
    assert_eq!(fetched, Fetched::Done);
    assert!(std::fs::read(&target).unwrap() == wal.bytes[..SEGMENT_BYTES as usize]);

    Store::fetch(folder.path(), &name_of(TIMELINE, &wal, 1), &target).unwrap();
    let mut expected = wal.bytes[SEGMENT_BYTES as usize..(switch - wal.start) as usize].to_vec();
    expected.resize(SEGMENT_BYTES as usize, 0);
    assert!(std::fs::read(&target).unwrap() == expected);
    assert!(!durable::temporary_name(&target).exists());
}

#[test]
fn only_histories_of_timelines_that_began_are_given() {
    let (folder, wal) = (tempfile::tempdir().unwrap(), RandomWal::new(22, 2_000));
    cut_in_its_second_segment(folder.path(), &wal);
    let target = folder.path().join("RECOVERYHISTORY");
    std::fs::write(folder.path().join("00000003.history"), "of a promotion that did not commit").unwrap();
    for missing in ["00000003.history", "00000001.history"] {
        assert_eq!(Store::fetch(folder.path(), missing, &target).unwrap(), Fetched::Missing);
        assert!(!target.exists());
    }
    assert_eq!(Store::fetch(folder.path(), "00000002.history", &target).unwrap(), Fetched::Done);
    assert_eq!(std::fs::read(&target).unwrap(), b"1\t0/1\tx\n");
}

#[test]
fn what_is_not_there_or_still_grows_is_missing_and_leaves_nothing_behind() {
    let (folder, wal) = (tempfile::tempdir().unwrap(), RandomWal::new(23, 2_000));
    cut_in_its_second_segment(folder.path(), &wal);
    let target = folder.path().join("RECOVERYXLOG");
    let (growing, later) = (name_of(TimelineId(2), &wal, 1), name_of(TIMELINE, &wal, 9));
    assert!(folder.path().join(format!("{growing}.zst.part")).exists());
    let backup = format!("{}.00000028.backup", name_of(TIMELINE, &wal, 0));
    for name in [&growing, &later, &backup, "../walship.state", ""] {
        assert_eq!(Store::fetch(folder.path(), name, &target).unwrap(), Fetched::Missing, "{name}");
    }
    assert!(!target.exists() && !durable::temporary_name(&target).exists());
    let nowhere = Store::fetch(&folder.path().join("nowhere"), &growing, &target);
    assert!(matches!(nowhere, Err(StoreError::Missing { .. })));
}

#[test]
fn what_is_not_what_it_was_sealed_as_is_not_given() {
    let (folder, wal) = (tempfile::tempdir().unwrap(), RandomWal::new(24, 2_000));
    cut_in_its_second_segment(folder.path(), &wal);
    let (target, name) = (folder.path().join("RECOVERYXLOG"), name_of(TIMELINE, &wal, 0));
    let path = sealed(folder.path(), &name);
    let good = std::fs::read(&path).unwrap();
    let refused = |what: &str| {
        let error = Store::fetch(folder.path(), &name, &target).unwrap_err();
        assert!(matches!(&error, StoreError::Corrupt { .. }), "{what}: {error}");
        assert!(!target.exists() && !durable::temporary_name(&target).exists(), "{what}");
    };
    for at in (0..good.len() / 2).step_by(good.len() / 20) {
        let mut bytes = good.clone();
        bytes[at] ^= 0x10;
        std::fs::write(&path, bytes).unwrap();
        refused(&format!("byte {at}"));
    }
    // Another segment's content, whole, under this name.
    let short = folder.path().join(format!("{}.partial.zst", name_of(TIMELINE, &wal, 1)));
    std::fs::copy(short, &path).unwrap();
    refused("another segment");
    std::fs::write(&path, good).unwrap();
    assert_eq!(Store::fetch(folder.path(), &name, &target).unwrap(), Fetched::Done);
}
