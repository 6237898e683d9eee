//! Asking another node something.

use std::sync::Arc;
use std::time::Duration;

use super::node::Node;
use crate::link::message::{Answer, Hello, Purpose};
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

/// Dials a node, says one thing, and takes what it says to that.
pub async fn converse(
    node: &Arc<Node>,
    address: &str,
    message: Message,
    within: Duration,
) -> anyhow::Result<Message> {
    let mut link = dial::dial(address, &node.security()).await?;
    handshake::greet(&mut link.conn, &node.hello(Purpose::Ask), link.identity.as_ref()).await?;
    link.conn.write(message).await?;
    Ok(link.conn.read_within(within).await?)
}
