//! `backup_label` and `tablespace_map`: what tells a copied data directory where to begin (`xlogbackup.c`).
//!
//! The label's bytes come from `pg_backup_stop` and are written as they are; this only reads them.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use super::{Lsn, TimelineId};

/// Its path in the data directory. A copy that is started without it recovers from a wrong checkpoint.
pub const BACKUP_LABEL_FILE: &str = "backup_label";

/// The path of the tablespace map in the data directory.
pub const TABLESPACE_MAP_FILE: &str = "tablespace_map";

/// Where replay of a base backup begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupLabel {
    /// The first WAL record that is needed.
    pub start_lsn: Lsn,
    /// The checkpoint record of the backup's start.
    pub checkpoint_lsn: Lsn,
    /// The timeline of both.
    pub timeline: TimelineId,
    /// True when it was taken from a standby.
    pub from_standby: bool,
    /// What the person called it.
    pub label: String,
}

/// A tablespace outside the data directory: `pg_tblspc/<oid>` is a link to `path`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tablespace {
    /// Its OID, the name of the link.
    pub oid: u32,
    /// Where the link leads.
    pub path: PathBuf,
}

/// A label or map that PostgreSQL could not have written.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LabelError {
    /// A line that must be there is not.
    #[error("the backup label has no usable `{field}` line")]
    MissingField {
        /// What the line begins with.
        field: &'static str,
    },
    /// A line of the map that is not `oid path`.
    #[error("line {line} of the tablespace map is not `oid path`")]
    BadMapLine {
        /// Counted from one.
        line: usize,
    },
}

impl BackupLabel {
    /// Reads a label. Lines that it does not know are passed over: 17 added some.
    pub fn parse(text: &[u8]) -> Result<BackupLabel, LabelError> {
        let text = String::from_utf8_lossy(text);
        let field = |name: &'static str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
                .ok_or(LabelError::MissingField { field: name })
        };
        let lsn = |name: &'static str| {
            let value = field(name)?.split(' ').next().unwrap_or("");
            value.parse().map_err(|_| LabelError::MissingField { field: name })
        };
        let timeline = field("START TIMELINE")?.trim().parse().ok().filter(|&number: &u32| number > 0);
        Ok(BackupLabel {
            start_lsn: lsn("START WAL LOCATION")?,
            checkpoint_lsn: lsn("CHECKPOINT LOCATION")?,
            timeline: TimelineId(timeline.ok_or(LabelError::MissingField { field: "START TIMELINE" })?),
            from_standby: field("BACKUP FROM")? == "standby",
            label: field("LABEL")?.to_owned(),
        })
    }
}

/// Reads a tablespace map: `oid path` lines in which a backslash protects line ends and itself.
pub fn parse_tablespace_map(map: &[u8]) -> Result<Vec<Tablespace>, LabelError> {
    let mut tablespaces = Vec::new();
    let mut line = Vec::new();
    let mut protected = false;
    for &byte in map {
        match byte {
            b'\\' if !protected => protected = true,
            b'\n' | b'\r' if !protected => {
                take_map_line(&mut line, &mut tablespaces)?;
            }
            _ => {
                line.push(byte);
                protected = false;
            }
        }
    }
    take_map_line(&mut line, &mut tablespaces)?;
    Ok(tablespaces)
}

fn take_map_line(line: &mut Vec<u8>, tablespaces: &mut Vec<Tablespace>) -> Result<(), LabelError> {
    if line.is_empty() {
        return Ok(());
    }
    let bad = LabelError::BadMapLine { line: tablespaces.len() + 1 };
    let Some(space) = line.iter().position(|&byte| byte == b' ') else { return Err(bad) };
    let oid = std::str::from_utf8(&line[..space]).ok().and_then(|digits| digits.parse().ok());
    let path = line.split_off(space + 1);
    line.clear();
    match oid {
        Some(oid) if oid > 0 && !path.is_empty() => {
            tablespaces.push(Tablespace { oid, path: OsString::from_vec(path).into() });
            Ok(())
        }
        _ => Err(bad),
    }
}

/// Writes a tablespace map, the reverse of [`parse_tablespace_map`].
pub fn format_tablespace_map(tablespaces: &[Tablespace]) -> Vec<u8> {
    let mut map = Vec::new();
    for tablespace in tablespaces {
        map.extend_from_slice(format!("{} ", tablespace.oid).as_bytes());
        for &byte in tablespace.path.as_os_str().as_bytes() {
            if matches!(byte, b'\n' | b'\r' | b'\\') {
                map.push(b'\\');
            }
            map.push(byte);
        }
        map.push(b'\n');
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LABEL: &str = "START WAL LOCATION: 0/C000028 (file 00000004000000000000000C)\n\
        CHECKPOINT LOCATION: 0/C191C00\nBACKUP METHOD: streamed\nBACKUP FROM: primary\n\
        START TIME: 2026-11-23 05:47:07 UTC\nLABEL: walship: nightly\nSTART TIMELINE: 4\n";

    #[test]
    fn a_label_is_read() {
        let label = BackupLabel::parse(LABEL.as_bytes()).unwrap();
        let expected = BackupLabel {
            start_lsn: Lsn(0xC000028),
            checkpoint_lsn: Lsn(0xC191C00),
            timeline: TimelineId(4),
            from_standby: false,
            label: "walship: nightly".to_owned(),
        };
        assert_eq!(label, expected);
    }

    #[test]
    fn a_label_without_one_of_its_lines_is_refused() {
        for missing in ["START WAL", "CHECKPOINT", "BACKUP FROM", "LABEL", "START TIMELINE"] {
            let text: String = LABEL
                .lines()
                .filter(|line| !line.starts_with(missing))
                .map(|line| format!("{line}\n"))
                .collect();
            assert!(BackupLabel::parse(text.as_bytes()).is_err(), "{missing}");
        }
    }

    proptest! {
        #[test]
        fn maps_round_trip(spaces in proptest::collection::vec((1u32.., "[a-z/ \\\\\n\rä]{1,30}"), 0..5)) {
            let spaces: Vec<Tablespace> =
                spaces.into_iter().map(|(oid, path)| Tablespace { oid, path: path.into() }).collect();
            prop_assert_eq!(parse_tablespace_map(&format_tablespace_map(&spaces)), Ok(spaces));
        }

        #[test]
        fn foreign_bytes_never_panic(bytes: Vec<u8>) {
            let _ = (parse_tablespace_map(&bytes), BackupLabel::parse(&bytes));
        }
    }

    #[test]
    fn bad_map_lines_are_named() {
        assert_eq!(parse_tablespace_map(b"1 /a\nx /b\n"), Err(LabelError::BadMapLine { line: 2 }));
        assert_eq!(parse_tablespace_map(b"16384"), Err(LabelError::BadMapLine { line: 1 }));
        assert_eq!(parse_tablespace_map(b"16384 \n"), Err(LabelError::BadMapLine { line: 1 }));
    }
}
