//! Opening the byte stream to a server: socket file, TCP, or TLS over TCP.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_postgres::config::SslMode;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use super::channel_binding;
use crate::pg::Conninfo;
use crate::pg::conninfo::Endpoint;
use crate::pg::message::frontend::Startup;

pub(super) type ReadHalf = Box<dyn AsyncRead + Send + Unpin>;
pub(super) type WriteHalf = Box<dyn AsyncWrite + Send + Unpin>;

/// A host that vanished is noticed after idle + 3 × interval, as long as TCP is idle …
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// … and after this when bytes are under way.
const USER_TIMEOUT: Duration = Duration::from_secs(20);

/// An open stream to a server, in two halves that never wait for each other.
pub(super) struct Socket {
    pub reader: ReadHalf,
    pub writer: WriteHalf,
    /// What authentication can be bound to, `tls-server-end-point` of RFC 5929; only with TLS.
    pub server_end_point: Option<Vec<u8>>,
}

/// Connects, and sets TLS up as the connection string asks for.
pub(super) async fn open(conninfo: &Conninfo) -> io::Result<Socket> {
    let (host, stream) = match conninfo.endpoint() {
        Endpoint::Unix(path) => {
            let (reader, writer) = UnixStream::connect(path).await?.into_split();
            let (reader, writer) = (Box::new(reader), Box::new(writer));
            return Ok(Socket { reader, writer, server_end_point: None });
        }
        Endpoint::Tcp { host, address: Some(address), port } => {
            (host, TcpStream::connect((*address, *port)).await?)
        }
        Endpoint::Tcp { host, address: None, port } => {
            (host, TcpStream::connect((host.as_str(), *port)).await?)
        }
    };
    tune(&stream)?;
    let wants_tls = match conninfo.ssl_mode() {
        SslMode::Disable => false,
        SslMode::Prefer => conninfo.tls().is_some(),
        _ => true,
    };
    if wants_tls { open_tls(stream, host, conninfo).await } else { Ok(plain(stream)) }
}

fn plain(stream: TcpStream) -> Socket {
    let (reader, writer) = stream.into_split();
    Socket { reader: Box::new(reader), writer: Box::new(writer), server_end_point: None }
}

async fn open_tls(mut stream: TcpStream, host: &str, conninfo: &Conninfo) -> io::Result<Socket> {
    let mut request = BytesMut::new();
    Startup::Ssl.encode(&mut request);
    stream.write_all(&request).await?;
    // One byte and no more: what would follow a plain `S` unencrypted could be anybody's.
    match (stream.read_u8().await?, conninfo.ssl_mode(), conninfo.tls()) {
        (b'S', _, Some(config)) => {
            let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
            let stream = TlsConnector::from(config.clone()).connect(name, stream).await?;
            let certificates = stream.get_ref().1.peer_certificates();
            let server_end_point =
                certificates.and_then(<[_]>::first).and_then(|leaf| channel_binding::server_end_point(leaf));
            let (reader, writer) = tokio::io::split(stream);
            Ok(Socket { reader: Box::new(reader), writer: Box::new(writer), server_end_point })
        }
        (b'S', _, None) => Err(io::Error::other("sslmode=require, but no TLS configuration was made")),
        (_, SslMode::Prefer, _) => Ok(plain(stream)),
        _ => Err(io::Error::other("sslmode=require, but the server has no TLS; set ssl = on there")),
    }
}

fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let keepalive =
        TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL).with_retries(3);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))
}
