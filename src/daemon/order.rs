//! Commands that another node's sidecar carries out, told line by line on the way back.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::ask;
use super::certificate::PASSED_ON_BYTES_MAX;
use super::node::Node;
use super::request::{Done, Promotion, Request};
use crate::fault::{Fault, Outcome, WithFault};
use crate::link::message::{Order, Purpose, Told};
use crate::link::{Conn, LinkError, Message, PEER_DEAD_AFTER, Socket};
use crate::store::NodeRole;

/// Patience with the next line; the steps of a promotion have limits of their own, below this.
const NEXT_LINE_WITHIN: Duration = Duration::from_secs(300);

/// How often something is said meanwhile, so that a peer that is gone is noticed.
const SIGN_OF_LIFE_EVERY: Duration = Duration::from_secs(2);

/// Has the node at an address promote itself, as it was asked for here.
pub async fn promote(node: &Arc<Node>, address: &str, request: &Request) -> anyhow::Result<Done> {
    let Promotion { force, max_loss_bytes, fence_command, .. } = request.promotion.clone();
    give(node, address, Order::Promote { force, max_loss_bytes, fence_command }, &request.say).await
}

/// Gives the node at an address an order, and passes on what it says.
pub async fn give(
    node: &Arc<Node>,
    address: &str,
    order: Order,
    say: &mpsc::Sender<String>,
) -> anyhow::Result<Done> {
    let (mut link, _) = ask::open(node, address, Purpose::Ask).await?;
    link.conn.write(Message::Order(order)).await.outcome(Outcome::Unknown)?;
    loop {
        let message = link.conn.read_within(NEXT_LINE_WITHIN).await.outcome(Outcome::Unknown)?;
        match message {
            Message::Told(Told::Progress { line }) if line.is_empty() => {}
            // Whoever asked may have gone; it is carried out all the same.
            Message::Told(Told::Progress { line }) => drop(say.send(line).await),
            Message::Told(Told::Done { line, json }) => return Ok(Done { line, json }),
            Message::Told(Told::Failed { message, hint, outcome }) => {
                return Err(Fault::told(message, hint, outcome.as_deref()));
            }
            other => return Err(LinkError::unexpected("Told", other)).outcome(Outcome::Unknown),
        }
    }
}

/// Carries an order out, as the command would be that is given on this host.
pub async fn carry_out(node: &Arc<Node>, order: Order, mut conn: Conn<Socket>) -> anyhow::Result<()> {
    let promotion = match order {
        Order::Promote { force, max_loss_bytes, fence_command } => {
            Promotion { force, max_loss_bytes, fence_command, ..Promotion::default() }
        }
        Order::Switchover { dry_run } => Promotion { dry_run, switchover: true, ..Promotion::default() },
        Order::Unknown => {
            let message = "this version of walship does not know that order".to_owned();
            let told = Told::Failed { message, hint: None, outcome: Some("refused".to_owned()) };
            return Ok(conn.write(Message::Told(told)).await?);
        }
    };
    let (mut lines, mut outcome) = match begin(node, promotion) {
        Ok(begun) => begun,
        Err(error) => return Ok(conn.write(Message::Told(failed(&error))).await?),
    };
    let mut life = tokio::time::interval(SIGN_OF_LIFE_EVERY);
    let told = loop {
        // Cancellation-safe: lines and the outcome stay in their channels until they are taken.
        tokio::select! {
            biased;
            Some(line) = lines.recv() => conn.write(Message::Told(Told::Progress { line })).await?,
            done = &mut outcome => break match done {
                Ok(Ok(Done { line, json })) => {
                    Told::Done { line, json: json.filter(|json| json.len() <= PASSED_ON_BYTES_MAX) }
                }
                Ok(Err(error)) => failed(&error),
                Err(_) => Told::Failed {
                    message: "the sidecar ended before the promotion did".to_owned(),
                    hint: None,
                    outcome: Some("unknown".to_owned()),
                },
            },
            _ = life.tick() => conn.write(Message::Told(Told::Progress { line: String::new() })).await?,
        }
    };
    conn.write(Message::Told(told)).await?;
    // It is read before this end hangs up.
    let _ = conn.read_within(PEER_DEAD_AFTER).await;
    Ok(())
}

/// What is said of something that is carried out elsewhere, and what comes of it.
pub type Begun<T = Done> = (mpsc::Receiver<String>, oneshot::Receiver<anyhow::Result<T>>);

/// Hands a request to the standby's life.
pub fn begin(node: &Node, promotion: Promotion) -> anyhow::Result<Begun> {
    if node.role() == NodeRole::Primary {
        let hint = "`walship status` shows which node is the primary.";
        return Err(Fault::refused(format!("{} is no standby", node.config.name), hint));
    }
    let (say, lines) = mpsc::channel(16);
    let (done, outcome) = oneshot::channel();
    let request = Request { promotion, say, done };
    if node.promotions.try_send(request).is_err() {
        return Err(anyhow::anyhow!("a promotion is under way already"));
    }
    Ok((lines, outcome))
}

fn failed(error: &anyhow::Error) -> Told {
    let (message, hint, outcome) = Fault::tell(error);
    Told::Failed { message, hint, outcome }
}
