//! Where PostgreSQL's server programs are: Debian keeps them out of PATH.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Names a folder with PostgreSQL's server programs, before all other places.
pub const OVERRIDE_VARIABLE: &str = "WALSHIP_PG_BIN";

/// Where Debian and Ubuntu install one folder per major version.
const DEBIAN_FOLDER: &str = "/usr/lib/postgresql";

/// What a folder must hold to count.
const REQUIRED: [&str; 3] = ["initdb", "pg_ctl", "postgres"];

/// A folder with the server programs of one PostgreSQL version.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Binaries {
    folder: PathBuf,
    major: u32,
}

/// No usable programs were found.
#[derive(Debug, thiserror::Error)]
pub enum BinariesError {
    /// Nothing anywhere.
    #[error(
        "found no PostgreSQL server programs (initdb, pg_ctl, postgres): looked in {OVERRIDE_VARIABLE}, PATH, \
         `pg_config --bindir` and {DEBIAN_FOLDER}/*/bin; install the server, or set {OVERRIDE_VARIABLE}"
    )]
    NotFound,
    /// A folder was named, and something is missing in it.
    #[error("{} has no program `{program}`; name the folder that PostgreSQL's server programs are in", folder.display())]
    Incomplete {
        /// The folder that was looked in.
        folder: PathBuf,
        /// The first program that it lacks.
        program: &'static str,
    },
    /// `postgres --version` did not answer as it should.
    #[error("{} --version did not say which PostgreSQL it is: {answer:?}", program.display())]
    NoVersion {
        /// The program that was asked.
        program: PathBuf,
        /// What it said.
        answer: String,
    },
}

impl Binaries {
    /// The programs to use: what [`OVERRIDE_VARIABLE`] names, else those in PATH, else where `pg_config` points,
    /// else the newest of Debian's. Blocks: it runs programs.
    pub fn find() -> Result<Binaries, BinariesError> {
        if let Some(folder) = std::env::var_os(OVERRIDE_VARIABLE).filter(|value| !value.is_empty()) {
            return Binaries::at(Path::new(&folder));
        }
        let newest_of_debian = || Binaries::of_debian().into_iter().max_by_key(|found| found.major);
        in_path()
            .or_else(by_pg_config)
            .and_then(|folder| Binaries::at(&folder).ok())
            .or_else(newest_of_debian)
            .ok_or(BinariesError::NotFound)
    }

    /// The programs in one folder. Blocks: it runs `postgres --version`.
    pub fn at(folder: &Path) -> Result<Binaries, BinariesError> {
        if let Some(program) = missing(folder) {
            return Err(BinariesError::Incomplete { folder: folder.to_owned(), program });
        }
        let program = folder.join("postgres");
        let output = Command::new(&program).arg("--version").output();
        let answer =
            output.map_or_else(|e| e.to_string(), |o| String::from_utf8_lossy(&o.stdout).into_owned());
        let major = major_of(&answer).ok_or(BinariesError::NoVersion { program, answer })?;
        Ok(Binaries { folder: folder.to_owned(), major })
    }

    /// All versions that Debian's packages installed.
    pub fn of_debian() -> Vec<Binaries> {
        let versions = std::fs::read_dir(DEBIAN_FOLDER).into_iter().flatten().flatten();
        versions.filter_map(|version| Binaries::at(&version.path().join("bin")).ok()).collect()
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The major version, such as 15.
    pub fn major(&self) -> u32 {
        self.major
    }

    /// The path of one program.
    pub fn program(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

/// The first required program that a folder lacks. A script does not count: it is a wrapper that may change the
/// user or the arguments, and the real program is elsewhere.
fn missing(folder: &Path) -> Option<&'static str> {
    REQUIRED.into_iter().find(|program| !is_elf(&folder.join(program)))
}

fn is_elf(path: &Path) -> bool {
    let mut magic = [0; 4];
    std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && magic == *b"\x7fELF"
}

/// The folder of the real `pg_ctl` behind the first one in PATH: links there usually point to only a few programs.
fn in_path() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .filter_map(|folder| folder.join("pg_ctl").canonicalize().ok()?.parent().map(Path::to_owned))
        .find(|folder| missing(folder).is_none())
}

fn by_pg_config() -> Option<PathBuf> {
    let output = Command::new("pg_config").arg("--bindir").output().ok()?;
    let folder = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim_end());
    missing(&folder).is_none().then_some(folder)
}

/// Reads `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`, or `16beta1` in that place.
fn major_of(answer: &str) -> Option<u32> {
    let (_, version) = answer.split_once("(PostgreSQL) ")?;
    version.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert_eq!(major_of("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n"), Some(15));
        assert_eq!(major_of("postgres (PostgreSQL) 19beta1\n"), Some(19));
        assert_eq!(major_of("bash: postgres: not found"), None);
    }

    #[test]
    fn what_is_found_is_a_folder_of_real_programs() {
        let found = Binaries::find().unwrap();
        assert!(found.major() >= 13, "{found:?}");
        assert_eq!(Binaries::at(found.folder()).unwrap(), found);
        assert!(!found.program("pg_ctl").is_symlink(), "{found:?}");
    }

    #[test]
    fn a_folder_of_wrappers_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        for program in REQUIRED {
            std::fs::write(folder.path().join(program), "#!/bin/sh\n").unwrap();
        }
        let error = Binaries::at(folder.path()).unwrap_err();
        assert!(error.to_string().contains("has no program `initdb`"), "{error}");
    }
}
