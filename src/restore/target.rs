//! What stands where a copy is to go, and the marker of a copy that is not complete.
//!
//! The marker `walship.incomplete` is fsynced before the first byte changes, so whatever a copy that was cut off left
//! behind is known as ours and may be written over; nothing else ever is without being asked for. `global/pg_control`
//! decides: where it is, there is a whole cluster, whatever else lies around. Blocks.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::standby::{StandbySettings, is_standby};
use super::tablespace::Placement;
use crate::durable::{self, FileError};
use crate::fault::Fault;
use crate::pg::control::{CONTROL_FILE, ControlFile};
use crate::pg::postmaster;

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

/// What the marker says: enough to go on, and to know what is the copy's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    /// What is being made.
    pub kind: Kind,
    /// The cluster it is to become a copy of.
    pub system_identifier: String,
    /// Where its tablespaces are.
    #[serde(default)]
    pub tablespaces: Vec<Placement>,
    /// Files of the host's own that stay as they are; relative, sorted.
    #[serde(default)]
    pub kept: Vec<PathBuf>,
    /// What the standby that it is to become was told; `None` for a copy that walship will not run.
    #[serde(default)]
    pub standby: Option<StandbyPlace>,
}

/// What is being made, and so what may have been there before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A copy where nothing was: all that is there is the copy's.
    #[serde(rename = "copy into an empty folder")]
    Copy,
    /// A standby made whole again, of what is there already.
    #[serde(rename = "re-seed of a standby")]
    Reseed,
}

/// Where a standby listens, when it was told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StandbyPlace {
    /// Its port; `None` for what its configuration says.
    pub port: Option<u16>,
    /// The folder of its socket; `None` for what its configuration says.
    pub socket_directory: Option<PathBuf>,
}

impl StandbyPlace {
    /// What a standby was told that follows through walship; `None` for one that a person makes follow otherwise.
    pub fn of(settings: &StandbySettings) -> Option<StandbyPlace> {
        let StandbySettings { port, socket_directory, .. } = settings;
        settings.is_fed.then(|| StandbyPlace { port: *port, socket_directory: socket_directory.clone() })
    }
}

impl Marker {
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
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(FileError::new("read", &path, e)),
    }
}

/// Refuses a target that may not become what is to be made, with a hint that says what it holds. `expected` is the
/// cluster that is to be copied, where it is known already.
pub fn require_free(target: &Path, kind: Kind, expected: Option<u64>) -> anyhow::Result<Standing> {
    let standing = Standing::at(target)?;
    let refuse = |hint: &str| {
        Err(Fault::refused(format!("{} is not empty: it holds {standing}", target.display()), hint))
    };
    match (&standing, kind) {
        (Standing::Absent | Standing::Empty, _) => Ok(standing),
        (Standing::Incomplete(marker), Kind::Copy) if marker.kind == Kind::Reseed => {
            refuse("`walship run` completes it.")
        }
        (Standing::Incomplete(_), _) => Ok(standing),
        (Standing::Cluster { .. } | Standing::Broken { .. }, Kind::Reseed) => {
            require_reseedable(target, standing, expected)
        }
        (Standing::Cluster { system_identifier, .. }, Kind::Copy)
            if expected == Some(*system_identifier) && is_standby(target) =>
        {
            refuse("It is a standby of this cluster already: `walship run` lets it follow.")
        }
        _ => refuse("Name another folder with -D, or remove this one yourself if nobody needs it."),
    }
}

/// Refuses what is no stopped standby of the cluster. What is damaged beyond telling is taken for one.
fn require_reseedable(target: &Path, standing: Standing, expected: Option<u64>) -> anyhow::Result<Standing> {
    if let Standing::Cluster { system_identifier, .. } = &standing
        && expected.is_some_and(|expected| expected != *system_identifier)
    {
        return Err(Fault::refused(
            format!("{} holds {standing}, which is another one", target.display()),
            "Name the data directory of this node's PostgreSQL in walship.toml.",
        ));
    }
    if postmaster::is_running(target).context("look for PostgreSQL")? {
        return Err(running(target));
    }
    Ok(standing)
}

/// The refusal to touch the files of a PostgreSQL that runs.
pub(super) fn running(target: &Path) -> anyhow::Error {
    Fault::refused(
        format!("PostgreSQL runs in {}", target.display()),
        "Stop it first (pg_ctl stop -m fast), and keep its service from starting it meanwhile.",
    )
}

/// Removes the marker of a copy that is whole: a process that was killed as its last act had no time for that, or one
/// that was killed as its first.
pub fn settle(target: &Path) -> Result<(), FileError> {
    if target.join(CONTROL_FILE).exists() { durable::remove(&target.join(MARKER_FILE)) } else { Ok(()) }
}

