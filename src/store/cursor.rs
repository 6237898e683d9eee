//! Readers: one that gives the compressed bytes as they were written, one that gives raw WAL.
//!
//! A reader that is caught up and one that is a week behind run the same code. Both are positions: they hold a file
//! handle and at most one frame's content, and may be dropped and made anew at any time. Reading blocks; waiting
//! for more is the caller's, on [`Store::positions`].

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::codec::{FrameDecoder, FrameEncoder};
use super::index::{Key, Segment};
use super::{Mark, Store, StoreError};
use crate::durable::FileError;
use crate::pg::{Lsn, TimelineId};

/// How far a reader may see.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Visibility {
    /// All that is written: for other nodes, which fsync for themselves.
    Appended,
    /// Only what is fsynced here: for the local PostgreSQL, which must not outlive its store.
    Durable,
}

/// A piece of one frame as it stands in a segment file. Both ends are safe cuts. One that ends a frame late holds
/// no WAL, only the bytes that close it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Chunk {
    /// Whose WAL.
    pub timeline: TimelineId,
    /// Its first position.
    pub start: Lsn,
    /// The position after it.
    pub end: Lsn,
    /// It begins a frame; if the one before is open at the reader, it is to be closed first.
    pub opens_frame: bool,
    /// zstd.
    pub bytes: Bytes,
}

/// What a reader of chunks finds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// The next piece.
    Chunk(Chunk),
    /// Nothing more for now.
    AtEnd,
    /// The timeline ended; the next one goes on from `lsn`.
    Switched {
        /// The timeline that follows.
        next: TimelineId,
        /// Where.
        lsn: Lsn,
    },
}

/// What a reader of raw WAL finds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RawStep {
    /// The next bytes: at most a frame, ending at a safe cut.
    Bytes {
        /// Their first position.
        start: Lsn,
        /// Raw WAL, never empty.
        data: Bytes,
    },
    /// Nothing more for now.
    AtEnd,
    /// The timeline ended; the next one goes on from `lsn`.
    Switched {
        /// The timeline that follows.
        next: TimelineId,
        /// Where.
        lsn: Lsn,
    },
}

/// The part of a frame that a log ends in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OpenFrame {
    /// Where the frame begins; the end of the log when none is open.
    pub start: Lsn,
    /// How many compressed bytes of it there are; zero when none is open.
    pub bytes: u64,
    /// SHA-256 of those.
    pub sha256: [u8; 32],
}

impl OpenFrame {
    /// A log that ends between frames, at `end`.
    pub fn none(end: Lsn) -> OpenFrame {
        OpenFrame { start: end, bytes: 0, sha256: Sha256::digest(b"").into() }
    }
}

/// Reads chunks that begin exactly at the position asked for. Where no frame begins there, a private frame is made
/// from that position to the next frame.
pub struct Cursor {
    walker: Walker,
    private: Option<Private>,
}

struct Private {
    decoder: FrameDecoder,
    encoder: Option<FrameEncoder>,
    skip_to: Lsn,
}

/// Reads raw WAL.
pub struct RawCursor {
    walker: Walker,
    decoder: Option<FrameDecoder>,
}

impl Cursor {
    pub(super) fn open(
        store: Store,
        timeline: TimelineId,
        lsn: Lsn,
        visibility: Visibility,
    ) -> Result<Cursor, StoreError> {
        let walker = Walker::open(store, timeline, lsn, visibility)?;
        Ok(Cursor { walker, private: None })
    }

    /// Goes on within a frame that the reader has begun, when the same bytes stand here; otherwise from its end with
    /// a private frame.
    pub fn resume(mut self, frame: &OpenFrame) -> Result<Cursor, StoreError> {
        if frame.bytes > 0 {
            self.walker.seek_within(frame)?;
        }
        Ok(self)
    }

    /// The position of the next chunk.
    pub fn lsn(&self) -> Lsn {
        self.walker.lsn
    }

    /// The next chunk, or why there is none.
    #[allow(clippy::should_implement_trait, reason = "an iterator ends; a log does not")]
    pub fn next(&mut self) -> Result<Step, StoreError> {
        loop {
            let wanted = self.walker.lsn;
            let chunk = match self.walker.next()? {
                Step::Chunk(chunk) => chunk,
                other => return Ok(other),
            };
            if chunk.opens_frame {
                let early = chunk.start < wanted;
                self.private = if early { Some(Private::new(wanted)?) } else { None };
            }
            match self.private.take() {
                None => return Ok(Step::Chunk(chunk)),
                Some(private) => {
                    if let Some(chunk) = self.recode(private, chunk)? {
                        return Ok(Step::Chunk(chunk));
                    }
                }
            }
        }
    }

