//! The end of a copy: what makes a pile of files a data directory, in the order that keeps a half-made one dead.
//!
//! `global/pg_control` waits under another name until everything else, `backup_label` included, is durable; without
//! it PostgreSQL refuses to start. Giving it its name is the very last act; the marker goes after it, as a cluster with a
//! control file is whole, marker or not. Blocks.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use walkdir::WalkDir;

use super::file::manifest_file;
use super::site::Site;
use super::standby::StandbySettings;
use super::tablespace::moved_map;
use super::target::{MARKER_FILE, PENDING_CONTROL_FILE};
use crate::clock::WallTime;
use crate::durable::{self, FileError};
use crate::failpoint;
use crate::link::message::Digest;
use crate::pg::control::CONTROL_FILE;
use crate::pg::label::{BACKUP_LABEL_FILE, TABLESPACE_MAP_FILE, format_tablespace_map, parse_tablespace_map};
use crate::pg::manifest::{MANIFEST_FILE, Manifest, ManifestFile, WalRange};

/// What is left to write once all files and the WAL are here.
#[derive(Debug)]
pub struct Ending {
    /// Where the copy is.
    pub(super) site: Arc<Site>,
    /// Every file that arrived, but the control file.
    pub files: Vec<ManifestFile>,
    /// `backup_label`, byte for byte.
    pub backup_label: String,
    /// `tablespace_map` as it is at the source.
    pub tablespace_map: String,
    /// `global/pg_control`, verified.
    pub control_file: Bytes,
    /// For the manifest's second version; `None` writes the first.
    pub manifest_system_identifier: Option<u64>,
    /// The WAL that a start needs.
    pub wal_range: WalRange,
    /// Makes the copy a standby.
    pub standby: Option<StandbySettings>,
    /// Settings of the primary that a standby has to match.
    pub primary_settings: BTreeMap<String, String>,
}

impl Ending {
    /// Completes the copy.
    pub fn write(mut self) -> anyhow::Result<()> {
        let site = Arc::clone(&self.site);
        let target = &site.layout.target;
        let label = std::mem::take(&mut self.backup_label).into_bytes();
        self.add(BACKUP_LABEL_FILE, &label)?;
        if !self.tablespace_map.is_empty() {
            let map = parse_tablespace_map(self.tablespace_map.as_bytes())?;
            let map = format_tablespace_map(&moved_map(&map, &site.layout.placements));
            self.add(TABLESPACE_MAP_FILE, &map)?;
        }
        failpoint::hit("restore.labelled");
        let control_file = std::mem::take(&mut self.control_file);
        self.list(CONTROL_FILE, &control_file);
        self.list_kept()?;
        self.files.sort_by(|one, other| one.path.cmp(&other.path));
        let manifest = Manifest {
            system_identifier: self.manifest_system_identifier,
            files: self.files,
            wal_ranges: vec![self.wal_range],
        };
        durable::write(&target.join(MANIFEST_FILE), &manifest.to_bytes())?;
        if let Some(mut standby) = self.standby {
            standby.add_primarys(target, &self.primary_settings);
            standby.apply(target)?;
        }
        site.drop_aside()?;
        sync_folders(target)?;
        for placement in &site.layout.placements {
            sync_folders(&placement.path)?;
        }
        durable::write(&target.join(PENDING_CONTROL_FILE), &control_file)?;
        failpoint::hit("restore.pending");
        durable::rename(&target.join(PENDING_CONTROL_FILE), &target.join(CONTROL_FILE))?;
        failpoint::hit("restore.named");
        Ok(durable::remove(&target.join(MARKER_FILE))?)
    }

    /// Lists the files of the host's own as they are here.
    fn list_kept(&mut self) -> Result<(), FileError> {
        for path in &self.site.kept {
            let place = self.site.layout.target.join(path);
            let content = match fs::read(&place) {
                Ok(content) => content,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(FileError::new("read", &place, e)),
            };
            let metadata = fs::metadata(&place).map_err(|e| FileError::new("stat", &place, e))?;
            let size = content.len() as u64;
            self.files.push(manifest_file(path, size, metadata.mtime(), Digest::of(&content)));
        }
        Ok(())
    }

    /// Writes a file that is made here, and lists it.
    fn add(&mut self, path: &str, content: &[u8]) -> Result<(), FileError> {
        durable::write(&self.site.layout.target.join(path), content)?;
        self.list(path, content);
        Ok(())
    }

    fn list(&mut self, path: &str, content: &[u8]) {
        let now = WallTime::now().unix_seconds();
        self.files.push(manifest_file(Path::new(path), content.len() as u64, now, Digest::of(content)));
    }
}

/// Makes the names of everything below a folder durable; what the files hold already is.
fn sync_folders(root: &Path) -> Result<(), FileError> {
    for entry in WalkDir::new(root) {
        let entry = entry.map_err(|e| FileError::new("walk", root, e.into()))?;
        if entry.file_type().is_dir() {
            durable::sync_folder(entry.path())?;
        }
    }
    Ok(())
}
