//! Removes what the source does not have, before anything is copied: what is to come needs the room.
//!
//! Links are not followed, as the source does not follow them: one that the source does not have is removed, what it
//! leads to is not touched. Only the tablespaces that the copy has elsewhere are looked into. Blocks.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use walkdir::{DirEntry, WalkDir};

use super::site::Site;
use super::target::{MARKER_FILE, remove_tree};
use crate::durable::FileError;

/// What the source has at a path.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    File,
    Folder,
}

/// Removes it.
pub(super) fn run(site: &Site) -> Result<(), FileError> {
    let files = site.listing.files.iter().map(|file| (file.path.as_path(), Kind::File));
    let folders = site.listing.folders.iter().map(|path| (path.as_path(), Kind::Folder));
    let listed: HashMap<&Path, Kind> = files.chain(folders).collect();
    prune(site, &site.layout.target, Path::new(""), &listed)?;
    for placement in &site.layout.placements {
        let name = placement.folder.file_name().map(PathBuf::from).unwrap_or_default();
        let path = Path::new("pg_tblspc").join(placement.oid.to_string()).join(name);
        prune(site, &placement.folder, &path, &listed)?;
    }
    Ok(())
}

/// Removes what is below `root` and not listed; `start` is its path in the copy.
fn prune(site: &Site, root: &Path, start: &Path, listed: &HashMap<&Path, Kind>) -> Result<(), FileError> {
    let mut walk = WalkDir::new(root).follow_root_links(true).min_depth(1).into_iter();
    while let Some(entry) = walk.next() {
        let entry = match entry {
            Ok(entry) => entry,
            Err(e) if e.io_error().is_some_and(|e| e.kind() == io::ErrorKind::NotFound) => continue,
            Err(e) => {
                let path = e.path().unwrap_or(root).to_owned();
                return Err(FileError::new("walk", &path, e.into()));
            }
        };
        let path = start.join(entry.path().strip_prefix(root).unwrap_or(entry.path()));
        let is_folder = entry.file_type().is_dir();
        if is_not_ours_to_remove(site, &path) {
            if is_folder {
                walk.skip_current_dir();
            }
        } else if !fits(&entry, listed.get(path.as_path()).copied()) {
            if is_folder && leads_to_kept(site, &path) {
                continue;
            }
            remove_tree(entry.path())?;
            if is_folder {
                walk.skip_current_dir();
            }
        }
    }
    Ok(())
}

/// The marker, the WAL, which has its own rules, the links to tablespaces, which are made anew where they are wrong, and
/// what is the host's own.
fn is_not_ours_to_remove(site: &Site, path: &Path) -> bool {
    path == Path::new(MARKER_FILE)
        || path == Path::new("pg_wal")
        || site.stays(path)
        || site.layout.placements.iter().any(|placement| {
            path.parent() == Some(Path::new("pg_tblspc"))
                && path.file_name().is_some_and(|name| name == placement.oid.to_string().as_str())
        })
}

/// A folder that the source does not have, but that holds something of the host's own.
fn leads_to_kept(site: &Site, path: &Path) -> bool {
    site.kept.iter().any(|kept| kept.starts_with(path))
}

/// Whether what stands there can be what the source has there. A folder that a person moved elsewhere, and left a link
/// to, is one.
fn fits(entry: &DirEntry, listed: Option<Kind>) -> bool {
    let kind = entry.file_type();
    match listed {
        Some(Kind::File) => kind.is_file(),
        Some(Kind::Folder) => {
            kind.is_dir() || kind.is_symlink() && fs::metadata(entry.path()).is_ok_and(|m| m.is_dir())
        }
        None => false,
    }
}
