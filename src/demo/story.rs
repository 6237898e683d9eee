//! The story that `walship demo` tells: real servers and real commands, from the first base backup to the last row
//! after a failover. What must be so and is not is an error.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

use super::latency::{self, Latencies};
use super::node::{Node, free_address};
use super::stage::Stage;
use super::summary::{Copied, Summary, grouped};
use super::told::{Teller, Told};
use super::{Ledger, Proxy, Workload, WorkloadOptions, digest, wait};
use crate::pg::{Lsn, TimelineId};
use crate::report::lag::{self, Stage as LagStage};
use crate::report::{Role, Status, table, units};
use crate::vitals::Contact;

/// The nodes: the first primary, and two standbys. The link of the first standby is the one that is cut.
pub const NODES: [&str; 3] = ["db1", "db2", "db3"];

/// How long anything may take that takes seconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long the copy of a large database may take.
const COPY_PATIENCE: Duration = Duration::from_secs(1800);

/// How long the link is cut.
const CUT_SECONDS: u64 = 3;

/// How often something that moves is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How often a write is tried on a standby that is being promoted.
const WRITE_EVERY: Duration = Duration::from_millis(10);

/// How long the new primary is written to before the rows are compared.
const WRITE_AFTERWARDS: Duration = Duration::from_secs(2);

/// The timeline that a primary writes: the first eight digits of a segment's name.
const TIMELINE: &str = "SELECT ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int";

/// What may be chosen.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Rows that the primary holds before it is copied.
    pub rows: u64,
    /// How long the lag is watched.
    pub seconds: u64,
}

/// Who plays, and what was measured so far.
struct Story<'a> {
    teller: Teller<'a>,
    db1: Node,
    /// `db2` and `db3`.
    standbys: [Node; 2],
    /// Before `db1`, for all but `db3`.
    proxy: Proxy,
    listen: SocketAddr,
    summary: Summary,
}

/// Plays it all.
pub async fn play(stage: &Stage, options: Options, teller: Teller<'_>) -> anyhow::Result<Summary> {
    let began = Instant::now();
    let mut story = Story::begin(stage, options, teller).await?;
    let workload = story.copy_twice().await?;
    story.watch_lag(&workload, options.seconds).await?;
    story.cut_and_heal(&workload).await?;
    let shipped = story.lose_the_primary().await?;
    let at_loss = workload.ledger();
    story.promote().await?;
    workload.redirect(&story.standbys[0].cluster.conninfo());
    tokio::time::sleep(WRITE_AFTERWARDS).await;
    let ledger = workload.stop().await;
    story.compare(&at_loss, &ledger, shipped).await?;
    story.summary.took = began.elapsed();
    Ok(story.summary)
}

