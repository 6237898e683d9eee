//! Asking another node something.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::node::Node;
use crate::link::message::{Answer, Hello, Purpose};
use crate::link::{Link, LinkError, Message, Security, dial, handshake};

/// Patience with the answer, for which the other node asks its PostgreSQL.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(4);

/// Dials a node and says Hello for a purpose; what it said of itself.
pub async fn open(node: &Arc<Node>, address: &str, purpose: Purpose) -> anyhow::Result<(Link, Hello)> {
    greet(address, &node.security(), &node.hello(purpose)).await
}

async fn greet(address: &str, security: &Security, ours: &Hello) -> anyhow::Result<(Link, Hello)> {
    let mut link = dial::dial(address, security).await?;
    let hello = handshake::greet(&mut link.conn, ours, link.identity.as_ref()).await?;
    Ok((link, hello))
}

/// Dials a node, says who asks, and takes its account of itself.
pub async fn ask(address: &str, security: &Security, ours: &Hello) -> anyhow::Result<(Hello, Answer)> {
    let (mut link, hello) = greet(address, security, ours).await?;
    link.conn.write(Message::Ask).await?;
    match link.conn.read_within(ANSWER_WITHIN).await? {
        Message::Answer(answer) => Ok((hello, *answer)),
        other => Err(LinkError::unexpected("Answer", other).into()),
    }
}

/// The same by a node, which waits for all of it no longer than this.
pub async fn ask_within(
    node: &Arc<Node>,
    address: &str,
    within: Duration,
) -> anyhow::Result<(Hello, Answer)> {
    let (security, ours) = (node.security(), node.hello(Purpose::Ask));
    let asked = timeout(within, ask(address, &security, &ours)).await;
    asked.unwrap_or_else(|_| Err(LinkError::Silent(within).into()))
}

/// Dials a node, says one thing, and takes what it says to that; all of it takes no longer than this.
pub async fn converse(
    node: &Arc<Node>,
    address: &str,
    message: Message,
    within: Duration,
) -> anyhow::Result<Message> {
    let conversing = async {
        let (mut link, _) = open(node, address, Purpose::Ask).await?;
        link.conn.write(message).await?;
        Ok(link.conn.read_within(within).await?)
    };
    timeout(within, conversing).await.unwrap_or_else(|_| Err(LinkError::Silent(within).into()))
}
