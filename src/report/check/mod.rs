//! What `walship check` finds: each thing that must be so, whether it is, and what mends it.
//!
//! [`gather`] looks and changes nothing; [`evaluate`] judges what was seen, without I/O.

mod access;
pub mod gather;
mod host;
pub mod remedy;
mod rewind;
mod settings;
mod sidecar;

use std::path::PathBuf;

use super::Status;
use super::threshold::Level;
use crate::clock::WallTime;
use crate::pg::conninfo::Endpoint;
use crate::pg::replication::ReplicationError;
use crate::pg::sql::server::Setting;
use crate::pg::sql::slot::Slot;
use crate::pg::sql::{Grant, ServerVersion, SqlError};

/// One thing that was looked at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// How bad it is.
    pub level: Level,
    /// What was looked at.
    pub what: String,
    /// What was found.
    pub found: String,
    /// What mends it, all of it, in this order; advice when nothing is wrong.
    pub mends: Vec<Mend>,
}

/// A step that mends something.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Mend {
    /// SQL about roles and grants for a superuser: on the primary, because a standby takes no writes.
    Sql(String),
    /// `ALTER SYSTEM` for a superuser, on this very server.
    Setting {
        /// The setting.
        name: &'static str,
        /// Its value, as SQL has it.
        value: String,
        /// Whether PostgreSQL must be restarted for it.
        restart: bool,
    },
    /// A command for PostgreSQL's account on this host.
    Command(String),
    /// Something else, as a sentence.
    Advice(String),
}

/// All that was seen.
#[derive(Debug)]
pub struct Facts {
    /// When.
    pub taken_at: WallTime,
    /// As whom walship logs in to PostgreSQL.
    pub role: String,
    /// In which database.
    pub database: String,
    /// Where PostgreSQL is.
    pub endpoint: Endpoint,
    /// The system account that walship runs as.
    pub account: String,
    /// What PostgreSQL says, or why it says nothing.
    pub server: Result<Server, SqlError>,
    /// What this host says.
    pub host: Host,
    /// What our sidecar says.
    pub sidecar: Sidecar,
}

/// What our sidecar says of itself.
#[derive(Debug)]
pub enum Sidecar {
    /// It does not run.
    Down,
    /// It runs.
    Up(Box<Status>),
    /// It runs and gives no status, and why.
    Silent(String),
}

/// What PostgreSQL says.
#[derive(Debug)]
pub struct Server {
    /// Its version.
    pub version: ServerVersion,
    /// True for a standby.
    pub in_recovery: bool,
    /// What our role may do.
    pub grants: Vec<(Grant, bool)>,
    /// Whether a replication connection can be made.
    pub replication: Result<(), ReplicationError>,
    /// Those settings of [`settings::NAMES`] that this version has and our role may see.
    pub settings: Vec<Setting>,
    /// How many walsenders run.
    pub walsenders: usize,
    /// How many replication slots there are.
    pub slots: usize,
    /// The name of our slot.
    pub slot_name: String,
    /// Our slot; none before `walship primary` made it.
    pub slot: Option<Slot>,
    /// The setting data_directory; none when our role may not see it.
    pub data_directory: Option<PathBuf>,
}

/// What this host says.
#[derive(Debug)]
pub struct Host {
    /// The data directory as configured.
    pub data_directory: PathBuf,
    /// The major version in its `PG_VERSION`, or why it could not be read.
    pub data_version: Result<u32, String>,
    /// Whether it is the same folder as PostgreSQL's data_directory; none when that is not known.
    pub is_servers: Option<bool>,
    /// The name or number of the account that owns it.
    pub owner: Option<String>,
    /// The store's folder.
    pub store: PathBuf,
    /// Whether the store is, or would be, inside the data directory.
    pub store_is_inside: bool,
    /// Why the store could not be written to.
    pub store_problem: Option<String>,
    /// Whether this node is one already: its store has a state; or what is wrong with that.
    pub has_state: Result<bool, String>,
    /// The file system that the store is on.
    pub space: Option<Space>,
    /// The node's certificate, or what is wrong with it.
    pub certificates: Result<Certificates, Problem>,
    /// The address for peers.
    pub listen: Listen,
    /// Whether pg_rewind is among PostgreSQL's programs, or why those were not found.
    pub has_rewind: Result<bool, String>,
}

