//! Connections from other nodes: who they are, what they want, and which stage serves them.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::entrant::{self, Entrant};
use super::node::Node;
use super::{certificate, epochs, order, relay, trouble, tunnel, votes};
use crate::backup;
use crate::fault::Advised;
use crate::link::handshake;
use crate::link::listen::Arrival;
use crate::link::message::{Answer, Code, Hello, PostgresAnswer, Promise, Purpose, Reject, Role};
use crate::link::{Conn, Link, LinkError, Listener, Message, PEER_DEAD_AFTER, Socket};
use crate::pg::CONFIGURATION_FILE;
use crate::pg::sql::Sql;
use crate::ship::{self, Counted, Downstream, Shipping, wire_identity};
use crate::store::NodeRole;
use crate::tls::Identity;

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
    let begun_as = node.role();
    let ours = node.hello(Purpose::Ask);
    let hello = handshake::answer(&mut conn, &ours, identity.as_ref(), |hello| {
        is_served_now(node, hello)?;
        if hello.purpose == Purpose::Sql && !identity.as_ref().is_some_and(Identity::is_node) {
            let message = format!("{} has no node's certificate, and reads nothing by SQL", hello.node);
            return Err(Reject { code: Code::Role, message, hint: String::new() });
        }
        match identity.as_ref().and_then(|identity| Entrant::greeting(hello, identity)) {
            Some(entrant) => entrant.admit(&node.store.state()),
            None => Ok(()),
        }
    })
    .await?;
    let purpose = hello.purpose;
    epochs::hear(node, &hello, identity.as_ref()).await?;
    let is_node = identity.as_ref().is_some_and(Identity::is_node);
    let serial = identity.as_ref().map_or(0, |identity| identity.serial);
    // A standby's list is the primary's, which hears of this one from there.
    let enters = begun_as == NodeRole::Primary && matches!(purpose, Purpose::Stream | Purpose::Backup);
    let entrant = identity.filter(|_| enters).and_then(|identity| Entrant::greeting(&hello, &identity));
    if let Some(entrant) = entrant {
        let entered = node.blocking("note the member", move |node| entrant::enter(node, entrant)).await?;
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
            let downstream = Downstream {
                name: client,
                address: address.to_string(),
                store_uuid: hello.store_uuid,
                former_store_uuids: hello.former_store_uuids,
                certificate_serial: serial,
                advertise: hello.advertise.unwrap_or_default(),
            };
            // What was said in the Hello no longer holds then; whoever follows comes again.
            tokio::select! {
                ended = stream(node, conn, downstream, streams) => ended,
                () = no_longer_ships(node, begun_as) => Ok(()),
            }
        }
        Purpose::Wal | Purpose::Salvage => ship::run(conn, shipping(node), None, node.token.clone()).await,
        Purpose::Backup => back_up(node, conn, client).await,
        Purpose::Files { backup } => match node.backups.find(backup) {
            Some(session) => backup::serve_files(conn, session).await,
            None => refuse(conn, Code::Failed, "that backup has ended", "Run the command again.").await,
        },
        Purpose::Sql => {
            tokio::select! {
                ended = tunnel::serve(node, conn, &client) => ended,
                () = no_longer_ships(node, begun_as) => Ok(()),
            }
        }
        Purpose::Ask => answer(node, conn, is_node).await,
        Purpose::Unknown => Ok(()),
    }
}

/// Who has WAL ships it; copies are taken from the primary in this version.
fn is_served_now(node: &Node, hello: &Hello) -> Result<(), Reject> {
    if hello.purpose == Purpose::Ask {
        return Ok(());
    }
    let own = &node.config.name;
    if let Some((epoch, newer)) = node.superseded_by() {
        return Err(Reject {
            code: Code::Epoch,
            message: format!("{own} was superseded: {newer} was promoted with epoch {epoch}"),
            hint: format!("Follow {newer}."),
        });
    }
    let not_ready = |message, hint: String| Err(Reject { code: Code::NotReady, message, hint });
    match (node.role(), hello.purpose) {
        (NodeRole::Primary, Purpose::Sql) if hello.role != Role::Superseded => not_ready(
            format!("{} does not rejoin", hello.node),
            "`walship rejoin` there asks for this.".to_owned(),
        ),
        (NodeRole::Primary, _) => Ok(()),
        (NodeRole::Standby, Purpose::Stream | Purpose::Wal | Purpose::Salvage)
            if node.store.newest_timeline().is_some() =>
        {
            Ok(())
        }
        (NodeRole::Standby, Purpose::Stream | Purpose::Wal | Purpose::Salvage) => {
            not_ready(format!("{own} has no WAL yet"), "It is joining; try again later.".to_owned())
        }
        (NodeRole::Standby, _) => not_ready(
            format!("{own} is a standby, and copies are taken from the primary"),
            match node.primary() {
                Some((name, address)) => format!("The primary is {name}, at {address}."),
                None => "`walship status` shows where the primary is.".to_owned(),
            },
        ),
    }
}

