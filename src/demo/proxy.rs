//! A bad network on demand: a TCP proxy on loopback that can be cut, stalled, slowed and healed.
//!
//! It stands between two sidecars: one is told the proxy's address instead of the other's.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::wire::{Traffic, Wire};

/// The proxy; dropping it closes all connections and the port.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    target: Mutex<SocketAddr>,
    wire: Wire,
    /// Cancelled when the proxy is dropped.
    stop: CancellationToken,
}

impl Proxy {
    /// Listens on a free port of loopback and passes everything to `target`, which need not listen yet.
    pub async fn start(target: SocketAddr) -> anyhow::Result<Proxy> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("listen for the proxy")?;
        let address = listener.local_addr().context("read the proxy's address")?;
        let (target, stop) = (Mutex::new(target), CancellationToken::new());
        let shared = Arc::new(Shared { target, wire: Wire::default(), stop });
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
        self.shared.wire.cut();
    }

    /// Closes the connections that are open; new ones are welcome.
    pub fn reset(&self) {
        self.shared.wire.reset();
    }

    /// Keeps connections open and passes nothing. What was sent into it arrives after [`Proxy::heal`].
    pub fn stall(&self) {
        self.shared.wire.stall();
    }

    /// Passes so many bytes a second in each direction.
    pub fn slow(&self, bytes_per_second: u64) {
        self.shared.wire.slow(bytes_per_second);
    }

    /// Back to normal; connections that were closed stay closed.
    pub fn heal(&self) {
        self.shared.wire.heal();
    }

    /// What was passed on so far.
    pub fn traffic(&self) -> Traffic {
        self.shared.wire.traffic()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stop.cancel();
        self.shared.wire.close();
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
        let target = *shared.target.lock().unwrap_or_else(PoisonError::into_inner);
        let shared = shared.clone();
        tokio::spawn(async move { shared.wire.carry(client, target).await });
    }
}
