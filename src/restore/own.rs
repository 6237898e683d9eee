//! What of a data directory is the host's own, and stays when a standby is seeded anew: its configuration, the
//! certificates of its server, its logs. Pure.

use std::ffi::OsStr;
use std::path::Path;

/// Endings of the names of files that a person, and not PostgreSQL, puts into a data directory.
const OWN_EXTENSIONS: [&str; 5] = ["conf", "crt", "key", "pem", "crl"];

/// Where PostgreSQL logs, and the file that says where.
const LOGS: [&str; 3] = ["log", "pg_log", "current_logfiles"];

/// Configuration and the like, outside of PostgreSQL's own folders.
pub(super) fn is_configuration(path: &Path) -> bool {
    let extension = path.extension().and_then(OsStr::to_str);
    !is_postgresqls(path) && extension.is_some_and(|extension| OWN_EXTENSIONS.contains(&extension))
}

/// Logs: each host has its own.
pub(super) fn is_log(path: &Path) -> bool {
    path.iter().next().is_some_and(|first| LOGS.iter().any(|log| first == *log))
}

/// Folders that the server itself reads and writes, and what is in them.
pub(super) fn is_postgresqls(path: &Path) -> bool {
    let first = path.iter().next().and_then(OsStr::to_str).unwrap_or_default();
    // pg_hba.conf and pg_ident.conf are none.
    matches!(first, "base" | "global") || first.starts_with("pg_") && !first.contains('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_person_put_there_is_the_hosts_own() {
        let own =
            ["postgresql.conf", "postgresql.auto.conf", "pg_hba.conf", "server.key", "conf.d/local.conf"];
        let others =
            ["PG_VERSION", "base/5/112", "base/5/x.conf", "pg_wal/x.conf", "global/pg_control", "conf"];
        assert!(own.iter().all(|path| is_configuration(Path::new(path))));
        assert!(!others.iter().any(|path| is_configuration(Path::new(path))));
        assert!(is_log(Path::new("log/postgresql.log")) && is_log(Path::new("log")));
        assert!(!is_log(Path::new("pg_logical/replorigin_checkpoint")) && !is_log(Path::new("base/log")));
    }
}