/// Makes the target a folder that only its owner can enter.
pub fn make_private(target: &Path) -> Result<(), FileError> {
    durable::create_folder(target)?;
    // PostgreSQL refuses a data directory that others can enter; initdb mends it in the same way.
    fs::set_permissions(target, fs::Permissions::from_mode(0o700))
        .map_err(|e| FileError::new("change the permissions of", target, e))
}

/// Removes a file, a link (not what it leads to) or a folder with all that is in it; one that is gone is fine.
pub(super) fn remove_tree(path: &Path) -> Result<(), FileError> {
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
            Standing::Incomplete(marker) => f.write_str(match marker.kind {
                Kind::Copy => "a copy that was cut off",
                Kind::Reseed => "a standby whose re-seed was cut off",
            }),
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
            require_free(&target, Kind::Copy, None).unwrap();
            make_private(&target).unwrap();
            assert_eq!(fs::metadata(&target).unwrap().permissions().mode() & 0o777, 0o700);
            fs::set_permissions(&target, fs::Permissions::from_mode(0o755)).unwrap();
        }
    }

    fn marker(kind: Kind) -> Marker {
        let tablespaces = vec![Placement { oid: 7, path: "/space".into(), folder: "/space/PG_15_42".into() }];
        let standby = Some(StandbyPlace { port: Some(5433), socket_directory: None });
        Marker { kind, system_identifier: "1".to_owned(), tablespaces, kept: vec!["a.conf".into()], standby }
    }

    #[test]
    fn what_was_cut_off_is_known_by_its_marker_until_it_has_its_control_file() {
        let target = tempfile::tempdir().unwrap();
        let target = target.path();
        put(target, PENDING_CONTROL_FILE, &control_file());
        marker(Kind::Copy).write(target).unwrap();
        let standing = require_free(target, Kind::Copy, Some(1)).unwrap();
        assert!(
            matches!(&standing, Standing::Incomplete(found) if *found == marker(Kind::Copy)),
            "{standing}"
        );
        settle(target).unwrap();
        assert!(target.join(MARKER_FILE).exists());

        // One that was a standby before is not written over by an ordinary copy.
        marker(Kind::Reseed).write(target).unwrap();
        assert!(require_free(target, Kind::Copy, Some(1)).is_err());
        require_free(target, Kind::Reseed, Some(1)).unwrap();

        put(target, CONTROL_FILE, &control_file());
        assert!(matches!(Standing::at(target).unwrap(), Standing::Cluster { .. }));
        settle(target).unwrap();
        assert!(!target.join(MARKER_FILE).exists());
    }

    #[test]
    fn a_stopped_standby_of_the_cluster_may_be_seeded_anew_whatever_its_state() {
        let id = 7711349833985173420;
        let standing = |names: &[(&str, &[u8])]| {
            let folder = tempfile::tempdir().unwrap();
            names.iter().for_each(|(name, content)| put(folder.path(), name, content));
            require_free(folder.path(), Kind::Reseed, Some(id))
        };
        let control = control_file();
        assert!(matches!(standing(&[(CONTROL_FILE, &control)]).unwrap(), Standing::Cluster { .. }));
        assert!(matches!(standing(&[(CONTROL_FILE, b"rot")]).unwrap(), Standing::Broken { .. }));
        assert!(matches!(standing(&[("PG_VERSION", b"15")]).unwrap(), Standing::Broken { .. }));
        assert!(matches!(standing(&[]).unwrap(), Standing::Empty));
        let refused = |names: &[(&str, &[u8])]| {
            let error = standing(names).unwrap_err();
            assert_eq!(Fault::outcome_of(&error), Outcome::Refused);
            error.to_string()
        };
        assert!(refused(&[("notes.txt", b"keep")]).contains("`notes.txt`"));
        let folder = tempfile::tempdir().unwrap();
        put(folder.path(), CONTROL_FILE, &control);
        let error = require_free(folder.path(), Kind::Reseed, Some(1)).unwrap_err();
        assert!(error.to_string().contains("another one"), "{error}");
    }

    #[test]
    fn what_is_not_ours_is_refused_by_name() {
        let id = 7711349833985173420;
        let refused = |names: &[(&str, &[u8])], expected: Option<u64>| {
            let folder = tempfile::tempdir().unwrap();
            names.iter().for_each(|(name, content)| put(folder.path(), name, content));
            let error = require_free(folder.path(), Kind::Copy, expected).unwrap_err();
            assert_eq!(Fault::outcome_of(&error), Outcome::Refused);
            assert!(fs::read_dir(folder.path()).unwrap().count() > 0);
            (error.to_string(), Fault::hint_of(&error).unwrap().to_owned())
        };
        let control = control_file();
        let (what, hint) = refused(&[("global/pg_control", &control), ("standby.signal", b"")], Some(id));
        assert!(
            what.contains("cluster 7711349833985173420") && hint.contains("walship run"),
            "{what} {hint}"
        );
        // It may be the primary's own.
        let (_, hint) = refused(&[("global/pg_control", &control)], Some(id));
        assert!(hint.contains("another folder"), "{hint}");
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
