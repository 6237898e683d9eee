//! Readers: one that gives the compressed bytes as they were written, one that gives raw WAL.
//!
//! A reader that is caught up and one that is a week behind run the same code. Both are positions: they hold a file
//! handle and at most one frame's content, and may be dropped and made anew at any time. Reading blocks; waiting
//! for more is the caller's, on [`Store::positions`].

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::codec::{FrameDecoder, FrameEncoder};
use super::walker::Walker;
use super::{Store, StoreError};
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

    /// What [`Cursor::next`] would say, when that takes neither disk nor zstd: for a reader in step, which is about to
    /// read what the writer has in memory still. `None`: ask `next`, on a blocking thread.
    pub fn ready(&mut self) -> Option<Step> {
        if self.private.is_some() { None } else { self.walker.ready() }
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

    /// True when [`RawCursor::next`] would find nothing more for now, as far as that can be said without the disk.
    pub fn is_at_end(&self) -> bool {
        self.walker.is_at_end()
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
