//! Paths within a data directory, as they come over the wire.
//!
//! A path that was decoded stays inside the folder it is joined to: it is relative, and has no `..`, no empty part
//! and no zero byte.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// PostgreSQL's `MAXPGPATH` with room.
const LIMIT_BYTES: usize = 4096;

/// A path relative to the data directory. A string in JSON; `{"hex": …}` when it is not UTF-8, as file names on
/// Unix need not be.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct WirePath(PathBuf);

/// A path that would leave the data directory.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{} is not a path inside a data directory", path.display())]
pub struct PathRefused {
    path: PathBuf,
}

impl WirePath {
    /// Checks a relative path.
    pub fn new(path: impl Into<PathBuf>) -> Result<WirePath, PathRefused> {
        let path = path.into();
        let bytes = path.as_os_str().as_bytes();
        let part_is_plain = |part: &[u8]| !matches!(part, b"" | b"." | b"..");
        let inside = bytes.len() <= LIMIT_BYTES
            && !bytes.contains(&0)
            && bytes.split(|&byte| byte == b'/').all(part_is_plain);
        if inside { Ok(WirePath(path)) } else { Err(PathRefused { path }) }
    }

    /// The path, still relative.
    pub fn as_path(&self) -> &Path {
        &self.0
    }
}

impl fmt::Display for WirePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.display())
    }
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Form {
    Text(String),
    Encoded { hex: String },
}

impl Serialize for WirePath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.to_str() {
            Some(text) => serializer.serialize_str(text),
            None => {
                let bytes = self.0.as_os_str().as_bytes();
                let hex = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                Form::Encoded { hex }.serialize(serializer)
            }
        }
    }
}

impl<'de> Deserialize<'de> for WirePath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<WirePath, D::Error> {
        let path = match Form::deserialize(deserializer)? {
            Form::Text(text) => PathBuf::from(text),
            Form::Encoded { hex } => from_hex(&hex)
                .map(|bytes| PathBuf::from(OsString::from_vec(bytes)))
                .ok_or_else(|| serde::de::Error::custom("an encoded path is not hexadecimal"))?,
        };
        WirePath::new(path).map_err(serde::de::Error::custom)
    }
}

fn from_hex(hex: &str) -> Option<Vec<u8>> {
    if !hex.len().is_multiple_of(2) || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leaves_the_data_directory_is_refused() {
        for path in ["", "/etc/passwd", "..", "base/../..", "base//1", "./base", "base/1/", "a\0b"] {
            assert!(WirePath::new(path).is_err(), "{path:?}");
            let json = serde_json::to_string(path).unwrap();
            assert!(serde_json::from_str::<WirePath>(&json).is_err(), "{path:?}");
        }
        assert!(WirePath::new("x".repeat(LIMIT_BYTES + 1)).is_err());
        assert!(serde_json::from_str::<WirePath>(r#"{"hex":"2e2e"}"#).is_err(), "`..` in disguise");
    }

    #[test]
    fn names_need_not_be_text() {
        for name in [&b"base/1/1259_fsm"[..], b"pg_tblspc/1/caf\xe9"] {
            let path = WirePath::new(PathBuf::from(OsString::from_vec(name.to_vec()))).unwrap();
            let json = serde_json::to_string(&path).unwrap();
            assert_eq!(serde_json::from_str::<WirePath>(&json).unwrap(), path, "{json}");
        }
    }
}
