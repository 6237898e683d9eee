//! A base backup from a sidecar elsewhere, for whoever holds a certificate: a node, or a reader that is no member.
//!
//! Files come as they do for a new standby. The WAL comes on a connection of its own and goes straight into the copy:
//! there is no store here.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{MissedTickBehavior, interval};

use super::attempts::{NoPrimary, until_copied};
use crate::clock::WallTime;
use crate::config::Bundle;
use crate::fault::{Advised, Fault, WithFault};
use crate::link::message::{Heartbeat, Hello, Purpose, Resume, Role, Timeline, Wal};
use crate::link::{
    Conn, HEARTBEAT_EVERY, LinkError, Message, PEER_DEAD_AFTER, Reader, Security, Socket, Writer, dial,
    handshake,
};
use crate::pg::{Lsn, TimelineId};
use crate::restore::{Options, Progress, Report, WalSink, WalSource, take_backup};
use crate::store::FrameDecoder;
use crate::tls::{Credentials, Files};
use crate::vitals::Cell;

/// How long a person, or a script, waits for a source that went away.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where a copy may come from, and who asks for it.
#[derive(Clone, Debug)]
pub struct Remote {
    /// Sidecars, in order of preference, as `host:port`; the first that is the primary's is asked.
    pub addresses: Vec<String>,
    /// What the asker shows.
    pub credentials: Arc<Credentials>,
    /// The cluster that it has to be, where that is known.
    pub system_identifier: Option<u64>,
    /// Whether the copy is to have the WAL that it needs.
    pub with_wal: bool,
}

impl Remote {
    /// As a join bundle says. Blocks.
    pub fn from_bundle(bundle: &Bundle) -> anyhow::Result<Remote> {
        Ok(Remote {
            addresses: bundle.addresses.iter().map(ToString::to_string).collect(),
            credentials: Arc::new(bundle.credentials().advised()?),
            system_identifier: bundle.system_identifier,
            with_wal: true,
        })
    }

    /// With the certificate of the node whose TLS folder this is. Blocks.
    pub fn from_node(tls_folder: PathBuf, address: String) -> anyhow::Result<Remote> {
        let loaded = Credentials::load(&Files::in_folder(&tls_folder), WallTime::now());
        let credentials = loaded.map_err(|error| {
            let hint = error.hint();
            Fault::advise(error, hint)
        })?;
        Ok(Remote {
            addresses: vec![address],
            credentials: Arc::new(credentials),
            system_identifier: None,
            with_wal: true,
        })
    }
}

/// Asks whether there is something to copy.
pub async fn look(remote: &Remote) -> anyhow::Result<()> {
    Source::find(remote.clone()).await.map(drop)
}

/// Copies the cluster that a sidecar elsewhere serves. Once it was reached, a link that is cut is waited for a while.
pub async fn copy(remote: Remote, options: Options, progress: Arc<Cell<Progress>>) -> anyhow::Result<Report> {
    let mut first = Some(Source::find(remote.clone()).await?);
    until_copied(Some(PATIENCE), &progress, async || {
        let source = match first.take() {
            Some(source) => source,
            None => Source::find(remote.clone()).await?,
        };
        let source = Arc::new(source);
        let connect = |purpose| source.connect(purpose);
        let wal = source.remote.with_wal.then(|| wal_source(Arc::clone(&source)));
        take_backup(options.clone(), connect, wal, Arc::clone(&progress)).await
    })
    .await
}

/// The one sidecar that all connections of a copy go to.
struct Source {
    remote: Remote,
    address: String,
}

impl Source {
    /// Asks at each address who is there.
    async fn find(remote: Remote) -> anyhow::Result<Source> {
        let mut source = Source { remote, address: String::new() };
        let mut failures = Vec::new();
        for address in source.remote.addresses.clone() {
            source.address = address;
            match source.greet(Purpose::Ask).await {
                Ok((_, hello)) if hello.role == Role::Primary => return Ok(source),
                Ok((_, hello)) => failures.push(source.refusal_of(&hello).await),
                Err(error) => failures.push(error.context(format!("ask {}", source.address))),
            }
        }
        // One failure speaks for itself, with its hint.
        if failures.len() <= 1 {
            return Err(failures.pop().context("there is no address to copy from")?);
        }
        let told: Vec<String> = failures.iter().map(|error| format!("{error:#}")).collect();
        Err(NoPrimary { told: told.join("; ") }).hint("Name the primary's address with --from.")
    }

