//! Both ends of the way that pg_rewind's SQL takes: a socket file here, the link, a session over there.

use std::fs::{self, Permissions};
use std::future::Future;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context;
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{MissedTickBehavior, interval};

use super::asked::{Gate, Refused};
use crate::durable;
use crate::link::message::{Code, Heartbeat, Reject};
use crate::link::{Conn, HEARTBEAT_EVERY, LinkError, Message, PEER_DEAD_AFTER, Reader, Writer};
use crate::pg::message::backend::{Backend, ServerMessage};
use crate::pg::message::frontend::Startup;
use crate::pg::message::{MessageReader, MessageWriter};
use crate::pg::replication::Session;
use crate::pg::socket_file::{self, PATH_BYTES_MAX, PORT};

const PIECE_BYTES: usize = 256 << 10;

const BEAT: Message = Message::Heartbeat(Heartbeat::BARE);

/// Where pg_rewind connects to.
#[derive(Debug)]
pub struct Client {
    listener: UnixListener,
    path: PathBuf,
    /// Bytes that came for it.
    moved_bytes: Arc<AtomicU64>,
}

impl Client {
    /// Listens in a folder that nobody else may enter. Blocks for a moment.
    pub fn bind(folder: &Path) -> anyhow::Result<Client> {
        let path = socket_file::path_in(folder, PORT);
        anyhow::ensure!(
            path.as_os_str().len() <= PATH_BYTES_MAX,
            "the path {} is longer than the {PATH_BYTES_MAX} bytes of a unix socket's",
            path.display()
        );
        durable::create_folder(folder)?;
        fs::set_permissions(folder, Permissions::from_mode(0o700))
            .with_context(|| format!("make {} private", folder.display()))?;
        durable::remove(&path)?;
        let listener = UnixListener::bind(&path).with_context(|| format!("listen on {}", path.display()))?;
        fs::set_permissions(&path, Permissions::from_mode(0o600))
            .with_context(|| format!("protect {}", path.display()))?;
        Ok(Client { listener, path, moved_bytes: Arc::default() })
    }

    /// Counts the bytes that come for it.
    pub fn moved_bytes(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.moved_bytes)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // Whatever is left of it is taken away before the next.
        let _ = fs::remove_file(&self.path);
    }
}

/// Lends pg_rewind the session of another node, one connection after the other, until it is dropped; `connect` makes a
/// link for each.
pub async fn lend<S>(client: &Client, connect: impl AsyncFn() -> anyhow::Result<Conn<S>>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        let served = match client.listener.accept().await {
            Ok((stream, _)) => serve_client(stream, &connect, &client.moved_bytes).await,
            Err(error) => Err(error.into()),
        };
        if let Err(error) = served {
            // pg_rewind was told, and says so.
            tracing::info!("pg_rewind's connection ended: {error:#}");
        }
    }
}

async fn serve_client<S>(
    stream: UnixStream,
    connect: &impl AsyncFn() -> anyhow::Result<Conn<S>>,
    moved_bytes: &AtomicU64,
) -> anyhow::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (read, write) = stream.into_split();
    let (mut reader, mut writer) = (MessageReader::new(read), MessageWriter::new(write));
    loop {
        match reader.read_startup().await? {
            Some(Startup::Session { .. }) => break,
            Some(Startup::Ssl | Startup::Gss) => {
                writer.buffer().extend_from_slice(b"N");
                writer.flush().await?;
            }
            Some(Startup::Cancel { .. }) | None => return Ok(()),
        }
    }
    let (read, behind) = reader.into_parts();
    anyhow::ensure!(behind.is_empty(), "it goes on before it was let in");
    let mut write = writer.into_inner();
    let passed = async {
        let (link_reader, mut link_writer) = connect().await?.split();
        let counted = |bytes: &Bytes| {
            moved_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            Ok(bytes.clone())
        };
        // Either direction that ends is the end of both.
        tokio::select! {
            ended = inward(link_reader, &mut write, counted) => ended,
            ended = outward(read, &mut link_writer) => ended,
        }
    };
    let passed = passed.await;
    if let Err(error) = &passed {
        let mut told = BytesMut::new();
        Backend::ErrorResponse(ServerMessage::fatal("08006", format!("{error:#}"))).encode(&mut told);
        // It may be gone already.
        let _ = write.write_all(&told).await;
    }
    passed
}

