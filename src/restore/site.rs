//! The place where a copy is made: held by one copy alone, marked as incomplete, and cleared of what the source does not
//! have.
//!
//! Whatever stands there, the marker is durable first, then nothing can start it, then the first byte changes. So a
//! process that is killed leaves either what was there before, whole, or something that is known to be incomplete.
//! Blocks.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use tracing::info;
use walkdir::{DirEntry, WalkDir};

use super::layout::Layout;
use super::listing::Listing;
use super::tablespace::{self, Mapping, Placement};
use super::target::{self, Kind, Marker, PENDING_CONTROL_FILE, StandbyPlace, Standing};
use super::{own, prune};
use crate::durable::{self, FileError};
use crate::failpoint;
use crate::fault::Fault;
use crate::pg::control::CONTROL_FILE;
use crate::pg::label::{BACKUP_LABEL_FILE, TABLESPACE_MAP_FILE, Tablespace};
use crate::pg::manifest::MANIFEST_FILE;
use crate::pg::postmaster;

/// How long a copy of this process that was given up may still be writing.
const HOLD_TRIES: u32 = 50;
const HOLD_EVERY: Duration = Duration::from_millis(100);

/// Files that say how a data directory is to be started; none may outlive the one that it belonged to.
const HOW_TO_START: [&str; 6] = [
    PENDING_CONTROL_FILE,
    BACKUP_LABEL_FILE,
    TABLESPACE_MAP_FILE,
    MANIFEST_FILE,
    "standby.signal",
    "recovery.signal",
];

/// Where the WAL of a standby that is seeded anew waits, below its `pg_wal`, until the copy is whole.
const ASIDE: &str = "walship.aside";

/// What is to be made where.
#[derive(Debug)]
pub(super) struct Wanted {
    pub target: PathBuf,
    pub kind: Kind,
    pub system_identifier: u64,
    pub tablespaces: Vec<Tablespace>,
    pub mappings: Vec<Mapping>,
    /// The cluster's folder in each tablespace.
    pub folder_name: String,
    pub standby: Option<StandbyPlace>,
    pub listing: Listing,
}

/// The place of a copy.
#[derive(Debug)]
pub(super) struct Site {
    pub layout: Layout,
    pub listing: Listing,
    kind: Kind,
    /// Something was there before, so that what is there is compared.
    pub compares: bool,
    /// Files of the host's own that stay as they are; sorted.
    pub kept: Vec<PathBuf>,
    /// The lock of the folder; every thread that writes shares the site, so it is free when the last of them is done.
    _held: Option<File>,
}

impl Site {
    /// Makes the place ready. A refusal has changed nothing.
    pub fn prepare(wanted: Wanted) -> anyhow::Result<Site> {
        let standing = target::require_free(&wanted.target, wanted.kind, Some(wanted.system_identifier))?;
        let Wanted { tablespaces, mappings, folder_name, .. } = &wanted;
        let known = known_places(&standing, &wanted.target, folder_name)?;
        let placements = tablespace::place(tablespaces, mappings, folder_name, &known)?;
        let is_new = |placement: &&Placement| !known.contains(placement);
        tablespace::require_empty(placements.iter().filter(is_new))?;
        let layout = Layout { target: wanted.target.clone(), placements };
        wanted.listing.check(&layout)?;

        let is_cluster = matches!(standing, Standing::Cluster { .. } | Standing::Broken { .. });
        if !is_cluster {
            // A cluster's mode is what its owner gave it.
            target::make_private(&layout.target)?;
        }
        let held = hold(&layout.target)?;
        // What was looked at before it was held may have changed since.
        let standing = target::require_free(&layout.target, wanted.kind, Some(wanted.system_identifier))?;
        let kept = match &standing {
            Standing::Incomplete(marker) => marker.kept.clone(),
            _ if is_cluster => configuration_in(&layout.target)?,
            _ => Vec::new(),
        };
        let marker = Marker {
            kind: wanted.kind,
            system_identifier: wanted.system_identifier.to_string(),
            tablespaces: layout.placements.clone(),
            kept: kept.clone(),
            standby: wanted.standby.clone(),
        };
        let compares = !matches!(standing, Standing::Absent | Standing::Empty);
        let site =
            Site { layout, listing: wanted.listing, kind: wanted.kind, compares, kept, _held: Some(held) };
        site.clear(&marker, &known, is_cluster)?;
        site.make_folders()?;
        Ok(site)
    }

    /// A place where nothing has to be done.
    #[cfg(test)]
    pub fn plain(layout: Layout, listing: Listing) -> Site {
        Site { layout, listing, kind: Kind::Copy, compares: false, kept: Vec::new(), _held: None }
    }

    /// Where a listed file is.
    pub fn place(&self, path: &Path) -> PathBuf {
        // It was checked when the listing was.
        self.layout.file(path).unwrap_or_else(|reason| unreachable!("{} {reason}", path.display()))
    }

    /// The files that are to be asked for.
    pub fn wanted(&self) -> Vec<u32> {
        let is_wanted = |path: &Path| !self.stays(path);
        let indexes = self.listing.files.iter().zip(0..).filter(|(file, _)| is_wanted(&file.path));
        indexes.map(|(_, index)| index).collect()
    }

