//! `walship.state`: what a node must not forget, in one small file.

use std::path::Path;

use super::framed::Framed;
use super::{Announced, Branch, Fork, NewStore, StoreError, TimelineIdentity};
use crate::clock::WallTime;
use crate::durable::FileError;
use crate::pg::{Lsn, SegmentSize, TimelineId};
use crate::policy::{Kept, Policy, StallLimit};

const FORM: Framed = Framed { name: "state", version: 1 };

/// Which part a node plays.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeRole {
    /// Its PostgreSQL accepts writes.
    Primary,
    /// Its PostgreSQL replays.
    Standby,
}

/// What another node is, as far as this one knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemberRole {
    /// The one that the others follow.
    Primary,
    /// It follows.
    Standby,
    /// It was the primary until another was promoted, and has not come back as a standby.
    Superseded,
}

/// Another node of the cluster, as this node knows it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// Its store; another one under the same name is another node.
    pub store_uuid: String,
    /// Where its sidecar listens.
    pub advertise: String,
    /// What it is.
    pub role: MemberRole,
    /// The serial of the certificate it came with: the time of its issue.
    pub certificate_serial: u64,
    /// The timeline that its positions are on; `None` when it never said.
    #[serde(default)]
    pub timeline: Option<TimelineId>,
    /// Fsynced in its store, when last heard.
    pub flushed_lsn: Lsn,
    /// Where its PostgreSQL would begin to replay.
    pub restartpoint_lsn: Lsn,
    /// When it was last heard.
    pub last_heard: Option<WallTime>,
    /// It was the slowest when the store was full: its WAL is no longer kept, and it must be seeded anew.
    pub let_go: bool,
}

/// A member that was taken off the list for good. Its certificate lets nobody in any more; a newer invitation does.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Forgotten {
    /// Its name.
    pub name: String,
    /// The serial of the certificate that it had.
    pub certificate_serial: u64,
    /// When a person said so.
    pub at: WallTime,
}

/// A vote that binds this node until it knows what became of the election.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Promise {
    /// The epoch.
    pub epoch: u64,
    /// Who is to be promoted; this node itself where it is the candidate.
    pub candidate: String,
    /// Where it is asked, `host:port`.
    pub address: String,
    /// When it was given.
    pub at: WallTime,
    /// This node is a primary, whose PostgreSQL was stopped for it and is to stay so.
    pub stops_primary: bool,
    /// That PostgreSQL did not run anyway: it is not started when nothing comes of the election.
    #[serde(default)]
    pub was_down: bool,
}

/// The promotion that left this node behind, a primary.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Superseded {
    /// The epoch that was committed.
    pub epoch: u64,
    /// The node that was promoted.
    pub by: String,
    /// This node had been stopped for it, or for one before, by its own vote, and has stayed down: nothing is lost.
    #[serde(default)]
    pub handed_over: bool,
}

/// A pg_rewind that was begun on this node's data directory. Until its end PostgreSQL must not be started there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Rewind {
    /// What this node went past.
    pub fork: Fork,
    /// It has ended well, and what is left is to settle what it left as a standby. Otherwise only a new seed helps.
    pub has_ended: bool,
}

/// The state of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// Made at random with the store.
    pub store_uuid: String,
    /// What it was before it was emptied for a new copy, oldest first.
    pub former_store_uuids: Vec<String>,
    /// The cluster.
    pub system_identifier: u64,
    /// Its segment size.
    pub segment_size: SegmentSize,
    /// What the node was last; `None` before its first role.
    pub role: Option<NodeRole>,
    /// The highest epoch this node voted for.
    pub promised_epoch: u64,
    /// The highest epoch this node knows to be committed.
    pub committed_epoch: u64,
    /// An election that this node has voted in, and does not know the outcome of.
    pub promise: Option<Promise>,
    /// The promotion that left this node behind, until it has rejoined.
    pub superseded: Option<Superseded>,
    /// What the command after a change of role was told last; `None` before there was one.
    pub announced: Option<Announced>,
    /// The server's `server_version_num`, such as 150018; zero when never seen.
    pub server_version: u32,
    /// A promotion of this node that was committed, until its timeline is in the store.
    pub promoting: Option<Branch>,
    /// What this node and its PostgreSQL went past, until both are back at it: PostgreSQL is not started before.
    pub past_fork: Option<Fork>,
    /// A pg_rewind that was begun here, until this node lives as a standby.
    pub rewind: Option<Rewind>,
    /// The timelines of the store, oldest first; the last is the newest.
    pub timelines: Vec<TimelineIdentity>,
    /// The other nodes.
    pub members: Vec<Member>,
    /// Those that were nodes once: as many as a person took off the list.
    pub forgotten: Vec<Forgotten>,
    /// Where to look for the primary, beside the configured upstreams: the addresses of the join bundle.
    pub join_addresses: Vec<String>,
    /// What a commit waits for: on a primary what it does, on a standby what it was told.
    pub policy: Kept,
    /// The configuration's policy that a primary has taken over; `None` on a standby.
    pub configured: Option<Configured>,
}