/// Serves the other end: passes on what pg_rewind asks of a session, which `prepare` makes, and nothing else. Ends with
/// either of them.
pub async fn serve<S>(
    conn: Conn<S>,
    prepare: impl Future<Output = Result<Session, Reject>>,
) -> anyhow::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (reader, mut writer) = conn.split();
    let session = match prepared(&mut writer, prepare).await? {
        Ok(session) => session,
        Err(reject) => return refuse(&mut writer, reject).await,
    };
    writer.write(Message::Sql(session.greeting)).await?;
    let mut gate = Gate::default();
    let mut server = session.writer;
    // Either direction that ends is the end of both.
    let ended = tokio::select! {
        ended = inward(reader, &mut server, |bytes| Ok(gate.admit(bytes)?)) => ended,
        ended = outward(session.reader, &mut writer) => ended,
    };
    match ended {
        Err(error) if error.is::<Refused>() => {
            let hint = "Run it without --method rewind: the data directory is compared and copied then.";
            let reject = Reject { code: Code::Violation, message: error.to_string(), hint: hint.to_owned() };
            refuse(&mut writer, reject).await
        }
        ended => ended,
    }
}

/// Waits for the session, while the other end hears that somebody is here.
async fn prepared<S: AsyncRead + AsyncWrite>(
    writer: &mut Writer<S>,
    prepare: impl Future<Output = Result<Session, Reject>>,
) -> Result<Result<Session, Reject>, LinkError> {
    tokio::pin!(prepare);
    let mut ticker = interval(HEARTBEAT_EVERY);
    loop {
        // Cancel-safe: `prepare` is pinned outside, and a tick comes again.
        tokio::select! {
            prepared = &mut prepare => return Ok(prepared),
            _ = ticker.tick() => writer.write(BEAT).await?,
        }
    }
}

async fn refuse<S: AsyncRead + AsyncWrite>(writer: &mut Writer<S>, reject: Reject) -> anyhow::Result<()> {
    writer.write(Message::Reject(reject.clone())).await?;
    writer.close().await?;
    Err(LinkError::Refused(Box::new(reject)).into())
}

/// Waits until the other end is ready to pass on SQL; why not, otherwise.
pub async fn try_out<S: AsyncRead + AsyncWrite>(mut conn: Conn<S>) -> Result<(), LinkError> {
    loop {
        match conn.read_within(PEER_DEAD_AFTER).await? {
            Message::Sql(_) => return Ok(()),
            Message::Heartbeat(_) => {}
            other => return Err(LinkError::unexpected("Sql", other)),
        }
    }
}

