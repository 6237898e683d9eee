//! What `CopyData` messages carry in physical replication. Times are PostgreSQL's: microseconds since 2000-01-01 UTC.

use bytes::{BufMut, Bytes, BytesMut};

use super::{Fields, MessageError, Result};
use crate::pg::Lsn;

/// From the server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FromServer {
    /// `w`: a stretch of WAL.
    Wal(WalData),
    /// `k`: a sign of life.
    Keepalive(Keepalive),
}

/// A stretch of WAL. Its end is a safe cut: PostgreSQL never splits a record across two of them, but at a page
/// boundary (pg-facts, rule 1).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WalData {
    /// Position of the first byte of `data`.
    pub start_lsn: Lsn,
    /// How far the server could send at that moment; informational.
    pub server_lsn: Lsn,
    /// When it was sent.
    pub sent_micros: i64,
    /// The WAL.
    pub data: Bytes,
}

/// A sign of life from the server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Keepalive {
    /// How far the server has sent.
    pub server_lsn: Lsn,
    /// When.
    pub sent_micros: i64,
    /// Whether it wants a status at once.
    pub reply_requested: bool,
}

/// From the client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FromClient {
    /// `r`: how far it is.
    Status(Status),
    /// `h`: which rows it still needs.
    Feedback(Feedback),
}

/// How far a client is. No order among the three can be relied on (pg-facts, rule 10).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Status {
    /// Written; goes back to a segment's start when the client reconnects.
    pub written_lsn: Lsn,
    /// Flushed; zero for unknown.
    pub flushed_lsn: Lsn,
    /// Replayed; zero for unknown.
    pub replayed_lsn: Lsn,
    /// When.
    pub sent_micros: i64,
    /// Whether it wants a keepalive at once.
    pub reply_requested: bool,
}

/// Hot-standby feedback: the oldest transactions a standby's queries can see; zeros for none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Feedback {
    /// When.
    pub sent_micros: i64,
    /// Oldest transaction.
    pub xmin: u32,
    /// Its epoch.
    pub xmin_epoch: u32,
    /// Oldest transaction for catalogs.
    pub catalog_xmin: u32,
    /// Its epoch.
    pub catalog_xmin_epoch: u32,
}

impl FromServer {
    /// Reads the body of a `CopyData`; the WAL shares its memory.
    pub fn decode(body: Bytes) -> Result<FromServer> {
        match body.first() {
            Some(b'w') => {
                let mut fields = payload("XLogData", body)?;
                let (start, server) = (fields.u64()?, fields.u64()?);
                let sent_micros = fields.i64()?;
                let data = fields.remainder();
                if start.checked_add(data.len() as u64).is_none() {
                    let problem = "its end is beyond the last position";
                    return Err(MessageError::Malformed { message: "XLogData", problem });
                }
                let (start_lsn, server_lsn) = (Lsn(start), Lsn(server));
                Ok(FromServer::Wal(WalData { start_lsn, server_lsn, sent_micros, data }))
            }
            Some(b'k') => {
                let mut fields = payload("keepalive", body)?;
                let keepalive = Keepalive {
                    server_lsn: Lsn(fields.u64()?),
                    sent_micros: fields.i64()?,
                    reply_requested: fields.u8()? != 0,
                };
                fields.end()?;
                Ok(FromServer::Keepalive(keepalive))
            }
            kind => Err(unknown("replication message from the server", kind)),
        }
    }
}

impl WalData {
    /// The position after the last byte of `data`.
    pub fn end_lsn(&self) -> Lsn {
        self.start_lsn + self.data.len() as u64
    }

    /// What goes before `data` in the `CopyData`, for [`super::MessageWriter::copy_data`].
    pub fn header(&self) -> [u8; 25] {
        let mut header = [b'w'; 25];
        header[1..9].copy_from_slice(&self.start_lsn.0.to_be_bytes());
        header[9..17].copy_from_slice(&self.server_lsn.0.to_be_bytes());
        header[17..].copy_from_slice(&self.sent_micros.to_be_bytes());
        header
    }
}

impl Keepalive {
    /// The body of the `CopyData`.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(18);
        out.put_u8(b'k');
        out.put_u64(self.server_lsn.0);
        out.put_i64(self.sent_micros);
        out.put_u8(self.reply_requested.into());
        out.freeze()
    }
}