    /// Why another than the primary is not copied. Asked for a copy it says where the primary is.
    async fn refusal_of(&self, asked: &Hello) -> anyhow::Error {
        let refused = self.greet(Purpose::Backup).await.err();
        let hint = refused.as_ref().and_then(Fault::hint_of).unwrap_or("`walship status` shows the primary.");
        Fault::refused(
            format!(
                "{} at {} is {}, and only the primary is copied",
                asked.node,
                self.address,
                asked.role.name()
            ),
            format!("{hint} Name its address with --from."),
        )
    }

    async fn connect(&self, purpose: Purpose) -> anyhow::Result<Conn<Socket>> {
        let (conn, _) = self.greet(purpose).await.with_context(|| format!("connect to {}", self.address))?;
        Ok(conn)
    }

    async fn greet(&self, purpose: Purpose) -> anyhow::Result<(Conn<Socket>, Hello)> {
        let security = Security::Tls(Arc::clone(&self.remote.credentials));
        let mut link = dial::dial(&self.address, &security).await.advised()?;
        let greeted = handshake::greet(&mut link.conn, &self.hello(purpose), link.identity.as_ref()).await;
        Ok((link.conn, greeted.advised()?))
    }

    /// A reader's, whatever the certificate allows: a copy makes nobody a member.
    fn hello(&self, purpose: Purpose) -> Hello {
        let name = self.remote.credentials.identity().name.clone();
        Hello {
            system_identifier: self.remote.system_identifier,
            ..Hello::of_stranger(name, Role::Reader, purpose)
        }
    }
}

fn wal_source(source: Arc<Source>) -> WalSource {
    Box::new(move |sink| {
        Box::pin(async move {
            let conn = source.connect(Purpose::Wal).await?;
            bring_wal(conn, &sink).await
        })
    })
}

/// Takes WAL from the sidecar's store until it is dropped.
async fn bring_wal<S: AsyncRead + AsyncWrite>(conn: Conn<S>, sink: &WalSink) -> anyhow::Result<()> {
    let (reader, mut writer) = conn.split();
    let resume = Resume { timeline: sink.timeline, lsn: sink.start_lsn, frame: None };
    writer.write(Message::Resume(resume)).await?;
    // Each branch ends only with an error, and neither is needed again then.
    tokio::select! {
        ended = receive(reader, sink) => ended,
        ended = give_signs_of_life(writer) => ended,
    }
}

/// Also while the disk is slow and nothing is read.
async fn give_signs_of_life<S: AsyncWrite>(mut writer: Writer<S>) -> anyhow::Result<()> {
    let mut tick = interval(HEARTBEAT_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        writer.write(Message::Heartbeat(Heartbeat::BARE)).await?;
    }
}

async fn receive<S: AsyncRead>(mut reader: Reader<S>, sink: &WalSink) -> anyhow::Result<()> {
    let mut unpacker = Unpacker { timeline: sink.timeline, end: sink.start_lsn, decoder: None };
    loop {
        match reader.read_within(PEER_DEAD_AFTER).await.advised()? {
            Message::Wal(wal) => {
                let start = wal.start_lsn;
                let unpacking = tokio::task::spawn_blocking(move || {
                    let raw = unpacker.unpack(&wal);
                    (unpacker, raw)
                });
                let raw;
                (unpacker, raw) = unpacking.await.context("decompress WAL")?;
                let raw = raw?;
                // What closes a frame late brings no WAL.
                if !raw.is_empty() {
                    sink.write(start, raw).await?;
                }
            }
            Message::Timeline(timeline) => enter(timeline, sink).await?,
            Message::Heartbeat(_) | Message::Samples(_) | Message::Members(_) | Message::Standing(_) => {}
            other => return Err(LinkError::unexpected("Wal", other)).advised(),
        }
    }
}

async fn enter(timeline: Timeline, sink: &WalSink) -> anyhow::Result<()> {
    let number = timeline.identity.timeline;
    if number != sink.timeline {
        return Err(anyhow::anyhow!("the source went on to timeline {number} during the copy"))
            .hint("There is a new primary: run this again, with its address.");
    }
    if number > TimelineId::FIRST {
        ensure!(!timeline.history.is_empty(), "the source sent no history of timeline {number}");
        sink.write_history(number, Bytes::from(timeline.history)).await?;
    }
    Ok(())
}

