//! Privileges: who we are, what each task needs, and the SQL that mends a lack.
//!
//! Nothing needs a superuser where PostgreSQL has a lesser grant (pg-facts, G.5).

use super::{ServerVersion, Sql, SqlError, Task};

/// One privilege that some task needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Grant {
    /// The REPLICATION attribute: the stream and the slot.
    Replication,
    /// Beginning a base backup.
    BackupStart,
    /// Ending it.
    BackupStop,
    /// Promoting over SQL.
    Promote,
    /// Resuming a paused replay.
    ResumeReplay,
    /// Reading `data_directory` and its like.
    ReadAllSettings,
    /// Seeing the details of other sessions, such as pg_stat_replication's.
    ReadAllStats,
    /// Setting `synchronous_standby_names`; in PostgreSQL 14 only a superuser may.
    SetSyncNames,
    /// Having the configuration read again.
    ReloadConfiguration,
    /// Reading files, as another node's pg_rewind does.
    ReadFiles,
    /// Having a checkpoint made; in PostgreSQL 14 only a superuser may.
    Checkpoint,
}

/// What pg_rewind calls at its source.
const READ_FILES: [&str; 4] = [
    "pg_ls_dir(text, boolean, boolean)",
    "pg_stat_file(text, boolean)",
    "pg_read_binary_file(text)",
    "pg_read_binary_file(text, bigint, bigint, boolean)",
];

impl Grant {
    /// Every one.
    pub const ALL: [Grant; 11] = [
        Grant::Replication,
        Grant::BackupStart,
        Grant::BackupStop,
        Grant::Promote,
        Grant::ResumeReplay,
        Grant::ReadAllSettings,
        Grant::ReadAllStats,
        Grant::SetSyncNames,
        Grant::ReloadConfiguration,
        Grant::ReadFiles,
        Grant::Checkpoint,
    ];

    /// Those that can be granted in a version.
    pub fn of(version: ServerVersion) -> impl Iterator<Item = Grant> {
        let is_grantable = version.major() >= 15;
        Grant::ALL
            .into_iter()
            .filter(move |grant| is_grantable || !matches!(grant, Grant::SetSyncNames | Grant::Checkpoint))
    }

    /// What it is for, in words.
    pub fn what(self) -> &'static str {
        match self {
            Grant::Replication => "stream the WAL and keep a replication slot",
            Grant::BackupStart => "begin a base backup",
            Grant::BackupStop => "end a base backup",
            Grant::Promote => "promote a standby",
            Grant::ResumeReplay => "resume a paused replay",
            Grant::ReadAllSettings => "read settings such as data_directory",
            Grant::ReadAllStats => "see the details of replication connections",
            Grant::SetSyncNames => "set synchronous_standby_names",
            Grant::ReloadConfiguration => "have the configuration read again",
            Grant::ReadFiles => "read files for another node's pg_rewind",
            Grant::Checkpoint => "have a checkpoint made",
        }
    }

    /// The function whose EXECUTE it is; `None` for attributes and predefined roles.
    fn function(self, version: ServerVersion) -> Option<&'static str> {
        let old = version.major() < 15;
        match self {
            Grant::BackupStart if old => Some("pg_start_backup(text, boolean, boolean)"),
            Grant::BackupStop if old => Some("pg_stop_backup(boolean, boolean)"),
            Grant::BackupStart => Some("pg_backup_start(text, boolean)"),
            Grant::BackupStop => Some("pg_backup_stop(boolean)"),
            Grant::Promote => Some("pg_promote(boolean, integer)"),
            Grant::ResumeReplay => Some("pg_wal_replay_resume()"),
            Grant::ReloadConfiguration => Some("pg_reload_conf()"),
            Grant::Replication
            | Grant::ReadAllSettings
            | Grant::ReadAllStats
            | Grant::SetSyncNames
            | Grant::ReadFiles
            | Grant::Checkpoint => None,
        }
    }

    /// The statement that a superuser runs, in the database that the connection string names: EXECUTE is granted
    /// per database.
    pub fn sql_that_mends(self, role: &str, version: ServerVersion) -> String {
        let role = quote_identifier(role);
        match (self, self.function(version)) {
            (_, Some(function)) => format!("GRANT EXECUTE ON FUNCTION pg_catalog.{function} TO {role};"),
            (Grant::Replication, None) => format!("ALTER ROLE {role} REPLICATION;"),
            (Grant::SetSyncNames, None) => {
                format!("GRANT ALTER SYSTEM ON PARAMETER synchronous_standby_names TO {role};")
            }
            (Grant::ReadFiles, None) => {
                let functions = READ_FILES.map(|function| format!("pg_catalog.{function}")).join(", ");
                format!("GRANT EXECUTE ON FUNCTION {functions} TO {role};")
            }
            (Grant::Checkpoint, None) => format!("GRANT pg_checkpoint TO {role};"),
            (Grant::ReadAllStats, None) => format!("GRANT pg_read_all_stats TO {role};"),
            (_, None) => format!("GRANT pg_read_all_settings TO {role};"),
        }
    }
}

