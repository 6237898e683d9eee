//! The host's own files in a data directory that pg_rewind works on, which would give it the source's.
//!
//! They are kept outside, durably, before it begins, and put back when it has ended, well or not. Everything can be
//! repeated. Blocks.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

use crate::durable::{self, FileError};
use crate::pg::{CONFIGURATION_FILE, SETTINGS_FILE};

/// Where they are, below pg_rewind's folder.
const KEPT_FOLDER: &str = "own";
/// What it is called while it is removed.
const GONE_FOLDER: &str = "own.gone";

/// Keeps `files`, relative ones of the data directory.
pub fn keep(data_directory: &Path, files: &[PathBuf], folder: &Path) -> Result<(), FileError> {
    let kept = folder.join(KEPT_FOLDER);
    forget(folder)?;
    durable::create_folder(&kept)?;
    for file in files {
        let (from, to) = (data_directory.join(file), kept.join(file));
        if let Some(parent) = to.parent() {
            durable::create_folder(parent)?;
        }
        copy(&from, &to)?;
    }
    Ok(())
}

/// Has PostgreSQL, when pg_rewind asks it, name `restore_command`; its other settings are put back later.
pub fn arm(data_directory: &Path, restore_command: &str) -> Result<(), FileError> {
    // It has PostgreSQL read its configuration; one that is elsewhere it does not find.
    let configuration = data_directory.join(CONFIGURATION_FILE);
    if !configuration.exists() {
        durable::write(&configuration, b"")?;
    }
    let escaped = restore_command.replace('\\', "\\\\").replace('\'', "''");
    let settings = format!("restore_command = '{escaped}'\n");
    durable::write(&data_directory.join(SETTINGS_FILE), settings.as_bytes())
}

/// Puts back what was kept.
pub fn put_back(data_directory: &Path, folder: &Path) -> Result<(), FileError> {
    let kept = folder.join(KEPT_FOLDER);
    if !kept.exists() {
        return Ok(()); // and let go of
    }
    for entry in WalkDir::new(&kept) {
        let entry = entry.map_err(|e| FileError::new("walk", &kept, e.into()))?;
        let Ok(file) = entry.path().strip_prefix(&kept) else { continue };
        let to = data_directory.join(file);
        if entry.file_type().is_dir() {
            durable::create_folder(&to)?;
        } else {
            copy(entry.path(), &to)?;
        }
    }
    for file in [CONFIGURATION_FILE, SETTINGS_FILE] {
        if !kept.join(file).exists() {
            durable::remove(&data_directory.join(file))?;
        }
    }
    Ok(())
}

/// Lets go of what was kept; half of it is never put back.
pub fn forget(folder: &Path) -> Result<(), FileError> {
    let (kept, gone) = (folder.join(KEPT_FOLDER), folder.join(GONE_FOLDER));
    let remove = |path: &Path| match fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(FileError::new("remove", path, e)),
        _ => Ok(()),
    };
    remove(&gone)?;
    if kept.exists() {
        durable::rename(&kept, &gone)?;
    }
    remove(&gone)
}

/// A server's key must stay as private as it was, and its configuration as readable.
fn copy(from: &Path, to: &Path) -> Result<(), FileError> {
    let content = fs::read(from).map_err(|e| FileError::new("read", from, e))?;
    let mode = fs::metadata(from).map_err(|e| FileError::new("look at", from, e))?.permissions().mode();
    durable::write(to, &content)?;
    fs::set_permissions(to, fs::Permissions::from_mode(mode & 0o7777))
        .map_err(|e| FileError::new("change the permissions of", to, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_comes_back_as_it_was_and_what_was_not_there_goes() {
        let root = tempfile::tempdir().unwrap();
        let (data, folder) = (root.path().join("data"), root.path().join("rewind"));
        fs::create_dir_all(data.join("conf.d")).unwrap();
        let own = [("postgresql.auto.conf", "port = 1\n", 0o600), ("conf.d/a.conf", "x = 2\n", 0o640)];
        for (file, text, mode) in own {
            fs::write(data.join(file), text).unwrap();
            fs::set_permissions(data.join(file), fs::Permissions::from_mode(mode)).unwrap();
        }
        let files = own.map(|(file, _, _)| PathBuf::from(file));
        keep(&data, &files, &folder).unwrap();
        arm(&data, r"it's 'C:\walship' %f").unwrap();
        assert_eq!(
            fs::read_to_string(data.join(SETTINGS_FILE)).unwrap(),
            "restore_command = 'it''s ''C:\\\\walship'' %f'\n"
        );
        assert_eq!(fs::read(data.join(CONFIGURATION_FILE)).unwrap(), b"");
        // As pg_rewind does.
        fs::remove_dir_all(data.join("conf.d")).unwrap();
        for _ in 0..2 {
            put_back(&data, &folder).unwrap();
            for (file, text, mode) in own {
                assert_eq!(fs::read_to_string(data.join(file)).unwrap(), text);
                assert_eq!(fs::metadata(data.join(file)).unwrap().permissions().mode() & 0o777, mode);
            }
            assert!(!data.join(CONFIGURATION_FILE).exists());
        }
        for _ in 0..2 {
            forget(&folder).unwrap();
            put_back(&data, &folder).unwrap();
        }
        assert!(data.join(SETTINGS_FILE).exists() && fs::read_dir(&folder).unwrap().next().is_none());
    }
}
