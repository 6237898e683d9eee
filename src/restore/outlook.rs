//! What a look at a data directory tells before a standby is made whole: how much there is to compare, and what stays.
//!
//! Blocks. What cannot be read is passed over: it may be what is damaged.

use std::path::{Path, PathBuf};

use walkdir::WalkDir;

use super::own;

/// What there is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outlook {
    /// Files to compare, without the WAL and what is the host's own.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What is the host's own, and stays: configuration files, and the folder of the logs.
    pub own: Vec<PathBuf>,
}

/// Looks.
pub fn of(data_directory: &Path) -> Outlook {
    let mut found = Outlook::default();
    let mut walk =
        WalkDir::new(data_directory).follow_root_links(true).min_depth(1).sort_by_file_name().into_iter();
    while let Some(entry) = walk.next() {
        let Ok(entry) = entry else { continue };
        let path = entry.path().strip_prefix(data_directory).unwrap_or(entry.path());
        let is_folder = entry.file_type().is_dir();
        if path == Path::new("pg_wal") || own::is_log(path) {
            if path != Path::new("pg_wal") {
                found.own.push(path.to_owned());
            }
            if is_folder {
                walk.skip_current_dir();
            }
        } else if !is_folder && own::is_configuration(path) {
            found.own.push(path.to_owned());
        } else if entry.file_type().is_file() {
            found.files += 1;
            found.bytes += entry.metadata().map_or(0, |metadata| metadata.len());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn what_is_compared_and_what_stays_is_told_apart() {
        let root = tempfile::tempdir().unwrap();
        for (path, content) in [
            ("PG_VERSION", "15\n"),
            ("base/5/112", "12345"),
            ("log/today.log", "x"),
            ("pg_wal/000000010000000000000001", "x"),
            ("postgresql.conf", "x"),
        ] {
            fs::create_dir_all(root.path().join(path).parent().unwrap()).unwrap();
            fs::write(root.path().join(path), content).unwrap();
        }
        let own = vec![PathBuf::from("log"), PathBuf::from("postgresql.conf")];
        assert_eq!(of(root.path()), Outlook { files: 2, bytes: 8, own });
        assert_eq!(of(&root.path().join("nowhere")), Outlook::default());
    }
}
