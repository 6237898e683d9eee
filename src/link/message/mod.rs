//! What sidecars say to each other, and how each message becomes a frame and back.
//!
//! Rare control messages have JSON bodies: readable in a packet dump, unknown fields ignored, so that fields can be
//! added. WAL, files and what is sent every second have fixed binary bodies. Which message may come when:
//!
//! * any connection opens with [`Hello`] from the dialling end, answered by a `Hello` or a [`Reject`]; either end
//!   may end any exchange with a `Reject`; [`Heartbeat`]s may come at any time and are never out of place;
//! * [`Purpose::Stream`] and [`Purpose::Wal`]: [`Resume`] up; then [`Timeline`], [`Wal`], [`Samples`], [`Members`],
//!   [`Standing`] and [`Kept`] policies down, and [`Ack`], [`Relayed`] and
//!   [`Feedback`] up;
//! * [`Purpose::Backup`]: [`BackupStart`] up; [`BackupPhase`] repeated, then [`BackupStarted`] and the whole listing
//!   ([`Listed`], in parts) down; when all files are here, `BackupStop` up, `BackupPhase` repeated, then
//!   [`BackupStopped`] and [`ControlFileContent`] down;
//! * [`Purpose::Files`], several at once: [`WantFile`]s up, without waiting for an answer in between, then
//!   `NoMoreFiles`; for each file, in the order in which they were asked for, [`FileBegin`], [`FileChunk`]s and
//!   [`FileEnd`] down, or [`FileGone`], then `NoMoreFiles`;
//! * [`Purpose::Sql`]: [`Message::Sql`] in both directions, until either end closes;
//! * [`Purpose::Ask`]: `Ask` up, [`Answer`] down, as often as wanted; from a node also [`VoteRequest`] up, [`Vote`] down;
//!   [`Withdrawal`] up, [`Answer`] down; `WantCertificate` up, [`KeptCertificate`] down; [`Order`] up, [`Told`] down until one
//!   of them is the outcome.

mod backup;
mod control;
mod digest;
mod election;
mod files;
mod path;
mod relayed;
mod route;
mod stream;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use backup::{BackupPhase, BackupStart, BackupStarted, BackupStopped, Listed, Phase, Tablespace};
pub use control::Branch;
pub use control::{
    Answer, Code, Forgotten, Hello, Member, MemberList, Positions, PostgresAnswer, Promise, Protection,
    Purpose, Reject, Role, StoreStart, TimelineIdentity,
};
pub use digest::Digest;
pub use election::{KeptCertificate, Order, Told, Vote, VoteRequest, Why, Withdrawal};
pub use files::{BLOCK_BYTES, ControlFileContent, FileBegin, FileChunk, FileEnd, FileGone, WantFile};
pub use path::{PathRefused, WirePath};
pub use relayed::{Relayed, RelayedList};
pub use route::{Loop, Route, Standing};
pub use stream::{Ack, Heartbeat, OpenFrame, Resume, Timeline, Wal};

use super::LinkError;
use super::frame::Frame;
use crate::policy::Kept;
use crate::vitals::{Sample, StandbyFeedback};

mod kind {
    pub const HELLO: u8 = 0x01;
    pub const REJECT: u8 = 0x02;
    pub const MEMBERS: u8 = 0x03;
    pub const ASK: u8 = 0x04;
    pub const ANSWER: u8 = 0x05;
    pub const VOTE_REQUEST: u8 = 0x06;
    pub const VOTE: u8 = 0x07;
    pub const WITHDRAWAL: u8 = 0x08;
    pub const ORDER: u8 = 0x09;
    pub const TOLD: u8 = 0x0A;
    pub const WANT_CERTIFICATE: u8 = 0x0B;
    pub const KEPT_CERTIFICATE: u8 = 0x0C;

    pub const RESUME: u8 = 0x10;
    pub const TIMELINE: u8 = 0x11;
    pub const ACK: u8 = 0x12;
    pub const HEARTBEAT: u8 = 0x13;
    pub const FEEDBACK: u8 = 0x14;
    pub const SAMPLES: u8 = 0x15;
    pub const POLICY: u8 = 0x16;
    pub const STANDING: u8 = 0x17;
    pub const RELAYED: u8 = 0x18;

