//! The open segment after a crash: the longest prefix that is whole.
//!
//! Kept is all that decodes, up to the end of its last whole record or the last page boundary, whichever is later;
//! never less than what was ever reported, because that was fsynced and ended at one or the other. A file is mended
//! by appending, never by rewriting: what was reported stays where it is, whenever the next crash comes.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Advice, fadvise};
use sha2::{Digest, Sha256};

use super::codec::{EMPTY_LAST_BLOCK, FrameDecoder, FrameEncoder, block_bytes, frame_header_bytes};
use super::index::{Key, Segment, Tail};
use super::{Mark, RawStep, Store, StoreError, Visibility};
use crate::durable::{self, FileError};
use crate::pg::record::RecordScanner;
use crate::pg::{Lsn, SegmentSize, TimelineId};

/// The longest zstd frame header.
const FRAME_HEADER_BYTES_MAX: usize = 18;
/// A block holds at most 128 KiB, and compressed ones are smaller.
const BLOCK_BYTES_MAX: usize = (128 << 10) + 3;

/// An open segment as it was found and mended. All of it is fsynced.
pub(super) struct Recovered {
    pub(super) path: PathBuf,
    pub(super) file: Arc<File>,
    pub(super) inode: u64,
    pub(super) start: Lsn,
    pub(super) frames: Vec<Mark>,
    pub(super) end: Mark,
    /// Of the raw content so far.
    pub(super) hasher: Sha256,
    /// The frame that the file ends in, when it has not ended: where it began, and its decoder.
    pub(super) open_frame: Option<(Mark, FrameDecoder)>,
}

impl Recovered {
    pub(super) fn into_segment(self) -> Segment {
        Segment {
            start: self.start,
            frames: self.frames,
            appended: self.end,
            durable: self.end,
            sealed: false,
            disk_bytes: self.end.offset,
            tail: Tail::default(),
            path: self.path,
            file: None,
            inode: self.inode,
        }
    }
}

/// Recovers the open segment at `path`; running it again changes nothing.
pub(super) fn recover(path: &Path, key: Key, size: SegmentSize) -> Result<Recovered, StoreError> {
    let failed = |action| move |e| FileError::new(action, path, e);
    let file = OpenOptions::new().read(true).write(true).open(path).map_err(failed("open"))?;
    let start = size.first_lsn(key.1);
    // What is read is to be what is on the disk: after an fsync that failed, pages in memory may be all there is.
    durable::sync_data(&file, path)?;
    fadvise(&file, 0, None, Advice::DontNeed).map_err(|e| FileError::new("read anew", path, e.into()))?;
    let mut found = inspect(&file, path, start)?;
    if !found.clean {
        mend(&file, path, &found)?;
        found = inspect(&file, path, start)?;
        assert!(found.clean, "{} is still not whole after it was mended", path.display());
    }
    if found.end.lsn > size.end_lsn(key.1) {
        let what = format!("it holds more than a segment of {size}");
        return Err(StoreError::Corrupt { path: path.to_owned(), what });
    }
    let inode = file.metadata().map_err(failed("read"))?.ino();
    Ok(Recovered {
        path: path.to_owned(),
        inode,
        file: Arc::new(file),
        start,
        frames: found.frames,
        end: found.end,
        hasher: found.hasher,
        open_frame: found.open_frame,
    })
}

/// A place where the file could be cut: behind a block, or between frames.
#[derive(Clone, Copy)]
struct Boundary {
    mark: Mark,
    /// The frame is not ended here.
    in_frame: bool,
}

struct Inspection {
    frames: Vec<Mark>,
    boundaries: Vec<Boundary>,
    /// The last position to keep.
    keep: Lsn,
    /// The last boundary, when the file is clean.
    end: Mark,
    /// Nothing has to be mended.
    clean: bool,
    hasher: Sha256,
    open_frame: Option<(Mark, FrameDecoder)>,
}

/// Decodes the whole file, block by block, and finds where it stops being valid WAL.
fn inspect(file: &File, path: &Path, start: Lsn) -> Result<Inspection, StoreError> {
    let mut scanner = RecordScanner::new(start);
    let mut hasher = Sha256::new();
    let mut frames = Vec::new();
    let mut boundaries = vec![Boundary { mark: Mark { lsn: start, offset: 0 }, in_frame: false }];
    let mut walk = Walk { file, path, at: Mark { lsn: start, offset: 0 }, decoder: None, frame_start: None };
    let mut damaged = false;
    let mut raw = Vec::new();
    while !damaged {
        raw.clear();
        let Some(in_frame) = walk.next_block(&mut raw)? else { break };
        if let Some(frame) = walk.frame_start.filter(|frame| frames.last() != Some(frame)) {
            frames.push(frame);
        }
        damaged = scanner.push(&raw).is_err();
        hasher.update(&raw);
        boundaries.push(Boundary { mark: walk.at, in_frame });
    }
    let keep = if damaged { scanner.last_record_end() } else { scanner.safe_cut() };
    // The end of a record is aligned, so it can lie a few bytes of padding beyond what is there.
    let keep = keep.unwrap_or(start).max(start).min(walk.at.lsn);
    let last = boundaries[boundaries.len() - 1];
    let size = file.metadata().map_err(|e| FileError::new("read", path, e))?.len();
    let clean = !damaged && last.mark.lsn == keep && last.mark.offset == size;
    let open_frame = walk.frame_start.zip(walk.decoder).filter(|(_, decoder)| !decoder.ended());
    Ok(Inspection { frames, boundaries, keep, end: last.mark, clean, hasher, open_frame })
}