    /// Whether a path is the host's own here.
    pub fn stays(&self, path: &Path) -> bool {
        let is_kept = || self.kept.binary_search_by(|kept| kept.as_path().cmp(path)).is_ok();
        self.kind == Kind::Reseed && (own::is_log(path) || is_kept())
    }

    /// Removes the WAL that was set aside: the copy is whole but for its name.
    pub fn drop_aside(&self) -> Result<(), FileError> {
        target::remove_tree(&self.layout.target.join("pg_wal").join(ASIDE))
    }

    /// From what stands there to what the copy can be written over.
    fn clear(&self, marker: &Marker, known: &[Placement], is_cluster: bool) -> anyhow::Result<()> {
        let target = &self.layout.target;
        marker.write(target)?;
        failpoint::hit("restore.marked");
        disarm(target)?;
        failpoint::hit("restore.disarmed");
        if !self.compares {
            return Ok(());
        }
        info!(target = %target.display(), "comparing what is here with the source");
        let gone = known.iter().filter(|known| !self.layout.placements.contains(known));
        gone.map(|placement| &placement.folder).try_for_each(|folder| target::remove_tree(folder))?;
        clear_wal(&target.join("pg_wal"), is_cluster)?;
        failpoint::hit("restore.aside");
        prune::run(self)?;
        failpoint::hit("restore.pruned");
        Ok(())
    }

    fn make_folders(&self) -> anyhow::Result<()> {
        let Layout { target, placements } = &self.layout;
        tablespace::create(target, placements)?;
        for path in self.listing.folders.iter().filter(|path| !self.stays(path)) {
            if let Ok(place) = self.layout.folder(path) {
                durable::create_folder(&place)?;
            }
        }
        Ok(())
    }
}

/// Takes the folder for this copy alone. The lock is gone with the process that has it.
fn hold(target: &Path) -> anyhow::Result<File> {
    let folder = File::open(target).map_err(|e| FileError::new("open folder", target, e))?;
    for _ in 0..HOLD_TRIES {
        match folder.try_lock() {
            Ok(()) => return Ok(folder),
            Err(TryLockError::WouldBlock) => thread::sleep(HOLD_EVERY),
            Err(TryLockError::Error(e)) => return Err(FileError::new("lock", target, e).into()),
        }
    }
    Err(Fault::refused(
        format!("another walship is copying into {}", target.display()),
        "Let it finish, or end it first.",
    ))
}

/// Makes sure that nothing can start what is there, in an order that holds at every step: without its control file
/// PostgreSQL does not start, with a control file but without the label that belongs to it, it would start from a wrong
/// place.
fn disarm(target: &Path) -> anyhow::Result<()> {
    let control_file = target.join(CONTROL_FILE);
    let control = match std::fs::read(&control_file) {
        Ok(content) => Some(content),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
        // Damaged: then there is nothing to put back.
        Err(_) => None,
    };
    durable::remove(&control_file)?;
    if postmaster::is_running(target).context("look for PostgreSQL")? {
        // Somebody started it at the last moment. It has not missed the file yet.
        if let Some(content) = control {
            durable::write(&control_file, &content)?;
        }
        return Err(target::running(target));
    }
    HOW_TO_START.iter().try_for_each(|name| durable::remove(&target.join(name)))?;
    Ok(())
}

/// The WAL of a cluster is set aside, what an earlier attempt brought is removed: this attempt brings its own. A `pg_wal`
/// that is a link to another disk stays one.
fn clear_wal(folder: &Path, is_cluster: bool) -> Result<(), FileError> {
    let aside = folder.join(ASIDE);
    if is_cluster {
        durable::create_folder(&aside)?;
    }
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(FileError::new("read folder", folder, e)),
    };
    for entry in entries {
        let entry = entry.map_err(|e| FileError::new("read folder", folder, e))?;
        match entry.file_name() {
            name if name == ASIDE => {}
            name if is_cluster => durable::rename(&entry.path(), &aside.join(name))?,
            _ => target::remove_tree(&entry.path())?,
        }
    }
    Ok(())
}

/// The tablespaces of what stands there: as the marker says, or as the links lead.
fn known_places(standing: &Standing, target: &Path, folder_name: &str) -> Result<Vec<Placement>, FileError> {
    match standing {
        Standing::Incomplete(marker) => Ok(marker.tablespaces.clone()),
        Standing::Cluster { .. } | Standing::Broken { .. } => tablespace::linked(target, folder_name),
        Standing::Absent | Standing::Empty | Standing::Foreign { .. } => Ok(Vec::new()),
    }
}

/// The host's own configuration in a cluster, relative to it.
pub fn configuration_in(target: &Path) -> Result<Vec<PathBuf>, FileError> {
    let mut kept = Vec::new();
    let relative = |entry: &DirEntry| entry.path().strip_prefix(target).unwrap_or(entry.path()).to_owned();
    let walk = WalkDir::new(target).follow_root_links(true).into_iter();
    // PostgreSQL's own folders are large, and may be what is damaged.
    for entry in walk.filter_entry(|entry| !own::is_postgresqls(&relative(entry))) {
        let entry = entry.map_err(|e| FileError::new("walk", target, e.into()))?;
        let path = relative(&entry);
        // A link to one is as good as one. The marker holds text.
        if !entry.file_type().is_dir() && own::is_configuration(&path) && path.to_str().is_some() {
            kept.push(path);
        }
    }
    kept.sort();
    Ok(kept)
}
