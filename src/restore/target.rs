//! What stands where a copy is to go, and the marker of a copy that is not complete.
//!
//! The marker `walship.incomplete` is fsynced before the first other byte, so whatever a copy that was cut off left
//! behind is known as ours and may be cleared away; nothing else ever is. `global/pg_control` decides: where it is,
//! there is a whole cluster, whatever else lies around. Blocks.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::durable::{self, FileError};
use crate::fault::Fault;
use crate::pg::control::{CONTROL_FILE, ControlFile};

/// Says that a data directory is not complete.
pub const MARKER_FILE: &str = "walship.incomplete";

/// The name of `global/pg_control` until the copy is complete.
pub const PENDING_CONTROL_FILE: &str = "global/pg_control.walship";

/// What stands at a path.
#[derive(Debug)]
pub enum Standing {
    /// Nothing.
    Absent,
    /// A folder with nothing in it.
    Empty,
    /// A copy of ours that was cut off.
    Incomplete(Marker),
    /// A database cluster.
    Cluster {
        /// Whose.
        system_identifier: u64,
        /// Its PostgreSQL runs, or was killed.
        has_pid_file: bool,
    },
    /// A data directory that cannot be read as one.
    Broken {
        /// Why not.
        reason: String,
    },
    /// Something else.
    Foreign {
        /// One of the names in it.
        example: String,
    },
}

/// What the marker says: enough to clear away what a copy that was cut off left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    /// Always [`Marker::KIND`]: a copy into what was empty before, so that everything there is the copy's.
    kind: String,
    /// The cluster it was to become a copy of.
    pub system_identifier: String,
    /// The folders that it made in tablespaces elsewhere.
    pub tablespace_folders: Vec<PathBuf>,
}

impl Marker {
    const KIND: &str = "copy into an empty folder";

    /// The marker of a new copy.
    pub fn new(system_identifier: u64, tablespace_folders: Vec<PathBuf>) -> Marker {
        let kind = Marker::KIND.to_owned();
        Marker { kind, system_identifier: system_identifier.to_string(), tablespace_folders }
    }

    /// Writes it, before anything else is.
    pub fn write(&self, target: &Path) -> anyhow::Result<()> {
        Ok(durable::write(&target.join(MARKER_FILE), &serde_json::to_vec_pretty(self)?)?)
    }
}

impl Standing {
    /// True for a database cluster that is whole, and the one that is expected where that is known.
    pub fn is_complete_and_of(&self, expected: Option<u64>) -> bool {
        matches!(self, Standing::Cluster { system_identifier, .. } if expected.is_none_or(|e| e == *system_identifier))
    }

    /// Looks at what stands at `target`.
    pub fn at(target: &Path) -> Result<Standing, FileError> {
        let mut entries = match fs::read_dir(target) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Standing::Absent),
            Err(e) => return Err(FileError::new("read folder", target, e)),
        };
        let first = match entries.next() {
            None => return Ok(Standing::Empty),
            Some(entry) => entry.map_err(|e| FileError::new("read folder", target, e))?,
        };
        let has = |name: &str| target.join(name).exists();
        if has(CONTROL_FILE) {
            return Ok(match ControlFile::read(target) {
                Ok(control) => Standing::Cluster {
                    system_identifier: control.system_identifier,
                    has_pid_file: has("postmaster.pid"),
                },
                Err(e) => Standing::Broken { reason: chain(&e) },
            });
        }
        if let Some(marker) = read_marker(target)? {
            return Ok(Standing::Incomplete(marker));
        }
        Ok(if has("PG_VERSION") {
            Standing::Broken { reason: format!("it has no {CONTROL_FILE}") }
        } else {
            Standing::Foreign { example: first.file_name().to_string_lossy().into_owned() }
        })
    }
}

/// An unreadable marker is no marker: what it cannot vouch for is not touched.
fn read_marker(target: &Path) -> Result<Option<Marker>, FileError> {
    let path = target.join(MARKER_FILE);
    match fs::read(&path) {
        Ok(bytes) => {
            let marker: Option<Marker> = serde_json::from_slice(&bytes).ok();
            Ok(marker.filter(|marker| marker.kind == Marker::KIND))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(FileError::new("read", &path, e)),
    }
}

/// Refuses a target that holds anything but an incomplete copy, with a hint that says what it is. `expected` is the
/// cluster that is to be copied, where it is known already.
pub fn require_free(target: &Path, expected: Option<u64>) -> anyhow::Result<Standing> {
    let standing = Standing::at(target)?;
    let refuse = |hint: String| {
        Err(Fault::refused(format!("{} is not empty: it holds {standing}", target.display()), hint))
    };
    match &standing {
        Standing::Absent | Standing::Empty | Standing::Incomplete(_) => Ok(standing),
        Standing::Cluster { system_identifier, .. } if expected == Some(*system_identifier) => {
            refuse("It is a copy of this cluster already: `walship run` lets it follow.".to_owned())
        }
        Standing::Cluster { .. } | Standing::Broken { .. } | Standing::Foreign { .. } => {
            refuse("Name another folder with -D, or remove this one yourself if nobody needs it.".to_owned())
        }
    }
}

/// Makes the target a folder that only its owner can enter.
pub fn make_private(target: &Path) -> Result<(), FileError> {
    durable::create_folder(target)?;
    // PostgreSQL refuses a data directory that others can enter; initdb mends it in the same way.
    fs::set_permissions(target, fs::Permissions::from_mode(0o700))
        .map_err(|e| FileError::new("change the permissions of", target, e))
}

/// Removes what an incomplete copy left, here and in its tablespaces; the marker last, so that a second attempt
/// still finds it.
pub fn clear_away(target: &Path, marker: &Marker) -> Result<(), FileError> {
    for folder in &marker.tablespace_folders {
        remove_tree(folder)?;
    }
    let failed = |e| FileError::new("read folder", target, e);
    for entry in fs::read_dir(target).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.file_name().is_some_and(|name| name != MARKER_FILE) {
            remove_tree(&path)?;
        }
    }
    durable::remove(&target.join(MARKER_FILE))
}

