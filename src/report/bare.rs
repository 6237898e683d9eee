//! Lag straight from a PostgreSQL, without a sidecar.
//!
//! Bytes are known as far as the server and our role's grants go. Time is known in one case only: a standby that
//! lacks nothing is zero behind. PostgreSQL's own `*_lag` columns and replay timestamps tell the age of something
//! else, and on an idle primary they grow or vanish.

use std::time::Duration;

use super::lag::{Behind, LagReport, Link, StandbyLag};
use super::threshold::Amount;
use crate::pg::Lsn;
use crate::pg::sql::server::{WalPositions, Walsender};
use crate::pg::sql::walreceiver::Walreceiver;
use crate::pg::sql::{Grant, Sql, SqlError};

/// A walsender that has nothing to send speaks after half of `wal_sender_timeout` and is asked after half of
/// `wal_receiver_timeout`, 30 s by default each; so this much silence is more than idleness.
const SILENCE_LIMIT: Duration = Duration::from_secs(40);

/// How far the standbys of this server are behind, or itself when it is one. `name` is what a standby is called.
pub async fn lag(sql: &Sql, name: &str) -> Result<LagReport, SqlError> {
    // Positions after walsenders: so that none of them can be ahead of the end that it is measured against.
    let walsenders = sql.walsenders().await?;
    let positions = sql.wal_positions().await?;
    let mut report = match positions {
        WalPositions::Primary { flushed, .. } => of_primary(flushed, &walsenders),
        WalPositions::Standby { received, replayed, .. } => {
            let walreceiver = sql.walreceiver().await?;
            of_standby(name, received, replayed, walreceiver.as_ref())
        }
    };
    if !sql.has(Grant::ReadAllStats).await? {
        let mend = Grant::ReadAllStats.sql_that_mends(sql.role(), sql.version());
        report.notes.push(format!(
            "the role {} may not see the details of replication connections; a superuser grants it with: {mend}",
            sql.role()
        ));
    }
    Ok(report)
}

fn of_primary(end: Lsn, walsenders: &[Walsender]) -> LagReport {
    let standbys = walsenders.iter().filter(|walsender| !is_backup(walsender)).map(|walsender| StandbyLag {
        name: walsender_name(walsender),
        link: Link::Up(None),
        ship: behind(end, walsender.sent),
        flush: behind(end, walsender.flushed),
        replay: behind(end, walsender.replayed),
    });
    LagReport { standbys: standbys.collect(), ..LagReport::default() }
}

fn is_backup(walsender: &Walsender) -> bool {
    walsender.state.as_deref() == Some("backup")
}

fn walsender_name(walsender: &Walsender) -> String {
    match walsender.application_name.as_deref() {
        None | Some("") => format!("process {}", walsender.process),
        Some(name) => name.to_owned(),
    }
}

fn behind(end: Lsn, position: Option<Lsn>) -> Behind {
    let Some(position) = position else { return Behind::UNKNOWN };
    match end.bytes_since(position) {
        0 => Behind { bytes: Amount::Known(0), time: Amount::Known(Duration::ZERO) },
        bytes => Behind { bytes: Amount::Known(bytes), time: Amount::Unknown },
    }
}

fn of_standby(
    name: &str,
    received: Option<Lsn>,
    replayed: Option<Lsn>,
    walreceiver: Option<&Walreceiver>,
) -> LagReport {
    let link = walreceiver.map_or(Link::Cut(None), link);
    let end = walreceiver.and_then(|walreceiver| walreceiver.primary_end).max(received).max(replayed);
    let known = |position: Option<Lsn>| end.map_or(Behind::UNKNOWN, |end| behind(end, position));
    let stage = |position: Option<Lsn>| match (link, known(position)) {
        (Link::Up(_), behind) => behind,
        // What lies beyond the last known end nobody knows; what lies below it still counts.
        (Link::Cut(age), known) => Behind {
            bytes: match known.bytes {
                Amount::Known(bytes) | Amount::AtLeast(bytes) if bytes > 0 => Amount::AtLeast(bytes),
                _ => Amount::Unknown,
            },
            time: age.map_or(Amount::Unknown, Amount::AtLeast),
        },
    };
    let written = walreceiver.and_then(|walreceiver| walreceiver.written);
    let standby = StandbyLag {
        name: name.to_owned(),
        link,
        ship: stage(written.max(received)),
        flush: stage(received),
        replay: stage(replayed),
    };
    LagReport { standbys: vec![standby], ..LagReport::default() }
}

