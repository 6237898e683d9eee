//! One whole file of PostgreSQL's `pg_wal` out of a store, beside the sidecar that has it open, or without one.
//!
//! The store is neither locked nor mended: what is read are files that nobody changes any more, named by a state that is
//! always whole. A segment that still grows is not given: PostgreSQL gets it as a stream, and no further than it is fsynced.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use sha2::{Digest, Sha256};

use super::codec::WINDOW_LOG_MAX;
use super::folder::{self, Form};
use super::index::Key;
use super::seal::Seal;
use super::{State, Store, StoreError};
use crate::durable::{self, FileError};
use crate::pg::{SegmentSize, TimelineId};

/// What became of a request for a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fetched {
    /// It is in its place, durably.
    Done,
    /// The store does not have it, or not the whole of it yet.
    Missing,
}

impl Store {
    /// Writes the segment or the timeline history called `name` to `target`, durably and at once, from the store in
    /// `folder`, which another process may have open. A segment is as long as PostgreSQL demands: where its timeline ended
    /// within it, zeros follow. Its content is compared with the SHA-256 under which it was sealed. Blocks.
    pub fn fetch(folder: &Path, name: &str, target: &Path) -> Result<Fetched, StoreError> {
        let state =
            Store::state_in(folder)?.ok_or_else(|| StoreError::Missing { folder: folder.to_owned() })?;
        if let Some(timeline) = TimelineId::parse_history_file_name(name) {
            return fetch_history(folder, &state, timeline, target);
        }
        // PostgreSQL asks for other names, too, such as those of backups; none of them is ever here.
        match state.segment_size.parse_file_name(name) {
            Some(key) => fetch_segment(folder, &state, key, target),
            None => Ok(Fetched::Missing),
        }
    }
}

/// One of a timeline that is about to begin is not shown: its promotion may come to nothing.
fn fetch_history(
    folder: &Path,
    state: &State,
    timeline: TimelineId,
    target: &Path,
) -> Result<Fetched, StoreError> {
    if state.newest_timeline().is_none_or(|newest| timeline > newest) {
        return Ok(Fetched::Missing);
    }
    let Some(text) = folder::read_history(folder, timeline)? else { return Ok(Fetched::Missing) };
    durable::write(target, &text)?;
    Ok(Fetched::Done)
}

fn fetch_segment(folder: &Path, state: &State, key: Key, target: &Path) -> Result<Fetched, StoreError> {
    for form in [Form::Whole, Form::Short] {
        let path = folder::segment_path(folder, state.segment_size, key, form);
        match File::open(&path) {
            Ok(file) => return unpack(&file, &path, state, key, target),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(FileError::new("open", &path, e).into()),
        }
    }
    Ok(Fetched::Missing)
}

/// Decompresses a sealed file beside `target`, and renames it once it is known to be what its seal says.
fn unpack(file: &File, path: &Path, state: &State, key: Key, target: &Path) -> Result<Fetched, StoreError> {
    let (seal, content_bytes) = Seal::read(file, path)?;
    let size = state.segment_size;
    let is_ours = seal.system_identifier == state.system_identifier.to_string()
        && state.identity_of(key.0) == Some(&seal.timeline)
        && seal.start == size.first_lsn(key.1)
        && seal.end <= size.end_lsn(key.1);
    if !is_ours {
        // Of another cluster, or of a timeline that only has the number of one of ours.
        return Err(corrupt(path, "its seal is not that of this store's segment"));
    }
    let temporary = durable::temporary_name(target);
    durable::remove(&temporary)?;
    let mut output = durable::create_new(&temporary)?;
    let written = write_raw(file.take(content_bytes), path, &mut output, &temporary, size);
    let checked = written.and_then(|(raw_bytes, sha256)| {
        let is_whole = raw_bytes == seal.end - seal.start && sha256 == seal.sha256;
        if is_whole { Ok(()) } else { Err(corrupt(path, "its content is not what it was sealed with")) }
    });
    if let Err(error) = checked {
        durable::remove(&temporary)?;
        return Err(error);
    }
    durable::sync_data(&output, &temporary)?;
    durable::rename(&temporary, target)?;
    Ok(Fetched::Done)
}

/// Writes what `compressed` holds, and zeros up to a whole segment; gives the length and the SHA-256 of the former.
fn write_raw(
    compressed: impl Read,
    path: &Path,
    output: &mut File,
    temporary: &Path,
    size: SegmentSize,
) -> Result<(u64, String), StoreError> {
    let mut decoder = zstd::stream::read::Decoder::new(compressed).map_err(StoreError::zstd)?;
    decoder.window_log_max(WINDOW_LOG_MAX).map_err(StoreError::zstd)?;
    let failed = |e| FileError::new("write", temporary, e);
    let (mut raw_bytes, mut hasher) = (0, Sha256::new());
    let mut piece = vec![0; 256 << 10];
    loop {
        let count = match decoder.read(&mut piece) {
            Ok(0) => break,
            Ok(count) => count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(corrupt(path, &e.to_string())),
        };
        raw_bytes += count as u64;
        if raw_bytes > size.bytes() {
            return Err(corrupt(path, "it holds more than a segment"));
        }
        hasher.update(&piece[..count]);
        output.write_all(&piece[..count]).map_err(failed)?;
    }
    io::copy(&mut io::repeat(0).take(size.bytes() - raw_bytes), output).map_err(failed)?;
    Ok((raw_bytes, hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()))
}

fn corrupt(path: &Path, what: &str) -> StoreError {
    StoreError::Corrupt { path: path.to_owned(), what: what.to_owned() }
}

#[cfg(test)]
mod tests;
