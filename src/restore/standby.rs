//! The settings that make a copy a standby, in `postgresql.auto.conf`, and the signal file.
//!
//! `postgresql.auto.conf` is read last, so what stands here wins over a configuration that was copied from the
//! primary. Blocks.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::durable::{self, FileError};
use crate::pg::{CONFIGURATION_FILE, SETTINGS_FILE};

/// Makes PostgreSQL start as a standby.
pub const SIGNAL_FILE: &str = "standby.signal";

/// How soon a walreceiver tries again: PostgreSQL's own 5 s would be lag after every restart of the sidecar
/// (pg-facts, C.6).
const RETRY_INTERVAL: &str = "200ms";

/// A hot standby refuses to start when one of these is lower than its primary's (pg-facts, C.9). With PostgreSQL's
/// defaults.
const AS_HIGH_AS_THE_PRIMARY: [(&str, u32); 5] = [
    ("max_connections", 100),
    ("max_worker_processes", 8),
    ("max_wal_senders", 10),
    ("max_prepared_transactions", 0),
    ("max_locks_per_transaction", 64),
];

/// Where a standby's PostgreSQL gets its WAL, and where it listens.
#[derive(Clone, Debug, Default)]
pub struct StandbySettings {
    /// Where the WAL comes from, as PostgreSQL has it.
    pub primary_conninfo: String,
    /// It comes from the feed of this host's sidecar, not from where a person said.
    pub is_fed: bool,
    /// The port to listen on; `None` leaves what the configuration says.
    pub port: Option<u16>,
    /// Where to make the unix socket; `None` leaves what the configuration says.
    pub socket_directory: Option<PathBuf>,
    /// Others by name, such as those that must be as high as the primary's.
    pub others: Vec<(String, String)>,
}

impl StandbySettings {
    /// Makes a stopped data directory a standby: settings first, then the signal file.
    pub fn apply(&self, data_directory: &Path) -> Result<(), FileError> {
        edit(data_directory, |text| with_settings(text, &self.as_pairs()))?;
        durable::write(&data_directory.join(SIGNAL_FILE), b"")
    }

    /// Adds what must be as high as at the primary and is not, for a copy whose configuration did not come from there:
    /// it came without `postgresql.conf`, or the one that was here stays. Whatever else the source names is passed over.
    pub fn add_primarys(&mut self, data_directory: &Path, settings: &BTreeMap<String, String>) {
        let texts =
            [CONFIGURATION_FILE, SETTINGS_FILE].map(|file| fs::read_to_string(data_directory.join(file)));
        let is_ours = texts[0].is_ok();
        for (name, default) in AS_HIGH_AS_THE_PRIMARY {
            let theirs = settings.get(name).and_then(|value| value.parse::<u32>().ok());
            let ours = texts
                .iter()
                .flatten()
                .filter_map(|text| number_in(text, name))
                .next_back()
                .unwrap_or(default);
            if let Some(theirs) = theirs.filter(|theirs| !is_ours || *theirs > ours) {
                self.others.push((name.to_owned(), theirs.to_string()));
            }
        }
    }

    fn as_pairs(&self) -> Vec<(String, Option<String>)> {
        let pair = |name: &str, value: String| (name.to_owned(), Some(value));
        let mut pairs = vec![
            pair("primary_conninfo", self.primary_conninfo.clone()),
            // The source may be a standby with a slot of its own.
            ("primary_slot_name".to_owned(), None),
        ];
        if self.is_fed {
            pairs.push(pair("wal_retrieve_retry_interval", RETRY_INTERVAL.to_owned()));
        }
        if let Some(port) = self.port {
            pairs.push(pair("port", port.to_string()));
        }
        if let Some(directory) = &self.socket_directory {
            // A list of names: one with a comma or a space must be quoted within the value.
            let name = directory.to_string_lossy().replace('"', "\"\"");
            pairs.push(pair("unix_socket_directories", format!("\"{name}\"")));
        }
        pairs.extend(self.others.iter().map(|(name, value)| pair(name, value.clone())));
        pairs
    }
}

/// Takes back what [`StandbySettings::apply`] set for following, for a node that is a primary now. Its port and
/// socket stay.
pub fn remove_for_primary(data_directory: &Path) -> Result<(), FileError> {
    durable::remove(&data_directory.join(SIGNAL_FILE))?;
    let followers = ["primary_conninfo", "primary_slot_name", "wal_retrieve_retry_interval"];
    let removals: Vec<_> = followers.iter().map(|name| ((*name).to_owned(), None)).collect();
    edit(data_directory, |text| with_settings(text, &removals))
}

/// True when PostgreSQL would start as a standby.
pub fn is_standby(data_directory: &Path) -> bool {
    data_directory.join(SIGNAL_FILE).exists()
}

fn edit(data_directory: &Path, change: impl FnOnce(&str) -> String) -> Result<(), FileError> {
    let path = data_directory.join(SETTINGS_FILE);
    let text = match fs::read(&path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
        Err(e) => return Err(FileError::new("read", &path, e)),
    };
    let changed = change(&text);
    if changed == text { Ok(()) } else { durable::write(&path, changed.as_bytes()) }
}

