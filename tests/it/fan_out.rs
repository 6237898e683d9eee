//! One sidecar with a hundred receivers: what each costs, and that a stalled one costs nothing but its position.
//!
//! The receivers are nodes by their certificates, over TLS, and write to nothing: what they take they acknowledge.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use walship::clock::WallTime;
use walship::link::message::{Ack, Hello, Purpose, Resume, Role};
use walship::link::{LinkError, Message, Security, dial, handshake};
use walship::pg::{Lsn, TimelineId};
use walship::report::Downstream;
use walship::tls::{Authority, Files, Kind, Pem};

use crate::harness::{Node, PATIENCE, Test};

const RECEIVERS: usize = 100;

/// How often a receiver says how far it is; and, as the link wants it, at least every second.
const ACK_EVERY: Duration = Duration::from_millis(200);

/// WAL that passes.
const PASSES_BYTES: u64 = 64 << 20;

/// What a receiver may cost the sidecar when nothing passes, and while it takes what does.
const IDLE_BYTES_MAX: u64 = 512 << 10;
const BUSY_BYTES_MAX: u64 = 1 << 20;

/// So many of them read no more while most of the WAL passes.
const STALLED: usize = 20;

/// How often the memory is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A hundred receivers that follow a node.
struct Receivers {
    /// How far each is.
    at: Vec<watch::Receiver<Lsn>>,
    /// True for one that is to read no more.
    stall: Vec<watch::Sender<bool>>,
    tasks: JoinSet<anyhow::Result<()>>,
}

impl Receivers {
    async fn attach(node: &Node) -> Receivers {
        let tls = node.store().join("tls");
        let key = Pem::read_key(&Files::authority_key(&tls)).unwrap();
        let authority = Authority::from_pem(Pem::read(&Files::in_folder(&tls).ca).unwrap(), &key).unwrap();
        let mut all = Receivers { at: Vec::new(), stall: Vec::new(), tasks: JoinSet::new() };
        for number in 1..=RECEIVERS {
            let name = format!("r{number}");
            let issued = authority.issue(&name, Kind::Node, WallTime::now()).unwrap();
            let credentials = authority.check(&issued, WallTime::now()).unwrap();
            let security = Security::Tls(Arc::new(credentials));
            let (at, position) = watch::channel(Lsn::INVALID);
            let (stall, stalled) = watch::channel(false);
            let receiver = Receiver { address: node.listen().to_string(), security, name, at, stalled };
            all.tasks.spawn(receiver.run());
            all.at.push(position);
            all.stall.push(stall);
        }
        all
    }

    /// Has the first of them read no more, or go on.
    fn stall(&self, stalled: bool) {
        for stall in &self.stall[..STALLED] {
            stall.send_replace(stalled);
        }
    }

    /// Waits until all but the first `left_out` have a position.
    async fn reach(&mut self, lsn: Lsn, left_out: usize) {
        for at in &mut self.at[left_out..] {
            let reached = tokio::time::timeout(PATIENCE, at.wait_for(|at| *at >= lsn)).await;
            assert!(
                matches!(reached, Ok(Ok(_))),
                "a receiver does not reach {lsn}: {:?}",
                self.tasks.try_join_next()
            );
        }
    }
}

/// One that follows a node and keeps nothing.
struct Receiver {
    address: String,
    security: Security,
    name: String,
    at: watch::Sender<Lsn>,
    stalled: watch::Receiver<bool>,
}

impl Receiver {
    /// Follows for as long as the test lasts. A stalled one is cut off by the kernel some time, and comes again.
    async fn run(self) -> anyhow::Result<()> {
        let mut link = dial::dial(&self.address, &self.security).await?;
        let stranger = Hello::of_stranger(self.name.clone(), Role::Standby, Purpose::Ask);
        let theirs = handshake::greet(&mut link.conn, &stranger, link.identity.as_ref()).await?;
        link.conn.close().await?;
        let start = theirs.kept.context("it has no WAL")?;
        self.at.send_replace(start.start_lsn);
        let ours = Hello {
            node: self.name.clone(),
            role: Role::Standby,
            purpose: Purpose::Stream,
            store_uuid: Some(format!("store-of-{}", self.name)),
            advertise: None,
            positions: None,
            kept: None,
            ..theirs
        };
        loop {
            let Err(error) = self.follow(&ours, start.timeline).await;
            ensure!(error.downcast_ref().is_some_and(LinkError::is_gone), "{}: {error:#}", self.name);
        }
    }