/// A file system's room.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Space {
    /// All of it.
    pub total_bytes: u64,
    /// What we may still use.
    pub free_bytes: u64,
    /// Whether PostgreSQL's data is on the same one.
    pub is_shared: bool,
}

/// How long certificates last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Certificates {
    /// The node's.
    pub expires: WallTime,
    /// The CA's.
    pub authority_expires: WallTime,
}

/// Something that is wrong, and what to do about it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    /// What is wrong.
    pub what: String,
    /// A sentence with the next step.
    pub hint: String,
}

/// The state of the address that peers connect to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Listen {
    /// Nobody listens there.
    Free(String),
    /// Our own sidecar does.
    Ours(String),
    /// It cannot be listened on, and why.
    Refused(String, String),
}

impl Finding {
    fn new(level: Level, what: impl Into<String>, found: impl Into<String>) -> Finding {
        Finding { level, what: what.into(), found: found.into(), mends: Vec::new() }
    }

    fn mended_by(mut self, mend: Mend) -> Finding {
        self.mends.push(mend);
        self
    }
}

impl Mend {
    /// `ALTER SYSTEM` as SQL; none for what is no setting.
    pub fn alter_system(&self) -> Option<String> {
        match self {
            Mend::Setting { name, value, .. } => Some(format!("ALTER SYSTEM SET {name} = {value};")),
            _ => None,
        }
    }
}

/// Judges everything that was seen.
pub fn evaluate(facts: &Facts) -> Vec<Finding> {
    let mut findings = access::evaluate(facts);
    if let Ok(server) = &facts.server {
        findings.extend(settings::evaluate(server));
        findings.push(rewind::evaluate(server, &facts.host));
    }
    findings.extend(host::evaluate(facts));
    findings.extend(sidecar::evaluate(facts));
    findings
}

/// The worst of the findings.
pub fn worst(findings: &[Finding]) -> Level {
    findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Unknown)
}

#[cfg(test)]
mod tests {
    use super::remedy::Remedy;
    use super::*;
    use crate::pg::AccessError;
    use crate::pg::sql::slot::WalStatus;
    use crate::report::tests::status;

    const NOW: WallTime = WallTime { unix_micros: 1_800_000_000_000_000 };

    fn in_days(days: i64) -> WallTime {
        WallTime { unix_micros: NOW.unix_micros + days * 86_400_000_000 }
    }

    fn setting(name: &str, value: &str, unit: Option<&str>) -> Setting {
        let unit = unit.map(str::to_owned);
        Setting { name: name.to_owned(), value: value.to_owned(), unit, pending_restart: false }
    }

    /// Everything as it should be.
    fn good() -> Facts {
        let settings = vec![
            setting("data_checksums", "on", None),
            setting("full_page_writes", "on", None),
            setting("hot_standby", "on", None),
            setting("max_replication_slots", "10", None),
            setting("max_slot_wal_keep_size", "65536", Some("MB")),
            setting("max_wal_senders", "10", None),
            setting("wal_block_size", "8192", None),
            setting("wal_level", "replica", None),
            setting("wal_log_hints", "off", None),
            setting("wal_receiver_status_interval", "10", Some("s")),
            setting("wal_segment_size", "16777216", Some("B")),
            setting("idle_replication_slot_timeout", "0", Some("s")),
        ];
        let server = Server {
            version: ServerVersion(150_018),
            in_recovery: false,
            grants: Grant::ALL.map(|grant| (grant, true)).into(),
            replication: Ok(()),
            settings,
            walsenders: 1,
            slots: 0,
            slot_name: "walship".to_owned(),
            slot: None,
            data_directory: Some("/data".into()),
        };
        let host = Host {
            data_directory: "/data".into(),
            data_version: Ok(15),
            is_servers: Some(true),
            owner: Some("postgres".to_owned()),
            store: "/store".into(),
            store_is_inside: false,
            store_problem: None,
            has_state: Ok(false),
            space: Some(Space { total_bytes: 1 << 40, free_bytes: 1 << 39, is_shared: false }),
            certificates: Ok(Certificates { expires: in_days(700), authority_expires: in_days(3600) }),
            listen: Listen::Free("0.0.0.0:7432".to_owned()),
            has_rewind: Ok(true),
        };
        Facts {
            taken_at: NOW,
            role: "walship".to_owned(),
            database: "postgres".to_owned(),
            endpoint: Endpoint::Unix("/run/postgresql/.s.PGSQL.5432".into()),
            account: "postgres".to_owned(),
            server: Ok(server),
            host,
            sidecar: Sidecar::Down,
        }
    }