impl FromClient {
    /// Reads the body of a `CopyData`.
    pub fn decode(body: Bytes) -> Result<FromClient> {
        match body.first() {
            Some(b'r') => {
                let mut fields = payload("standby status", body)?;
                let status = Status {
                    written_lsn: Lsn(fields.u64()?),
                    flushed_lsn: Lsn(fields.u64()?),
                    replayed_lsn: Lsn(fields.u64()?),
                    sent_micros: fields.i64()?,
                    reply_requested: fields.u8()? != 0,
                };
                fields.end()?;
                Ok(FromClient::Status(status))
            }
            Some(b'h') => {
                let mut fields = payload("hot standby feedback", body)?;
                let feedback = Feedback {
                    sent_micros: fields.i64()?,
                    xmin: fields.u32()?,
                    xmin_epoch: fields.u32()?,
                    catalog_xmin: fields.u32()?,
                    catalog_xmin_epoch: fields.u32()?,
                };
                fields.end()?;
                Ok(FromClient::Feedback(feedback))
            }
            kind => Err(unknown("replication message from the client", kind)),
        }
    }

    /// The body of the `CopyData`.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(34);
        match self {
            FromClient::Status(status) => {
                out.put_u8(b'r');
                out.put_u64(status.written_lsn.0);
                out.put_u64(status.flushed_lsn.0);
                out.put_u64(status.replayed_lsn.0);
                out.put_i64(status.sent_micros);
                out.put_u8(status.reply_requested.into());
            }
            FromClient::Feedback(feedback) => {
                out.put_u8(b'h');
                out.put_i64(feedback.sent_micros);
                out.put_u32(feedback.xmin);
                out.put_u32(feedback.xmin_epoch);
                out.put_u32(feedback.catalog_xmin);
                out.put_u32(feedback.catalog_xmin_epoch);
            }
        }
        out.freeze()
    }
}

/// What follows the kind byte, which the caller has seen.
fn payload(message: &'static str, body: Bytes) -> Result<Fields> {
    let mut fields = Fields::new(message, body);
    fields.u8()?;
    Ok(fields)
}

fn unknown(message: &'static str, kind: Option<&u8>) -> MessageError {
    let problem = if kind.is_some() { "its kind is unknown" } else { "it is empty" };
    MessageError::Malformed { message, problem }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn wal_round_trips_without_a_copy(start in 0u64..1 << 63, server: u64, sent_micros: i64, data: Vec<u8>) {
            let wal = WalData { start_lsn: Lsn(start), server_lsn: Lsn(server), sent_micros, data: data.into() };
            let body = Bytes::from([&wal.header()[..], &wal.data].concat());
            let decoded = FromServer::decode(body.clone()).unwrap();
            if let FromServer::Wal(decoded) = &decoded && !decoded.data.is_empty() {
                prop_assert_eq!(decoded.data.as_ptr(), body[25..].as_ptr());
            }
            prop_assert_eq!(decoded, FromServer::Wal(wal));
        }

        #[test]
        fn the_small_ones_round_trip(lsns: [u64; 3], sent_micros: i64, reply_requested: bool, ids: [u32; 4]) {
            let keepalive = Keepalive { server_lsn: Lsn(lsns[0]), sent_micros, reply_requested };
            prop_assert_eq!(FromServer::decode(keepalive.encode()).unwrap(), FromServer::Keepalive(keepalive));
            let [written_lsn, flushed_lsn, replayed_lsn] = lsns.map(Lsn);
            let status = Status { written_lsn, flushed_lsn, replayed_lsn, sent_micros, reply_requested };
            let [xmin, xmin_epoch, catalog_xmin, catalog_xmin_epoch] = ids;
            let feedback = Feedback { sent_micros, xmin, xmin_epoch, catalog_xmin, catalog_xmin_epoch };
            for message in [FromClient::Status(status), FromClient::Feedback(feedback)] {
                prop_assert_eq!(FromClient::decode(message.encode()).unwrap(), message);
            }
        }
    }

    #[test]
    fn lengths_are_those_that_postgresql_checks() {
        let keepalive = Keepalive { server_lsn: Lsn(1), sent_micros: 2, reply_requested: true };
        assert_eq!(keepalive.encode().len(), 1 + 17);
        let feedback =
            Feedback { sent_micros: 0, xmin: 1, xmin_epoch: 0, catalog_xmin: 0, catalog_xmin_epoch: 0 };
        assert_eq!(FromClient::Feedback(feedback).encode().len(), 0x1d - 4);
    }

    #[test]
    fn wal_beyond_the_last_position_is_refused() {
        let wal =
            WalData { start_lsn: Lsn(u64::MAX), server_lsn: Lsn(0), sent_micros: 0, data: Bytes::new() };
        let body = [&wal.header()[..], b"x"].concat();
        assert!(FromServer::decode(body.into()).is_err());
    }
}
