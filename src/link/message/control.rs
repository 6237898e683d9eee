//! Messages about the nodes themselves: who they are, what they know, why they refuse.

use serde::{Deserialize, Serialize};

use super::{Route, optional_text_u64, text_u64};
use crate::clock::WallTime;
use crate::link::{LinkError, PROTOCOL};
use crate::pg::{Lsn, TimelineId};

/// The first message in both directions. What the speaker cannot know yet (a standby that has no copy, a reader that
/// has no store) is `None` and is then not compared; [`crate::link::handshake`] has the rules.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// [`PROTOCOL`] of the speaker; checked before anything else is read.
    pub protocol: u32,
    /// What the dialling end wants; the other end repeats it.
    pub purpose: Purpose,
    /// Version of walship, for the logs.
    pub version: String,
    /// The node's name; for a node or reader of ours, the one in its certificate.
    pub node: String,
    /// What the node is now.
    pub role: Role,
    /// `system_identifier` of the cluster.
    #[serde(with = "optional_text_u64", default)]
    pub system_identifier: Option<u64>,
    /// Identity of the speaker's store, made with it: another one means that everything acknowledged is gone.
    pub store_uuid: Option<String>,
    /// What it was before the store was emptied for a new copy: the same node's, but nothing that was acknowledged
    /// under these counts any more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub former_store_uuids: Vec<String>,
    /// The highest epoch that binds the node: it takes nothing from one that knows only lower ones.
    pub promised_epoch: u64,
    /// The highest epoch that the node knows to be committed.
    pub committed_epoch: u64,
    /// The timelines of the speaker's WAL, oldest first, the current one last; empty when it has none.
    pub timelines: Vec<TimelineIdentity>,
    /// Where the node is.
    pub positions: Option<Positions>,
    /// `server_version_num` of its PostgreSQL, such as 150018.
    pub postgres_version: Option<u32>,
    /// `wal_segment_size` in bytes.
    pub segment_size: Option<u64>,
    /// Where other members reach the speaker, `host:port`; `None` for one that does not listen.
    pub advertise: Option<String>,
    /// How WAL comes to the speaker; empty for one that it does not come to.
    #[serde(default)]
    pub route: Route,
    /// From where the speaker has WAL; `None` when it has none.
    #[serde(default)]
    pub kept: Option<StoreStart>,
}

/// Where a store begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StoreStart {
    /// The oldest timeline that there is WAL of.
    pub timeline: TimelineId,
    /// The first position kept of it.
    pub start_lsn: Lsn,
}

impl Hello {
    /// The Hello of somebody who is no node yet, or none at all: nothing but a name and what is wanted.
    pub fn of_stranger(node: String, role: Role, purpose: Purpose) -> Hello {
        Hello {
            protocol: PROTOCOL,
            purpose,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node,
            role,
            system_identifier: None,
            store_uuid: None,
            former_store_uuids: Vec::new(),
            promised_epoch: 0,
            committed_epoch: 0,
            timelines: Vec::new(),
            positions: None,
            postgres_version: None,
            segment_size: None,
            advertise: None,
            route: Route::default(),
            kept: None,
        }
    }

    /// Reads the version alone, since a Hello of another version may have any shape.
    pub(super) fn check_protocol(body: &[u8]) -> Result<(), LinkError> {
        #[derive(Deserialize)]
        struct Version {
            protocol: u32,
        }
        match serde_json::from_slice::<Version>(body) {
            Ok(Version { protocol: PROTOCOL }) => Ok(()),
            Ok(Version { protocol }) => Err(LinkError::Protocol { theirs: protocol }),
            Err(e) => Err(LinkError::Malformed { message: "Hello", reason: e.to_string() }),
        }
    }
}

