//! A bad network on demand: a TCP proxy on loopback that can be cut, stalled, slowed and healed.
//!
//! It stands between two sidecars: one is told the proxy's address instead of the other's. What it does applies to
//! connections that are open and to those that come.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// What is passed on at once.
const CHUNK_BYTES_MAX: usize = 64 * 1024;

/// A slowed link passes this many chunks a second, so that it flows instead of bursting.
const SLOW_CHUNKS_PER_SECOND: u64 = 50;

/// What the network does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Weather {
    /// Bytes pass as they come.
    Fair,
    /// Connections are accepted and stay open, and nothing passes: like a host that lost its power.
    Stalled,
    /// Connections are closed, open ones and new ones.
    Cut,
    /// So many bytes pass in a second, in each direction, over all connections together.
    Slow { bytes_per_second: u64 },
}

/// The proxy; dropping it closes all connections and the port.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    target: Mutex<SocketAddr>,
    weather: watch::Sender<Weather>,
    /// Cancelled when the proxy is dropped.
    stop: CancellationToken,
    /// Cancelled to close the connections that are open, and replaced for those that come.
    connections: Mutex<CancellationToken>,
    to_target: Lane,
    from_target: Lane,
}

/// One direction.
#[derive(Debug)]
struct Lane {
    bytes: AtomicU64,
    /// When a slowed link will have passed what it was given.
    free_at: Mutex<Instant>,
}

/// Bytes that were passed on.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Traffic {
    /// To the target.
    pub to_target_bytes: u64,
    /// Back from it.
    pub from_target_bytes: u64,
}

impl Proxy {
    /// Listens on a free port of loopback and passes everything to `target`, which need not listen yet.
    pub async fn start(target: SocketAddr) -> anyhow::Result<Proxy> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("listen for the proxy")?;
        let address = listener.local_addr().context("read the proxy's address")?;
        let stop = CancellationToken::new();
        let shared = Arc::new(Shared {
            target: Mutex::new(target),
            weather: watch::Sender::new(Weather::Fair),
            connections: Mutex::new(stop.child_token()),
            stop,
            to_target: Lane::new(),
            from_target: Lane::new(),
        });
        tokio::spawn(accept(listener, shared.clone()));
        Ok(Proxy { address, shared })
    }

    /// Where to connect instead of the target.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Passes new connections to another target.
    pub fn redirect(&self, target: SocketAddr) {
        *self.shared.target.lock().unwrap_or_else(PoisonError::into_inner) = target;
    }

    /// Closes all connections, and each new one as soon as it comes.
    pub fn cut(&self) {
        self.shared.weather.send_replace(Weather::Cut);
        self.reset();
    }

    /// Closes the connections that are open; new ones are welcome.
    pub fn reset(&self) {
        let stop = self.shared.stop.child_token();
        let mut connections = self.shared.connections.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *connections, stop).cancel();
    }

    /// Keeps connections open and passes nothing. What was sent into it arrives after [`Proxy::heal`].
    pub fn stall(&self) {
        self.shared.weather.send_replace(Weather::Stalled);
    }

    /// Passes so many bytes a second in each direction.
    pub fn slow(&self, bytes_per_second: u64) {
        self.shared.weather.send_replace(Weather::Slow { bytes_per_second: bytes_per_second.max(1) });
    }

    /// Back to normal; connections that were closed stay closed.
    pub fn heal(&self) {
        self.shared.weather.send_replace(Weather::Fair);
    }

    /// What was passed on so far.
    pub fn traffic(&self) -> Traffic {
        Traffic {
            to_target_bytes: self.shared.to_target.bytes.load(Ordering::Relaxed),
            from_target_bytes: self.shared.from_target.bytes.load(Ordering::Relaxed),
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}

impl Shared {
    fn connections(&self) -> CancellationToken {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Lane {
    fn new() -> Lane {
        Lane { bytes: AtomicU64::new(0), free_at: Mutex::new(Instant::now()) }
    }

    /// Books the time that so many bytes take on a slowed link; returns when it will have passed them.
    fn book(&self, bytes: usize, bytes_per_second: u64) -> Instant {
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        let takes = Duration::from_secs_f64(bytes as f64 / bytes_per_second as f64);
        *free_at = (*free_at).max(Instant::now()) + takes;
        *free_at
    }

    /// Forgets what was booked: after a change of the weather it means nothing.
    fn clear(&self) {
        *self.free_at.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let accepted = tokio::select! {
            // Both are cancellation safe: a connection that was not taken stays in the queue.
            accepted = listener.accept() => accepted,
            () = shared.stop.cancelled() => return,
        };
        let Ok((client, _)) = accepted else { continue };
        // The token first: a cut that comes in between cancels it.
        let closed = shared.connections();
        if *shared.weather.borrow() == Weather::Cut {
            continue;
        }
        let shared = shared.clone();
        tokio::spawn(async move {
            tokio::select! {
                // Nothing is lost that matters: closing in the middle of everything is what is asked for.
                _ = connection(client, &shared) => {}
                () = closed.cancelled() => {}
            }
        });
    }
}

async fn connection(client: TcpStream, shared: &Shared) -> std::io::Result<()> {
    let target = *shared.target.lock().unwrap_or_else(PoisonError::into_inner);
    let server = TcpStream::connect(target).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    // One direction that breaks ends both; one that ends in order leaves the other open.
    tokio::try_join!(
        pump(from_client, to_server, &shared.to_target, shared.weather.subscribe()),
        pump(from_server, to_client, &shared.from_target, shared.weather.subscribe()),
    )?;
    Ok(())
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    lane: &Lane,
    mut weather: watch::Receiver<Weather>,
) -> std::io::Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES_MAX];
    loop {
        let limit = match *weather.borrow() {
            Weather::Slow { bytes_per_second } => bytes_per_second.div_ceil(SLOW_CHUNKS_PER_SECOND) as usize,
            _ => CHUNK_BYTES_MAX,
        };
        let bytes = from.read(&mut chunk[..limit.min(CHUNK_BYTES_MAX)]).await?;
        if bytes == 0 {
            return to.shutdown().await;
        }
        pass(bytes, lane, &mut weather).await;
        to.write_all(&chunk[..bytes]).await?;
        lane.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// Waits until so many bytes may go on.
async fn pass(bytes: usize, lane: &Lane, weather: &mut watch::Receiver<Weather>) {
    loop {
        let due = match *weather.borrow_and_update() {
            Weather::Fair | Weather::Cut => return,
            Weather::Stalled => None,
            Weather::Slow { bytes_per_second } => Some(lane.book(bytes, bytes_per_second)),
        };
        let passed = async {
            match due {
                Some(due) => tokio::time::sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // Both are cancellation safe: the one waits for a moment, the other for a change that stays visible.
            () = passed => return,
            changed = weather.changed() => {
                lane.clear();
                if changed.is_err() {
                    return; // the proxy is gone, and this connection about to be
                }
            }
        }
    }
}
