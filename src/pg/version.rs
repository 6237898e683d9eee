//! Versions of PostgreSQL, and which of them walship works with.
//!
//! Newer ones are refused like older ones: the formats of WAL and of the control file, and what a base backup must leave
//! out, are a major version's own, and what is not known of them shows when the copy is needed.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// The longest `PG_VERSION` that is looked at.
const FILE_BYTES_MAX: u64 = 16;

/// `server_version_num`, such as 150018.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ServerVersion(pub u32);

/// A PostgreSQL that walship does not work with.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "PostgreSQL {place} is version {version}; walship works with {} to {}",
    ServerVersion::SUPPORTED.start(),
    ServerVersion::SUPPORTED.end()
)]
pub struct Unsupported {
    /// With a preposition: `in DIR`, `at ADDRESS`.
    place: String,
    version: String,
    major: u32,
}

/// Why a data directory's version is not known.
#[derive(Debug, thiserror::Error)]
pub enum VersionError {
    /// There is no such file, or it may not be read.
    #[error("read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It holds something else.
    #[error("{} says {found:?}, which is no version of PostgreSQL", path.display())]
    Unknown {
        /// The file.
        path: PathBuf,
        /// Its beginning.
        found: String,
    },
}

impl ServerVersion {
    /// The majors that walship works with.
    pub const SUPPORTED: std::ops::RangeInclusive<u32> = 14..=18;

    /// The major version.
    pub fn major(self) -> u32 {
        self.0 / 10_000
    }

    /// Refuses a server of a version that walship does not work with; `place` says where, as `at ADDRESS`.
    pub fn require_supported(self, place: impl fmt::Display) -> Result<(), Unsupported> {
        require(place, self.major(), self.to_string())
    }
}

impl fmt::Display for ServerVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major(), self.0 % 10_000)
    }
}

impl Unsupported {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        if self.major < *ServerVersion::SUPPORTED.start() {
            "Upgrade PostgreSQL, as with pg_upgrade, and begin with a new store."
        } else {
            "Look for a newer walship, which knows this version."
        }
    }
}

/// The major version of a data directory. Blocks.
pub fn of_data_directory(data_directory: &Path) -> Result<u32, VersionError> {
    let path = data_directory.join("PG_VERSION");
    let mut text = Vec::new();
    let read = File::open(&path).and_then(|file| file.take(FILE_BYTES_MAX).read_to_end(&mut text));
    if let Err(source) = read {
        return Err(VersionError::Read { path, source });
    }
    let text = String::from_utf8_lossy(&text).trim().to_owned();
    // Before 10 there were two numbers: 9.6.
    let major = text.split('.').next().and_then(|major| major.parse().ok());
    major.ok_or(VersionError::Unknown { path, found: text })
}

/// Refuses a data directory of a version that walship does not work with; one without a version is somebody else's
/// to refuse. Blocks.
pub fn require_supported_in(data_directory: &Path) -> Result<(), Unsupported> {
    of_data_directory(data_directory).map_or(Ok(()), |major| require_supported_major(data_directory, major))
}

/// The same where the version is known.
pub fn require_supported_major(data_directory: &Path, major: u32) -> Result<(), Unsupported> {
    require(format!("in {}", data_directory.display()), major, major.to_string())
}

fn require(place: impl fmt::Display, major: u32, version: String) -> Result<(), Unsupported> {
    if ServerVersion::SUPPORTED.contains(&major) {
        return Ok(());
    }
    Err(Unsupported { place: place.to_string(), version, major })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_directory_has_the_version_that_it_says() {
        let folder = tempfile::tempdir().unwrap();
        let of = |text: &str| {
            std::fs::write(folder.path().join("PG_VERSION"), text).unwrap();
            (of_data_directory(folder.path()), require_supported_in(folder.path()))
        };
        for (text, major, supported) in [
            ("15\n", 15, true),
            ("18", 18, true),
            ("13\n", 13, false),
            ("9.6\n", 9, false),
            ("19\n", 19, false),
        ] {
            let (found, required) = of(text);
            assert_eq!((found.unwrap(), required.is_ok()), (major, supported), "{text}");
        }
        for text in ["", "fifteen", "15fifteen"] {
            assert!(matches!(of(text).0, Err(VersionError::Unknown { .. })), "{text}");
        }
        assert!(matches!(of_data_directory(Path::new("/nonexistent")), Err(VersionError::Read { .. })));
    }

    #[test]
    fn older_and_newer_ones_get_different_advice() {
        let error = |number| ServerVersion(number).require_supported("at here").unwrap_err();
        assert_eq!(
            error(130_023).to_string(),
            "PostgreSQL at here is version 13.23; walship works with 14 to 18"
        );
        assert!(
            error(130_023).hint().contains("pg_upgrade") && error(190_000).hint().contains("newer walship")
        );
    }
}
