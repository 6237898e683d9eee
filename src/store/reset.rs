//! Emptying a store: for a node that is seeded anew, whose log does not lead to where the new copy begins.
//!
//! What the node had acknowledged goes with its log, and comes back only when the copy is complete. Until then nobody may
//! count on it, so the store becomes another one: positions are kept by store, and those of the old one are forgotten
//! everywhere. That it is the same node's, and not one that uses its invitation a second time, is told by the identities
//! it had before. What is not the log's stays: what the node promised, whom it knows, which policy it was told.

use std::fs;
use std::path::PathBuf;

use super::folder::CAPSULES_FOLDER;
use super::{Identity, Store, StoreError, folder};
use crate::durable::{self, FileError};

/// Identities that are remembered: more re-seeds than that without the primary hearing of any do not happen.
const FORMER_MAX: usize = 16;

/// What becomes of the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Log {
    /// It is a part of the primary's, and is removed.
    Remove,
    /// It holds what no other node may have, and is kept in `capsules/` for a person.
    SetAside,
}

/// Empties the store. The state is the last to be written that matters: before it, all is as it was; after it, what is
/// left of the log is no part of the store, and goes now or when the store is opened next.
pub(super) fn reset(store: &Store, log: Log) -> Result<(), StoreError> {
    let files = log_files(store)?;
    if log == Log::SetAside {
        set_aside(store, &files)?;
    }
    let fresh = super::state::random_uuid()?;
    store.update_state(|state| {
        let former = std::mem::replace(&mut state.store_uuid, fresh);
        state.former_store_uuids.push(former);
        let surplus = state.former_store_uuids.len().saturating_sub(FORMER_MAX);
        state.former_store_uuids.drain(..surplus);
        state.timelines.clear();
        state.promoting = None;
    })?;
    *store.identity_guard() = Identity::of(&store.state()).into();
    store.index().clear();
    store.publish();
    files.iter().try_for_each(|path| durable::remove(path))?;
    Ok(())
}

/// Segments and histories.
fn log_files(store: &Store) -> Result<Vec<PathBuf>, FileError> {
    let failed = |e| FileError::new("list", store.folder(), e);
    let mut files = Vec::new();
    for entry in fs::read_dir(store.folder()).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if folder::is_log_file(name, store.identity().segment_size) {
            files.push(path);
        }
    }
    Ok(files)
}

/// Gives every file a second name, so that removing the first loses nothing.
fn set_aside(store: &Store, files: &[PathBuf]) -> Result<(), FileError> {
    let aside = store.folder().join(CAPSULES_FOLDER).join(&store.identity().store_uuid);
    durable::create_folder(&aside)?;
    for path in files {
        let Some(name) = path.file_name() else { continue };
        let place = aside.join(name);
        durable::remove(&place)?;
        fs::hard_link(path, &place).map_err(|e| FileError::new("link to", &place, e))?;
    }
    durable::sync_folder(&aside)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{TIMELINE, files, new_store, read_all};
    use super::super::{Visibility, Writer};
    use super::*;
    use crate::pg::Lsn;
    use crate::pg::wal_fixture::RandomWal;

    /// A store with WAL of a few segments.
    fn filled(folder: &std::path::Path) -> (Store, Writer, RandomWal) {
        let wal = RandomWal::new(3, 2_000);
        let (store, mut writer) = new_store(folder, wal.start);
        writer.append(wal.start, &wal.bytes).unwrap();
        writer.sync().unwrap();
        (store, writer, wal)
    }

    fn note_promises(store: &Store) {
        store.update_state(|state| (state.promised_epoch, state.committed_epoch) = (5, 4)).unwrap();
    }

    #[test]
    fn an_emptied_store_is_another_one_that_keeps_its_promises() {
        let folder = tempfile::tempdir().unwrap();
        let (store, writer, wal) = filled(folder.path());
        note_promises(&store);
        let before = store.identity().store_uuid.clone();
        assert!(matches!(store.reset(Log::Remove), Err(StoreError::WriterTaken)));
        drop(writer);
        store.reset(Log::Remove).unwrap();
        let state = store.state();
        assert_eq!((state.promised_epoch, state.committed_epoch), (5, 4));
        assert!(state.store_uuid != before && state.former_store_uuids == [before]);
        assert_eq!(store.identity().store_uuid, state.store_uuid);
        assert_eq!((store.positions().borrow().timeline, store.disk_bytes()), (None, 0));
        assert!(files(folder.path()).is_empty());
        assert!(store.raw_cursor(TIMELINE, wal.start, Visibility::Appended).is_err());
        // It begins anew, also further on.
        let start = store.identity().segment_size.start_of(wal.end());
        let first = super::super::TimelineIdentity { timeline: TIMELINE, parent: None, branch: None };
        let mut writer = store.writer().unwrap();
        writer.begin_timeline(first, None, start).unwrap();
        writer.append(start, &[0; 8192]).unwrap();
        assert_eq!(read_all(&store, start, Visibility::Appended).len(), 8192);
        for _ in 0..FORMER_MAX + 3 {
            store.reset(Log::Remove).unwrap_err();
        }
        drop(writer);
        for _ in 0..FORMER_MAX + 3 {
            store.reset(Log::Remove).unwrap();
        }
        assert_eq!(store.state().former_store_uuids.len(), FORMER_MAX);
    }

    #[test]
    fn cut_off_after_the_state_it_is_empty_when_it_is_opened() {
        let folder = tempfile::tempdir().unwrap();
        let (store, writer, _) = filled(folder.path());
        drop(writer);
        let left = files(folder.path());
        store.reset(Log::Remove).unwrap();
        let uuid = store.identity().store_uuid.clone();
        drop(store);
        left.iter().for_each(|(name, content)| fs::write(folder.path().join(name), content).unwrap());
        let store = Store::open(folder.path()).unwrap();
        assert_eq!((&store.identity().store_uuid, store.disk_bytes()), (&uuid, 0));
        assert!(files(folder.path()).is_empty());
    }

    #[test]
    fn a_log_that_others_may_not_have_is_set_aside() {
        let folder = tempfile::tempdir().unwrap();
        let (store, writer, _) = filled(folder.path());
        fs::write(folder.path().join("00000002.history"), "1\t0/1\tx\n").unwrap();
        drop(writer);
        let before = files(folder.path());
        let aside = folder.path().join(CAPSULES_FOLDER).join(&store.identity().store_uuid);
        store.reset(Log::SetAside).unwrap();
        assert_eq!(files(&aside), before);
        assert!(aside.join("00000002.history").exists() && !folder.path().join("00000002.history").exists());
        assert_eq!(store.positions().borrow().appended, Lsn::INVALID);
    }
}
