//! The one writer of a store.

use super::cursor::{Chunk, OpenFrame};
use super::folder::{self, Form};
use super::index::Key;
use super::open_segment::OpenSegment;
use super::{Part, Store, StoreError, TimelineIdentity, cut, recovery};
use crate::durable;
use crate::failpoint;
use crate::pg::{Lsn, TimelineId};

/// Appends to the newest timeline. All methods block.
///
/// After an error of an appending method the writer refuses everything: drop it and ask the store for a new one,
/// which recovers what was whole.
pub struct Writer {
    store: Store,
    open: Option<OpenSegment>,
    broken: bool,
}

impl Writer {
    pub(super) fn open(store: Store) -> Result<Writer, StoreError> {
        // From here on its drop gives the place back.
        let mut writer = Writer { store: store.clone(), open: None, broken: false };
        store.check_usable()?;
        writer.reopen()?;
        Ok(writer)
    }

    /// Goes on with the segment that the newest timeline ends in, unless that is whole.
    fn reopen(&mut self) -> Result<(), StoreError> {
        let (store, size) = (self.store.clone(), self.store.identity().segment_size);
        let last = store.newest_timeline().and_then(|timeline| {
            let index = store.index();
            index.of_timeline(timeline).next_back().map(|(key, segment)| (*key, segment.clone()))
        });
        let Some((key, mut segment)) = last else { return Ok(()) };
        if segment.sealed && segment.appended.lsn == size.end_lsn(key.1) {
            return Ok(());
        }
        if segment.sealed {
            // Its timeline was to end here, but none followed: the seal goes as whatever else is no WAL.
            let path = folder::segment_path(store.folder(), size, key, Form::Open);
            durable::rename(&segment.path, &path)?;
            (segment.path, segment.sealed) = (path, false);
            store.index().insert(key, segment.clone());
        }
        let recovered = recovery::recover(&segment.path, key, size)?;
        assert!(recovered.end.lsn >= segment.durable.lsn, "recovery lost what was durable");
        let open = OpenSegment::reopen(key, recovered);
        let mut segment = open.as_segment();
        segment.durable = segment.appended;
        store.index().insert(key, segment);
        if open.end().lsn == size.end_lsn(key.1) {
            // Full, and the process ended before it was sealed.
            self.seal(open)?;
        } else {
            self.open = Some(open);
            store.publish();
        }
        Ok(())
    }

    /// The store it writes to.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The newest timeline and the position that the next byte must have; `None` before the first timeline.
    pub fn end(&self) -> Option<(TimelineId, Lsn)> {
        let timeline = self.store.newest_timeline()?;
        let end = match &self.open {
            Some(open) => open.end().lsn,
            None => self.store.end_of(timeline)?,
        };
        Some((timeline, end))
    }

    /// Begins a timeline at `start`, a segment's start. The one before must have been ended. Its history becomes
    /// durable before anything tells of it.
    pub fn begin_timeline(
        &mut self,
        identity: TimelineIdentity,
        history: Option<&[u8]>,
        start: Lsn,
    ) -> Result<(), StoreError> {
        let size = self.store.identity().segment_size;
        assert!(start == size.start_of(start), "a timeline's log begins at a segment's start");
        assert!(self.open.is_none(), "the timeline before has not been ended");
        let newest = self.store.newest_timeline();
        assert!(newest.is_none_or(|newest| newest < identity.timeline), "timelines only grow");
        let key = (identity.timeline, size.segment_of(start));
        if let Some(text) = history {
            self.add_history(identity.timeline, text)?;
        }
        let open = self.store.note_failure(Part::Log, self.create_segment(key))?;
        self.store.update_state(|state| state.timelines.push(identity))?;
        self.store.index().insert(key, open.as_segment());
        self.open = Some(open);
        self.store.publish();
        Ok(())
    }

    /// Keeps the history of an older timeline, which a standby may ask for.
    pub fn add_history(&mut self, timeline: TimelineId, text: &[u8]) -> Result<(), StoreError> {
        let written = durable::write(&self.store.folder().join(timeline.history_file_name()), text);
        self.store.note_failure(Part::Log, written.map_err(StoreError::from))
    }

    /// Ends the newest timeline at `lsn`, where the next one left it: its last segment is sealed short. What lies
    /// beyond is set aside as a capsule.
    pub fn end_timeline(&mut self, lsn: Lsn) -> Result<(), StoreError> {
        let Some((timeline, end)) = self.end() else { return Ok(()) };
        if lsn > end {
            return Err(StoreError::Beyond { timeline, lsn, end });
        }
        self.store.sync()?;
        if lsn < end {
            self.open = None;
            self.broken = true;
            let cut = cut::cut(&self.store, timeline, lsn);
            self.open = self.store.note_failure(Part::Log, cut)?;
            self.broken = false;
        }
        if let Some(open) = self.open.take() {
            self.seal(open)?;
        }
        Ok(())
    }

