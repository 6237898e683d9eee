//! Messages of the stream: WAL down, positions up.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use super::{Digest, TimelineIdentity, take_fields};
use crate::clock::WallTime;
use crate::link::LinkError;
use crate::link::frame::Frame;
use crate::pg::{Lsn, TimelineId};
use crate::vitals::StandbyFeedback;

/// Where the receiver's store ends, and what it needs next.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Resume {
    /// The timeline that it is on.
    pub timeline: TimelineId,
    /// The first position that it lacks.
    pub lsn: Lsn,
    /// The zstd frame that is open at its end; `None` when its end is a frame boundary, or it cannot say.
    pub frame: Option<OpenFrame>,
}

/// An unfinished zstd frame at the end of a store. A sender whose own frame starts with the same bytes goes on at
/// that byte; any other one starts a private frame at [`Resume::lsn`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct OpenFrame {
    /// Where the frame starts.
    pub start_lsn: Lsn,
    /// How many compressed bytes of it are there.
    pub bytes: u64,
    /// Of these bytes.
    pub sha256: Digest,
}

/// The timeline that the following [`Wal`] belongs to: before the first of a connection, and at every switch.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Timeline {
    /// Which one it is. The one before ends at its `switch_lsn`, and so does the WAL sent for it.
    #[serde(flatten)]
    pub identity: TimelineIdentity,
    /// Its `.history` file, byte for byte; empty for the first timeline.
    pub history: String,
}

/// Compressed WAL from the frame's LSN to `end_lsn`. Both ends are safe cuts, and the data decodes to exactly these
/// bytes when appended to what came before in the same zstd frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wal {
    /// The timeline; the one that the last [`Timeline`] named.
    pub timeline: TimelineId,
    /// Position of the first byte.
    pub start_lsn: Lsn,
    /// Position after the last byte.
    pub end_lsn: Lsn,
    /// A zstd frame begins with this data; otherwise it continues the one before.
    pub opens_frame: bool,
    /// zstd.
    pub data: Bytes,
}

const OPENS_FRAME: u8 = 1;

impl Wal {
    /// Decompressed size.
    pub fn raw_bytes(&self) -> u64 {
        self.end_lsn.bytes_since(self.start_lsn)
    }

    pub(super) fn encode(self, kind: u8) -> Frame {
        let mut fields = BytesMut::with_capacity(12);
        fields.put_u32(self.timeline.0);
        fields.put_u64(self.end_lsn.0);
        Frame {
            kind,
            flags: if self.opens_frame { OPENS_FRAME } else { 0 },
            lsn: self.start_lsn,
            fields: fields.freeze(),
            body: self.data,
        }
    }

    pub(super) fn decode(frame: Frame) -> Result<Wal, LinkError> {
        let Frame { flags, lsn: start_lsn, body: mut data, .. } = frame;
        let fields: [u8; 12] = take_fields("Wal", &mut data)?;
        let mut fields = &fields[..];
        let (timeline, end_lsn) = (TimelineId(fields.get_u32()), Lsn(fields.get_u64()));
        let malformed = |reason: String| LinkError::Malformed { message: "Wal", reason };
        if flags & !OPENS_FRAME != 0 {
            return Err(malformed(format!("flags {flags:#04x} are unknown")));
        }
        if end_lsn < start_lsn {
            return Err(malformed(format!("it ends at {end_lsn}, before its start {start_lsn}")));
        }
        Ok(Wal { timeline, start_lsn, end_lsn, opens_frame: flags & OPENS_FRAME != 0, data })
    }
}

/// How far the receiver is on `timeline`; sent at least every [`crate::link::HEARTBEAT_EVERY`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Ack {
    /// The timeline that the positions are on.
    pub timeline: TimelineId,
    /// Written in the receiver's store.
    pub written_lsn: Lsn,
    /// Durable in the receiver's store; never ahead of an fsync.
    pub flushed_lsn: Lsn,
    /// Replayed by its PostgreSQL; invalid when that does not answer.
    pub replayed_lsn: Lsn,
    /// Where its PostgreSQL would start to replay after a crash; invalid when unknown.
    pub restartpoint_lsn: Lsn,
    /// The highest serial of a policy that it has stored of those that came over this connection; zero before the first.
    pub policy_serial: u64,
    /// Its base backup is not complete, so that the WAL is of no use yet: the positions hold WAL for it, and count for no
    /// commit.
    pub is_copying: bool,
}

