//! PostgreSQL's settings: what capture, a standby and a later rewind need.

use super::{Finding, Mend, Server};
use crate::pg::sql::server::Setting;
use crate::pg::sql::slot::WalStatus;
use crate::report::threshold::Level;
use crate::report::units;

/// Every setting that is looked at.
pub const NAMES: [&str; 13] = [
    "data_checksums",
    "full_page_writes",
    "hot_standby",
    "idle_replication_slot_timeout",
    "max_replication_slots",
    "max_slot_wal_keep_size",
    "max_wal_senders",
    "primary_slot_name",
    "wal_block_size",
    "wal_level",
    "wal_log_hints",
    "wal_receiver_status_interval",
    "wal_segment_size",
];

/// How many walsenders or slots a mend leaves free: ours, and some for whoever comes next.
const SPARE: usize = 4;

/// The slot is advanced once a minute at least; PostgreSQL's own busyness comes on top.
const SLOT_TIMEOUT_SECONDS_MIN: u64 = 300;

pub fn evaluate(server: &Server) -> Vec<Finding> {
    let settings = Settings(&server.settings);
    let mut findings = vec![
        wal_level(settings),
        room(settings, "max_wal_senders", server.walsenders, server.replication.is_ok()),
        room(settings, "max_replication_slots", server.slots, server.slot.is_some()),
        slot(server),
        switch(settings, "full_page_writes", "without it a crash tears pages, and pg_rewind refuses", false),
        slot_keep_size(settings),
        switch(
            settings,
            "hot_standby",
            "without it a standby answers nobody, so it cannot be promoted over SQL",
            true,
        ),
        status_interval(settings),
        shape(settings),
    ];
    findings.extend(slot_timeout(settings));
    let waiting = server.settings.iter().filter(|setting| setting.pending_restart);
    findings.extend(waiting.map(|setting| {
        let found = format!("{} now; postgresql.conf says otherwise", shown(setting));
        let advice = "Restart PostgreSQL, or take the change back.".to_owned();
        Finding::new(Level::Warning, setting.name.clone(), found).mended_by(Mend::Advice(advice))
    }));
    findings
}

#[derive(Clone, Copy)]
pub(super) struct Settings<'a>(pub(super) &'a [Setting]);

impl<'a> Settings<'a> {
    fn get(self, name: &str) -> Option<&'a Setting> {
        self.0.iter().find(|setting| setting.name == name)
    }

    pub(super) fn value(self, name: &str) -> Option<&'a str> {
        self.get(name).map(|setting| setting.value.as_str())
    }
}

fn not_seen(name: &str) -> Finding {
    Finding::new(Level::Unknown, name, "PostgreSQL does not show it")
}

/// A value with its unit: `64 MB`.
fn shown(setting: &Setting) -> String {
    match &setting.unit {
        Some(unit) => format!("{} {unit}", setting.value),
        None => setting.value.clone(),
    }
}

fn wal_level(settings: Settings<'_>) -> Finding {
    let Some(value) = settings.value("wal_level") else { return not_seen("wal_level") };
    let level = if value == "minimal" { Level::Critical } else { Level::Ok };
    let finding = Finding::new(level, "wal_level", value);
    match level {
        Level::Ok => finding,
        _ => {
            finding.mended_by(Mend::Setting { name: "wal_level", value: "replica".to_owned(), restart: true })
        }
    }
}

/// Whether there is room for one more of something that has a maximum; `have_ours` when ours is counted already, or
/// just fitted in.
fn room(settings: Settings<'_>, name: &'static str, used: usize, have_ours: bool) -> Finding {
    let Some(max) = settings.value(name).and_then(|value| value.parse::<usize>().ok()) else {
        return not_seen(name);
    };
    let found = format!("{max}, {used} in use");
    if used < max || (have_ours && max > 0) {
        return Finding::new(Level::Ok, name, found);
    }
    let value = (used + SPARE).to_string();
    Finding::new(Level::Critical, name, found).mended_by(Mend::Setting { name, value, restart: true })
}