    /// Appends raw WAL as one batch. `lsn + raw.len()` must be a safe cut: the end of a message from PostgreSQL, or
    /// a page boundary. Readable at once, durable after [`Store::sync`].
    pub fn append(&mut self, lsn: Lsn, mut raw: &[u8]) -> Result<(), StoreError> {
        self.check_continues(lsn)?;
        let size = self.store.identity().segment_size;
        let mut at = lsn;
        while !raw.is_empty() {
            let room = size.end_lsn(size.segment_of(at)) - at;
            let (piece, rest) = raw.split_at(raw.len().min(room as usize));
            self.step(at, |open| open.append(piece))?;
            at = at + piece.len() as u64;
            raw = rest;
        }
        Ok(())
    }

    /// Appends compressed bytes as an upstream wrote them, having checked that they decode to what they say.
    pub fn append_chunk(&mut self, chunk: &Chunk) -> Result<(), StoreError> {
        self.check_continues(chunk.start)?;
        let size = self.store.identity().segment_size;
        let (timeline, _) = self.end().ok_or(StoreError::UnknownTimeline { timeline: chunk.timeline })?;
        if chunk.timeline != timeline {
            return Err(StoreError::UnknownTimeline { timeline: chunk.timeline });
        }
        if chunk.end < chunk.start || chunk.end > size.end_lsn(size.segment_of(chunk.start)) {
            return Err(StoreError::BadFrame("a chunk that reaches past its segment"));
        }
        self.step(chunk.start, |open| open.append_chunk(chunk))
    }

    /// fsyncs what was appended; see [`Store::sync`], which may run beside this writer.
    pub fn sync(&self) -> Result<Lsn, StoreError> {
        self.store.sync()
    }

    /// Where the log ends and which part of which frame it ends in: what a sender needs to go on at that byte.
    pub fn open_frame(&self) -> Result<OpenFrame, StoreError> {
        match &self.open {
            Some(open) => open.open_frame(),
            None => Ok(OpenFrame::none(self.end().map_or(Lsn::INVALID, |(_, end)| end))),
        }
    }

    fn check_continues(&self, lsn: Lsn) -> Result<(), StoreError> {
        self.store.check_usable()?;
        if self.broken {
            return Err(StoreError::Failed);
        }
        match self.end() {
            Some((_, end)) if end == lsn => Ok(()),
            Some((_, end)) => Err(StoreError::Gap { offered: lsn, end }),
            None => Err(StoreError::Gap { offered: lsn, end: Lsn::INVALID }),
        }
    }

    /// Appends, and takes note of whether the disk did.
    fn step(
        &mut self,
        at: Lsn,
        append: impl FnOnce(&mut OpenSegment) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let grown = self.grow(at, append);
        self.store.note(Part::Log, grown)
    }

    /// Appends to the segment at `at` within it, tells readers, and seals it when it is full.
    fn grow(
        &mut self,
        at: Lsn,
        append: impl FnOnce(&mut OpenSegment) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let size = self.store.identity().segment_size;
        self.broken = true;
        let mut open = match self.open.take() {
            Some(open) => open,
            None => self.next_segment(at)?,
        };
        append(&mut open)?;
        {
            let mut index = self.store.index();
            if let Some(segment) = index.get_mut(open.key) {
                let known = segment.frames.len();
                segment.frames.extend_from_slice(open.frames_since(known));
                segment.appended = open.end();
                segment.disk_bytes = open.end().offset;
                segment.tail = open.tail();
            }
        }
        if open.end().lsn == size.end_lsn(open.key.1) {
            self.seal(open)?;
        } else {
            self.open = Some(open);
            self.store.publish();
        }
        self.broken = false;
        Ok(())
    }

    fn next_segment(&self, at: Lsn) -> Result<OpenSegment, StoreError> {
        let size = self.store.identity().segment_size;
        let (timeline, _) = self.end().ok_or(StoreError::Gap { offered: at, end: Lsn::INVALID })?;
        assert!(at == size.start_of(at), "a sealed segment is followed by the next one's start");
        let open = self.create_segment((timeline, size.segment_of(at)))?;
        self.store.index().insert(open.key, open.as_segment());
        Ok(open)
    }

    /// Makes the file of a new segment. One that is there was left by an earlier try that failed behind this.
    fn create_segment(&self, key: Key) -> Result<OpenSegment, StoreError> {
        assert!(self.store.index().get(key).is_none(), "a segment is created once");
        let (folder, size) = (self.store.folder(), self.store.identity().segment_size);
        durable::remove(&folder::segment_path(folder, size, key, Form::Open))?;
        OpenSegment::create(folder, size, key)
    }

    fn seal(&self, open: OpenSegment) -> Result<(), StoreError> {
        let key = open.key;
        failpoint::hit("store.sync"); // a seal makes durable, too
        let sealed = open.seal(&self.store)?;
        self.store.index().insert(key, sealed);
        self.store.publish();
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.store.release_writer();
    }
}

#[cfg(test)]
mod tests;
