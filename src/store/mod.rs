//! The one log of a node: one writer, many readers.
//!
//! A folder with one file per WAL segment, `<timeline><segment>.zst`, or `….zst.part` while it grows, or
//! `….partial.zst` where a timeline ended within it; `<timeline>.history` as PostgreSQL writes them;
//! `walship.state`; the exposure log, `walship.exposures`; a lock. `zstdcat F > NAME` gives the segment as PostgreSQL streamed it.
//!
//! What always holds:
//!
//! * `appended ≥ durable ≥ sealed`, and each only grows while a timeline lasts.
//! * A reader never sees an end that is not a safe cut: [`Writer`] publishes only whole batches, and its callers
//!   end each batch at the end of a message from PostgreSQL or at a page boundary.
//! * A timeline's segments have no gap between them.
//!
//! All functions that touch files block: call them from blocking threads. [`Store::positions`] does not.

mod codec;
mod cursor;
mod cut;
mod duty;
mod error;
mod exposures;
mod fetch;
mod folder;
mod framed;
mod index;
mod open_segment;
mod recovery;
mod reset;
mod retention;
mod seal;
mod state;
mod timeline;
mod trouble;
mod walker;
mod writer;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::watch;

use crate::durable::{self, FileError};
use crate::failpoint;
use crate::pg::{Lsn, SegmentSize, TimelineId};
use crate::policy::Kept;

pub use codec::{COMPRESSION_LEVEL, FRAME_BYTES, FrameDecoder};
pub use cursor::{Chunk, Cursor, OpenFrame, RawCursor, RawStep, Step, Visibility};
pub use duty::{Announced, Duty};
pub use error::StoreError;
pub use exposures::{Closed, EXPOSURES_FILE, Exposure, Exposures};
pub use fetch::Fetched;
pub use index::Mark;
pub use reset::Log;
pub use retention::{Hold, Retention};
pub use state::{Configured, Forgotten, Member, MemberRole, NodeRole, Promise, Rewind, State, Superseded};
pub use timeline::{Branch, Fork, TimelineIdentity};
pub use trouble::{Part, Trouble, Troubles};
pub use writer::Writer;

use index::Index;

/// What a store is made for.
#[derive(Clone, Copy, Debug)]
pub struct NewStore {
    /// The cluster's system identifier.
    pub system_identifier: u64,
    /// The cluster's segment size.
    pub segment_size: SegmentSize,
}

/// What a store is, until it is emptied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Made at random with the store: a wiped node is a new node.
    pub store_uuid: String,
    /// The cluster whose WAL this is.
    pub system_identifier: u64,
    /// Its segment size.
    pub segment_size: SegmentSize,
}

impl Identity {
    fn of(state: &State) -> Identity {
        Identity {
            store_uuid: state.store_uuid.clone(),
            system_identifier: state.system_identifier,
            segment_size: state.segment_size,
        }
    }
}

/// How far the newest timeline reaches here.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Positions {
    /// The newest timeline; `None` in a store that never held anything.
    pub timeline: Option<TimelineId>,
    /// The first position kept of it.
    pub start: Lsn,
    /// Written to its file and readable: `ship` may send up to here.
    pub appended: Lsn,
    /// Fsynced: `feed` may send up to here, and this is what is reported as flushed.
    pub durable: Lsn,
    /// The end of its last sealed segment.
    pub sealed: Lsn,
}

/// The open store. Cheap to clone; the last clone releases the lock.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    folder: PathBuf,
    identity: Mutex<Arc<Identity>>,
    index: Mutex<Index>,
    state: Mutex<State>,
    /// Held while the state is written, so that readers of the state never wait for the disk.
    state_writer: Mutex<()>,
    positions: watch::Sender<Positions>,
    policy: watch::Sender<Kept>,
    exposures: watch::Sender<Exposures>,
    writer_taken: AtomicBool,
    /// Set when an fsync failed: what is on disk is unknown from then on, so nothing more is promised.
    failed: AtomicBool,
    /// Held during an fsync: of two at once the kernel tells only one that it failed.
    syncing: Mutex<()>,
    troubles: watch::Sender<Troubles>,
    _lock: File,
}

impl Store {
    /// Makes an empty store in `folder`, which may exist but must hold no store.
    pub fn create(folder: &Path, new: NewStore) -> Result<Store, StoreError> {
        durable::create_folder(folder)?;
        let lock = folder::lock(folder)?;
        let state_path = folder.join(folder::STATE_FILE);
        if state_path.exists() {
            return Err(StoreError::Exists { folder: folder.to_owned() });
        }
        let (state, exposures) = (State::new(new)?, Exposures::read(folder)?);
        state::write(&state_path, &state)?;
        Ok(Store::with(folder, lock, state, Index::default(), exposures))
    }

    /// Opens the store in `folder`, having recovered its open segment: the longest prefix that is whole.
    pub fn open(folder: &Path) -> Result<Store, StoreError> {
        if !Store::exists(folder) {
            return Err(StoreError::Missing { folder: folder.to_owned() });
        }
        let lock = folder::lock(folder)?;
        let state = state::read(&folder.join(folder::STATE_FILE))?;
        let index = folder::scan(folder, &state)?;
        Ok(Store::with(folder, lock, state, index, Exposures::read(folder)?))
    }

