//! What a bad network does to the connections between two parties: closes them, holds them back, slows them.
//!
//! It applies to connections that are open and to those that come, and each direction has a weather of its own.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// What is passed on at once.
const CHUNK_BYTES_MAX: usize = 64 * 1024;

/// A slowed wire passes this many chunks a second, so that it flows instead of bursting.
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
    /// So many bytes pass in a second, over all connections together.
    Slow { bytes_per_second: u64 },
}

/// Seen from who connects.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// What the one who connects says.
    ToTarget,
    /// What it is answered.
    FromTarget,
}

/// Bytes that were passed on.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Traffic {
    /// To the target.
    pub to_target_bytes: u64,
    /// Back from it.
    pub from_target_bytes: u64,
}

/// All connections of one party to another. Dropping it closes none; [`Wire::close`] does.
#[derive(Debug)]
pub struct Wire {
    to_target: Lane,
    from_target: Lane,
    /// Cancelled for good when the wire is closed.
    stop: CancellationToken,
    /// Cancelled to close the connections that are open, and replaced for those that come.
    connections: Mutex<CancellationToken>,
}

/// One direction.
#[derive(Debug)]
struct Lane {
    weather: watch::Sender<Weather>,
    bytes: AtomicU64,
    /// When a slowed wire will have passed what it was given.
    free_at: Mutex<Instant>,
}

impl Default for Wire {
    fn default() -> Wire {
        let stop = CancellationToken::new();
        Wire {
            to_target: Lane::new(),
            from_target: Lane::new(),
            connections: Mutex::new(stop.child_token()),
            stop,
        }
    }
}

impl Wire {
    /// Closes all connections, and each new one as soon as it comes.
    pub fn cut(&self) {
        self.set(Weather::Cut);
        self.reset();
    }

    /// Closes the connections that are open; new ones are welcome.
    pub fn reset(&self) {
        let stop = self.stop.child_token();
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *connections, stop).cancel();
    }

    /// Keeps connections open and passes nothing. What was sent into it arrives after [`Wire::heal`].
    pub fn stall(&self) {
        self.set(Weather::Stalled);
    }

    /// Passes nothing in one direction, while the other goes on as it did.
    pub fn stall_one_way(&self, direction: Direction) {
        self.lane(direction).weather.send_replace(Weather::Stalled);
    }

    /// Passes so many bytes a second in each direction.
    pub fn slow(&self, bytes_per_second: u64) {
        self.set(Weather::Slow { bytes_per_second: bytes_per_second.max(1) });
    }

    /// Back to normal; connections that were closed stay closed.
    pub fn heal(&self) {
        self.set(Weather::Fair);
    }

    /// What was passed on so far.
    pub fn traffic(&self) -> Traffic {
        Traffic {
            to_target_bytes: self.to_target.bytes.load(Ordering::Relaxed),
            from_target_bytes: self.from_target.bytes.load(Ordering::Relaxed),
        }
    }

    /// Closes all connections for good.
    pub fn close(&self) {
        self.stop.cancel();
    }

    /// Connects to the target for a client, and passes on what the two say until one of them ends, the wire is cut, or
    /// something breaks, which ends both.
    pub async fn carry(&self, client: TcpStream, target: SocketAddr) {
        // The token first: a cut that comes in between cancels it.
        let closed = self.connections.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if *self.to_target.weather.borrow() == Weather::Cut {
            return;
        }
        tokio::select! {
            // Nothing is lost that matters: closing in the middle of everything is what is asked for.
            _ = self.connection(client, target) => {}
            () = closed.cancelled() => {}
        }
    }

    async fn connection(&self, client: TcpStream, target: SocketAddr) -> std::io::Result<()> {
        let server = TcpStream::connect(target).await?;
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        // One direction that breaks ends both; one that ends in order leaves the other open.
        tokio::try_join!(
            self.to_target.pump(from_client, to_server),
            self.from_target.pump(from_server, to_client),
        )?;
        Ok(())
    }

    fn lane(&self, direction: Direction) -> &Lane {
        match direction {
            Direction::ToTarget => &self.to_target,
            Direction::FromTarget => &self.from_target,
        }
    }

    fn set(&self, weather: Weather) {
        for lane in [&self.to_target, &self.from_target] {
            lane.weather.send_replace(weather);
        }
    }
}

impl Lane {
    fn new() -> Lane {
        Lane {
            weather: watch::Sender::new(Weather::Fair),
            bytes: AtomicU64::new(0),
            free_at: Mutex::new(Instant::now()),
        }
    }

    async fn pump(&self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) -> std::io::Result<()> {
        let mut weather = self.weather.subscribe();
        let mut chunk = vec![0; CHUNK_BYTES_MAX];
        loop {
            let limit = match *weather.borrow() {
                Weather::Slow { bytes_per_second } => {
                    bytes_per_second.div_ceil(SLOW_CHUNKS_PER_SECOND) as usize
                }
                _ => CHUNK_BYTES_MAX,
            };
            let bytes = from.read(&mut chunk[..limit.min(CHUNK_BYTES_MAX)]).await?;
            if bytes == 0 {
                return to.shutdown().await;
            }
            self.pass(bytes, &mut weather).await;
            to.write_all(&chunk[..bytes]).await?;
            self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        }
    }

    /// Waits until so many bytes may go on.
    async fn pass(&self, bytes: usize, weather: &mut watch::Receiver<Weather>) {
        loop {
            let due = match *weather.borrow_and_update() {
                Weather::Fair | Weather::Cut => return,
                Weather::Stalled => None,
                Weather::Slow { bytes_per_second } => Some(self.book(bytes, bytes_per_second)),
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
                    self.clear();
                    if changed.is_err() {
                        return; // the wire is gone, and this connection about to be
                    }
                }
            }
        }
    }

    /// Books the time that so many bytes take on a slowed wire; returns when it will have passed them.
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
