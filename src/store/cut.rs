//! Cutting a timeline where the next one left it, when it reaches further here.
//!
//! The surplus is WAL that nobody will ever continue: it is kept as a capsule in `capsules/`, for a person.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use super::codec::FrameEncoder;
use super::folder::{self, CAPSULES_FOLDER, Form};
use super::index::Key;
use super::open_segment::OpenSegment;
use super::{RawStep, Store, StoreError, Visibility};
use crate::durable::{self, FileError};
use crate::pg::{Lsn, TimelineId};

/// Cuts `timeline` at `lsn`; gives the segment that holds `lsn`, open and ending there, to be sealed short; `None`
/// when `lsn` is the start of a segment, as the one before is sealed already.
///
/// The capsule is durable before anything is removed, so a crash at any point repeats the cut or finds it done.
pub(super) fn cut(store: &Store, timeline: TimelineId, lsn: Lsn) -> Result<Option<OpenSegment>, StoreError> {
    let size = store.identity().segment_size;
    let start = size.start_of(lsn);
    let kept = read_raw(store, timeline, start, lsn)?;
    write_capsule(store, timeline, lsn)?;
    let surplus: Vec<Key> = store
        .index()
        .of_timeline(timeline)
        .filter(|(_, segment)| segment.start >= start)
        .map(|(key, _)| *key)
        .collect();
    let folder = store.folder();
    let mut open = None;
    for key in surplus.into_iter().rev() {
        let Some(segment) = store.index().remove(key) else { continue };
        let again = segment.start == start && !kept.is_empty();
        if again {
            open = Some(rewrite(folder, store, key, &kept)?);
        }
        if !again || segment.path != folder::segment_path(folder, size, key, Form::Open) {
            durable::remove(&segment.path)?;
        }
    }
    Ok(open)
}

/// Writes the kept part of a segment to a file of its own and puts it in the place of the open one.
fn rewrite(folder: &Path, store: &Store, key: Key, kept: &[u8]) -> Result<OpenSegment, StoreError> {
    let size = store.identity().segment_size;
    let aside = folder.join("cut");
    durable::create_folder(&aside)?;
    let temporary = folder::segment_path(&aside, size, key, Form::Open);
    durable::remove(&temporary)?;
    let mut open = OpenSegment::create(&aside, size, key)?;
    open.append(kept)?;
    drop(open);
    let path = folder::segment_path(folder, size, key, Form::Open);
    let recovered = super::recovery::recover(&temporary, key, size)?;
    drop(recovered);
    durable::rename(&temporary, &path)?;
    fs::remove_dir(&aside).map_err(|e| FileError::new("remove", &aside, e))?;
    let open = OpenSegment::reopen(key, super::recovery::recover(&path, key, size)?);
    store.index().insert(key, open.as_segment());
    Ok(open)
}

/// Keeps all WAL of a timeline from `from` on as a capsule; its file. It may be more than the memory holds.
pub(super) fn write_capsule(store: &Store, timeline: TimelineId, from: Lsn) -> Result<PathBuf, StoreError> {
    let mut capsule = Capsule::begin(store, timeline, from)?;
    let mut cursor = store.raw_cursor(timeline, from, Visibility::Appended)?;
    while let RawStep::Bytes { data, .. } = cursor.next()? {
        capsule.write(&data)?;
    }
    capsule.finish()
}

/// Keeps raw WAL as a capsule.
pub(super) fn keep(store: &Store, timeline: TimelineId, from: Lsn, raw: &[u8]) -> Result<(), StoreError> {
    let mut capsule = Capsule::begin(store, timeline, from)?;
    capsule.write(raw)?;
    capsule.finish().map(drop)
}

/// A capsule that is being written, beside its place: its name says where its WAL ends.
struct Capsule {
    timeline: TimelineId,
    from: Lsn,
    end: Lsn,
    folder: PathBuf,
    temporary: PathBuf,
    file: File,
    encoder: FrameEncoder,
    /// Compressed and not written yet.
    bytes: Vec<u8>,
}

impl Capsule {
    fn begin(store: &Store, timeline: TimelineId, from: Lsn) -> Result<Capsule, StoreError> {
        let folder = store.folder().join(CAPSULES_FOLDER);
        durable::create_folder(&folder)?;
        let temporary = folder.join(format!("{:08X}-{:016X}.tmp", timeline.0, from.0));
        durable::remove(&temporary)?;
        let file = durable::create_new(&temporary)?;
        let (encoder, bytes) = (FrameEncoder::new()?, Vec::new());
        Ok(Capsule { timeline, from, end: from, folder, temporary, file, encoder, bytes })
    }

    fn write(&mut self, raw: &[u8]) -> Result<(), StoreError> {
        self.encoder.write(raw, &mut self.bytes)?;
        self.end = self.end + raw.len() as u64;
        self.file.write_all(&self.bytes).map_err(|e| FileError::new("write", &self.temporary, e))?;
        self.bytes.clear();
        Ok(())
    }

    fn finish(mut self) -> Result<PathBuf, StoreError> {
        self.encoder.finish(&mut self.bytes)?;
        self.file.write_all(&self.bytes).map_err(|e| FileError::new("write", &self.temporary, e))?;
        durable::sync_data(&self.file, &self.temporary)?;
        let name = format!("{:08X}-{:016X}-{:016X}.wal.zst", self.timeline.0, self.from.0, self.end.0);
        let path = self.folder.join(name);
        durable::rename(&self.temporary, &path)?;
        Ok(path)
    }
}

/// Raw WAL from `from` to `to`: less than a segment.
fn read_raw(store: &Store, timeline: TimelineId, from: Lsn, to: Lsn) -> Result<Vec<u8>, StoreError> {
    let mut raw = Vec::new();
    let mut cursor = store.raw_cursor(timeline, from, Visibility::Appended)?;
    while from + (raw.len() as u64) < to {
        match cursor.next()? {
            RawStep::Bytes { data, .. } => raw.extend_from_slice(&data),
            RawStep::AtEnd | RawStep::Switched { .. } => break,
        }
    }
    raw.truncate(to.bytes_since(from) as usize);
    Ok(raw)
}
