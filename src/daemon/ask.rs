//! Asking another node how it is.

use std::time::Duration;

use crate::link::message::{Answer, Hello};
use crate::link::{LinkError, Message, Security, dial, handshake};

/// Patience with the answer, for which the other node asks its PostgreSQL.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(4);

/// Dials a node, says who asks, and takes its account of itself.
pub async fn ask(address: &str, security: &Security, ours: &Hello) -> anyhow::Result<(Hello, Answer)> {
    let mut link = dial::dial(address, security).await?;
    let hello = handshake::greet(&mut link.conn, ours, link.identity.as_ref()).await?;
    link.conn.write(Message::Ask).await?;
    match link.conn.read_within(ANSWER_WITHIN).await? {
        Message::Answer(answer) => Ok((hello, *answer)),
        other => Err(LinkError::unexpected("Answer", other).into()),
    }
}