const IS_COPYING: u8 = 1;

impl Ack {
    pub(super) fn encode(self, kind: u8) -> Frame {
        let mut body = BytesMut::with_capacity(44);
        body.put_u32(self.timeline.0);
        for lsn in [self.written_lsn, self.flushed_lsn, self.replayed_lsn, self.restartpoint_lsn] {
            body.put_u64(lsn.0);
        }
        body.put_u64(self.policy_serial);
        let flags = if self.is_copying { IS_COPYING } else { 0 };
        Frame { kind, flags, body: body.freeze(), ..Frame::default() }
    }

    pub(super) fn decode(mut frame: Frame) -> Result<Ack, LinkError> {
        if frame.flags & !IS_COPYING != 0 {
            let reason = format!("flags {:#04x} are unknown", frame.flags);
            return Err(LinkError::Malformed { message: "Ack", reason });
        }
        let fields: [u8; 44] = take_fields("Ack", &mut frame.body)?;
        let mut fields = &fields[..];
        Ok(Ack {
            timeline: TimelineId(fields.get_u32()),
            written_lsn: Lsn(fields.get_u64()),
            flushed_lsn: Lsn(fields.get_u64()),
            replayed_lsn: Lsn(fields.get_u64()),
            restartpoint_lsn: Lsn(fields.get_u64()),
            policy_serial: fields.get_u64(),
            is_copying: frame.flags & IS_COPYING != 0,
        })
    }
}

/// A sign of life; at least every [`crate::link::HEARTBEAT_EVERY`] down a stream, idle or not. The first two are the
/// primary's own and pass through a cascade unchanged: together a [`crate::vitals::Sample`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Heartbeat {
    /// The primary's flush position; invalid where nobody knows it (a backup's connection).
    pub server_flush_lsn: Lsn,
    /// When it was there, by the primary's clock.
    pub server_time: WallTime,
    /// How far the sender has sent on this connection.
    pub sent_lsn: Lsn,
}

impl Heartbeat {
    /// A sign of life that says nothing else.
    pub const BARE: Heartbeat = Heartbeat {
        server_flush_lsn: Lsn::INVALID,
        server_time: WallTime { unix_micros: 0 },
        sent_lsn: Lsn::INVALID,
    };

    pub(super) fn encode(self, kind: u8) -> Frame {
        let mut body = BytesMut::with_capacity(24);
        body.put_u64(self.server_flush_lsn.0);
        body.put_i64(self.server_time.unix_micros);
        body.put_u64(self.sent_lsn.0);
        Frame { kind, body: body.freeze(), ..Frame::default() }
    }

    pub(super) fn decode(mut frame: Frame) -> Result<Heartbeat, LinkError> {
        let fields: [u8; 24] = take_fields("Heartbeat", &mut frame.body)?;
        let mut fields = &fields[..];
        Ok(Heartbeat {
            server_flush_lsn: Lsn(fields.get_u64()),
            server_time: WallTime { unix_micros: fields.get_i64() },
            sent_lsn: Lsn(fields.get_u64()),
        })
    }
}

pub(super) fn encode_feedback(kind: u8, feedback: StandbyFeedback) -> Frame {
    let StandbyFeedback { xmin, xmin_epoch, catalog_xmin, catalog_xmin_epoch } = feedback;
    let mut body = BytesMut::with_capacity(16);
    for number in [xmin, xmin_epoch, catalog_xmin, catalog_xmin_epoch] {
        body.put_u32(number);
    }
    Frame { kind, body: body.freeze(), ..Frame::default() }
}

pub(super) fn decode_feedback(mut frame: Frame) -> Result<StandbyFeedback, LinkError> {
    let fields: [u8; 16] = take_fields("Feedback", &mut frame.body)?;
    let mut fields = &fields[..];
    Ok(StandbyFeedback {
        xmin: fields.get_u32(),
        xmin_epoch: fields.get_u32(),
        catalog_xmin: fields.get_u32(),
        catalog_xmin_epoch: fields.get_u32(),
    })
}
