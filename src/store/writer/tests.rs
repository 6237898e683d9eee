//! What a step that failed or was interrupted leaves behind.

use super::*;
use crate::pg::wal_fixture::RandomWal;
use crate::store::Visibility;
use crate::store::tests::{files, new_store, read_all};

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
