//! What a base backup copies: the data directory without what PostgreSQL leaves out.
//!
//! The rules are those of `basebackup.c` (pg-facts, F). `global/pg_control` is not among it: it goes last. Blocks.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use tracing::warn;
use walkdir::{DirEntry, WalkDir};

use crate::durable::FileError;
use crate::pg::control::CONTROL_FILE;
use crate::pg::label::Tablespace;
use crate::pg::relation::{self, Fork, RelationFile};

/// Folders that are copied empty, wherever they stand.
const EMPTIED_FOLDERS: [&str; 7] =
    ["pg_stat_tmp", "pg_replslot", "pg_dynshmem", "pg_notify", "pg_serial", "pg_snapshots", "pg_subtrans"];

/// Files that are left out, wherever they stand.
const SKIPPED_FILES: [&str; 8] = [
    "postgresql.auto.conf.tmp",
    "current_logfiles.tmp",
    "backup_label",
    "tablespace_map",
    "backup_manifest",
    "postmaster.pid",
    "postmaster.opts",
    ".DS_Store",
];

/// Beginnings of the names of files and folders that are left out.
const SKIPPED_PREFIXES: [&str; 2] = ["pg_internal.init", "pgsql_tmp"];

/// Everything to copy.
#[derive(Debug, Default)]
pub struct Plan {
    /// Every folder, parents first, relative to the data directory; a tablespace's are below `pg_tblspc/<oid>`.
    pub folders: Vec<PathBuf>,
    /// Every file with its size when it was seen: the large ones first, so that no connection is left with one at the
    /// end.
    pub files: Vec<(PathBuf, u64)>,
    /// Tablespaces outside the data directory.
    pub tablespaces: Vec<Tablespace>,
}

impl Plan {
    /// The bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|(_, bytes)| bytes).sum()
    }
}

/// What the walk needs to know.
#[derive(Clone, Copy, Debug)]
pub struct Cluster<'a> {
    /// The data directory.
    pub data_directory: &'a Path,
    /// PostgreSQL's major version.
    pub major: u32,
    /// The catalog version, which names the folder in every tablespace.
    pub catalog_version: u32,
}

