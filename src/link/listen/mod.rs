//! The accepting end. Whatever arrives is given bounded time and memory until it has shown a certificate.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::{Conn, HANDSHAKE_WITHIN, Link, LinkError, Security, Socket, socket};
use crate::tls::{Credentials, peer_identity};

/// Connections that may be shaking hands at once; more wait in the kernel's queue.
const STRANGERS: usize = 64;

/// Pause when the process is out of file descriptors or the like.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(500);

/// What is still read from a peer whose handshake failed, so that it can read why.
const LAST_BYTES: u64 = 64 << 10;
const LAST_BYTES_WITHIN: Duration = Duration::from_secs(1);

/// A listening socket.
#[derive(Debug)]
pub struct Listener {
    tcp: TcpListener,
    strangers: Arc<Semaphore>,
}

/// A connection that nothing is known about. Dropped, it is closed.
#[derive(Debug)]
pub struct Arrival {
    tcp: TcpStream,
    peer: SocketAddr,
    _place: Option<OwnedSemaphorePermit>,
}

impl Listener {
    /// Listens on `host:port`.
    pub async fn bind(address: &str) -> Result<Listener, LinkError> {
        let failed = |source| LinkError::Bind { address: address.to_owned(), source };
        let tcp = TcpListener::bind(address).await.map_err(failed)?;
        Ok(Listener { tcp, strangers: Arc::new(Semaphore::new(STRANGERS)) })
    }

    /// Where it listens; tells the port when 0 was asked for.
    pub fn local_address(&self) -> Result<SocketAddr, LinkError> {
        self.tcp.local_addr().map_err(|e| LinkError::io("look at the listening socket", e))
    }

    /// The next connection; call [`Arrival::secure`] on it in a task of its own. Cancel-safe.
    pub async fn accept(&self) -> Arrival {
        // The semaphore is never closed, so there always is a place, sooner or later.
        let place = self.strangers.clone().acquire_owned().await.ok();
        loop {
            match self.tcp.accept().await {
                Ok((tcp, peer)) => return Arrival { tcp, peer, _place: place },
                // The peer thought better of it.
                Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(e) => {
                    tracing::warn!(error = %e, "cannot accept connections, trying again");
                    tokio::time::sleep(SHORTAGE_PAUSE).await;
                }
            }
        }
    }
}

impl Arrival {
    /// Where it comes from.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Shakes hands. Whoever has no certificate of ours is told so and dropped, within bounded time.
    pub async fn secure(self, security: &Security) -> Result<Link, LinkError> {
        socket::prepare(&self.tcp).map_err(|e| LinkError::io("set up the connection", e))?;
        match security {
            Security::Tls(credentials) => secure(self.tcp, self.peer, credentials).await,
            Security::Plain => socket::plain(self.tcp, self.peer),
        }
    }
}

async fn secure(tcp: TcpStream, peer: SocketAddr, credentials: &Credentials) -> Result<Link, LinkError> {
    let accepting = credentials.acceptor()?.accept(tcp).into_fallible();
    let accepted = timeout(HANDSHAKE_WITHIN, accepting).await;
    match accepted.map_err(|_| LinkError::Silent(HANDSHAKE_WITHIN))? {
        Ok(stream) => {
            let identity = peer_identity(stream.get_ref().1.peer_certificates())?;
            let conn = Conn::new(Socket::Tls(Box::new(stream.into())));
            Ok(Link { conn, identity: Some(identity), address: peer })
        }
        Err((e, tcp)) => {
            let _ = timeout(LAST_BYTES_WITHIN, hang_up(tcp)).await;
            // A port scan, or a peer that was killed meanwhile.
            let gone = e.kind() == io::ErrorKind::UnexpectedEof;
            Err(if gone { LinkError::Closed } else { LinkError::io("shake hands over TLS", e) })
        }
    }
}

/// Closes a connection such that the peer can read what was sent last: unread bytes would reset it.
async fn hang_up(mut tcp: TcpStream) -> io::Result<()> {
    tcp.shutdown().await?;
    tokio::io::copy(&mut tcp.take(LAST_BYTES), &mut tokio::io::sink()).await.map(|_| ())
}

#[cfg(test)]
mod tests;
