//! What of a store can't be written, since when, and why: what every report says from the first second.
//!
//! A trouble begins with the first failure of the disk and ends with the first success of the same kind, so it lasts
//! however often a stage tries again in between.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use tokio::sync::watch;

use super::{Store, StoreError};
use crate::clock::WallTime;
use crate::durable;
use crate::fault;

/// What is written.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Part {
    /// WAL.
    Log,
    /// `walship.state`.
    State,
    /// A file of convenience, whose content can be had again.
    Other,
}

/// A part that can't be written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Trouble {
    /// Since when.
    pub since: WallTime,
    /// The last failure, with its cause.
    pub reason: String,
    /// The disk is full, rather than broken.
    pub is_full: bool,
}

/// All that can't be written now.
pub type Troubles = BTreeMap<Part, Trouble>;

/// What a file takes that is written to see whether there is room.
const PROBE_BYTES: usize = 64 << 10;
const PROBE_FILE: &str = "probe";

impl Store {
    /// What can't be written now; the receiver is told of every change.
    pub fn troubles(&self) -> watch::Receiver<Troubles> {
        self.0.troubles.subscribe()
    }

    /// Fails while WAL could not be written before and there is still no room: then it is of no use to ask anybody for
    /// some. Blocks.
    pub fn check_room(&self) -> Result<(), StoreError> {
        if !self.0.troubles.borrow().contains_key(&Part::Log) {
            return Ok(());
        }
        let path = self.folder().join(PROBE_FILE);
        durable::write(&path, &vec![0; PROBE_BYTES])?;
        Ok(durable::remove(&path)?)
    }

    /// Writes a small file of convenience into the folder, durably. Blocks.
    pub fn write_beside(&self, name: &str, content: &[u8]) -> Result<(), StoreError> {
        let written = durable::write(&self.folder().join(name), content);
        self.note(Part::Other, written.map_err(StoreError::from))
    }

    /// Takes note of how a write ended.
    pub(super) fn note<T>(&self, part: Part, result: Result<T, StoreError>) -> Result<T, StoreError> {
        if result.is_ok() {
            self.0.troubles.send_if_modified(|troubles| troubles.remove(&part).is_some());
        }
        self.note_failure(part, result)
    }

    /// Takes note of a write that failed; one that did not shows nothing, as it may have written nothing.
    pub(super) fn note_failure<T>(&self, part: Part, result: Result<T, StoreError>) -> Result<T, StoreError> {
        if let Err(error @ StoreError::File(file)) = &result {
            // The kernel drops what it could not write and calls it clean, so the next fsync would succeed and the next
            // read show what is not on disk.
            if part == Part::Log && file.leaves_disk_unknown() {
                self.0.failed.store(true, Ordering::Release);
            }
            self.0.troubles.send_if_modified(|troubles| {
                let since = troubles.get(&part).map_or_else(WallTime::now, |known| known.since);
                let trouble = Trouble { since, reason: fault::in_full(error), is_full: error.is_full() };
                troubles.insert(part, trouble.clone()) != Some(trouble)
            });
        }
        result
    }
}