/// Walks a file block by block.
struct Walk<'a> {
    file: &'a File,
    path: &'a Path,
    at: Mark,
    decoder: Option<FrameDecoder>,
    frame_start: Option<Mark>,
}

impl Walk<'_> {
    /// Decodes the next block to `raw`; says whether the frame goes on behind it. `None` where the file ends or
    /// stops making sense.
    fn next_block(&mut self, raw: &mut Vec<u8>) -> Result<Option<bool>, StoreError> {
        let mut header = Vec::new();
        let between_frames = self.decoder.as_ref().is_none_or(FrameDecoder::ended);
        let mut offset = self.at.offset;
        if between_frames {
            let bytes = self.read(offset, FRAME_HEADER_BYTES_MAX)?;
            let Some(length) = frame_header_bytes(&bytes).filter(|&length| length <= bytes.len()) else {
                return Ok(None);
            };
            header.extend_from_slice(&bytes[..length]);
            offset += length as u64;
        }
        let Some((length, _)) =
            block_bytes(&self.read(offset, 3)?).filter(|(length, _)| *length <= BLOCK_BYTES_MAX)
        else {
            return Ok(None);
        };
        let block = self.read(offset, length)?;
        if block.len() < length {
            return Ok(None);
        }
        let mut decoder = match self.decoder.take().filter(|_| !between_frames) {
            Some(decoder) => decoder,
            None => FrameDecoder::new()?,
        };
        header.extend_from_slice(&block);
        if decoder.read(&header, raw).is_err() {
            return Ok(None);
        }
        if between_frames {
            self.frame_start = Some(self.at);
        }
        self.at = Mark { lsn: self.at.lsn + raw.len() as u64, offset: offset + length as u64 };
        let goes_on = !decoder.ended();
        self.decoder = Some(decoder);
        Ok(Some(goes_on))
    }

    /// Up to `length` bytes at `offset`; fewer at the end of the file.
    fn read(&self, offset: u64, length: usize) -> Result<Vec<u8>, StoreError> {
        let mut bytes = vec![0; length];
        let mut filled = 0;
        while filled < length {
            match self.file.read_at(&mut bytes[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(FileError::new("read", self.path, e).into()),
            }
        }
        bytes.truncate(filled);
        Ok(bytes)
    }
}

/// Cuts behind the last block that is kept whole, closes its frame, and appends what is kept of the next block as
/// a frame of its own.
fn mend(file: &File, path: &Path, found: &Inspection) -> Result<(), StoreError> {
    let failed = |action| move |e| FileError::new(action, path, e);
    let cut_index = found.boundaries.partition_point(|boundary| boundary.mark.lsn <= found.keep);
    // Of several boundaries at one position the first is taken: behind it come only empty blocks.
    let cut_lsn = found.boundaries[cut_index - 1].mark.lsn;
    let first_index = found.boundaries.partition_point(|boundary| boundary.mark.lsn < cut_lsn);
    let cut = found.boundaries[first_index];
    let rest = raw_behind(file, path, found, cut.mark.lsn)?;
    let mut bytes = Vec::new();
    if cut.in_frame {
        bytes.extend_from_slice(&EMPTY_LAST_BLOCK);
    }
    if !rest.is_empty() {
        let mut encoder = FrameEncoder::new()?;
        encoder.write(&rest, &mut bytes)?;
        encoder.finish(&mut bytes)?;
    }
    file.set_len(cut.mark.offset).map_err(failed("truncate"))?;
    file.write_all_at(&bytes, cut.mark.offset).map_err(failed("write"))?;
    durable::sync_data(file, path).map_err(StoreError::from)
}

/// The raw content from `from` to what is kept: less than a block.
fn raw_behind(file: &File, path: &Path, found: &Inspection, from: Lsn) -> Result<Vec<u8>, StoreError> {
    let wanted = found.keep.bytes_since(from) as usize;
    if wanted == 0 {
        return Ok(Vec::new());
    }
    let Some(&frame) = found.frames.iter().rfind(|frame| frame.lsn <= from) else { return Ok(Vec::new()) };
    let mut walk = Walk { file, path, at: frame, decoder: None, frame_start: None };
    let mut raw = Vec::new();
    while frame.lsn + (raw.len() as u64) < found.keep {
        if walk.next_block(&mut raw)?.is_none() {
            break;
        }
        walk.at.lsn = frame.lsn + raw.len() as u64;
    }
    let skip = from.bytes_since(frame.lsn) as usize;
    assert!(raw.len() >= skip + wanted, "what decoded once decodes again");
    Ok(raw[skip..skip + wanted].to_vec())
}

/// The end of the last whole record that is durable on a timeline.
pub(super) fn last_record_end(store: &Store, timeline: TimelineId) -> Result<Option<Lsn>, StoreError> {
    let starts: Vec<Lsn> = store.index().of_timeline(timeline).map(|(_, segment)| segment.start).collect();
    for (index, &start) in starts.iter().enumerate().rev() {
        let mut scanner = RecordScanner::new(start);
        let mut cursor = store.raw_cursor(timeline, start, Visibility::Durable)?;
        let end = starts.get(index + 1).copied();
        while end.is_none_or(|end| scanner.position() < end) {
            let RawStep::Bytes { data, .. } = cursor.next()? else { break };
            if let Err(error) = scanner.push(&data) {
                return Err(StoreError::Corrupt { path: store.folder().to_owned(), what: error.to_string() });
            }
        }
        if let Some(record_end) = scanner.last_record_end() {
            return Ok(Some(record_end));
        }
    }
    Ok(None)
}