fn slot(server: &Server) -> Finding {
    const WHAT: &str = "replication slot";
    let name = &server.slot_name;
    let Some(slot) = &server.slot else {
        let maker = if server.in_recovery { "a promotion" } else { "`walship primary`" };
        return Finding::new(Level::Ok, WHAT, format!("{name} is not there yet; {maker} makes it"));
    };
    let drop = || Mend::Sql(format!("SELECT pg_drop_replication_slot('{}');", name.replace('\'', "''")));
    if !slot.is_physical {
        let finding =
            Finding::new(Level::Critical, WHAT, format!("{name} is a logical slot of somebody else"));
        return finding.mended_by(Mend::Advice("Set replication.slot to another name.".to_owned()));
    }
    match slot.wal_status {
        WalStatus::None | WalStatus::Reserved | WalStatus::Extended => {
            let from =
                slot.restart_lsn.map_or_else(|| "nothing yet".to_owned(), |lsn| format!("WAL from {lsn}"));
            Finding::new(Level::Ok, WHAT, format!("{name} keeps {from}"))
        }
        WalStatus::Unreserved => Finding::new(
            Level::Critical,
            WHAT,
            format!("{name} loses its WAL at the next checkpoint: more is kept than max_slot_wal_keep_size"),
        )
        .mended_by(Mend::Advice("See why `walship run` does not drain it: `walship status`.".to_owned())),
        WalStatus::Lost => {
            Finding::new(Level::Critical, WHAT, format!("{name} has lost its WAL and is useless"))
                .mended_by(drop())
        }
    }
}

/// A switch that should be on.
fn switch(settings: Settings<'_>, name: &'static str, otherwise: &str, restart: bool) -> Finding {
    match settings.value(name) {
        None => not_seen(name),
        Some("on") => Finding::new(Level::Ok, name, "on"),
        Some(value) => Finding::new(Level::Warning, name, format!("{value}: {otherwise}"))
            .mended_by(Mend::Setting { name, value: "on".to_owned(), restart }),
    }
}

fn slot_keep_size(settings: Settings<'_>) -> Finding {
    const NAME: &str = "max_slot_wal_keep_size";
    match settings.get(NAME) {
        None => not_seen(NAME),
        Some(setting) if setting.value == "-1" => {
            let found = "unlimited: while walship is down pg_wal grows until the disk is full";
            let advice =
                "Set max_slot_wal_keep_size to what pg_wal may take while walship is down.".to_owned();
            Finding::new(Level::Ok, NAME, found).mended_by(Mend::Advice(advice))
        }
        Some(setting) => Finding::new(Level::Ok, NAME, shown(setting)),
    }
}

/// Since PostgreSQL 18; it counts from when the slot was last advanced.
fn slot_timeout(settings: Settings<'_>) -> Option<Finding> {
    const NAME: &str = "idle_replication_slot_timeout";
    let setting = settings.get(NAME)?;
    let seconds = setting.value.parse().unwrap_or(0);
    Some(match seconds {
        0 => Finding::new(Level::Ok, NAME, "off"),
        1..SLOT_TIMEOUT_SECONDS_MIN => {
            let found =
                format!("{}: PostgreSQL may let go of the WAL that walship is about to take", shown(setting));
            let mend = Mend::Setting { name: NAME, value: "0".to_owned(), restart: false };
            Finding::new(Level::Warning, NAME, found).mended_by(mend)
        }
        _ => {
            let found = format!("{}: a walship that is down for longer loses its slot", shown(setting));
            Finding::new(Level::Ok, NAME, found)
        }
    })
}

fn status_interval(settings: Settings<'_>) -> Finding {
    const NAME: &str = "wal_receiver_status_interval";
    match settings.get(NAME) {
        None => not_seen(NAME),
        Some(setting) if setting.value == "0" => {
            let found = "0: a standby tells its positions only when asked, so its lag looks worse than it is";
            let mend = Mend::Setting { name: NAME, value: "'10s'".to_owned(), restart: false };
            Finding::new(Level::Warning, NAME, found).mended_by(mend)
        }
        Some(setting) => Finding::new(Level::Ok, NAME, shown(setting)),
    }
}

/// What is fixed when a server is built or a cluster is made; a WAL page size that we can't work with is refused when
/// connecting.
fn shape(settings: Settings<'_>) -> Finding {
    const WHAT: &str = "WAL segments and pages";
    let bytes = |name| settings.value(name).and_then(|value| value.parse::<u64>().ok());
    match (bytes("wal_segment_size"), bytes("wal_block_size")) {
        (Some(segment), Some(page)) => {
            Finding::new(Level::Ok, WHAT, format!("{} and {}", units::size(segment), units::size(page)))
        }
        _ => not_seen(WHAT),
    }
}
