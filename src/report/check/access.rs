//! Whether PostgreSQL lets us in, by SQL and for replication, and what our role may do there.

use super::{Facts, Finding, Mend, Server};
use crate::pg::AccessError;
use crate::pg::conninfo::Endpoint;
use crate::pg::replication::ReplicationError;
use crate::pg::sql::{Grant, ServerVersion, SqlError, quote_identifier};
use crate::report::threshold::Level;

/// The map that pg_ident.conf gets when the account and the role have different names.
const IDENT_MAP: &str = "walship";

/// What to assume of a server that says nothing and whose PG_VERSION cannot be read.
const NEWEST: ServerVersion = ServerVersion(*ServerVersion::SUPPORTED.end() * 10_000);

pub fn evaluate(facts: &Facts) -> Vec<Finding> {
    let server = match &facts.server {
        Ok(server) => server,
        Err(error) => return vec![connection_refused(facts, error)],
    };
    let here = if server.in_recovery { "a standby" } else { "a primary" };
    let place = format!("{} as {}, {here}", facts.endpoint, facts.role);
    let mut findings = vec![
        Finding::new(Level::Ok, "connection", place),
        Finding::new(Level::Ok, "version", format!("PostgreSQL {}", server.version)),
        replication(facts, server),
    ];
    findings.extend(server.grants.iter().map(|&(grant, granted)| privilege(facts, server, grant, granted)));
    findings
}

fn connection_refused(facts: &Facts, error: &SqlError) -> Finding {
    let finding = Finding::new(Level::Critical, "connection", error.to_string());
    let advise = |text: String| Mend::Advice(text);
    match error {
        SqlError::Access(AccessError::AuthenticationFailed { message, .. }) => let_in(facts, message).into_iter().fold(finding, Finding::mended_by),
        SqlError::Access(AccessError::Unreachable { .. }) => finding.mended_by(advise(format!(
            "Start PostgreSQL, or correct postgres.conninfo: it names {}.",
            facts.endpoint
        ))),
        SqlError::Access(AccessError::StartingUp { .. }) => finding.mended_by(advise(
            "Wait until it accepts connections; a standby does so once it is consistent, and with hot_standby = on."
                .to_owned(),
        )),
        SqlError::Access(AccessError::MissingGrant { sql_that_mends, .. }) => finding.mended_by(Mend::Sql(sql_that_mends.clone())),
        SqlError::Unsupported { hint, .. } => finding.mended_by(advise((*hint).to_owned())),
        SqlError::Refused { .. } | SqlError::Other { .. } => finding,
    }
}

/// What lets our role in. The server's words tell a missing role from a missing line, where they are in English;
/// otherwise both are mended, and making a role that exists fails without harm.
fn let_in(facts: &Facts, message: &str) -> Vec<Mend> {
    if message.contains("password") {
        let role = quote_identifier(&facts.role);
        return vec![Mend::Advice(format!(
            "Give the role a password with `ALTER ROLE {role} PASSWORD …`, and put the same into the password file \
             of the account {} (~/.pgpass).",
            facts.account
        ))];
    }
    if message.contains("not permitted to log in") {
        return vec![Mend::Sql(format!("ALTER ROLE {} LOGIN;", quote_identifier(&facts.role)))];
    }
    let role_is_missing = message.contains("does not exist");
    let line_is_missing = message.contains("pg_hba") || message.contains("uthentication failed");
    let mut mends = Vec::new();
    if role_is_missing || !line_is_missing {
        mends.extend(create_role(facts));
    }
    if line_is_missing || !role_is_missing {
        let databases = format!("{},replication", quote_identifier(&facts.database));
        mends.extend(hba_line(facts, &databases));
    }
    mends
}

/// Everything that a role needs from nothing.
fn create_role(facts: &Facts) -> impl Iterator<Item = Mend> {
    let version = facts.host.data_version.as_ref().map_or(NEWEST, |&major| ServerVersion(major * 10_000));
    let role = facts.role.clone();
    let create = Mend::Sql(format!("CREATE ROLE {} LOGIN REPLICATION;", quote_identifier(&role)));
    let grants = Grant::of(version).filter(|&grant| grant != Grant::Replication);
    std::iter::once(create).chain(grants.map(move |grant| Mend::Sql(grant.sql_that_mends(&role, version))))
}