/// A policy as the configuration has it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Configured {
    /// `ack`.
    pub ack: Policy,
    /// `stall_limit`.
    pub stall_limit: StallLimit,
}

/// The form on disk. Foreign: every field is checked on the way in.
#[derive(serde::Serialize, serde::Deserialize)]
struct StateFile {
    store_uuid: String,
    #[serde(default)]
    former_store_uuids: Vec<String>,
    system_identifier: String,
    segment_bytes: u64,
    role: Option<NodeRole>,
    promised_epoch: u64,
    committed_epoch: u64,
    #[serde(default)]
    promise: Option<Promise>,
    #[serde(default)]
    superseded: Option<Superseded>,
    #[serde(default)]
    announced: Option<Announced>,
    #[serde(default)]
    server_version: u32,
    #[serde(default)]
    promoting: Option<Branch>,
    #[serde(default)]
    past_fork: Option<Fork>,
    #[serde(default)]
    rewind: Option<Rewind>,
    timelines: Vec<TimelineIdentity>,
    members: Vec<Member>,
    #[serde(default)]
    forgotten: Vec<Forgotten>,
    #[serde(default)]
    join_addresses: Vec<String>,
    #[serde(default)]
    policy: Kept,
    #[serde(default)]
    configured: Option<Configured>,
}

impl State {
    pub(super) fn new(new: NewStore) -> Result<State, StoreError> {
        Ok(State {
            store_uuid: random_uuid()?,
            former_store_uuids: Vec::new(),
            system_identifier: new.system_identifier,
            segment_size: new.segment_size,
            role: None,
            promised_epoch: 0,
            committed_epoch: 0,
            promise: None,
            superseded: None,
            announced: None,
            server_version: 0,
            promoting: None,
            past_fork: None,
            rewind: None,
            timelines: Vec::new(),
            members: Vec::new(),
            forgotten: Vec::new(),
            join_addresses: Vec::new(),
            policy: Kept::default(),
            configured: None,
        })
    }

    /// The timeline that the store is on.
    pub fn newest_timeline(&self) -> Option<TimelineId> {
        self.timelines.last().map(|identity| identity.timeline)
    }

    /// The identity of a timeline that the store knows.
    pub fn identity_of(&self, timeline: TimelineId) -> Option<&TimelineIdentity> {
        self.timelines.iter().find(|identity| identity.timeline == timeline)
    }

    /// Which timeline followed `timeline`, and where; `None` for the newest.
    pub fn switch_of(&self, timeline: TimelineId) -> Option<(TimelineId, Lsn)> {
        self.timelines.iter().find_map(|next| {
            next.parent.filter(|(parent, _)| *parent == timeline).map(|(_, lsn)| (next.timeline, lsn))
        })
    }

    /// The epoch of the last WAL: that of the promotion which this node carries out, or of the one that made its newest
    /// timeline. A higher one may be known to be committed, of which nothing is here.
    pub fn epoch_of_wal(&self) -> u64 {
        let made = self.timelines.last().and_then(|identity| identity.branch.as_ref());
        self.promoting.as_ref().or(made).map_or(0, |branch| branch.epoch)
    }

    /// The epoch below which this node takes no WAL and acknowledges none.
    pub fn binding_epoch(&self) -> u64 {
        self.promise.as_ref().map_or(0, |promise| promise.epoch).max(self.committed_epoch)
    }