    /// What the store in `folder` is, without opening it; `None` where there is none.
    pub fn identity_in(folder: &Path) -> Result<Option<Identity>, StoreError> {
        Ok(Store::state_in(folder)?.as_ref().map(Identity::of))
    }

    /// True when `folder` holds a store.
    pub fn exists(folder: &Path) -> bool {
        folder.join(folder::STATE_FILE).exists()
    }

    /// The state of the store in `folder`, read without opening it, also while another process has it open; `None`
    /// where there is no store.
    pub fn state_in(folder: &Path) -> Result<Option<State>, StoreError> {
        if !Store::exists(folder) {
            return Ok(None);
        }
        state::read(&folder.join(folder::STATE_FILE)).map(Some)
    }

    fn with(folder: &Path, lock: File, state: State, index: Index, exposures: Exposures) -> Store {
        let identity = Identity::of(&state);
        let positions = index.positions(state.newest_timeline());
        let policy = watch::Sender::new(state.policy.clone());
        Store(Arc::new(Inner {
            folder: folder.to_owned(),
            identity: Mutex::new(Arc::new(identity)),
            index: Mutex::new(index),
            state: Mutex::new(state),
            state_writer: Mutex::new(()),
            positions: watch::Sender::new(positions),
            policy,
            exposures: watch::Sender::new(exposures),
            writer_taken: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            syncing: Mutex::new(()),
            troubles: watch::Sender::new(Troubles::new()),
            _lock: lock,
        }))
    }

    /// What this store is.
    pub fn identity(&self) -> Arc<Identity> {
        Arc::clone(&self.identity_guard())
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.0.folder
    }

    /// How far the newest timeline reaches; the receiver is told of every change.
    pub fn positions(&self) -> watch::Receiver<Positions> {
        self.0.positions.subscribe()
    }

    /// The writer; there is one at a time. Recovers the open segment first, so that what a failed writer left
    /// behind its last whole batch is gone.
    pub fn writer(&self) -> Result<Writer, StoreError> {
        if self.0.writer_taken.swap(true, Ordering::AcqRel) {
            return Err(StoreError::WriterTaken);
        }
        let opened = Writer::open(self.clone());
        self.note_failure(Part::Log, opened)
    }

    fn release_writer(&self) {
        self.0.writer_taken.store(false, Ordering::Release);
    }

    /// fsyncs what is appended; gives the position that is durable now. May run beside the writer: one call covers
    /// all that arrived while the last one ran.
    pub fn sync(&self) -> Result<Lsn, StoreError> {
        self.check_usable()?;
        let Some((file, path, key, appended)) = self.index().open_file() else {
            return Ok(self.0.positions.borrow().durable);
        };
        failpoint::hit("store.sync");
        self.sync_file(&file, &path)?;
        self.index().mark_durable(key, &file, appended);
        self.publish();
        Ok(self.0.positions.borrow().durable)
    }

    /// fsyncs a file of the log.
    fn sync_file(&self, file: &File, path: &Path) -> Result<(), StoreError> {
        let _syncing = self.0.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        self.check_usable()?;
        let synced = match failpoint::error("store.fsync") {
            Some(error) => Err(FileError::new("fsync", path, error)),
            None => durable::sync_data(file, path),
        };
        self.note_failure(Part::Log, synced.map_err(StoreError::from))
    }

    /// True when an fsync failed: only a restart, which reads back what is on the disk, can go on.
    pub fn has_failed(&self) -> bool {
        self.0.failed.load(Ordering::Acquire)
    }

    /// A reader of compressed chunks from `lsn` of `timeline`.
    pub fn cursor(
        &self,
        timeline: TimelineId,
        lsn: Lsn,
        visibility: Visibility,
    ) -> Result<Cursor, StoreError> {
        Cursor::open(self.clone(), timeline, lsn, visibility)
    }

    /// A reader of raw WAL from `lsn` of `timeline`.
    pub fn raw_cursor(
        &self,
        timeline: TimelineId,
        lsn: Lsn,
        visibility: Visibility,
    ) -> Result<RawCursor, StoreError> {
        RawCursor::open(self.clone(), timeline, lsn, visibility)
    }

    /// The raw text of a timeline's history; `None` for the first timeline and for unknown ones.
    pub fn history(&self, timeline: TimelineId) -> Result<Option<Bytes>, StoreError> {
        folder::read_history(&self.0.folder, timeline)
    }

    /// The timeline that the store is on; `None` while it is empty.
    pub fn newest_timeline(&self) -> Option<TimelineId> {
        self.state().newest_timeline()
    }

    /// Where a past timeline ended, and which one followed it, on the way to the newest.
    pub fn switch_of(&self, timeline: TimelineId) -> Option<(TimelineId, Lsn)> {
        self.state().switch_of(timeline)
    }