/// The lines that let our role connect from this host, above all others, for the first that matches counts.
fn hba_line(facts: &Facts, databases: &str) -> Vec<Mend> {
    let role = quote_identifier(&facts.role);
    let hba_file = psql(facts, "SHOW hba_file");
    let prepend = |line: String| {
        Mend::Command(format!("sed -i {} \"$({hba_file})\"", quote_word(&format!("1i {line}"))))
    };
    let reload = Mend::Command(psql(facts, "SELECT pg_reload_conf()"));
    match &facts.endpoint {
        Endpoint::Tcp { .. } => {
            vec![prepend(format!("host {databases} {role} samehost scram-sha-256")), reload]
        }
        Endpoint::Unix(_) if facts.account == facts.role => {
            vec![prepend(format!("local {databases} {role} peer")), reload]
        }
        Endpoint::Unix(_) => {
            let ident = quote_word(&format!("{IDENT_MAP} {} {role}", facts.account));
            let ident_file = psql(facts, "SHOW ident_file");
            vec![
                Mend::Command(format!("echo {ident} >> \"$({ident_file})\"")),
                prepend(format!("local {databases} {role} peer map={IDENT_MAP}")),
                reload,
            ]
        }
    }
}

/// psql as the superuser of the same server, printing the bare answer.
fn psql(facts: &Facts, query: &str) -> String {
    let (host, port) = match &facts.endpoint {
        Endpoint::Tcp { host, port, .. } => (host.clone(), port.to_string()),
        Endpoint::Unix(file) => {
            let folder = file.parent().map(|folder| folder.display().to_string()).unwrap_or_default();
            let port = file.extension().map(|port| port.to_string_lossy().into_owned()).unwrap_or_default();
            (folder, port)
        }
    };
    format!("psql -AtX -h {host} -p {port} -U postgres -d postgres -c '{query}'")
}

/// A word for the shell.
fn quote_word(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

fn replication(facts: &Facts, server: &Server) -> Finding {
    const WHAT: &str = "replication connection";
    let error = match &server.replication {
        Ok(()) => return Finding::new(Level::Ok, WHAT, format!("{} is let in for replication", facts.role)),
        Err(error) => error,
    };
    let finding = Finding::new(Level::Critical, WHAT, error.to_string());
    match error {
        ReplicationError::Access(AccessError::AuthenticationFailed { message, .. })
            if !message.contains("password") =>
        {
            hba_line(facts, "replication").into_iter().fold(finding, Finding::mended_by)
        }
        ReplicationError::Access(AccessError::AuthenticationFailed { message, .. }) => {
            let_in(facts, message).into_iter().fold(finding, Finding::mended_by)
        }
        // The privilege is a finding of its own; whether a line lets us in shows once that is mended.
        ReplicationError::Access(AccessError::MissingGrant { .. }) => {
            finding.mended_by(Mend::Sql(Grant::Replication.sql_that_mends(&facts.role, server.version)))
        }
        _ => finding,
    }
}

fn privilege(facts: &Facts, server: &Server, grant: Grant, granted: bool) -> Finding {
    let what = format!("may {}", grant.what());
    if granted {
        return Finding::new(Level::Ok, what, "yes");
    }
    let sql = grant.sql_that_mends(&facts.role, server.version);
    if matches!(grant, Grant::SetSyncNames | Grant::ReloadConfiguration) {
        let advice = format!("`walship sync` prints the SQL instead of running it. To let it: {sql}");
        return Finding::new(Level::Ok, what, "no").mended_by(Mend::Advice(advice));
    }
    let level = match grant {
        Grant::Replication | Grant::BackupStart | Grant::BackupStop | Grant::Promote => Level::Critical,
        _ => Level::Warning,
    };
    Finding::new(level, what, "no").mended_by(Mend::Sql(sql))
}