/// From the link to a local end, through `admit`.
async fn inward<S: AsyncRead>(
    mut link: Reader<S>,
    local: &mut (impl AsyncWrite + Unpin),
    mut admit: impl FnMut(&Bytes) -> anyhow::Result<Bytes>,
) -> anyhow::Result<()> {
    loop {
        match link.read_within(PEER_DEAD_AFTER).await {
            Ok(Message::Sql(bytes)) => {
                local.write_all(&admit(&bytes)?).await?;
                local.flush().await?;
            }
            Ok(Message::Heartbeat(_)) => {}
            Ok(other) => return Err(LinkError::unexpected("Sql", other).into()),
            Err(LinkError::Closed) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// From a local end to the link, and a sign of life when there is nothing.
async fn outward<S: AsyncRead + AsyncWrite>(
    mut local: impl AsyncRead + Unpin,
    link: &mut Writer<S>,
) -> anyhow::Result<()> {
    let mut buffer = BytesMut::new();
    let mut ticker = interval(HEARTBEAT_EVERY);
    ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        buffer.reserve(PIECE_BYTES);
        // Cancel-safe: a read takes what it gives, and a tick comes again.
        tokio::select! {
            read = local.read_buf(&mut buffer) => {
                if read? == 0 {
                    return Ok(link.close().await?);
                }
                link.write(Message::Sql(buffer.split().freeze())).await?;
            }
            _ = ticker.tick() => link.write(BEAT).await?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::DuplexStream;
    use tokio::sync::Mutex;
    use tokio::task::LocalSet;

    use crate::pg::message::frontend::Frontend;

    /// The socket file's end and the server's, with all between them.
    async fn joined(folder: &Path, greeting: Result<&'static [u8], Reject>) -> (UnixStream, DuplexStream) {
        let client = Client::bind(folder).unwrap();
        let stream = UnixStream::connect(socket_file::path_in(folder, PORT)).await.unwrap();
        let (near, far) = tokio::io::duplex(1 << 16);
        let (server, session) = tokio::io::duplex(1 << 16);
        tokio::task::spawn_local(async move {
            let near = Mutex::new(Some(Conn::new(near)));
            lend(&client, async || near.lock().await.take().context("only one link")).await;
        });
        let (reader, writer) = tokio::io::split(session);
        let session = greeting.map(|greeting| Session {
            greeting: Bytes::from_static(greeting),
            reader: Box::new(reader),
            writer: Box::new(writer),
        });
        tokio::spawn(serve(Conn::new(far), async { session }));
        (stream, server)
    }

    async fn say(stream: &mut UnixStream, text: &str) {
        let mut query = BytesMut::new();
        Frontend::Query(text.to_owned()).encode(&mut query);
        stream.write_all(&query).await.unwrap();
    }

    async fn begin(stream: &mut UnixStream) {
        let mut startup = BytesMut::new();
        Startup::Ssl.encode(&mut startup);
        Startup::Session { minor: 0, parameters: vec![("user".to_owned(), "anybody".to_owned())] }
            .encode(&mut startup);
        stream.write_all(&startup).await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'N');
    }

    #[tokio::test]
    async fn what_pg_rewind_says_is_heard_by_the_server_and_anything_else_ends_it() {
        LocalSet::new().run_until(anything_else_ends_it()).await;
    }

    async fn anything_else_ends_it() {
        let folder = tempfile::tempdir().unwrap();
        let (mut client, mut server) = joined(folder.path(), Ok(b"hello")).await;
        begin(&mut client).await;
        let mut greeting = [0; 5];
        client.read_exact(&mut greeting).await.unwrap();
        assert_eq!(&greeting, b"hello", "who says it is anybody is let in as the sidecar is");
        say(&mut client, "SHOW full_page_writes").await;
        let mut heard = vec![0; 27];
        server.read_exact(&mut heard).await.unwrap();
        assert_eq!(heard[5..], *b"SHOW full_page_writes\0");
        server.write_all(b"on").await.unwrap();
        let mut answer = [0; 2];
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"on");
        say(&mut client, "DROP TABLE t").await;
        let (mut told, mut rest) = (Vec::new(), Vec::new());
        client.read_to_end(&mut told).await.unwrap();
        let told = String::from_utf8_lossy(&told);
        assert!(told.contains("FATAL") && told.contains("pg_rewind does not say this"), "{told:?}");
        server.read_to_end(&mut rest).await.unwrap();
        assert!(rest.is_empty(), "the server has heard {rest:?}");
    }

    #[tokio::test]
    async fn why_there_is_no_session_is_told_to_pg_rewind() {
        LocalSet::new().run_until(no_session()).await;
    }

    async fn no_session() {
        let folder = tempfile::tempdir().unwrap();
        let reject = Reject { code: Code::NotReady, message: "no grant".to_owned(), hint: String::new() };
        let (mut client, _server) = joined(folder.path(), Err(reject)).await;
        begin(&mut client).await;
        let mut told = String::new();
        client.read_to_string(&mut told).await.unwrap();
        assert!(told.contains("FATAL") && told.contains("no grant"), "{told:?}");
    }
}