/// What a connection is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "for", rename_all = "snake_case")]
pub enum Purpose {
    /// A member follows: WAL down, acknowledgements up. What it lacks is kept for it.
    Stream,
    /// The control connection of a base backup.
    Backup,
    /// One of the connections that carry a backup's files.
    Files {
        /// [`super::BackupStarted::backup`], as it came on the control connection of the same node.
        backup: u64,
    },
    /// WAL down as for a member, but nothing is kept for the asker and its acknowledgements do not count: the WAL
    /// that belongs to a base backup, which the backup itself holds.
    Wal,
    /// The same for a candidate, from a node whose log stands still: it lacks what that one has.
    Salvage,
    /// What the asker's `pg_rewind` needs to read at the primary's PostgreSQL; for a node alone.
    Sql,
    /// Questions.
    Ask,
    /// Something that a newer version wants.
    #[serde(other)]
    Unknown,
}

/// What a node is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Its PostgreSQL writes.
    Primary,
    /// It follows, or is on the way to.
    Standby,
    /// It may back up and ask; it never fences, votes or acknowledges.
    Reader,
    /// It was the primary until another was promoted, and follows nobody.
    Superseded,
}

impl Role {
    /// With its article, for sentences.
    pub fn name(self) -> &'static str {
        match self {
            Role::Primary => "the primary",
            Role::Standby => "a standby",
            Role::Reader => "a reader",
            Role::Superseded => "a superseded primary",
        }
    }
}

/// What a timeline is, beyond its number: two promotions can take the same one.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TimelineIdentity {
    /// The number.
    pub timeline: TimelineId,
    /// The timeline that it was branched from; `None` for the first.
    pub parent: Option<TimelineId>,
    /// Where it was branched off; [`Lsn::INVALID`] for the first.
    pub switch_lsn: Lsn,
    /// The promotion that made it; `None` when walship did not.
    pub branch: Option<Branch>,
}

/// A committed promotion.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Branch {
    /// The epoch that it committed.
    pub epoch: u64,
    /// The node that was promoted.
    pub node: String,
}

/// How far a node is, on one timeline. A primary has replayed what it flushed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Positions {
    /// The timeline they are on.
    pub timeline: TimelineId,
    /// Written in its store.
    pub written_lsn: Lsn,
    /// Durable in its store.
    pub flushed_lsn: Lsn,
    /// Replayed by its PostgreSQL; invalid when it does not answer.
    pub replayed_lsn: Lsn,
    /// Where its PostgreSQL would start to replay after a crash; invalid when unknown.
    pub restartpoint_lsn: Lsn,
}

/// Why the sender ends an exchange; the last message on a connection. Shown to the person at the receiving end.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Reject {
    /// For programs.
    pub code: Code,
    /// What is wrong, where: lower case, no full stop.
    pub message: String,
    /// What to do about it, in full sentences; may be empty.
    #[serde(default)]
    pub hint: String,
}

/// Reasons that a program may branch on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// Another version of the protocol.
    Protocol,
    /// Another database cluster.
    SystemIdentifier,
    /// Another WAL segment size.
    SegmentSize,
    /// Another major version of PostgreSQL.
    PostgresMajor,
    /// The same timeline number for another timeline.
    TimelineIdentity,
    /// The dialled node knows of a later promotion, or the dialling one does.
    Epoch,
    /// The name in the Hello is not the one in the certificate.
    Name,
    /// A reader asked for what only members may have, or said to be something else.
    Role,
    /// The purpose is unknown, or not served by a node of this role.
    Purpose,
    /// The certificate was bound to another store, or replaced by a newer one.
    Certificate,
    /// A node with this name is connected already, or the asker dialled itself.
    Duplicate,
    /// The source's own WAL comes through the asker, or through too many nodes.
    Route,
    /// The WAL asked for is not kept any more: only a new base backup helps.
    Removed,
    /// The WAL asked for is not on the source's branch: the asker has diverged.
    Diverged,
    /// Not now: the node is starting, stopping or changing roles. Try again.
    NotReady,
    /// The peer broke the protocol.
    Violation,
    /// What was asked for was begun and failed.
    Failed,
    /// A reason that a newer version has.
    #[serde(other)]
    Unknown,
}

