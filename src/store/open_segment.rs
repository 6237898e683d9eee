//! The segment that grows: one file, its open frame, and the hash of its content.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::codec::{EMPTY_LAST_BLOCK, FRAME_BYTES, FrameDecoder, FrameEncoder};
use super::cursor::{Chunk, OpenFrame};
use super::folder::{self, Form};
use super::index::{Key, Segment, Tail};
use super::recovery::Recovered;
use super::seal::Seal;
use super::{Mark, State, Store, StoreError};
use crate::durable::{self, FileError};
use crate::pg::{Lsn, SegmentSize};

/// The open segment. After an error of any method but `open_frame` it must be dropped: its encoder is ahead of the
/// file. Recovery brings it back to its last whole batch.
pub(super) struct OpenSegment {
    pub(super) key: Key,
    path: PathBuf,
    file: Arc<File>,
    inode: u64,
    start: Lsn,
    frames: Vec<Mark>,
    end: Mark,
    frame: Frame,
    hasher: Sha256,
    tail: Tail,
}

/// The frame that the file ends in.
enum Frame {
    /// None: the next byte begins one.
    Closed,
    /// Written here.
    Encoding(FrameEncoder),
    /// Written by an upstream, or before a restart: its decoder knows where it stands.
    Decoding(FrameDecoder),
}

impl OpenSegment {
    /// Makes the file of a new segment.
    pub(super) fn create(folder: &Path, size: SegmentSize, key: Key) -> Result<OpenSegment, StoreError> {
        let path = folder::segment_path(folder, size, key, Form::Open);
        let start = size.first_lsn(key.1);
        let file = durable::create_new(&path)?;
        let inode = file.metadata().map_err(|e| FileError::new("read", &path, e))?.ino();
        Ok(OpenSegment {
            key,
            path,
            inode,
            file: Arc::new(file),
            start,
            frames: Vec::new(),
            end: Mark { lsn: start, offset: 0 },
            frame: Frame::Closed,
            hasher: Sha256::new(),
            tail: Tail::default(),
        })
    }

    /// Goes on with a file that was recovered.
    pub(super) fn reopen(key: Key, recovered: Recovered) -> OpenSegment {
        let frame = match recovered.open_frame {
            Some((_, decoder)) => Frame::Decoding(decoder),
            None => Frame::Closed,
        };
        OpenSegment {
            key,
            path: recovered.path,
            file: recovered.file,
            inode: recovered.inode,
            start: recovered.start,
            frames: recovered.frames,
            end: recovered.end,
            frame,
            hasher: recovered.hasher,
            tail: Tail::default(),
        }
    }

    pub(super) fn end(&self) -> Mark {
        self.end
    }

    /// Compresses `raw`, which must not reach past the segment, as one batch.
    pub(super) fn append(&mut self, mut raw: &[u8]) -> Result<(), StoreError> {
        let mut output = Vec::new();
        if matches!(self.frame, Frame::Decoding(_)) {
            self.close_frame_into(&mut output);
        }
        let mut end = self.end.lsn;
        self.hasher.update(raw);
        while !raw.is_empty() {
            let room = end.next_multiple(FRAME_BYTES) - end;
            let (piece, rest) = raw.split_at(raw.len().min(room as usize));
            let mut encoder = match std::mem::replace(&mut self.frame, Frame::Closed) {
                Frame::Encoding(encoder) => encoder,
                Frame::Closed | Frame::Decoding(_) => {
                    self.frames.push(Mark { lsn: end, offset: self.end.offset + output.len() as u64 });
                    FrameEncoder::new()?
                }
            };
            encoder.write(piece, &mut output)?;
            end = end + piece.len() as u64;
            raw = rest;
            if end.0.is_multiple_of(FRAME_BYTES) {
                encoder.finish(&mut output)?;
            } else {
                encoder.flush(&mut output)?;
                self.frame = Frame::Encoding(encoder);
            }
        }
        self.write(output, end)
    }

