//! The exposure log: the stretches of WAL whose commits went on although those whom the policy names did not have them.
//!
//! A window's opening is in here, durably, before the first such commit is released; its close before protection is
//! reported again. So whatever happens to the node, no unprotected commit lies outside the windows.

use std::io::ErrorKind;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::framed::Framed;
use super::{Part, Store, StoreError};
use crate::clock::WallTime;
use crate::durable::FileError;
use crate::failpoint;
use crate::pg::{Lsn, TimelineId};

const FORM: Framed = Framed { name: "exposures", version: 1 };

/// The file's name in the store's folder.
pub const EXPOSURES_FILE: &str = "walship.exposures";

/// One window.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Exposure {
    /// Its number; the first is one.
    pub number: u64,
    /// The policy that was not met.
    pub policy: String,
    /// Why commits went on.
    pub reason: String,
    /// Who did not have them, and what was known of each.
    pub missing: Vec<String>,
    /// The timeline of the positions.
    pub timeline: TimelineId,
    /// Commits up to here are protected.
    pub from_lsn: Lsn,
    /// When it was opened.
    pub opened_at: WallTime,
    /// Whether `remote_apply` is among the levels that have to catch up before it closes.
    pub apply_is_used: bool,
    /// Its end; `None` while it is open.
    pub closed: Option<Closed>,
}

/// The end of a window.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Closed {
    /// No commit beyond was released in it.
    pub to_lsn: Lsn,
    /// When it was closed.
    pub at: WallTime,
    /// How much WAL it holds.
    pub bytes: u64,
    /// Why it was closed.
    pub reason: String,
}

/// What closed windows come to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Totals {
    /// How many.
    pub windows: u64,
    /// For how long they were open in all.
    pub micros: u64,
    /// How much WAL they hold.
    pub bytes: u64,
}

/// All windows that are kept.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Exposures {
    /// What older ones that are no longer kept came to.
    pub forgotten: Totals,
    /// Oldest first.
    pub windows: Vec<Exposure>,
}

impl Exposure {
    /// The same, closed.
    pub fn until(mut self, to_lsn: Lsn, at: WallTime, reason: &str) -> Exposure {
        let to_lsn = to_lsn.max(self.from_lsn);
        let bytes = to_lsn.bytes_since(self.from_lsn);
        self.closed = Some(Closed { to_lsn, at, bytes, reason: reason.to_owned() });
        self
    }
}

impl Totals {
    fn take(&mut self, window: &Exposure) {
        if let Some(closed) = &window.closed {
            let micros = closed.at.unix_micros.saturating_sub(window.opened_at.unix_micros);
            self.micros = self.micros.saturating_add(u64::try_from(micros).unwrap_or_default());
            self.bytes = self.bytes.saturating_add(closed.bytes);
        }
    }
}

impl Exposures {
    /// What to do about a damaged log.
    pub const IF_DAMAGED: &str = "Move that file away to go on without it: which commits went unprotected before, and \
                                  whether that went on at the end, is unknown then.";
    /// How many are kept.
    pub const LIMIT: usize = 1000;
    /// How many of those who are missing a window names; with [`Exposures::POLICY_CHARS_MAX`] that bounds the file.
    const MISSING_MAX: usize = 20;
    /// How much of a policy's text a window has.
    const POLICY_CHARS_MAX: usize = 500;

    /// Those of the store in `folder`, read without opening it; none where there is no log. Blocks.
    pub fn read(folder: &Path) -> Result<Exposures, StoreError> {
        match FORM.read(&folder.join(EXPOSURES_FILE)) {
            Err(StoreError::File(error)) if error.kind() == ErrorKind::NotFound => Ok(Exposures::default()),
            read => read,
        }
    }

    /// The one that is open.
    pub fn open(&self) -> Option<&Exposure> {
        self.windows.iter().rfind(|window| window.closed.is_none())
    }

    /// Adds a window with the next number, and forgets the oldest beyond the limit.
    pub fn add(&mut self, mut window: Exposure) {
        window.number = self.windows.last().map_or(self.forgotten.windows, |last| last.number) + 1;
        let more = window.missing.len().saturating_sub(Exposures::MISSING_MAX);
        if more > 0 {
            window.missing.truncate(Exposures::MISSING_MAX);
            window.missing.push(format!("{more} more"));
        }
        if let Some((at, _)) = window.policy.char_indices().nth(Exposures::POLICY_CHARS_MAX) {
            window.policy.replace_range(at.., "…");
        }
        self.windows.push(window);
        while self.windows.len() > Exposures::LIMIT {
            let oldest = self.windows.remove(0);
            self.forgotten.windows += 1;
            self.forgotten.take(&oldest);
        }
    }

