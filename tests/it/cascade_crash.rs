//! A cascade under load while its parts are killed, frozen and cut off at random: nothing acknowledged is lost where it was
//! shipped, the stores end up equal, and after the loss of the head the rest follows whoever is promoted.
//!
//! `WALSHIP_ROUNDS` sets the number of rounds, `WALSHIP_SEED` replays the choices of an earlier run; not its moments.

use std::time::Duration;

use anyhow::ensure;
use rustix::process::Signal;
use walship::demo::{ClusterOptions, Proxy, Random, Workload, WorkloadOptions};
use walship::pg::Lsn;

use crate::cascade::{prefers, standby_of, takes};
use crate::harness::{Node, PATIENCE, PROMOTE, Test, eventually};

const ROUNDS_VARIABLE: &str = "WALSHIP_ROUNDS";
const ROUNDS: u32 = 4;

/// What happens to a node, or to the link to the head.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    /// SIGKILL for its sidecar.
    KillSidecar,
    /// SIGKILL for its PostgreSQL.
    KillPostgres,
    /// The sidecar stops and says nothing, for longer than silence is borne or not.
    Freeze { seconds: u64 },
    /// Nobody reaches the head.
    CutHead,
    /// All connections to the head end once.
    ResetHead,
}

/// `db1` ahead of `db2` and `db5`; `db3` and `db4` prefer `db2`, and `db4` then `db3`.
struct Cascade {
    random: Random,
    workload: Workload,
    link: Proxy,
    db1: Node,
    standbys: Vec<Node>,
    _test: Test,
}

impl Cascade {
    async fn new(test: Test, seed: u64) -> Cascade {
        println!("WALSHIP_SEED={seed}");
        let options = ClusterOptions::default().set("min_wal_size", "4MB").set("max_wal_size", "8MB");
        let mut db1 = Node::new(&test, "db1", options).await;
        let link = Proxy::start(db1.listen()).await.unwrap();
        db1.advertise = link.address();
        db1.init().await;
        db1.start_primary().await;
        let load = WorkloadOptions { pause: Duration::from_millis(2), seed, ..WorkloadOptions::default() };
        let workload = Workload::start(&db1.cluster.conninfo(), &load).await.unwrap();
        let db2 = test.standby("db2", &db1).await;
        let db3 = standby_of(&test, "db3", &db1, &[&db2]).await;
        let mut db4 = standby_of(&test, "db4", &db1, &[&db2, &db3]).await;
        prefers(&mut db4, &[&db2, &db3]);
        let db5 = test.standby("db5", &db1).await;
        let standbys = vec![db2, db3, db4, db5];
        Cascade { random: Random::new(seed), workload, link, db1, standbys, _test: test }
    }

    async fn rounds(mut self, rounds: u32) {
        for round in 1..=rounds {
            let faults = self.faults();
            println!("round {round}: {} rows; {faults:?}", self.workload.acknowledged());
            for &(at, fault) in &faults {
                self.begin(at, fault).await;
                self.pause(400).await;
            }
            self.pause(1500).await;
            for &(at, fault) in &faults {
                self.end(at, fault).await;
                self.pause(300).await;
            }
            self.all_replay().await;
        }
        self.lose_the_head().await;
    }

    async fn pause(&mut self, milliseconds_max: u64) {
        tokio::time::sleep(Duration::from_millis(self.random.below(milliseconds_max))).await;
    }

    /// One to three, no two of them at one node.
    fn faults(&mut self) -> Vec<(usize, Fault)> {
        let mut faults: Vec<(usize, Fault)> = Vec::new();
        for _ in 0..=self.random.below(3) {
            let at = self.random.below(self.standbys.len() as u64 + 1) as usize;
            let fault = match self.random.below(6) {
                _ if at == self.standbys.len() && self.random.below(2) == 0 => Fault::CutHead,
                _ if at == self.standbys.len() => Fault::ResetHead,
                0 => Fault::KillPostgres,
                1 => Fault::Freeze { seconds: self.random.below(14) },
                _ => Fault::KillSidecar,
            };
            if faults.iter().all(|(other, _)| *other != at) {
                faults.push((at, fault));
            }
        }
        faults
    }

