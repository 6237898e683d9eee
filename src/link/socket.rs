//! The byte streams between hosts: TCP with TLS, or plain TCP within one host.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

use super::{Conn, LinkError};
use crate::tls::{Credentials, Identity};

/// An idle connection is probed after so long, and then as often.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(5);

/// `TCP_USER_TIMEOUT`: bytes that the peer's host did not take for so long end the connection. Longer than
/// [`super::PEER_DEAD_AFTER`], which notices a dead peer from its silence, because it also runs while a living peer
/// waits for a slow disk and reads nothing.
const UNTAKEN_FOR: Duration = Duration::from_secs(30);

/// How connections are protected.
#[derive(Clone, Debug)]
pub enum Security {
    /// TLS 1.3 with certificates at both ends.
    Tls(Arc<Credentials>),
    /// Not at all; only where both ends are on one host.
    Plain,
}

/// A connection to a peer before any message.
#[derive(Debug)]
pub struct Link {
    /// What to talk over.
    pub conn: Conn<Socket>,
    /// Who the peer's certificate says it is; `None` without TLS.
    pub identity: Option<Identity>,
    /// The peer's address.
    pub address: SocketAddr,
}

/// A TCP connection, with or without TLS.
#[derive(Debug)]
pub enum Socket {
    /// Protected.
    Tls(Box<TlsStream<TcpStream>>),
    /// Within one host.
    Plain(TcpStream),
}

/// Makes a dead peer noticed, and small messages leave at once.
pub(super) fn prepare(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    let socket = SockRef::from(tcp);
    socket
        .set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE_EVERY).with_interval(KEEPALIVE_EVERY))?;
    socket.set_tcp_user_timeout(Some(UNTAKEN_FOR))
}

/// A link without TLS, if both ends are on this host.
pub(super) fn plain(tcp: TcpStream, peer: SocketAddr) -> Result<Link, LinkError> {
    let local = tcp.local_addr().map_err(|e| LinkError::io("look at the connection", e))?;
    if !(peer.ip().to_canonical().is_loopback() && local.ip().to_canonical().is_loopback()) {
        return Err(LinkError::PlainBeyondHost { peer });
    }
    Ok(Link { conn: Conn::new(Socket::Plain(tcp)), identity: None, address: peer })
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
            Socket::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Socket::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
            Socket::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Socket::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Socket::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Tls(stream) => Pin::new(stream).poll_flush(cx),
            Socket::Plain(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Socket::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            Socket::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
