//! Where each tablespace of a copy goes: `-T OLD=NEW`, the links in `pg_tblspc`, the map.
//!
//! Blocks where it touches files.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::bail;

use super::target::remove_tree;
use crate::durable::{self, FileError};
use crate::fault::Fault;
use crate::pg::label::Tablespace;

/// `-T OLD=NEW`: the tablespace that is at OLD goes to NEW.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Mapping {
    /// Its absolute path at the source.
    pub old: PathBuf,
    /// Its absolute path here.
    pub new: PathBuf,
}

/// A mapping that cannot be meant.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "`{text}` is not a tablespace mapping; write OLDDIR=NEWDIR with absolute paths, and \\= for an = in a path"
)]
pub struct MappingError {
    text: String,
}

impl FromStr for Mapping {
    type Err = MappingError;

    /// As pg_basebackup reads it: `\=` stands for an `=` within a path.
    fn from_str(text: &str) -> Result<Mapping, MappingError> {
        let mut paths = vec![String::new()];
        let mut characters = text.chars().peekable();
        while let Some(character) = characters.next() {
            let part_of_path = match character {
                '=' => None,
                '\\' => characters.next_if_eq(&'=').or(Some(character)),
                other => Some(other),
            };
            match (part_of_path, paths.last_mut()) {
                (Some(character), Some(path)) => path.push(character),
                _ => paths.push(String::new()),
            }
        }
        match &paths[..] {
            [old, new] if old.starts_with('/') && new.starts_with('/') => {
                Ok(Mapping { old: trimmed(old), new: trimmed(new) })
            }
            _ => Err(MappingError { text: text.to_owned() }),
        }
    }
}

/// Without slashes at the end, as PostgreSQL keeps tablespace paths.
fn trimmed(path: &str) -> PathBuf {
    PathBuf::from(path).components().collect()
}

/// Where one tablespace of the source goes.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Placement {
    /// Its OID.
    pub oid: u32,
    /// Where it is here; the link in `pg_tblspc` leads there.
    pub path: PathBuf,
    /// The folder in it that belongs to this cluster.
    pub folder: PathBuf,
}

/// Decides where every tablespace goes: where a mapping says, else where it is here already, else where it is at the
/// source. `folder_name` is the name of the cluster's folder in each.
pub fn place(
    tablespaces: &[Tablespace],
    mappings: &[Mapping],
    folder_name: &str,
    known: &[Placement],
) -> anyhow::Result<Vec<Placement>> {
    for mapping in mappings {
        if !tablespaces.iter().any(|tablespace| tablespace.path == mapping.old) {
            let known: Vec<String> = tablespaces.iter().map(|t| t.path.display().to_string()).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return Err(Fault::usage(
                format!("no tablespace is at {}", mapping.old.display()),
                format!("The source's tablespaces are: {known}."),
            ));
        }
    }
    let mut placements: Vec<Placement> = Vec::new();
    for tablespace in tablespaces {
        let mapping = mappings.iter().find(|mapping| mapping.old == tablespace.path);
        let known = known.iter().find(|placement| placement.oid == tablespace.oid);
        let path = mapping.map(|mapping| &mapping.new).or(known.map(|known| &known.path));
        let path = path.unwrap_or(&tablespace.path).clone();
        if !path.is_absolute() {
            bail!("the source says that a tablespace is at {}, which is not absolute", path.display());
        }
        if placements.iter().any(|other| path.starts_with(&other.path) || other.path.starts_with(&path)) {
            return Err(Fault::usage(
                format!("two tablespaces would share {}", path.display()),
                "Give each a folder of its own with -T OLDDIR=NEWDIR.",
            ));
        }
        placements.push(Placement { oid: tablespace.oid, folder: path.join(folder_name), path });
    }
    Ok(placements)
}

/// The tablespaces of the data directory that is here.
pub fn linked(data_directory: &Path, folder_name: &str) -> Result<Vec<Placement>, FileError> {
    let links = data_directory.join("pg_tblspc");
    let entries = match fs::read_dir(&links) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(FileError::new("read folder", &links, e)),
    };
    let mut placements = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| FileError::new("read folder", &links, e))?;
        let oid = entry.file_name().to_str().and_then(|name| name.parse().ok());
        let (Some(oid), Ok(path)) = (oid, fs::read_link(entry.path())) else { continue };
        if path.is_absolute() {
            placements.push(Placement { oid, folder: path.join(folder_name), path });
        }
    }
    Ok(placements)
}