    /// Appends a chunk as it came, once its content is known to be what it says.
    pub(super) fn append_chunk(&mut self, chunk: &Chunk) -> Result<(), StoreError> {
        let mut output = Vec::with_capacity(chunk.bytes.len() + EMPTY_LAST_BLOCK.len());
        if chunk.opens_frame {
            self.close_frame_into(&mut output);
            self.frames.push(Mark { lsn: self.end.lsn, offset: self.end.offset + output.len() as u64 });
            self.frame = Frame::Decoding(FrameDecoder::new()?);
        }
        let Frame::Decoding(decoder) = &mut self.frame else {
            return Err(StoreError::BadFrame("a continuation of a frame that is not open here"));
        };
        let mut raw = Vec::new();
        decoder.read(&chunk.bytes, &mut raw)?;
        if raw.len() as u64 != chunk.end.bytes_since(chunk.start) {
            return Err(StoreError::BadFrame("a chunk whose content is not as long as it says"));
        }
        if decoder.ended() {
            self.frame = Frame::Closed;
        }
        self.hasher.update(&raw);
        output.extend_from_slice(&chunk.bytes);
        self.write(output, chunk.end)
    }

    /// What a sender must know to go on at this byte.
    pub(super) fn open_frame(&self) -> Result<OpenFrame, StoreError> {
        let frame = match self.frame {
            Frame::Closed => None,
            Frame::Encoding(_) | Frame::Decoding(_) => self.frames.last().copied(),
        };
        let Some(frame) = frame else { return Ok(OpenFrame::none(self.end.lsn)) };
        let mut bytes = vec![0; (self.end.offset - frame.offset) as usize];
        self.file
            .read_exact_at(&mut bytes, frame.offset)
            .map_err(|e| FileError::new("read", &self.path, e))?;
        Ok(OpenFrame { start: frame.lsn, bytes: bytes.len() as u64, sha256: Sha256::digest(&bytes).into() })
    }

    /// Ends the file for good: at its segment's end, or short where its timeline ends. It is durable afterwards.
    pub(super) fn seal(mut self, store: &Store) -> Result<Segment, StoreError> {
        let state = store.state();
        let mut output = Vec::new();
        self.close_frame_into(&mut output);
        self.write(output, self.end.lsn)?;
        let whole = self.end.lsn == state.segment_size.end_lsn(self.key.1);
        let form = if whole { Form::Whole } else { Form::Short };
        let seal = self.describe(&state)?.encode()?;
        self.file.write_all_at(&seal, self.end.offset).map_err(|e| FileError::new("write", &self.path, e))?;
        store.sync_file(&self.file, &self.path)?;
        let path = folder::segment_path(store.folder(), state.segment_size, self.key, form);
        durable::rename(&self.path, &path)?;
        Ok(Segment {
            disk_bytes: self.end.offset + seal.len() as u64,
            path,
            durable: self.end,
            sealed: true,
            file: None,
            tail: Tail::default(),
            ..self.as_segment()
        })
    }

    fn describe(&self, state: &State) -> Result<Seal, StoreError> {
        let timeline = state.identity_of(self.key.0).cloned();
        Ok(Seal {
            system_identifier: state.system_identifier.to_string(),
            timeline: timeline.ok_or(StoreError::UnknownTimeline { timeline: self.key.0 })?,
            start: self.start,
            end: self.end.lsn,
            sha256: self.hasher.clone().finalize().iter().map(|byte| format!("{byte:02x}")).collect(),
            frames: self.frames.iter().map(|mark| (mark.lsn - self.start, mark.offset)).collect(),
        })
    }

    /// How the index knows this segment; nothing of it counts as durable by this.
    pub(super) fn as_segment(&self) -> Segment {
        Segment {
            start: self.start,
            frames: self.frames.clone(),
            appended: self.end,
            durable: Mark { lsn: self.start, offset: 0 },
            sealed: false,
            path: self.path.clone(),
            file: Some(Arc::clone(&self.file)),
            inode: self.inode,
            disk_bytes: self.end.offset,
            tail: self.tail.clone(),
        }
    }

    /// Frames begun since there were `known` of them.
    pub(super) fn frames_since(&self, known: usize) -> &[Mark] {
        self.frames.get(known..).unwrap_or_default()
    }

    fn close_frame_into(&mut self, output: &mut Vec<u8>) {
        if !matches!(std::mem::replace(&mut self.frame, Frame::Closed), Frame::Closed) {
            output.extend_from_slice(&EMPTY_LAST_BLOCK);
        }
    }

    /// What was written last, for readers.
    pub(super) fn tail(&self) -> Tail {
        self.tail.clone()
    }

    fn write(&mut self, bytes: Vec<u8>, end_lsn: Lsn) -> Result<(), StoreError> {
        let offset = self.end.offset;
        self.file.write_all_at(&bytes, offset).map_err(|e| FileError::new("write", &self.path, e))?;
        self.end = Mark { lsn: end_lsn, offset: offset + bytes.len() as u64 };
        self.tail = Tail { offset, bytes: bytes.into() };
        Ok(())
    }
}