impl Sql {
    /// True when our role has a privilege.
    pub async fn has(&self, grant: Grant) -> Result<bool, SqlError> {
        const TASK: Task = Task::look("read the role's privileges");
        let row = match (grant, grant.function(self.version())) {
            (_, Some(function)) => {
                let sql = "SELECT has_function_privilege($1::text, 'EXECUTE')";
                self.row(TASK, sql, &[&format!("pg_catalog.{function}")]).await?
            }
            (Grant::Replication, None) => {
                let sql = "SELECT rolreplication OR rolsuper FROM pg_roles WHERE rolname = current_user";
                self.row(TASK, sql, &[]).await?
            }
            (Grant::ReadFiles, None) => {
                let functions = READ_FILES.map(|function| format!("pg_catalog.{function}")).to_vec();
                let sql = "SELECT bool_and(has_function_privilege(name, 'EXECUTE')) FROM unnest($1::text[]) AS name";
                self.row(TASK, sql, &[&functions]).await?
            }
            (Grant::SetSyncNames | Grant::Checkpoint, None) if self.version().major() < 15 => {
                self.row(TASK, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user", &[]).await?
            }
            (Grant::SetSyncNames, None) => {
                let sql = "SELECT has_parameter_privilege('synchronous_standby_names', 'ALTER SYSTEM')";
                self.row(TASK, sql, &[]).await?
            }
            (other, None) => {
                let role = match other {
                    Grant::ReadAllStats => "pg_read_all_stats",
                    Grant::Checkpoint => "pg_checkpoint",
                    _ => "pg_read_all_settings",
                };
                self.row(TASK, "SELECT pg_has_role($1::text, 'USAGE')", &[&role]).await?
            }
        };
        Sql::value(TASK, &row, 0)
    }
}

/// Quotes an identifier where SQL needs it, as `quote_ident` does for all but reserved words.
pub fn quote_identifier(name: &str) -> String {
    let first_plain = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
    let plain = first_plain && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if plain { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mending_sql_fits_the_version_and_quotes_the_role() {
        let mends = |grant: Grant, role, version| grant.sql_that_mends(role, ServerVersion(version));
        let expected = "GRANT EXECUTE ON FUNCTION pg_catalog.pg_backup_start(text, boolean) TO walship;";
        assert_eq!(mends(Grant::BackupStart, "walship", 150_018), expected);
        assert!(
            mends(Grant::BackupStart, "walship", 140_023).contains("pg_start_backup(text, boolean, boolean)")
        );
        assert_eq!(
            mends(Grant::Replication, "Wal\"Ship", 150_018),
            "ALTER ROLE \"Wal\"\"Ship\" REPLICATION;"
        );
    }
}
