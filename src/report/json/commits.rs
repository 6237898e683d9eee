//! The mirror of [`Commits`].

use serde::{Deserialize, Serialize};

use super::mirror::{list, mirror, option};
use crate::clock::Time;
use crate::pg::{Levels, Lsn};
use crate::report::commits::{Commits, Exposures, PendingPolicy, Seat, SetPolicy, Setting, Window};

mirror! {
    /// What commits wait for, as programs see it.
    CommitsJson of Commits {
        policy: Option<PolicyJson> as option, option,
        pending: Option<PendingJson> as option, option,
        seats: Vec<SeatJson> as list, list,
        released: Option<LevelsJson> as option, option,
        setting: Option<SettingJson> as option, option,
        exposure: Option<WindowJson> as option, option,
        exposures: ExposuresJson,
    }
}

mirror! {
    /// What the exposures of the node come to.
    ExposuresJson of Exposures {
        windows: u64,
        closed_millis: u64,
        closed_bytes: u64,
    }
}

mirror! {
    /// An exposure that is open.
    WindowJson of Window {
        number: u64,
        opened_at: Time,
        from_lsn: Lsn,
        missing: Vec<String>,
        reason: String,
    }
}

mirror! {
    /// PostgreSQL's own side.
    SettingJson of Setting {
        standby_names: String,
        commit: String,
        names_us: bool,
    }
}

mirror! {
    /// A policy that was set.
    PolicyJson of SetPolicy {
        serial: u64,
        text: String,
        names: Vec<String>,
        stall_limit: String,
        is_async: bool,
        needed: usize,
    }
}

mirror! {
    /// One that waits for a quorum.
    PendingJson of PendingPolicy {
        policy: PolicyJson,
        stored_by: Vec<String>,
        lacking: Vec<String>,
        needed: usize,
    }
}

mirror! {
    /// A member that a policy names.
    SeatJson of Seat {
        name: String,
        part: String,
        is_connected: bool,
        at: LevelsJson,
        policy_serial: u64,
    }
}

/// A position for each level.
#[derive(Serialize, Deserialize)]
pub struct LevelsJson {
    remote_write: Option<Lsn>,
    on: Option<Lsn>,
    remote_apply: Option<Lsn>,
}

impl From<Levels<Option<Lsn>>> for LevelsJson {
    fn from(at: Levels<Option<Lsn>>) -> LevelsJson {
        LevelsJson { remote_write: at.write, on: at.flush, remote_apply: at.apply }
    }
}

impl From<LevelsJson> for Levels<Option<Lsn>> {
    fn from(json: LevelsJson) -> Levels<Option<Lsn>> {
        Levels { write: json.remote_write, flush: json.on, apply: json.remote_apply }
    }
}
