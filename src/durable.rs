//! Files that are still there after a power cut: the only caller of rename and fsync.
//!
//! Every new file is written beside its name, fsynced, renamed, and its folder fsynced; so a reader finds the old
//! content or the new, never a part. Like PostgreSQL's `durable_rename` (`storage/file/fd.c`), less its fsync of
//! the target before the rename, which matters only where the old content must survive a half-done rename.
//!
//! All functions block: call them from blocking threads.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What a file has behind its name until it is complete; whoever finds one at start may delete it.
pub const TEMPORARY_SUFFIX: &str = ".tmp";

/// Permissions of everything that is made: PostgreSQL's data is nobody else's business.
const PRIVATE_FILE: u32 = 0o600;
const PRIVATE_FOLDER: u32 = 0o700;

/// A file operation that failed: what was done, to which path, and why.
#[derive(Debug, thiserror::Error)]
#[error("{action} {}", path.display())]
pub struct FileError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl FileError {
    /// Names an I/O error of another operation in the same form: `action` is a verb such as `read`.
    pub fn new(action: &'static str, path: &Path, source: io::Error) -> FileError {
        FileError { action, path: path.to_owned(), source }
    }

    /// The kind of the error below.
    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }

    /// True when it was an fsync that failed: what is on disk is unknown then, and a later fsync does not tell.
    pub fn leaves_disk_unknown(&self) -> bool {
        self.action.starts_with("fsync")
    }
}

/// A page of PostgreSQL's.
const ZEROS: [u8; 8192] = [0; 8192];

type Result<T> = std::result::Result<T, FileError>;

/// Makes `path` hold exactly `content`, mode 0600, durably and at once.
pub fn write(path: &Path, content: &[u8]) -> Result<()> {
    let temporary = temporary_name(path);
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(PRIVATE_FILE)
        .open(&temporary)
        .map_err(|e| FileError::new("create", &temporary, e))?;
    file.write_all(content).map_err(|e| FileError::new("write", &temporary, e))?;
    file.sync_all().map_err(|e| FileError::new("fsync", &temporary, e))?;
    rename(&temporary, path)
}

/// Creates an empty file, mode 0600, open for reading and writing, and its entry in the folder durable.
/// Fails when it exists.
pub fn create_new(path: &Path) -> Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(PRIVATE_FILE)
        .open(path)
        .map_err(|e| FileError::new("create", path, e))?;
    sync_folder_of(path)?;
    Ok(file)
}

/// Renames a file whose content is already fsynced, and makes the new name durable.
pub fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(|e| FileError::new("rename to", to, e))?;
    sync_folder_of(to)
}

/// Removes a file durably; one that is already gone is fine.
pub fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Ok(()) => sync_folder_of(path),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(FileError::new("remove", path, e)),
    }
}

/// Zeros a file from `offset` to its end, durably: the first page of that before the rest, so that whoever reads on from
/// there finds nothing or all. `false` when there is no such file.
pub fn zero_from(path: &Path, offset: u64) -> Result<bool> {
    let file = match OpenOptions::new().write(true).open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(FileError::new("open", path, e)),
    };
    let end = file.metadata().map_err(|e| FileError::new("look at", path, e))?.len();
    let mut at = offset;
    while at < end {
        let page_end = (at + 1).next_multiple_of(ZEROS.len() as u64).min(end);
        let zeros = &ZEROS[..(page_end - at) as usize];
        file.write_all_at(zeros, at).map_err(|e| FileError::new("write", path, e))?;
        if at == offset {
            sync_data(&file, path)?;
        }
        at = page_end;
    }
    sync_data(&file, path)?;
    Ok(true)
}

/// Makes a folder with all its parents, mode 0700, durably; one that exists is left as it is.
pub fn create_folder(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        create_folder(parent)?;
    }
    match fs::DirBuilder::new().mode(PRIVATE_FOLDER).create(path) {
        Ok(()) => sync_folder_of(path),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(e) => Err(FileError::new("create folder", path, e)),
    }
}

/// fsyncs an open file's content (`fdatasync`: its size too, but not its times).
pub fn sync_data(file: &File, path: &Path) -> Result<()> {
    file.sync_data().map_err(|e| FileError::new("fsync", path, e))
}

/// fsyncs a folder, so that the names in it are durable.
pub fn sync_folder(path: &Path) -> Result<()> {
    let folder = File::open(path).map_err(|e| FileError::new("open folder", path, e))?;
    folder.sync_all().map_err(|e| FileError::new("fsync folder", path, e))
}

/// fsyncs the folder that holds `path`.
pub fn sync_folder_of(path: &Path) -> Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync_folder(parent),
        _ => sync_folder(Path::new(".")),
    }
}

/// What a file is called until it is complete.
pub fn temporary_name(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(TEMPORARY_SUFFIX);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_written_file_is_private_and_leaves_nothing_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b/state");
        create_folder(path.parent().unwrap()).unwrap();
        write(&path, b"one").unwrap();
        write(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn zeros_reach_from_the_offset_to_the_end_and_no_further() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("wal");
        for (size, offset) in
            [(40_000, 0), (40_000, 8191), (40_000, 8192), (40_000, 20_001), (40_000, 40_000)]
        {
            fs::write(&path, vec![7; size]).unwrap();
            assert!(zero_from(&path, offset as u64).unwrap());
            let content = fs::read(&path).unwrap();
            assert_eq!(content.len(), size);
            assert!(
                content[..offset].iter().all(|byte| *byte == 7)
                    && content[offset..].iter().all(|byte| *byte == 0)
            );
        }
        assert!(!zero_from(&folder.path().join("gone"), 0).unwrap());
    }

    #[test]
    fn errors_name_the_action_and_the_path() {
        let error = write(Path::new("/nonexistent/x"), b"").unwrap_err();
        assert_eq!(error.to_string(), "create /nonexistent/x.tmp");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
