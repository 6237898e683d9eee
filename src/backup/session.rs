//! A base backup that is running, as its connections share it.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

use super::file::Reading;
use super::pace::Pace;
use super::plan::{Job, Plan};
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
        let work = Work { folders: plan.folders, jobs: plan.jobs.into(), ..Work::default() };
        let session = Arc::new(Session {
            number: self.number,
            reading,
            pace,
            work: Mutex::new(work),
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

/// A backup whose files are being copied.
#[derive(Debug)]
pub struct Session {
    number: u64,
    pub(super) reading: Reading,
    pub(super) pace: Pace,
    work: Mutex<Work>,
    ended: CancellationToken,
    vitals: Arc<Vitals>,
}

/// What is to do and what was done.
#[derive(Debug, Default)]
struct Work {
    folders: Vec<PathBuf>,
    jobs: VecDeque<Job>,
    jobs_in_hand: usize,
    files: u64,
    bytes: u64,
    failure: Option<String>,
}

/// What was sent, on all connections together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sent {
    pub files: u64,
    pub bytes: u64,
}

impl Session {
    /// Its number, as the taker knows it.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The folders, for whoever asks first.
    pub(super) fn take_folders(&self) -> Vec<PathBuf> {
        std::mem::take(&mut lock(&self.work).folders)
    }

    /// The next job, until there is none.
    pub(super) fn take_job(self: &Arc<Session>) -> Option<JobInHand> {
        let mut work = lock(&self.work);
        let files = work.jobs.pop_front()?;
        work.jobs_in_hand += 1;
        Some(JobInHand { session: Arc::clone(self), files, is_done: false })
    }

    /// Counts bytes that were read and sent.
    pub(super) fn count_bytes(&self, bytes: u64) {
        let number = self.number;
        self.vitals.backups.update(|backups| {
            if let Some(backup) = backups.get_mut(&number) {
                backup.done_bytes += bytes;
            }
        });
    }

    /// Counts a file that was sent whole.
    pub(super) fn count_file(&self, bytes: u64) {
        let mut work = lock(&self.work);
        work.files += 1;
        work.bytes += bytes;
    }

    /// Ends the backup; the first reason counts.
    pub(super) fn fail(&self, reason: String) {
        lock(&self.work).failure.get_or_insert(reason);
        self.ended.cancel();
    }

    /// Waits until the backup is over, for whatever reason. Cancel-safe.
    pub(super) async fn over(&self) {
        self.ended.cancelled().await;
    }

    /// Why it failed, if it did.
    pub(super) fn failure(&self) -> Option<String> {
        lock(&self.work).failure.clone()
    }

    /// What was sent, once every file was; the reason why not otherwise.
    pub(super) fn completed(&self) -> Result<Sent, String> {
        let work = lock(&self.work);
        match &work.failure {
            Some(reason) => Err(reason.clone()),
            None if !work.jobs.is_empty() || work.jobs_in_hand > 0 || !work.folders.is_empty() => {
                Err("not all files were taken".to_owned())
            }
            None => Ok(Sent { files: work.files, bytes: work.bytes }),
        }
    }
}

/// The failure of a backup whose taker went away: no news for anyone here.
pub(super) const TAKER_LEFT: &str = "a connection that carried files ended early";

/// A job that one connection works on. Dropped before it is done, its files are lost to the backup, which fails.
#[derive(Debug)]
pub(super) struct JobInHand {
    session: Arc<Session>,
    pub files: Job,
    is_done: bool,
}

impl JobInHand {
    /// All its files were sent.
    pub fn done(mut self) {
        self.is_done = true;
        lock(&self.session.work).jobs_in_hand -= 1;
    }
}

impl Drop for JobInHand {
    fn drop(&mut self) {
        if !self.is_done {
            self.session.fail(TAKER_LEFT.to_owned());
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(backups: &Arc<Backups>, jobs: Vec<Job>) -> (Announced, Arc<Session>) {
        let reading = Reading {
            data_directory: "/nowhere".into(),
            start_lsn: Lsn(1),
            data_checksums: false,
            compression: None,
        };
        let mut announced = backups.announce("db2", Lsn(1));
        let plan = Plan { jobs, folders: vec!["base".into()], ..Plan::default() };
        let session = announced.open(reading, Pace::new(None), plan);
        (announced, session)
    }

    #[test]
    fn a_backup_is_complete_when_every_job_is_done() {
        let backups = Backups::new(Arc::default());
        let (announced, session) = session(&backups, vec![vec!["a".into()], vec!["b".into()]]);
        let found = backups.find(session.number()).unwrap();
        let (first, second) = (found.take_job().unwrap(), session.take_job().unwrap());
        assert!(session.take_job().is_none());
        assert_eq!(session.take_folders().len() + found.take_folders().len(), 1);
        session.count_file(5);
        first.done();
        assert!(session.completed().is_err());
        second.done();
        assert_eq!(session.completed(), Ok(Sent { files: 1, bytes: 5 }));
        assert_eq!(backups.vitals.backups.get().len(), 1);
        drop(announced);
        assert!(backups.find(session.number()).is_none());
        assert!(backups.vitals.backups.get().is_empty());
        assert!(session.ended.is_cancelled());
    }

    #[test]
    fn a_job_that_was_dropped_fails_the_backup() {
        let backups = Backups::new(Arc::default());
        let (_announced, session) = session(&backups, vec![vec!["a".into()]]);
        session.take_folders();
        drop(session.take_job());
        session.fail("something that followed from it".to_owned());
        assert_eq!(session.completed().unwrap_err(), "a connection that carried files ended early");
        assert!(session.ended.is_cancelled());
    }
}