    /// The highest epoch that this node knows to be committed. A primary that was left behind keeps its own epoch, or others
    /// would take it for the new one; what it must not vote for, and tells who asks, is this one.
    pub fn known_epoch(&self) -> u64 {
        self.superseded.as_ref().map_or(0, |superseded| superseded.epoch).max(self.committed_epoch)
    }

    /// Takes note that an epoch was committed; a promise of that epoch or a lower one is kept with it, and a promotion of
    /// this node with a lower one will not be completed.
    pub fn learn(&mut self, epoch: u64) {
        self.committed_epoch = self.committed_epoch.max(epoch);
        self.promised_epoch = self.promised_epoch.max(self.committed_epoch);
        self.promise.take_if(|promise| promise.epoch <= self.committed_epoch);
        self.promoting.take_if(|branch| branch.epoch < self.committed_epoch);
    }

    /// Takes note that a node was promoted in the place of this one, a primary.
    pub fn leave_behind(&mut self, epoch: u64, by: String) {
        let voted = |promise: &Promise| promise.stops_primary && promise.epoch == epoch;
        let handed_over = self.promise.as_ref().is_some_and(voted)
            || self.superseded.as_ref().is_some_and(|before| before.handed_over);
        self.superseded = Some(Superseded { epoch, by, handed_over });
    }

    /// The member of that name.
    pub fn member(&self, name: &str) -> Option<&Member> {
        self.members.iter().find(|member| member.name == name)
    }

    /// Whether a node of that name was taken off the list, and none has come since.
    pub fn has_forgotten_name(&self, name: &str) -> bool {
        self.forgotten.iter().any(|gone| gone.name == name)
    }

    /// The same, of one that comes with a certificate: a newer one is a new invitation.
    pub fn has_forgotten(&self, name: &str, certificate_serial: u64) -> bool {
        self.forgotten.iter().any(|gone| gone.name == name && certificate_serial <= gone.certificate_serial)
    }
}

/// Writes the state durably.
pub(super) fn write(path: &Path, state: &State) -> Result<(), StoreError> {
    let file = StateFile {
        store_uuid: state.store_uuid.clone(),
        former_store_uuids: state.former_store_uuids.clone(),
        system_identifier: state.system_identifier.to_string(),
        segment_bytes: state.segment_size.bytes(),
        role: state.role,
        promised_epoch: state.promised_epoch,
        committed_epoch: state.committed_epoch,
        promise: state.promise.clone(),
        superseded: state.superseded.clone(),
        announced: state.announced,
        server_version: state.server_version,
        promoting: state.promoting.clone(),
        past_fork: state.past_fork,
        rewind: state.rewind,
        timelines: state.timelines.clone(),
        members: state.members.clone(),
        forgotten: state.forgotten.clone(),
        join_addresses: state.join_addresses.clone(),
        policy: state.policy.clone(),
        configured: state.configured.clone(),
    };
    FORM.write(path, &file)
}

/// Reads the state back, checking version and checksum.
pub(super) fn read(path: &Path) -> Result<State, StoreError> {
    let corrupt = |what: String| StoreError::Corrupt { path: path.to_owned(), what };
    let file: StateFile = FORM.read(path)?;
    let wrong_identifier = |_| corrupt("a bad system identifier".to_owned());
    Ok(State {
        store_uuid: file.store_uuid,
        former_store_uuids: file.former_store_uuids,
        system_identifier: file.system_identifier.parse().map_err(wrong_identifier)?,
        segment_size: SegmentSize::new(file.segment_bytes).map_err(|e| corrupt(e.to_string()))?,
        role: file.role,
        promised_epoch: file.promised_epoch,
        committed_epoch: file.committed_epoch,
        promise: file.promise,
        superseded: file.superseded,
        announced: file.announced,
        server_version: file.server_version,
        promoting: file.promoting,
        past_fork: file.past_fork,
        rewind: file.rewind,
        timelines: file.timelines,
        members: file.members,
        forgotten: file.forgotten,
        join_addresses: file.join_addresses,
        policy: file.policy,
        configured: file.configured,
    })
}