impl Cluster<'_> {
    /// The folder that belongs to this cluster in each of its tablespaces.
    pub fn tablespace_folder(&self) -> String {
        format!("PG_{}_{}", self.major, self.catalog_version)
    }

    /// Walks the data directory and its tablespaces. What vanishes meanwhile is left out.
    pub fn plan(&self) -> Result<Plan, FileError> {
        let tablespaces = self.tablespaces()?;
        let mut found = Found { own_walk: self.inside(&tablespaces)?, ..Found::default() };
        self.walk(Path::new(""), &mut found)?;
        for tablespace in tablespaces {
            let link = Path::new("pg_tblspc").join(tablespace.oid.to_string());
            self.walk(&link.join(self.tablespace_folder()), &mut found)?;
            found.tablespaces.push(tablespace);
        }
        self.add_wal_folders(&mut found);
        Ok(found.into_plan())
    }

    /// Adds what lies below `start`, relative to the data directory, and `start` itself.
    fn walk(&self, start: &Path, found: &mut Found) -> Result<(), FileError> {
        let root = self.data_directory.join(start);
        // The root itself may be a link, as PGDATA often is; below it none is followed.
        let walk = WalkDir::new(&root).follow_root_links(true);
        let mut entries = walk.into_iter();
        while let Some(entry) = entries.next() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(e) if e.io_error().is_some_and(|e| e.kind() == io::ErrorKind::NotFound) => continue,
                Err(e) => {
                    let path = e.path().unwrap_or(&root).to_owned();
                    return Err(FileError::new("walk", &path, e.into()));
                }
            };
            let below = entry.path().strip_prefix(&root).unwrap_or(entry.path());
            let path = if entry.depth() == 0 { start.to_owned() } else { start.join(below) };
            let verdict = if found.own_walk.contains(&path) && entry.depth() > 0 {
                Verdict::Empty
            } else {
                self.verdict(&entry, &path)
            };
            match verdict {
                Verdict::Skip => {}
                Verdict::SkipFolder => entries.skip_current_dir(),
                Verdict::Empty => {
                    found.folders.push(path);
                    if entry.file_type().is_dir() {
                        entries.skip_current_dir();
                    }
                }
                Verdict::Folder => found.folders.push(path),
                Verdict::File => found.add_file(&entry, path)?,
                Verdict::Special => warn!(path = %entry.path().display(), "skipping special file"),
            }
        }
        Ok(())
    }

    fn verdict(&self, entry: &DirEntry, path: &Path) -> Verdict {
        let kind = entry.file_type();
        let name = entry.file_name();
        let at_root = path.parent() == Some(Path::new(""));
        if path.as_os_str().is_empty() {
            return Verdict::Skip;
        }
        if is_skipped(name) {
            return if kind.is_dir() { Verdict::SkipFolder } else { Verdict::Skip };
        }
        let emptied = EMPTIED_FOLDERS.iter().any(|folder| name == *folder) || at_root && name == "pg_wal";
        if emptied && !kind.is_file() {
            return Verdict::Empty;
        }
        let is_tablespace_link = kind.is_symlink() && path.parent() == Some(Path::new("pg_tblspc"));
        if is_tablespace_link || path == Path::new(CONTROL_FILE) {
            return Verdict::Skip;
        }
        if kind.is_dir() {
            Verdict::Folder
        } else if !kind.is_file() {
            Verdict::Special
        } else if self.holds_relations(path.parent()) && name.to_str().is_some_and(relation::is_temporary) {
            Verdict::Skip
        } else {
            Verdict::File
        }
    }

    /// True for `global`, `base/<database>` and a database's folder in a tablespace.
    fn holds_relations(&self, folder: Option<&Path>) -> bool {
        let Some(folder) = folder else { return false };
        let parts: Vec<&OsStr> = folder.iter().collect();
        match parts[..] {
            [only] => only == "global",
            [first, database] => first == "base" && is_number(database),
            [first, _, version, database] => {
                first == "pg_tblspc" && version == self.tablespace_folder().as_str() && is_number(database)
            }
            _ => false,
        }
    }

    /// The links directly below `pg_tblspc`. A folder there is a tablespace within the data directory and was
    /// walked with it.
    fn tablespaces(&self) -> Result<Vec<Tablespace>, FileError> {
        let folder = self.data_directory.join("pg_tblspc");
        let failed = |e| FileError::new("read folder", &folder, e);
        let mut tablespaces = Vec::new();
        for entry in fs::read_dir(&folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let oid = entry.file_name().to_str().and_then(|name| name.parse().ok());
            let (Some(oid), Ok(path)) = (oid, fs::read_link(entry.path())) else { continue };
            tablespaces.push(Tablespace { oid, path });
        }
        tablespaces.sort_by_key(|tablespace| tablespace.oid);
        Ok(tablespaces)
    }

    /// Those of the tablespaces that were put inside the data directory, relative to it: they are copied through
    /// their links, and only so.
    fn inside(&self, tablespaces: &[Tablespace]) -> Result<HashSet<PathBuf>, FileError> {
        let root = fs::canonicalize(self.data_directory);
        let root = root.map_err(|e| FileError::new("resolve", self.data_directory, e))?;
        let below = |tablespace: &Tablespace| {
            let path = &tablespace.path;
            path.strip_prefix(&root).or(path.strip_prefix(self.data_directory)).map(Path::to_owned).ok()
        };
        Ok(tablespaces.iter().filter_map(below).collect())
    }

    fn add_wal_folders(&self, found: &mut Found) {
        found.folders.push("pg_wal/archive_status".into());
        if self.major >= 17 {
            found.folders.push("pg_wal/summaries".into());
        }
    }
}

/// What becomes of one entry of the walk.
enum Verdict {
    File,
    Folder,
    /// A folder that is copied without its content; a link becomes one.
    Empty,
    Skip,
    SkipFolder,
    Special,
}

fn is_skipped(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    SKIPPED_FILES.iter().any(|skipped| name == skipped.as_bytes())
        || SKIPPED_PREFIXES.iter().any(|prefix| name.starts_with(prefix.as_bytes()))
}

