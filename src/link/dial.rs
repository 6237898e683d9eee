//! The dialling end: from `host:port` to a link.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

use super::{Conn, HANDSHAKE_WITHIN, Link, LinkError, Security, Socket, socket};
use crate::tls::{Credentials, peer_identity, server_name};

/// Patience with one address; a host may have several.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// Addresses of one host that are tried.
const ADDRESSES: usize = 4;

/// Connects to a peer's `host:port`. Not cancel-safe beyond the obvious: dropped, the connection is gone.
pub async fn dial(address: &str, security: &Security) -> Result<Link, LinkError> {
    let (tcp, peer) = connect(address).await?;
    socket::prepare(&tcp).map_err(|e| LinkError::io("set up the connection", e))?;
    match security {
        Security::Tls(credentials) => secure(tcp, peer, credentials).await,
        Security::Plain => socket::plain(tcp, peer),
    }
}

async fn connect(address: &str) -> Result<(TcpStream, SocketAddr), LinkError> {
    let failed = |source| LinkError::Lookup { address: address.to_owned(), source };
    let found = timeout(CONNECT_WITHIN, lookup_host(address)).await;
    let found = found.map_err(|_| failed(io::ErrorKind::TimedOut.into()))?.map_err(failed)?;
    let mut last_error = io::Error::from(io::ErrorKind::NotFound);
    for candidate in found.take(ADDRESSES) {
        match timeout(CONNECT_WITHIN, TcpStream::connect(candidate)).await {
            Ok(Ok(tcp)) => return Ok((tcp, candidate)),
            Ok(Err(e)) => last_error = e,
            Err(_) => last_error = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(LinkError::Connect { address: address.to_owned(), source: last_error })
}

async fn secure(tcp: TcpStream, peer: SocketAddr, credentials: &Credentials) -> Result<Link, LinkError> {
    let connecting = credentials.connector().connect(server_name()?, tcp);
    let stream = timeout(HANDSHAKE_WITHIN, connecting)
        .await
        .map_err(|_| LinkError::Silent(HANDSHAKE_WITHIN))?
        .map_err(|e| LinkError::io("shake hands over TLS", e))?;
    let identity = peer_identity(stream.get_ref().1.peer_certificates())?;
    let conn = Conn::new(Socket::Tls(Box::new(stream.into())));
    Ok(Link { conn, identity: Some(identity), address: peer })
}
