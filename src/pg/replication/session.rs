//! An ordinary session of SQL as a stream of bytes, for a client that is somewhere else: whoever holds it has logged in,
//! and the client need not.

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use super::error::{protocol, sort, sort_message_error};
use super::{Replication, ReplicationError};
use crate::pg::Conninfo;
use crate::pg::message::backend::{Authentication, Backend};
use crate::pg::party::Party;

/// The most that a server says of its settings.
const GREETING_BYTES_MAX: usize = 64 << 10;

/// A session that waits for its first command.
pub struct Session {
    /// What a client waits for before that: that it is let in, the server's settings, and that it is ready.
    pub greeting: Bytes,
    /// What the server says.
    pub reader: Box<dyn AsyncRead + Send + Unpin>,
    /// What it is told.
    pub writer: Box<dyn AsyncWrite + Send + Unpin>,
}

impl Session {
    /// Logs in as the connection string says, under an application name.
    pub async fn open(conninfo: &Conninfo, application_name: &str) -> Result<Session, ReplicationError> {
        let party = Party::for_sql(conninfo);
        let limit = conninfo.connect_time_max();
        let opened = timeout(limit, Session::open_as(conninfo, application_name, party.clone())).await;
        opened.unwrap_or_else(|_| {
            Err(party.unreachable(format!("no answer within {} s", limit.as_secs())).into())
        })
    }

    async fn open_as(
        conninfo: &Conninfo,
        application_name: &str,
        party: Party,
    ) -> Result<Session, ReplicationError> {
        let kind = ("database", conninfo.database());
        let Replication { mut reader, writer, party } =
            Replication::log_in(conninfo, kind, application_name, party).await?;
        let mut greeting = BytesMut::new();
        Backend::Authentication(Authentication::Ok).encode(&mut greeting);
        loop {
            let raw = reader.read().await.map_err(|error| sort_message_error(&party, error))?;
            let raw = raw.ok_or_else(|| party.unreachable("the server closed the connection"))?;
            match raw.tag {
                b'S' => raw.encode(&mut greeting),
                b'Z' => {
                    raw.encode(&mut greeting);
                    let (stream, behind) = reader.into_parts();
                    if !behind.is_empty() {
                        return Err(protocol(&party, "it goes on before the first command"));
                    }
                    return Ok(Session {
                        greeting: greeting.freeze(),
                        reader: stream,
                        writer: writer.into_inner(),
                    });
                }
                b'E' => {
                    let error = Backend::decode(raw).map_err(|error| sort_message_error(&party, error))?;
                    return Err(match error {
                        Backend::ErrorResponse(error) => sort(&party, error),
                        _ => protocol(&party, "an error that is none"),
                    });
                }
                // Notices, and what a cancel request would need: nobody cancels from elsewhere.
                _ => {}
            }
            if greeting.len() > GREETING_BYTES_MAX {
                return Err(protocol(&party, "its settings do not end"));
            }
        }
    }
}
