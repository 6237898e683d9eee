//! The form of the small files that a node must not forget: JSON that a person can read, with a version and, as its last
//! entry, a CRC-32C of every byte before that line: the form of PostgreSQL's own `backup_manifest`. Written anew as a
//! whole at each change.

use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::StoreError;
use crate::durable::{self, FileError};

/// Far more than any of them has; keeps a foreign file from filling the memory.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// What a file of this form holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Framed {
    /// The name of the entry.
    pub name: &'static str,
    /// The version that this program writes. Older ones are upgraded by a function each when they exist.
    pub version: u32,
}

impl Framed {
    /// Writes the file durably.
    pub(super) fn write(self, path: &Path, content: &impl Serialize) -> Result<(), StoreError> {
        let body = serde_json::to_string_pretty(content)
            .map_err(|error| StoreError::Corrupt { path: path.to_owned(), what: error.to_string() })?;
        Ok(durable::write(path, self.frame(&body).as_bytes())?)
    }

    pub(super) fn frame(self, body: &str) -> String {
        let Framed { name, version } = self;
        let mut text = format!("{{\n\"version\": {version},\n\"{name}\": {body},\n");
        let checksum = crc32c::crc32c(text.as_bytes());
        // Writing to a String cannot fail.
        let _ = writeln!(text, "\"crc32c\": \"{checksum:08x}\"}}");
        text
    }

    /// Reads it back, checking version and checksum.
    pub(super) fn read<T: DeserializeOwned>(self, path: &Path) -> Result<T, StoreError> {
        let corrupt = |what: String| StoreError::Corrupt { path: path.to_owned(), what };
        let size = std::fs::metadata(path).map_err(|e| FileError::new("read", path, e))?.len();
        if size > FILE_BYTES_MAX {
            return Err(corrupt(format!("it has {size} bytes")));
        }
        let text = std::fs::read_to_string(path).map_err(|e| FileError::new("read", path, e))?;
        self.parse(&text).map_err(corrupt)
    }

    fn parse<T: DeserializeOwned>(self, text: &str) -> Result<T, String> {
        let mut outer: Value = serde_json::from_str(text).map_err(|e| e.to_string())?;
        let last_line = text.trim_end().rfind('\n').map_or(0, |at| at + 1);
        let checksum = format!("{:08x}", crc32c::crc32c(&text.as_bytes()[..last_line]));
        let said = outer["crc32c"].as_str().unwrap_or("nothing");
        if checksum != said {
            return Err(format!("its checksum is {checksum}, but it says {said}"));
        }
        let Framed { name, version } = self;
        if outer["version"] != version {
            return Err(format!(
                "it has version {}, and this walship reads version {version}",
                outer["version"]
            ));
        }
        serde_json::from_value(outer[name].take()).map_err(|e| e.to_string())
    }
}