    pub const BACKUP_START: u8 = 0x20;
    pub const BACKUP_PHASE: u8 = 0x21;
    pub const BACKUP_STARTED: u8 = 0x22;
    pub const LISTING: u8 = 0x23;
    pub const FILE_BEGIN: u8 = 0x24;
    pub const FILE_END: u8 = 0x25;
    pub const NO_MORE_FILES: u8 = 0x26;
    pub const BACKUP_STOP: u8 = 0x27;
    pub const BACKUP_STOPPED: u8 = 0x28;
    pub const FILE_GONE: u8 = 0x29;
    pub const WANT_FILE: u8 = 0x2A;
    pub const CONTROL_FILE: u8 = 0x2B;

    pub const WAL: u8 = 0x80;
    pub const FILE_CHUNK: u8 = 0x81;
    pub const SQL: u8 = 0x82;
}

/// Everything that can be said.
#[derive(Clone, PartialEq, Debug)]
pub enum Message {
    /// Who speaks, and what for.
    Hello(Box<Hello>),
    /// Why the sender ends this.
    Reject(Reject),
    /// All members that the primary knows, and those it knows no more, down the stream, on every change and every few seconds.
    Members(MemberList),
    /// How are you?
    Ask,
    /// So.
    Answer(Box<Answer>),
    /// A candidate asks for a vote.
    VoteRequest(VoteRequest),
    /// Here it is, or why not.
    Vote(Box<Vote>),
    /// The election is over, and nothing was committed.
    Withdrawal(Withdrawal),
    /// A command to carry out.
    Order(Order),
    /// How it goes.
    Told(Told),
    /// The certificate of a promotion is wanted.
    WantCertificate(Branch),
    /// As it is kept.
    KeptCertificate(KeptCertificate),

    /// Where the receiver's store ends.
    Resume(Resume),
    /// The timeline that the following WAL belongs to.
    Timeline(Timeline),
    /// A piece of compressed WAL.
    Wal(Wal),
    /// How far the receiver is.
    Ack(Ack),
    /// Sign of life, and where the primary is.
    Heartbeat(Heartbeat),
    /// Hot-standby feedback of the receiver's PostgreSQL (and of those behind it) for the primary.
    Feedback(StandbyFeedback),
    /// When the primary's WAL reached which position, for a receiver that missed the heartbeats of that time.
    Samples(Vec<Sample>),
    /// The acknowledgement policy, at the start and on every change: to be stored before an [`Ack`] says so.
    Policy(Box<Kept>),
    /// How the sender's own WAL comes to it, when the stream begins and at every change.
    Standing(Standing),
    /// How far the nodes are that get their WAL through the receiver: up, when they change and every second.
    Relayed(RelayedList),

    /// Begin a base backup.
    BackupStart(BackupStart),
    /// What the source is doing meanwhile.
    BackupPhase(BackupPhase),
    /// The backup has begun.
    BackupStarted(Box<BackupStarted>),
    /// A part of what there is to copy.
    Listing(Vec<Listed>),
    /// A file is wanted.
    WantFile(WantFile),
    /// A file begins.
    FileBegin(FileBegin),
    /// A part of its content.
    FileChunk(FileChunk),
    /// It is complete.
    FileEnd(FileEnd),
    /// It is no more.
    FileGone(FileGone),
    /// Nothing more is wanted on this connection; and, as the answer, everything was sent.
    NoMoreFiles,
    /// All files are here: end the backup.
    BackupStop,
    /// The backup has ended.
    BackupStopped(Box<BackupStopped>),
    /// The file that makes the copy one that can start.
    ControlFile(ControlFileContent),

    /// A piece of what PostgreSQL and a client of its say to each other.
    Sql(Bytes),
}