/// The text of a configuration file with some settings replaced: every earlier line of the same name goes, and those
/// with a value are added at the end.
fn with_settings(text: &str, settings: &[(String, Option<String>)]) -> String {
    let is_replaced = |line: &str| {
        setting_name(line).is_some_and(|name| settings.iter().any(|(key, _)| key.eq_ignore_ascii_case(name)))
    };
    let mut changed: String =
        text.lines().filter(|line| !is_replaced(line)).map(|line| format!("{line}\n")).collect();
    for (name, value) in settings {
        if let Some(value) = value {
            changed.push_str(&format!("{name} = '{}'\n", escaped(value)));
        }
    }
    changed
}

/// The last number that a configuration file sets a name to. What it includes is not looked at.
fn number_in(text: &str, name: &str) -> Option<u32> {
    let of_name = |line: &&str| setting_name(line).is_some_and(|found| found.eq_ignore_ascii_case(name));
    let line = text.lines().rfind(of_name)?;
    let value = line.trim_start()[name.len()..].trim_start().trim_start_matches('=').trim_start();
    let digits = value.trim_start_matches('\'');
    digits[..digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len())].parse().ok()
}

/// The name in a line of a configuration file; `None` for comments and empty lines.
fn setting_name(line: &str) -> Option<&str> {
    let line = line.trim_start();
    let end = line
        .find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '$')))
        .unwrap_or(line.len());
    Some(&line[..end]).filter(|name| !name.is_empty())
}

/// As `ALTER SYSTEM` writes it; a line end, which it refuses, becomes a space.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('\'', "''").replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> StandbySettings {
        StandbySettings {
            primary_conninfo: r"host='/var/lib/wal ship/it\'s' port=5432".to_owned(),
            is_fed: true,
            port: Some(5433),
            socket_directory: Some("/run/a,b".into()),
            others: vec![("max_connections".to_owned(), "200".to_owned())],
        }
    }

    #[test]
    fn earlier_lines_are_replaced_and_others_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(SETTINGS_FILE);
        let before = "# Do not edit this file manually!\nPort = 1\nwork_mem = '8MB'\n\
            primary_conninfo='host=old'\n  primary_slot_name = 'gone'\nmax_connections=100 # x\nport_x = 1";
        fs::write(&path, before).unwrap();
        settings().apply(folder.path()).unwrap();
        assert!(is_standby(folder.path()));
        let expected = "# Do not edit this file manually!\nwork_mem = '8MB'\nport_x = 1\n\
            primary_conninfo = 'host=''/var/lib/wal ship/it\\\\''s'' port=5432'\nwal_retrieve_retry_interval = '200ms'\nport = '5433'\n\
            unix_socket_directories = '\"/run/a,b\"'\nmax_connections = '200'\n";
        assert_eq!(fs::read_to_string(&path).unwrap(), expected);
        settings().apply(folder.path()).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), expected, "applied twice is applied once");

        remove_for_primary(folder.path()).unwrap();
        assert!(!is_standby(folder.path()));
        let expected = "# Do not edit this file manually!\nwork_mem = '8MB'\nport_x = 1\nport = '5433'\n\
            unix_socket_directories = '\"/run/a,b\"'\nmax_connections = '200'\n";
        assert_eq!(fs::read_to_string(&path).unwrap(), expected);
    }

    #[test]
    fn a_primary_that_a_person_named_is_taken_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let conninfo = "host=db1 password='it''s'".to_owned();
        let standby = StandbySettings { primary_conninfo: conninfo, ..StandbySettings::default() };
        standby.apply(folder.path()).unwrap();
        assert!(is_standby(folder.path()));
        let text = fs::read_to_string(folder.path().join(SETTINGS_FILE)).unwrap();
        assert_eq!(text, "primary_conninfo = 'host=db1 password=''it''''s'''\n");
    }

    #[test]
    fn the_primarys_limits_are_taken_where_its_configuration_is_not_and_nothing_else_is() {
        let folder = tempfile::tempdir().unwrap();
        let told =
            [("max_connections", "500"), ("archive_command", "rm -rf /"), ("max_wal_senders", "1'; x")];
        let told = told.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let mut standby = StandbySettings::default();
        standby.add_primarys(folder.path(), &told);
        assert_eq!(standby.others, [("max_connections".to_owned(), "500".to_owned())]);
        // A configuration of this host's own is raised where it is lower, and only there.
        let added = |own: &str| {
            fs::write(folder.path().join("postgresql.conf"), own).unwrap();
            let mut standby = StandbySettings::default();
            standby.add_primarys(folder.path(), &told);
            standby.others
        };
        let raised = [("max_connections".to_owned(), "500".to_owned())];
        for own in [
            "",
            "max_connections = 499",
            "max_connections=600\n Max_Connections '100'",
            "# max_connections = 600",
        ] {
            assert_eq!(added(own), raised, "{own}");
        }
        for own in ["max_connections = 500", "max_connections = 100\nmax_connections\t= '1000' # more"] {
            assert_eq!(added(own), [], "{own}");
        }
        fs::write(folder.path().join(SETTINGS_FILE), "max_connections = '700'\n").unwrap();
        assert_eq!(added("max_connections = 100"), []);
    }

    #[test]
    fn a_copy_without_the_file_gets_one() {
        let folder = tempfile::tempdir().unwrap();
        settings().apply(folder.path()).unwrap();
        assert!(
            fs::read_to_string(folder.path().join(SETTINGS_FILE)).unwrap().starts_with("primary_conninfo")
        );
        remove_for_primary(tempfile::tempdir().unwrap().path()).unwrap();
    }
}
