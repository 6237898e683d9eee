//! `backup_manifest`: what a base backup consists of, byte for byte as PostgreSQL writes it (`backup_manifest.c`).
//!
//! Version 1 up to PostgreSQL 16; version 2, with the system identifier, from 17 on. The last line is the SHA-256
//! of all bytes before it.

use std::fmt::Write;

use sha2::{Digest, Sha256};

use super::{Lsn, TimelineId};

/// Its path in the data directory.
pub const MANIFEST_FILE: &str = "backup_manifest";

/// The content of a manifest.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Manifest {
    /// Present from version 2 on; decides which version is written.
    pub system_identifier: Option<u64>,
    /// The files, without `pg_wal` and the manifest itself.
    pub files: Vec<ManifestFile>,
    /// The WAL that a start of the copy needs.
    pub wal_ranges: Vec<WalRange>,
}

/// One file of a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestFile {
    /// Relative to the data directory; a tablespace's file is below `pg_tblspc/<oid>/`. Not always UTF-8.
    pub path: Vec<u8>,
    /// In bytes.
    pub size: u64,
    /// When the source last changed it, in seconds since 1970.
    pub modified_unix_seconds: i64,
    /// Over its whole content; `None` in manifests made without checksums.
    pub checksum: Option<Checksum>,
}

/// A checksum and how it was computed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checksum {
    /// PostgreSQL's name: `SHA256`, `CRC32C`, …
    pub algorithm: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// A stretch of WAL on one timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalRange {
    /// The timeline.
    pub timeline: TimelineId,
    /// The first record.
    pub start_lsn: Lsn,
    /// After the last byte.
    pub end_lsn: Lsn,
}

/// A manifest that cannot be believed.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It is not JSON, or not of the expected shape.
    #[error("the backup manifest cannot be read")]
    Syntax(#[from] serde_json::Error),
    /// Its last line is not a checksum.
    #[error("the backup manifest does not end in its checksum: it is cut short or not a manifest")]
    NoChecksum,
    /// It was changed after it was written.
    #[error("the checksum of the backup manifest is wrong: it was changed or damaged")]
    Checksum,
    /// A version from the future.
    #[error("the backup manifest has version {version}; walship knows 1 and 2")]
    Version {
        /// What it says.
        version: u64,
    },
    /// A field that PostgreSQL would not have written so.
    #[error("the backup manifest holds an impossible {field}: {value:?}")]
    Field {
        /// Its name.
        field: &'static str,
        /// Its text.
        value: String,
    },
}

impl Manifest {
    /// The bytes of the manifest.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut text = String::with_capacity(256 + 220 * self.files.len());
        match self.system_identifier {
            None => text.push_str("{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n"),
            Some(id) => {
                let head = "{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n";
                let _ = writeln!(text, "{head}\"System-Identifier\": {id},");
            }
        }
        text.push_str("\"Files\": [");
        for (index, file) in self.files.iter().enumerate() {
            text.push_str(if index == 0 { "\n" } else { ",\n" });
            push_file(&mut text, file);
        }
        text.push_str("\n],\n\"WAL-Ranges\": [");
        for (index, range) in self.wal_ranges.iter().enumerate() {
            text.push_str(if index == 0 { "\n" } else { ",\n" });
            let WalRange { timeline, start_lsn, end_lsn } = range;
            let _ = write!(
                text,
                "{{ \"Timeline\": {timeline}, \"Start-LSN\": \"{start_lsn}\", \"End-LSN\": \"{end_lsn}\" }}"
            );
        }
        text.push_str("\n],\n");
        let checksum = Sha256::digest(text.as_bytes());
        text.push_str(CHECKSUM_LINE);
        push_hex(&mut text, &checksum);
        text.push_str("\"}\n");
        text.into_bytes()
    }

    /// Reads a manifest and verifies its own checksum.
    pub fn parse(bytes: &[u8]) -> Result<Manifest, ManifestError> {
        verify_checksum(bytes)?;
        let raw: raw::Manifest = serde_json::from_slice(bytes)?;
        if !(1..=2).contains(&raw.version) {
            return Err(ManifestError::Version { version: raw.version });
        }
        Ok(Manifest {
            system_identifier: raw.system_identifier,
            files: raw.files.into_iter().map(ManifestFile::from_raw).collect::<Result<_, _>>()?,
            wal_ranges: raw.wal_ranges.into_iter().map(WalRange::from_raw).collect::<Result<_, _>>()?,
        })
    }
}

const CHECKSUM_LINE: &str = "\"Manifest-Checksum\": \"";