/// One node of the cluster as the primary knows it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// Its store's identity; `None` before it has one.
    pub store_uuid: Option<String>,
    /// The certificate that it uses with that store.
    #[serde(with = "text_u64")]
    pub certificate_serial: u64,
    /// Where it is reached, `host:port`.
    pub advertise: Option<String>,
    /// What it was when last heard.
    pub role: Role,
    /// Where it was when last heard.
    pub positions: Option<Positions>,
    /// When it was last heard, by the primary's clock.
    pub last_seen: Option<WallTime>,
    /// What a person must act on there now; of the primary alone, which makes the list.
    #[serde(default)]
    pub alarms: Vec<String>,
    /// Whom it follows; `None` when it follows nobody, or nobody knows.
    #[serde(default)]
    pub upstream: Option<String>,
}

/// Who belongs to the cluster, and who does no longer.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct MemberList {
    /// All nodes, the primary first.
    pub members: Vec<Member>,
    /// Whether commits are protected at the primary; `None` when they wait for nobody.
    #[serde(default)]
    pub protection: Option<Protection>,
    /// Those that a person took off the list.
    #[serde(default)]
    pub forgotten: Vec<Forgotten>,
}

impl MemberList {
    /// Whether a node of that name was taken off the list and has not been invited again since.
    pub fn has_forgotten(&self, name: &str, certificate_serial: u64) -> bool {
        self.forgotten.iter().any(|gone| gone.name == name && certificate_serial <= gone.certificate_serial)
    }
}

/// What a primary says of its commits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Protection {
    /// They wait for the policy, and none goes on without.
    pub is_armed: bool,
    /// What was released by then.
    pub released_lsn: Lsn,
    /// When that was so, by the primary's clock.
    pub at: WallTime,
}

/// A node that was taken off the list, with the certificate that it had.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Forgotten {
    /// Its name.
    pub name: String,
    /// The serial of its certificate; with a later one it may come again.
    #[serde(with = "text_u64")]
    pub certificate_serial: u64,
    /// When that was, by the primary's clock.
    pub at: WallTime,
}

/// A node's account of itself.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Answer {
    /// Its name.
    pub node: String,
    /// What it is now.
    pub role: Role,
    /// Its store's identity.
    pub store_uuid: Option<String>,
    /// The highest epoch it has ever promised.
    pub promised_epoch: u64,
    /// The promise that it is under now.
    #[serde(default)]
    pub promise: Option<Promise>,
    /// The highest epoch it knows to be committed.
    pub committed_epoch: u64,
    /// A promotion of it was committed, and is not complete.
    #[serde(default)]
    pub is_being_promoted: bool,
    /// The highest serial of an acknowledgement policy that it knows; zero for none.
    #[serde(default)]
    pub policy_serial: u64,
    /// Of several that are equally far the highest is promoted; zero for never.
    #[serde(default)]
    pub priority: u32,
    /// Identity of its current timeline.
    pub timeline: Option<TimelineIdentity>,
    /// Where it is.
    pub positions: Option<Positions>,
    /// What its PostgreSQL says, asked just now.
    pub postgres: PostgresAnswer,
    /// Whether `postgresql.conf` lies in its data directory, so that a copy of that has one; `None` when unknown.
    #[serde(default)]
    pub holds_configuration: Option<bool>,
}

/// An election that a node has voted in, and that it does not know the outcome of.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Promise {
    /// The epoch that it promised.
    pub epoch: u64,
    /// To whom.
    pub candidate: String,
}

/// Whether a node's PostgreSQL answers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum PostgresAnswer {
    /// It answers a query.
    Up {
        /// `pg_is_in_recovery()`.
        in_recovery: bool,
        /// Its flush position, or in recovery the replay position.
        lsn: Lsn,
    },
    /// It is known not to run.
    Down {
        /// How that is known.
        reason: String,
    },
    /// It may run, but could not be asked.
    #[serde(other)]
    Unknown,
}
