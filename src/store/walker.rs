//! The walk over the frames of a timeline: what both kinds of reader stand on.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::cursor::{Chunk, OpenFrame, Step, Visibility};
use super::index::{Key, Segment};
use super::{Mark, Store, StoreError};
use crate::durable::FileError;
use crate::pg::{Lsn, TimelineId};

/// Walks the frames of a timeline in order, from the start of the frame that holds the position asked for.
pub(super) struct Walker {
    store: Store,
    timeline: TimelineId,
    visibility: Visibility,
    /// The position of the next chunk, or the one that is waited for.
    pub(super) lsn: Lsn,
    place: Option<Place>,
}

/// Where a walker stands in a file.
struct Place {
    key: Key,
    file: Arc<File>,
    inode: u64,
    mark: Mark,
}

/// What the index says of a place.
enum View {
    Piece {
        end: Mark,
        opens_frame: bool,
        /// When they are in memory still.
        bytes: Option<Bytes>,
    },
    NoMore {
        sealed: bool,
    },
    Gone,
}

impl Walker {
    pub(super) fn open(
        store: Store,
        timeline: TimelineId,
        lsn: Lsn,
        visibility: Visibility,
    ) -> Result<Walker, StoreError> {
        let mut walker = Walker { store, timeline, visibility, lsn, place: None };
        walker.locate()?;
        Ok(walker)
    }

    pub(super) fn next(&mut self) -> Result<Step, StoreError> {
        loop {
            let Some(place) = self.place.as_ref() else {
                if !self.locate()? {
                    return Ok(self.no_more());
                }
                continue;
            };
            match self.view(place) {
                View::Piece { end, opens_frame, bytes } => {
                    let bytes = match bytes {
                        Some(bytes) => bytes,
                        None => self.read(end)?,
                    };
                    return Ok(Step::Chunk(self.advance(end, opens_frame, bytes)));
                }
                // One sealed short has no successor on its timeline.
                View::NoMore { sealed: true } if self.at_segment_end(place.mark.lsn) => self.place = None,
                View::NoMore { .. } => return Ok(self.no_more()),
                // Removed by retention, or replaced by a cut, while it was read.
                View::Gone => self.place = None,
            }
        }
    }

    /// What [`Walker::next`] would say, when that takes no file: never a wait, at most the index's lock.
    pub(super) fn ready(&mut self) -> Option<Step> {
        let place = self.place.as_ref().filter(|place| place.mark.lsn == self.lsn)?;
        match self.view(place) {
            View::Piece { end, opens_frame, bytes } => {
                Some(Step::Chunk(self.advance(end, opens_frame, bytes?)))
            }
            View::NoMore { sealed: false } => Some(self.no_more()),
            View::NoMore { sealed: true } | View::Gone => None,
        }
    }

    /// Whether it stands at the end of a file that grows, and has to wait: at most the index's lock.
    pub(super) fn is_at_end(&self) -> bool {
        let place = self.place.as_ref().filter(|place| place.mark.lsn == self.lsn);
        let is_last = |place| matches!(self.view(place), View::NoMore { sealed: false });
        place.is_some_and(is_last) && self.no_more() == Step::AtEnd
    }

    fn at_segment_end(&self, lsn: Lsn) -> bool {
        lsn == self.store.identity().segment_size.start_of(lsn) && lsn == self.lsn
    }

    fn no_more(&self) -> Step {
        match self.store.switch_of(self.timeline) {
            Some((next, lsn)) if self.lsn >= lsn => Step::Switched { next, lsn },
            _ => Step::AtEnd,
        }
    }

    fn view(&self, place: &Place) -> View {
        let index = self.store.index();
        let Some(segment) = index.get(place.key).filter(|segment| segment.inode == place.inode) else {
            return View::Gone;
        };
        let visible = self.visible(segment);
        let next = segment.frames.partition_point(|frame| frame.offset <= place.mark.offset);
        let end = segment
            .frames
            .get(next)
            .copied()
            .filter(|frame| frame.offset <= visible.offset)
            .unwrap_or(visible);
        if end.offset <= place.mark.offset {
            return View::NoMore { sealed: segment.sealed };
        }
        let opens_frame = next > 0 && segment.frames[next - 1].offset == place.mark.offset;
        let bytes = segment.tail.get(place.mark.offset, end.offset);
        View::Piece { end, opens_frame, bytes }
    }

    fn visible(&self, segment: &Segment) -> Mark {
        match self.visibility {
            Visibility::Appended => segment.appended,
            Visibility::Durable => segment.durable,
        }
    }