impl<'a> Story<'a> {
    /// A primary with rows in it, and its sidecar.
    async fn begin(stage: &Stage, options: Options, mut teller: Teller<'a>) -> anyhow::Result<Story<'a>> {
        teller.part("1. A primary with data");
        let began = Instant::now();
        let db1 = Node::with_postgres(stage, NODES[0]).await?;
        db1.cluster.sql(&fill(options.rows)).await?;
        let bytes = db1.cluster.value("SELECT sum(pg_database_size(oid)) FROM pg_database").await?.parse()?;
        teller.line(format!(
            "PostgreSQL {} with {} rows, {}, made in {:.1} s",
            stage.binaries.major(),
            grouped(options.rows),
            units::size(bytes),
            began.elapsed().as_secs_f64()
        ));
        let listen = free_address()?;
        let proxy = Proxy::start(listen).await?;
        let standbys = [Node::empty(stage, NODES[1])?, Node::empty(stage, NODES[2])?];
        let mut story = Story { teller, db1, standbys, proxy, listen, summary: Summary::default() };
        let (listen, advertise) = (listen.to_string(), story.proxy.address().to_string());
        let init = ["init", "--name", "db1", "-D", "data", "--listen", &listen, "--advertise", &advertise];
        run(&mut story.teller, &story.db1, &init).await?;
        let checked = run(&mut story.teller, &story.db1, &["check"]).await?;
        story.teller.output(checked.lines().last().unwrap_or_default());
        story.teller.command("db1", &["primary"]);
        story.db1.start(&["primary"])?;
        let running = async |node: &Node| is_up(&node.status().await?.primary.contact);
        story.db1.until("the sidecar of db1 is connected to PostgreSQL", PATIENCE, running).await?;
        Ok(story)
    }

    /// Two standbys, seeded while clients write.
    async fn copy_twice(&mut self) -> anyhow::Result<Workload> {
        self.teller.part("2. Two standbys, copied while four clients write");
        let options = WorkloadOptions { pause: Duration::from_millis(2), ..WorkloadOptions::default() };
        let workload = Workload::start(&self.db1.cluster.conninfo(), &options).await?;
        // db3 is told the primary's own address, so that a cut of the proxy does not reach it.
        let direct = self.listen.to_string();
        run(&mut self.teller, &self.db1, &["invite", "db2", "-o", "db2.join"]).await?;
        run(&mut self.teller, &self.db1, &["invite", "db3", "--address", &direct, "-o", "db3.join"]).await?;
        for index in 0..self.standbys.len() {
            self.copy(index).await?;
        }
        Ok(workload)
    }

    /// One standby, from nothing to following.
    async fn copy(&mut self, index: usize) -> anyhow::Result<()> {
        let (began, listen) = (Instant::now(), free_address()?.to_string());
        let standby = &mut self.standbys[index];
        let bundle = format!("../db1/{}.join", standby.name());
        let join = ["standby", "--join", &bundle, "-D", "data", "-k", "$PWD/socket", "--listen", &listen];
        self.teller.command(standby.name(), &join);
        standby.start(&join)?;
        let (teller, db1) = (&mut self.teller, &mut self.db1);
        let mut copied = Copied { node: standby.name(), bytes: 0, took: Duration::ZERO };
        let mut copying_since = None;
        standby
            .until("the standby answers", COPY_PATIENCE, async |standby| {
                if let Err(ended) = db1.has_not_ended() {
                    return Ok(Err(ended));
                }
                let status = db1.status().await?;
                if let Some(backup) = status.backups.iter().find(|b| b.client == standby.name()) {
                    let (phase, done_bytes) = (backup.phase.as_str(), backup.done_bytes);
                    if done_bytes > copied.bytes {
                        let since = copying_since.get_or_insert_with(Instant::now);
                        (copied.bytes, copied.took) = (done_bytes, since.elapsed());
                    }
                    teller.tell(Told::Progress { phase, done_bytes, total_bytes: backup.total_bytes });
                }
                tokio::time::sleep(LOOK_EVERY).await;
                standby.replayed().await.map(Ok)
            })
            .await??;
        let end = self.db1.flushed().await?;
        self.standbys[index].until_replayed(end, PATIENCE).await?;
        self.teller.line(copied.to_string());
        let seconds = began.elapsed().as_secs_f64();
        self.teller.line(format!("{} follows, {seconds:.1} s after the command", copied.node));
        self.summary.backups.push(copied);
        Ok(())
    }

    /// Lag second by second, and in between how long a commit takes to be seen.
    async fn watch_lag(&mut self, workload: &Workload, seconds: u64) -> anyhow::Result<()> {
        self.teller.part("3. Streaming");
        self.db1.cluster.sql(latency::CREATE_TABLE).await?;
        let created = self.db1.flushed().await?;
        self.standbys[1].until_replayed(created, PATIENCE).await?;
        let before = traffic(&self.db1.status().await?);
        let (primary, standby) = (self.db1.cluster.conninfo(), self.standbys[1].cluster.conninfo());
        let measuring = Latencies::measure(&primary, &standby, Duration::from_secs(seconds));
        let watching = each_second(&mut self.teller, &self.db1, workload, seconds);
        let (latencies, ()) = tokio::try_join!(measuring, watching)?;
        let after = traffic(&self.db1.status().await?);
        self.summary.raw_bytes = after.0.saturating_sub(before.0);
        self.summary.wire_bytes = after.1.saturating_sub(before.1);
        self.summary.latencies = latencies;
        let lag = run(&mut self.teller, &self.db1, &["lag", "--format", "table"]).await?;
        self.teller.output(&lag);
        Ok(())
    }

    /// The link between `db1` and `db2` goes away and comes back.
    async fn cut_and_heal(&mut self, workload: &Workload) -> anyhow::Result<()> {
        self.teller.part("4. The link from db1 to db2 is cut, and heals");
        self.proxy.cut();
        self.teller.line("cut; db1 goes on, and db2 gets its WAL elsewhere");
        each_second(&mut self.teller, &self.db1, workload, CUT_SECONDS).await?;
        let [db2, _] = &mut self.standbys;
        let from = async |node: &Node, upstream| way(&node.status().await?, upstream);
        let around = db2.until("db2 follows db3", PATIENCE, async |node| from(node, "db3").await).await?;
        self.teller.line(format!("it flows {around}"));
        self.proxy.heal();
        let healed = Instant::now();
        let way = db2.until("db2 follows db1", PATIENCE, async |node| from(node, "db1").await).await?;
        let took = healed.elapsed().as_secs_f64();
        self.teller.line(format!("healed; after {took:.1} s it flows {way}"));
        Ok(())
    }

    /// Kills `db1`, and puts the standby first that has the most. Up to where that one has all WAL.
    async fn lose_the_primary(&mut self) -> anyhow::Result<Lsn> {
        self.teller.part("5. The primary is lost");
        self.teller.line("SIGKILL for the PostgreSQL and the sidecar of db1");
        self.db1.kill().await?;
        let mut ends = [Lsn::INVALID; 2];
        for (end, standby) in ends.iter_mut().zip(&mut self.standbys) {
            *end = standby
                .until("the standby has noticed", PATIENCE, async |node| end_of(&node.status().await?))
                .await?;
            self.teller.line(format!("{} has all WAL up to {end}", standby.name()));
        }
        if ends[1] > ends[0] {
            self.standbys.swap(0, 1);
            ends.swap(0, 1);
        }
        Ok(ends[0])
    }

    /// Promotes the first of the standbys; the other one has to follow by itself.
    async fn promote(&mut self) -> anyhow::Result<()> {
        let [winner, other] = &mut self.standbys;
        let began = Instant::now();
        let promoting = run(&mut self.teller, winner, &["promote"]);
        let (said, first_write) = tokio::try_join!(promoting, first_write(winner))?;
        self.teller.output(&said);
        self.summary.first_write_after = first_write.duration_since(began);
        let seconds = self.summary.first_write_after.as_secs_f64();
        self.teller.line(format!("first write on {} {seconds:.1} s after the command", winner.name()));
        let timeline = winner.cluster.value(TIMELINE).await?.parse()?;
        let what = format!("{} follows on timeline {timeline}", other.name());
        let follows = async |node: &Node| {
            let theirs = node.status().await?.node.timeline;
            ensure!(theirs == TimelineId(timeline), "it is on timeline {theirs}");
            Ok(())
        };
        other.until(&what, PATIENCE, follows).await?;
        other.until_replayed(winner.flushed().await?, PATIENCE).await?;
        self.teller.line(format!(
            "{} follows it by itself, on timeline {timeline}, {:.1} s after the command",
            other.name(),
            began.elapsed().as_secs_f64()
        ));
        Ok(())
    }

    /// Every row that was acknowledged and shipped is there, every later one too, and both nodes are equal.
    async fn compare(&mut self, at_loss: &Ledger, ledger: &Ledger, shipped: Lsn) -> anyhow::Result<()> {
        self.teller.part("6. Every row");
        let [winner, other] = &mut self.standbys;
        let conninfo = winner.cluster.conninfo();
        let verified = at_loss.verify(&conninfo, Some(shipped)).await?;
        let later = ledger.verify(&conninfo, Some(shipped)).await?;
        let lost = later.lost_beyond.saturating_sub(verified.lost_beyond);
        ensure!(
            lost == 0,
            "{lost} rows that {} acknowledged after its promotion are not there",
            winner.name()
        );
        self.summary.shipped_rows = verified.present;
        self.summary.unshipped_rows = verified.lost_beyond;
        self.teller.line(format!(
            "{} rows were acknowledged and shipped: all are on {}",
            grouped(verified.present as u64),
            winner.name()
        ));
        if verified.lost_beyond > 0 {
            self.teller.line(format!(
                "{} more were acknowledged in the last moment, not shipped, and are lost",
                verified.lost_beyond
            ));
        }
        let end = winner.flushed().await?;
        other.until_replayed(end, PATIENCE).await?;
        let names = format!("compare {} and {}", winner.name(), other.name());
        let equal = digest::compare(&conninfo, &other.cluster.conninfo()).await.context(names)?;
        self.summary.equal_rows = equal;
        (self.summary.primary, self.summary.follower) = (winner.name(), other.name());
        self.teller.line(format!(
            "{} and {} hold the same {} rows",
            winner.name(),
            other.name(),
            grouped(equal)
        ));
        Ok(())
    }
}

/// Runs a command that has to succeed, or at worst to warn; what it printed and said.
async fn run(teller: &mut Teller<'_>, node: &Node, arguments: &[&str]) -> anyhow::Result<String> {
    teller.command(node.name(), arguments);
    let output = node.run(arguments).await?;
    let said = [output.stderr, output.stdout].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    let worst = if matches!(arguments, ["check" | "lag", ..]) { 1 } else { 0 };
    if output.status.code().is_none_or(|code| code > worst) {
        bail!("{}$ walship {}: {}\n{said}", node.name(), arguments.join(" "), output.status);
    }
    Ok(said)
}

/// SQL that makes a table of orders: some of each row repeats, some does not.
fn fill(rows: u64) -> String {
    format!(
        "CREATE TABLE orders (id bigint PRIMARY KEY, customer text, price numeric, placed timestamptz); \
         INSERT INTO orders SELECT i, md5(i::text) || ' of region ' || i % 50, i % 10000 / 100.0, \
             timestamptz '2026-01-01 00:00+00' + i * interval '1 second' FROM generate_series(1, {rows}) AS i; \
         ANALYZE orders"
    )
}

/// Tells for some seconds how many rows are written and how far each standby is behind.
async fn each_second(
    teller: &mut Teller<'_>,
    db1: &Node,
    workload: &Workload,
    seconds: u64,
) -> anyhow::Result<()> {
    let mut written = workload.acknowledged();
    let began = tokio::time::Instant::now();
    for second in 1..=seconds {
        tokio::time::sleep_until(began + Duration::from_secs(second)).await;
        let now = workload.acknowledged();
        let status = db1.status().await?;
        let mut line = format!("{second:>2} s  {:>5} commits/s", grouped((now - written) as u64));
        for standby in lag::of(&status).standbys {
            let behind = table::behind(standby.stage(LagStage::Replay));
            line.push_str(&format!("   {} {behind:<16}", standby.name));
        }
        teller.line(line.trim_end());
        written = now;
    }
    Ok(())
}

/// WAL over all links from a node: raw bytes, and bytes on the wire.
fn traffic(status: &Status) -> (u64, u64) {
    let traffic = status.downstreams.iter().map(|down| down.traffic);
    traffic.fold((0, 0), |sum, one| (sum.0 + one.raw_bytes, sum.1 + one.wire_bytes))
}

fn is_up(contact: &Contact) -> anyhow::Result<()> {
    ensure!(matches!(contact, Contact::Up { .. }), "it is {contact:?}");
    Ok(())
}

/// The way of the WAL to a standby that follows `upstream`.
fn way(status: &Status, upstream: &str) -> anyhow::Result<String> {
    let link = status.upstream.as_ref().context("it has no upstream")?;
    let way = link.route.join(" <- ");
    ensure!(link.from_primary && link.route.get(1).is_some_and(|node| node == upstream), "it flows {way}");
    Ok(way)
}

/// Where the WAL of a standby ends that has lost its primary.
fn end_of(status: &Status) -> anyhow::Result<Lsn> {
    ensure!(status.node.role == Role::Standby, "it is no standby");
    let upstream = status.upstream.as_ref().context("it has no upstream")?;
    ensure!(!upstream.from_primary, "it still receives");
    let store = &status.store;
    ensure!(store.durable == store.appended, "not all is on disk yet");
    Ok(store.durable)
}

/// Tries to write until it works; when it did.
async fn first_write(node: &Node) -> anyhow::Result<Instant> {
    wait::until("the new primary takes a write", PATIENCE, async || {
        tokio::time::sleep(WRITE_EVERY).await;
        node.cluster.sql("INSERT INTO walship_probe VALUES (0)").await?;
        Ok(Instant::now())
    })
    .await
}
