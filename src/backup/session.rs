//! A base backup that is running, as its connections share it.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

use super::file::Reading;
use super::pace::Pace;
use super::plan::Plan;
use crate::pg::Lsn;
use crate::vitals::{BackupVitals, Vitals};

/// The base backups that are running on this node, for file connections to find theirs.
#[derive(Debug)]
pub struct Backups {
    running: Mutex<BTreeMap<u64, Arc<Session>>>,
    vitals: Arc<Vitals>,
}

impl Backups {
    /// None yet; `vitals` shows those that come.
    pub fn new(vitals: Arc<Vitals>) -> Arc<Backups> {
        Arc::new(Backups { running: Mutex::new(BTreeMap::new()), vitals })
    }

    /// The running backup of that number.
    pub fn find(&self, number: u64) -> Option<Arc<Session>> {
        lock(&self.running).get(&number).cloned()
    }

    /// Announces a backup that is about to begin; WAL from `start_lsn` on has to stay.
    pub(super) fn announce(self: &Arc<Backups>, client: &str, start_lsn: Lsn) -> Announced {
        // By chance, so that a file connection that comes late never finds another backup under its number.
        let number = RandomState::new().hash_one(client);
        let vitals = BackupVitals { client: client.to_owned(), start_lsn, ..BackupVitals::default() };
        self.vitals.backups.update(|backups| {
            backups.insert(number, vitals);
        });
        Announced { number, backups: Arc::clone(self), session: None }
    }
}

/// A backup's place among those that are running. Dropping it takes it out and ends its file connections.
#[derive(Debug)]
pub(super) struct Announced {
    number: u64,
    backups: Arc<Backups>,
    session: Option<Arc<Session>>,
}

impl Announced {
    /// Changes what `status` shows.
    pub fn update(&self, change: impl FnOnce(&mut BackupVitals)) {
        let number = self.number;
        self.backups.vitals.backups.update(|backups| {
            backups.entry(number).and_modify(change);
        });
    }

    /// Opens it to file connections.
    pub fn open(&mut self, reading: Reading, pace: Pace, plan: Plan) -> Arc<Session> {
        let session = Arc::new(Session {
            number: self.number,
            reading,
            pace,
            files: plan.files.into_iter().map(|(path, _)| path).collect(),
            done: Mutex::default(),
            ended: CancellationToken::new(),
            vitals: Arc::clone(&self.backups.vitals),
        });
        lock(&self.backups.running).insert(self.number, Arc::clone(&session));
        self.session = Some(Arc::clone(&session));
        session
    }
}

impl Drop for Announced {
    fn drop(&mut self) {
        lock(&self.backups.running).remove(&self.number);
        self.backups.vitals.backups.update(|backups| {
            backups.remove(&self.number);
        });
        if let Some(session) = &self.session {
            session.ended.cancel();
        }
    }
}

/// A backup whose files are being copied. What is copied, and when that is all, is up to the taker.
#[derive(Debug)]
pub struct Session {
    number: u64,
    pub(super) reading: Reading,
    pub(super) pace: Pace,
    files: Vec<PathBuf>,
    done: Mutex<Done>,
    ended: CancellationToken,
    vitals: Arc<Vitals>,
}

#[derive(Debug, Default)]
struct Done {
    answered: Answered,
    failure: Option<String>,
}

/// The files that were sent or found equal, on all connections together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Answered {
    pub files: u64,
    pub bytes: u64,
}

impl Session {
    /// Its number, as the taker knows it.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The file in this place of the listing, relative to the data directory.
    pub(super) fn file(&self, index: u32) -> Option<&Path> {
        self.files.get(usize::try_from(index).ok()?).map(PathBuf::as_path)
    }

    /// Counts bytes that were read: sent, or found equal at the taker.
    pub(super) fn count_bytes(&self, sent: u64, equal: u64) {
        let number = self.number;
        self.vitals.backups.update(|backups| {
            if let Some(backup) = backups.get_mut(&number) {
                backup.done_bytes += sent + equal;
                backup.equal_bytes += equal;
            }
        });
    }

    /// Counts a file that the taker has now.
    pub(super) fn count_file(&self, bytes: u64) {
        let mut done = lock(&self.done);
        done.answered.files += 1;
        done.answered.bytes += bytes;
    }

    /// Ends the backup; the first reason counts.
    pub(super) fn fail(&self, reason: String) {
        lock(&self.done).failure.get_or_insert(reason);
        self.ended.cancel();
    }

    /// Waits until the backup is over, for whatever reason. Cancel-safe.
    pub(super) async fn over(&self) {
        self.ended.cancelled().await;
    }

    /// Why it failed, if it did.
    pub(super) fn failure(&self) -> Option<String> {
        lock(&self.done).failure.clone()
    }

    /// What the taker has, when nothing failed.
    pub(super) fn completed(&self) -> Result<Answered, String> {
        let done = lock(&self.done);
        match &done.failure {
            Some(reason) => Err(reason.clone()),
            None => Ok(done.answered),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(backups: &Arc<Backups>) -> (Announced, Arc<Session>) {
        let reading = Reading {
            data_directory: "/nowhere".into(),
            start_lsn: Lsn(1),
            data_checksums: false,
            compression: None,
        };
        let mut announced = backups.announce("db2", Lsn(1));
        let files = vec![("base/1".into(), 5), ("PG_VERSION".into(), 3)];
        let session = announced.open(reading, Pace::new(None), Plan { files, ..Plan::default() });
        (announced, session)
    }

    #[test]
    fn what_was_answered_is_counted_over_all_connections() {
        let backups = Backups::new(Arc::default());
        let (announced, session) = session(&backups);
        let found = backups.find(session.number()).unwrap();
        assert_eq!((session.file(1), found.file(2)), (Some(Path::new("PG_VERSION")), None));
        session.count_file(5);
        found.count_file(3);
        found.count_bytes(3, 5);
        assert_eq!(session.completed(), Ok(Answered { files: 2, bytes: 8 }));
        let vitals = backups.vitals.backups.get();
        let vitals = vitals.values().next().unwrap();
        assert_eq!((vitals.done_bytes, vitals.equal_bytes), (8, 5));
        drop(announced);
        assert!(backups.find(session.number()).is_none());
        assert!(backups.vitals.backups.get().is_empty());
        assert!(session.ended.is_cancelled());
    }

    #[test]
    fn the_first_failure_is_the_reason() {
        let backups = Backups::new(Arc::default());
        let (_announced, session) = session(&backups);
        session.fail("the disk".to_owned());
        session.fail("something that followed from it".to_owned());
        assert_eq!(session.completed().unwrap_err(), "the disk");
        assert!(session.ended.is_cancelled());
    }
}