/// Refuses a tablespace whose place here is taken, before anything is written.
pub fn require_empty<'a>(placements: impl IntoIterator<Item = &'a Placement>) -> anyhow::Result<()> {
    for Placement { path, .. } in placements {
        let taken = match fs::read_dir(path) {
            Ok(mut entries) => entries.next().is_some(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => false,
            Err(e) => return Err(FileError::new("read folder", path, e).into()),
        };
        if taken {
            return Err(Fault::refused(
                format!("the tablespace folder {} is not empty", path.display()),
                format!("Put the tablespace elsewhere with -T {}=NEWDIR.", path.display()),
            ));
        }
    }
    Ok(())
}

/// Makes the folders of the tablespaces and the links that lead to them, where they are not there already.
pub fn create(data_directory: &Path, placements: &[Placement]) -> Result<(), FileError> {
    let links = data_directory.join("pg_tblspc");
    durable::create_folder(&links)?;
    for placement in placements {
        durable::create_folder(&placement.folder)?;
        let link = links.join(placement.oid.to_string());
        if fs::read_link(&link).is_ok_and(|path| path == placement.path) {
            continue;
        }
        remove_tree(&link)?;
        symlink(&placement.path, &link).map_err(|e| FileError::new("create link", &link, e))?;
    }
    durable::sync_folder(&links)
}

/// The source's tablespace map with the paths of this host. PostgreSQL makes the links anew from it when it starts.
pub fn moved_map(map: &[Tablespace], placements: &[Placement]) -> Vec<Tablespace> {
    map.iter()
        .map(|tablespace| {
            let placement = placements.iter().find(|placement| placement.oid == tablespace.oid);
            let path = placement.map_or(&tablespace.path, |placement| &placement.path);
            Tablespace { oid: tablespace.oid, path: path.clone() }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::Outcome;

    fn space(oid: u32, path: &str) -> Tablespace {
        Tablespace { oid, path: path.into() }
    }

    fn mapping(old: &str, new: &str) -> Mapping {
        Mapping { old: old.into(), new: new.into() }
    }

    #[test]
    fn mappings_are_read_as_pg_basebackup_reads_them() {
        assert_eq!("/a=/b/".parse(), Ok(mapping("/a", "/b")));
        assert_eq!(r"/a\=1=/b\=2".parse(), Ok(mapping("/a=1", "/b=2")));
        assert_eq!(r"/a\b=/c".parse(), Ok(mapping(r"/a\b", "/c")));
        for text in ["", "/a", "/a=", "=/b", "a=/b", "/a=b", "/a=/b=/c", r"/a\=/b"] {
            assert!(text.parse::<Mapping>().is_err(), "{text}");
        }
    }

    #[test]
    fn tablespaces_go_where_they_are_mapped_or_stay() {
        let spaces = [space(1, "/old/one"), space(2, "/old/two")];
        let placed = place(&spaces, &[mapping("/old/two", "/new/two")], "PG_15_42", &[]).unwrap();
        assert_eq!(placed[0].folder, Path::new("/old/one/PG_15_42"));
        assert_eq!(placed[1].folder, Path::new("/new/two/PG_15_42"));
        let map = [space(2, "/old/two"), space(3, "/unseen")];
        assert_eq!(moved_map(&map, &placed), [space(2, "/new/two"), space(3, "/unseen")]);
        // What is here already stays where it is, unless it is told to go elsewhere.
        let again = place(&spaces, &[mapping("/old/one", "/new/one")], "PG_15_42", &placed).unwrap();
        let paths: Vec<&Path> = again.iter().map(|placement| placement.path.as_path()).collect();
        assert_eq!(paths, [Path::new("/new/one"), Path::new("/new/two")]);
    }

    #[test]
    fn mappings_that_make_no_sense_are_errors_of_usage() {
        let spaces = [space(1, "/one"), space(2, "/two")];
        for (old, new) in [("/three", "/x"), ("/two", "/one"), ("/two", "/one/below")] {
            let error = place(&spaces, &[mapping(old, new)], "PG_15_42", &[]).unwrap_err();
            assert_eq!(Fault::outcome_of(&error), Outcome::Usage, "{error:#}");
        }
    }

    #[test]
    fn a_place_that_is_taken_is_refused_and_a_free_one_is_linked() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| space(7, root.path().join(name).to_str().unwrap());
        let taken = place(&[at("taken")], &[], "PG_15_42", &[]).unwrap();
        fs::create_dir_all(root.path().join("taken/PG_14_41")).unwrap();
        let error = require_empty(&taken).unwrap_err();
        assert_eq!(Fault::outcome_of(&error), Outcome::Refused);
        assert!(Fault::hint_of(&error).unwrap().contains("-T"), "{error:#}");

        let free = place(&[at("free")], &[], "PG_15_42", &[]).unwrap();
        require_empty(&free).unwrap();
        let data = root.path().join("data");
        for _ in 0..2 {
            create(&data, &free).unwrap();
            assert!(data.join("pg_tblspc/7/PG_15_42").is_dir());
            assert_eq!(linked(&data, "PG_15_42").unwrap(), free);
        }
        // A link that leads elsewhere is made anew; what it led to is left alone.
        let moved = place(&[at("moved")], &[], "PG_15_42", &[]).unwrap();
        create(&data, &moved).unwrap();
        assert_eq!(linked(&data, "PG_15_42").unwrap(), moved);
        assert!(root.path().join("free/PG_15_42").is_dir());
    }
}