    /// The oldest timeline that there is WAL of, and the first position kept of it.
    pub fn oldest(&self) -> Option<(TimelineId, Lsn)> {
        self.index().iter().next().map(|((timeline, _), segment)| (*timeline, segment.start))
    }

    /// The first position kept of a timeline.
    pub fn start_of(&self, timeline: TimelineId) -> Option<Lsn> {
        self.index().first(timeline).map(|segment| segment.start)
    }

    /// The end of what is kept of a timeline.
    pub fn end_of(&self, timeline: TimelineId) -> Option<Lsn> {
        self.index().last(timeline).map(|segment| segment.appended.lsn)
    }

    /// The end of the last whole record that is durable on `timeline`: what a drained standby must have replayed.
    /// `None` when no record ends in what is kept.
    pub fn last_record_end(&self, timeline: TimelineId) -> Result<Option<Lsn>, StoreError> {
        recovery::last_record_end(self, timeline)
    }

    /// A copy of the state.
    pub fn state(&self) -> State {
        self.state_guard().clone()
    }

    /// The acknowledgement policy; the receiver is told of a change when that is on disk.
    pub fn policy(&self) -> watch::Receiver<Kept> {
        self.0.policy.subscribe()
    }

    /// The member of that name, as the state has it.
    pub fn member(&self, name: &str) -> Option<Member> {
        self.state_guard().member(name).cloned()
    }

    /// Changes the state durably: when this returns, the change is on disk.
    pub fn update_state(&self, change: impl FnOnce(&mut State)) -> Result<(), StoreError> {
        let _writing = self.0.state_writer.lock().unwrap_or_else(PoisonError::into_inner);
        let known = self.state();
        let mut changed = known.clone();
        change(&mut changed);
        if changed != known {
            let written = state::write(&self.0.folder.join(folder::STATE_FILE), &changed);
            self.note(Part::State, written)?;
            let policy = changed.policy.clone();
            *self.state_guard() = changed;
            self.0.policy.send_if_modified(|known| std::mem::replace(known, policy.clone()) != policy);
        }
        Ok(())
    }

    /// Forgets all WAL, so that the log begins anew where PostgreSQL's still reaches; who this node is stays. Every
    /// standby is behind a gap then. Nobody may write or read meanwhile. Blocks.
    pub fn forget_log(&self) -> Result<(), StoreError> {
        assert!(!self.0.writer_taken.load(Ordering::Acquire), "nobody writes");
        // From here on what is left of it goes at the next open: it is of timelines that are not known.
        self.update_state(|state| {
            state.timelines.clear();
            state.members.iter_mut().for_each(|member| member.let_go = true);
        })?;
        let keys: Vec<index::Key> = self.index().iter().map(|(key, _)| *key).collect();
        for key in keys {
            let segment = self.index().remove(key);
            if let Some(segment) = segment {
                durable::remove(&segment.path)?;
            }
        }
        self.publish();
        Ok(())
    }

    /// Keeps WAL from `from` of a timeline, which no log of this cluster leads to, as a capsule for a person.
    pub fn keep_aside(&self, timeline: TimelineId, from: Lsn, raw: &[u8]) -> Result<(), StoreError> {
        cut::keep(self, timeline, from, raw)
    }

    /// Bytes that the segments take on disk.
    pub fn disk_bytes(&self) -> u64 {
        self.index().disk_bytes()
    }

    /// Applies retention: removes sealed segments that nobody holds back; says what was done and who was let go.
    pub fn retain(&self, holds: &[Hold], max_bytes: u64) -> Result<Retention, StoreError> {
        retention::apply(self, holds, max_bytes)
    }

    /// Keeps all WAL of a timeline from a position on as a capsule, for a person; its file. The store stays as it is. Blocks.
    pub fn keep_from(&self, timeline: TimelineId, from: Lsn) -> Result<PathBuf, StoreError> {
        cut::write_capsule(self, timeline, from)
    }

    /// Empties the store and makes it another one, for a node that is seeded anew. There must be no writer; readers
    /// find that nothing of what they read is kept.
    pub fn reset(&self, log: Log) -> Result<(), StoreError> {
        self.check_usable()?;
        if self.0.writer_taken.swap(true, Ordering::AcqRel) {
            return Err(StoreError::WriterTaken);
        }
        let done = reset::reset(self, log);
        self.release_writer();
        done
    }

    fn identity_guard(&self) -> MutexGuard<'_, Arc<Identity>> {
        self.0.identity.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.0.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state_guard(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_usable(&self) -> Result<(), StoreError> {
        if self.has_failed() { Err(StoreError::Failed) } else { Ok(()) }
    }

    /// Tells readers how far the newest timeline reaches now.
    fn publish(&self) {
        let newest = self.newest_timeline();
        let positions = self.index().positions(newest);
        assert!(
            positions.appended >= positions.durable && positions.durable >= positions.sealed,
            "{positions:?}"
        );
        self.0.positions.send_if_modified(|current| {
            let changed = *current != positions;
            *current = positions;
            changed
        });
    }
}

#[cfg(test)]
mod tests;