    fn server(facts: &mut Facts) -> &mut Server {
        facts.server.as_mut().unwrap()
    }

    fn set(facts: &mut Facts, name: &str, value: &str) {
        let settings = &mut server(facts).settings;
        settings.iter_mut().find(|setting| setting.name == name).unwrap().value = value.to_owned();
    }

    fn not_let_in(message: &str) -> SqlError {
        let (server, role) = ("here".to_owned(), "walship".to_owned());
        SqlError::Access(AccessError::AuthenticationFailed {
            server,
            role,
            purpose: "",
            message: message.to_owned(),
        })
    }

    /// One thing that can be wrong, how bad it is, and a part of the mend.
    type Case = (&'static str, fn(&mut Facts), Level, &'static str);

    const CASES: [Case; 38] = [
        (
            "connection",
            |facts| facts.server = Err(not_let_in("role \"walship\" does not exist")),
            Level::Critical,
            "CREATE ROLE walship LOGIN REPLICATION;",
        ),
        (
            "connection",
            |facts| facts.server = Err(not_let_in("Peer authentication failed for user \"walship\"")),
            Level::Critical,
            "sed -i '1i local postgres,replication walship peer map=walship'",
        ),
        (
            "connection",
            |facts| facts.server = Err(not_let_in("password authentication failed for user \"walship\"")),
            Level::Critical,
            "ALTER ROLE walship PASSWORD",
        ),
        (
            "connection",
            |facts| facts.server = Err(not_let_in("role \"walship\" is not permitted to log in")),
            Level::Critical,
            "ALTER ROLE walship LOGIN;",
        ),
        (
            "connection",
            |facts| {
                let (server, reason) = ("here".to_owned(), "connection refused".to_owned());
                facts.server = Err(SqlError::Access(AccessError::Unreachable { server, reason }));
            },
            Level::Critical,
            "Start PostgreSQL",
        ),
        (
            "replication connection",
            |facts| {
                let message = "no pg_hba.conf entry for replication connection".to_owned();
                let (server_name, role) = ("here".to_owned(), "walship".to_owned());
                server(facts).replication =
                    Err(ReplicationError::Access(AccessError::AuthenticationFailed {
                        server: server_name,
                        role,
                        purpose: " for replication",
                        message,
                    }));
            },
            Level::Critical,
            "1i local replication walship peer map=walship",
        ),
        (
            "may begin a base backup",
            |facts| server(facts).grants[1].1 = false,
            Level::Critical,
            "GRANT EXECUTE ON FUNCTION pg_catalog.pg_backup_start(text, boolean) TO walship;",
        ),
        (
            "may begin a base backup",
            |facts| {
                server(facts).version = ServerVersion(140_023);
                server(facts).grants[1].1 = false;
            },
            Level::Critical,
            "pg_start_backup(text, boolean, boolean)",
        ),
        (
            "may see the details of replication connections",
            |facts| server(facts).grants[6].1 = false,
            Level::Warning,
            "GRANT pg_read_all_stats TO walship;",
        ),
        ("wal_level", |facts| set(facts, "wal_level", "minimal"), Level::Critical, "wal_level = replica"),
        (
            "max_wal_senders",
            |facts| {
                set(facts, "max_wal_senders", "0");
                server(facts).walsenders = 0;
            },
            Level::Critical,
            "max_wal_senders = 4",
        ),
        (
            "max_replication_slots",
            |facts| server(facts).slots = 10,
            Level::Critical,
            "max_replication_slots = 14",
        ),
        (
            "replication slot",
            |facts| {
                server(facts).slot = Some(Slot {
                    is_physical: true,
                    restart_lsn: None,
                    wal_status: WalStatus::Lost,
                    is_active: false,
                    safe_wal_bytes: None,
                });
            },
            Level::Critical,
            "SELECT pg_drop_replication_slot('walship');",
        ),
        (
            "full_page_writes",
            |facts| set(facts, "full_page_writes", "off"),
            Level::Warning,
            "full_page_writes = on",
        ),
        (
            "rewind after a failover",
            |facts| set(facts, "data_checksums", "off"),
            Level::Warning,
            "wal_log_hints = on",
        ),
        (
            "rewind after a failover",
            |facts| facts.host.has_rewind = Ok(false),
            Level::Warning,
            "Install pg_rewind of PostgreSQL 15",
        ),
        (
            "rewind after a failover",
            |facts| facts.host.has_rewind = Err("found no programs of PostgreSQL 15".to_owned()),
            Level::Unknown,
            "postgres.bin_directory",
        ),
        (
            "rewind after a failover",
            |facts| server(facts).settings.retain(|setting| setting.name != "data_checksums"),
            Level::Unknown,
            "",
        ),
        (
            "max_slot_wal_keep_size",
            |facts| set(facts, "max_slot_wal_keep_size", "-1"),
            Level::Ok,
            "Set max_slot_wal_keep_size",
        ),
        (
            "idle_replication_slot_timeout",
            |facts| set(facts, "idle_replication_slot_timeout", "299"),
            Level::Warning,
            "idle_replication_slot_timeout = 0",
        ),
        (
            "idle_replication_slot_timeout",
            |facts| set(facts, "idle_replication_slot_timeout", "300"),
            Level::Ok,
            "",
        ),
        ("hot_standby", |facts| set(facts, "hot_standby", "off"), Level::Warning, "hot_standby = on"),
        (
            "wal_receiver_status_interval",
            |facts| set(facts, "wal_receiver_status_interval", "0"),
            Level::Warning,
            "wal_receiver_status_interval = '10s'",
        ),
        (
            "wal_level",
            |facts| server(facts).settings[7].pending_restart = true,
            Level::Warning,
            "Restart PostgreSQL",
        ),
        ("wal_level", |facts| server(facts).settings.retain(|s| s.name != "wal_level"), Level::Unknown, ""),
        (
            "data directory",
            |facts| facts.host.data_version = Err("read PG_VERSION: permission denied".to_owned()),
            Level::Critical,
            "postgres.data_directory",
        ),
        (
            "data directory",
            |facts| facts.host.is_servers = Some(false),
            Level::Critical,
            "SHOW data_directory",
        ),
        ("data directory", |facts| facts.host.is_servers = None, Level::Unknown, ""),
        (
            "system account",
            |facts| facts.account = "walship".to_owned(),
            Level::Critical,
            "Run walship as postgres",
        ),
        ("store", |facts| facts.host.store_is_inside = true, Level::Critical, "pg_rewind trips"),
        (
            "room for the store",
            |facts| {
                let space = Space { total_bytes: 1 << 40, free_bytes: 1 << 30, is_shared: true };
                facts.host.space = Some(space);
            },
            Level::Warning,
            "Free some room",
        ),
        (
            "certificate",
            |facts| {
                let certificates = Certificates { expires: in_days(12), authority_expires: in_days(3600) };
                facts.host.certificates = Ok(certificates);
            },
            Level::Warning,
            "Renew it",
        ),
        (
            "certificate",
            |facts| {
                let (what, hint) = ("read node.key: not found".to_owned(), "Run `walship init`.".to_owned());
                facts.host.certificates = Err(Problem { what, hint });
            },
            Level::Critical,
            "walship init",
        ),
        (
            "address for peers",
            |facts| facts.host.listen = Listen::Refused("0.0.0.0:7432".to_owned(), "taken".to_owned()),
            Level::Critical,
            "ss -ltnp 'sport = :7432'",
        ),
        ("sidecar", |facts| facts.host.has_state = Ok(true), Level::Critical, "walship run"),
        (
            "sidecar",
            |facts| facts.host.has_state = Err("walship.state is damaged".to_owned()),
            Level::Critical,
            "seed this node anew",
        ),
        (
            "sidecar",
            |facts| facts.sidecar = Sidecar::Silent("no answer".to_owned()),
            Level::Critical,
            "its log",
        ),
        ("sidecar", |facts| facts.sidecar = Sidecar::Up(Box::new(status())), Level::Warning, ""),
    ];