/// Removes a file, a link (not what it leads to) or a folder with all that is in it; one that is gone is fine.
fn remove_tree(path: &Path) -> Result<(), FileError> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(e) => Err(e),
    };
    match removed {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(FileError::new("remove", path, e)),
        _ => Ok(()),
    }
}

fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let source = error.source().map(|source| format!(": {source}")).unwrap_or_default();
    format!("{error}{source}")
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Standing::Absent => f.write_str("nothing"),
            Standing::Empty => f.write_str("an empty folder"),
            Standing::Incomplete(_) => f.write_str("a copy that was cut off"),
            Standing::Cluster { system_identifier, has_pid_file } => {
                let running = if *has_pid_file { ", which seems to be running" } else { "" };
                write!(f, "the database cluster {system_identifier}{running}")
            }
            Standing::Broken { reason } => write!(f, "a data directory that cannot be used ({reason})"),
            Standing::Foreign { example } => write!(f, "`{example}`"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::Outcome;

    fn control_file() -> Vec<u8> {
        fs::read(format!("{}/fixtures/control/15/pg_control", env!("CARGO_MANIFEST_DIR"))).unwrap()
    }

    fn put(folder: &Path, name: &str, content: &[u8]) {
        fs::create_dir_all(folder.join(name).parent().unwrap()).unwrap();
        fs::write(folder.join(name), content).unwrap();
    }

    #[test]
    fn a_free_target_becomes_a_private_empty_folder() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("a/data");
        for _ in 0..2 {
            require_free(&target, None).unwrap();
            make_private(&target).unwrap();
            assert_eq!(fs::metadata(&target).unwrap().permissions().mode() & 0o777, 0o700);
            fs::set_permissions(&target, fs::Permissions::from_mode(0o755)).unwrap();
        }
    }

    #[test]
    fn what_was_cut_off_is_cleared_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let (target, elsewhere) = (root.path().join("data"), root.path().join("space"));
        put(&elsewhere, "PG_15_42/5/16400", b"x");
        put(&elsewhere, "other", b"x");
        put(&target, "base/5/112", b"x");
        put(&target, PENDING_CONTROL_FILE, &control_file());
        std::os::unix::fs::symlink(&elsewhere, target.join("link")).unwrap();
        Marker::new(1, vec![elsewhere.join("PG_15_42")]).write(&target).unwrap();
        let standing = require_free(&target, Some(1)).unwrap();
        let Standing::Incomplete(marker) = standing else { panic!("{standing}") };
        clear_away(&target, &marker).unwrap();
        assert!(matches!(Standing::at(&target).unwrap(), Standing::Empty));
        let left: Vec<_> =
            fs::read_dir(&elsewhere).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["other"]);
    }

    #[test]
    fn what_is_not_ours_is_refused_by_name() {
        let id = 7711349833985173420;
        let refused = |names: &[(&str, &[u8])], expected: Option<u64>| {
            let folder = tempfile::tempdir().unwrap();
            names.iter().for_each(|(name, content)| put(folder.path(), name, content));
            let error = require_free(folder.path(), expected).unwrap_err();
            assert_eq!(Fault::outcome_of(&error), Outcome::Refused);
            assert!(fs::read_dir(folder.path()).unwrap().count() > 0);
            (error.to_string(), Fault::hint_of(&error).unwrap().to_owned())
        };
        let control = control_file();
        let (what, hint) = refused(&[("global/pg_control", &control)], Some(id));
        assert!(
            what.contains("cluster 7711349833985173420") && hint.contains("walship run"),
            "{what} {hint}"
        );
        let (_, hint) = refused(&[("global/pg_control", &control)], Some(1));
        assert!(hint.contains("another folder"), "{hint}");
        let (what, _) = refused(&[("global/pg_control", &control), ("postmaster.pid", b"1")], None);
        assert!(what.contains("seems to be running"), "{what}");
        // A marker does not condemn a cluster that has its control file, nor does one that says nothing.
        let (what, _) = refused(&[("global/pg_control", &control), (MARKER_FILE, b"{}")], None);
        assert!(what.contains("the database cluster"), "{what}");
        let (what, _) = refused(&[("PG_VERSION", b"15"), (MARKER_FILE, b"{\"kind\":\"new\"}")], None);
        assert!(what.contains("no global/pg_control"), "{what}");
        let (what, _) = refused(&[("global/pg_control", &control[..100])], None);
        assert!(what.contains("only 100 bytes"), "{what}");
        let (what, _) = refused(&[("lost+found", b"")], None);
        assert!(what.contains("`lost+found`"), "{what}");
    }
}
