//! What the source has: every folder and file of the copy to be, as it listed them.
//!
//! The source is not trusted: no more is listed than it announced, every path has a place in this copy, and none comes
//! twice.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::file::WriteError;
use super::layout::Layout;
use crate::link::message::{BackupStarted, Listed};

/// All of it.
#[derive(Debug, Default)]
pub struct Listing {
    /// Relative to the data directory, parents first.
    pub folders: Vec<PathBuf>,
    /// In the order by which they are asked for: the large ones first.
    pub files: Vec<ListedFile>,
}

/// One file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ListedFile {
    /// Relative to the data directory.
    pub path: PathBuf,
    /// Its size when it was seen.
    pub bytes: u64,
}

impl Listing {
    /// Takes the next part of what was announced; true once all of it is here.
    pub fn take(&mut self, part: Vec<Listed>, started: &BackupStarted) -> Result<bool, WriteError> {
        for Listed { path, size } in part {
            let path = path.as_path().to_owned();
            match size {
                Some(bytes) => self.files.push(ListedFile { path, bytes }),
                None => self.folders.push(path),
            }
        }
        let (files, folders) = (self.files.len() as u64, self.folders.len() as u64);
        if files > started.files || folders > started.folders || self.files.len() > u32::MAX as usize {
            let got = "more files and folders than it announced";
            return Err(WriteError::OutOfOrder { wanted: "BackupPhase", got });
        }
        Ok((files, folders) == (started.files, started.folders))
    }

    /// Refuses what has no place in this copy.
    pub fn check(&self, layout: &Layout) -> Result<(), WriteError> {
        let refused = |path: &Path, reason| WriteError::Refused { path: path.display().to_string(), reason };
        let mut seen = HashSet::new();
        for path in &self.folders {
            layout.folder(path).map_err(|reason| refused(path, reason))?;
        }
        for path in self.files.iter().map(|file| &file.path) {
            layout.file(path).map_err(|reason| refused(path, reason))?;
        }
        for path in self.folders.iter().chain(self.files.iter().map(|file| &file.path)) {
            if !seen.insert(path) {
                return Err(refused(path, "came twice"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::message::WirePath;

    fn listed(path: &str, size: Option<u64>) -> Listed {
        Listed { path: WirePath::new(path).unwrap(), size }
    }

    fn announced(files: u64, folders: u64) -> BackupStarted {
        BackupStarted { files, folders, ..super::super::tests::started() }
    }

    #[test]
    fn a_listing_is_whole_when_all_that_was_announced_is_here() {
        let mut listing = Listing::default();
        let started = announced(2, 1);
        assert!(!listing.take(vec![listed("base", None), listed("base/1", Some(5))], &started).unwrap());
        assert!(listing.take(vec![listed("PG_VERSION", Some(3))], &started).unwrap());
        assert!(listing.take(vec![listed("PG_VERSION2", Some(3))], &started).is_err(), "more than announced");
    }

    #[test]
    fn what_has_no_place_or_comes_twice_is_refused() {
        let layout = Layout { target: "/srv/data".into(), placements: Vec::new() };
        let check = |parts: Vec<Listed>| {
            let mut listing = Listing::default();
            listing.take(parts, &announced(9, 9)).unwrap();
            listing.check(&layout)
        };
        check(vec![listed("pg_wal", None), listed("pg_wal/archive_status", None)]).unwrap();
        for path in ["global/pg_control", "backup_label", "pg_wal/000000010000000000000001"] {
            let error = check(vec![listed(path, Some(1))]).unwrap_err();
            assert!(error.to_string().contains("the taker's own"), "{error}");
        }
        let error = check(vec![listed("base/1", Some(1)), listed("base/1", Some(1))]).unwrap_err();
        assert!(error.to_string().contains("came twice"), "{error}");
        assert!(check(vec![listed("base", None), listed("base", Some(1))]).is_err());
    }
}