/// Without a grant the walreceiver's row is there and its details are not: then nobody can say whether it is heard.
fn link(walreceiver: &Walreceiver) -> Link {
    match walreceiver.last_message_age {
        Some(age) if walreceiver.is_streaming && age <= SILENCE_LIMIT => Link::Up(Some(age)),
        age => Link::Cut(age),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::threshold::{Level, Limits};

    fn walsender(name: Option<&str>, lsn: Option<u64>) -> Walsender {
        Walsender {
            process: 42,
            application_name: name.map(str::to_owned),
            state: Some("streaming".to_owned()),
            sync_state: None,
            sent: lsn.map(Lsn),
            written: lsn.map(Lsn),
            flushed: lsn.map(Lsn),
            replayed: lsn.map(Lsn),
            backend_xmin: None,
        }
    }

    fn walreceiver(age_seconds: u64) -> Walreceiver {
        Walreceiver {
            is_streaming: true,
            written: Some(Lsn(100)),
            primary_end: Some(Lsn(150)),
            last_message_age: Some(Duration::from_secs(age_seconds)),
        }
    }

    #[test]
    fn a_primarys_walsenders() {
        let mut backup = walsender(Some("pg_basebackup"), None);
        backup.state = Some("backup".to_owned());
        let report =
            of_primary(Lsn(100), &[walsender(Some("a"), Some(100)), walsender(Some("b"), Some(60)), backup]);
        let replay: Vec<Behind> = report.standbys.iter().map(|standby| standby.replay).collect();
        assert_eq!(
            replay,
            [
                Behind { bytes: Amount::Known(0), time: Amount::Known(Duration::ZERO) },
                Behind { bytes: Amount::Known(40), time: Amount::Unknown },
            ]
        );
        assert_eq!(report.level(&Limits::default()), Level::Ok);
        let seconds = Limits::new(Some("30s".parse().unwrap()), None).unwrap();
        assert_eq!(report.level(&seconds), Level::Unknown, "seconds were asked for and nobody knows them");
    }

    #[test]
    fn what_the_role_may_not_see_is_unknown() {
        let report = of_primary(Lsn(100), &[walsender(None, None)]);
        assert_eq!(report.standbys[0].name, "process 42");
        assert_eq!(report.standbys[0].flush, Behind::UNKNOWN);
        assert_eq!(report.level(&Limits::default()), Level::Unknown);
        assert_eq!(of_primary(Lsn(100), &[]).level(&Limits::default()), Level::Unknown, "no standby");
    }

    #[test]
    fn a_standby_measures_itself_against_the_last_known_end() {
        let lag = |walreceiver: Option<&Walreceiver>| {
            of_standby("db2", Some(Lsn(100)), Some(Lsn(80)), walreceiver).standbys.remove(0)
        };
        let fresh = lag(Some(&walreceiver(20)));
        assert_eq!((fresh.flush.bytes, fresh.replay.bytes), (Amount::Known(50), Amount::Known(70)));
        let silent = lag(Some(&walreceiver(50)));
        let at_least = Amount::AtLeast(Duration::from_secs(50));
        assert_eq!(silent.replay, Behind { bytes: Amount::AtLeast(70), time: at_least });
        let gone = lag(None);
        assert_eq!(gone.flush, Behind::UNKNOWN, "it has all that is known, which proves nothing");
        assert_eq!(gone.replay, Behind { bytes: Amount::AtLeast(20), time: Amount::Unknown });
        assert_eq!(gone.level(&Limits::default()), Level::Unknown);
    }
}
