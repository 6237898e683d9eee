//! Keeps a data directory that is no cluster from being started, by a person or a service manager: pg_rewind needs
//! `pg_control` in its place and takes `standby.signal` away, and what it has begun would come up as a primary.
//!
//! PostgreSQL refuses a data directory whose group may write (`checkDataDir` in `miscinit.c`). The bit that lets a group
//! in at all is taken, so nobody gets more than before.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::durable::{self, FileError};

const GROUP_READS: u32 = 0o040;
const GROUP_WRITES: u32 = 0o020;
const GROUP_ENTERS: u32 = 0o010;

/// Closes it, durably. Blocks.
pub fn close(data_directory: &Path) -> Result<(), FileError> {
    let mode = mode(data_directory)?;
    change(data_directory, mode & !GROUP_ENTERS | GROUP_WRITES)
}

/// Opens it again, where it is closed. Blocks.
pub fn open(data_directory: &Path) -> Result<(), FileError> {
    let mode = mode(data_directory)?;
    if mode & GROUP_WRITES == 0 {
        return Ok(());
    }
    let enters = if mode & GROUP_READS == 0 { 0 } else { GROUP_ENTERS };
    change(data_directory, mode & !GROUP_WRITES | enters)
}

fn mode(data_directory: &Path) -> Result<u32, FileError> {
    let found = fs::metadata(data_directory).map_err(|e| FileError::new("look at", data_directory, e))?;
    Ok(found.permissions().mode() & 0o7777)
}

fn change(data_directory: &Path, mode: u32) -> Result<(), FileError> {
    fs::set_permissions(data_directory, Permissions::from_mode(mode))
        .map_err(|e| FileError::new("change the permissions of", data_directory, e))?;
    durable::sync_folder(data_directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_closed_lets_nobody_in_and_is_opened_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        for usual in [0o700, 0o750] {
            fs::set_permissions(folder.path(), Permissions::from_mode(usual)).unwrap();
            open(folder.path()).unwrap();
            assert_eq!(mode(folder.path()).unwrap(), usual);
            for _ in 0..2 {
                close(folder.path()).unwrap();
                let closed = mode(folder.path()).unwrap();
                assert_eq!(closed & 0o033, GROUP_WRITES, "{closed:o}");
            }
            open(folder.path()).unwrap();
            assert_eq!(mode(folder.path()).unwrap(), usual);
        }
    }
}
