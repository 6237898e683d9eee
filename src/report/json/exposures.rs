//! The exposure log for programs: one way only.

use serde::Serialize;

use crate::clock::Time;
use crate::pg::{Lsn, TimelineId};
use crate::store::{Exposure, Exposures};

#[derive(Serialize)]
struct ExposuresJson<'a> {
    /// How many older ones are no longer kept.
    forgotten: u64,
    exposures: Vec<ExposureJson<'a>>,
}

#[derive(Serialize)]
struct ExposureJson<'a> {
    number: u64,
    policy: &'a str,
    reason: &'a str,
    missing: &'a [String],
    timeline: TimelineId,
    from_lsn: Lsn,
    /// `null` while it is open, as are the others that tell of its end.
    to_lsn: Option<Lsn>,
    bytes: Option<u64>,
    opened_at: Time,
    closed_at: Option<Time>,
    closed_reason: Option<&'a str>,
}

/// The log as indented JSON with a line end.
pub fn exposures(log: &Exposures) -> Result<String, serde_json::Error> {
    let exposures = log.windows.iter().map(ExposureJson::from).collect();
    let mut text =
        serde_json::to_string_pretty(&ExposuresJson { forgotten: log.forgotten.windows, exposures })?;
    text.push('\n');
    Ok(text)
}

impl<'a> From<&'a Exposure> for ExposureJson<'a> {
    fn from(window: &'a Exposure) -> ExposureJson<'a> {
        let closed = window.closed.as_ref();
        ExposureJson {
            number: window.number,
            policy: &window.policy,
            reason: &window.reason,
            missing: &window.missing,
            timeline: window.timeline,
            from_lsn: window.from_lsn,
            to_lsn: closed.map(|closed| closed.to_lsn),
            bytes: closed.map(|closed| closed.bytes),
            opened_at: window.opened_at.into(),
            closed_at: closed.map(|closed| closed.at.into()),
            closed_reason: closed.map(|closed| closed.reason.as_str()),
        }
    }
}