/// A node's stream among those that run here.
struct Place {
    streams: Streams,
    name: String,
    token: CancellationToken,
}

impl Place {
    /// Takes a node's place; who had it before is cancelled.
    fn take(streams: &Streams, name: &str, token: CancellationToken) -> Place {
        let place = Place { streams: Arc::clone(streams), name: name.to_owned(), token: token.clone() };
        let mut all = place.lock();
        if let Some(older) = all.insert(name.to_owned(), token) {
            older.cancel();
        }
        drop(all);
        place
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, CancellationToken>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        tracing::info!(standby = %self.name, "no longer shipping");
        let mut all = self.lock();
        // Only an entry that is still ours: cancelled, it belongs to a newer connection.
        if !self.token.is_cancelled() {
            all.remove(&self.name);
        }
    }
}

fn shipping(node: &Node) -> Shipping {
    Shipping {
        store: node.store.clone(),
        vitals: Arc::clone(&node.vitals),
        members: node.members.subscribe(),
        standing: node.standing.subscribe(),
        max_rate_bytes_per_second: node.config.max_rate_bytes_per_second,
    }
}

async fn stream(
    node: &Arc<Node>,
    conn: Conn<Socket>,
    downstream: Downstream,
    streams: &Streams,
) -> anyhow::Result<()> {
    let (client, serial) = (downstream.name.clone(), downstream.certificate_serial);
    let place = Place::take(streams, &client, node.token.child_token());
    tracing::info!(standby = %client, address = %downstream.address, "shipping");
    let (relayed, words) = mpsc::channel(relay::QUEUE);
    let counted = Counted { downstream, relayed };
    // Neither loses anything that a new connection would not bring again.
    tokio::select! {
        ended = ship::run(conn, shipping(node), Some(counted), place.token.clone()) => ended,
        ended = relay::take(node, &client, words) => ended,
        () = forgotten(node, &client, serial) => {
            tracing::info!(standby = %client, "it was taken off the list of members");
            Ok(())
        }
    }
}

/// Waits until a node is taken off the list of members. Cancellation-safe.
async fn forgotten(node: &Node, name: &str, certificate_serial: u64) {
    let mut list = node.members.subscribe();
    // The sender is never gone before the node is.
    let _ = list.wait_for(|list| list.has_forgotten(name, certificate_serial)).await;
}

/// Waits until the node has changed its role, or is a primary that was superseded. Cancellation-safe.
async fn no_longer_ships(node: &Node, begun_as: NodeRole) {
    let mut role = node.role.subscribe();
    let mut newer_primary = node.newer_primary.subscribe();
    // Neither sender is ever gone before the node is.
    tokio::select! {
        _ = role.wait_for(|role| *role != begun_as) => {}
        _ = newer_primary.wait_for(|newer| begun_as == NodeRole::Primary && newer.is_some()) => {}
    }
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

/// Answers questions until nobody asks any more. Who votes and orders is a node.
async fn answer(node: &Arc<Node>, mut conn: Conn<Socket>, is_node: bool) -> anyhow::Result<()> {
    loop {
        let reply = match conn.read_within(PEER_DEAD_AFTER).await {
            Ok(Message::Ask) => Message::Answer(Box::new(account(node).await?)),
            Ok(Message::VoteRequest(request)) if is_node => {
                Message::Vote(Box::new(votes::vote(node, request).await?))
            }
            Ok(Message::Withdrawal(withdrawal)) if is_node => {
                votes::withdrawn(node, &withdrawal).await?;
                Message::Answer(Box::new(account(node).await?))
            }
            Ok(Message::WantCertificate(of)) if is_node => {
                Message::KeptCertificate(certificate::give(node, of).await?)
            }
            Ok(Message::Order(order)) if is_node => return order::carry_out(node, order, conn).await,
            Ok(other) => return Err(LinkError::unexpected("Ask", other).into()),
            Err(LinkError::Closed) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        conn.write(reply).await.context("answer")?;
    }
}

/// This node's account of itself.
pub async fn account(node: &Arc<Node>) -> anyhow::Result<Answer> {
    let postgres = ask_postgres(node).await;
    let holds_configuration = node.blocking("look for postgresql.conf", holds_configuration).await?;
    let state = node.store.state();
    let committed_epoch = state.known_epoch();
    Ok(Answer {
        node: node.config.name.clone(),
        role: node.link_role(),
        store_uuid: Some(node.store.identity().store_uuid.clone()),
        promised_epoch: state.promised_epoch,
        promise: state.promise.map(|promise| Promise { epoch: promise.epoch, candidate: promise.candidate }),
        committed_epoch,
        is_being_promoted: state.promoting.is_some() && node.role() == NodeRole::Standby,
        policy_serial: state.policy.serial(),
        priority: node.config.priority,
        timeline: state.timelines.last().map(wire_identity),
        positions: node.positions(),
        postgres,
        holds_configuration,
    })
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
