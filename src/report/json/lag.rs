//! Lag for programs: one way only.

use serde::Serialize;

use crate::report::lag::{Behind, LagReport, Link, StandbyLag};
use crate::report::threshold::{Amount, Limits};

/// What `walship lag --format json` prints.
#[derive(Serialize)]
pub struct LagJson<'a> {
    level: String,
    standbys: Vec<StandbyJson<'a>>,
    /// What a person must act on now.
    alarms: &'a [String],
    /// What kept more from being known.
    notes: &'a [String],
}

#[derive(Serialize)]
struct StandbyJson<'a> {
    name: &'a str,
    level: String,
    connected: bool,
    /// Age of the last word from it, or, of a standby's own lag, from the primary.
    last_contact_seconds: Option<f64>,
    ship: BehindJson,
    flush: BehindJson,
    replay: BehindJson,
}

#[derive(Serialize)]
struct BehindJson {
    bytes: Option<u64>,
    /// Whether `bytes` is a lower bound.
    bytes_at_least: bool,
    seconds: Option<f64>,
    /// Whether `seconds` is a lower bound.
    seconds_at_least: bool,
}

/// Lag as indented JSON with a line end.
pub fn lag(report: &LagReport, limits: &Limits) -> Result<String, serde_json::Error> {
    let lag = LagJson {
        level: report.level(limits).name().to_lowercase(),
        standbys: report.standbys.iter().map(|standby| StandbyJson::of(standby, limits)).collect(),
        alarms: &report.alarms,
        notes: &report.notes,
    };
    let mut text = serde_json::to_string_pretty(&lag)?;
    text.push('\n');
    Ok(text)
}

impl<'a> StandbyJson<'a> {
    fn of(standby: &'a StandbyLag, limits: &Limits) -> StandbyJson<'a> {
        let (connected, age) = match standby.link {
            Link::Up(age) => (true, age),
            Link::Cut(age) => (false, age),
        };
        StandbyJson {
            name: &standby.name,
            level: standby.level(limits).name().to_lowercase(),
            connected,
            last_contact_seconds: age.map(|age| age.as_secs_f64()),
            ship: standby.ship.into(),
            flush: standby.flush.into(),
            replay: standby.replay.into(),
        }
    }
}

impl From<Behind> for BehindJson {
    fn from(behind: Behind) -> BehindJson {
        let (bytes, bytes_at_least) = parts(behind.bytes);
        let (time, seconds_at_least) = parts(behind.time);
        BehindJson { bytes, bytes_at_least, seconds: time.map(|time| time.as_secs_f64()), seconds_at_least }
    }
}

/// The value, and whether it is a lower bound.
fn parts<T>(amount: Amount<T>) -> (Option<T>, bool) {
    match amount {
        Amount::Known(value) => (Some(value), false),
        Amount::AtLeast(value) => (Some(value), true),
        Amount::Unknown => (None, false),
    }
}