/// Compares the checksum in the last line with that of everything before the line.
fn verify_checksum(bytes: &[u8]) -> Result<(), ManifestError> {
    let text = bytes.strip_suffix(b"\"}\n").ok_or(ManifestError::NoChecksum)?;
    let line_start = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
    let (body, line) = text.split_at(line_start);
    let stored = line.strip_prefix(CHECKSUM_LINE.as_bytes()).ok_or(ManifestError::NoChecksum)?;
    let stored = std::str::from_utf8(stored).ok().and_then(parse_hex).ok_or(ManifestError::NoChecksum)?;
    if stored == Sha256::digest(body).as_slice() { Ok(()) } else { Err(ManifestError::Checksum) }
}

fn push_file(text: &mut String, file: &ManifestFile) {
    match std::str::from_utf8(&file.path) {
        // serde_json escapes exactly what PostgreSQL's escape_json does, and in the same way.
        Ok(path) => {
            let _ = write!(text, "{{ \"Path\": {}, ", serde_json::Value::from(path));
        }
        Err(_) => {
            text.push_str("{ \"Encoded-Path\": \"");
            push_hex(text, &file.path);
            text.push_str("\", ");
        }
    }
    let modified = gmt(file.modified_unix_seconds);
    let _ = write!(text, "\"Size\": {}, \"Last-Modified\": \"{modified}\"", file.size);
    if let Some(checksum) = &file.checksum {
        let _ = write!(text, ", \"Checksum-Algorithm\": \"{}\", \"Checksum\": \"", checksum.algorithm);
        push_hex(text, &checksum.bytes);
        text.push('"');
    }
    text.push_str(" }");
}

/// `2026-11-23 05:37:18 GMT`; a time that no calendar has becomes 1970.
fn gmt(unix_seconds: i64) -> String {
    let time = jiff::Timestamp::from_second(unix_seconds).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    time.strftime("%Y-%m-%d %H:%M:%S GMT").to_string()
}

fn parse_gmt(text: &str) -> Option<i64> {
    let civil = jiff::civil::DateTime::strptime("%Y-%m-%d %H:%M:%S", text.strip_suffix(" GMT")?).ok()?;
    Some(civil.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp().as_second())
}

fn push_hex(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
}

fn parse_hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

impl ManifestFile {
    fn from_raw(raw: raw::File) -> Result<ManifestFile, ManifestError> {
        let bad = |field, value: &str| ManifestError::Field { field, value: value.to_owned() };
        let path = match (raw.path, raw.encoded_path) {
            (Some(path), None) => path.into_bytes(),
            (None, Some(hex)) => parse_hex(&hex).ok_or_else(|| bad("Encoded-Path", &hex))?,
            _ => return Err(bad("Path", "")),
        };
        let checksum = match (raw.checksum_algorithm, raw.checksum) {
            (Some(algorithm), Some(hex)) => {
                Some(Checksum { bytes: parse_hex(&hex).ok_or_else(|| bad("Checksum", &hex))?, algorithm })
            }
            (None, None) => None,
            _ => return Err(bad("Checksum", "")),
        };
        let modified_unix_seconds =
            parse_gmt(&raw.last_modified).ok_or_else(|| bad("Last-Modified", &raw.last_modified))?;
        Ok(ManifestFile { path, size: raw.size, modified_unix_seconds, checksum })
    }
}

impl WalRange {
    fn from_raw(raw: raw::WalRange) -> Result<WalRange, ManifestError> {
        let lsn = |field, text: &str| {
            text.parse().map_err(|_| ManifestError::Field { field, value: text.to_owned() })
        };
        Ok(WalRange {
            timeline: TimelineId(raw.timeline),
            start_lsn: lsn("Start-LSN", &raw.start_lsn)?,
            end_lsn: lsn("End-LSN", &raw.end_lsn)?,
        })
    }
}

/// The JSON as it is in the file.
mod raw {
    use serde::Deserialize;

    #[derive(Deserialize)]
    pub struct Manifest {
        #[serde(rename = "PostgreSQL-Backup-Manifest-Version")]
        pub version: u64,
        #[serde(rename = "System-Identifier")]
        pub system_identifier: Option<u64>,
        #[serde(rename = "Files")]
        pub files: Vec<File>,
        #[serde(rename = "WAL-Ranges")]
        pub wal_ranges: Vec<WalRange>,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    pub struct File {
        pub path: Option<String>,
        #[serde(rename = "Encoded-Path")]
        pub encoded_path: Option<String>,
        pub size: u64,
        #[serde(rename = "Last-Modified")]
        pub last_modified: String,
        #[serde(rename = "Checksum-Algorithm")]
        pub checksum_algorithm: Option<String>,
        pub checksum: Option<String>,
    }