impl Message {
    /// The message's name, for errors and logs.
    pub fn name(&self) -> &'static str {
        match self {
            Message::Hello(_) => "Hello",
            Message::Reject(_) => "Reject",
            Message::Members(_) => "Members",
            Message::Ask => "Ask",
            Message::Answer(_) => "Answer",
            Message::VoteRequest(_) => "VoteRequest",
            Message::Vote(_) => "Vote",
            Message::Withdrawal(_) => "Withdrawal",
            Message::Order(_) => "Order",
            Message::Told(_) => "Told",
            Message::WantCertificate(_) => "WantCertificate",
            Message::KeptCertificate(_) => "KeptCertificate",
            Message::Resume(_) => "Resume",
            Message::Timeline(_) => "Timeline",
            Message::Wal(_) => "Wal",
            Message::Ack(_) => "Ack",
            Message::Heartbeat(_) => "Heartbeat",
            Message::Feedback(_) => "Feedback",
            Message::Samples(_) => "Samples",
            Message::Policy(_) => "Policy",
            Message::Standing(_) => "Standing",
            Message::Relayed(_) => "Relayed",
            Message::BackupStart(_) => "BackupStart",
            Message::BackupPhase(_) => "BackupPhase",
            Message::BackupStarted(_) => "BackupStarted",
            Message::Listing(_) => "Listing",
            Message::WantFile(_) => "WantFile",
            Message::FileBegin(_) => "FileBegin",
            Message::FileChunk(_) => "FileChunk",
            Message::FileEnd(_) => "FileEnd",
            Message::FileGone(_) => "FileGone",
            Message::NoMoreFiles => "NoMoreFiles",
            Message::BackupStop => "BackupStop",
            Message::BackupStopped(_) => "BackupStopped",
            Message::ControlFile(_) => "ControlFile",
            Message::Sql(_) => "Sql",
        }
    }

    /// The frame that says this. Fails only for a body over the limit, or one that JSON cannot hold.
    pub fn encode(self) -> Result<Frame, LinkError> {
        let name = self.name();
        match self {
            Message::Hello(hello) => json(kind::HELLO, name, &hello),
            Message::Reject(reject) => json(kind::REJECT, name, &reject),
            Message::Members(members) => json(kind::MEMBERS, name, &members),
            Message::Ask => Ok(empty(kind::ASK)),
            Message::Answer(answer) => json(kind::ANSWER, name, &answer),
            Message::VoteRequest(request) => json(kind::VOTE_REQUEST, name, &request),
            Message::Vote(vote) => json(kind::VOTE, name, &vote),
            Message::Withdrawal(withdrawal) => json(kind::WITHDRAWAL, name, &withdrawal),
            Message::Order(order) => json(kind::ORDER, name, &order),
            Message::Told(told) => json(kind::TOLD, name, &told),
            Message::WantCertificate(of) => json(kind::WANT_CERTIFICATE, name, &of),
            Message::KeptCertificate(kept) => json(kind::KEPT_CERTIFICATE, name, &kept),
            Message::Resume(resume) => json(kind::RESUME, name, &resume),
            Message::Timeline(timeline) => json(kind::TIMELINE, name, &timeline),
            Message::Wal(wal) => Ok(wal.encode(kind::WAL)),
            Message::Ack(ack) => Ok(ack.encode(kind::ACK)),
            Message::Heartbeat(heartbeat) => Ok(heartbeat.encode(kind::HEARTBEAT)),
            Message::Feedback(feedback) => Ok(stream::encode_feedback(kind::FEEDBACK, feedback)),
            Message::Samples(samples) => json(kind::SAMPLES, name, &samples),
            Message::Policy(policy) => json(kind::POLICY, name, &policy),
            Message::Standing(standing) => json(kind::STANDING, name, &standing),
            Message::Relayed(nodes) => json(kind::RELAYED, name, &nodes),
            Message::BackupStart(start) => json(kind::BACKUP_START, name, &start),
            Message::BackupPhase(phase) => json(kind::BACKUP_PHASE, name, &phase),
            Message::BackupStarted(started) => json(kind::BACKUP_STARTED, name, &started),
            Message::Listing(listed) => json(kind::LISTING, name, &listed),
            Message::WantFile(want) => Ok(want.encode(kind::WANT_FILE)),
            Message::FileBegin(begin) => Ok(begin.encode(kind::FILE_BEGIN)),
            Message::FileChunk(chunk) => Ok(chunk.encode(kind::FILE_CHUNK)),
            Message::FileEnd(end) => Ok(end.encode(kind::FILE_END)),
            Message::FileGone(gone) => Ok(gone.encode(kind::FILE_GONE)),
            Message::NoMoreFiles => Ok(empty(kind::NO_MORE_FILES)),
            Message::BackupStop => Ok(empty(kind::BACKUP_STOP)),
            Message::BackupStopped(stopped) => json(kind::BACKUP_STOPPED, name, &stopped),
            Message::ControlFile(content) => Ok(content.encode(kind::CONTROL_FILE)),
            Message::Sql(body) => Ok(Frame { kind: kind::SQL, body, ..Frame::default() }),
        }
    }

    /// What a frame that was read says.
    pub fn decode(frame: Frame) -> Result<Message, LinkError> {
        match frame.kind {
            kind::HELLO => {
                Hello::check_protocol(&frame.body)?;
                from_json("Hello", frame).map(|hello| Message::Hello(Box::new(hello)))
            }
            kind::REJECT => from_json("Reject", frame).map(Message::Reject),
            kind::MEMBERS => from_json("Members", frame).map(Message::Members),
            kind::ASK => Ok(Message::Ask),
            kind::ANSWER => from_json("Answer", frame).map(|answer| Message::Answer(Box::new(answer))),
            kind::VOTE_REQUEST => from_json("VoteRequest", frame).map(Message::VoteRequest),
            kind::VOTE => from_json("Vote", frame).map(|vote| Message::Vote(Box::new(vote))),
            kind::WITHDRAWAL => from_json("Withdrawal", frame).map(Message::Withdrawal),
            kind::ORDER => from_json("Order", frame).map(Message::Order),
            kind::TOLD => from_json("Told", frame).map(Message::Told),
            kind::WANT_CERTIFICATE => from_json("WantCertificate", frame).map(Message::WantCertificate),
            kind::KEPT_CERTIFICATE => from_json("KeptCertificate", frame).map(Message::KeptCertificate),
            kind::RESUME => from_json("Resume", frame).map(Message::Resume),
            kind::TIMELINE => from_json("Timeline", frame).map(Message::Timeline),
            kind::WAL => Wal::decode(frame).map(Message::Wal),
            kind::ACK => Ack::decode(frame).map(Message::Ack),
            kind::HEARTBEAT => Heartbeat::decode(frame).map(Message::Heartbeat),
            kind::FEEDBACK => stream::decode_feedback(frame).map(Message::Feedback),
            kind::SAMPLES => from_json("Samples", frame).map(Message::Samples),
            kind::POLICY => from_json("Policy", frame).map(|policy| Message::Policy(Box::new(policy))),
            kind::STANDING => from_json("Standing", frame).map(Message::Standing),
            kind::RELAYED => from_json("Relayed", frame).map(Message::Relayed),
            kind::BACKUP_START => from_json("BackupStart", frame).map(Message::BackupStart),
            kind::BACKUP_PHASE => from_json("BackupPhase", frame).map(Message::BackupPhase),
            kind::BACKUP_STARTED => {
                from_json("BackupStarted", frame).map(|started| Message::BackupStarted(Box::new(started)))
            }
            kind::LISTING => from_json("Listing", frame).map(Message::Listing),
            kind::WANT_FILE => WantFile::decode(frame).map(Message::WantFile),
            kind::FILE_BEGIN => FileBegin::decode(frame).map(Message::FileBegin),
            kind::FILE_CHUNK => FileChunk::decode(frame).map(Message::FileChunk),
            kind::FILE_END => FileEnd::decode(frame).map(Message::FileEnd),
            kind::FILE_GONE => FileGone::decode(frame).map(Message::FileGone),
            kind::NO_MORE_FILES => Ok(Message::NoMoreFiles),
            kind::BACKUP_STOP => Ok(Message::BackupStop),
            kind::BACKUP_STOPPED => {
                from_json("BackupStopped", frame).map(|stopped| Message::BackupStopped(Box::new(stopped)))
            }
            kind::CONTROL_FILE => Ok(Message::ControlFile(ControlFileContent(frame.body))),
            kind::SQL => Ok(Message::Sql(frame.body)),
            kind => Err(LinkError::UnknownKind { kind }),
        }
    }
}