    /// Decodes a chunk of a frame that began too early, and encodes what the reader lacks of it.
    fn recode(&mut self, mut private: Private, chunk: Chunk) -> Result<Option<Chunk>, StoreError> {
        let mut raw = Vec::new();
        private.decoder.read(&chunk.bytes, &mut raw)?;
        let ended = private.decoder.ended();
        let skipped = private.skip_to.bytes_since(chunk.start).min(raw.len() as u64);
        let raw = &raw[skipped as usize..];
        let opens_frame = private.encoder.is_none();
        if raw.is_empty() && (opens_frame || !ended) {
            self.private = (!ended).then_some(private);
            return Ok(None);
        }
        let mut encoder = match private.encoder.take() {
            Some(encoder) => encoder,
            None => FrameEncoder::new()?,
        };
        let mut bytes = Vec::new();
        encoder.write(raw, &mut bytes)?;
        if ended {
            encoder.finish(&mut bytes)?;
        } else {
            encoder.flush(&mut bytes)?;
            private.encoder = Some(encoder);
            self.private = Some(private);
        }
        Ok(Some(Chunk { start: chunk.start + skipped, opens_frame, bytes: bytes.into(), ..chunk }))
    }
}

impl Private {
    fn new(skip_to: Lsn) -> Result<Private, StoreError> {
        Ok(Private { decoder: FrameDecoder::new()?, encoder: None, skip_to })
    }
}

impl RawCursor {
    pub(super) fn open(
        store: Store,
        timeline: TimelineId,
        lsn: Lsn,
        visibility: Visibility,
    ) -> Result<RawCursor, StoreError> {
        Ok(RawCursor { walker: Walker::open(store, timeline, lsn, visibility)?, decoder: None })
    }

    /// The next bytes, or why there are none.
    #[allow(clippy::should_implement_trait, reason = "an iterator ends; a log does not")]
    pub fn next(&mut self) -> Result<RawStep, StoreError> {
        loop {
            let wanted = self.walker.lsn;
            let chunk = match self.walker.next()? {
                Step::Chunk(chunk) => chunk,
                Step::AtEnd => return Ok(RawStep::AtEnd),
                Step::Switched { next, lsn } => return Ok(RawStep::Switched { next, lsn }),
            };
            let mut decoder = match self.decoder.take().filter(|_| !chunk.opens_frame) {
                Some(decoder) => decoder,
                None => FrameDecoder::new()?,
            };
            let mut raw = Vec::new();
            decoder.read(&chunk.bytes, &mut raw)?;
            if raw.len() as u64 != chunk.end - chunk.start {
                return Err(StoreError::BadFrame(
                    "a segment file whose frames are not as long as its index says",
                ));
            }
            self.decoder = Some(decoder);
            let skipped = wanted.bytes_since(chunk.start).min(raw.len() as u64);
            if skipped < raw.len() as u64 {
                let data = Bytes::from(raw).slice(skipped as usize..);
                return Ok(RawStep::Bytes { start: chunk.start + skipped, data });
            }
        }
    }
}

/// Walks the frames of a timeline in order, from the start of the frame that holds the position asked for.
struct Walker {
    store: Store,
    timeline: TimelineId,
    visibility: Visibility,
    /// The position of the next chunk, or the one that is waited for.
    lsn: Lsn,
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
    Piece { end: Mark, opens_frame: bool },
    NoMore { sealed: bool },
    Gone,
}

impl Walker {
    fn open(
        store: Store,
        timeline: TimelineId,
        lsn: Lsn,
        visibility: Visibility,
    ) -> Result<Walker, StoreError> {
        let mut walker = Walker { store, timeline, visibility, lsn, place: None };
        walker.locate()?;
        Ok(walker)
    }

    fn next(&mut self) -> Result<Step, StoreError> {
        loop {
            let Some(place) = self.place.as_ref() else {
                if !self.locate()? {
                    return Ok(self.no_more());
                }
                continue;
            };
            match self.view(place) {
                View::Piece { end, opens_frame } => return self.read(end, opens_frame).map(Step::Chunk),
                // One sealed short has no successor on its timeline.
                View::NoMore { sealed: true } if self.at_segment_end(place.mark.lsn) => self.place = None,
                View::NoMore { .. } => return Ok(self.no_more()),
                // Removed by retention, or replaced by a cut, while it was read.
                View::Gone => self.place = None,
            }
        }
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
        View::Piece { end, opens_frame }
    }

    fn visible(&self, segment: &Segment) -> Mark {
        match self.visibility {
            Visibility::Appended => segment.appended,
            Visibility::Durable => segment.durable,
        }
    }

    fn read(&mut self, end: Mark, opens_frame: bool) -> Result<Chunk, StoreError> {
        let Some(place) = self.place.as_mut() else { unreachable!("read without a place") };
        let mut bytes = vec![0; (end.offset - place.mark.offset) as usize];
        place
            .file
            .read_exact_at(&mut bytes, place.mark.offset)
            .map_err(|e| FileError::new("read WAL of", self.store.folder(), e))?;
        let start = place.mark.lsn;
        place.mark = end;
        self.lsn = self.lsn.max(end.lsn);
        Ok(Chunk { timeline: self.timeline, start, end: end.lsn, opens_frame, bytes: bytes.into() })
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
    fn seek_within(&mut self, frame: &OpenFrame) -> Result<(), StoreError> {
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