fn is_number(name: &OsStr) -> bool {
    name.to_str().is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
}

/// What the walk gathers.
#[derive(Default)]
struct Found {
    /// Folders whose content has a walk of its own.
    own_walk: HashSet<PathBuf>,
    folders: Vec<PathBuf>,
    files: Vec<(PathBuf, u64)>,
    /// Folder and number of every relation that has an init fork.
    unlogged: HashSet<(PathBuf, u32)>,
    tablespaces: Vec<Tablespace>,
}

impl Found {
    fn add_file(&mut self, entry: &DirEntry, path: PathBuf) -> Result<(), FileError> {
        let metadata = match entry.metadata() {
            Ok(metadata) => metadata,
            Err(e) if e.io_error().is_some_and(|e| e.kind() == io::ErrorKind::NotFound) => return Ok(()),
            Err(e) => return Err(FileError::new("stat", entry.path(), e.into())),
        };
        if let Some(RelationFile { number, fork: Fork::Init, .. }) = relation_file(&path)
            && let Some(folder) = path.parent()
        {
            self.unlogged.insert((folder.to_owned(), number));
        }
        self.files.push((path, metadata.size()));
        Ok(())
    }

    /// Drops the forks of unlogged relations but the init forks, and sorts the rest.
    fn into_plan(self) -> Plan {
        let mut files = self.files;
        let unlogged = self.unlogged;
        if !unlogged.is_empty() {
            files.retain(|(path, _)| match (relation_file(path), path.parent()) {
                (Some(file), Some(folder)) if file.fork != Fork::Init => {
                    !unlogged.contains(&(folder.to_owned(), file.number))
                }
                _ => true,
            });
        }
        files.sort_by(|(a_path, a), (b_path, b)| b.cmp(a).then_with(|| a_path.cmp(b_path)));
        Plan { folders: self.folders, files, tablespaces: self.tablespaces }
    }
}

