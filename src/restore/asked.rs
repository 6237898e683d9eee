//! What one connection has asked for and not got yet: how far it may ask ahead, and what is here of each file.
//!
//! Asking ahead is what keeps a long link busy: the source never waits for the next question. It has a bound, so that
//! the connections share the files, and none is left with many at the end.

use std::collections::HashMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::link::message::Digest;

/// Asked for in all, in bytes of the files as they were listed. Enough for a link of 1 Gbit/s and half a second on each
/// of four connections; two files are always asked for, however large.
const BYTES_AHEAD: u64 = 16 << 20;

/// Asked for in all, in files: small ones are the more the less they weigh.
const FILES_AHEAD: usize = 512;

/// What is here in the place of a file, once it was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Here {
    /// The source has a digest for each block below this.
    pub bytes: u64,
    /// Of all of it; `None` when the rest could not be read.
    pub sha256: Option<Digest>,
}

/// One connection's questions.
#[derive(Debug, Default)]
pub(super) struct Asked {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    files: HashMap<u32, Question>,
    bytes: u64,
    is_over: bool,
}

#[derive(Clone, Copy, Debug)]
struct Question {
    listed_bytes: u64,
    /// Something is in its place, and is compared.
    compares: bool,
    here: Option<Here>,
}

impl Asked {
    /// Waits until one more may be asked for; false when the connection is over. Blocks, until then at most.
    pub fn wait_for_room(&self) -> bool {
        let mut state = self.lock();
        while !state.is_over && !state.has_room() {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        !state.is_over
    }

    /// Notes a question that is about to be asked.
    pub fn begin(&self, index: u32, listed_bytes: u64, compares: bool) {
        let mut state = self.lock();
        let question = Question { listed_bytes, compares, here: None };
        let before = state.files.insert(index, question);
        assert!(before.is_none(), "file {index} is asked for twice");
        state.bytes += listed_bytes;
    }

    /// Notes what is here, before the last of its digests goes out.
    pub fn found(&self, index: u32, here: Here) {
        if let Some(question) = self.lock().files.get_mut(&index) {
            question.here = Some(here);
        }
    }

    /// Whether what is here of a file is compared; `None` when it was not asked for.
    pub fn compares(&self, index: u32) -> Option<bool> {
        self.lock().files.get(&index).map(|question| question.compares)
    }

    /// A question that is answered; what was here, if that is known already.
    pub fn answered(&self, index: u32) -> Option<Here> {
        let mut state = self.lock();
        let question = state.files.remove(&index)?;
        state.bytes -= question.listed_bytes;
        self.changed.notify_all();
        question.here
    }

    /// The connection is over: nobody waits any more.
    pub fn end(&self) {
        self.lock().is_over = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn has_room(&self) -> bool {
        self.files.len() < 2 || self.files.len() < FILES_AHEAD && self.bytes < BYTES_AHEAD
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn has_room(asked: &Asked) -> bool {
        asked.lock().has_room()
    }

    #[test]
    fn as_much_is_asked_ahead_as_keeps_a_link_busy() {
        let asked = Asked::default();
        asked.begin(0, 1 << 30, true);
        assert!(has_room(&asked), "the next is ready when a large one ends");
        asked.begin(1, 1 << 30, true);
        assert!(!has_room(&asked));
        asked.answered(0);
        asked.answered(1);
        for index in 0..FILES_AHEAD as u32 {
            assert!(has_room(&asked));
            asked.begin(index, 8192, false);
        }
        assert!(!has_room(&asked));
        asked.answered(5);
        assert!(has_room(&asked) && asked.wait_for_room());
    }

    #[test]
    fn whoever_waits_is_woken_by_an_answer_and_by_the_end() {
        let asked = Asked::default();
        asked.begin(0, 1 << 30, true);
        asked.begin(1, 1 << 30, false);
        let here = Here { bytes: 5, sha256: Some(Digest::of(b"x")) };
        std::thread::scope(|threads| {
            let waiting = threads.spawn(|| asked.wait_for_room());
            asked.found(0, here);
            assert_eq!(
                (asked.compares(0), asked.compares(1), asked.compares(2)),
                (Some(true), Some(false), None)
            );
            assert_eq!(asked.answered(0), Some(here));
            assert!(waiting.join().unwrap());
            asked.begin(2, 1 << 30, false);
            let waiting = threads.spawn(|| asked.wait_for_room());
            asked.end();
            assert!(!waiting.join().unwrap());
        });
        assert_eq!(asked.answered(7), None);
    }
}
