//! Connections from other nodes: who they are, what they want, and which stage serves them.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use tokio_util::sync::CancellationToken;

use super::node::Node;
use super::postgres::CONFIGURATION_FILE;
use super::{epochs, members, trouble};
use crate::backup;
use crate::fault::Advised;
use crate::link::handshake;
use crate::link::listen::Arrival;
use crate::link::message::{Answer, Code, Hello, PostgresAnswer, Purpose, Reject};
use crate::link::{Conn, Link, LinkError, Listener, Message, PEER_DEAD_AFTER, Socket};
use crate::pg::sql::Sql;
use crate::ship::{self, Downstream, Shipping, wire_identity};
use crate::store::NodeRole;

/// Streams by node: a node that comes again has lost its first connection, whether that was noticed here or not.
type Streams = Arc<Mutex<HashMap<String, CancellationToken>>>;

/// Binds the listening socket.
pub async fn bind(node: &Node) -> anyhow::Result<Listener> {
    Listener::bind(&node.config.listen.to_string()).await.advised()
}

/// Serves every connection in a task of its own, until the node ends.
pub async fn run(node: Arc<Node>, listener: Listener) {
    let streams = Streams::default();
    loop {
        // Both branches are cancellation-safe: an arrival is taken from the kernel whole or not at all.
        let arrival = tokio::select! {
            arrival = listener.accept() => arrival,
            () = node.token.cancelled() => return,
        };
        let (node, streams) = (Arc::clone(&node), Arc::clone(&streams));
        let tasks = node.tasks.clone();
        tasks.spawn(async move {
            let peer = arrival.peer();
            if let Err(error) = serve(&node, arrival, &streams).await {
                report(&error, peer);
            }
        });
    }
}

/// A peer that went away is no news; a peer that was refused is, and so is whatever failed here.
fn report(error: &anyhow::Error, peer: std::net::SocketAddr) {
    match error.downcast_ref::<LinkError>() {
        Some(gone) if gone.is_gone() => tracing::info!(%peer, "a connection ended: {error:#}"),
        Some(_) => tracing::info!(%peer, "a connection was refused: {error:#}"),
        // The store itself tells of its disk.
        None if trouble::is_of_disk(error) => tracing::info!(%peer, "a connection failed: {error:#}"),
        None => tracing::warn!(%peer, "a connection failed: {error:#}"),
    }
}

async fn serve(node: &Arc<Node>, arrival: Arrival, streams: &Streams) -> anyhow::Result<()> {
    let Link { mut conn, identity, address } = arrival.secure(&node.security()).await?;
    let ours = node.hello(Purpose::Ask);
    let hello = handshake::answer(&mut conn, &ours, identity.as_ref(), |hello| {
        is_served_now(node, hello)?;
        members::admit(&node.store, hello, identity.as_ref())
    })
    .await?;
    let purpose = hello.purpose;
    epochs::hear(node, &hello, identity.as_ref()).await?;
    if let Some(identity) = identity.filter(|_| matches!(purpose, Purpose::Stream | Purpose::Backup)) {
        let entering = hello.clone();
        let entered =
            node.blocking("note the member", move |node| members::enter(node, &entering, &identity)).await?;
        // Whoever can't be noted is not held WAL for, and is not let in.
        if let Err(error) = entered {
            let message = format!("{} can't note who follows it: {error:#}", node.config.name);
            return refuse(conn, Code::NotReady, &message, "`walship status` there shows what is wrong.")
                .await;
        }
    }
    let client = hello.node.clone();
    match purpose {
        Purpose::Stream => {
            let downstream =
                Downstream { name: Some(client), address: address.to_string(), store_uuid: hello.store_uuid };
            stream(node, conn, downstream, streams).await
        }
        Purpose::Wal => {
            let downstream = Downstream { name: None, address: address.to_string(), store_uuid: None };
            ship::run(conn, shipping(node), downstream, node.token.clone()).await
        }
        Purpose::Backup => back_up(node, conn, client).await,
        Purpose::Files { backup } => match node.backups.find(backup) {
            Some(session) => backup::serve_files(conn, session).await,
            None => refuse(conn, Code::Failed, "that backup has ended", "Run the command again.").await,
        },
        Purpose::Ask => answer(node, conn).await,
        Purpose::Unknown => Ok(()),
    }
}

/// Only a primary ships and is backed up in this version.
fn is_served_now(node: &Node, hello: &Hello) -> Result<(), Reject> {
    if hello.purpose == Purpose::Ask {
        return Ok(());
    }
    if let Some((epoch, newer)) = node.superseded_by() {
        return Err(Reject {
            code: Code::Epoch,
            message: format!("{} was superseded: {newer} was promoted with epoch {epoch}", node.config.name),
            hint: format!("Follow {newer}."),
        });
    }
    if node.role() == NodeRole::Primary {
        return Ok(());
    }
    Err(Reject {
        code: Code::NotReady,
        message: format!("{} is a standby, and only the primary is followed or copied", node.config.name),
        hint: "`walship status` shows where the primary is.".to_owned(),
    })
}