/// A relation's file, by its name alone: outside the relations' folders nothing is named so.
fn relation_file(path: &Path) -> Option<RelationFile> {
    RelationFile::parse(path.file_name()?.to_str()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A made-up data directory; names that end in a slash are folders.
    fn data_directory(names: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for name in names {
            let path = root.path().join(name);
            if name.ends_with('/') {
                fs::create_dir_all(path).unwrap();
            } else {
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, name).unwrap();
            }
        }
        root
    }

    fn plan(root: &Path, major: u32) -> Plan {
        Cluster { data_directory: root, major, catalog_version: 42 }.plan().unwrap()
    }

    fn names(paths: impl IntoIterator<Item = PathBuf>) -> Vec<String> {
        let mut names: Vec<String> =
            paths.into_iter().map(|path| path.into_os_string().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn what_postgresql_leaves_out_is_left_out() {
        let root = data_directory(&[
            "PG_VERSION",
            "postgresql.auto.conf",
            "postgresql.auto.conf.tmp",
            "postmaster.pid",
            "postmaster.opts",
            "backup_label",
            "backup_manifest",
            "current_logfiles",
            "current_logfiles.tmp",
            "global/pg_control",
            "global/pg_internal.init",
            "global/1262",
            "global/backup_label.old",
            "base/pgsql_tmp/pgsql_tmp1.0",
            "base/5/112",
            "base/5/pg_internal.init.1234",
            "base/5/t3_16400",
            "base/5/16390",
            "base/5/16390.1",
            "base/5/16390_vm",
            "base/5/16390_init",
            "base/5/16391",
            "base/6/16390",
            "log/t3_1",
            "pg_notify/0000",
            "pg_replslot/walship/state",
            "pg_stat/pgstat.stat",
            "pg_stat_tmp/x",
            "pg_subtrans/0000",
            "pg_tblspc/",
            "pg_wal/000000010000000000000001",
            "pg_wal/archive_status/000000010000000000000001.done",
        ]);
        let plan = plan(root.path(), 17);
        let files = names(plan.files.into_iter().map(|(path, _)| path));
        let expected = [
            "PG_VERSION",
            "base/5/112",
            "base/5/16390_init",
            "base/5/16391",
            "base/6/16390",
            "current_logfiles",
            "global/1262",
            "global/backup_label.old",
            "log/t3_1",
            "pg_stat/pgstat.stat",
            "postgresql.auto.conf",
        ];
        assert_eq!(files, expected);
        let folders = names(plan.folders);
        let expected = [
            "base",
            "base/5",
            "base/6",
            "global",
            "log",
            "pg_notify",
            "pg_replslot",
            "pg_stat",
            "pg_stat_tmp",
            "pg_subtrans",
            "pg_tblspc",
            "pg_wal",
            "pg_wal/archive_status",
            "pg_wal/summaries",
        ];
        assert_eq!(folders, expected);
    }

    #[test]
    fn links_are_followed_below_pg_tblspc_only() {
        let elsewhere = data_directory(&[
            "PG_15_42/5/16400",
            "PG_15_42/5/t1_16401",
            "PG_15_42/5/16402",
            "PG_15_42/5/16402_init",
            "PG_14_41/5/16400",
            "wal/000000010000000000000001",
            "stray.conf",
        ]);
        let root = data_directory(&["base/5/112", "pg_tblspc/16501/PG_15_42/5/16500"]);
        symlink(elsewhere.path(), root.path().join("pg_tblspc/16500")).unwrap();
        fs::create_dir_all(root.path().join("inside/PG_15_42/5")).unwrap();
        fs::write(root.path().join("inside/PG_15_42/5/16600"), "x").unwrap();
        symlink(root.path().join("inside"), root.path().join("pg_tblspc/16502")).unwrap();
        symlink(elsewhere.path().join("wal"), root.path().join("pg_wal")).unwrap();
        symlink(elsewhere.path().join("wal"), root.path().join("pg_stat_tmp")).unwrap();
        symlink(elsewhere.path().join("stray.conf"), root.path().join("postgresql.conf")).unwrap();
        let plan = plan(root.path(), 15);
        let space = |oid, path: PathBuf| Tablespace { oid, path };
        let spaces = [space(16500, elsewhere.path().to_owned()), space(16502, root.path().join("inside"))];
        assert_eq!(plan.tablespaces, spaces, "16501 is no link: it is a part of the data directory");
        let expected = [
            "base/5/112",
            "pg_tblspc/16500/PG_15_42/5/16400",
            "pg_tblspc/16500/PG_15_42/5/16402_init",
            "pg_tblspc/16501/PG_15_42/5/16500",
            "pg_tblspc/16502/PG_15_42/5/16600",
        ];
        assert_eq!(names(plan.files.into_iter().map(|(path, _)| path)), expected);
        let folders = names(plan.folders);
        for folder in ["pg_wal", "pg_wal/archive_status", "pg_stat_tmp", "pg_tblspc/16500/PG_15_42/5"] {
            assert!(folders.iter().any(|found| found == folder), "{folder} in {folders:?}");
        }
        assert!(!folders.iter().any(|found| found == "pg_tblspc/16500"), "the link is the taker's to make");
    }

    #[test]
    fn the_large_files_come_first() {
        let mut found = Found::default();
        let file = |n: u64, bytes: u64| (PathBuf::from(format!("base/1/{n}")), bytes);
        found.files.extend([file(1, 8192), file(2, 1 << 30), file(3, 8192), file(4, 1 << 20)]);
        let plan = found.into_plan();
        let order: Vec<u64> = plan.files.iter().map(|(_, bytes)| *bytes).collect();
        assert_eq!(order, [1 << 30, 1 << 20, 8192, 8192]);
        assert_eq!(plan.bytes(), (1 << 30) + (1 << 20) + 2 * 8192);
    }

    #[test]
    fn an_unreadable_data_directory_is_an_error() {
        let cluster = Cluster { data_directory: Path::new("/nonexistent"), major: 15, catalog_version: 42 };
        assert_eq!(cluster.plan().unwrap_err().to_string(), "read folder /nonexistent/pg_tblspc");
    }
}