    #[derive(Deserialize)]
    pub struct WalRange {
        #[serde(rename = "Timeline")]
        pub timeline: u32,
        #[serde(rename = "Start-LSN")]
        pub start_lsn: String,
        #[serde(rename = "End-LSN")]
        pub end_lsn: String,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn arbitrary_file() -> impl Strategy<Value = ManifestFile> {
        let checksum = proptest::option::of(proptest::collection::vec(any::<u8>(), 4..=32));
        let path = proptest::collection::vec(any::<u8>(), 1..40);
        (path, any::<u64>(), 0i64..4_000_000_000, checksum).prop_map(|(path, size, seconds, checksum)| {
            ManifestFile {
                path,
                size,
                modified_unix_seconds: seconds,
                checksum: checksum.map(|bytes| Checksum { algorithm: "SHA256".to_owned(), bytes }),
            }
        })
    }

    proptest! {
        #[test]
        fn manifests_round_trip(
            files in proptest::collection::vec(arbitrary_file(), 0..5),
            system_identifier: Option<u64>,
            start: u64,
        ) {
            let range = WalRange { timeline: TimelineId(3), start_lsn: Lsn(start), end_lsn: Lsn(start) };
            let manifest = Manifest { system_identifier, files, wal_ranges: vec![range] };
            prop_assert_eq!(Manifest::parse(&manifest.to_bytes()).unwrap(), manifest);
        }

        #[test]
        fn a_changed_byte_is_noticed(at in 0usize..400, flip in 1u8..) {
            let mut bytes = postgresqls_own().0.as_bytes().to_vec();
            let at = at % bytes.len();
            bytes[at] ^= flip;
            // The digits of the checksum may change their case, which means the same.
            let same = bytes.eq_ignore_ascii_case(postgresqls_own().0.as_bytes());
            prop_assert!(Manifest::parse(&bytes).is_err() || same);
        }
    }

    /// A manifest in the form that PostgreSQL writes, and what it means.
    fn postgresqls_own() -> (String, Manifest) {
        let body = "{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [\n\
            { \"Path\": \"backup_label\", \"Size\": 227, \"Last-Modified\": \"2026-11-23 13:01:46 GMT\", \
            \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"d5ab8fdd\" },\n\
            { \"Encoded-Path\": \"66ff\", \"Size\": 0, \"Last-Modified\": \"2000-02-29 23:59:59 GMT\", \
            \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"00000000\" }\n\
            ],\n\"WAL-Ranges\": [\n\
            { \"Timeline\": 1, \"Start-LSN\": \"0/2000028\", \"End-LSN\": \"0/2000100\" }\n],\n";
        let mut text = body.to_owned();
        text.push_str(CHECKSUM_LINE);
        push_hex(&mut text, &Sha256::digest(body));
        text.push_str("\"}\n");
        let file = |path: &[u8], size, modified_unix_seconds, bytes: [u8; 4]| ManifestFile {
            path: path.to_vec(),
            size,
            modified_unix_seconds,
            checksum: Some(Checksum { algorithm: "CRC32C".to_owned(), bytes: bytes.to_vec() }),
        };
        let manifest = Manifest {
            system_identifier: None,
            files: vec![
                file(b"backup_label", 227, 1_795_438_906, [0xD5, 0xAB, 0x8F, 0xDD]),
                file(b"f\xFF", 0, 951_868_799, [0; 4]),
            ],
            wal_ranges: vec![WalRange {
                timeline: TimelineId(1),
                start_lsn: Lsn(0x2000028),
                end_lsn: Lsn(0x2000100),
            }],
        };
        (text, manifest)
    }

    #[test]
    fn the_bytes_are_postgresqls() {
        let (text, manifest) = postgresqls_own();
        assert_eq!(String::from_utf8(manifest.to_bytes()).unwrap(), text);
        assert_eq!(Manifest::parse(text.as_bytes()).unwrap(), manifest);
    }

    #[test]
    fn version_two_names_the_system() {
        let manifest = Manifest { system_identifier: Some(7711238045745010420), ..Manifest::default() };
        let text = String::from_utf8(manifest.to_bytes()).unwrap();
        let head =
            "{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\"System-Identifier\": 7711238045745010420,\n";
        assert!(text.starts_with(head), "{text}");
    }

    #[test]
    fn what_is_not_a_manifest_is_refused() {
        assert!(matches!(Manifest::parse(b""), Err(ManifestError::NoChecksum)));
        assert!(matches!(Manifest::parse(b"{\"x\": \"}\n"), Err(ManifestError::NoChecksum)));
        let (text, _) = postgresqls_own();
        let cut = &text.as_bytes()[..text.len() - 4];
        assert!(matches!(Manifest::parse(cut), Err(ManifestError::NoChecksum)));
    }
}