    async fn begin(&mut self, at: usize, fault: Fault) {
        match fault {
            Fault::KillSidecar => self.standbys[at].sidecar.kill().await,
            Fault::KillPostgres => self.standbys[at].cluster.kill().await.unwrap(),
            Fault::Freeze { .. } => self.standbys[at].sidecar.signal(Signal::STOP),
            Fault::CutHead => self.link.cut(),
            Fault::ResetHead => self.link.reset(),
        }
    }

    async fn end(&mut self, at: usize, fault: Fault) {
        match fault {
            Fault::KillSidecar => self.standbys[at].sidecar.start(&["run"]),
            Fault::KillPostgres => self.standbys[at].cluster.start().await.unwrap(),
            Fault::Freeze { seconds } => {
                tokio::time::sleep(Duration::from_secs(seconds)).await;
                self.standbys[at].sidecar.signal(Signal::CONT);
            }
            Fault::CutHead => self.link.heal(),
            Fault::ResetHead => {}
        }
    }

    /// Waits until everybody has what is acknowledged by now.
    async fn all_replay(&self) {
        let end = self.workload.ledger().end_lsn();
        for node in &self.standbys {
            replays(node, end).await;
        }
    }

    /// Everybody returns to the order that they prefer; then the head is lost, and whoever has the most is promoted.
    async fn lose_the_head(mut self) {
        let [db2, db3, db4, db5] = &self.standbys[..] else { unreachable!() };
        takes(db2, &["db2", "db1"]).await;
        takes(db3, &["db3", "db2", "db1"]).await;
        takes(db4, &["db4", "db2", "db1"]).await;
        takes(db5, &["db5", "db1"]).await;
        self.db1.dies().await;
        let ledger = self.workload.stop().await;
        let mut nodes: Vec<&Node> = self.standbys.iter().collect();
        // Those who are behind get what the others have, one way or the other.
        eventually("all standbys are equally far", async || {
            let mut ends = Vec::new();
            for node in &nodes {
                let status = node.status().await?;
                ensure!(!status.upstream.is_some_and(|up| up.from_primary), "it still has a primary");
                ends.push(status.store.durable);
            }
            ensure!(ends.iter().all(|end| *end == ends[0]), "{ends:?}");
            Ok(())
        })
        .await;
        let winner = nodes.remove(self.random.below(nodes.len() as u64) as usize);
        println!("promoting {}", winner.name());
        let shipped = winner.status().await.unwrap().store.durable;
        winner.walship(&PROMOTE).await.succeeded();
        let verified = ledger.verify(&winner.cluster.conninfo(), Some(shipped)).await.unwrap();
        println!("{} rows are there, {} were never shipped", verified.present, verified.lost_beyond);
        winner.cluster.sql("CREATE TABLE after AS SELECT generate_series(1, 1000)").await.unwrap();
        for node in &nodes {
            node.equals(winner).await;
            node.same_content_as(winner);
        }
    }
}

/// Waits until a standby has replayed up to `lsn`, at most.
async fn replays(node: &Node, lsn: Lsn) {
    let query =
        format!("SELECT coalesce(pg_last_wal_replay_lsn(), '0/0') >= '{lsn}', pg_last_wal_replay_lsn()");
    let what = format!("{} has replayed {lsn}", node.name());
    let replayed = walship::demo::wait::until(&what, PATIENCE, async || {
        let answer = node.cluster.value(&query).await?;
        ensure!(answer.starts_with("t|"), "it has replayed {answer}");
        Ok(())
    });
    if let Err(error) = replayed.await {
        panic!("{error:#}\n{:?}", node.walship(&["status"]).await);
    }
}

#[tokio::test]
async fn faults_at_random_lose_nothing_and_the_cascade_finds_itself_again() {
    let rounds = std::env::var(ROUNDS_VARIABLE).ok().map(|rounds| rounds.parse().expect(ROUNDS_VARIABLE));
    let test = Test::new();
    let seed = test.seed();
    Cascade::new(test, seed).await.rounds(rounds.unwrap_or(ROUNDS)).await;
}