    #[test]
    fn what_is_good_needs_nothing() {
        let findings = evaluate(&good());
        let bad: Vec<&Finding> =
            findings.iter().filter(|f| f.level != Level::Ok || !f.mends.is_empty()).collect();
        assert!(bad.is_empty(), "{bad:#?}");
        assert_eq!(Remedy::of(&findings), Remedy::default());
    }

    #[test]
    fn each_thing_that_is_wrong_is_named_with_what_mends_it() {
        for (what, spoil, level, mend) in CASES {
            let mut facts = good();
            spoil(&mut facts);
            let findings = evaluate(&facts);
            let found =
                findings.iter().filter(|finding| finding.what == what).max_by_key(|finding| finding.level);
            let found = found.unwrap_or_else(|| panic!("{what} is not looked at"));
            assert_eq!(found.level, level, "{found:#?}");
            let remedy = Remedy::of(std::slice::from_ref(found));
            let steps = [remedy.sql, remedy.settings, remedy.commands, remedy.advice].concat().join("\n");
            assert!(steps.contains(mend), "{found:#?}");
            let others =
                findings.iter().filter(|finding| finding.what != what && finding.level > Level::Unknown);
            assert_eq!(others.count(), 0, "{what}: {findings:#?}");
        }
    }

    #[test]
    fn an_alarm_of_the_sidecar_is_critical() {
        let mut facts = good();
        let mut status = status();
        status.alarms.push("the store is full".to_owned());
        facts.sidecar = Sidecar::Up(Box::new(status));
        let findings = evaluate(&facts);
        assert_eq!(worst(&findings), Level::Critical);
        assert!(findings.iter().any(|finding| finding.found == "the store is full"), "{findings:#?}");
    }

    #[test]
    fn a_role_from_nothing_gets_all_grants_of_its_version() {
        let mut facts = good();
        facts.server = Err(not_let_in("role \"walship\" does not exist"));
        facts.host.data_version = Ok(14);
        let sql = Remedy::of(&evaluate(&facts)).sql;
        assert_eq!(sql.len(), Grant::of(ServerVersion(140_000)).count(), "{sql:#?}");
        assert!(sql[0].starts_with("CREATE ROLE") && sql[1].contains("pg_start_backup"), "{sql:#?}");
    }

    #[test]
    fn a_lacking_privilege_is_mended_once() {
        let mut facts = good();
        server(&mut facts).grants[0].1 = false;
        let (what, sql_that_mends) = ("stream", "ALTER ROLE walship REPLICATION;".to_owned());
        server(&mut facts).replication =
            Err(ReplicationError::Access(AccessError::MissingGrant { what, sql_that_mends }));
        let findings = evaluate(&facts);
        assert_eq!(worst(&findings), Level::Critical);
        assert_eq!(Remedy::of(&findings).sql, ["ALTER ROLE walship REPLICATION;"]);
    }
}
