//! Store → local PostgreSQL: a walsender of our own.
//!
//! Serves the physical replication protocol on a unix socket, for the local standby and for any other client of
//! it. What always holds:
//!
//! * Only durable WAL is sent, so PostgreSQL never outlives its own store.
//! * WAL that may still come is waited for with keepalives, never answered by an error.
//! * A stream is cut only where PostgreSQL would cut it: [`source`] gives what ends at a safe cut, [`stream`] splits
//!   it at page boundaries.
//! * A record is sent when all of it is there: [`whole`] says what becomes of a standby that has half of one.
//!
//! Each client has a task; the store's files are read on blocking threads.

mod answers;
mod command;
mod listen;
mod progress;
mod reporter;
mod session;
mod source;
mod stream;
mod whole;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use anyhow::Context;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::clock::WallTime;
use crate::pg::message::MessageError;
use crate::pg::message::backend::ServerMessage;
use crate::pg::socket_file;
use crate::store::Store;
use crate::vitals::{Contact, Vitals};

use session::Session;

/// Clients at once: the standby, once more while it reconnects, and some tools.
const MAX_CLIENTS: usize = 8;

/// Pause after a failed accept, which is out of file descriptors or the like: nothing that goes away at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// By this `application_name` the local standby is known: only its positions are reported.
const STANDBY_NAME: &str = "walship";

/// The `primary_conninfo` that makes the local standby follow the feed in `folder`.
pub fn primary_conninfo(folder: &Path) -> String {
    let folder = folder.to_string_lossy().replace('\\', "\\\\").replace('\'', "\\'");
    format!("host='{folder}' port={} user=walship application_name={STANDBY_NAME}", socket_file::PORT)
}

/// How to serve.
#[derive(Clone, Debug)]
pub struct Options {
    /// Folder of the socket; made if need be, for us alone.
    pub folder: PathBuf,
    /// The user whom PostgreSQL runs as, and who alone may connect: ours, unless we are root.
    pub client_uid: u32,
    /// The version of the PostgreSQL whose WAL this is.
    pub server_version: ServerVersion,
}

/// A server's version in its own words, such as `15.18 (Debian 15.18-0+deb12u1)`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServerVersion(String);

impl ServerVersion {
    /// Takes `server_version` as the server, or a peer, gave it.
    pub fn new(text: impl Into<String>) -> ServerVersion {
        ServerVersion(text.into())
    }

    /// The major version; zero when it does not begin with a number.
    fn major(&self) -> u32 {
        let digits = self.0.bytes().take_while(u8::is_ascii_digit).count();
        self.0[..digits].parse().unwrap_or(0)
    }
}

impl fmt::Display for ServerVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Asks the standby for its positions now, instead of when it next tells: see [`ReplyRequests::ask`].
#[derive(Clone, Debug, Default)]
pub struct ReplyRequests(Arc<watch::Sender<u64>>);

impl ReplyRequests {
    /// Has every client that streams sent a keepalive that asks for a reply; the answer goes to the vitals.
    pub fn ask(&self) {
        self.0.send_modify(|count| *count = count.wrapping_add(1));
    }

    fn listen(&self) -> ReplyAsked {
        ReplyAsked { _sender: self.0.clone(), receiver: self.0.subscribe() }
    }
}

/// The other end of [`ReplyRequests`].
struct ReplyAsked {
    /// Keeps the channel open.
    _sender: Arc<watch::Sender<u64>>,
    receiver: watch::Receiver<u64>,
}

impl ReplyAsked {
    /// Waits for the next request. Cancellation-safe.
    async fn next(&mut self) {
        // It can't fail: the sender is held beside it.
        let _ = self.receiver.changed().await;
    }
}

/// What every session needs.
#[derive(Clone)]
struct Shared {
    store: Store,
    vitals: Arc<Vitals>,
    replies: ReplyRequests,
    server_version: ServerVersion,
    /// The session of the standby that counts; see [`reporter`].
    current: Arc<AtomicU64>,
    /// Sessions and their reads, so that nothing outlives [`run`].
    tasks: TaskTracker,
}

/// Serves clients until `token` is cancelled; then the socket is gone, and nothing of the store is in use here.
pub async fn run(
    options: Options,
    store: Store,
    vitals: Arc<Vitals>,
    replies: ReplyRequests,
    token: CancellationToken,
) -> anyhow::Result<()> {
    let tasks = TaskTracker::new();
    let (folder, client_uid) = (options.folder.clone(), options.client_uid);
    let listener =
        tasks.spawn_blocking(move || listen::listen(&folder, client_uid)).await.context("listen")??;
    tracing::info!(folder = %options.folder.display(), "feeding clients of the replication protocol");
    let (server_version, current) = (options.server_version, Arc::default());
    let shared =
        Shared { store, vitals: vitals.clone(), replies, server_version, current, tasks: tasks.clone() };
    let sessions = token.child_token();
    accept(&listener, client_uid, &shared, &sessions).await;
    drop(listener);
    tasks.close();
    tasks.wait().await;
    vitals.feed.update(|feed| {
        if let Contact::Up { .. } = feed.contact {
            feed.contact = Contact::Trying { since: WallTime::now(), error: None };
        }
    });
    vitals.replay.set(None);
    let path = listen::socket_path(&options.folder);
    tokio::task::spawn_blocking(move || crate::durable::remove(&path))
        .await
        .context("remove the socket")??;
    Ok(())
}

/// Accepts clients until `token` is cancelled.
async fn accept(listener: &UnixListener, client_uid: u32, shared: &Shared, token: &CancellationToken) {
    let places = Arc::new(Semaphore::new(MAX_CLIENTS));
    for number in 1.. {
        // Both branches are cancellation-safe: a connection not accepted stays in the kernel's queue.
        let accepted = tokio::select! {
            () = token.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let admitted = listen::admit(&stream, client_uid);
                let place = places.clone().try_acquire_owned().map_err(|_| {
                    ServerMessage::fatal("53300", format!("there are {MAX_CLIENTS} clients already"))
                });
                let admitted = admitted.and(place);
                let session = serve(stream, admitted, shared.clone(), number, token.clone());
                shared.tasks.spawn(session.instrument(tracing::info_span!("feed", client = number)));
            }
            Err(error) => {
                tracing::warn!(%error, "can't accept a client");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// One client, from its connection to its end; it keeps its place until then.
async fn serve(
    stream: UnixStream,
    admitted: Result<OwnedSemaphorePermit, ServerMessage>,
    shared: Shared,
    number: u64,
    token: CancellationToken,
) {
    let (_place, admitted) = match admitted {
        Ok(place) => (Some(place), Ok(())),
        Err(refusal) => (None, Err(refusal)),
    };
    let (reader, writer) = stream.into_split();
    let session = Session::new(reader, writer, shared, number);
    // A session that is dropped leaves nothing behind: its reads are tracked, its socket closes.
    let ended = tokio::select! {
        () = token.cancelled() => return,
        ended = session.serve(admitted) => ended,
    };
    match ended {
        Ok(()) => tracing::info!("client left"),
        Err(error) if is_departure(&error) => tracing::info!("client gone: {error:#}"),
        Err(error) => tracing::warn!("client dropped: {error:#}"),
    }
}

/// True when the client went away, rather than said something wrong.
fn is_departure(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(MessageError::Io(_) | MessageError::Truncated { .. }))
}

#[cfg(test)]
mod tests;