/// A random (version 4) UUID from the kernel.
pub(super) fn random_uuid() -> Result<String, StoreError> {
    let mut bytes = [0u8; 16];
    let read = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|e| FileError::new("read randomness from", Path::new("the kernel"), e.into()))?;
    assert_eq!(read, bytes.len(), "the kernel gives up to 256 bytes at once");
    bytes[6] = bytes[6] & 0x0F | 0x40;
    bytes[8] = bytes[8] & 0x3F | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok([&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Resolved;

    fn sample() -> State {
        let mut state = State::new(NewStore {
            system_identifier: u64::MAX,
            segment_size: SegmentSize::new(1 << 20).unwrap(),
        })
        .unwrap();
        let branch = Some(Branch { epoch: 2, node: "db2".into() });
        state.timelines.push(TimelineIdentity {
            timeline: TimelineId(1),
            parent: None,
            branch: branch.clone(),
        });
        let parent = Some((TimelineId(1), Lsn(77)));
        state.timelines.push(TimelineIdentity { timeline: TimelineId(3), parent, branch });
        state.members.push(Member {
            name: "db3".into(),
            store_uuid: "x".into(),
            advertise: "db3:7432".into(),
            role: MemberRole::Standby,
            certificate_serial: 10,
            timeline: Some(TimelineId(3)),
            flushed_lsn: Lsn(5),
            restartpoint_lsn: Lsn(4),
            last_heard: Some(WallTime { unix_micros: 1 }),
            let_go: false,
        });
        let at = WallTime { unix_micros: 2 };
        state.forgotten.push(Forgotten { name: "db4".into(), certificate_serial: 9, at });
        let known = ["db1", "db3"].map(str::to_owned);
        let policy =
            |serial, ack: &str| Resolved::new(serial, ack.parse().unwrap(), StallLimit(None), &known);
        state.policy = Kept { effective: Some(policy(4, "all")), pending: Some(policy(5, "any 1 (*)")) };
        let stall_limit = "1500ms".parse().unwrap();
        let fork = Fork { timeline: TimelineId(3), lsn: Lsn(80), end: Lsn(90) };
        state.past_fork = Some(fork);
        state.rewind = Some(Rewind { fork, has_ended: true });
        state.configured = Some(Configured { ack: "first 1 (db3)".parse().unwrap(), stall_limit });
        state
    }

    #[test]
    fn a_state_from_before_policies_is_read() {
        let state = sample();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("walship.state");
        write(&path, &state).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let mut body: serde_json::Value = serde_json::from_str(&text).unwrap();
        let body = body["state"].as_object_mut().unwrap();
        for later in ["policy", "configured", "forgotten", "past_fork", "rewind"] {
            assert!(body.remove(later).is_some(), "{later}");
        }
        std::fs::write(&path, FORM.frame(&serde_json::to_string_pretty(body).unwrap())).unwrap();
        assert_eq!(
            read(&path).unwrap(),
            State {
                policy: Kept::default(),
                configured: None,
                forgotten: Vec::new(),
                past_fork: None,
                rewind: None,
                ..state
            }
        );
    }

    #[test]
    fn what_is_written_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("walship.state");
        let state = sample();
        write(&path, &state).unwrap();
        assert_eq!(read(&path).unwrap(), state);
        assert_eq!(state.switch_of(TimelineId(1)), Some((TimelineId(3), Lsn(77))));
        assert_eq!(state.switch_of(TimelineId(3)), None);
        assert_eq!(state.epoch_of_wal(), 2);
        assert!(state.has_forgotten("db4", 9) && !state.has_forgotten("db4", 10));
        assert!(!state.has_forgotten("db3", 1));
    }

    #[test]
    fn a_damaged_state_is_refused_with_the_reason() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("walship.state");
        write(&path, &sample()).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let cases = [
            (text.replace("\"promised_epoch\": 0", "\"promised_epoch\": 1"), "checksum"),
            (FORM.frame("{}").replace("\"version\": 1", "\"version\": 2"), "checksum"),
            ("".to_owned(), "EOF"),
            (FORM.frame("{}"), "missing field"),
        ];
        for (text, why) in cases {
            std::fs::write(&path, text).unwrap();
            let error = read(&path).unwrap_err().to_string();
            assert!(error.contains(why) && error.contains("walship.state"), "{error}");
        }
    }

    #[test]
    fn uuids_differ() {
        let (one, two) = (random_uuid().unwrap(), random_uuid().unwrap());
        assert!(one != two && one.len() == 36 && one.as_bytes()[14] == b'4', "{one}");
    }
}
