//! The folder of a store: names, the lock, and what is found in it at start.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::index::{Index, Key, Segment, Tail};
use super::seal::Seal;
use super::{State, StoreError, recovery};
use crate::durable::{self, FileError};
use crate::pg::{SegmentSize, TimelineId};

pub(super) const STATE_FILE: &str = "walship.state";
pub(super) const LOCK_FILE: &str = "lock";
/// Where WAL goes that a promotion left behind: kept for a person to look at, never read again.
pub(super) const CAPSULES_FOLDER: &str = "capsules";

const SEALED_SUFFIX: &str = ".zst";
const OPEN_SUFFIX: &str = ".zst.part";
const SHORT_SUFFIX: &str = ".partial.zst";
/// PostgreSQL's history files have a line for each promotion; this is some ten thousand of them.
const HISTORY_BYTES_MAX: u64 = 1 << 20;

/// How a segment file is named.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Form {
    /// It grows.
    Open,
    /// Sealed at its segment's end.
    Whole,
    /// Sealed where its timeline ended.
    Short,
}

/// The path of a segment file.
pub(super) fn segment_path(folder: &Path, size: SegmentSize, key: Key, form: Form) -> PathBuf {
    let suffix = match form {
        Form::Open => OPEN_SUFFIX,
        Form::Whole => SEALED_SUFFIX,
        Form::Short => SHORT_SUFFIX,
    };
    folder.join(size.file_name(key.0, key.1) + suffix)
}

fn parse_segment_name(name: &str, size: SegmentSize) -> Option<(Key, Form)> {
    let stem = name.get(..24)?;
    let form = match &name[24..] {
        OPEN_SUFFIX => Form::Open,
        SEALED_SUFFIX => Form::Whole,
        SHORT_SUFFIX => Form::Short,
        _ => return None,
    };
    Some((size.parse_file_name(stem)?, form))
}

/// Whether a file in the folder belongs to the log: a segment, whole or not, or a history.
pub(super) fn is_log_file(name: &str, size: SegmentSize) -> bool {
    let stem = name.strip_suffix(".history");
    let is_history =
        stem.is_some_and(|stem| stem.len() == 8 && stem.bytes().all(|byte| byte.is_ascii_hexdigit()));
    is_history || parse_segment_name(name, size).is_some()
}

/// Takes the lock of a store; it is held as long as the file is open, and gone with the process.
pub(super) fn lock(folder: &Path) -> Result<File, StoreError> {
    let path = folder.join(LOCK_FILE);
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(|e| FileError::new("open", &path, e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::Locked { folder: folder.to_owned() }),
        Err(TryLockError::Error(e)) => Err(FileError::new("lock", &path, e).into()),
    }
}

/// Finds and checks every segment; recovers the open one, and clears what an interrupted step left.
pub(super) fn scan(folder: &Path, state: &State) -> Result<Index, StoreError> {
    let mut index = Index::default();
    let mut open = Vec::new();
    let failed = |e| FileError::new("list", folder, e);
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if name.ends_with(durable::TEMPORARY_SUFFIX) {
            durable::remove(&path)?;
            continue;
        }
        let Some((key, form)) = parse_segment_name(name, state.segment_size) else { continue };
        if state.identity_of(key.0).is_none() {
            // A timeline that was about to begin: nothing of it was ever reported.
            durable::remove(&path)?;
        } else if form == Form::Open {
            open.push((key, path));
        } else {
            index.insert(key, sealed_segment(path, state)?);
        }
    }
    for (key, path) in open {
        if index.get(key).is_some() {
            // It was being replaced by its sealed form.
            durable::remove(&path)?;
        } else {
            index.insert(key, recovery::recover(&path, key, state.segment_size)?.into_segment());
        }
    }
    check_continuity(folder, &index, state)?;
    Ok(index)
}

fn sealed_segment(path: PathBuf, state: &State) -> Result<Segment, StoreError> {
    let file = File::open(&path).map_err(|e| FileError::new("open", &path, e))?;
    let (seal, offset) = Seal::read(&file, &path)?;
    if seal.system_identifier != state.system_identifier.to_string() {
        return Err(StoreError::Corrupt {
            path,
            what: format!("it belongs to the cluster {}", seal.system_identifier),
        });
    }
    let end = super::Mark { lsn: seal.end, offset };
    let metadata = file.metadata().map_err(|e| FileError::new("read", &path, e))?;
    Ok(Segment {
        start: seal.start,
        frames: seal.marks(),
        appended: end,
        durable: end,
        sealed: true,
        path,
        file: None,
        inode: metadata.ino(),
        disk_bytes: metadata.len(),
        tail: Tail::default(),
    })
}

fn check_continuity(folder: &Path, index: &Index, state: &State) -> Result<(), StoreError> {
    for identity in &state.timelines {
        let mut end = None;
        for (_, segment) in index.of_timeline(identity.timeline) {
            if end.is_some_and(|end| end != segment.start) {
                return Err(StoreError::Corrupt {
                    path: folder.to_owned(),
                    what: format!("the segment before {} is missing", segment.path.display()),
                });
            }
            end = Some(segment.appended.lsn);
        }
    }
    Ok(())
}

/// Reads a history file.
pub(super) fn read_history(folder: &Path, timeline: TimelineId) -> Result<Option<Bytes>, StoreError> {
    let path = folder.join(timeline.history_file_name());
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(FileError::new("open", &path, e).into()),
    };
    let mut content = Vec::new();
    file.take(HISTORY_BYTES_MAX).read_to_end(&mut content).map_err(|e| FileError::new("read", &path, e))?;
    Ok(Some(content.into()))
}