    fn read(&self, end: Mark) -> Result<Bytes, StoreError> {
        let Some(place) = self.place.as_ref() else { unreachable!("read without a place") };
        let mut bytes = vec![0; (end.offset - place.mark.offset) as usize];
        place
            .file
            .read_exact_at(&mut bytes, place.mark.offset)
            .map_err(|e| FileError::new("read WAL of", self.store.folder(), e))?;
        Ok(bytes.into())
    }

    /// Passes over the bytes up to `end`: the chunk that they are.
    fn advance(&mut self, end: Mark, opens_frame: bool, bytes: Bytes) -> Chunk {
        let Some(place) = self.place.as_mut() else { unreachable!("advance without a place") };
        let start = std::mem::replace(&mut place.mark, end).lsn;
        self.lsn = self.lsn.max(end.lsn);
        Chunk { timeline: self.timeline, start, end: end.lsn, opens_frame, bytes }
    }

    /// Finds the frame that holds `lsn`; false while it is not there yet.
    fn locate(&mut self) -> Result<bool, StoreError> {
        // A file may be removed, or sealed and so closed, between the look into the index and the open: look again.
        for _ in 0..3 {
            let Some((key, segment, mark)) = self.find_frame()? else { return Ok(false) };
            // One that grows is about to be renamed: it is read by the writer's own handle.
            let file = match segment.file {
                Some(file) => file,
                None => match File::open(&segment.path) {
                    Ok(file) => Arc::new(file),
                    Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                    Err(e) => return Err(FileError::new("open", &segment.path, e).into()),
                },
            };
            let inode = file.metadata().map_err(|e| FileError::new("read", &segment.path, e))?.ino();
            self.place = Some(Place { key, file, inode, mark });
            return Ok(true);
        }
        Err(self.removed(self.lsn))
    }

    fn find_frame(&self) -> Result<Option<(Key, Segment, Mark)>, StoreError> {
        if self.store.state().identity_of(self.timeline).is_none() {
            return Err(StoreError::UnknownTimeline { timeline: self.timeline });
        }
        let key = (self.timeline, self.store.identity().segment_size.segment_of(self.lsn));
        let index = self.store.index();
        let Some(segment) = index.get(key) else {
            let start = index.first(self.timeline).map(|segment| segment.start);
            drop(index);
            // Of a timeline that ended with a segment nothing may be left but its end.
            let is_over = self.store.switch_of(self.timeline).is_some_and(|(_, lsn)| self.lsn >= lsn);
            return match start {
                Some(start) if self.lsn >= start => Ok(None),
                None if is_over => Ok(None),
                _ => Err(self.removed(start.unwrap_or(self.lsn))),
            };
        };
        if self.visible(segment).lsn < self.lsn {
            return Ok(None);
        }
        let frame = segment.frames.partition_point(|frame| frame.lsn <= self.lsn);
        let mark = frame.checked_sub(1).map(|at| segment.frames[at]);
        // Nothing is written yet, or nothing of this frame may be seen yet.
        let mark = mark.filter(|mark| mark.offset < self.visible(segment).offset);
        Ok(mark.map(|mark| (key, segment.clone(), mark)))
    }

    /// Moves into the frame that `frame` is the beginning of, when its bytes stand here too.
    pub(super) fn seek_within(&mut self, frame: &OpenFrame) -> Result<(), StoreError> {
        let lsn = self.lsn;
        let Some(place) = self.place.as_mut().filter(|place| place.mark.lsn == frame.start) else {
            return Ok(());
        };
        let frame_end = {
            let index = self.store.index();
            let Some(segment) = index.get(place.key) else { return Ok(()) };
            let next = segment.frames.partition_point(|mark| mark.offset <= place.mark.offset);
            segment.frames.get(next).map_or(segment.appended.offset, |mark| mark.offset)
        };
        // The length is a peer's word.
        if frame.bytes > frame_end.saturating_sub(place.mark.offset) {
            return Ok(());
        }
        let mut bytes = vec![0; frame.bytes as usize];
        place
            .file
            .read_exact_at(&mut bytes, place.mark.offset)
            .map_err(|e| FileError::new("read WAL of", self.store.folder(), e))?;
        if <[u8; 32]>::from(Sha256::digest(&bytes)) == frame.sha256 {
            place.mark = Mark { lsn, offset: place.mark.offset + frame.bytes };
        }
        Ok(())
    }

    fn removed(&self, start: Lsn) -> StoreError {
        StoreError::Removed { timeline: self.timeline, lsn: self.lsn, start }
    }
}