    /// How many there ever were, and what those that are closed come to.
    pub fn totals(&self) -> Totals {
        let mut totals = self.forgotten;
        self.windows.iter().for_each(|window| totals.take(window));
        totals.windows = self.windows.last().map_or(self.forgotten.windows, |last| last.number);
        totals
    }

    /// Closes the window that is open, if there is one.
    pub fn close(&mut self, to_lsn: Lsn, at: WallTime, reason: &str) {
        if let Some(window) = self.windows.iter_mut().rfind(|window| window.closed.is_none()) {
            *window = window.clone().until(to_lsn, at, reason);
        }
    }
}

impl Store {
    /// Changes the exposure log durably: when this returns, the change is on disk. Blocks.
    pub fn update_exposures(&self, change: impl FnOnce(&mut Exposures)) -> Result<(), StoreError> {
        let _writing = self.0.state_writer.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let known = self.0.exposures.borrow().clone();
        let mut changed = known.clone();
        change(&mut changed);
        if changed != known {
            let path = self.folder().join(EXPOSURES_FILE);
            let written = match failpoint::error("exposures.write") {
                Some(error) => Err(FileError::new("write", &path, error).into()),
                None => FORM.write(&path, &changed),
            };
            self.note(Part::State, written)?;
            self.0.exposures.send_replace(changed);
        }
        Ok(())
    }

    /// The exposure log; the receiver is told of a change when that is on disk.
    pub fn exposures(&self) -> tokio::sync::watch::Receiver<Exposures> {
        self.0.exposures.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(from: u64) -> Exposure {
        Exposure {
            number: 0,
            policy: "any 1 (*)".to_owned(),
            reason: "they waited".to_owned(),
            missing: vec!["db2: not connected".to_owned()],
            timeline: TimelineId(1),
            from_lsn: Lsn(from),
            opened_at: WallTime { unix_micros: 7 },
            apply_is_used: false,
            closed: None,
        }
    }

    #[test]
    fn what_is_written_is_read_back_and_damage_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Exposures::read(folder.path()).unwrap(), Exposures::default());
        let mut log = Exposures::default();
        log.add(window(10));
        log.close(Lsn(30), WallTime { unix_micros: 9 }, "caught up");
        log.add(window(50));
        let path = folder.path().join(EXPOSURES_FILE);
        FORM.write(&path, &log).unwrap();
        assert_eq!(Exposures::read(folder.path()).unwrap(), log);
        assert_eq!(log.windows[0].closed.as_ref().unwrap().bytes, 20);
        assert_eq!(log.open().unwrap().number, 2);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("caught up", "caught it")).unwrap();
        assert!(Exposures::read(folder.path()).unwrap_err().to_string().contains("checksum"));
    }

    #[test]
    fn a_window_takes_little_room_whatever_the_policy() {
        let names = (0..1000).map(|n| format!("db{n:060}"));
        let policy = format!("any 1 ({})", names.clone().collect::<Vec<_>>().join(", "));
        let mut log = Exposures::default();
        log.add(Exposure { policy, missing: names.collect(), ..window(1) });
        let window = &log.windows[0];
        assert_eq!(window.missing.len(), Exposures::MISSING_MAX + 1);
        assert_eq!(window.missing.last().unwrap(), "980 more");
        let bytes = serde_json::to_string_pretty(&log).unwrap().len();
        assert!(bytes * Exposures::LIMIT < 16 << 20, "{bytes}");
    }

    #[test]
    fn the_log_is_bounded_and_its_numbers_go_on() {
        let mut log = Exposures::default();
        for n in 1..=Exposures::LIMIT as u64 + 20 {
            log.add(window(n));
            log.close(Lsn(n), WallTime { unix_micros: 9 }, "caught up");
        }
        let of = |windows| Totals { windows, micros: 2 * windows, bytes: 0 };
        assert_eq!((log.windows.len(), log.forgotten), (Exposures::LIMIT, of(20)));
        assert_eq!(log.totals(), of(Exposures::LIMIT as u64 + 20));
        assert_eq!(log.windows[0].number, 21);
        assert_eq!(log.windows.last().unwrap().number, Exposures::LIMIT as u64 + 20);
        log.close(Lsn(9), WallTime { unix_micros: 9 }, "nothing is open");
        log.add(window(5));
        log.close(Lsn(1), WallTime { unix_micros: 9 }, "it never ends before it begins");
        assert_eq!(log.windows.last().unwrap().closed.as_ref().unwrap().to_lsn, Lsn(5));
    }
}
