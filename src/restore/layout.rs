//! Where each path of a copy is on this host.

use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};

use super::tablespace::Placement;
use super::target::{MARKER_FILE, PENDING_CONTROL_FILE};
use crate::pg::control::CONTROL_FILE;
use crate::pg::label::{BACKUP_LABEL_FILE, TABLESPACE_MAP_FILE};
use crate::pg::manifest::MANIFEST_FILE;

/// Files that are written here and never taken from the peer among others.
const RESERVED: [&str; 7] = [
    CONTROL_FILE,
    PENDING_CONTROL_FILE,
    BACKUP_LABEL_FILE,
    TABLESPACE_MAP_FILE,
    MANIFEST_FILE,
    MARKER_FILE,
    "postmaster.pid",
];

/// Where the files of a copy go.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The data directory.
    pub target: PathBuf,
    /// The tablespaces elsewhere.
    pub placements: Vec<Placement>,
}

impl Layout {
    /// The place of a file; refuses what would leave the places of the copy, or what the peer has no business to send.
    pub fn file(&self, path: &Path) -> Result<PathBuf, &'static str> {
        match path.starts_with("pg_wal") {
            true => Err("is the taker's own to write"),
            false => self.folder(path),
        }
    }

    /// The place of a folder, with the same reservations.
    pub fn folder(&self, path: &Path) -> Result<PathBuf, &'static str> {
        let is_inside = path.components().all(|part| matches!(part, Component::Normal(_)));
        if !is_inside || path.as_os_str().is_empty() {
            return Err("leaves the data directory");
        }
        if RESERVED.iter().any(|reserved| path == Path::new(reserved)) {
            return Err("is the taker's own to write");
        }
        let parts: Vec<&OsStr> = path.iter().collect();
        let placement = match parts[..] {
            [first, oid, ..] if first == "pg_tblspc" => self.placement_of(oid),
            _ => None,
        };
        let Some(placement) = placement else { return Ok(self.target.join(path)) };
        let place: PathBuf =
            std::iter::once(placement.path.as_os_str()).chain(parts[2..].iter().copied()).collect();
        if place.starts_with(&placement.folder) {
            Ok(place)
        } else {
            Err("is not the cluster's in its tablespace")
        }
    }

    fn placement_of(&self, oid: &OsStr) -> Option<&Placement> {
        let oid: u32 = oid.to_str()?.parse().ok()?;
        self.placements.iter().find(|placement| placement.oid == oid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> Layout {
        let path = PathBuf::from("/srv/space");
        let placement = Placement { oid: 16500, folder: path.join("PG_15_42"), path };
        Layout { target: "/srv/data".into(), placements: vec![placement] }
    }

    #[test]
    fn paths_go_where_they_belong() {
        let at = |path: &str| layout().file(Path::new(path)).unwrap();
        assert_eq!(at("base/5/112"), Path::new("/srv/data/base/5/112"));
        assert_eq!(at("pg_tblspc/16500/PG_15_42/5/16400"), Path::new("/srv/space/PG_15_42/5/16400"));
        assert_eq!(at("pg_tblspc/16501/PG_15_42/5/1"), Path::new("/srv/data/pg_tblspc/16501/PG_15_42/5/1"));
        assert!(layout().folder(Path::new("pg_wal/archive_status")).is_ok());
    }

    /// `WirePath` refuses most of these as they are decoded; the layout does not rely on it.
    #[test]
    fn hostile_paths_are_refused() {
        let hostile = [
            "",
            "/etc/passwd",
            "../outside",
            "base/../../outside",
            "./base",
            "global/pg_control",
            "global/pg_control.walship",
            "backup_label",
            "tablespace_map",
            "backup_manifest",
            "walship.incomplete",
            "postmaster.pid",
            "pg_wal/000000010000000000000001",
            "pg_tblspc/16500",
            "pg_tblspc/16500/PG_14_41/5/1",
            "pg_tblspc/016500/etc/passwd",
        ];
        for path in hostile {
            assert!(layout().file(Path::new(path)).is_err(), "{path}");
        }
    }
}