fn empty(kind: u8) -> Frame {
    Frame { kind, ..Frame::default() }
}

fn json(kind: u8, message: &'static str, content: &impl Serialize) -> Result<Frame, LinkError> {
    match serde_json::to_vec(content) {
        Ok(body) => Ok(Frame { kind, body: body.into(), ..Frame::default() }),
        Err(e) => Err(LinkError::Malformed { message, reason: e.to_string() }),
    }
}

fn from_json<T: DeserializeOwned>(message: &'static str, frame: Frame) -> Result<T, LinkError> {
    serde_json::from_slice(&frame.body).map_err(|e| LinkError::Malformed { message, reason: e.to_string() })
}

/// Takes the fixed fields off the front of a body.
fn take_fields<const N: usize>(message: &'static str, body: &mut Bytes) -> Result<[u8; N], LinkError> {
    let Some(fields) = body.first_chunk::<N>().copied() else {
        let reason = format!("{} bytes, at least {N} are needed", body.len());
        return Err(LinkError::Malformed { message, reason });
    };
    bytes::Buf::advance(body, N);
    Ok(fields)
}

/// A 64-bit number as text in JSON, because most readers of JSON cut numbers at 53 bits.
mod text_u64 {
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(number: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(number)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The same for one that may be unknown.
mod optional_text_u64 {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<S: Serializer>(number: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
        number.map(|number| number.to_string()).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| text.parse().map_err(serde::de::Error::custom)).transpose()
    }
}

#[cfg(test)]
mod tests;
