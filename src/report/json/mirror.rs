//! The mirror of [`Status`], field by field.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::commits::CommitsJson;
use crate::clock::Time;
use crate::pg::{Lsn, TimelineId};
use crate::report::{
    Ancestor, Backup, CatchUp, Certificate, Downstream, Feed, Hold, Member, Node, PrimaryEnd, Progress,
    Promotion, Role, Seeding, Status, StoreFacts, Traffic, Upstream,
};
use crate::vitals::{Contact, Sample};

/// Declares the mirror of a struct and the ways there and back. Each field is converted by `into`, or by the pair
/// of functions named behind it.
macro_rules! mirror {
    ($(#[$doc:meta])* $json:ident of $plain:ident { $($field:ident: $type:ty $(as $there:path, $back:path)?,)* }) => {
        $(#[$doc])*
        #[derive(Serialize, Deserialize)]
        pub struct $json { $($field: $type,)* }

        impl From<$plain> for $json {
            fn from(plain: $plain) -> $json {
                $json { $($field: mirror!(@convert plain.$field $(, $there)?),)* }
            }
        }

        impl From<$json> for $plain {
            fn from(json: $json) -> $plain {
                $plain { $($field: mirror!(@convert json.$field $(, $back)?),)* }
            }
        }
    };
    (@convert $value:expr) => { $value.into() };
    (@convert $value:expr, $function:path) => { $function($value) };
}
pub(super) use mirror;

mirror! {
    /// A status as programs see it.
    StatusJson of Status {
        taken_at: Time,
        node: NodeJson,
        store: StoreJson,
        primary: PrimaryJson,
        upstream: Option<UpstreamJson> as option, option,
        feed: Option<FeedJson> as option, option,
        downstreams: Vec<DownstreamJson> as list, list,
        members: Vec<MemberJson> as list, list,
        catching_up: Vec<CatchUpJson> as list, list,
        backups: Vec<BackupJson> as list, list,
        seeding: Option<SeedingJson> as option, option,
        commits: Option<CommitsJson> as option, option,
        certificate: Option<CertificateJson> as option, option,
        last_promotion: Option<PromotionJson> as option, option,
        alarms: Vec<String>,
        warnings: Vec<String>,
        samples: Vec<SampleJson> as list, list,
    }
}

mirror! {
    NodeJson of Node {
        name: String,
        role: RoleJson,
        advertise: Option<String> as text_or_null, or_default,
        walship_version: String,
        system_identifier: DecimalText,
        postgres_version: Option<String> as text_or_null, or_default,
        promised_epoch: u64,
        committed_epoch: u64,
        timeline: TimelineId,
    }
}

mirror! {
    StoreJson of StoreFacts {
        directory: PathBuf,
        start: Option<Lsn> as lsn_or_null, or_default,
        appended: Option<Lsn> as lsn_or_null, or_default,
        durable: Option<Lsn> as lsn_or_null, or_default,
        sealed: Option<Lsn> as lsn_or_null, or_default,
        disk_bytes: u64,
        max_bytes: Option<u64> as number_or_null, or_default,
        holds: Vec<HoldJson> as list, list,
    }
}

mirror! { HoldJson of Hold { who: String, lsn: Lsn, } }

mirror! {
    PrimaryJson of PrimaryEnd {
        contact: ContactJson,
        last_contact: Option<Time> as option, option,
        timeline: TimelineId,
        ancestors: Vec<AncestorJson> as list, list,
        flush_lsn: Option<Lsn>,
        clock: Option<Time> as option, option,
    }
}

mirror! { AncestorJson of Ancestor { timeline: TimelineId, end_lsn: Lsn, } }

mirror! {
    ProgressJson of Progress {
        timeline: Option<TimelineId>,
        shipped: Option<Lsn>,
        flushed: Option<Lsn>,
        replayed: Option<Lsn>,
    }
}

mirror! { TrafficJson of Traffic { raw_bytes: u64, wire_bytes: u64, } }

mirror! {
    UpstreamJson of Upstream {
        name: Option<String> as text_or_null, or_default,
        address: Option<String> as text_or_null, or_default,
        contact: ContactJson,
        last_contact: Option<Time> as option, option,
        traffic: TrafficJson,
        route: Vec<String>,
        from_primary: bool,
    }
}

mirror! {
    FeedJson of Feed {
        contact: ContactJson,
        last_contact: Option<Time> as option, option,
        sent: Option<Lsn>,
        flushed: Option<Lsn>,
        replayed: Option<Lsn>,
    }
}

mirror! {
    DownstreamJson of Downstream {
        name: String,
        address: String,
        via: Option<String>,
        contact: ContactJson,
        last_contact: Option<Time> as option, option,
        progress: ProgressJson,
        traffic: TrafficJson,
    }
}

mirror! {
    MemberJson of Member {
        name: String,
        role: RoleJson,
        advertise: Option<String> as text_or_null, or_default,
        upstream: Option<String>,
        progress: ProgressJson,
        last_contact: Option<Time> as option, option,
    }
}

mirror! {
    CatchUpJson of CatchUp {
        standby: String,
        behind_bytes: u64,
        bytes_per_second: Option<u64>,
        left: Option<u64> as seconds, duration,
    }
}

mirror! {
    BackupJson of Backup {
        client: String,
        phase: String,
        start_lsn: Option<Lsn> as lsn_or_null, or_default,
        done_bytes: u64,
        equal_bytes: u64,
        total_bytes: Option<u64> as number_or_null, or_default,
    }
}

mirror! {
    SeedingJson of Seeding {
        phase: String,
        done_bytes: u64,
        equal_bytes: u64,
        total_bytes: u64,
        wire_bytes: u64,
        attempts: u32,
    }
}

mirror! { PromotionJson of Promotion { epoch: u64, node: String, committed_at: Time, verdict: String, } }

mirror! { CertificateJson of Certificate { expires: Time, } }

mirror! { SampleJson of Sample { lsn: Lsn, time: Time, after_gap: bool, } }

fn seconds(duration: Option<Duration>) -> Option<u64> {
    duration.map(|duration| duration.as_secs())
}

fn duration(seconds: Option<u64>) -> Option<Duration> {
    seconds.map(Duration::from_secs)
}

pub(super) fn option<A: Into<B>, B>(value: Option<A>) -> Option<B> {
    value.map(Into::into)
}

pub(super) fn list<A: Into<B>, B>(values: Vec<A>) -> Vec<B> {
    values.into_iter().map(Into::into).collect()
}

// What is empty or zero within means that it is not known; a program is told so.

fn text_or_null(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

fn number_or_null(number: u64) -> Option<u64> {
    Some(number).filter(|number| *number > 0)
}

fn lsn_or_null(lsn: Lsn) -> Option<Lsn> {
    Some(lsn).filter(|lsn| lsn.is_valid())
}

fn or_default<T: Default>(value: Option<T>) -> T {
    value.unwrap_or_default()
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RoleJson {
    Primary,
    Standby,
    Reader,
    Superseded,
}

impl From<Role> for RoleJson {
    fn from(role: Role) -> RoleJson {
        match role {
            Role::Primary => RoleJson::Primary,
            Role::Standby => RoleJson::Standby,
            Role::Reader => RoleJson::Reader,
            Role::Superseded => RoleJson::Superseded,
        }
    }
}

impl From<RoleJson> for Role {
    fn from(role: RoleJson) -> Role {
        match role {
            RoleJson::Primary => Role::Primary,
            RoleJson::Standby => Role::Standby,
            RoleJson::Reader => Role::Reader,
            RoleJson::Superseded => Role::Superseded,
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
enum ContactJson {
    Never,
    Trying { since: Time, error: Option<String> },
    Up { since: Time },
    Stopped { since: Time, reason: String },
}

impl From<Contact> for ContactJson {
    fn from(contact: Contact) -> ContactJson {
        match contact {
            Contact::Never => ContactJson::Never,
            Contact::Trying { since, error } => ContactJson::Trying { since: since.into(), error },
            Contact::Up { since } => ContactJson::Up { since: since.into() },
            Contact::Stopped { since, reason } => ContactJson::Stopped { since: since.into(), reason },
        }
    }
}

impl From<ContactJson> for Contact {
    fn from(contact: ContactJson) -> Contact {
        match contact {
            ContactJson::Never => Contact::Never,
            ContactJson::Trying { since, error } => Contact::Trying { since: since.into(), error },
            ContactJson::Up { since } => Contact::Up { since: since.into() },
            ContactJson::Stopped { since, reason } => Contact::Stopped { since: since.into(), reason },
        }
    }
}

/// A number that is written as text.
#[derive(Clone, Copy)]
struct DecimalText(u64);

impl From<u64> for DecimalText {
    fn from(number: u64) -> DecimalText {
        DecimalText(number)
    }
}

impl From<DecimalText> for u64 {
    fn from(text: DecimalText) -> u64 {
        text.0
    }
}

impl Serialize for DecimalText {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for DecimalText {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<DecimalText, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map(DecimalText).map_err(serde::de::Error::custom)
    }
}