    /// Goes on from where it is until the connection ends.
    async fn follow(&self, ours: &Hello, timeline: TimelineId) -> anyhow::Result<Infallible> {
        let mut link = dial::dial(&self.address, &self.security).await?;
        handshake::greet(&mut link.conn, ours, link.identity.as_ref()).await?;
        let (mut reader, mut writer) = link.conn.split();
        let mut lsn = *self.at.borrow();
        writer.write(Message::Resume(Resume { timeline, lsn, frame: None })).await?;
        let mut tick = interval(ACK_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let reads = !*self.stalled.borrow();
            // Cancellation-safe: what has arrived stays in the reader.
            tokio::select! {
                message = reader.read(), if reads => {
                    if let Message::Wal(wal) = message? {
                        ensure!(wal.start_lsn == lsn, "WAL from {} instead of {lsn}", wal.start_lsn);
                        lsn = wal.end_lsn;
                        self.at.send_replace(lsn);
                    }
                }
                _ = tick.tick() => writer.write(Message::Ack(ack(timeline, lsn))).await?,
            }
        }
    }
}

fn ack(timeline: TimelineId, lsn: Lsn) -> Ack {
    Ack {
        timeline,
        written_lsn: lsn,
        flushed_lsn: lsn,
        replayed_lsn: lsn,
        restartpoint_lsn: lsn,
        is_copying: false,
        policy_serial: 0,
    }
}

/// What a process has in memory that is its own: its heap and stacks, not the pages of files.
fn own_bytes(node: &Node) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.sidecar.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// Waits for something, and looks at a node's memory meanwhile: the most that it was.
async fn most_bytes_during(node: &Node, something: impl Future<Output = ()>) -> u64 {
    let mut something = std::pin::pin!(something);
    let mut most = own_bytes(node);
    loop {
        // Cancellation-safe: it is pinned outside, and a look is short.
        tokio::select! {
            () = &mut something => return most.max(own_bytes(node)),
            () = tokio::time::sleep(LOOK_EVERY) => most = most.max(own_bytes(node)),
        }
    }
}

async fn written(node: &Node) -> Lsn {
    node.cluster.value("SELECT pg_current_wal_flush_lsn()").await.unwrap().parse().unwrap()
}

/// Writes so much WAL, which compresses to half.
async fn write(node: &Node, bytes: u64) {
    let from = written(node).await;
    node.cluster.sql("CREATE TABLE IF NOT EXISTS passing (text text)").await.unwrap();
    while written(node).await.bytes_since(from) < bytes {
        let rows = "INSERT INTO passing SELECT md5(random()::text) FROM generate_series(1, 20000)";
        node.cluster.sql(rows).await.unwrap();
    }
}

/// What a node knows of a receiver.
async fn known(node: &Node, name: &str) -> Downstream {
    let downstreams = node.status().await.unwrap().downstreams;
    downstreams.into_iter().find(|downstream| downstream.name == name).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_receivers_cost_little_and_a_stalled_one_its_position() {
    let test = Test::new();
    let db1 = test.primary("db1").await;
    write(&db1, 4 << 20).await;
    db1.captures().await;
    let alone = own_bytes(&db1);

    let mut receivers = Receivers::attach(&db1).await;
    receivers.reach(written(&db1).await, 0).await;
    let attached = own_bytes(&db1);
    let in_step = most_bytes_during(&db1, async {
        write(&db1, PASSES_BYTES / 2).await;
        receivers.reach(written(&db1).await, 0).await;
    })
    .await;

    receivers.stall(true);
    let before = known(&db1, "r100").await.traffic.wire_bytes;
    let stalled = most_bytes_during(&db1, async {
        write(&db1, PASSES_BYTES).await;
        receivers.reach(written(&db1).await, STALLED).await;
    })
    .await;
    let backlog = STALLED as u64 * (known(&db1, "r100").await.traffic.wire_bytes - before);
    let mib = [alone, attached, in_step, stalled, backlog].map(|bytes| bytes as f64 / f64::from(1 << 20));
    println!(
        "MiB of its own: {:.1} alone, {:.1} with {RECEIVERS} receivers, {:.1} at most while they take WAL, {:.1} while \
         {STALLED} of them are stalled and lack {:.1} as it is sent",
        mib[0], mib[1], mib[2], mib[3], mib[4]
    );
    let each = |bytes: u64| bytes.saturating_sub(alone) / RECEIVERS as u64;
    assert!(each(attached) < IDLE_BYTES_MAX, "{} bytes each", each(attached));
    assert!(each(in_step) < BUSY_BYTES_MAX, "{} bytes each", each(in_step));
    // Whoever is stalled has no more in hand than whoever is not.
    assert!(each(stalled) < BUSY_BYTES_MAX && each(backlog) > 2 * BUSY_BYTES_MAX, "{}", each(stalled));

    // It is where it was, and all is kept for it.
    let at = *receivers.at[0].borrow();
    assert!(known(&db1, "r1").await.progress.flushed == Some(at) && at < written(&db1).await);
    receivers.stall(false);
    receivers.reach(written(&db1).await, 0).await;
}