/// Turns messages into WAL, and believes none that does not follow the one before.
struct Unpacker {
    timeline: TimelineId,
    end: Lsn,
    decoder: Option<FrameDecoder>,
}

impl Unpacker {
    /// Blocks: decompresses.
    fn unpack(&mut self, wal: &Wal) -> anyhow::Result<Bytes> {
        ensure!(
            wal.timeline == self.timeline,
            "WAL of timeline {} came, not of {}",
            wal.timeline,
            self.timeline
        );
        ensure!(wal.start_lsn == self.end, "WAL from {} came where {} was due", wal.start_lsn, self.end);
        if wal.opens_frame {
            self.decoder = None;
        }
        let decoder = match &mut self.decoder {
            Some(decoder) => decoder,
            None if wal.opens_frame => self.decoder.insert(FrameDecoder::new()?),
            None => bail!("WAL from {} continues a frame that was never begun", wal.start_lsn),
        };
        let mut raw = Vec::new();
        decoder.read(&wal.data, &mut raw)?;
        ensure!(
            raw.len() as u64 == wal.raw_bytes(),
            "WAL from {} to {} holds {} bytes",
            wal.start_lsn,
            wal.end_lsn,
            raw.len()
        );
        self.end = wal.end_lsn;
        Ok(raw.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const TIMELINE: TimelineId = TimelineId(3);

    fn wal(start: u64, raw: &[u8], opens_frame: bool, data: Vec<u8>) -> Wal {
        let (start_lsn, end_lsn) = (Lsn(start), Lsn(start + raw.len() as u64));
        Wal { timeline: TIMELINE, start_lsn, end_lsn, opens_frame, data: data.into() }
    }

    /// The same frame in pieces: what each flush brought, and what ends it.
    fn frame(pieces: &[&[u8]]) -> Vec<Vec<u8>> {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        let mut data = Vec::new();
        for piece in pieces {
            encoder.write_all(piece).unwrap();
            encoder.flush().unwrap();
            data.push(std::mem::take(encoder.get_mut()));
        }
        data.push(encoder.finish().unwrap());
        data
    }

    /// Two frames: the first in three messages of which the last only closes it, the second in one.
    fn stream() -> Vec<Wal> {
        let [one, two, closing] = frame(&[b"one", b"two"]).try_into().unwrap();
        let three = frame(&[b"three"]).concat();
        vec![
            wal(100, b"one", true, one),
            wal(103, b"two", false, two),
            wal(106, b"", false, closing),
            wal(106, b"three", true, three),
        ]
    }

    fn unpacker() -> Unpacker {
        Unpacker { timeline: TIMELINE, end: Lsn(100), decoder: None }
    }

    #[test]
    fn messages_become_wal() {
        let mut unpacker = unpacker();
        let raw: Vec<Bytes> = stream().iter().map(|wal| unpacker.unpack(wal).unwrap()).collect();
        assert_eq!(raw.concat(), b"onetwothree");
        assert_eq!(unpacker.end, Lsn(111));
    }

    #[test]
    fn what_does_not_follow_is_refused() {
        let refused = |change: fn(&mut Vec<Wal>)| {
            let (mut stream, mut unpacker) = (stream(), unpacker());
            change(&mut stream);
            let error = stream.iter().find_map(|wal| unpacker.unpack(wal).err()).unwrap();
            error.to_string()
        };
        assert_eq!(refused(|stream| drop(stream.remove(1))), "WAL from 0/6A came where 0/67 was due");
        assert_eq!(refused(|stream| stream[3].timeline = TimelineId(4)), "WAL of timeline 4 came, not of 3");
        assert_eq!(
            refused(|stream| stream[0].opens_frame = false),
            "WAL from 0/64 continues a frame that was never begun"
        );
        assert_eq!(refused(|stream| stream[3].end_lsn = Lsn(112)), "WAL from 0/6A to 0/70 holds 5 bytes");
        assert!(refused(|stream| stream[3].data = Bytes::from_static(b"garbage")).contains("zstd"));
    }
}
