//! Whether pg_rewind could bring this node back after a promotion of another one, today: afterwards it is too late to mend.

use super::settings::Settings;
use super::{Finding, Host, Mend, Server};
use crate::report::threshold::Level;

const WHAT: &str = "rewind after a failover";

/// Never worse than a warning: without a rewind an old primary is seeded anew. full_page_writes is a finding of its own.
pub fn evaluate(server: &Server, host: &Host) -> Finding {
    let settings = Settings(&server.settings);
    let (Some(checksums), Some(hints)) = (settings.value("data_checksums"), settings.value("wal_log_hints"))
    else {
        return Finding::new(
            Level::Unknown,
            WHAT,
            "PostgreSQL does not show data_checksums and wal_log_hints",
        );
    };
    let basis = match (checksums, hints) {
        ("on", _) => "data checksums are on",
        (_, "on") => "wal_log_hints is on",
        _ => {
            let found = "impossible: without data checksums and wal_log_hints an old primary is seeded anew";
            let mend = Mend::Setting { name: "wal_log_hints", value: "on".to_owned(), restart: true };
            return Finding::new(Level::Warning, WHAT, found).mended_by(mend);
        }
    };
    match &host.has_rewind {
        Ok(true) => Finding::new(Level::Ok, WHAT, format!("possible: {basis}")),
        Ok(false) => {
            let found = "impossible: pg_rewind is not among PostgreSQL's programs on this host";
            let version = server.version.major();
            let advice =
                format!("Install pg_rewind of PostgreSQL {version}; it comes with most server packages.");
            Finding::new(Level::Warning, WHAT, found).mended_by(Mend::Advice(advice))
        }
        Err(reason) => {
            let advice = "Set postgres.bin_directory to where PostgreSQL's programs are.".to_owned();
            Finding::new(Level::Unknown, WHAT, reason.clone()).mended_by(Mend::Advice(advice))
        }
    }
}