fn shipping(node: &Node) -> Shipping {
    Shipping {
        store: node.store.clone(),
        vitals: Arc::clone(&node.vitals),
        members: node.members.subscribe(),
        max_rate_bytes_per_second: node.config.max_rate_bytes_per_second,
    }
}

async fn stream(
    node: &Arc<Node>,
    conn: Conn<Socket>,
    downstream: Downstream,
    streams: &Streams,
) -> anyhow::Result<()> {
    let client = downstream.name.clone().unwrap_or_default();
    let token = node.token.child_token();
    let lock = || streams.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(older) = lock().insert(client.clone(), token.clone()) {
        older.cancel();
    }
    tracing::info!(standby = %client, address = %downstream.address, "shipping");
    // A standby that becomes the primary, or a primary that no longer is one, ships nothing on old connections.
    let mut role = node.role.subscribe();
    let mut newer_primary = node.newer_primary.subscribe();
    // All branches but the first only wait, and are cancellation-safe.
    let ended = tokio::select! {
        ended = ship::run(conn, shipping(node), downstream, token.clone()) => ended,
        _ = role.wait_for(|role| *role != NodeRole::Primary) => Ok(()),
        _ = newer_primary.wait_for(Option::is_some) => Ok(()),
    };
    // Only an entry that is still ours: cancelled, it belongs to a newer connection.
    if !token.is_cancelled() {
        lock().remove(&client);
    }
    tracing::info!(standby = %client, "no longer shipping");
    ended
}

async fn back_up(node: &Arc<Node>, conn: Conn<Socket>, client: String) -> anyhow::Result<()> {
    let sql = match Sql::connect(&node.conninfo).await {
        Ok(sql) => sql,
        Err(error) => {
            let message = format!("PostgreSQL beside {} can't be asked: {error}", node.config.name);
            return refuse(conn, Code::NotReady, &message, "Run `walship check` there.").await;
        }
    };
    let data_directory = node.config.postgres.data_directory.clone();
    tracing::info!(%client, "a base backup begins");
    backup::serve_control(conn, backup::Source { sql, data_directory, client }, &node.backups).await
}

async fn refuse(mut conn: Conn<Socket>, code: Code, message: &str, hint: &str) -> anyhow::Result<()> {
    let reject = Reject { code, message: message.to_owned(), hint: hint.to_owned() };
    conn.reject(reject.clone()).await;
    Err(LinkError::Refused(Box::new(reject)).into())
}

/// Answers questions until nobody asks any more.
async fn answer(node: &Arc<Node>, mut conn: Conn<Socket>) -> anyhow::Result<()> {
    loop {
        match conn.read_within(PEER_DEAD_AFTER).await {
            Ok(Message::Ask) => {}
            Ok(other) => return Err(LinkError::unexpected("Ask", other).into()),
            Err(LinkError::Closed) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        let state = node.store.state();
        let answer = Answer {
            node: node.config.name.clone(),
            role: node.link_role(),
            store_uuid: Some(node.store.identity().store_uuid.clone()),
            promised_epoch: state.promised_epoch,
            committed_epoch: state.committed_epoch,
            timeline: state.timelines.last().map(wire_identity),
            positions: node.positions(),
            postgres: ask_postgres(node).await,
            holds_configuration: node.blocking("look for postgresql.conf", holds_configuration).await?,
        };
        conn.write(Message::Answer(Box::new(answer))).await.context("answer")?;
    }
}

/// A link to a file elsewhere does not count: a base backup leaves it out. Blocks.
fn holds_configuration(node: &Node) -> Option<bool> {
    match node.config.postgres.data_directory.join(CONFIGURATION_FILE).symlink_metadata() {
        Ok(found) => Some(found.is_file()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Some(false),
        Err(_) => None,
    }
}

/// What the local PostgreSQL says, asked just now.
pub async fn ask_postgres(node: &Arc<Node>) -> PostgresAnswer {
    let asked = async {
        let sql = Sql::connect(&node.conninfo).await?;
        sql.wal_positions().await
    };
    use crate::pg::sql::server::WalPositions;
    match asked.await {
        Ok(WalPositions::Primary { flushed, .. }) => PostgresAnswer::Up { in_recovery: false, lsn: flushed },
        Ok(WalPositions::Standby { replayed, .. }) => {
            PostgresAnswer::Up { in_recovery: true, lsn: replayed.unwrap_or_default() }
        }
        Err(error) => match crate::pg::postmaster::is_running(&node.config.postgres.data_directory) {
            Ok(false) => PostgresAnswer::Down { reason: error.to_string() },
            _ => PostgresAnswer::Unknown,
        },
    }
}
