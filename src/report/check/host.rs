//! This host: the data directory, the account, the store, certificates, the address for peers.

use super::{Certificates, Facts, Finding, Host, Listen, Mend, Space};
use crate::clock::WallTime;
use crate::pg::version;
use crate::report::threshold::Level;
use crate::report::units;
use crate::report::warnings::CERTIFICATE_NOTICE_SECONDS;

/// A store with less room is as good as full.
const FREE_BYTES_MIN: u64 = 256 << 20;

/// Less of the file system than this is worth a warning.
const FREE_PERCENT_MIN: u64 = 5;

pub fn evaluate(facts: &Facts) -> Vec<Finding> {
    let host = &facts.host;
    let mut findings = vec![data_directory(host), account(facts), store(host)];
    findings.extend(host.space.map(space));
    findings.extend(certificates(host, facts.taken_at));
    findings.push(listen(host));
    findings
}

fn data_directory(host: &Host) -> Finding {
    const WHAT: &str = "data directory";
    let path = host.data_directory.display();
    let wrong = |found: String, advice: &str| {
        Finding::new(Level::Critical, WHAT, found).mended_by(Mend::Advice(advice.to_owned()))
    };
    match &host.data_version {
        Err(reason) => {
            let advice =
                "Set postgres.data_directory to PostgreSQL's data directory, and run walship as its owner.";
            return wrong(reason.clone(), advice);
        }
        Ok(major) => {
            if let Err(error) = version::require_supported_major(&host.data_directory, *major) {
                return wrong(error.to_string(), error.hint());
            }
        }
    }
    match host.is_servers {
        Some(true) => Finding::new(Level::Ok, WHAT, path.to_string()),
        Some(false) => {
            let advice = "Set postgres.data_directory to what `SHOW data_directory` says, or correct postgres.conninfo.";
            wrong(format!("{path} is not the one of the PostgreSQL that answers"), advice)
        }
        None => {
            Finding::new(Level::Unknown, WHAT, format!("{path}; whether it is the server's is not known"))
        }
    }
}

fn account(facts: &Facts) -> Finding {
    const WHAT: &str = "system account";
    match &facts.host.owner {
        None => Finding::new(Level::Unknown, WHAT, "the owner of the data directory is not known"),
        Some(owner) if *owner == facts.account => Finding::new(Level::Ok, WHAT, owner.as_str()),
        Some(owner) => {
            let found = format!("{}, but the data directory is {owner}'s", facts.account);
            Finding::new(Level::Critical, WHAT, found).mended_by(Mend::Advice(format!(
                "Run walship as {owner}, or as root, which then becomes {owner}."
            )))
        }
    }
}

fn store(host: &Host) -> Finding {
    let path = host.store.display();
    if host.store_is_inside {
        return Finding::new(Level::Critical, "store", format!("{path} is inside the data directory"))
            .mended_by(Mend::Advice(
                "Set store to a folder elsewhere: pg_rewind trips over foreign files.".to_owned(),
            ));
    }
    match &host.store_problem {
        None => Finding::new(Level::Ok, "store", path.to_string()),
        Some(problem) => {
            Finding::new(Level::Critical, "store", format!("{path}: {problem}")).mended_by(Mend::Advice(
                "Make the folder with `walship init`, as the owner of the data directory.".to_owned(),
            ))
        }
    }
}

fn space(space: Space) -> Finding {
    const WHAT: &str = "room for the store";
    let shared = if space.is_shared { ", on the file system of PostgreSQL's data" } else { "" };
    let (free, total) = (units::size(space.free_bytes), units::size(space.total_bytes));
    let found = format!("{free} of {total} are free{shared}");
    let little =
        u128::from(space.free_bytes) * 100 < u128::from(space.total_bytes) * u128::from(FREE_PERCENT_MIN);
    let level = match (space.free_bytes < FREE_BYTES_MIN, little) {
        (true, _) => Level::Critical,
        (false, true) => Level::Warning,
        (false, false) => return Finding::new(Level::Ok, WHAT, found),
    };
    let advice = "Free some room, or move the store to a file system of its own.";
    Finding::new(level, WHAT, found).mended_by(Mend::Advice(advice.to_owned()))
}

fn certificates(host: &Host, now: WallTime) -> Vec<Finding> {
    match &host.certificates {
        Err(problem) => vec![
            Finding::new(Level::Critical, "certificate", problem.what.clone())
                .mended_by(Mend::Advice(problem.hint.clone())),
        ],
        Ok(Certificates { expires, authority_expires }) => vec![
            expiry(
                "certificate",
                *expires,
                now,
                "Renew it where `walship init` ran, and give it to this node.",
            ),
            expiry(
                "certificate of the CA",
                *authority_expires,
                now,
                "Make a new CA, and invite every node again.",
            ),
        ],
    }
}

fn expiry(what: &str, expires: WallTime, now: WallTime, advice: &str) -> Finding {
    let left = expires.seconds_since(now);
    let (level, verb) = match left {
        0.0 => (Level::Critical, "ended on"),
        left if left < CERTIFICATE_NOTICE_SECONDS => (Level::Warning, "ends soon, on"),
        _ => return Finding::new(Level::Ok, what, format!("until {}", expires.rfc3339())),
    };
    Finding::new(level, what, format!("{verb} {}", expires.rfc3339()))
        .mended_by(Mend::Advice(advice.to_owned()))
}

fn listen(host: &Host) -> Finding {
    const WHAT: &str = "address for peers";
    match &host.listen {
        Listen::Free(address) => Finding::new(Level::Ok, WHAT, format!("{address} is free")),
        Listen::Ours(address) => Finding::new(Level::Ok, WHAT, format!("{address} is our sidecar's")),
        Listen::Refused(address, reason) => {
            let port = address.rsplit(':').next().unwrap_or_default();
            Finding::new(Level::Critical, WHAT, format!("{address}: {reason}"))
                .mended_by(Mend::Command(format!("ss -ltnp 'sport = :{port}'")))
                .mended_by(Mend::Advice(
                    "End whoever listens there, or set listen to another address.".to_owned(),
                ))
        }
    }
}
